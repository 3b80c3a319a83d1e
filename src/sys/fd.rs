//! File descriptors: O_NONBLOCK, write-back, file handles and file attributes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets or clears O_NONBLOCK. The flag belongs to the open file description, so all descriptors that share it change.
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

/// Sets whether a descriptor is closed at an exec (FD_CLOEXEC).
pub fn set_close_on_exec(fd: &impl AsFd, on: bool) -> io::Result<()> {
    let flags = if on { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// Makes a descriptor stay open at an exec, by its number; whoever owns it does not notice.
pub fn keep_open_at_exec(number: i32) -> io::Result<()> {
    // SAFETY: F_SETFD touches no memory and leaves the descriptor open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `target` refer to the open file of `source` (dup3(2)): whoever uses `target` goes on with that file.
pub fn replace_descriptor(target: &impl AsFd, source: &impl AsFd) -> io::Result<()> {
    let (target, source) = (target.as_fd().as_raw_fd(), source.as_fd().as_raw_fd());
    // SAFETY: both are open for the length of the call. The owner of `target` keeps a descriptor of that number, which
    // is all that it relies on.
    let done = unsafe { libc::dup3(source, target, libc::O_CLOEXEC) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts write-back of a range of a file, without waiting for it (sync_file_range(2)). Makes nothing durable.
pub fn begin_write_back(fd: &impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (offset as libc::off64_t, length as libc::off64_t);
    // SAFETY: `fd` is open for the length of the call, which touches no memory.
    let done = unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The largest file handle: MAX_HANDLE_SZ of linux/exportfs.h.
const MAX_HANDLE_SIZE: usize = 128;

/// `struct file_handle` of linux/fcntl.h.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE_SIZE],
}

/// Returns the file handle of a directory entry, or with an empty name that of the descriptor's own inode
/// (name_to_handle_at(2)). A file handle distinguishes an inode from earlier and later ones with the same number.
pub fn file_handle(dir: &impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = CString::new(name)?;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut found = FileHandle { bytes: MAX_HANDLE_SIZE as u32, kind: 0, handle: [0; MAX_HANDLE_SIZE] };
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
    Ok(found.handle[..MAX_HANDLE_SIZE.min(found.bytes as usize)].to_vec())
}

/// Returns the `struct fsxattr` of an open file, as bytes (FS_IOC_FSGETXATTR, linux/fs.h).
pub fn get_file_attributes(fd: &impl AsFd) -> io::Result<[u8; 28]> {
    let mut found = [0; 28];
    // SAFETY: `fd` is open for the length of the call, which writes the 28 bytes that its number names.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR, found.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
}

/// Sets the attributes that [`get_file_attributes`] returns (FS_IOC_FSSETXATTR).
pub fn set_file_attributes(fd: &impl AsFd, attributes: &[u8; 28]) -> io::Result<()> {
    // SAFETY: `fd` is open for the length of the call, which reads the 28 bytes that its number names.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSSETXATTR, attributes.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
