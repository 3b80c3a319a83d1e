//! Containers and `chroot`: running programs with an image as their root file system.
//!
//! Paths and user names of an image are resolved inside its root and never lead to the host's files (`rootfs`, `user`).
//! `userns` creates a user namespace in which an unprivileged user is root. A `sandbox` is a child process in its own
//! PID and mount namespace, with a root file system that its parent mounts (`root`) and serves: for `chroot` the child runs the command,
//! for a container it is `init`.
//!
//! For a container, the `monitor` serves the root file system. `init`, in the sandbox, writes the OCI `bundle` (`spec`,
//! `volumes`), calls the OCI `runtime`, and copies the standard streams (`streams`, `log`). Other processes send
//! requests to `init` (`control`), access the container's files (`access`, `copy`) and start more processes in it
//! (`exec`). A `step` is one command of a build.

pub mod access;
pub mod bundle;
pub mod chroot;
pub mod control;
pub mod copy;
pub mod exec;
mod init;
pub mod log;
pub mod monitor;
pub mod names;
pub mod probe;
pub mod root;
pub mod rootfs;
mod run_error;
pub mod runtime;
pub mod sandbox;
pub mod signals;
pub mod spec;
pub mod step;
pub mod streams;
pub mod user;
pub mod userns;
mod volumes;

pub use run_error::RunError;

/// The credentials that a program runs with, as IDs inside the container.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct User {
    /// The user ID.
    pub uid: u32,
    /// The primary group ID.
    pub gid: u32,
    /// The supplementary group IDs.
    pub groups: Vec<u32>,
    /// The home directory; `/` if the image's /etc/passwd has none.
    pub home: String,
}
