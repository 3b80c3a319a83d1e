//! Places on a writable mount of plyfs.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::check::Checks;
use super::generate::Menu;
use super::image::{image, layers, unpack};
use super::place::{Overlay, OverlayFs, TestFs, View, kernel_view, make_dir};
use crate::support::env::{Mount, TestEnv, run};
use crate::support::killer::Disturbance;
use crate::support::nest::{NestedFs, UpperFs};
use crate::support::oci::{Image, digest};
use crate::support::tree::{Contents, diff, scan};

/// The image in three layers, mounted by plyfs with an upper directory.
pub struct PlyfsFs {
    /// Unmounted before the environment goes.
    mount: Option<Mount>,
    nest: NestedFs,
    env: TestEnv,
    /// The digest of every layer's tar, which no run may change.
    layers: BTreeMap<String, String>,
    options: Vec<&'static str>,
    disturbance: Disturbance,
}

impl PlyfsFs {
    pub const MENU: Menu = Menu { held_readers: true, optional: true, remounts: true };

    /// With further options of `plyfs mount`.
    pub fn new(options: &[&'static str]) -> Self {
        Self::with_upper_on(UpperFs::Disk, options)
    }

    /// With the upper directory there.
    pub fn with_upper_on(upper_fs: UpperFs, options: &[&'static str]) -> Self {
        let env = TestEnv::new();
        pull_image(&env);
        let nest = NestedFs::with_upper(&env, upper_fs);
        let layers = digests(&env);
        assert_eq!(layers.len(), 3, "{layers:?}");
        let options = options.to_vec();
        let mut test_fs = Self { mount: None, nest, env, layers, options, disturbance: Disturbance::default() };
        test_fs.mount();
        test_fs
    }

    /// Disturbs the mount from now on.
    pub fn disturbed_by(mut self, disturbance: Disturbance) -> Self {
        self.disturbance = disturbance;
        self.disturbance.start(&self.nest.path("upper"));
        self
    }

    fn mount(&mut self) {
        let (upper, work) = (self.nest.path("upper"), self.nest.path("work"));
        let mut command = self.env.command(["mount"]);
        command.args(&self.options).arg("--upper").arg(&upper).arg("--work").arg(work).arg("model:1");
        self.mount = Some(Mount::start(&self.env, &mut command));
        self.disturbance.start(&upper);
    }

    /// Unmounts through plyfs, which waits for its daemon.
    fn unmount(&mut self) {
        self.disturbance.stop();
        if let Some(mount) = self.mount.take() {
            mount.unmount();
        }
    }
}

/// The modification time of every object.
type Times = BTreeMap<PathBuf, (i64, i64)>;

fn mtimes(root: &Path, at: &Path, into: &mut Times) {
    let found = root.join(at).symlink_metadata().unwrap();
    if found.is_dir() {
        let entries = std::fs::read_dir(root.join(at)).unwrap();
        entries.for_each(|entry| mtimes(root, &at.join(entry.unwrap().file_name()), into));
    }
    into.insert(at.into(), (found.mtime(), found.mtime_nsec()));
}

/// The attributes that plyfs keeps for itself in the upper directory.
const OWN_XATTRS: &[&str] = &["trusted.overlay."];

impl TestFs for PlyfsFs {
    fn root(&self) -> &Path {
        self.mount.as_ref().expect("the file system is mounted").path()
    }

    fn remount(&mut self) {
        let (mut before, mut after) = (Times::new(), Times::new());
        mtimes(self.root(), Path::new(""), &mut before);
        self.unmount();
        self.mount();
        mtimes(self.root(), Path::new(""), &mut after);
        assert_eq!(after, before, "modification times before and after a remount");
    }

    fn kill(&mut self) {
        self.disturbance.stop();
        kill_daemon(&self.env, self.mount.take().expect("the file system is mounted"));
        self.mount();
    }

    fn checks(&self) -> Checks {
        Checks::ALL
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        self.unmount();
        let now = digests(&self.env);
        if now != self.layers {
            return Err(format!("the layers in the store changed from {:?} to {now:?}", self.layers));
        }
        // Numbers and hard links over copies are what overlayfs has no form for.
        let checks =
            Checks { numbers: false, links: false, dir_nlink: false, hidden_xattrs: OWN_XATTRS, ..Checks::ALL };
        Ok(vec![kernel_view(&overlay(&self.env, &self.nest), checks)])
    }
}

/// A union where kernel overlayfs writes the upper directory, and plyfs reads it at the end.
pub struct KernelUpperFs(pub OverlayFs);

impl TestFs for KernelUpperFs {
    fn root(&self) -> &Path {
        self.0.root()
    }

    fn remount(&mut self) {
        self.0.remount();
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn checks(&self) -> Checks {
        self.0.checks()
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        let (kernel_tree, upper) = self.0.scan_and_unmount();
        let env = TestEnv::new();
        pull_image(&env);
        let work = upper.with_file_name("plyfs-work");
        let mut command = env.command(["mount", "--upper"]);
        let mount = Mount::start(&env, command.arg(&upper).arg("--work").arg(work).arg("model:1"));
        let plyfs_tree = scan(mount.path(), Contents::Hash);
        // What is one inode in a layer and what is in the upper directory differ only by their number here.
        let counted = ["nlink", "links"];
        let wrong: Vec<String> = diff(&kernel_tree, &plyfs_tree)
            .into_iter()
            .filter(|difference| !counted.contains(&&*difference.field))
            .map(|difference| difference.to_string())
            .collect();
        if wrong.is_empty() { Ok(Vec::new()) } else { Err(wrong.join("\n")) }
    }
}

/// The image unpacked, and the upper directory that plyfs wrote there. The kernel does not take one on its own
/// overlayfs, and knows whiteouts in the form of attributes in lower directories alone: one that is nested is a lower
/// directory.
pub fn overlay(env: &TestEnv, nest: &NestedFs) -> Overlay {
    let [lower, work, at] = ["lower", "kernel-work", "kernel"].map(|name| env.path(name));
    [&lower, &work, &at].into_iter().for_each(|path| make_dir(path));
    unpack(&lower, &image());
    let options = "metacopy=on,index=off,ro";
    if !nest.is_nested() {
        return Overlay { lower, upper: nest.path("upper"), work, at, options };
    }
    let (mut both, upper) = (nest.path("upper").into_os_string(), env.path("kernel-upper"));
    make_dir(&upper);
    both.push(":");
    both.push(lower);
    Overlay { lower: both.into(), upper, work, at, options }
}

/// Returns the registered process of the environment's only mount.
fn supervisor(env: &TestEnv) -> Pid {
    let pid = env.ok(["mounts", "--format", "{{.PID}}"]).trim().parse().ok().and_then(Pid::from_raw);
    pid.expect("a daemon is registered")
}

/// Kills the daemon of the environment's only mount, and unmounts that.
pub fn kill_daemon(env: &TestEnv, mount: Mount) {
    let pid = supervisor(env);
    kill_process(pid, Signal::KILL).unwrap();
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    // A zombie that nobody has collected yet is dead too.
    let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while lives() {
        assert!(Instant::now() < deadline, "the daemon outlives SIGKILL");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(run(Command::new("umount").arg("-l").arg(mount.path())).code, 0);
}

/// Puts the image into the environment's store, in three layers, as `model:1`.
pub fn pull_image(env: &TestEnv) {
    let built = layers(&image()).into_iter().fold(Image::new(), Image::layer).tag("1");
    built.write_layout(&env.path("model"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("model").display())]);
}

/// The digest of every layer's tar in the store.
fn digests(env: &TestEnv) -> BTreeMap<String, String> {
    let digest_of = |entry: std::fs::DirEntry| {
        let bytes = std::fs::read(entry.path().join("layer.tar")).unwrap();
        (entry.file_name().into_string().unwrap(), digest(&bytes))
    };
    std::fs::read_dir(env.root().join("layers/sha256")).unwrap().map(|entry| digest_of(entry.unwrap())).collect()
}
