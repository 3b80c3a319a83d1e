//! What a runtime is told of a container: the OCI runtime document, `config.json`, made of the container's record and of
//! what was found in its tree and on this machine. It says what Docker says.
//!
//! Nothing here touches the container: `Machine::look` and [`bound`] look at this machine, all else turns data into data.

mod capabilities;
mod machine;
mod mounts;
mod process;
mod seccomp;

use super::User;
use super::userns::Mapping;
use crate::store::containers::{Container, Network};
use crate::sys;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources, Root, Spec,
};
use std::collections::HashMap;
use std::io;
use std::path::Path;

pub use capabilities::Set;
pub use machine::Machine;
pub use mounts::{Bound, bound, mountpoints};
pub use process::{Exec, exec, hostname, process};

/// What the document is made of.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The container's record.
    pub container: &'a Container,
    /// For whom the process runs, as the container's tree has it.
    pub user: &'a User,
    /// Where the tree is mounted: an absolute path, or one from the bundle's directory.
    pub root: &'a Path,
    /// What is bind-mounted; what [`bound`] gave.
    pub binds: &'a [Bound],
    /// Who is who, if the runtime runs in a user namespace already. It makes no other one then.
    pub mapping: Option<&'a Mapping>,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// This machine.
    pub machine: &'a Machine,
}

/// Why there is no document. Each is one whole line.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A right that nobody knows.
    #[error("invalid {option}: unknown capability: \"CAP_{name}\"")]
    UnknownCapability {
        /// `CapAdd` or `CapDrop`.
        option: &'static str,
        /// Its name, without `CAP_`.
        name: String,
    },
    /// A right that this process has not itself.
    #[error(
        "invalid {option}: capability not supported by your kernel or not available in the current environment: \"CAP_{name}\""
    )]
    MissingCapability {
        /// `CapAdd` or `CapDrop`.
        option: &'static str,
        /// Its name, without `CAP_`.
        name: String,
    },
    /// An option that tmpfs does not have.
    #[error("Invalid tmpfs option [{0:?}]")]
    TmpfsOption(String),
    /// Neither the image nor the user says what is to run.
    #[error("no command specified")]
    NoCommand,
    /// The directory to run in is not absolute.
    #[error("the working directory '{0}' is invalid, it needs to be an absolute path")]
    Directory(String),
    /// Somebody who is nobody in this user namespace.
    #[error("cannot run as user {uid}:{gid}: {why}")]
    Nobody {
        /// The user.
        uid: u32,
        /// The first group.
        gid: u32,
        /// Why.
        why: String,
    },
    /// What is to be mounted cannot be looked at.
    #[error("cannot mount {path}: {why}", why = sys::describe(.why))]
    Source {
        /// The path on this machine.
        path: String,
        /// Why.
        why: io::Error,
    },
    /// A part of the document lacks something.
    #[error("cannot make the runtime's document: {0}")]
    Document(#[from] OciSpecError),
}

/// Runtimes of 2020 understand all that is in it.
const VERSION: &str = "1.0.2";
/// What of `/proc` and `/sys` tells of the whole machine, or would change it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The devices that may be opened, major and minor: zero, null, urandom, random, tty, console. The runtime adds terminals.
const DEVICES: [(i64, i64); 6] = [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)];

/// The whole document.
pub fn document(place: &Place) -> Result<Spec, SpecError> {
    let mut root = Root::default();
    root.set_path(place.root.to_path_buf()).set_readonly(Some(place.container.host.read_only));
    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(Some(hostname(place.container, &place.machine.hostname)))
        .set_process(Some(process(place)?))
        .set_mounts(Some(mounts::mounts(place)?))
        .set_linux(Some(linux(place)?));
    Ok(spec)
}

fn linux(place: &Place) -> Result<Linux, SpecError> {
    let masked = MASKED.iter().map(|path| (*path).to_owned()).chain(place.machine.thermal.iter().cloned());
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(place)))
        .set_seccomp(Some(seccomp::filter(place.machine, process::chosen(place)?)?))
        .set_masked_paths(Some(masked.collect()))
        .set_readonly_paths(Some(READ_ONLY.iter().map(|path| (*path).to_owned()).collect()))
        .set_sysctl(Some(settings(place)))
        .set_resources(None)
        .set_devices(None);
    // Control groups are not a plain user's to make.
    if place.mapping.is_none() {
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(devices()));
        linux.set_resources(Some(resources)).set_cgroups_path(Some(Path::new("/plyfs").join(&place.container.id)));
    }
    Ok(linux)
}

fn namespaces(place: &Place) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network as Net, Pid, Uts};
    let mut kinds = vec![Mount, Uts, Pid, Ipc];
    if place.container.host.network == Network::None {
        kinds.push(Net);
    }
    if place.machine.unified_cgroups {
        kinds.push(Cgroup);
    }
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    kinds.into_iter().map(namespace).collect()
}

/// What of the network can be used without rights, where it is the container's own.
fn settings(place: &Place) -> HashMap<String, String> {
    let mut settings = HashMap::new();
    if place.container.host.network == Network::None {
        if place.machine.kernel >= (4, 11) {
            settings.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        }
        // The kernel takes only groups that somebody has.
        if place.mapping.is_none() {
            settings.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    settings
}

fn devices() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, device: Option<(i64, i64)>| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_access(Some("rwm".to_owned()));
        if let Some((major, minor)) = device {
            rule.set_typ(Some(LinuxDeviceType::C)).set_major(Some(major)).set_minor(Some(minor));
        }
        rule
    };
    let mut rules = vec![rule(false, None)];
    rules.extend(DEVICES.iter().map(|device| rule(true, Some(*device))));
    // FUSE: it needs rights that a container has not.
    rules.push(rule(false, Some((10, 229))));
    rules
}

#[cfg(test)]
mod tests;
