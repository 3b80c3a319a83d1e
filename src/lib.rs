//! plyfs: a union file system for container images.
//!
//! An image's layers are never unpacked. Each stays one plain tar beside a small index; the indexes are merged into one
//! tree, and a FUSE driver serves that tree. See the README for what it does; this page is the map of how.

// A test that cannot go on says so by panicking.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod cli;
pub mod digest;
pub mod fs;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod meta;
pub mod name;
pub mod reference;
pub mod store;
pub mod sys;
pub mod template;
pub mod tree;
pub mod whiteout;
