//! Mountpoints: checks before mounting, detection of dead mounts, and `-o remount`. Shared by all mount commands.

use crate::sys::{self, RemountFlags};
use std::path::{Path, PathBuf};

/// The path as /proc/self/mountinfo spells it. Sends no request to the file system mounted there: its server may be
/// dead.
pub(in crate::cli) fn resolve(at: &Path) -> PathBuf {
    let absolute = std::path::absolute(at).unwrap_or_else(|_| at.into());
    let parent = absolute.parent().and_then(|parent| parent.canonicalize().ok());
    let beside = parent.zip(absolute.file_name()).map(|(parent, name)| parent.join(name));
    match beside {
        Some(path) if !path.is_symlink() => path,
        _ => at.canonicalize().unwrap_or(absolute),
    }
}

/// Whether the topmost mount at this path is a plyfs mount. The path must come from [`resolve`].
pub(in crate::cli) fn is_plyfs(path: &Path) -> anyhow::Result<bool> {
    let top = sys::mounts()?.into_iter().rfind(|mounted| mounted.mountpoint == path);
    Ok(top.is_some_and(|mounted| mounted.kind == "fuse.plyfs"))
}

/// Whether the topmost mount at this path is a plyfs mount without a server. The path must come from [`resolve`].
pub(in crate::cli) fn is_dead(path: &Path) -> anyhow::Result<bool> {
    Ok(is_plyfs(path)? && sys::is_disconnected(path))
}

/// Returns the absolute path of an existing directory to mount at. A dead plyfs mount there is an error; with
/// `replace` it is detached, even if processes still have files open on it.
pub(in crate::cli) fn directory(at: &Path, replace: bool) -> anyhow::Result<PathBuf> {
    let refuse = |why: &str| anyhow::anyhow!("cannot mount at {}: {why}", at.display());
    let path = resolve(at);
    while is_dead(&path)? {
        if !replace {
            return Err(dead(&format!("cannot mount at {}", at.display()), at));
        }
        sys::unmount(&path, true)
            .map_err(|e| refuse(&format!("cannot unmount a dead mount: {}", sys::describe(&e))))?;
    }
    let path = at.canonicalize().map_err(|e| refuse(&sys::describe(&e)))?;
    let found = path.metadata().map_err(|e| refuse(&sys::describe(&e)))?;
    if found.is_dir() { Ok(path) } else { Err(refuse("it is not a directory")) }
}

fn dead(what: &str, at: &Path) -> anyhow::Error {
    let at = at.display();
    anyhow::anyhow!(
        "{what}: a dead plyfs mount is there (its process has exited): unmount it with \"plyfs umount {at}\", \
                     or mount with --replace or -o replace"
    )
}

/// Remounts a plyfs mount, as mount(8)'s `remount` does for a local file system. Read-write fails if the mount has no
/// upper directory. `is_by_kernel`: whether the mount at a path is one of the kernel engine.
pub(in crate::cli) fn remount(
    at: &Path,
    wanted: RemountFlags,
    is_by_kernel: impl Fn(&Path) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let what = format!("cannot remount {}", at.display());
    let path = resolve(at);
    if !is_plyfs(&path)? && !is_by_kernel(&path)? {
        anyhow::bail!("{what}: it is not a plyfs mount");
    }
    if sys::is_disconnected(&path) {
        return Err(dead(&what, at));
    }
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::ResourceBusy => anyhow::anyhow!("{what} read-only: files are open for writing"),
        std::io::ErrorKind::PermissionDenied => anyhow::anyhow!("{what}: root privileges are required"),
        _ => anyhow::anyhow!("{what}: {}", sys::describe(&e)),
    };
    let before = sys::remount_flags(&path).map_err(failed)?;
    if before.contains(RemountFlags::RDONLY) && !wanted.contains(RemountFlags::RDONLY) {
        // Only the server knows whether it has an upper directory, and the kernel sends it no changes while the mount
        // is read-only. So remount read-write first, then probe.
        sys::remount(&path, before - RemountFlags::RDONLY).map_err(failed)?;
        if !sys::takes_changes(&path) {
            sys::remount(&path, before).map_err(failed)?;
            anyhow::bail!("{what} read-write: it was mounted without an upper directory (upper=DIR)");
        }
    }
    sys::remount(&path, wanted).map_err(failed)
}
