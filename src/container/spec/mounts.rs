//! What is mounted in a container besides its tree: what programs expect, this machine's files, volumes, memory.

use super::{Place, SpecError};
use crate::container::userns::Mapping;
use crate::store::containers::{Bind, Container, Network, Tmpfs};
use oci_spec::runtime::Mount;
use rustix::fs::StatVfsMountFlags;
use std::path::Path;

/// How the network is reached and what the container is called: files of each container's own.
const FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];
/// The group of terminals.
const TTY_GROUP: u32 = 5;

/// What every container has.
struct Usual {
    target: &'static str,
    kind: &'static str,
    source: &'static str,
    options: &'static [&'static str],
}

const USUAL: [Usual; 7] = [
    Usual { target: "/proc", kind: "proc", source: "proc", options: &["nosuid", "noexec", "nodev"] },
    Usual {
        target: "/dev",
        kind: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    Usual {
        target: "/dev/pts",
        kind: "devpts",
        source: "devpts",
        options: &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    Usual { target: "/sys", kind: "sysfs", source: "sysfs", options: &["nosuid", "noexec", "nodev", "ro"] },
    Usual { target: CGROUP, kind: "cgroup", source: "cgroup", options: &["nosuid", "noexec", "nodev", "ro"] },
    Usual { target: "/dev/mqueue", kind: "mqueue", source: "mqueue", options: &["nosuid", "noexec", "nodev"] },
    Usual {
        target: "/dev/shm",
        kind: "tmpfs",
        source: "shm",
        options: &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
    },
];
pub(super) const CGROUP: &str = "/sys/fs/cgroup";

/// A bind mount, and what is to be known of its source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bound {
    /// What and where. The target has no `.`, `..` or slash too much in it.
    pub bind: Bind,
    /// Whether the source is a directory.
    pub is_dir: bool,
    /// How the source's file system is mounted here: in a user namespace nothing of that can be lifted, and who mounts
    /// without it is refused.
    pub options: Vec<&'static str>,
}

/// All bind mounts of a container: those of `files` that are there (`resolv.conf`, `hosts` and `hostname`, for `/etc`),
/// its anonymous volumes, and what the user named. Looks at their sources, which must be there; to be called where the
/// runtime will run.
pub fn bound(container: &Container, files: &Path, volumes: &[Bind]) -> Result<Vec<Bound>, SpecError> {
    let file = |name: &str| Bind {
        source: files.join(name).to_string_lossy().into_owned(),
        target: format!("/etc/{name}"),
        read_only: container.host.read_only,
    };
    let files = FILES.iter().map(|name| file(name)).filter(|bind| Path::new(&bind.source).exists());
    let all = files.chain(volumes.iter().cloned()).chain(container.host.binds.iter().cloned());
    all.map(Bound::look).collect()
}

impl Bound {
    fn look(bind: Bind) -> Result<Bound, SpecError> {
        let failed = |e: std::io::Error| SpecError::Source { path: bind.source.clone(), why: e };
        let is_dir = std::fs::metadata(&bind.source).map_err(failed)?.is_dir();
        let flags = rustix::fs::statvfs(&bind.source).map_err(|e| failed(e.into()))?.f_flag;
        let options = [
            (StatVfsMountFlags::RDONLY, "ro"),
            (StatVfsMountFlags::NOSUID, "nosuid"),
            (StatVfsMountFlags::NODEV, "nodev"),
            (StatVfsMountFlags::NOEXEC, "noexec"),
            (StatVfsMountFlags::NOATIME, "noatime"),
            (StatVfsMountFlags::NODIRATIME, "nodiratime"),
            (StatVfsMountFlags::RELATIME, "relatime"),
        ];
        let options = options.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name).collect();
        let target = clean(&bind.target);
        Ok(Bound { bind: Bind { target, ..bind }, is_dir, options })
    }
}

/// A path without `.`, `..` and slashes too much, by its letters alone.
fn clean(path: &str) -> String {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            _ => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

enum What<'a> {
    Usual(&'static Usual),
    Bind(&'a Bound),
    Tmpfs(&'a Tmpfs),
}

struct Entry<'a> {
    target: String,
    what: What<'a>,
}

/// What is mounted, in an order in which nothing is hidden by what comes later. What the user mounts somewhere takes the
/// place of what else would be there, and his `/dev` that of all in it.
fn entries<'a>(place: &Place<'a>) -> Vec<Entry<'a>> {
    let host = &place.container.host;
    let binds = place.binds.iter().map(|bound| Entry { target: bound.bind.target.clone(), what: What::Bind(bound) });
    let tmpfs = host.tmpfs.iter().map(|tmpfs| Entry { target: clean(&tmpfs.target), what: What::Tmpfs(tmpfs) });
    let mut own: Vec<Entry> = Vec::new();
    for entry in binds.chain(tmpfs) {
        own.retain(|other| other.target != entry.target);
        own.push(entry);
    }
    own.sort_by_key(|entry| entry.target.split('/').filter(|name| !name.is_empty()).count());
    let has_dev = own.iter().any(|entry| entry.target == "/dev");
    let usual = USUAL.iter().filter(|usual| {
        let hidden = own.iter().any(|entry| entry.target == usual.target);
        let possible = usual.target != CGROUP || place.mapping.is_none() || place.machine.unified_cgroups;
        possible && !hidden && !(has_dev && usual.target.starts_with("/dev/"))
    });
    let usual = usual.map(|usual| Entry { target: usual.target.to_owned(), what: What::Usual(usual) });
    let mut all: Vec<Entry> = usual.collect();
    all.append(&mut own);
    all
}

/// Every path of the tree on which something gets mounted, and whether that is a directory. What lies in another mount is
/// not the tree's, and not among them.
///
/// They are for [`crate::container::inside::Inside::make_mountpoint`]: a runtime that makes them itself leaves them in
/// the container's upper directory, where nobody could tell them from what the container made.
pub fn mountpoints(place: &Place) -> Vec<(String, bool)> {
    let entries = entries(place);
    let inside = |target: &str| {
        entries.iter().any(|other| target.strip_prefix(&other.target).is_some_and(|rest| rest.starts_with('/')))
    };
    let is_dir = |entry: &Entry| match &entry.what {
        What::Bind(bound) => bound.is_dir,
        What::Usual(_) | What::Tmpfs(_) => true,
    };
    let outer = entries.iter().filter(|entry| !inside(&entry.target));
    outer.map(|entry| (entry.target.clone(), is_dir(entry))).collect()
}

/// The same for the document.
pub(super) fn mounts(place: &Place) -> Result<Vec<Mount>, SpecError> {
    entries(place)
        .iter()
        .map(|entry| match entry.what {
            What::Usual(usual) => Ok(furnish(usual, place)),
            What::Bind(bound) => Ok(bind(bound, place.mapping.is_some())),
            What::Tmpfs(tmpfs) => Ok(mount(&entry.target, "tmpfs", "tmpfs", tmpfs_options(&tmpfs.options)?)),
        })
        .collect()
}

fn mount(target: &str, kind: &str, source: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options));
    mount
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn furnish(usual: &Usual, place: &Place) -> Mount {
    let mut options = owned(usual.options);
    if usual.kind == "sysfs" && has_machines_sys(place) {
        options.extend(owned(&["rbind", "rprivate"]));
        return mount(usual.target, "bind", usual.target, options);
    }
    if usual.kind == "devpts" && has_group(place.mapping, TTY_GROUP) {
        options.push(format!("gid={TTY_GROUP}"));
    }
    mount(usual.target, usual.kind, usual.source, options)
}

/// A new one may be mounted only by who owns the network that it shows.
fn has_machines_sys(place: &Place) -> bool {
    place.mapping.is_some() && place.container.host.network == Network::Host
}

/// Whether this machine's control groups would be there, in its `/sys`, with nothing over them.
pub(super) fn shows_cgroups(place: &Place) -> bool {
    let over = |target: &str| CGROUP.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_sys = |entry: &Entry| matches!(entry.what, What::Usual(usual) if usual.target == "/sys");
    has_machines_sys(place) && entries(place).iter().filter(|entry| over(&entry.target)).all(is_sys)
}

fn has_group(mapping: Option<&Mapping>, group: u32) -> bool {
    match mapping {
        None => true,
        Some(Mapping::Ranges { last_group, .. }) => group <= *last_group,
        Some(Mapping::Own { .. }) => group == 0,
    }
}

fn bind(bound: &Bound, in_user_namespace: bool) -> Mount {
    let Bound { bind, options: kept, .. } = bound;
    let mut options = owned(&["rbind", "rprivate"]);
    if bind.read_only {
        options.push("ro".to_owned());
    }
    if in_user_namespace {
        options.extend(kept.iter().filter(|name| !(bind.read_only && **name == "ro")).map(|name| (*name).to_owned()));
    }
    mount(&bind.target, "bind", &bind.source, options)
}

/// Options that are words: what each is about, and those that say something of it. Of each the last counts.
const FLAGS: [(&str, &[&str]); 12] = [
    ("write", &["ro", "rw"]),
    ("suid", &["suid", "nosuid"]),
    ("dev", &["dev", "nodev"]),
    ("exec", &["exec", "noexec"]),
    ("sync", &["sync", "async"]),
    ("dirsync", &["dirsync"]),
    ("mand", &["mand", "nomand"]),
    ("atime", &["atime", "noatime"]),
    ("diratime", &["diratime", "nodiratime"]),
    ("relatime", &["relatime", "norelatime"]),
    ("strictatime", &["strictatime", "nostrictatime"]),
    ("propagation", &["private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"]),
];
/// Options with a value.
const SETTINGS: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

/// Docker's usual ones with the user's, comma-separated, which win.
fn tmpfs_options(given: &str) -> Result<Vec<String>, SpecError> {
    let usual = ["noexec", "nosuid", "nodev", "rprivate"];
    let mut options: Vec<(&str, &str)> = Vec::new();
    for option in usual.into_iter().chain(given.split(',')).filter(|option| !["", "defaults"].contains(option)) {
        let about = match option.split_once('=') {
            Some((key, _)) => SETTINGS.into_iter().find(|setting| *setting == key),
            None => FLAGS.iter().find(|(_, words)| words.contains(&option)).map(|(about, _)| *about),
        };
        let about = about.ok_or_else(|| SpecError::TmpfsOption(option.to_owned()))?;
        options.retain(|(other, _)| *other != about);
        options.push((about, option));
    }
    Ok(options.into_iter().map(|(_, option)| option.to_owned()).collect())
}
