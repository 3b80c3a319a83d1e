//! Linux namespaces: unshare, setns, pivot_root; and the detached mounts to build a root file system from. Mounts are
//! created detached and attached through descriptors, so that no path is resolved twice, with a race in between.
//!
//! A mount can only be copied within its own mount namespace: open the source of a bind mount after [`unshare`].

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::LinkNameSpaceType;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A set of namespaces to create.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "each is the namespace of its name, see namespaces(7)")]
pub struct Namespaces {
    pub user: bool,
    pub mount: bool,
    /// Takes effect for the children; the first one becomes PID 1.
    pub pid: bool,
    pub network: bool,
    pub uts: bool,
    pub ipc: bool,
}

/// Moves the process into new namespaces (unshare(2)). In a new user namespace it has all capabilities, and the
/// overflow user ID until the ID maps are written.
pub fn unshare(what: Namespaces) -> io::Result<()> {
    let all = [
        (what.user, libc::CLONE_NEWUSER),
        (what.mount, libc::CLONE_NEWNS),
        (what.pid, libc::CLONE_NEWPID),
        (what.network, libc::CLONE_NEWNET),
        (what.uts, libc::CLONE_NEWUTS),
        (what.ipc, libc::CLONE_NEWIPC),
    ];
    let flags = all.iter().filter(|(wanted, _)| *wanted).fold(0, |flags, (_, flag)| flags | flag);
    // SAFETY: the call touches no memory of the program, and of what threads share (descriptors, the working directory)
    // only the working directory, which no value relies on.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings the loopback device of this process's network namespace up (netdevice(7)).
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all fields are integers, arrays of them, or pointers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads the request, which lives as long as the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the process into a mount namespace, given by an open `/proc/PID/ns/mnt` (setns(2)).
pub fn enter_mount_namespace(namespace: &impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// Moves the process into a user namespace, given by an open `/proc/PID/ns/user` (setns(2)). It gains all capabilities
/// there.
pub fn enter_user_namespace(namespace: &impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?)
}

/// Selects the PID namespace of future children, given by an open `/proc/PID/ns/pid` (setns(2)). This process stays
/// in its own.
pub fn enter_process_namespace(namespace: &impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))?)
}

/// Makes all mounts of a new mount namespace slaves (MS_SLAVE): mounts made in it are not visible outside, but an
/// unmount outside propagates into it, so that this process keeps no medium busy.
pub fn isolate_mounts() -> io::Result<()> {
    let how = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", how)?)
}

/// Creates a kernel file system (`proc`, `tmpfs`) as a detached mount (fsopen(2), fsmount(2)), always with nosuid.
pub fn new_file_system(kind: &str, settings: &[(&str, &str)], more: Restrictions) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in settings {
        match *value {
            "" => rustix::mount::fsconfig_set_flag(&context, *key)?,
            value => rustix::mount::fsconfig_set_string(&context, *key, value)?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    let bit = |on: bool, bit: MountAttrFlags| if on { bit } else { MountAttrFlags::empty() };
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | bit(more.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY)
        | bit(more.no_devices, MountAttrFlags::MOUNT_ATTR_NODEV)
        | bit(more.no_programs, MountAttrFlags::MOUNT_ATTR_NOEXEC);
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Restrictions of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restrictions {
    /// Read-only.
    pub read_only: bool,
    /// Device nodes do not work (nodev).
    pub no_devices: bool,
    /// Programs cannot be executed (noexec).
    pub no_programs: bool,
}

/// Clones the mount tree at a file or directory of this mount namespace, with all submounts, as a detached private
/// mount (open_tree(2)). Later mounts and unmounts at the source do not propagate into it.
pub fn copy_mount(source: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(source, "", flags)?;
    set_attributes(&copy, &Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() })?;
    Ok(copy)
}

/// Clones the mount that contains a directory, from that directory down and without submounts, as a detached private
/// mount: read-only and noatime.
pub fn quiet_copy(source: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(source, "", flags)?;
    let quiet = Attributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
        clear: libc::MOUNT_ATTR__ATIME,
        propagation: libc::MS_PRIVATE,
        ..Attributes::default()
    };
    set_attributes(&copy, &quiet)?;
    Ok(copy)
}

/// Makes a detached mount and its submounts read-only (mount_setattr(2)). All other flags stay: in a user namespace
/// restrictions of a mount are locked, and a remount would have to repeat them.
pub fn make_read_only(mount: &impl AsFd) -> io::Result<()> {
    set_attributes(mount, &Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() })
}

/// Attaches a detached mount at a directory or file, covering it (move_mount(2)).
pub fn attach(mount: &impl AsFd, at: &impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", at, "", flags)?)
}

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn set_attributes(mount: &impl AsFd, attributes: &Attributes) -> io::Result<()> {
    let empty: &CStr = c"";
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the descriptor is open for the length of the call, which reads the empty string and as many bytes of
    // `attributes`, plain numbers in the kernel's layout, as it is told there are.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            empty.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the mount with the root directory `root` the root of this process's mount namespace (pivot_root(2)),
/// detaches all other mounts in it, and changes to the new root directory.
pub fn enter_root(root: BorrowedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // Stacks the old root on top of the new one; the unmount then detaches the old root (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Sets the user, group and supplementary groups of the process, for all its threads. With `None`, and where
/// setgroups is denied, as in a user namespace with a single group ID, the supplementary groups stay unchanged.
pub fn become_user(uid: u32, gid: u32, groups: Option<&[u32]>) -> io::Result<()> {
    let done = groups.map_or(Ok(()), set_groups);
    done.or_else(|e| if groups_are_fixed() { Ok(()) } else { Err(e) })?;
    // SAFETY: neither call takes a pointer.
    let done = unsafe { libc::setresgid(gid, gid, gid) == 0 && libc::setresuid(uid, uid, uid) == 0 };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the supplementary groups of the process.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one live slice.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the user namespace denies setgroups(2).
fn groups_are_fixed() -> bool {
    std::fs::read("/proc/self/setgroups").is_ok_and(|said| said.starts_with(b"deny"))
}

/// Makes the kernel kill this process when the thread that forked it ends (PR_SET_PDEATHSIG). Has no effect if the
/// parent ended before; [`become_user`] and executing a set-ID program clear it.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}
