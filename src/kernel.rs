//! The kernel engine: mounts an image by the kernel's own file systems, without a daemon. EROFS serves the image
//! ([`crate::erofs`]), and overlayfs above it takes changes, in the upper directory's usual format.
//!
//! The mount needs Linux 6.12 (EROFS from files) and CAP_SYS_ADMIN in the initial user namespace. It ends when it is
//! unmounted, by whatever program; nothing else is running for it.
//!
//! A plain user cannot mount EROFS. In a user namespace the FUSE engine serves the image read-only, and kernel overlayfs
//! above it takes the changes ([`mount_over`]).

use crate::erofs;
use crate::fs::Fs;
use crate::image::{self, OpenTree};
use crate::store::{Image, Store};
use crate::sys::{self, MountFlags, Overlay};
use crate::upper::{self, OpenError, Upper};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Which engine serves a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The FUSE server of plyfs.
    #[default]
    Fuse,
    /// The kernel: EROFS and overlayfs.
    Kernel,
    /// The kernel where it can, else FUSE.
    Auto,
}

impl Engine {
    /// The word that [`Engine::of_word`] parses.
    pub fn word(self) -> &'static str {
        match self {
            Engine::Fuse => "fuse",
            Engine::Kernel => "kernel",
            Engine::Auto => "auto",
        }
    }

    /// Parses the value of `--engine` and `engine=`.
    pub fn of_word(word: &str) -> Option<Engine> {
        match word {
            "fuse" => Some(Engine::Fuse),
            "kernel" => Some(Engine::Kernel),
            "auto" => Some(Engine::Auto),
            _ => None,
        }
    }
}

/// Why the kernel does not mount an image.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No CAP_SYS_ADMIN in the initial user namespace.
    #[error("the kernel engine needs CAP_SYS_ADMIN in the initial user namespace: use --engine=fuse")]
    NoRights,
    /// The kernel lacks a file system.
    #[error("this kernel has no {0}: use --engine=fuse")]
    Missing(&'static str),
    /// Before Linux 6.12.
    #[error("this kernel mounts EROFS only from block devices (from files since Linux 6.12): use --engine=fuse")]
    NoFiles,
    /// Before Linux 6.5 (apptainer 634, 3596).
    #[error(
        "overlayfs over FUSE, which the kernel engine needs without root, is broken before Linux 6.5: use --engine=fuse"
    )]
    OldOverlay,
    /// A user namespace with a single user ID.
    #[error("the kernel engine needs subordinate IDs (/etc/subuid) without root: use --engine=fuse")]
    OneUser,
    /// The FUSE mount below an overlay.
    #[error("{0}")]
    Lower(String),
    /// The image has what overlayfs would obey.
    #[error("the image has 0:0 devices or overlay.* attributes, which overlayfs would interpret: use --engine=fuse")]
    Marks,
    /// The upper directory has whiteouts in another form.
    #[error("the file system of {} has no whiteout devices, which overlayfs needs: use --engine=fuse", .0.display())]
    Whiteouts(PathBuf),
    /// Another error of a system call.
    #[error("cannot {action} {}: {}", .path.display(), sys::describe(.cause))]
    Io {
        /// The failed action, as a verb.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// The error of the call.
        cause: io::Error,
    },
    /// The upper directory or the image cannot be opened.
    #[error(transparent)]
    Image(#[from] image::Error),
}

impl KernelError {
    /// Whether the FUSE engine can do it instead.
    pub fn is_unsupported(&self) -> bool {
        use KernelError as K;
        matches!(
            self,
            K::NoRights | K::Missing(_) | K::NoFiles | K::OldOverlay | K::OneUser | K::Marks | K::Whiteouts(_)
        ) || matches!(
            self,
            K::Image(image::Error::NoErofs { .. } | image::Error::Upper(OpenError::OwnersInAttributes(_)))
        )
    }
}

/// An upper directory above the image.
pub struct Changes<'a> {
    /// The upper directory.
    pub upper: &'a Path,
    /// The work directory.
    pub work: &'a Path,
    /// Whether nothing is ever synced to disk.
    pub volatile: bool,
}

/// A mount to make.
pub struct Wanted<'a> {
    /// What the mount table shows as the source of an overlay.
    pub source: &'a str,
    /// An empty directory, at which the image is mounted for a moment under an overlay.
    pub scratch: &'a Path,
    /// Where changes are written; without it the mount is read-only.
    pub changes: Option<Changes<'a>>,
    /// Flags of the mount.
    pub flags: MountFlags,
}

/// Mounts an image at a directory.
///
/// With an upper directory: the FUSE engine's code opens it first, which locks it, binds it to the image and completes
/// what a crash interrupted. The lock is held until the mount is attached; from then on the kernel knows that the
/// directory is in use ([`sys::is_overlay_upper`]).
pub fn mount_image(store: &Store, image: &Image, at: &Path, wanted: &Wanted<'_>) -> Result<(), KernelError> {
    let erofs = image::open_erofs(store, image)?;
    let prepare = |changes: &Changes<'_>| {
        if erofs.has_overlay_marks {
            return Err(KernelError::Marks);
        }
        let opened = image::open_tree(store, image)?;
        let upper = image::open_upper(changes.upper.into(), changes.work.into(), &opened.tree, false, &[])?;
        prepare(opened, upper, changes)
    };
    let _locked = wanted.changes.as_ref().map(prepare).transpose()?;
    let lower =
        sys::mount_erofs(&erofs.file, &erofs.path, &erofs.tars, wanted.flags).map_err(|e| failed(e, &erofs.path))?;
    let mounted = match &wanted.changes {
        Some(changes) => {
            attach(&lower, wanted.scratch)?;
            overlaid(wanted, changes, false)?
        }
        None => lower,
    };
    attach(&mounted, at)
}

/// Mounts overlayfs at a directory, over a file system that is mounted at [`Wanted::scratch`], for root of a user
/// namespace: `lower` is the FUSE engine's mount of the image. The upper directory must be held, as the result of
/// [`prepare_native`], as long as the mount.
pub fn mount_over(at: &Path, wanted: &Wanted<'_>, changes: &Changes<'_>) -> Result<(), KernelError> {
    attach(&overlaid(wanted, changes, true)?, at)
}

const NO_FLAGS: MountFlags = MountFlags { write: false, suid: false, dev: false, exec: false };

/// Mounts overlayfs with directories that it creates in the empty directory `scratch`, and unmounts it; `user` in a user
/// namespace.
pub fn probe_overlay(scratch: &Path, user: bool) -> Result<(), KernelError> {
    if user && !is_at_least(6, 5) {
        return Err(KernelError::OldOverlay);
    }
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scratch.join(name));
    for dir in [&lower, &upper, &work] {
        std::fs::create_dir(dir).map_err(io("make", dir))?;
    }
    let overlay = Overlay { source: "plyfs", lower: &lower, upper: &upper, work: &work, volatile: false, user };
    let mounted = sys::mount_overlay(&overlay, NO_FLAGS).map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::NODEV) => KernelError::Missing("overlayfs"),
        Some(Errno::PERM) => KernelError::NoRights,
        _ => io("mount overlayfs with the upper directory", &upper)(e),
    })?;
    drop(mounted);
    Ok(())
}

/// Mounts an empty EROFS image, which it writes to the new file `scratch`, and unmounts it.
pub fn probe_erofs(store: &Store, scratch: &Path) -> Result<(), KernelError> {
    let tree = image::merge_layers(store, &[], "an empty image")?;
    let bytes = erofs::write(&tree, &[]).map_err(|why| KernelError::Lower(why.to_string()))?;
    std::fs::write(scratch, bytes).map_err(io("write", scratch))?;
    let file = std::fs::File::open(scratch).map_err(io("open", scratch))?;
    let mounted = sys::mount_erofs(&file, scratch, &[], NO_FLAGS).map_err(|e| failed(e, scratch))?;
    drop(mounted);
    Ok(())
}

/// Opens an upper directory as the FUSE engine does, for [`mount_over`]. Dropping the result unlocks it.
pub fn prepare_native(store: &Store, image: &Image, changes: &Changes<'_>) -> Result<Fs, KernelError> {
    if !is_at_least(6, 5) {
        return Err(KernelError::OldOverlay);
    }
    let opened = image::open_tree(store, image)?;
    if erofs::has_overlay_marks(&opened.tree).map_err(|why| KernelError::Lower(why.to_string()))? {
        return Err(KernelError::Marks);
    }
    let upper = image::open_native_upper(changes.upper.into(), changes.work.into(), &opened.tree)?;
    prepare(opened, upper, changes)
}

/// Whether the kernel is Linux `major`.`minor` or later.
fn is_at_least(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Prepares an upper directory for kernel overlayfs by the FUSE engine's union of it and the image. Dropping the result
/// unlocks it.
fn prepare(opened: OpenTree, upper: Upper, changes: &Changes<'_>) -> Result<Fs, KernelError> {
    if !upper.has_whiteout_devices() {
        return Err(KernelError::Whiteouts(changes.upper.into()));
    }
    if changes.volatile {
        upper::note_boot(changes.work).map_err(image::Error::from)?;
    }
    Ok(opened.into_fs(Some(upper), None)?)
}

/// Mounts overlayfs over what is mounted at [`Wanted::scratch`], as a detached mount, and detaches the lower one.
fn overlaid(wanted: &Wanted<'_>, changes: &Changes<'_>, user: bool) -> Result<OwnedFd, KernelError> {
    let whole = |path: &Path| path.canonicalize().map_err(io("find", path));
    let mounted = whole(changes.upper).and_then(|upper| Ok((upper, whole(changes.work)?))).and_then(|(upper, work)| {
        let overlay = Overlay {
            source: wanted.source,
            lower: wanted.scratch,
            upper: &upper,
            work: &work,
            volatile: changes.volatile,
            user,
        };
        sys::mount_overlay(&overlay, wanted.flags).map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::NODEV) => KernelError::Missing("overlayfs"),
            _ => io("mount overlayfs with the upper directory", &upper)(e),
        })
    });
    // The overlay has its own reference to the lower mount.
    sys::unmount(wanted.scratch, true).map_err(io("unmount", wanted.scratch))?;
    mounted
}

/// Attaches a detached mount at a directory.
fn attach(mount: &OwnedFd, at: &Path) -> Result<(), KernelError> {
    let dir = rustix::fs::open(at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let attached = dir.map_err(io::Error::from).and_then(|dir| sys::attach(mount, &dir));
    attached.map_err(io("mount at", at))
}

fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> KernelError {
    move |cause| KernelError::Io { action, path: path.to_owned(), cause }
}

fn failed(error: io::Error, image: &Path) -> KernelError {
    match Errno::from_io_error(&error) {
        Some(Errno::PERM) => KernelError::NoRights,
        Some(Errno::NODEV) => KernelError::Missing("EROFS"),
        Some(Errno::NOTBLK) => KernelError::NoFiles,
        _ => io("mount", image)(error),
    }
}
