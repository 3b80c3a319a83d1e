//! Safe path lookup inside a container's root file system, with openat2(2) and `RESOLVE_IN_ROOT`.
//!
//! Images and the programs in them are untrusted: /etc/passwd may be a symbolic link to a file of the host, a FIFO
//! without a writer or a link loop, and may be replaced during a lookup. So a path is always resolved from the root's
//! descriptor, by the kernel and in one call where possible, and the result is kept as a descriptor. Functions of this
//! module never leave the root, never block on a FIFO and never open a device.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The kernel's limit of symbolic links in one lookup (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// Maximum attempts of a lookup that concurrent renames disturb.
const TRIES: usize = 64;

/// A root directory, in which paths are looked up as after chroot(2).
pub struct Rootfs {
    root: OwnedFd,
}

/// The state of a lookup by single names: the directories entered below the root, and the names left.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    entered: Vec<(Vec<u8>, OwnedFd)>,
    ahead: VecDeque<Vec<u8>>,
    links: usize,
}

impl Rootfs {
    /// Uses an open directory as the root.
    pub fn new(root: OwnedFd) -> Rootfs {
        Rootfs { root }
    }

    /// Opens the directory at the host path `path` as the root.
    pub fn open(path: &Path) -> io::Result<Rootfs> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Rootfs::new(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The root's descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens `path` with `O_PATH`, following a symbolic link at its end.
    pub fn locate(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path.as_ref(), OFlags::PATH)
    }

    /// Opens `path` with `O_PATH`, without following a symbolic link at its end.
    pub fn locate_itself(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path.as_ref(), OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// Returns the attributes of `path`, following symbolic links.
    pub fn stat(&self, path: impl AsRef<Path>) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.locate(path)?)?)
    }

    /// Opens the directory at `path` for reading.
    pub fn open_dir(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the regular file at `path` for reading. Fails with [`io::ErrorKind::InvalidInput`] for any other file
    /// type, without opening it.
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        reopen(self.locate(path)?.as_fd())
    }

    /// Reads the regular file at `path`. Fails with [`io::ErrorKind::InvalidData`] if it has more than `cap` bytes.
    pub fn read(&self, path: impl AsRef<Path>, cap: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(path)?.take(cap + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > cap {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("is longer than {cap} bytes")));
        }
        Ok(bytes)
    }

    /// Creates a mount point at `path`: the missing parent directories (mode 0755), and a directory or an empty file
    /// (0644). Follows a dangling symbolic link and creates its target. Fails with `ENOTDIR` or `EISDIR` if `path`
    /// exists with the other type. Existing directories keep their timestamps.
    ///
    /// Returns the created paths, outermost first, relative to the root and without symbolic links.
    pub fn make_mountpoint(&self, path: impl AsRef<Path>, is_dir: bool) -> io::Result<Vec<PathBuf>> {
        let (_, made) = self.mountpoint(path, is_dir)?;
        Ok(made)
    }

    /// Like [`Rootfs::make_mountpoint`]; also returns an `O_PATH` descriptor of the mount point.
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
                // openat2(2): EAGAIN if a concurrent rename makes `..` unsafe.
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

    /// Enters one name, creating it if missing; returns the path if it was created.
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

/// Creates a directory or an empty file, and restores the parent directory's timestamps. Returns false if the name
/// exists.
fn make(dir: BorrowedFd, name: &[u8], is_dir: bool) -> io::Result<bool> {
    let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // utimensat(2) does not accept the `O_PATH` descriptor.
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
        // Undoes the umask.
        Ok(made) => rustix::fs::fchmod(made, Mode::from(if is_dir { 0o755 } else { 0o644 }))?,
        Err(Errno::EXIST) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    rustix::fs::futimens(&around, &times(&before))?;
    Ok(true)
}

/// The access and modification times of a stat result.
pub(super) fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

fn kind(fd: BorrowedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?.st_mode))
}

/// Reopens an `O_PATH` descriptor for reading if it is a regular file: opening a FIFO may block, and opening a device
/// may have side effects.
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

    /// A root directory with a file `secret`, beside another `secret` that must not be reachable.
    fn place() -> (tempfile::TempDir, PathBuf, Rootfs) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        let rootfs = Rootfs::open(&root).unwrap();
        (dir, root, rootfs)
    }

    #[test]
    fn no_link_leads_out() {
        let (dir, root, rootfs) = place();
        symlink("../../../../secret", root.join("etc/up")).unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink(dir.path().join("secret"), root.join("etc/outside")).unwrap();
        symlink("loop", root.join("etc/loop")).unwrap();
        symlink("/proc/self/root", root.join("etc/magic")).unwrap();
        for path in ["secret", "/secret", "etc/up", "/etc/absolute", "../secret", "/etc/../../secret"] {
            assert_eq!(rootfs.read(path, 100).unwrap(), b"inside", "{path}");
        }
        assert_eq!(rootfs.read("etc/outside", 100).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(rootfs.read("etc/magic/etc/passwd", 1 << 20).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(rootfs.locate("etc/loop").unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(rootfs.locate_itself("etc/loop").is_ok());
    }

    #[test]
    fn magic_links_are_not_followed() {
        let rootfs = Rootfs::open(Path::new("/proc")).unwrap();
        let said = rootfs.locate(format!("{}/root", std::process::id())).unwrap_err();
        assert_eq!(said.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn only_regular_files_of_a_sane_size_are_read() {
        let (_dir, root, rootfs) = place();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        symlink("fifo", root.join("to-fifo")).unwrap();
        for name in ["fifo", "to-fifo", "etc"] {
            assert_eq!(rootfs.read(name, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(rootfs.read("secret", 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(rootfs.read("secret", 6).unwrap(), b"inside");
    }

    #[test]
    fn mountpoints_are_made_inside_and_the_times_around_stay() {
        let (dir, root, rootfs) = place();
        let around = fs::metadata(&root).unwrap();
        let made = |path: &str, is_dir| -> Vec<String> {
            let made = rootfs.make_mountpoint(path, is_dir).unwrap();
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
    fn an_existing_mountpoint_must_have_the_right_type() {
        let (_dir, root, rootfs) = place();
        symlink("loop", root.join("loop")).unwrap();
        let refused = |path: &str, is_dir| rootfs.make_mountpoint(path, is_dir).unwrap_err().raw_os_error().unwrap();
        assert_eq!(refused("secret", true), Errno::NOTDIR.raw_os_error());
        assert_eq!(refused("secret/below", true), Errno::NOTDIR.raw_os_error());
        assert_eq!(refused("etc", false), Errno::ISDIR.raw_os_error());
        assert_eq!(refused("/", false), Errno::ISDIR.raw_os_error());
        assert_eq!(refused("loop", false), Errno::LOOP.raw_os_error());
        assert!(rootfs.make_mountpoint("/", true).unwrap().is_empty());
    }
}
