//! Extraction of a file or a directory of an image to the host.
//!
//! The new files belong to the user, with the permissions and times of the image's but without set-ID bits. Nothing
//! that exists is written to: every object is created, relative to the directory above it, which was opened without
//! following links.

use crate::fs::{Attr, Fs, FsError, Ino};
use crate::meta::{Kind, Time};
use crate::name::{is_valid, show};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, mkdirat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How many bytes one read takes.
const PIECE: u32 = 1 << 20;

/// What has been extracted.
#[derive(Default, Debug)]
pub(super) struct Extracted {
    /// Regular files.
    pub files: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// Devices, pipes and sockets, which are left out.
    pub skipped: u64,
}

/// A directory whose entries are being extracted.
struct Dir {
    attr: Attr,
    made: OwnedFd,
    entries: std::vec::IntoIter<(Vec<u8>, Ino)>,
}

/// Extracts the inode as `destination`, which must not exist; the directory above it must. After an error, what has
/// been extracted before stays.
pub(super) fn extract(fs: &Fs, ino: Ino, destination: &Path) -> anyhow::Result<Extracted> {
    let mut done = Extracted::default();
    let attr = fs.getattr(ino)?;
    let failed = |e: anyhow::Error| anyhow::anyhow!("cannot extract to {}: {e}", destination.display());
    let name = destination.as_os_str().as_bytes();
    let mut dirs: Vec<Dir> = create(fs, CWD, name, &attr, &mut done).map_err(failed)?.into_iter().collect();
    while let Some(dir) = dirs.last_mut() {
        let Some((name, ino)) = dir.entries.next() else {
            let Some(dir) = dirs.pop() else { break };
            finish(dir.made.as_fd(), &dir.attr).map_err(|e| failed(e.into()))?;
            continue;
        };
        let place = |e: anyhow::Error| failed(anyhow::anyhow!("{}: {e}", show(&name)));
        let attr = fs.getattr(ino)?;
        let below = create(fs, dir.made.as_fd(), &name, &attr, &mut done).map_err(place)?;
        dirs.extend(below);
    }
    Ok(done)
}

/// Creates one object; returns it if it is a directory, whose entries are not extracted yet.
fn create(fs: &Fs, at: BorrowedFd<'_>, name: &[u8], attr: &Attr, done: &mut Extracted) -> anyhow::Result<Option<Dir>> {
    match attr.kind {
        Kind::Dir => {
            mkdirat(at, name, Mode::RWXU).map_err(said)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(at, name, flags, Mode::empty()).map_err(said)?;
            return Ok(Some(Dir { attr: *attr, made, entries: entries(fs, attr.ino)?.into_iter() }));
        }
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(at, name, flags, Mode::RUSR | Mode::WUSR).map_err(said)?);
            done.bytes += copy(fs, attr, &file)?;
            done.files += 1;
            finish(file.as_fd(), attr)?;
        }
        Kind::Symlink => {
            let target = fs.readlink(attr.ino)?;
            symlinkat(&target[..], at, name).map_err(said)?;
            utimensat(at, name, &times(attr.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => done.skipped += 1,
    }
    Ok(None)
}

/// Copies a file's data, and leaves its holes.
fn copy(fs: &Fs, attr: &Attr, file: &File) -> anyhow::Result<u64> {
    let (mut at, mut copied) = (0, 0);
    while at < attr.size {
        at = match fs.seek(attr.ino, at, false) {
            Err(FsError::NoData) => break,
            found => found?,
        };
        let end = fs.seek(attr.ino, at, true)?;
        while at < end {
            let bytes = fs.read(attr.ino, at, PIECE.min(u32::try_from(end - at).unwrap_or(PIECE)))?;
            anyhow::ensure!(!bytes.is_empty(), "the file ends early");
            file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
            copied += bytes.len() as u64;
        }
    }
    file.set_len(attr.size)?;
    Ok(copied)
}

fn entries(fs: &Fs, dir: Ino) -> anyhow::Result<Vec<(Vec<u8>, Ino)>> {
    let mut found = Vec::new();
    fs.readdir(dir, 0, |entry| {
        if !matches!(entry.name, b"." | b"..") {
            found.push((entry.name.to_vec(), entry.ino));
        }
        false
    })?;
    // The index is checked when it is made; a damaged one must not lead out of the destination.
    anyhow::ensure!(found.iter().all(|(name, _)| is_valid(name)), "a directory has an invalid name");
    Ok(found)
}

/// Sets permissions and times.
fn finish(made: BorrowedFd<'_>, attr: &Attr) -> rustix::io::Result<()> {
    fchmod(made, Mode::from_raw_mode(u32::from(attr.mode) & 0o1777))?;
    futimens(made, &times(attr.mtime))
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn said(error: Errno) -> anyhow::Error {
    match error {
        Errno::EXIST => anyhow::anyhow!("it exists already"),
        error => anyhow::anyhow!("{}", crate::sys::describe(&error.into())),
    }
}
