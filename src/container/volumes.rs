//! What of this machine is mounted in a container. Anonymous volumes: what an image declares as a place for data has a directory beside the container's changes, filled
//! with what the image has there when the container is first started.

use super::copy;
use super::inside::Inside;
use crate::store::containers::{Bind, Container};
use crate::sys;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Makes the container's volumes where they are not there yet, in its folder; gives where they are mounted. Those over
/// which the user mounts something are not made.
pub(super) fn make(container: &Container, dir: &Path, root: &Inside) -> io::Result<Vec<Bind>> {
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

/// What is to be mounted by `bind`, mounted nowhere yet, and whether it is a directory.
pub(super) fn copy_of_source(bind: &Bind) -> io::Result<(OwnedFd, bool)> {
    let source = Path::new(&bind.source);
    let copy = copy_of(source)?;
    if bind.read_only {
        sys::make_read_only(&copy)?;
    }
    Ok((copy, source.is_dir()))
}

/// What is at a path of this machine, to be mounted elsewhere.
pub(super) fn copy_of(path: &Path) -> io::Result<OwnedFd> {
    let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    sys::copy_mount(&source)
}

/// Under another name first: half a volume must not be taken for a whole one.
fn fill(root: &Inside, target: &str, source: &Path) -> io::Result<()> {
    let partial = source.with_extension("partial");
    match fs::remove_dir_all(&partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(&partial)?;
    // A place that the image does not have is an empty volume.
    if root.open_dir(target).is_ok() {
        copy::tree(root, Path::new(target), &Inside::open(&partial)?, Path::new("/")).map_err(io::Error::other)?;
    }
    fs::rename(&partial, source)
}
