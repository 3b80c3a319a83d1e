//! What a runtime needs of a container, in a folder beside its mounted tree: the document, and the files that the container
//! has its own of.

use super::inside::Inside;
use super::room::Refusal;
use super::spec::{self, Machine, Place};
use super::userns::Mapping;
use super::{user, volumes};
use crate::store::containers::{Container, Network, ROOTFS};
use crate::sys;
use oci_spec::runtime::{BoxBuilder, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::termios::Winsize;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The files of this machine that a container has its own of, in its folder and in the container.
const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")];
/// Docker's mode of a file system in memory.
const FOR_ALL: u32 = 0o1777;
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// What a bundle is made of.
pub struct Wanted<'a> {
    /// What is to run.
    pub container: &'a Container,
    /// The bundle's folder, absolute. The tree is mounted at [`ROOTFS`] in it.
    pub dir: &'a Path,
    /// The tree as the document is to name it.
    pub root: &'a Path,
    /// Who is who, if the runtime is in a user namespace or makes one.
    pub mapping: Option<&'a Mapping>,
    /// Whether the runtime makes that, with nobody in it but this process's user, as root.
    pub own_users: bool,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// How large that is.
    pub size: Option<Winsize>,
}

/// Writes the bundle, and makes in the tree what the container needs there; gives the paths that were made for mounts
/// only.
pub fn write(wanted: &Wanted<'_>) -> Result<BTreeSet<String>, Refusal> {
    let Wanted { container, dir, .. } = *wanted;
    let failed = |what: &str, e: &io::Error| Refusal::own(format!("cannot {what}: {}", sys::describe(e)));
    let root = Inside::open(&dir.join(ROOTFS)).map_err(|e| failed("enter the image", &e))?;
    let user = user::resolve(&root, container.text("User")).map_err(|e| Refusal::own(e.to_string()))?;
    let machine = Machine::look().map_err(|e| failed("look at this machine", &e))?;
    write_files(container, dir, &machine).map_err(|e| failed("write the container's files", &e))?;
    let volumes = volumes::make(container, dir, &root).map_err(|e| failed("make the image's volumes", &e))?;
    let unfit = |e: spec::SpecError| Refusal::own(e.to_string());
    let place = Place {
        container,
        user: &user,
        root: wanted.root,
        binds: &spec::bound(container, dir, &volumes).map_err(unfit)?,
        mapping: wanted.mapping,
        terminal: wanted.terminal,
        machine: &machine,
    };
    let mut document = spec::document(&place).map_err(unfit)?;
    if let (Some(size), Some(process)) = (wanted.size, document.process_mut()) {
        let size = BoxBuilder::default().height(size.ws_row).width(size.ws_col).build();
        process.set_console_size(size.ok());
    }
    if wanted.own_users {
        add_user_namespace(&mut document);
    }
    let made = make_mountpoints(&root, &spec::mountpoints(&place))?;
    open_up(&root, container, &made).map_err(|e| failed("make a place for a file system in memory", &e))?;
    let directory = Path::new("/").join(container.text("WorkingDir"));
    if !container.host.read_only {
        let made = root.make_mountpoint(&directory, true);
        made.map_err(|e| failed(&format!("work in the directory {}", directory.display()), &e))?;
    }
    let bytes = serde_json::to_vec(&document).map_err(|e| Refusal::own(format!("cannot write the bundle: {e}")))?;
    fs::write(dir.join("config.json"), bytes).map_err(|e| failed("write the bundle", &e))?;
    Ok(made)
}

/// Has the runtime make a user namespace in which this process's user is root, and nobody else is there.
fn add_user_namespace(document: &mut Spec) {
    let alone = |number: u32| {
        let line = LinuxIdMappingBuilder::default().container_id(0_u32).host_id(number).size(1_u32).build();
        line.ok().map(|line| vec![line])
    };
    let Some(linux) = document.linux_mut() else { return };
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(LinuxNamespaceType::User);
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.push(namespace);
    linux.set_namespaces(Some(namespaces));
    linux.set_uid_mappings(alone(rustix::process::geteuid().as_raw()));
    linux.set_gid_mappings(alone(rustix::process::getegid().as_raw()));
}

/// Makes what is missing for mounts.
fn make_mountpoints(root: &Inside, all: &[(String, bool)]) -> Result<BTreeSet<String>, Refusal> {
    let mut made = BTreeSet::new();
    for (path, is_dir) in all {
        let new = root.make_mountpoint(path, *is_dir);
        let new = new.map_err(|e| Refusal::own(format!("cannot mount at {path}: {}", sys::describe(&e))))?;
        made.extend(new.into_iter().map(|path| path.to_string_lossy().into_owned()));
    }
    Ok(made)
}

/// Gives the places of file systems in memory, where the image had none, the mode that these are to have: a runtime takes
/// it from there.
fn open_up(root: &Inside, container: &Container, made: &BTreeSet<String>) -> io::Result<()> {
    for tmpfs in &container.host.tmpfs {
        if made.contains(tmpfs.target.trim_matches('/')) {
            let wanted = tmpfs.options.split(',').filter_map(|option| option.strip_prefix("mode="));
            let mode = wanted.filter_map(|digits| u32::from_str_radix(digits, 8).ok()).next_back().unwrap_or(FOR_ALL);
            let place = root.locate(&tmpfs.target)?;
            let path = format!("/proc/self/fd/{}", place.as_raw_fd());
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// The network's files: this machine's, as far as the container has its network.
fn write_files(container: &Container, dir: &Path, machine: &Machine) -> io::Result<()> {
    for (name, path) in FILES {
        let text = match (name, container.host.network) {
            ("hostname", _) => format!("{}\n", spec::hostname(container, &machine.hostname)).into_bytes(),
            ("hosts", Network::None) => LOCAL_HOSTS.as_bytes().to_vec(),
            // One that is missing is empty.
            _ => fs::read(path).unwrap_or_default(),
        };
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
