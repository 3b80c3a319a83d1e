//! Mounts whose server dies: programs on them must notice a pause only.
//!
//! The tests of single operations kill the server at each system call that it makes for the operation, one after the
//! other: `strace` counts the calls of each thread and kills at the given one. So every state that a death can leave is
//! tried, among them those between a change and its answer.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, RenameFlags, XattrFlags, flock, renameat_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::env::{Mount, TestEnv, run};
use crate::support::eventually;
use crate::support::killer::{ServerKiller, drop_inodes, server_of, supervisor_of, supervisors_in};
use crate::support::oci::Image;
use crate::support::tar::{Entry, Tar};

/// More directories than any test needs: each case has one of its own.
const CASES: u32 = 400;
/// No operation makes more system calls than this.
const MOST_CALLS: u32 = 150;

/// A directory with an object of each kind, as each case finds it.
fn entries() -> [(&'static str, &'static [u8]); 3] {
    [("a", b"content of a\n"), ("b", b"b\n"), ("d/x", b"x\n")]
}

fn image() -> Vec<u8> {
    let mut tar = Tar::new();
    for case in 0..CASES {
        tar = tar.dir(format!("c{case}")).dir(format!("c{case}/d")).dir(format!("c{case}/empty"));
        for (name, content) in entries() {
            tar = tar.file(format!("c{case}/{name}"), content);
        }
        tar = tar.symlink(format!("c{case}/l"), "a");
    }
    tar.finish()
}

/// Makes the same directory on a plain file system.
fn make_plain(at: &Path) {
    ["d", "empty"].iter().for_each(|dir| fs::create_dir_all(at.join(dir)).unwrap());
    entries().iter().for_each(|(name, content)| fs::write(at.join(name), content).unwrap());
    symlink("a", at.join("l")).unwrap();
}

/// The content of a directory: path, kind, mode, links, content, attribute of each object.
fn describe(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        let entries = match fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(error) => {
                all.push(format!("{}: {error}", at.display()));
                continue;
            }
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let found = path.symlink_metadata().unwrap();
            let content = match found.file_type() {
                kind if kind.is_file() => match fs::read(&path) {
                    Ok(content) => String::from_utf8_lossy(&content).into_owned(),
                    Err(error) => error.to_string(),
                },
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                _ => String::new(),
            };
            let mut value = [0; 64];
            let length = rustix::fs::lgetxattr(&path, "user.test", &mut value[..]).unwrap_or_default();
            let name = path.strip_prefix(dir).unwrap().display();
            let value = String::from_utf8_lossy(&value[..length]);
            all.push(format!("{name} {:o} {} {content:?} {value:?}", found.mode(), found.nlink()));
            if found.is_dir() {
                left.push(path);
            }
        }
    }
    all.sort();
    all
}

/// A writable mount of the image, and its supervisor.
struct Served {
    mount: Mount,
    supervisor: i32,
    env: TestEnv,
}

impl Served {
    fn new(options: &[&str]) -> Served {
        let env = TestEnv::new();
        Image::new().layer(image()).tag("1").write_layout(&env.path("one"));
        env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
        let upper = env.path("upper");
        let mount = env.mount("one:1", &[&["--upper", upper.to_str().unwrap()], options].concat());
        let supervisor = env.ok(["mounts", "--format", "{{.PID}}"]).trim().parse().unwrap();
        Served { mount, supervisor, env }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.path().join(name)
    }

    fn server(&self) -> Pid {
        server_of(self.supervisor).expect("a server runs")
    }

    /// Kills the server and waits for the next one.
    fn kill(&self) {
        let server = self.server();
        kill_process(server, Signal::KILL).unwrap();
        eventually("the next server runs", || server_of(self.supervisor).is_some_and(|next| next != server));
    }

    fn restarts(&self) -> u32 {
        self.env.ok(["mounts", "--format", "{{.Restarts}}"]).trim().parse().unwrap()
    }

    fn log(&self) -> String {
        let dir = fs::read_dir(self.env.root().join("mounts")).unwrap().next().unwrap().unwrap();
        fs::read_to_string(dir.path().join("log")).unwrap()
    }
}

/// `strace` on a server, which dies when one of its threads makes that many system calls.
struct Trap {
    strace: Child,
    is_over: Arc<AtomicBool>,
}

/// strace at times misses the end of a thread that it has killed, which then never ends: it is killed after this time.
const PATIENCE: Duration = Duration::from_secs(1);

impl Trap {
    fn set(server: Pid, call: u32) -> Trap {
        let pid = server.as_raw_nonzero().to_string();
        let inject = format!("inject=all:signal=SIGKILL:when={call}");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject, "-p", &pid]);
        let strace = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let trap = Trap { strace, is_over: Arc::default() };
        let (is_over, strace) = (trap.is_over.clone(), Pid::from_child(&trap.strace));
        std::thread::spawn(move || {
            let deadline = Instant::now() + PATIENCE;
            while !is_over.load(Ordering::Relaxed) {
                if Instant::now() > deadline {
                    kill_process(strace, Signal::KILL).ok();
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let is_traced = || {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
            tasks.flatten().all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        };
        eventually("strace has attached", is_traced);
        // A server that dies sooner counts as one that cannot begin.
        std::thread::sleep(Duration::from_millis(25));
        trap
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        // On SIGTERM it detaches, and the server goes on.
        kill_process(Pid::from_child(&self.strace), Signal::TERM).ok();
        self.strace.wait().ok();
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Executes an operation again and again, with the server killed at its first, second, ... system call, until it
/// survives. Each result and each tree must be those of a plain directory. `is_up` copies everything up before.
fn dies_at_each_call(prepare: fn(&Path), act: fn(&Path) -> io::Result<String>) {
    static PLAIN: AtomicU32 = AtomicU32::new(0);
    // Without threads of the governor, whose system calls would be counted too.
    let served = Served::new(&["-o", "wake=off,place=off"]);
    let mut case = 0;
    for is_up in [false, true] {
        let prepare_all = |dir: &Path| {
            if is_up {
                for name in ["a", "b", "d", "d/x", "empty"] {
                    fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o700)).unwrap();
                }
            }
            prepare(dir);
        };
        let plain = served.env.path(format!("plain{}", PLAIN.fetch_add(1, Ordering::Relaxed)));
        make_plain(&plain);
        prepare_all(&plain);
        let expected = act(&plain).map_err(|e| e.raw_os_error());
        let expected = (expected, describe(&plain));
        let mut deaths = 0;
        for call in 1.. {
            assert!(call < MOST_CALLS, "an operation never ends");
            let dir = served.path(format!("c{case}"));
            case += 1;
            prepare_all(&dir);
            let server = served.server();
            let trap = Trap::set(server, call);
            let result = act(&dir).map_err(|e| e.raw_os_error());
            drop(trap);
            let found = (result, describe(&dir));
            assert_eq!(found, expected, "killed at call {call}; copied up before: {is_up}\n{}", served.log());
            if served.server() == server {
                break;
            }
            deaths += 1;
        }
        assert!(deaths >= 1, "the server was never killed");
    }
    let tree = describe(&served.path("c0"));
    let upper = served.env.path("upper");
    served.mount.unmount();
    let again = served.env.mount("one:1", &["--upper", upper.to_str().unwrap()]);
    assert_eq!(describe(&again.path().join("c0")), tree, "after a remount");
}

fn done(result: rustix::io::Result<()>) -> io::Result<String> {
    result.map(|()| String::new()).map_err(io::Error::from)
}

fn ready(_: &Path) {}

fn rename(dir: &Path, from: &str, to: &str, flags: RenameFlags) -> io::Result<String> {
    done(renameat_with(CWD, dir.join(from), CWD, dir.join(to), flags))
}

macro_rules! operations {
    ($($name:ident: $prepare:expr, $act:expr;)*) => {
        $(
            #[test]
            fn $name() {
                dies_at_each_call($prepare, $act);
            }
        )*
    };
}

operations! {
    a_directory_is_made_once: ready, |dir| fs::create_dir(dir.join("new")).map(|()| String::new());
    a_file_is_created_exclusively_once: ready, |dir| {
        File::create_new(dir.join("new")).and_then(|mut file| file.write_all(b"data")).map(|()| String::new())
    };
    a_fifo_is_made_once: ready, |dir| {
        done(rustix::fs::mknodat(CWD, dir.join("new"), rustix::fs::FileType::Fifo, 0o640.into(), 0))
    };
    a_symbolic_link_is_made_once: ready, |dir| symlink("target", dir.join("new")).map(|()| String::new());
    a_hard_link_is_made_once: ready, |dir| fs::hard_link(dir.join("a"), dir.join("new")).map(|()| String::new());
    a_file_is_removed_once: ready, |dir| fs::remove_file(dir.join("a")).map(|()| String::new());
    a_directory_is_removed_once: ready, |dir| fs::remove_dir(dir.join("empty")).map(|()| String::new());
    a_file_is_renamed_once: ready, |dir| rename(dir, "a", "new", RenameFlags::empty());
    a_file_replaces_another_once: ready, |dir| rename(dir, "a", "b", RenameFlags::empty());
    a_file_is_moved_without_replacing_once: ready, |dir| rename(dir, "a", "d/new", RenameFlags::NOREPLACE);
    files_are_exchanged_once: ready, |dir| rename(dir, "a", "d/x", RenameFlags::EXCHANGE);
    a_directory_is_moved_once: ready, |dir| rename(dir, "d", "empty", RenameFlags::empty());
    an_attribute_is_created_once: ready, |dir| {
        done(rustix::fs::setxattr(dir.join("a"), "user.test", b"1", XattrFlags::CREATE))
    };
    an_attribute_is_replaced_once: |dir| {
        rustix::fs::setxattr(dir.join("a"), "user.test", b"1", XattrFlags::CREATE).unwrap();
    }, |dir| done(rustix::fs::setxattr(dir.join("a"), "user.test", b"2", XattrFlags::REPLACE));
    an_attribute_is_removed_once: |dir| {
        rustix::fs::setxattr(dir.join("a"), "user.test", b"1", XattrFlags::CREATE).unwrap();
    }, |dir| done(rustix::fs::removexattr(dir.join("a"), "user.test"));
    mode_owner_and_times_are_set: ready, |dir| {
        fs::set_permissions(dir.join("a"), PermissionsExt::from_mode(0o4711))?;
        std::os::unix::fs::chown(dir.join("a"), Some(3), Some(4))?;
        fs::set_permissions(dir.join("a"), PermissionsExt::from_mode(0o4711))?;
        Ok(format!("{:?}", dir.join("a").metadata().map(|found| (found.uid(), found.gid()))?))
    };
    data_is_appended_once: ready, |dir| {
        let mut file = OpenOptions::new().append(true).open(dir.join("a"))?;
        file.write_all(b"one\n")?;
        file.sync_all()?;
        file.write_all(b"two\n")?;
        file.sync_all()?;
        Ok(String::new())
    };
    a_file_is_cut_short: ready, |dir| {
        OpenOptions::new().write(true).open(dir.join("a"))?.set_len(5)?;
        Ok(String::new())
    };
    space_is_allocated_and_punched: ready, |dir| {
        let file = OpenOptions::new().write(true).open(dir.join("a"))?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100)?;
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 3, 4)?;
        Ok(String::new())
    };
    a_range_is_copied: ready, |dir| {
        let (from, to) = (File::open(dir.join("a"))?, OpenOptions::new().write(true).open(dir.join("b"))?);
        let copied = rustix::fs::copy_file_range(&from, Some(&mut 2), &to, Some(&mut 1), 6)?;
        Ok(copied.to_string())
    };
    listings_and_lookups_go_on: ready, |dir| {
        let missing = dir.join("missing").symlink_metadata().map_err(|e| e.kind());
        Ok(format!("{missing:?} {:?}", fs::read_link(dir.join("l"))?))
    };
}

/// The kernel keeps the modification time of a file that it caches: write-back that the server dies in must not change
/// it.
#[test]
fn write_back_that_the_server_dies_in_keeps_the_time_of_the_write() {
    let served = Served::new(&["-o", "wake=off,place=off"]);
    let cases = 1..20;
    let mut times = Vec::new();
    for call in cases.clone() {
        let path = served.path(format!("c{call}/new"));
        let mut file = File::create(&path).unwrap();
        // Before the write: a program that starts closes the file, which writes it back.
        let trap = Trap::set(served.server(), call);
        file.write_all(b"written").unwrap();
        file.sync_all().unwrap();
        drop(trap);
        times.push(path.metadata().unwrap().modified().unwrap());
    }
    let upper = served.env.path("upper");
    let count = served.restarts();
    assert!(count > 2, "{count} restarts");
    served.mount.unmount();
    let again = served.env.mount("one:1", &["--upper", upper.to_str().unwrap()]);
    for (call, time) in cases.zip(times) {
        let path = again.path().join(format!("c{call}/new"));
        assert_eq!(path.metadata().unwrap().modified().unwrap(), time, "killed at call {call}");
        assert_eq!(fs::read(&path).unwrap(), b"written");
    }
}

#[test]
fn open_files_locks_mappings_and_directories_go_on() {
    let served = Served::new(&[]);
    let (image, new) = (served.path("c0/a"), served.path("c0/new"));
    let mut of_image = File::open(&image).unwrap();
    let mut of_upper = OpenOptions::new().read(true).write(true).create_new(true).open(&new).unwrap();
    of_upper.write_all(b"before\n").unwrap();
    let locked = File::open(served.path("c1/a")).unwrap();
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    fs::remove_file(&image).unwrap();
    fs::remove_file(&new).unwrap();
    let dir = rustix::fs::open(served.path("c0"), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    fs::create_dir(served.path("gone")).unwrap();
    let gone = File::open(served.path("gone")).unwrap();
    fs::remove_dir(served.path("gone")).unwrap();
    for round in 0..3 {
        served.kill();
        let mut text = String::new();
        of_image.seek(SeekFrom::Start(0)).unwrap();
        of_image.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content of a\n");
        assert_eq!(of_image.metadata().unwrap().nlink(), 0);
        of_upper.write_all(b"after\n").unwrap();
        of_upper.sync_all().unwrap();
        assert_eq!(of_upper.metadata().unwrap().len(), 7 + 6 * (round + 1));
        assert_eq!(of_upper.metadata().unwrap().nlink(), 0);
        let other = File::open(served.path("c1/a")).unwrap();
        assert_eq!(flock(&other, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::WOULDBLOCK));
        assert!(rustix::fs::statat(&dir, "b", AtFlags::empty()).is_ok());
        assert_eq!(gone.metadata().unwrap().nlink(), 0);
        assert_eq!(rustix::fs::statat(&gone, "x", AtFlags::empty()).map(drop), Err(rustix::io::Errno::NOENT));
    }
    let mut bytes = vec![0; 7];
    of_upper.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, b"before\n");
    drop((of_image, of_upper, gone, dir, locked));
    assert_eq!(served.restarts(), 3);
    served.mount.unmount();
}

/// Guards against a deadlock: for lseek(2) the server makes the kernel write a file's dirty pages back, which waits for a
/// server. If the one that asked is killed then, it cannot end before another one has answered.
#[test]
fn a_server_that_is_killed_while_it_waits_for_write_back_is_replaced() {
    let served = Served::new(&[]);
    let killer = ServerKiller::start(served.supervisor, 5, Duration::from_millis(10));
    let deadline = Instant::now() + Duration::from_secs(4);
    let seek = |number: usize| {
        let path = served.path(format!("c0/seek{number}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        let mut count = 0;
        while Instant::now() < deadline {
            file.write_all_at(&[1; 64 << 10], (count % 8) << 17).unwrap();
            assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(), 64 << 10);
            count += 1;
        }
        assert!(count > 10, "{count}");
    };
    std::thread::scope(|scope| {
        (0..3).for_each(|number| drop(scope.spawn(move || seek(number))));
    });
    assert!(killer.kills() > 10);
    drop(killer);
    served.mount.unmount();
}

/// Guards against a server that keeps the descriptors of dead ones: each would leave some more.
#[test]
fn restarts_leave_no_descriptors_open() {
    let served = Served::new(&[]);
    let count = || fs::read_dir(format!("/proc/{}/fd", served.supervisor)).unwrap().count();
    let touch = |number: u32| {
        fs::write(served.path(format!("c{number}/new")), "new").unwrap();
        fs::remove_file(served.path(format!("c{number}/new"))).unwrap();
    };
    (0..20).for_each(touch);
    served.kill();
    fs::read(served.path("c0/a")).unwrap();
    let first = count();
    for _ in 0..5 {
        (0..20).for_each(touch);
        served.kill();
        fs::read(served.path("c0/a")).unwrap();
    }
    assert!(count() <= first + 2, "{} descriptors, {first} before", count());
    served.mount.unmount();
}

/// A control group with a memory limit. Dropping it removes it, once its processes have ended.
struct MemoryLimit {
    dir: PathBuf,
    file: &'static str,
}

impl MemoryLimit {
    /// Returns `None` if no memory controller is mounted.
    fn new(processes: &[i32], bytes: u64) -> Option<MemoryLimit> {
        let found = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let name = format!("plyfs-test-{}", std::process::id());
        let group = |(root, file): (&str, &'static str)| {
            let dir = Path::new(root).join(&name);
            fs::create_dir(&dir).ok()?;
            Some(MemoryLimit { dir, file }).filter(|limit| limit.dir.join(file).exists())
        };
        let limit = found.into_iter().find_map(group)?;
        limit.set(bytes);
        processes.iter().for_each(|pid| fs::write(limit.dir.join("cgroup.procs"), pid.to_string()).unwrap());
        Some(limit)
    }

    fn set(&self, bytes: u64) {
        fs::write(self.dir.join(self.file), bytes.to_string()).unwrap();
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        eventually("the control group is empty", || fs::remove_dir(&self.dir).is_ok() || !self.dir.exists());
    }
}

#[test]
fn a_server_that_is_killed_for_its_memory_while_it_lists_a_directory_is_replaced() {
    const NAMES: usize = 40_000;
    let served = Served::new(&[]);
    fs::create_dir(served.path("big")).unwrap();
    (0..NAMES).for_each(|number| drop(File::create(served.path(format!("big/{number}"))).unwrap()));
    let Some(limit) = MemoryLimit::new(&[served.supervisor], 6 << 20) else {
        println!("no memory controller is mounted here");
        return served.mount.unmount();
    };
    drop_inodes();
    // The next one is in the control group.
    kill_process(served.server(), Signal::KILL).unwrap();
    let listed = std::thread::spawn({
        let dir = served.path("big");
        move || fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    });
    eventually("a server is killed for its memory", || served.restarts() > 1);
    limit.set(1 << 30);
    assert_eq!(listed.join().unwrap().len(), NAMES);
    let log = served.log();
    assert!(log.contains("signal 9"), "{log}");
    served.mount.unmount();
}

/// Walks over more names than the server may keep, a part at a time. 540 bytes are kept of each that the kernel knows.
#[test]
fn names_that_the_kernel_has_forgotten_take_no_memory() {
    const PARTS: usize = 8;
    const NAMES: usize = 10_000;
    let served = Served::new(&[]);
    let upper = served.env.path("upper");
    let name = |part: usize, number: usize| format!("part{part}/{number}");
    for part in 0..PARTS {
        fs::create_dir(served.path(format!("part{part}"))).unwrap();
        (0..NAMES).for_each(|number| fs::write(upper.join(name(part, number)), number.to_string()).unwrap());
    }
    served.mount.unmount();
    let mount = served.env.mount("one:1", &["--upper", upper.to_str().unwrap()]);
    let supervisor = supervisor_of(&upper).unwrap();
    let private = || {
        let server = server_of(supervisor).unwrap().as_raw_nonzero();
        let all = fs::read_to_string(format!("/proc/{server}/smaps_rollup")).unwrap();
        let lines = all.lines().filter(|line| line.starts_with("Private"));
        lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()).sum::<usize>() << 10
    };
    for part in 0..PARTS {
        let dir = mount.path().join(format!("part{part}"));
        let walked =
            fs::read_dir(&dir).unwrap().filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() > 0).count();
        assert_eq!(walked, NAMES);
        // Changed while it is loaded for the first time: read below when it is loaded again.
        fs::rename(dir.join("0"), dir.join("moved")).unwrap();
        fs::remove_file(dir.join("1")).unwrap();
        rustix::fs::sync();
        (0..3).for_each(|_| drop_inodes());
    }
    assert!(private() < PARTS * NAMES * 540 * 3 / 5, "{} bytes are kept", private());
    for part in 0..PARTS {
        let path = |number| mount.path().join(name(part, number));
        assert_eq!(fs::read_to_string(path(777)).unwrap(), "777");
        assert_eq!(fs::read_to_string(mount.path().join(format!("part{part}/moved"))).unwrap(), "0");
        assert!(!path(0).exists() && !path(1).exists());
        assert_eq!(fs::read_dir(mount.path().join(format!("part{part}"))).unwrap().count(), NAMES - 1);
    }
    mount.unmount();
}

#[test]
fn each_restart_is_in_the_log_and_counted() {
    let served = Served::new(&[]);
    let score =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse::<i32>().unwrap();
    let server = served.server().as_raw_nonzero().get();
    assert!(score(server) > score(served.supervisor), "the kernel must prefer the server when memory runs out");
    served.kill();
    assert_eq!(fs::read(served.path("c0/b")).unwrap(), b"b\n");
    assert_eq!(served.restarts(), 1);
    let hangup = Pid::from_raw(served.supervisor).unwrap();
    kill_process(hangup, Signal::HUP).unwrap();
    eventually("the server is restarted on request", || served.restarts() == 2);
    assert_eq!(fs::read(served.path("c1/b")).unwrap(), b"b\n");
    let log = served.log();
    assert!(log.contains("the server died after") && log.contains("signal 9"), "{log}");
    assert!(log.contains("restarting the server"), "{log}");
    served.mount.unmount();
}

#[test]
fn a_server_that_cannot_live_leaves_errors_and_no_hanging_programs() {
    let served = Served::new(&[]);
    let mut last = served.server();
    kill_process(last, Signal::KILL).unwrap();
    // Each next one is killed as soon as it is there, until there is none.
    eventually("the supervisor gives up", || {
        let next = server_of(served.supervisor).filter(|next| *next != last);
        if served.log().contains("answers EIO") {
            return true;
        }
        if let Some(next) = next {
            last = next;
            kill_process(next, Signal::KILL).ok();
        }
        false
    });
    assert_eq!(fs::read(served.path("c7/a")).unwrap_err().raw_os_error(), Some(5));
    served.mount.unmount();
}

#[test]
fn a_containers_files_survive_the_death_of_their_server() {
    let env = TestEnv::new();
    let tar =
        Tar::new().dir("bin").add(Entry::file("bin/busybox", fs::read("/bin/busybox").unwrap()).mode(0o755)).finish();
    Image::new().layer(tar).tag("1").write_layout(&env.path("box"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("box").display())]);
    let script = "i=0; while [ $i -lt 300 ]; do /bin/busybox mkdir /d$i || exit 1; echo $i > /d$i/f || exit 2; \
                  /bin/busybox mv /d$i /e$i || exit 3; i=$((i+1)); done; /bin/busybox ls -d /e[0-9]* | /bin/busybox wc -l";
    let mut command = env.command(["run", "--rm", "--network", "none", "box:1", "/bin/busybox", "sh", "-c", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut killer = None;
    eventually("the container's supervisor runs", || {
        killer = supervisors_in(&env.root()).into_iter().next();
        killer.is_some()
    });
    let killer = ServerKiller::start(killer.unwrap(), 77, Duration::from_millis(30));
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "300", "{output:?}");
    assert!(killer.kills() > 0);
}

/// The user ID of `nobody`: fusermount3 serves only users of the password database.
const NOBODY: u32 = 65534;

#[test]
fn a_plain_users_mount_survives_the_death_of_its_server() {
    let env = TestEnv::new();
    Image::new().layer(image()).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    fs::set_permissions(env.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["root", "at", "mine"] {
        fs::create_dir_all(env.path(name)).unwrap();
        let owner = format!("{NOBODY}:{NOBODY}");
        assert!(Command::new("chown").args(["-R", &owner]).arg(env.path(name)).status().unwrap().success());
    }
    let (upper, at) = (env.path("mine/upper").display().to_string(), env.path("at"));
    let user = |args: &[&str]| run(&mut env.as_user(NOBODY, args));
    let mounted = user(&["mount", "--upper", &upper, "one:1", at.to_str().unwrap()]);
    assert_eq!(mounted.code, 0, "{mounted:?}");
    let supervisor = user(&["mounts", "--format", "{{.PID}}"]).stdout.trim().parse().unwrap();
    let killer = ServerKiller::start(supervisor, 9, Duration::from_millis(30));
    let script = "i=0; while [ $i -lt 300 ]; do mkdir n$i && echo $i >n$i/f && mv n$i m$i && ln m$i/f m$i/g && \
                  rm m$i/f && chown 5:6 m$i/g 2>/dev/null; [ $(cat m$i/g) = $i ] || exit 1; i=$((i+1)); done; \
                  rm -r c0 c1 && ls -d m* | wc -l";
    let output = run(Command::new("sh").args(["-c", script]).current_dir(&at).uid(NOBODY).gid(NOBODY));
    let kills = killer.kills();
    drop(killer);
    let ended = user(&["umount", at.to_str().unwrap()]);
    assert_eq!((output.code, output.stdout.trim()), (0, "300"), "{output:?}");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(kills > 3, "{kills} kills");
}

/// Installs a program, as a package manager does: a new file takes the place of the old one.
fn install(program: &[u8], at: &Path) {
    let new = at.with_extension("new");
    fs::write(&new, program).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(new, at).unwrap();
}

#[test]
fn an_installed_program_takes_a_live_mount_over() {
    let env = TestEnv::new();
    Image::new().layer(image()).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    let (program, bytes) = (env.path("plyfs"), fs::read(env!("CARGO_BIN_EXE_plyfs")).unwrap());
    install(&bytes, &program);
    // A relative path: the new program must find it although the daemon has changed its directory.
    let mut command = Command::new(&program);
    command.current_dir(env.path("")).arg("--root").arg(env.root()).args(["mount", "--upper", "upper", "one:1"]);
    let mount = Mount::start(&env, &mut command);
    let supervisor: i32 = env.ok(["mounts", "--format", "{{.PID}}"]).trim().parse().unwrap();
    let mut open = OpenOptions::new().read(true).write(true).create_new(true).open(mount.path().join("new")).unwrap();
    open.write_all(b"open\n").unwrap();
    fs::remove_file(mount.path().join("new")).unwrap();
    let (at, ends) = (mount.path().to_owned(), Arc::new(AtomicBool::new(false)));
    let load = std::thread::spawn({
        let ends = ends.clone();
        move || {
            let mut count = 0;
            while !ends.load(Ordering::Relaxed) {
                let path = at.join(format!("load{count}"));
                fs::write(&path, count.to_string()).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), count.to_string());
                count += 1;
            }
            count
        }
    });
    for round in 1..4 {
        install(&bytes, &program);
        let installed = program.metadata().unwrap().ino();
        env.ok([std::ffi::OsStr::new("mount"), "--restart-server".as_ref(), mount.path().as_os_str()]);
        let runs = fs::metadata(format!("/proc/{supervisor}/exe")).unwrap().ino();
        assert_eq!(runs, installed, "the installed program runs as the same process");
        assert_eq!(env.ok(["mounts", "--format", "{{.PID}} {{.Restarts}}"]), format!("{supervisor} {round}\n"));
        let refused = env.fails(["mount", "--upper", env.path("upper").to_str().unwrap(), "one:1", "/mnt"]);
        assert!(refused.contains("in use"), "{refused}");
    }
    ends.store(true, Ordering::Relaxed);
    assert!(load.join().unwrap() > 0);
    let mut text = String::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), open.metadata().unwrap().nlink()), ("open\n", 0));
    drop(open);
    mount.unmount();
    assert_eq!(fs::read(env.path("upper/load0")).unwrap(), b"0");
}

#[test]
fn a_program_of_another_version_takes_nothing_over() {
    let env = TestEnv::new();
    Image::new().layer(image()).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    let program = env.path("plyfs");
    install(&fs::read(env!("CARGO_BIN_EXE_plyfs")).unwrap(), &program);
    let mut command = Command::new(&program);
    let mount = Mount::start(&env, command.arg("--root").arg(env.root()).args(["mount", "one:1"]));
    let before = env.ok(["mounts", "--format", "{{.PID}}"]);
    install(b"#!/bin/sh\necho 99\n", &program);
    env.ok([std::ffi::OsStr::new("mount"), "--restart-server".as_ref(), mount.path().as_os_str()]);
    assert_eq!(env.ok(["mounts", "--format", "{{.PID}}"]), before);
    assert_eq!(fs::read(mount.path().join("c0/b")).unwrap(), b"b\n");
    let dir = fs::read_dir(env.root().join("mounts")).unwrap().next().unwrap().unwrap();
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("cannot take over (it says `99`, not 1)"), "{log}");
    mount.unmount();
}

#[test]
fn a_server_is_restarted_by_the_path_of_its_mount_only() {
    let env = TestEnv::new();
    let said = env.fails(["mount", "--restart-server", "/"]);
    assert_eq!(said, "Error: / is not a mount of this store");
}
