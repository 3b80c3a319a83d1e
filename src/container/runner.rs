//! What the child of a container's room does: it prepares the container in its tree, has the runtime start it, carries
//! its input and output, passes signals on, and waits for its end.
//!
//! The runtime starts the container and goes; the container's first process becomes a child of this one, process 1 here.
//! Whoever kills this process, or the one that serves the tree, thereby kills the container.

use super::bundle::{self, Wanted};
use super::control::{self, Deliver, Freeze, Request};
use super::room::{self, Refusal, Say};
use super::runtime;
use super::stdio::{self, Carried, Streams};
use super::userns::Mapping;
use crate::store::Store;
use crate::store::containers::{Container, Held, State, Status};
use crate::sys::{self, Ended, Namespaces, Restrictions, Signals};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
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
    /// How it stood before.
    pub before: State,
    /// What it reads and prints.
    pub streams: Streams,
    /// Hears `started`, and asks for signals.
    pub caller: UnixStream,
    /// Whether the container ends when the caller goes.
    pub attached: bool,
}

/// Runs the container, and gives the code that it ended with.
pub fn work(job: Job<'_>, mut say: Say, signals: &Signals) -> i32 {
    let dir = job.store.container_dir(&job.container.id);
    match begin(job, &dir) {
        Ok((first, carried)) => {
            drop(say);
            let ended = room::wait(first, signals).map_or(125, Ended::code);
            carried.finish();
            ended
        }
        Err(refusal) => say.refuse(&refusal),
    }
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
    let wanted = Wanted {
        container: job.container,
        dir,
        root: &job.store.container_tree(&job.container.id),
        mapping: job.mapping.as_ref(),
        own_users: false,
        terminal: job.streams.terminal,
        size: job.streams.size(),
    };
    let mut made = bundle::write(&wanted)?;
    made.extend(job.before.made.iter().cloned());
    if made != job.before.made {
        // Before anything can fail.
        let state = State { made: made.clone(), ..job.before.clone() };
        job.held.set_state(&state).map_err(|e| Refusal::own(e.to_string()))?;
    }
    let log = runtime::log(dir);
    let _none = fs::remove_file(&log);
    let mut call = runtime::call(&job.runtime, dir, &log);
    call.args(["run", "--detach", "--bundle", ".", "--pid-file", runtime::PID_FILE]);
    let ends = stdio::give(&job.streams, &mut call).map_err(failed("make pipes"))?;
    call.arg(&job.container.id);
    // Until the container has its cgroup nobody may remove the one above it.
    let parent = runtime::keep_parent_cgroup();
    let child = call
        .spawn()
        .map_err(|e| Refusal::own(format!("cannot run {}: {}", job.runtime.display(), sys::describe(&e))))?;
    // It has our copies of the container's ends.
    drop(call);
    if sys::wait_for(child.id() as i32).map_err(failed("wait for the runtime"))? != Ended::Code(0) {
        return Err(runtime::why(&job.runtime, &log));
    }
    drop(parent);
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
    let id = job.container.id.clone();
    let freeze: Freeze = Arc::new(move |frozen| runtime::freeze(&id, frozen));
    be_reached(first, &carried, caller, attached, freeze).map_err(failed("listen for signals"))?;
    Ok((first, carried))
}

fn mount_proc() -> io::Result<()> {
    let closed = Restrictions { read_only: false, no_devices: true, no_programs: true };
    let proc = sys::new_file_system("proc", &[("source", "proc")], closed)?;
    let at = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach(&proc, &at)
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
fn be_reached(first: i32, carried: &Carried, caller: UnixStream, attached: bool, freeze: Freeze) -> io::Result<()> {
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
    control::listen(Arc::clone(&deliver), freeze)?;
    // A caller that is gone already is noticed by its end of the line.
    let _gone = (&caller).write_all(b"started\n");
    if attached {
        thread::Builder::new().name("plyfs-caller".into()).spawn(move || {
            let deliver = |signal| {
                if let Err(e) = deliver(signal) {
                    tracing::warn!("cannot send signal {signal}: {}", sys::describe(&e));
                }
            };
            control::each(&caller, |request| match request {
                Request::Kill(signal) => deliver(signal),
                Request::Pause => {}
            });
            deliver(libc::SIGKILL);
        })?;
    }
    Ok(())
}
