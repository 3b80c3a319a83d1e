//! Access to a container: its log, its files while its processes change them, `exec`, and the removal of its cgroups.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use plyfs::container::control;
use plyfs::store::Store;
use rustix::process::{Pid, Signal, kill_process};

use super::support::env::{TestEnv, run};
use super::support::eventually;
use super::support::small::{NEWS, SubordinateIds, Tmux, environment, for_user};

/// Copies a tree and removes it, again and again, and counts.
const COPY_LOOP: &str = "mkdir /w; cd /w; mkdir a; for d in 1 2 3 4 5 6; do mkdir a/$d; for f in 1 2 3 4 5 6 7 8; do \
                    echo $f > a/$d/$f; ln a/$d/$f a/$d/l$f; done; done; n=0; while :; do busybox cp -a a b; \
                    busybox rm -r b; n=$((n+1)); echo $n > /n; done";

/// Removes the containers of a store, also when a test fails.
struct ContainerCleanup<'a>(&'a TestEnv);

impl Drop for ContainerCleanup<'_> {
    fn drop(&mut self) {
        for id in run(&mut self.0.command(["ps", "-aq"])).stdout.lines() {
            run(&mut self.0.command(["rm", "-f", id]));
        }
    }
}

fn container_dir(env: &TestEnv) -> PathBuf {
    fs::read_dir(env.root().join("containers")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn commit_and_export_pause_a_running_container() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    env.ok(["run", "-d", "--name", "web", "box:1", "sh", "-c", COPY_LOOP]);
    let count = || run(&mut env.command(["exec", "web", "cat", "/n"])).stdout;
    eventually("the container copies files", || !count().is_empty());
    for round in 0..6 {
        env.ok(["diff", "web"]);
        env.ok(if round % 2 == 0 {
            ["commit", "-p", "web", "busy:1"]
        } else {
            ["commit", "--pause=true", "web", "busy:1"]
        });
        env.ok(["cp", "web:/w", env.path(format!("copy-{round}")).to_str().unwrap()]);
    }
    // The container is not left paused, and it does not run while a client pauses it.
    let before = count();
    eventually("the container runs again", || count() != before);
    let dir = container_dir(&env);
    let number = || env.ok(["cp", "web:/n", "-"]);
    let paused = (control::pause(&dir).unwrap(), control::pause(&dir).unwrap());
    let at_rest = number();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(number(), at_rest);
    // A closed connection, as of a killed client, ends that client's pause; the other client still pauses it.
    drop(paused.0);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(number(), at_rest);
    drop(paused.1);
    eventually("the container runs again", || number() != at_rest);
    env.ok(["rm", "-f", "web"]);
}

#[test]
fn a_container_is_unpaused_however_its_commit_ends() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    env.ok(["run", "-d", "--name", "web", "box:1", "sh", "-c", COPY_LOOP]);
    let number = || run(&mut env.command(["cp", "web:/n", "-"])).stdout;
    eventually("the container copies files", || !number().is_empty());
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        // The commit pauses the container, then waits for the store's lock.
        let lock = Store::open(&env.root()).unwrap().lock_exclusive().unwrap();
        let mut commit = env.command(["commit", "web", "busy:1"]).spawn().unwrap();
        eventually("it is paused", || {
            let before = number();
            thread::sleep(Duration::from_millis(200));
            number() == before
        });
        let at_rest = number();
        kill_process(Pid::from_child(&commit), signal).unwrap();
        eventually("the container runs again", || number() != at_rest);
        assert!(!commit.wait().unwrap().success());
        drop(lock);
    }
}

#[test]
fn a_paused_container_can_be_killed() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    env.ok(["run", "-d", "--name", "web", "box:1", "sh", "-c", COPY_LOOP]);
    let paused = control::pause(&container_dir(&env)).unwrap();
    let mut rm = env.command(["rm", "-f", "web"]).spawn().unwrap();
    thread::sleep(Duration::from_millis(200));
    drop(paused);
    assert!(rm.wait().unwrap().success());
}

#[test]
fn a_plain_users_container_is_read_again_until_it_stops_changing() {
    let (env, home) = for_user(NEWS);
    let _cleanup = ContainerCleanup(&env);
    let _subordinate_ids = SubordinateIds::add("news", 1_700_400_000);
    let user = |words: &[&str]| run(&mut env.as_user(NEWS, words));
    assert_eq!(user(&["run", "-d", "--name", "web", "box:1", "sh", "-c", COPY_LOOP]).code, 0);
    eventually("the container copies files", || !user(&["exec", "web", "cat", "/n"]).stdout.is_empty());
    for round in 0..4 {
        let copy = home.join(format!("copy-{round}")).display().to_string();
        for words in [&["diff", "web"][..], &["commit", "web", "busy:1"], &["cp", "web:/w", &copy]] {
            let done = user(words);
            assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{words:?}");
        }
    }
    assert_eq!(user(&["rm", "-f", "web"]).code, 0);
}

#[test]
fn logs_prints_the_output_of_a_container_run_in_the_foreground() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    let printing = "echo one; echo bad >&2; echo two; printf end; exit 3";
    let shown = run(&mut env.command(["run", "--name", "front", "box:1", "sh", "-c", printing]));
    assert_eq!((shown.code, shown.stdout.as_str(), shown.stderr.as_str()), (3, "one\ntwo\nend", "bad\n"));
    let logged = run(&mut env.command(["logs", "front"]));
    assert_eq!((logged.code, logged.stdout.as_str(), logged.stderr.as_str()), (0, "one\ntwo\nend", "bad\n"));
    // The next run appends to the log, in the foreground or not.
    run(&mut env.command(["start", "-a", "front"]));
    assert_eq!(run(&mut env.command(["logs", "front"])).stdout, "one\ntwo\nend".repeat(2));
}

#[test]
fn logs_prints_the_output_of_a_container_on_a_terminal() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    let plyfs = format!("{:?}", env.command(["run"])).replace("env -u PLYFS_ROOT ", "");
    let tmux = Tmux::start(&env);
    tmux.type_line(&format!("clear; {plyfs} -t --name term box:1 sh -c 'echo at a terminal'"));
    tmux.wait_for_line("at a terminal");
    eventually("it has ended", || !env.ok(["ps", "-aq", "-f", "status=exited"]).is_empty());
    assert_eq!(env.ok(["logs", "term"]), "at a terminal\r\n");
}

#[test]
fn an_unwritable_log_does_not_withhold_output_from_the_caller() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    env.ok(["create", "--name", "front", "box:1", "sh", "-c", "echo one; echo two; exit 3"]);
    symlink("/dev/full", container_dir(&env).join("log")).unwrap();
    let shown = run(&mut env.command(["start", "-a", "front"]));
    assert_eq!((shown.code, shown.stdout.as_str(), shown.stderr.as_str()), (3, "one\ntwo\n", ""));
}

#[test]
fn root_runs_a_command_in_a_plain_users_container() {
    let (env, _home) = for_user(NEWS);
    let _cleanup = ContainerCleanup(&env);
    let _subordinate_ids = SubordinateIds::add("news", 1_700_500_000);
    let user = |words: &[&str]| run(&mut env.as_user(NEWS, words));
    assert_eq!(user(&["run", "-d", "--name", "web", "box:1", "sleep", "4741"]).code, 0);
    let exec = |words: &[&str]| run(&mut env.command([&["exec"], words].concat()));
    let seen = exec(&["-u", "ann", "web", "sh", "-c", "id -u; id -g"]);
    assert_eq!((seen.code, seen.stdout.as_str()), (0, "1000\n1001\n"), "{seen:?}");
    let root = exec(&["web", "cat", "/proc/self/status"]);
    assert_eq!(root.code, 0, "{root:?}");
    // Root's supplementary groups are not passed on.
    let groups = root.stdout.lines().find(|line| line.starts_with("Groups:")).unwrap();
    let inside = ["", "0"];
    assert!(inside.contains(&groups.trim_start_matches("Groups:").trim()), "{groups}");
    let made = exec(&["web", "touch", "/made"]);
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    assert_eq!(env.ok(["diff", "web"]), "A /made\n");
    assert_eq!(user(&["exec", "web", "stat", "-c", "%u", "/made"]).stdout, "0\n");
    assert_eq!(user(&["rm", "-f", "web"]).code, 0);
}

/// The parent cgroups of containers, in each hierarchy, that hold no container's cgroup.
fn empty_cgroups() -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let all = all.chain([Path::new("/sys/fs/cgroup").to_owned()]).map(|hierarchy| hierarchy.join("plyfs"));
    let holds = |path: &PathBuf| {
        fs::read_dir(path).into_iter().flatten().any(|entry| entry.is_ok_and(|entry| entry.path().is_dir()))
    };
    all.filter(|path| path.exists() && !holds(path)).collect()
}

#[test]
fn concurrent_containers_leave_no_cgroup_behind() {
    let env = environment();
    let _cleanup = ContainerCleanup(&env);
    let ends = || {
        for _ in 0..4 {
            let ran = run(&mut env.command(["run", "--rm", "box:1", "true"]));
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        }
    };
    thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(ends))));
    // Containers of other tests may be between creating the parent cgroup and their own.
    eventually("the cgroup of all is gone", || {
        env.ok(["run", "--rm", "box:1", "true"]);
        empty_cgroups().is_empty()
    });
}
