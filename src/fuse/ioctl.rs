//! ioctl requests: file attributes of chattr(1), lsattr(1) and project quotas.

use crate::fs::{Fs, FsError};

// ioctl numbers of linux/fs.h.
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// Whether an ioctl changes the inode.
pub(super) fn changes(command: u32) -> bool {
    matches!(command, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR)
}

/// Handles the ioctls of chattr(1), lsattr(1) and project quotas.
pub(super) fn handle(fs: &Fs, ino: u64, command: u32, given: &[u8]) -> Result<Vec<u8>, FsError> {
    match command {
        FS_IOC_GETFLAGS => Ok(fs.get_flags(ino)?.to_ne_bytes().to_vec()),
        FS_IOC_SETFLAGS => {
            let flags = given.first_chunk().ok_or(FsError::Invalid)?;
            fs.set_flags(ino, u32::from_ne_bytes(*flags)).map(|()| Vec::new())
        }
        FS_IOC_FSGETXATTR => Ok(fs.get_attributes(ino)?.to_vec()),
        FS_IOC_FSSETXATTR => {
            let attributes = given.first_chunk().ok_or(FsError::Invalid)?;
            fs.set_attributes(ino, attributes).map(|()| Vec::new())
        }
        _ => Err(FsError::NoControl),
    }
}
