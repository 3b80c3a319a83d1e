//! Every system call that std lacks, and all `unsafe` code, behind safe typed wrappers.

mod fd;
mod map;
mod mount;
mod process;

pub use fd::{begin_write_back, get_file_attributes, set_file_attributes, set_nonblocking};
pub use map::{Bytes, map};
pub use mount::{MountFlags, MountedAt, device_of, mount_fuse, mounts, set_read_ahead, unmount};
pub use process::{
    Fork, Signals, close_inherited, describe, detach_from_terminal, fork, is_root, raise_descriptor_limit,
};
