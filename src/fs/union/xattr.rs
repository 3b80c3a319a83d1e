//! Extended attributes, inode flags and `struct fsxattr` of the union's inodes.

use super::Union;
use crate::backing::{Handle, acl};
use crate::fs::{FsError, Ino};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::borrow::Cow;
use std::os::fd::AsFd;
use std::sync::Arc;

/// FS_APPEND_FL and FS_XFLAG_APPEND (linux/fs.h): an append-only file. It is refused: the kernel writes back whole
/// cached pages, which the backing file system would then reject after the caller's write has succeeded.
const APPEND_FLAG: u32 = 0x20;
const APPEND_ATTRIBUTE: u32 = 0x10;
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Union {
    /// Opens an inode if it is in the upper directory.
    fn upper_handle(&self, ino: Ino) -> Result<Option<Handle>, FsError> {
        let up = self.table().get(ino).is_some_and(|entry| entry.raw.is_some());
        if up { self.handle(ino).map(Some) } else { Ok(None) }
    }

    /// Returns the value of an inode's extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, FsError> {
        let Some(handle) = self.upper_handle(ino)? else { return self.lower.getxattr(ino, name) };
        // The kernel asks for security.capability before the first write of each file and at each chown.
        if name == CAPABILITY && !self.may_be_capable(ino) {
            return Err(FsError::NoAttribute);
        }
        let stored = self.upper.dialect().stored(name);
        let value = self.upper.backing().get_xattr(handle.as_fd(), &stored)?.ok_or(FsError::NoAttribute)?;
        if name == acl::ACCESS && self.upper.overrides() {
            // The ACL on disk follows the mode on disk, which may differ from the mode that the union reports.
            let mode = self.upper.object_without_times(handle.as_fd())?.mode;
            return Ok(Cow::Owned(acl::with_mode(value, mode)));
        }
        Ok(Cow::Owned(value))
    }

    /// Returns the names of an inode's extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        let Some(handle) = self.upper_handle(ino)? else {
            return self.lower.xattr_names(ino);
        };
        let stored = self.upper.backing().list_xattrs(handle.as_fd())?;
        let names = stored.split(|b| *b == 0).filter(|name| !name.is_empty());
        Ok(names.filter_map(|name| self.upper.dialect().shown(name)).collect())
    }

    /// Sets an extended attribute; `flags` are setxattr(2)'s.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<(), FsError> {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        // Checked before copy-up, so that a failing call copies nothing.
        if !flags.is_empty() {
            match (self.getxattr(ino, name), flags.contains(XattrFlags::CREATE)) {
                (Ok(_), true) => return Err(FsError::Exists),
                (Err(FsError::NoAttribute), false) => return Err(FsError::NoAttribute),
                (Err(FsError::NoAttribute) | Ok(_), _) => {}
                (Err(e), _) => return Err(e),
            }
        }
        self.copy_up(ino)?;
        let handle = self.handle(ino)?;
        let locks = self.locks_of(ino)?;
        let _alone = (name == CAPABILITY).then(|| locks.privileges.write());
        if name == CAPABILITY
            && let Some(entry) = self.table_mut().get_mut(ino)
        {
            entry.capable = true;
        }
        if name == acl::ACCESS && self.upper.overrides() {
            self.set_access_acl(&handle, value, flags)?;
        } else {
            self.upper.set_xattr(handle.as_fd(), name, value, flags)?;
        }
        self.forget_default_acl(ino, name);
        Ok(())
    }

    /// Sets the access ACL where the mode may be kept in an attribute. The backing file system updates the mode on disk
    /// from the ACL; the mode in the attribute must follow.
    fn set_access_acl(&self, handle: &Handle, value: &[u8], flags: XattrFlags) -> Result<(), FsError> {
        let before = self.upper.object_without_times(handle.as_fd())?;
        let mode = acl::mode(value, before.mode).ok_or(FsError::Invalid)?;
        self.upper.set_xattr(handle.as_fd(), acl::ACCESS, value, flags)?;
        if acl::is_minimal(value) {
            // The mode expresses the whole ACL; the backing file system may have left the attribute out by itself.
            match self.upper.backing().remove_xattr(handle.as_fd(), &self.upper.dialect().stored(acl::ACCESS)) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NODATA) => {}
                removed => removed?,
            }
        }
        Ok(self.upper.set_owner_and_mode(handle.as_fd(), &before, (None, None), Some(mode))?)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.getxattr(ino, name)?;
        self.copy_up(ino)?;
        let handle = self.handle(ino)?;
        self.upper.backing().remove_xattr(handle.as_fd(), &self.upper.dialect().stored(name))?;
        self.forget_default_acl(ino, name);
        Ok(())
    }

    /// Whether a file may have capabilities. The caller holds a lock that keeps others from setting them.
    pub(super) fn may_be_capable(&self, ino: Ino) -> bool {
        self.table().get(ino).is_some_and(|entry| entry.capable)
    }

    /// Returns a file's capabilities, to be restored after a write. The kernel asks for their removal before a process
    /// writes; the backing file system would remove them at every write, also at a late write-back of a mapping, which
    /// must not.
    pub(super) fn capabilities(&self, ino: Ino, handle: &Handle) -> Result<Option<Vec<u8>>, FsError> {
        if !self.may_be_capable(ino) {
            return Ok(None);
        }
        let found = self.upper.backing().get_xattr(handle.as_fd(), &self.upper.dialect().stored(CAPABILITY))?;
        if found.is_none()
            && let Some(entry) = self.table_mut().get_mut(ino)
        {
            entry.capable = false;
        }
        Ok(found)
    }

    /// Restores the capabilities that [`Union::capabilities`] returned.
    pub(super) fn restore_capabilities(&self, handle: &Handle, found: Option<Vec<u8>>) -> Result<(), FsError> {
        match found {
            Some(value) => Ok(self.upper.set_xattr(handle.as_fd(), CAPABILITY, &value, XattrFlags::empty())?),
            None => Ok(()),
        }
    }

    fn forget_default_acl(&self, ino: Ino, name: &[u8]) {
        if name == acl::DEFAULT
            && let Some(dir) = self.table_mut().dir_mut(ino)
        {
            dir.default_acl = None;
        }
    }

    /// Returns a directory's default ACL, cached because each creation in the directory reads it.
    pub(super) fn default_acl(&self, dir: Ino) -> Result<Option<Arc<[u8]>>, FsError> {
        if let Some(known) = self.table().get(dir).and_then(|entry| entry.dir.as_ref()?.default_acl.clone()) {
            return Ok(known);
        }
        let found = match self.getxattr(dir, acl::DEFAULT) {
            Ok(value) => Some(Arc::from(&*value)),
            Err(FsError::NoAttribute) => None,
            Err(e) => return Err(e),
        };
        if let Some(here) = self.table_mut().dir_mut(dir) {
            here.default_acl = Some(found.clone());
        }
        Ok(found)
    }

    /// Returns a file's inode flags as `lsattr` shows them (FS_IOC_GETFLAGS); files of the image have none.
    pub fn get_flags(&self, ino: Ino) -> Result<u32, FsError> {
        match self.upper_handle(ino)? {
            Some(handle) => Ok(self.upper.backing().get_flags(handle.as_fd())?),
            None => Ok(0),
        }
    }

    /// Sets a file's inode flags (FS_IOC_SETFLAGS).
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<(), FsError> {
        if flags & APPEND_FLAG != 0 {
            return Err(FsError::Unsupported);
        }
        self.copy_up(ino)?;
        self.upper.backing().set_flags(self.handle(ino)?.as_fd(), flags)?;
        // A cached descriptor keeps the access rights from when it was opened, so it is dropped.
        self.upper.handles().take(ino);
        Ok(())
    }

    /// Returns a file's `struct fsxattr`, as bytes (FS_IOC_FSGETXATTR).
    pub fn get_attributes(&self, ino: Ino) -> Result<[u8; 28], FsError> {
        match self.upper_handle(ino)? {
            Some(handle) => Ok(self.upper.backing().get_attributes(handle.as_fd())?),
            None => Ok([0; 28]),
        }
    }

    /// Sets a file's `struct fsxattr` (FS_IOC_FSSETXATTR).
    pub fn set_attributes(&self, ino: Ino, attributes: &[u8; 28]) -> Result<(), FsError> {
        let flags = u32::from_ne_bytes([attributes[0], attributes[1], attributes[2], attributes[3]]);
        if flags & APPEND_ATTRIBUTE != 0 {
            return Err(FsError::Unsupported);
        }
        self.copy_up(ino)?;
        self.upper.backing().set_attributes(self.handle(ino)?.as_fd(), attributes)?;
        self.upper.handles().take(ino);
        Ok(())
    }
}
