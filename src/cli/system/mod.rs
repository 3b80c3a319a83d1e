//! System commands: disk usage, garbage collection, fsck, version.

pub(super) mod df;
pub(super) mod store;
