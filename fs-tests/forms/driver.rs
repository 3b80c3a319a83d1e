//! Overlay drivers (kernel overlayfs, fuse-overlayfs, plyfs) and their mounts of a stack of directories.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::support::eventually;

use super::language::Placeholders;

/// The overlay implementations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Kernel,
    FuseOverlayfs,
    Plyfs,
}

/// The mounting user: root uses the attributes `trusted.overlay.`, a user namespace uses `user.overlay.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountUser {
    Root,
    User,
}

/// A stack of lower directories, perhaps with an upper directory.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The lower directories, the bottom one first.
    pub lower: Vec<PathBuf>,
    /// The upper and the work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
}

/// A mounted stack, in a mount namespace of its own: no copy of it in any other keeps it alive. Dropping it unmounts,
/// even while a panic unwinds.
pub struct Mounted {
    at: PathBuf,
    /// The process that keeps the namespace alive: it mounts, waits for the end of its input, and unmounts.
    holder: Child,
    input: Option<ChildStdin>,
}

impl MountUser {
    /// Both.
    pub const ALL: [MountUser; 2] = [MountUser::Root, MountUser::User];

    /// The meaning of `@` in a test's text, and one of the names for `%`.
    pub fn placeholders(self, stat: &'static str) -> Placeholders {
        Placeholders { marks: if self == MountUser::Root { "trusted.overlay" } else { "user.overlay" }, stat }
    }
}

impl Driver {
    /// The mount command of each driver, without the mountpoint at its end. Root calls plyfs by its own name, a user
    /// namespace by the name of fuse-overlayfs, which it replaces.
    fn command(self, user: MountUser, options: &str, scratch: &Path) -> Command {
        let mut command = match (self, user) {
            (Driver::Kernel, _) => Command::new("mount"),
            (Driver::FuseOverlayfs, _) => Command::new("/usr/bin/fuse-overlayfs"),
            (Driver::Plyfs, MountUser::Root) => Command::new(plyfs()),
            (Driver::Plyfs, MountUser::User) => Command::new(fuse_overlayfs_link(scratch)),
        };
        match (self, user) {
            (Driver::Kernel, MountUser::Root) => {
                command.args(["-t", "overlay", "overlay", "-o", &format!("redirect_dir=on,metacopy=on,{options}")])
            }
            (Driver::Kernel, MountUser::User) => {
                command.args(["-t", "overlay", "overlay", "-o", &format!("userxattr,{options}")])
            }
            (Driver::Plyfs, MountUser::Root) => command.args(["overlay", "-o", options]),
            (Driver::FuseOverlayfs | Driver::Plyfs, _) => command.args(["-o", options]),
        };
        command.env_remove("PLYFS_ROOT").env("HOME", scratch);
        command
    }

    /// Mounts a stack; the error is the program's output. `scratch` is a directory for temporary files.
    pub fn mount(self, user: MountUser, stack: &Stack, scratch: &Path) -> Result<Mounted, String> {
        let mut lower: Vec<_> = stack.lower.iter().rev().map(|dir| dir.display().to_string()).collect();
        if self == Driver::Kernel && stack.upper.is_none() {
            // Kernel overlayfs refuses a single lower directory.
            let empty = tempfile::Builder::new().prefix("empty-").tempdir_in(scratch).unwrap().keep();
            lower.push(empty.display().to_string());
        }
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &stack.upper {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        let at = tempfile::Builder::new().prefix("mnt-").tempdir_in(scratch).unwrap().keep();
        let mut command = self.command(user, &options, scratch);
        command.arg(&at);
        Mounted::start(user, at, &command)
    }
}

/// The plyfs program under test; `PLYFS_FORMS_PROGRAM` names another build of it.
fn plyfs() -> PathBuf {
    std::env::var_os("PLYFS_FORMS_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_plyfs").into(), PathBuf::from)
}

/// A link to plyfs under the name of fuse-overlayfs.
fn fuse_overlayfs_link(scratch: &Path) -> PathBuf {
    let link = scratch.join("fuse-overlayfs");
    if !link.exists() {
        std::os::unix::fs::symlink(plyfs(), &link).unwrap();
    }
    link
}

/// A shell script that mounts, reports that, unmounts at the end of its input, and waits for all its processes.
const HOLDER: &str = r#""$@" </dev/null || exit
echo mounted
read -r _
umount "$AT" || exit
for _ in $(seq 200); do
    kill -s 0 -- -1 2>/dev/null || exit 0
    sleep 0.05
done
echo "the daemon goes on after the unmount" >&2
exit 1"#;

impl Mounted {
    fn start(user: MountUser, at: PathBuf, mount: &Command) -> Result<Mounted, String> {
        let namespace = (user == MountUser::User).then(Namespace::new);
        let mut enter = Command::new(if namespace.is_some() { "nsenter" } else { "unshare" });
        if let Some(Namespace(process)) = &namespace {
            enter.args(["--user", "--target", &process.id().to_string(), "unshare"]);
        }
        enter.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", HOLDER, "sh"]);
        enter.arg(mount.get_program()).args(mount.get_args());
        let errors = tempfile::NamedTempFile::new().unwrap();
        enter.env_remove("PLYFS_ROOT").env("AT", &at).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = enter.stderr(errors.reopen().unwrap()).spawn().unwrap();
        let (input, output) = (holder.stdin.take(), holder.stdout.take().unwrap());
        let mounted = Mounted { at, holder, input };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        if line != "mounted\n" {
            let why = std::fs::read_to_string(errors.path()).unwrap_or_default();
            return Err(format!("{enter:?}: {line}{why}"));
        }
        if mounted.is_live() { Ok(mounted) } else { Err(format!("{enter:?} mounted nothing")) }
    }

    /// The mountpoint, as programs started by [`Mounted::program`] see it.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// A command that runs in the namespaces of the mount, as the mounting user.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.holder.id().to_string();
        // A process cannot enter the user namespace that it is already in.
        let own = std::fs::read_link(format!("/proc/{target}/ns/user")).ok();
        if own != std::fs::read_link("/proc/self/ns/user").ok() {
            command.arg("--user");
        }
        command.args(["--mount", "--target", &target, "--"]).arg(program);
        command
    }

    /// Unmounts, and waits until the serving process has ended. An error if the mount was busy or the process does not
    /// end.
    pub fn unmount(mut self) -> Result<(), String> {
        drop(self.input.take());
        let status = self.holder.wait().unwrap();
        if status.success() { Ok(()) } else { Err(format!("the unmount: {status}")) }
    }

    fn is_live(&self) -> bool {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap_or_default();
        table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == self.at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The holder's child ends with it, and with that all mounts and processes of the namespace.
        let _gone_already = self.holder.kill();
        let _same = self.holder.wait();
    }
}

/// A user namespace with an identity mapping of IDs, kept alive by an idle process.
struct Namespace(Child);

impl Namespace {
    fn new() -> Namespace {
        let new = Namespace(Command::new("unshare").args(["--user", "sleep", "infinity"]).spawn().unwrap());
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).unwrap();
        let id = new.0.id().to_string();
        eventually("a user namespace", || of(&id) != of("self"));
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{id}/{map}"), "0 0 4294967295").unwrap();
        }
        new
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Processes that have entered the namespace keep it alive.
        let _gone_already = self.0.kill();
        let _same = self.0.wait();
    }
}
