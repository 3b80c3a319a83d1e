//! A container's start, as the one sees it who starts it: a process that keeps the container is forked, and this one
//! waits, passing on what is typed and signalled, until the container has ended or goes on in the background.

use super::log;
use crate::container::keeper::{self, Report, Start};
use crate::container::room::Refusal;
use crate::container::stdio::{Input, Sink, Streams};
use crate::container::{self, control};
use crate::store::Store;
use crate::store::containers::{Container, Held};
use crate::sys::{self, Fork, Received, Signals};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, BufReader, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

/// How a container is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// What it prints goes into its log.
    Background,
    /// What it prints is shown, and goes into its log; it ends when this process does.
    Front {
        /// Whether standard input is passed on.
        input: bool,
    },
}

/// What came of a start.
pub(super) enum Done {
    /// It goes on in the background.
    Goes,
    /// It has ended with this code.
    Ended(i32),
    /// It could not be started.
    Failed(Refusal),
}

/// How many times one asks for the end before this process goes without waiting for it.
const PATIENCE: usize = 3;

/// Starts a container. The process must have one thread.
pub(super) fn start(
    store: &Store,
    container: &Container,
    held: Held,
    runtime: PathBuf,
    way: Way,
) -> anyhow::Result<Done> {
    let (ours, theirs) = UnixStream::pair()?;
    let signals = Signals::block_for_child()?;
    match sys::fork()? {
        Fork::Child => {
            drop(ours);
            let kept = keep(store, container, held, runtime, way, theirs);
            sys::leave(i32::from(kept.is_err()))
        }
        Fork::Parent(_) => {
            // Theirs now.
            drop((theirs, held));
            follow(ours, signals, container, way)
        }
    }
}

/// The keeper's whole life.
fn keep(
    store: &Store,
    container: &Container,
    held: Held,
    runtime: PathBuf,
    way: Way,
    caller: UnixStream,
) -> anyhow::Result<()> {
    let dir = store.container_dir(&container.id);
    let start = Start {
        store: store.clone(),
        container: container.clone(),
        held,
        runtime,
        streams: streams(container, way, &dir.join("log"))?,
        caller,
        attached: way != Way::Background,
    };
    let log_file = File::options().create(true).append(true).open(dir.join("keeper.log"))?;
    sys::close_inherited()?;
    sys::detach_from_terminal(&log_file)?;
    log::become_daemons()?;
    Ok(keeper::keep(start)?)
}

fn streams(container: &Container, way: Way, log: &std::path::Path) -> io::Result<Streams> {
    let terminal = container.is("Tty");
    Ok(match way {
        Way::Background => {
            let log = Some(Arc::new(container::log::open(log)?));
            Streams {
                input: if container.is("OpenStdin") { Input::Open } else { Input::None },
                output: Sink { caller: None, log: log.clone() },
                errors: Sink { caller: None, log },
                terminal,
                size_of: None,
            }
        }
        Way::Front { input } => {
            let opened = container::log::open(log);
            let log = opened.map(Arc::new).inspect_err(|e| tracing::warn!("cannot open {}: {e}", log.display())).ok();
            Streams {
                input: if input { Input::From(own(io::stdin())?) } else { Input::None },
                output: Sink { caller: Some(own(io::stdout())?), log: log.clone() },
                errors: Sink { caller: Some(own(io::stderr())?), log },
                terminal,
                size_of: terminal_of_ours(),
            }
        }
    })
}

/// A descriptor that stays when the process leaves its terminal.
fn own(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// The terminal that this process shows or reads something at.
fn terminal_of_ours() -> Option<OwnedFd> {
    let (out, input) = (io::stdout(), io::stdin());
    let fd = if out.is_terminal() { Some(out.as_fd()) } else { input.is_terminal().then_some(input.as_fd()) };
    fd?.try_clone_to_owned().ok()
}

/// Waits for what becomes of the container.
fn follow(line: UnixStream, signals: Signals, container: &Container, way: Way) -> anyhow::Result<Done> {
    let lost = || anyhow::anyhow!("the process that keeps container {} died", container.short());
    let terminal = match way {
        Way::Front { input: true } if container.is("Tty") => tcgetattr(io::stdin()).ok(),
        _ => None,
    };
    match way {
        Way::Background => signals.let_through()?,
        Way::Front { .. } => pass_on(line.try_clone()?, signals, terminal.clone())?,
    }
    let mut line = BufReader::new(line);
    loop {
        let heard = keeper::hear(&mut line);
        if let Ok(Some(Report::Started)) = heard {
            if way == Way::Background {
                return Ok(Done::Goes);
            }
            make_raw(terminal.as_ref());
            continue;
        }
        restore(terminal.as_ref());
        return Ok(match heard?.ok_or_else(lost)? {
            Report::Failed(refusal) => Done::Failed(refusal),
            Report::Exited(code) => Done::Ended(code),
            Report::Started => Done::Goes,
        });
    }
}

/// Passes signals on, also those of the terminal: the container is not in its foreground.
fn pass_on(line: UnixStream, signals: Signals, terminal: Option<Termios>) -> io::Result<()> {
    let pass_on = move || {
        let mut asked = 0;
        while let Ok(received) = signals.receive() {
            let (Received::PassOn(signal) | Received::FromTerminal(signal)) = received else { continue };
            asked += usize::from(matches!(signal, libc::SIGINT | libc::SIGTERM));
            if asked >= PATIENCE {
                restore(terminal.as_ref());
                // The keeper ends the container when it sees that nobody is here any more.
                std::process::exit(128 + signal);
            }
            if control::send(&line, signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(pass_on).map(drop)
}

/// Has the terminal pass everything on as it is typed.
fn make_raw(terminal: Option<&Termios>) {
    let Some(mut raw) = terminal.cloned() else { return };
    raw.make_raw();
    // A terminal that is gone needs nothing, here and below.
    let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
}

/// Brings the terminal back to what it was.
fn restore(terminal: Option<&Termios>) {
    let _gone = terminal.map(|before| tcsetattr(io::stdin(), OptionalActions::Now, before));
}
