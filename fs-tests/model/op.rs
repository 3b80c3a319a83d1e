//! The steps of a run, one value per step.
//!
//! An [`Op`] says everything in literals, so its `Debug` form is Rust that compiles where the enums of this module are
//! imported by `*`: a failing run prints what can be pasted into a test.

use crate::support::tree::Record;

/// A path from the root of the tree. A component in angle brackets stands for a long name, see [`expand`].
pub type At = &'static str;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// open(2) with `O_CREAT|O_RDWR`, perhaps `O_EXCL`, and close.
    Create {
        at: At,
        mode: u32,
        excl: bool,
    },
    /// open(2) of what is there, and close.
    Open {
        at: At,
        write: bool,
        truncate: bool,
    },
    Mkdir {
        at: At,
        mode: u32,
    },
    Mknod {
        at: At,
        kind: Special,
        mode: u32,
        rdev: (u32, u32),
    },
    Symlink {
        at: At,
        target: &'static str,
    },
    /// linkat(2); `follow` is `AT_SYMLINK_FOLLOW`.
    Link {
        from: At,
        to: At,
        follow: bool,
    },
    Unlink {
        at: At,
    },
    Rmdir {
        at: At,
    },
    /// `rm -rf`.
    RemoveAll {
        at: At,
    },
    Rename {
        from: At,
        to: At,
        how: Replace,
    },
    /// Reads and writes open the file, act once, and close.
    Read {
        at: At,
        offset: u64,
        len: usize,
    },
    Write {
        at: At,
        offset: u64,
        len: usize,
        fill: u8,
    },
    Append {
        at: At,
        len: usize,
        fill: u8,
    },
    /// truncate(2): by path, without opening.
    Truncate {
        at: At,
        size: u64,
    },
    Allocate {
        at: At,
        how: Alloc,
        offset: u64,
        len: u64,
    },
    /// copy_file_range(2), again and again until all is copied or the source ends.
    CopyRange {
        from: At,
        from_offset: u64,
        to: At,
        to_offset: u64,
        len: u64,
    },
    /// `SEEK_HOLE` or `SEEK_DATA`.
    Seek {
        at: At,
        offset: u64,
        hole: bool,
    },
    Chmod {
        at: At,
        mode: u32,
    },
    Chown {
        at: At,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    /// Sets the access time too, to something that is not compared.
    Utimes {
        at: At,
        mtime: Stamp,
        follow: bool,
    },
    SetXattr {
        at: At,
        name: &'static str,
        len: usize,
        fill: u8,
        flag: XattrFlag,
        follow: bool,
    },
    /// `room` is the caller's buffer; with 0 it asks for the size.
    GetXattr {
        at: At,
        name: &'static str,
        room: usize,
        follow: bool,
    },
    ListXattrs {
        at: At,
        follow: bool,
    },
    RemoveXattr {
        at: At,
        name: &'static str,
        follow: bool,
    },
    Fsync {
        at: At,
        data_only: bool,
    },
    /// Map, store, load back, unmap. A private mapping changes nothing.
    Mapped {
        at: At,
        offset: u64,
        len: usize,
        fill: u8,
        shared: bool,
    },
    Stat {
        at: At,
        follow: bool,
    },
    ReadLink {
        at: At,
    },
    List {
        at: At,
    },
    /// Keep a descriptor for later steps. What the slot held before is closed first.
    Hold {
        slot: usize,
        at: At,
        write: bool,
    },
    /// Keep a shared mapping, without a descriptor, for later steps.
    HoldMap {
        slot: usize,
        at: At,
        write: bool,
    },
    HeldRead {
        slot: usize,
        offset: u64,
        len: usize,
    },
    HeldWrite {
        slot: usize,
        offset: u64,
        len: usize,
        fill: u8,
    },
    HeldTruncate {
        slot: usize,
        size: u64,
    },
    HeldStat {
        slot: usize,
    },
    HeldSync {
        slot: usize,
    },
    /// A new name for a held file, which fails once the last one is gone.
    HeldLink {
        slot: usize,
        to: At,
    },
    /// List a held directory, which fails once it is removed.
    HeldList {
        slot: usize,
    },
    /// Begin to list a held directory with a buffer for a few entries; what follows may change it.
    HeldListBegin {
        slot: usize,
    },
    /// List the rest. Gives what both saw.
    HeldListEnd {
        slot: usize,
    },
    /// mkdirat(2) in a held directory.
    HeldMkdir {
        slot: usize,
        name: At,
    },
    HeldMapLoad {
        slot: usize,
        offset: u64,
        len: usize,
    },
    HeldMapStore {
        slot: usize,
        offset: u64,
        len: usize,
        fill: u8,
    },
    Release {
        slot: usize,
    },
    /// Compare the whole tree with the model.
    Check,
    /// Close what is held, unmount, mount again.
    Remount,
    /// Sync, close what is held, kill whoever serves the tree, mount again.
    Kill,
}

/// What `mknod` makes. Char 0:0 is never asked for: overlay file systems take it for a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Regular,
    Fifo,
    Char,
    Block,
    Socket,
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    Allow,
    Forbid,
    Exchange,
}

/// Modes of fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alloc {
    Plain,
    KeepSize,
    PunchHole,
    ZeroRange,
    ZeroKeepSize,
    Collapse,
    Insert,
}

/// A time for utimensat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    Time(i64, u32),
    Now,
    Omit,
}

/// Flags of setxattr(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrFlag {
    Either,
    MustCreate,
    MustReplace,
}

/// The result of a successful step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success without a value.
    Done,
    /// Bytes written or copied, or an offset, or an attribute's size.
    Count(u64),
    /// Bytes read.
    Bytes(Vec<u8>),
    /// Sorted names of attributes.
    Names(Vec<Vec<u8>>),
    /// Sorted names and type bits, as readdir(3) tells them.
    Entries(Vec<(Vec<u8>, u32)>),
    /// The result of stat(2), without extended attributes, target and content.
    Stat(Box<Record>),
}

impl Op {
    /// The errno with which any file system may say that it cannot do this. Then nothing must have changed.
    pub fn may_be_refused(&self) -> Option<i32> {
        matches!(self, Op::Allocate { how: Alloc::Collapse | Alloc::Insert, .. }).then_some(libc::EOPNOTSUPP)
    }
}

/// How many slots hold descriptors and mappings.
pub const SLOTS: usize = 6;
/// The only legal value of `security.capability` used here: version 2, `cap_net_raw=ep`.
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The attribute that every change of a file's content takes away.
pub const CAPABILITY_NAME: &str = "security.capability";

/// A path as the system calls take it: `<255>` is a name of 255 bytes, `<.wh.255>` one that begins with `.wh.`.
pub fn expand(path: &str) -> String {
    if !path.contains('<') {
        return path.to_owned();
    }
    path.split('/').map(expand_name).collect::<Vec<_>>().join("/")
}

fn expand_name(name: &str) -> String {
    let Some(inner) = name.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) else {
        return name.to_owned();
    };
    let digits = inner.find(|c: char| c.is_ascii_digit()).unwrap();
    let (prefix, length) = (&inner[..digits], inner[digits..].parse::<usize>().unwrap());
    prefix.to_owned() + &"n".repeat(length - prefix.len())
}

/// The bytes that a write puts at `offset`: never zero, and different at other places and from other writes.
pub fn pattern(fill: u8, offset: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| (u64::from(fill) * 29 + at * 131 + (at >> 8) * 17) as u8 | 1;
    (offset..offset + len as u64).map(byte).collect()
}

/// The value of an attribute that is set.
pub fn xattr_value(name: &str, fill: u8, len: usize) -> Vec<u8> {
    if name == CAPABILITY_NAME { CAPABILITY.to_vec() } else { pattern(fill, 0, len) }
}
