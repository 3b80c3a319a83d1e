//! Mount commands: `mount`, `umount`, `mounts`, `overlay`, the mount helper, and the mount daemon.

pub(super) mod daemon;
pub(super) mod image;
mod kernel;
pub(super) mod mountpoint;
pub(super) mod options;
pub(super) mod overlay;
pub(super) mod takeover;
