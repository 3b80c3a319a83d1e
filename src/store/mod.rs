//! What plyfs keeps on disk, and the rules by which it changes. This page is the format's documentation.
//!
//! ```text
//! ROOT/                          0700, as is every folder right below it
//!   catalog.json                 every image: version, then a list of records (see [`Image`])
//!   lock                         flock: exclusive to change the catalog or remove anything, shared to begin something
//!   blobs/<alg>/<hex>            manifests, image indexes and configs: the exact bytes received
//!   layers/<alg>/<DiffID hex>/
//!     layer.tar                  the exact uncompressed stream: hashing it gives the DiffID
//!     index                      made from layer.tar, and can be made from it again
//!   trees/<ChainID hex>.v<FORMAT>  merged index of a stack of layers; a cache, made again when missing
//!   tmp/<session>/               one running pull or load, held by a flock on the folder itself
//!     intent.json                digests that this session needs and nobody may remove
//!     ...                        files and folders on their way to being published
//!   tmp/partial/<alg>-<hex>      what has come of a compressed blob so far, unchecked; flocked while it is fetched
//!   mounts/<id>/
//!     lock                       flock, held by the daemon as long as it serves
//!     info.json                  image, mountpoint, process (see [`mounts::Info`])
//!     log                        the daemon's log; those of the last few mounts are kept
//!     merged/ upper/ work/       of a mount at a place of the store's own, and gone with it
//!   uppers/<id>/                 changes of `mount --rw`, by image and mountpoint: `upper` and `work`
//!   containers/<id>/             a container: what it is, how it fares, what it changed (see [`containers`])
//! ```
//!
//! **Publishing.** Nothing is written in place. A blob or a layer is written in the session's folder, its size, digest and
//! DiffID are checked, it is synced, renamed to its final name, and the folder it now stands in is synced. What has a
//! final name is therefore whole. The catalog comes last, replaced by a rename too: an image in the catalog has all its
//! parts.
//!
//! **Locks.** All are flocks, so a dead process holds none. Order: `lock` first, then a session's or a mount's. Whoever
//! starts a session, writes its intent or registers a mount does it under a shared `lock`; whoever removes holds it
//! exclusively and keeps whatever the catalog, a live session's intent or a live mount needs. Readers of the catalog
//! need no lock.
//!
//! **Partials.** A fetch that ends early leaves its partial, and the next one goes on with it: all of it is hashed again,
//! and one that turns out wrong is thrown away. Its flock is held until the layer is published, so that nobody fetches the
//! blob meanwhile; whoever removes one holds it too. `system gc` and `image prune` remove those that nobody is fetching; so
//! does a pull with those that nobody touched for two weeks.
//!
//! **Crashes.** A process that dies leaves at worst a session folder (reaped by the next pull, removal or collection) and
//! whole layers that no image names, which the next pull of the image takes up and `system gc` removes otherwise.

mod catalog;
pub mod containers;
pub mod gc;
pub mod mounts;
mod partial;
mod publish;
mod session;

pub(crate) use catalog::is_id_prefix;
pub use catalog::{Catalog, Image, LayerRecord, chain_ids};
pub use partial::Partial;
pub use publish::{read_capped, sync_dir, write_new};
pub use session::{Intent, Session};

use crate::digest::Digest;
use crate::sys;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Why the store could not do something. Each prints as one whole line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {}", path.display(), sys::describe(cause))]
    Io {
        /// What was tried, as a verb: `write`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The catalog is damaged or newer than this program.
    #[error("{}: {why}", path.display())]
    Catalog {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No image by that name or ID.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// No container by that name or ID.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// Another container has the name.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// Several images' or containers' IDs begin so.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
}

impl Error {
    /// Names the operation and the file of a failed system call.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |cause| Error::Io { action, path, cause }
    }
}

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// The store's lock, held as long as this lives.
pub struct Lock {
    _file: File,
    exclusive: bool,
}

impl Lock {
    /// Whether this process alone holds it.
    pub fn exclusive(&self) -> bool {
        self.exclusive
    }
}

/// A store on disk. Cheap to clone; holds no lock and no open file.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making it (mode 0700) where it is not there yet.
    pub fn open(root: &Path) -> Result<Store> {
        let store = Store { root: std::path::absolute(root).map_err(Error::io("use", root))? };
        for folder in [
            "blobs/sha256",
            "blobs/sha512",
            "layers/sha256",
            "layers/sha512",
            "trees",
            "tmp",
            "mounts",
            "uppers",
            "containers",
        ] {
            let path = store.root.join(folder);
            if !path.is_dir() {
                DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(Error::io("make", &path))?;
            }
        }
        Ok(store)
    }

    /// The folders right under the root. Each is closed to others (mode 0700) by itself, so that a root that was there
    /// before may be open.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        ["blobs", "layers", "trees", "tmp", "mounts", "uppers", "containers"]
            .into_iter()
            .map(|folder| self.root.join(folder))
    }

    /// Where the changes are kept that are made to an image at a mountpoint: the upper directory, and the work directory.
    pub fn kept_upper(&self, chain: &Digest, mountpoint: &Path) -> (PathBuf, PathBuf) {
        use std::os::unix::ffi::OsStrExt;
        let seed = [chain.to_string().as_bytes(), b" ", mountpoint.as_os_str().as_bytes()].concat();
        let folder = self.root.join("uppers").join(Digest::of(&seed).short());
        (folder.join("upper"), folder.join("work"))
    }

    /// The store's top folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How many bytes the store's file system can still take from this user, if it tells.
    pub fn free_space(&self) -> Result<Option<u64>> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|e| Error::io("ask for the free space of", &self.root)(e.into()))?;
        // Some is kept back for root.
        let blocks = if sys::is_root() { stat.f_bfree } else { stat.f_bavail };
        Ok((stat.f_blocks > 0).then(|| blocks.saturating_mul(stat.f_frsize)))
    }

    /// Where the blob of that digest stands, or would.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// The folder of the layer with that DiffID.
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm().name()).join(diff_id.hex())
    }

    /// The layer's uncompressed tar.
    pub fn layer_tar(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("layer.tar")
    }

    /// The layer's index.
    pub fn layer_index(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("index")
    }

    /// The merged index of the stack of layers with that ChainID, in that version of the index format.
    pub fn tree_path(&self, chain_id: &Digest, format: u32) -> PathBuf {
        self.root.join("trees").join(format!("{}.v{format}", chain_id.hex()))
    }

    /// Whether the layer is there, whole by the rule that only whole ones are published.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_tar(diff_id).is_file()
    }

    /// The bytes of a stored document, at most `cap` of them.
    pub fn blob(&self, digest: &Digest, cap: u64) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        read_capped(file, cap).map_err(Error::io("read", &path))
    }

    /// Waits for the lock that beginners share.
    pub fn lock_shared(&self) -> Result<Lock> {
        let (file, path) = self.lock_file()?;
        file.lock_shared().map_err(Error::io("lock", path))?;
        Ok(Lock { _file: file, exclusive: false })
    }

    /// Waits for the lock that whoever changes the catalog or removes something holds alone.
    pub fn lock_exclusive(&self) -> Result<Lock> {
        let (file, path) = self.lock_file()?;
        file.lock().map_err(Error::io("lock", path))?;
        Ok(Lock { _file: file, exclusive: true })
    }

    /// The exclusive lock if it is free this moment.
    pub fn try_lock_exclusive(&self) -> Result<Option<Lock>> {
        let (file, path) = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file, exclusive: true })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock", path)(e)),
        }
    }

    fn lock_file(&self) -> Result<(File, PathBuf)> {
        let path = self.root.join("lock");
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        open.map(|file| (file, path.clone())).map_err(Error::io("open", path))
    }

    /// The catalog as it stands now.
    pub fn catalog(&self) -> Result<Catalog> {
        Catalog::read(&self.catalog_path())
    }

    /// Changes the catalog: reads it under the exclusive lock, lets `change` work on it, and replaces the file when that
    /// succeeded. The lock is lent to `change`, so that what belongs to the change happens under it too.
    pub fn update<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lock = self.lock_exclusive()?;
        self.update_locked(&lock, change)
    }

    /// [`Store::update`] for a session, which prepares the new catalog in its own folder: whenever it is ended, nothing
    /// of it stays behind. From then on the catalog keeps what the session needed: its intent goes under the same lock,
    /// or a removal right after would spare what nobody needs once the session has ended.
    pub fn update_by<T, E: From<Error>>(
        &self,
        session: &Session,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lock = self.lock_exclusive()?;
        let value = self.change(&lock, &session.temp_path("catalog"), change)?;
        session.give_up()?;
        Ok(value)
    }

    /// [`Store::update`] for a caller that has the exclusive lock.
    pub fn update_locked<T, E: From<Error>>(
        &self,
        lock: &Lock,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.change(lock, &publish::beside(&self.catalog_path()), change)
    }

    fn change<T, E: From<Error>>(
        &self,
        lock: &Lock,
        temp: &Path,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        debug_assert!(lock.exclusive);
        let mut catalog = self.catalog()?;
        let before = catalog.clone();
        let value = change(lock, &mut catalog)?;
        if catalog != before {
            catalog.write(&self.catalog_path(), temp)?;
        }
        Ok(value)
    }

    /// Finds the image that `text` means: a name (`latest` where no tag is given), a name by digest, or the beginning of
    /// an ID, with or without `sha256:`.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        self.catalog()?.resolve(text).cloned()
    }

    pub(crate) fn catalog_path(&self) -> PathBuf {
        self.root.join("catalog.json")
    }
}
/// Reads the state file of one object in the store; none if there is no such file.
fn read_json<T: for<'de> serde::Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let damaged = |e: serde_json::Error| Error::Catalog { path: path.into(), why: format!("is damaged: {e}") };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}
