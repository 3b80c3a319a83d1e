//! `stop`, `kill`, `wait` and `rm`: the end of a container's life cycle.

use crate::cli::mount::daemon::leave_to_child;
use crate::cli::mount::image as mount;
use crate::cli::output::stdout as output;
use crate::cli::{Exit, Global, usage_errors};
use crate::container::{control, runtime, signals, userns};
use crate::store::containers::{self, Container, Status};
use crate::store::{Error, Store, containers::Held};
use crate::sys;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
#[command(override_usage = "plyfs stop [OPTIONS] CONTAINER...")]
#[command(after_help = "Example:\n  plyfs stop -t 30 web")]
pub(in crate::cli) struct StopArgs {
    /// Seconds to wait before killing the container
    #[arg(short, long, alias = "timeout", value_name = "SECONDS", default_value_t = 10)]
    time: u64,
    /// Signal to send to the container [default: the container's, or SIGTERM]
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs kill [OPTIONS] CONTAINER...")]
#[command(after_help = "Example:\n  plyfs kill -s HUP web")]
pub(in crate::cli) struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs wait CONTAINER...")]
#[command(after_help = "Prints the exit code of each container.\n\nExample:\n  plyfs wait web")]
pub(in crate::cli) struct WaitArgs {
    /// Containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs rm [OPTIONS] CONTAINER...")]
#[command(
    after_help = "The container's changes and anonymous volumes are deleted.\n\nExamples:\n  plyfs rm web\n  plyfs rm -f $(plyfs ps -aq)"
)]
pub(in crate::cli) struct RmArgs {
    /// Kill running containers first, and ignore missing ones
    #[arg(short, long)]
    force: bool,
    /// Remove anonymous volumes too; accepted for compatibility, they are always removed
    #[arg(short, long)]
    volumes: bool,
    /// Containers, by name or ID, or mounts of `mount --print`, by path or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

/// The interval at which a container's end is polled for.
const PAUSE: Duration = Duration::from_millis(2);
/// Timeout of a killed container's end, which first writes back its changes.
const KILLED_IS_GONE: Duration = Duration::from_secs(60);

/// Errors of the control socket while a container is being started or has just exited.
const NOBODY_THERE: [io::ErrorKind; 4] = [
    io::ErrorKind::NotFound,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::BrokenPipe,
];

/// Calls `act` for each container and prints its result; continues after a failure, and then exits with 1.
fn each(
    verb: &str,
    global: &Global,
    wanted: &[String],
    act: impl Fn(&Store, &str) -> anyhow::Result<Option<String>>,
) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one(verb, wanted)?;
    let store = global.store()?;
    let mut failed = false;
    for name in wanted {
        match act(&store, name) {
            Ok(Some(line)) => output::line(line)?,
            Ok(None) => {}
            Err(error) => {
                output::complaint(format_args!("Error: {error}"));
                failed = true;
            }
        }
    }
    if failed { Err(Exit::Said(1).into()) } else { Ok(()) }
}

pub(in crate::cli) fn stop(global: &Global, a: &StopArgs) -> anyhow::Result<()> {
    let signal = a.signal.as_deref().map(wanted_signal).transpose()?;
    each("stop", global, &a.args, |store, name| {
        let container = containers::find(store, name)?;
        let own = signals::signal(container.text("StopSignal"));
        let signal = signal.or(own).unwrap_or(libc::SIGTERM);
        if deliver(store, &container, signal)? && !wait(store, &container, Duration::from_secs(a.time)) {
            kill_and_wait(store, &container)?;
        }
        Ok(Some(name.to_owned()))
    })
}

pub(in crate::cli) fn kill(global: &Global, a: &KillArgs) -> anyhow::Result<()> {
    let signal = wanted_signal(&a.signal)?;
    each("kill", global, &a.args, |store, name| {
        let container = containers::find(store, name)?;
        anyhow::ensure!(
            deliver(store, &container, signal)?,
            "cannot kill container: {name}: container {} is not running",
            container.id
        );
        if signal == libc::SIGKILL {
            wait(store, &container, KILLED_IS_GONE);
        }
        Ok(Some(name.to_owned()))
    })
}

pub(in crate::cli) fn wait_for(global: &Global, a: &WaitArgs) -> anyhow::Result<()> {
    each("wait", global, &a.args, |store, name| {
        let container = containers::find(store, name)?;
        while !wait(store, &container, Duration::from_secs(3600)) {}
        let state = containers::state(store, &container.id);
        // A container with --rm has been removed, with its exit code.
        Ok(Some(state.map_or_else(|_| "0".to_owned(), |state| state.exit_code.to_string())))
    })
}

pub(in crate::cli) fn rm(global: &Global, a: &RmArgs) -> anyhow::Result<()> {
    let (send, receive) = std::sync::mpsc::channel();
    let done = each("rm", global, &a.args, |store, name| {
        let container = match containers::find(store, name) {
            Err(Error::NoSuchContainer(_)) if mount::end_own(store, name)? => return Ok(Some(name.to_owned())),
            Err(Error::NoSuchContainer(_)) if a.force => return Ok(None),
            found => found?,
        };
        if a.force {
            kill_and_wait(store, &container)?;
        }
        let held = hold_stopped(store, &container)?;
        // Cleans up after a container whose monitor was killed too.
        runtime::sweep(&store.container_dir(&container.id), &container.id);
        // Cannot fail: the receiver is still alive.
        let _always = send.send(Removed(containers::take_out(store, held)?));
        Ok(Some(name.to_owned()))
    });
    drop(send);
    let removed: Vec<Removed> = receive.into_iter().collect();
    if !removed.is_empty() {
        leave_to_child(removed);
    }
    done
}

/// The folder of a container removed from the store. Dropping this deletes it; `gc` deletes what is left after a
/// failure.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The folder has files of subordinate IDs, which an unprivileged user may delete only as root of a user
        // namespace.
        let entered = if sys::is_root() { Ok(None) } else { userns::enter().map(Some) };
        if let Err(e) = entered {
            tracing::debug!("{e}");
        }
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!("cannot remove {}: {}", self.0.display(), sys::describe(&e));
        }
    }
}

fn wanted_signal(text: &str) -> anyhow::Result<i32> {
    signals::signal(text).ok_or_else(|| anyhow::anyhow!("invalid signal: {text}"))
}

/// Sends a signal; returns false if the container is not running.
fn deliver(store: &Store, container: &Container, signal: i32) -> anyhow::Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match control::signal(&store.container_dir(&container.id), signal) {
            Ok(()) => return Ok(true),
            Err(e) if NOBODY_THERE.contains(&e.kind()) => {
                if !containers::is_held(store, &container.id) {
                    return Ok(false);
                }
                anyhow::ensure!(Instant::now() < deadline, "container {} does not respond", container.name);
                std::thread::sleep(PAUSE);
            }
            Err(e) => anyhow::bail!("cannot reach the monitor of container {}: {}", container.name, sys::describe(&e)),
        }
    }
}

/// Waits until the container has exited; returns false after the timeout `at_most`.
fn wait(store: &Store, container: &Container, at_most: Duration) -> bool {
    let deadline = Instant::now() + at_most;
    while containers::is_held(store, &container.id) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

fn kill_and_wait(store: &Store, container: &Container) -> anyhow::Result<()> {
    if deliver(store, container, libc::SIGKILL)? && !wait(store, container, KILLED_IS_GONE) {
        anyhow::bail!("container {} was killed but has not exited", container.name);
    }
    Ok(())
}

/// Takes the lock of a stopped container.
fn hold_stopped(store: &Store, container: &Container) -> anyhow::Result<Held> {
    match containers::try_hold(store, &container.id)? {
        Some(held) => Ok(held),
        None => {
            let state = containers::state(store, &container.id)?;
            let doing = if state.status == Status::Running { "running" } else { "being started or stopped" };
            anyhow::bail!(
                "cannot remove container \"/{}\": container is {doing}: stop the container before removing or force remove",
                container.name
            )
        }
    }
}
