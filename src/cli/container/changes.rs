//! The changes of a container or an upper directory, for `diff` and `commit`.

use crate::container::control::Paused;
use crate::container::rootfs::Rootfs;
use crate::container::{access, userns};
use crate::fs::{Changes, ExportError, FsError};
use crate::image;
use crate::image::commit;
use crate::name::show;
use crate::store::containers::{self, Status};
use crate::store::mounts::{self, Info};
use crate::store::{Image, Store};
use crate::sys;
use crate::upper::Upper;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The options that select an upper directory.
#[derive(clap::Args)]
pub(in crate::cli) struct UpperArgs {
    /// Use the changes in an upper directory of `plyfs mount`, mounted or not
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) upper: Option<PathBuf>,
    /// Image that the upper directory belongs to [default: the newest image with its layers]
    #[arg(long, value_name = "IMAGE", requires = "upper")]
    pub(in crate::cli) image: Option<String>,
}

/// An image and the upper directory with the changes on it.
pub(in crate::cli) struct Target {
    pub(in crate::cli) image: Image,
    pub(in crate::cli) upper: PathBuf,
    /// Paths that were created only as mount points, which are no changes.
    pub(in crate::cli) left_out: BTreeSet<Vec<u8>>,
    /// The container's config, for the new image.
    pub(in crate::cli) config: Option<Map<String, Value>>,
    /// The mounts that may use this upper directory, and may have dirty pages that are not written yet.
    pub(in crate::cli) live: Vec<Live>,
    /// Keeps the container paused.
    _paused: Option<Paused>,
}

/// A live mount.
pub(in crate::cli) struct Live {
    pub(in crate::cli) root: PathBuf,
    pub(in crate::cli) of: String,
    pub(in crate::cli) server: u32,
}

/// The changes of a container. For an unprivileged user the process, which must be single-threaded, enters a user
/// namespace as root, because the upper directory has files of subordinate IDs.
pub(in crate::cli) fn of_container(store: &Store, name: &str, pause: bool) -> anyhow::Result<Target> {
    let container = containers::find(store, name)?;
    let state = containers::state(store, &container.id)?;
    let mut live = Vec::new();
    let mut paused = None;
    if state.status == Status::Running {
        paused = if pause { access::pause(store, &container) } else { None };
        access::enter_users(state.init)?;
        let root = access::tree_of(store, &container, &state);
        live.push(Live { root, of: format!("container {}", container.name), server: state.monitor });
    } else if !sys::is_root() {
        userns::enter()?;
    }
    Ok(Target {
        upper: store.container_upper(&container.id).0,
        left_out: state.made.iter().map(|path| [b"/", path.as_bytes()].concat()).collect(),
        config: Some(container.config_of_image()),
        image: container.image,
        live,
        _paused: paused,
    })
}

/// The changes in an upper directory, which records the chain ID of its image. The process must be single-threaded, and
/// may enter a user namespace.
pub(in crate::cli) fn of_upper(store: &Store, upper: &Path, image: Option<&str>) -> anyhow::Result<Target> {
    let chain = Upper::image_of(upper)?;
    let catalog = store.catalog()?;
    let has_chain = |image: &Image| Some(image.chain_id().to_string()) == chain;
    let image = match (image, &chain) {
        (Some(name), _) => store.resolve(name)?,
        (None, None) => {
            anyhow::bail!("{} was never mounted: name its image with --image", upper.display())
        }
        (None, Some(chain)) => {
            let found = catalog.images().iter().filter(|image| has_chain(image));
            let newest = found.max_by_key(|image| image.created.as_ref().and_then(|at| at.parse::<Timestamp>().ok()));
            let none =
                || anyhow::anyhow!("{} belongs to an image that is not in the store: ChainID {chain}", upper.display());
            newest.cloned().ok_or_else(none)?
        }
    };
    if !sys::is_root() && Upper::has_subordinate_owners(upper)? {
        // Written by kernel overlayfs in a user namespace: its files belong to subordinate IDs.
        userns::enter()?;
    }
    let mut live = Vec::new();
    if Upper::is_in_use(upper)? {
        // Mounts do not record their upper directory; syncing an unrelated mount does no harm.
        let over = |id: &_| catalog.get(id).is_some_and(has_chain);
        let mounts = mounts::list(store)?.into_iter().filter(|mount| mount.writable && over(&mount.image));
        let seen = |mount: Info| Live { root: mount.seen_at(store), of: mount.reference, server: mount.pid };
        live = mounts.map(seen).collect();
    }
    Ok(Target { image, upper: upper.to_owned(), left_out: BTreeSet::new(), config: None, live, _paused: None })
}

pub(in crate::cli) fn changes(store: &Store, target: &Target) -> Result<Changes, image::Error> {
    let fs = commit::open_view(store, &target.image, &target.upper)?;
    fs.changes(&target.left_out).map_err(image::Error::Changes)
}

/// Maximum attempts to read changes while files are being modified, and the delay between attempts.
const TRIES: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Maximum passes over files that writeback has copied up. Each pass finds fewer.
const ROUNDS: usize = 4;

impl Target {
    /// Writes back the dirty pages of live mounts. The first write of a file copies up its data, so that new files may
    /// appear in the upper directory, and need another pass.
    pub(in crate::cli) fn write_back(&self, store: &Store) -> anyhow::Result<()> {
        if self.live.is_empty() {
            return Ok(());
        }
        let roots = self.live.iter().map(sync).collect::<anyhow::Result<Vec<Rootfs>>>()?;
        let mut done = BTreeSet::new();
        for _ in 0..ROUNDS {
            let files =
                self.consistently(|| changes(store, self))?.into_iter().filter(|(_, changed)| changed.is_file());
            let new: Vec<Vec<u8>> = files.map(|(path, _)| path).filter(|path| !done.contains(path)).collect();
            if new.is_empty() {
                break;
            }
            for root in &roots {
                flush(root, &new)?;
            }
            done.extend(new);
        }
        Ok(())
    }

    /// Reads the changes with `pass`. Starts again if a running program, which could not be paused, modified them
    /// meanwhile.
    pub(in crate::cli) fn consistently<T>(&self, pass: impl Fn() -> Result<T, image::Error>) -> anyhow::Result<T> {
        let Some(mount) = self.live.first() else { return Ok(pass()?) };
        for _ in 1..TRIES {
            match pass() {
                Err(e) if is_disturbed(&e) => std::thread::sleep(RETRY_DELAY),
                done => return Ok(done?),
            }
        }
        pass().map_err(|e| match is_disturbed(&e) {
            true => anyhow::anyhow!(
                "the files of {} changed while they were read, {TRIES} times: stop the programs that write to \
                 them first ({e})",
                mount.of
            ),
            false => e.into(),
        })
    }
}

/// Whether an error means that a file was removed or replaced while it was read.
fn is_disturbed(error: &image::Error) -> bool {
    let changed = |e: &FsError| e.is_absence() || matches!(e, FsError::NotDir | FsError::IsDir | FsError::WrongType);
    match error {
        image::Error::Changes(e) | image::Error::NewLayer(ExportError::Read { cause: e, .. }) => changed(e),
        image::Error::NewLayer(ExportError::Shorter(_)) => true,
        _ => false,
    }
}

/// Starts the writeback of a live mount's dirty pages with syncfs(2), which does not wait on FUSE; returns its root.
pub(in crate::cli) fn sync(mount: &Live) -> anyhow::Result<Rootfs> {
    let failed = |e: io::Error| {
        let (of, server, why) = (&mount.of, mount.server, sys::describe(&e));
        anyhow::anyhow!(
            "cannot read the mount of {of} by process {server}, which may have unwritten changes: {why}; unmount it \
             first"
        )
    };
    let root = File::open(&mount.root).map_err(failed)?;
    rustix::fs::syncfs(&root).map_err(|e| failed(e.into()))?;
    Ok(Rootfs::new(root.into()))
}

/// Waits until files of a mount are written, with fdatasync(2). Skips removed files and objects of other types.
fn flush(root: &Rootfs, paths: &[Vec<u8>]) -> anyhow::Result<()> {
    for path in paths {
        match root.open_file(OsStr::from_bytes(path)).and_then(|file| file.sync_data()) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput) => {}
            Err(e) => anyhow::bail!("cannot sync {}: {}", show(path), sys::describe(&e)),
        }
    }
    Ok(())
}
