//! What the child of a container's room does: it prepares the container in its tree, has the runtime start it, carries
//! its input and output, passes signals on, and waits for its end.
//!
//! The runtime starts the container and goes; the container's first process becomes a child of this one, process 1 here.
//! Whoever kills this process, or the one that serves the tree, thereby kills the container.

use super::control::{self, Deliver};
use super::inside::Inside;
use super::room::{self, Refusal, Say};
use super::spec::{self, Machine, Place};
use super::stdio::{self, Carried, Streams};
use super::userns::Mapping;
use super::{runtime, user, volumes};
use crate::store::Store;
use crate::store::containers::{Container, Held, Network, State, Status};
use crate::sys::{self, Ended, Namespaces, Restrictions, Signals};
use oci_spec::runtime::BoxBuilder;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// One run of a container.
pub struct Job<'a> {
    /// Where it is registered.
    pub store: &'a Store,
    /// Which.
    pub container: &'a Container,
    /// Its lock.
    pub held: &'a Held,
    /// What runs it.
    pub runtime: PathBuf,
    /// Who is who, if this is in a user namespace.
    pub mapping: Option<Mapping>,
    /// The process that serves the tree.
    pub keeper: u32,
    /// What runs before this one made in the tree for mounts only.
    pub made: BTreeSet<String>,
    /// What it reads and prints.
    pub streams: Streams,
    /// Hears `started`, and asks for signals.
    pub caller: UnixStream,
    /// Whether the container ends when the caller goes.
    pub attached: bool,
}

/// The files of this machine that a container has its own of, in its folder and in the container.
pub(super) const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")];

/// Runs the container, and gives the code that it ended with.
pub fn work(job: Job<'_>, mut say: Say, signals: &Signals) -> i32 {
    let (dir, id) = (job.store.container_dir(&job.container.id), job.container.id.clone());
    let code = match begin(job, &dir) {
        Ok((first, carried)) => {
            drop(say);
            let ended = room::wait(first, signals).map_or(125, Ended::code);
            carried.finish();
            ended
        }
        Err(refusal) => say.refuse(&refusal),
    };
    runtime::sweep(&dir, &id);
    code
}

/// Starts the container; gives its first process.
fn begin(job: Job<'_>, dir: &Path) -> Result<(i32, Carried), Refusal> {
    let failed = |what: &'static str| move |e: io::Error| Refusal::own(format!("cannot {what}: {}", sys::describe(&e)));
    sys::unshare(Namespaces { mount: true, ..Namespaces::default() }).map_err(failed("make a mount namespace"))?;
    // The machine's own, to find numbers by that everybody knows.
    let machine = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed("open /proc")(e.into()))?;
    mount_proc().map_err(failed("mount /proc for the runtime"))?;
    std::env::set_current_dir(dir).map_err(failed("enter the container's folder"))?;
    // What a run that was killed left.
    runtime::sweep(dir, &job.container.id);
    let mut made = prepare(&job, dir)?;
    made.extend(job.made.iter().cloned());
    let log = runtime::log(dir);
    let _none = fs::remove_file(&log);
    let mut call = runtime::call(&job.runtime, dir, &log);
    call.args(["run", "--detach", "--bundle", ".", "--pid-file", runtime::PID_FILE]);
    let ends = stdio::give(&job.streams, &mut call).map_err(failed("make pipes"))?;
    call.arg(&job.container.id);
    let child = call
        .spawn()
        .map_err(|e| Refusal::own(format!("cannot run {}: {}", job.runtime.display(), sys::describe(&e))))?;
    // It has our copies of the container's ends.
    drop(call);
    if sys::wait_for(child.id() as i32).map_err(failed("wait for the runtime"))? != Ended::Code(0) {
        return Err(runtime::why(&job.runtime, &log));
    }
    let text = fs::read_to_string(runtime::PID_FILE).map_err(failed("read the container's process number"))?;
    let first = text.trim().parse().map_err(|_| Refusal::own("the runtime gave no process number"))?;
    let Job { held, runtime, keeper, streams, caller, attached, .. } = job;
    let state = State {
        status: Status::Running,
        pid: number_outside(&machine, first).unwrap_or_default(),
        keeper,
        runner: own_number_outside(&machine).unwrap_or_default(),
        started: Some(jiff::Timestamp::now().to_string()),
        runtime: runtime.to_string_lossy().into_owned(),
        made,
        ..State::default()
    };
    held.set_state(&state).map_err(|e| Refusal::own(e.to_string()))?;
    let carried = stdio::carry(streams, ends).map_err(failed("carry input and output"))?;
    be_reached(first, &carried, caller, attached).map_err(failed("listen for signals"))?;
    Ok((first, carried))
}

fn mount_proc() -> io::Result<()> {
    let closed = Restrictions { read_only: false, no_devices: true, no_programs: true };
    let proc = sys::new_file_system("proc", &[("source", "proc")], closed)?;
    let at = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach(&proc, &at)
}

/// Makes the bundle of what the container's folder and its tree have; gives the paths that were made in the tree for
/// mounts only.
fn prepare(job: &Job<'_>, dir: &Path) -> Result<BTreeSet<String>, Refusal> {
    let Job { container, mapping, .. } = job;
    let rootfs = dir.join("rootfs");
    let failed = |what: &str, e: &io::Error| Refusal::own(format!("cannot {what}: {}", sys::describe(e)));
    let root = Inside::open(&rootfs).map_err(|e| failed("enter the image", &e))?;
    let user = user::resolve(&root, text(container, "User")).map_err(|e| Refusal::own(e.to_string()))?;
    let machine = Machine::look().map_err(|e| failed("look at this machine", &e))?;
    write_files(container, dir, &machine).map_err(|e| failed("write the container's files", &e))?;
    let volumes = volumes::make(container, dir, &root).map_err(|e| failed("make the image's volumes", &e))?;
    let unfit = |e: spec::SpecError| Refusal::own(e.to_string());
    let place = Place {
        container,
        user: &user,
        root: &rootfs,
        binds: &spec::bound(container, dir, &volumes).map_err(unfit)?,
        mapping: mapping.as_ref(),
        terminal: job.streams.terminal,
        machine: &machine,
    };
    let mut document = spec::document(&place).map_err(unfit)?;
    if let (Some(size), Some(process)) = (job.streams.size(), document.process_mut()) {
        let size = BoxBuilder::default().height(size.ws_row).width(size.ws_col).build();
        process.set_console_size(size.ok());
    }
    let made = make_mountpoints(&root, &spec::mountpoints(&place))?;
    let directory = Path::new("/").join(text(container, "WorkingDir"));
    if !container.host.read_only {
        let made = root.make_mountpoint(&directory, true);
        made.map_err(|e| failed(&format!("work in the directory {}", directory.display()), &e))?;
    }
    let bytes = serde_json::to_vec(&document).map_err(|e| Refusal::own(format!("cannot write the bundle: {e}")))?;
    fs::write("config.json", bytes).map_err(|e| failed("write the bundle", &e))?;
    Ok(made)
}

/// Makes what is missing for mounts.
fn make_mountpoints(root: &Inside, all: &[(String, bool)]) -> Result<BTreeSet<String>, Refusal> {
    let mut made = BTreeSet::new();
    for (path, is_dir) in all {
        let new = root.make_mountpoint(path, *is_dir);
        let new = new.map_err(|e| Refusal::own(format!("cannot mount at {path}: {}", sys::describe(&e))))?;
        made.extend(new.into_iter().map(|path| path.to_string_lossy().into_owned()));
    }
    Ok(made)
}

/// The network's files: this machine's, as far as the container has its network.
fn write_files(container: &Container, dir: &Path, machine: &Machine) -> io::Result<()> {
    for (name, path) in FILES {
        let text = match (name, container.host.network) {
            ("hostname", _) => format!("{}\n", spec::hostname(container, &machine.hostname)).into_bytes(),
            ("hosts", Network::None) => LOCAL_HOSTS.as_bytes().to_vec(),
            // One that is missing is empty.
            _ => fs::read(path).unwrap_or_default(),
        };
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}

const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

fn text<'a>(container: &'a Container, field: &str) -> &'a str {
    container.config.get(field).and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// Reads a file of the machine's /proc, which this process sees no more.
fn read_outside(machine: &impl AsFd, path: &str) -> Option<String> {
    let file = rustix::fs::openat(machine, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    io::read_to_string(fs::File::from(file)).ok()
}

/// The number that this process has on the machine.
fn own_number_outside(machine: &impl AsFd) -> Option<u32> {
    read_outside(machine, "self/stat")?.split(' ').next()?.parse().ok()
}

/// The number that a child has on the machine.
fn number_outside(machine: &impl AsFd, child: i32) -> Option<u32> {
    let own = own_number_outside(machine)?;
    let children = read_outside(machine, &format!("{own}/task/{own}/children"))?;
    let is_it = |number: &&str| {
        let status = read_outside(machine, &format!("{number}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        // Its number there, then that here, then that in its own namespace.
        numbers.split_whitespace().nth(1).is_some_and(|number| number == child.to_string())
    };
    children.split_whitespace().find(is_it)?.parse().ok()
}

/// Tells the caller that the container runs, and listens to it and to others.
fn be_reached(first: i32, carried: &Carried, caller: UnixStream, attached: bool) -> io::Result<()> {
    let terminal = carried.terminal.clone();
    let deliver: Deliver = Arc::new(move |signal| match &terminal {
        // The kernel tells the container when the size has really changed.
        Some(terminal) if signal == libc::SIGWINCH => terminal.resize(),
        _ => match sys::kill(first, signal) {
            // It has ended a moment ago.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => Ok(()),
            sent => sent,
        },
    });
    control::listen(Arc::clone(&deliver))?;
    // A caller that is gone already is noticed by its end of the line.
    let _gone = (&caller).write_all(b"started\n");
    if attached {
        thread::Builder::new().name("plyfs-caller".into()).spawn(move || {
            let deliver = |signal| {
                if let Err(e) = deliver(signal) {
                    tracing::warn!("cannot send signal {signal}: {}", sys::describe(&e));
                }
            };
            control::each(&caller, deliver);
            deliver(libc::SIGKILL);
        })?;
    }
    Ok(())
}
