//! Reaching a container's files from outside: through its processes while it runs, else by mounting its tree for a moment.

use super::inside::Inside;
use super::room::{self, Refusal, Room};
use super::userns;
use crate::fuse::Options;
use crate::image;
use crate::store::Store;
use crate::store::containers::{self, Container, Held, State, Status};
use crate::sys;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Enters the user namespace in which a plain user's container runs; nothing where it is this process's own. From then on
/// the process is root of that namespace. It must have one thread.
pub fn enter_users(process: u32) -> io::Result<()> {
    let theirs = userns::of_process(process)?;
    match sys::enter_user_namespace(&theirs) {
        // That is how the kernel says that the process is there already.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Ok(()),
        entered => entered,
    }
}

/// What is mounted of a running container's tree, at a path that this process sees: without what is mounted in it.
pub fn tree_of(store: &Store, container: &Container, state: &State) -> PathBuf {
    let there = store.container_dir(&container.id).join("rootfs");
    let root = Path::new("/proc").join(state.runner.to_string()).join("root");
    root.join(there.strip_prefix("/").unwrap_or(&there))
}

/// Does something with a container's files: as its processes see them if it runs, with all that is mounted there. The
/// process must have one thread, and is good for nothing else afterwards. `job` may be called in another process. What it
/// refuses is given back.
pub fn with_files(
    store: &Store,
    container: &Container,
    job: impl FnOnce(&Inside) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let own = |e: crate::store::Error| Refusal::own(e.to_string());
    if let Some(held) = containers::try_hold(store, &container.id).map_err(own)? {
        return mounted(store, container, &held, job);
    }
    let state = containers::state(store, &container.id).map_err(own)?;
    if state.status != Status::Running {
        return Err(Refusal::own(format!("container {} is being started or changed: try again", container.name)));
    }
    let open = || {
        enter_users(state.runner)?;
        let root = File::open(format!("/proc/{}/root", state.pid))?;
        Ok::<_, io::Error>(Inside::new(root.into()))
    };
    let failed = |e: &io::Error| format!("cannot reach the files of container {}: {}", container.name, sys::describe(e));
    job(&open().map_err(|e| Refusal::own(failed(&e)))?)
}

/// The same for one that does not run: nobody else sees the mount, and it is gone when this returns.
fn mounted(
    store: &Store,
    container: &Container,
    _held: &Held,
    job: impl FnOnce(&Inside) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let own = |e: String| Refusal::own(e);
    room::isolate().map_err(|e| own(e.to_string()))?;
    let dir = store.container_dir(&container.id);
    let rootfs = dir.join("rootfs");
    let room = Room::prepare(rootfs.clone(), |mut say, _| {
        let done = Inside::open(&rootfs).map_err(Refusal::from).and_then(|root| job(&root));
        done.map_or_else(|refusal| say.refuse(&refusal), |()| 0)
    })?;
    let opened = image::open_tree(store, &container.image).map_err(|e| own(e.to_string()))?;
    let upper = image::open_upper(dir.join("upper"), dir.join("work"), &opened.tree, false);
    let upper = upper.map_err(|e| own(e.to_string()))?;
    match room.run(opened, Some(upper), &Options::for_user(&container.reference, true))? {
        0 => Ok(()),
        // One that says nothing more.
        code => Err(Refusal { code: u8::try_from(code).unwrap_or(125), text: String::new() }),
    }
}
