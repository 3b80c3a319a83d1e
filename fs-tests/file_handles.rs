//! File handles of writable mounts (open_by_handle_at, NFS): they open the same inode after the kernel has evicted it,
//! and after a remount.

use crate::support::bed::{UnionFixture, at, disk};
use crate::support::env::Mount;
use crate::support::faulty::{Fault, FaultControl};
use crate::support::handles::FileHandle;
use crate::support::tar::Tar;
use crate::support::writable::WritableUnion;
use plyfs::fs::{Forms, Fs, FsError, Ino, LowerDirs, LowerDirsOptions, New, ROOT, Replace};
use plyfs::meta::Kind;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount_remount};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The number of files of each kind.
const FILES_PER_KIND: usize = 128;

fn image() -> Tar {
    let dirs = ["shown", "written", "moved", "linked", "inside", "inside/deep", "removed"];
    let mut tar = dirs.iter().fold(Tar::new(), |tar, dir| tar.dir(*dir));
    for n in 0..FILES_PER_KIND {
        for dir in ["shown", "written", "moved", "linked", "inside/deep", "removed"] {
            tar = tar.file(format!("{dir}/{n}"), format!("{dir} {n}"));
        }
        tar = tar.hard_link(format!("shown/link{n}"), format!("linked/{n}"));
    }
    tar.symlink("shown/symlink", "0")
}

/// A file, its content and its handle.
struct FileWithHandle {
    path: PathBuf,
    content: String,
    handle: FileHandle,
}

/// Makes changes of every kind; returns the 1,024 files that show their effect.
fn change(at: &Path) -> Vec<FileWithHandle> {
    let path = |dir: &str, n: usize| at.join(dir).join(n.to_string());
    fs::create_dir(at.join("own")).unwrap();
    let mut files = Vec::new();
    for n in 0..FILES_PER_KIND {
        files.push((path("shown", n), format!("shown {n}")));
        File::options().append(true).open(path("written", n)).unwrap().write_all(b"+").unwrap();
        files.push((path("written", n), format!("written {n}+")));
        fs::rename(path("moved", n), path("own", n)).unwrap();
        files.push((path("own", n), format!("moved {n}")));
        if n % 2 == 0 {
            File::options().append(true).open(path("linked", n)).unwrap().write_all(b"+").unwrap();
        }
        files.push((path("linked", n), format!("linked {n}{}", if n % 2 == 0 { "+" } else { "" })));
        files.push((at.join(format!("renamed/deep/{n}")), format!("inside/deep {n}")));
        for kind in ["new", "twice", "chmod"] {
            let name = at.join(format!("own/{kind}{n}"));
            fs::write(&name, format!("{kind} {n}")).unwrap();
            files.push((name, format!("{kind} {n}")));
        }
        fs::hard_link(at.join(format!("own/twice{n}")), at.join(format!("shown/twice{n}"))).unwrap();
        rustix::fs::chmod(at.join(format!("own/chmod{n}")), Mode::from_raw_mode(0o600)).unwrap();
    }
    fs::rename(at.join("inside"), at.join("renamed")).unwrap();
    symlink("new0", at.join("own/symlink")).unwrap();
    let with_handle =
        |(path, content): (PathBuf, String)| FileWithHandle { handle: FileHandle::of(&path).unwrap(), path, content };
    files.into_iter().map(with_handle).collect()
}

fn root(mount: &Mount) -> OwnedFd {
    rustix::fs::open(mount.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// Makes the kernel evict every unused inode of a mount: a remount drops the dentries, and with them the inodes.
fn evict_inodes(mount: &Mount) {
    mount_remount(mount.path(), MountFlags::empty(), "").unwrap();
}

#[track_caller]
fn assert_all_open(mount: &Mount, files: &[FileWithHandle]) {
    let root = root(mount);
    let mut wrong = Vec::new();
    for file in files {
        let mut content = String::new();
        let opened = file.handle.open(&root, libc::O_RDONLY);
        match opened.and_then(|fd| File::from(fd).read_to_string(&mut content)) {
            Ok(_) if content == file.content => {}
            other => wrong.push(format!("{}: {other:?}, `{content}`", file.path.display())),
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), files.len(), &wrong[..wrong.len().min(9)]);
}

#[track_caller]
fn assert_stale(mount: &Mount, handles: &[FileHandle]) {
    let root = root(mount);
    for (at, handle) in handles.iter().enumerate() {
        let opened = handle.open(&root, libc::O_PATH).map_err(|e| e.raw_os_error());
        assert_eq!(opened.err(), Some(Some(libc::ESTALE)), "handle {at}");
    }
}

/// Asserts that a directory, a symbolic link and a file opened by handle are connected to the tree again.
#[track_caller]
fn assert_connected(mount: &Mount, dirs: &[(&str, FileHandle)]) {
    let root = root(mount);
    for (path, handle) in dirs {
        let dir = handle.open(&root, libc::O_RDONLY | libc::O_DIRECTORY).unwrap_or_else(|e| panic!("{path}: {e}"));
        let shown = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).unwrap();
        assert_eq!(shown, mount.path().join(path));
        let above = rustix::fs::statat(&dir, "..", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(above.st_ino, fs::metadata(mount.path().join(path).parent().unwrap()).unwrap().ino(), "{path}");
    }
}

fn check_handles_stay_valid(fixture: &WritableUnion) {
    let mount = fixture.mount();
    let at = mount.path();
    let removed: Vec<FileHandle> =
        (0..FILES_PER_KIND).map(|n| FileHandle::of(&at.join(format!("removed/{n}"))).unwrap()).collect();
    let files = change(at);
    assert_eq!(files.len(), 8 * FILES_PER_KIND);
    let dirs = ["own", "shown", "renamed", "renamed/deep", "linked"];
    let dirs = dirs.map(|dir| (dir, FileHandle::of(&at.join(dir)).unwrap()));
    let links = ["own/symlink", "shown/symlink"].map(|link| FileHandle::of(&at.join(link)).unwrap());
    fs::remove_dir_all(at.join("removed")).unwrap();
    evict_inodes(&mount);
    assert_all_open(&mount, &files);
    evict_inodes(&mount);
    assert_stale(&mount, &removed);
    assert_connected(&mount, &dirs);
    evict_inodes(&mount);
    links.iter().for_each(|link| drop(link.open(&root(&mount), libc::O_PATH | libc::O_NOFOLLOW).unwrap()));
    fixture.unmount(mount);
    // In reverse order, so that no earlier lookup has loaded a file's parent directories.
    let again = fixture.mount();
    assert_all_open(&again, &files.into_iter().rev().collect::<Vec<_>>());
    links.iter().for_each(|link| drop(link.open(&root(&again), libc::O_PATH | libc::O_NOFOLLOW).unwrap()));
    assert_stale(&again, &removed);
    assert_connected(&again, &dirs);
    fixture.unmount(again);
    let again = fixture.mount();
    assert_connected(&again, &dirs);
    assert_stale(&again, &removed);
    fixture.unmount(again);
}

#[test]
fn file_handles_open_the_same_inodes_on_a_writable_image() {
    check_handles_stay_valid(&WritableUnion::with_layer(image().finish()));
}

#[test]
fn file_handles_open_the_same_inodes_on_directories() {
    check_handles_stay_valid(&WritableUnion::over_directories(image().finish(), 2));
}

/// Handles of removed inodes stay stale although the lower file system reuses their inode numbers.
fn check_removed_handles_are_stale(fixture: &WritableUnion) {
    let mount = fixture.mount();
    let at = mount.path();
    let mut gone = Vec::new();
    for n in 0..50 {
        let (file, link) = (at.join(format!("file{n}")), at.join(format!("link{n}")));
        fs::write(&file, "old").unwrap();
        symlink("old", &link).unwrap();
        gone.extend([&file, &link].map(|path| FileHandle::of(path).unwrap()));
        fs::remove_file(file).unwrap();
        fs::remove_file(link).unwrap();
    }
    let open = fs::write(at.join("open"), "still open").and_then(|()| File::open(at.join("open"))).unwrap();
    let held = FileHandle::of(&at.join("open")).unwrap();
    fs::remove_file(at.join("open")).unwrap();
    for n in 0..50 {
        fs::write(at.join(format!("other{n}")), "another").unwrap();
        symlink("another", at.join(format!("another{n}"))).unwrap();
    }
    assert_stale(&mount, &gone);
    evict_inodes(&mount);
    assert_stale(&mount, &gone);
    let mut content = String::new();
    File::from(held.open(&root(&mount), libc::O_RDONLY).unwrap()).read_to_string(&mut content).unwrap();
    assert_eq!(content, "still open");
    drop(open);
    gone.push(held);
    assert_stale(&mount, &gone);
    fixture.unmount(mount);
    let again = fixture.mount();
    assert_stale(&again, &gone);
    fixture.unmount(again);
}

#[test]
fn a_file_handle_of_a_removed_inode_is_stale() {
    check_removed_handles_are_stale(&WritableUnion::with_layer(image().finish()));
}

#[test]
fn a_file_handle_of_a_removed_inode_is_stale_on_directories() {
    check_removed_handles_are_stale(&WritableUnion::over_directories(image().finish(), 2));
}

#[test]
fn an_inode_is_found_by_number_and_the_upper_directory_is_read_once() {
    let (fixture, control) = (UnionFixture::new(vec![image().finish()]), FaultControl::default());
    let fs = fixture.open(disk);
    let path = |fs: &Fs, path: &str| at(fs, path).unwrap().ino;
    let (shown, removed, inside) = (path(&fs, "shown"), path(&fs, "removed"), path(&fs, "inside"));
    let known = ["shown/3", "moved/3", "written/3", "linked/3", "inside/deep/3", "inside", "shown/symlink"];
    let mut known: Vec<Ino> = known.iter().map(|name| path(&fs, name)).collect();
    let file = New { kind: Kind::File, mode: 0o644, umask: 0, rdev: 0, uid: 0, gid: 0, target: b"" };
    let own = fs.make(shown, b"own", &New { kind: Kind::Dir, ..file }).unwrap().ino;
    known.extend([own, fs.make(own, b"file", &file).unwrap().ino]);
    fs.write(known[2], 0, b"+").unwrap();
    fs.rename(path(&fs, "moved"), b"3", own, b"3", Replace::Allow).unwrap();
    fs.rename(ROOT, b"inside", own, b"inside", Replace::Allow).unwrap();
    let gone = [path(&fs, "removed/3"), fs.make(removed, b"new", &file).unwrap().ino];
    fs.unlink(removed, b"3").unwrap();
    fs.unlink(removed, b"new").unwrap();
    let before: Vec<_> = known.iter().map(|ino| fs.getattr(*ino).unwrap()).collect();
    drop(fs);
    let is_stale = |fs: &Fs, ino: Ino| matches!(fs.by_number(ino), Err(FsError::Stale(_)));
    // A fresh mount for each inode: no earlier lookup has read anything.
    for (ino, before) in known.iter().zip(before) {
        let fs = fixture.open(disk);
        let found = fs.by_number(*ino).unwrap();
        assert_eq!((found.ino, found.kind, found.nlink, found.size), (*ino, before.kind, before.nlink, before.size));
    }
    let fs = fixture.open(|| control.backing());
    assert!(is_stale(&fs, gone[0]));
    control.arm(0, Fault::Die);
    for ino in gone.into_iter().chain([0, 1 << 30, 1 << 45, 1 << 61, u64::MAX]) {
        assert!(is_stale(&fs, ino), "{ino}");
    }
    assert_eq!(control.disarm(), None, "a call for a number that nothing has");
    drop(fs);
    let fs = fixture.open(disk);
    assert_eq!((fs.by_number(known[4]).unwrap().ino, fs.parent(inside).unwrap()), (known[4], own));
}

#[test]
fn other_lower_directories_give_file_handles_another_generation() {
    let dirs = ["a", "b"].map(|_| tempfile::tempdir().unwrap());
    let generation = |layers: &[&tempfile::TempDir], ino: Ino| {
        let layers = layers.iter().map(|dir| dir.path().to_owned()).collect();
        let options = LowerDirsOptions { layers, static_nlink: false, descriptors: 4 };
        let dirs = LowerDirs::open(&options).map_err(|(_, e)| e).unwrap();
        Fs::of_dirs(dirs, None, Forms::default(), None).unwrap().generation(ino)
    };
    let [a, b] = &dirs;
    let (lasting, passing) = (1 << 20, (1 << 60) + 1);
    assert_eq!(generation(&[a, b], lasting), generation(&[a, b], lasting));
    for other in [&[a][..], &[b], &[b, a]] {
        assert_ne!(generation(&[a, b], lasting), generation(other, lasting));
    }
    assert_ne!(generation(&[a, b], passing), generation(&[a, b], passing));
    assert_eq!(generation(&[a, b], ROOT), 0, "the kernel makes the root itself");
}
