//! Access to a container's root file system: through /proc/PID/root while it runs, through a temporary private mount
//! otherwise.

use super::control::{self, Paused};
use super::rootfs::Rootfs;
use super::run_error::RunError;
use super::sandbox::{self, Sandbox};
use super::{monitor, userns, volumes};
use crate::store::Store;
use crate::store::containers::{self, Bind, Container, Held, State, Status};
use crate::sys::{self, Namespaces};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Enters the user namespace of an unprivileged user's container and becomes root there; does nothing if the process is
/// in that namespace already. The process must be single-threaded.
///
/// Root becomes the user who serves the root file system, because FUSE without `allow_other` denies access to everybody
/// else, even root. Root's supplementary groups are dropped.
pub fn enter_users(process: u32) -> io::Result<()> {
    let theirs = userns::of_process(process)?;
    if userns::is_other(&theirs)? && sys::is_root() {
        sys::set_groups(&[])?;
    }
    match sys::enter_user_namespace(&theirs) {
        // setns(2) fails with EINVAL if the process is in that user namespace already.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Ok(()),
        Ok(()) => sys::become_user(0, 0, None),
        Err(e) => Err(e),
    }
}

/// Pauses a running container, so that its files do not change. Returns `None` if that fails: an unprivileged user's
/// container has no cgroup to freeze.
pub fn pause(store: &Store, container: &Container) -> Option<Paused> {
    let paused = control::pause(&store.container_dir(&container.id));
    paused.inspect_err(|e| tracing::debug!("cannot pause container {}: {}", container.name, sys::describe(e))).ok()
}

/// The path of a running container's root file system through /proc, without the volumes mounted inside it.
pub fn tree_of(store: &Store, container: &Container, state: &State) -> PathBuf {
    let there = store.container_tree(&container.id);
    let root = Path::new("/proc").join(state.init.to_string()).join("root");
    root.join(there.strip_prefix("/").unwrap_or(&there))
}

/// Calls `job` with a container's root file system, including its volumes: as the container's processes see it while it
/// runs. `job` may run in a forked process; its error is returned. The process must be single-threaded, and must not do
/// other work afterwards, because its namespaces have changed.
pub fn with_files(
    store: &Store,
    container: &Container,
    job: impl FnOnce(&Rootfs) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let own = |e: crate::store::Error| RunError::own(e.to_string());
    if let Some(held) = containers::try_hold(store, &container.id).map_err(own)? {
        return mounted(store, container, &held, job);
    }
    let state = containers::state(store, &container.id).map_err(own)?;
    if state.status != Status::Running {
        return Err(RunError::own(format!("container {} is being started or changed: try again", container.name)));
    }
    let open = || {
        enter_users(state.init)?;
        let root = File::open(format!("/proc/{}/root", state.pid))?;
        Ok::<_, io::Error>(Rootfs::new(root.into()))
    };
    let failed =
        |e: &io::Error| format!("cannot access the files of container {}: {}", container.name, sys::describe(e));
    job(&open().map_err(|e| RunError::own(failed(&e)))?)
}

/// Like [`with_files`], for a stopped container: mounts it privately, and unmounts it before returning.
fn mounted(
    store: &Store,
    container: &Container,
    held: &Held,
    job: impl FnOnce(&Rootfs) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let mapping = sandbox::isolate().map_err(|e| RunError::own(e.to_string()))?;
    let tree = store.container_tree(&container.id);
    let sandbox = Sandbox::prepare(tree.clone(), |mut startup, _| {
        let open = || {
            // A directory opened earlier belongs to the old mount namespace, and cannot be mounted on.
            sys::unshare(Namespaces { mount: true, ..Namespaces::default() })?;
            let root = Rootfs::open(&tree)?;
            mount_volumes(store, container, held, &root)?;
            Ok(root)
        };
        let done = open().and_then(|root| job(&root));
        done.map_or_else(|error| startup.report(&error), |()| 0)
    })?;
    match monitor::serve(store, container, sandbox, mapping.as_ref(), false)? {
        0 => Ok(()),
        // The exit code of `job`, without an error text.
        code => Err(RunError { exit_code: u8::try_from(code).unwrap_or(125), text: String::new() }),
    }
}

/// Mounts the container's volumes and bind mounts in `root`, which must have been opened in the process's own mount
/// namespace.
fn mount_volumes(store: &Store, container: &Container, held: &Held, root: &Rootfs) -> Result<(), RunError> {
    let failed = |what: &str, e: &io::Error| RunError::own(format!("cannot mount {what}: {}", sys::describe(e)));
    let made = volumes::make(container, &store.container_dir(&container.id), root);
    let mut all = made.map_err(|e| failed("the image's volumes", &e))?;
    all.extend(container.host.binds.iter().cloned());
    all.sort_by_key(|bind| Path::new(&bind.target).components().count());
    let mut state = containers::state(store, &container.id).map_err(|e| RunError::own(e.to_string()))?;
    let before = state.made.len();
    for bind in &all {
        let new = mount_one(bind, root).map_err(|e| failed(&format!("{} at {}", bind.source, bind.target), &e))?;
        state.made.extend(new.into_iter().map(|path| path.to_string_lossy().into_owned()));
    }
    match state.made.len() > before {
        true => held.set_state(&state).map_err(|e| RunError::own(e.to_string())),
        false => Ok(()),
    }
}

/// Attaches a bind mount. Returns the paths that were created in the tree as its mount point.
fn mount_one(bind: &Bind, root: &Rootfs) -> io::Result<Vec<PathBuf>> {
    let (copy, is_dir) = volumes::copy_of_source(bind)?;
    let (place, made) = root.mountpoint(&bind.target, is_dir)?;
    sys::attach(&copy, &place)?;
    Ok(made)
}
