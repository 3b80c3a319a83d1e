//! Lists of the image's paths, as the workloads use them.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// The paths that every engine is asked for, relative to the mount, in order.
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

/// Files of at most this size are small ones.
pub const SMALL: u64 = 64 << 10;
/// Files over this size are big ones.
pub const BIG: u64 = 1 << 20;

impl Paths {
    /// Lists a tree that has the image's files.
    pub fn scan(root: &Path) -> Result<Self, Errno> {
        let fd = open_root(root)?;
        let (mut every, mut dirs, mut small, mut big) = (Vec::new(), vec![Vec::new()], Vec::new(), Vec::new());
        let (mut small_bytes, mut big_bytes) = (0, 0);
        let mut next = 0;
        while next < dirs.len() {
            let dir = dirs[next].clone();
            next += 1;
            for name in names(&fd, &dir)? {
                let path = if dir.is_empty() { name } else { [dir.as_slice(), b"/", &name].concat() };
                // A path longer than PATH_MAX.
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
                    // Sparse files would measure zeros only.
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

/// Fisher-Yates shuffle with a fixed seed: the same order in every run and on every engine.
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

/// Opens a mount's root.
pub fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
