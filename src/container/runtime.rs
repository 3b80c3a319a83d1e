//! The program that runs containers: runc, crun or youki. Finding it, calling it, reading what it says, and clearing away
//! what it leaves.

use super::room::Refusal;
use crate::sys;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Those that are looked for, in this order.
pub const KNOWN: [&str; 3] = ["runc", "crun", "youki"];
/// In a container's folder: the runtime's own state, its log, and the number of the container's first process.
const STATE: &str = "state";
const LOG: &str = "runtime.log";
/// In a container's folder: the number of its first process in the room's process namespace.
pub(super) const PID_FILE: &str = "pid";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Finds the runtime that is wanted, a name or a path, or the first of those that there are. `search` is `PATH`; beside
/// each directory `bin` in it that called `sbin` is looked in too, where distributions put them and a plain user's path
/// does not lead.
pub fn find(wanted: Option<&str>, search: Option<&OsStr>) -> Result<PathBuf, Refusal> {
    let in_path = |name: &str| {
        let places = std::env::split_paths(search.unwrap_or_default()).flat_map(|dir| {
            let beside = (dir.file_name() == Some(OsStr::new("bin"))).then(|| dir.with_file_name("sbin"));
            [Some(dir), beside]
        });
        places.flatten().map(|dir| dir.join(name)).find(|path| is_program(path))
    };
    match wanted {
        Some(path) if path.contains('/') => std::path::absolute(path)
            .ok()
            .filter(|path| is_program(path))
            .ok_or_else(|| Refusal::own(format!("the runtime {path} is no program"))),
        Some(name) => in_path(name)
            .ok_or_else(|| Refusal::own(format!("the runtime {name} is not installed: it is nowhere on PATH"))),
        None => KNOWN.iter().find_map(|name| in_path(name)).ok_or_else(|| {
            Refusal::own(
                "no container runtime is installed: install runc, crun or youki, or use 'plyfs chroot', which needs none",
            )
        }),
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A call of the runtime for the container whose folder is `dir`. What it logs is read by [`why`] after it failed.
pub(super) fn call(program: &Path, dir: &Path, log: &Path) -> Command {
    let mut command = Command::new(program);
    // The container has them from it.
    sys::begin_with_all_signals(&mut command);
    command.arg("--root").arg(dir.join(STATE)).arg("--log").arg(log).args(["--log-format", "json"]);
    command
}

/// Where [`call`]s that start a container log to.
pub(super) fn log(dir: &Path) -> PathBuf {
    dir.join(LOG)
}

/// Why a call failed, by what it logged, with Docker's exit code for it.
pub(super) fn why(program: &Path, log: &Path) -> Refusal {
    let silent = || Refusal::own(format!("{} failed and did not say why", program.display()));
    why_if_said(program, log).unwrap_or_else(silent)
}

/// The same; none if it logged no failure.
pub(super) fn why_if_said(program: &Path, log: &Path) -> Option<Refusal> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut errors = text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let severe = matches!(line.get("level").and_then(Value::as_str), Some("error" | "fatal"));
        severe.then(|| line.get("msg").and_then(Value::as_str).map(str::to_owned)).flatten()
    });
    errors.next_back().map(|message| refusal(program, &message))
}

fn refusal(program: &Path, message: &str) -> Refusal {
    let message = message.replace(['\n', '\r'], " ");
    let Some(at) = message.find("exec: ") else {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        return Refusal::own(format!("{name}: {}", message.trim_start_matches(&format!("{name} run failed: "))));
    };
    let text = message[at..].to_owned();
    let code = match () {
        () if text.contains("executable file not found") || text.contains("no such file or directory") => 127,
        () => 126,
    };
    Refusal { code, text }
}

/// The cgroup of a container that root runs, as its document names it.
pub fn cgroup(id: &str) -> String {
    format!("/plyfs/{id}")
}

/// Clears away what the runtime has of a container whose processes are gone: its state and its cgroups.
pub fn sweep(dir: &Path, id: &str) {
    let gone = |done: std::io::Result<()>, what: &Path| match done {
        Err(e) if e.kind() != ErrorKind::NotFound => tracing::debug!("cannot remove {}: {e}", what.display()),
        _ => {}
    };
    let state = dir.join(STATE);
    gone(fs::remove_dir_all(&state), &state);
    let mut hierarchies = vec![PathBuf::from(CGROUPS)];
    hierarchies.extend(fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path()));
    // Only an empty one can be removed.
    let all = hierarchies.iter().map(|hierarchy| hierarchy.join(cgroup(id).trim_start_matches('/')));
    let (removed, left): (Vec<_>, Vec<_>) = all.map(|path| (fs::remove_dir(&path), path)).partition(|(d, _)| d.is_ok());
    left.into_iter().for_each(|(done, path)| gone(done, &path));
    if !removed.is_empty() {
        let parents = removed.iter().filter_map(|(_, path)| path.parent());
        remove_parent_cgroups(parents);
    }
}

/// Removes the cgroups above that of a container that is gone, where no other container has one in them. While another
/// one is being started they stay, and are removed with that.
fn remove_parent_cgroups<'a>(parents: impl Iterator<Item = &'a Path>) {
    let Ok(all) = File::open(CGROUPS) else { return };
    if all.try_lock().is_err() {
        return;
    }
    for parent in parents {
        if let Err(e) = fs::remove_dir(parent) {
            tracing::debug!("{} stays: {e}", parent.display());
        }
    }
}

/// As long as the result lives nobody removes the cgroup that all containers' are in: a runtime makes that first, and the
/// container's own then.
pub(super) fn keep_parent_cgroup() -> Option<File> {
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

/// How long the start of a container waits for those that remove the cgroup of all. Anybody may lock that directory, and
/// must not keep a container from starting.
const PARENT_LIMIT: Duration = Duration::from_millis(500);

/// How long a container's processes may take to be frozen: one that waits for a disk is frozen when the disk answers.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Freezes all processes of a container, or lets them run again, by its cgroup. A plain user's container has none:
/// [`ErrorKind::Unsupported`]. When this returns they have stopped.
pub(super) fn freeze(id: &str, frozen: bool) -> io::Result<()> {
    let own = cgroup(id);
    let own = own.trim_start_matches('/');
    let unified = Path::new(CGROUPS).join(own);
    let split = Path::new(CGROUPS).join("freezer").join(own).join("freezer.state");
    let (file, told, text, wanted) = if unified.join("cgroup.freeze").exists() {
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
        // Again each time: the first version of cgroups misses processes that are just being made.
        fs::write(&file, text)?;
        if fs::read_to_string(&told)?.lines().any(|line| line == wanted) {
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
    fn the_runtime_is_the_one_that_is_named_or_the_first_that_there_is() {
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
        assert_eq!(said(Some("runc")), "the runtime runc is not installed: it is nowhere on PATH");
        assert_eq!(said(Some("/no/runc")), "the runtime /no/runc is no program");
    }

    #[test]
    fn what_a_runtime_logs_becomes_a_line_and_a_code() {
        let start = "runc run failed: unable to start container process: ";
        let said = |message: &str| {
            let r = refusal(Path::new("/usr/sbin/runc"), message);
            (r.code, r.text)
        };
        let missing = "exec: \"x\": executable file not found in $PATH";
        assert_eq!(said(&format!("{start}{missing}")), (127, missing.into()));
        let denied = "exec: \"/etc/passwd\": permission denied";
        assert_eq!(said(&format!("{start}{denied}")), (126, denied.into()));
        assert_eq!(said("runc run failed: no\nroom"), (125, "runc: no room".into()));
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(why(Path::new("runc"), &log).text, "runc failed and did not say why");
        let lines = [r#"{"level":"warning","msg":"w"}"#, r#"{"level":"error","msg":"one"}"#, "junk", "{}"];
        fs::write(&log, lines.join("\n")).unwrap();
        assert_eq!(why(Path::new("runc"), &log).text, "runc: one");
    }
}
