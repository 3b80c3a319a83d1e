//! Errors of `cp`.

use crate::image;
use crate::layer::LayerError;
use crate::name::show;
use crate::sys;
use std::io;

/// Why a copy failed. Messages are one line, with Docker's text where Docker has the same error.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The path does not exist in the container.
    #[error("Could not find the file {} in container {container}", show(.path))]
    NotInContainer {
        /// The path as looked up.
        path: Vec<u8>,
        /// The container's name or ID as given by the user.
        container: String,
    },
    /// The source on the host cannot be opened.
    #[error("lstat {}: {}", show(.path), sys::describe(.cause))]
    NoSource {
        /// The path.
        path: Vec<u8>,
        /// Why.
        cause: io::Error,
    },
    /// The destination's parent directory does not exist.
    #[error("invalid output path: directory \"{}\" does not exist", show(.0))]
    NoParent(Vec<u8>),
    /// The destination is a device.
    #[error("{0} must be a directory or a regular file: got a device")]
    IsDevice(String),
    /// The destination of a tar is not a directory.
    #[error("{0} must be a directory")]
    MustBeDirectory(String),
    /// The source is a directory and the destination a file.
    #[error("cannot copy directory")]
    DirectoryToFile,
    /// A destination that ends with a slash does not exist.
    #[error("no such directory")]
    NoSuchDirectory,
    /// A path component, or a path that ends with a slash, is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory would replace another object, or the other way round.
    #[error("cannot overwrite {} \"{}\" with {}", kinds(*.directory).0, show(.path), kinds(*.directory).1)]
    InTheWay {
        /// The path in the destination.
        path: Vec<u8>,
        /// Whether the existing object is the directory.
        directory: bool,
    },
    /// A tar entry has `..` in its path.
    #[error("entry `{}` of the tar is outside the directory", show(.0))]
    LeadsOut(Vec<u8>),
    /// The tar cannot be decompressed.
    #[error("the tar {0}")]
    Compressed(#[from] image::Problem),
    /// The tar is damaged.
    #[error("{0}")]
    Tar(#[from] LayerError),
    /// The tar cannot be written: the pipe's reader has exited, or the disk is full.
    #[error("cannot write the tar: {}", sys::describe(.0))]
    Output(io::Error),
    /// A system call failed.
    #[error("cannot {action} {}: {}", show(.path), sys::describe(.cause))]
    Failed {
        /// The attempted action.
        action: &'static str,
        /// The object's path.
        path: Vec<u8>,
        /// The system's error.
        cause: io::Error,
    },
}

fn kinds(directory: bool) -> (&'static str, &'static str) {
    if directory { ("directory", "non-directory") } else { ("non-directory", "directory") }
}

/// The result of a copy.
pub type Result<T> = std::result::Result<T, CopyError>;

pub(super) fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_vec();
    move |cause| CopyError::Failed { action, path, cause }
}
