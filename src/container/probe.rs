//! Host probes: the kernel features that plyfs uses, each tried with the rights of this user.

use super::spec::HostInfo;
use super::userns::{self, Mapping};
use crate::kernel;
use crate::store::{Session, Store};
use crate::sys::{self, Fork};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Result of a probe: a detail, which may be empty, or why the feature cannot be used. Both are phrases of one line.
pub type Probe = Result<String, String>;

/// Kernel features that this user can use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostProbe {
    /// Opening /dev/fuse.
    pub fuse: Probe,
    /// Mounting kernel overlayfs with an upper directory in the store; without root in a user namespace.
    pub overlayfs: Probe,
    /// Mounting an EROFS image from a file of the store.
    pub erofs: Probe,
    /// Creating a user namespace.
    pub user_namespaces: Probe,
    /// Mapping subordinate IDs in it.
    pub subordinate_ids: Probe,
    /// Creating cgroups; the detail is the version.
    pub cgroups: Probe,
}

/// `CGROUP_SUPER_MAGIC` of statfs(2): a hierarchy of cgroup v1.
const CGROUP1: rustix::fs::FsWord = 0x0027_e0eb;
const CGROUPS: &str = "/sys/fs/cgroup";

/// Results of the probes in a new user namespace.
#[derive(Serialize, Deserialize)]
struct InNamespace {
    user_namespaces: Probe,
    subordinate_ids: Probe,
    overlayfs: Probe,
}

/// Probes the host. Creates files in a session of the store and removes them. The process must be single-threaded.
pub fn probe(store: &Store) -> HostProbe {
    let session = Session::begin(store).map_err(|e| e.to_string());
    let scratch = |kind| session.as_ref().map(|session| session.temp_path(kind)).map_err(Clone::clone);
    let overlay = scratch("overlay").and_then(|dir| fs::create_dir(&dir).map(|()| dir).map_err(|e| sys::describe(&e)));
    let is_root = sys::is_root();
    let inner = in_child(|| in_namespace(overlay.as_deref().ok().filter(|_| !is_root)));
    let inner = inner.unwrap_or_else(|e| {
        let failed = || Err(format!("the probe failed: {}", sys::describe(&e)));
        InNamespace { user_namespaces: failed(), subordinate_ids: failed(), overlayfs: failed() }
    });
    let overlayfs = match &overlay {
        Err(why) => Err(why.clone()),
        Ok(dir) if is_root => probe_overlay(dir, false),
        Ok(_) => inner.overlayfs,
    };
    let erofs = scratch("erofs").and_then(|file| match kernel::probe_erofs(store, &file) {
        Ok(()) => Ok(String::new()),
        Err(why) => Err(why.to_string()),
    });
    HostProbe {
        fuse: probe_fuse(),
        overlayfs,
        erofs,
        user_namespaces: inner.user_namespaces,
        subordinate_ids: inner.subordinate_ids,
        cgroups: probe_cgroups(),
    }
}

fn probe_fuse() -> Probe {
    let device = "/dev/fuse";
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(device.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(format!("there is no {device}: run `modprobe fuse`; in a container, pass it the device {device}"))
        }
        Err(e) => Err(format!("cannot open {device}: {}", sys::describe(&e))),
    }
}

/// Mounts overlayfs with directories below `dir`, and removes what it leaves there.
fn probe_overlay(dir: &Path, in_namespace: bool) -> Probe {
    let done = kernel::probe_overlay(dir, in_namespace).map(|()| String::new()).map_err(|why| why.to_string());
    // The kernel creates it without any permission.
    let _none = fs::remove_dir(dir.join("work/work"));
    done
}

/// Enters a user namespace, and mounts overlayfs there if there is a directory for it.
fn in_namespace(overlay: Option<&Path>) -> InNamespace {
    match userns::enter() {
        Err(why) => InNamespace {
            user_namespaces: Err(why.to_string()),
            subordinate_ids: Err("there is no user namespace".into()),
            overlayfs: Err("there is no user namespace".into()),
        },
        Ok(mapping) => InNamespace {
            user_namespaces: Ok(String::new()),
            subordinate_ids: match mapping {
                Mapping::Ranges { last_user, last_group } => Ok(format!("{last_user} users, {last_group} groups")),
                Mapping::Own { why } => Err(why),
            },
            overlayfs: overlay.map_or_else(|| Ok(String::new()), |dir| probe_overlay(dir, true)),
        },
    }
}

/// Runs `work` in a child process, and returns its result.
fn in_child<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> io::Result<T> {
    let (mut reader, mut writer) = io::pipe()?;
    match sys::fork()? {
        Fork::Parent(child) => {
            drop(writer);
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            sys::wait_for(child)?;
            serde_json::from_slice(&bytes).map_err(io::Error::other)
        }
        Fork::Child => {
            drop(reader);
            let written = serde_json::to_writer(&mut writer, &work());
            sys::leave(i32::from(written.is_err()))
        }
    }
}

fn probe_cgroups() -> Probe {
    let is_v1 = |path: &Path| rustix::fs::statfs(path).is_ok_and(|found| found.f_type == CGROUP1);
    let (version, dir) = if HostInfo::detect().is_ok_and(|host| host.unified_cgroups) {
        ("2", Some(CGROUPS.into()))
    } else {
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
        ("1", { hierarchies }.find(|path| is_v1(path)))
    };
    let dir = dir.ok_or_else(|| format!("no cgroup file system is mounted at {CGROUPS}"))?;
    if !sys::is_root() {
        return Ok(version.into());
    }
    rustix::fs::access(&dir, rustix::fs::Access::WRITE_OK)
        .map(|()| version.to_owned())
        .map_err(|e| format!("version {version}, but {} is not writable: {}", dir.display(), sys::describe(&e.into())))
}
