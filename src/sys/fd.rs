//! What is asked of an open file by its descriptor.

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
