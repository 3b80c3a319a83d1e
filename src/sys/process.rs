//! Processes: user, limits, fork, daemonizing, signals.

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

/// Whether the effective user ID is 0, in the current user namespace.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Returns the name of the user with that ID; `None` if the user database has none.
pub fn user_name(uid: u32) -> Option<OsString> {
    let mut buffer = vec![0; 16 << 10];
    let (mut found, mut entry) = (std::ptr::null_mut(), MaybeUninit::<libc::passwd>::uninit());
    // SAFETY: all pointers are to live values of the right type, and the length is the buffer's. `found` is null or
    // points to the entry, which the call has filled then, with pointers to NUL-terminated strings in the buffer.
    unsafe {
        let failed = libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found);
        if failed != 0 || found.is_null() {
            return None;
        }
        Some(OsStr::from_bytes(CStr::from_ptr((*found).pw_name).to_bytes()).to_owned())
    }
}

/// Raises the soft limit of open file descriptors to the hard limit, and returns it.
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

/// Returns the /proc directory of a process or thread. `None` for ID 0, which means that it has no ID in this PID
/// namespace, and if /proc belongs to another PID namespace, where the ID would name another process.
pub fn proc_dir(id: u32) -> Option<PathBuf> {
    static IS_OWN_PROC: OnceLock<bool> = OnceLock::new();
    let has_own_pid =
        || std::fs::read_link("/proc/self").is_ok_and(|own| own == Path::new(&std::process::id().to_string()));
    (id != 0 && *IS_OWN_PROC.get_or_init(has_own_pid)).then(|| Path::new("/proc").join(id.to_string()))
}

/// The result of [`fork`] in each process.
pub enum Fork {
    /// In the parent: the child's PID.
    Parent(i32),
    /// In the child.
    Child,
}

/// Forks the process.
///
/// The process must have a single thread, or locks held by other threads would stay locked in the child. More threads
/// are an error.
pub fn fork() -> io::Result<Fork> {
    require_single_thread()?;
    // SAFETY: with one thread, checked above, no lock can be held by a thread that the child lacks, and no other thread
    // can be started meanwhile, as this one is here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child)),
    }
}

/// Forks with the child as PID 1 of a new PID namespace (clone3(2)): when it ends, the kernel kills all other
/// processes in the namespace. This process stays outside, and may start threads afterwards. See [`fork`].
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
    require_single_thread()?;
    let arguments =
        Arguments { flags: libc::CLONE_NEWPID as u64, exit_signal: libc::SIGCHLD as u64, ..Arguments::default() };
    // SAFETY: the call reads as many bytes of live plain data as it is told. Without CLONE_VM and with no stack given
    // it is a fork, sound for the reason given there; handlers that libraries want run at a fork guard the locks of
    // other threads, and there are none.
    match unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&arguments), size_of::<Arguments>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child as i32)),
    }
}

fn require_single_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        return Ok(());
    }
    Err(io::Error::other("cannot make a process of its own with several threads running"))
}

/// Closes inherited descriptors above 2. A daemon that kept a pipe open would block the reader at its other end.
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

/// Daemonizes the process: new session, working directory `/`, standard input from /dev/null, standard output and
/// error to `log`.
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

/// Returns an I/O error's message without the suffix ` (os error N)`.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

/// Whether an error is about this process, its permissions or its limits, and not about the file.
pub fn is_callers(error: &io::Error) -> bool {
    use rustix::io::Errno as E;
    matches!(E::from_io_error(error), Some(E::ACCESS | E::PERM | E::MFILE | E::NFILE | E::NOMEM | E::INTR))
}
