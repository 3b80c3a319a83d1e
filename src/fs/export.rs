//! Export of a whole file system tree as one tar archive.

use super::tar_export::{Entries, ExportError, Rules};
use super::{Fs, FsError, Ino, ROOT};
use crate::meta::Kind;
use std::io::Write;

/// Writes the whole tree: the root directory first, then each directory before its entries, sorted by name. Further
/// hard links of an inode become link entries to its first name. Sockets are skipped: tar has no type for them.
pub fn export<W: Write>(fs: &Fs, out: W) -> Result<W, ExportError> {
    let mut entries = Entries::new(fs, out, Rules::default());
    // An explicit stack: a tree may be thousands of directories deep.
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

/// Returns the names and inodes in a directory, without `.` and `..`, in listing order.
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
