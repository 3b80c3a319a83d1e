//! The mounts of config.json: /proc, /sys and /dev, network files, volumes, bind mounts and tmpfs.

use super::{SpecError, SpecInput};
use crate::container::userns::Mapping;
use crate::store::containers::{Bind, Container, Network, Tmpfs};
use oci_spec::runtime::Mount;
use rustix::fs::StatVfsMountFlags;
use std::path::Path;

/// The files of each container that are bind-mounted in /etc.
const FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];
/// The group ID of pseudoterminals.
const TTY_GROUP: u32 = 5;

/// A mount that every container has.
struct DefaultMount {
    target: &'static str,
    kind: &'static str,
    source: &'static str,
    options: &'static [&'static str],
}

const DEFAULT_MOUNTS: [DefaultMount; 7] = [
    DefaultMount { target: "/proc", kind: "proc", source: "proc", options: &["nosuid", "noexec", "nodev"] },
    DefaultMount {
        target: "/dev",
        kind: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    DefaultMount {
        target: "/dev/pts",
        kind: "devpts",
        source: "devpts",
        options: &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    DefaultMount { target: "/sys", kind: "sysfs", source: "sysfs", options: &["nosuid", "noexec", "nodev", "ro"] },
    DefaultMount { target: CGROUP, kind: "cgroup", source: "cgroup", options: &["nosuid", "noexec", "nodev", "ro"] },
    DefaultMount { target: "/dev/mqueue", kind: "mqueue", source: "mqueue", options: &["nosuid", "noexec", "nodev"] },
    DefaultMount {
        target: "/dev/shm",
        kind: "tmpfs",
        source: "shm",
        options: &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
    },
];
pub(super) const CGROUP: &str = "/sys/fs/cgroup";

/// A bind mount, with properties of its source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bound {
    /// The bind mount; its target is normalized, without `.`, `..` and repeated slashes.
    pub bind: Bind,
    /// Whether the source is a directory.
    pub is_dir: bool,
    /// The source's mount flags. In a user namespace they are locked: a bind mount that lacks one fails with EPERM
    /// (mount_namespaces(7)).
    pub options: Vec<&'static str>,
}

/// Returns all bind mounts of a container: those of resolv.conf, hosts and hostname that exist in the folder `files`,
/// its anonymous volumes, and the user's. Examines the sources, which must exist; must be called in the runtime's mount
/// namespace.
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

/// Normalizes a path lexically: without `.`, `..` and repeated slashes.
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

enum MountKind<'a> {
    Default(&'static DefaultMount),
    Bind(&'a Bound),
    Tmpfs(&'a Tmpfs),
}

struct Entry<'a> {
    target: String,
    kind: MountKind<'a>,
}

/// The mounts, in an order in which no mount hides an earlier one. A mount of the user replaces a default mount at the
/// same target; one at /dev replaces all default mounts below it too.
fn entries<'a>(input: &SpecInput<'a>) -> Vec<Entry<'a>> {
    let host = &input.container.host;
    let binds =
        input.binds.iter().map(|bound| Entry { target: bound.bind.target.clone(), kind: MountKind::Bind(bound) });
    let tmpfs = host.tmpfs.iter().map(|tmpfs| Entry { target: clean(&tmpfs.target), kind: MountKind::Tmpfs(tmpfs) });
    let mut own: Vec<Entry> = Vec::new();
    for entry in binds.chain(tmpfs) {
        own.retain(|other| other.target != entry.target);
        own.push(entry);
    }
    own.sort_by_key(|entry| entry.target.split('/').filter(|name| !name.is_empty()).count());
    let has_dev = own.iter().any(|entry| entry.target == "/dev");
    let usual = DEFAULT_MOUNTS.iter().filter(|usual| {
        let hidden = own.iter().any(|entry| entry.target == usual.target);
        let possible = usual.target != CGROUP || input.mapping.is_none() || input.host_info.unified_cgroups;
        possible && !hidden && !(has_dev && usual.target.starts_with("/dev/"))
    });
    let usual = usual.map(|usual| Entry { target: usual.target.to_owned(), kind: MountKind::Default(usual) });
    let mut all: Vec<Entry> = usual.collect();
    all.append(&mut own);
    all
}

/// The mount points in the root file system, and whether each is a directory; without mount points inside other mounts.
///
/// They are created with [`crate::container::rootfs::Rootfs::make_mountpoint`]: those that a runtime creates stay in
/// the container's upper directory and cannot be told from the container's own changes.
pub fn mountpoints(input: &SpecInput) -> Vec<(String, bool)> {
    let entries = entries(input);
    let inside = |target: &str| {
        entries.iter().any(|other| target.strip_prefix(&other.target).is_some_and(|rest| rest.starts_with('/')))
    };
    let is_dir = |entry: &Entry| match &entry.kind {
        MountKind::Bind(bound) => bound.is_dir,
        MountKind::Default(_) | MountKind::Tmpfs(_) => true,
    };
    let outer = entries.iter().filter(|entry| !inside(&entry.target));
    outer.map(|entry| (entry.target.clone(), is_dir(entry))).collect()
}

/// The `mounts` array of config.json.
pub(super) fn mounts(input: &SpecInput) -> Result<Vec<Mount>, SpecError> {
    entries(input)
        .iter()
        .map(|entry| match entry.kind {
            MountKind::Default(usual) => Ok(default_mount(usual, input)),
            MountKind::Bind(bound) => Ok(bind(bound, input.mapping.is_some())),
            MountKind::Tmpfs(tmpfs) => Ok(mount(&entry.target, "tmpfs", "tmpfs", tmpfs_options(&tmpfs.options)?)),
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

fn default_mount(usual: &DefaultMount, input: &SpecInput) -> Mount {
    let mut options = owned(usual.options);
    if usual.kind == "sysfs" && binds_host_sys(input) {
        options.extend(owned(&["rbind", "rprivate"]));
        return mount(usual.target, "bind", usual.target, options);
    }
    if usual.kind == "devpts" && has_group(input.mapping, TTY_GROUP) {
        options.push(format!("gid={TTY_GROUP}"));
    }
    mount(usual.target, usual.kind, usual.source, options)
}

/// Whether /sys is bind-mounted from the host: a new sysfs requires ownership of the network namespace.
fn binds_host_sys(input: &SpecInput) -> bool {
    input.mapping.is_some() && input.container.host.network == Network::Host
}

/// Whether the host's cgroups would be visible through the bind-mounted /sys.
pub(super) fn shows_cgroups(input: &SpecInput) -> bool {
    let over = |target: &str| CGROUP.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_sys = |entry: &Entry| matches!(entry.kind, MountKind::Default(usual) if usual.target == "/sys");
    binds_host_sys(input) && entries(input).iter().filter(|entry| over(&entry.target)).all(is_sys)
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

/// Mount flags: a property, and the options that set it. The last option for a property wins.
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

/// Docker's default tmpfs options, overridden by the user's comma-separated ones.
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
