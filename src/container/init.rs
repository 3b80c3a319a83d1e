//! The container's init: PID 1 of its sandbox, which calls the OCI runtime, copies the standard streams, forwards
//! signals and waits for the container to exit.
//!
//! The runtime starts the container and exits, and the container's first process is reparented to this one. Killing
//! this process or the monitor kills the container.

use super::bundle::{self, Wanted};
use super::control::{self, Deliver, Freeze, Request};
use super::run_error::RunError;
use super::runtime;
use super::sandbox::{self, StartupPipe};
use super::streams::{self, RunningStreams, Streams};
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
    /// The store that has the container.
    pub store: &'a Store,
    /// The container's record.
    pub container: &'a Container,
    /// The container's lock.
    pub held: &'a Held,
    /// The OCI runtime's path.
    pub runtime: PathBuf,
    /// The ID mapping, if the process is in a user namespace.
    pub mapping: Option<Mapping>,
    /// The PID of the monitor.
    pub monitor: u32,
    /// The container's state before this run.
    pub before: State,
    /// The container's standard streams.
    pub streams: Streams,
    /// The socket on which `started` is reported and signal requests arrive.
    pub caller: UnixStream,
    /// Whether the container is killed when the caller exits.
    pub attached: bool,
}

/// Runs the container and returns its exit code.
pub fn work(job: Job<'_>, mut startup: StartupPipe, signals: &Signals) -> i32 {
    let dir = job.store.container_dir(&job.container.id);
    match begin(job, &dir) {
        Ok((first, running)) => {
            drop(startup);
            let ended = sandbox::wait(first, signals).map_or(125, Ended::code);
            running.finish();
            ended
        }
        Err(error) => startup.report(&error),
    }
}

/// Starts the container; returns the PID of its first process.
fn begin(job: Job<'_>, dir: &Path) -> Result<(i32, RunningStreams), RunError> {
    let failed =
        |what: &'static str| move |e: io::Error| RunError::own(format!("cannot {what}: {}", sys::describe(&e)));
    sys::unshare(Namespaces { mount: true, ..Namespaces::default() }).map_err(failed("create a mount namespace"))?;
    // The host's /proc, to look up PIDs in the host's PID namespace.
    let host_proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed("open /proc")(e.into()))?;
    mount_proc().map_err(failed("mount /proc for the runtime"))?;
    std::env::set_current_dir(dir).map_err(failed("change to the container's directory"))?;
    // Removes leftovers of a run that was killed.
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
        // Recorded before anything can fail, or `diff` and `commit` would list the mount points.
        let state = State { made: made.clone(), ..job.before.clone() };
        job.held.set_state(&state).map_err(|e| RunError::own(e.to_string()))?;
    }
    let mut ends = None;
    let first = runtime::start(&job.runtime, dir, &job.container.id, |call| {
        ends = Some(streams::create(&job.streams, call).map_err(failed("create pipes"))?);
        Ok(())
    })?;
    let ends = ends.ok_or_else(|| RunError::own("the container has no streams"))?;
    let Job { held, runtime, monitor, streams, caller, attached, .. } = job;
    let state = State {
        status: Status::Running,
        pid: host_pid_of_child(&host_proc, first).unwrap_or_default(),
        monitor,
        init: own_host_pid(&host_proc).unwrap_or_default(),
        started: Some(jiff::Timestamp::now().to_string()),
        runtime: runtime.to_string_lossy().into_owned(),
        made,
        ..State::default()
    };
    held.set_state(&state).map_err(|e| RunError::own(e.to_string()))?;
    let running = streams::start(streams, ends).map_err(failed("copy input and output"))?;
    let id = job.container.id.clone();
    let freeze: Freeze = Arc::new(move |frozen| runtime::freeze(&id, frozen));
    serve_requests(first, &running, caller, attached, freeze).map_err(failed("serve the control socket"))?;
    Ok((first, running))
}

pub(super) fn mount_proc() -> io::Result<()> {
    let closed = Restrictions { read_only: false, no_devices: true, no_programs: true };
    let proc = sys::new_file_system("proc", &[("source", "proc")], closed)?;
    let at = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach(&proc, &at)
}

/// Reads a file of the host's /proc, which is hidden in this mount namespace.
fn read_host_proc(host_proc: &impl AsFd, path: &str) -> Option<String> {
    let file = rustix::fs::openat(host_proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    io::read_to_string(fs::File::from(file)).ok()
}

/// This process's PID in the host's PID namespace.
fn own_host_pid(host_proc: &impl AsFd) -> Option<u32> {
    read_host_proc(host_proc, "self/stat")?.split(' ').next()?.parse().ok()
}

/// A child's PID in the host's PID namespace.
fn host_pid_of_child(host_proc: &impl AsFd, child: i32) -> Option<u32> {
    let own = own_host_pid(host_proc)?;
    let children = read_host_proc(host_proc, &format!("{own}/task/{own}/children"))?;
    let is_it = |number: &&str| {
        let status = read_host_proc(host_proc, &format!("{number}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        // NSpid lists the PID on the host, in this PID namespace, and in the container's.
        numbers.split_whitespace().nth(1).is_some_and(|number| number == child.to_string())
    };
    children.split_whitespace().find(is_it)?.parse().ok()
}

/// Reports `started` to the caller, and serves requests from the caller and from the control socket in threads.
fn serve_requests(
    first: i32,
    running: &RunningStreams,
    caller: UnixStream,
    attached: bool,
    freeze: Freeze,
) -> io::Result<()> {
    let terminal = running.terminal.clone();
    let deliver: Deliver = Arc::new(move |signal| match &terminal {
        // The kernel sends SIGWINCH to the container if the size has changed.
        Some(terminal) if signal == libc::SIGWINCH => terminal.resize(),
        _ => match sys::kill(first, signal) {
            // The container has just exited.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::SRCH) => Ok(()),
            sent => sent,
        },
    });
    control::listen(Arc::clone(&deliver), freeze)?;
    // If the caller has exited, reading the socket below returns end of file.
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
