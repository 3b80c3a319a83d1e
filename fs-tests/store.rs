//! The store's files after pulls that succeeded, failed, or were killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::env::{TestEnv, run};
use super::support::oci::{Blob, Compression, Image, blob_path, descriptor, digest};
use super::support::tar::Tar;

fn tar(n: u8) -> Vec<u8> {
    Tar::new().dir("etc").file(format!("etc/file-{n}"), vec![n; 5000]).finish()
}

/// Every path below a directory with its content, without timestamps.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = fs::symlink_metadata(&path).unwrap().is_dir();
            let what = if is_dir { "folder".to_owned() } else { digest(&fs::read(&path).unwrap()) };
            all.insert(path.strip_prefix(root).unwrap().display().to_string(), what);
            if is_dir {
                todo.push(path);
            }
        }
    }
    all
}

fn layout(env: &TestEnv, name: &str, image: &Image) -> String {
    image.write_layout(&env.path(name));
    format!("oci:{}", env.path(name).display())
}

/// Requires that the pull of an image fails with these words, and leaves the store exactly as it was.
#[track_caller]
fn assert_rejected(image: &Image, words: &[&str]) {
    let env = TestEnv::new();
    let good = layout(&env, "good", &Image::new().layer(tar(9)));
    env.ok(["pull", &good]);
    let before = listing(&env.root());
    let bad = layout(&env, "bad", image);
    let error = env.fails(["pull", &bad]);
    for word in words.iter().chain([&"bad: "]) {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    assert_eq!(listing(&env.root()), before, "{error}");
    env.ok(["system", "fsck"]);
}

fn three() -> Image {
    Image::new().layer(tar(1)).layer(tar(2)).layer(tar(3))
}

#[test]
fn every_compression_and_source_gives_the_same_image() {
    let kinds = [
        Compression::None,
        Compression::Gzip,
        Compression::GzipMembers(3),
        Compression::Zstd,
        Compression::ZstdFrames(4),
    ];
    let image = || kinds.iter().zip(1..).fold(Image::new(), |image, (kind, n)| image.compressed(tar(n), *kind));
    let env = TestEnv::new();
    let dir = layout(&env, "layout", &image());
    let out = env.ok(["pull", &dir]);
    assert_eq!(out.matches(": Pull complete").count(), kinds.len());
    assert!(
        out.ends_with("Status: Downloaded newer image for layout:latest\ndocker.io/library/layout:latest\n"),
        "{out}"
    );
    let id = env.ok(["images", "-q", "--no-trunc"]);
    image().write_oci_archive(&env.path("a.tar"));
    image().write_docker_archive(&env.path("d.tar"), &["me/name:tag"]);
    let archive = env.ok(["pull", &format!("oci-archive:{}", env.path("a.tar").display())]);
    assert_eq!(archive.matches(": Already exists").count(), kinds.len(), "{archive}");
    env.ok(["pull", "-q", &format!("docker-archive:{}:me/name:tag", env.path("d.tar").display())]);
    for name in ["a", "me/name:tag"] {
        let found: Value = serde_json::from_str(&env.ok(["inspect", name])).unwrap();
        assert_eq!(found[0]["Id"], id.trim());
    }
    assert!(env.ok(["pull", &dir]).contains("Status: Image is up to date for layout:latest\n"));
    env.ok(["system", "fsck"]);
    // The tars are the same, whatever the compression and source.
    let stored = |n| {
        let hex = digest(&tar(n)).replace("sha256:", "");
        fs::read(env.root().join("layers/sha256").join(hex).join("layer.tar")).unwrap()
    };
    (1..=5).for_each(|n| assert_eq!(stored(n), tar(n)));
}

#[test]
fn damaged_blobs_are_refused() {
    assert_rejected(&three().damage(Blob::Layer(1), |b| b[20] ^= 1), &["layer 2 of 3 (", "has digest"]);
    assert_rejected(
        &three().damage(Blob::Layer(2), |b| b.truncate(b.len() - 9)),
        &["layer 3 of 3 (", "bytes, its descriptor has"],
    );
    assert_rejected(&three().damage(Blob::Layer(0), |b| b.push(0)), &["layer 1 of 3 (", "longer than"]);
    assert_rejected(&three().damage(Blob::Config, |b| b[9] ^= 1), &["has digest"]);
    assert_rejected(&three().damage(Blob::Manifest, |b| b.truncate(50)), &["bytes, its descriptor has"]);
}

#[test]
fn malformed_layers_are_refused() {
    let other = |c: &mut Value| c["rootfs"]["diff_ids"][1] = json!(digest(b"other"));
    assert_rejected(&three().edit_config(other), &["layer 2 of 3 (", "its uncompressed digest is"]);
    let mut cut = super::support::oci::compress(&tar(2), Compression::Gzip);
    cut.truncate(cut.len() - 10);
    let cut = Image::new().layer(tar(1)).compressed(cut, Compression::None);
    assert_rejected(&cut, &["layer 2 of 2 (", "bad gzip stream"]);
    let torn = Image::new().layer(tar(1)).layer(tar(2)[..1500].to_vec());
    assert_rejected(&torn, &["layer 2 of 2 (", "etc/file-2"]);
    let root = Image::new().layer(tar(1)).layer(Tar::new().file("etc/.wh..", "").finish());
    assert_rejected(&root, &["layer 2 of 2 ("]);
    let dangling = Image::new().layer(tar(1)).layer(Tar::new().hard_link("a", "nowhere").finish());
    assert_rejected(&dangling, &["nowhere"]);
}

#[test]
fn malformed_manifests_and_configs_are_refused() {
    assert_rejected(&three().edit_manifest(|m| m["manifests"] = json!([])), &["both `manifests` and `layers`"]);
    assert_rejected(
        &three().edit_manifest(|m| m["layers"][1]["mediaType"] = json!("application/x-rar")),
        &["layer 2 has the unknown media type `application/x-rar`"],
    );
    assert_rejected(&three().edit_manifest(|m| m["schemaVersion"] = json!(1)), &["schema 1"]);
    assert_rejected(
        &three().edit_manifest(|m| drop(m["layers"].as_array_mut().unwrap().pop())),
        &["the config lists 3 layers, the manifest 2"],
    );
    assert_rejected(
        &three().edit_index(|i| i["manifests"][0]["mediaType"] = json!("text/html")),
        &["its descriptor has `text/html`"],
    );
    assert_rejected(
        &three().edit_index(|i| i["manifests"][0]["digest"] = json!("sha256:../../../../etc/passwd")),
        &["is not a digest"],
    );
}

#[test]
fn a_pull_onto_a_full_disk_leaves_nothing() {
    let env = TestEnv::new();
    fs::create_dir(env.root()).unwrap();
    let tmpfs = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(env.root()).status().unwrap();
    assert!(tmpfs.success(), "this test mounts a tmpfs: run it as root");
    struct Unmount<'a>(&'a TestEnv);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            run(Command::new("umount").arg("-l").arg(self.0.root()));
        }
    }
    let _unmount = Unmount(&env);
    env.ok(["pull", &layout(&env, "good", &Image::new().layer(tar(1)))]);
    let before = listing(&env.root());
    let big = Tar::new().file("zeros", vec![0u8; 16 << 20]).finish();
    let error = env.fails(["pull", &layout(&env, "big", &Image::new().layer(tar(2)).layer(big))]);
    // Either layer may be the one that fills the disk.
    assert!(error.contains(" of 2 (") && error.contains("No space left on device"), "{error}");
    assert!(error.contains("cannot write /"), "{error}");
    assert_eq!(listing(&env.root()), before);
    env.ok(["system", "fsck"]);
}

/// The pull reads a pipe that stops half-way, and is killed there.
#[test]
fn a_killed_pull_leaves_nothing_visible_and_the_next_one_finishes() {
    let env = TestEnv::new();
    let dir = env.path("image");
    let noise: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let big = Tar::new().file("noise", noise).finish();
    Image::new().layer(tar(1)).compressed(big, Compression::None).write_oci_archive(&dir);
    let bytes = fs::read(&dir).unwrap();
    for part in [10, 40, 70, 95] {
        let mut child = env.command(["load"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&bytes[..bytes.len() / 100 * part]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(env.ok(["images", "-q"]), "");
    }
    // The same in the middle of the layers: killed as soon as the first layer is complete.
    let mut child = env.command(["load", "-i"]).arg(&dir).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let layers = env.root().join("layers/sha256");
    while fs::read_dir(&layers).map_or(0, Iterator::count) == 0 && begun.elapsed() < Duration::from_secs(10) {}
    child.kill().unwrap();
    let killed = !child.wait().unwrap().success();
    assert!(env.ok(["images", "-q"]).is_empty() || !killed, "a killed load shows an image");
    env.ok(["load", "-i", dir.to_str().unwrap()]);
    env.ok(["system", "fsck"]);
    assert_eq!(fs::read_dir(env.root().join("tmp")).unwrap().count(), 0);
    assert_eq!(env.ok(["images", "-q"]).lines().count(), 1);
}

#[test]
fn fsck_reports_and_repairs_damage() {
    let env = TestEnv::new();
    let source = layout(&env, "image", &three());
    env.ok(["pull", &source]);
    let original = listing(&env.root());
    let layer = |n: u8| env.root().join("layers/sha256").join(digest(&tar(n)).replace("sha256:", ""));
    let check = |words: &[&str]| {
        let found = run(&mut env.command(["system", "fsck"]));
        assert_eq!(found.code, 1, "{found:?}");
        assert_eq!(found.stdout.lines().count(), words.len(), "{found:?}");
        for word in words {
            assert!(found.stdout.contains(word), "`{word}` is not in {found:?}");
        }
        run(&mut env.command(["system", "fsck", "--repair"]))
    };
    // Damage that can be repaired.
    fs::remove_file(layer(1).join("index")).unwrap();
    fs::write(layer(2).join("index"), "nonsense").unwrap();
    let mut index = fs::read(layer(3).join("index")).unwrap();
    let middle = index.len() / 2;
    index[middle] ^= 1;
    fs::write(layer(3).join("index"), index).unwrap();
    let mut trees = fs::read_dir(env.root().join("trees")).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(trees.find(|path| !path.display().to_string().contains(".erofs")).unwrap()).unwrap();
    fs::create_dir(env.root().join("tmp/1-1")).unwrap();
    let stray = env.root().join("blobs/sha256").join(digest(b"leak").replace("sha256:", ""));
    fs::write(stray, "leak").unwrap();
    let words = ["index is missing", "it is too short", "checksum is wrong", "tree", "leaked partial", "leaked blob"];
    let mended = check(&words);
    assert_eq!((mended.code, mended.stdout.matches("(repaired)").count()), (0, words.len()), "{mended:?}");
    assert_eq!(listing(&env.root()), original);
    // Damage that cannot: a changed byte in a tar.
    let path = layer(2).join("layer.tar");
    let mut bytes = fs::read(&path).unwrap();
    bytes[600] ^= 1;
    fs::write(&path, bytes).unwrap();
    env.ok(["system", "fsck", "--fast"]);
    let left = check(&["layer.tar has digest", "image:latest"]);
    assert_eq!(left.code, 1);
    assert!(left.stdout.contains("pull it again"), "{left:?}");
    let again = env.ok(["pull", &source]);
    assert_eq!((again.matches("Already exists").count(), again.matches("Pull complete").count()), (2, 1), "{again}");
    env.ok(["system", "fsck"]);
    assert_eq!(listing(&env.root()).len(), original.len());
}

#[test]
fn a_failed_pull_keeps_shared_layers() {
    let env = TestEnv::new();
    env.ok(["pull", &layout(&env, "one", &Image::new().layer(tar(1)))]);
    let bad = Image::new().layer(tar(1)).layer(tar(2)).damage(Blob::Layer(1), |b| b[20] ^= 1);
    env.fails(["pull", &layout(&env, "two", &bad)]);
    env.ok(["system", "fsck"]);
    // Removing an image removes exactly what no other image refers to.
    env.ok(["pull", &layout(&env, "three", &three())]);
    env.ok(["rmi", "three"]);
    env.ok(["system", "fsck"]);
    env.ok(["rmi", "one"]);
    assert!(
        listing(&env.root()).values().filter(|what| *what != "folder").count() <= 3,
        "catalog, backup and lock are left"
    );
}

#[test]
fn an_image_with_two_manifests_keeps_both() {
    let env = TestEnv::new();
    let of = |compression| Image::new().compressed(tar(1), compression);
    let (gzip, zstd) = (layout(&env, "a", &of(Compression::Gzip)), layout(&env, "b", &of(Compression::Zstd)));
    env.ok(["pull", &gzip]);
    let out = env.ok(["pull", &zstd]);
    assert!(out.contains("Already exists") && out.contains("Downloaded newer image for b:latest"), "{out}");
    assert!(env.ok(["pull", &gzip]).contains("Image is up to date for a:latest"));
    env.ok(["system", "fsck"]);
    env.ok(["rmi", "a", "b"]);
    env.ok(["system", "fsck"]);
}

#[test]
fn an_image_index_gives_each_platform_its_image() {
    let env = TestEnv::new();
    let dir = env.path("multi");
    let of = |arch: &'static str, n| {
        let set = move |c: &mut Value| {
            c["architecture"] = json!(arch);
            c["os"] = json!("linux");
        };
        Image::new().layer(tar(n)).edit_config(set).write_layout(&dir)
    };
    let mut list = Vec::new();
    for (arch, n) in [("arm64", 1), ("amd64", 2)] {
        let manifest = of(arch, n);
        let bytes = fs::read(dir.join(blob_path(&manifest))).unwrap();
        let mut entry = descriptor(&bytes, "application/vnd.oci.image.manifest.v1+json");
        entry["platform"] = json!({"os": "linux", "architecture": arch});
        list.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let wrap = |manifests: Vec<Value>| {
        let bytes = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string().into_bytes();
        fs::write(dir.join(blob_path(&digest(&bytes))), &bytes).unwrap();
        descriptor(&bytes, kind)
    };
    let root = |entry: &Value| {
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
    };
    let mut entry = wrap(list);
    root(&entry);
    let source = format!("oci:{}", dir.display());
    for (platform, arch, n) in [("linux/amd64", "amd64", 2), ("linux/arm64/v8", "arm64", 1)] {
        let out = env.ok(["pull", "--platform", platform, &source]);
        assert!(out.contains(&format!("Digest: {}", entry["digest"].as_str().unwrap())), "{out}");
        let found: Value = serde_json::from_str(&env.ok(["inspect", "multi"])).unwrap();
        assert_eq!(
            (&found[0]["Architecture"], &found[0]["RootFS"]["Layers"][0]),
            (&json!(arch), &json!(digest(&tar(n))))
        );
    }
    env.ok(["system", "fsck"]);
    let error = env.fails(["pull", "--platform", "linux/s390x", &source]);
    assert!(error.contains("no matching manifest for linux/s390x") && error.contains("linux/amd64"), "{error}");
    // Nested indexes, up to a depth limit.
    for depth in 2..6 {
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        entry = wrap(vec![entry]);
        root(&entry);
        let ends = run(&mut env.command(["pull", "--platform", "linux/amd64", &source]));
        assert_eq!(ends.code, i32::from(depth > 4), "{depth}: {ends:?}");
    }
}

#[test]
fn a_mount_rebuilds_missing_indexes() {
    let env = TestEnv::new();
    env.ok(["pull", &layout(&env, "image", &three())]);
    let store = plyfs::store::Store::open(&env.root()).unwrap();
    let image = store.resolve("image").unwrap();
    let original = listing(&env.root());
    for tree in original.keys().filter(|path| path.starts_with("trees/")) {
        fs::remove_file(env.root().join(tree)).unwrap();
    }
    fs::remove_file(store.layer_index(&image.layers[1].diff_id)).unwrap();
    let open = plyfs::image::open_tree(&store, &image).unwrap();
    assert_eq!((open.tars.len(), open.tree.source()), (3, &image.chain_id()));
    assert_eq!(listing(&env.root()), original);
    fs::remove_file(store.layer_tar(&image.layers[2].diff_id)).unwrap();
    let error = plyfs::image::open_tree(&store, &image).err().unwrap().to_string();
    let short = image.layers[2].diff_id.short();
    assert!(error.starts_with(&format!("image image:latest is damaged: layer {short}")), "{error}");
    assert!(error.ends_with("pull it again"), "{error}");
}
