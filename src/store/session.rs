//! A running pull's place in the store: a folder for its partials and its intent, alive as long as its flock is held.

use super::{Error, Lock, Result, Store, partial, publish, sealed};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const INTENT: &str = "intent.json";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a session needs: nobody removes it while the session lives.
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
    /// Takes in another's needs.
    pub fn extend(&mut self, other: Intent) {
        self.layers.extend(other.layers);
        self.blobs.extend(other.blobs);
        self.trees.extend(other.trees);
    }
}

/// A live session. Its folder and everything unpublished in it go when it is dropped or abandoned.
pub struct Session {
    store: Store,
    place: Arc<Place>,
    /// The folder itself, flocked.
    _held: File,
    files: AtomicU32,
}

/// A session's folder, which either the session or who abandons it takes away.
struct Place {
    dir: PathBuf,
    abandoned: AtomicBool,
    /// Held while the folder is being removed.
    gone: Mutex<bool>,
}

impl Place {
    /// Takes the folder away, once. It gets another name first, so that nothing can be made in it or published from it
    /// by threads that still work there.
    fn remove(&self) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// Begins one.
    pub fn begin(store: &Store) -> Result<Session> {
        Session::begin_under(&store.lock_shared()?, store)
    }

    /// Begins one without waiting, for a caller that has the store's lock.
    pub fn begin_under(_lock: &Lock, store: &Store) -> Result<Session> {
        loop {
            let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let dir = store.root().join("tmp").join(name);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                // A dead process had our number; its folder is reaped when somebody can.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("make", dir)(e)),
            }
            let held = File::open(&dir).map_err(Error::io("open", &dir))?;
            held.lock().map_err(Error::io("lock", &dir))?;
            let place = Arc::new(Place { dir, abandoned: AtomicBool::new(false), gone: Mutex::new(false) });
            return Ok(Session { store: store.clone(), place, _held: held, files: AtomicU32::new(0) });
        }
    }

    /// What ends the session from another thread, at once and whatever goes on in it. From then on everything that is
    /// tried in the session fails; nothing of it is published any more. What was published before stays.
    pub fn abandoner(&self) -> impl Fn() + Send + use<> {
        let place = Arc::clone(&self.place);
        move || {
            place.abandoned.store(true, Ordering::SeqCst);
            place.remove();
        }
    }

    /// Whether it has been abandoned: then its failures mean nothing.
    pub fn is_abandoned(&self) -> bool {
        self.place.abandoned.load(Ordering::SeqCst)
    }

    /// The store it belongs to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A fresh name in the session's folder.
    pub fn temp_path(&self, kind: &str) -> PathBuf {
        self.place.dir.join(format!("{kind}-{}", self.files.fetch_add(1, Ordering::Relaxed)))
    }

    /// Says what this session needs. From when this returns, whatever of it is there stays there.
    pub fn intend(&self, intent: &Intent) -> Result<()> {
        let _shared = self.store.lock_shared()?;
        let path = self.place.dir.join(INTENT);
        publish::replace(&path, &sealed::encode(intent, &path)?)
    }

    /// Gives the intent up, so that a collection treats what this session made like anything else.
    pub fn give_up(&self) -> Result<()> {
        match fs::remove_file(self.place.dir.join(INTENT)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", self.place.dir.join(INTENT))(e)),
            _ => Ok(()),
        }
    }

    /// Publishes a document whose digest the caller has checked. Returns whether it was not there before.
    pub fn publish_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<bool> {
        let to = self.store.blob_path(digest);
        if fs::symlink_metadata(&to).is_ok_and(|m| m.is_file()) && fs::read(&to).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
        self.publish_file(&to, bytes)?;
        Ok(true)
    }

    /// Publishes a file, replacing whatever stands under its name.
    pub fn publish_file(&self, to: &Path, bytes: &[u8]) -> Result<()> {
        let aside = |path: &Path| fs::rename(path, self.temp_path("dead")).map_err(Error::io("rename", path));
        publish::replace_all(&[(self.temp_path("file"), to.to_owned())], bytes, aside)
    }

    /// Publishes a layer from a folder of this session that holds its synced files. Returns whether it was not there
    /// before: another process may have been faster.
    pub fn publish_layer(&self, from: &Path, diff_id: &Digest) -> Result<bool> {
        publish::sync_dir(from)?;
        let to = self.store.layer_dir(diff_id);
        match fs::rename(from, &to) {
            Ok(()) => {}
            Err(_) if self.store.has_layer(diff_id) => return Ok(false),
            // The remains of a damaged layer, or no folder at all: no tar, so nobody uses it.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => {
                self.set_layer_aside(diff_id)?;
                fs::rename(from, &to).map_err(Error::io("rename to", &to))?;
            }
            Err(e) => return Err(Error::io("rename to", to)(e)),
        }
        to.parent().map_or(Ok(()), publish::sync_dir)?;
        Ok(true)
    }

    /// Takes a damaged layer out of the store, durably, so that it can come again. It goes with the session.
    pub fn set_layer_aside(&self, diff_id: &Digest) -> Result<()> {
        let dir = self.store.layer_dir(diff_id);
        match fs::rename(&dir, self.temp_path("dead")) {
            // Somebody else was faster.
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

/// A session's folder as an outsider finds it.
pub(super) enum Found {
    /// Its process lives; this is what it needs.
    Live(Intent),
    /// Its process lives, and what it needs cannot be read.
    Unreadable(Error),
    /// Its process is gone.
    Dead(PathBuf),
}

/// All sessions' folders. Under the exclusive lock nobody can be between making a folder and locking it.
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
            // One that ended while we looked took its folder with it.
            if fs::symlink_metadata(&path).is_ok() {
                found.push(Found::Dead(path));
            }
            continue;
        }
        // Without one it has not said yet, or has just ended.
        let intent = sealed::load(&path.join(INTENT)).map(Option::unwrap_or_default);
        found.push(intent.map_or_else(Found::Unreadable, Found::Live));
    }
    Ok(found)
}
