//! Pushes: images uploaded to registries, checked with skopeo, podman, umoci and plyfs.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image, digest};
use super::support::registry::{DockerRegistry, Reply, Request, command, pull};
use super::support::tar::{Tar, noise};
use super::support::uploads::UploadRegistry;

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn tar(n: u8) -> Vec<u8> {
    Tar::new().dir("etc").file(format!("etc/{n}"), vec![n; 5000]).finish()
}

/// A layer that is uploaded in three chunks.
fn big() -> Vec<u8> {
    noise(1, 20 << 20)
}

/// Adds the image to the store under this name.
fn add(env: &TestEnv, image: Image, name: &str) {
    let dir = env.path("layout");
    let _old = fs::remove_dir_all(&dir);
    image.edit_config(|c| c["x-unknown"] = json!({"kept": [1, 2.50]})).write_layout(&dir);
    env.ok(["pull", "-q", &format!("oci:{}", dir.display())]);
    env.ok(["tag", "layout", name]);
    env.ok(["rmi", "layout"]);
}

fn push(env: &TestEnv, name: &str, more: &[&str]) -> Output {
    let waits = ["push", "--stall-timeout", "2", "--retry-pause", "0.02"];
    run(&mut command(env, &[&waits, more, &[name]].concat()))
}

#[track_caller]
fn pushed(env: &TestEnv, name: &str, more: &[&str]) -> String {
    let out = push(env, name, more);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
    out.stdout
}

/// The digest and manifest that skopeo reads from the registry.
fn manifest(name: &str) -> (String, Value) {
    let done =
        run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]));
    assert_eq!(done.code, 0, "{done:?}");
    (digest(done.stdout.as_bytes()), serde_json::from_str(&done.stdout).unwrap())
}

/// Requires that a pull into an empty store gives the same image.
#[track_caller]
fn assert_pull_restores(env: &TestEnv, name: &str) {
    let other = TestEnv::new();
    let out = pull(&other, name, &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    let shown = |env: &TestEnv| env.ok(["inspect", "-f", "{{.Id}} {{.RootFS.Layers}}", name]);
    assert_eq!(shown(&other), shown(env));
    other.ok(["system", "fsck"]);
}

#[test]
fn a_push_reports_layers_and_skopeo_reads_the_image() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    let name = format!("{}/team/app:1", registry.host);
    add(&env, Image::new().layer(tar(1)).compressed(tar(2), Compression::None).layer(tar(1)), &name);
    let out = pushed(&env, &name, &[]);
    let lines: Vec<&str> = out.lines().collect();
    let short = |n| digest(&tar(n))[7..19].to_owned();
    assert_eq!(lines[0], format!("The push refers to repository [{}/team/app]", registry.host));
    // A layer that occurs twice in the image is reported once.
    assert_eq!(lines[1..3], [1, 2].map(|n| format!("{}: Preparing", short(n))));
    for n in [1, 2] {
        assert!(lines[3..5].contains(&format!("{}: Pushed", short(n)).as_str()), "{out}");
    }
    let (digest, found) = manifest(&name);
    let size =
        run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]));
    assert_eq!(lines[5..], [format!("1: digest: {digest} size: {}", size.stdout.len())]);
    assert_eq!(found["layers"].as_array().unwrap().len(), 3);
    assert_eq!(found["layers"][0]["mediaType"], format!("{OCI_LAYER}+gzip"));
    let id = env.ok(["inspect", "-f", "{{.Id}}", &name]);
    assert_eq!(found["config"]["digest"], id.trim(), "the config's bytes have changed");
    assert_pull_restores(&env, &name);
    // The store has the digest of the pushed manifest.
    assert!(env.ok(["images", "--digests"]).contains(&digest));
    assert!(pull(&env, &name, &[]).stdout.contains("Status: Image is up to date"));
    // A second push: everything is there, and the manifest is the same.
    let again = pushed(&env, &name, &[]);
    assert_eq!(again.matches(": Layer already exists\n").count(), 2, "{again}");
    assert_eq!(manifest(&name).0, digest);
    // A push to another repository of the same registry uploads no blobs either.
    let second = format!("{}/other:2", registry.host);
    env.ok(["tag", &name, &second]);
    let mounted = pushed(&env, &second, &[]);
    assert_eq!(mounted.matches(": Mounted from team/app\n").count(), 2, "{mounted}");
    assert_eq!(manifest(&second).0, digest);
    env.ok(["system", "fsck"]);
}

#[test]
fn podman_and_umoci_pull_pushed_images() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    for (how, args) in [("gzip", vec![]), ("zstd", vec!["--compression-format", "zstd", "--compression-level", "9"])] {
        let name = format!("{}/app:{how}", registry.host);
        add(&env, Image::new().layer(tar(1)).layer(tar(2)), &name);
        pushed(&env, &name, &args);
        let found = manifest(&name).1;
        assert_eq!(found["layers"][1]["mediaType"], format!("{OCI_LAYER}+{how}"));
        assert_pull_restores(&env, &name);
        let store = env.path(format!("podman-{how}"));
        let podman = |args: &[&str]| {
            let mut command = Command::new("podman");
            command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
            command.args(["--storage-driver", "vfs"]).args(args);
            let done = run(&mut command);
            assert_eq!(done.code, 0, "{command:?}: {done:?}");
            done.stdout.trim().to_owned()
        };
        podman(&["pull", "-q", "--tls-verify=false", &name]);
        let id = env.ok(["inspect", "-f", "{{.Id}}", &name]);
        assert_eq!(podman(&["image", "inspect", "--format", "sha256:{{.Id}}", &name]), id.trim());
        let layers = podman(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &name]);
        assert_eq!(serde_json::from_str::<Value>(&layers).unwrap(), json!([digest(&tar(1)), digest(&tar(2))]));
        if how != "gzip" {
            // Debian's umoci reads OCI manifests only.
            continue;
        }
        let dir = env.path(format!("oci-{how}"));
        let (from, to) = (format!("docker://{name}"), format!("oci:{}:x", dir.display()));
        let copy = ["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &from, &to];
        assert_eq!(run(Command::new("skopeo").args(copy)).code, 0);
        let bundle = env.path(format!("bundle-{how}"));
        let image = format!("{}:x", dir.display());
        let unpack = run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
        assert_eq!(unpack.code, 0, "{unpack:?}");
        assert_eq!(fs::read(bundle.join("rootfs/etc/2")).unwrap(), vec![2; 5000]);
    }
}

#[test]
fn pushing_a_pulled_image_keeps_its_manifest() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    for (at, image) in [
        Image::new().layer(tar(1)).compressed(tar(2), Compression::Zstd).compressed(tar(3), Compression::None),
        Image::new().layer(tar(4)).docker(),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = env.path(format!("in-{at}"));
        image.edit_manifest(|m| m["annotations"] = json!({"org.example": "kept"})).write_layout(&dir);
        registry.fill(&format!("oci:{}", dir.display()), &format!("from/here:{at}"), &["--preserve-digests"]);
        let (from, to) = (format!("{}/from/here:{at}", registry.host), format!("{}/to:{at}", registry.host));
        assert_eq!(pull(&env, &from, &[]).code, 0);
        env.ok(["tag", &from, &to]);
        let out = pushed(&env, &to, &[]);
        assert!(out.contains(": Mounted from from/here\n") && !out.contains(": Pushed"), "{out}");
        assert_eq!(manifest(&to), manifest(&from));
        // In another registry the layers must be compressed anew; the rest of the manifest stays.
        let other = UploadRegistry::new();
        let away = format!("{}/away:1", other.server.host);
        env.ok(["tag", &from, &away]);
        pushed(&env, &away, &[]);
        let content = other.content.lock().unwrap();
        let (kind, bytes) = &content.manifests["away 1"];
        let (before, after) = (manifest(&from).1, serde_json::from_slice::<Value>(bytes).unwrap());
        assert_eq!((&after["annotations"], &after["config"]), (&before["annotations"], &before["config"]));
        assert_eq!(after["mediaType"], kind.as_str());
        assert_eq!(after["mediaType"], before["mediaType"]);
        drop(content);
        assert_pull_restores(&env, &away);
    }
    // Docker's media types have no zstd, so the manifest becomes an OCI manifest.
    let to = format!("{}/to:1", registry.host);
    pushed(&env, &to, &["--compression-format", "zstd"]);
    let found = manifest(&to).1;
    assert_eq!(found["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(found["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    assert_pull_restores(&env, &to);
    env.ok(["system", "fsck"]);
}

#[test]
fn broken_uploads_resume_at_the_registrys_offset() {
    let env = TestEnv::new();
    let check = |what: &str, registry: &UploadRegistry, chunks: usize, begun: usize| {
        let name = format!("{}/app:1", registry.server.host);
        add(&env, Image::new().layer(big()).layer(tar(1)), &name);
        let out = push(&env, &name, &["--compression-level", "1"]);
        assert_eq!(out.code, 0, "{what}: {out:#?}");
        assert_pull_restores(&env, &name);
        let requests = registry.server.requests();
        assert_eq!(requests.iter().filter(|s| s.method == "PATCH").count(), chunks, "{what}");
        assert_eq!(requests.iter().filter(|s| s.method == "POST").count(), begun, "{what}");
        env.ok(["rmi", "-f", &name]);
    };
    check("a correct registry", &UploadRegistry::new(), 2, 3);
    // The registry has received the beginning when the connection breaks.
    let half = UploadRegistry::start(|request, content| {
        let first = request.method == "PATCH" && content.uploads.values().all(Vec::is_empty);
        first.then(|| {
            let id = request.path.split(['/', '?']).filter_map(|part| part.parse().ok()).next().unwrap();
            content.uploads.insert(id, request.bytes[..1_000_000].to_vec());
            Reply::hang_up()
        })
    });
    check("half a chunk", &half, 3, 3);
    // The registry has received everything, but its response is lost.
    let deaf = UploadRegistry::start(|request, content| {
        let second = request.method == "PATCH" && content.uploads.values().any(|u| u.len() == 8 << 20);
        second.then(|| {
            content.answer(request);
            Reply::hang_up()
        })
    });
    check("a lost answer", &deaf, 2, 3);
    let busy = UploadRegistry::start(|request, _| match (request.method.as_str(), request.before) {
        ("PATCH" | "PUT" | "POST", 0) => Some(Reply::new(503)),
        _ => None,
    });
    check("a busy registry", &busy, 4, 4);
    // The registry has dropped the upload: it is restarted from the beginning.
    let forgetful = UploadRegistry::start(|request, content| {
        let chunk = request.method == "PATCH" && content.uploads.values().any(|u| u.len() == 8 << 20);
        (chunk && content.blobs.is_empty()).then(|| {
            content.uploads.retain(|_, u| u.len() < 8 << 20);
            content.blobs.insert("nothing".into(), vec![]);
            Reply::hang_up()
        })
    });
    let name = format!("{}/app:1", forgetful.server.host);
    add(&env, Image::new().layer(big()), &name);
    assert_eq!(push(&env, &name, &[]).code, 0);
    assert_pull_restores(&env, &name);
    assert_eq!(forgetful.server.requests().iter().filter(|s| s.method == "PATCH").count(), 4);
    // The registry has completed the upload, and its answer is lost.
    let ended = UploadRegistry::start(|request, content| {
        let end = request.method == "PUT" && request.path.contains("digest=") && request.before == 0;
        end.then(|| {
            content.answer(request);
            Reply::hang_up()
        })
    });
    check("a lost end", &ended, 2, 3);
}

#[test]
fn pushes_that_fail_say_why_and_leave_no_manifest() {
    let env = TestEnv::new();
    let fails = |registry: &UploadRegistry, words: &[&str]| {
        let name = format!("{}/team/app:1", registry.server.host);
        add(&env, Image::new().layer(tar(1)), &name);
        let out = push(&env, &name, &[]);
        assert_eq!(out.code, 1, "{out:#?}");
        let last = out.stderr.trim_end().lines().last().unwrap_or_default();
        for word in words.iter().chain([&registry.server.host.as_str()]) {
            assert!(last.contains(word), "`{word}` is not in: {last}");
        }
        assert!(registry.content.lock().unwrap().manifests.is_empty());
        env.ok(["rmi", "-f", &name]);
    };
    let denied = UploadRegistry::start(|request, _| {
        let reply = || Reply::new(403).body(r#"{"errors":[{"code":"DENIED","message":"no writing here"}]}"#);
        (request.method == "POST").then(reply)
    });
    fails(&denied, &["403 Forbidden", "no writing here", "missing or private"]);
    let other = UploadRegistry::start(|request, content| {
        (request.method == "PUT").then(|| content.answer(request).header("Docker-Content-Digest", digest(b"other")))
    });
    let name = format!("{}/team/app:1", other.server.host);
    add(&env, Image::new().layer(tar(1)), &name);
    let out = push(&env, &name, &[]);
    assert!(out.code == 1 && out.stderr.contains(&format!("it stored {}", digest(b"other"))), "{out:#?}");
    env.ok(["rmi", "-f", &name]);
    let down = UploadRegistry::start(|request, _| (request.method == "POST").then(|| Reply::new(503)));
    fails(&down, &["503 Service Unavailable", "(5 tries)"]);
    let away = UploadRegistry::start(|request, _| {
        (request.method == "POST").then(|| Reply::new(202).header("Location", "http://storage.invalid/x"))
    });
    fails(&away, &["it redirects to storage.invalid without https"]);
}

#[test]
fn an_upload_continues_at_a_location_with_dot_segments() {
    let env = TestEnv::new();
    let registry = UploadRegistry::start(|request, content| {
        let real = request.path.strip_prefix("/up/").map(|rest| format!("/v2/app/blobs/uploads/{rest}"));
        let reply = content.answer(&Request { path: real.clone().unwrap_or(request.path.clone()), ..request.clone() });
        let place = reply.value("Location").and_then(|at| at.strip_prefix("/v2/app/blobs/uploads/")).map(str::to_owned);
        let Some(place) = place else { return Some(reply) };
        let up = match (real, request.path.ends_with("state=0")) {
            (None, _) => "../../../../up/".to_owned(),
            (Some(_), true) => format!("http://{}/x/%2e%2e/up/./", request.header("host")),
            (Some(_), false) => "../up/./x/../".to_owned(),
        };
        // The query stays at the end, where the test registry wants it.
        Some(reply.header("Location", format!("{up}{place}").replace('?', "?sig=a%2Fb+c%7E&")))
    });
    let name = format!("{}/app:1", registry.server.host);
    add(&env, Image::new().compressed(big(), Compression::None), &name);
    pushed(&env, &name, &["--compression-level", "1"]);
    let requests = registry.server.requests();
    let up = || requests.iter().filter(|s| s.path.starts_with("/up/"));
    assert!(up().filter(|s| s.method == "PATCH").count() >= 2 && up().any(|s| s.method == "PUT"), "{requests:?}");
    assert!(up().all(|s| s.path.contains("?sig=a%2Fb+c%7E&state=")));
    let content = registry.content.lock().unwrap();
    assert!(content.uploads.is_empty() && content.manifests.contains_key("app 1"));
}

#[test]
fn credentials_are_not_sent_to_other_hosts_and_tokens_have_push_scope() {
    let env = TestEnv::new();
    let storage = UploadRegistry::new();
    let (place, content) = (storage.server.host.clone(), storage.content.clone());
    content.lock().unwrap().uploads.insert(7, vec![]);
    let registry = UploadRegistry::start(move |request, own| {
        if request.path.starts_with("/token") {
            return Some(Reply::new(200).body(r#"{"token":"good"}"#));
        }
        if request.header("authorization") != "Bearer good" {
            let challenge = format!("Bearer realm=\"http://{}/token\",service=\"r\"", request.header("host"));
            return Some(Reply::new(401).header("WWW-Authenticate", challenge));
        }
        // The registry redirects every blob upload to another host.
        match request.method.as_str() {
            "POST" => {
                content.lock().unwrap().uploads.insert(7, vec![]);
                let location = format!("http://{place}/v2/x/blobs/uploads/7?state=0");
                Some(Reply::new(202).header("Location", location))
            }
            "HEAD" => Some(Reply::new(404)),
            _ => {
                own.blobs =
                    content.lock().unwrap().blobs.iter().map(|(k, v)| (k.replace("x ", "app "), v.clone())).collect();
                None
            }
        }
    });
    let name = format!("{}/app:1", registry.server.host);
    add(&env, Image::new().layer(tar(1)), &name);
    let out = push(&env, &name, &["--creds", "me:secret"]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert!(storage.server.requests().iter().all(|s| s.header("authorization").is_empty()));
    let asked = registry.server.requests().into_iter().find(|s| s.path.starts_with("/token")).unwrap().path;
    assert!(asked.contains("scope=repository%3Aapp%3Apull%2Cpush"), "{asked}");
}

#[test]
fn an_image_removed_during_its_push_is_gone_afterwards() {
    let env = std::sync::Arc::new(TestEnv::new());
    let own = env.clone();
    let registry = UploadRegistry::start(move |request, _| {
        if request.method == "POST" && request.before == 0 {
            own.ok(["rmi", "-f", &format!("{}/app:1", request.header("host"))]);
        }
        None
    });
    let name = format!("{}/app:1", registry.server.host);
    add(&env, Image::new().layer(tar(1)).layer(tar(2)), &name);
    pushed(&env, &name, &[]);
    assert_eq!(pull(&TestEnv::new(), &name, &[]).code, 0);
    assert_eq!(env.ok(["images", "-q"]), "");
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn a_blob_redirected_to_another_host_counts_as_present() {
    let env = TestEnv::new();
    let registry = UploadRegistry::start(|request, content| match content.answer(request) {
        found if request.method == "HEAD" && found.is_found() => {
            Some(Reply::new(307).header("Location", "https://storage.invalid/blob"))
        }
        other => Some(other),
    });
    let name = format!("{}/app:1", registry.server.host);
    add(&env, Image::new().layer(tar(1)), &name);
    pushed(&env, &name, &[]);
    assert!(pushed(&env, &name, &[]).contains(": Layer already exists\n"));
}

#[test]
fn a_push_succeeds_without_read_access_to_the_mount_source() {
    let env = TestEnv::new();
    let registry = UploadRegistry::start(|request, _| {
        let closed = request.method == "POST" && request.path.contains("from=secret");
        closed.then(|| Reply::new(401).header("WWW-Authenticate", "Basic realm=x"))
    });
    let (first, second) = (format!("{}/secret:1", registry.server.host), format!("{}/app:1", registry.server.host));
    add(&env, Image::new().layer(tar(1)), &first);
    pushed(&env, &first, &[]);
    env.ok(["tag", &first, &second]);
    let out = pushed(&env, &second, &[]);
    assert!(out.contains(": Pushed\n"), "{out}");
    assert_pull_restores(&env, &second);
}

#[test]
fn invalid_push_arguments_are_refused() {
    let (env, registry) = (TestEnv::new(), UploadRegistry::new());
    let host = &registry.server.host;
    let repo = format!("{host}/app");
    let says = |args: &[&str], error: String| {
        let out = run(&mut command(&env, args));
        assert_eq!((out.code, out.stderr), (1, format!("Error: {error}\n")));
    };
    says(&["push", &repo], format!("An image does not exist locally with the tag: {repo}"));
    for tag in ["1", "2"] {
        add(&env, Image::new().layer(tar(1)).layer(tar(tag.as_bytes()[0])), &format!("{repo}:{tag}"));
    }
    says(&["push", &repo], format!("tag does not exist: {repo}:latest"));
    says(&["push", &format!("{repo}@{}", digest(b""))], "cannot push a digest reference".into());
    says(&["push", "-a", &format!("{repo}:1")], "tag can't be used with --all-tags/-a".into());
    let level = "invalid compression level 40: zstd has 1 to 20";
    says(&["push", "--compression-format=zstd", "--compression-level=40", &repo], level.into());
    let format = run(&mut command(&env, &["push", "--compression-format=xz", &repo]));
    assert!(format.code == 125 && format.stderr.contains("unknown compression `xz`"), "{format:?}");
    // All tags, with `--quiet`, and the digest into a file.
    let file = env.path("digest");
    assert_eq!(pushed(&env, &repo, &["-a", "-q", "--digestfile", file.to_str().unwrap()]), format!("{repo}\n"));
    let content = registry.content.lock().unwrap();
    assert!(content.manifests.contains_key("app 1"));
    assert_eq!(fs::read_to_string(file).unwrap(), digest(&content.manifests["app 2"].1));
}

#[test]
fn a_damaged_layer_is_not_pushed() {
    let (env, registry) = (TestEnv::new(), UploadRegistry::new());
    let name = format!("{}/app:1", registry.server.host);
    add(&env, Image::new().layer(tar(1)), &name);
    let layer = env.root().join("layers/sha256").join(&digest(&tar(1))[7..]).join("layer.tar");
    let mut bytes = fs::read(&layer).unwrap();
    bytes[700] ^= 1;
    fs::write(&layer, bytes).unwrap();
    let out = push(&env, &name, &[]);
    assert!(
        out.code == 1 && out.stderr.contains("app:1 is damaged: layer ") && out.stderr.contains("pull it again"),
        "{out:#?}"
    );
    let content = registry.content.lock().unwrap();
    assert!(content.blobs.is_empty() && content.manifests.is_empty());
}
