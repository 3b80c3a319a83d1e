//! Anonymous volumes and bind mount sources of a container.
//!
//! Each path that the image declares as `VOLUME` gets a directory in the container's folder, beside its upper
//! directory. At the container's first start it is filled with the image's files at that path.

use super::copy;
use super::rootfs::Rootfs;
use crate::store::containers::{Bind, Container};
use crate::sys;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Creates the container's missing anonymous volumes in its folder `dir`; returns the bind mounts of all of them. Skips
/// paths on which the user mounts something else.
pub(super) fn make(container: &Container, dir: &Path, root: &Rootfs) -> io::Result<Vec<Bind>> {
    let declared = container.config.get("Volumes").and_then(Value::as_object);
    let clean = |path: &str| Path::new(path).components().collect::<std::path::PathBuf>();
    let host = &container.host;
    let taken = |target: &str| {
        let binds = host.binds.iter().map(|bind| &bind.target);
        binds.chain(host.tmpfs.iter().map(|tmpfs| &tmpfs.target)).any(|used| clean(used) == clean(target))
    };
    let mut all = Vec::new();
    for (number, target) in declared.into_iter().flatten().map(|(target, _)| target).enumerate() {
        if taken(target) || !target.starts_with('/') || clean(target) == Path::new("/") {
            continue;
        }
        let source = dir.join("volumes").join(number.to_string());
        if !source.exists() {
            fill(root, target, &source)?;
        }
        all.push(Bind { source: source.to_string_lossy().into_owned(), target: target.clone(), read_only: false });
    }
    Ok(all)
}

/// Clones the source of a bind mount as a detached mount, read-only if `bind` is; also returns whether it is a
/// directory.
pub(super) fn copy_of_source(bind: &Bind) -> io::Result<(OwnedFd, bool)> {
    let source = Path::new(&bind.source);
    let copy = copy_of(source)?;
    if bind.read_only {
        sys::make_read_only(&copy)?;
    }
    Ok((copy, source.is_dir()))
}

/// Clones the mount at a host path as a detached mount.
pub(super) fn copy_of(path: &Path) -> io::Result<OwnedFd> {
    let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    sys::copy_mount(&source)
}

/// Fills a volume under a temporary name and renames it, so that an interrupted copy is never used as a volume.
fn fill(root: &Rootfs, target: &str, source: &Path) -> io::Result<()> {
    let partial = source.with_extension("partial");
    match fs::remove_dir_all(&partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(&partial)?;
    // A path that the image does not have makes an empty volume.
    if root.open_dir(target).is_ok() {
        copy::tree(root, Path::new(target), &Rootfs::open(&partial)?, Path::new("/")).map_err(io::Error::other)?;
    }
    fs::rename(&partial, source)
}
