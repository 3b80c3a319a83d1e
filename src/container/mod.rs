//! An image as the root of running programs.
//!
//! What is in an image is found inside of it (`inside`, `user`): its paths and names never lead out to this machine.
//! `userns` gives a plain user root's rights over his own, `room` lays out what a command sees beside the image, and
//! `chroot` runs it there. `spec` says in a runtime's words what a container is.

pub mod chroot;
pub mod inside;
mod room;
pub mod spec;
pub mod user;
pub mod userns;

/// For whom a program runs, in numbers of the container.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its home directory; `/` if the image knows none.
    pub home: String,
}
