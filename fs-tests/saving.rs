//! Image archives written by `save`, read back by plyfs and by other tools.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::support::env::{TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::tar::Tar;

fn tar(n: u8) -> Vec<u8> {
    Tar::new().file(format!("file-{n}"), vec![n; 5000]).finish()
}

/// `app:1` of layers 1 and 2 and `app:2` of layers 1 and 3, both with an unknown config field.
fn two_images() -> TestEnv {
    let env = TestEnv::new();
    for (tag, top) in [("1", 2), ("2", 3)] {
        let dir = env.path(format!("{tag}/app"));
        let image =
            Image::new().layer(tar(1)).layer(tar(top)).tag(tag).edit_config(|c| c["x-unknown"] = json!([1, 2.50]));
        image.write_layout(&dir);
        env.ok(["pull", "-q", &format!("oci:{}:{tag}", dir.display())]);
    }
    env
}

fn members(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        assert!(found.insert(name.clone(), bytes).is_none(), "{name} is there twice");
    }
    found
}

#[test]
fn save_and_load_keep_images_unchanged() {
    let env = two_images();
    let file = env.path("all.tar");
    let text = file.to_str().unwrap();
    assert_eq!(env.ok(["save", "-o", text, "app"]), "");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let members = members(&file);
    let items: Value = serde_json::from_slice(&members["manifest.json"]).unwrap();
    let ids = ["app:1", "app:2"].map(|n| env.ok(["inspect", "-f", "{{.Id}}", n]).trim().to_owned());
    for (at, item) in items.as_array().unwrap().iter().enumerate() {
        assert_eq!(item["RepoTags"], json!([format!("app:{}", at + 1)]));
        // The config's bytes are unchanged, and every layer hashes to its DiffID.
        assert_eq!(digest(&members[item["Config"].as_str().unwrap()]), ids[at]);
        for layer in item["Layers"].as_array().unwrap() {
            let name = layer.as_str().unwrap();
            assert_eq!(digest(&members[name]), name.replace("blobs/sha256/", "sha256:"));
        }
    }
    // Three layers, two configs, two manifests: shared blobs are in the archive once.
    assert_eq!(members.keys().filter(|name| name.len() > "blobs/sha256/".len()).count(), 7);
    // A second save gives the same bytes, to standard output too.
    let again = env.path("again.tar");
    let out = std::fs::File::create(&again).unwrap();
    assert!(env.command(["save", "app:1", "app:2"]).stdout(out).status().unwrap().success());
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&again).unwrap());
    // Loaded into an empty store.
    env.ok(["image", "prune", "-af"]);
    assert_eq!(env.ok(["load", "-i", text]), "Loaded image: app:1\nLoaded image: app:2\n");
    assert_eq!(["app:1", "app:2"].map(|n| env.ok(["inspect", "-f", "{{.Id}}", n]).trim().to_owned()), ids);
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn other_tools_read_saved_archives() {
    let env = two_images();
    let (file, id) = (env.path("one.tar"), env.ok(["inspect", "-f", "{{.Id}}", "app:1"]));
    env.ok(["save", "-o", file.to_str().unwrap(), "app:1"]);
    let dir = env.path("unpacked");
    std::fs::create_dir(&dir).unwrap();
    let tool = |name: &str, args: &[&str]| {
        let output = Command::new(name).current_dir(&dir).args(args).output().unwrap();
        assert!(output.status.success(), "{name} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let docker = format!("docker-archive:{}:app:1", file.display());
    let oci = format!("oci-archive:{}:1", file.display());
    for source in [docker.as_str(), oci.as_str()] {
        let config = tool("skopeo", &["inspect", "--config", "--raw", source]);
        assert_eq!(digest(config.as_bytes()), id.trim(), "{source}");
        let shown: Value = serde_json::from_str(&tool("skopeo", &["inspect", source])).unwrap();
        assert_eq!(shown["Layers"], json!([digest(&tar(1)), digest(&tar(2))]), "{source}");
        tool("skopeo", &["--insecure-policy", "copy", "-q", source, "dir:copied"]);
        std::fs::remove_dir_all(dir.join("copied")).unwrap();
    }
    tool("tar", &["xf", file.to_str().unwrap()]);
    tool("umoci", &["unpack", "--rootless", "--image", ".:1", "bundle"]);
    assert_eq!(std::fs::read(dir.join("bundle/rootfs/file-2")).unwrap(), vec![2; 5000]);
}

fn podman(env: &TestEnv, name: &str, args: &[&str]) -> String {
    let store = env.path(name);
    let mut command = Command::new("podman");
    command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
    // podman derives a name from a directory's path, which must not have capitals.
    let done = run(command.args(["--storage-driver", "vfs"]).args(args).current_dir(env.path(".")));
    assert_eq!(done.code, 0, "{command:?}: {done:?}");
    done.stdout.trim().to_owned()
}

#[test]
fn every_format_is_read_by_its_tools() {
    let env = two_images();
    let id = env.ok(["inspect", "-f", "{{.Id}}", "app:1"]).trim().to_owned();
    let layers = json!([digest(&tar(1)), digest(&tar(2))]);
    for format in ["", "docker-archive", "oci-archive", "oci-dir"] {
        let name = format!("out-{format}");
        let out = env.path(&name);
        let text = out.to_str().unwrap();
        let named: &[&str] = if format.is_empty() { &[] } else { &["--format", format] };
        env.ok([&["save", "-o", text], named, &["app:1"]].concat());
        let has = |name: &str| match format {
            "oci-dir" => out.join(name).exists(),
            _ => members(&out).contains_key(name),
        };
        let (docker, oci) = (format != "oci-archive" && format != "oci-dir", format != "docker-archive");
        assert_eq!(["manifest.json", "oci-layout", "index.json"].map(has), [docker, oci, oci], "{format}");
        podman(&env, "podman", &["load", "-q", "-i", &name]);
        // The name that podman gives the image depends on the format.
        let hex = &id["sha256:".len()..];
        let shown = podman(&env, "podman", &["image", "inspect", "--format", "{{json .RootFS.Layers}}", hex]);
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), layers, "{format}");
        podman(&env, "podman", &["rmi", "-f", hex]);
        // Read back by the commands that accept the format.
        env.ok(["rmi", "app:1"]);
        match format {
            "oci-dir" => drop(env.ok(["pull", "-q", &format!("oci:{text}:1")])),
            _ => drop(env.ok(["load", "-i", text])),
        }
        assert_eq!(env.ok(["inspect", "-f", "{{.Id}}", "app:1"]).trim(), id, "{format}");
    }
}

#[test]
fn an_oci_layout_is_saved_into_a_directory() {
    let env = two_images();
    let dir = env.path("out/layout");
    let text = dir.to_str().unwrap();
    let no_folder = env.fails(["save", "--format", "oci-dir", "app:1"]);
    assert_eq!(no_folder, "Error: the format oci-dir needs a directory: name it with -o");
    assert!(env.fails(["save", "--format", "oci-dir", "-o", text, "app"]).contains("invalid output path: "));
    std::fs::create_dir_all(&dir).unwrap();
    env.ok(["save", "--format", "oci-dir", "-o", text, "app"]);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
    for tag in ["1", "2"] {
        let bundle = env.path(format!("bundle-{tag}"));
        let image = format!("{text}:{tag}");
        let mut umoci = Command::new("umoci");
        assert_eq!(run(umoci.args(["unpack", "--rootless", "--image", &image]).arg(&bundle)).code, 0);
        assert!(bundle.join("rootfs/file-1").exists());
    }
    // An existing layout is not overwritten, and a failure leaves nothing.
    let error = env.fails(["save", "--format", "oci-dir", "-o", text, "app:1"]);
    assert_eq!(
        error,
        format!("Error: failed to save image: invalid output path: {text} exists and is not an empty directory")
    );
    let hex = digest(&tar(2)).replace("sha256:", "");
    let layer = env.root().join("layers/sha256").join(hex).join("layer.tar");
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let second = env.path("out/second");
    let error = env.fails(["save", "--format", "oci-dir", "-o", second.to_str().unwrap(), "app:1"]);
    assert!(error.starts_with("Error: image app:1 is damaged: layer "), "{error}");
    assert_eq!(std::fs::read_dir(env.path("out")).unwrap().count(), 1);
    assert_eq!(run(&mut env.command(["save", "--format", "zip", "app:1"])).code, 125);
}

/// podman reads all images of an archive.
#[test]
fn an_archive_holds_several_images() {
    let env = two_images();
    let file = env.path("all.tar");
    env.ok(["save", "--format", "docker-archive", "-o", file.to_str().unwrap(), "app"]);
    podman(&env, "podman", &["load", "-q", "-i", file.to_str().unwrap()]);
    for tag in ["1", "2"] {
        let id = env.ok(["inspect", "-f", "{{.Id}}", &format!("app:{tag}")]);
        let shown = podman(&env, "podman", &["image", "inspect", "--format", "{{.RepoTags}}", &id.trim()[7..]]);
        assert_eq!(shown, format!("[localhost/app:{tag}]"));
    }
}

#[test]
fn an_archive_has_the_requested_names() {
    let env = two_images();
    env.ok(["tag", "app:1", "localhost:5000/b:x"]);
    let id = env.ok(["inspect", "-f", "{{.Id}}", "app:1"]).trim().to_owned();
    let file = env.path("one.tar");
    let tags = |wanted: &[&str]| {
        let mut args = vec!["save", "-o", file.to_str().unwrap()];
        args.extend(wanted);
        env.ok(args);
        let items: Value = serde_json::from_slice(&members(&file)["manifest.json"]).unwrap();
        items.as_array().unwrap().iter().map(|item| item["RepoTags"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(tags(&["app:1"]), [json!(["app:1"])]);
    assert_eq!(tags(&["app:1", "localhost:5000/b:x", "app:1"]), [json!(["app:1", "localhost:5000/b:x"])]);
    assert_eq!(tags(&[&id[7..19]]), [Value::Null]);
    assert_eq!(tags(&["app"]), [json!(["app:1"]), json!(["app:2"])]);
}

#[test]
fn a_save_that_fails_leaves_nothing() {
    let env = two_images();
    let file = env.path("out/one.tar");
    let text = file.to_str().unwrap();
    let error = env.fails(["save", "-o", text, "app:1"]);
    assert!(error.starts_with("Error: failed to save image: invalid output path: "), "{error}");
    std::fs::create_dir(env.path("out")).unwrap();
    assert_eq!(env.fails(["save", "-o", text, "nope"]), "Error: No such image: nope:latest");
    assert!(env.fails(["save", "-o", env.path("out").to_str().unwrap(), "app:1"]).ends_with("out is a directory"));
    assert_eq!(run(&mut env.command(["save"])).code, 1);
    // A damaged layer is noticed before the archive is complete; the existing file stays.
    std::fs::write(&file, "old").unwrap();
    let hex = digest(&tar(2)).replace("sha256:", "");
    let layer = env.root().join("layers/sha256").join(hex).join("layer.tar");
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let error = env.fails(["save", "-o", text, "app:1"]);
    assert!(error.starts_with("Error: image app:1 is damaged: layer "), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(env.path("out")).unwrap().count(), 1);
    // A full disk.
    let full = env
        .command(["save", "app:2"])
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!((full.status.code(), output.contains("No space left on device")), (Some(1), true), "{output}");
}
