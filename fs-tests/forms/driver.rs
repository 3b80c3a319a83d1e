//! Who mounts a stack of directories, and where.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::support::env::run;
use crate::support::eventually;

use super::language::Words;

/// The programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Kernel,
    FuseOverlayfs,
    Plyfs,
}

/// As whom they mount: root has the attributes `trusted.overlay.`, a user namespace has `user.overlay.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Root,
    User,
}

/// Directories one on another.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The lower ones, the bottom first.
    pub lower: Vec<PathBuf>,
    /// The upper and the work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
}

/// A mounted stack. Dropping it unmounts, even while a panic unwinds.
pub struct Mounted {
    at: PathBuf,
    holder: Option<Holder>,
}

/// The process that a user namespace lives by: it mounts, waits for the end of its input, and unmounts.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
}

impl Space {
    /// Both.
    pub const ALL: [Space; 2] = [Space::Root, Space::User];

    /// What the text of a test means by `@`; and one of the names for `%`.
    pub fn words(self, stat: &'static str) -> Words {
        Words { marks: if self == Space::Root { "trusted.overlay" } else { "user.overlay" }, stat }
    }
}

impl Driver {
    /// The one place that knows how each is called; the mountpoint comes behind. Root calls plyfs by its own name, and a
    /// user namespace by that of the program that it stands in for.
    fn command(self, space: Space, options: &str, scratch: &Path) -> Command {
        let mut command = match (self, space) {
            (Driver::Kernel, _) => Command::new("mount"),
            (Driver::FuseOverlayfs, _) => Command::new("/usr/bin/fuse-overlayfs"),
            (Driver::Plyfs, Space::Root) => Command::new(env!("CARGO_BIN_EXE_plyfs")),
            (Driver::Plyfs, Space::User) => Command::new(stand_in(scratch)),
        };
        match (self, space) {
            (Driver::Kernel, Space::Root) => {
                command.args(["-t", "overlay", "overlay", "-o", &format!("redirect_dir=on,metacopy=on,{options}")])
            }
            (Driver::Kernel, Space::User) => {
                command.args(["-t", "overlay", "overlay", "-o", &format!("userxattr,{options}")])
            }
            (Driver::Plyfs, Space::Root) => command.args(["overlay", "-o", options]),
            (Driver::FuseOverlayfs | Driver::Plyfs, _) => command.args(["-o", options]),
        };
        command.env_remove("PLYFS_ROOT").env("HOME", scratch);
        command
    }

    /// Mounts a stack; what was said is the error. `scratch` is a directory for what comes up.
    pub fn mount(self, space: Space, stack: &Stack, scratch: &Path) -> Result<Mounted, String> {
        let mut lower: Vec<_> = stack.lower.iter().rev().map(|dir| dir.display().to_string()).collect();
        if self == Driver::Kernel && stack.upper.is_none() {
            // One directory alone is no overlay to it.
            let empty = tempfile::Builder::new().prefix("empty-").tempdir_in(scratch).unwrap().keep();
            lower.push(empty.display().to_string());
        }
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &stack.upper {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        let at = tempfile::Builder::new().prefix("mnt-").tempdir_in(scratch).unwrap().keep();
        let mut command = self.command(space, &options, scratch);
        command.arg(&at);
        match space {
            Space::Root => Mounted::here(at, command),
            Space::User => Mounted::inside(at, &command),
        }
    }
}

/// plyfs under the other's name.
fn stand_in(scratch: &Path) -> PathBuf {
    let link = scratch.join("fuse-overlayfs");
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_plyfs"), &link).unwrap();
    }
    link
}

impl Mounted {
    fn here(at: PathBuf, mut command: Command) -> Result<Mounted, String> {
        // The guard first: a mount that fails half-way is cleaned up too.
        let mounted = Mounted { at, holder: None };
        let output = run(&mut command);
        if output.code != 0 {
            return Err(format!("{command:?}: {output:?}"));
        }
        if mounted.is_live() { Ok(mounted) } else { Err(format!("{command:?} mounted nothing")) }
    }

    /// In a user namespace, with mounts and processes of its own: none outlives it.
    fn inside(at: PathBuf, command: &Command) -> Result<Mounted, String> {
        const SCRIPT: &str = r#""$@" </dev/null && echo mounted && { read -r _; umount "$AT"; }"#;
        let namespace = Namespace::new();
        let mut enter = Command::new("nsenter");
        enter.args(["--user", "--target", &namespace.0.id().to_string()]);
        enter.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "sh"]);
        enter.arg(command.get_program()).args(command.get_args());
        let errors = tempfile::NamedTempFile::new().unwrap();
        enter.env_remove("PLYFS_ROOT").env("AT", &at).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = enter.stderr(errors.reopen().unwrap()).spawn().unwrap();
        let (input, mut said) = (child.stdin.take(), String::new());
        let output = child.stdout.take().unwrap();
        let mounted = Mounted { at, holder: Some(Holder { child, input }) };
        BufReader::new(output).read_line(&mut said).unwrap();
        if said != "mounted\n" {
            let why = std::fs::read_to_string(errors.path()).unwrap_or_default();
            return Err(format!("{enter:?}: {said}{why}"));
        }
        if mounted.is_live() { Ok(mounted) } else { Err(format!("{enter:?} mounted nothing")) }
    }

    /// Where it is, for those who may see it: in a user namespace, what [`Mounted::program`] starts.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// A program that sees the mount as the one who mounted it does.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(holder) = &self.holder else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args(["--user", "--mount", "--target", &holder.child.id().to_string(), "--"]).arg(program);
        command
    }

    /// Unmounts, and waits until nobody serves it any more. An error if it was busy.
    pub fn unmount(mut self) -> Result<(), String> {
        match self.holder.take() {
            None => {
                let output = run(Command::new("umount").arg(&self.at));
                eventually("the daemon's end", || !has_server(&self.at));
                if output.code == 0 { Ok(()) } else { Err(format!("umount: {output:?}")) }
            }
            Some(holder) => holder.end(),
        }
    }

    fn is_live(&self) -> bool {
        let of = self.holder.as_ref().map_or("self".to_owned(), |holder| holder.child.id().to_string());
        let table = std::fs::read_to_string(format!("/proc/{of}/mountinfo")).unwrap_or_default();
        table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == self.at))
    }
}

/// A user namespace in which every number stands for itself, kept by a process that does nothing.
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
        // Whoever has entered it keeps it.
        let _gone_already = self.0.kill();
        let _same = self.0.wait();
    }
}

impl Holder {
    fn end(mut self) -> Result<(), String> {
        let mut input = self.input.take().unwrap();
        let _its_end_is_enough = input.write_all(b"\n");
        drop(input);
        let status = self.child.wait().unwrap();
        if status.success() { Ok(()) } else { Err(format!("the unmount in a user namespace: {status}")) }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            // Its child goes with it, and all mounts and processes with that.
            let _gone_already = holder.child.kill();
            let _same = holder.child.wait();
        } else if self.is_live() {
            run(Command::new("umount").arg("-l").arg(&self.at));
        }
    }
}

/// Whether a process that was started with the mountpoint still runs.
fn has_server(at: &Path) -> bool {
    let at = at.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut others =
        processes.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    others.any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == at.as_bytes())
    })
}
