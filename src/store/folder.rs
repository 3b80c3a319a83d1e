//! The store's folders: listing, size and removal.

use super::{Error, Result};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Lists the names and paths in a folder, sorted; empty if there is no such folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io("read", folder)(e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    all.sort();
    Ok(all)
}

/// Removes a file or a folder with its content; a missing one is no error.
pub(crate) fn unlink(path: &Path) -> Result<()> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let done = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Disk space used under `path`, in bytes; what cannot be read counts as zero.
pub(super) fn disk_usage(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let below = if meta.is_dir() { list(path).unwrap_or_default() } else { vec![] };
    meta.blocks() * 512 + below.iter().map(|(_, path)| disk_usage(path)).sum::<u64>()
}
