//! The directories that runs work on: a plain directory, and a mount of kernel overlayfs.

use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::check::Checks;
use super::generate::Menu;
use super::image::{image, unpack};
use super::op::Op;
use crate::support::env::{retry_while_busy, unmount};
use crate::support::tree::{Contents, Tree, scan};

/// A file system under test, which holds the image when a run begins and can be remounted.
pub trait TestFs {
    /// The tree's root.
    fn root(&self) -> &Path;

    /// Unmounts and mounts again. Nothing is open.
    fn remount(&mut self);

    /// Kills the process that serves the tree and mounts again. Nothing is open, and all is synced.
    fn kill(&mut self);

    /// The optional comparisons that the file system supports.
    fn checks(&self) -> Checks;

    /// The errno with which a step may be refused here that POSIX allows.
    fn may_refuse(&self, op: &Op) -> Option<i32> {
        op.may_be_refused()
    }

    /// Other views of the same tree, at the end of a run, and what else has to hold then.
    fn finish(&mut self) -> Result<Vec<View>, String> {
        Ok(Vec::new())
    }
}

/// Another view of the same tree.
pub struct View {
    pub name: &'static str,
    pub tree: Tree,
    pub checks: Checks,
}

/// A plain directory on the scratch file system, which validates the model.
pub struct PlainFs {
    dir: TempDir,
}

impl PlainFs {
    pub const MENU: Menu = Menu { held_readers: true, optional: true, remounts: false };

    pub fn new() -> Self {
        let dir = scratch();
        rustix::fs::chmod(dir.path(), Mode::from_raw_mode(0o755)).unwrap();
        unpack(dir.path(), &image());
        Self { dir }
    }
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("plyfs-model-").tempdir().unwrap()
}

impl TestFs for PlainFs {
    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn remount(&mut self) {}

    fn kill(&mut self) {}

    fn checks(&self) -> Checks {
        // A number is used again as soon as its inode is gone.
        Checks { numbers: false, ..Checks::ALL }
    }
}

/// Kernel overlayfs over the image: an independent union, checked by the same model.
pub struct OverlayFs {
    overlay: Overlay,
    metacopy: bool,
    /// The directory of everything, removed last.
    _dir: TempDir,
}

impl OverlayFs {
    pub const MENU: Menu = Menu { held_readers: false, optional: true, remounts: true };

    /// With `metacopy`, a change of attributes alone copies no content.
    pub fn new(metacopy: bool) -> Self {
        Self::with(if metacopy { "metacopy=on,index=on" } else { "metacopy=off,index=on" }, metacopy)
    }

    /// Without the kernel's index of hard links, which names the lower layers' own inodes and says nothing to anybody
    /// else: links break when they are copied up.
    pub fn without_index(metacopy: bool) -> Self {
        Self::with(if metacopy { "metacopy=on,index=off" } else { "metacopy=off,index=off" }, metacopy)
    }

    fn with(options: &'static str, metacopy: bool) -> Self {
        let dir = scratch();
        let [lower, upper, work, at] = ["lower", "upper", "work", "at"].map(|name| dir.path().join(name));
        [&lower, &upper, &work, &at].into_iter().for_each(|path| make_dir(path));
        unpack(&lower, &image());
        let test_fs = Self { overlay: Overlay { lower, upper, work, at, options }, metacopy, _dir: dir };
        test_fs.overlay.mount();
        test_fs
    }
}

impl OverlayFs {
    /// Scans the tree and unmounts it. Returns the tree and the upper directory.
    pub fn scan_and_unmount(&mut self) -> (Tree, PathBuf) {
        let tree = scan(&self.overlay.at, Contents::Hash);
        unmount(&self.overlay.at);
        (tree, self.overlay.upper.clone())
    }
}

impl TestFs for OverlayFs {
    fn root(&self) -> &Path {
        &self.overlay.at
    }

    fn remount(&mut self) {
        unmount(&self.overlay.at);
        self.overlay.mount();
    }

    fn kill(&mut self) {
        self.remount();
    }

    fn checks(&self) -> Checks {
        // The content, copied later, brings a new time with it, and so does what a refused rename prepared.
        let file_times = !self.metacopy;
        Checks { numbers: false, dir_nlink: false, file_times, dir_times: false, ..Checks::ALL }
    }

    /// The view that judges plyfs's upper directory is right about the kernel's own.
    fn finish(&mut self) -> Result<Vec<View>, String> {
        unmount(&self.overlay.at);
        Ok(vec![kernel_view(&self.overlay, self.checks())])
    }

    fn may_refuse(&self, op: &Op) -> Option<i32> {
        match op {
            // Where it came from has to fit in an attribute of 256 bytes.
            Op::Rename { .. } | Op::Link { .. } | Op::HeldLink { .. } => Some(libc::EXDEV),
            _ => op.may_be_refused(),
        }
    }
}

impl Drop for OverlayFs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.overlay.at, UnmountFlags::DETACH);
    }
}

/// A directory of mode 0755, whatever the umask.
pub fn make_dir(path: &Path) {
    std::fs::create_dir(path).unwrap();
    rustix::fs::chmod(path, Mode::from_raw_mode(0o755)).unwrap();
}

/// The tree as kernel overlayfs sees it, which the options say how to mount.
pub fn kernel_view(overlay: &Overlay, checks: Checks) -> View {
    overlay.mount();
    let mounted = Mounted(&overlay.at);
    let tree = scan(mounted.0, Contents::Hash);
    drop(mounted);
    View { name: "the tree as kernel overlayfs sees it", tree, checks }
}

/// A mount, unmounted on drop.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        match std::thread::panicking() {
            true => drop(rustix::mount::unmount(self.0, UnmountFlags::DETACH)),
            false => unmount(self.0),
        }
    }
}

/// A mount of kernel overlayfs.
pub struct Overlay {
    pub lower: PathBuf,
    pub upper: PathBuf,
    /// On the upper directory's file system.
    pub work: PathBuf,
    pub at: PathBuf,
    /// Further ones: directories can be renamed in any case.
    pub options: &'static str,
}

impl Overlay {
    pub fn mount(&self) {
        let (lower, upper, work) = (self.lower.display(), self.upper.display(), self.work.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on,{}", self.options);
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::empty();
        retry_while_busy(|| rustix::mount::mount("overlay", &self.at, "overlay", flags, options.as_c_str()));
    }
}
