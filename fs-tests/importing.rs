//! `import` of tars as images, and `load` and `pull` of compressed archives.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image, compress, digest};
use super::support::tar::Tar;

fn tar() -> Vec<u8> {
    Tar::new().dir("etc").file("etc/hostname", b"box\n").finish()
}

/// `plyfs import ARGS` with these bytes as standard input, on a fixed day.
fn import(env: &TestEnv, bytes: &[u8], args: &[&str]) -> Output {
    let path = env.path("stdin");
    std::fs::write(&path, bytes).unwrap();
    let mut command = env.command(["import"].iter().chain(args));
    command.env("SOURCE_DATE_EPOCH", "1000000000").env_remove("DOCKER_DEFAULT_PLATFORM");
    let output = command.stdin(File::open(path).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code().unwrap(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[test]
fn import_makes_an_image_from_a_tar() {
    let env = TestEnv::new();
    let out = import(&env, &tar(), &["--platform", "linux/arm/v7", "-", "base:1"]);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    let id = out.stdout.trim();
    let config = std::fs::read(env.root().join("blobs/sha256").join(id.replace("sha256:", ""))).unwrap();
    let want = json!({
        "comment": "Imported from -",
        "created": "2001-09-09T01:46:40Z",
        "config": {},
        "architecture": "arm",
        "variant": "v7",
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [digest(&tar())] },
        "history": [{ "created": "2001-09-09T01:46:40Z", "comment": "Imported from -" }],
    });
    assert_eq!((digest(&config), serde_json::from_slice::<Value>(&config).unwrap()), (id.to_owned(), want));
    let history = env.ok(["history", "base:1"]);
    let row = history.lines().nth(1).unwrap();
    assert!(row.starts_with(&id[7..19]) && row.ends_with("   2.56kB    Imported from -"), "{history}");
    assert_eq!(env.ok(["history", "--format", "{{.CreatedBy}}|{{.Comment}}", "base:1"]), "|Imported from -\n");
    assert_eq!(env.ok(["inspect", "-f", "{{.Comment}} {{.RepoDigests}}", "base:1"]), "Imported from - []\n");
    let mount = env.mount("base:1", &[]);
    assert_eq!(std::fs::read(mount.path().join("etc/hostname")).unwrap(), b"box\n");
    mount.unmount();
    // The same tar on the same day gives the same image, which gets a second name.
    let again = import(&env, &tar(), &["--platform", "linux/arm/v7", "-", "other"]);
    assert_eq!(again.stdout.trim(), id);
    assert_eq!(env.ok(["inspect", "-f", "{{.RepoTags}}", id]), "[base:1 other:latest]\n");
    assert_eq!(env.ok(["system", "fsck"]), "");
    // Without a name the image is dangling.
    let nameless = import(&env, &tar(), &["-m", "by hand", "-"]).stdout;
    assert_eq!(env.ok(["images", "-q", "--no-trunc", "-f", "dangling=true"]), nameless);
    assert_eq!(env.ok(["history", "--format", "{{.Comment}}", nameless.trim()]), "by hand\n");
    let gone = env.ok(["rmi", nameless.trim()]);
    assert_eq!(gone, format!("Deleted: {nameless}"), "the layer is another image's too");
}

#[test]
fn import_accepts_every_compression() {
    let env = TestEnv::new();
    let kinds = [
        Compression::Gzip,
        Compression::GzipMembers(3),
        Compression::Zstd,
        Compression::ZstdFrames(2),
        Compression::XzStreams(1),
        Compression::XzStreams(3),
        Compression::Bzip2Streams(1),
        Compression::Bzip2Streams(3),
    ];
    let mut ids = vec![import(&env, &tar(), &["-"]).stdout];
    for kind in kinds {
        let file = env.path("tree");
        std::fs::write(&file, compress(&tar(), kind)).unwrap();
        ids.push(import(&env, b"", &[file.to_str().unwrap(), "x"]).stdout);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(std::fs::read_dir(env.root().join("layers/sha256")).unwrap().count(), 1);
    // A layer of a pulled image is imported unchanged.
    let dir = env.path("app");
    Image::new().layer(tar()).write_layout(&dir);
    assert!(env.ok(["pull", &format!("oci:{}", dir.display())]).contains(": Already exists\n"));
    // A named pipe works too.
    let mut shell = Command::new("bash");
    let script = "exec \"$0\" --root \"$1\" import <(cat \"$2\") piped";
    let program = env.command([""]).get_program().to_owned();
    shell.args(["-c", script]).arg(program).arg(env.root()).arg(env.path("tree"));
    assert_eq!(run(shell.env("SOURCE_DATE_EPOCH", "1000000000")).stdout, ids[0]);
    // Errors for damaged or truncated input name the compression.
    for (kind, what) in [(Compression::XzStreams(1), "xz"), (Compression::Bzip2Streams(1), "bzip2")] {
        let intact = compress(&tar(), kind);
        let mut damaged = intact.clone();
        damaged[intact.len() / 2] ^= 0x10;
        for bytes in [&intact[..intact.len() - 5], &damaged] {
            let out = import(&env, bytes, &["-"]);
            assert_eq!((out.code, out.stderr.lines().count()), (1, 1), "{out:?}");
            assert!(out.stderr.starts_with(&format!("Error: standard input: bad {what} stream: ")), "{out:?}");
        }
    }
}

#[test]
fn import_applies_dockerfile_instructions() {
    let env = TestEnv::new();
    let changes = [
        "ENV A=1 B=\"two words\"",
        "LABEL name=$A",
        "CMD [\"sh\"]",
        "ENTRYPOINT exec /init",
        "EXPOSE 80 53/udp",
        "VOLUME /data",
        "WORKDIR /srv",
        "WORKDIR app",
        "USER 5:5",
        "ONBUILD RUN true",
        "STOPSIGNAL SIGINT",
        "HEALTHCHECK --interval=5s CMD /ok",
    ];
    let mut args: Vec<&str> = changes.iter().flat_map(|change| ["-c", change]).collect();
    args.extend(["-", "app"]);
    assert_eq!(import(&env, &tar(), &args).code, 0);
    let config: Value = serde_json::from_str(&env.ok(["inspect", "-f", "{{json .Config}}", "app"])).unwrap();
    let want = json!({
        "Env": ["A=1", "B=two words"],
        "Labels": { "name": "1" },
        "Cmd": ["sh"],
        "Entrypoint": ["/bin/sh", "-c", "exec /init"],
        "ExposedPorts": { "53/udp": {}, "80/tcp": {} },
        "Volumes": { "/data": {} },
        "WorkingDir": "/srv/app",
        "User": "5:5",
        "OnBuild": ["RUN true"],
        "StopSignal": "SIGINT",
        "Healthcheck": { "Test": ["CMD-SHELL", "/ok"], "Interval": 5_000_000_000u64 },
    });
    assert_eq!(config, want);
    let bad = import(&env, &tar(), &["-c", "RUN make", "-"]);
    assert_eq!((bad.code, bad.stderr.as_str()), (1, "Error: change `RUN make`: RUN is not a valid change command\n"));
    // podman reads the image's config as it reads its own.
    let file = env.path("app.tar");
    env.ok(["save", "-o", file.to_str().unwrap(), "app"]);
    let shown =
        run(Command::new("skopeo").args(["inspect", "--config", &format!("docker-archive:{}", file.display())]));
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["config"]["WorkingDir"], &shown["history"][0]["comment"]),
        (&json!("/srv/app"), &json!("Imported from -"))
    );
}

/// Every file in the store.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path.display().to_string()) }
    }
    found
}

#[test]
fn a_failed_import_leaves_no_files() {
    let env = TestEnv::new();
    env.ok(["images"]);
    let mut cut = tar();
    cut.truncate(1026);
    let gzip = compress(&[tar(), vec![7; 100_000]].concat(), Compression::Gzip);
    let outside = Tar::new().file("../x", b"").finish();
    for (bytes, words) in [
        (&b"no tar at all, but longer than nothing"[..], "the tar "),
        (&cut, "truncated"),
        (&gzip[..gzip.len() - 9], "bad gzip stream"),
        (&outside, "entry `../x` has a path that leaves the layer"),
    ] {
        let out = import(&env, bytes, &["-", "x"]);
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.lines().count()), (1, "", 1), "{out:?}");
        assert!(out.stderr.starts_with("Error: standard input: ") && out.stderr.contains(words), "{out:?}");
    }
    for (args, text) in [
        (&["-", "X"][..], "Error: invalid reference format: repository name (library/X) must be lowercase\n"),
        (&["-", &format!("x@{}", digest(b""))], "Error: cannot import digest reference\n"),
        (&["/nowhere/x.tar"], "Error: cannot import /nowhere/x.tar: No such file or directory\n"),
        (&["/"], "Error: cannot import /: is a directory\n"),
        (
            &["https://example.com/x.tgz"],
            "Error: cannot import from a URL: run curl -fL https://example.com/x.tgz | plyfs import -\n",
        ),
        (
            &["-", "a", "b"],
            "\"plyfs import\" requires at least 1 and at most 2 arguments.\nSee 'plyfs import --help'.\n",
        ),
        (&[], "\"plyfs import\" requires at least 1 argument.\nSee 'plyfs import --help'.\n"),
    ] {
        let out = import(&env, &tar(), args);
        assert_eq!((out.code, out.stderr.as_str()), (1, text));
    }
    let bad = run(env.command(["import", "-"]).env("SOURCE_DATE_EPOCH", "today"));
    assert_eq!(bad.stderr, "Error: SOURCE_DATE_EPOCH is not a number of seconds: today\n");
    let left: Vec<String> = files(&env.root()).into_iter().filter(|f| !f.ends_with("/lock")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// The signal arrives while the tar is being read.
#[test]
fn an_interrupted_import_leaves_no_files() {
    let env = TestEnv::new();
    let mut child = env.command(["import", "-", "x"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // More data than the pipe and every buffer hold: once it is written, plyfs has begun to read.
    let big = Tar::new().file("f", vec![7; 8 << 20]).finish();
    pipe.write_all(&big[..4 << 20]).unwrap();
    assert_eq!(run(Command::new("kill").args(["-INT", &child.id().to_string()])).code, 0);
    let output = child.wait_with_output().unwrap();
    drop(pipe);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(130), &b""[..]));
    let left: Vec<String> = files(&env.root()).into_iter().filter(|f| !f.ends_with("/lock")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn load_and_pull_accept_xz_and_bzip2_archives_and_layers() {
    let env = TestEnv::new();
    let kinds = [Compression::XzStreams(2), Compression::Bzip2Streams(2)];
    for (n, kind) in kinds.into_iter().enumerate() {
        let layer = Tar::new().file(format!("file-{n}"), vec![n as u8; 5000]).finish();
        let (plain, packed) = (env.path("plain.tar"), env.path("packed.tar"));
        let image = || Image::new().compressed(layer.clone(), kind).tag("1");
        for source in ["docker-archive", "oci-archive"] {
            let name = format!("{source}-{n}");
            if source == "docker-archive" {
                image().write_docker_archive(&plain, &[&format!("{name}:1")]);
            } else {
                image().write_oci_archive(&plain);
            }
            std::fs::write(&packed, compress(&std::fs::read(&plain).unwrap(), kind)).unwrap();
            let pulled = env.ok(["pull", "-q", &format!("{source}:{}", packed.display())]);
            let loaded = env.ok(["load", "-i", packed.to_str().unwrap()]);
            assert!(loaded.contains("Loaded image"), "{pulled} {loaded}");
        }
        let stored = env.root().join("layers/sha256").join(digest(&layer).replace("sha256:", "")).join("layer.tar");
        assert_eq!(std::fs::read(stored).unwrap(), layer);
    }
    assert_eq!(env.ok(["system", "fsck"]), "");
}
