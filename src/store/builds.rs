//! Build cache: the results of build steps, and the directories of `RUN --mount=type=cache`.
//!
//! ```text
//! builds/steps/<key>         result of a step (see [`Step`]); its modification time is that of its last use
//! builds/shapes/<digest>     empty: a step has copied files of that shape, without a regard to their data
//! builds/mounts/<id>/        directory of a cache mount, flocked while a step uses it exclusively
//! ```
//!
//! A key is a digest of everything that the result depends on. A step keeps its layer from garbage collection. Both are
//! only a cache: a step that cannot be read is made again, and is garbage.

use super::lists::{self, ManifestList};
use super::{Error, LayerRecord, Lock, Result, Store, containers, folder, sealed};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The result of a build step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// The layer that it made; `None` if it changed nothing.
    pub layer: Option<LayerRecord>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The instruction, for people.
    pub title: String,
}

/// An entry of the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its file or directory.
    pub path: PathBuf,
    /// The step; `None` for a cache mount.
    pub step: Option<Step>,
    /// Time of its last use.
    pub used: SystemTime,
}

fn steps(store: &Store) -> PathBuf {
    store.root().join("builds").join("steps")
}

fn mounts(store: &Store) -> PathBuf {
    store.root().join("builds").join("mounts")
}

/// Looks up a step by its key, and notes its use. The layer may be gone.
pub fn find(store: &Store, key: &Digest) -> Option<Step> {
    let path = steps(store).join(key.hex());
    let step = sealed::load(&path).unwrap_or_else(|error| {
        tracing::debug!("{error}; the step is made again");
        None
    })?;
    // Only the order of a prune depends on it.
    let _noted = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
    Some(step)
}

/// Records a step, whose layer is in the store.
pub fn record(store: &Store, key: &Digest, step: &Step) -> Result<()> {
    let (dir, path) = (steps(store), steps(store).join(key.hex()));
    let bytes = sealed::encode(step, &path)?;
    make_dir(&dir)?;
    // Not synced: after a power failure a torn file has a wrong checksum, and the step is made again.
    let mut file = tempfile::NamedTempFile::new_in(&dir).map_err(Error::io("write to", &dir))?;
    io::Write::write_all(&mut file, &bytes).map_err(Error::io("write", &path))?;
    file.persist(&path).map_err(|e| Error::io("write", &path)(e.error))?;
    Ok(())
}

fn shapes(store: &Store) -> PathBuf {
    store.root().join("builds").join("shapes")
}

/// Whether a step may have copied files of that shape. If not, their data need not be read to look for the step.
pub fn has_shape(store: &Store, shape: &Digest) -> bool {
    shapes(store).join(shape.hex()).exists()
}

/// Notes the shape of files that a step has copied.
pub fn note_shape(store: &Store, shape: &Digest) -> Result<()> {
    make_dir(&shapes(store))?;
    let path = shapes(store).join(shape.hex());
    File::create(&path).map(drop).map_err(Error::io("create", path))
}

/// Forgets all shapes, when there is no step left.
pub fn forget_shapes(store: &Store) -> Result<()> {
    folder::unlink(&shapes(store))
}

/// Lists the cache, the least recently used first.
pub fn list(store: &Store) -> Result<Vec<Entry>> {
    let used = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut all = Vec::new();
    for (_, path) in folder::list(&steps(store))? {
        let step: Option<Step> = sealed::load(&path).unwrap_or_default();
        all.extend(step.map(|step| Entry { used: used(&path), step: Some(step), path }));
    }
    all.extend(folder::list(&mounts(store))?.into_iter().map(|(_, path)| Entry {
        used: used(&path),
        step: None,
        path,
    }));
    all.sort_by_key(|entry| entry.used);
    Ok(all)
}

/// Files of the cache that cannot be used.
pub(super) fn stale(store: &Store, lock: &Lock) -> Result<Vec<PathBuf>> {
    debug_assert!(lock.exclusive());
    let all = folder::list(&steps(store))?.into_iter().map(|(_, path)| path);
    Ok(all.filter(|path| !matches!(sealed::load::<Step>(path), Ok(Some(_)))).collect())
}

/// Disk space of an entry without its layer, in bytes.
pub fn size(entry: &Entry) -> u64 {
    folder::disk_usage(&entry.path)
}

/// Size of the whole cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Number of entries.
    pub count: usize,
    /// Size of the layers that only the cache needs, and of the cache mounts, in bytes.
    pub size: u64,
}

/// Measures the cache. Layers that an image, a container or a manifest list needs are not counted.
pub fn usage(store: &Store) -> Result<Usage> {
    let (catalog, containers) = (store.catalog()?, containers::list(store)?);
    let lists = lists::list_with_damaged(store)?.0;
    let used = containers.iter().map(|container| &container.image).chain(lists.iter().flat_map(ManifestList::images));
    let mut seen: BTreeSet<&Digest> =
        catalog.images().iter().chain(used).flat_map(|image| &image.layers).map(|layer| &layer.diff_id).collect();
    let entries = list(store)?;
    let mut size = 0;
    for entry in &entries {
        size += match entry.step.as_ref().map(|step| &step.layer) {
            None => self::size(entry),
            Some(Some(layer)) if seen.insert(&layer.diff_id) => layer.size,
            Some(_) => 0,
        };
    }
    Ok(Usage { count: entries.len(), size })
}

/// Removes an entry; one that a step is using is kept. Returns whether it is gone.
pub fn remove(entry: &Entry) -> Result<bool> {
    if entry.step.is_some() {
        folder::unlink(&entry.path)?;
        return Ok(true);
    }
    let dir = File::open(&entry.path).map_err(Error::io("open", &entry.path))?;
    if dir.try_lock().is_err() {
        return Ok(false);
    }
    folder::unlink(&entry.path)?;
    Ok(true)
}

/// How several steps use a cache mount at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// All at once.
    Shared,
    /// One after the other.
    Locked,
    /// Each of them has a directory of its own.
    Private,
}

/// A cache mount in use.
pub struct CacheMount {
    /// Its directory.
    pub path: PathBuf,
    _lock: File,
}

/// Opens the cache mount `id` for a step.
pub fn mount(store: &Store, id: &Digest, sharing: Sharing) -> Result<CacheMount> {
    make_dir(&mounts(store))?;
    let mut number = 0;
    loop {
        let name = if number == 0 { id.hex().to_owned() } else { format!("{}-{number}", id.hex()) };
        let path = mounts(store).join(name);
        match DirBuilder::new().mode(0o755).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("make", path)(e)),
            _ => {}
        }
        let dir = File::open(&path).map_err(Error::io("open", &path))?;
        let held = match sharing {
            Sharing::Shared => dir.lock_shared().map(|()| true),
            Sharing::Locked => dir.lock().map(|()| true),
            Sharing::Private => Ok(dir.try_lock().is_ok()),
        };
        match held.map_err(Error::io("lock", &path))? {
            true if path.exists() => return Ok(CacheMount { path, _lock: dir }),
            // A prune has removed it before it was locked.
            true => {}
            false => number += 1,
        }
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("make", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_by_their_keys_until_they_are_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
        let step = Step { layer: None, created: "2026-01-01T00:00:00Z".into(), title: "RUN true".into() };
        record(&store, &key, &step).unwrap();
        assert_eq!((find(&store, &key), find(&store, &other)), (Some(step), None));
        assert_eq!(list(&store).unwrap().len(), 1);
        fs::write(steps(&store).join(key.hex()), "{").unwrap();
        assert_eq!(find(&store, &key), None);
        assert!(list(&store).unwrap().is_empty());
        let lock = store.lock_exclusive().unwrap();
        assert_eq!(stale(&store, &lock).unwrap(), [steps(&store).join(key.hex())]);
    }

    #[test]
    fn cache_mounts_are_shared_or_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = Digest::of(b"id");
        let first = mount(&store, &id, Sharing::Shared).unwrap();
        let second = mount(&store, &id, Sharing::Shared).unwrap();
        assert_eq!(first.path, second.path);
        let own = mount(&store, &id, Sharing::Private).unwrap();
        assert_ne!(own.path, first.path);
        let entries = list(&store).unwrap();
        assert!(entries.iter().all(|entry| !remove(entry).unwrap()));
        drop((first, second, own));
        assert!(entries.iter().all(|entry| remove(entry).unwrap()));
        assert!(list(&store).unwrap().is_empty());
    }
}
