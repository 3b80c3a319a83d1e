//! CPU affinity of a mount's worker threads: they follow their caller, stay within the process's affinity mask and
//! cpuset, and are released again.

use crate::support::env::{Mount, TestEnv, run};
use crate::support::eventually;
use crate::support::killer::server_of;
use crate::support::oci::Image;
use crate::support::small::processes;
use crate::support::tar::Tar;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

fn env() -> TestEnv {
    let env = TestEnv::new();
    Image::new().layer(Tar::new().dir("dir").finish()).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    env
}

/// The processors that this process may use; these tests need two.
fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect();
    assert!(allowed.len() > 1, "this test needs two processors");
    allowed
}

fn cpu_set(processors: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    set
}

/// The process ID of the server of a mount.
fn server(mount: &Mount) -> u32 {
    let found = processes(&mount.path().display().to_string());
    let servers: Vec<u32> =
        found.iter().filter_map(|pid| server_of(*pid as i32)).map(|pid| pid.as_raw_nonzero().get() as u32).collect();
    assert_eq!(servers.len(), 1, "{found:?}");
    servers[0]
}

/// The affinity mask of each worker thread.
fn workers(server: u32) -> Vec<Vec<usize>> {
    threads(server, "fuser")
}

/// The affinity mask of each thread whose name begins with `name`.
fn threads(server: u32, name: &str) -> Vec<Vec<usize>> {
    let threads = fs::read_dir(format!("/proc/{server}/task")).unwrap().map(|entry| entry.unwrap().file_name());
    let threads = threads.map(|number| number.to_str().unwrap().to_owned());
    let is_named = |number: &String| {
        fs::read_to_string(format!("/proc/{server}/task/{number}/comm")).is_ok_and(|found| found.starts_with(name))
    };
    let affinity = |number: String| {
        let set = sched_getaffinity(Pid::from_raw(number.parse().unwrap())).unwrap();
        (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
    };
    threads.filter(is_named).map(affinity).collect()
}

/// Whether every worker that has answered a request may run on exactly these processors.
fn all_run_on(server: u32, processors: &[usize]) -> bool {
    workers(server).iter().all(|worker| worker == processors)
}

/// Whether at least one worker may run on exactly this processor, and workers without requests so far on any.
fn some_run_on(server: u32, processor: usize) -> bool {
    workers(server).contains(&vec![processor])
}

/// A thread that looks up one missing name after another in a mount, on a processor that can be changed.
struct Caller {
    ended: Arc<AtomicBool>,
    processor: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Caller {
    fn start(processor: usize, at: &Path) -> Caller {
        let (ended, at): (Arc<AtomicBool>, PathBuf) = (Arc::default(), at.join("dir"));
        let processor = Arc::new(AtomicUsize::new(processor));
        let (stop, place) = (ended.clone(), processor.clone());
        let thread = std::thread::spawn(move || {
            let (mut number, mut placed) = (0, usize::MAX);
            while !stop.load(Ordering::Relaxed) {
                let wanted = place.load(Ordering::Relaxed);
                if wanted != placed {
                    sched_setaffinity(None, &cpu_set(&[wanted])).unwrap();
                    placed = wanted;
                }
                fs::symlink_metadata(at.join(format!("missing-{number}"))).unwrap_err();
                number += 1;
            }
        });
        Caller { ended, processor, thread: Some(thread) }
    }

    fn move_to(&self, processor: usize) {
        self.processor.store(processor, Ordering::Relaxed);
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn workers_follow_their_caller_and_are_free_when_it_ends() {
    let (env, allowed) = (env(), allowed());
    let mount = env.mount("one:1", &["-o", "place=follow"]);
    let server = server(&mount);
    assert!(all_run_on(server, &allowed), "{:?}", workers(server));
    let caller = Caller::start(allowed[1], mount.path());
    eventually("the workers follow", || some_run_on(server, allowed[1]));
    caller.move_to(allowed[0]);
    eventually("the workers follow elsewhere", || some_run_on(server, allowed[0]) && !some_run_on(server, allowed[1]));
    drop(caller);
    eventually("the workers are free again", || all_run_on(server, &allowed));
}

#[test]
fn threads_that_a_bound_worker_starts_are_not_bound() {
    let (env, allowed) = (env(), allowed());
    let mount = env.mount("one:1", &["--upper", &env.path("upper").display().to_string(), "-o", "place=follow"]);
    fs::write(mount.path().join("file"), "data").unwrap();
    let (server, caller) = (server(&mount), Caller::start(allowed[1], mount.path()));
    eventually("the workers follow", || some_run_on(server, allowed[1]));
    // SEEK_HOLE is answered by a thread of its own.
    let file = fs::File::open(mount.path().join("file")).unwrap();
    eventually("there is such a thread", || {
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        threads(server, "plyfs-slow").contains(&allowed)
    });
    drop((caller, file));
    mount.unmount();
}

#[test]
fn workers_are_released_when_short_lived_callers_end() {
    let (env, allowed) = (env(), allowed());
    let mount = env.mount("one:1", &["-o", "place=follow"]);
    let server = server(&mount);
    let mut followed = false;
    for number in 0..300 {
        let at = mount.path().join("dir");
        let processor = allowed[number / 50 % 2];
        let asks = move || {
            sched_setaffinity(None, &cpu_set(&[processor])).unwrap();
            (0..20).for_each(|name| drop(fs::symlink_metadata(at.join(format!("missing-{number}-{name}")))));
        };
        std::thread::spawn(asks).join().unwrap();
        followed |= !all_run_on(server, &allowed);
    }
    assert!(followed, "the workers followed nobody");
    eventually("the workers are free again", || all_run_on(server, &allowed));
    assert!(mount.path().join("dir").is_dir());
}

#[test]
fn workers_stay_within_the_process_affinity_mask() {
    let (env, allowed) = (env(), allowed());
    let mut command = Command::new("taskset");
    let made = env.command(["mount", "-o", "place=follow", "one:1"]);
    command.arg("-c").arg(allowed[0].to_string()).arg(made.get_program()).args(made.get_args());
    let mount = Mount::start(&env, &mut command);
    let server = server(&mount);
    let other = Caller::start(allowed[1], mount.path());
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(all_run_on(server, &allowed[..1]), "{:?}", workers(server));
    drop(other);
    // From here on the process may use both processors.
    let both = format!("{},{}", allowed[0], allowed[1]);
    assert_eq!(run(Command::new("taskset").args(["-apc", &both, &server.to_string()])).code, 0);
    let caller = Caller::start(allowed[1], mount.path());
    eventually("the workers follow", || some_run_on(server, allowed[1]));
    // Now the second one is taken away again, while workers run on it.
    assert_eq!(run(Command::new("taskset").args(["-apc", &allowed[0].to_string(), &server.to_string()])).code, 0);
    eventually("the workers have left", || all_run_on(server, &allowed[..1]));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(all_run_on(server, &allowed[..1]), "{:?}", workers(server));
    drop(caller);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(all_run_on(server, &allowed[..1]), "{:?}", workers(server));
}

/// A cpuset in the first cgroup hierarchy that this machine has; removed on drop.
struct Cpuset(PathBuf);

impl Cpuset {
    fn new(name: &str) -> Cpuset {
        let (first, second) = (Path::new("/sys/fs/cgroup/cpuset"), Path::new("/sys/fs/cgroup"));
        let above = if first.join("cpuset.cpus").exists() { first } else { second };
        let made = Cpuset(above.join(name));
        fs::create_dir(&made.0).unwrap();
        if above == second {
            fs::write(second.join("cgroup.subtree_control"), "+cpuset").unwrap();
        } else {
            fs::write(made.0.join("cpuset.mems"), fs::read(first.join("cpuset.mems")).unwrap()).unwrap();
        }
        made
    }

    fn allow(&self, processors: &[usize]) {
        let list: Vec<String> = processors.iter().map(usize::to_string).collect();
        fs::write(self.0.join("cpuset.cpus"), list.join(",")).unwrap();
    }

    fn add_process(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        let above = self.0.parent().unwrap().join("cgroup.procs");
        for process in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ended = fs::write(&above, process);
        }
        let _gone = fs::remove_dir(&self.0);
    }
}

#[test]
fn workers_follow_changes_of_their_cpuset() {
    let (env, allowed) = (env(), allowed());
    let mount = env.mount("one:1", &["-o", "place=follow"]);
    let server = server(&mount);
    let cpuset = Cpuset::new(&format!("plyfs-test-{}", std::process::id()));
    cpuset.allow(&allowed);
    cpuset.add_process(server);
    let caller = Caller::start(allowed[1], mount.path());
    eventually("the workers follow", || some_run_on(server, allowed[1]));
    cpuset.allow(&allowed[..1]);
    eventually("the workers have left", || all_run_on(server, &allowed[..1]));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(all_run_on(server, &allowed[..1]), "{:?}", workers(server));
    cpuset.allow(&allowed);
    eventually("the workers follow again", || some_run_on(server, allowed[1]));
    drop(caller);
    eventually("the workers are free again", || all_run_on(server, &allowed));
    drop(mount);
}

/// A busy loop on each processor, at the priority of a compiler on a build host.
struct CpuLoad(Arc<AtomicBool>);

impl CpuLoad {
    fn start(processors: &[usize]) -> CpuLoad {
        let ended = Arc::new(AtomicBool::new(false));
        for processor in processors {
            let (ended, processor) = (ended.clone(), *processor);
            std::thread::spawn(move || {
                rustix::process::nice(10).unwrap();
                sched_setaffinity(None, &cpu_set(&[processor])).unwrap();
                while !ended.load(Ordering::Relaxed) {}
            });
        }
        CpuLoad(ended)
    }
}

impl Drop for CpuLoad {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn on_a_busy_machine_workers_follow_their_caller_unless_disabled() {
    let (env, allowed) = (env(), allowed());
    let (auto, off) = (env.mount("one:1", &[]), env.mount("one:1", &["-o", "place=off"]));
    let servers = [&auto, &off].map(server);
    let busy = CpuLoad::start(&allowed);
    let callers = [&auto, &off].map(|mount| Caller::start(allowed[0], mount.path()));
    eventually("the workers follow", || some_run_on(servers[0], allowed[0]));
    assert!(all_run_on(servers[1], &allowed), "{:?}", workers(servers[1]));
    drop((callers, busy));
    eventually("the workers are free again", || all_run_on(servers[0], &allowed));
}
