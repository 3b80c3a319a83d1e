//! Chroot: running a command in an image without an OCI runtime.
//!
//! The sandbox's child mounts /proc, /sys and /dev in the image's root file system, starts the command, and reaps
//! processes until the command has exited. This is no security boundary: the command has the host's network and
//! resource limits, and as root it may access the host's devices.

use super::rootfs::Rootfs;
use super::run_error::RunError;
use super::sandbox::{self, StartupPipe};
use super::userns::Mapping;
use super::volumes::{copy_of, copy_of_source};
use super::{User, user};
use crate::store::containers::{Bind, Network, Tmpfs};
use crate::sys::{self, Ended, Fork, Namespaces, Restrictions, Signals};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Device nodes bind-mounted from the host's /dev.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Files bind-mounted read-only from the host, because the command uses the host's network.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// The group ID of pseudoterminals, a mount option of devpts.
const TTY_GROUP: &str = "5";
const CLOSED: Restrictions = Restrictions { read_only: false, no_devices: true, no_programs: true };

/// The parameters of a chroot.
pub struct Plan {
    /// An existing directory, on which the root file system is mounted.
    pub at: PathBuf,
    /// Whether the root file system is writable.
    pub writable: bool,
    /// Bind mounts that the user requested.
    pub binds: Vec<Bind>,
    /// tmpfs mounts that the user requested.
    pub tmpfs: Vec<Tmpfs>,
    /// The network: the host's, or a namespace without any.
    pub network: Network,
    /// A file for the list of the paths that are created only as mount points, as JSON.
    pub made: Option<PathBuf>,
    /// `USER[:GROUP]`, resolved in the image; empty for root.
    pub user: String,
    /// The working directory; created if missing and the root file system is writable.
    pub directory: PathBuf,
    /// The environment; later entries override earlier ones. `HOME` defaults to the user's home directory.
    pub env: Vec<(OsString, OsString)>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The ID mapping returned by [`super::sandbox::isolate`], if the process is in a user namespace.
    pub mapping: Option<Mapping>,
    /// The path returned by [`terminal`], mounted at /dev/console.
    pub terminal: Option<PathBuf>,
}

/// The path of the terminal on standard input, if any. Must be called before [`super::sandbox::isolate`].
pub fn terminal() -> Option<PathBuf> {
    let stdin = io::stdin();
    stdin.is_terminal().then(|| terminal_of(&stdin)).flatten()
}

/// The work of the [`sandbox::Sandbox`]'s child: runs the command and returns its exit code.
pub fn work(plan: &Plan, startup: StartupPipe, signals: &Signals) -> i32 {
    match begin(plan, startup, signals) {
        Ok(command) => sandbox::wait(command, signals).map_or(125, Ended::code),
        Err(code) => code,
    }
}

/// Starts the command and returns its PID. After a failure, reports the error and returns the exit code as `Err`.
fn begin(plan: &Plan, mut startup: StartupPipe, signals: &Signals) -> Result<i32, i32> {
    let (root, user) = prepare(plan).map_err(|error| startup.report(&error))?;
    match sys::fork() {
        Ok(Fork::Parent(command)) => Ok(command),
        Ok(Fork::Child) => sys::leave(startup.report(&run(plan, &root, &user, signals))),
        Err(e) => Err(startup.report(&RunError::own(format!("cannot fork: {}", sys::describe(&e))))),
    }
}

/// Prepares the root file system; returns it and the command's user.
fn prepare(plan: &Plan) -> Result<(Rootfs, User), RunError> {
    let failed = |e: io::Error| RunError::own(format!("cannot open the image: {}", sys::describe(&e)));
    let network = plan.network == Network::None;
    sys::unshare(Namespaces { mount: true, network, ..Namespaces::default() }).map_err(failed)?;
    if network {
        sys::bring_loopback_up().map_err(failed)?;
    }
    let root = Rootfs::open(&plan.at).map_err(failed)?;
    let user = user::resolve(&root, &plan.user).map_err(|e| RunError::own(e.to_string()))?;
    let mounts = Mounts { plan, root, made: RefCell::default() };
    mounts.mount_all()?;
    if let Some(file) = &plan.made {
        let written = serde_json::to_vec(&*mounts.made.borrow()).map_err(io::Error::from);
        let written = written.and_then(|list| std::fs::write(file, list));
        written.map_err(|e| RunError::own(format!("cannot write {}: {}", file.display(), sys::describe(&e))))?;
    }
    if plan.writable {
        let made = mounts.root.make_mountpoint(&plan.directory, true);
        made.map_err(|e| unusable_directory(&plan.directory, &e))?;
    }
    Ok((mounts.root, user))
}

struct Mounts<'a> {
    plan: &'a Plan,
    root: Rootfs,
    /// The paths created as mount points, relative to the root.
    made: RefCell<BTreeSet<String>>,
}

impl Mounts<'_> {
    /// Mounts /proc, /sys and /dev, the user's bind mounts and the network files. Skips a mount whose mount point is
    /// missing and cannot be created, except for the user's bind mounts, which fail.
    fn mount_all(&self) -> Result<(), RunError> {
        let usual = self.proc().and_then(|()| self.sys()).and_then(|()| self.dev());
        usual.map_err(|e| RunError::own(format!("cannot mount /proc, /sys and /dev: {}", sys::describe(&e))))?;
        for bind in &self.plan.binds {
            self.volume(bind)?;
        }
        for tmpfs in &self.plan.tmpfs {
            self.tmpfs(tmpfs)?;
        }
        for path in NETWORK_FILES.iter().filter(|path| !self.plan.binds.iter().any(|bind| bind.target == **path)) {
            // Not fatal: only name resolution may fail.
            let done = copy_of(Path::new(path)).and_then(|file| {
                sys::make_read_only(&file)?;
                self.put(&file, path, false)
            });
            if let Err(error) = done {
                tracing::debug!(%error, "cannot bind the host's {path}");
            }
        }
        Ok(())
    }

    /// Opens a mount point, which is created if it is missing.
    fn mountpoint(&self, at: &str, is_dir: bool) -> io::Result<OwnedFd> {
        let (place, made) = self.root.mountpoint(at, is_dir)?;
        self.made.borrow_mut().extend(made.into_iter().map(|path| path.to_string_lossy().into_owned()));
        Ok(place)
    }

    /// Attaches a mount. Returns false if the mount point is missing and cannot be created.
    fn put(&self, mount: &OwnedFd, at: &str, is_dir: bool) -> io::Result<bool> {
        match self.mountpoint(at, is_dir) {
            Ok(place) => sys::attach(mount, &place).map(|()| true),
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::ROFS | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::ACCESS) => Ok(false),
                _ => Err(e),
            },
        }
    }

    /// Mounts a new procfs, or the host's: in a user namespace the kernel refuses a new procfs if parts of the visible
    /// one are hidden by mounts.
    fn proc(&self) -> io::Result<()> {
        let proc =
            sys::new_file_system("proc", &[("source", "proc")], CLOSED).or_else(|_| copy_of(Path::new("/proc")))?;
        self.put(&proc, "/proc", true).map(drop)
    }

    /// Mounts a new sysfs, or the host's read-only: a new sysfs requires ownership of the network namespace.
    fn sys(&self) -> io::Result<()> {
        let read_only = Restrictions { read_only: true, ..CLOSED };
        let sys = sys::new_file_system("sysfs", &[("source", "sysfs")], read_only).or_else(|_| {
            let copy = copy_of(Path::new("/sys"))?;
            sys::make_read_only(&copy)?;
            Ok::<_, io::Error>(copy)
        })?;
        self.put(&sys, "/sys", true).map(drop)
    }

    fn dev(&self) -> io::Result<()> {
        let settings = [("source", "tmpfs"), ("mode", "755"), ("size", "65536k")];
        let dev = sys::new_file_system("tmpfs", &settings, Restrictions::default())?;
        if !self.put(&dev, "/dev", true)? {
            return Ok(());
        }
        for name in DEVICES {
            self.device(&dev, name, &Path::new("/dev").join(name))?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &dev, name)?;
        }
        let pts = [("source", "devpts"), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", TTY_GROUP)];
        // The mount fails for a group ID that is not mapped in the user namespace.
        let named = if matches!(self.plan.mapping, Some(Mapping::Own { .. })) { &pts[..3] } else { &pts[..] };
        let pts = sys::new_file_system("devpts", named, Restrictions { no_devices: false, ..CLOSED })?;
        attach_dir(&dev, "pts", &pts)?;
        let shm = [("source", "shm"), ("mode", "1777"), ("size", "65536k")];
        attach_dir(&dev, "shm", &sys::new_file_system("tmpfs", &shm, CLOSED)?)?;
        // The IPC namespace is the host's, and in a user namespace a new mqueue mount of it is denied.
        let queues = sys::new_file_system("mqueue", &[("source", "mqueue")], CLOSED);
        if let Ok(queues) = queues.or_else(|_| copy_of(Path::new("/dev/mqueue"))) {
            attach_dir(&dev, "mqueue", &queues)?;
        }
        if let Some(terminal) = &self.plan.terminal {
            self.device(&dev, "console", terminal)?;
        }
        Ok(())
    }

    /// Bind-mounts a device node of the host; does nothing if the host has no such node.
    fn device(&self, dev: &OwnedFd, name: &str, source: &Path) -> io::Result<()> {
        let copy = match copy_of(source) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            copy => copy?,
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dev, name, flags, Mode::from(0o666))?;
        sys::attach(&copy, &file)
    }

    fn volume(&self, bind: &Bind) -> Result<(), RunError> {
        let (copy, is_dir) = copy_of_source(bind)
            .map_err(|e| RunError::own(format!("cannot mount {}: {}", bind.source, sys::describe(&e))))?;
        let placed = self.mountpoint(&bind.target, is_dir).and_then(|place| sys::attach(&copy, &place));
        placed.map_err(|e| not_mounted(&bind.source, &bind.target, &e))
    }

    fn tmpfs(&self, tmpfs: &Tmpfs) -> Result<(), RunError> {
        let settings = tmpfs.options.split(',').filter_map(|option| option.split_once('='));
        let settings: Vec<(&str, &str)> = [("source", "tmpfs")].into_iter().chain(settings).collect();
        let placed = sys::new_file_system("tmpfs", &settings, CLOSED).and_then(|mount| {
            let place = self.mountpoint(&tmpfs.target, true)?;
            sys::attach(&mount, &place)
        });
        placed.map_err(|e| not_mounted("a tmpfs", &tmpfs.target, &e))
    }
}

fn not_mounted(source: &str, target: &str, error: &io::Error) -> RunError {
    let why = match Errno::from_io_error(error) {
        Some(Errno::ROFS) => "the image has no such mount point: create it with --rw".to_owned(),
        _ => sys::describe(error),
    };
    RunError::own(format!("cannot mount {source} at {target}: {why}"))
}

fn attach_dir(dev: &OwnedFd, name: &str, mount: &OwnedFd) -> io::Result<()> {
    rustix::fs::mkdirat(dev, name, Mode::from(0o755))?;
    let place = rustix::fs::openat(dev, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach(mount, &place)
}

fn unusable_directory(path: &Path, error: &io::Error) -> RunError {
    RunError::own(format!("cannot use the working directory {}: {}", path.display(), sys::describe(error)))
}

/// Executes the command in this process. Returns only on failure.
fn run(plan: &Plan, root: &Rootfs, user: &User, signals: &Signals) -> RunError {
    if let Err(e) = sys::enter_root(root.root()) {
        return RunError::own(format!("cannot change the root directory: {}", sys::describe(&e)));
    }
    if let Err(e) = std::env::set_current_dir(&plan.directory) {
        return unusable_directory(&plan.directory, &e);
    }
    rustix::process::umask(Mode::from(0o022));
    let groups = (!matches!(plan.mapping, Some(Mapping::Own { .. }))).then_some(&user.groups[..]);
    if let Err(e) = sys::become_user(user.uid, user.gid, groups) {
        return RunError::own(format!("cannot run as user {}:{}: {}", user.uid, user.gid, why_nobody(plan, &e)));
    }
    let Some((program, arguments)) = plan.command.split_first() else {
        return RunError::own("no command specified".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("HOME", &user.home).envs(plan.env.iter().map(|(k, v)| (k, v)));
    match signals.let_through() {
        Ok(()) => not_executed(program, &command.exec()),
        Err(e) => RunError::own(format!("cannot unblock signals: {}", sys::describe(&e))),
    }
}

fn why_nobody(plan: &Plan, error: &io::Error) -> String {
    match (&plan.mapping, Errno::from_io_error(error)) {
        (Some(Mapping::Own { why }), Some(Errno::INVAL)) => format!("only root is mapped: {why}"),
        (Some(Mapping::Ranges { .. }), Some(Errno::INVAL)) => "the ID exceeds your range in /etc/subuid".to_owned(),
        _ => sys::describe(error),
    }
}

/// The error of a failed execve(2), with Docker's exit codes and messages.
fn not_executed(program: &OsString, error: &io::Error) -> RunError {
    let name = program.to_string_lossy();
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound if !name.contains('/') => (127, "executable file not found in $PATH".to_owned()),
        io::ErrorKind::NotFound => (127, "no such file or directory".to_owned()),
        _ => (126, sys::describe(error).to_lowercase()),
    };
    RunError { exit_code: code, text: format!("exec: {name:?}: {why}") }
}

/// The host path of a terminal's descriptor; `None` if the path names another file, so that it cannot be bind-mounted.
fn terminal_of(fd: &impl AsFd) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).ok()?;
    let (there, here) = (rustix::fs::stat(&path).ok()?, rustix::fs::fstat(fd).ok()?);
    (there.st_rdev == here.st_rdev && there.st_ino == here.st_ino).then_some(path)
}
