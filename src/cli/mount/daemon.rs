//! Mount daemon: the process that supervises the server of a mount, in the background or foreground, until the mount is
//! gone or a signal ends it. Also a helper process for cleanup in the background ([`leave_to_child`]).

use crate::cli::log;
use crate::cli::mount::takeover::{Program, Taken};
use crate::fs::Fs;
use crate::fuse::{OnSignal, Options, Owner, Supervisor};
use crate::handover::Handover;
use crate::store::mounts::Guard;
use crate::sys::{self, Fork};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// A mount to serve.
pub(in crate::cli) struct Job {
    /// Creates the file system; called in each process that serves it.
    pub make: Box<dyn FnOnce(Arc<Handover>) -> anyhow::Result<Fs>>,
    /// The number of the image's inodes; 0 for lower directories.
    pub inodes: u64,
    /// Whether the file system takes changes.
    pub writable: bool,
    /// The registration of an image mount, which protects the image from removal.
    pub guard: Option<Guard>,
    /// Log file of a background process.
    pub log: PathBuf,
    pub mountpoint: PathBuf,
    pub options: Options,
    /// The program, to be replaced by a newer one.
    pub program: Program,
    /// The mount, if it exists and this process takes it over.
    pub taken: Option<Taken>,
}

/// What the background process writes to its parent when the mount is live; any other line is an error message.
const LIVE: &str = "live";

/// Mounts and serves. In the foreground it returns when the mount is gone; in the background when the mount is live, or
/// with the daemon's error.
pub(in crate::cli) fn serve(job: Job, foreground: bool) -> anyhow::Result<()> {
    if job.taken.is_some() {
        log::switch_to_daemon()?;
        std::env::set_current_dir("/")?;
        return run(job, OnSignal::Daemon, || Ok(())).inspect_err(|error| tracing::error!("{error}"));
    }
    if foreground {
        return run(job, OnSignal::Foreground, || Ok(()));
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
    run(job, OnSignal::Daemon, move || Ok(writeln!(to_parent, "{LIVE}")?))
}

fn run(job: Job, signals: OnSignal, live: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Job { make, inodes, writable, guard, mountpoint, options, program, taken, .. } = job;
    let source = options.source.clone();
    // A takeover is a restart.
    let before = guard.as_ref().map_or(0, |guard| guard.info().restarts) + u32::from(taken.is_some());
    let supervisor = match taken {
        Some(taken) => taken.supervisor(options, signals).map_err(anyhow::Error::from),
        None => Supervisor::mount(&mountpoint, options, writable, inodes, signals).map_err(anyhow::Error::from),
    };
    let mut mount = Mount { live: Some(live), source, mountpoint, guard, before, program, inodes };
    let served = supervisor.and_then(|supervisor| {
        Ok(supervisor.run(move |handover| make(handover).map_err(|e| e.to_string()), &mut mount)?)
    });
    if served.is_ok() {
        tracing::info!("{} is unmounted", mount.mountpoint.display());
    }
    let released = mount.guard.map(Guard::release);
    served?;
    Ok(released.transpose().map(drop)?)
}

/// The supervised mount of this process.
struct Mount<L> {
    /// Called once, when the mount is live.
    live: Option<L>,
    source: String,
    mountpoint: PathBuf,
    guard: Option<Guard>,
    /// The number of restarts when this process began to supervise the mount.
    before: u32,
    program: Program,
    inodes: u64,
}

impl<L: FnOnce() -> anyhow::Result<()>> Owner for Mount<L> {
    fn live(&mut self) {
        tracing::info!("serving {} at {}", self.source, self.mountpoint.display());
        self.restarted(0);
        if let Some(Err(e)) = self.live.take().map(|live| live()) {
            tracing::error!("{e}");
        }
    }

    fn restarted(&mut self, restarts: u32) {
        let count = self.before + restarts;
        if let Some(guard) = self.guard.as_mut().filter(|guard| guard.info().restarts != count)
            && let Err(e) = guard.set_restarts(count)
        {
            tracing::error!("{e}");
        }
    }

    fn wants_replacement(&mut self) -> bool {
        self.program.is_replaced()
    }

    fn replace(&mut self, supervisor: &Supervisor, kept: &[i32]) -> std::io::Error {
        tracing::info!("the installed program takes over");
        self.program.execute(supervisor, self.inodes, self.guard.as_ref(), kept)
    }
}
