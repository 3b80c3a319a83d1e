//! Fault-injecting backings. [`FaultyBacking`] counts its system calls, fails or dies at a chosen one, and can discard
//! unsynced data. [`LimitedBacking`] simulates a file system that refuses whiteout devices, or these and extended
//! attributes.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use plyfs::backing::{Backing, Disk, Listed, Raw, Space};
use rustix::fs::{OFlags, RenameFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

/// The fault at the armed call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The call fails with this error; later calls work.
    Fail(Errno),
    /// The call and all later ones do nothing, as if the process had died.
    Die,
}

#[derive(Default)]
struct State {
    calls: usize,
    armed: Option<(usize, Fault)>,
    dead: bool,
    hit: Option<&'static str>,
    /// Files with unsynced data: a descriptor, and the content at the last sync.
    unsynced: HashMap<u64, (OwnedFd, Vec<u8>)>,
}

/// The calls that an upper directory's file system refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RefusedCalls {
    /// Nothing.
    #[default]
    Nothing,
    /// Devices 0:0 and RENAME_WHITEOUT, as kernel overlayfs does and a mount of plyfs.
    Devices,
    /// Those devices and every extended attribute.
    Attributes,
}

/// The control over a [`FaultyBacking`] that a file system owns.
#[derive(Clone, Default)]
pub struct FaultControl {
    state: Arc<Mutex<State>>,
    refused: RefusedCalls,
}

/// A file system that refuses some calls.
pub struct LimitedBacking(pub RefusedCalls);

/// A backing that injects faults.
pub struct FaultyBacking {
    control: FaultControl,
}

impl FaultControl {
    /// A control for backings over a file system that refuses some calls.
    pub fn with_refused(refused: RefusedCalls) -> FaultControl {
        FaultControl { refused, ..FaultControl::default() }
    }

    /// A backing under this control.
    pub fn backing(&self) -> Box<dyn Backing> {
        Box::new(FaultyBacking { control: self.clone() })
    }

    /// Arms the fault at the `number`th call from now on, counted from 0.
    pub fn arm(&self, number: usize, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.armed = Some((state.calls + number, fault));
        state.hit = None;
    }

    /// Disarms the fault; returns the name of the call that hit it, if one did.
    pub fn disarm(&self) -> Option<&'static str> {
        let mut state = self.state.lock().unwrap();
        state.armed = None;
        state.hit.take()
    }

    /// Marks all written data as synced.
    pub fn sync_all(&self) {
        self.state.lock().unwrap().unsynced.clear();
    }

    /// Simulates a power failure: unsynced data reverts to its old content, or to zeros where there was none.
    /// Directories and attributes are kept, since a journal keeps their order, and dying at an earlier call tests their
    /// earlier states.
    pub fn lose_unsynced(&self) {
        for (_, (fd, old)) in std::mem::take(&mut self.state.lock().unwrap().unsynced) {
            let size = Disk.stat(fd.as_fd()).unwrap().size as usize;
            let mut kept = old;
            kept.resize(size, 0);
            let mut done = 0;
            while done < kept.len() {
                done += Disk.write(fd.as_fd(), &kept[done..], done as u64).unwrap();
            }
        }
    }

    fn count_call(&self, call: &'static str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let number = state.calls;
        state.calls += 1;
        if state.dead {
            return Err(Errno::IO.into());
        }
        match state.armed {
            Some((at, fault)) if at == number => {
                state.hit = Some(call);
                match fault {
                    Fault::Fail(errno) => Err(errno.into()),
                    Fault::Die => {
                        state.dead = true;
                        Err(Errno::IO.into())
                    }
                }
            }
            _ => Ok(()),
        }
    }

    /// Saves a file's content before its first unsynced change.
    fn before_write(&self, fd: BorrowedFd) {
        let raw = Disk.stat(fd).unwrap();
        let mut state = self.state.lock().unwrap();
        if state.unsynced.contains_key(&raw.ino) {
            return;
        }
        let mut old = vec![0; raw.size as usize];
        let mut done = 0;
        while done < old.len() {
            match Disk.read(fd, &mut old[done..], done as u64).unwrap() {
                0 => break,
                more => done += more,
            }
        }
        state.unsynced.insert(raw.ino, (fd.try_clone_to_owned().unwrap(), old));
    }

    fn after_sync(&self, fd: BorrowedFd) {
        let raw = Disk.stat(fd).unwrap();
        self.state.lock().unwrap().unsynced.remove(&raw.ino);
    }
}

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> io::Result<$result> {
            self.control.count_call(stringify!($name))?;
            LimitedBacking(self.control.refused).$name($($arg),*)
        })*
    };
}

macro_rules! to_disk {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> io::Result<$result> {
            Disk.$name($($arg),*)
        })*
    };
}

impl LimitedBacking {
    fn needs_attributes(&self) -> io::Result<()> {
        if self.0 == RefusedCalls::Attributes { Err(Errno::OPNOTSUPP.into()) } else { Ok(()) }
    }
}

impl Backing for LimitedBacking {
    to_disk! {
        open(dir: BorrowedFd, name: &[u8], flags: OFlags, mode: u32) -> OwnedFd;
        stat(fd: BorrowedFd) -> Raw;
        stat_at(dir: BorrowedFd, name: &[u8]) -> Raw;
        list(dir: BorrowedFd) -> Vec<Listed>;
        mkdir(dir: BorrowedFd, name: &[u8], mode: u32) -> ();
        symlink(target: &[u8], dir: BorrowedFd, name: &[u8]) -> ();
        readlink(dir: BorrowedFd, name: &[u8]) -> Vec<u8>;
        link(fd: BorrowedFd, dir: BorrowedFd, name: &[u8]) -> ();
        unlink(dir: BorrowedFd, name: &[u8]) -> ();
        rmdir(dir: BorrowedFd, name: &[u8]) -> ();
        chmod(fd: BorrowedFd, mode: u32) -> ();
        chown(fd: BorrowedFd, uid: Option<u32>, gid: Option<u32>) -> ();
        utimens(fd: BorrowedFd, times: &Timestamps) -> ();
        read(fd: BorrowedFd, into: &mut [u8], offset: u64) -> usize;
        write(fd: BorrowedFd, bytes: &[u8], offset: u64) -> usize;
        copy(from: BorrowedFd, at: u64, to: BorrowedFd, to_at: u64, len: usize) -> usize;
        truncate(fd: BorrowedFd, size: u64) -> ();
        allocate(fd: BorrowedFd, mode: u32, offset: u64, len: u64) -> ();
        seek(fd: BorrowedFd, offset: u64, hole: bool) -> u64;
        sync(fd: BorrowedFd, data_only: bool) -> ();
        lock(fd: BorrowedFd) -> ();
        space(fd: BorrowedFd) -> Space;
        get_flags(fd: BorrowedFd) -> u32;
        set_flags(fd: BorrowedFd, flags: u32) -> ();
        get_attributes(fd: BorrowedFd) -> [u8; 28];
        set_attributes(fd: BorrowedFd, attributes: &[u8; 28]) -> ();
    }

    fn mknod(&self, dir: BorrowedFd, name: &[u8], mode: u32, rdev: u32) -> io::Result<()> {
        let whiteout = mode & 0o170_000 == 0o020_000 && rdev == 0;
        if whiteout && self.0 != RefusedCalls::Nothing {
            return Err(Errno::PERM.into());
        }
        Disk.mknod(dir, name, mode, rdev)
    }

    fn rename(&self, from: BorrowedFd, name: &[u8], to: BorrowedFd, new: &[u8], flags: RenameFlags) -> io::Result<()> {
        if flags.contains(RenameFlags::WHITEOUT) && self.0 != RefusedCalls::Nothing {
            return Err(Errno::INVAL.into());
        }
        Disk.rename(from, name, to, new, flags)
    }

    fn get_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if self.0 == RefusedCalls::Attributes { Ok(None) } else { Disk.get_xattr(fd, name) }
    }

    fn get_xattr_at(&self, dir: BorrowedFd, entry: &[u8], name: &CStr) -> io::Result<Option<Vec<u8>>> {
        if self.0 == RefusedCalls::Attributes { Ok(None) } else { Disk.get_xattr_at(dir, entry, name) }
    }

    fn set_xattr(&self, fd: BorrowedFd, name: &[u8], value: &[u8], flags: XattrFlags) -> io::Result<()> {
        self.needs_attributes()?;
        Disk.set_xattr(fd, name, value, flags)
    }

    fn remove_xattr(&self, fd: BorrowedFd, name: &[u8]) -> io::Result<()> {
        self.needs_attributes()?;
        Disk.remove_xattr(fd, name)
    }

    fn list_xattrs(&self, fd: BorrowedFd) -> io::Result<Vec<u8>> {
        if self.0 == RefusedCalls::Attributes { Ok(Vec::new()) } else { Disk.list_xattrs(fd) }
    }

    fn list_xattrs_at(&self, dir: BorrowedFd, entry: &[u8]) -> io::Result<Vec<u8>> {
        if self.0 == RefusedCalls::Attributes { Ok(Vec::new()) } else { Disk.list_xattrs_at(dir, entry) }
    }
}

impl Backing for FaultyBacking {
    pass! {
        open(dir: BorrowedFd, name: &[u8], flags: OFlags, mode: u32) -> OwnedFd;
        stat(fd: BorrowedFd) -> Raw;
        stat_at(dir: BorrowedFd, name: &[u8]) -> Raw;
        list(dir: BorrowedFd) -> Vec<Listed>;
        mkdir(dir: BorrowedFd, name: &[u8], mode: u32) -> ();
        mknod(dir: BorrowedFd, name: &[u8], mode: u32, rdev: u32) -> ();
        symlink(target: &[u8], dir: BorrowedFd, name: &[u8]) -> ();
        readlink(dir: BorrowedFd, name: &[u8]) -> Vec<u8>;
        link(fd: BorrowedFd, dir: BorrowedFd, name: &[u8]) -> ();
        unlink(dir: BorrowedFd, name: &[u8]) -> ();
        rmdir(dir: BorrowedFd, name: &[u8]) -> ();
        rename(from: BorrowedFd, name: &[u8], to: BorrowedFd, new: &[u8], flags: RenameFlags) -> ();
        chmod(fd: BorrowedFd, mode: u32) -> ();
        chown(fd: BorrowedFd, uid: Option<u32>, gid: Option<u32>) -> ();
        utimens(fd: BorrowedFd, times: &Timestamps) -> ();
        get_xattr(fd: BorrowedFd, name: &[u8]) -> Option<Vec<u8>>;
        get_xattr_at(dir: BorrowedFd, entry: &[u8], name: &CStr) -> Option<Vec<u8>>;
        set_xattr(fd: BorrowedFd, name: &[u8], value: &[u8], flags: XattrFlags) -> ();
        remove_xattr(fd: BorrowedFd, name: &[u8]) -> ();
        list_xattrs(fd: BorrowedFd) -> Vec<u8>;
        list_xattrs_at(dir: BorrowedFd, entry: &[u8]) -> Vec<u8>;
        read(fd: BorrowedFd, into: &mut [u8], offset: u64) -> usize;
        seek(fd: BorrowedFd, offset: u64, hole: bool) -> u64;
        lock(fd: BorrowedFd) -> ();
        space(fd: BorrowedFd) -> Space;
        get_flags(fd: BorrowedFd) -> u32;
        set_flags(fd: BorrowedFd, flags: u32) -> ();
        get_attributes(fd: BorrowedFd) -> [u8; 28];
        set_attributes(fd: BorrowedFd, attributes: &[u8; 28]) -> ();
    }

    fn write(&self, fd: BorrowedFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.control.count_call("write")?;
        self.control.before_write(fd);
        Disk.write(fd, bytes, offset)
    }

    fn copy(&self, from: BorrowedFd, at: u64, to: BorrowedFd, to_at: u64, len: usize) -> io::Result<usize> {
        self.control.count_call("copy")?;
        self.control.before_write(to);
        Disk.copy(from, at, to, to_at, len)
    }

    fn truncate(&self, fd: BorrowedFd, size: u64) -> io::Result<()> {
        self.control.count_call("truncate")?;
        Disk.truncate(fd, size)
    }

    fn allocate(&self, fd: BorrowedFd, mode: u32, offset: u64, len: u64) -> io::Result<()> {
        self.control.count_call("allocate")?;
        Disk.allocate(fd, mode, offset, len)
    }

    fn sync(&self, fd: BorrowedFd, data_only: bool) -> io::Result<()> {
        self.control.count_call("sync")?;
        self.control.after_sync(fd);
        Disk.sync(fd, data_only)
    }
}
