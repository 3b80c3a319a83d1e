//! Takeover of a mount by a new version of the program, without an unmount: the supervisor executes the program that
//! is installed in its own place, with the command line of the mount and an open file that says what it takes over.
//!
//! The new process has the same PID, descriptors and locks. It goes the way of the command up to the mount, and takes
//! over in place of registering, locking and mounting.

use crate::fuse::{OnSignal, Options, Parts, Supervisor};
use crate::store::mounts::Guard;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version of what is taken over: [`State`] and the memory ([`crate::handover`]). Programs take over from the same
/// version only.
const VERSION: u32 = 1;
/// The variable with the number of the open file that has the [`State`].
const VARIABLE: &str = "PLYFS_TAKEOVER";

/// What a program takes over. Descriptors are numbers.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    device: i32,
    init: Vec<u8>,
    mountpoint: Vec<u8>,
    st_dev: u64,
    memory: i32,
    inodes: u64,
    /// The ID of the registration and its lock.
    registration: Option<(String, i32)>,
    /// All other descriptors that were open, among them those with the locks of the upper directory.
    others: Vec<i32>,
}

/// A mount that this process takes over.
pub(in crate::cli) struct Taken {
    /// The ID of the registration and its lock.
    pub registration: Option<(String, File)>,
    /// Descriptors that may have the locks of the upper directory.
    pub locks: Vec<OwnedFd>,
    connection: (OwnedFd, Parts),
    memory: (File, u64),
}

impl Taken {
    /// Returns what this process was executed to take over, if anything. To be called once.
    pub fn find() -> anyhow::Result<Option<Taken>> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| anyhow::anyhow!("{VARIABLE} is not a number"))?;
        let mut text = String::new();
        let mut file = File::from(adopt(number)?);
        file.rewind()?;
        file.read_to_string(&mut text)?;
        let state: State = serde_json::from_str(&text)?;
        anyhow::ensure!(state.version == VERSION, "cannot take over a mount of version {}", state.version);
        let parts =
            Parts { init: state.init, mountpoint: OsString::from_vec(state.mountpoint).into(), st_dev: state.st_dev };
        let registration = match state.registration {
            Some((id, lock)) => Some((id, File::from(adopt(lock)?))),
            None => None,
        };
        Ok(Some(Taken {
            registration,
            locks: state.others.into_iter().map(adopt).collect::<io::Result<_>>()?,
            connection: (adopt(state.device)?, parts),
            memory: (File::from(adopt(state.memory)?), state.inodes),
        }))
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> &Path {
        &self.connection.1.mountpoint
    }

    /// Returns the supervisor of the mount.
    pub fn supervisor(self, options: Options, signals: OnSignal) -> io::Result<Supervisor> {
        Supervisor::of_parts(self.connection, self.memory, options, signals)
    }
}

fn adopt(number: i32) -> io::Result<OwnedFd> {
    let descriptor = sys::adopt_descriptor(number);
    sys::set_close_on_exec(&descriptor, true)?;
    Ok(descriptor)
}

/// The program of this process, to find a newer one in its place later.
pub(in crate::cli) struct Program {
    path: PathBuf,
    /// The directory in which the command was called.
    directory: PathBuf,
}

impl Program {
    /// Describes this process's program.
    pub fn own() -> io::Result<Program> {
        Ok(Program { path: std::env::current_exe()?, directory: std::env::current_dir()? })
    }

    /// Whether another program is installed in its place, which can take over.
    pub fn is_replaced(&self) -> bool {
        let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
        match (identity(&self.path), identity(Path::new("/proc/self/exe"))) {
            (Ok(installed), Ok(own)) if installed != own => {}
            _ => return false,
        }
        let asked = Command::new(&self.path).arg0("plyfs").arg(VERSION_COMMAND).stdin(Stdio::null()).output();
        let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        let fits = said == VERSION.to_string();
        if !fits {
            tracing::error!("{} cannot take over (it says `{said}`, not {VERSION}); restarting", self.path.display());
        }
        fits
    }

    /// Executes the installed program to take the mount over. Returns only with an error.
    pub fn execute(&self, supervisor: &Supervisor, inodes: u64, guard: Option<&Guard>, kept: &[i32]) -> io::Error {
        self.try_execute(supervisor, inodes, guard, kept).unwrap_or_else(|error| error)
    }

    fn try_execute(
        &self,
        supervisor: &Supervisor,
        inodes: u64,
        guard: Option<&Guard>,
        kept: &[i32],
    ) -> io::Result<io::Error> {
        let ((device, parts), memory) = supervisor.parts();
        let registration = guard.map(|guard| (guard.info().id.clone(), guard.file().as_raw_fd()));
        let mut named = vec![0, 1, 2, device.as_raw_fd(), memory.as_raw_fd()];
        named.extend(registration.as_ref().map(|(_, lock)| *lock));
        let held: Vec<i32> = supervisor.all_held()?;
        let state = State {
            version: VERSION,
            device: device.as_raw_fd(),
            init: parts.init,
            mountpoint: parts.mountpoint.as_os_str().as_bytes().to_vec(),
            st_dev: parts.st_dev,
            memory: memory.as_raw_fd(),
            inodes,
            registration,
            others: kept.iter().copied().filter(|fd| !named.contains(fd) && !held.contains(fd)).collect(),
        };
        let mut file = tempfile::tempfile()?;
        file.write_all(&serde_json::to_vec(&state)?)?;
        for number in kept.iter().copied().chain([file.as_fd().as_raw_fd()]) {
            sys::keep_open_at_exec(number)?;
        }
        std::env::set_current_dir(&self.directory)?;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let mut command = Command::new(&self.path);
        command.arg0(name).args(arguments).env(VARIABLE, file.as_raw_fd().to_string());
        Ok(command.exec())
    }
}

/// The hidden command that prints [`VERSION`].
pub(in crate::cli) const VERSION_COMMAND: &str = "takeover-version";

/// Runs [`VERSION_COMMAND`].
pub(in crate::cli) fn print_version() -> anyhow::Result<()> {
    crate::cli::output::stdout::line(VERSION)
}
