//! Atomic file replacement: after a crash either the old or the new content is there.

use super::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Creates a new file with these bytes and syncs it. The caller syncs the folder.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Syncs a folder, which makes renames into and out of it durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", path))
}

/// Renames a file or folder to its final name, durably. At the target there must be nothing or an equal file.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("rename to", to))?;
    to.parent().map_or(Ok(()), sync_dir)
}

/// Replaces `path` by these bytes. The caller holds the lock that protects `path`, so the temporary name is unique.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_by(&beside(path), path, bytes)
}

/// [`replace`] without a sync: after a power failure the file may be empty. For what means nothing then.
pub(super) fn replace_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = beside(path);
    fs::write(&temp, bytes).map_err(Error::io("write", &temp))?;
    fs::rename(&temp, path).map_err(Error::io("rename to", path))
}

/// [`replace`] with a temporary name that is the caller's own.
pub(crate) fn replace_by(temp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    write_new(temp, bytes).inspect_err(|_| drop(fs::remove_file(temp)))?;
    rename_durably(temp, path)
}

/// Replaces several files, each given with its own temporary name, by the same bytes. All new files are synced before
/// the first rename, so that after a power failure each path holds its old or its new content. `set_aside` moves away a
/// folder that is in a file's place.
pub(super) fn replace_all(
    files: &[(PathBuf, PathBuf)],
    bytes: &[u8],
    set_aside: impl Fn(&Path) -> Result<()>,
) -> Result<()> {
    let written = files.iter().try_for_each(|(temp, _)| write_new(temp, bytes));
    let renamed = written.and_then(|()| {
        files.iter().try_for_each(|(temp, path)| {
            if is_folder(path) {
                set_aside(path)?;
            }
            fs::rename(temp, path).map_err(Error::io("rename to", path))
        })
    });
    renamed.inspect_err(|_| files.iter().for_each(|(temp, _)| drop(fs::remove_file(temp))))?;
    let folders: BTreeSet<&Path> = files.iter().filter_map(|(_, path)| path.parent()).collect();
    folders.into_iter().try_for_each(sync_dir)
}

/// Whether there is a folder at the path, which no file can replace by a rename.
pub(super) fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// The temporary name that [`replace`] uses.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Reads to the end; more than `cap` bytes are an error.
pub fn read_capped(from: impl Read, cap: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(cap + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > cap {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("is longer than {cap} bytes")));
    }
    Ok(bytes)
}
