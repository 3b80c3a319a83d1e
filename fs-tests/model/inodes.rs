//! The file system operations that the kernel would call, as an interface for runs without a kernel.

use super::op::{Replace, Stamp};
use crate::support::tree::Record;

/// What [`Inodes::setattr`] changes.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// [`Stamp::Omit`] is never here.
    pub atime: Option<Stamp>,
    pub mtime: Option<Stamp>,
}

/// What [`Inodes::make`] makes, for root.
#[derive(Clone, Debug)]
pub struct New {
    /// Type and permission bits; the umask is taken off already.
    pub mode: u32,
    pub umask: u32,
    pub rdev: (u32, u32),
    pub target: Option<Vec<u8>>,
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    pub name: Vec<u8>,
    pub ino: u64,
    /// Type bits.
    pub kind: u32,
    /// The offset of the next entry.
    pub next: u64,
}

/// A file system called by inode number. Errors are errnos. Attributes are returned as a [`Record`] without extended
/// attributes, target and content.
///
/// `lookup`, `make` and `link` each give the caller one reference to an inode; [`Inodes::forget`] takes it back. As
/// long as there is one, the inode answers, names or not.
pub trait Inodes {
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Record, i32>;
    fn forget(&self, ino: u64, count: u64);
    fn getattr(&self, ino: u64) -> Result<Record, i32>;
    fn setattr(&self, ino: u64, change: &Change) -> Result<Record, i32>;
    fn readlink(&self, ino: u64) -> Result<Vec<u8>, i32>;
    fn make(&self, parent: u64, name: &[u8], new: &New) -> Result<Record, i32>;
    fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Record, i32>;
    fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), i32>;
    fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), i32>;
    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), how: Replace) -> Result<(), i32>;
    fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, i32>;
    fn write(&self, ino: u64, offset: u64, bytes: &[u8]) -> Result<(), i32>;
    /// `mode` is fallocate(2)'s.
    fn fallocate(&self, ino: u64, mode: i32, offset: u64, len: u64) -> Result<(), i32>;
    fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64, i32>;
    fn seek(&self, ino: u64, offset: u64, hole: bool) -> Result<u64, i32>;
    fn fsync(&self, ino: u64, data_only: bool) -> Result<(), i32>;
    fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, i32>;
    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<(), i32>;
    fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>, i32>;
    fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), i32>;
    /// Entries from a place (0 at first), without `.` and `..`: a few at most, none at the end.
    fn readdir(&self, ino: u64, from: u64) -> Result<Vec<Listed>, i32>;
    /// Drops everything in memory, after a clean end or as if killed, and opens what is on disk again.
    fn reopen(&mut self, killed: bool);
}
