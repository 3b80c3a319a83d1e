//! The store: images, layers, manifest lists, mounts and containers on disk. This page documents the format and the rules for changes.
//!
//! ```text
//! ROOT/                          0700, as is every folder directly below it
//!   catalog.json                 all images: version, then a list of records (see [`Image`]), then a checksum
//!   catalog.backup.json          a copy, for repair when the catalog is damaged
//!   lock                         flock: exclusive to change the catalog or remove anything, shared to begin something
//!   blobs/<alg>/<hex>            manifests, image indexes and configs: the exact bytes received
//!   layers/<alg>/<DiffID hex>/
//!     layer.tar                  the exact uncompressed stream: its digest is the DiffID
//!     index                      made from layer.tar; can be rebuilt
//!   trees/<ChainID hex>.v<FORMAT>      merged index of a stack of layers; a cache, rebuilt when missing
//!   trees/<ChainID hex>.erofs<FORMAT>  the same as an EROFS image, for the kernel engine; a cache, too
//!   tmp/<session>/               session of a running pull or load, held by a flock on the folder itself
//!     intent.json                digests that the session needs and that must not be removed
//!     ...                        files and folders not yet published
//!   tmp/partial/<alg>-<hex>      beginning of a compressed blob, unverified; flocked while it is fetched
//!   mounts/<id>/
//!     lock                       flock, held by the daemon while it serves; a mount of the kernel engine has no
//!                                process, and lives as long as the kernel has it
//!     info.json                  image, mountpoint, process (see [`mounts::Info`])
//!     log                        the daemon's log; those of the last few mounts are kept
//!     merged/ upper/ work/       of a mount whose mountpoint is in the store; removed with it
//!   uppers/<id>/                 changes of `mount --rw`, by image and mountpoint: `upper` and `work`
//!   builds/                      results of build steps, and cache mounts (see [`builds`])
//!   lists/                       manifest lists, and what they keep of removed images (see [`lists`])
//!   containers/<id>/             a container's configuration, state and changes (see [`containers`])
//! ```
//!
//! **Publishing.** Nothing is written in place. A blob or a layer is written in the session's folder, its size, digest
//! and DiffID are verified, it is synced and renamed to its final name, and its new folder is synced. Everything under
//! a final name is therefore complete. The catalog is replaced last, also by a rename: an image in the catalog has all
//! its parts.
//!
//! **Damage.** Reads are verified: documents by their digest ([`Store::blob`]), indexes and trees by a checksum over
//! their mapping ([`crate::layer::Index::open`]), state files by the checksum at their end (`sealed`). Damaged indexes
//! and trees are rebuilt. Of the layers' tars only the length is checked; `system fsck` verifies their content.
//!
//! **The catalog's backup.** A change writes and syncs two new files, renames the first to `catalog.json`, the second
//! to `catalog.backup.json`, and syncs the folder. Both are complete at any time; after a crash the backup may be one
//! change older or newer. Only `system fsck --repair` reads it, when `catalog.json` is damaged, or missing while there
//! is a backup. Until then every command that needs the catalog fails, so that no command removes data or gives names
//! based on an outdated catalog.
//!
//! **Locks.** All locks are flocks, so a dead process holds none. Order: `lock` first, then a session's or a mount's. A
//! process that begins a session, writes its intent or registers a mount holds `lock` shared; a process that removes
//! anything holds it exclusively and keeps everything that the catalog, a container, a manifest list, a live session's
//! intent or a live mount needs.
//! Readers of the catalog need no lock.
//!
//! **Partials.** A fetch that ends early leaves its partial, and the next one resumes it: the whole partial is hashed
//! again, and a wrong one is discarded. The fetching process holds the partial's flock until the layer is published, so
//! that no other process fetches the blob meanwhile; a process that removes a partial holds it too. `system gc` and
//! `image prune` remove partials that no process is fetching; a pull removes those that were not touched for two weeks.
//!
//! **Crashes.** A process that dies leaves at worst a session folder (reaped by the next pull, removal or collection)
//! and complete layers that no image refers to; the next pull of the image uses them, otherwise `system gc` removes
//! them.

pub mod builds;
mod catalog;
pub mod containers;
mod folder;
pub mod gc;
pub mod lists;
pub mod mounts;
mod partial;
mod publish;
mod sealed;
mod session;

pub(crate) use catalog::is_id_prefix;
pub use catalog::{Catalog, Image, LayerRecord, chain_ids};
pub(crate) use folder::unlink as remove_path;
pub use partial::Partial;
pub use publish::{read_capped, sync_dir, write_new};
pub use session::{Intent, Session};

use crate::digest::{Algorithm, Digest};
use crate::sys;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Error of a store operation. Each prints as one complete line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {}", path.display(), sys::describe(cause))]
    Io {
        /// The operation, as a verb: `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// A state file is damaged, or its path is not a regular file.
    #[error("{} is damaged: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The catalog is damaged.
    #[error("{} is damaged: {why}; restore it with `plyfs system fsck --repair`", path.display())]
    DamagedCatalog {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A document is missing, or does not match its digest.
    #[error(
        "{} {why}; pull the image again (`plyfs system fsck` names the images that use it)",
        path.display()
    )]
    Document {
        /// The document's file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The catalog, or another state file, has a newer version than this program knows, or cannot be written.
    #[error("{}: {why}", path.display())]
    Catalog {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no image with that name or ID.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// There is no container with that name or ID.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// Another container has the name.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: String,
        /// ID of the container that has the name.
        id: String,
    },
    /// Several images or containers have IDs with that prefix.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
}

impl Error {
    /// Adds the operation and the file to a system call's error.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |cause| Error::Io { action, path, cause }
    }
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// The store's lock, held while this value lives.
pub struct Lock {
    _file: File,
    exclusive: bool,
}

impl Lock {
    /// Whether the lock is held exclusively.
    pub fn exclusive(&self) -> bool {
        self.exclusive
    }
}

/// A store on disk. Cheap to clone; holds no lock and no open file.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Versions of the formats of a merged tree's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Formats {
    /// Of the merged index.
    pub index: u32,
    /// Of the EROFS image.
    pub erofs: u32,
}

impl Store {
    /// Opens the store at `root`; creates it (mode 0700) if it is missing.
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
            "builds",
            "lists",
        ] {
            let path = store.root.join(folder);
            if !path.is_dir() {
                DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(Error::io("make", &path))?;
            }
        }
        Ok(store)
    }

    /// The folders directly below the root. Each has mode 0700 itself, because a root that existed before may be open
    /// to others.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        ["blobs", "layers", "trees", "tmp", "mounts", "uppers", "containers", "builds", "lists"]
            .into_iter()
            .map(|folder| self.root.join(folder))
    }

    /// Upper and work directory of `mount --rw`, for an image and a mountpoint.
    pub fn kept_upper(&self, chain: &Digest, mountpoint: &Path) -> (PathBuf, PathBuf) {
        use std::os::unix::ffi::OsStrExt;
        let seed = [chain.to_string().as_bytes(), b" ", mountpoint.as_os_str().as_bytes()].concat();
        let folder = self.root.join("uppers").join(Digest::of(&seed).short());
        (folder.join("upper"), folder.join("work"))
    }

    /// The store's root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that the store's file system still offers to this user; `None` if it does not report them.
    pub fn free_space(&self) -> Result<Option<u64>> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|e| Error::io("ask for the free space of", &self.root)(e.into()))?;
        // Some blocks are reserved for root.
        let blocks = if sys::is_root() { stat.f_bfree } else { stat.f_bavail };
        Ok((stat.f_blocks > 0).then(|| blocks.saturating_mul(stat.f_frsize)))
    }

    /// Path of the blob with that digest, whether or not it exists.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Lists the digests of all stored documents, without reading them.
    pub(crate) fn stored_blobs(&self) -> Result<Vec<Digest>> {
        let mut all = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let names =
                folder::list(&self.root.join("blobs").join(algorithm.name()))?.into_iter().map(|(name, _)| name);
            all.extend(names.filter_map(|name| format!("{}:{name}", algorithm.name()).parse::<Digest>().ok()));
        }
        Ok(all)
    }

    /// Folder of the layer with that DiffID.
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm().name()).join(diff_id.hex())
    }

    /// Path of the layer's uncompressed tar.
    pub fn layer_tar(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("layer.tar")
    }

    /// Path of the layer's index.
    pub fn layer_index(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("index")
    }

    /// Path of the merged index of the stack of layers with that ChainID, in that version of the index format.
    pub fn tree_path(&self, chain_id: &Digest, format: u32) -> PathBuf {
        self.root.join("trees").join(format!("{}.v{format}", chain_id.hex()))
    }

    /// Path of the EROFS image of the stack of layers with that ChainID, in that version of its format.
    pub fn erofs_path(&self, chain_id: &Digest, format: u32) -> PathBuf {
        self.root.join("trees").join(format!("{}.erofs{format}", chain_id.hex()))
    }

    /// Paths of all files of a merged tree.
    pub fn tree_files(&self, chain_id: &Digest, formats: Formats) -> [PathBuf; 2] {
        [self.tree_path(chain_id, formats.index), self.erofs_path(chain_id, formats.erofs)]
    }

    /// Whether the layer is in the store; only complete layers are published.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_tar(diff_id).is_file()
    }

    /// Reads a stored document of at most `cap` bytes and verifies its digest. There is no other way to read a
    /// document.
    pub fn blob(&self, digest: &Digest, cap: u64) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let damaged = |why: String| Error::Document { path: path.clone(), why };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(damaged("is missing".into())),
            Err(e) => return Err(damaged(format!("cannot be opened: {}", sys::describe(&e)))),
        };
        let bytes = read_capped(file, cap).map_err(|e| damaged(format!("cannot be read: {}", sys::describe(&e))))?;
        let got = digest.algorithm().digest_of(&bytes);
        if got != *digest { Err(damaged(format!("is damaged: it has digest {got}"))) } else { Ok(bytes) }
    }

    /// Waits for the shared lock, for beginning a session or a mount.
    pub fn lock_shared(&self) -> Result<Lock> {
        let (file, path) = self.lock_file()?;
        file.lock_shared().map_err(Error::io("lock", path))?;
        Ok(Lock { _file: file, exclusive: false })
    }

    /// Waits for the exclusive lock, for changing the catalog or removing anything.
    pub fn lock_exclusive(&self) -> Result<Lock> {
        let (file, path) = self.lock_file()?;
        file.lock().map_err(Error::io("lock", path))?;
        Ok(Lock { _file: file, exclusive: true })
    }

    /// Takes the exclusive lock if it is free; does not wait.
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

    /// Reads the catalog. A missing one is empty, unless there is a backup: the first catalog is written before its
    /// backup.
    pub fn catalog(&self) -> Result<Catalog> {
        let path = self.catalog_path();
        if let Some(catalog) = Catalog::read(&path)? {
            return Ok(catalog);
        }
        if std::fs::symlink_metadata(self.catalog_backup_path()).is_err() {
            return Ok(Catalog::default());
        }
        // Another process may have written the first catalog meanwhile.
        let missing =
            || Error::DamagedCatalog { path: path.clone(), why: "it is missing, but its backup exists".into() };
        Catalog::read(&path)?.ok_or_else(missing)
    }

    /// Changes the catalog: reads it under the exclusive lock, calls `change`, and replaces the file if that succeeded.
    /// `change` gets the lock, for further steps that must happen under it.
    pub fn update<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lock = self.lock_exclusive()?;
        self.update_locked(&lock, change)
    }

    /// [`Store::update`] for a session: prepares the new catalog in the session's folder, so that no temporary file
    /// stays behind. From then on the catalog protects what the session needed: its intent is removed under the same
    /// lock, else a removal right after would spare data that nothing refers to once the session has ended.
    pub fn update_by<T, E: From<Error>>(
        &self,
        session: &Session,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lock = self.lock_exclusive()?;
        let value = self.change(&lock, |_| session.temp_path("catalog"), change)?;
        session.give_up()?;
        Ok(value)
    }

    /// [`Store::update`] for a caller that holds the exclusive lock.
    pub fn update_locked<T, E: From<Error>>(
        &self,
        lock: &Lock,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.change(lock, publish::beside, change)
    }

    fn change<T, E: From<Error>>(
        &self,
        lock: &Lock,
        temp: impl Fn(&Path) -> PathBuf,
        change: impl FnOnce(&Lock, &mut Catalog) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        debug_assert!(lock.exclusive);
        let mut catalog = self.catalog()?;
        let before = catalog.clone();
        let value = change(lock, &mut catalog)?;
        if catalog != before {
            self.write_catalog(lock, &catalog, temp)?;
        }
        Ok(value)
    }

    /// Replaces a damaged catalog by a restored one, even if its path is a folder.
    pub(crate) fn restore_catalog(&self, lock: &Lock, catalog: &Catalog) -> Result<()> {
        self.write_catalog(lock, catalog, publish::beside)
    }

    /// Replaces the catalog and its backup; `temp` returns the temporary name for each.
    fn write_catalog(&self, lock: &Lock, catalog: &Catalog, temp: impl Fn(&Path) -> PathBuf) -> Result<()> {
        debug_assert!(lock.exclusive);
        let paths = [self.catalog_path(), self.catalog_backup_path()];
        let bytes = catalog.encode(&paths[0])?;
        let files = paths.map(|path| (temp(&path), path));
        publish::replace_all(&files, &bytes, |path| gc::set_aside(self, path).map(drop))
    }

    /// Reads the catalog's backup; an error if it is damaged.
    pub(crate) fn catalog_backup(&self) -> Result<Option<Catalog>> {
        Catalog::read(&self.catalog_backup_path())
    }

    /// Finds an image by name (tag `latest` if none is given), by name and digest, or by ID prefix, with or without
    /// `sha256:`.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        self.catalog()?.resolve(text).cloned()
    }

    pub(crate) fn catalog_path(&self) -> PathBuf {
        self.root.join("catalog.json")
    }

    pub(crate) fn catalog_backup_path(&self) -> PathBuf {
        self.root.join("catalog.backup.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    pub const FORMATS: Formats = Formats { index: 1, erofs: 1 };

    fn name(store: &Store, seed: &str) -> Result<()> {
        store.update(|_, catalog| {
            catalog.insert(Image {
                id: Digest::of(seed.as_bytes()),
                manifest: None,
                indexes: vec![],
                others: vec![],
                layers: vec![],
                tags: vec![],
                digests: vec![],
                created: None,
                pulled: String::new(),
            });
            Ok(())
        })
    }

    #[test]
    fn the_catalog_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.catalog().unwrap(), Catalog::default());
        name(&store, "1").unwrap();
        let old = store.catalog().unwrap();
        // If either new file cannot be created, both files stay unchanged.
        for path in [store.catalog_path(), store.catalog_backup_path()] {
            let temp = publish::beside(&path);
            fs::create_dir(&temp).unwrap();
            assert!(name(&store, "2").is_err());
            assert_eq!(store.catalog().unwrap(), old);
            assert_eq!(store.catalog_backup().unwrap().unwrap(), old);
            fs::remove_dir(&temp).unwrap();
            // A temporary file left by a crash is no obstacle.
            fs::write(&temp, b"{\"ver").unwrap();
        }
        name(&store, "2").unwrap();
        assert_eq!(store.catalog().unwrap().images().len(), 2);
        assert_eq!(fs::read(store.catalog_path()).unwrap(), fs::read(store.catalog_backup_path()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count(), 3);
    }

    #[test]
    fn a_damaged_catalog_is_not_changed_and_nothing_is_collected_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        name(&store, "1").unwrap();
        let damages: [&dyn Fn(&Path); 4] = [
            &|path| fs::write(path, "").unwrap(),
            &|path| fs::remove_file(path).unwrap(),
            &|path| fs::create_dir(path).unwrap(),
            &|path| {
                fs::remove_dir(path).unwrap();
                std::os::unix::fs::symlink("catalog.backup.json", path).unwrap();
            },
        ];
        for damage in damages {
            damage(&store.catalog_path());
            assert!(matches!(name(&store, "2"), Err(Error::DamagedCatalog { .. })));
            assert!(matches!(gc::take_back(&store, &Intent::default(), FORMATS), Err(Error::DamagedCatalog { .. })));
        }
        let backup = store.catalog_backup().unwrap().unwrap();
        store.restore_catalog(&store.lock_exclusive().unwrap(), &backup).unwrap();
        assert_eq!(store.catalog().unwrap(), backup);
    }
    #[test]
    fn a_session_whose_intent_is_damaged_stops_a_collection() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = Digest::of(b"layer");
        fs::create_dir(store.layer_dir(&layer)).unwrap();
        let session = Session::begin(&store).unwrap();
        session.intend(&Intent { layers: [layer.clone()].into(), ..Intent::default() }).unwrap();
        let path = session.temp_path("any").with_file_name("intent.json");
        let whole = fs::read(&path).unwrap();
        let collect = || {
            let lock = store.lock_exclusive().unwrap();
            gc::collect(&store, &lock, &store.catalog().unwrap(), FORMATS).map(|(found, _)| found.len())
        };
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            match collect() {
                Ok(removed) => assert_eq!(removed, 0, "byte {at}"),
                Err(error) => assert!(matches!(error, Error::State { .. }), "byte {at}: {error}"),
            }
        }
        assert!(store.layer_dir(&layer).exists());
        fs::write(&path, whole).unwrap();
        assert_eq!(collect().unwrap(), 0);
    }
}
