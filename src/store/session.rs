//! Session of a running pull or load: a folder for unpublished files and the session's intent, live while its flock is
//! held.

use super::{Error, Lock, Result, Store, partial, publish, sealed};
use crate::digest::Digest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const INTENT: &str = "intent.json";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A session's intent: the digests that must not be removed while the session lives.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// DiffIDs of layers.
    pub layers: BTreeSet<Digest>,
    /// Digests of documents.
    pub blobs: BTreeSet<Digest>,
    /// ChainIDs of merged trees.
    pub trees: BTreeSet<Digest>,
}

impl Intent {
    /// Whether it has all digests of another one.
    pub fn contains(&self, other: &Intent) -> bool {
        self.layers.is_superset(&other.layers)
            && self.blobs.is_superset(&other.blobs)
            && self.trees.is_superset(&other.trees)
    }

    /// Adds another intent's digests.
    pub fn extend(&mut self, other: Intent) {
        self.layers.extend(other.layers);
        self.blobs.extend(other.blobs);
        self.trees.extend(other.trees);
    }
}

/// A live session. Dropping or abandoning it removes its folder with everything unpublished.
pub struct Session {
    store: Store,
    place: Arc<Place>,
    /// The folder's descriptor, which holds the flock.
    _held: File,
    files: AtomicU32,
}

/// A session's folder, removed by the session or by its abandoner.
struct Place {
    dir: PathBuf,
    abandoned: AtomicBool,
    /// Whether the folder has been removed; locked during the removal.
    gone: Mutex<bool>,
}

impl Place {
    /// Removes the folder, once. Renames it first, so that threads still working in it can neither create nor publish
    /// anything.
    fn remove(&self) {
        let mut gone = self.gone.lock();
        if std::mem::replace(&mut *gone, true) {
            return;
        }
        let mut ended = self.dir.clone().into_os_string();
        ended.push(".ended");
        let done = fs::rename(&self.dir, &ended).and_then(|()| fs::remove_dir_all(&ended));
        if let Err(error) = done {
            tracing::warn!(path = %self.dir.display(), %error, "cannot remove a finished session's folder");
        }
    }
}

impl Session {
    /// Begins a session under the store's shared lock.
    pub fn begin(store: &Store) -> Result<Session> {
        Session::begin_under(&store.lock_shared()?, store)
    }

    /// Begins a session without waiting, for a caller that holds the store's lock.
    pub fn begin_under(_lock: &Lock, store: &Store) -> Result<Session> {
        loop {
            let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let dir = store.root().join("tmp").join(name);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                // A dead process had the same number; its folder will be reaped.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("make", dir)(e)),
            }
            let held = File::open(&dir).map_err(Error::io("open", &dir))?;
            held.lock().map_err(Error::io("lock", &dir))?;
            let place = Arc::new(Place { dir, abandoned: AtomicBool::new(false), gone: Mutex::new(false) });
            return Ok(Session { store: store.clone(), place, _held: held, files: AtomicU32::new(0) });
        }
    }

    /// Returns a function that abandons the session at once, from any thread. Every later operation of the session
    /// fails, and nothing more of it is published. What was published before stays.
    pub fn abandoner(&self) -> impl Fn() + Send + use<> {
        let place = Arc::clone(&self.place);
        move || {
            place.abandoned.store(true, Ordering::SeqCst);
            place.remove();
        }
    }

    /// Whether the session has been abandoned; its failures are then to be ignored.
    pub fn is_abandoned(&self) -> bool {
        self.place.abandoned.load(Ordering::SeqCst)
    }

    /// The session's store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns a new unique path in the session's folder.
    pub fn temp_path(&self, kind: &str) -> PathBuf {
        self.place.dir.join(format!("{kind}-{}", self.files.fetch_add(1, Ordering::Relaxed)))
    }

    /// Writes the session's intent. Once this returns, whatever of it is in the store stays there. It is not synced: after a
    /// power failure the session is dead.
    pub fn intend(&self, intent: &Intent) -> Result<()> {
        let _shared = self.store.lock_shared()?;
        let path = self.place.dir.join(INTENT);
        publish::replace_unsynced(&path, &sealed::encode(intent, &path)?)
    }

    /// Removes the intent, so that garbage collection treats the session's published data like any other.
    pub fn give_up(&self) -> Result<()> {
        match fs::remove_file(self.place.dir.join(INTENT)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", self.place.dir.join(INTENT))(e)),
            _ => Ok(()),
        }
    }

    /// Publishes a document whose digest the caller has verified. Returns whether it is new.
    pub fn publish_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<bool> {
        let to = self.store.blob_path(digest);
        if fs::symlink_metadata(&to).is_ok_and(|m| m.is_file()) && fs::read(&to).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
        self.publish_file(&to, bytes)?;
        Ok(true)
    }

    /// Publishes a file, replacing what is under its name.
    pub fn publish_file(&self, to: &Path, bytes: &[u8]) -> Result<()> {
        let aside = |path: &Path| fs::rename(path, self.temp_path("dead")).map_err(Error::io("rename", path));
        publish::replace_all(&[(self.temp_path("file"), to.to_owned())], bytes, aside)
    }

    /// Publishes a layer from a folder of this session that holds its synced files. Returns whether it is new: another
    /// process may have published it first.
    pub fn publish_layer(&self, from: &Path, diff_id: &Digest) -> Result<bool> {
        publish::sync_dir(from)?;
        let to = self.store.layer_dir(diff_id);
        match fs::rename(from, &to) {
            Ok(()) => {}
            Err(_) if self.store.has_layer(diff_id) => return Ok(false),
            // The remains of a damaged layer, or no folder at all: without a tar, so nothing uses it.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => {
                self.set_layer_aside(diff_id)?;
                fs::rename(from, &to).map_err(Error::io("rename to", &to))?;
            }
            Err(e) => return Err(Error::io("rename to", to)(e)),
        }
        to.parent().map_or(Ok(()), publish::sync_dir)?;
        Ok(true)
    }

    /// Moves a damaged layer out of the store into the session, durably, so that it can be fetched again.
    pub fn set_layer_aside(&self, diff_id: &Digest) -> Result<()> {
        let dir = self.store.layer_dir(diff_id);
        match fs::rename(&dir, self.temp_path("dead")) {
            // Another process moved it first.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => done.map_err(Error::io("rename", &dir))?,
        }
        dir.parent().map_or(Ok(()), publish::sync_dir)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.place.remove();
    }
}

/// A session's folder as seen by another process.
pub(super) enum Found {
    /// The process lives; this is its intent.
    Live(Intent),
    /// The process lives, and its intent cannot be read.
    Unreadable(Error),
    /// The process is gone.
    Dead(PathBuf),
}

/// Lists all sessions' folders. Under the exclusive lock no process is between creating a folder and locking it.
pub(super) fn find(store: &Store, lock: &Lock) -> Result<Vec<Found>> {
    debug_assert!(lock.exclusive());
    let tmp = store.root().join("tmp");
    let mut found = Vec::new();
    for entry in fs::read_dir(&tmp).map_err(Error::io("read", &tmp))? {
        let path = entry.map_err(Error::io("read", &tmp))?.path();
        if path.file_name().is_some_and(|name| name == partial::FOLDER) {
            continue;
        }
        let held = match File::open(&path) {
            Ok(file) => matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => false,
        };
        if !held {
            // A session that ended meanwhile removed its folder.
            if fs::symlink_metadata(&path).is_ok() {
                found.push(Found::Dead(path));
            }
            continue;
        }
        // A missing intent: not written yet, or the session has just ended.
        let intent = sealed::load(&path.join(INTENT)).map(Option::unwrap_or_default);
        found.push(intent.map_or_else(Found::Unreadable, Found::Live));
    }
    Ok(found)
}
