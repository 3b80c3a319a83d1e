//! The container monitor: the process that serves a running container's root file system and records its exit status.
//!
//! `run` and `start` fork it and read its reports, one a line, from a socket pair:
//!
//! ```text
//! started                  the container is running
//! failed CODE WHY          the container could not be started
//! exited CODE              the container has exited; it is unmounted and all changes are written
//! ```

use super::init::{self, Job};
use super::root::Root;
use super::run_error::RunError;
use super::runtime;
use super::sandbox::{self, Sandbox};
use super::streams::Streams;
use super::userns::Mapping;
use crate::kernel::Engine;
use crate::store::containers::{self, Container, Held, State, Status};
use crate::store::{self, Store};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The parameters of a container's start.
pub struct Start {
    /// The store that has the container.
    pub store: Store,
    /// The container's record.
    pub container: Container,
    /// The container's lock.
    pub held: Held,
    /// The OCI runtime's path.
    pub runtime: PathBuf,
    /// The container's standard streams.
    pub streams: Streams,
    /// The monitor's end of the socket pair with the process that starts the container.
    pub caller: UnixStream,
    /// Whether the container is killed when the caller exits.
    pub attached: bool,
}

/// A report of the monitor to its caller.
#[derive(Debug)]
pub enum Report {
    /// The container is running.
    Started,
    /// The container could not be started.
    Failed(RunError),
    /// The container has exited with this code.
    Exited(i32),
}

/// Starts the container and supervises it until it has exited. The process must be single-threaded and detached from
/// the terminal.
pub fn supervise(start: Start) -> io::Result<()> {
    let Start { store, container, held, runtime, streams, caller, attached } = start;
    let mut reports = caller.try_clone()?;
    let before = containers::state(&store, &container.id).unwrap_or_default();
    let done = run(&store, &container, |mapping| Job {
        store: &store,
        container: &container,
        held: &held,
        runtime,
        mapping,
        monitor: std::process::id(),
        before: before.clone(),
        streams,
        caller,
        attached,
    });
    let text = match &done {
        Ok(code) => format!("exited {code}\n"),
        Err(error) => format!("failed {} {}\n", error.exit_code, error.text.replace('\n', " ")),
    };
    if let Err(error) = &done {
        tracing::error!("{error}");
    }
    let written = record_end(&store, &container, held, before, &done);
    if let Err(error) = &written {
        tracing::error!("{error}");
    }
    // The caller may have exited.
    let _unread = reports.write_all(text.as_bytes());
    written.map_err(io::Error::other)
}

fn run<'a>(
    store: &'a Store,
    container: &Container,
    job: impl FnOnce(Option<Mapping>) -> Job<'a>,
) -> Result<i32, RunError> {
    let mapping = sandbox::isolate().map_err(|e| RunError::own(e.to_string()))?;
    if let Some(Mapping::Own { why }) = &mapping {
        tracing::warn!("only root's user and group ID are available: {why}");
    }
    let job = job(mapping.clone());
    let sandbox =
        Sandbox::prepare(store.container_tree(&container.id), |startup, signals| init::work(job, startup, signals))?;
    // Changes that are removed at the end need no sync to disk.
    serve(store, container, sandbox, mapping.as_ref(), container.host.auto_remove)
}

/// Mounts a container's root file system for a sandbox until the sandbox exits; returns its exit code.
pub(super) fn serve(
    store: &Store,
    container: &Container,
    sandbox: Sandbox,
    mapping: Option<&Mapping>,
    volatile: bool,
) -> Result<i32, RunError> {
    let root = Root {
        store,
        image: &container.image,
        source: &container.reference,
        upper: Some(store.container_upper(&container.id)),
        volatile,
        engine: Engine::of_word(&container.host.engine).unwrap_or_default(),
        mapping,
        scratch: store.container_dir(&container.id).join("scratch"),
    };
    sandbox.run(|at| root.mount(at))
}

/// Records the container's exit, or removes the container if `--rm` was given.
fn record_end(
    store: &Store,
    container: &Container,
    held: Held,
    before: State,
    done: &Result<i32, RunError>,
) -> store::Result<()> {
    // No process of the container is left at this point.
    runtime::sweep(&store.container_dir(&container.id), &container.id);
    // A container that ran before and cannot be started now is kept, with the error in its state.
    if container.host.auto_remove && (done.is_ok() || before.status == Status::Created) {
        let aside = containers::take_out(store, held)?;
        return fs::remove_dir_all(&aside).map_err(store::Error::io("remove", &aside));
    }
    let now = containers::state(store, &container.id)?;
    let state = match done {
        Ok(code) => {
            let finished = Some(jiff::Timestamp::now().to_string());
            State { exit_code: *code, finished, ..now.ended() }
        }
        // As in Docker: the previous status stays, with the new exit code and error.
        Err(error) => {
            let (exit_code, error) = (error.exit_code.into(), error.text.clone());
            State { exit_code, error, made: now.made, ..before }
        }
    };
    held.set_state(&state)
}

/// Reads the next report; `None` if the monitor died without one.
pub fn read_report(line: &mut BufReader<UnixStream>) -> io::Result<Option<Report>> {
    let mut text = String::new();
    line.read_line(&mut text)?;
    let mut words = text.trim_end().splitn(3, ' ');
    let first = words.next().unwrap_or_default();
    let code = words.next().and_then(|code| code.parse::<i32>().ok());
    Ok(match (first, code) {
        ("started", _) => Some(Report::Started),
        ("exited", Some(code)) => Some(Report::Exited(code)),
        ("failed", Some(code)) => {
            let code = u8::try_from(code).unwrap_or(125);
            Some(Report::Failed(RunError { exit_code: code, text: words.next().unwrap_or_default().to_owned() }))
        }
        _ => None,
    })
}
