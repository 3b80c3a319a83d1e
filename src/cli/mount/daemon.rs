//! Mount daemon: the process that serves a mount, in the background or foreground, until the mount is gone or a signal
//! ends it. Also a helper process for cleanup in the background ([`leave_to_child`]).

use crate::cli::log;
use crate::fs::Fs;
use crate::fuse::{self, Options};
use crate::store::mounts::Guard;
use crate::sys::{self, Fork, Signals};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A mount to serve.
pub(in crate::cli) struct Job {
    /// Creates the file system; called in the process that serves it.
    pub make: Box<dyn FnOnce() -> anyhow::Result<Fs>>,
    /// The registration of an image mount, which protects the image from removal.
    pub guard: Option<Guard>,
    /// Log file of a background process.
    pub log: PathBuf,
    pub mountpoint: PathBuf,
    pub options: Options,
}

/// How long a process waits after a signal for open files to be closed.
const GRACE: Duration = Duration::from_secs(5);
/// What the background process writes to its parent when the mount is live; any other line is an error message.
const LIVE: &str = "live";

/// Mounts and serves. In the foreground it returns when the mount is gone; in the background when the mount is live, or
/// with the daemon's error.
pub(in crate::cli) fn serve(job: Job, foreground: bool) -> anyhow::Result<()> {
    if foreground {
        return run(job, || Ok(()));
    }
    let log_path = job.log.clone();
    let opened = File::options().create(true).append(true).open(&log_path);
    let log_file =
        opened.map_err(|e| anyhow::anyhow!("cannot log to {}: {}", log_path.display(), sys::describe(&e)))?;
    let (from_child, to_parent) = std::io::pipe()?;
    match sys::fork()? {
        Fork::Child => {
            drop(from_child);
            let code = i32::from(in_background(job, &log_file, to_parent).is_err());
            std::process::exit(code);
        }
        Fork::Parent(_) => {
            drop(to_parent);
            let mut said = String::new();
            BufReader::new(from_child).read_line(&mut said)?;
            match said.trim_end() {
                LIVE => Ok(()),
                "" => anyhow::bail!("the process that serves the mount died: see {}", log_path.display()),
                why => anyhow::bail!("{why}"),
            }
        }
    }
}

/// Drops the value in a forked child, without waiting for it. If no child can be forked, drops it in this process.
pub(in crate::cli) fn leave_to_child<T>(value: T) {
    match File::options().read(true).write(true).open("/dev/null").and_then(|null| Ok((null, sys::fork()?))) {
        Ok((_, Fork::Parent(_))) => std::mem::forget(value),
        Ok((null, Fork::Child)) => {
            // A reader of the parent's output must not wait for the child: it closes all inherited descriptors.
            let done = sys::close_inherited().and_then(|()| sys::detach_from_terminal(&null));
            drop(value);
            std::process::exit(i32::from(done.is_err()));
        }
        Err(error) => {
            tracing::debug!(%error, "cannot fork a process for slow cleanup");
            drop(value);
        }
    }
}

/// Runs the daemon. Writes an error to the log, and to the parent while it reads.
fn in_background(job: Job, log_file: &File, mut to_parent: PipeWriter) -> anyhow::Result<()> {
    let ended = detach_and_run(job, log_file, &to_parent);
    if let Err(error) = &ended {
        tracing::error!("{error}");
        // Once the mount was live, the parent does not read any more.
        let _not_read = writeln!(to_parent, "{error}");
    }
    ended
}

fn detach_and_run(mut job: Job, log_file: &File, mut to_parent: &PipeWriter) -> anyhow::Result<()> {
    sys::close_inherited()?;
    sys::detach_from_terminal(log_file)?;
    log::switch_to_daemon()?;
    if let Some(guard) = &mut job.guard {
        guard.set_pid(std::process::id())?;
    }
    run(job, move || Ok(writeln!(to_parent, "{LIVE}")?))
}

fn run(job: Job, live: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Job { make, guard, mountpoint, options, .. } = job;
    let served = mount_and_wait(make, &mountpoint, &options, live);
    let released = guard.map(Guard::release);
    served?;
    Ok(released.transpose().map(drop)?)
}

fn mount_and_wait(
    make: impl FnOnce() -> anyhow::Result<Fs>,
    mountpoint: &Path,
    options: &Options,
    live: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let signals = Signals::block()?;
    let session = fuse::mount(Arc::new(make()?), mountpoint, options)?;
    let detach = session.detacher();
    std::thread::Builder::new().name("plyfs-signals".into()).spawn(move || exit_on_signals(&signals, detach))?;
    tracing::info!("serving {} at {}", options.source, mountpoint.display());
    live()?;
    session.run()?;
    tracing::info!("{} is unmounted", mountpoint.display());
    Ok(())
}

/// Handles termination signals. The first one detaches the mount and exits once all files are closed, or after
/// [`GRACE`]; the second one exits at once. Neither leaves a dead mount behind.
fn exit_on_signals(signals: &Signals, detach: impl Fn() -> std::io::Result<()>) {
    let mut is_detached = false;
    while let Ok(signal) = signals.wait() {
        // Logged first: once the mount is gone, the process may end at any moment.
        tracing::info!("signal {signal}: unmounting");
        if let Err(e) = detach() {
            tracing::error!("signal {signal}: cannot unmount: {e}");
            continue;
        }
        if std::mem::replace(&mut is_detached, true) {
            std::process::exit(0);
        }
        let force = || {
            std::thread::sleep(GRACE);
            tracing::warn!("files are still open after the grace period: exiting");
            std::process::exit(0);
        };
        if let Err(e) = std::thread::Builder::new().name("plyfs-grace".into()).spawn(force) {
            tracing::error!("cannot wait for open files: {e}");
            std::process::exit(0);
        }
    }
}
