//! An image as the root of running programs.
//!
//! What is in an image is found inside of it (`inside`, `user`): its paths and names never lead out to this machine.
//! `userns` gives a plain user root's rights over his own. A `room` is a tree that is served for one child, which works
//! in namespaces of its own: for `chroot` that is the command itself, for a container it is the `runner`.
//!
//! A container: the `keeper` serves its tree; the `runner` in the room makes its `bundle` (`spec`, `volumes`), has a
//! `runtime` start it, and carries what it reads and prints (`stdio`, `log`). Others reach it by signals (`control`), by
//! its files (`reach`, `copy`), and with programs (`exec`).

pub mod bundle;
pub mod chroot;
pub mod control;
pub mod copy;
pub mod exec;
pub mod inside;
pub mod keeper;
pub mod log;
pub mod reach;
pub mod room;
mod runner;
pub mod runtime;
pub mod spec;
pub mod stdio;
pub mod user;
pub mod userns;
mod volumes;
pub mod words;

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
