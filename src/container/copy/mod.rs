//! Copying between a container and this machine, as `docker cp` does it.
//!
//! A copy has a source and a sink, and neither knows the other: a tree is read by its descriptors (`walk`) or a tar as it
//! streams by (`archive`), object by object, and each object is put into a tree (`place`) or into a tar (`archive`).
//!
//! Both trees may be changed while they are copied, by somebody who means harm. So every path that a user names is
//! resolved inside its root ([`Inside`]), and from there on only names are looked up, in directories that are held open,
//! and links are never followed. What an object is is asked of the descriptor that it is then read by.

mod archive;
mod place;
mod walk;

use super::inside::Inside;
use crate::layer::{LayerError, Meta};
use crate::meta::Kind;
use crate::name::show;
use crate::sys;
use place::Placer;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// As many symbolic links as the kernel follows in one path.
const MOST_LINKS: usize = 40;

/// Why something was not copied. One whole line each, in Docker's words where it has some.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A path that leads to nothing in a container.
    #[error("Could not find the file {} in container {container}", show(.path))]
    NotInContainer {
        /// The path, as it was looked for.
        path: Vec<u8>,
        /// The container, as the user named it.
        container: String,
    },
    /// A source on this machine that cannot be had.
    #[error("lstat {}: {}", show(.path), sys::describe(.cause))]
    NoSource {
        /// The path.
        path: Vec<u8>,
        /// Why.
        cause: io::Error,
    },
    /// What is to be made would lie in no directory.
    #[error("invalid output path: directory \"{}\" does not exist", show(.0))]
    NoParent(Vec<u8>),
    /// The destination is something that one does not write over.
    #[error("{0} must be a directory or a regular file: got a device")]
    IsDevice(String),
    /// A tar is unpacked into directories only.
    #[error("{0} must be a directory")]
    MustBeDirectory(String),
    /// A directory does not become a file.
    #[error("cannot copy directory")]
    DirectoryToFile,
    /// The user says by a slash that there is a directory.
    #[error("no such directory")]
    NoSuchDirectory,
    /// The user says by a slash that a file is a directory.
    #[error("not a directory")]
    NotADirectory,
    /// What is there is in the way.
    #[error("cannot overwrite {} \"{}\" with {}", kinds(*.directory).0, show(.path), kinds(*.directory).1)]
    InTheWay {
        /// Where.
        path: Vec<u8>,
        /// Whether a directory is there, and something else was to come.
        directory: bool,
    },
    /// An entry of a tar that would lie elsewhere.
    #[error("entry `{}` of the tar leads out of the directory", show(.0))]
    LeadsOut(Vec<u8>),
    /// The tar is damaged.
    #[error("{0}")]
    Tar(#[from] LayerError),
    /// Whoever reads the tar is gone, or the disk that it goes to is full.
    #[error("cannot write the tar: {}", sys::describe(.0))]
    Output(io::Error),
    /// A call failed.
    #[error("cannot {action} {}: {}", show(.path), sys::describe(.cause))]
    Failed {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: Vec<u8>,
        /// What the system said.
        cause: io::Error,
    },
}

fn kinds(directory: bool) -> (&'static str, &'static str) {
    if directory { ("directory", "non-directory") } else { ("non-directory", "directory") }
}

/// The result of a copy.
pub type Result<T> = std::result::Result<T, CopyError>;

fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_vec();
    move |cause| CopyError::Failed { action, path, cause }
}

/// A path that a user named.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// In which root.
    pub root: &'a Inside,
    /// Absolute. What it ends with counts: `/.` means a directory's content, and `/` that it is a directory.
    pub path: &'a [u8],
    /// The container whose root it is, as the user named it.
    pub container: Option<&'a str>,
}

/// To whom copies belong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// To the same numbers.
    Kept,
    /// To this user and group.
    Is(u32, u32),
}

/// One object of a copy. What a sink is given lies below one name or none, a directory before what is in it.
enum What<'a> {
    Dir,
    File(Content<'a>),
    Symlink(&'a [u8]),
    /// One more name of what was given before by this one.
    Link(&'a [u8]),
    Device(Kind, u32),
    Fifo,
}

/// A file's data.
struct Content<'a> {
    size: u64,
    /// Where in the file it has data, and how much.
    pieces: Vec<(u64, u64)>,
    /// The pieces, one behind the other.
    data: &'a mut dyn Read,
}

/// Where objects go.
trait Sink {
    fn put(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Result<()>;

    /// Whether that directory (device and inode) is one into which this copies: then it is not copied.
    fn is_target(&self, _directory: (u64, u64)) -> bool {
        false
    }
}

/// A source that was found.
struct Source {
    object: OwnedFd,
    is_dir: bool,
    /// Under which name it is copied; none for a directory's content.
    name: Option<Vec<u8>>,
}

/// Copies what is at one place to another, which may not be there yet; a link at the source's end is copied as one,
/// unless it is to be followed. Gives how many bytes files had.
pub fn copy(from: &Place<'_>, to: &Place<'_>, follow: bool, owner: Owner) -> Result<u64> {
    let source = find_source(from, follow)?;
    let (directory, name) = find_target(to, &source)?;
    let mut placer = Placer::new(directory, to.path, owner);
    walk::walk(source.object, &name, &mut placer)?;
    placer.end()
}

/// Copies a directory's content into another, with owners and with the directory's own attributes: an image's content
/// into a fresh volume.
pub fn tree(from: &Inside, from_path: &Path, to: &Inside, to_path: &Path) -> Result<u64> {
    let (from_path, to_path) = (from_path.as_os_str().as_bytes(), to_path.as_os_str().as_bytes());
    let open = |root: &Inside, path| root.open_dir(OsStr::from_bytes(path)).map_err(failed("open", path));
    let mut placer = Placer::new(open(to, to_path)?, to_path, Owner::Kept).with_root();
    walk::walk(open(from, from_path)?, b"", &mut placer)?;
    placer.end()
}

/// Writes what is at a place as a tar.
pub fn pack<W: Write>(from: &Place<'_>, follow: bool, out: W) -> Result<W> {
    let source = find_source(from, follow)?;
    let mut packing = archive::Packing::new(out);
    walk::walk(source.object, &source.name.unwrap_or_else(|| b".".to_vec()), &mut packing)?;
    packing.end()
}

/// Unpacks a tar into a directory, by way of links that are there as the container sees them. Gives how many bytes files
/// had.
pub fn unpack(tar: &mut impl BufRead, to: &Place<'_>, owner: Owner) -> Result<u64> {
    let directory = to.root.locate(OsStr::from_bytes(to.path)).ok();
    let directory = directory.filter(|found| kind_of(found).is_ok_and(|kind| kind == FileType::Directory));
    let directory = directory.ok_or_else(|| CopyError::MustBeDirectory(told(to)))?;
    let mut placer = Placer::new(directory, to.path, owner).through_links(to.root);
    archive::unpack(tar, &mut placer)?;
    placer.end()
}

/// How a destination is named in an error.
fn told(place: &Place<'_>) -> String {
    match place.container {
        Some(container) => format!("destination \"{container}:{}\"", show(place.path)),
        None => format!("invalid output path: \"{}\"", show(place.path)),
    }
}

fn kind_of(object: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(object)?.st_mode))
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn ends_as_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// The last name of a path; none for the root, for a directory's content and for what `..` leads to.
fn last_name(path: &[u8]) -> Option<&[u8]> {
    if path.ends_with(b"/.") {
        return None;
    }
    let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty())?;
    (name != b"." && name != b"..").then_some(name)
}

/// A path without its last name and the slashes around.
fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let start = path[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let parent = &path[..start];
    if parent.is_empty() { b"/" } else { parent }
}

fn find_source(from: &Place<'_>, follow: bool) -> Result<Source> {
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

/// The directory that a source goes into, and its path there: none for a directory whose content goes there.
fn find_target(to: &Place<'_>, source: &Source) -> Result<(OwnedFd, Vec<u8>)> {
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
        Some((FileType::BlockDevice | FileType::CharacterDevice, _)) => return Err(CopyError::IsDevice(told(to))),
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

/// Where a path leads whose last name is a link: also where that leads to nothing, which is made then.
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

/// An open flag for looking at an object, whatever it is.
const LOOK: OFlags = OFlags::PATH;

#[cfg(test)]
mod tests;
