//! Errors of file system operations, and their errno.

use super::Ino;
use crate::layer::IndexError;
use std::io;

/// An error of a file system operation.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// ENOENT: the directory has no such name.
    #[error("no such file or directory")]
    NotFound,
    /// ENAMETOOLONG: the name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// ENOTDIR: not a directory.
    #[error("not a directory")]
    NotDir,
    /// EISDIR: a directory where a file is required.
    #[error("is a directory")]
    IsDir,
    /// EINVAL: readlink of something else than a symbolic link, or read of an inode without data.
    #[error("the operation is invalid for this file type")]
    WrongType,
    /// EEXIST: the name exists.
    #[error("the name exists already")]
    Exists,
    /// ENOTEMPTY: the directory is not empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// EINVAL: a directory cannot be moved below itself, and `.` cannot be removed.
    #[error("invalid combination of names")]
    Invalid,
    /// EPERM: no caller may do this.
    #[error("the operation is not permitted")]
    NotPermitted,
    /// EOPNOTSUPP: the operation is not supported here.
    #[error("the operation is not supported")]
    Unsupported,
    /// EXDEV: a move that would need a copy of a directory.
    #[error("a directory of the lower layers cannot be renamed")]
    OtherDevice,
    /// ENOTTY: no such ioctl.
    #[error("no such ioctl")]
    NoControl,
    /// ENODATA: no extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// ERANGE: the caller's buffer is too small for the attribute.
    #[error("the buffer is too small")]
    Range,
    /// ENXIO: no data or no hole after the offset.
    #[error("the offset lies beyond the file's data")]
    NoData,
    /// EROFS: the file system is mounted read-only.
    #[error("the file system is read-only")]
    ReadOnly,
    /// ESTALE: no inode has the number.
    #[error("no inode has the number {0}")]
    Stale(Ino),
    /// EIO: the index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// EIO: structures that refer to each other do not match.
    #[error("the file system is damaged: {0}")]
    Damaged(&'static str),
    /// The error of a system call on the layers or on the upper directory.
    #[error("{}", crate::sys::describe(.0))]
    Io(#[from] io::Error),
}

impl FsError {
    /// Returns the errno that the caller receives.
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
            // A fault of the disk: EIO. Local file systems report EUCLEAN for their own, but few programs know it.
            FsError::Index(_) | FsError::Damaged(_) => libc::EIO,
            FsError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// Whether the error means that the object does not exist (any more).
    pub fn is_absence(&self) -> bool {
        match self {
            FsError::NotFound | FsError::Stale(_) => true,
            FsError::Io(e) => e.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether the store is damaged, so that the error belongs in the log.
    pub fn is_damage(&self) -> bool {
        match self {
            FsError::Index(_) | FsError::Damaged(_) => true,
            FsError::Io(_) => self.errno() == libc::EIO,
            _ => false,
        }
    }
}
