//! A room: a child of ours that is process 1 of a process namespace, and the tree that we serve for it.
//!
//! One process serves and waits; the child does the rest. Each mounts in a namespace of its own, so that nobody else sees
//! any of it, and the kernel takes all of it down when they end: the child is killed with its parent, and with the child
//! all that runs below it.

use super::userns::{self, Mapping, UsernsError};
use crate::fuse::{self, Options};
use crate::image::OpenTree;
use crate::sys::{self, Fork, Namespaces, Received, Signals};
use crate::upper::Upper;
use rustix::io::Errno;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Why a command was not run.
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
    pub fn own(text: impl Into<String>) -> Refusal {
        Refusal { code: 125, text: text.into() }
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

/// What the child says to its parent before it is at work.
pub struct Say(PipeWriter);

impl Say {
    /// Says why there will be no work; gives the code to end with.
    pub fn refuse(&mut self, refusal: &Refusal) -> i32 {
        // If nobody hears it, the code still tells.
        let _unheard = self.0.write_all(refusal.text.as_bytes());
        refusal.code.into()
    }
}

/// A child that waits for the tree.
pub struct Room {
    first: i32,
    /// Closed, it lets the child end.
    go: PipeWriter,
    /// Why there will be no work; closed when the child is at work.
    said: PipeReader,
    /// Closed when the work is done.
    ended: PipeReader,
    signals: Signals,
    at: PathBuf,
}

impl Room {
    /// Makes it. The process must have one thread, and be where [`isolate`] brings it. The child ends with this value.
    ///
    /// `work` is the child's, when the tree is mounted at `at`: it drops what it is given to say something with as soon as
    /// it has nothing to refuse any more, and gives the code that the child ends with.
    pub fn prepare(at: PathBuf, work: impl FnOnce(Say, &Signals) -> i32) -> Result<Room, Refusal> {
        let signals = Signals::block_for_child()?;
        let (wait, go) = io::pipe()?;
        let (said, say) = io::pipe()?;
        let (ended, end) = io::pipe()?;
        match sys::fork_first()? {
            Fork::Parent(first) => Ok(Room { first, go, said, ended, signals, at }),
            Fork::Child => {
                drop((go, said, ended));
                live(wait, end, || work(Say(say), &signals))
            }
        }
    }

    /// Serves the tree until the work in it is done, and gives the code that it ended with. All changes are with the upper
    /// directory then, and nothing of it is mounted or running any more.
    ///
    /// The child's namespace is the last to have the mount, so that the kernel writes back what it still holds when the
    /// child ends. A process that waited for its own mount then, and was killed, could never end.
    pub fn run(self, opened: OpenTree, upper: Option<Upper>, options: &Options) -> Result<i32, Refusal> {
        let fs = opened.into_fs(upper).map_err(|e| Refusal::own(e.to_string()))?;
        let session = fuse::mount(Arc::new(fs), &self.at, options).map_err(|e| Refusal::own(e.to_string()))?;
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

/// The child's whole life. It begins when `wait` says so; if that is closed without a word it ends. At its end it closes
/// `end`, and goes when `wait` is closed: nobody else has the tree mounted by then.
fn live(mut wait: PipeReader, end: PipeWriter, work: impl FnOnce() -> i32) -> ! {
    // First, and then the word: a parent that died in between has closed the pipe.
    if sys::die_with_parent().is_err() || wait.read_exact(&mut [0]).is_err() {
        sys::leave(125);
    }
    let code = work();
    drop(end);
    // However that comes about, it is time.
    let _closed = wait.read(&mut [0]);
    sys::leave(code)
}

/// How the child ended, and why if it did not come to the work.
fn watch(first: i32, mut said: PipeReader, signals: &Signals) -> Result<i32, Refusal> {
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    let code = wait(first, signals)?.code();
    if text.is_empty() {
        return Ok(code);
    }
    Err(Refusal { code: u8::try_from(code).unwrap_or(125), text })
}

/// Returns when the other end is closed.
fn wait_for_end(mut ended: PipeReader) -> io::Result<()> {
    ended.read_to_end(&mut Vec::new()).map(drop)
}

/// Waits for a child, taking in all that dies meanwhile, and passing signals on to it.
pub fn wait(child: i32, signals: &Signals) -> io::Result<sys::Ended> {
    loop {
        match signals.receive()? {
            Received::Child => {
                while let Some((found, ended)) = sys::wait_for_any(false)? {
                    if found == child {
                        return Ok(ended);
                    }
                }
            }
            Received::PassOn(signal) => {
                // It may have ended a moment ago.
                let _gone = sys::kill(child, signal);
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
