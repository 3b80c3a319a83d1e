//! The glue between sources, the store, layer indexes and the merged tree: bring an image in, open it, remove it, check
//! the store.
//!
//! A [`source::Source`] plans images (documents verified, layers listed) and yields their layers' streams;
//! [`pull`] runs each missing layer once through `pipeline` and publishes it; [`import`] does so with a tar that is no image
//! yet, [`commit`] with the changes of an upper directory; [`push`] and [`save`] let images out again; [`open`] hands a
//! mount the merged tree and the tars; [`remove`] follows Docker's rules; [`fsck`] checks everything that can be made again
//! or must be fetched again, and has the list of images restored (`restore`).

pub mod change;
pub mod commit;
pub mod deflate;
pub mod fsck;
pub mod import;
mod inflate;
mod jobs;
pub mod manifest;
pub mod open;
mod pipeline;
pub mod platform;
pub mod pull;
pub mod push;
pub mod remove;
mod restore;
pub mod save;
pub mod source;
mod space;
pub mod verify;

pub use open::{OpenTree, open_tree, open_upper};
pub use platform::Platform;

use crate::digest::{Digest, VerifyError};
use crate::{fs, layer, reference, registry, store, sys, tree, upper};
use std::io;
use std::path::PathBuf;

/// What is wrong with something from outside, without saying where.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A manifest, index, config or archive breaks its rules.
    #[error("{0}")]
    Document(String),
    /// A blob is not what its descriptor says.
    #[error("blob {digest} {cause}")]
    Blob {
        /// The descriptor's digest.
        digest: Digest,
        /// How it differs.
        cause: VerifyError,
    },
    /// Reading failed.
    #[error("cannot read {what}: {}", sys::describe(cause))]
    Read {
        /// A path, or what else was read.
        what: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A compressed stream is damaged or cut short.
    #[error("bad {kind} stream: {cause}")]
    Inflate {
        /// `gzip`, `zstd`, `xz` or `bzip2`.
        kind: &'static str,
        /// What the decompressor said.
        cause: io::Error,
    },
    /// The uncompressed layer is not the one that the config names.
    #[error("uncompressed it has digest {got}, the image's config says {want}")]
    DiffId {
        /// The config's.
        want: Digest,
        /// The stream's.
        got: Digest,
    },
    /// The tar breaks the rules; the message names the entry.
    #[error("{0}")]
    Tar(layer::LayerError),
    /// Writing to the store failed.
    #[error("cannot write {}: {}", path.display(), sys::describe(cause))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A registry did not give it.
    #[error(transparent)]
    Registry(registry::Error),
    /// Another layer failed first.
    #[error("stopped, as another layer failed")]
    Stopped,
}

impl Problem {
    /// Whether it lies in the bytes themselves, rather than in getting them or in putting them away.
    pub(crate) fn is_content(&self) -> bool {
        match self {
            Problem::Blob { .. } | Problem::Inflate { .. } | Problem::DiffId { .. } | Problem::Tar(_) => true,
            Problem::Document(_) | Problem::Read { .. } | Problem::Write { .. } => false,
            Problem::Registry(_) | Problem::Stopped => false,
        }
    }

    /// An error of reading `what`; a [`VerifyError`] or a registry's error that travelled inside it comes out as such.
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

/// A stream made plain, be it compressed with gzip, zstd, xz, bzip2 or not at all.
pub fn plain<R: io::Read>(stream: R) -> std::result::Result<impl io::Read, Problem> {
    inflate::Inflate::new(stream, |cause| Problem::read("the stream", None, cause))
}

/// Why an image operation failed. Each prints as one whole line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A registry did not give it.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Something about the source as a whole.
    #[error("{origin}: {problem}")]
    Source {
        /// The source as the user named it.
        origin: String,
        /// What is wrong.
        problem: Box<Problem>,
    },
    /// Something about one layer.
    #[error("{origin}: layer {position} of {count} ({digest}): {problem}")]
    Layer {
        /// The source as the user named it.
        origin: String,
        /// Counted from 1 at the bottom.
        position: usize,
        /// How many layers the image has.
        count: usize,
        /// Twelve digits of the digest that the user saw it under.
        digest: String,
        /// What is wrong.
        problem: Box<Problem>,
    },
    /// The store's file system cannot take what is to come.
    #[error(
        "{origin}: no space for it: at least {}MB more are needed on the file system of {}, {}MB are free; make room \
         (`plyfs image prune`) or use another store (--root)",
        need.div_ceil(1_000_000), root.display(), free / 1_000_000
    )]
    NoSpace {
        /// The source as the user named it.
        origin: String,
        /// The store.
        root: PathBuf,
        /// So many bytes at least.
        need: u64,
        /// So many bytes there are.
        free: u64,
    },
    /// The layers do not fit together.
    #[error("{origin}: {problem}")]
    Merge {
        /// The source or the image.
        origin: String,
        /// The message names layer and entry.
        problem: Box<tree::MergeError>,
    },
    /// An image of the store has lost something that must be fetched again.
    #[error("image {image} is damaged: {what}; pull it again")]
    Broken {
        /// The image's name.
        image: String,
        /// What is missing or wrong.
        what: String,
    },
    /// A name that is none.
    #[error("{0}")]
    Reference(#[from] reference::ParseReferenceError),
    /// Docker's rules forbid it.
    #[error("conflict: {0}")]
    Conflict(String),
    /// What was to go out could not be written.
    #[error("cannot write the archive: {0}")]
    Output(io::Error),
    /// An upper directory cannot be looked at.
    #[error(transparent)]
    Upper(#[from] upper::OpenError),
    /// What is different in a union cannot be found out.
    #[error("cannot look for changes: {0}")]
    Changes(fs::FsError),
    /// Changes cannot be written as a layer.
    #[error(transparent)]
    NewLayer(#[from] fs::ExportError),
    /// A change to a config that cannot be made.
    #[error(transparent)]
    Change(#[from] change::BadChange),
    /// A request that makes no sense.
    #[error("{0}")]
    Usage(String),
}

/// The result of an image operation.
pub type Result<T> = std::result::Result<T, Error>;
