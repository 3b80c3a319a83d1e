//! Stores, containers and an OCI bundle for the container benchmark. Dropping [`Setting`] removes all of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::below::unmount_below;
use crate::engine::run;
use crate::whole::copy_data_layers;

type Outcome<T> = Result<T, String>;

/// Number of entries of the image whose containers `diff` is measured on.
const ENTRIES: usize = 12_000;
/// The test image's name in podman's store.
const PODMAN_IMAGE: &str = "localhost/debian:12";
/// Resource limits for containers: podman raises them by default, which some machines do not permit.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// The stores and containers of the benchmark, all on one disk.
pub struct Setting {
    plyfs: PathBuf,
    scratch: TempDir,
    /// The test image's name in the plyfs store.
    pub image: String,
    /// Name of a container with few changed files.
    pub changed: String,
    /// Number of entries of its image.
    pub entries: usize,
    /// Name of a container with many changed files.
    pub big: String,
}

impl Setting {
    /// Creates everything from the images that `scripts/make-image` left in the cache.
    pub fn make(plyfs: PathBuf, cache: &Path) -> Outcome<Self> {
        let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(cache).map_err(|e| e.to_string())?;
        let mut setting = Self {
            plyfs,
            scratch,
            image: String::new(),
            changed: "changed".to_owned(),
            entries: 0,
            big: "big".to_owned(),
        };
        let debian = cache.join("debian");
        eprintln!("pulling");
        let layout = setting.path("whole");
        copy_data_layers(&debian.join("oci"), Path::new(&layout)).map_err(|e| format!("{layout}: {e}"))?;
        setting.image = run(&setting.plyfs(&["pull", "-q", &format!("oci:{layout}:latest")]))?;
        setting.fill_podman(&layout)?;
        setting.make_bundle(&debian)?;
        eprintln!("changing files");
        setting.make_changed(&debian)?;
        // Programs, libraries, texts and data of all sizes.
        let image = setting.image.clone();
        setting.make_container("big", &image, "cp -a /usr /changed")?;
        Ok(setting)
    }

    /// The path of an entry in the benchmark's directory.
    pub fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// A plyfs command.
    pub fn plyfs(&self, words: &[&str]) -> Vec<String> {
        let (plyfs, root) = (self.plyfs.display().to_string(), self.path("root"));
        [&[plyfs.as_str(), "--root", &root], words].concat().iter().map(|word| (*word).to_owned()).collect()
    }

    fn podman(&self, words: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(&format!("podman/{name}"));
        let (root, run_root, tmp) = (path("root"), path("run"), path("tmp"));
        let base = ["podman", "--root", &root, "--runroot", &run_root, "--tmpdir", &tmp];
        [&base[..], words].concat().iter().map(|word| (*word).to_owned()).collect()
    }

    /// Copies the image into podman's store. podman derives a name from a layout's path, which not every path allows.
    fn fill_podman(&self, layout: &str) -> Outcome<()> {
        let (root, run_root) = (self.path("podman/root"), self.path("podman/run"));
        let (from, to) =
            (format!("oci:{layout}:latest"), format!("containers-storage:[{root}+{run_root}]{PODMAN_IMAGE}"));
        run(&["skopeo", "--insecure-policy", "copy", "-q", &from, &to].map(str::to_owned)).map(drop)
    }

    /// A `podman run` command with the image.
    pub fn podman_run(&self, command: &str) -> Vec<String> {
        let options = ["run", "--rm", "--network", "none", "--runtime", "runc"];
        self.podman(&[&options[..], &LIMITS, &[PODMAN_IMAGE, command]].concat())
    }

    /// The name of podman's storage driver.
    pub fn podman_driver(&self) -> Outcome<String> {
        run(&self.podman(&["info", "-f", "{{.Store.GraphDriverName}}"]))
    }

    /// A runc command.
    pub fn runc(&self, words: &[&str]) -> Vec<String> {
        let root = self.path("runc");
        [&["runc", "--root", root.as_str()], words].concat().iter().map(|word| (*word).to_owned()).collect()
    }

    /// The directory of the container with many changes.
    pub fn upper(&self) -> Outcome<PathBuf> {
        self.folder(&self.big).map(|dir| dir.join("upper"))
    }

    fn folder(&self, container: &str) -> Outcome<PathBuf> {
        let id = run(&self.plyfs(&["inspect", "-f", "{{.Id}}", container]))?;
        Ok(self.scratch.path().join("root/containers").join(id))
    }

    /// Runs a script in a container that is kept.
    fn make_container(&self, name: &str, image: &str, script: &str) -> Outcome<()> {
        run(&self.plyfs(&["run", "--name", name, "--network", "none", image, "sh", "-euc", script])).map(drop)
    }

    /// Creates a bundle of the image, with kernel overlayfs as its root file system and the config.json that plyfs
    /// gives runc.
    fn make_bundle(&self, debian: &Path) -> Outcome<()> {
        self.make_container("model", &self.image, "true")?;
        let path = self.folder("model")?.join("config.json");
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let mut document: Value =
            serde_json::from_slice(&fs::read(&path).map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
        document["root"]["path"] = json!(self.path("mnt"));
        document["process"]["args"] = json!(["true"]);
        document["linux"]["cgroupsPath"] = json!(format!("/plyfs-bench-{}", std::process::id()));
        for name in ["bundle", "mnt", "upper", "work"] {
            fs::create_dir(self.path(name)).map_err(|e| failed(&e))?;
        }
        fs::write(self.scratch.path().join("bundle/config.json"), document.to_string()).map_err(|e| failed(&e))?;
        let (lower, upper, work) = (debian.join("unpacked/rootfs"), self.path("upper"), self.path("work"));
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.display());
        let mount = ["mount", "-t", "overlay", "overlay", "-o", &options, &self.path("mnt")];
        run(&mount.map(str::to_owned)).map(drop)
    }

    /// Creates a container of an image of [`ENTRIES`] entries: Debian's lowest layer, filled up with small files.
    fn make_changed(&mut self, debian: &Path) -> Outcome<()> {
        let (base, more, tar) = (debian.join("layers/0"), self.path("more"), self.path("base.tar"));
        let words = ["find", &base.display().to_string(), "-mindepth", "1", "-printf", "x"].map(str::to_owned);
        let there = run(&words)?.len();
        let dir = Path::new(&more).join("more");
        fs::create_dir_all(&dir).map_err(|e| format!("{more}: {e}"))?;
        // The directory counts as an entry.
        for n in there + 1..ENTRIES {
            fs::write(dir.join(n.to_string()), n.to_string()).map_err(|e| format!("{more}: {e}"))?;
        }
        self.entries = ENTRIES.max(there + 1);
        run(&["tar", "-cf", &tar, "-C", &base.display().to_string(), ".", "-C", &more, "./more"].map(str::to_owned))?;
        run(&self.plyfs(&["import", &tar, "base:1"]))?;
        let script = "find /usr/share/doc -type f | head -n 100 | while read -r file; do echo >>\"$file\"; done";
        self.make_container("changed", "base:1", script)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // A container that was never started cannot be stopped.
        let quietly = |words: Vec<String>| drop(run(&words));
        let containers = run(&self.plyfs(&["ps", "-aq"])).unwrap_or_default();
        let ids: Vec<&str> = containers.lines().collect();
        if !ids.is_empty() {
            quietly(self.plyfs(&[&["rm", "-f"], &ids[..]].concat()));
        }
        quietly(self.runc(&["delete", "-f", "true"]));
        quietly(self.podman(&["rm", "-af"]));
        quietly(self.podman(&["rmi", "-af"]));
        unmount_below(self.scratch.path());
    }
}
