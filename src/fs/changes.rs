//! What is different in a union from its image, path by path, as Docker's `diff` tells it.
//!
//! A directory counts as changed if it has other attributes than the image's, or if anything below it is another; one
//! that was only copied up does not. What stands over something of the image is changed, whatever kind either is. A
//! directory that is gone is one deletion, one that is new comes with all that is in it; one that was moved is both. A
//! file that was copied up and is the same still, because another of its names came or went, is no change.

use super::Ino;
use crate::meta::Kind;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How a path is different.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum How {
    /// The image has nothing there.
    Added,
    /// The image has something else there.
    Changed,
    /// Only the image has something there.
    Deleted,
}

/// A path that is different.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// How.
    pub how: How,
    /// The inode there; of what is deleted, the image's.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// A directory in the place of one of the image, whose content does not show through.
    pub replaces: bool,
    /// Only a directory's modification time differs.
    pub(super) by_time: bool,
    /// A file without content.
    pub(super) empty: bool,
}

impl Changed {
    /// Whether there is a file now.
    pub fn is_file(&self) -> bool {
        self.how != How::Deleted && self.kind == Kind::File
    }

    pub(super) fn new(how: How, ino: Ino, kind: Kind) -> Changed {
        Changed { how, ino, kind, replaces: false, by_time: false, empty: false }
    }
}

/// All of them, sorted, each by its path from the root, which is `/`.
pub type Changes = BTreeMap<Vec<u8>, Changed>;

/// What a walk found: without the directories that count as changed for what is below them.
pub(super) struct Found {
    pub changes: Changes,
    /// Directories of the union that lie over ones of the image, as far as the walk came.
    pub passed: HashMap<Vec<u8>, Ino>,
}

impl Found {
    /// Leaves out what is not to count, and counts the directories above all others.
    pub fn settle(mut self, left_out: &BTreeSet<Vec<u8>>) -> Changes {
        // Those deep down first: what they leave empty may be one of them.
        left_out.iter().rev().for_each(|path| self.leave_out(path));
        let paths: Vec<Vec<u8>> = self.changes.keys().cloned().collect();
        for path in paths {
            let mut at = parent(&path);
            while at != b"/" && !self.changes.contains_key(at) {
                let Some(ino) = self.passed.get(at) else { break };
                self.changes.insert(at.to_vec(), Changed::new(How::Changed, *ino, Kind::Dir));
                at = parent(at);
            }
        }
        self.changes
    }

    /// Leaves out a mountpoint, the directories that were made to hold it, and the time of the one that has it.
    fn leave_out(&mut self, path: &[u8]) {
        if !self.is_made_empty(path) {
            return;
        }
        self.changes.remove(path);
        let mut at = parent(path);
        while at != b"/" && self.changes.get(at).is_some_and(|c| c.how == How::Added) && self.is_made_empty(at) {
            self.changes.remove(at);
            at = parent(at);
        }
        if self.changes.get(at).is_some_and(|changed| changed.by_time) {
            self.changes.remove(at);
        }
    }

    /// Whether the path is an empty file, or a directory with nothing in it, that the image does not have.
    fn is_made_empty(&self, path: &[u8]) -> bool {
        let Some(changed) = self.changes.get(path) else { return false };
        let below = [path, b"/"].concat();
        let holds = || self.changes.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below));
        changed.how == How::Added && (changed.empty || changed.kind == Kind::Dir && !holds())
    }
}

/// The directory that a path lies in; the root's is itself.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(at) => &path[..at],
    }
}

/// The path of a name in a directory.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir == b"/" { [dir, name].concat() } else { [dir, b"/", name].concat() }
}

/// Attributes by which a system's own policy labels files. They say nothing of a tree, and another system has others.
const LABELS: [&[u8]; 4] = [b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64"];

/// Whether an extended attribute is the running system's own.
pub(super) fn is_label(name: &[u8]) -> bool {
    LABELS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(changes: &[(&str, How, Kind)], passed: &[&str]) -> Found {
        let one = |(path, how, kind): &(&str, How, Kind)| {
            let changed = Changed { empty: *kind == Kind::File, by_time: true, ..Changed::new(*how, 9, *kind) };
            (path.as_bytes().to_vec(), changed)
        };
        let passed = passed.iter().map(|path| (path.as_bytes().to_vec(), 5)).collect();
        Found { changes: changes.iter().map(one).collect(), passed }
    }

    fn settled(found: Found, left_out: &[&str]) -> Vec<String> {
        let left_out = left_out.iter().map(|path| path.as_bytes().to_vec()).collect();
        let letter = |how| match how {
            How::Added => 'A',
            How::Changed => 'C',
            How::Deleted => 'D',
        };
        let line = |(path, changed): (&Vec<u8>, &Changed)| format!("{} {}", letter(changed.how), path.escape_ascii());
        found.settle(&left_out).iter().map(line).collect()
    }

    #[test]
    fn directories_above_changes_are_changed_and_all_is_sorted_as_bytes_are() {
        let changes = [
            ("/a/b/c", How::Deleted, Kind::File),
            ("/a.b", How::Added, Kind::File),
            ("/z", How::Added, Kind::Dir),
            ("/z/y", How::Added, Kind::File),
        ];
        let lines = settled(found(&changes, &["/", "/a", "/a/b", "/q"]), &[]);
        assert_eq!(lines, ["C /a", "A /a.b", "C /a/b", "D /a/b/c", "A /z", "A /z/y"]);
    }

    #[test]
    fn mountpoints_are_left_out_with_what_was_made_for_them() {
        let changes = [
            ("/", How::Changed, Kind::Dir),
            ("/etc", How::Changed, Kind::Dir),
            ("/etc/hosts", How::Added, Kind::File),
            ("/etc/mine", How::Changed, Kind::File),
            ("/proc", How::Added, Kind::Dir),
            ("/run", How::Changed, Kind::Dir),
            ("/run/secrets", How::Added, Kind::Dir),
            ("/run/secrets/a", How::Added, Kind::File),
            ("/used", How::Added, Kind::Dir),
            ("/used/file", How::Added, Kind::Symlink),
        ];
        let left_out = ["/etc/hosts", "/proc", "/run/secrets/a", "/used", "/etc/mine", "/not/there"];
        let lines = settled(found(&changes, &["/", "/etc", "/run"]), &left_out);
        assert_eq!(lines, ["C /etc", "C /etc/mine", "A /used", "A /used/file"]);
    }
}
