//! Garbage collection: finds and removes layers, documents, trees, sessions and files that nothing refers to.

use super::folder::{disk_usage, unlink};
use super::lists::ManifestList;
use super::session::{self, Found};
use super::{
    Catalog, Error, Formats, Intent, Lock, Result, Store, builds, containers, folder, lists, mounts, partial, publish,
};
use crate::digest::{Algorithm, Digest};
use crate::sys;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Age at which an untouched partial download is removed.
const DOWNLOAD_LIFE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Whether this process has warned that unreadable state kept everything.
static WARNED: AtomicBool = AtomicBool::new(false);

/// Kind of garbage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A document that no image refers to.
    Blob,
    /// A layer that no image refers to.
    Layer,
    /// A merged tree of no image, or of another version of its format.
    Tree,
    /// An unfinished session of a dead process.
    Partial,
    /// A partial blob, kept for the next pull.
    Download,
    /// A mount whose daemon is gone.
    Mount,
    /// A container whose creation or removal was interrupted.
    Container,
    /// A file that does not belong where it is.
    Stray,
}

impl Kind {
    /// The kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Blob => "blob",
            Kind::Layer => "layer",
            Kind::Tree => "tree",
            Kind::Partial => "partial download",
            Kind::Download => "unfinished download",
            Kind::Mount => "mount",
            Kind::Container => "container",
            Kind::Stray => "file",
        }
    }
}

/// A file or folder that can be removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Garbage {
    /// Kind.
    pub kind: Kind,
    /// Path.
    pub path: PathBuf,
    /// Disk space that its removal frees, in bytes.
    pub bytes: u64,
}

/// Finds everything in the store that the catalog, the containers, the manifest lists, the live sessions and the live
/// mounts do not need.
/// Trees are needed only in the given versions of the formats. If some of these cannot be read, every layer, document and
/// tree counts as needed.
pub fn find(store: &Store, lock: &Lock, catalog: &Catalog, formats: Formats) -> Result<Vec<Garbage>> {
    Ok(search(store, lock, catalog, formats)?.0)
}

/// [`find`], which also returns why the needs of some users of the store cannot be read.
fn search(store: &Store, lock: &Lock, catalog: &Catalog, formats: Formats) -> Result<(Vec<Garbage>, Vec<Error>)> {
    let (needed, unreadable) = needed(store, lock, catalog)?;
    let all_needed = !unreadable.is_empty();
    let mut found = Vec::new();
    for entry in session::find(store, lock)? {
        if let Found::Dead(path) = entry {
            found.push(garbage(Kind::Partial, path));
        }
    }
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for (kind, folder, keep) in [(Kind::Blob, "blobs", &needed.blobs), (Kind::Layer, "layers", &needed.layers)] {
            for (name, path) in folder::list(&store.root().join(folder).join(algorithm.name()))? {
                match format!("{}:{name}", algorithm.name()).parse::<Digest>() {
                    Ok(digest) if all_needed || keep.contains(&digest) => {}
                    Ok(_) => found.push(garbage(kind, path)),
                    Err(_) => found.push(garbage(Kind::Stray, path)),
                }
            }
        }
    }
    for (_, path) in folder::list(&store.root().join("trees"))? {
        if !all_needed && !needed.trees.iter().any(|chain| store.tree_files(chain, formats).contains(&path)) {
            found.push(garbage(Kind::Tree, path));
        }
    }
    found.extend(mounts::stale(store, lock)?.into_iter().map(|path| garbage(Kind::Mount, path)));
    found.extend(containers::stale(store, lock)?.into_iter().map(|path| garbage(Kind::Container, path)));
    let strays = builds::stale(store, lock)?.into_iter().chain(lists::stale(store, lock)?);
    found.extend(strays.map(|path| garbage(Kind::Stray, path)));
    let torn = [store.catalog_path(), store.catalog_backup_path()].map(|path| publish::beside(&path));
    found.extend(torn.into_iter().filter(|path| path.exists()).map(|path| garbage(Kind::Partial, path)));
    Ok((found, unreadable))
}

/// Layers taken out of the store that still occupy disk space. Dropping it deletes them, which is slow for large files
/// and needs no lock; until then other processes leave them alone. If the process dies first, they are reaped like a
/// dead session's folder.
#[must_use = "dropping it takes time, which is better spent after the store's lock is gone"]
#[derive(Default)]
pub struct Trash {
    layers: Vec<(PathBuf, Option<File>)>,
    bytes: u64,
}

impl Trash {
    /// Disk space that dropping it frees, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds another trash's layers.
    pub fn extend(&mut self, mut other: Trash) {
        self.layers.append(&mut other.layers);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        for (path, _held) in self.layers.drain(..) {
            if let Err(error) = unlink(&path) {
                tracing::warn!("{error}; `plyfs system gc` will remove it");
            }
        }
    }
}

/// Removes the garbage of [`find`]. Continues after failures and returns the first one at the end.
pub fn remove(store: &Store, lock: &Lock, found: &[Garbage]) -> Result<Trash> {
    debug_assert!(lock.exclusive());
    let (layers, others): (Vec<&Garbage>, Vec<&Garbage>) = found.iter().partition(|item| item.kind == Kind::Layer);
    let (trash, mut first) = remove_layers(store, &layers);
    for item in others {
        let done = match item.kind {
            Kind::Mount => mounts::reap(&item.path),
            _ => unlink(&item.path),
        };
        first = first.and(done);
    }
    mounts::prune_logs(store)?;
    first.map(|()| trash)
}

/// Takes layers out of the store. Renames all of them first and syncs once: after a power failure each layer is there
/// as a whole or not at all.
fn remove_layers(store: &Store, layers: &[&Garbage]) -> (Trash, Result<()>) {
    let (mut trash, mut first) = (Trash::default(), Ok(()));
    for layer in layers {
        match set_aside(store, &layer.path) {
            Ok(aside) => {
                trash.layers.push(aside);
                trash.bytes += layer.bytes;
            }
            Err(error) => first = first.and(Err(error)),
        }
    }
    let folders: BTreeSet<&Path> = layers.iter().filter_map(|layer| layer.path.parent()).collect();
    let synced = folders.into_iter().try_for_each(publish::sync_dir);
    (trash, first.and(synced))
}

/// Runs [`find`] and [`remove`]. Warns if everything had to be kept.
pub fn collect(store: &Store, lock: &Lock, catalog: &Catalog, formats: Formats) -> Result<(Vec<Garbage>, Trash)> {
    let (found, unreadable) = search(store, lock, catalog, formats)?;
    let first = unreadable.first().filter(|_| !WARNED.swap(true, Ordering::Relaxed));
    if let Some(why) = first {
        let others = match unreadable.len() {
            1 => String::new(),
            more => format!(" (and {} more)", more - 1),
        };
        tracing::warn!(
            "{why}{others}; no layer is removed, as it may be needed: `plyfs system fsck --repair` says what to do"
        );
    }
    let trash = remove(store, lock, &found)?;
    Ok((found, trash))
}

/// Removes what a failed session published, except what is needed by now. The session has given up its intent.
pub fn take_back(store: &Store, made: &Intent, formats: Formats) -> Result<()> {
    let lock = store.lock_exclusive()?;
    let (needed, unreadable) = needed(store, &lock, &store.catalog()?)?;
    if !unreadable.is_empty() {
        return Ok(());
    }
    let layers = made.layers.difference(&needed.layers).map(|d| (Kind::Layer, store.layer_dir(d)));
    let blobs = made.blobs.difference(&needed.blobs).map(|d| (Kind::Blob, store.blob_path(d)));
    let trees = made.trees.difference(&needed.trees).flat_map(|d| store.tree_files(d, formats));
    let trees = trees.map(|path| (Kind::Tree, path));
    let all = layers.chain(blobs).chain(trees).filter(|(_, path)| path.exists());
    let all: Vec<Garbage> = all.map(|(kind, path)| garbage(kind, path)).collect();
    let trash = remove(store, &lock, &all)?;
    drop(lock);
    drop(trash);
    Ok(())
}

/// Removes unfinished sessions of dead processes, unless another process holds the store's lock: a later one will.
/// Returns whether one had to be left, because this process may not remove it: a build step of an unprivileged user has
/// files of subordinate IDs, which root in the user's namespace may remove.
pub fn reap_partials(store: &Store) -> Result<bool> {
    let Some(lock) = store.try_lock_exclusive()? else { return Ok(false) };
    let mut left = false;
    for entry in session::find(store, &lock)? {
        let Found::Dead(path) = entry else { continue };
        match unlink(&path) {
            Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied && !sys::is_root() => {
                left = true;
            }
            done => done?,
        }
    }
    let is_old = |path: &PathBuf| {
        let changed = fs::metadata(path).and_then(|m| m.modified());
        changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > DOWNLOAD_LIFE))
    };
    partial::idle(store)?.iter().filter(|found| is_old(&found.path)).for_each(partial::Idle::remove);
    Ok(left)
}

/// Removes partial blobs that no process is fetching. Only an explicit request does this.
pub fn remove_downloads(store: &Store, lock: &Lock) -> Result<Vec<Garbage>> {
    debug_assert!(lock.exclusive());
    let idle = partial::idle(store)?;
    let found = idle.iter().map(|found| garbage(Kind::Download, found.path.clone())).collect();
    idle.iter().for_each(partial::Idle::remove);
    Ok(found)
}

/// Returns what live sessions and mounts need, and the errors for those whose needs cannot be read. The image of a
/// readable mount cannot be removed from the catalog, so it is not included.
fn live(store: &Store, lock: &Lock) -> Result<(Intent, Vec<Error>)> {
    let mut needed = Intent::default();
    let mut unreadable = mounts::list_with_damaged(store)?.1;
    for entry in session::find(store, lock)? {
        match entry {
            Found::Live(intent) => needed.extend(intent),
            Found::Unreadable(why) => unreadable.push(why),
            Found::Dead(_) => {}
        }
    }
    Ok((needed, unreadable))
}

/// Returns the errors for live sessions and mounts whose needs cannot be read. While they live no layer is collected.
pub fn unreadable_live(store: &Store, lock: &Lock) -> Result<Vec<Error>> {
    Ok(live(store, lock)?.1)
}

/// Returns everything in use, and the errors for users of the store whose needs cannot be read.
fn needed(store: &Store, lock: &Lock, catalog: &Catalog) -> Result<(Intent, Vec<Error>)> {
    let (mut needed, mut unreadable) = live(store, lock)?;
    let (containers, damaged) = containers::list_with_damaged(store)?;
    unreadable.extend(damaged.into_iter().map(|record| record.why));
    let (lists, damaged) = lists::list_with_damaged(store)?;
    unreadable.extend(damaged.into_iter().map(|record| record.why));
    let used = containers.iter().map(|container| &container.image).chain(lists.iter().flat_map(ManifestList::images));
    for image in catalog.images().iter().chain(used) {
        needed.layers.extend(image.layers.iter().map(|l| l.diff_id.clone()));
        needed.blobs.extend(image.blobs().cloned());
        needed.trees.insert(image.chain_id());
    }
    let manifests = lists.iter().flat_map(|list| &list.entries).filter(|entry| entry.image().is_some());
    needed.blobs.extend(manifests.filter_map(|entry| Some(entry.manifest.as_ref()?.digest.clone())));
    let cached = builds::list(store)?.into_iter().filter_map(|entry| entry.step?.layer);
    needed.layers.extend(cached.map(|layer| layer.diff_id));
    Ok((needed, unreadable))
}

/// Renames a folder into `tmp` and locks it, as a live session locks its folder.
pub(super) fn set_aside(store: &Store, path: &Path) -> Result<(PathBuf, Option<File>)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The same layer may have been removed before and not be deleted yet. The store's lock makes the name unique.
    let mut numbers = (0..).map(|n| store.root().join("tmp").join(format!("{name}.{n}.dead")));
    let aside = numbers.find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_default();
    fs::rename(path, &aside).map_err(Error::io("rename", path))?;
    // A folder that cannot be locked may be reaped by another process, which deletes it as well.
    let held = File::open(&aside).ok().filter(|dir| dir.try_lock().is_ok());
    Ok((aside, held))
}

fn garbage(kind: Kind, path: PathBuf) -> Garbage {
    let bytes = disk_usage(&path);
    Garbage { kind, path, bytes }
}

/// Disk space of the whole store, in bytes, without what is mounted in it.
pub fn store_usage(store: &Store) -> u64 {
    fn below(path: &Path, device: u64) -> u64 {
        let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
        if meta.dev() != device {
            return 0;
        }
        let entries = if meta.is_dir() { folder::list(path).unwrap_or_default() } else { vec![] };
        meta.blocks() * 512 + entries.iter().map(|(_, path)| below(path, device)).sum::<u64>()
    }
    fs::metadata(store.root()).map_or(0, |root| below(store.root(), root.dev()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Session;

    use crate::store::tests::FORMATS;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    fn put_layer(store: &Store, seed: &str) -> Digest {
        let id = Digest::of(seed.as_bytes());
        fs::create_dir(store.layer_dir(&id)).unwrap();
        fs::write(store.layer_tar(&id), seed).unwrap();
        id
    }

    fn gc(store: &Store) -> Vec<Kind> {
        let lock = store.lock_exclusive().unwrap();
        let (found, trash) = collect(store, &lock, &store.catalog().unwrap(), FORMATS).unwrap();
        drop(trash);
        found.into_iter().map(|g| g.kind).collect()
    }

    #[test]
    fn a_live_intent_keeps_and_a_dead_one_does_not() {
        let (_dir, store) = store();
        let (kept, lost) = (put_layer(&store, "kept"), put_layer(&store, "lost"));
        let session = Session::begin(&store).unwrap();
        session.intend(&Intent { layers: [kept.clone()].into(), ..Intent::default() }).unwrap();
        assert_eq!(gc(&store), [Kind::Layer]);
        assert!(store.has_layer(&kept) && !store.has_layer(&lost));
        drop(session);
        assert_eq!(gc(&store), [Kind::Layer]);
        assert!(!store.has_layer(&kept));
        assert_eq!(gc(&store), []);
    }

    #[test]
    fn a_session_that_is_in_the_catalog_keeps_nothing_by_itself() {
        let (_dir, store) = store();
        let layer = put_layer(&store, "layer");
        let session = Session::begin(&store).unwrap();
        session.intend(&Intent { layers: [layer].into(), ..Intent::default() }).unwrap();
        assert_eq!(gc(&store), []);
        store.update_by(&session, |_, _| Ok::<_, Error>(())).unwrap();
        // The image is removed before the session has ended.
        assert_eq!(gc(&store), [Kind::Layer]);
    }

    #[test]
    fn partials_of_the_dead_go_and_those_of_the_living_stay() {
        let (_dir, store) = store();
        fs::create_dir(store.root().join("tmp/99-0")).unwrap();
        fs::write(store.root().join("tmp/99-0/layer.tar"), "half").unwrap();
        let live = Session::begin(&store).unwrap();
        fs::write(live.temp_path("file"), "half").unwrap();
        reap_partials(&store).unwrap();
        assert_eq!(folder::list(&store.root().join("tmp")).unwrap().len(), 1);
        assert_eq!(gc(&store), []);
    }

    #[test]
    fn a_failed_session_takes_back_only_what_nobody_needs() {
        let (_dir, store) = store();
        let (shared, own) = (put_layer(&store, "shared"), put_layer(&store, "own"));
        let other = Session::begin(&store).unwrap();
        other.intend(&Intent { layers: [shared.clone()].into(), ..Intent::default() }).unwrap();
        let made = Intent { layers: [shared.clone(), own.clone()].into(), ..Intent::default() };
        take_back(&store, &made, FORMATS).unwrap();
        assert!(store.has_layer(&shared) && !store.has_layer(&own));
    }

    #[test]
    fn a_layer_whose_removal_was_killed_once_can_be_removed_again() {
        let (_dir, store) = store();
        for seed in ["one", "two"] {
            let layer = put_layer(&store, seed);
            let aside = store.root().join("tmp").join(format!("{}.0.dead", layer.hex()));
            fs::create_dir(&aside).unwrap();
            fs::write(aside.join("layer.tar"), "half").unwrap();
        }
        assert_eq!(gc(&store), [Kind::Partial, Kind::Partial, Kind::Layer, Kind::Layer]);
        for folder in ["layers/sha256", "tmp"] {
            assert_eq!(folder::list(&store.root().join(folder)).unwrap(), [], "{folder}");
        }
    }

    #[test]
    fn what_is_on_its_way_out_is_nobody_elses_garbage() {
        let (_dir, store) = store();
        let layer = put_layer(&store, "layer");
        let lock = store.lock_exclusive().unwrap();
        let (found, trash) = collect(&store, &lock, &store.catalog().unwrap(), FORMATS).unwrap();
        drop(lock);
        assert!(found.len() == 1 && trash.bytes() > 0 && !store.has_layer(&layer));
        assert_eq!(gc(&store), []);
        reap_partials(&store).unwrap();
        let aside = || folder::list(&store.root().join("tmp")).unwrap().len();
        assert_eq!(aside(), 1);
        // The layer may be published again meanwhile.
        put_layer(&store, "layer");
        drop(trash);
        assert!(aside() == 0 && store.has_layer(&layer));
    }

    #[test]
    fn strays_and_old_trees_go() {
        let (_dir, store) = store();
        fs::write(store.root().join("blobs/sha256/README"), "x").unwrap();
        fs::write(store.tree_path(&Digest::of(b""), FORMATS.index + 1), "x").unwrap();
        assert_eq!(gc(&store), [Kind::Stray, Kind::Tree]);
    }
}
