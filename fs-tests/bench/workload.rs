//! What is measured: each workload is a pass over the same list of paths, made of bare system calls.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

/// The paths that every engine is asked for, relative to the mount, in the order in which they are asked for.
pub struct Paths {
    /// Every entry, shuffled.
    pub every: Vec<CString>,
    /// Names that do not exist, three in each directory, shuffled.
    pub missing: Vec<CString>,
    /// Regular files of at most 64 KiB, shuffled.
    pub small: Vec<CString>,
    /// Regular files over 1 MiB, shuffled.
    pub big: Vec<CString>,
    /// Size of all small files.
    pub small_bytes: u64,
    /// Size of all big files.
    pub big_bytes: u64,
}

/// One workload: its name, and the pass; returns how many calls or entries it made, to divide the time by.
pub struct Workload {
    /// As printed and as in the JSON.
    pub name: &'static str,
    /// One pass over a mount whose root is open.
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

const SMALL: u64 = 64 << 10;
const BIG: u64 = 1 << 20;

impl Paths {
    /// List a tree that has the image's files.
    pub fn of(root: &Path) -> Result<Self, Errno> {
        let fd = open_root(root)?;
        let (mut every, mut dirs, mut small, mut big) = (Vec::new(), vec![Vec::new()], Vec::new(), Vec::new());
        let (mut small_bytes, mut big_bytes) = (0, 0);
        let mut next = 0;
        while next < dirs.len() {
            let dir = dirs[next].clone();
            next += 1;
            for name in names(&fd, &dir)? {
                let path = if dir.is_empty() { name } else { [dir.as_slice(), b"/", &name].concat() };
                // Longer than one system call takes.
                let Some(text) = CString::new(path.clone()).ok().filter(|path| path.count_bytes() < 4095) else {
                    continue;
                };
                let stat = rustix::fs::statat(&fd, &text, AtFlags::SYMLINK_NOFOLLOW)?;
                let size = stat.st_size as u64;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => dirs.push(path),
                    FileType::RegularFile if size <= SMALL => {
                        small_bytes += size;
                        small.push(text.clone());
                    }
                    // Holes measure nothing but zeros.
                    FileType::RegularFile if size > BIG && stat.st_blocks as u64 * 512 >= size => {
                        big_bytes += size;
                        big.push(text.clone());
                    }
                    _ => {}
                }
                every.push(text);
            }
        }
        let missing = missing_names(&dirs);
        let mut paths = Self { every, missing, small, big, small_bytes, big_bytes };
        for list in [&mut paths.every, &mut paths.missing, &mut paths.small, &mut paths.big] {
            shuffle(list);
        }
        Ok(paths)
    }
}

fn missing_names(dirs: &[Vec<u8>]) -> Vec<CString> {
    let name = |dir: &Vec<u8>, n: usize| [dir.as_slice(), b"/not-there-".as_slice(), n.to_string().as_bytes()].concat();
    let all = dirs.iter().filter(|dir| !dir.is_empty() && dir.len() < 4000);
    all.flat_map(|dir| (0..3).filter_map(|n| CString::new(name(dir, n)).ok())).collect()
}

/// Fisher and Yates with a fixed seed: the same order on every run and every engine.
fn shuffle(list: &mut [CString]) {
    list.sort();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for index in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(index, (state % (index as u64 + 1)) as usize);
    }
}

fn names(root: &OwnedFd, dir: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    let dir = if dir.is_empty() { b"." } else { dir };
    let fd = rustix::fs::openat(root, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(&fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push(name);
        }
    }
    Ok(found)
}

/// Open a mount's root.
pub fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Recursive readdir and an lstat of every entry, as `find -ls` or a backup does.
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

/// Map each big file and touch every page of it.
fn mmap(root: &OwnedFd, paths: &Paths) -> Result<u64, Errno> {
    let mut sum = 0_u64;
    for path in &paths.big {
        let file = File::from(open(root, path)?);
        // None of the files here is written to while it is mapped.
        let bytes = plyfs::sys::map(&file).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        sum += bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
    }
    std::hint::black_box(sum);
    Ok(paths.big.len() as u64)
}
