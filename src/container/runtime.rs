//! The OCI runtime (runc, crun or youki): finding and calling it, parsing its log, removing its state and cgroups, and
//! the cgroup freezer.

use super::run_error::RunError;
use crate::sys;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The runtimes to search for, in this order.
pub const KNOWN: [&str; 3] = ["runc", "crun", "youki"];
/// The runtime's state directory in a container's folder.
const STATE: &str = "state";
/// The runtime's log in a container's folder.
const LOG: &str = "runtime.log";
/// The PID file in a container's folder: the PID of its first process in the sandbox's PID namespace.
const PID_FILE: &str = "pid";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Finds a program. `search` is the value of `PATH`; for each `bin` directory in it, the sibling `sbin` is searched too,
/// where distributions install runtimes and which an unprivileged user's `PATH` lacks.
pub fn find_program(name: &str, search: Option<&OsStr>) -> Option<PathBuf> {
    let places = std::env::split_paths(search.unwrap_or_default()).flat_map(|dir| {
        let beside = (dir.file_name() == Some(OsStr::new("bin"))).then(|| dir.with_file_name("sbin"));
        [Some(dir), beside]
    });
    places.flatten().map(|dir| dir.join(name)).find(|path| is_program(path))
}

/// An installed runtime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Installed {
    /// Its name in [`KNOWN`].
    pub name: &'static str,
    /// Its path.
    pub path: PathBuf,
    /// The first line that it prints as its version; `None` if it does not run.
    pub version: Option<String>,
}

/// Finds all installed runtimes of [`KNOWN`], in their order.
pub fn installed(search: Option<&OsStr>) -> Vec<Installed> {
    let version = |path: &Path| {
        let output = sys::begin_with_all_signals(Command::new(path).arg("--version")).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        text.lines().next().map(str::to_owned)
    };
    let all = KNOWN.iter().filter_map(|name| Some((*name, find_program(name, search)?)));
    all.map(|(name, path)| Installed { name, version: version(&path), path }).collect()
}

/// Finds the runtime `wanted`, a name or a path, or else the first installed one of [`KNOWN`]; `search` as in
/// [`find_program`].
pub fn find(wanted: Option<&str>, search: Option<&OsStr>) -> Result<PathBuf, RunError> {
    let in_path = |name: &str| find_program(name, search);
    match wanted {
        Some(path) if path.contains('/') => std::path::absolute(path)
            .ok()
            .filter(|path| is_program(path))
            .ok_or_else(|| RunError::own(format!("the runtime {path} is not an executable file"))),
        Some(name) => in_path(name)
            .ok_or_else(|| RunError::own(format!("the runtime {name} is not installed: it is not in PATH"))),
        None => KNOWN.iter().find_map(|name| in_path(name)).ok_or_else(|| {
            RunError::own(
                "no container runtime is installed: install runc, crun or youki, or use 'plyfs chroot', which needs none",
            )
        }),
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Prepares a runtime call for the container whose folder is `dir`. [`why`] reads `log` after a failure.
pub(super) fn call(program: &Path, dir: &Path, log: &Path) -> Command {
    let mut command = Command::new(program);
    // The container inherits the signal mask from the runtime.
    sys::begin_with_all_signals(&mut command);
    command.arg("--root").arg(dir.join(STATE)).arg("--log").arg(log).args(["--log-format", "json"]);
    command
}

/// Starts the container `id` from the bundle in the current directory, which is the container's folder `dir`. The
/// runtime has exited when this returns the PID of the container's first process, which is this process's child.
/// `prepare` sets the standard streams and is dropped with the call's copies of them.
pub(super) fn start(
    program: &Path,
    dir: &Path,
    id: &str,
    prepare: impl FnOnce(&mut Command) -> Result<(), RunError>,
) -> Result<i32, RunError> {
    let failed =
        |what: &'static str| move |e: io::Error| RunError::own(format!("cannot {what}: {}", sys::describe(&e)));
    let log = dir.join(LOG);
    let _none = fs::remove_file(&log);
    let mut call = call(program, dir, &log);
    call.args(["run", "--detach", "--bundle", ".", "--pid-file", PID_FILE]);
    prepare(&mut call)?;
    call.arg(id);
    // Locks the parent cgroup against removal until the container's own cgroup exists.
    let parent = keep_parent_cgroup();
    let spawned = call.spawn();
    let child =
        spawned.map_err(|e| RunError::own(format!("cannot run {}: {}", program.display(), sys::describe(&e))))?;
    // Closes this process's copies of the container's pipe ends.
    drop(call);
    if sys::wait_for(child.id() as i32).map_err(failed("wait for the runtime"))? != sys::Ended::Code(0) {
        return Err(why(program, &log));
    }
    drop(parent);
    let text = fs::read_to_string(PID_FILE).map_err(failed("read the container's PID"))?;
    text.trim().parse().map_err(|_| RunError::own("the runtime wrote no PID"))
}

/// The error of a failed call, from the runtime's log, with Docker's exit code for it.
pub(super) fn why(program: &Path, log: &Path) -> RunError {
    let silent = || RunError::own(format!("{} failed without an error message", program.display()));
    why_if_said(program, log).unwrap_or_else(silent)
}

/// Like [`why`]; `None` if the runtime logged no error.
pub(super) fn why_if_said(program: &Path, log: &Path) -> Option<RunError> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut errors = text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let severe = matches!(line.get("level").and_then(Value::as_str), Some("error" | "fatal"));
        severe.then(|| line.get("msg").and_then(Value::as_str).map(str::to_owned)).flatten()
    });
    errors.next_back().map(|message| parse_failure(program, &message))
}

fn parse_failure(program: &Path, message: &str) -> RunError {
    let message = message.replace(['\n', '\r'], " ");
    let Some(at) = message.find("exec: ") else {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        return RunError::own(format!("{name}: {}", message.trim_start_matches(&format!("{name} run failed: "))));
    };
    let text = message[at..].to_owned();
    let code = match () {
        () if text.contains("executable file not found") || text.contains("no such file or directory") => 127,
        () => 126,
    };
    RunError { exit_code: code, text }
}

/// The cgroup path of a container run by root, as in its config.json.
pub fn cgroup(id: &str) -> String {
    format!("/plyfs/{id}")
}

/// Removes the runtime's state and the cgroups of a container whose processes have exited.
pub fn sweep(dir: &Path, id: &str) {
    let gone = |done: std::io::Result<()>, what: &Path| match done {
        Err(e) if e.kind() != ErrorKind::NotFound => tracing::debug!("cannot remove {}: {e}", what.display()),
        _ => {}
    };
    let state = dir.join(STATE);
    gone(fs::remove_dir_all(&state), &state);
    let mut hierarchies = vec![PathBuf::from(CGROUPS)];
    hierarchies.extend(fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path()));
    // rmdir(2) removes only a cgroup without processes.
    let all = hierarchies.iter().map(|hierarchy| hierarchy.join(cgroup(id).trim_start_matches('/')));
    let (removed, left): (Vec<_>, Vec<_>) = all.map(|path| (fs::remove_dir(&path), path)).partition(|(d, _)| d.is_ok());
    left.into_iter().for_each(|(done, path)| gone(done, &path));
    if !removed.is_empty() {
        let parents = removed.iter().filter_map(|(_, path)| path.parent());
        remove_parent_cgroups(parents);
    }
}

/// Removes the parent cgroups of a removed container, unless other containers have cgroups in them. Keeps them while
/// another container is being started; they are removed with that one.
fn remove_parent_cgroups<'a>(parents: impl Iterator<Item = &'a Path>) {
    let Ok(all) = File::open(CGROUPS) else { return };
    if all.try_lock().is_err() {
        return;
    }
    for parent in parents {
        if let Err(e) = fs::remove_dir(parent) {
            tracing::debug!("cannot remove {}: {e}", parent.display());
        }
    }
}

/// Locks the containers' parent cgroup against removal until the result is dropped: a runtime creates first the parent,
/// then the container's own cgroup. `None` if the lock cannot be had in time.
fn keep_parent_cgroup() -> Option<File> {
    let all = File::open(CGROUPS).ok()?;
    let deadline = Instant::now() + PARENT_LIMIT;
    while all.try_lock_shared().is_err() {
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(all)
}

/// How long a start waits for the lock of [`keep_parent_cgroup`]. Any user may lock that directory, and must not be
/// able to keep a container from starting.
const PARENT_LIMIT: Duration = Duration::from_millis(500);

/// Timeout of a freeze: a process in disk sleep freezes only when the disk answers.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Freezes or thaws all processes of a container with the cgroup freezer, v1 or v2. They have stopped when this
/// returns. Fails with [`ErrorKind::Unsupported`] for an unprivileged user's container, which has no cgroup.
pub(super) fn freeze(id: &str, frozen: bool) -> io::Result<()> {
    let own = cgroup(id);
    let own = own.trim_start_matches('/');
    let unified = Path::new(CGROUPS).join(own);
    let split = Path::new(CGROUPS).join("freezer").join(own).join("freezer.state");
    let (file, status_file, text, wanted) = if unified.join("cgroup.freeze").exists() {
        let text = if frozen { "1" } else { "0" };
        (unified.join("cgroup.freeze"), unified.join("cgroup.events"), text, format!("frozen {text}"))
    } else if split.exists() {
        let text = if frozen { "FROZEN" } else { "THAWED" };
        (split.clone(), split, text, text.to_owned())
    } else {
        return Err(ErrorKind::Unsupported.into());
    };
    let deadline = Instant::now() + FREEZE_LIMIT;
    loop {
        // Written in each round: cgroup v1 misses processes that are being forked.
        fs::write(&file, text)?;
        if fs::read_to_string(&status_file)?.lines().any(|line| line == wanted) {
            return Ok(());
        }
        if Instant::now() > deadline {
            if frozen {
                freeze(id, false)?;
            }
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_named_or_the_first_installed_runtime_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        program(&at("usr/sbin/crun"));
        program(&at("other/youki"));
        program(&at("other/mine"));
        fs::create_dir_all(at("usr/bin/runc")).unwrap();
        let search = std::env::join_paths([at("other"), at("usr/bin")]).unwrap();
        assert_eq!(find(None, Some(&search)).unwrap(), at("usr/sbin/crun"), "runc is a directory there");
        assert_eq!(find(Some("mine"), Some(&search)).unwrap(), at("other/mine"));
        let path = at("other/mine");
        assert_eq!(find(Some(path.to_str().unwrap()), None).unwrap(), path);
        let said = |wanted| find(wanted, Some(at("empty").as_os_str())).unwrap_err().to_string();
        assert!(said(None).contains("install runc, crun or youki") && said(None).contains("plyfs chroot"));
        assert_eq!(said(Some("runc")), "the runtime runc is not installed: it is not in PATH");
        assert_eq!(said(Some("/no/runc")), "the runtime /no/runc is not an executable file");
    }

    #[test]
    fn runtime_errors_become_one_line_with_dockers_exit_code() {
        let start = "runc run failed: unable to start container process: ";
        let said = |message: &str| {
            let r = parse_failure(Path::new("/usr/sbin/runc"), message);
            (r.exit_code, r.text)
        };
        let missing = "exec: \"x\": executable file not found in $PATH";
        assert_eq!(said(&format!("{start}{missing}")), (127, missing.into()));
        let denied = "exec: \"/etc/passwd\": permission denied";
        assert_eq!(said(&format!("{start}{denied}")), (126, denied.into()));
        assert_eq!(said("runc run failed: no\nroom"), (125, "runc: no room".into()));
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(why(Path::new("runc"), &log).text, "runc failed without an error message");
        let lines = [r#"{"level":"warning","msg":"w"}"#, r#"{"level":"error","msg":"one"}"#, "junk", "{}"];
        fs::write(&log, lines.join("\n")).unwrap();
        assert_eq!(why(Path::new("runc"), &log).text, "runc: one");
    }
}
