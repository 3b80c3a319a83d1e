//! Mounts: mounting FUSE file systems, unmounting, remounting, and the mount table.

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Returns the device number (`st_dev`) of the file system mounted at `path`, without a request to the file system: a
/// process that waits for a request to its own mount and is killed meanwhile could never end.
pub fn device_of(path: &Path) -> io::Result<u64> {
    let known = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(libc::makedev(known.stx_dev_major, known.stx_dev_minor))
}

/// Mount flags, as permissions; see mount(2).
#[derive(Clone, Copy, Debug)]
pub struct MountFlags {
    /// Files can be changed.
    pub write: bool,
    /// Set-id bits and file capabilities work.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs can be run.
    pub exec: bool,
}

/// Mounts a FUSE file system of type `fuse.SUBTYPE` and returns the descriptor of its connection. `options` are those
/// of the kernel (`allow_other`, `default_permissions`). EPERM if the caller may not mount.
pub fn mount_fuse(source: &str, subtype: &str, at: &Path, flags: MountFlags, options: &[&str]) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let (fd, mode) = (device.as_raw_fd(), std::fs::metadata(at)?.mode());
    // SAFETY: neither call takes anything or can fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let own = format!("fd={fd},rootmode={:o},user_id={uid},group_id={gid}", mode & libc::S_IFMT);
    let data = CString::new([&[own.as_str()], options].concat().join(","))?;
    let (source, kind) = (CString::new(source)?, CString::new(format!("fuse.{subtype}"))?);
    let target = CString::new(at.as_os_str().as_bytes())?;
    let bit = |allowed: bool, bit: libc::c_ulong| if allowed { 0 } else { bit };
    // MS_NOATIME: plyfs never writes access times, and the mount table must show that.
    let bits = libc::MS_NOATIME
        | bit(flags.write, libc::MS_RDONLY)
        | bit(flags.suid, libc::MS_NOSUID)
        | bit(flags.dev, libc::MS_NODEV)
        | bit(flags.exec, libc::MS_NOEXEC);
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call.
    match unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), bits, data.as_ptr().cast()) } {
        0 => Ok(device.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mounts a FUSE file system through fusermount3, for a user who may not mount, and returns the descriptor of its
/// connection. `options` are those of mount(8). The error has fusermount3's message.
pub fn mount_fuse_by_helper(at: &Path, options: &[String]) -> io::Result<OwnedFd> {
    let (own, helpers) = UnixStream::pair()?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(options.join(",")).arg("--").arg(at).env("_FUSE_COMMFD", "0");
    // fusermount3 sends the descriptor over the socket that this variable numbers: its standard input.
    let child = command.stdin(OwnedFd::from(helpers)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // The command holds the helper's end; closed, so that the end of fusermount3 is seen here.
    drop(command);
    let received = receive_descriptor(&own);
    let output = child.wait_with_output()?;
    match received? {
        Some(connection) if output.status.success() => Ok(connection),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let refused = said.contains("only allowed if 'user_allow_other' is set");
            Err(io::Error::new(if refused { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other }, said))
        }
    }
}

/// Receives a descriptor over a socket; `None` if the other end is closed.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let (mut byte, mut space) = ([0; 1], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    received?;
    let mut messages = control.drain();
    Ok(messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Unmounts the topmost mount at `path`. With `detach` (MNT_DETACH) a mount in use is removed from the mount tree at
/// once; without, the error is EBUSY. An unprivileged user unmounts through fusermount3, which only allows the user's
/// own mounts.
pub fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: `c_path` is a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(c_path.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EPERM) {
        return Err(error);
    }
    let mut arguments = vec![OsStr::new("-u"), OsStr::new("-q")];
    if detach {
        arguments.push(OsStr::new("-z"));
    }
    let output = Command::new("fusermount3").args(arguments).arg("--").arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    // fusermount3 reports the reason as text only; the one to tell apart is that the mount is in use.
    let said = String::from_utf8_lossy(&output.stderr);
    if said.is_empty() || said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said.lines().next().unwrap_or_default().to_string()))
}

/// The flags of a remount. They replace the flags of the mount, except that without an access time flag that setting
/// stays unchanged. See mount(2).
pub use rustix::mount::MountFlags as RemountFlags;

/// Changes the flags of the mount at `path`; RDONLY also those of the file system at all its mountpoints. EBUSY if it
/// is to become read-only while files are open for writing.
pub fn remount(path: &Path, flags: RemountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}

/// Returns the current flags of the mount at `path`: a remount with these changes nothing.
pub fn remount_flags(path: &Path) -> io::Result<RemountFlags> {
    let all = RemountFlags::RDONLY
        | RemountFlags::NOSUID
        | RemountFlags::NODEV
        | RemountFlags::NOEXEC
        | RemountFlags::SYNCHRONOUS;
    // Of these, ST_* and MS_* are the same bits.
    let bits = rustix::fs::statvfs(path)?.f_flag.bits();
    Ok(RemountFlags::from_bits_truncate(u32::try_from(bits & u64::from(all.bits())).unwrap_or_default()))
}

/// Whether the server of the file system at `path` accepts changes; the mount must be read-write. Probes by removing an
/// extended attribute that does not exist: a read-only server returns EROFS.
pub fn takes_changes(path: &Path) -> bool {
    rustix::fs::removexattr(path, "user.plyfs-remount-probe") != Err(rustix::io::Errno::ROFS)
}

/// Whether the mount at `path` is a FUSE file system whose server has ended (ENOTCONN).
pub fn is_disconnected(path: &Path) -> bool {
    rustix::fs::statfs(path).is_err_and(|e| e == rustix::io::Errno::NOTCONN)
}

/// Sets the kernel's read-ahead for the file system with that device number. Requires root.
pub fn set_read_ahead(device: u64, kib: u32) -> io::Result<()> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}

/// An entry of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedAt {
    /// The device number of the file system (`st_dev`).
    pub device: u64,
    /// The mountpoint.
    pub mountpoint: std::path::PathBuf,
    /// The file system type with its subtype: `fuse.plyfs`.
    pub kind: String,
}

/// Returns the mounts of this process's mount namespace, oldest first (proc_pid_mountinfo(5)).
pub fn mounts() -> io::Result<Vec<MountedAt>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

fn parse_mountinfo(table: &[u8]) -> Vec<MountedAt> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let (major, minor) = str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
        let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
        let mountpoint = unescape(fields.nth(1)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let mountpoint = std::ffi::OsString::from_vec(mountpoint).into();
        Some(MountedAt { device, mountpoint, kind: String::from_utf8_lossy(kind).into_owned() })
    };
    table.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Decodes the kernel's escapes: a backslash and three octal digits for space, tab, newline and backslash.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_parsed() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            40 22 0:38 / /mnt/a\\040b\\134 rw,nosuid shared:1 master:2 - fuse.plyfs deb:1 rw,user_id=0\nshort\n";
        let found = parse_mountinfo(table);
        let at = |device, mountpoint: &str, kind: &str| MountedAt {
            device,
            mountpoint: mountpoint.into(),
            kind: kind.into(),
        };
        let (root, image) = (libc::makedev(254, 0), libc::makedev(0, 38));
        assert_eq!(found, [at(root, "/", "ext4"), at(image, "/mnt/a b\\", "fuse.plyfs")]);
    }
}
