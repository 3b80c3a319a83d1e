//! Path resolution in a file system without a kernel (path_resolution(7)). Symbolic links are followed inside it only:
//! `..` of the root is the root, and an absolute target begins there.

use crate::fs::{Attr, Fs, FsError, ROOT};
use crate::meta::Kind;

/// The most symbolic links that a path may lead through, as in Linux.
const MOST_LINKS: u32 = 40;

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// ENOENT.
    #[error("No such file or directory")]
    NotFound,
    /// ENOTDIR: something in the path is not a directory.
    #[error("Not a directory")]
    NotDir,
    /// ELOOP.
    #[error("Too many levels of symbolic links")]
    Loop,
    /// The image or its upper directory cannot be read.
    #[error(transparent)]
    Fs(FsError),
}

impl From<FsError> for PathError {
    fn from(error: FsError) -> PathError {
        match error {
            FsError::NotFound => PathError::NotFound,
            FsError::NotDir => PathError::NotDir,
            error => PathError::Fs(error),
        }
    }
}

/// Returns the inode at a path, which is relative to the root. A symbolic link at its end is followed if `follow`, or if
/// a slash comes after it.
pub fn resolve(fs: &Fs, path: &[u8], follow: bool) -> Result<Attr, PathError> {
    let mut at = fs.getattr(ROOT)?;
    let mut links = 0;
    // The components left, the next one last.
    let mut left: Vec<Vec<u8>> = Vec::new();
    push(&mut left, path);
    let follow = follow || path.ends_with(b"/");
    while let Some(name) = left.pop() {
        if at.kind != Kind::Dir {
            return Err(PathError::NotDir);
        }
        let next = match &name[..] {
            b"." => continue,
            b".." => fs.getattr(fs.parent(at.ino)?)?,
            name => fs.lookup(at.ino, name)?,
        };
        if next.kind != Kind::Symlink || (left.is_empty() && !follow) {
            at = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(PathError::Loop);
        }
        let target = fs.readlink(next.ino)?.into_owned();
        if target.is_empty() {
            return Err(PathError::NotFound);
        }
        if target.starts_with(b"/") {
            at = fs.getattr(ROOT)?;
        }
        push(&mut left, &target);
    }
    if path.ends_with(b"/") && at.kind != Kind::Dir {
        return Err(PathError::NotDir);
    }
    Ok(at)
}

/// Puts a path's components in front of those that are left.
fn push(left: &mut Vec<Vec<u8>>, path: &[u8]) {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    left.extend(parts.rev().map(<[u8]>::to_vec));
}
