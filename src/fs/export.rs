//! A whole tree as one tar.

use super::entries::{Entries, Rules};
use super::{Fs, FsError, Ino, ROOT};
use crate::meta::Kind;
use crate::name::show;
use crate::whiteout::NoName;
use std::io::{self, Write};

/// Why a tree could not be written as a tar.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something in it cannot be read.
    #[error("cannot read /{}: {cause}", show(.path))]
    Read {
        /// Where it is.
        path: Vec<u8>,
        /// Why not.
        cause: FsError,
    },
    /// A file is being cut while it is read.
    #[error("/{} became shorter while it was read", show(.0))]
    Shorter(Vec<u8>),
    /// Something has a name that a layer cannot say.
    #[error("/{} cannot be in a layer: {why}", show(.path))]
    Name {
        /// Where it is.
        path: Vec<u8>,
        /// Why not.
        why: NoName,
    },
    /// The tar cannot be written.
    #[error("cannot write the archive: {0}")]
    Output(#[from] io::Error),
}

/// Writes everything that is seen: the root directory first, then each directory before what is in it, sorted by name.
/// The second and further names of a file are hard links to its first. Sockets are left out: a tar cannot have them.
pub fn export<W: Write>(fs: &Fs, out: W) -> Result<W, ExportError> {
    let mut entries = Entries::new(fs, out, Rules::default());
    // A stack of its own: a tree may be thousands of directories deep.
    let mut todo: Vec<(Vec<u8>, Ino)> = vec![(Vec::new(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let failed = |cause| ExportError::Read { path: path.clone(), cause };
        let attr = fs.getattr(ino).map_err(failed)?;
        entries.entry(&path, &attr)?;
        if attr.kind == Kind::Dir {
            let mut below = names(fs, ino).map_err(failed)?;
            below.sort_by(|a, b| b.0.cmp(&a.0));
            let inside = |name: Vec<u8>| if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
            todo.extend(below.into_iter().map(|(name, ino)| (inside(name), ino)));
        }
    }
    Ok(entries.finish()?.0)
}

/// What is in a directory.
pub(super) fn names(fs: &Fs, dir: Ino) -> Result<Vec<(Vec<u8>, Ino)>, FsError> {
    let mut found = Vec::new();
    fs.readdir(dir, 0, |entry| {
        if !matches!(entry.name, b"." | b"..") {
            found.push((entry.name.to_vec(), entry.ino));
        }
        false
    })?;
    Ok(found)
}
