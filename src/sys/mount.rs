//! Mounts: taking them down, and what the kernel keeps for them.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The device number (`st_dev`) of the file system that is mounted at `path`.
pub fn device_of(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.dev())
}

/// Unmounts what is mounted at `path`. With `detach` it leaves the tree of mounts at once, though files of it may be in
/// use; without, that is EBUSY. A user without the privilege goes through fusermount3, which lets him take down his own.
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
    // It tells its reason in words only; the one that matters is that the mount is in use.
    let said = String::from_utf8_lossy(&output.stderr);
    if said.is_empty() || said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said.lines().next().unwrap_or_default().to_string()))
}

/// Sets how far the kernel reads ahead on the file system with that device number. Only root may.
pub fn set_read_ahead(device: u64, kib: u32) -> io::Result<()> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}
