//! podman and buildah with an overlay mount program, each in its own store, as root or as a plain user; and the
//! comparison of their output between two mount programs.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex_lite::Regex;
use rustix::process::{Pid, Signal, kill_process};

use super::env::{Output, TestEnv, run};
use super::eventually;
use super::nest::{NestedFs, UpperFs};
use super::small::SubordinateIds;

/// The default engine under test; `PLYFS_TEST_ENGINE` overrides it: `plyfs`, `fuse-overlayfs`, or `overlayfs`, which is
/// kernel overlayfs without a mount program. A failure on kernel overlayfs is a fault of the test or of fuse-overlayfs.
const UNDER_TEST: &str = "plyfs";
/// The mount program that all are compared with.
const PEER: &str = "/usr/bin/fuse-overlayfs";
/// A Python script that lists a tree.
pub const LIST_TREE: &str = include_str!("../../scripts/lib/list-tree.py");

/// The user that runs podman.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodmanUser {
    /// Root, with runc and without a user namespace.
    Root,
    /// A plain user that every Debian has. Each test uses a different one: podman maps all of a user's IDs in
    /// `/etc/subuid`, and would see the lines that other tests add.
    User(&'static str, u32),
}

/// A podman store, with its directories, configuration and processes.
pub struct Store {
    /// The file system of its images and containers.
    nest: NestedFs,
    /// The processes that serve that file system.
    server_pids: Vec<Pid>,
    /// Its directory, which the user can access.
    pub env: TestEnv,
    /// The user of the store.
    pub user: PodmanUser,
    program: Option<PathBuf>,
    records: RefCell<Vec<String>>,
}

/// Returns the mount program for a new store.
type Program = fn(&TestEnv, PodmanUser) -> Option<PathBuf>;

/// The name of the engine under test.
fn engine() -> String {
    let chosen = std::env::var("PLYFS_TEST_ENGINE").ok().filter(|name| !name.is_empty());
    chosen.unwrap_or_else(|| UNDER_TEST.to_owned())
}

/// Whether kernel overlayfs is under test: podman then detects changes and maps users in another way.
pub fn is_kernel_overlayfs() -> bool {
    engine() == "overlayfs"
}

/// The program under test, as a link in the store's directory. For a plain user, who may have no access to the build
/// directory, a copy by cp.
fn tested_program(env: &TestEnv, user: PodmanUser) -> Option<PathBuf> {
    match engine().as_str() {
        "overlayfs" => None,
        "fuse-overlayfs" => Some(PEER.into()),
        "plyfs" => {
            let (mut program, link) = (PathBuf::from(env!("CARGO_BIN_EXE_plyfs")), env.path("fuse-overlayfs"));
            if user != PodmanUser::Root {
                assert_eq!(run(Command::new("cp").arg(&program).arg(env.path("plyfs"))).code, 0);
                program = env.path("plyfs");
            }
            std::os::unix::fs::symlink(program, &link).unwrap();
            Some(link)
        }
        other => panic!("PLYFS_TEST_ENGINE={other}: wanted plyfs, overlayfs or fuse-overlayfs"),
    }
}

/// Runs the same steps in a store over fuse-overlayfs and in one over the program under test, and requires the same
/// output. `allowed` lists prefixes of lines that may differ: `-` for those of fuse-overlayfs, `+` for the others'.
#[track_caller]
pub fn compare(user: PodmanUser, allowed: &[(&str, &str)], scenario: impl Fn(&Store) + Sync) {
    compare_on(UpperFs::Disk, user, allowed, scenario);
}

/// Like [`compare`], with the stores on the given file system.
#[track_caller]
pub fn compare_on(upper_fs: UpperFs, user: PodmanUser, allowed: &[(&str, &str)], scenario: impl Fn(&Store) + Sync) {
    let _subordinate_ids = match user {
        PodmanUser::Root => None,
        PodmanUser::User(name, id) => Some(SubordinateIds::add(name, 1_700_000_000 + id * 100_000)),
    };
    let one = |program: Program| {
        let store = Store::new(upper_fs, user, program);
        scenario(&store);
        store.finish()
    };
    // In parallel, since each mostly waits for its own processes.
    let (peer, tested) = std::thread::scope(|scope| {
        let peer = scope.spawn(|| one(|_, _| Some(PEER.into())));
        let tested = one(tested_program);
        (peer.join(), tested)
    });
    let peer = peer.expect("the scenario failed over fuse-overlayfs");
    let mut found = differences(&peer, &tested);
    found.retain(|line| !allowed.iter().any(|(begins, _)| line.starts_with(begins)));
    assert!(found.is_empty(), "- over fuse-overlayfs, + over the program under test:\n{}", found.join("\n"));
}

/// Requires that two trees of one store are the same.
#[track_caller]
pub fn assert_same(what: &str, one: &str, other: &str) {
    let found = differences(&[one.to_owned()], &[other.to_owned()]);
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// The lines that only one side has, each with its step; stops at a difference in the number of steps.
fn differences(peer: &[String], tested: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (one, other) in peer.iter().zip(tested).filter(|(one, other)| one != other) {
        let only = |text: &str, other: &str, sign: char| {
            let others: Vec<&str> = other.lines().collect();
            let lines = text.lines().filter(|line| !others.contains(line));
            lines.map(|line| format!("{sign}{line}")).collect::<Vec<_>>()
        };
        let (less, more) = (only(one, other, '-'), only(other, one, '+'));
        let step = one.lines().next().unwrap_or_default();
        // The same lines in another order are a difference too.
        let order = if less.is_empty() && more.is_empty() { vec![format!("order: {step}")] } else { Vec::new() };
        found.extend([less, more, order].concat());
    }
    if peer.len() != tested.len() {
        found.push(format!("{} steps and {}", peer.len(), tested.len()));
    }
    found
}

impl Store {
    fn new(upper_fs: UpperFs, user: PodmanUser, program: Program) -> Store {
        let env = TestEnv::new();
        let nest = NestedFs::new(&env, upper_fs);
        let server_pids = find_processes(&env);
        fs::set_permissions(env.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        let program = program(&env, user);
        let mount = program.as_ref().map_or(String::new(), |at| format!("mount_program = \"{}\"\n", at.display()));
        let folders = ["nest/graph", "run", "home", "xdg", "tmp", "libpod", "work"];
        folders.iter().for_each(|name| fs::create_dir(env.path(name)).unwrap());
        let path = |name: &str| env.path(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n[storage.options.overlay]\n{mount}",
            path("nest/graph"),
            path("run"),
        );
        fs::write(env.path("storage.conf"), storage).unwrap();
        // podman's default limits exceed what root without CAP_SYS_RESOURCE may set. Locks are in files, because all
        // stores of a user share those in memory.
        let engine = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\nruntime = \
             \"runc\"\ntmp_dir = \"{}\"\n[network]\nnetwork_config_dir = \"{}\"\n[containers]\nlog_driver = \
             \"k8s-file\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
            path("libpod"),
            path("home/cni"),
        );
        fs::write(env.path("containers.conf"), engine).unwrap();
        if let PodmanUser::User(_, id) = user {
            let mut command = Command::new("chown");
            command.arg(format!("{id}:{id}")).args(folders.iter().map(|name| env.path(name)));
            assert_eq!(run(&mut command).code, 0);
        }
        Store { nest, server_pids, env, user, program, records: RefCell::default() }
    }

    /// Whether the store uses fuse-overlayfs, which gets some things wrong that only the others are tested for.
    pub fn is_peer(&self) -> bool {
        self.program.as_deref() == Some(Path::new(PEER))
    }

    /// A command run as the store's user, in its directory `work`.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.env.path("work"));
        command.env("CONTAINERS_STORAGE_CONF", self.env.path("storage.conf"));
        command.env("CONTAINERS_CONF", self.env.path("containers.conf"));
        command.env("HOME", self.env.path("home")).env("XDG_RUNTIME_DIR", self.env.path("xdg"));
        // A plain user's chroot isolation uses a directory in `/tmp`, which it would leave behind and may not be able
        // to write.
        let isolation = match (program, self.user) {
            ("buildah", PodmanUser::Root) => "chroot",
            ("buildah", PodmanUser::User(..)) => "rootless",
            _ => "oci",
        };
        command.env("TMPDIR", self.env.path("tmp")).env("BUILDAH_ISOLATION", isolation);
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "REGISTRY_AUTH_FILE", "DBUS_SESSION_BUS_ADDRESS"] {
            command.env_remove(name);
        }
        if let PodmanUser::User(_, id) = self.user {
            command.uid(id).gid(id);
        }
        command
    }

    /// Run podman and require success; returns its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.run_ok("podman", args)
    }

    /// Run buildah, without a runtime where possible, and require success; records its standard output.
    #[track_caller]
    pub fn buildah(&self, args: &[&str]) {
        let output = self.run_ok("buildah", args);
        self.record(&format!("buildah {}", args.join(" ")), &output);
    }

    /// Run a program as the store's user, and require success; returns its standard output.
    #[track_caller]
    pub fn run_ok(&self, program: &str, args: &[&str]) -> String {
        let output = run(&mut self.command(program, args));
        assert_eq!(output.code, 0, "{program} {args:?}: {output:#?}");
        output.stdout
    }

    /// Run podman, however it ends, and record its output.
    pub fn podman(&self, args: &[&str]) -> Output {
        let output = run(&mut self.command("podman", args));
        self.record(
            &format!("podman {}", args.join(" ")),
            &format!("{}\n{}{}", output.code, output.stdout, output.stderr),
        );
        output
    }

    /// Record text for the comparison.
    pub fn record(&self, step: &str, text: &str) {
        self.records.borrow_mut().push(self.normalize(&format!("{step}\n{text}")));
    }

    /// Replaces what differs in each run: IDs, times, and the store's path.
    fn normalize(&self, text: &str) -> String {
        let at = self.env.path("").display().to_string();
        let text = text.replace(at.trim_end_matches('/'), "STORE");
        let id = Regex::new(r"\b([0-9a-f]{64}|[0-9a-f]{12})\b").unwrap();
        let time = Regex::new(r#"time="[^"]*" "#).unwrap();
        time.replace_all(&id.replace_all(&text, "ID"), "").into_owned()
    }

    /// Run a shell script on the host where podman's mounts are visible: a plain user's are in a namespace.
    #[track_caller]
    pub fn run_on_host(&self, script: &str, args: &[&str]) -> String {
        self.run_on_host_via("podman", script, args)
    }

    /// Run a shell script on the host where buildah's mounts are visible.
    #[track_caller]
    pub fn run_on_host_via(&self, program: &str, script: &str, args: &[&str]) -> String {
        let shell = [&["sh", "-euc", script, "sh"], args].concat();
        match self.user {
            PodmanUser::Root => self.run_ok(shell[0], &shell[1..]),
            PodmanUser::User(..) => self.run_ok(program, &[&["unshare"], &shell[..]].concat()),
        }
    }

    /// The tree of a container (`&[]`) or of an image (`&["image"]`), as the mount program shows it.
    #[track_caller]
    pub fn tree(&self, kind: &[&str], name: &str) -> String {
        let script = "at=$(podman $1 mount $2) && python3 -c \"$3\" \"$at\" && podman $1 umount $2 >/dev/null";
        self.run_on_host(script, &[&kind.join(" "), name, LIST_TREE])
    }

    /// The tree of a directory on the host.
    #[track_caller]
    pub fn list_host_tree(&self, path: &Path) -> String {
        self.run_on_host("python3 -c \"$1\" \"$2\"", &[LIST_TREE, path.to_str().unwrap()])
    }

    /// Remove all containers and images, and require that no process and no mount of them is left.
    #[track_caller]
    fn finish(self) -> Vec<String> {
        self.ok(&["rm", "-f", "-a", "-t", "0"]);
        self.ok(&["rmi", "-f", "-a"]);
        assert_eq!(self.ok(&["ps", "-a", "-q"]) + &self.ok(&["images", "-a", "-q"]), "");
        if self.user != PodmanUser::Root {
            // `system migrate` ends the process that keeps the user's namespaces.
            self.ok(&["system", "migrate"]);
        }
        eventually("all processes end", || self.processes().is_empty());
        let own = self.nest.path("graph/overlay");
        let left: Vec<PathBuf> = self.mounts().into_iter().filter(|at| *at != own).collect();
        assert!(left.is_empty(), "still mounted: {left:?}");
        self.records.take()
    }

    /// The processes started for this store, and their children: the store's path is in their environment.
    fn processes(&self) -> Vec<Pid> {
        find_processes(&self.env).into_iter().filter(|pid| !self.server_pids.contains(pid)).collect()
    }

    /// The mounts in the store's directory that root sees, the last one first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        let (all, nest) = (self.env.path(""), self.nest.path("."));
        let mut found: Vec<PathBuf> = points.filter(|at| at.starts_with(&all) && *at != nest).collect();
        found.reverse();
        found
    }
}

impl Drop for Store {
    /// Removes everything, in a panic too: first the containers through podman, then the remaining processes and
    /// mounts.
    fn drop(&mut self) {
        if !self.processes().is_empty() {
            let _ = self.command("podman", &["rm", "-f", "-a", "-t", "0"]).output();
        }
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(|pid| {
                let _gone = kill_process(pid, Signal::KILL);
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for at in self.mounts() {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

/// Processes that have the environment's directory in their command line or environment.
fn find_processes(env: &TestEnv) -> Vec<Pid> {
    let (at, mut found) = (env.path("").display().to_string(), Vec::new());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // A process that has ended meanwhile has neither.
        let has = |name: &str| {
            fs::read(entry.path().join(name))
                .is_ok_and(|bytes| bytes.windows(at.len()).any(|part| part == at.as_bytes()))
        };
        if let Some(pid) = number.and_then(Pid::from_raw)
            && (has("environ") || has("cmdline"))
        {
            found.push(pid);
        }
    }
    found
}
