//! Kernel file systems by the new mount API (fsopen(2), fsconfig(2), fsmount(2)): EROFS from files, and overlayfs.
//! mount(2) takes one page of options, which the devices of 40 layers exceed.

use super::MountFlags;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Mounts an EROFS image from a file, as a detached read-only mount. `image` is the open file at `path`, which the
/// mount table shows; `devices` are the image's extra devices in their order. ESTALE if `path` is no longer that file.
/// EPERM without CAP_SYS_ADMIN in the initial user namespace, ENODEV if the kernel has no EROFS, ENOTBLK if it mounts
/// EROFS from block devices only (before Linux 6.12).
pub fn mount_erofs(image: &File, path: &Path, devices: &[File], flags: MountFlags) -> io::Result<OwnedFd> {
    let context = Context::open("erofs")?;
    context.set("source", path.as_os_str())?;
    for device in devices {
        context.set("device", OsStr::new(&format!("/proc/self/fd/{}", device.as_raw_fd())))?;
    }
    context.enable("ro")?;
    let mounted = context.mount(MountFlags { write: false, ..flags })?;
    let (ours, there) = (image.metadata()?, std::fs::metadata(path)?);
    if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) { Ok(mounted) } else { Err(Errno::STALE.into()) }
}

/// Directories and options of an overlay mount.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// What the mount table shows as the source.
    pub source: &'a str,
    /// The only lower directory.
    pub lower: &'a Path,
    /// The upper directory.
    pub upper: &'a Path,
    /// The work directory.
    pub work: &'a Path,
    /// Whether nothing is ever synced to disk.
    pub volatile: bool,
    /// Whether the marks are `user.overlay.*` attributes, as in a user namespace. Then the kernel neither redirects
    /// directories nor copies up metadata only.
    pub user: bool,
}

/// Mounts kernel overlayfs as a detached mount.
pub fn mount_overlay(overlay: &Overlay<'_>, flags: MountFlags) -> io::Result<OwnedFd> {
    let context = Context::open("overlay")?;
    context.set("source", OsStr::new(overlay.source))?;
    context.set("lowerdir+", overlay.lower.as_os_str())?;
    context.set("upperdir", &escaped(overlay.upper))?;
    context.set("workdir", &escaped(overlay.work))?;
    if overlay.user {
        context.enable("userxattr")?;
    } else {
        for (key, value) in [("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")] {
            context.set(key, OsStr::new(value))?;
        }
    }
    if overlay.volatile {
        context.enable("volatile")?;
    }
    context.mount(flags)
}

/// Whether kernel overlayfs, in any mount namespace, has mounted a directory as its upper or work directory. Requires
/// CAP_SYS_ADMIN; without it the answer is no.
///
/// The kernel tells nobody, but refuses a second mount with EBUSY (with `index=on`; `ovl_get_upper` in
/// fs/overlayfs/super.c). That check comes first. The next one fails for any directory, because the work directory is
/// on another mount, so nothing is ever mounted or changed.
pub fn is_overlay_upper(path: &Path) -> io::Result<bool> {
    let context = match Context::open("overlay") {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::NODEV)) => return Ok(false),
        opened => opened?,
    };
    let there = path.canonicalize()?;
    let set = |key, value: &OsStr| context.set(key, value);
    set("upperdir", &escaped(&there))?;
    set("workdir", OsStr::new("/proc"))?;
    set("lowerdir", OsStr::new("/proc"))?;
    set("index", OsStr::new("on"))?;
    match context.create() {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => Ok(true),
        _ => Ok(false),
    }
}

/// Escapes a path for the options `upperdir` and `workdir`, from which overlayfs removes backslashes.
fn escaped(path: &Path) -> std::ffi::OsString {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if *byte == b'\\' {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    std::os::unix::ffi::OsStringExt::from_vec(out)
}

/// A file system context.
struct Context(OwnedFd);

impl Context {
    fn open(kind: &str) -> io::Result<Context> {
        Ok(Context(rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    fn set(&self, key: &str, value: &OsStr) -> io::Result<()> {
        fsconfig_set_string(&self.0, key, CString::new(value.as_bytes())?).map_err(|e| self.explained(e))
    }

    fn enable(&self, key: &str) -> io::Result<()> {
        fsconfig_set_flag(&self.0, key).map_err(|e| self.explained(e))
    }

    fn create(&self) -> io::Result<()> {
        fsconfig_create(&self.0).map_err(|e| self.explained(e))
    }

    fn mount(&self, flags: MountFlags) -> io::Result<OwnedFd> {
        self.create()?;
        let bit = |allowed: bool, bit: MountAttrFlags| if allowed { MountAttrFlags::empty() } else { bit };
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME
            | bit(flags.write, MountAttrFlags::MOUNT_ATTR_RDONLY)
            | bit(flags.suid, MountAttrFlags::MOUNT_ATTR_NOSUID)
            | bit(flags.dev, MountAttrFlags::MOUNT_ATTR_NODEV)
            | bit(flags.exec, MountAttrFlags::MOUNT_ATTR_NOEXEC);
        Ok(rustix::mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    }

    /// Logs what the kernel says about an error (fsopen(2): each read returns one message).
    fn explained(&self, error: Errno) -> io::Error {
        if let Ok(mut log) = self.0.try_clone().map(File::from) {
            let mut line = [0; 1024];
            while let Ok(length @ 1..) = log.read(&mut line) {
                tracing::debug!("kernel message: {}", String::from_utf8_lossy(&line[..length]).trim_end());
            }
        }
        error.into()
    }
}

/// Identifies a mount for as long as the machine runs: neither number is used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountId {
    /// The mount's unique ID (STATX_MNT_ID_UNIQUE).
    pub mount: u64,
    /// The ID of its mount namespace (NS_GET_MNTNS_ID).
    pub namespace: u64,
}

/// STATX_MNT_ID_UNIQUE of linux/stat.h (Linux 6.8).
const UNIQUE: rustix::fs::StatxFlags = rustix::fs::StatxFlags::from_bits_retain(0x4000);

/// Returns the ID of the topmost mount at `path`, which is in this process's mount namespace. ENOTTY or EINVAL before
/// Linux 6.11.
pub fn mount_id(path: &Path) -> io::Result<MountId> {
    use rustix::fs::{AtFlags, CWD};
    let found = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW, UNIQUE)?;
    if found.stx_mask & UNIQUE.bits() == 0 {
        return Err(Errno::INVAL.into());
    }
    let namespace = own_namespace()?;
    Ok(MountId { mount: found.stx_mnt_id, namespace })
}

/// Returns the ID of this process's mount namespace.
fn own_namespace() -> io::Result<u64> {
    let own = File::open("/proc/self/ns/mnt")?;
    let mut namespace = 0_u64;
    // SAFETY: the request writes 8 bytes to `namespace`, which outlives the call.
    match unsafe { libc::ioctl(own.as_raw_fd(), NS_GET_MNTNS_ID, &raw mut namespace) } {
        0 => Ok(namespace),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process may ask about the mounts of all mount namespaces: CAP_SYS_ADMIN in the initial user namespace.
fn sees_all_namespaces() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let is_admin = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    is_admin && std::fs::read_link("/proc/self/ns/user").is_ok_and(|own| own.as_os_str() == INITIAL_USER_NAMESPACE)
}

/// The initial user namespace, as `/proc/PID/ns/user` names it (PROC_USER_INIT_INO of linux/proc_ns.h).
pub const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// `_IOR(0xb7, 5, __u64)` of linux/nsfs.h (Linux 6.11).
const NS_GET_MNTNS_ID: libc::Ioctl = 0x8008_b705_u32 as libc::Ioctl;

/// `struct mnt_id_req` of linux/mount.h, in its version of Linux 6.11.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount: u64,
    what: u64,
    namespace: u64,
}

/// Whether a mount exists, in whatever mount namespace. True if this process may not know: to it the kernel says of a
/// mount of another namespace that it does not exist (ENOENT), too.
pub fn is_mounted(id: MountId) -> bool {
    let may_know = own_namespace().is_ok_and(|own| own == id.namespace) || sees_all_namespaces();
    !may_know || has_mount(id)
}

fn has_mount(id: MountId) -> bool {
    const STATMOUNT: libc::c_long = 457;
    let size = size_of::<Request>() as u32;
    // No field is asked for: the answer is only whether the mount exists.
    let request = Request { size, spare: 0, mount: id.mount, what: 0, namespace: id.namespace };
    let mut answer = [0_u64; 128];
    let (request, length) = (&raw const request, size_of_val(&answer));
    // SAFETY: the kernel reads `request`, whose size it is told, and writes at most the size of `answer`; both outlive
    // the call.
    let done = unsafe { libc::syscall(STATMOUNT, request, answer.as_mut_ptr(), length, 0_u32) };
    done == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT)
}
