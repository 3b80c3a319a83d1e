//! Namespaces and the mounts in them. Mounts are made detached and put in place by descriptors, so that no name is
//! resolved a second time by whoever may have changed it.
//!
//! A mount can only be copied within its own mount namespace: what is to be bound is opened after [`unshare`].

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::LinkNameSpaceType;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Which namespaces of its own a process gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "each is the namespace of its name, see namespaces(7)")]
pub struct Namespaces {
    pub user: bool,
    pub mount: bool,
    /// For its children; the first of them is process 1 there.
    pub pid: bool,
    pub network: bool,
    pub uts: bool,
    pub ipc: bool,
}

/// Takes the process out of the namespaces that it shares with others. In a new user namespace it has all capabilities,
/// and nobody's number until its maps are written.
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

/// Moves the process into the mount namespace that `namespace`, an open `/proc/PID/ns/mnt`, stands for.
pub fn enter_mount_namespace(namespace: &impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// Moves the process into the user namespace that `namespace`, an open `/proc/PID/ns/user`, stands for. It has all
/// capabilities there.
pub fn enter_user_namespace(namespace: &impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?)
}

/// Has the children of this process begin in the process namespace that `namespace`, an open `/proc/PID/ns/pid`, stands for.
pub fn enter_process_namespace(namespace: &impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))?)
}

/// Cuts a new mount namespace off: nothing that is mounted in it is seen outside. What is unmounted outside goes here
/// too, so that this process keeps no medium busy.
pub fn isolate_mounts() -> io::Result<()> {
    let how = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", how)?)
}

/// Makes a file system of the kernel's, `proc` or `tmpfs`, that is not mounted anywhere yet. No set-id bits work in it.
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

/// What a mount does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restrictions {
    /// Nothing in it can be changed.
    pub read_only: bool,
    /// Device nodes do not work.
    pub no_devices: bool,
    /// No program can be run.
    pub no_programs: bool,
}

/// Copies what is mounted at a file or directory of this mount namespace, with all that is mounted below, as a mount that
/// is nowhere yet. What is mounted or unmounted at the source later is not seen in it.
pub fn copy_mount(source: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(source, "", flags)?;
    set_attributes(&copy, &Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() })?;
    Ok(copy)
}

/// Copies the one mount that a directory is on, from that directory down, as a mount that is nowhere yet: read-only, without
/// access times, and without what is mounted over it.
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

/// Makes a copied mount and all below it read-only. Everything else stays: in a user namespace what a mount forbids
/// already may not be allowed again, so a remount would have to know it.
pub fn make_read_only(mount: &impl AsFd) -> io::Result<()> {
    set_attributes(mount, &Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() })
}

/// Puts a mount that is nowhere yet at a directory or file, over what is there.
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

/// Makes the mount whose root `root` is the root of this process's mount namespace, and lets go of all other mounts in
/// it. The working directory is the new root then.
pub fn enter_root(root: BorrowedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root lies on the new one after this, and goes from there.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Whose rights the process has from now on, with all its threads. Supplementary groups stay as they are if none are
/// given, and where they may not be set, as in a user namespace without group numbers of its own.
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

fn groups_are_fixed() -> bool {
    std::fs::read("/proc/self/setgroups").is_ok_and(|said| said.starts_with(b"deny"))
}

/// Has the kernel kill this process when the thread that forked it ends. A parent that ended before is not noticed, and
/// [`become_user`] and a set-id program undo it.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}
