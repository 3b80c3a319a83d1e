//! Every system call that std lacks, and all `unsafe` code, behind safe typed wrappers.

mod fd;
mod map;
mod mount;
mod process;

pub use fd::set_nonblocking;
pub use map::{Bytes, map};
pub use mount::{device_of, set_read_ahead, unmount};
pub use process::{Fork, Signals, describe, detach_from_terminal, fork, is_root};
