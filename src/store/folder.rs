//! Directory listing for the store's folders.

use super::{Error, Result};
use std::fs;
use std::io;
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
