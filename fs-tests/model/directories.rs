//! The model's image as plain lower directories with an upper directory on top: without a kernel, and mounted by plyfs
//! with the command line of fuse-overlayfs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::by_inode::InodeHarness;
use super::check::Checks;
use super::generate::Menu;
use super::harness::Harness;
use super::image::{Initial, Start, image, unpack};
use super::mounted::{PlyfsFs, overlay};
use super::place::{TestFs, View, kernel_view, make_dir};
use super::state::umask;
use super::union::Union;
use crate::support::env::{Mount, TestEnv, unmount, wait_until_unused};
use crate::support::faulty::{LimitedBacking, RefusedCalls};
use crate::support::killer::{Disturbance, supervisor_of};
use crate::support::nest::{NestedFs, UpperFs};
use crate::support::tree::{Contents, Tree, diff, scan};
use plyfs::fs::{Forms, Fs, LowerDirs, LowerDirsOptions};
use plyfs::upper::{Below, Owners, Settings, Upper, User};

/// What is different from a mount of an image: numbers follow from the file system below, which gives them again.
const CHECKS: Checks = Checks { numbers_return: true, ..Checks::ALL };

/// The image as so many directories, the topmost first. With several, what one has is hidden, replaced or merged by
/// others, in every form in which directories say that.
pub fn lowers(at: &Path, count: usize) -> Vec<PathBuf> {
    let dirs: Vec<PathBuf> = (0..count).map(|number| at.join(format!("lower{number}"))).collect();
    dirs.iter().for_each(|dir| make_dir(dir));
    if count == 1 {
        unpack(&dirs[0], &image());
        return dirs;
    }
    let mut parts: Vec<Vec<Initial>> = vec![Vec::new(); count];
    for (number, entry) in image().into_iter().enumerate() {
        match entry.start {
            Start::Dir => parts.iter_mut().for_each(|part| part.push(entry.clone())),
            // The names of one file are in one layer.
            Start::Link(of) => {
                let first = parts.iter_mut().find(|part| part.iter().any(|other| other.path == of)).unwrap();
                first.push(entry);
            }
            _ => parts[number % (count - 1)].push(entry),
        }
    }
    for (dir, part) in dirs.iter().zip(&parts) {
        unpack(dir, part);
    }
    hide(&dirs);
    dirs
}

/// Adds lower entries that must not be visible, and the whiteouts and opaque marks that hide them.
fn hide(dirs: &[PathBuf]) {
    let [top, below, bottom] = [&dirs[0], &dirs[dirs.len() - 2], &dirs[dirs.len() - 1]];
    let put = |path: PathBuf| {
        let (times, parent) = (std::fs::metadata(path.parent().unwrap()).unwrap(), path.parent().unwrap().to_owned());
        std::fs::write(path, "not to be seen").unwrap();
        std::fs::File::open(parent).unwrap().set_modified(times.modified().unwrap()).unwrap();
    };
    for name in ["gone-by-device", "gone-by-name", "gone-by-attribute"] {
        put(bottom.join(name));
        put(bottom.join("dir").join(name));
    }
    put(bottom.join("opaque/hidden"));
    put(bottom.join("opaque/sub/hidden"));
    put(bottom.join("e/a/hidden"));
    for dir in [below.clone(), below.join("dir")] {
        keep_time(&dir, || {
            rustix::fs::mknodat(CWD, dir.join("gone-by-device"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            std::fs::write(dir.join(".wh.gone-by-name"), "").unwrap();
            let file = dir.join("gone-by-attribute");
            std::fs::write(&file, "").unwrap();
            set(&file, "trusted.overlay.whiteout", b"y");
            set(&dir, "trusted.overlay.opaque", b"x");
        });
    }
    // What lies in the lower ones of these directories is a part of the image: only the topmost hides others.
    for (dir, all) in [("opaque", ["opaque/a", "opaque/sub"].as_slice()), ("e/a", &["e/a/<255>", "e/a/b"])] {
        for path in all {
            gather(dirs, &super::op::expand(path));
        }
        let dir = top.join(dir);
        match dir.ends_with("a") {
            true => set(&dir, "user.fuseoverlayfs.opaque", b"y"),
            false => keep_time(&dir, || std::fs::write(dir.join(".wh..wh..opq"), "").unwrap()),
        }
    }
}

/// Moves a path into the topmost layer, with everything below it.
fn gather(dirs: &[PathBuf], path: &str) {
    for dir in &dirs[1..] {
        let (from, to) = (dir.join(path), dirs[0].join(path));
        if !from.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            let inner = std::fs::read_dir(&from).into_iter().flatten().map(|entry| entry.unwrap().file_name());
            for name in inner.collect::<Vec<_>>() {
                if name != "hidden" {
                    gather(dirs, Path::new(path).join(name).to_str().unwrap());
                }
            }
            continue;
        }
        let [old, new] = [from.parent().unwrap(), to.parent().unwrap()];
        keep_time(old, || keep_time(new, || std::fs::rename(&from, &to).unwrap()));
    }
}

fn keep_time(dir: &Path, change: impl FnOnce()) {
    let before = std::fs::metadata(dir).unwrap().modified().unwrap();
    change();
    std::fs::File::open(dir).unwrap().set_modified(before).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A harness without a kernel, on the union of `count` lower directories and an upper one.
pub fn in_process(count: usize, user: User) -> Box<dyn Harness> {
    in_process_with_refused(count, user, RefusedCalls::Nothing)
}

/// Like [`in_process`], with the upper directory on a file system that refuses some calls.
pub fn in_process_with_refused(count: usize, user: User, refused: RefusedCalls) -> Box<dyn Harness> {
    let dir = scratch();
    let layers = lowers(dir.path(), count);
    ["upper", "work"].into_iter().for_each(|name| make_dir(&dir.path().join(name)));
    let open = move || {
        let options = LowerDirsOptions { layers: layers.clone(), static_nlink: false, descriptors: 6 };
        let settings = Settings {
            upper: dir.path().join("upper"),
            work: dir.path().join("work"),
            below: Below::Directories(Owners::Native),
            volatile: false,
            user,
            native_owners: false,
            descriptors: 4,
        };
        let upper = Upper::open(&settings, Box::new(LimitedBacking(refused))).unwrap();
        Fs::of_dirs(LowerDirs::open(&options).map_err(|(_, e)| e).unwrap(), Some(upper), Forms::default(), None)
            .unwrap()
    };
    Box::new(InodeHarness::new(Union::with_open(open), umask(), CHECKS))
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("plyfs-model-").tempdir().unwrap()
}

/// A mounted union of lower directories and an upper one.
pub struct LowerDirsFs {
    /// Unmounted before the environment goes.
    mount: Option<Mount>,
    nest: NestedFs,
    env: TestEnv,
    layers: Vec<PathBuf>,
    /// The layers before the run, which must not change.
    before: Vec<(Tree, Stamps)>,
    /// Further options, with a comma before them.
    options: &'static str,
    checks: Checks,
    disturbance: Disturbance,
}

/// The access and change times of every path.
type Stamps = BTreeMap<PathBuf, [i64; 4]>;

fn stamps(at: &Path, into: &mut Stamps) {
    let found = at.symlink_metadata().unwrap();
    into.insert(at.into(), [found.atime(), found.atime_nsec(), found.ctime(), found.ctime_nsec()]);
    if !found.is_dir() {
        return;
    }
    // Without a trace, which a directory from the future would keep of every look at it.
    let dir = rustix::fs::open(at, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME, Mode::empty()).unwrap();
    for entry in rustix::fs::Dir::read_from(&dir).unwrap().map(Result::unwrap) {
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            stamps(&at.join(name), into);
        }
    }
}

fn scan_layer(layer: &Path) -> (Tree, Stamps) {
    // The scan itself changes access times: the comparison starts after it.
    let (tree, mut all) = (scan(layer, Contents::Hash), Stamps::new());
    stamps(layer, &mut all);
    (tree, all)
}

impl LowerDirsFs {
    pub const MENU: Menu = PlyfsFs::MENU;

    /// A union over `count` lower directories.
    pub fn new(count: usize) -> Self {
        Self::with(UpperFs::Disk, count, "", CHECKS)
    }

    /// Over so many directories, with the upper directory there.
    pub fn with_upper_on(upper_fs: UpperFs, count: usize) -> Self {
        Self::with(upper_fs, count, "", CHECKS)
    }

    /// In no form that fuse-overlayfs does not know.
    pub fn in_common_forms() -> Self {
        Self::with(UpperFs::Disk, 2, ",redirect_dir=off,metacopy=off", Checks { dir_times: false, ..CHECKS })
    }

    fn with(upper_fs: UpperFs, count: usize, options: &'static str, checks: Checks) -> Self {
        let env = TestEnv::new();
        let layers = lowers(&env.path(""), count);
        let nest = NestedFs::with_upper(&env, upper_fs);
        let before = layers.iter().map(|layer| scan_layer(layer)).collect();
        let (mount, disturbance) = (None, Disturbance::default());
        let mut test_fs = Self { mount, nest, env, layers, before, options, checks, disturbance };
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
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.display().to_string()).collect();
        let (upper, work) = (self.nest.path("upper"), self.nest.path("work"));
        let dirs = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
        let mut command = self.env.command(["overlay", "-o", &format!("{dirs}{}", self.options)]);
        self.mount = Some(Mount::start(&self.env, &mut command));
        self.disturbance.start(&upper);
    }

    fn unmount(&mut self) {
        self.disturbance.stop();
        if let Some(mount) = self.mount.take() {
            unmount(mount.path());
            wait_until_unused(&self.nest.path("upper"));
        }
    }
}

impl TestFs for LowerDirsFs {
    fn root(&self) -> &Path {
        self.mount.as_ref().expect("the file system is mounted").path()
    }

    fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    fn kill(&mut self) {
        self.disturbance.stop();
        let upper = self.nest.path("upper");
        let supervisor = supervisor_of(&upper).expect("somebody serves the mount");
        kill_process(Pid::from_raw(supervisor).unwrap(), Signal::KILL).unwrap();
        let dead = self.mount.take().expect("the file system is mounted");
        assert!(Command::new("umount").arg("-l").arg(dead.path()).status().unwrap().success());
        wait_until_unused(&upper);
        self.mount();
    }

    fn checks(&self) -> Checks {
        self.checks
    }

    fn may_refuse(&self, op: &super::op::Op) -> Option<i32> {
        match op {
            super::op::Op::Rename { .. } if !self.options.is_empty() => Some(libc::EXDEV),
            _ => op.may_be_refused(),
        }
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        self.unmount();
        for (layer, (tree, before)) in self.layers.iter().zip(&self.before) {
            let mut now = Stamps::new();
            stamps(layer, &mut now);
            if let Some((path, _)) = now.iter().find(|(path, stamp)| before.get(*path) != Some(stamp)) {
                return Err(format!("{} was read or changed below", path.display()));
            }
            let wrong: Vec<_> = diff(tree, &scan(layer, Contents::Hash)).iter().map(ToString::to_string).collect();
            if !wrong.is_empty() {
                return Err(format!("{} was changed: {}", layer.display(), wrong.join("\n")));
            }
        }
        let checks = Checks {
            numbers: false,
            links: false,
            dir_nlink: false,
            hidden_xattrs: &["trusted.overlay."],
            ..self.checks
        };
        Ok(vec![kernel_view(&overlay(&self.env, &self.nest), checks)])
    }
}
