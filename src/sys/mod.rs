//! Every system call that std lacks, and all `unsafe` code, behind safe typed wrappers.

mod fd;
mod map;
mod mount;
mod process;

pub use fd::set_nonblocking;
pub use map::{Bytes, map};
pub use mount::{MountedAt, device_of, mounts, set_read_ahead, unmount};
pub use process::{Fork, Signals, close_inherited, describe, detach_from_terminal, fork, is_root};
