//! Running a command in an image without a runtime.
//!
//! The child in its room (`room`) furnishes the image's tree as programs expect it, starts the command in it, and reaps
//! until the command has ended. This separates programs; it does not lock them in. They have the machine's network, its
//! limits, and as root its devices' rights.

use super::inside::Inside;
use super::room::{self, Refusal, Say};
use super::userns::Mapping;
use super::volumes::{copy_of, copy_of_source};
use super::{User, user};
use crate::store::containers::Bind;
use crate::sys::{self, Ended, Fork, Namespaces, Restrictions, Signals};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Nodes of this machine that every program may use.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// How the network is reached is this machine's matter.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// The group of terminals, which devpts gives them.
const TTY_GROUP: &str = "5";
const CLOSED: Restrictions = Restrictions { read_only: false, no_devices: true, no_programs: true };

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
    /// Who is who, if this is in a user namespace; what [`super::room::isolate`] gave.
    pub mapping: Option<Mapping>,
    /// The terminal that the command is run at; what [`terminal`] gave.
    pub terminal: Option<PathBuf>,
}

/// The terminal that standard input is, if it is one. Asked before [`super::room::isolate`].
pub fn terminal() -> Option<PathBuf> {
    let stdin = io::stdin();
    stdin.is_terminal().then(|| terminal_of(&stdin)).flatten()
}

/// What the child of a [`room::Room`] does: runs the command, and gives the code that it ended with.
pub fn work(plan: &Plan, say: Say, signals: &Signals) -> i32 {
    match begin(plan, say, signals) {
        Ok(command) => room::wait(command, signals).map_or(125, Ended::code),
        Err(code) => code,
    }
}

/// Starts the command; the code that says why not if it cannot be.
fn begin(plan: &Plan, mut say: Say, signals: &Signals) -> Result<i32, i32> {
    let (root, user) = prepare(plan).map_err(|refusal| say.refuse(&refusal))?;
    match sys::fork() {
        Ok(Fork::Parent(command)) => Ok(command),
        Ok(Fork::Child) => sys::leave(say.refuse(&run(plan, &root, &user, signals))),
        Err(e) => Err(say.refuse(&Refusal::own(format!("cannot make a process: {}", sys::describe(&e))))),
    }
}

/// Makes the tree ready; gives its root and who the command is to be.
fn prepare(plan: &Plan) -> Result<(Inside, User), Refusal> {
    let failed = |e: io::Error| Refusal::own(format!("cannot enter the image: {}", sys::describe(&e)));
    sys::unshare(Namespaces { mount: true, ..Namespaces::default() }).map_err(failed)?;
    let root = Inside::open(&plan.at).map_err(failed)?;
    let user = user::resolve(&root, &plan.user).map_err(|e| Refusal::own(e.to_string()))?;
    let furniture = Furniture { plan, root };
    furniture.furnish()?;
    if plan.writable {
        let made = furniture.root.make_mountpoint(&plan.directory, true);
        made.map_err(|e| unusable_directory(&plan.directory, &e))?;
    }
    Ok((furniture.root, user))
}

struct Furniture<'a> {
    plan: &'a Plan,
    root: Inside,
}

impl Furniture<'_> {
    /// Mounts what programs expect, and what the user wants. What the image has no place for is left out where it cannot
    /// be made, but not what the user named.
    fn furnish(&self) -> Result<(), Refusal> {
        let usual = self.proc().and_then(|()| self.sys()).and_then(|()| self.dev());
        usual.map_err(|e| Refusal::own(format!("cannot set /proc, /sys and /dev up: {}", sys::describe(&e))))?;
        for bind in &self.plan.binds {
            self.volume(bind)?;
        }
        for path in NETWORK_FILES.iter().filter(|path| !self.plan.binds.iter().any(|bind| bind.target == **path)) {
            // Without it there is one thing less that works.
            let done = copy_of(Path::new(path)).and_then(|file| {
                sys::make_read_only(&file)?;
                self.put(&file, path, false)
            });
            if let Err(error) = done {
                tracing::debug!(%error, "{path} is the image's own");
            }
        }
        Ok(())
    }

    /// Whether there was a place for it.
    fn put(&self, mount: &OwnedFd, at: &str, is_dir: bool) -> io::Result<bool> {
        match self.root.mountpoint(at, is_dir) {
            Ok((place, _)) => sys::attach(mount, &place).map(|()| true),
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::ROFS | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::ACCESS) => Ok(false),
                _ => Err(e),
            },
        }
    }

    /// Where this machine hides parts of its own /proc, the kernel makes no new one for a plain user.
    fn proc(&self) -> io::Result<()> {
        let proc =
            sys::new_file_system("proc", &[("source", "proc")], CLOSED).or_else(|_| copy_of(Path::new("/proc")))?;
        self.put(&proc, "/proc", true).map(drop)
    }

    /// Only who owns the network may mount a new one.
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
        // A group that is nobody's in the user namespace cannot be named.
        let named = if matches!(self.plan.mapping, Some(Mapping::Own { .. })) { &pts[..3] } else { &pts[..] };
        let pts = sys::new_file_system("devpts", named, Restrictions { no_devices: false, ..CLOSED })?;
        attach_dir(&dev, "pts", &pts)?;
        let shm = [("source", "shm"), ("mode", "1777"), ("size", "65536k")];
        attach_dir(&dev, "shm", &sys::new_file_system("tmpfs", &shm, CLOSED)?)?;
        // The queues are this machine's, and not everybody may have them.
        let queues = sys::new_file_system("mqueue", &[("source", "mqueue")], CLOSED);
        if let Ok(queues) = queues.or_else(|_| copy_of(Path::new("/dev/mqueue"))) {
            attach_dir(&dev, "mqueue", &queues)?;
        }
        if let Some(terminal) = &self.plan.terminal {
            self.device(&dev, "console", terminal)?;
        }
        Ok(())
    }

    /// A node of this machine under that name; nothing if this machine lacks it.
    fn device(&self, dev: &OwnedFd, name: &str, source: &Path) -> io::Result<()> {
        let copy = match copy_of(source) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            copy => copy?,
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dev, name, flags, Mode::from(0o666))?;
        sys::attach(&copy, &file)
    }

    fn volume(&self, bind: &Bind) -> Result<(), Refusal> {
        let (copy, is_dir) = copy_of_source(bind)
            .map_err(|e| Refusal::own(format!("cannot mount {}: {}", bind.source, sys::describe(&e))))?;
        let placed = self.root.mountpoint(&bind.target, is_dir).and_then(|(place, _)| sys::attach(&copy, &place));
        placed.map_err(|e| {
            let why = match Errno::from_io_error(&e) {
                Some(Errno::ROFS) => "the image has no such place, and none can be made without --rw".to_owned(),
                _ => sys::describe(&e),
            };
            Refusal::own(format!("cannot mount {} at {}: {why}", bind.source, bind.target))
        })
    }
}

fn attach_dir(dev: &OwnedFd, name: &str, mount: &OwnedFd) -> io::Result<()> {
    rustix::fs::mkdirat(dev, name, Mode::from(0o755))?;
    let place = rustix::fs::openat(dev, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach(mount, &place)
}

fn unusable_directory(path: &Path, error: &io::Error) -> Refusal {
    Refusal::own(format!("cannot work in the directory {}: {}", path.display(), sys::describe(error)))
}

/// Becomes the command; comes back only with why not.
fn run(plan: &Plan, root: &Inside, user: &User, signals: &Signals) -> Refusal {
    if let Err(e) = sys::enter_root(root.root()) {
        return Refusal::own(format!("cannot enter the image: {}", sys::describe(&e)));
    }
    if let Err(e) = std::env::set_current_dir(&plan.directory) {
        return unusable_directory(&plan.directory, &e);
    }
    rustix::process::umask(Mode::from(0o022));
    let groups = (!matches!(plan.mapping, Some(Mapping::Own { .. }))).then_some(&user.groups[..]);
    if let Err(e) = sys::become_user(user.uid, user.gid, groups) {
        return Refusal::own(format!("cannot run as user {}:{}: {}", user.uid, user.gid, why_nobody(plan, &e)));
    }
    let Some((program, arguments)) = plan.command.split_first() else {
        return Refusal::own("no command specified".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("HOME", &user.home).envs(plan.env.iter().map(|(k, v)| (k, v)));
    match signals.let_through() {
        Ok(()) => not_executed(program, &command.exec()),
        Err(e) => Refusal::own(format!("cannot let signals through: {}", sys::describe(&e))),
    }
}

fn why_nobody(plan: &Plan, error: &io::Error) -> String {
    match (&plan.mapping, Errno::from_io_error(error)) {
        (Some(Mapping::Own { why }), Some(Errno::INVAL)) => format!("there is nobody but root: {why}"),
        (Some(Mapping::Ranges { .. }), Some(Errno::INVAL)) => "the number is not among yours in /etc/subuid".to_owned(),
        _ => sys::describe(error),
    }
}

/// Docker's codes and words.
fn not_executed(program: &OsString, error: &io::Error) -> Refusal {
    let name = program.to_string_lossy();
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound if !name.contains('/') => (127, "executable file not found in $PATH".to_owned()),
        io::ErrorKind::NotFound => (127, "no such file or directory".to_owned()),
        _ => (126, sys::describe(error).to_lowercase()),
    };
    Refusal { code, text: format!("exec: {name:?}: {why}") }
}

/// The terminal behind a descriptor as a path of this machine, if it is one that can be mounted elsewhere.
fn terminal_of(fd: &impl AsFd) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).ok()?;
    let (there, here) = (rustix::fs::stat(&path).ok()?, rustix::fs::fstat(fd).ok()?);
    (there.st_rdev == here.st_rdev && there.st_ino == here.st_ino).then_some(path)
}
