//! Manifest lists in the store: `manifest create` to `manifest push`, and `push`, `rmi` and `build` with a list's name.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::registry::{DockerRegistry, command};
use super::support::tar::Tar;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn tar(n: u8) -> Vec<u8> {
    Tar::new().dir("etc").file(format!("etc/{n}"), vec![n; 5000]).finish()
}

fn image(architecture: &'static str, n: u8) -> Image {
    Image::new().layer(tar(n)).edit_config(move |config| config["architecture"] = json!(architecture))
}

/// Adds the image to the store under this name, as one that has no manifest: only its layers and its config.
fn add(env: &TestEnv, image: &Image, name: &str) {
    let file = env.path("image.tar");
    image.write_docker_archive(&file, &[name]);
    env.ok(["load", "-q", "-i", file.to_str().unwrap()]);
}

fn plyfs(env: &TestEnv, args: &[&str]) -> Output {
    run(&mut command(env, args))
}

#[track_caller]
fn ok(env: &TestEnv, args: &[&str]) -> String {
    let out = plyfs(env, args);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{args:?}: {out:#?}");
    out.stdout
}

#[track_caller]
fn fails(env: &TestEnv, args: &[&str]) -> String {
    let out = plyfs(env, args);
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.lines().count()), (1, "", 1), "{args:?}: {out:#?}");
    out.stderr.trim_end().to_owned()
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The bytes that skopeo reads from the registry.
fn skopeo(name: &str) -> String {
    let name = format!("docker://{name}");
    let done = run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &name]));
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

fn architectures(index: &Value) -> Vec<&str> {
    let of = |entry: &'_ Value| entry["platform"]["architecture"].as_str().map(str::to_owned);
    assert!(index["manifests"].as_array().unwrap().iter().all(|entry| of(entry).is_some()), "{index:#}");
    index["manifests"].as_array().unwrap().iter().filter_map(|e| e["platform"]["architecture"].as_str()).collect()
}

#[test]
fn a_list_of_local_images_is_pushed_with_them() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    add(&env, &image("amd64", 1), "app:amd64");
    add(&env, &image("arm64", 2), "app:arm64");
    let name = format!("{}/team/app:1", registry.host);
    assert_eq!(ok(&env, &["manifest", "create", &name, "app:amd64"]), format!("Created manifest list {name}\n"));
    ok(&env, &["manifest", "add", "--variant", "v8", "--annotation", "key=value", &name, "app:arm64"]);
    // No digest is known yet.
    let before = json_of(&ok(&env, &["manifest", "inspect", &name]));
    assert_eq!((architectures(&before), &before["manifests"][1]["digest"]), (vec!["amd64", "arm64"], &Value::Null));
    assert!(fails(&env, &["manifest", "inspect", &name, "app:arm64"]).contains("has no manifest yet"));
    let pushed = ok(&env, &["manifest", "push", &name]);
    let raw = skopeo(&name);
    assert_eq!(pushed.trim_end(), digest(raw.as_bytes()));
    let index = json_of(&raw);
    assert_eq!(index["mediaType"], INDEX);
    let arm = &index["manifests"][1];
    assert_eq!(arm["platform"], json!({"architecture": "arm64", "os": "linux", "variant": "v8"}));
    assert_eq!(arm["annotations"], json!({"key": "value"}));
    let manifest = skopeo(&format!("{}/team/app@{}", registry.host, arm["digest"].as_str().unwrap()));
    assert_eq!(arm["size"], manifest.len());
    let id = env.ok(["inspect", "-f", "{{.Id}}", "app:arm64"]);
    assert_eq!(json_of(&manifest)["config"]["digest"], id.trim());
    // Now the digests are known, and the same list is pushed again.
    assert_eq!(json_of(&ok(&env, &["manifest", "inspect", &name])), index);
    assert_eq!(json_of(&ok(&env, &["manifest", "inspect", &name, "app:arm64"])), json_of(&manifest));
    let verbose = json_of(&ok(&env, &["manifest", "inspect", "-v", &name]));
    assert_eq!(verbose[1]["Descriptor"]["digest"], arm["digest"]);
    let again = ok(&env, &["push", &name]);
    let size = raw.len();
    assert!(again.ends_with(&format!("1: digest: {} size: {size}\n", pushed.trim_end())), "{again}");
    // Another machine pulls its image of the list.
    let other = TestEnv::new();
    ok(&other, &["pull", "-q", "--platform", "linux/arm64", &name]);
    assert_eq!(other.ok(["inspect", "-f", "{{.Id}}", &name]), id);
    ok(&env, &["manifest", "push", "--purge", &name, &format!("{}/second:2", registry.host)]);
    assert_eq!(skopeo(&format!("{}/second:2", registry.host)), raw);
    assert!(fails(&env, &["manifest", "push", &name]).starts_with("No such manifest: "));
    env.ok(["system", "fsck"]);
}

#[test]
fn a_list_keeps_its_images_after_their_removal() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    for (architecture, n) in [("amd64", 1), ("arm64", 2)] {
        add(&env, &image(architecture, n), &format!("app:{architecture}"));
    }
    let name = format!("{}/app:1", registry.host);
    let first = ok(&env, &["manifest", "create", &name, "app:amd64", "app:arm64"]);
    assert!(first.starts_with("Created"));
    // Layers in use by the list are not reported as deleted.
    let removed = env.ok(["rmi", "app:amd64", "app:arm64"]);
    assert_eq!(removed.matches("Untagged: ").count(), 2, "{removed}");
    assert_eq!(removed.matches("Deleted: ").count(), 2, "{removed}");
    assert_eq!(env.ok(["system", "gc"]), "Total reclaimed space: 0B\n");
    assert_eq!(env.ok(["images", "-q"]), "");
    let pushed = ok(&env, &["manifest", "push", &name]);
    let index = skopeo(&name);
    assert_eq!(digest(index.as_bytes()), pushed.trim_end());
    // The second push finds everything in the registry.
    assert_eq!(ok(&env, &["manifest", "push", &name]), pushed);
    env.ok(["system", "fsck"]);
    // With the list its images' layers are removed.
    let layers = || fs::read_dir(env.root().join("layers/sha256")).unwrap().count();
    assert_eq!(layers(), 2);
    assert_eq!(env.ok(["rmi", &name]), format!("Untagged: {name}\n"));
    assert_eq!(layers(), 0);
    assert_eq!(env.fails(["rmi", &name]), format!("Error: No such image: {name}"));
    env.ok(["system", "fsck"]);
}

#[test]
fn images_of_a_registry_are_listed_without_a_pull() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    let at = |name: &str| format!("{}/{name}", registry.host);
    let dir = env.path("layout");
    for (architecture, n, to) in [("amd64", 1, "team/app:amd64"), ("arm64", 2, "other/app:arm64")] {
        let _old = fs::remove_dir_all(&dir);
        image(architecture, n).docker().write_layout(&dir);
        registry.fill(&format!("oci:{}", dir.display()), to, &["--format", "v2s2"]);
    }
    let list = at("team/app:1");
    ok(&env, &["manifest", "create", &list, &at("team/app:amd64"), &at("other/app:arm64")]);
    assert_eq!(env.ok(["images", "-q"]), "");
    let index = json_of(&ok(&env, &["manifest", "inspect", &list]));
    assert_eq!((architectures(&index), &index["mediaType"]), (vec!["amd64", "arm64"], &json!(DOCKER_LIST)));
    assert_eq!(index["manifests"][1]["digest"], registry.digest("other/app:arm64", &[]));
    // The manifest of the other repository is pushed to the list's, and its blobs are mounted.
    let pushed = ok(&env, &["manifest", "push", &list]);
    let raw = skopeo(&list);
    assert_eq!((digest(raw.as_bytes()).as_str(), &json_of(&raw)), (pushed.trim_end(), &index));
    let other = TestEnv::new();
    ok(&other, &["pull", "-q", "--platform", "linux/arm64", &list]);
    // Of a list in a registry the image for one platform is added, or all.
    ok(&env, &["manifest", "create", "one", &list]);
    ok(&env, &["manifest", "add", "--arch", "arm64", "one", &list]);
    ok(&env, &["manifest", "create", "--all", "all", &list]);
    let own = env.ok(["version", "-f", "{{.Client.Arch}}"]);
    let of = |name: &str| json_of(&ok(&env, &["manifest", "inspect", name]));
    assert!(architectures(&of("one")).contains(&own.trim()));
    assert_eq!(of("all")["manifests"], index["manifests"]);
    // Formats.
    let as_oci = ok(&env, &["manifest", "push", "--format", "oci", &list, &at("team/app:oci")]);
    let raw = skopeo(&at("team/app:oci"));
    assert_eq!((digest(raw.as_bytes()).as_str(), &json_of(&raw)["mediaType"]), (as_oci.trim_end(), &json!(INDEX)));
    // An image of another registry cannot be pushed.
    let second = DockerRegistry::start(None, None);
    let elsewhere = fails(&env, &["manifest", "push", &list, &format!("{}/app:1", second.host)]);
    assert!(elsewhere.contains(&format!("is only in {}: pull it and add it again", registry.host)), "{elsewhere}");
}

#[test]
fn entries_are_annotated_and_removed() {
    let env = TestEnv::new();
    add(&env, &image("arm", 1), "app:arm");
    add(&env, &image("amd64", 2), "app:amd64");
    let id = env.ok(["inspect", "-f", "{{.Id}}", "app:amd64"]);
    ok(&env, &["manifest", "create", "list", "app:arm", id.trim()]);
    let args = ["--os", "windows", "--arch", "arm", "--variant", "v7", "--os-version", "10.0", "--os-features", "a,b"];
    ok(&env, &[&["manifest", "annotate"], &args[..], &["list", "app:arm"]].concat());
    let index = json_of(&ok(&env, &["manifest", "inspect", "list"]));
    let platform = json!({
        "architecture": "arm", "os": "windows", "os.version": "10.0", "os.features": ["a", "b"], "variant": "v7",
    });
    assert_eq!(index["manifests"][0]["platform"], platform);
    ok(&env, &["manifest", "remove", "list", "app:amd64"]);
    let index = json_of(&ok(&env, &["manifest", "inspect", "list"]));
    assert_eq!(architectures(&index), ["arm"]);
    ok(&env, &["manifest", "create", "--amend", "list", "app:amd64"]);
    assert_eq!(architectures(&json_of(&ok(&env, &["manifest", "inspect", "list"]))), ["arm", "amd64"]);
    ok(&env, &["manifest", "rm", "list"]);
    assert_eq!(env.ok(["images", "-q"]).lines().count(), 2);
}

#[test]
fn wrong_input_changes_nothing_and_is_explained() {
    let env = TestEnv::new();
    add(&env, &image("amd64", 1), "app:1");
    ok(&env, &["manifest", "create", "list", "app:1"]);
    let missing = "No such manifest: docker.io/library/none:latest";
    let annotation =
        "Error: manifest list list:latest: app:1 has annotations, which the format docker cannot hold: use oci";
    ok(&env, &["manifest", "annotate", "--annotation", "a=b", "list", "app:1"]);
    ok(&env, &["manifest", "create", "empty"]);
    for (args, want) in [
        (
            &["create", "list", "app:1"][..],
            "refusing to amend an existing manifest list with no --amend flag: docker.io/library/list:latest",
        ),
        (&["add", "none", "app:1"], missing),
        (&["annotate", "--os", "linux", "none", "app:1"], missing),
        (&["push", "none"], missing),
        (&["rm", "none"], missing),
        (&["inspect", "none", "app:1"], missing),
        (&["remove", "list", "app:2"], "Error: manifest list list:latest has no image app:2"),
        (&["annotate", "list", "app:2"], "Error: manifest list list:latest has no image app:2"),
        (&["push", "empty", "127.0.0.1:1/x"], "Error: manifest list empty:latest: it has no images"),
        (&["push", "--format", "docker", "list", "127.0.0.1:1/x"], annotation),
    ] {
        assert_eq!(fails(&env, &[&["manifest"], args].concat()), want, "{args:?}");
    }
    let by_digest = format!("list@{}", digest(b""));
    assert!(fails(&env, &["manifest", "create", &by_digest]).ends_with("it has a digest"));
    let unreachable = plyfs(&env, &["manifest", "add", "--retry-pause", "0.01", "list", "127.0.0.1:1/none"]);
    assert!(unreachable.code == 1 && unreachable.stderr.lines().last().unwrap().starts_with("Error: 127.0.0.1:1: "));
    for (args, words) in [
        (&["add", "list"][..], "\"plyfs manifest add\" requires at least 2 arguments.\n"),
        (&["create"], "\"plyfs manifest create\" requires at least 1 argument.\n"),
        (&["annotate", "list"], "\"plyfs manifest annotate\" requires exactly 2 arguments.\n"),
        (&["push"], "\"plyfs manifest push\" requires at least 1 and at most 2 arguments.\n"),
    ] {
        let out = plyfs(&env, &[&["manifest"], args].concat());
        assert!(out.code == 1 && out.stderr.starts_with(words), "{args:?}: {out:?}");
    }
    assert_eq!(plyfs(&env, &["manifest", "push", "--format", "x", "list"]).code, 125);
    assert_eq!(plyfs(&env, &["manifest", "annotate", "--annotation", "x", "list", "app:1"]).code, 125);
}

#[test]
fn a_damaged_list_is_reported_and_set_aside() {
    let env = TestEnv::new();
    add(&env, &image("amd64", 1), "app:1");
    ok(&env, &["manifest", "create", "list", "app:1"]);
    env.ok(["rmi", "app:1"]);
    let file = fs::read_dir(env.root().join("lists")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(fails(&env, &["manifest", "push", "list"]).contains("is damaged"));
    let found = run(&mut env.command(["system", "fsck"]));
    assert!(found.code == 1 && found.stdout.contains("is damaged"), "{found:?}");
    // Until the repair, nothing that it may need is removed.
    run(&mut env.command(["system", "gc"]));
    assert_eq!(fs::read_dir(env.root().join("layers/sha256")).unwrap().count(), 1);
    let repaired = env.ok(["system", "fsck", "--repair"]);
    assert!(repaired.contains("create the manifest list again (repaired)"), "{repaired}");
    env.ok(["system", "gc"]);
    assert_eq!(fs::read_dir(env.root().join("layers/sha256")).unwrap().count(), 0);
    env.ok(["system", "fsck"]);
}

#[test]
fn a_build_for_several_platforms_makes_a_list() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    let context = env.path("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), "FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n").unwrap();
    fs::write(context.join("file"), "text").unwrap();
    let name = format!("{}/app:1", registry.host);
    let build = ["build", "-q", "--platform", "linux/amd64,linux/arm64/v8", "-t", &name, context.to_str().unwrap()];
    ok(&env, &build);
    let index = json_of(&ok(&env, &["manifest", "inspect", &name]));
    assert_eq!(architectures(&index), ["amd64", "arm64"]);
    assert_eq!(index["manifests"][1]["platform"]["variant"], "v8");
    // The image that has no name is kept.
    run(env.command(["image", "prune", "-f"]).stdin(std::process::Stdio::null()));
    ok(&env, &["push", "-q", &name]);
    assert_eq!(architectures(&json_of(&skopeo(&name))), ["amd64", "arm64"]);
    ok(&env, &build);
    assert_eq!(architectures(&json_of(&ok(&env, &["manifest", "inspect", &name]))), ["amd64", "arm64"]);
    let gone = env.ok(["rmi", &name]);
    assert_eq!(gone.matches(&format!("Untagged: {name}\n")).count(), 1, "{gone}");
    assert_eq!(fs::read_dir(env.root().join("lists")).unwrap().count(), 0);
}
