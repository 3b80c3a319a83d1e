//! Disturbs a mount while a test uses it: kills its server again and again, or makes the kernel forget inodes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A thread that kills servers. Dropping it ends it.
pub struct ServerKiller {
    ends: Arc<AtomicBool>,
    kills: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

/// What is done to the mounts of a test, from [`Disturbance::start`] to [`Disturbance::stop`].
#[derive(Default)]
pub struct Disturbance {
    /// Servers are killed after [`LIFE`] and a random part of this.
    kills: Option<Duration>,
    forgets: bool,
    running: Option<(Option<ServerKiller>, Option<Forgetter>)>,
}

impl Disturbance {
    /// Kills each server after [`LIFE`] and a random part of `most` more.
    pub fn kills(most: Duration) -> Disturbance {
        Disturbance { kills: Some(most), ..Disturbance::default() }
    }

    /// Makes the kernel forget all inodes that are not in use, again and again.
    pub fn forgets() -> Disturbance {
        Disturbance { forgets: true, ..Disturbance::default() }
    }

    /// Both.
    pub fn kills_and_forgets(most: Duration) -> Disturbance {
        Disturbance { forgets: true, ..Disturbance::kills(most) }
    }

    /// Begins with the mount that has a directory as its upper directory.
    pub fn start(&mut self, upper: &Path) {
        let killer = self.kills.map(|most| {
            let supervisor = supervisor_of(upper).expect("the mount has a supervisor");
            let seed = u64::from(std::process::id()) << 32;
            ServerKiller::start(supervisor, seed ^ supervisor as u64, most)
        });
        self.running = Some((killer, self.forgets.then(Forgetter::start)));
    }

    /// Ends, before the unmount.
    pub fn stop(&mut self) {
        self.running = None;
    }
}

/// A thread that makes the kernel drop its caches of names and inodes. Dropping it ends it.
struct Forgetter {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Makes the kernel drop the names, inodes and pages that are not in use from its caches.
pub fn drop_inodes() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

impl Forgetter {
    fn start() -> Forgetter {
        let ends = Arc::new(AtomicBool::new(false));
        let stop = ends.clone();
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                drop_inodes();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Forgetter { ends, thread: Some(thread) }
    }
}

impl Drop for Forgetter {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A server that dies sooner may be taken for one that cannot begin.
const LIFE: Duration = Duration::from_millis(25);

/// Returns the server that a supervisor has started last.
pub fn server_of(supervisor: i32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    children.split_whitespace().last()?.parse().ok().and_then(Pid::from_raw)
}

/// Returns the supervisor of the mount that has a directory as its upper directory.
pub fn supervisor_of(upper: &Path) -> Option<i32> {
    let has_open = |pid: i32| {
        let all = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        all.map(|fd| std::fs::read_link(fd.path())).any(|target| target.is_ok_and(|target| target == upper))
    };
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| has_open(*pid) && server_of(*pid).is_some_and(|server| has_open(server.as_raw_nonzero().get())))
}

/// Returns the supervisors with working servers whose command lines name a directory.
pub fn supervisors_in(root: &Path) -> Vec<i32> {
    let is_of_store = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(root.to_str().unwrap())
    };
    let works = |server: Pid| {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", server.as_raw_nonzero())).into_iter().flatten().flatten();
        let mut names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
        names.any(|name| name.starts_with("fuser"))
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_of_store(pid) && server_of(*pid).is_some_and(works)).collect()
}

impl ServerKiller {
    /// Kills each server of a supervisor after [`LIFE`] and a random part of `most` more.
    pub fn start(supervisor: i32, seed: u64, most: Duration) -> ServerKiller {
        ServerKiller::run(seed, most, move || vec![supervisor])
    }

    /// The same for all mounts whose command lines name a directory.
    pub fn start_in(root: &Path, seed: u64, most: Duration) -> ServerKiller {
        let root = root.to_owned();
        ServerKiller::run(seed, most, move || supervisors_in(&root))
    }

    fn run(seed: u64, most: Duration, supervisors: impl Fn() -> Vec<i32> + Send + 'static) -> ServerKiller {
        let (ends, kills) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stop, count) = (ends.clone(), kills.clone());
        let thread = std::thread::spawn(move || {
            let mut random = seed | 1;
            while !stop.load(Ordering::Relaxed) {
                // xorshift64
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                std::thread::sleep(LIFE + most.mul_f64((random % 1000) as f64 / 1000.0));
                for supervisor in supervisors() {
                    let Some(server) = server_of(supervisor) else { continue };
                    if kill_process(server, Signal::KILL).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    wait_for_next(supervisor, server);
                }
            }
        });
        ServerKiller { ends, kills, thread: Some(thread) }
    }

    /// How many servers it has killed.
    pub fn kills(&self) -> u32 {
        self.kills.load(Ordering::Relaxed)
    }
}

/// Waits until the supervisor has started another server.
fn wait_for_next(supervisor: i32, killed: Pid) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let lives = || Path::new(&format!("/proc/{supervisor}")).exists();
    while Instant::now() < deadline && lives() && server_of(supervisor).is_none_or(|server| server == killed) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

impl Drop for ServerKiller {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        eprintln!("{} servers killed", self.kills());
    }
}
