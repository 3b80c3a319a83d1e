//! Running a command in an image without a runtime.
//!
//! One process serves the tree and waits; its one child, process 1 of a process namespace, does the rest (`room`). Each
//! mounts in a namespace of its own, so that nobody else sees any of it, and the kernel takes all of it down when they
//! end: the child is killed with its parent, and with the child all that runs in the image.
//!
//! This separates programs; it does not lock them in. They have the machine's network, its limits, and as root its
//! devices' rights.

use super::room;
use super::userns::{self, Mapping, UsernsError};
use crate::fuse::{self, Options};
use crate::image::OpenTree;
use crate::store::containers::Bind;
use crate::sys::{self, Fork, Namespaces, Received, Signals};
use crate::upper::Upper;
use rustix::io::Errno;
use std::ffi::OsString;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// What is to be run, and in what.
pub struct Plan {
    /// An existing directory that the tree is mounted over.
    pub at: PathBuf,
    /// Whether the tree can be written.
    pub writable: bool,
    /// What of this machine is mounted in it besides the usual.
    pub binds: Vec<Bind>,
    /// `USER[:GROUP]` of the image; empty for root.
    pub user: String,
    /// The directory to run it in; made if it is not there and the tree can be written.
    pub directory: PathBuf,
    /// The environment, later ones winning. `HOME` is the user's unless it is here.
    pub env: Vec<(OsString, OsString)>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Who is who, if this is in a user namespace; what [`isolate`] gave.
    pub mapping: Option<Mapping>,
    /// The terminal that the command is run at; what [`terminal`] gave.
    pub terminal: Option<PathBuf>,
}

/// Why the command was not run.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The exit code that says so: 126 if it cannot be executed, 127 if it was not found, else 125.
    pub code: u8,
    /// The reason, one line.
    pub text: String,
}

impl Refusal {
    /// Something of ours failed.
    pub(super) fn own(text: String) -> Refusal {
        Refusal { code: 125, text }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::own(sys::describe(&error))
    }
}

/// Takes the process, which must have one thread, into a mount namespace of its own, and where it may not have that, into
/// a user namespace first.
pub fn isolate() -> Result<Option<Mapping>, UsernsError> {
    if !sys::is_root() {
        return userns::enter().map(Some);
    }
    match sys::unshare(Namespaces { mount: true, ..Namespaces::default() }) {
        Ok(()) => sys::isolate_mounts().map(|()| None).map_err(UsernsError::Setup),
        // Root of a container that has no rights over mounts.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => userns::enter().map(Some),
        Err(e) => Err(UsernsError::Setup(e)),
    }
}

/// The terminal that standard input is, if it is one. Asked before [`isolate`].
pub fn terminal() -> Option<PathBuf> {
    let stdin = io::stdin();
    stdin.is_terminal().then(|| room::terminal_of(&stdin)).flatten()
}

/// A command's processes, waiting for the tree.
pub struct Room {
    first: i32,
    /// Closed, it lets the first process end.
    go: PipeWriter,
    /// Why the command was not run; closed when it runs.
    said: PipeReader,
    /// Closed when the command has ended.
    ended: PipeReader,
    signals: Signals,
    plan: Plan,
}

impl Room {
    /// Makes them. The process must have one thread, and be where [`isolate`] brings it. They end with this value.
    pub fn prepare(plan: Plan) -> Result<Room, Refusal> {
        let signals = Signals::block_for_child()?;
        let (wait, go) = io::pipe()?;
        let (said, say) = io::pipe()?;
        let (ended, end) = io::pipe()?;
        match sys::fork_first()? {
            Fork::Parent(first) => Ok(Room { first, go, said, ended, signals, plan }),
            Fork::Child => {
                drop((go, said, ended));
                room::live(&plan, wait, say, end, &signals)
            }
        }
    }

    /// Serves the tree, runs the command in it, and gives the code that it ended with. All changes are with the upper
    /// directory then, and nothing of it is mounted or running any more.
    ///
    /// The child's namespace is the last to have the mount, so that the kernel writes back what it still holds when the
    /// child ends. A process that waited for its own mount then, and was killed, could never end.
    pub fn run(self, opened: OpenTree, upper: Option<Upper>, options: &Options) -> Result<i32, Refusal> {
        let fs = opened.into_fs(upper).map_err(|e| Refusal::own(e.to_string()))?;
        let session = fuse::mount(Arc::new(fs), &self.plan.at, options).map_err(|e| Refusal::own(e.to_string()))?;
        let Room { first, mut go, said, ended, signals, .. } = self;
        let foreground = Foreground::note();
        go.write_all(&[1])?;
        let detach = session.detacher();
        let unmount = std::thread::Builder::new().name("plyfs-unmount".into()).spawn(move || {
            let told = wait_for_end(ended).and_then(|()| detach());
            drop(go);
            told
        })?;
        let done = watch(first, said, &signals);
        if let Some(foreground) = foreground {
            foreground.take_back();
        }
        unmount.join().unwrap_or_else(|_| Err(io::Error::other("the thread that unmounts failed")))?;
        session.run()?;
        done
    }
}

/// How the first process ended, and why if it did not come to the command.
fn watch(first: i32, mut said: PipeReader, signals: &Signals) -> Result<i32, Refusal> {
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    let code = wait(first, signals)?;
    if text.is_empty() {
        return Ok(code);
    }
    Err(Refusal { code: u8::try_from(code).unwrap_or(125), text })
}

/// Returns when the other end is closed.
fn wait_for_end(mut ended: PipeReader) -> io::Result<()> {
    ended.read_to_end(&mut Vec::new()).map(drop)
}

fn wait(first: i32, signals: &Signals) -> io::Result<i32> {
    loop {
        match signals.receive()? {
            Received::Child => {
                while let Some((child, ended)) = sys::wait_for_any(false)? {
                    if child == first {
                        return Ok(ended.code());
                    }
                }
            }
            Received::PassOn(signal) => {
                // It may have ended a moment ago.
                let _gone = sys::kill(first, signal);
            }
            Received::FromTerminal(_) => {}
        }
    }
}

/// This process's group has the terminal. A shell that ran in the image had it last, and it would be nobody's.
struct Foreground(rustix::process::Pid);

impl Foreground {
    fn note() -> Option<Foreground> {
        let own = rustix::process::getpgrp();
        (rustix::termios::tcgetpgrp(io::stdin()).ok()? == own).then_some(Foreground(own))
    }

    fn take_back(self) {
        // A terminal that is gone is no loss.
        let _gone = rustix::termios::tcsetpgrp(io::stdin(), self.0);
    }
}
