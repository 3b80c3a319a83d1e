//! Container store: the configuration, state and lock of each container.
//!
//! ```text
//! containers/<id>/           <id>: 64 random hex digits
//!   record.json              configuration; written once (see [`Container`])
//!   state.json               state (see [`State`]); written only by the holder of `lock`
//!   lock                     flock, held by the container's monitor process while the container runs
//!   upper/ work/             the container's changes to its image
//!   volumes/<n>/             its anonymous volumes
//!   rootfs/                  mountpoint of its root file system, in the monitor's mount namespace only
//!   config.json ...          OCI bundle of the last start, and the runtime's own state and log
//!   control                  control socket of a running container
//!   log                      output of the container
//!   keeper.log               log of the monitor process
//! ```
//!
//! A container is running if its lock is held; `state.json` then holds the state at its start. If `state.json` says
//! `running` and the lock is free, the container was killed together with its monitor: it counts as exited by SIGKILL,
//! and `system fsck` records that. A folder without a record is left over from a crash while creating or removing a
//! container. A container whose record cannot be read is not listed; `system fsck --repair` renames the record to
//! `record.json.damaged` and keeps the folder for its `upper`.

use super::{Error, Image, Lock, Result, Store, folder, publish, sealed};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A container's configuration. Never changes after creation.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Container {
    /// Container ID: 64 hex digits.
    pub id: String,
    /// Name, without Docker's leading slash.
    pub name: String,
    /// The image's whole record, so that the container can run after the image lost its names or was removed.
    pub image: Image,
    /// The image as the user named it.
    pub reference: String,
    /// Creation time, RFC 3339.
    pub created: String,
    /// `config` of the image's document with the user's settings applied: Env, Cmd, Entrypoint, User, WorkingDir,
    /// Labels, Volumes, StopSignal, Hostname, Tty, OpenStdin.
    pub config: Map<String, Value>,
    /// Settings that depend on the host.
    pub host: Host,
}

/// Host configuration: a container's settings that do not come from the image.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    /// Bind mounts, in mount order.
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// tmpfs mounts.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Whether the root file system is read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Network mode.
    #[serde(default)]
    pub network: Network,
    /// Capabilities added to Docker's default set, as `NET_ADMIN`, or `ALL`.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities dropped from the default set, or `ALL`.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// The requested OCI runtime; `None`: the first one found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The engine that mounts the root file system, as `--engine` names it; empty for FUSE.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine: String,
    /// Whether the container is removed when it exits.
    #[serde(default)]
    pub auto_remove: bool,
    /// Whether the container runs in the background and its output is logged.
    #[serde(default)]
    pub detached: bool,
}

/// A bind mount of a host directory or file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Whether the mount is read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// A tmpfs mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub target: String,
    /// Additional mount options, comma-separated.
    #[serde(default)]
    pub options: String,
}

/// Network mode of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's network namespace.
    #[default]
    Host,
    /// A new network namespace with a loopback device only.
    None,
}

/// State of a container.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Status.
    pub status: Status,
    /// PID of the container's first process while it runs.
    #[serde(default)]
    pub pid: u32,
    /// PID of the monitor, which serves the root file system, while the container runs.
    #[serde(default, rename = "keeper")]
    pub monitor: u32,
    /// PID of the process in whose namespaces the OCI runtime runs, while the container runs.
    #[serde(default, rename = "runner")]
    pub init: u32,
    /// Exit code of the command; 128 + N after signal N.
    #[serde(default)]
    pub exit_code: i32,
    /// Time of the last start, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// Time of the last exit, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Why the last start failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The OCI runtime of the current or last run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// Mountpoints created for mounts on paths that the image lacks; they do not count as changes of the container.
    /// Paths from the root, without a leading slash.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub made: BTreeSet<String>,
}

impl State {
    /// The state after the container's processes have ended.
    pub fn ended(self) -> State {
        State { status: Status::Exited, pid: 0, monitor: 0, init: 0, ..self }
    }
}

/// Status of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Created and never started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Exited.
    Exited,
}

impl Status {
    /// The status's name.
    pub fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Exited => "exited",
        }
    }
}

/// Exit code of a process killed by SIGKILL.
pub const KILLED: i32 = 137;

/// Returns a string of a configuration in Docker's form; empty if it is missing.
pub fn text_of<'a>(config: &'a Map<String, Value>, key: &str) -> &'a str {
    config.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Returns a list of a configuration in Docker's form. A single string counts as a list of one.
pub fn list_of(config: &Map<String, Value>, key: &str) -> Vec<String> {
    match config.get(key) {
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => Vec::new(),
    }
}

impl Container {
    /// Returns a string of the config.
    pub fn text(&self, key: &str) -> &str {
        text_of(&self.config, key)
    }

    /// Whether a boolean of the config is true.
    pub fn is(&self, key: &str) -> bool {
        self.config.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The command line: entrypoint, then command.
    pub fn command(&self) -> Vec<String> {
        [list_of(&self.config, "Entrypoint"), list_of(&self.config, "Cmd")].concat()
    }

    /// The config without the container's own fields, as for an image.
    pub fn config_of_image(&self) -> Map<String, Value> {
        let own = ["Hostname", "Tty", "OpenStdin"];
        self.config
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// Short ID: the first twelve digits.
    pub fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// A container's lock, held while this value or a forked process lives. Its holder may run, change or remove the
/// container.
pub struct Held {
    _file: File,
    store: Store,
    id: String,
}

impl Held {
    /// Writes the state.
    pub fn set_state(&self, state: &State) -> Result<()> {
        write_json(&self.store.container_dir(&self.id).join(STATE), state)
    }
}

const RECORD: &str = "record.json";
const DAMAGED_RECORD: &str = "record.json.damaged";
const STATE: &str = "state.json";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// Name of the mountpoint of the root file system, in a container's folder or a bundle.
pub const ROOTFS: &str = "rootfs";

impl Store {
    /// The folder of the container with that full ID.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root().join("containers").join(id)
    }

    /// Mountpoint of that container's root file system, visible in the mount namespaces of its own processes only.
    pub fn container_tree(&self, id: &str) -> PathBuf {
        self.container_dir(id).join(ROOTFS)
    }

    /// The container's upper and work directory.
    pub fn container_upper(&self, id: &str) -> (PathBuf, PathBuf) {
        let dir = self.container_dir(id);
        (dir.join(UPPER), dir.join(WORK))
    }
}

/// Creates a container and returns its lock. The name must be free. The image must be in the catalog, else the error is
/// [`Error::NoSuchImage`]; once this returns, its layers cannot be removed.
pub fn create(store: &Store, container: &Container) -> Result<Held> {
    let _lock = store.lock_exclusive()?;
    if store.catalog()?.get(&container.image.id).is_none() {
        return Err(Error::NoSuchImage(container.reference.clone()));
    }
    if let Some(other) = list(store)?.into_iter().find(|other| other.name == container.name) {
        return Err(Error::NameTaken { name: other.name, id: other.id });
    }
    let dir = store.container_dir(&container.id);
    DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("make", &dir))?;
    let made = fill(store, container, &dir);
    if made.is_err() {
        let _as_good_as_it_gets = fs::remove_dir_all(&dir);
    }
    made
}

fn fill(store: &Store, container: &Container, dir: &Path) -> Result<Held> {
    for name in [UPPER, WORK, ROOTFS] {
        let path = dir.join(name);
        DirBuilder::new().mode(0o755).create(&path).map_err(Error::io("make", &path))?;
    }
    let held = try_hold(store, &container.id)?.ok_or_else(|| Error::NoSuchContainer(container.id.clone()))?;
    held.set_state(&State::default())?;
    write_json(&dir.join(RECORD), container)?;
    publish::sync_dir(&store.root().join("containers"))?;
    Ok(held)
}

/// Takes a container's lock; `None` if another process holds it. [`Error::NoSuchContainer`] if the container is gone.
pub fn try_hold(store: &Store, id: &str) -> Result<Option<Held>> {
    let path = store.container_dir(id).join("lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::NoSuchContainer(id.to_owned()),
        _ => Error::io("open", &path)(e),
    })?;
    match file.try_lock() {
        Ok(()) if !path.exists() => Err(Error::NoSuchContainer(id.to_owned())),
        Ok(()) => Ok(Some(Held { _file: file, store: store.clone(), id: id.to_owned() })),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(Error::io("lock", path)(e)),
    }
}

/// Lists all containers, newest first. One whose record is damaged is skipped with a warning, so that it does not block
/// the others.
pub fn list(store: &Store) -> Result<Vec<Container>> {
    let (all, damaged) = list_with_damaged(store)?;
    for record in damaged {
        tracing::warn!("{}; `plyfs system fsck --repair` renames it", record.why);
    }
    Ok(all)
}

/// A container whose record cannot be read, so that its layers are unknown.
pub struct Damaged {
    id: String,
    /// The error, which names the file.
    pub why: Error,
}

/// Lists all containers, newest first, and those whose records cannot be read.
pub fn list_with_damaged(store: &Store) -> Result<(Vec<Container>, Vec<Damaged>)> {
    let mut all: Vec<Container> = Vec::new();
    let mut damaged = Vec::new();
    for (id, dir) in folder::list(&store.root().join("containers"))? {
        match sealed::load(&dir.join(RECORD)) {
            Ok(found) => all.extend::<Option<Container>>(found),
            Err(why) => damaged.push(Damaged { id, why }),
        }
    }
    all.sort_by(|a, b| b.created.cmp(&a.created));
    Ok((all, damaged))
}

impl Damaged {
    /// Renames the record, so that the container no longer blocks garbage collection, while its folder is kept. Returns
    /// the upper directory; `None` if the container is running, which changes nothing.
    pub fn set_aside(&self, store: &Store) -> Result<Option<PathBuf>> {
        let Some(_held) = try_hold(store, &self.id)? else { return Ok(None) };
        let dir = store.container_dir(&self.id);
        let record = dir.join(RECORD);
        fs::rename(&record, dir.join(DAMAGED_RECORD)).map_err(Error::io("rename", &record))?;
        publish::sync_dir(&dir)?;
        Ok(Some(dir.join(UPPER)))
    }
}

/// Finds a container by name or ID prefix.
pub fn find(store: &Store, text: &str) -> Result<Container> {
    let mut all = list(store)?;
    let name = text.strip_prefix('/').unwrap_or(text);
    if let Some(at) = all.iter().position(|c| c.name == name || c.id == text) {
        return Ok(all.swap_remove(at));
    }
    let hex = !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    all.retain(|c| hex && c.id.starts_with(text));
    match (all.len(), all.pop()) {
        (1, Some(found)) => Ok(found),
        (0, _) => Err(Error::NoSuchContainer(text.to_owned())),
        _ => Err(Error::Ambiguous(text.to_owned())),
    }
}

/// Returns a container's state. One that died without recording its exit counts as killed, and so does, with a warning,
/// one that does not run and whose state cannot be read.
pub fn state(store: &Store, id: &str) -> Result<State> {
    let path = store.container_dir(id).join(STATE);
    // The lock is checked first: the monitor writes the exit before it releases the lock.
    let running = is_held(store, id);
    let read = match sealed::load(&path) {
        Err(why) if !running => {
            tracing::warn!("{why}; `plyfs system fsck --repair` recreates it");
            Some(after_death(State::default()))
        }
        read => read?,
    };
    let mut state: State = read.ok_or_else(|| Error::NoSuchContainer(id.to_owned()))?;
    if state.status == Status::Running && !running {
        state = after_death(state);
    }
    Ok(state)
}

/// Whether a process holds the container's lock; mostly its monitor.
pub fn is_held(store: &Store, id: &str) -> bool {
    let file = File::open(store.container_dir(id).join("lock"));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// The state of a container killed together with its monitor.
fn after_death(state: State) -> State {
    State { exit_code: KILLED, ..state.ended() }
}

/// A container with a wrong or unreadable state.
pub struct Unsettled {
    /// The container.
    pub container: Container,
    /// Why its state cannot be read; `None` if the container was killed together with its monitor.
    pub why: Option<Error>,
    /// Whether the state was corrected.
    pub mended: bool,
}

/// Finds those of `containers` whose state says `running` although they were killed together with their monitor, and
/// those whose state cannot be read. With `write`, records their exit, unless one is running.
pub fn settle(store: &Store, containers: Vec<Container>, write: bool) -> Result<Vec<Unsettled>> {
    let mut found = Vec::new();
    for container in containers {
        let held = try_hold(store, &container.id)?;
        let read = sealed::load::<State>(&store.container_dir(&container.id).join(STATE));
        let ended = |state| State { finished: Some(jiff::Timestamp::now().to_string()), ..after_death(state) };
        let (settled, why) = match (read, &held) {
            (Ok(Some(state)), Some(_)) if state.status == Status::Running => (ended(state), None),
            (Ok(None), Some(_)) => (State::default(), None),
            (Ok(_), _) => continue,
            (Err(why), _) => (ended(State::default()), Some(why)),
        };
        let held = held.filter(|_| write);
        held.as_ref().map_or(Ok(()), |held| held.set_state(&settled))?;
        found.push(Unsettled { container, why, mended: held.is_some() });
    }
    Ok(found)
}

/// Lists folders that are not a complete container.
pub(super) fn stale(store: &Store, lock: &Lock) -> Result<Vec<PathBuf>> {
    debug_assert!(lock.exclusive());
    let all = folder::list(&store.root().join("containers"))?.into_iter().map(|(_, dir)| dir);
    let has = |dir: &Path, name| match fs::symlink_metadata(dir.join(name)) {
        Ok(_) => true,
        // A record that cannot be examined may exist.
        Err(e) => !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    Ok(all.filter(|dir| !has(dir, RECORD) && !has(dir, DAMAGED_RECORD)).collect())
}

/// Unregisters a container: renames its folder and returns the new path, for the caller to remove.
pub fn take_out(store: &Store, held: Held) -> Result<PathBuf> {
    let lock = store.lock_exclusive()?;
    let dir = store.container_dir(&held.id);
    let aside = store.root().join("tmp").join(format!("{}.dead", held.id));
    fs::rename(&dir, &aside).map_err(Error::io("rename", &dir))?;
    publish::sync_dir(&store.root().join("containers"))?;
    drop(lock);
    Ok(aside)
}

/// Returns a new random ID of 64 hex digits.
pub fn new_id() -> Result<String> {
    let mut random = [0; 32];
    let path = Path::new("/dev/urandom");
    File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut random))
        .map_err(Error::io("read", path))?;
    Ok(Digest::of(&random).hex().to_owned())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    publish::replace(path, &sealed::encode(value, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::gc;
    use crate::store::{Catalog, LayerRecord};

    fn store() -> (tempfile::TempDir, Store, Image) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = LayerRecord {
            diff_id: Digest::of(b"layer"),
            blob: None,
            media_type: String::new(),
            compressed_size: 1,
            size: 1,
        };
        let image = Image {
            id: Digest::of(b"image"),
            manifest: None,
            indexes: vec![],
            others: vec![],
            layers: vec![layer],
            tags: vec![],
            digests: vec![],
            created: None,
            pulled: String::new(),
        };
        fs::create_dir(store.layer_dir(&image.layers[0].diff_id)).unwrap();
        fs::write(store.layer_tar(&image.layers[0].diff_id), "x").unwrap();
        let insert = |_: &_, catalog: &mut Catalog| {
            catalog.insert(image.clone());
            Ok::<_, Error>(())
        };
        store.update(insert).unwrap();
        (dir, store, image)
    }

    fn container(image: &Image, name: &str, created: &str) -> Container {
        Container {
            id: new_id().unwrap(),
            name: name.into(),
            image: image.clone(),
            reference: "a:1".into(),
            created: created.into(),
            config: Map::new(),
            host: Host::default(),
        }
    }

    #[test]
    fn one_is_found_by_its_name_and_by_the_beginning_of_its_id() {
        let (_dir, store, image) = store();
        let (old, new) =
            (container(&image, "web", "2026-01-01T00:00:00Z"), container(&image, "db", "2026-01-02T00:00:00Z"));
        drop((create(&store, &old).unwrap(), create(&store, &new).unwrap()));
        assert_eq!(list(&store).unwrap(), [new.clone(), old.clone()]);
        for text in ["web", "/web", &old.id, &old.id[..20]] {
            assert_eq!(find(&store, text).unwrap(), old, "{text}");
        }
        let said = |text| find(&store, text).unwrap_err().to_string();
        assert_eq!((said("x"), said("")), ("No such container: x".into(), "No such container: ".into()));
        let taken = create(&store, &container(&image, "web", "")).map(drop).unwrap_err().to_string();
        let id = &old.id;
        assert!(
            taken.starts_with(&format!(
                "Conflict. The container name \"/web\" is already in use by container \"{id}\"."
            ))
        );
        assert_eq!(list(&store).unwrap().len(), 2);
    }

    #[test]
    fn a_container_that_died_with_its_monitor_was_killed() {
        let (_dir, store, image) = store();
        let made = container(&image, "web", "");
        let held = create(&store, &made).unwrap();
        let running = State { status: Status::Running, pid: 5, started: Some("then".into()), ..State::default() };
        held.set_state(&running).unwrap();
        assert_eq!(state(&store, &made.id).unwrap(), running);
        assert!(is_held(&store, &made.id) && try_hold(&store, &made.id).unwrap().is_none());
        let settled = |write| {
            let all = settle(&store, list(&store).unwrap(), write).unwrap();
            all.into_iter().map(|one| (one.container, one.mended)).collect::<Vec<_>>()
        };
        assert!(settled(true).is_empty());
        drop(held);
        let dead = state(&store, &made.id).unwrap();
        assert_eq!((dead.status, dead.pid, dead.exit_code), (Status::Exited, 0, KILLED));
        assert_eq!(settled(false), [(made.clone(), false)]);
        assert_eq!(settled(true), [(made.clone(), true)]);
        assert!(settled(true).is_empty());
        assert!(state(&store, &made.id).unwrap().finished.is_some());
    }

    #[test]
    fn a_damaged_record_hides_nobody_elses_and_frees_nothing() {
        let (_dir, store, image) = store();
        drop(create(&store, &container(&image, "web", "")).unwrap());
        let bad = store.container_dir("bad");
        fs::create_dir(&bad).unwrap();
        for record in ["{", "", "null", "[]"] {
            fs::write(bad.join(RECORD), record).unwrap();
            assert_eq!(find(&store, "web").unwrap().name, "web", "{record}");
            assert_eq!(list(&store).unwrap().len(), 1);
            let (_, damaged) = list_with_damaged(&store).unwrap();
            assert!(damaged[0].why.to_string().contains("is damaged"), "{record}");
            let lock = store.lock_exclusive().unwrap();
            fs::create_dir_all(store.layer_dir(&Digest::of(b"nobody's"))).unwrap();
            let (found, _trash) =
                gc::collect(&store, &lock, &store.catalog().unwrap(), crate::store::tests::FORMATS).unwrap();
            assert_eq!(found, [], "{record}");
        }
    }

    #[test]
    fn its_layers_stay_as_long_as_it_does() {
        let (_dir, store, image) = store();
        let made = container(&image, "web", "");
        let held = create(&store, &made).unwrap();
        let remove = |_: &_, catalog: &mut Catalog| {
            catalog.remove(&image.id);
            Ok::<_, Error>(())
        };
        store.update(remove).unwrap();
        let collect = || {
            let lock = store.lock_exclusive().unwrap();
            let (found, _trash) =
                gc::collect(&store, &lock, &store.catalog().unwrap(), crate::store::tests::FORMATS).unwrap();
            found.into_iter().map(|item| item.kind).collect::<Vec<_>>()
        };
        assert!(collect().is_empty());
        let again = create(&store, &container(&image, "other", "")).map(drop).unwrap_err();
        assert!(matches!(again, Error::NoSuchImage(name) if name == "a:1"));
        let aside = take_out(&store, held).unwrap();
        assert!(aside.join("upper").is_dir() && find(&store, "web").is_err());
        assert!(matches!(try_hold(&store, &made.id), Err(Error::NoSuchContainer(_))));
        fs::create_dir(store.container_dir("half")).unwrap();
        let kinds = collect();
        assert_eq!(kinds.len(), 3, "{kinds:?}");
        assert!(kinds.contains(&gc::Kind::Layer) && kinds.contains(&gc::Kind::Container));
        assert!(!aside.exists() && !store.container_dir("half").exists());
    }
}
