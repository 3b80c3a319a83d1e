//! The harness interface: an implementation carries out the model's steps on a file system.

use super::op::{Op, Outcome};
use super::place::View;
use crate::support::tree::Tree;

/// Carries out steps on a file system.
///
/// [`super::by_path::SyscallHarness`] makes system calls. A harness that calls inode operations without a kernel does
/// the kernel's part itself: it walks paths by `lookup` and `readlink`, refuses what fs/namei.c refuses before it asks
/// a file system, keeps inode numbers in slots (with a reference each, given back by `forget`), turns `O_TRUNC` and
/// truncate(2) into `setattr`, `O_APPEND` into a write at the size, and mappings into reads and writes.
pub trait Harness {
    /// Carries out a step; returns the errno if it is refused. Never called with [`Op::Check`].
    fn apply(&mut self, op: &Op) -> Result<Outcome, i32>;

    /// The whole tree.
    fn tree(&mut self) -> Tree;

    /// A file's bytes, for a report of the first difference.
    fn content(&mut self, path: &[u8]) -> Vec<u8>;

    /// The errno with which a step may be refused that POSIX allows. Then nothing must have changed.
    fn may_refuse(&self, op: &Op) -> Option<i32> {
        op.may_be_refused()
    }

    /// How the tree is to be compared.
    fn checks(&self) -> super::check::Checks;

    /// The end of a run, at which nothing is held any more: other views of the same tree. An error is a failure.
    fn finish(&mut self) -> Result<Vec<View>, String>;
}
