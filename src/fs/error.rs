//! What can go wrong in an operation, and the one place where an errno is chosen for it.

use super::Ino;
use crate::layer::IndexError;
use std::io;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// No such name in the directory.
    #[error("no such file or directory")]
    NotFound,
    /// The name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// Not a directory.
    #[error("not a directory")]
    NotDir,
    /// A directory where a file is needed.
    #[error("is a directory")]
    IsDir,
    /// readlink of something else, or read of something without data.
    #[error("the operation does not suit the file's type")]
    WrongType,
    /// The name is there already.
    #[error("the name exists already")]
    Exists,
    /// The directory is not empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory cannot lie in itself, `.` cannot be removed.
    #[error("the names make no sense together")]
    Invalid,
    /// Nobody may do that.
    #[error("the operation is not permitted")]
    NotPermitted,
    /// The operation cannot be done here.
    #[error("the operation is not supported")]
    Unsupported,
    /// What is to be moved would have to be copied.
    #[error("a directory of the lower layers cannot be moved")]
    OtherDevice,
    /// No such device control.
    #[error("no such control")]
    NoControl,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small for the attribute.
    #[error("the buffer is too small")]
    Range,
    /// No data or no hole behind the offset.
    #[error("the offset lies beyond the file's data")]
    NoData,
    /// The image is mounted read-only.
    #[error("the file system is read-only")]
    ReadOnly,
    /// An inode number that no lookup gave.
    #[error("no inode has the number {0}")]
    Stale(Ino),
    /// The index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// What belongs together does not.
    #[error("damage: {0}")]
    Damaged(&'static str),
    /// What the file system of the layers or of the upper directory said.
    #[error("{}", crate::sys::describe(.0))]
    Io(#[from] io::Error),
}

impl FsError {
    /// The errno that the caller sees.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::NotFound => libc::ENOENT,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::NotDir => libc::ENOTDIR,
            FsError::IsDir => libc::EISDIR,
            FsError::WrongType => libc::EINVAL,
            FsError::Exists => libc::EEXIST,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::Invalid => libc::EINVAL,
            FsError::NotPermitted => libc::EPERM,
            FsError::Unsupported => libc::EOPNOTSUPP,
            FsError::OtherDevice => libc::EXDEV,
            FsError::NoControl => libc::ENOTTY,
            FsError::NoAttribute => libc::ENODATA,
            FsError::Range => libc::ERANGE,
            FsError::NoData => libc::ENXIO,
            FsError::ReadOnly => libc::EROFS,
            FsError::Stale(_) => libc::ESTALE,
            // Damage is the disk's; EUCLEAN is what local file systems answer for their own, but few programs know it.
            FsError::Index(_) | FsError::Damaged(_) => libc::EIO,
            FsError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// Whether something is not there, or not any more.
    pub fn is_absence(&self) -> bool {
        match self {
            FsError::NotFound | FsError::Stale(_) => true,
            FsError::Io(e) => e.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether the fault is the store's, so that it belongs in the log.
    pub fn is_damage(&self) -> bool {
        match self {
            FsError::Index(_) | FsError::Damaged(_) => true,
            FsError::Io(_) => self.errno() == libc::EIO,
            _ => false,
        }
    }
}
