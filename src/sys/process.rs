//! Processes: user, limits, fork, daemonizing, /proc.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
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
    fork_with(libc::CLONE_NEWPID)
}

/// Forks with the child sharing this process's table of descriptors (CLONE_FILES). What the child opens stays open when
/// it ends, and what either closes is closed for both: neither must drop a descriptor that the other uses.
pub fn fork_sharing_descriptors() -> io::Result<Fork> {
    fork_with(libc::CLONE_FILES)
}

/// Forks with these flags of clone3(2), of which CLONE_VM must not be one.
fn fork_with(flags: i32) -> io::Result<Fork> {
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
    let arguments = Arguments { flags: flags as u64, exit_signal: libc::SIGCHLD as u64, ..Arguments::default() };
    // SAFETY: the call reads as many bytes of live plain data as it is told. Without CLONE_VM and with no stack given
    // it is a fork, sound for the reason given there; handlers that libraries want run at a fork guard the locks of
    // other threads, and there are none.
    match unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&arguments), size_of::<Arguments>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child as i32)),
    }
}

/// Adds to this process's `oom_score_adj`: when memory runs out, the kernel kills it sooner.
pub fn raise_oom_score(by: i32) -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let now: i32 = std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)?;
    std::fs::write(path, (now + by).min(1000).to_string())
}

/// Returns memory that the allocator holds free to the kernel, where the C library can (glibc).
pub fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) releases memory that the allocator itself holds to be free, and is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn require_single_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        return Ok(());
    }
    Err(io::Error::other("cannot fork while other threads are running"))
}

/// Returns the numbers of all open descriptors.
pub fn descriptors() -> io::Result<Vec<i32>> {
    let listed = std::fs::read_dir("/proc/self/fd")?;
    let mut numbers: Vec<i32> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // The list has the descriptor that it was read by, which is closed now.
    // SAFETY: F_GETFD touches no memory, and the error for a closed descriptor is the answer.
    numbers.retain(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0);
    Ok(numbers)
}

/// Closes all descriptors but those for which `keep` returns true. Nothing in this process may own one of the others:
/// they are those of an ended process that shared the table ([`fork_sharing_descriptors`]).
pub fn close_descriptors(keep: impl Fn(i32) -> bool) -> io::Result<()> {
    for number in descriptors()?.into_iter().filter(|number| !keep(*number)) {
        // SAFETY: by this function's contract the number has no owner; one that is closed already is an error without
        // effect.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Takes over a descriptor that an ended process has left open in the shared table ([`fork_sharing_descriptors`]). The
/// process must have ended, and nothing in this one may own the number.
pub fn adopt_descriptor(number: i32) -> OwnedFd {
    // SAFETY: by this function's contract the number has no other owner.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Closes inherited descriptors above 2. A daemon that kept a pipe open would block the reader at its other end.
pub fn close_inherited() -> io::Result<()> {
    for fd in descriptors()?.into_iter().filter(|fd| *fd > 2) {
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
