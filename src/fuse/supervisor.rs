//! The supervisor: the process that keeps a FUSE connection and starts a new server on it when the last one dies.
//!
//! The supervisor mounts, forks the server and waits. It does nothing else, so it has little to fail by, and the kernel
//! prefers the server when memory runs out. A server shares the supervisor's table of descriptors, so what it had open
//! outlives it: of that the supervisor keeps what was handed over ([`Handover`]) and closes the rest. Programs on the
//! mount notice a pause only: the new server makes the kernel send again what was not answered.
//!
//! Neither process may drop a descriptor that was open at the fork, as it would be closed for both. So a server ends by
//! `_exit`, and the supervisor keeps all that it had open when it began.

use super::connection::{Connection, Parts};
use super::{MountError, Options, detacher, serve};
use crate::fs::Fs;
use crate::handover::Handover;
use crate::sys::{self, Ended, Fork, Received, Signals};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long open files are waited for after a signal to end.
const GRACE: Duration = Duration::from_secs(5);
/// A server that dies sooner after its start may die of what it has to do at the start, again and again.
const SHORT_LIFE: Duration = Duration::from_millis(20);
/// How many such deaths within [`PERIOD`] are followed by a restart at once, and by one at all.
const PROMPT_RESTARTS: usize = 5;
const MOST_RESTARTS: usize = 10;
const PERIOD: Duration = Duration::from_secs(60);
/// The first pause before a restart; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Added to the server's `oom_score_adj`, in thousandths of the machine's memory.
const OOM_SCORE: i32 = 200;

/// A supervised mount.
pub struct Supervisor {
    connection: Connection,
    handover: Arc<Handover>,
    options: Options,
    signals: OnSignal,
}

/// What the signals do that a supervisor can get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnSignal {
    /// SIGTERM, SIGINT and SIGQUIT end the mount, SIGHUP restarts the server.
    Daemon,
    /// The same, but SIGHUP ends the mount too, as the end of the terminal.
    Foreground,
    /// Nothing: another process ends the mount.
    Ignored,
}

impl OnSignal {
    fn restarts(self, signal: i32) -> bool {
        self == OnSignal::Daemon && signal == libc::SIGHUP
    }

    fn ends(self, signal: i32) -> bool {
        match signal {
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => self != OnSignal::Ignored,
            libc::SIGHUP => self == OnSignal::Foreground,
            _ => false,
        }
    }
}

/// The owner of a supervised mount, which is told what happens to it.
pub trait Owner {
    /// The mount is live.
    fn live(&mut self);

    /// The server has been restarted, for the `restarts`th time in this process.
    fn restarted(&mut self, _restarts: u32) {}

    /// A restart is wanted. Returns whether another program shall take this process's place ([`Owner::replace`]).
    fn wants_replacement(&mut self) -> bool {
        false
    }

    /// Executes that program in this process. It must keep the descriptors `kept` open: the connection, the memory,
    /// and all that was open at the start or has been handed over. Returns only with an error.
    fn replace(&mut self, _supervisor: &Supervisor, _kept: &[i32]) -> io::Error {
        io::Error::other("there is no other program")
    }
}

/// Why a mount is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A system call of the supervisor failed.
    #[error("cannot supervise the mount: {}", sys::describe(.0))]
    Io(#[from] io::Error),
    /// The first server could not begin; the message is its own.
    #[error("{0}")]
    Failed(String),
    /// The server died, and this kernel cannot send again what it had not answered.
    #[error("the server died ({0}), and before Linux 6.9 it cannot be replaced")]
    Lost(String),
    /// The file system cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// The end of a server.
enum End {
    /// The mount is gone.
    Unmounted,
    /// A signal ended the mount, but files are still open.
    Abandoned,
    /// It was killed for a restart, perhaps by another program.
    Restart { is_replaced: bool },
    /// It died.
    Died(Ended),
}

impl Supervisor {
    /// Mounts a file system at the existing directory `at`, without a server yet. `inodes` is the number of inodes of
    /// the image, 0 for lower directories.
    pub fn mount(
        at: &Path,
        options: Options,
        writable: bool,
        inodes: u64,
        signals: OnSignal,
    ) -> Result<Supervisor, ServiceError> {
        let handover = Arc::new(Handover::new(inodes)?);
        let connection = Connection::mount(at, &options, writable)?;
        Ok(Supervisor { connection, handover, options, signals })
    }

    /// Takes a mount over from the process that had this one's place before an exec ([`Owner::replace`]).
    pub fn of_parts(
        (device, parts): (OwnedFd, Parts),
        (memory, inodes): (File, u64),
        options: Options,
        signals: OnSignal,
    ) -> io::Result<Supervisor> {
        let handover = Arc::new(Handover::of_file(memory, inodes)?);
        Ok(Supervisor { connection: Connection::of_parts(device, parts), handover, options, signals })
    }

    /// Returns what [`Supervisor::of_parts`] takes: the connection and the memory.
    pub fn parts(&self) -> ((BorrowedFd<'_>, Parts), &File) {
        ((self.connection.as_fd(), self.connection.parts()), self.handover.file())
    }

    /// Returns the descriptors of inodes without names, which the next server needs.
    pub fn all_held(&self) -> io::Result<Vec<i32>> {
        Ok(self.handover.all_held()?.into_iter().map(|(number, _)| number).collect())
    }

    /// Serves the mount until it is gone. `make` makes the file system; it is called in each server. This process must
    /// have a single thread.
    pub fn run<F>(&self, make: F, owner: &mut dyn Owner) -> Result<(), ServiceError>
    where
        F: FnOnce(Arc<Handover>) -> Result<Fs, String>,
    {
        self.keep_serving(make, owner).inspect_err(|_| {
            // Nobody has used it, and no process will serve it.
            if !self.handover.is_live() {
                let _gone = sys::unmount(self.connection.mountpoint(), true);
            }
        })
    }

    fn keep_serving<F>(&self, make: F, owner: &mut dyn Owner) -> Result<(), ServiceError>
    where
        F: FnOnce(Arc<Handover>) -> Result<Fs, String>,
    {
        // Dropped by no process: a server that fails to begin drops its copy.
        let make = ManuallyDrop::new(make);
        let signals = Signals::block_for_child()?;
        let own = std::process::id() as i32;
        let (errors, report) = io::pipe()?;
        sys::set_nonblocking(&errors, true)?;
        let mut kept = sys::descriptors()?;
        kept.retain(|number| self.handover.held(*number).is_none());
        let (mut restarts, mut deaths) = (0, VecDeque::new());
        let mut begun = false;
        loop {
            self.handover.begin_server();
            let began = Instant::now();
            let server = match sys::fork_sharing_descriptors()? {
                Fork::Child => sys::leave(self.serve(ManuallyDrop::into_inner(make), &report, own)),
                Fork::Parent(server) => server,
            };
            let ended = self.wait(server, &signals, owner, &mut begun)?;
            let (ended, is_replaced) = match ended {
                End::Unmounted | End::Abandoned => return Ok(()),
                End::Restart { is_replaced } => ("killed for a restart".to_owned(), is_replaced),
                End::Died(ended) => (describe(ended), false),
            };
            if !self.handover.is_live() {
                return Err(ServiceError::Failed(said(&errors).unwrap_or(format!("the server died: {ended}"))));
            }
            if !self.connection.can_resend() {
                return Err(ServiceError::Lost(ended));
            }
            sys::close_descriptors(|number| kept.contains(&number) || self.handover.held(number).is_some())?;
            if is_replaced {
                let error = owner.replace(self, &sys::descriptors()?);
                tracing::error!("cannot run the new program: {}", sys::describe(&error));
            }
            let reason = said(&errors).map(|said| format!(" ({said})")).unwrap_or_default();
            let lived = began.elapsed();
            let Some(pause) = pause(&mut deaths, lived) else {
                tracing::error!("the server died again: {ended}{reason}; the mount answers EIO until it is unmounted");
                return self.give_up(&signals, owner);
            };
            std::thread::sleep(pause);
            restarts += 1;
            tracing::warn!("the server died after {lived:.1?}: {ended}{reason}; restart {restarts} after {pause:?}");
            owner.restarted(restarts);
        }
    }

    /// Does the same in a forked process, which ends with this one. Returns when the mount is live. The process closes
    /// the descriptors `not_needed`. This process must have a single thread.
    pub fn start<F>(self, make: F, not_needed: &[i32]) -> Result<SupervisedMount, ServiceError>
    where
        F: FnOnce(Arc<Handover>) -> Result<Fs, String>,
    {
        let (reports, mut report) = io::pipe()?;
        match sys::fork()? {
            Fork::Child => {
                let begun = sys::die_with_parent()
                    .and_then(|()| sys::close_descriptors(|number| number <= 2 || !not_needed.contains(&number)));
                let ended = begun.map_err(ServiceError::Io).and_then(|()| self.run(make, &mut Reporter(&report)));
                let told = ended.or_else(|why| report.write_all(why.to_string().replace('\n', " ").as_bytes()));
                sys::leave(i32::from(told.is_err()));
            }
            Fork::Parent(_) => {}
        }
        drop(report);
        let mut reports = BufReader::new(reports);
        let mut line = String::new();
        reports.read_line(&mut line)?;
        match line.trim_end() {
            LIVE => Ok(SupervisedMount { device: self.connection.st_dev(), reports }),
            "" => Err(ServiceError::Failed("the process that serves the mount died".into())),
            why => Err(ServiceError::Failed(why.to_owned())),
        }
    }

    /// Runs the server, in the forked process. Returns its exit code: 0 if the mount is gone. The process
    /// `supervisor` is told when the mount is live.
    fn serve(
        &self,
        make: impl FnOnce(Arc<Handover>) -> Result<Fs, String>,
        mut report: &PipeWriter,
        supervisor: i32,
    ) -> i32 {
        let begun = sys::die_with_parent().map_err(|e| sys::describe(&e)).and_then(|()| {
            if let Err(e) = sys::raise_oom_score(OOM_SCORE) {
                tracing::debug!("the server's oom_score_adj stays what it was: {e}");
            }
            let fs = Arc::new(make(self.handover.clone())?);
            // Not dropped with the session: its descriptors are the supervisor's too.
            std::mem::forget(fs.clone());
            let session = serve(&self.connection, fs, &self.options, self.handover.clone());
            session.map_err(|e| format!("cannot serve the mount: {}", sys::describe(&e)))
        });
        let session = match begun {
            Ok(session) => session,
            Err(why) => {
                // An error means that the supervisor has gone, and then this process is about to be killed.
                let _unread = report.write_all(why.replace('\n', " ").as_bytes());
                return 1;
            }
        };
        self.handover.set_live();
        if let Err(e) = sys::kill(supervisor, libc::SIGUSR1) {
            tracing::error!("cannot tell the supervisor that the mount is live: {e}");
        }
        match session.run() {
            Ok(()) => 0,
            Err(e) => {
                tracing::error!("the connection failed: {}", sys::describe(&e));
                1
            }
        }
    }

    /// Waits until a server has ended, and handles signals meanwhile.
    fn wait(&self, server: i32, signals: &Signals, owner: &mut dyn Owner, begun: &mut bool) -> io::Result<End> {
        let mut grace: Option<Instant> = None;
        let mut restart = None;
        let mut thread = None;
        loop {
            let mut left = grace.map(|end| end.saturating_duration_since(Instant::now()));
            if let Some(ended) = thread.as_ref().filter(|_| grace.is_none()) {
                signals.wait_or_readable(&[ended], None)?;
                left = Some(STUCK);
            }
            match signals.receive_within(left)? {
                None if grace.is_none() => {
                    if is_stuck(server) {
                        return Ok(restart.map_or(End::Died(Ended::Signal(libc::SIGKILL)), |is_replaced| {
                            End::Restart { is_replaced }
                        }));
                    }
                }
                None => {
                    tracing::warn!("files are still open after the grace period: exiting");
                    return Ok(End::Abandoned);
                }
                Some(Received::Child) => {
                    while let Some((child, ended)) = sys::wait_for_any(false)? {
                        if child == server {
                            return Ok(match ended {
                                Ended::Code(0) => End::Unmounted,
                                _ if grace.is_some() => End::Abandoned,
                                ended => restart.map_or(End::Died(ended), |is_replaced| End::Restart { is_replaced }),
                            });
                        }
                    }
                }
                Some(Received::PassOn(libc::SIGUSR1)) => {
                    // An error means that the thread has ended already.
                    thread = sys::thread_end(self.handover.thread()).ok();
                    if !std::mem::replace(begun, true) {
                        owner.live();
                    }
                }
                Some(Received::PassOn(signal)) if self.signals.restarts(signal) => {
                    tracing::info!("signal {signal}: restarting the server");
                    restart = Some(owner.wants_replacement());
                    sys::kill(server, libc::SIGKILL)?;
                }
                Some(Received::PassOn(signal) | Received::FromTerminal(signal)) if self.signals.ends(signal) => {
                    // Logged first: once the mount is gone, the process may end at any moment.
                    tracing::info!("signal {signal}: unmounting");
                    if let Err(e) = detacher(self.connection.st_dev())() {
                        tracing::error!("signal {signal}: cannot unmount: {e}");
                    } else if grace.replace(Instant::now() + GRACE).is_some() {
                        return Ok(End::Abandoned);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// Starts a process that answers every request with EIO, and waits until the mount is gone. Without it every program
    /// on the mount would hang.
    fn give_up(&self, signals: &Signals, owner: &mut dyn Owner) -> Result<(), ServiceError> {
        self.connection.resend()?;
        let server = match sys::fork_sharing_descriptors()? {
            Fork::Child => sys::leave(i32::from(self.connection.answer_with_errors().is_err())),
            Fork::Parent(server) => server,
        };
        match self.wait(server, signals, owner, &mut true)? {
            End::Died(ended) => Err(ServiceError::Lost(describe(ended))),
            End::Unmounted | End::Abandoned | End::Restart { .. } => Ok(()),
        }
    }
}

/// How long after the death of its threads a server is waited for before [`is_stuck`] is asked.
const STUCK: Duration = Duration::from_millis(10);

/// Whether all that keeps a dying server from its end is a notification to the kernel that waits for a server: the
/// kernel writes a file's pages back for it. Such a thread does nothing more when it returns from the call. One that
/// waits for a disk is waited for.
fn is_stuck(server: i32) -> bool {
    let dir = format!("/proc/{server}/task");
    let Ok(threads) = std::fs::read_dir(dir) else { return false };
    let mut is_stuck = false;
    for thread in threads.flatten().map(|entry| entry.path()) {
        let read = |name: &str| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
        // The state is the first word after the name, which is in parentheses.
        if read("stat").rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X'])) {
            continue;
        }
        let call = read("syscall");
        let mut words = call.split_whitespace();
        let is_write = words.next().and_then(|number| number.parse().ok()) == Some(libc::SYS_writev);
        let number = words.next().and_then(|number| i32::from_str_radix(number.trim_start_matches("0x"), 16).ok());
        // Its descriptors are this process's.
        let target = number.and_then(|number| std::fs::read_link(format!("/proc/self/fd/{number}")).ok());
        if !is_write || target.is_none_or(|target| target != Path::new("/dev/fuse")) {
            return false;
        }
        is_stuck = true;
    }
    is_stuck
}

/// What the process of [`Supervisor::start`] reports when the mount is live; anything else is an error message.
const LIVE: &str = "live";

/// The owner in the process of [`Supervisor::start`].
struct Reporter<'a>(&'a PipeWriter);

impl Owner for Reporter<'_> {
    fn live(&mut self) {
        // An error means that the reader has gone, and this process is about to be killed.
        let _unread = writeln!(self.0, "{LIVE}");
    }
}

/// A live mount that another process supervises ([`Supervisor::start`]).
pub struct SupervisedMount {
    /// Not the connection: while a process had it open, programs would wait for a server after the last one's death.
    device: u64,
    reports: BufReader<PipeReader>,
}

impl SupervisedMount {
    /// Returns a function that detaches the mount at all its mountpoints, from any thread.
    pub fn detacher(&self) -> impl Fn() -> io::Result<()> + Send + 'static {
        detacher(self.device)
    }

    /// Waits until the mount is detached, all its files are closed and the processes that served it have ended.
    pub fn finish(mut self) -> io::Result<()> {
        let mut why = String::new();
        self.reports.read_to_string(&mut why)?;
        if why.is_empty() { Ok(()) } else { Err(io::Error::other(why)) }
    }
}

/// Returns how long to wait before the next server, given the times of the short-lived ones; `None` to give up.
fn pause(deaths: &mut VecDeque<Instant>, lived: Duration) -> Option<Duration> {
    if lived >= SHORT_LIFE {
        return Some(Duration::ZERO);
    }
    let now = Instant::now();
    deaths.push_back(now);
    while deaths.front().is_some_and(|death| now - *death > PERIOD) {
        deaths.pop_front();
    }
    match deaths.len() {
        ..=PROMPT_RESTARTS => Some(Duration::ZERO),
        count @ ..=MOST_RESTARTS => Some(FIRST_PAUSE * (1 << (count - PROMPT_RESTARTS - 1))),
        _ => None,
    }
}

fn describe(ended: Ended) -> String {
    match ended {
        Ended::Code(code) => format!("exit code {code}"),
        Ended::Signal(signal) => format!("signal {signal}"),
    }
}

/// Returns what a server that has ended reported, if anything.
fn said(mut errors: &PipeReader) -> Option<String> {
    let mut text = [0; 4096];
    let length = errors.read(&mut text).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_die_at_once_are_restarted_less_and_less_often() {
        let mut deaths = VecDeque::new();
        let pauses: Vec<_> = (0..11).map(|_| pause(&mut deaths, Duration::ZERO)).collect();
        let in_ms: Vec<_> = pauses.iter().map(|pause| pause.map(|pause| pause.as_millis())).collect();
        let expected = [0, 0, 0, 0, 0, 250, 500, 1000, 2000, 4000].map(Some);
        assert_eq!((&in_ms[..10], in_ms[10]), (&expected[..], None));
        assert_eq!(pause(&mut deaths, Duration::from_secs(1)), Some(Duration::ZERO));
    }
}
