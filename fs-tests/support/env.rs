//! The test environment: a temporary store (`--root`) for the plyfs binary, and mounts that end with their test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

/// One test's own store and scratch space, removed with it.
pub struct TestEnv {
    dir: TempDir,
}

/// A command's exit code and output.
#[derive(Debug)]
pub struct Output {
    /// The exit code, or 128 + the signal that killed it.
    pub code: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

/// A mounted image. Dropping it unmounts, even while a panic unwinds.
pub struct Mount {
    at: PathBuf,
    root: PathBuf,
}

impl TestEnv {
    /// A fresh, empty environment.
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("plyfs-test-").tempdir().unwrap() }
    }

    /// The store's root: `--root` of every command run here.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// A path in the scratch space; nothing is made there.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A `plyfs` command on this root, to be changed before it is run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        plyfs(&self.root(), args)
    }

    /// Run plyfs, however it ends.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        run(&mut self.command(args))
    }

    /// Run plyfs and require success; returns its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(args);
        let output = run(&mut command);
        assert_eq!(output.code, 0, "{command:?} failed: {output:#?}");
        output.stdout
    }

    /// Run plyfs and require exit code 1 and one line on standard error, which is returned.
    #[track_caller]
    pub fn fails<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(args);
        let output = run(&mut command);
        assert_eq!(output.code, 1, "{command:?} should have failed: {output:#?}");
        assert_eq!(output.stderr.trim_end().lines().count(), 1, "{command:?}: not one clear line: {output:#?}");
        output.stderr.trim_end().to_owned()
    }

    /// A plyfs command as a plain user, with this store and a copy of the program that the user can reach. cp makes the
    /// copy: a file that this process had open for writing could not be executed (ETXTBSY) while another thread forks.
    pub fn as_user(&self, user: u32, args: &[&str]) -> Command {
        let (made, own) = (self.command(args), self.path("plyfs"));
        if !own.exists() {
            assert_eq!(run(Command::new("cp").arg(made.get_program()).arg(&own)).code, 0);
        }
        let mut command = Command::new(own);
        command.env_remove("PLYFS_ROOT").args(made.get_args()).current_dir("/");
        command.uid(user).gid(user).env("HOME", self.path("home"));
        command
    }

    /// Mount an image of this root, with further options (`&["-o", "..."]` or none), on a new directory.
    #[track_caller]
    pub fn mount(&self, image: &str, options: &[&str]) -> Mount {
        let args = ["mount"].iter().chain(options).chain([&image]);
        Mount::start(self, &mut self.command(args))
    }
}

impl Mount {
    /// Mount by a command that lacks only the mountpoint: creates it and appends it to the arguments.
    #[track_caller]
    pub fn start(env: &TestEnv, command: &mut Command) -> Mount {
        let at = tempfile::Builder::new().prefix("mnt-").tempdir_in(env.dir.path()).unwrap().keep();
        // Create the guard first, so that a mount that fails half-way is cleaned up too.
        let mount = Mount { at, root: env.root() };
        let output = run(command.arg(mount.path()));
        assert_eq!(output.code, 0, "{command:?} failed: {output:#?}");
        assert!(mount.is_live(), "plyfs mount returned before {} was mounted", mount.at.display());
        mount
    }

    /// Unmount what is mounted at this directory, if anything, when the value is dropped.
    pub fn adopt(env: &TestEnv, at: &Path) -> Mount {
        Mount { at: at.into(), root: env.root() }
    }

    /// The mountpoint.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Whether something is mounted there now.
    pub fn is_live(&self) -> bool {
        is_mounted(&self.at)
    }

    /// Unmount through plyfs and require that it worked.
    #[track_caller]
    pub fn unmount(self) {
        retry_while_busy(|| {
            let output = run(&mut plyfs(&self.root, [OsStr::new("umount"), self.at.as_os_str()]));
            let is_busy = output.stderr.contains("is in use");
            assert!(output.code == 0 || is_busy, "plyfs umount failed: {output:#?}");
            if is_busy { Err(Errno::BUSY) } else { Ok(()) }
        });
        assert!(!self.is_live(), "{} is still mounted", self.at.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_live() {
            run(&mut plyfs(&self.root, [OsStr::new("umount"), self.at.as_os_str()]));
        }
        // A lazy unmount works on a dead or busy mount too. No assertion: this may run in a panic.
        if self.is_live() {
            run(Command::new("umount").arg("-l").arg(&self.at));
        }
        if self.is_live() {
            run(Command::new("fusermount3").arg("-uz").arg(&self.at));
        }
    }
}

/// Unmount by umount(2).
#[track_caller]
pub fn unmount(at: &Path) {
    retry_while_busy(|| rustix::mount::unmount(at, UnmountFlags::empty()));
}

/// Retries a mount or unmount while it is busy. It can be refused for a moment: another test's child has our
/// descriptors between its fork and its exec, and a process that looks a path up or reads the mount table holds a
/// reference.
#[track_caller]
pub fn retry_while_busy(call: impl Fn() -> rustix::io::Result<()>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match call() {
            Ok(()) => return,
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("cannot mount or unmount: {error}"),
        }
    }
}

/// Wait until no mount has an upper directory any more: another test's namespace may hold a copy of one for a while
/// after it was unmounted here.
#[track_caller]
pub fn wait_until_unused(upper: &Path) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while plyfs::upper::Upper::is_in_use(upper).unwrap() {
        assert!(Instant::now() < deadline, "{} stays in use", upper.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Run any command to its end. Output goes to files: a daemon that keeps a pipe open would block its reader.
pub fn run(command: &mut Command) -> Output {
    run_with(command, Stdio::null())
}

/// Run any command to its end, with `input` as its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Output {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input.as_bytes()).unwrap();
    file.rewind().unwrap();
    run_with(command, file.into())
}

fn run_with(command: &mut Command, stdin: Stdio) -> Output {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(stdin).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let code =
        status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
    Output { code, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn plyfs<S: AsRef<OsStr>>(root: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plyfs"));
    // PLYFS_ROOT in the caller's environment must not replace the test's root.
    command.env_remove("PLYFS_ROOT").arg("--root").arg(root).args(args);
    command
}

/// Whether the kernel's mount table has this path. Asking the path itself would hang or fail on a dead mount.
fn is_mounted(at: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == at))
}
