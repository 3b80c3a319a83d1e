//! Writing so that a crash leaves the old state or the new one.

use super::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Makes a new file with these bytes and syncs it. Syncing the folder is up to the caller.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Makes what was renamed into or out of a folder durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", path))
}

/// Renames a file or folder to its final name, durably, where nothing or an equal file stands.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("rename to", to))?;
    to.parent().map_or(Ok(()), sync_dir)
}

/// Replaces `path` by these bytes. The caller holds the lock that goes with `path`, so the temporary name is its own.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_by(&beside(path), path, bytes)
}

/// [`replace`] under a temporary name that is the caller's own.
pub(crate) fn replace_by(temp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    write_new(temp, bytes).inspect_err(|_| drop(fs::remove_file(temp)))?;
    rename_durably(temp, path)
}

/// Replaces several files, each given with its own temporary name, by the same bytes. All new files are synced before the
/// first is renamed, so that each path holds its old content or the new one whenever the power fails. `set_aside` takes
/// away a folder that stands in a file's place.
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

/// Whether a folder stands there, over which no file can be renamed.
pub(super) fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// The name under which [`replace`] prepares the new file.
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
