//! The caller's side of a container's start: forks the monitor, then waits until the container has exited or runs in
//! the background. In the foreground it forwards signals, and sets the terminal to raw mode.

use crate::cli::log;
use crate::container::RunError;
use crate::container::monitor::{self, Report, Start};
use crate::container::streams::{Input, Sink, Streams};
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

/// Whether a container is started in the foreground.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum StartMode {
    /// Detached: output is written to the log.
    Background,
    /// Output is shown and written to the log. The container is killed when this process exits.
    Foreground {
        /// Whether standard input is passed to the container.
        input: bool,
    },
}

/// The result of a start.
pub(in crate::cli) enum Done {
    /// The container runs in the background.
    Detached,
    /// The container has exited with this code.
    Ended(i32),
    /// The container could not be started.
    Failed(RunError),
}

/// The number of SIGINT and SIGTERM signals after which this process exits without waiting for the container.
const MAX_INTERRUPTS: usize = 3;

/// Starts a container. The process must be single-threaded.
pub(in crate::cli) fn start(
    store: &Store,
    container: &Container,
    held: Held,
    runtime: PathBuf,
    mode: StartMode,
) -> anyhow::Result<Done> {
    let (ours, theirs) = UnixStream::pair()?;
    let signals = Signals::block_for_child()?;
    match sys::fork()? {
        Fork::Child => {
            drop(ours);
            let supervised = run_monitor(store, container, held, runtime, mode, theirs);
            sys::leave(i32::from(supervised.is_err()))
        }
        Fork::Parent(_) => {
            // Owned by the monitor now.
            drop((theirs, held));
            follow(ours, signals, container, mode)
        }
    }
}

/// Runs the monitor in the forked child.
fn run_monitor(
    store: &Store,
    container: &Container,
    held: Held,
    runtime: PathBuf,
    mode: StartMode,
    caller: UnixStream,
) -> anyhow::Result<()> {
    let dir = store.container_dir(&container.id);
    let start = Start {
        store: store.clone(),
        container: container.clone(),
        held,
        runtime,
        streams: streams(container, mode, &dir.join("log"))?,
        caller,
        attached: mode != StartMode::Background,
    };
    let log_file = File::options().create(true).append(true).open(dir.join("keeper.log"))?;
    sys::close_inherited()?;
    sys::detach_from_terminal(&log_file)?;
    log::switch_to_daemon()?;
    Ok(monitor::supervise(start)?)
}

fn streams(container: &Container, mode: StartMode, log: &std::path::Path) -> io::Result<Streams> {
    let terminal = container.is("Tty");
    Ok(match mode {
        StartMode::Background => {
            let log = Some(Arc::new(container::log::open(log)?));
            Streams {
                input: if container.is("OpenStdin") { Input::Open } else { Input::None },
                output: Sink { caller: None, log: log.clone() },
                errors: Sink { caller: None, log },
                terminal,
                size_of: None,
            }
        }
        StartMode::Foreground { input } => {
            let opened = container::log::open(log);
            let log = opened.map(Arc::new).inspect_err(|e| tracing::warn!("cannot open {}: {e}", log.display())).ok();
            Streams {
                input: if input { Input::From(own(io::stdin())?) } else { Input::None },
                output: Sink { caller: Some(own(io::stdout())?), log: log.clone() },
                errors: Sink { caller: Some(own(io::stderr())?), log },
                terminal,
                size_of: caller_terminal(),
            }
        }
    })
}

/// Duplicates a standard descriptor, which the monitor keeps when it detaches from the terminal.
fn own(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// The terminal on standard output, or else on standard input.
fn caller_terminal() -> Option<OwnedFd> {
    let (out, input) = (io::stdout(), io::stdin());
    let fd = if out.is_terminal() { Some(out.as_fd()) } else { input.is_terminal().then_some(input.as_fd()) };
    fd?.try_clone_to_owned().ok()
}

/// Reads the monitor's reports until the container has exited, or is running in the background.
fn follow(line: UnixStream, signals: Signals, container: &Container, mode: StartMode) -> anyhow::Result<Done> {
    let lost = || anyhow::anyhow!("the monitor of container {} died", container.short());
    let terminal = match mode {
        StartMode::Foreground { input: true } if container.is("Tty") => tcgetattr(io::stdin()).ok(),
        _ => None,
    };
    match mode {
        StartMode::Background => signals.let_through()?,
        StartMode::Foreground { .. } => forward_signals(line.try_clone()?, signals, terminal.clone())?,
    }
    let mut line = BufReader::new(line);
    loop {
        let report = monitor::read_report(&mut line);
        if let Ok(Some(Report::Started)) = report {
            if mode == StartMode::Background {
                return Ok(Done::Detached);
            }
            set_raw(terminal.as_ref());
            continue;
        }
        restore(terminal.as_ref());
        return Ok(match report?.ok_or_else(lost)? {
            Report::Failed(error) => Done::Failed(error),
            Report::Exited(code) => Done::Ended(code),
            Report::Started => Done::Detached,
        });
    }
}

/// Forwards signals in a thread, also those of the terminal, because the container is not in its foreground process
/// group.
fn forward_signals(line: UnixStream, signals: Signals, terminal: Option<Termios>) -> io::Result<()> {
    let forward_signals = move || {
        let mut interrupts = 0;
        while let Ok(received) = signals.receive() {
            let (Received::PassOn(signal) | Received::FromTerminal(signal)) = received else { continue };
            interrupts += usize::from(matches!(signal, libc::SIGINT | libc::SIGTERM));
            if interrupts >= MAX_INTERRUPTS {
                restore(terminal.as_ref());
                // The container is killed when its init reads end of file from the socket.
                std::process::exit(128 + signal);
            }
            if control::send(&line, signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(forward_signals).map(drop)
}

/// Sets the terminal to raw mode.
fn set_raw(terminal: Option<&Termios>) {
    let Some(mut raw) = terminal.cloned() else { return };
    raw.make_raw();
    // Fails only if the terminal has been closed, here and below.
    let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
}

/// Restores the terminal's settings.
fn restore(terminal: Option<&Termios>) {
    let _gone = terminal.map(|before| tcsetattr(io::stdin(), OptionalActions::Now, before));
}
