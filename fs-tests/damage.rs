//! Disk corruption: whatever changes in a store's files, a command gives the right answer or one clear error.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::support::env::{TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::tar::Tar;

/// A store with two images that share their lowest layer.
struct DamagedStore {
    env: TestEnv,
    random: u64,
}

/// A kind of damage to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// This many bytes are changed, anywhere.
    Flip(usize),
    Empty,
    Half,
    Folder,
    /// The file is replaced by a symbolic link to another file of its kind.
    Link,
}

const NOT_FLIPPED: [Damage; 4] = [Damage::Empty, Damage::Half, Damage::Folder, Damage::Link];

fn layer(n: u8) -> Vec<u8> {
    let files = (0..40).fold(Tar::new().dir("etc"), |tar, i| tar.file(format!("etc/{n}-{i}"), format!("{n}.{i}")));
    files.symlink(format!("link-{n}"), "etc").file("top", format!("{n}")).finish()
}

impl DamagedStore {
    fn new() -> DamagedStore {
        let env = TestEnv::new();
        for (name, layers) in [("app", [1, 2]), ("other", [1, 3])] {
            let config = move |c: &mut Value| c["config"] = json!({ "Cmd": ["true"], "Env": [format!("NAME={name}")] });
            let image = layers.iter().fold(Image::new().edit_config(config), |image, n| image.layer(layer(*n)));
            image.write_layout(&env.path(name));
            env.ok(["pull", &format!("oci:{}:latest", env.path(name).display())]);
        }
        DamagedStore { env, random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn source(&self) -> String {
        format!("oci:{}:latest", self.env.path("app").display())
    }

    fn store(&self) -> plyfs::store::Store {
        plyfs::store::Store::open(&self.env.root()).unwrap()
    }

    fn image(&self, name: &str) -> plyfs::store::Image {
        self.store().resolve(name).unwrap()
    }

    fn tree(&self, name: &str) -> PathBuf {
        self.store().tree_path(&self.image(name).chain_id(), plyfs::layer::FORMAT)
    }

    fn random_below(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % below
    }

    /// Flips of 1 to 64 bytes, contiguous or scattered, and every other kind of damage.
    fn damages(&self, flips: usize) -> Vec<Damage> {
        let sizes = [1, 1, 2, 3, 8, 64].into_iter().cycle();
        sizes.take(flips).map(Damage::Flip).chain(NOT_FLIPPED).collect()
    }

    fn damage(&mut self, path: &Path, other: &Path, damage: Damage) {
        let mut bytes = fs::read(path).unwrap();
        match damage {
            Damage::Flip(count) => {
                let (start, together) = (self.random_below(bytes.len()), self.random_below(2) == 0);
                for i in 0..count {
                    let at = if together { (start + i) % bytes.len() } else { self.random_below(bytes.len()) };
                    bytes[at] ^= 1 << self.random_below(8);
                }
                fs::write(path, bytes).unwrap();
            }
            Damage::Empty => fs::write(path, "").unwrap(),
            Damage::Half => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
            Damage::Folder | Damage::Link => {
                fs::remove_file(path).unwrap();
                match damage {
                    Damage::Folder => fs::create_dir(path).unwrap(),
                    _ => symlink(other, path).unwrap(),
                }
            }
        }
    }

    /// Exports an image: the tar or the error, and the messages on standard error.
    fn export(&self, name: &str) -> (Result<Vec<u8>, String>, String) {
        let to = self.env.path("export.tar");
        let _old = fs::remove_file(&to);
        let done = run(self.env.command(["export", "-o"]).arg(&to).arg(name));
        let tree = if done.code == 0 { Ok(fs::read(&to).unwrap()) } else { Err(done.stderr.clone()) };
        (tree, done.stderr)
    }
}

/// Restores the file at a path, whatever is there now.
fn put_back(path: &Path, bytes: &[u8]) {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let _gone = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    fs::write(path, bytes).unwrap();
}

/// Every file below a directory, with its content.
fn files(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
            } else {
                all.insert(path.clone(), digest(&fs::read(path).unwrap()));
            }
        }
    }
    all
}

#[test]
fn a_damaged_tree_or_index_is_rebuilt_and_logged() {
    let mut store = DamagedStore::new();
    let want = store.export("app").0.unwrap();
    let (tree, other) = (store.tree("app"), store.tree("other"));
    let layers: Vec<PathBuf> =
        ["app", "other"].map(|name| store.store().layer_index(&store.image(name).layers[1].diff_id)).into();
    for (path, other) in [(&tree, &other), (&layers[0], &layers[1])] {
        let original = fs::read(path).unwrap();
        for damage in store.damages(40) {
            store.damage(path, other, damage);
            // An index is read only to build a tree.
            if *path != tree {
                fs::remove_file(&tree).unwrap();
            }
            let (found, output) = store.export("app");
            assert!(found == Ok(want.clone()), "{damage:?} of {}: another tree: {output}", path.display());
            assert!(output.contains(path.to_str().unwrap()), "{damage:?} is not in the log: {output}");
            assert_eq!(output.lines().count(), 1, "{damage:?}: {output}");
            assert!(fs::symlink_metadata(path).unwrap().is_file() && fs::read(path).unwrap() == original, "{damage:?}");
        }
    }
    store.env.ok(["system", "fsck"]);
}

/// Mode, owner, group, links, seconds and nanoseconds of the modification time, and content.
type FileState = (u32, u32, u32, u64, i64, i64, Vec<u8>);

/// The metadata and content of every path of a mounted tree.
fn file_states(root: &Path) -> BTreeMap<PathBuf, FileState> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        let what = (meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.mtime(), meta.mtime_nsec(), content);
        all.insert(path.strip_prefix(root).unwrap().to_owned(), what);
    }
    all
}

#[test]
fn a_mount_of_a_damaged_tree_shows_the_image() {
    let mut store = DamagedStore::new();
    let tree = store.tree("app");
    let mount = store.env.mount("app", &[]);
    let want = file_states(mount.path());
    assert_eq!(want.len(), 85);
    mount.unmount();
    for _ in 0..5 {
        store.damage(&tree, &tree, Damage::Flip(64));
        let mount = store.env.mount("app", &[]);
        assert!(file_states(mount.path()) == want, "the tree differs");
        mount.unmount();
    }
}

#[test]
fn no_index_is_built_from_a_damaged_tar() {
    let store = DamagedStore::new();
    let diff_id = store.image("app").layers[1].diff_id.clone();
    let (tar, index) = (store.store().layer_tar(&diff_id), store.store().layer_index(&diff_id));
    let mut bytes = fs::read(&tar).unwrap();
    // The damage is in a file's data, so the tar header's checksum still holds.
    let at = bytes.windows(4).position(|window| window == b"2.39").unwrap();
    bytes[at] ^= 1;
    fs::write(&tar, bytes).unwrap();
    fs::remove_file(&index).unwrap();
    fs::remove_file(store.tree("app")).unwrap();
    let error = store.export("app").0.unwrap_err();
    assert!(error.contains(tar.to_str().unwrap()) && error.contains("plyfs system fsck --repair"), "{error}");
    // The remedy in the message works.
    run(&mut store.env.command(["system", "fsck", "--repair"]));
    store.env.ok(["pull", &store.source()]);
    assert!(store.export("app").0.is_ok());
    store.env.ok(["system", "fsck"]);
}

#[test]
fn a_damaged_config_or_manifest_is_reported_and_pulled_again() {
    let mut store = DamagedStore::new();
    let blob = |digest| store.store().blob_path(digest);
    let (image, other) = (store.image("app"), store.image("other"));
    let pairs = [
        (blob(&image.id), blob(&other.id)),
        (blob(image.manifest.as_ref().unwrap()), blob(other.manifest.as_ref().unwrap())),
    ];
    let want = store.env.ok(["inspect", "app"]);
    for (path, other) in &pairs {
        let original = fs::read(path).unwrap();
        let is_config = *path == pairs[0].0;
        for damage in store.damages(12) {
            store.damage(path, other, damage);
            let found = store.env.run(["inspect", "app"]);
            if is_config {
                let error = &found.stderr;
                assert!(found.code == 1 && found.stdout.trim() == "[]", "{damage:?}: {found:?}");
                assert!(error.contains(path.to_str().unwrap()) && error.contains("pull the image again"), "{found:?}");
                assert_eq!(error.lines().count(), 1, "{found:?}");
            } else {
                assert_eq!((found.code, &found.stdout), (0, &want));
            }
            let checked = store.env.run(["system", "fsck"]);
            assert!(checked.code == 1 && checked.stdout.contains("image app:latest ("), "{damage:?}: {checked:?}");
            store.env.ok(["pull", &store.source()]);
            assert!(fs::symlink_metadata(path).unwrap().is_file() && fs::read(path).unwrap() == original, "{damage:?}");
        }
    }
    store.env.ok(["system", "fsck"]);
    assert_eq!(store.env.ok(["inspect", "app"]), want);
}

#[test]
fn every_reader_of_a_config_refuses_a_damaged_one() {
    let store = DamagedStore::new();
    let path = store.store().blob_path(&store.image("app").id);
    let text = fs::read_to_string(&path).unwrap();
    // Still a valid config.
    fs::write(&path, text.replace("NAME=app", "NAME=apq")).unwrap();
    let archive = store.env.path("saved.tar");
    let save = ["save", "-o", archive.to_str().unwrap(), "app"];
    for args in [&["inspect", "app"][..], &["history", "app"], &save, &["create", "app"], &["run", "--rm", "app"]] {
        let found = store.env.run(args);
        assert!(found.code != 0 && found.stderr.contains(path.to_str().unwrap()), "{args:?}: {found:?}");
        assert!(found.stderr.contains("pull the image again"), "{args:?}: {found:?}");
    }
    assert_eq!(store.env.ok(["ps", "-aq"]), "");
    // After fsck has set the damaged config aside, it is missing: the same error.
    run(&mut store.env.command(["system", "fsck", "--repair"]));
    assert!(store.env.run(["inspect", "app"]).stderr.contains("is missing; pull the image again"));
    store.env.ok(["pull", &store.source()]);
    assert!(store.env.ok(["inspect", "app"]).contains("NAME=app"));
}

/// Every command fails until fsck restores the catalog, and nothing is lost meanwhile.
#[test]
fn a_damaged_catalog_is_restored_from_its_backup() {
    let mut store = DamagedStore::new();
    let catalog = store.env.root().join("catalog.json");
    let backup = store.env.root().join("catalog.backup.json");
    let original = fs::read(&catalog).unwrap();
    let images = store.env.ok(["images", "--digests", "--no-trunc"]);
    let parts = || [files(&store.env.root().join("blobs")), files(&store.env.root().join("layers"))];
    let before = parts();
    let source = store.source();
    for damage in store.damages(24) {
        store.damage(&catalog, &backup, damage);
        let orders = [&["images"][..], &["inspect", "app"], &["pull", &source], &["rmi", "app"], &["system", "gc"]];
        let at = store.random_below(orders.len());
        for args in [orders[at], &["image", "prune", "-af"]] {
            let found = store.env.run(args);
            let error = &found.stderr;
            assert!(found.code == 1 && ["", "[]"].contains(&found.stdout.trim()), "{damage:?}: {args:?}: {found:?}");
            assert!(error.contains(catalog.to_str().unwrap()), "{damage:?}: {args:?}: {found:?}");
            assert!(error.contains("plyfs system fsck --repair"), "{damage:?}: {found:?}");
            assert_eq!(error.lines().count(), 1, "{damage:?}: {found:?}");
        }
        let checked = store.env.run(["system", "fsck", "--fast"]);
        assert!(checked.code == 1 && checked.stdout.lines().count() == 1, "{damage:?}: {checked:?}");
        let mended = store.env.ok(["system", "fsck", "--fast", "--repair"]);
        assert!(
            mended.contains("catalog.json is damaged: ") && mended.ends_with("(repaired)\n"),
            "{damage:?}: {mended}"
        );
        assert_eq!(store.env.ok(["images", "--digests", "--no-trunc"]), images, "{damage:?}");
        assert!(fs::read(&catalog).unwrap() == original && fs::read(&backup).unwrap() == original, "{damage:?}");
    }
    assert_eq!([files(&store.env.root().join("blobs")), files(&store.env.root().join("layers"))], before);
    // A missing catalog does not count as an empty store.
    fs::remove_file(&catalog).unwrap();
    assert!(store.env.fails(["system", "gc"]).contains("it is missing"));
    store.env.ok(["system", "fsck", "--repair"]);
    assert_eq!(store.env.ok(["images", "--digests", "--no-trunc"]), images);
    // Damage to the backup alone.
    for damage in store.damages(3) {
        store.damage(&backup, &catalog, damage);
        assert_eq!(store.env.ok(["images", "--digests", "--no-trunc"]), images);
        assert!(store.env.ok(["system", "fsck", "--repair"]).contains("catalog.backup.json is damaged"), "{damage:?}");
        store.env.ok(["system", "fsck"]);
    }
    for damage in NOT_FLIPPED {
        store.damage(&backup, &catalog, damage);
        store.env.ok(["tag", "app", "app:next"]);
        store.env.ok(["rmi", "app:next"]);
        store.env.ok(["system", "gc"]);
        assert_eq!(store.env.ok(["system", "fsck"]), "", "{damage:?}");
    }
}

#[test]
fn without_a_backup_images_are_restored_from_their_configs_without_names() {
    let store = DamagedStore::new();
    let root = store.env.root();
    let archive = store.env.path("docker.tar");
    Image::new().layer(layer(4)).write_docker_archive(&archive, &["saved:1"]);
    store.env.ok(["pull", &format!("docker-archive:{}", archive.display())]);
    let ids = |args: &[&str]| {
        let mut ids: Vec<String> = store.env.ok(args).lines().map(str::to_owned).collect();
        ids.sort();
        ids
    };
    let before = ids(&["images", "-q", "--no-trunc"]);
    assert_eq!(before.len(), 3);
    let (config, tree) = (store.env.ok(["inspect", "-f", "{{json .Config}}", "app"]), store.export("app").0.unwrap());
    let id = store.image("app").id.to_string();
    let parts = [files(&root.join("blobs")), files(&root.join("layers"))];
    // One of the images has lost a layer.
    let lost = store.image("other");
    fs::remove_dir_all(store.store().layer_dir(&lost.layers[1].diff_id)).unwrap();
    for name in ["catalog.json", "catalog.backup.json"] {
        fs::write(root.join(name), "").unwrap();
    }
    assert!(store.env.fails(["images"]).contains("it is empty"));
    let mended = store.env.ok(["system", "fsck", "--repair"]);
    assert!(mended.contains("0 images are in its backup, 2 more without a name"), "{mended}");
    let listed = ids(&["images", "-q", "--no-trunc"]);
    assert_eq!(listed, before.iter().filter(|id| **id != lost.id.to_string()).cloned().collect::<Vec<_>>());
    assert_eq!(ids(&["images", "-q", "--no-trunc", "-f", "dangling=true"]), listed);
    assert_eq!(store.env.ok(["inspect", "-f", "{{json .Config}}", &id]), config);
    assert!(store.export(&id).0 == Ok(tree));
    store.env.ok(["tag", &id, "app"]);
    store.env.ok(["pull", &format!("oci:{}:latest", store.env.path("other").display())]);
    assert_eq!(ids(&["images", "-q", "--no-trunc"]), before);
    store.env.ok(["system", "gc"]);
    assert_eq!([files(&root.join("blobs")), files(&root.join("layers"))], parts);
    store.env.ok(["system", "fsck"]);
}

#[test]
fn a_mount_whose_state_file_is_damaged_keeps_its_layers_and_can_be_unmounted() {
    let mut store = DamagedStore::new();
    let mount = store.env.mount("app", &[]);
    let id = store.env.ok(["mounts", "-q"]);
    let info = store.env.root().join("mounts").join(id.trim()).join("info.json");
    let original = fs::read(&info).unwrap();
    for damage in store.damages(12) {
        store.damage(&info, Path::new("/nowhere"), damage);
        let swept = store.env.run(["system", "gc"]);
        let named = swept.stderr.contains(&format!("{} is damaged", info.display()));
        assert!(swept.code == 0 && named, "{damage:?}: {swept:?}");
        let listed = store.env.run(["mounts", "-q"]);
        assert!(listed.code == 0 && listed.stdout.is_empty() && listed.stderr.contains("is damaged"), "{listed:?}");
        put_back(&info, &original);
    }
    assert_eq!(store.env.ok(["mounts", "-q"]), id);
    store.damage(&info, Path::new("/nowhere"), Damage::Half);
    assert_eq!(store.env.run(["rmi", "-f", "app"]).code, 0);
    assert_eq!(fs::read_to_string(mount.path().join("top")).unwrap(), "2");
    mount.unmount();
    store.env.ok(["system", "gc"]);
    store.env.ok(["system", "fsck"]);
}

/// An old store has a catalog without checksum and backup, and indexes in the first format.
#[test]
fn a_store_of_an_earlier_version_still_works() {
    let store = DamagedStore::new();
    let root = store.env.root();
    let (images, tree) = (store.env.ok(["images", "--digests"]), store.export("app").0.unwrap());
    let catalog = root.join("catalog.json");
    let mut old: Value = serde_json::from_slice(&fs::read(&catalog).unwrap()).unwrap();
    old["version"] = json!(1);
    old.as_object_mut().unwrap().remove("checksum");
    fs::write(&catalog, serde_json::to_vec_pretty(&old).unwrap()).unwrap();
    fs::remove_file(root.join("catalog.backup.json")).unwrap();
    let first_format = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[8] = 1;
        fs::write(path, bytes).unwrap();
    };
    for path in files(&root.join("layers")).keys().filter(|path| path.ends_with("index")) {
        first_format(path);
    }
    for path in files(&root.join("trees")).keys() {
        first_format(path);
        fs::rename(path, path.with_extension("v1")).unwrap();
    }
    assert_eq!(store.env.ok(["images", "--digests"]), images);
    let (found, output) = store.export("app");
    assert!(found == Ok(tree) && output.is_empty(), "{output}");
    store.env.ok(["tag", "app", "app:next"]);
    assert_eq!(fs::read(&catalog).unwrap(), fs::read(root.join("catalog.backup.json")).unwrap());
    store.env.ok(["system", "fsck", "--repair"]);
    assert_eq!(store.env.ok(["system", "fsck"]), "");
    // The old trees are removed.
    assert!(files(&root.join("trees")).keys().all(|path| path.extension().unwrap() != "v1"));
}
