//! Mount registry: image, mountpoint, process and log of each live mount.
//!
//! A mount is live while some process holds the flock on its `lock` file. The flock belongs to the open file
//! description, so a daemon forked by the registering process holds it too, and it is released when both are gone.
//! A mount of the kernel engine has no process: it is live as long as the kernel has a mount with its unique ID.

use super::{Error, Lock, Result, Store, folder, publish, sealed};
use crate::digest::Digest;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

const LOGS_KEPT: usize = 5;
const INFO: &str = "info.json";
/// Names in the folder of a mount whose mountpoint is in the store: the mountpoint, and the directories for its
/// changes.
const MERGED: &str = "merged";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// The mountpoint of an image under a mount of kernel overlayfs, while that mount is made.
const SCRATCH: &str = "scratch";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A mount's record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    /// Mount ID: twelve hex digits.
    pub id: String,
    /// Image ID.
    pub image: Digest,
    /// The image as the user named it.
    pub reference: String,
    /// Mountpoint; a word that is not a path if the mount is at the registration's own folder, in the mount namespace
    /// of the serving process only.
    #[serde(with = "path_bytes")]
    pub mountpoint: PathBuf,
    /// Whether the mount is read-write.
    #[serde(default)]
    pub writable: bool,
    /// PID of the serving process; 0 for a mount of the kernel engine.
    pub pid: u32,
    /// Start time, RFC 3339.
    pub started: String,
    /// How often its server has died and been restarted.
    #[serde(default)]
    pub restarts: u32,
    /// The kernel's IDs of a mount of the kernel engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelMount>,
}

/// The kernel's IDs of a mount ([`sys::MountId`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KernelMount {
    mount: u64,
    namespace: u64,
}

impl Info {
    /// Path at which this process can access the mounted tree, if it has permission.
    pub fn seen_at(&self, store: &Store) -> PathBuf {
        if self.mountpoint.is_absolute() {
            return self.mountpoint.clone();
        }
        let there = store.root().join("mounts").join(&self.id);
        let root = Path::new("/proc").join(self.pid.to_string()).join("root");
        root.join(there.strip_prefix("/").unwrap_or(&there))
    }
}

/// A mount's registration. Dropping it only closes this process's descriptor: a forked daemon keeps the mount live. To
/// end the mount call [`Guard::release`].
pub struct Guard {
    dir: PathBuf,
    store: Store,
    held: File,
    info: Info,
}

impl Guard {
    /// The mount's record.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The flocked file. A process that is to keep the mount live across an exec must inherit it.
    pub fn file(&self) -> &File {
        &self.held
    }

    /// The registration's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of the daemon's log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Upper and work directory of a mount whose changes are discarded with it.
    pub fn own_upper(&self) -> (PathBuf, PathBuf) {
        (self.dir.join(UPPER), self.dir.join(WORK))
    }

    /// Records the serving process, after a fork.
    pub fn set_pid(&mut self, pid: u32) -> Result<()> {
        self.info.pid = pid;
        write_info(&self.dir, &self.info)
    }

    /// Records how often the server of the mount has been restarted.
    pub fn set_restarts(&mut self, restarts: u32) -> Result<()> {
        self.info.restarts = restarts;
        write_info(&self.dir, &self.info)
    }

    /// Records that the kernel engine serves the mount: it lives on without this process.
    pub fn leave_to_kernel(mut self, id: sys::MountId) -> Result<()> {
        self.info.pid = 0;
        self.info.kernel = Some(KernelMount { mount: id.mount, namespace: id.namespace });
        write_info(&self.dir, &self.info)
    }

    /// An empty directory for a mount that is made and unmounted at once.
    pub fn scratch(&self) -> Result<PathBuf> {
        let dir = self.dir.join(SCRATCH);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", dir)(e)),
            _ => Ok(dir),
        }
    }

    /// Ends the registration after the unmount. The log is kept for a while.
    pub fn release(self) -> Result<()> {
        reap(&self.dir)?;
        prune_logs(&self.store)
    }
}

/// Registers a mount of an image by this process, before it opens the image's files. Fails with [`Error::NoSuchImage`]
/// if the image was removed in the meantime; once this returns the image cannot be removed.
pub fn register(store: &Store, image: &Digest, reference: &str, mountpoint: &Path, writable: bool) -> Result<Guard> {
    // Any mount at this path whose daemon was killed has been unmounted.
    forget_ended(store, mountpoint)?;
    begin(store, image, reference, Some(mountpoint), writable)
}

/// Takes over the registration of a mount from the process that had this one's place before an exec, with its lock.
pub fn take_over(store: &Store, id: &str, held: File) -> Result<Guard> {
    let dir = store.root().join("mounts").join(id);
    let info = sealed::load::<Info>(&dir.join(INFO))?.ok_or_else(|| Error::NoSuchImage(id.to_owned()))?;
    Ok(Guard { dir, store: store.clone(), held, info })
}

/// [`register`] for a mount at a directory inside the store, which is removed with the registration, as are the changes
/// in [`Guard::own_upper`].
pub fn register_own(store: &Store, image: &Digest, reference: &str, writable: bool) -> Result<Guard> {
    begin(store, image, reference, None, writable)
}

fn begin(store: &Store, image: &Digest, reference: &str, at: Option<&Path>, writable: bool) -> Result<Guard> {
    let _shared = store.lock_shared()?;
    if store.catalog()?.get(image).is_none() {
        return Err(Error::NoSuchImage(reference.to_owned()));
    }
    let started = jiff::Timestamp::now();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let seed = format!("{image} {} {number} {started} {}", std::process::id(), at.unwrap_or(Path::new("")).display());
    let id = Digest::of(seed.as_bytes()).short().to_owned();
    let dir = store.root().join("mounts").join(&id);
    fs::create_dir(&dir).map_err(Error::io("make", &dir))?;
    let path = dir.join("lock");
    let held = File::create_new(&path).map_err(Error::io("create", &path))?;
    held.lock().map_err(Error::io("lock", &path))?;
    let mountpoint = match at {
        Some(at) => at.to_owned(),
        None => {
            let own = dir.join(MERGED);
            fs::create_dir(&own).map_err(Error::io("make", &own))?;
            own
        }
    };
    let info = Info {
        id,
        image: image.clone(),
        reference: reference.to_owned(),
        mountpoint,
        writable,
        pid: std::process::id(),
        started: started.to_string(),
        restarts: 0,
        kernel: None,
    };
    write_info(&dir, &info)?;
    Ok(Guard { dir, store: store.clone(), held, info })
}

/// Lists all live mounts, oldest first. One whose record is damaged is skipped with a warning.
pub fn list(store: &Store) -> Result<Vec<Info>> {
    let (live, damaged) = list_with_damaged(store)?;
    for why in damaged {
        tracing::warn!("{why}; the mount is not listed: unmount it with umount(8)");
    }
    Ok(live)
}

/// Removes the registrations of mounts of the kernel engine that are no longer mounted. That is how such a mount ends:
/// umount(8) tells nobody.
fn reap_unmounted(store: &Store) -> Result<()> {
    let unmounted = ended(store)?.into_iter().filter(|(_, info)| info.kernel.is_some());
    // A user who may only read the store lists mounts as well.
    unmounted.for_each(|(dir, _)| drop(reap(&dir)));
    Ok(())
}

/// Lists all live mounts, oldest first, and the errors for records that cannot be read.
pub fn list_with_damaged(store: &Store) -> Result<(Vec<Info>, Vec<Error>)> {
    reap_unmounted(store)?;
    let (mut live, mut damaged) = (Vec::new(), Vec::new());
    for (_, dir) in folder::list(&store.root().join("mounts"))? {
        if !is_alive(&dir) {
            continue;
        }
        match sealed::load::<Info>(&dir.join(INFO)) {
            Ok(found) => live.extend(found),
            Err(why) => damaged.push(why),
        }
    }
    live.sort_by(|a, b| a.started.cmp(&b.started));
    Ok((live, damaged))
}

/// Whether some process, or the kernel, still serves that mount.
pub fn is_live(store: &Store, id: &str) -> bool {
    is_alive(&store.root().join("mounts").join(id))
}

/// Lists dead mounts: their serving process has ended, but they are still in this process's mount table, where every
/// access fails (ENOTCONN). They protect nothing from garbage collection.
pub fn dead(store: &Store) -> Result<Vec<Info>> {
    let table = sys::mounts().map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
    let top = |path: &Path| table.iter().rfind(|mounted| mounted.mountpoint == path);
    let (live, _) = list_with_damaged(store)?;
    let mut dead: Vec<Info> = Vec::new();
    let mut ended: Vec<Info> = ended(store)?.into_iter().map(|(_, info)| info).collect();
    ended.sort_by(|a, b| b.started.cmp(&a.started));
    for info in ended {
        // Of several mounts at one path only the newest counts: the others were unmounted before.
        let is_covered = live.iter().chain(&dead).any(|other| other.mountpoint == info.mountpoint);
        let is_mounted = top(&info.mountpoint).is_some_and(|mounted| mounted.kind == "fuse.plyfs");
        if !is_covered && is_mounted && sys::is_disconnected(&info.mountpoint) {
            dead.push(info);
        }
    }
    dead.reverse();
    Ok(dead)
}

/// Lists registrations whose process has ended, with their folders.
fn ended(store: &Store) -> Result<Vec<(PathBuf, Info)>> {
    let all = folder::list(&store.root().join("mounts"))?.into_iter().map(|(_, dir)| dir);
    Ok(all.filter(|dir| !is_alive(dir)).filter_map(|dir| known(&dir).map(|info| (dir, info))).collect())
}

/// Reads the record of an ended mount, if that is still possible.
fn known(dir: &Path) -> Option<Info> {
    sealed::load(&dir.join(INFO)).ok().flatten()
}

/// Removes the registrations of ended mounts at this path that are no longer mounted.
pub fn forget_ended(store: &Store, mountpoint: &Path) -> Result<()> {
    let mut there = ended(store)?.into_iter().filter(|(_, info)| info.mountpoint == mountpoint);
    there.try_for_each(|(dir, _)| reap(&dir))
}

/// Finds the live mount at exactly this path; the newest if several are stacked there.
pub fn by_mountpoint(store: &Store, mountpoint: &Path) -> Result<Option<Info>> {
    Ok(list(store)?.into_iter().rfind(|info| info.mountpoint == mountpoint))
}

/// Path of a mount's log, live or not.
pub fn log_path(store: &Store, id: &str) -> PathBuf {
    store.root().join("mounts").join(id).join("log")
}

/// Lists folders of registered mounts that are neither live nor dead at a path of the user's. Dead ones are the user's
/// to unmount, because programs would then write into the directory below.
pub(super) fn stale(store: &Store, lock: &Lock) -> Result<Vec<PathBuf>> {
    debug_assert!(lock.exclusive());
    let all = folder::list(&store.root().join("mounts"))?.into_iter().map(|(_, dir)| dir);
    let own = store.root().join("mounts");
    let dead: Vec<PathBuf> = dead(store)?
        .into_iter()
        .filter(|info| !info.mountpoint.starts_with(&own))
        .map(|info| own.join(info.id))
        .collect();
    let registered = |dir: &PathBuf| dir.join("lock").exists() || dir.join(INFO).exists() || !dir.is_dir();
    Ok(all.filter(|dir| registered(dir) && !is_alive(dir) && !dead.contains(dir)).collect())
}

/// Removes a registration; the log stays until [`prune_logs`] removes it.
pub(super) fn reap(dir: &Path) -> Result<()> {
    reap_own(dir)?;
    for name in [INFO, "info.json.new", "lock"] {
        match fs::remove_file(dir.join(name)) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::io("remove", dir.join(name))(e));
            }
            _ => {}
        }
    }
    let _empty = fs::remove_dir(dir);
    if dir.is_file() { fs::remove_file(dir).map_err(Error::io("remove", dir)) } else { Ok(()) }
}

/// Removes the directories of a mount inside the store. If its daemon was killed, the dead mount is unmounted first.
fn reap_own(dir: &Path) -> Result<()> {
    for mountpoint in [dir.join(MERGED), dir.join(SCRATCH)] {
        if let Err(first) = fs::remove_dir(&mountpoint) {
            let gone = matches!(first.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            if !gone {
                let _not_mounted = sys::unmount(&mountpoint, true);
                // Never remove the content of a mountpoint: it may be a mounted tree.
                fs::remove_dir(&mountpoint).map_err(Error::io("remove", &mountpoint))?;
            }
        }
    }
    for name in [UPPER, WORK] {
        match fs::remove_dir_all(dir.join(name)) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::io("remove", dir.join(name))(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the logs of ended mounts except those of the last few.
pub(super) fn prune_logs(store: &Store) -> Result<()> {
    let mut ended = Vec::new();
    for (_, dir) in folder::list(&store.root().join("mounts"))? {
        if !dir.join("lock").exists() && dir.join("log").exists() {
            let when = fs::metadata(dir.join("log")).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            ended.push((when, dir));
        }
    }
    ended.sort();
    let surplus = ended.len().saturating_sub(LOGS_KEPT);
    for (_, dir) in ended.drain(..surplus) {
        // Another process may prune at the same time.
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", dir)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a registration's mount is live.
fn is_alive(dir: &Path) -> bool {
    let by_kernel = |info: Info| info.kernel.is_some_and(|id| sys::is_mounted(id.into()));
    is_held(dir) || known(dir).is_some_and(by_kernel)
}

impl From<KernelMount> for sys::MountId {
    fn from(id: KernelMount) -> sys::MountId {
        sys::MountId { mount: id.mount, namespace: id.namespace }
    }
}

fn is_held(dir: &Path) -> bool {
    let file = File::open(dir.join("lock"));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

fn write_info(dir: &Path, info: &Info) -> Result<()> {
    let path = dir.join(INFO);
    // No mount outlives a power failure.
    publish::replace_unsynced(&path, &sealed::encode(info, &path)?)
}

/// Serialization of a path: as text if it is UTF-8, else as a list of bytes.
mod path_bytes {
    use super::{OsStrExt, OsString, OsStringExt, Path, PathBuf};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => Form::Text(text.to_owned()),
            None => Form::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
        .serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
        Ok(match Form::deserialize(d)? {
            Form::Text(text) => PathBuf::from(text),
            Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Image;

    fn store() -> (tempfile::TempDir, Store, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = Digest::of(b"image");
        let image = Image {
            id: id.clone(),
            manifest: None,
            indexes: vec![],
            others: vec![],
            layers: vec![],
            tags: vec![],
            digests: vec![],
            created: None,
            pulled: String::new(),
        };
        let insert = |_: &_, catalog: &mut crate::store::Catalog| {
            catalog.insert(image);
            Ok::<_, Error>(())
        };
        store.update(insert).unwrap();
        (dir, store, id)
    }

    #[test]
    fn a_mount_lives_as_long_as_its_lock() {
        let (_dir, store, id) = store();
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/mnt/\xff"));
        let guard = register(&store, &id, "a:1", odd, true).unwrap();
        assert_eq!(list(&store).unwrap().len(), 1);
        assert_eq!(by_mountpoint(&store, odd).unwrap().unwrap(), *guard.info());
        let twin = guard.file().try_clone().unwrap();
        let dir = store.root().join("mounts").join(&guard.info().id);
        drop(guard);
        // The open file description is still held, as by a forked daemon.
        assert_eq!(list(&store).unwrap().len(), 1);
        drop(twin);
        assert!(list(&store).unwrap().is_empty());
        assert_eq!(stale(&store, &store.lock_exclusive().unwrap()).unwrap(), std::slice::from_ref(&dir));
        reap(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_removed_image_cannot_be_registered() {
        let (_dir, store, _) = store();
        assert!(matches!(
            register(&store, &Digest::of(b"other"), "b", Path::new("/mnt"), false),
            Err(Error::NoSuchImage(_))
        ));
    }

    #[test]
    fn only_the_last_logs_stay() {
        let (_dir, store, id) = store();
        for _ in 0..LOGS_KEPT + 3 {
            let guard = register(&store, &id, "a", Path::new("/mnt"), false).unwrap();
            fs::write(guard.log_path(), "log").unwrap();
            guard.release().unwrap();
        }
        assert_eq!(folder::list(&store.root().join("mounts")).unwrap().len(), LOGS_KEPT);
    }
}
