//! What is asked of an open file by its descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Switches O_NONBLOCK of an open file description: of every descriptor that shares it.
pub fn set_nonblocking(fd: &impl AsFd, on: bool) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `raw` is open for as long as `fd` is borrowed; F_GETFL and F_SETFL touch no memory.
    let done = unsafe {
        let flags = libc::fcntl(raw, libc::F_GETFL);
        let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        libc::fcntl(raw, libc::F_SETFL, flags)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the kernel begin to write a part of a file to the disk, without waiting for the end. Makes nothing durable.
pub fn begin_write_back(fd: &impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (offset as libc::off64_t, length as libc::off64_t);
    // SAFETY: `fd` is open for the length of the call, which touches no memory.
    let done = unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// MAX_HANDLE_SZ of linux/exportfs.h.
const MOST_OF_HANDLE: usize = 128;

/// `struct file_handle` of linux/fcntl.h.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MOST_OF_HANDLE],
}

/// The file handle of a directory's entry, or with an empty name of what the descriptor itself stands for: bytes by
/// which the file system tells an inode from every other that has, had or will have its number (name_to_handle_at(2)).
pub fn file_handle(dir: &impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = CString::new(name)?;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut found = FileHandle { bytes: MOST_OF_HANDLE as u32, kind: 0, handle: [0; MOST_OF_HANDLE] };
    let mut mount = 0;
    // SAFETY: `dir` is open for the length of the call, the name ends with a NUL, and the handle has room for as many
    // bytes as it says.
    let done = unsafe {
        let handle = std::ptr::from_mut(&mut found).cast();
        libc::name_to_handle_at(dir.as_fd().as_raw_fd(), name.as_ptr(), handle, &mut mount, flags)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.handle[..MOST_OF_HANDLE.min(found.bytes as usize)].to_vec())
}

/// `struct fsxattr` of an open file, as bytes (FS_IOC_FSGETXATTR, linux/fs.h).
pub fn get_file_attributes(fd: &impl AsFd) -> io::Result<[u8; 28]> {
    let mut found = [0; 28];
    // SAFETY: `fd` is open for the length of the call, which writes the 28 bytes that its number names.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR, found.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
}

/// Sets what [`get_file_attributes`] gives (FS_IOC_FSSETXATTR).
pub fn set_file_attributes(fd: &impl AsFd, attributes: &[u8; 28]) -> io::Result<()> {
    // SAFETY: `fd` is open for the length of the call, which reads the 28 bytes that its number names.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSSETXATTR, attributes.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
