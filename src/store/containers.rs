//! The register of containers: what each was made of, what it is to run, and how it fares.
//!
//! ```text
//! containers/<id>/           <id>: 64 random hex digits
//!   record.json              what was asked for; written once (see [`Container`])
//!   state.json               how it fares (see [`State`]); changed only by who holds `lock`
//!   lock                     flock, held by the process that keeps the container as long as it runs
//!   upper/ work/             what it changed of its image
//!   volumes/<n>/             its anonymous volumes
//!   rootfs/                  where its tree is mounted, in the keeper's own mount namespace only
//!   config.json ...          the bundle of the last start, and the runtime's own state and log
//!   control                  the socket at which it is reached while it runs
//!   log                      what it printed
//!   keeper.log               what the process that keeps it had to tell
//! ```
//!
//! A container is running if its lock is held; what `state.json` says then is how the running began. One that says
//! `running` under a free lock was killed with its keeper: it counts as exited by SIGKILL, and `system fsck` writes that
//! down. A folder without a record is what a crash left of making or removing one. A record that cannot be read hides its
//! container; `system fsck --repair` renames it to `record.json.damaged`, and the folder stays for its `upper`.

use super::{Error, Image, Lock, Result, Store, gc, publish, sealed};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What a container is. Never changed after it was made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Its name, without Docker's leading slash.
    pub name: String,
    /// The image, whole, so that it can run after the image has lost its names or is removed.
    pub image: Image,
    /// The image as the user named it.
    pub reference: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// `config` of the image's document with what the user said instead: Env, Cmd, Entrypoint, User, WorkingDir, Labels,
    /// Volumes, StopSignal, Hostname, Tty, OpenStdin.
    pub config: Map<String, Value>,
    /// How it is to run on this machine.
    pub host: Host,
}

/// What of a container is this machine's, not the image's.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    /// What is mounted into it, in this order.
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// Empty file systems in memory.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Whether its root is read-only.
    #[serde(default)]
    pub read_only: bool,
    /// What it sees of the network.
    #[serde(default)]
    pub network: Network,
    /// Capabilities besides Docker's usual ones, as `NET_ADMIN`, or `ALL`.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Of the usual ones, those that it is not to have, or `ALL`.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// The runtime that was asked for; none: the first that is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Whether it goes when it has ended.
    #[serde(default)]
    pub auto_remove: bool,
    /// Whether it runs in the background, its output going to the log.
    #[serde(default)]
    pub detached: bool,
}

/// A directory or file of this machine in the container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute, on this machine.
    pub source: String,
    /// Absolute, in the container.
    pub target: String,
    /// Whether it can only be read there.
    #[serde(default)]
    pub read_only: bool,
}

/// An empty file system in memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute, in the container.
    pub target: String,
    /// Mount options, comma-separated, beside the usual ones.
    #[serde(default)]
    pub options: String,
}

/// What a container sees of the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// What this machine sees.
    #[default]
    Host,
    /// A loopback device of its own.
    None,
}

/// How a container fares.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Where it stands.
    pub status: Status,
    /// Its first process, while it runs.
    #[serde(default)]
    pub pid: u32,
    /// The process that serves its tree, while it runs.
    #[serde(default)]
    pub keeper: u32,
    /// The process in whose namespaces its runtime works, while it runs.
    #[serde(default)]
    pub runner: u32,
    /// How its command ended; above 128 it was signal N - 128.
    #[serde(default)]
    pub exit_code: i32,
    /// When it last began to run, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Why it could not be started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The program that runs it, or ran it last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// Paths that the image has not and that are only there for something to be mounted on: no change of the
    /// container's. From the root, without a leading slash.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub made: BTreeSet<String>,
}

impl State {
    /// The same, when nothing of it runs any more.
    pub fn ended(self) -> State {
        State { status: Status::Exited, pid: 0, keeper: 0, runner: 0, ..self }
    }
}

/// Where a container stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made and never started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// It ran.
    Exited,
}

impl Status {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Exited => "exited",
        }
    }
}

/// What a process that was killed with SIGKILL ends with.
pub const KILLED: i32 = 137;

/// A word of a configuration in Docker's form; nothing where there is none.
pub fn text_of<'a>(config: &'a Map<String, Value>, key: &str) -> &'a str {
    config.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A list of a configuration in Docker's form. One word may stand there without a list around it.
pub fn list_of(config: &Map<String, Value>, key: &str) -> Vec<String> {
    match config.get(key) {
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => Vec::new(),
    }
}

impl Container {
    /// A word of its config.
    pub fn text(&self, key: &str) -> &str {
        text_of(&self.config, key)
    }

    /// Whether its config says so.
    pub fn is(&self, key: &str) -> bool {
        self.config.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// What it runs: its entrypoint, and its command behind it.
    pub fn command(&self) -> Vec<String> {
        [list_of(&self.config, "Entrypoint"), list_of(&self.config, "Cmd")].concat()
    }

    /// Its config as an image's: what a container has for itself is left out.
    pub fn config_of_image(&self) -> Map<String, Value> {
        let own = ["Hostname", "Tty", "OpenStdin"];
        self.config
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// The first twelve digits of its ID.
    pub fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// A container's lock, held as long as this lives, by a forked process too. Who has it runs, changes or removes it.
pub struct Held {
    _file: File,
    store: Store,
    id: String,
}

impl Held {
    /// Writes down how it fares.
    pub fn set_state(&self, state: &State) -> Result<()> {
        write_json(&self.store.container_dir(&self.id).join(STATE), state)
    }
}

const RECORD: &str = "record.json";
const DAMAGED_RECORD: &str = "record.json.damaged";
const STATE: &str = "state.json";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// The folder of a container or a bundle in which its tree is mounted.
pub const ROOTFS: &str = "rootfs";

impl Store {
    /// The folder of the container with that whole ID.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root().join("containers").join(id)
    }

    /// Where that container's tree is mounted, in the namespaces of its own processes only.
    pub fn container_tree(&self, id: &str) -> PathBuf {
        self.container_dir(id).join(ROOTFS)
    }

    /// That container's upper and work directory.
    pub fn container_upper(&self, id: &str) -> (PathBuf, PathBuf) {
        let dir = self.container_dir(id);
        (dir.join(UPPER), dir.join(WORK))
    }
}

/// Makes a container, and gives it held. Its name must be free. The image must be in the catalog, or it is
/// [`Error::NoSuchImage`]; from when this returns its layers cannot be removed.
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

/// Takes a container's lock; none if somebody runs or changes it. [`Error::NoSuchContainer`] when it is gone.
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

/// All containers, the newest first. One whose record is damaged is left out, with a warning: the others are not to
/// suffer for it.
pub fn list(store: &Store) -> Result<Vec<Container>> {
    let (all, damaged) = list_with_damaged(store)?;
    for record in damaged {
        tracing::warn!("{}; `plyfs system fsck --repair` sets it aside", record.why);
    }
    Ok(all)
}

/// A container's record that cannot be read, so that nobody knows what the container needs.
pub struct Damaged {
    id: String,
    /// What is wrong with which file.
    pub why: Error,
}

/// All containers, the newest first, and the records that cannot be read.
pub fn list_with_damaged(store: &Store) -> Result<(Vec<Container>, Vec<Damaged>)> {
    let mut all: Vec<Container> = Vec::new();
    let mut damaged = Vec::new();
    for (id, dir) in gc::list(&store.root().join("containers"))? {
        match sealed::load(&dir.join(RECORD)) {
            Ok(found) => all.extend::<Option<Container>>(found),
            Err(why) => damaged.push(Damaged { id, why }),
        }
    }
    all.sort_by(|a, b| b.created.cmp(&a.created));
    Ok((all, damaged))
}

impl Damaged {
    /// Renames the record, so that it keeps no layer any more and nothing of the container's folder is collected. Gives
    /// the container's upper directory; none if the container runs, which leaves everything as it is.
    pub fn set_aside(&self, store: &Store) -> Result<Option<PathBuf>> {
        let Some(_held) = try_hold(store, &self.id)? else { return Ok(None) };
        let dir = store.container_dir(&self.id);
        let record = dir.join(RECORD);
        fs::rename(&record, dir.join(DAMAGED_RECORD)).map_err(Error::io("rename", &record))?;
        publish::sync_dir(&dir)?;
        Ok(Some(dir.join(UPPER)))
    }
}

/// The container that `text` means: a name, or the beginning of an ID.
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

/// How a container fares. What died without a word counts as killed, and so does, with a warning, one that does not run
/// and whose state cannot be read.
pub fn state(store: &Store, id: &str) -> Result<State> {
    let path = store.container_dir(id).join(STATE);
    // The lock first: a keeper writes how it ended before it lets go.
    let running = is_held(store, id);
    let read = match sealed::load(&path) {
        Err(why) if !running => {
            tracing::warn!("{why}; `plyfs system fsck --repair` makes it again");
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

/// Whether somebody holds a container's lock: its keeper, mostly.
pub fn is_held(store: &Store, id: &str) -> bool {
    let file = File::open(store.container_dir(id).join("lock"));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// What a container's state is after it was killed with its keeper.
fn after_death(state: State) -> State {
    State { exit_code: KILLED, ..state.ended() }
}

/// A container whose state is not what it should be.
pub struct Unsettled {
    /// Which.
    pub container: Container,
    /// Why its state cannot be read; none if the container was killed with its keeper.
    pub why: Option<Error>,
    /// Whether its state says now that it was killed.
    pub mended: bool,
}

/// Those of `containers` that were killed with their keeper, so that their state still says that they run, and those
/// whose state cannot be read; with `write` it says afterwards how they ended, unless one runs.
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

/// Folders that are no container's, or no whole one's.
pub(super) fn stale(store: &Store, lock: &Lock) -> Result<Vec<PathBuf>> {
    debug_assert!(lock.exclusive());
    let all = gc::list(&store.root().join("containers"))?.into_iter().map(|(_, dir)| dir);
    let has = |dir: &Path, name| match fs::symlink_metadata(dir.join(name)) {
        Ok(_) => true,
        // What cannot be looked at may be there.
        Err(e) => !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    Ok(all.filter(|dir| !has(dir, RECORD) && !has(dir, DAMAGED_RECORD)).collect())
}

/// Takes a container out of the register, and gives its folder under another name, for the caller to remove.
pub fn take_out(store: &Store, held: Held) -> Result<PathBuf> {
    let lock = store.lock_exclusive()?;
    let dir = store.container_dir(&held.id);
    let aside = store.root().join("tmp").join(format!("{}.dead", held.id));
    fs::rename(&dir, &aside).map_err(Error::io("rename", &dir))?;
    publish::sync_dir(&store.root().join("containers"))?;
    drop(lock);
    Ok(aside)
}

/// 64 hex digits that no container has had.
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
    fn one_that_died_with_its_keeper_was_killed() {
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
            let (found, _trash) = gc::collect(&store, &lock, &store.catalog().unwrap(), 1).unwrap();
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
            let (found, _trash) = gc::collect(&store, &lock, &store.catalog().unwrap(), 1).unwrap();
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
