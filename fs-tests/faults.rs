//! Fault injection: makes each system call of each operation on the union fail once, and ends the process at each call
//! once.
//!
//! After a failed call, the operation has either reported the error and changed nothing, or succeeded. After the death
//! of the process, the next mount shows the state before or after the operation. After a power failure, the same holds
//! except for unsynced data.

use crate::support::bed::{Snapshot, UnionFixture, at, disk, split, take_snapshot};
use crate::support::faulty::{Fault, FaultControl, RefusedCalls};
use crate::support::tar::{Entry, Sparse, Tar};
use plyfs::fs::{Change, Fs, FsError, New, Replace, SetTime};
use plyfs::meta::{Kind, Time};
use rustix::io::Errno;

type Step = fn(&Fs) -> Result<(), FsError>;

/// An operation under test, the preparation before it, and its name.
struct Case {
    name: &'static str,
    before: &'static [Step],
    step: Step,
    /// The parts of an operation that makes several changes in one request: the process may die between them.
    parts: &'static [Step],
}

fn image() -> UnionFixture {
    UnionFixture::new(vec![layer()])
}

fn layer() -> Vec<u8> {
    let segments = [(8192, b"far".to_vec())].map(|(at, data)| (at as u64, data));
    Tar::new()
        .dir("d")
        .add(Entry::file("d/file", "the lower content").mtime(1_000_000, 5).xattr("user.a", "1").mode(0o640))
        .dir("d/sub")
        .file("d/sub/deep", "deep")
        .add(Entry::file("d/sub/one", "linked").mtime(1_000_000, 0))
        .hard_link("d/two", "d/sub/one")
        .hard_link("three", "d/sub/one")
        .symlink("d/symlink", "file")
        .add(Entry::sparse("sparse", 16384, &segments, Sparse::OldGnu))
        .dir("empty")
        .dir("other")
        .file("other/x", "x")
        .finish()
}

/// The kind of union that the cases run on.
#[derive(Clone, Copy)]
struct UnionKind {
    refused: RefusedCalls,
    directories: bool,
}

/// One setting for each form of whiteouts: devices, attributes on an image and on directories, names.
const UNION_KINDS: [UnionKind; 4] = [
    UnionKind { refused: RefusedCalls::Nothing, directories: false },
    UnionKind { refused: RefusedCalls::Devices, directories: false },
    UnionKind { refused: RefusedCalls::Devices, directories: true },
    UnionKind { refused: RefusedCalls::Attributes, directories: true },
];

impl UnionKind {
    fn fixture(self) -> UnionFixture {
        if self.directories { UnionFixture::unpacked(vec![layer()]) } else { image() }
    }

    fn control(self) -> FaultControl {
        FaultControl::with_refused(self.refused)
    }

    /// The tree that a fresh mount without faults shows.
    fn snapshot_after_remount(self, fixture: &UnionFixture) -> Snapshot {
        take_snapshot(&fixture.open(|| self.control().backing()))
    }

    /// A line for each path. Leaves out inode numbers and times of new files, and over directories all inode numbers,
    /// as the next mount may renumber; without attributes, a copied-up inode does not keep its number either.
    fn lines(self, snapshot: &Snapshot) -> Vec<String> {
        let bare = self.refused == RefusedCalls::Attributes;
        let own = |ino: u64| if self.directories || ino >= plyfs::upper::FIRST_OWN { 0 } else { ino };
        let line = |(path, s): (&String, &crate::support::bed::InodeState)| {
            let mut attr = s.attr;
            attr.7 = if attr.7 > 1_500_000_000 { 0 } else { attr.7 };
            let xattrs = s.xattrs.iter().filter(|_| !bare).collect::<Vec<_>>();
            format!("{path} {} {attr:?} {} {xattrs:?}", own(s.ino), s.content.escape_ascii())
        };
        snapshot.iter().map(line).collect()
    }

    /// Panics with the differing lines.
    #[track_caller]
    fn assert_same(self, found: &Snapshot, wanted: &Snapshot, what: &str) {
        let (found, wanted) = (self.lines(found), self.lines(wanted));
        let missing: Vec<&String> = wanted.iter().filter(|line| !found.contains(line)).collect();
        let unexpected: Vec<&String> = found.iter().filter(|line| !wanted.contains(line)).collect();
        let refused = self.refused;
        let differences = format!("missing: {missing:#?}\nunexpected: {unexpected:#?}");
        assert!(missing.is_empty() && unexpected.is_empty(), "{refused:?}: {what}\n{differences}");
    }

    /// The states before and after the operation, and after each part. `None` if the setting does not support the
    /// operation: lower directories cannot be renamed without redirects, and some file systems have no attributes.
    fn states(self, fixture: &UnionFixture, case: &Case) -> Option<(Snapshot, Snapshot, Vec<Snapshot>)> {
        let cannot = |e: &FsError| [libc::EXDEV, libc::EOPNOTSUPP].contains(&e.errno());
        fixture.clear();
        let fs = fixture.open(|| self.control().backing());
        let mut before = Snapshot::new();
        for step in case.before.iter().chain([&case.step]) {
            before = take_snapshot(&fs);
            match step(&fs) {
                Err(e) if self.refused == RefusedCalls::Attributes && cannot(&e) => return None,
                done => done.unwrap_or_else(|e| panic!("{:?}: {}: {e}", self.refused, case.name)),
            }
        }
        let after_part = |part: &Step| {
            let fs = prepare(fixture, case, &self.control());
            part(&fs).unwrap_or_else(|e| panic!("{}: a part of it: {e}", case.name));
            take_snapshot(&fs)
        };
        Some((before, take_snapshot(&fs), case.parts.iter().map(after_part).collect()))
    }
}

fn new(kind: Kind) -> New<'static> {
    New { kind, mode: 0o750, umask: 0, rdev: 0x103, uid: 7, gid: 8, target: b"to" }
}

fn make(fs: &Fs, path: &str, kind: Kind) -> Result<(), FsError> {
    let (dir, name) = split(fs, path)?;
    fs.make(dir, name, &new(kind)).map(drop)
}

fn rename(fs: &Fs, from: &str, to: &str, replace: Replace) -> Result<(), FsError> {
    let ((from, name), (to, new)) = (split(fs, from)?, split(fs, to)?);
    fs.rename(from, name, to, new, replace).map(drop)
}

fn write(fs: &Fs, path: &str, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
    fs.write(at(fs, path)?.ino, offset, bytes)
}

fn change(fs: &Fs, path: &str, change: Change) -> Result<(), FsError> {
    fs.setattr(at(fs, path)?.ino, &change).map(drop)
}

fn unlink(fs: &Fs, path: &str) -> Result<(), FsError> {
    let (dir, name) = split(fs, path)?;
    fs.unlink(dir, name)
}

fn rmdir(fs: &Fs, path: &str) -> Result<(), FsError> {
    let (dir, name) = split(fs, path)?;
    fs.rmdir(dir, name)
}

fn link(fs: &Fs, from: &str, to: &str) -> Result<(), FsError> {
    let (dir, name) = split(fs, to)?;
    fs.link(at(fs, from)?.ino, dir, name).map(drop)
}

const NONE: Change = Change { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, ctime: None };
const OLD: SetTime = SetTime::To(Time { sec: 77, nsec: 1 });

macro_rules! case {
    ($name:literal, [$($before:expr),*], $step:expr) => {
        Case { name: $name, before: &[$($before),*], step: $step, parts: &[] }
    };
    ($name:literal, $step:expr, parts: [$($part:expr),*]) => {
        Case { name: $name, before: &[], step: $step, parts: &[$($part),*] }
    };
}

fn cases() -> Vec<Case> {
    let mut cases = creation_cases();
    cases.extend(change_cases());
    cases.extend(removal_cases());
    cases.extend(rename_cases());
    cases
}

fn creation_cases() -> Vec<Case> {
    vec![
        case!("create", [], |fs| make(fs, "d/new", Kind::File)),
        case!("create as root", [], |fs| {
            let (dir, name) = split(fs, "d/sub/new")?;
            fs.make(dir, name, &New { uid: 0, gid: 0, ..new(Kind::File) }).map(drop)
        }),
        case!("create where a file of the image was", [|fs| unlink(fs, "d/file")], |fs| make(fs, "d/file", Kind::File)),
        case!("mkdir", [], |fs| make(fs, "d/sub/new", Kind::Dir)),
        case!("mkdir where a directory was", [|fs| rmdir(fs, "empty")], |fs| make(fs, "empty", Kind::Dir)),
        case!("mkdir where a full one was", [|fs| unlink(fs, "other/x"), |fs| rmdir(fs, "other")], |fs| {
            make(fs, "other", Kind::Dir)
        }),
        case!("symlink", [], |fs| make(fs, "d/new", Kind::Symlink)),
        case!("mknod", [], |fs| make(fs, "d/new", Kind::Char)),
        case!("fifo over a whiteout", [|fs| unlink(fs, "d/file")], |fs| make(fs, "d/file", Kind::Fifo)),
        case!("link of a lower file", [], |fs| link(fs, "d/file", "d/sub/new")),
        case!("link of a lower hard link", [], |fs| link(fs, "three", "d/sub/new")),
        case!("link over a whiteout", [|fs| unlink(fs, "d/file")], |fs| link(fs, "sparse", "d/file")),
        case!("link of a new file", [|fs| make(fs, "n", Kind::File)], |fs| link(fs, "n", "d/n")),
    ]
}

fn change_cases() -> Vec<Case> {
    vec![
        case!("chmod", [], |fs| change(fs, "d/file", Change { mode: Some(0o4711), ..NONE })),
        case!(
            "chown and chmod",
            |fs| change(fs, "d/file", Change { mode: Some(0o4711), uid: Some(3), gid: Some(4), ..NONE }),
            parts: [|fs| change(fs, "d/file", Change { uid: Some(3), gid: Some(4), ..NONE })]
        ),
        case!("chmod of a hard link", [], |fs| change(fs, "d/two", Change { mode: Some(0o600), ..NONE })),
        case!("chmod of a directory", [], |fs| change(fs, "d/sub", Change { mode: Some(0o700), ..NONE })),
        case!("utimens", [], |fs| change(fs, "sparse", Change { mtime: Some(OLD), ..NONE })),
        case!("utimens of a symlink", [], |fs| change(fs, "d/symlink", Change { mtime: Some(OLD), ..NONE })),
        case!(
            "truncate to nothing",
            |fs| change(fs, "d/file", Change { size: Some(0), mtime: Some(OLD), ..NONE }),
            parts: [|fs| change(fs, "d/file", Change { size: Some(0), ..NONE }), empty_with_old_time]
        ),
        case!(
            "truncate",
            |fs| change(fs, "d/file", Change { size: Some(5), mtime: Some(OLD), ..NONE }),
            parts: [|fs| change(fs, "d/file", Change { size: Some(5), ..NONE }), truncate_with_old_time]
        ),
        case!(
            "extend",
            |fs| change(fs, "d/file", Change { size: Some(50), mtime: Some(OLD), ..NONE }),
            parts: [|fs| change(fs, "d/file", Change { size: Some(50), ..NONE }), touch]
        ),
        case!("setxattr", [], |fs| fs.setxattr(at(fs, "d/file")?.ino, b"user.b", b"2", 0)),
        case!("setxattr of a hard link", [], |fs| fs.setxattr(at(fs, "three")?.ino, b"user.b", b"2", 0)),
        case!("removexattr", [], |fs| fs.removexattr(at(fs, "d/file")?.ino, b"user.a")),
    ]
}

/// The file's modification time in the image.
const LOWER_MTIME: SetTime = SetTime::To(Time { sec: 1_000_000, nsec: 5 });

fn empty_with_old_time(fs: &Fs) -> Result<(), FsError> {
    change(fs, "d/file", Change { size: Some(0), mtime: Some(LOWER_MTIME), ..NONE })
}

fn truncate_with_old_time(fs: &Fs) -> Result<(), FsError> {
    change(fs, "d/file", Change { size: Some(5), mtime: Some(LOWER_MTIME), ..NONE })
}

fn touch(fs: &Fs) -> Result<(), FsError> {
    change(fs, "d/file", Change { mtime: Some(SetTime::Now), ..NONE })
}

fn removal_cases() -> Vec<Case> {
    vec![
        case!("unlink of a lower file", [], |fs| unlink(fs, "d/file")),
        case!("unlink of a lower hard link", [], |fs| unlink(fs, "d/two")),
        case!("unlink of a copied file", [|fs| write(fs, "d/file", 0, b"T")], |fs| unlink(fs, "d/file")),
        case!("unlink of a new file", [|fs| make(fs, "d/n", Kind::File)], |fs| unlink(fs, "d/n")),
        case!("unlink of an open file", [|fs| write(fs, "d/file", 0, b"T")], |fs| {
            fs.remember(at(fs, "d/file")?.ino);
            unlink(fs, "d/file")
        }),
        case!("rmdir of a lower directory", [], |fs| rmdir(fs, "empty")),
        case!("rmdir of an emptied one", [|fs| unlink(fs, "other/x")], |fs| rmdir(fs, "other")),
        case!("rmdir of a new one", [|fs| make(fs, "n", Kind::Dir)], |fs| rmdir(fs, "n")),
    ]
}

fn rename_cases() -> Vec<Case> {
    vec![
        case!("rename of a lower file", [], |fs| rename(fs, "d/file", "moved", Replace::Allow)),
        case!("rename of a lower hard link", [], |fs| rename(fs, "three", "d/four", Replace::Forbid)),
        case!("rename of a lower directory", [], |fs| rename(fs, "d", "moved", Replace::Allow)),
        case!("rename of a moved directory", [|fs| rename(fs, "d", "m", Replace::Allow)], |fs| {
            rename(fs, "m", "d", Replace::Allow)
        }),
        case!("rename of a directory into another", [], |fs| rename(fs, "d/sub", "other/sub", Replace::Allow)),
        case!("rename over a lower file", [], |fs| rename(fs, "d/file", "other/x", Replace::Allow)),
        case!("rename over a lower hard link", [], |fs| rename(fs, "d/file", "three", Replace::Allow)),
        case!("rename over an empty lower directory", [], |fs| rename(fs, "d", "empty", Replace::Allow)),
        case!("rename over an emptied directory", [|fs| unlink(fs, "other/x")], |fs| {
            rename(fs, "d", "other", Replace::Allow)
        }),
        case!(
            "rename of a new directory over an emptied one",
            [|fs| unlink(fs, "other/x"), |fs| make(fs, "n", Kind::Dir)],
            |fs| { rename(fs, "n", "other", Replace::Allow) }
        ),
        case!(
            "rename of a directory over a whiteout",
            [|fs| unlink(fs, "sparse"), |fs| make(fs, "n", Kind::Dir)],
            |fs| { rename(fs, "n", "sparse", Replace::Allow) }
        ),
        case!("rename of a file over a whiteout", [|fs| unlink(fs, "sparse")], |fs| {
            rename(fs, "d/file", "sparse", Replace::Forbid)
        }),
        case!("exchange of files", [], |fs| rename(fs, "d/file", "other/x", Replace::Exchange)),
        case!("exchange of a file and a directory", [], |fs| rename(fs, "d/file", "other", Replace::Exchange)),
        case!("exchange of directories", [], |fs| rename(fs, "d/sub", "other", Replace::Exchange)),
    ]
}

fn prepare(fixture: &UnionFixture, case: &Case, control: &FaultControl) -> Fs {
    fixture.clear();
    let fs = fixture.open(|| control.backing());
    for step in case.before {
        step(&fs).unwrap_or_else(|e| panic!("{}: preparation: {e}", case.name));
    }
    fs
}

#[test]
fn a_failed_system_call_leaves_the_old_or_the_new_state() {
    for union_kind in UNION_KINDS {
        let fixture = union_kind.fixture();
        for case in cases() {
            fail_each_call(union_kind, &fixture, &case);
        }
    }
}

fn fail_each_call(union_kind: UnionKind, fixture: &UnionFixture, case: &Case) {
    let Some((before, after, parts)) = union_kind.states(fixture, case) else { return };
    for number in 0.. {
        // The union treats every errno alike, and must return it to the caller.
        let errno = [Errno::NOSPC, Errno::IO, Errno::DQUOT][number % 3];
        let control = union_kind.control();
        let fs = prepare(fixture, case, &control);
        control.arm(number, Fault::Fail(errno));
        let done = (case.step)(&fs);
        let Some(call) = control.disarm() else {
            assert!(done.is_ok() && number > 0, "{}: failed without a fault", case.name);
            break;
        };
        let what = format!("{}: call {number} ({call}) fails with {errno:?}: {done:?}", case.name);
        if let Err(e) = done {
            assert_eq!(e.errno(), errno.raw_os_error(), "{what}");
            union_kind.assert_same(&take_snapshot(&fs), &before, &what);
            (case.step)(&fs).unwrap_or_else(|e| panic!("{what}: again: {e}"));
        }
        let found = take_snapshot(&fs);
        if !parts.iter().any(|part| union_kind.lines(part) == union_kind.lines(&found)) {
            union_kind.assert_same(&found, &after, &what);
        }
        drop(fs);
        let remounted = union_kind.snapshot_after_remount(fixture);
        union_kind.assert_same(&remounted, &found, &format!("{what}; after a remount"));
    }
}

#[test]
fn a_crash_at_any_system_call_leaves_the_old_or_the_new_state() {
    for union_kind in UNION_KINDS {
        let fixture = union_kind.fixture();
        for case in cases() {
            die_at_each_call(union_kind, &fixture, &case);
        }
    }
}

fn die_at_each_call(union_kind: UnionKind, fixture: &UnionFixture, case: &Case) {
    let Some((before, after, parts)) = union_kind.states(fixture, case) else { return };
    let (mut old, mut new) = (0, 0);
    for number in 0.. {
        let control = union_kind.control();
        let fs = prepare(fixture, case, &control);
        control.sync_all();
        control.arm(number, Fault::Die);
        let done = (case.step)(&fs);
        let Some(call) = control.disarm() else { break };
        drop(fs);
        control.lose_unsynced();
        let found = union_kind.snapshot_after_remount(fixture);
        let what = format!("{}: dies at call {number} ({call}): {done:?}", case.name);
        if union_kind.lines(&found) == union_kind.lines(&before) {
            old += 1;
        } else if !parts.iter().any(|part| union_kind.lines(part) == union_kind.lines(&found)) {
            union_kind.assert_same(&found, &after, &what);
            new += 1;
        }
        let left = std::fs::read_dir(fixture.work().join("plyfs/tmp")).unwrap().count();
        let links = std::fs::read_dir(fixture.work().join("plyfs/links")).unwrap().count();
        assert_eq!((left, links), (0, 0), "{what}: the work directory is not clean");
    }
    assert!(old > 0, "{}: no fault hit before the change, {new} after it", case.name);
}

/// Written and synced data survives, and only the written range ever changes.
#[test]
fn a_write_interrupted_by_a_crash_changes_only_its_own_bytes() {
    let fixture = image();
    for path in ["d/file", "three", "sparse"] {
        for number in 0.. {
            fixture.clear();
            let control = FaultControl::default();
            let fs = fixture.open(|| control.backing());
            let ino = at(&fs, path).unwrap().ino;
            let old = crate::support::bed::content(&fs, ino);
            control.arm(number, Fault::Die);
            let synced = fs.write(ino, 3, b"NEW").and_then(|()| fs.fsync(ino, true)).is_ok();
            let faulted_call = control.disarm();
            drop(fs);
            control.lose_unsynced();
            let fs = fixture.open(disk);
            let found = crate::support::bed::content(&fs, at(&fs, path).unwrap().ino);
            let what = format!("{path}: dies at call {number} ({faulted_call:?})");
            assert_eq!((&found[..3], &found[6..]), (&old[..3], &old[6..]), "{what}");
            assert!(!synced || &found[3..6] == b"NEW", "{what}: synced data is lost");
            assert!([&old[3..6], b"NEW", &[0; 3]].contains(&&found[3..6]), "{what}: {:?}", &found[3..6]);
            if faulted_call.is_none() {
                assert!(synced && number > 5);
                break;
            }
        }
    }
}

/// In another tool's upper directory, hard links in any directories are one file in the union too.
#[test]
fn hard_links_in_an_upper_directory_without_inode_numbers_are_one_file() {
    let fixture = image();
    let upper = fixture.upper();
    std::fs::create_dir_all(upper.join("d")).unwrap();
    std::fs::write(upper.join("a"), "1").unwrap();
    for name in ["b", "d/c"] {
        std::fs::hard_link(upper.join("a"), upper.join(name)).unwrap();
    }
    let fs = fixture.open(|| FaultControl::default().backing());
    let number = at(&fs, "d/c").unwrap().ino;
    for name in ["a", "b", "d/c"] {
        let attr = at(&fs, name).unwrap();
        assert_eq!((attr.ino, attr.nlink), (number, 3), "{name}");
    }
    drop(fs);
    assert_eq!(at(&fixture.open(disk), "b").unwrap().ino, number);
}

/// An image may hold a device 0:0, which an upper directory cannot represent: it must not become a whiteout.
#[test]
fn a_lower_device_0_0_does_not_become_a_whiteout() {
    let fixture = UnionFixture::new(vec![Tar::new().add(Entry::char_device("zero", 0, 0).mode(0o600)).finish()]);
    let fs = fixture.open(disk);
    let before = take_snapshot(&fs);
    for refused in [
        change(&fs, "zero", Change { mode: Some(0o644), ..NONE }),
        rename(&fs, "zero", "moved", Replace::Allow),
        link(&fs, "zero", "other"),
    ] {
        assert_eq!(refused.unwrap_err().errno(), Errno::PERM.raw_os_error());
    }
    assert_eq!(take_snapshot(&fs), before);
    unlink(&fs, "zero").unwrap();
    assert!(at(&fs, "zero").is_err());
}
