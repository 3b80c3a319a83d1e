//! File descriptor flags.

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
