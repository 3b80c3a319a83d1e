//! The sandbox process: PID 1 of a new PID namespace, whose root file system this process mounts and, with the FUSE
//! engine, serves.
//!
//! The parent mounts the file system and waits; the child does the work. Each has its own mount namespace, so that no
//! other process sees the mounts, and the kernel removes them when both have exited. The child is killed with its
//! parent, and every process in the PID namespace with the child.

use super::root::MountedRoot;
use super::run_error::RunError;
use super::userns::{self, Mapping, UsernsError};
use crate::sys::{self, Fork, Namespaces, Received, Signals};
use rustix::io::Errno;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Moves the process into a new mount namespace; without the privilege for that, into a new user namespace first. The
/// process must be single-threaded.
pub fn isolate() -> Result<Option<Mapping>, UsernsError> {
    if !sys::is_root() {
        return userns::enter().map(Some);
    }
    match sys::unshare(Namespaces { mount: true, ..Namespaces::default() }) {
        Ok(()) => sys::isolate_mounts().map(|()| None).map_err(UsernsError::Setup),
        // Root in a container without CAP_SYS_ADMIN.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => userns::enter().map(Some),
        Err(e) => Err(UsernsError::Setup(e)),
    }
}

/// The pipe on which the child reports a startup error to its parent. Closing it without a report means success.
pub struct StartupPipe(PipeWriter);

impl StartupPipe {
    /// Reports a startup error. Returns the exit code for the child.
    pub fn report(&mut self, error: &RunError) -> i32 {
        // If the parent has died, the exit code still shows the failure.
        let _unread = self.0.write_all(error.text.as_bytes());
        error.exit_code.into()
    }
}

/// A forked child that waits until its root file system is mounted.
pub struct Sandbox {
    pid: i32,
    /// One byte starts the child; closing the pipe lets it exit.
    release: PipeWriter,
    /// The child's startup error; end of file once the work has started.
    startup: PipeReader,
    /// The child closes its end when the work is done.
    ended: PipeReader,
    signals: Signals,
    at: PathBuf,
}

impl Sandbox {
    /// Forks the child. The process must be single-threaded and have called [`isolate`]. Dropping the sandbox ends the
    /// child.
    ///
    /// The child calls `work` when the tree is mounted at `at`. `work` must drop the [`StartupPipe`] once startup has
    /// succeeded, and returns the child's exit code.
    pub fn prepare(at: PathBuf, work: impl FnOnce(StartupPipe, &Signals) -> i32) -> Result<Sandbox, RunError> {
        let signals = Signals::block_for_child()?;
        let (wait, release) = io::pipe()?;
        let (startup, startup_writer) = io::pipe()?;
        let (ended, end) = io::pipe()?;
        match sys::fork_first()? {
            Fork::Parent(pid) => Ok(Sandbox { pid, release, startup, ended, signals, at }),
            Fork::Child => {
                drop((release, startup, ended));
                run_child(wait, end, || work(StartupPipe(startup_writer), &signals))
            }
        }
    }

    /// Mounts the tree by `mount`, keeps it until the work is done, and returns the child's exit code. On return, all
    /// changes are in the upper directory, the tree is unmounted and every process in the sandbox has exited.
    ///
    /// The child's mount namespace is the last one with the mount, so that the kernel writes back its dirty pages when
    /// the child exits. A process that waits for a FUSE mount it serves itself, and is killed, never exits.
    pub fn run(self, mount: impl FnOnce(&Path) -> Result<MountedRoot, RunError>) -> Result<i32, RunError> {
        let MountedRoot { detach, finish } = mount(&self.at)?;
        let Sandbox { pid, mut release, startup, ended, signals, .. } = self;
        let foreground = Foreground::current();
        release.write_all(&[1])?;
        let unmount = std::thread::Builder::new().name("plyfs-unmount".into()).spawn(move || {
            let detached = wait_for_end(ended).and_then(|()| detach());
            drop(release);
            detached
        })?;
        let done = wait_for_child(pid, startup, &signals);
        if let Some(foreground) = foreground {
            foreground.restore();
        }
        unmount.join().unwrap_or_else(|_| Err(io::Error::other("the unmount thread panicked")))?;
        finish()?;
        done
    }
}

/// Runs the child and exits. Starts at the first byte on `wait`; exits with 125 if `wait` is closed without one. After
/// the work, closes `end` and exits when `wait` is closed: by then no other namespace has the tree mounted.
fn run_child(mut wait: PipeReader, end: PipeWriter, work: impl FnOnce() -> i32) -> ! {
    // Before reading `wait`: a parent that died earlier has closed the pipe.
    if sys::die_with_parent().is_err() || wait.read_exact(&mut [0]).is_err() {
        sys::leave(125);
    }
    let code = work();
    drop(end);
    // End of file and errors alike mean that the parent has released the child or died.
    let _closed = wait.read(&mut [0]);
    sys::leave(code)
}

/// Waits for the child. Returns its exit code, or its startup error.
fn wait_for_child(pid: i32, mut startup: PipeReader, signals: &Signals) -> Result<i32, RunError> {
    let mut text = String::new();
    startup.read_to_string(&mut text)?;
    let code = wait(pid, signals)?.code();
    if text.is_empty() {
        return Ok(code);
    }
    Err(RunError { exit_code: u8::try_from(code).unwrap_or(125), text })
}

/// Blocks until the other end of the pipe is closed.
fn wait_for_end(mut ended: PipeReader) -> io::Result<()> {
    ended.read_to_end(&mut Vec::new()).map(drop)
}

/// Waits for a child, reaping every other child that exits meanwhile and forwarding signals to it.
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
                // The child may have exited in between.
                let _gone = sys::kill(child, signal);
            }
            Received::FromTerminal(_) => {}
        }
    }
}

/// The terminal's foreground process group, if it is this process's. A shell in the image makes its own group the
/// foreground group, which no longer exists when the shell has exited.
struct Foreground(rustix::process::Pid);

impl Foreground {
    fn current() -> Option<Foreground> {
        let own = rustix::process::getpgrp();
        (rustix::termios::tcgetpgrp(io::stdin()).ok()? == own).then_some(Foreground(own))
    }

    fn restore(self) {
        // Fails only if the terminal has been closed.
        let _gone = rustix::termios::tcsetpgrp(io::stdin(), self.0);
    }
}
