//! Opening of an upper directory: locks, detection of file system features, binding to an image, and clean-up after a
//! crash.

use super::form::{Opening, is_refused};
use super::{FIRST_OWN, Numbers, Upper};
use crate::backing::{Backing, Handles, ReadOnly, print, share};
use crate::digest::Digest;
use crate::meta::Kind;
use crate::sys;
use crate::whiteout::{CONTAINERS_OVERRIDE, Dialect, Mark, Namespace, WhiteoutForm, override_of};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags, XattrFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// Options of [`Upper::open`].
pub struct Settings {
    /// The upper directory; created if it does not exist.
    pub upper: PathBuf,
    /// The work directory, on the same file system; created if it does not exist.
    pub work: PathBuf,
    /// The lower side of the union.
    pub below: Below,
    /// Whether the mount is volatile: nothing is ever synced.
    pub volatile: bool,
    /// The user that the mount serves.
    pub user: User,
    /// Whether owner and mode must be those on the backing file system even if only `user.` attributes can be set, as
    /// kernel overlayfs needs it in a user namespace.
    pub native_owners: bool,
    /// The limit of cached open descriptors.
    pub descriptors: usize,
}

/// The lower side that an upper directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// The image with that ChainID, and no other.
    Image(Digest),
    /// Lower directories, whose identity the user vouches for. Other tools use the upper directory too: their marks are
    /// read, and the attributes of its root are its own.
    Directories(Owners),
}

/// How owner and mode are stored where other tools use the directory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As owner and mode on the backing file system.
    Native,
    /// In the extended attribute of that name.
    Attribute(&'static CStr),
}

impl Below {
    /// Returns the value of [`Mark::Image`] on the root of its upper directory.
    fn mark(&self) -> String {
        match self {
            Below::Image(chain_id) => chain_id.to_string(),
            Below::Directories(_) => DIRECTORIES.into(),
        }
    }
}

/// The mark in place of a ChainID: inode numbers are those of lower directories, and mean nothing on an image.
const DIRECTORIES: &str = "directories";

/// Options of [`Upper::view`].
pub struct View {
    /// The upper directory.
    pub upper: PathBuf,
    /// The ChainID of the lower image.
    pub image: Digest,
    /// The user that the view serves.
    pub user: User,
    /// The limit of cached open descriptors.
    pub descriptors: usize,
}

/// The user that an upper directory is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Whether the user may change file owners and create any kind of file.
    pub privileged: bool,
    /// The owner of the files that the user creates.
    pub uid: u32,
    /// The group of those files.
    pub gid: u32,
}

impl User {
    /// Returns the user of this process.
    pub fn own() -> User {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        User { privileged: uid == 0, uid, gid }
    }
}

/// Number of descriptors reserved for layers, connections and the log; the rest is for the descriptor cache.
const OTHER_DESCRIPTORS: u64 = 512;
/// The largest descriptor cache: requests that repeat soon are for one of the last few inodes.
const MOST_DESCRIPTORS: u64 = 4096;

/// Raises this process's RLIMIT_NOFILE to its hard limit, and returns how many inode descriptors a mount may cache.
pub fn most_descriptors() -> io::Result<usize> {
    let limit = sys::raise_descriptor_limit()?;
    Ok((limit / 2).saturating_sub(OTHER_DESCRIPTORS).clamp(64, MOST_DESCRIPTORS) as usize)
}

/// Why an upper directory cannot be opened. Each message is one whole line.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("cannot {action} {}: {}", path.display(), sys::describe(cause))]
    Io {
        /// The failed action, as a verb.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// The error of the call.
        cause: io::Error,
    },
    /// Another mount has it locked.
    #[error("{} is in use by another mount", .0.display())]
    InUse(PathBuf),
    /// Owners and modes are in attributes, which kernel overlayfs does not read.
    #[error("{} has owners and modes in attributes, as the FUSE engine stores a plain user's", .0.display())]
    OwnersInAttributes(PathBuf),
    /// Its files belong to subordinate IDs.
    #[error("{} has files of subordinate IDs: use it with `plyfs chroot --upper`", .0.display())]
    SubordinateOwners(PathBuf),
    /// The upper and the work directory are the same, or one contains the other.
    #[error("the upper directory {} and the work directory {} must not contain each other", .0.display(), .1.display())]
    Nested(PathBuf, PathBuf),
    /// The upper and the work directory are on different file systems.
    #[error("the upper directory {} and the work directory {} must be on one file system", .0.display(), .1.display())]
    Apart(PathBuf, PathBuf),
    /// The file system lacks a feature.
    #[error("{}: its file system has no {lacks}, which an upper directory needs", path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// The missing feature.
        lacks: &'static str,
    },
    /// The upper directory is bound to another image.
    #[error("{} has the changes of another image ({image}): mount that image or use another directory", path.display())]
    OtherImage {
        /// The directory.
        path: PathBuf,
        /// The ChainID of that image.
        image: String,
    },
    /// A volatile mount was not synced.
    #[error(
        "{} was last mounted volatile, so its latest changes may be lost: use an empty directory, or remove {} \
         if the machine has not crashed since",
        upper.display(), mark.display()
    )]
    WasVolatile {
        /// The upper directory.
        upper: PathBuf,
        /// The kernel's mark.
        mark: PathBuf,
    },
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |cause| OpenError::Io { action, path: path.into(), cause }
}

/// What kernel overlayfs makes in a work directory. Its mounts have no process that could hold a lock.
const KERNELS_WORK: &str = "work";
/// The kernel's mark of a volatile mount, in the work directory.
const VOLATILE: &str = "work/incompat/volatile";

impl Upper {
    /// Opens and locks an upper directory and its work directory, and clears the work directory.
    pub fn open(settings: &Settings, backing: Box<dyn Backing>) -> Result<Upper, OpenError> {
        Upper::open_locked(settings, backing, &[])
    }

    /// The same as [`Upper::open`], where this process may hold the locks already: by one of those descriptors.
    pub fn open_locked(settings: &Settings, backing: Box<dyn Backing>, held: &[OwnedFd]) -> Result<Upper, OpenError> {
        let (upper, work) = (&settings.upper, &settings.work);
        let [root, top] = [open_dir(upper)?, open_dir(work)?];
        check_places(upper, work)?;
        let locked = [lock(&*backing, &root, upper, held)?, lock(&*backing, &top, work, held)?];
        wait_for_kernel(upper, work)?;
        let mark = work.join(VOLATILE);
        if mark.exists() && !is_of_this_boot(work) {
            return Err(OpenError::WasVolatile { upper: upper.clone(), mark });
        }
        let (tmp, links) = prepare_work(&*backing, work)?;
        // The features of a known directory are not probed again: a full file system can still be cleaned up.
        let bound = bound(&*backing, root.as_fd(), upper, &settings.below.mark())?;
        let marks = match bound {
            Some(namespace) => Some(namespace),
            None => namespace(&*backing, tmp.as_fd(), settings)?,
        };
        let opening = Opening {
            backing: &*backing,
            root: root.as_fd(),
            tmp: tmp.as_fd(),
            namespace: marks,
            bound: bound.is_some(),
        };
        let form = opening.form().map_err(|(action, e)| failed(action, upper)(e))?;
        if form != WhiteoutForm::Device {
            check_numbers(&*backing, top.as_fd(), upper)?;
        }
        let fresh = match (bound, marks) {
            (None, Some(namespace)) => adopt(&*backing, root.as_fd(), namespace, settings)?,
            _ => false,
        };
        // Without marks, this namespace has none to find.
        let namespace = marks.unwrap_or(Namespace::User);
        let numbers = numbers(&*backing, root.as_fd(), namespace).map_err(failed("read xattrs of", upper))?;
        let overrides = match native_owners(&*backing, root.as_fd(), namespace, fresh, settings)? {
            true => None,
            false => {
                overrides(&*backing, root.as_fd(), namespace, settings).map_err(failed("read xattrs of", upper))?
            }
        };
        settle_volatile(settings, &root, &mark)?;
        Ok(Upper {
            root: share(root),
            tmp,
            links,
            _locked: locked.into(),
            is_view: false,
            dialect: dialect(namespace, &settings.below, &settings.user),
            form,
            overrides,
            own: (settings.user.uid, settings.user.gid),
            umask: umask(),
            volatile: settings.volatile,
            failed: AtomicBool::new(false),
            unclaimed: fresh.then(|| settings.below.mark()),
            numbers: Mutex::new(numbers),
            serial: AtomicU64::new(0),
            whiteout: Mutex::default(),
            handles: Handles::new(settings.descriptors),
            backing,
        })
    }

    /// Prepares an upper directory that a dead process had open, with this process's copy of its locks, for the next one:
    /// clears the work directory, and reads again what has changed on disk since [`Upper::open`].
    pub fn reopen(&mut self) -> io::Result<()> {
        for left in self.backing.list(self.tmp.as_fd())? {
            wipe(&*self.backing, self.tmp.as_fd(), &left.name)?;
        }
        if image_mark(&*self.backing, self.root.as_fd())?.is_some() {
            self.unclaimed = None;
        }
        self.numbers = Mutex::new(numbers(&*self.backing, self.root.as_fd(), self.dialect.namespace)?);
        Ok(())
    }

    /// Opens a read-only view of an upper directory. It changes nothing on disk, so it works while the directory is
    /// mounted, and for a user who may only read it. If it is not mounted, no mount can lock it meanwhile. Every change
    /// is refused; an object without an inode number gets one in the view only.
    pub fn view(settings: &View) -> Result<Upper, OpenError> {
        let upper = &settings.upper;
        let (root, held) = (open_existing(upper)?, open_existing(upper)?);
        // If the lock is taken, the directory is mounted; the view works nevertheless.
        let _free = try_lock_shared(&held, upper)?;
        let (namespace, fresh) = match bound(&ReadOnly, root.as_fd(), upper, &settings.image.to_string())? {
            Some(namespace) => (namespace, false),
            None => {
                let namespace = if settings.user.privileged { Namespace::Trusted } else { Namespace::User };
                (namespace, ReadOnly.list(root.as_fd()).map_err(failed("read", upper))?.is_empty())
            }
        };
        let native = ReadOnly.get_xattr(root.as_fd(), namespace.mark(Mark::Native).to_bytes());
        let is_native = native.map_err(failed("read xattrs of", upper))?.is_some();
        let first = numbers(&ReadOnly, root.as_fd(), namespace).map_err(failed("read xattrs of", upper))?.next;
        let form = Opening::recorded(&ReadOnly, root.as_fd(), namespace).map_err(failed("read xattrs of", upper))?;
        let stand_in = || root.try_clone().map_err(failed("open", upper));
        Ok(Upper {
            tmp: stand_in()?,
            links: stand_in()?,
            root: share(root),
            _locked: vec![held],
            is_view: true,
            dialect: Dialect { namespace, shared: false, plain: namespace == Namespace::User },
            form,
            overrides: (!is_native && (!settings.user.privileged || namespace == Namespace::User))
                .then_some(CONTAINERS_OVERRIDE),
            own: (settings.user.uid, settings.user.gid),
            umask: 0,
            volatile: false,
            failed: AtomicBool::new(false),
            unclaimed: fresh.then(|| settings.image.to_string()),
            numbers: Mutex::new(Numbers { next: first, limit: u64::MAX }),
            serial: AtomicU64::new(0),
            whiteout: Mutex::default(),
            handles: Handles::new(settings.descriptors),
            backing: Box::new(ReadOnly),
        })
    }

    /// Returns the ChainID of the image that an upper directory is bound to; `None` if it was never mounted.
    pub fn image_of(upper: &Path) -> Result<Option<String>, OpenError> {
        let root = open_existing(upper)?;
        let found = image_mark(&ReadOnly, root.as_fd()).map_err(failed("read", upper))?;
        Ok(found.map(|(_, image)| image))
    }

    /// Whether a plain user's upper directory has files of subordinate IDs, which show their owners only in the user
    /// namespace.
    pub fn has_subordinate_owners(upper: &Path) -> Result<bool, OpenError> {
        let root = open_existing(upper)?;
        let found = ReadOnly.get_xattr(root.as_fd(), Namespace::User.mark(Mark::Native).to_bytes());
        Ok(found.map_err(failed("read", upper))?.is_some())
    }

    /// Whether an upper directory is mounted now.
    pub fn is_in_use(upper: &Path) -> Result<bool, OpenError> {
        Ok(!try_lock_shared(&open_existing(upper)?, upper)?)
    }
}

/// Opens the two directories of the work directory, and clears the one for temporary objects.
fn prepare_work(backing: &dyn Backing, work: &Path) -> Result<(OwnedFd, OwnedFd), OpenError> {
    let [tmp, links] = [work.join("plyfs/tmp"), work.join("plyfs/links")].map(|path| open_dir(&path));
    let (tmp, links) = (tmp?, links?);
    // A group or ACLs that the parent directories hand down would be inherited by every new object.
    clear_acls(backing, tmp.as_fd()).map_err(failed("use", work))?;
    backing.chmod(tmp.as_fd(), 0o700).map_err(failed("use", work))?;
    for left in backing.list(tmp.as_fd()).map_err(failed("read", work))? {
        wipe(backing, tmp.as_fd(), &left.name).map_err(failed("clear", work))?;
    }
    Ok((tmp, links))
}

fn open_existing(path: &Path) -> Result<OwnedFd, OpenError> {
    std::fs::File::open(path).map(OwnedFd::from).map_err(failed("open", path))
}

/// Takes a shared lock, which keeps mounts away while the descriptor is open. Returns false if a mount has the
/// directory.
fn try_lock_shared(dir: &OwnedFd, path: &Path) -> Result<bool, OpenError> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(failed("lock", path)(e.into())),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, OpenError> {
    std::fs::create_dir_all(path).map_err(failed("make", path))?;
    let file = std::fs::File::open(path).map_err(failed("open", path))?;
    Ok(file.into())
}

fn check_places(upper: &Path, work: &Path) -> Result<(), OpenError> {
    let real = |path: &Path| path.canonicalize().map_err(failed("open", path));
    let (real_upper, real_work) = (real(upper)?, real(work)?);
    if real_upper.starts_with(&real_work) || real_work.starts_with(&real_upper) {
        return Err(OpenError::Nested(upper.into(), work.into()));
    }
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).map_err(failed("open", path));
    if device(upper)? != device(work)? {
        return Err(OpenError::Apart(upper.into(), work.into()));
    }
    Ok(())
}

/// The boot ID during a volatile mount, in the work directory. Until the next boot no written data is lost, whether it
/// has reached the disk or not.
const BOOT: &str = "plyfs/volatile";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn is_of_this_boot(work: &Path) -> bool {
    match (std::fs::read(work.join(BOOT)), std::fs::read(BOOT_ID)) {
        (Ok(noted), Ok(now)) => noted == now,
        _ => false,
    }
}

/// Records that the mount will not be synced; or syncs everything after a volatile mount.
fn settle_volatile(settings: &Settings, root: &OwnedFd, mark: &Path) -> Result<(), OpenError> {
    if settings.volatile {
        // Written before the kernel's mark: that mark without a boot ID means that data may be lost.
        note_boot(&settings.work)?;
        return std::fs::create_dir_all(mark).map_err(failed("make", mark));
    }
    if mark.exists() {
        rustix::fs::syncfs(root).map_err(|e| failed("sync", &settings.upper)(e.into()))?;
        std::fs::remove_dir(mark).map_err(failed("remove", mark))?;
    }
    Ok(())
}

/// Records in a work directory that this boot's volatile mount wrote to it. [`Settings::volatile`] does that; a volatile
/// mount of kernel overlayfs needs it too.
pub fn note_boot(work: &Path) -> Result<(), OpenError> {
    let boot = work.join(BOOT);
    match std::fs::read(BOOT_ID) {
        Ok(id) => std::fs::write(&boot, id).map_err(failed("write", &boot))?,
        Err(e) => tracing::debug!("{BOOT_ID}: {e}"),
    }
    Ok(())
}

/// Locks a directory exclusively. The lock belongs to the open file description, so forked processes hold it too.
/// One of `held` may be that open file description.
fn lock(backing: &dyn Backing, dir: &OwnedFd, path: &Path, held: &[OwnedFd]) -> Result<OwnedFd, OpenError> {
    let wanted = rustix::fs::fstat(dir).map_err(|e| failed("open", path)(e.into()))?;
    let is_same = |found: &rustix::fs::Stat| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino);
    for other in held.iter().filter(|fd| rustix::fs::fstat(fd).is_ok_and(|found| is_same(&found))) {
        // Succeeds if this description has the lock; one that has none conflicts with the one that has it.
        if backing.lock(other.as_fd()).is_ok() {
            return other.try_clone().map_err(failed("lock", path));
        }
    }
    let own = backing.open(dir.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(failed("open", path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match backing.lock(own.as_fd()) {
            Ok(()) => return Ok(own),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(failed("lock", path)(e)),
            Err(_) if Instant::now() > deadline => return Err(OpenError::InUse(path.into())),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Waits until no mount of kernel overlayfs has the upper directory.
fn wait_for_kernel(upper: &Path, work: &Path) -> Result<(), OpenError> {
    // The kernel logs a line at each question, so only about directories that it has had.
    if !work.join(KERNELS_WORK).exists() {
        return Ok(());
    }
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while sys::is_overlay_upper(upper).map_err(failed("use", upper))? {
        if Instant::now() > deadline {
            return Err(OpenError::InUse(upper.into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How long to wait for the last mount of the directory to release it: its process may be exiting, or a container
/// that is being started holds the mount for a moment, in a mount namespace cloned from this one.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds the namespace in which marks can be written and read back: the kernel's (`trusted.`) for root, else `user.`.
/// `None` if neither can and none is needed: for lower directories with native owners.
fn namespace(backing: &dyn Backing, tmp: BorrowedFd, settings: &Settings) -> Result<Option<Namespace>, OpenError> {
    let upper = &settings.upper;
    let kernels = Some(Namespace::Trusted).filter(|_| settings.user.privileged);
    for namespace in kernels.into_iter().chain([Namespace::User]) {
        let name = namespace.mark(Mark::Id).to_bytes();
        match backing.set_xattr(tmp, name, b"1", XattrFlags::empty()) {
            Ok(()) => {
                let kept = backing.get_xattr(tmp, name).map_err(failed("read xattrs of", upper))?;
                backing.remove_xattr(tmp, name).map_err(failed("set xattrs of", upper))?;
                if kept.is_some() {
                    return Ok(Some(namespace));
                }
            }
            Err(e) if is_refused(&e) => {}
            Err(e) => return Err(failed("set xattrs of", upper)(e)),
        }
    }
    let native = settings.user.privileged && settings.below == Below::Directories(Owners::Native);
    if native { Ok(None) } else { Err(OpenError::Unfit { path: upper.into(), lacks: "extended attributes" }) }
}

/// Checks that listed inode numbers of directories equal those of stat(2). Kernel overlayfs over several file systems
/// without `xino` invents inode numbers for directories, which change during a mount.
fn check_numbers(backing: &dyn Backing, work: BorrowedFd, upper: &Path) -> Result<(), OpenError> {
    let own = || {
        let dir = backing.open(work, b"plyfs", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let listed = backing.list(dir.as_fd())?.into_iter().find(|entry| entry.name == b"tmp");
        Ok((listed.map(|entry| entry.ino), backing.stat_at(dir.as_fd(), b"tmp")?.ino))
    };
    match own().map_err(failed("read the work directory of", upper))? {
        (Some(listed), seen) if listed != seen => Err(OpenError::Unfit {
            path: upper.into(),
            lacks: "persistent inode numbers (mount the overlay with xino=on)",
        }),
        _ => Ok(()),
    }
}

/// Returns the ChainID on the root of a directory that was mounted before, and the namespace of its marks.
fn image_mark(backing: &dyn Backing, root: BorrowedFd) -> io::Result<Option<(Namespace, String)>> {
    for namespace in [Namespace::Trusted, Namespace::User] {
        if let Some(value) = backing.get_xattr(root, namespace.mark(Mark::Image).to_bytes())? {
            return Ok(Some((namespace, String::from_utf8_lossy(&value).into_owned())));
        }
    }
    Ok(None)
}

/// Returns the namespace of the marks of a directory that was mounted before; an error if it is bound to another image.
fn bound(backing: &dyn Backing, root: BorrowedFd, upper: &Path, wanted: &str) -> Result<Option<Namespace>, OpenError> {
    match image_mark(backing, root).map_err(failed("read", upper))? {
        Some((_, image)) if image != wanted => Err(OpenError::OtherImage { path: upper.into(), image }),
        found => Ok(found.map(|(namespace, _)| namespace)),
    }
}

fn dialect(namespace: Namespace, below: &Below, user: &User) -> Dialect {
    let shared = matches!(below, Below::Directories(_));
    Dialect { namespace, shared, plain: namespace == Namespace::User && !(shared && user.privileged) }
}

/// Whether owners and modes are those on the backing file system ([`Mark::Native`]). A fresh directory becomes such a
/// one if that is wanted.
fn native_owners(
    backing: &dyn Backing,
    root: BorrowedFd,
    namespace: Namespace,
    fresh: bool,
    settings: &Settings,
) -> Result<bool, OpenError> {
    let (upper, name) = (&settings.upper, namespace.mark(Mark::Native).to_bytes());
    let is_native = backing.get_xattr(root, name).map_err(failed("read xattrs of", upper))?.is_some();
    match (is_native, settings.native_owners) {
        (true, _) if !settings.user.privileged => Err(OpenError::SubordinateOwners(upper.clone())),
        (false, true) if !fresh => Err(OpenError::OwnersInAttributes(upper.clone())),
        (false, true) => {
            let set = backing.set_xattr(root, name, b"y", XattrFlags::empty());
            set.map(|()| true).map_err(failed("set xattrs of", upper))
        }
        (is_native, _) => Ok(is_native),
    }
}

/// Returns the extended attribute that stores owner and mode, if any. The one on the root of a shared directory stays
/// in use.
fn overrides(
    backing: &dyn Backing,
    root: BorrowedFd,
    namespace: Namespace,
    settings: &Settings,
) -> io::Result<Option<&'static CStr>> {
    match settings.below {
        // A user who can write only `user.` marks cannot own all files natively either.
        Below::Image(_) => {
            Ok((!settings.user.privileged || namespace == Namespace::User).then_some(CONTAINERS_OVERRIDE))
        }
        Below::Directories(owners) => {
            let used = override_of(|name| backing.get_xattr(root, name.to_bytes()))?;
            let wanted = match owners {
                Owners::Attribute(name) => Some(name),
                Owners::Native => (!settings.user.privileged).then_some(CONTAINERS_OVERRIDE),
            };
            if let (None, Some(name)) = (used, wanted) {
                // Written to the root so that the next user of the directory finds it.
                let raw = backing.stat(root)?;
                let value = print(Kind::Dir, raw.mode, raw.uid, raw.gid, 0);
                backing.set_xattr(root, name.to_bytes(), value.as_bytes(), XattrFlags::empty())?;
            }
            Ok(used.or(wanted))
        }
    }
}

/// Binds a directory at its first mount: an empty one is fresh, one that another tool filled is bound to the image. The
/// root of a shared one has its attributes already.
fn adopt(
    backing: &dyn Backing,
    root: BorrowedFd,
    namespace: Namespace,
    settings: &Settings,
) -> Result<bool, OpenError> {
    let upper = &settings.upper;
    let fresh =
        matches!(settings.below, Below::Image(_)) && backing.list(root).map_err(failed("read", upper))?.is_empty();
    if !fresh {
        let image = settings.below.mark();
        backing
            .set_xattr(root, namespace.mark(Mark::Image).to_bytes(), image.as_bytes(), XattrFlags::empty())
            .map_err(failed("set xattrs of", upper))?;
    }
    Ok(fresh)
}

/// Starts inode numbers after the last one that a mount reserved. Numbers are reserved on disk before the first one is
/// used.
fn numbers(backing: &dyn Backing, root: BorrowedFd, namespace: Namespace) -> io::Result<Numbers> {
    let name = namespace.mark(Mark::Next).to_bytes();
    let found = backing.get_xattr(root, name)?.and_then(|value| str::from_utf8(&value).ok()?.parse().ok());
    let next: u64 = found.unwrap_or(FIRST_OWN).max(FIRST_OWN);
    Ok(Numbers { next, limit: next })
}

/// Returns this process's umask from /proc: umask(2) cannot read it without changing it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|value| u32::from_str_radix(value.trim(), 8).ok()).unwrap_or(0o777)
}

/// Removes the ACLs of an object.
pub(super) fn clear_acls(backing: &dyn Backing, fd: BorrowedFd) -> io::Result<()> {
    for name in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
        match backing.remove_xattr(fd, name) {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NODATA | Errno::OPNOTSUPP)) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Removes an object and everything below it.
pub(super) fn wipe(backing: &dyn Backing, dir: BorrowedFd, name: &[u8]) -> io::Result<()> {
    match backing.unlink(dir, name) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::ISDIR | Errno::PERM)) => {}
        done => return done,
    }
    match backing.rmdir(dir, name) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        done => return done,
    }
    let inner = backing.open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    for entry in backing.list(inner.as_fd())? {
        wipe(backing, inner.as_fd(), &entry.name)?;
    }
    backing.rmdir(dir, name)
}
