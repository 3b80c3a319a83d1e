//! Directory listings (readdir) of directories that change meanwhile: every pass ends, and shows each unchanged name
//! exactly once.

use crate::support::bed::{UnionFixture, at, disk};
use crate::support::env::run;
use crate::support::tar::Tar;
use crate::support::writable::WritableUnion;
use plyfs::fs::{Fs, Ino, New, ROOT, Replace};
use plyfs::meta::Kind;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Number of names in one answer.
const ENTRIES_PER_READ: usize = 7;
/// The largest directory offset that a 32-bit program can use (getdents(2)).
const MAX_OFFSET: u64 = (1 << 31) - 1;

const FILE: New<'static> = New { kind: Kind::File, mode: 0o644, umask: 0, rdev: 0, uid: 0, gid: 0, target: b"" };

/// An image whose directory `d` has this many files, and whose directory `e` has none.
fn image(files: usize) -> Tar {
    (0..files).fold(Tar::new().dir("d").dir("e"), |tar, n| tar.file(format!("d/f{n:05}"), "x"))
}

fn ino(fs: &Fs, path: &str) -> Ino {
    at(fs, path).unwrap().ino
}

/// Creates a directory with this many files in the upper directory.
fn new_dir(fs: &Fs, files: usize) -> Ino {
    let dir = fs.make(ROOT, b"own", &New { kind: Kind::Dir, mode: 0o755, ..FILE }).unwrap().ino;
    for n in 0..files {
        fs.make(dir, format!("f{n:05}").as_bytes(), &FILE).unwrap();
    }
    dir
}

/// Reads a directory once, answer by answer, and calls `each` after each name. Returns how often each name was seen.
fn read_directory(fs: &Fs, dir: Ino, mut each: impl FnMut(&[u8])) -> BTreeMap<Vec<u8>, usize> {
    let (mut seen, mut from, mut total) = (BTreeMap::new(), 2, 0);
    loop {
        let mut answer = Vec::new();
        fs.readdir(dir, from, |entry| {
            if answer.len() < ENTRIES_PER_READ {
                answer.push((entry.name.to_vec(), entry.next));
            }
            answer.len() == ENTRIES_PER_READ
        })
        .unwrap();
        let Some((_, next)) = answer.last() else { return seen };
        from = *next;
        for (name, next) in answer {
            assert!(next <= MAX_OFFSET, "a place of {next}");
            *seen.entry(name.clone()).or_default() += 1;
            total += 1;
            assert!(total < 20_000, "the pass does not end");
            each(&name);
        }
    }
}

fn append_suffix(name: &[u8], suffix: &str) -> Vec<u8> {
    [name, suffix.as_bytes()].concat()
}

/// Renames every name in a directory as it is listed: as many names are listed as there were.
fn rename_all(fs: &Fs, dir: Ino, files: usize) {
    let seen = read_directory(fs, dir, |name| {
        fs.rename(dir, name, dir, &append_suffix(name, ".new"), Replace::Allow).unwrap();
    });
    assert_eq!(seen.len(), files);
    assert!(seen.iter().all(|(name, times)| *times == 1 && !name.ends_with(b".new")), "{seen:?}");
    let after = read_directory(fs, dir, |_| ());
    assert_eq!(after.len(), files);
    assert!(after.keys().all(|name| name.ends_with(b".new")), "{after:?}");
}

#[test]
fn a_listing_shows_a_file_renamed_meanwhile_only_once() {
    const FILES: usize = 500;
    let fixture = UnionFixture::new(vec![image(FILES).finish()]);
    let fs = fixture.open(disk);
    rename_all(&fs, new_dir(&fs, FILES), FILES);
    rename_all(&fs, ino(&fs, "d"), FILES);
    // Once more, with names that are in the upper directory already, and again after a remount.
    drop(fs);
    let fs = fixture.open(disk);
    for dir in ["d", "own"] {
        let dir = ino(&fs, dir);
        let seen = read_directory(&fs, dir, |name| {
            fs.rename(dir, name, dir, &append_suffix(name, ".again"), Replace::Allow).unwrap();
        });
        assert_eq!((seen.len(), seen.values().max()), (FILES, Some(&1)));
    }
}

#[test]
fn a_listing_ends_although_each_entry_creates_or_moves_names() {
    const FILES: usize = 60;
    let fixture = UnionFixture::new(vec![image(FILES).finish()]);
    let fs = fixture.open(disk);
    let own = new_dir(&fs, FILES);
    let (below, other) = (ino(&fs, "d"), ino(&fs, "e"));
    let rename = |a, from: &[u8], b, to: &[u8]| fs.rename(a, from, b, to, Replace::Allow).map(drop).unwrap();
    for dir in [own, below] {
        let names = read_directory(&fs, dir, |_| ()).len();
        let mut made = 0;
        let seen = read_directory(&fs, dir, |_| {
            made += 1;
            fs.make(dir, format!("made{made}").as_bytes(), &FILE).unwrap();
        });
        assert_eq!(seen.len(), names, "names made");
        let names = names + made;
        let seen = read_directory(&fs, dir, |name| {
            let file = fs.lookup(dir, name).unwrap().ino;
            fs.link(file, dir, &append_suffix(name, "+")).unwrap();
            fs.unlink(dir, name).unwrap();
        });
        assert_eq!((seen.len(), seen.values().max()), (names, Some(&1)), "names linked and removed");
        let seen = read_directory(&fs, dir, |name| {
            rename(dir, name, other, name);
            rename(other, name, dir, name);
        });
        assert_eq!((seen.len(), seen.values().max()), (names, Some(&1)), "names moved out and back");
    }
    // The image's names keep their offsets: a name replaced before the listing reaches it is listed there, once.
    let fixture = UnionFixture::new(vec![image(FILES).finish()]);
    let fs = fixture.open(disk);
    let dir = ino(&fs, "d");
    fs.unlink(dir, format!("f{:05}", FILES - 1).as_bytes()).unwrap();
    let mut seen_as = 0;
    let seen = read_directory(&fs, dir, |name| {
        seen_as += 1;
        let to = format!("f{:05}", FILES - 1);
        if name != to.as_bytes() {
            fs.rename(dir, name, dir, to.as_bytes(), Replace::Allow).unwrap();
        }
    });
    assert_eq!((seen.len(), seen_as), (FILES, FILES));
}

#[test]
fn names_that_stay_are_listed_once_while_they_are_replaced_and_exchanged() {
    const FILES: usize = 200;
    let fixture = UnionFixture::new(vec![image(FILES).finish()]);
    let fs = fixture.open(disk);
    let own = new_dir(&fs, FILES);
    for dir in [own, ino(&fs, "d")] {
        let stays: Vec<Vec<u8>> = (0..FILES).map(|n| format!("f{n:05}").into_bytes()).collect();
        let mut step = 0;
        let seen = read_directory(&fs, dir, |_| {
            // Every name is replaced and exchanged in turn, also names far before and far behind the reader.
            let (this, that) = (&stays[step * 7 % FILES], &stays[(step * 13 + 1) % FILES]);
            step += 1;
            fs.make(dir, b"new", &FILE).unwrap();
            fs.rename(dir, b"new", dir, this, Replace::Allow).unwrap();
            if this != that {
                fs.rename(dir, this, dir, that, Replace::Exchange).unwrap();
            }
        });
        for name in &stays {
            assert_eq!(seen.get(name), Some(&1), "{}", name.escape_ascii());
        }
    }
}

#[test]
fn directory_offsets_stay_valid_after_a_copy_up() {
    const FILES: usize = 50;
    let fixture = UnionFixture::new(vec![image(FILES).finish()]);
    let fs = fixture.open(disk);
    let dir = ino(&fs, "d");
    let mut step = 0;
    let seen = read_directory(&fs, dir, |_| {
        step += 1;
        if step > FILES / 2 {
            fs.make(dir, format!("new{step}").as_bytes(), &FILE).unwrap();
        }
    });
    let stays = |name: &String| seen.get(name.as_bytes()) == Some(&1);
    assert!((0..FILES).map(|n| format!("f{n:05}")).all(|name| stays(&name)), "{seen:?}");
    assert_eq!(seen.len(), FILES, "{seen:?}");
}

/// Calls `readdir` and `rename` in one loop, as programs do.
fn rename_as_listed(dir: &Path, most: usize) -> usize {
    let open = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut listing = Dir::read_from(&open).unwrap();
    let mut seen = 0;
    while let Some(entry) = listing.read() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        seen += 1;
        assert!(seen <= 4 * most, "the listing does not end");
        rustix::fs::renameat(&open, name, &open, append_suffix(name, ".new")).unwrap();
    }
    seen
}

/// More entries than one FUSE answer holds, and than one getdents(2) call returns.
const FILES: usize = 1500;

/// Lists through the kernel, which caches listings: over an image, and over directories.
fn check_on_mount(fixture: &WritableUnion) {
    let mount = fixture.mount();
    let own = mount.path().join("own");
    fs::create_dir(&own).unwrap();
    for n in 0..FILES {
        fs::write(own.join(format!("f{n:05}")), "").unwrap();
    }
    for dir in [own, mount.path().join("d")] {
        assert_eq!(rename_as_listed(&dir, FILES), FILES, "{}", dir.display());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES);
        // One reader is half through when another lists all, so that the kernel's cached listing is newer.
        let mut half = fs::read_dir(&dir).unwrap();
        let mut seen: Vec<_> = half.by_ref().take(FILES / 2).map(|entry| entry.unwrap().file_name()).collect();
        let last = dir.join(seen.last().unwrap());
        fs::rename(&last, dir.join("moved")).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES);
        seen.extend(half.map(|entry| entry.unwrap().file_name()));
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((seen.len(), count), (FILES, FILES));
        // Exchanged names keep their offsets, in the kernel's cache too.
        let pair =
            [dir.join(&seen[0]), dir.join(&seen[1])].map(|name| if name == last { dir.join("moved") } else { name });
        rustix::fs::renameat_with(CWD, &pair[0], CWD, &pair[1], RenameFlags::EXCHANGE).unwrap();
        assert!(rustix::fs::statat(CWD, &pair[0], AtFlags::empty()).is_ok());
    }
    fixture.unmount(mount);
}

#[test]
fn renaming_each_entry_as_it_is_listed_ends_on_a_mount() {
    check_on_mount(&WritableUnion::with_layer(image(FILES).finish()));
}

#[test]
fn renaming_each_entry_as_it_is_listed_ends_on_a_mount_of_directories() {
    check_on_mount(&WritableUnion::over_directories(image(FILES).finish(), 2));
}

#[test]
fn find_exec_mv_ends() {
    const FILES: usize = 400;
    let fixture = WritableUnion::with_layer(image(FILES).finish());
    let mount = fixture.mount();
    let dir = mount.path().join("d");
    let found = run(Command::new("timeout")
        .args(["60", "find"])
        .arg(&dir)
        .args(["-type", "f", "-exec", "mv", "{}", "{}.x", ";"]));
    assert_eq!((found.code, &*found.stderr), (0, ""), "{found:?}");
    let names: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), FILES);
    assert!(names.iter().all(|name| name.ends_with(".x") && !name.ends_with(".x.x")), "a name was found again");
    fixture.unmount(mount);
}
