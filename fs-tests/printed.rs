//! Mounts without a mountpoint argument: plyfs creates one in the store and prints it, for scripts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::killer::server_of;
use rustix::process::{Pid, Signal, kill_process};

use super::support::env::{TestEnv, run};
use super::support::eventually;
use super::support::oci::Image;
use super::support::tar::Tar;

/// Unmounts the test's mount on drop, also after a panic.
struct PrintedMount<'a> {
    env: &'a TestEnv,
    at: PathBuf,
}

impl<'a> PrintedMount<'a> {
    #[track_caller]
    fn new(env: &'a TestEnv, options: &[&str]) -> PrintedMount<'a> {
        let output = env.ok(["mount", "--print"].iter().chain(options).chain(&["app"]));
        assert_eq!(output.lines().count(), 1, "{output}");
        PrintedMount { env, at: output.trim_end().into() }
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.at.join(name)).ok()
    }

    #[track_caller]
    fn unmount(self) {
        self.env.ok(["umount", self.at.to_str().unwrap()]);
        assert!(!self.at.exists() && !self.at.with_file_name("upper").exists());
    }
}

impl Drop for PrintedMount<'_> {
    fn drop(&mut self) {
        if self.at.with_file_name("lock").exists() {
            run(&mut self.env.command(["umount", "--lazy", self.at.to_str().unwrap()]));
        }
    }
}

fn create_store() -> TestEnv {
    let env = TestEnv::new();
    let tar = Tar::new().file("file", "of the image").file("big", vec![7; 1 << 20]).finish();
    Image::new().layer(tar).tag("1").write_layout(&env.path("app"));
    let pulled = env.ok(["pull", "-q", &format!("oci:{}:1", env.path("app").display())]);
    env.ok(["tag", pulled.trim(), "app"]);
    env
}

#[test]
fn a_temporary_tree_is_removed_when_it_is_unmounted() {
    let env = create_store();
    let (one, two) = (PrintedMount::new(&env, &["--rw"]), PrintedMount::new(&env, &["--rw"]));
    fs::write(one.at.join("file"), "changed").unwrap();
    fs::write(one.at.join("new"), "new").unwrap();
    assert_eq!((one.read("file"), two.read("file")), (Some("changed".into()), Some("of the image".into())));
    assert!(one.at.starts_with(env.root()) && one.at != two.at);
    assert_eq!(env.ok(["mounts", "--format", "{{.Mode}}"]), "rw\nrw\n");
    one.unmount();
    let again = PrintedMount::new(&env, &["--rw"]);
    assert_eq!((again.read("file"), again.read("new")), (Some("of the image".into()), None));
    again.unmount();
    two.unmount();
    let plain = PrintedMount::new(&env, &[]);
    assert_eq!(plain.read("file"), Some("of the image".into()));
    assert!(fs::write(plain.at.join("file"), "x").is_err());
    plain.unmount();
    // An upper directory given by the user is kept.
    let upper = env.path("changes");
    let kept = PrintedMount::new(&env, &["--upper", upper.to_str().unwrap()]);
    fs::write(kept.at.join("file"), "changed").unwrap();
    kept.unmount();
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "changed");
    assert_eq!(env.ok(["system", "fsck"]), "");
    let output = run(&mut env.command(["mount", "--print", "app", "/mnt"]));
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    assert!(output.stderr.starts_with("\"plyfs mount --print\" requires exactly 1 argument."), "{output:?}");
    assert_eq!(env.fails(["mount", "--print", "nope"]), "Error: No such image: nope:latest");
}

#[test]
fn gc_removes_what_a_killed_mount_left() {
    let env = create_store();
    let killed = PrintedMount::new(&env, &["--rw"]);
    fs::write(killed.at.join("new"), "new").unwrap();
    let pid: i32 = env.ok(["mounts", "--format", "{{.PID}}"]).trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    eventually("the mount is dead", || env.ok(["mounts", "--format", "{{.State}}"]) == "dead\n");
    env.ok(["system", "gc"]);
    let dir = killed.at.parent().unwrap();
    let left: Vec<_> = fs::read_dir(dir).map(|all| all.map(|e| e.unwrap().file_name()).collect()).unwrap_or_default();
    assert!(left.iter().all(|name| name == "log"), "{left:?}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(killed.at.to_str().unwrap()));
}

/// The store's files that the server of a supervisor has mapped, as device and inode numbers.
fn mapped(root: &Path, supervisor: &str) -> BTreeSet<String> {
    let pid = server_of(supervisor.parse().unwrap()).unwrap().as_raw_nonzero();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let of_store = maps.lines().filter(|line| line.contains(root.to_str().unwrap()));
    of_store.map(|line| line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn parallel_mounts_share_the_index_and_the_page_cache() {
    let env = create_store();
    let all: Vec<PrintedMount> = (0..3).map(|_| PrintedMount::new(&env, &["--rw"])).collect();
    for one in &all {
        assert_eq!(fs::read(one.at.join("big")).unwrap(), vec![7; 1 << 20]);
    }
    let pids = env.ok(["mounts", "--format", "{{.PID}}"]);
    let maps: Vec<_> = pids.lines().map(|pid| mapped(&env.root(), pid)).collect();
    assert_eq!(maps.len(), 3);
    assert!(maps[0].len() >= 2, "a tree and a tar: {maps:?}");
    assert!(maps.iter().all(|one| *one == maps[0]), "{maps:?}");
    all.into_iter().for_each(PrintedMount::unmount);
}

#[test]
fn rm_unmounts_and_removes_the_mountpoint() {
    let env = create_store();
    let (one, two) = (PrintedMount::new(&env, &["--rw"]), PrintedMount::new(&env, &[]));
    let id = two.at.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let path = one.at.to_str().unwrap();
    assert_eq!(env.ok(["rm", path]), format!("{path}\n"));
    assert_eq!(env.ok(["rm", &id]), format!("{id}\n"));
    assert!(!one.at.exists() && !two.at.exists());
    assert_eq!(env.fails(["rm", path]), format!("Error: No such container: {path}"));
}
