//! Reading workloads: each is a pass over the same list of paths, made of bare system calls.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::paths::{BIG, Paths, SMALL};

/// One workload: its name, and the pass, which returns the number of its calls or entries, to divide the time by.
pub struct Workload {
    /// Name in the table and in the JSON.
    pub name: &'static str,
    /// Runs one pass over a mount whose root is open.
    pub run: fn(&OwnedFd, &Paths) -> Result<u64, Errno>,
}

/// All workloads, in the order in which they run.
pub const WORKLOADS: &[Workload] = &[
    Workload { name: "walk", run: walk_root },
    Workload { name: "stat", run: stat },
    Workload { name: "missing names", run: missing },
    Workload { name: "open+close", run: open_close },
    Workload { name: "small reads", run: small_reads },
    Workload { name: "big reads", run: big_reads },
    Workload { name: "mmap", run: mmap },
];

/// A recursive readdir with an lstat of every entry, as `find -ls` or a backup does.
fn walk_root(root: &OwnedFd, _: &Paths) -> Result<u64, Errno> {
    walk(root, c".")
}

fn walk(parent: &OwnedFd, name: &CStr) -> Result<u64, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut listing = RawDir::new(&fd, &mut buffer);
    let (mut count, mut below) = (0, Vec::new());
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        count += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            below.push(name.to_owned());
        }
    }
    for name in below {
        count += walk(&fd, &name)?;
    }
    Ok(count)
}

fn stat(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    for path in &paths.every {
        rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(paths.every.len() as u64)
}

fn missing(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    for path in &paths.missing {
        match rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(Errno::EXIST),
        }
    }
    Ok(paths.missing.len() as u64)
}

fn open(root: &OwnedFd, path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn open_close(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    for path in &paths.small {
        drop(open(root, path)?);
    }
    Ok(paths.small.len() as u64)
}

fn small_reads(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    let read = read_all(root, &paths.small, &mut vec![0; 2 * SMALL as usize])?;
    if read != paths.small_bytes { Err(Errno::IO) } else { Ok(paths.small.len() as u64) }
}

fn big_reads(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    let read = read_all(root, &paths.big, &mut vec![0; BIG as usize])?;
    if read != paths.big_bytes { Err(Errno::IO) } else { Ok(paths.big.len() as u64) }
}

fn read_all(root: &OwnedFd, files: &[CString], buffer: &mut [u8]) -> Result<u64, Errno> {
    let mut total = 0;
    for path in files {
        let fd = open(root, path)?;
        loop {
            match rustix::io::read(&fd, &mut *buffer)? {
                0 => break,
                count => total += count as u64,
            }
        }
    }
    Ok(total)
}

/// Maps each big file and reads every page of it.
fn mmap(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    let mut sum = 0_u64;
    for path in &paths.big {
        let file = File::from(open(root, path)?);
        // None of these files is written to while it is mapped.
        let bytes = plyfs::sys::map(&file).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        sum += bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
    }
    std::hint::black_box(sum);
    Ok(paths.big.len() as u64)
}
