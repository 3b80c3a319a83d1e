//! Paths inside a root that is not this machine's.
//!
//! An image is hostile until shown otherwise, and so is what runs in it: `/etc/passwd` may be a link to a file of this
//! machine, a fifo that nobody writes to, a loop, and may become one while it is looked at. So a path is always resolved
//! from the root's descriptor, by the kernel and in one call where that is possible, and what was found is kept as a
//! descriptor. Nothing here ever follows a name out of the root, waits for a writer, or opens a device.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// As many symbolic links as the kernel follows in one path.
const MOST_LINKS: usize = 40;
/// How often a lookup is tried again that others disturbed.
const TRIES: usize = 64;

/// A directory that is the root of every path that is looked up in it.
pub struct Inside {
    root: OwnedFd,
}

/// Where a walk stands: what has been entered below the root, with the names that led there.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    entered: Vec<(Vec<u8>, OwnedFd)>,
    ahead: VecDeque<Vec<u8>>,
    links: usize,
}

impl Inside {
    /// Everything in the directory `root`.
    pub fn new(root: OwnedFd) -> Inside {
        Inside { root }
    }

    /// Everything in the directory at `path`, a path of this machine.
    pub fn open(path: &Path) -> io::Result<Inside> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Inside::new(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The root itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What is at `path`, as an `O_PATH` descriptor; where it is a symbolic link, what that leads to.
    pub fn locate(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path.as_ref(), OFlags::PATH)
    }

    /// What is at `path`, as an `O_PATH` descriptor; a symbolic link at its end is not followed.
    pub fn locate_itself(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path.as_ref(), OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// The attributes of what is at `path`, behind symbolic links.
    pub fn stat(&self, path: impl AsRef<Path>) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.locate(path)?)?)
    }

    /// The directory at `path`, for reading.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The regular file at `path`, for reading. Anything else is [`io::ErrorKind::InvalidInput`], and is not opened.
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        reopen(self.locate(path)?.as_fd())
    }

    /// The content of the regular file at `path`. One of more than `cap` bytes is [`io::ErrorKind::InvalidData`].
    pub fn read(&self, path: impl AsRef<Path>, cap: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(path)?.take(cap + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > cap {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("is longer than {cap} bytes")));
        }
        Ok(bytes)
    }

    /// Makes what is missing for something to be mounted at `path`: directories (mode 0755), and at its end a directory
    /// or an empty file (0644). A symbolic link that leads to nothing is followed, and its end made. What is there must
    /// be of the right kind. The directories that were there keep their times.
    ///
    /// Gives what it made, outermost first, as paths from the root that have no links in them.
    pub fn make_mountpoint(&self, path: impl AsRef<Path>, is_dir: bool) -> io::Result<Vec<PathBuf>> {
        let (_, made) = self.mountpoint(path, is_dir)?;
        Ok(made)
    }

    /// [`Inside::make_mountpoint`], with what is there then as an `O_PATH` descriptor.
    pub fn mountpoint(&self, path: impl AsRef<Path>, is_dir: bool) -> io::Result<(OwnedFd, Vec<PathBuf>)> {
        let mut walk = Walk { root: self.root(), entered: Vec::new(), ahead: VecDeque::new(), links: 0 };
        walk.put_ahead(path.as_ref().as_os_str().as_bytes());
        let mut made = Vec::new();
        while let Some(name) = walk.ahead.pop_front() {
            match &name[..] {
                b"" | b"." => {}
                b".." => drop(walk.entered.pop()),
                _ => made.extend(walk.enter_or_make(name, is_dir)?),
            }
        }
        let found = match walk.entered.pop() {
            Some((_, found)) => found,
            None => self.root.try_clone()?,
        };
        match (kind(found.as_fd())? == FileType::Directory, is_dir) {
            (false, true) => Err(Errno::NOTDIR.into()),
            (true, false) => Err(Errno::ISDIR.into()),
            _ => Ok((found, made)),
        }
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        for _ in 1..TRIES {
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                // Something was renamed meanwhile, so that the kernel cannot tell where `..` leads.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
        Ok(rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), how)?)
    }
}

impl Walk<'_> {
    fn put_ahead(&mut self, path: &[u8]) {
        for name in path.split(|byte| *byte == b'/').rev() {
            self.ahead.push_front(name.to_vec());
        }
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.entered.last().map_or(self.root, |(_, dir)| dir.as_fd())
    }

    /// Takes one step; gives the path of what had to be made for it.
    fn enter_or_make(&mut self, name: Vec<u8>, is_dir: bool) -> io::Result<Option<PathBuf>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut made = false;
        for _ in 0..TRIES {
            let found = match rustix::fs::openat(self.here(), &name[..], flags, Mode::empty()) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let last = self.ahead.iter().all(|rest| rest.is_empty() || rest == b".");
                    made = make(self.here(), &name, is_dir || !last)?;
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            if kind(found.as_fd())? != FileType::Symlink {
                self.entered.push((name, found));
                let names: Vec<&[u8]> = self.entered.iter().map(|(name, _)| &name[..]).collect();
                return Ok(made.then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&names.join(&b'/')))));
            }
            self.links += 1;
            if self.links > MOST_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?.into_bytes();
            if target.starts_with(b"/") {
                self.entered.clear();
            }
            self.put_ahead(&target);
            return Ok(None);
        }
        Err(Errno::AGAIN.into())
    }
}

/// Makes a directory or an empty file, and gives the directory around it back its times. Not done, and no error, if
/// somebody else was first.
fn make(dir: BorrowedFd, name: &[u8], is_dir: bool) -> io::Result<bool> {
    let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // The descriptor that one walks with cannot have its times set.
    let around = rustix::fs::openat(dir, ".", read | OFlags::DIRECTORY, Mode::empty())?;
    let before = rustix::fs::fstat(&around)?;
    let made = if is_dir {
        rustix::fs::mkdirat(dir, name, Mode::from(0o755))
            .and_then(|()| rustix::fs::openat(dir, name, read | OFlags::DIRECTORY, Mode::empty()))
    } else {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::from(0o644))
    };
    match made {
        // The umask may have taken bits away.
        Ok(made) => rustix::fs::fchmod(made, Mode::from(if is_dir { 0o755 } else { 0o644 }))?,
        Err(Errno::EXIST) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    rustix::fs::futimens(&around, &times(&before))?;
    Ok(true)
}

/// The access and modification time.
pub(super) fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

fn kind(fd: BorrowedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?.st_mode))
}

/// Opens for reading what an `O_PATH` descriptor stands for, if it is a regular file: opening a fifo may wait for ever,
/// and opening a device may do anything.
pub(super) fn reopen(fd: BorrowedFd) -> io::Result<File> {
    if kind(fd)? != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// A root with links that would lead out of it, beside a file that must not be seen.
    fn place() -> (tempfile::TempDir, PathBuf, Inside) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        let inside = Inside::open(&root).unwrap();
        (dir, root, inside)
    }

    #[test]
    fn no_link_leads_out() {
        let (dir, root, inside) = place();
        symlink("../../../../secret", root.join("etc/up")).unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink(dir.path().join("secret"), root.join("etc/outside")).unwrap();
        symlink("loop", root.join("etc/loop")).unwrap();
        symlink("/proc/self/root", root.join("etc/magic")).unwrap();
        for path in ["secret", "/secret", "etc/up", "/etc/absolute", "../secret", "/etc/../../secret"] {
            assert_eq!(inside.read(path, 100).unwrap(), b"inside", "{path}");
        }
        assert_eq!(inside.read("etc/outside", 100).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(inside.read("etc/magic/etc/passwd", 1 << 20).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(inside.locate("etc/loop").unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(inside.locate_itself("etc/loop").is_ok());
    }

    #[test]
    fn magic_links_are_not_followed() {
        let inside = Inside::open(Path::new("/proc")).unwrap();
        let said = inside.locate(format!("{}/root", std::process::id())).unwrap_err();
        assert_eq!(said.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn only_regular_files_of_a_sane_size_are_read() {
        let (_dir, root, inside) = place();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        symlink("fifo", root.join("to-fifo")).unwrap();
        for name in ["fifo", "to-fifo", "etc"] {
            assert_eq!(inside.read(name, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(inside.read("secret", 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(inside.read("secret", 6).unwrap(), b"inside");
    }

    #[test]
    fn mountpoints_are_made_inside_and_the_times_around_stay() {
        let (dir, root, inside) = place();
        let around = fs::metadata(&root).unwrap();
        let made = |path: &str, is_dir| -> Vec<String> {
            let made = inside.make_mountpoint(path, is_dir).unwrap();
            made.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(made("/a/b/../c/./d", true), ["a", "a/b", "a/c", "a/c/d"]);
        assert_eq!(made("a/c/d/", true), Vec::<String>::new());
        assert_eq!(made("/etc/resolv.conf", false), ["etc/resolv.conf"]);
        symlink("/run/systemd/resolv.conf", root.join("etc/link")).unwrap();
        assert_eq!(made("etc/link", false), ["run", "run/systemd", "run/systemd/resolv.conf"]);
        symlink(dir.path(), root.join("etc/out")).unwrap();
        let below = dir.path().strip_prefix("/").unwrap().join("new");
        assert_eq!(Path::new(made("etc/out/new", true).last().unwrap()), below);
        symlink("../../../../..", root.join("etc/up")).unwrap();
        assert_eq!(made("etc/up/up", true), ["up"]);
        assert!(!dir.path().join("new").exists() && !dir.path().join("up").exists());
        let after = fs::metadata(&root).unwrap();
        assert_eq!((after.mtime(), after.mtime_nsec()), (around.mtime(), around.mtime_nsec()));
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a/c"), mode("etc/resolv.conf")), (0o755, 0o644));
    }

    #[test]
    fn what_is_there_must_suit() {
        let (_dir, root, inside) = place();
        symlink("loop", root.join("loop")).unwrap();
        let refused = |path: &str, is_dir| inside.make_mountpoint(path, is_dir).unwrap_err().raw_os_error().unwrap();
        assert_eq!(refused("secret", true), Errno::NOTDIR.raw_os_error());
        assert_eq!(refused("secret/below", true), Errno::NOTDIR.raw_os_error());
        assert_eq!(refused("etc", false), Errno::ISDIR.raw_os_error());
        assert_eq!(refused("/", false), Errno::ISDIR.raw_os_error());
        assert_eq!(refused("loop", false), Errno::LOOP.raw_os_error());
        assert!(inside.make_mountpoint("/", true).unwrap().is_empty());
    }
}
