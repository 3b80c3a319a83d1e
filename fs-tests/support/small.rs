//! A small busybox image to run programs in, and helpers for such tests: users with subordinate IDs, processes,
//! terminals.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::env::{TestEnv, run};
use super::eventually;
use super::oci::Image;
use super::tar::{Entry, Tar};

/// Users that every Debian has: one without subordinate IDs, and one that gets some.
pub const NOBODY: u32 = 65_534;
pub const NEWS: u32 = 9;

pub const APPLETS: &[&str] =
    &["sh", "cat", "id", "ls", "ln", "env", "sleep", "kill", "chown", "stat", "mkdir", "touch", "true", "ps"];

/// A busybox layer with a user of its own.
pub fn layer() -> Tar {
    let busybox = fs::read("/bin/busybox").expect("no /bin/busybox: run scripts/setup --test");
    let mut tar = Tar::new().add(Entry::file("bin/busybox", busybox).mode(0o755));
    for applet in APPLETS {
        tar = tar.symlink(format!("bin/{applet}"), "busybox");
    }
    for dir in ["proc", "sys", "dev", "mnt", "tmp"] {
        tar = tar.dir(dir);
    }
    tar.file("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n")
        .file("etc/group", "root:x:0:\nann:x:1001:\nstaff:x:50:ann\n")
        .file("etc/resolv.conf", "the image's own\n")
}

pub fn pull(env: &TestEnv, tar: Tar, config: serde_json::Value) {
    let image = Image::new().layer(tar.finish()).tag("1").edit_config(move |c| c["config"] = config.clone());
    image.write_layout(&env.path("box"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("box").display())]);
}

pub fn environment() -> TestEnv {
    let env = TestEnv::new();
    pull(
        &env,
        layer(),
        json!({ "Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh", "-c", "echo usual"], "WorkingDir": "/tmp" }),
    );
    env
}

/// The PIDs of all processes on the host that have this argument.
pub fn processes(argument: &str) -> Vec<u32> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| number(entry.unwrap()));
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|word| word == argument.as_bytes())
    };
    all.filter(has).collect()
}

/// Whether a `sleep` process with this argument runs.
pub fn is_sleep_running(argument: &str) -> bool {
    let line = format!("sleep\0{argument}\0");
    processes(argument).iter().any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|l| l == line.as_bytes()))
}

/// A running program whose command in the image has started: it has printed a line.
pub struct Running(pub Child);

impl Running {
    pub fn of(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Running(child)
    }

    pub fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// The exit code, or 128 and the signal.
    pub fn end(&mut self, signal: Signal) -> i32 {
        self.send(signal);
        let status = self.0.wait().unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Subordinate IDs for a user during a test: one more line in `/etc/subuid` and in `/etc/subgid`.
pub struct SubordinateIds(String);

static TABLES: Mutex<()> = Mutex::new(());
pub const TABLE_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

impl SubordinateIds {
    pub fn add(user: &str, first: u32) -> SubordinateIds {
        let line = format!("{user}:{first}:65536\n");
        let _lock = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        for path in TABLE_FILES {
            let before = fs::read_to_string(path).unwrap_or_default();
            fs::write(path, before + &line).unwrap();
        }
        SubordinateIds(line)
    }
}

impl Drop for SubordinateIds {
    fn drop(&mut self) {
        let _lock = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        for path in TABLE_FILES {
            let with = fs::read_to_string(path).unwrap_or_default();
            let _ = fs::write(path, with.replacen(&self.0, "", 1));
        }
    }
}

/// A store of this user, with the image.
pub fn for_user(user: u32) -> (TestEnv, PathBuf) {
    let env = environment();
    fs::set_permissions(env.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let home = env.path("home");
    fs::create_dir(&home).unwrap();
    for path in [env.root(), home.clone()] {
        assert_eq!(run(Command::new("chown").arg("-R").arg(format!("{user}:{user}")).arg(path)).code, 0);
    }
    (env, home)
}

/// A tmux terminal that runs a shell with job control.
pub struct Tmux(PathBuf);

impl Tmux {
    pub fn start(env: &TestEnv) -> Tmux {
        let tmux = Tmux(env.path("tmux"));
        tmux.run(&["new-session", "-d", "-x", "100", "-y", "50", "env", "PS1=host> ", "bash", "--norc", "--noprofile"]);
        tmux.wait_for_line("host>");
        tmux
    }

    pub fn run(&self, args: &[&str]) -> String {
        let output = run(Command::new("tmux").arg("-S").arg(&self.0).args(["-f", "/dev/null"]).args(args));
        assert_eq!(output.code, 0, "{output:?}");
        output.stdout
    }

    pub fn type_line(&self, text: &str) {
        self.run(&["send-keys", "-l", text]);
        self.run(&["send-keys", "Enter"]);
    }

    /// Waits for the outer shell's prompt: its foreground program may read what is typed earlier.
    #[track_caller]
    pub fn wait_for_prompt(&self) {
        eventually("the shell asks for a line", || {
            let screen = self.run(&["capture-pane", "-p"]);
            screen.lines().rfind(|line| !line.is_empty()).is_some_and(|line| line.trim_end() == "host>")
        });
    }

    /// Waits until a line on the screen begins with this text.
    #[track_caller]
    pub fn wait_for_line(&self, begins: &str) {
        eventually(begins, || {
            self.run(&["capture-pane", "-p"]).lines().any(|line| line.trim_start_matches("^Z").starts_with(begins))
        });
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = run(Command::new("tmux").arg("-S").arg(&self.0).arg("kill-server"));
    }
}
