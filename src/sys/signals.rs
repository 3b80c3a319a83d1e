//! Signals: blocking and receiving them, forwarding them to a child, and a clean signal mask for programs.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// The signals that end the program.
const TERMINATION_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

fn is_ignored(signal: i32) -> io::Result<bool> {
    // SAFETY: a sigaction is plain data of integers and pointers, for which zeroes are valid; the call fills the live
    // local and changes nothing, as no new action is given.
    let (failed, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action), action)
    };
    if failed == 0 { Ok(action.sa_sigaction == libc::SIG_IGN) } else { Err(io::Error::last_os_error()) }
}

/// Makes the program start with no signal blocked or ignored, whatever it would inherit.
pub fn begin_with_all_signals(command: &mut Command) -> &mut Command {
    let reset = || {
        // SAFETY: between fork and exec only such calls are sound as signal handlers may make, and these are; the set
        // is a live local, which sigemptyset initialises. What cannot be reset (SIGKILL, SIGSTOP) fails and stays.
        let failed = unsafe {
            for signal in 1..=libc::SIGRTMAX() {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut())
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    };
    // SAFETY: the closure allocates nothing and takes no lock, for the reason given in it.
    unsafe { command.pre_exec(reset) }
}

/// The signals to forward to a child.
const FORWARDED_SIGNALS: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Blocked signals, received by [`Signals::wait`]. Threads started later inherit the signal mask.
pub struct Signals {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

/// A received signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// One or more children have ended (SIGCHLD).
    Child,
    /// A signal to forward to the child.
    PassOn(i32),
    /// A signal from the terminal, which the kernel sent to the whole foreground process group: need not be forwarded.
    FromTerminal(i32),
}

impl Signals {
    /// Blocks SIGTERM, SIGINT and SIGHUP. Call it before starting threads, which inherit the signal mask.
    pub fn block() -> io::Result<Signals> {
        Signals::block_set(&TERMINATION_SIGNALS)
    }

    /// As [`Signals::block`], except for signals that are ignored since the program's start: by nohup(1), or SIGINT
    /// in a background job of a shell script.
    pub fn block_heeded() -> io::Result<Signals> {
        let mut not_ignored = Vec::new();
        for signal in TERMINATION_SIGNALS {
            if !is_ignored(signal)? {
                not_ignored.push(signal);
            }
        }
        Signals::block_set(&not_ignored)
    }

    /// Blocks the signals to forward to a child, SIGCHLD, and SIGTTOU, which would stop the process when it uses the
    /// terminal from the background.
    pub fn block_for_child() -> io::Result<Signals> {
        // SAFETY: no handler is set, so none can be wrong; a parent that ignored the signal has handed that down, and
        // then no child could be waited for.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        Signals::block_set(&[&FORWARDED_SIGNALS[..], &[libc::SIGCHLD, libc::SIGTTOU]].concat())
    }

    fn block_set(signals: &[i32]) -> io::Result<Signals> {
        // SAFETY: a sigset_t is plain data that sigemptyset and pthread_sigmask initialise before anything reads it;
        // the pointers are to live locals.
        let (set, before, failed) = unsafe {
            let (mut set, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&mut set);
            for signal in signals {
                libc::sigaddset(&mut set, *signal);
            }
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            (set, before, failed)
        };
        if failed == 0 { Ok(Signals { set, before }) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// Restores this thread's previous signal mask.
    pub fn let_through(&self) -> io::Result<()> {
        // SAFETY: the pointer is to a live set that pthread_sigmask itself filled.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) } {
            0 => Ok(()),
            failed => Err(io::Error::from_raw_os_error(failed)),
        }
    }

    /// Waits for the next of the signals and returns its number.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        match unsafe { libc::sigwait(&self.set, &mut signal) } {
            0 => Ok(signal),
            failed => Err(io::Error::from_raw_os_error(failed)),
        }
    }

    /// Waits for the next signal after [`Signals::block_for_child`]. Discards SIGTTOU.
    pub fn receive(&self) -> io::Result<Received> {
        loop {
            if let Some(received) = self.receive_within(None)? {
                return Ok(received);
            }
        }
    }

    /// Waits until one of the signals is pending, which is not received, or one of the descriptors is readable, or the
    /// limit is over.
    pub fn wait_or_readable(&self, others: &[&OwnedFd], limit: Option<Duration>) -> io::Result<()> {
        // SAFETY: the set is live plain data, and the result, if not -1, is a new descriptor that nothing else owns.
        let pending = unsafe {
            match libc::signalfd(-1, &self.set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => return Err(io::Error::last_os_error()),
                number => OwnedFd::from_raw_fd(number),
            }
        };
        let all = others.iter().copied().chain([&pending]);
        let mut polled: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The same as [`Signals::receive`], but waits no longer than the limit, and returns `None` then.
    pub fn receive_within(&self, limit: Option<Duration>) -> io::Result<Option<Received>> {
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.map(|left| libc::timespec {
                tv_sec: left.as_secs() as libc::time_t,
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
            // SAFETY: the pointers are to live values of the right type, or null for no limit; the call has filled the
            // second if it gives a signal, and its code is an integer whatever the signal.
            let (signal, code) = unsafe {
                let limit = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
                match libc::sigtimedwait(&self.set, info.as_mut_ptr(), limit) {
                    -1 => (-1, 0),
                    signal => (signal, info.assume_init().si_code),
                }
            };
            return Ok(Some(match signal {
                -1 => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    e => return Err(e),
                },
                libc::SIGCHLD => Received::Child,
                libc::SIGTTOU => continue,
                signal if code == libc::SI_KERNEL => Received::FromTerminal(signal),
                signal => Received::PassOn(signal),
            }));
        }
    }
}
