//! Image operations: pull, push, import, commit, save, open, remove and check.
//!
//! A [`source::Source`] plans images (documents verified, layers listed) and yields their layers' streams; [`pull`]
//! runs each missing layer once through `pipeline` and publishes it; [`import`] does so with a plain tar, [`commit`]
//! with the changes of an upper directory; [`push`] and [`save`] write images to a registry or an archive, [`manifest_list`] image indexes; [`open`]
//! gives a mount the merged tree and the tars; [`remove`] follows Docker's rules; [`fsck`] verifies the store, rebuilds
//! indexes and trees, and has a damaged catalog restored (`restore`).

pub mod commit;
pub mod deflate;
mod erofs;
mod free_space;
pub mod fsck;
pub mod import;
mod inflate;
mod layer_workers;
pub mod manifest;
pub mod manifest_list;
pub mod open;
mod pipeline;
pub mod platform;
pub mod progress;
pub mod pull;
pub mod push;
pub mod remove;
mod restore;
pub mod save;
pub mod source;
pub mod verify;

pub use open::{
    ErofsImage, OpenTree, merge_layers, open_erofs, open_layers, open_native_upper, open_single, open_tree, open_upper,
};
pub use platform::Platform;

use crate::digest::{Digest, VerifyError};
use crate::erofs::WriteError;
use crate::store::Formats;
use crate::{dockerfile, fs, layer, reference, registry, store, sys, tree, upper};
use std::io;
use std::path::PathBuf;

/// Versions of the formats in which this plyfs writes merged trees.
pub const FORMATS: Formats = Formats { index: layer::FORMAT, erofs: crate::erofs::FORMAT };

/// A fault of external data, without its origin.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A manifest, index, config or archive is invalid.
    #[error("{0}")]
    Document(String),
    /// A blob does not match its descriptor.
    #[error("blob {digest} {cause}")]
    Blob {
        /// The descriptor's digest.
        digest: Digest,
        /// The difference.
        cause: VerifyError,
    },
    /// Reading failed.
    #[error("cannot read {what}: {}", sys::describe(cause))]
    Read {
        /// A path or a description of what was read.
        what: String,
        /// The system's error.
        cause: io::Error,
    },
    /// A compressed stream is damaged or truncated.
    #[error("bad {kind} stream: {cause}")]
    Inflate {
        /// `gzip`, `zstd`, `xz` or `bzip2`.
        kind: &'static str,
        /// The decompressor's error.
        cause: io::Error,
    },
    /// The uncompressed layer does not have the DiffID of the config.
    #[error("its uncompressed digest is {got}, the image's config has {want}")]
    DiffId {
        /// DiffID in the config.
        want: Digest,
        /// Digest of the stream.
        got: Digest,
    },
    /// The tar is invalid; the message names the entry.
    #[error("{0}")]
    Tar(layer::LayerError),
    /// Writing to the store failed.
    #[error("cannot write {}: {}", path.display(), sys::describe(cause))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// A registry request failed.
    #[error(transparent)]
    Registry(registry::Error),
    /// Another layer failed first.
    #[error("cancelled, because another layer failed")]
    Stopped,
}

impl Problem {
    /// Whether the content is at fault, not reading or storing it.
    pub(crate) fn is_content(&self) -> bool {
        match self {
            Problem::Blob { .. } | Problem::Inflate { .. } | Problem::DiffId { .. } | Problem::Tar(_) => true,
            Problem::Document(_) | Problem::Read { .. } | Problem::Write { .. } => false,
            Problem::Registry(_) | Problem::Stopped => false,
        }
    }

    /// Makes the error of reading `what`; unwraps a [`VerifyError`] or a registry's error inside `cause`.
    pub(crate) fn read(what: impl Into<String>, digest: Option<&Digest>, cause: io::Error) -> Problem {
        let cause = match cause.downcast::<registry::Error>() {
            Ok(error) => return Problem::Registry(error),
            Err(cause) => cause,
        };
        match (cause.downcast::<VerifyError>(), digest) {
            (Ok(cause), Some(digest)) => Problem::Blob { digest: digest.clone(), cause },
            (Ok(cause), None) => Problem::Document(cause.to_string()),
            (Err(cause), _) => Problem::Read { what: what.into(), cause },
        }
    }
}

/// Decompresses a stream by gzip, zstd, xz or bzip2, or passes a plain one through.
pub fn plain<R: io::Read>(stream: R) -> std::result::Result<impl io::Read, Problem> {
    inflate::Inflate::new(stream, |cause| Problem::read("the stream", None, cause))
}

/// Returns the platform in an image's config.
pub fn platform_of(store: &store::Store, image: &store::Image) -> Result<Platform> {
    let bytes = store.blob(&image.id, manifest::DOCUMENT_CAP)?;
    let platform = serde_json::from_slice::<Platform>(&bytes);
    platform.map_err(|_| Error::Broken { image: image.title(), what: "its config names no platform".into() })
}

/// Whether a file is a tar, plain or compressed: its first header is one.
pub fn is_archive(file: std::fs::File) -> bool {
    let Ok(mut stream) = plain(file) else { return false };
    let mut header = tar::Header::new_old();
    let is_whole = io::Read::read_exact(&mut stream, header.as_mut_bytes()).is_ok();
    let stated = header.cksum().ok();
    header.set_cksum();
    is_whole && stated.is_some_and(|sum| sum > 0) && header.cksum().ok() == stated
}

/// Error of an image operation. Each prints as one complete line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A registry request failed.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A fault of the source as a whole.
    #[error("{origin}: {problem}")]
    Source {
        /// The source as the user named it.
        origin: String,
        /// The fault.
        problem: Box<Problem>,
    },
    /// A fault of one layer.
    #[error("{origin}: layer {position} of {count} ({digest}): {problem}")]
    Layer {
        /// The source as the user named it.
        origin: String,
        /// Position of the layer, counted from 1 at the bottom.
        position: usize,
        /// Number of the image's layers.
        count: usize,
        /// Short digest, as shown to the user.
        digest: String,
        /// The fault.
        problem: Box<Problem>,
    },
    /// The store's file system has too little free space.
    #[error(
        "{origin}: not enough space: at least {}MB more are needed on the file system of {}, {}MB are free; make room \
         (`plyfs image prune`) or use another store (--root)",
        need.div_ceil(1_000_000), root.display(), free / 1_000_000
    )]
    NoSpace {
        /// The source as the user named it.
        origin: String,
        /// The store's root folder.
        root: PathBuf,
        /// Bytes needed at least.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// The layers cannot be merged.
    #[error("{origin}: {problem}")]
    Merge {
        /// The source or the image.
        origin: String,
        /// The fault; the message names layer and entry.
        problem: Box<tree::MergeError>,
    },
    /// EROFS cannot hold the image.
    #[error("image {image}: {why}")]
    NoErofs {
        /// The image's name.
        image: String,
        /// What EROFS cannot hold.
        why: WriteError,
    },
    /// A stored image has lost data that must be fetched again.
    #[error("image {image} is damaged: {what}; pull it again")]
    Broken {
        /// The image's name.
        image: String,
        /// What is missing or damaged.
        what: String,
    },
    /// An invalid reference.
    #[error("{0}")]
    Reference(#[from] reference::ParseReferenceError),
    /// A conflict by Docker's rules.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Writing the output failed.
    #[error("cannot write the archive: {0}")]
    Output(io::Error),
    /// An upper directory cannot be opened.
    #[error(transparent)]
    Upper(#[from] upper::OpenError),
    /// The changes of a union cannot be determined.
    #[error("cannot determine the changes: {0}")]
    Changes(fs::FsError),
    /// Changes cannot be written as a layer.
    #[error(transparent)]
    NewLayer(#[from] fs::ExportError),
    /// An invalid Dockerfile instruction for a config.
    #[error(transparent)]
    Change(#[from] dockerfile::BadChange),
    /// An invalid combination of arguments.
    #[error("{0}")]
    Usage(String),
}

/// Result of an image operation.
pub type Result<T> = std::result::Result<T, Error>;
