//! Reaching a container's files from outside: through its processes while it runs, else by mounting its tree for a moment.

use super::control::{self, Paused};
use super::inside::Inside;
use super::room::{self, Refusal, Room};
use super::{keeper, userns, volumes};
use crate::store::Store;
use crate::store::containers::{self, Bind, Container, Held, State, Status};
use crate::sys::{self, Namespaces};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Enters the user namespace in which a plain user's container runs; nothing where it is this process's own. From then on
/// the process is root of that namespace. It must have one thread.
///
/// Root becomes the user: he serves the container's tree over FUSE, which admits nobody else, not even root. Root's
/// groups do not go along.
pub fn enter_users(process: u32) -> io::Result<()> {
    let theirs = userns::of_process(process)?;
    if userns::is_other(&theirs)? && sys::is_root() {
        sys::set_groups(&[])?;
    }
    match sys::enter_user_namespace(&theirs) {
        // That is how the kernel says that the process is there already.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Ok(()),
        Ok(()) => sys::become_user(0, 0, None),
        Err(e) => Err(e),
    }
}

/// Pauses a running container, so that its files stay as they are; none where it cannot be, as a plain user's, which has
/// no cgroup.
pub fn pause(store: &Store, container: &Container) -> Option<Paused> {
    let paused = control::pause(&store.container_dir(&container.id));
    paused.inspect_err(|e| tracing::debug!("cannot pause container {}: {}", container.name, sys::describe(e))).ok()
}

/// What is mounted of a running container's tree, at a path that this process sees: without what is mounted in it.
pub fn tree_of(store: &Store, container: &Container, state: &State) -> PathBuf {
    let there = store.container_tree(&container.id);
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
    let failed =
        |e: &io::Error| format!("cannot reach the files of container {}: {}", container.name, sys::describe(e));
    job(&open().map_err(|e| Refusal::own(failed(&e)))?)
}

/// The same for one that does not run: nobody else sees the mount, and it is gone when this returns.
fn mounted(
    store: &Store,
    container: &Container,
    held: &Held,
    job: impl FnOnce(&Inside) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    room::isolate().map_err(|e| Refusal::own(e.to_string()))?;
    let tree = store.container_tree(&container.id);
    let room = Room::prepare(tree.clone(), |mut say, _| {
        let open = || {
            // What is opened before belongs to the namespace before, and nothing could be mounted on it.
            sys::unshare(Namespaces { mount: true, ..Namespaces::default() })?;
            let root = Inside::open(&tree)?;
            mount_volumes(store, container, held, &root)?;
            Ok(root)
        };
        let done = open().and_then(|root| job(&root));
        done.map_or_else(|refusal| say.refuse(&refusal), |()| 0)
    })?;
    match keeper::serve(store, container, room, false)? {
        0 => Ok(()),
        // One that says nothing more.
        code => Err(Refusal { code: u8::try_from(code).unwrap_or(125), text: String::new() }),
    }
}

/// Mounts what the container has mounted of this machine's when it runs. The process must have a mount namespace of its
/// own, in which `root` was opened.
fn mount_volumes(store: &Store, container: &Container, held: &Held, root: &Inside) -> Result<(), Refusal> {
    let failed = |what: &str, e: &io::Error| Refusal::own(format!("cannot mount {what}: {}", sys::describe(e)));
    let made = volumes::make(container, &store.container_dir(&container.id), root);
    let mut all = made.map_err(|e| failed("the image's volumes", &e))?;
    all.extend(container.host.binds.iter().cloned());
    all.sort_by_key(|bind| Path::new(&bind.target).components().count());
    let mut state = containers::state(store, &container.id).map_err(|e| Refusal::own(e.to_string()))?;
    let before = state.made.len();
    for bind in &all {
        let new = mount_one(bind, root).map_err(|e| failed(&format!("{} at {}", bind.source, bind.target), &e))?;
        state.made.extend(new.into_iter().map(|path| path.to_string_lossy().into_owned()));
    }
    match state.made.len() > before {
        true => held.set_state(&state).map_err(|e| Refusal::own(e.to_string())),
        false => Ok(()),
    }
}

/// Gives what had to be made for it in the tree, and not in another mount.
fn mount_one(bind: &Bind, root: &Inside) -> io::Result<Vec<PathBuf>> {
    let (copy, is_dir) = volumes::copy_of_source(bind)?;
    let (place, made) = root.mountpoint(&bind.target, is_dir)?;
    sys::attach(&copy, &place)?;
    Ok(made)
}
