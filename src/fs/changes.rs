//! The diff of a union against its image, path by path, as `docker diff` reports it.
//!
//! A directory counts as changed if its attributes differ from the image's, or if anything below it differs; a mere
//! copy-up is no change. A path that replaces one of the image is changed, whatever the kinds are. A removed directory
//! is one deletion; a new one is listed with all its content; a moved one is both. A file that was copied up only
//! because another of its hard links was added or removed is no change.

use super::Ino;
use crate::meta::Kind;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The kind of difference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum How {
    /// The path does not exist in the image.
    Added,
    /// The path differs from the image's.
    Changed,
    /// The path exists in the image only.
    Deleted,
}

/// A path that differs from the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The kind of difference.
    pub how: How,
    /// The inode at the path; for a deletion, the image's.
    pub ino: Ino,
    /// The inode's kind.
    pub kind: Kind,
    /// Whether it is a directory in the place of one of the image, whose content does not show through.
    pub replaces: bool,
    /// Whether the modification time is the only difference of a directory.
    pub(super) by_time: bool,
    /// Whether it is a file without content.
    pub(super) empty: bool,
}

impl Changed {
    /// Whether the path is a regular file now.
    pub fn is_file(&self) -> bool {
        self.how != How::Deleted && self.kind == Kind::File
    }

    pub(super) fn new(how: How, ino: Ino, kind: Kind) -> Changed {
        Changed { how, ino, kind, replaces: false, by_time: false, empty: false }
    }
}

/// All differences by absolute path, sorted; the root is `/`.
pub type Changes = BTreeMap<Vec<u8>, Changed>;

/// The result of a walk, without directories that count as changed only because of their content.
pub(super) struct Found {
    pub changes: Changes,
    /// Directories of the union over ones of the image, as far as the walk visited them.
    pub passed: HashMap<Vec<u8>, Ino>,
}

impl Found {
    /// Removes the paths in `left_out` and adds the directories above all others.
    pub fn settle(mut self, left_out: &BTreeSet<Vec<u8>>) -> Changes {
        // The deepest first: removing one may leave its parent empty, which may be in `left_out` too.
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

    /// Removes a mountpoint, the directories created to hold it, and the modification time of the existing parent.
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

    /// Whether the path is an empty file or directory that the image does not have.
    fn is_made_empty(&self, path: &[u8]) -> bool {
        let Some(changed) = self.changes.get(path) else { return false };
        let below = [path, b"/"].concat();
        let holds = || self.changes.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below));
        changed.how == How::Added && (changed.empty || changed.kind == Kind::Dir && !holds())
    }
}

/// Returns the parent of a path; the root is its own parent.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(at) => &path[..at],
    }
}

/// Joins a directory's path and a name.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir == b"/" { [dir, name].concat() } else { [dir, b"/", name].concat() }
}

/// Attributes in which the host's security policy labels files. They are no part of an image, and another host has
/// others.
const LABELS: [&[u8]; 4] = [b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64"];

/// Whether an extended attribute is a label of the host.
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
    fn mountpoints_are_left_out_with_the_directories_made_for_them() {
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
