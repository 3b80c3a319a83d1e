//! Partial downloads: the beginning of a compressed blob, kept so that the next process can resume it.

use super::{Error, Result, Store};
use crate::digest::Digest;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Name of the folder below `tmp`.
pub(super) const FOLDER: &str = "partial";
const POLL: Duration = Duration::from_millis(50);

/// A partial blob, unverified. This process has the file exclusively, by flock, while this value lives. Dropping an
/// empty partial removes it.
pub struct Partial {
    file: File,
    path: PathBuf,
    length: u64,
    /// Whether the file has been removed.
    gone: bool,
}

impl Partial {
    /// Opens or creates the blob's partial. Waits while another process has it, until `give_up` returns true; then
    /// returns `None`.
    pub fn open(store: &Store, digest: &Digest, give_up: &dyn Fn() -> bool) -> Result<Option<Partial>> {
        let path = store.partial_path(digest);
        let folder = path.parent().unwrap_or(store.root());
        loop {
            let is_other = || fs::symlink_metadata(folder).is_ok_and(|m| !m.is_dir());
            match DirBuilder::new().recursive(true).mode(0o700).create(folder) {
                Ok(()) => {}
                // It existed, and was removed before its type could be checked.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !is_other() => continue,
                Err(e) => return Err(Error::io("make", folder)(e)),
            }
            let file = match File::options().create(true).truncate(false).read(true).write(true).open(&path) {
                Ok(file) => file,
                // The folder was removed because it was empty.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("open", path)(e)),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if give_up() => return Ok(None),
                Err(TryLockError::WouldBlock) => {
                    thread::sleep(POLL);
                    continue;
                }
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
            }
            if is_at(&file, &path) {
                let length = file.metadata().map_err(Error::io("read", &path))?.len();
                return Ok(Some(Partial { file, path, length, gone: false }));
            }
        }
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Truncates it to zero.
    pub fn clear(&mut self) -> io::Result<()> {
        self.length = 0;
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Removes it: the blob will not be resumed.
    pub fn remove(&mut self) {
        remove(&self.path);
        self.gone = true;
    }

    /// Reads on from the end of the last read.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.length == 0 && !self.gone {
            remove(&self.path);
        }
    }
}

/// Removes a partial whose lock the caller holds, and the folder if it is then empty. One that cannot be removed is
/// left to garbage collection.
fn remove(path: &Path) {
    let gone = fs::remove_file(path).and_then(|()| path.parent().map_or(Ok(()), fs::remove_dir));
    tracing::trace!(path = %path.display(), ?gone, "partial removed");
}

/// A partial that no process is fetching, nor can while this value lives.
pub(super) struct Idle {
    /// Path of the file.
    pub path: PathBuf,
    _locked: File,
}

impl Idle {
    /// Returns the partial at `path` if it exists and no process has it.
    fn at(path: PathBuf) -> Option<Idle> {
        let file = File::open(&path).ok()?;
        let free = file.try_lock().is_ok() && is_at(&file, &path);
        free.then_some(Idle { path, _locked: file })
    }

    /// Removes the file.
    pub fn remove(&self) {
        remove(&self.path);
    }
}

/// Lists the partials that no process is fetching.
pub(super) fn idle(store: &Store) -> Result<Vec<Idle>> {
    let all = super::folder::list(&store.root().join("tmp").join(FOLDER))?;
    Ok(all.into_iter().filter_map(|(_, path)| Idle::at(path)).collect())
}

/// Whether `path` still is this file: another process may have removed it between open and lock.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: fs::Metadata| (m.dev(), m.ino());
    fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|own| id(there) == id(own)))
}

impl Store {
    /// Path of the blob's partial.
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        self.root().join("tmp").join(FOLDER).join(name)
    }

    /// Length of the blob's partial; `None` while the blob is being fetched.
    pub fn partial_length(&self, digest: &Digest) -> Option<u64> {
        let Ok(file) = File::open(self.partial_path(digest)) else { return Some(0) };
        match file.try_lock_shared() {
            Ok(()) => Some(file.metadata().map_or(0, |meta| meta.len())),
            Err(_) => None,
        }
    }

    /// Removes the blob's partial, unless a process is fetching it.
    pub fn forget_partial(&self, digest: &Digest) {
        if let Some(idle) = Idle::at(self.partial_path(digest)) {
            idle.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_empty_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let digest = Digest::of(b"x");
        let never = || false;
        let mut first = Partial::open(&store, &digest, &never).unwrap().unwrap();
        assert!(Partial::open(&store, &digest, &|| true).unwrap().is_none());
        assert_eq!(idle(&store).unwrap().len(), 0);
        first.append(b"abc").unwrap();
        assert_eq!(store.partial_length(&digest), None);
        drop(first);
        assert_eq!((store.partial_length(&digest), store.partial_length(&Digest::of(b"y"))), (Some(3), Some(0)));
        let found = idle(&store).unwrap();
        assert_eq!(found.iter().map(|f| &f.path).collect::<Vec<_>>(), [&store.partial_path(&digest)]);
        assert!(Partial::open(&store, &digest, &|| true).unwrap().is_none(), "taken while it may be removed");
        drop(found);
        let mut again = Partial::open(&store, &digest, &never).unwrap().unwrap();
        let mut bytes = [0; 9];
        assert_eq!((again.length(), again.read(&mut bytes).unwrap()), (3, 3));
        again.append(b"de").unwrap();
        assert_eq!(fs::read(store.partial_path(&digest)).unwrap(), b"abcde");
        again.clear().unwrap();
        drop(again);
        assert!(!store.partial_path(&digest).exists());
        assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
        // Dropping the removed partial does not remove another process's new one.
        let mut first = Partial::open(&store, &digest, &never).unwrap().unwrap();
        first.append(b"abc").unwrap();
        first.remove();
        let second = Partial::open(&store, &digest, &never).unwrap().unwrap();
        drop(first);
        assert!(second.length() == 0 && store.partial_path(&digest).exists());
    }

    #[test]
    fn a_folder_that_goes_while_it_is_made_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let come_and_go = &|seed: u8| {
            for _ in 0..3000 {
                drop(Partial::open(&store, &Digest::of(&[seed]), &|| false).unwrap().unwrap());
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|seed| drop(scope.spawn(move || come_and_go(seed))));
        });
        // A file in the folder's place is an error and no reason to wait.
        fs::write(store.root().join("tmp").join(FOLDER), "").unwrap();
        assert!(Partial::open(&store, &Digest::of(b""), &|| false).is_err());
    }
}
