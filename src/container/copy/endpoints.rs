//! Source and destination paths of `cp`: resolved inside their roots, by Docker's rules for slashes, dots, links and
//! what exists.

use super::super::rootfs::Rootfs;
use super::error::{CopyError, Result, failed};
use crate::name::show;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The kernel's limit of symbolic links in one lookup (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A source or destination path of the user.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The root in which the path is resolved.
    pub root: &'a Rootfs,
    /// An absolute path. At its end, `/.` means the directory's content, and `/` requires a directory.
    pub path: &'a [u8],
    /// The container's name or ID as given by the user; `None`: the host.
    pub container: Option<&'a str>,
}

/// A resolved source.
pub(super) struct Source {
    pub object: OwnedFd,
    pub is_dir: bool,
    /// The name of the copy; `None` for a directory's content.
    pub name: Option<Vec<u8>>,
}

/// The destination in an error message.
pub(super) fn destination_text(place: &Place<'_>) -> String {
    match place.container {
        Some(container) => format!("destination \"{container}:{}\"", show(place.path)),
        None => format!("invalid output path: \"{}\"", show(place.path)),
    }
}

pub(super) fn kind_of(object: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(object)?.st_mode))
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn ends_as_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// The last name of a path; `None` for the root and for paths that end with `.` or `..`.
fn last_name(path: &[u8]) -> Option<&[u8]> {
    if path.ends_with(b"/.") {
        return None;
    }
    let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty())?;
    (name != b"." && name != b"..").then_some(name)
}

/// The parent path: without the last name and trailing slashes.
fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let start = path[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let parent = &path[..start];
    if parent.is_empty() { b"/" } else { parent }
}

pub(super) fn find_source(from: &Place<'_>, follow: bool) -> Result<Source> {
    let path = Path::new(OsStr::from_bytes(from.path));
    let found = match follow {
        true => from.root.locate(path),
        false => from.root.locate_itself(path),
    };
    let object = found.map_err(|cause| match from.container {
        Some(container) if is_missing(&cause) => {
            CopyError::NotInContainer { path: from.path.to_vec(), container: container.to_owned() }
        }
        _ if cause.kind() == io::ErrorKind::NotADirectory => CopyError::NotADirectory,
        Some(_) => failed("open", from.path)(cause),
        None => CopyError::NoSource { path: from.path.to_vec(), cause },
    })?;
    let is_dir = kind_of(&object).map_err(failed("stat", from.path))? == FileType::Directory;
    Ok(Source { object, is_dir, name: last_name(from.path).map(<[u8]>::to_vec) })
}

/// Resolves the destination to an open directory and the copy's path in it; the path is empty if a directory's content
/// is copied.
pub(super) fn find_destination(to: &Place<'_>, source: &Source) -> Result<(OwnedFd, Vec<u8>)> {
    let path = behind_links(to)?;
    let open = |path: &[u8]| to.root.locate(OsStr::from_bytes(path));
    let there = match open(&path) {
        Ok(found) => Some((kind_of(&found).map_err(failed("stat", &path))?, found)),
        Err(e) if is_missing(&e) => None,
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Err(CopyError::NotADirectory),
        Err(e) => return Err(failed("open", &path)(e)),
    };
    let name = match there {
        Some((FileType::Directory, found)) => return Ok((found, source.name.clone().unwrap_or_default())),
        Some((FileType::BlockDevice | FileType::CharacterDevice, _)) => {
            return Err(CopyError::IsDevice(destination_text(to)));
        }
        Some(_) if source.is_dir => return Err(CopyError::DirectoryToFile),
        None if !source.is_dir && ends_as_directory(&path) => return Err(CopyError::NoSuchDirectory),
        _ => last_name(if source.is_dir { path.strip_suffix(b"/.").unwrap_or(&path) } else { &path }),
    };
    let around = parent(path.strip_suffix(b"/.").unwrap_or(&path));
    let found = open(around).and_then(|found| match kind_of(&found)? {
        FileType::Directory => Ok(found),
        _ => Err(Errno::NOTDIR.into()),
    });
    match (found, name, to.container) {
        (Ok(found), Some(name), _) => Ok((found, name.to_vec())),
        (Ok(_), None, _) => Err(CopyError::NoSuchDirectory),
        (Err(e), _, Some(container)) if is_missing(&e) => {
            Err(CopyError::NotInContainer { path: around.to_vec(), container: container.to_owned() })
        }
        (Err(e), _, None) if is_missing(&e) => Err(CopyError::NoParent(around.to_vec())),
        (Err(e), _, _) if e.kind() == io::ErrorKind::NotADirectory => Err(CopyError::NotADirectory),
        (Err(e), _, _) => Err(failed("open", around)(e)),
    }
}

/// Resolves symbolic links at the end of the destination path, including a dangling link, whose target is created.
fn behind_links(to: &Place<'_>) -> Result<Vec<u8>> {
    let mut path = to.path.to_vec();
    if ends_as_directory(&path) {
        return Ok(path);
    }
    for _ in 0..MOST_LINKS {
        let Ok(found) = to.root.locate_itself(OsStr::from_bytes(&path)) else { return Ok(path) };
        if kind_of(&found).map_err(failed("stat", &path))? != FileType::Symlink {
            return Ok(path);
        }
        let target = rustix::fs::readlinkat(&found, "", Vec::new());
        let target = target.map_err(|e| failed("read", &path)(e.into()))?.into_bytes();
        path = match target.starts_with(b"/") {
            true => target,
            false => [parent(&path), b"/", &target].concat(),
        };
    }
    Err(failed("open", to.path)(Errno::LOOP.into()))
}
