//! Processes: who we are, going into the background, signals.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Whether the process acts as root (effective user 0), in whatever user namespace it is.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The name of the user with that number, if this machine knows one.
pub fn user_name(uid: u32) -> Option<OsString> {
    let mut buffer = vec![0; 16 << 10];
    let (mut found, mut entry) = (std::ptr::null_mut(), MaybeUninit::<libc::passwd>::uninit());
    // SAFETY: all pointers are to live values of the right type, and the length is the buffer's. `found` is null or points
    // to the entry, which the call has filled then, with pointers to NUL-terminated strings in the buffer.
    unsafe {
        let failed = libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found);
        if failed != 0 || found.is_null() {
            return None;
        }
        Some(OsStr::from_bytes(CStr::from_ptr((*found).pw_name).to_bytes()).to_owned())
    }
}

/// Lets the process open as many descriptors as it may at most, and gives their number.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a live value of the right type.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if done { Ok(limit.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

/// The directory of a process or thread in /proc. `None` for 0, which stands for one without a number in this PID namespace,
/// and where /proc is that of another PID namespace, whose numbers stand for others.
pub fn proc_dir(id: u32) -> Option<PathBuf> {
    static IS_OURS: OnceLock<bool> = OnceLock::new();
    let names_us =
        || std::fs::read_link("/proc/self").is_ok_and(|own| own == Path::new(&std::process::id().to_string()));
    (id != 0 && *IS_OURS.get_or_init(names_us)).then(|| Path::new("/proc").join(id.to_string()))
}

/// The two sides of [`fork`].
pub enum Fork {
    /// The process that was there, and the child's number.
    Parent(i32),
    /// The new one.
    Child,
}

/// Splits the process in two.
///
/// The process must have one thread: locks that another thread held would stay held in the child for ever. That is
/// checked, and more threads are an error.
pub fn fork() -> io::Result<Fork> {
    must_be_alone()?;
    // SAFETY: with one thread, checked above, no lock can be held by a thread that the child lacks, and no other thread
    // can be started meanwhile, as this one is here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child)),
    }
}

/// [`fork`], with the child as process 1 of a new process namespace: when it ends, all others there are killed. This
/// process stays outside, and may start threads.
pub fn fork_first() -> io::Result<Fork> {
    /// `struct clone_args` in its first version (linux/sched.h).
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        unused: [u64; 3],
        exit_signal: u64,
        stack_and_tls: [u64; 3],
    }
    must_be_alone()?;
    let arguments =
        Arguments { flags: libc::CLONE_NEWPID as u64, exit_signal: libc::SIGCHLD as u64, ..Arguments::default() };
    // SAFETY: the call reads as many bytes of live plain data as it is told. Without CLONE_VM and with no stack given it
    // is a fork, sound for the reason given there; handlers that libraries want run at a fork guard the locks of other
    // threads, and there are none.
    match unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&arguments), size_of::<Arguments>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child as i32)),
    }
}

fn must_be_alone() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        return Ok(());
    }
    Err(io::Error::other("cannot make a process of its own with several threads running"))
}

/// Closes the descriptors above standard error that the program was started with. A daemon that kept them would keep
/// whoever reads the other end of a pipe waiting for it.
pub fn close_inherited() -> io::Result<()> {
    let listed = std::fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<i32> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in numbers.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: F_GETFD touches no memory, and close is reached only for a descriptor without FD_CLOEXEC. Everything
        // that the program opens itself has that flag (std and the libraries set it at the open), so such a descriptor
        // came with the exec and no value of the program owns it.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                libc::close(fd);
            }
        }
    }
    Ok(())
}

/// Leaves the terminal and its signals behind: a session of its own, `/` as the working directory, nothing to read, and
/// standard output and error going to `log`.
pub fn detach_from_terminal(log: &File) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    std::env::set_current_dir("/")?;
    // SAFETY: setsid takes nothing; the descriptors given to dup2 are open for the length of the calls, and 0 to 2 are
    // owned by no value of the program (std's handles name them by number only).
    let done = unsafe {
        libc::setsid();
        [(null.as_raw_fd(), 0), (log.as_raw_fd(), 1), (log.as_raw_fd(), 2)]
            .iter()
            .all(|(from, to)| libc::dup2(*from, *to) >= 0)
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

fn is_ignored(signal: i32) -> io::Result<bool> {
    // SAFETY: a sigaction is plain data of integers and pointers, for which zeroes are valid; the call fills the live
    // local and changes nothing, as no new action is given.
    let (failed, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action), action)
    };
    if failed == 0 { Ok(action.sa_sigaction == libc::SIG_IGN) } else { Err(io::Error::last_os_error()) }
}

/// Has a program begin with no signal held back or ignored, whatever this process and its parents did.
pub fn begin_with_all_signals(command: &mut Command) -> &mut Command {
    let reset = || {
        // SAFETY: between fork and exec only such calls are sound as signal handlers may make, and these are; the set is a
        // live local, which sigemptyset initialises. What cannot be reset (SIGKILL, SIGSTOP) fails and stays.
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

/// What whoever runs a program for somebody passes on to it.
const PASSED_ON: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Signals held back from all threads that are started later, and taken by [`Signals::wait`].
pub struct Signals {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

/// A signal that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A child has ended, or several.
    Child,
    /// A signal that is to be passed on.
    PassOn(i32),
    /// One that all processes of the terminal's foreground got: nobody needs to pass it on.
    FromTerminal(i32),
}

impl Signals {
    /// Holds back SIGTERM, SIGINT and SIGHUP. Call before any thread is started, for threads inherit it.
    pub fn block() -> io::Result<Signals> {
        Signals::hold_back(&ENDING)
    }

    /// [`Signals::block`] without those that the program was started to ignore, as by nohup(1) or, in the background of
    /// a script, SIGINT by the shell.
    pub fn block_heeded() -> io::Result<Signals> {
        let mut heeded = Vec::new();
        for signal in ENDING {
            if !is_ignored(signal)? {
                heeded.push(signal);
            }
        }
        Signals::hold_back(&heeded)
    }

    /// Holds back what is to be passed on to a child, the news that one has ended, and what would stop the process for
    /// using the terminal from the background.
    pub fn block_for_child() -> io::Result<Signals> {
        // SAFETY: no handler is set, so none can be wrong; a parent that ignored the signal has handed that down, and
        // then no child could be waited for.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        Signals::hold_back(&[&PASSED_ON[..], &[libc::SIGCHLD, libc::SIGTTOU]].concat())
    }

    fn hold_back(signals: &[i32]) -> io::Result<Signals> {
        // SAFETY: a sigset_t is plain data that sigemptyset and pthread_sigmask initialise before anything reads it; the
        // pointers are to live locals.
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

    /// Has them come to this thread again as they did before.
    pub fn let_through(&self) -> io::Result<()> {
        // SAFETY: the pointer is to a live set that pthread_sigmask itself filled.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) } {
            0 => Ok(()),
            failed => Err(io::Error::from_raw_os_error(failed)),
        }
    }

    /// Waits for the next of them.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        match unsafe { libc::sigwait(&self.set, &mut signal) } {
            0 => Ok(signal),
            failed => Err(io::Error::from_raw_os_error(failed)),
        }
    }

    /// Waits for the next of those of [`Signals::block_for_child`].
    pub fn receive(&self) -> io::Result<Received> {
        loop {
            let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
            // SAFETY: both pointers are to live values of the right type; the call has filled the second if it gives a
            // signal, and its code is an integer whatever the signal.
            let (signal, code) = unsafe {
                match libc::sigwaitinfo(&self.set, info.as_mut_ptr()) {
                    -1 => (-1, 0),
                    signal => (signal, info.assume_init().si_code),
                }
            };
            return Ok(match signal {
                -1 => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(e),
                },
                libc::SIGCHLD => Received::Child,
                libc::SIGTTOU => continue,
                signal if code == libc::SI_KERNEL => Received::FromTerminal(signal),
                signal => Received::PassOn(signal),
            });
        }
    }
}

/// What an error of the system says, without the number that std adds.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

/// Whether an error is about this process, its rights or its limits, and so says nothing of the object.
pub fn is_callers(error: &io::Error) -> bool {
    use rustix::io::Errno as E;
    matches!(E::from_io_error(error), Some(E::ACCESS | E::PERM | E::MFILE | E::NFILE | E::NOMEM | E::INTR))
}
