//! Child processes: waiting for them, exit status, kill.

use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Exit status of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Exited with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Ended {
    /// Returns the exit code as a shell does: the code, or 128 plus the signal.
    pub fn code(self) -> i32 {
        match self {
            Ended::Code(code) => code,
            Ended::Signal(signal) => 128 + signal,
        }
    }
}

/// Waits until the child has ended.
pub fn wait_for(child: i32) -> io::Result<Ended> {
    loop {
        match rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(found) => {
                if let Some(ended) = found.and_then(|(_, status)| ended(status)) {
                    return Ok(ended);
                }
            }
        }
    }
}

/// Waits for any child; returns its PID and exit status. `None` if there are no children, or, without `block`, if
/// none has ended.
pub fn wait_for_any(block: bool) -> io::Result<Option<(i32, Ended)>> {
    let options = if block { WaitOptions::empty() } else { WaitOptions::NOHANG };
    loop {
        match rustix::process::wait(options) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) | Ok(None) => return Ok(None),
            Err(e) => return Err(e.into()),
            Ok(Some((child, status))) => {
                if let Some(ended) = ended(status) {
                    return Ok(Some((child.as_raw_nonzero().get(), ended)));
                }
            }
        }
    }
}

/// Converts a wait status; `None` if the process was only stopped or continued.
fn ended(status: WaitStatus) -> Option<Ended> {
    status.exit_status().map(Ended::Code).or(status.terminating_signal().map(Ended::Signal))
}

/// Returns a descriptor that is readable once the thread with that ID has ended (pidfd_open(2) with PIDFD_THREAD, Linux
/// 6.9).
pub fn thread_end(thread: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only, and the result, if not -1, is a new descriptor that nothing else owns.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, thread, libc::O_EXCL) {
            -1 => Err(io::Error::last_os_error()),
            number => Ok(OwnedFd::from_raw_fd(number as i32)),
        }
    }
}

/// Sends a signal to a process.
pub fn kill(process: i32, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::kill(process, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Exits a process created by [`super::fork`] at once, without exit handlers or flushing buffers inherited from the
/// parent (_exit(2)).
pub fn leave(code: i32) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(code) }
}
