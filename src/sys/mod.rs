//! Every system call that std lacks, and all `unsafe` code, behind safe typed wrappers.

mod map;

pub use map::{Bytes, map};
