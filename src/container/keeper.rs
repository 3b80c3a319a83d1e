//! The process that keeps a running container: it serves the container's tree, and when the container has ended it writes
//! down how.
//!
//! It is forked by whoever starts the container, and tells that what becomes of it through a socket pair:
//!
//! ```text
//! started                  it runs
//! failed CODE WHY          it could not be started
//! exited CODE              it has ended, and nothing of it is mounted or unwritten any more
//! ```

use super::room::{self, Refusal, Room};
use super::runner::{self, Job};
use super::runtime;
use super::stdio::Streams;
use super::userns::Mapping;
use crate::fuse::Options;
use crate::image;
use crate::store::containers::{self, Container, Held, State, Status};
use crate::store::{self, Store};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A container that is to be kept.
pub struct Start {
    /// Where it is registered.
    pub store: Store,
    /// Which.
    pub container: Container,
    /// Its lock.
    pub held: Held,
    /// What runs it.
    pub runtime: PathBuf,
    /// What it reads and prints.
    pub streams: Streams,
    /// The keeper's end of the line to who started it.
    pub caller: UnixStream,
    /// Whether the container ends when the caller goes.
    pub attached: bool,
}

/// What becomes of a container.
#[derive(Debug)]
pub enum Report {
    /// It runs.
    Started,
    /// It could not be started.
    Failed(Refusal),
    /// It has ended.
    Exited(i32),
}

/// Keeps the container until it has ended. The process must have one thread, and have left the terminal.
pub fn keep(start: Start) -> io::Result<()> {
    let Start { store, container, held, runtime, streams, caller, attached } = start;
    let mut line = caller.try_clone()?;
    let before = containers::state(&store, &container.id).unwrap_or_default();
    let done = run(&store, &container, |mapping| Job {
        store: &store,
        container: &container,
        held: &held,
        runtime,
        mapping,
        keeper: std::process::id(),
        before: before.clone(),
        streams,
        caller,
        attached,
    });
    let text = match &done {
        Ok(code) => format!("exited {code}\n"),
        Err(refusal) => format!("failed {} {}\n", refusal.code, refusal.text.replace('\n', " ")),
    };
    if let Err(refusal) = &done {
        tracing::error!("{refusal}");
    }
    let written = end(&store, &container, held, before, &done);
    if let Err(error) = &written {
        tracing::error!("{error}");
    }
    // Nobody may be there any more.
    let _unheard = line.write_all(text.as_bytes());
    written.map_err(io::Error::other)
}

fn run<'a>(
    store: &'a Store,
    container: &Container,
    job: impl FnOnce(Option<Mapping>) -> Job<'a>,
) -> Result<i32, Refusal> {
    let mapping = room::isolate().map_err(|e| Refusal::own(e.to_string()))?;
    if let Some(Mapping::Own { why }) = &mapping {
        tracing::warn!("files and programs can belong to root only: {why}");
    }
    let job = job(mapping);
    let room = Room::prepare(store.container_tree(&container.id), |say, signals| runner::work(job, say, signals))?;
    // What is going to be removed need not reach the disk.
    serve(store, container, room, container.host.auto_remove)
}

/// Serves a container's tree for a room, until the work in that is done; gives the code that it ended with.
pub(super) fn serve(store: &Store, container: &Container, room: Room, volatile: bool) -> Result<i32, Refusal> {
    let own = |e: image::Error| Refusal::own(e.to_string());
    let opened = image::open_tree(store, &container.image).map_err(own)?;
    let (upper, work) = store.container_upper(&container.id);
    let upper = image::open_upper(upper, work, &opened.tree, volatile).map_err(own)?;
    // In its namespace the process is root.
    room.run(opened, Some(upper), &Options::for_user(&container.reference, true))
}

/// Writes down how it ended, or removes it if that is wanted.
fn end(
    store: &Store,
    container: &Container,
    held: Held,
    before: State,
    done: &Result<i32, Refusal>,
) -> store::Result<()> {
    // Nothing of it lives any more, however it ended.
    runtime::sweep(&store.container_dir(&container.id), &container.id);
    // What ran before and cannot be started now is kept: somebody may want to know why.
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
        // Docker's too: it stands where it stood, with the code and the reason.
        Err(refusal) => {
            let (exit_code, error) = (refusal.code.into(), refusal.text.clone());
            State { exit_code, error, made: now.made, ..before }
        }
    };
    held.set_state(&state)
}

/// Reads what becomes of a container; none if its keeper died without a word.
pub fn hear(line: &mut BufReader<UnixStream>) -> io::Result<Option<Report>> {
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
            Some(Report::Failed(Refusal { code, text: words.next().unwrap_or_default().to_owned() }))
        }
        _ => None,
    })
}
