//! buildah in a store of its own, which builds images with chroot isolation and mounts their trees.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;

use super::env::{Output, TestEnv, run, unmount};

/// A store of buildah in a test environment.
pub struct Buildah {
    dir: PathBuf,
}

impl Buildah {
    /// An empty store.
    pub fn new(env: &TestEnv) -> Buildah {
        let dir = env.path("buildah");
        for name in ["graph", "run", "home", "tmp"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        Buildah { dir }
    }

    /// A buildah command on this store.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.dir.join("graph")).arg("--runroot").arg(self.dir.join("run"));
        command.args(["--storage-driver", "overlay"]).args(args).current_dir(&self.dir);
        command.env("HOME", self.dir.join("home")).env("TMPDIR", self.dir.join("tmp"));
        for name in
            ["CONTAINERS_STORAGE_CONF", "CONTAINERS_CONF", "STORAGE_OPTS", "BUILDAH_ISOLATION", "BUILDAH_FORMAT"]
        {
            command.env_remove(name);
        }
        command
    }

    /// Runs buildah and requires success; returns its standard output without the newline.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = run(&mut self.command(args));
        assert_eq!(output.code, 0, "buildah {args:?}: {output:#?}");
        output.stdout.trim_end().to_owned()
    }

    /// Adds the image of a docker-archive, with its name.
    pub fn load(&self, archive: &Path) {
        self.ok(&["pull", "-q", &format!("docker-archive:{}", archive.display())]);
    }

    /// Builds an image, however it ends. The format is Docker's: OCI's has no fields for health checks and shells.
    pub fn build(&self, name: &str, args: &[String], context: &Path) -> Output {
        let fixed = ["build", "--isolation", "chroot", "--layers=false", "--format", "docker", "--pull-never", "-q"];
        let mut command = self.command(&fixed);
        run(command.args(["-t", name]).args(args).arg(context))
    }

    /// The configuration of an image.
    pub fn config(&self, name: &str) -> Value {
        let text = self.ok(&["inspect", "--type", "image", "--format", "{{.Config}}", name]);
        serde_json::from_str(&text).unwrap()
    }

    /// Calls a function with the tree of an image. Its layers' directories are mounted here: `buildah from` would run the
    /// image's ONBUILD triggers.
    pub fn with_tree<T>(&self, name: &str, call: impl FnOnce(&Path) -> T) -> T {
        let graph = self.dir.join("graph");
        let images: Value = read_json(&graph.join("overlay-images/images.json"));
        let is_named = |image: &&Value| image["names"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
        let image = images.as_array().unwrap().iter().find(is_named).unwrap();
        let at = tempfile::Builder::new().prefix("tree-").tempdir_in(&self.dir).unwrap();
        // An image without layers.
        let Some(layer) = image["layer"].as_str().filter(|layer| !layer.is_empty()) else { return call(at.path()) };
        let overlay = graph.join("overlay");
        let mut dirs = vec![overlay.join(layer).join("diff")];
        let lower = fs::read_to_string(overlay.join(layer).join("lower")).unwrap_or_default();
        dirs.extend(lower.split(':').filter(|dir| !dir.is_empty()).map(|dir| overlay.join(dir)));
        // overlayfs does not mount a single directory.
        if let [only] = &dirs[..] {
            return call(only);
        }
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let options = CString::new(format!("lowerdir={}", dirs.join(":"))).unwrap();
        rustix::mount::mount("overlay", at.path(), "overlay", MountFlags::RDONLY, Some(options.as_c_str())).unwrap();
        let result = call(at.path());
        unmount(at.path());
        result
    }
}

fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

impl Drop for Buildah {
    /// Unmounts what buildah leaves mounted: the overlay directory itself, and trees after a panic.
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        let mut own: Vec<PathBuf> = points.filter(|at| at.starts_with(&self.dir)).collect();
        own.reverse();
        for at in own {
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
        }
    }
}
