//! File handles, by which NFS servers and backup programs name inodes: name_to_handle_at(2), open_by_handle_at(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// MAX_HANDLE_SZ of linux/exportfs.h.
const MOST: usize = 128;

/// A handle, as `struct file_handle`.
#[repr(C)]
#[derive(Clone)]
pub struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; MOST],
}

impl FileHandle {
    /// The handle of the inode at a path. Does not follow a symbolic link.
    pub fn of(path: &Path) -> io::Result<FileHandle> {
        let mut handle = FileHandle { bytes: MOST as u32, kind: 0, data: [0; MOST] };
        let (path, mut mount) = (CString::new(path.as_os_str().as_bytes())?, 0);
        // SAFETY: the path ends with a NUL, and the handle has room for as many bytes as it says.
        let done = unsafe {
            let handle = std::ptr::from_mut(&mut handle).cast();
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), handle, &mut mount, 0)
        };
        if done == 0 { Ok(handle) } else { Err(io::Error::last_os_error()) }
    }

    /// Opens the inode of this handle on the mount at `mount`.
    pub fn open(&self, mount: &impl AsRawFd, flags: i32) -> io::Result<OwnedFd> {
        let mut handle = self.clone();
        // SAFETY: the handle has as many bytes as it says; what is returned is a new descriptor.
        unsafe {
            let handle = std::ptr::from_mut(&mut handle).cast();
            match libc::open_by_handle_at(mount.as_raw_fd(), handle, flags | libc::O_CLOEXEC) {
                failed if failed < 0 => Err(io::Error::last_os_error()),
                opened => Ok(OwnedFd::from_raw_fd(opened)),
            }
        }
    }
}
