//! System commands: info, disk usage, garbage collection, fsck, version.

pub(super) mod df;
pub(super) mod info;
pub(super) mod store;
