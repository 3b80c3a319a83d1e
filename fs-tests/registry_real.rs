//! Pulling from Debian's `docker-registry`, filled and read by skopeo.

use std::fs;

use serde_json::Value;

use super::support::big_image;
use super::support::env::{TestEnv, run};
use super::support::oci::{Compression, Image};
use super::support::registry::{DockerRegistry, command, pull};
use super::support::tar::Tar;
use super::support::tls;

fn image(n: u8) -> Image {
    let tar = |k: u8| Tar::new().dir("etc").file(format!("etc/{n}-{k}"), vec![k; 4000]).finish();
    Image::new().layer(tar(1)).compressed(tar(2), Compression::Zstd).compressed(tar(3), Compression::None)
}

/// Pulls the image, and compares its digest with skopeo's.
#[track_caller]
fn compare(env: &TestEnv, registry: &DockerRegistry, name: &str) {
    let image = format!("{}/{name}", registry.host);
    let out = pull(env, &image, &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    let digest = registry.digest(name, &[]);
    assert!(out.stdout.contains(&format!("Digest: {digest}\n")), "{digest} is not in {out:#?}");
    let found: Value = serde_json::from_str(&env.ok(["inspect", &image])).unwrap();
    let digests = found[0]["RepoDigests"].as_array().unwrap();
    let want = format!("{}@{digest}", image.rsplit_once(':').unwrap().0);
    assert!(digests.iter().any(|d| d.as_str() == Some(&want)), "{want} is not in {digests:?}");
}

#[test]
fn every_manifest_type_and_compression_is_pulled() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    let layout = |name: &str, image: &Image| {
        image.write_layout(&env.path(name));
        format!("oci:{}:latest", env.path(name).display())
    };
    let mixed = layout("mixed", &image(1));
    registry.fill(&mixed, "kinds/mixed:1", &["--preserve-digests"]);
    registry.fill(&mixed, "kinds/gzip:1", &["--dest-compress-format", "gzip"]);
    registry.fill(&mixed, "kinds/zstd:1", &["--dest-compress-format", "zstd"]);
    let gzip = layout("gzip", &Image::new().layer(Tar::new().file("a", "b").finish()));
    registry.fill(&gzip, "kinds/v2s2:1", &["--format", "v2s2"]);
    // An index of one image.
    let dir = env.path("index");
    let manifest = image(2).write_layout(&dir);
    let index = fs::read(dir.join("index.json")).unwrap();
    let mut index: Value = serde_json::from_slice(&index).unwrap();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    index["manifests"][0]["platform"] = serde_json::json!({"os": "linux", "architecture": arch});
    index["manifests"][0]["annotations"] = serde_json::json!({});
    let inner = index.to_string().into_bytes();
    let kind = "application/vnd.oci.image.index.v1+json";
    fs::write(dir.join(super::support::oci::blob_path(&super::support::oci::digest(&inner))), &inner).unwrap();
    let outer = serde_json::json!({"schemaVersion": 2, "manifests": [super::support::oci::descriptor(&inner, kind)]});
    fs::write(dir.join("index.json"), outer.to_string()).unwrap();
    registry.fill(&format!("oci:{}", dir.display()), "kinds/index:1", &["--all", "--preserve-digests"]);
    for name in ["kinds/mixed:1", "kinds/gzip:1", "kinds/zstd:1", "kinds/v2s2:1"] {
        compare(&env, &registry, name);
    }
    let out = pull(&env, &format!("{}/kinds/index:1", registry.host), &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert!(out.stdout.contains(&super::support::oci::digest(&inner)), "{out:#?}");
    let by_digest = format!("{}/kinds/index@{manifest}", registry.host);
    assert_eq!(pull(&env, &by_digest, &["-q"]).stdout, format!("{by_digest}\n"));
    env.ok(["system", "fsck"]);
    let missing = pull(&env, &format!("{}/kinds/none", registry.host), &["-a"]);
    assert!(missing.code == 1 && missing.stderr.contains("404 Not Found"), "{missing:#?}");
}

#[test]
fn pulls_authenticate_with_a_password() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(Some("me:secret"), None));
    image(3).write_layout(&env.path("image"));
    let source = format!("oci:{}:latest", env.path("image").display());
    registry.fill(&source, "app:1", &["--dest-creds", "me:secret"]);
    let name = format!("{}/app:1", registry.host);
    assert_eq!(pull(&env, &name, &["--creds", "me:secret"]).code, 0);
    let anonymous = pull(&env, &name, &[]).stderr;
    assert!(anonymous.contains("missing or private (without credentials)"), "{anonymous}");
    let wrong = pull(&env, &name, &["--creds", "me:wrong"]).stderr;
    assert!(wrong.contains("wrong user name or password (user me from --creds)"), "{wrong}");
}

#[test]
fn pulls_use_tls_with_the_given_certificates() {
    let env = TestEnv::new();
    tls::certificates(&env.path("ca"));
    let registry = DockerRegistry::start(Some("me:secret"), Some(&env.path("ca")));
    image(4).write_layout(&env.path("image"));
    let source = format!("oci:{}:latest", env.path("image").display());
    registry.fill(&source, "app:1", &["--dest-creds", "me:secret"]);
    let name = format!("{}/app:1", registry.host);
    let args = ["pull", "--creds", "me:secret", name.as_str()];
    let stranger = run(&mut command(&env, &args));
    assert!(stranger.code == 1 && stranger.stderr.contains("its TLS certificate is not trusted"), "{stranger:#?}");
    let trusted = env.path("home/.config/containers/certs.d").join(&registry.host);
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(env.path("ca/ca.crt"), trusted.join("ca.crt")).unwrap();
    let out = run(&mut command(&env, &args));
    assert_eq!(out.code, 0, "{out:#?}");
    fs::remove_dir_all(trusted).unwrap();
    let out = run(command(&env, &args).arg("--tls-verify=false"));
    assert!(out.stdout.contains("Image is up to date"), "{out:#?}");
}

#[test]
fn the_debian_image_is_pulled() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    registry.fill(&format!("oci:{}", big_image().join("oci").display()), "debian:12", &["--preserve-digests"]);
    compare(&env, &registry, "debian:12");
    env.ok(["system", "fsck", "--fast"]);
}
