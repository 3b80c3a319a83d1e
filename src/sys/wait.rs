//! Children and how they end.

use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::io;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// As a shell tells it: the code, or 128 and the signal.
    pub fn code(self) -> i32 {
        match self {
            Ended::Code(code) => code,
            Ended::Signal(signal) => 128 + signal,
        }
    }
}

/// Waits until that child has ended.
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

/// The next child that has ended, and how. None if none has and `block` does not say to wait, or if there are none.
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

/// None for one that only stopped or goes on.
fn ended(status: WaitStatus) -> Option<Ended> {
    status.exit_status().map(Ended::Code).or(status.terminating_signal().map(Ended::Signal))
}

/// Sends a signal to a process.
pub fn kill(process: i32, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::kill(process, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends a process that [`super::fork`] made, at once: nothing that it has from its parent is run or flushed.
pub fn leave(code: i32) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(code) }
}
