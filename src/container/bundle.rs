//! The OCI bundle of a container: config.json and the network files, in a folder beside the mounted root file system.

use super::rootfs::Rootfs;
use super::run_error::RunError;
use super::spec::{self, HostInfo, SpecInput};
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

/// The files that each container has its own copy of: the name in its folder, and the path in the container.
const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")];
/// Docker's default mode of a tmpfs.
const TMPFS_MODE: u32 = 0o1777;
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The parameters of a bundle.
pub struct Wanted<'a> {
    /// The container's record.
    pub container: &'a Container,
    /// The bundle's folder, an absolute path. The root file system is mounted at [`ROOTFS`] in it.
    pub dir: &'a Path,
    /// `root.path` in config.json.
    pub root: &'a Path,
    /// The ID mapping, if the runtime is in a user namespace or creates one.
    pub mapping: Option<&'a Mapping>,
    /// Whether the runtime creates the user namespace, in which only this process's user is mapped, as root.
    pub own_users: bool,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// The terminal's size.
    pub size: Option<Winsize>,
}

/// Writes the bundle, and creates the mount points and the working directory in the root file system. Returns the paths
/// that were created only as mount points.
pub fn write(wanted: &Wanted<'_>) -> Result<BTreeSet<String>, RunError> {
    let Wanted { container, dir, .. } = *wanted;
    let failed = |what: &str, e: &io::Error| RunError::own(format!("cannot {what}: {}", sys::describe(e)));
    let root = Rootfs::open(&dir.join(ROOTFS)).map_err(|e| failed("open the image's root file system", &e))?;
    let user = user::resolve(&root, container.text("User")).map_err(|e| RunError::own(e.to_string()))?;
    let host_info = HostInfo::detect().map_err(|e| failed("detect the host's capabilities", &e))?;
    write_files(container, dir, &host_info).map_err(|e| failed("write the container's files", &e))?;
    let volumes = volumes::make(container, dir, &root).map_err(|e| failed("create the image's volumes", &e))?;
    let unfit = |e: spec::SpecError| RunError::own(e.to_string());
    let input = SpecInput {
        container,
        user: &user,
        root: wanted.root,
        binds: &spec::bound(container, dir, &volumes).map_err(unfit)?,
        mapping: wanted.mapping,
        terminal: wanted.terminal,
        host_info: &host_info,
    };
    let mut document = spec::document(&input).map_err(unfit)?;
    if let (Some(size), Some(process)) = (wanted.size, document.process_mut()) {
        let size = BoxBuilder::default().height(size.ws_row).width(size.ws_col).build();
        process.set_console_size(size.ok());
    }
    if wanted.own_users {
        add_user_namespace(&mut document);
    }
    let made = make_mountpoints(&root, &spec::mountpoints(&input))?;
    set_tmpfs_modes(&root, container, &made).map_err(|e| failed("set the mode of a tmpfs mount point", &e))?;
    let directory = Path::new("/").join(container.text("WorkingDir"));
    if !container.host.read_only {
        let made = root.make_mountpoint(&directory, true);
        made.map_err(|e| failed(&format!("create the working directory {}", directory.display()), &e))?;
    }
    let bytes = serde_json::to_vec(&document).map_err(|e| RunError::own(format!("cannot write the bundle: {e}")))?;
    fs::write(dir.join("config.json"), bytes).map_err(|e| failed("write the bundle", &e))?;
    Ok(made)
}

/// Adds a user namespace to config.json in which only this process's user is mapped, as root.
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

/// Creates the missing mount points; returns the paths created.
fn make_mountpoints(root: &Rootfs, all: &[(String, bool)]) -> Result<BTreeSet<String>, RunError> {
    let mut made = BTreeSet::new();
    for (path, is_dir) in all {
        let new = root.make_mountpoint(path, *is_dir);
        let new = new.map_err(|e| RunError::own(format!("cannot mount at {path}: {}", sys::describe(&e))))?;
        made.extend(new.into_iter().map(|path| path.to_string_lossy().into_owned()));
    }
    Ok(made)
}

/// Sets the mode of newly created tmpfs mount points to the mode of the tmpfs: a runtime copies the mode of the mount
/// point.
fn set_tmpfs_modes(root: &Rootfs, container: &Container, made: &BTreeSet<String>) -> io::Result<()> {
    for tmpfs in &container.host.tmpfs {
        if made.contains(tmpfs.target.trim_matches('/')) {
            let wanted = tmpfs.options.split(',').filter_map(|option| option.strip_prefix("mode="));
            let mode =
                wanted.filter_map(|digits| u32::from_str_radix(digits, 8).ok()).next_back().unwrap_or(TMPFS_MODE);
            let place = root.locate(&tmpfs.target)?;
            let path = format!("/proc/self/fd/{}", place.as_raw_fd());
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Writes resolv.conf, hosts and hostname: copies of the host's if the container shares its network.
fn write_files(container: &Container, dir: &Path, host_info: &HostInfo) -> io::Result<()> {
    for (name, path) in FILES {
        let text = match (name, container.host.network) {
            ("hostname", _) => format!("{}\n", spec::hostname(container, &host_info.hostname)).into_bytes(),
            ("hosts", Network::None) => LOCAL_HOSTS.as_bytes().to_vec(),
            // A missing file is empty in the container.
            _ => fs::read(path).unwrap_or_default(),
        };
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
