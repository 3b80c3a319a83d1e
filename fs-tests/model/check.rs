//! Comparison of a tree with the model.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Id, Model, Mtime};
use crate::support::show;
use crate::support::tree::{Record, Tree};

/// The optional comparisons, besides names, kinds, modes, owners, devices, sizes, contents, targets, attributes and
/// times.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    /// An inode keeps its number through the run, and no other ever has it.
    pub numbers: bool,
    /// A number may be another inode's once its own is gone.
    pub numbers_return: bool,
    /// Names of one inode share a number, and others do not; `st_nlink` counts them.
    pub links: bool,
    /// A directory's `st_nlink` is 2 and its subdirectories.
    pub dir_nlink: bool,
    /// A file keeps its time until it changes.
    pub file_times: bool,
    /// A directory keeps its time until its entries change.
    pub dir_times: bool,
    /// Attributes whose names begin so are not the tree's.
    pub hidden_xattrs: &'static [&'static str],
}

impl Checks {
    pub const ALL: Checks = Checks {
        numbers: true,
        numbers_return: false,
        links: true,
        dir_nlink: true,
        file_times: true,
        dir_times: true,
        hidden_xattrs: &[],
    };
}

/// The inode numbers of the model's inodes.
#[derive(Default)]
pub struct InodeNumbers {
    by_id: BTreeMap<Id, u64>,
    by_number: BTreeMap<u64, Id>,
}

impl InodeNumbers {
    /// Records a pair; returns what is wrong with it.
    fn record(&mut self, id: Id, number: u64, returns: bool) -> Option<String> {
        let known = *self.by_id.entry(id).or_insert(number);
        if known != number {
            return Some(format!("inode number: was {known}, is {number}"));
        }
        if returns {
            return None;
        }
        let owner = *self.by_number.entry(number).or_insert(id);
        (owner != id).then(|| format!("inode number {number}: is or was another file's"))
    }
}

/// Compares trees with a model, and remembers what must stay the same during a run.
pub struct Checker {
    checks: Checks,
    numbers: InodeNumbers,
    /// When the run began, less the coarseness of the kernel's clock.
    since: i64,
}

impl Checker {
    pub fn new(checks: Checks) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self { checks, numbers: InodeNumbers::default(), since: now.as_secs() as i64 - 1 }
    }

    /// The same moment, another tree.
    pub fn like(other: &Checker, checks: Checks) -> Self {
        Self { checks, numbers: InodeNumbers::default(), since: other.since }
    }

    /// Checks the result of stat(2) on an inode.
    pub fn stat(&mut self, model: &Model, id: Id, actual: &Record) -> Vec<String> {
        let expected = model.record(id);
        let mut wrong = self.attributes(model, id, &expected, actual);
        if self.checks.numbers {
            wrong.extend(self.numbers.record(id, actual.ino, self.checks.numbers_return));
        }
        wrong
    }

    fn attributes(&self, model: &Model, id: Id, expected: &Record, actual: &Record) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |field: &str, expected: String, actual: String| {
            if expected != actual {
                wrong.push(format!("{field}: expected {expected}, is {actual}"));
            }
        };
        check("mode", format!("{:o}", expected.mode), format!("{:o}", actual.mode));
        check("uid", expected.uid.to_string(), actual.uid.to_string());
        check("gid", expected.gid.to_string(), actual.gid.to_string());
        check("size", expected.size.to_string(), actual.size.to_string());
        check("rdev", format!("{:?}", expected.rdev), format!("{:?}", actual.rdev));
        let counted = if model.node(id).is_dir() { self.checks.dir_nlink } else { self.checks.links };
        // Whether a directory that is gone has no link or one nobody compares.
        if counted {
            check("nlink", expected.nlink.to_string(), actual.nlink.to_string());
        }
        let time = format!("{} s + {} ns", actual.mtime.0, actual.mtime.1);
        match model.node(id).mtime {
            Mtime::Exactly(..) if !self.checks.file_times && expected.hash.is_some() => {}
            Mtime::Exactly(..) if !self.checks.dir_times && model.node(id).is_dir() => {}
            Mtime::Exactly(seconds, nanos) => check("mtime", format!("{seconds} s + {nanos} ns"), time),
            Mtime::Recent if actual.mtime.0 < self.since => check("mtime", "now".into(), time),
            _ => {}
        }
        wrong
    }

    /// Checks a whole tree; `content` reads a file of it.
    pub fn tree(&mut self, model: &Model, tree: &Tree, content: &mut dyn FnMut(&[u8]) -> Vec<u8>) -> Vec<String> {
        let faults = tree.faults.iter().filter(|fault| self.checks.numbers || fault.field != "d_ino");
        let mut wrong: Vec<String> = faults.map(ToString::to_string).collect();
        let paths = model.paths();
        for (path, id) in &paths {
            let Some(actual) = tree.records.get(path) else {
                wrong.push(format!("{}: is missing", show(path)));
                continue;
            };
            let expected = model.record(*id);
            let mut faults = self.attributes(model, *id, &expected, actual);
            if expected.target != actual.target {
                faults.push(format!("target: expected {:?}, is {:?}", expected.target, actual.target));
            }
            if expected.hash != actual.hash && expected.size == actual.size && expected.hash.is_some() {
                faults.push(first_difference(model.content(*id).bytes(), &content(path)));
            }
            faults.extend(self.xattrs(&expected, actual));
            if self.checks.numbers {
                faults.extend(self.numbers.record(*id, actual.ino, self.checks.numbers_return));
            }
            wrong.extend(faults.into_iter().map(|fault| format!("{}: {fault}", show(path))));
        }
        let absent = tree.records.keys().filter(|path| !paths.contains_key(*path));
        wrong.extend(absent.map(|path| format!("{}: should not be there", show(path))));
        if self.checks.links {
            wrong.extend(link_groups(&paths, tree));
        }
        wrong
    }

    fn xattrs(&self, expected: &Record, actual: &Record) -> Vec<String> {
        let seen = |name: &[u8]| !self.checks.hidden_xattrs.iter().any(|hidden| name.starts_with(hidden.as_bytes()));
        let text = |value: Option<&Vec<u8>>| value.map_or("none".to_owned(), |value| format!("\"{}\"", show(value)));
        let names: BTreeSet<_> = expected.xattrs.keys().chain(actual.xattrs.keys()).collect();
        names
            .into_iter()
            .filter(|name| seen(name) && expected.xattrs.get(*name) != actual.xattrs.get(*name))
            .map(|name| {
                let (want, have) = (text(expected.xattrs.get(name)), text(actual.xattrs.get(name)));
                format!("xattr {}: expected {want}, is {have}", show(name))
            })
            .collect()
    }
}

/// Paths that share an inode number and should not, or should and do not.
fn link_groups(paths: &BTreeMap<Vec<u8>, Id>, tree: &Tree) -> Vec<String> {
    let mut numbers = InodeNumbers::default();
    let pairs = paths.iter().filter_map(|(path, id)| Some((path, *id, tree.records.get(path)?.ino)));
    pairs
        .filter_map(|(path, id, number)| {
            numbers.record(id, number, false).map(|wrong| format!("{}: among its names: {wrong}", show(path)))
        })
        .collect()
}

/// Describes the first difference between two contents.
pub fn first_difference(expected: &[u8], actual: &[u8]) -> String {
    if expected.len() != actual.len() {
        return format!("{} bytes instead of {}", actual.len(), expected.len());
    }
    match expected.iter().zip(actual).position(|(want, have)| want != have) {
        None => "content: differed when it was hashed, and does not now".to_owned(),
        Some(at) => {
            let (want, have) = (&expected[at..expected.len().min(at + 8)], &actual[at..actual.len().min(at + 8)]);
            let count = expected.iter().zip(actual).filter(|(want, have)| want != have).count();
            format!("content: {count} bytes differ, from {at}: expected {want:02x?}, is {have:02x?}")
        }
    }
}

/// What is wrong with a listing during which names came and went; see [`super::names::Expected::Listing`].
pub fn listing(sure: &[(Vec<u8>, u32)], maybe: &BTreeSet<Vec<u8>>, actual: &[(Vec<u8>, u32)]) -> Result<(), String> {
    let mut listed: Vec<_> = actual.iter().filter(|(name, _)| !maybe.contains(name)).cloned().collect();
    listed.sort();
    match listed == sure {
        true => Ok(()),
        false => Err(format!("besides {maybe:?}: expected {sure:?}, listed {listed:?}")),
    }
}

/// Whether an answer to `SEEK_HOLE` or `SEEK_DATA` from an offset inside the file can be true of these bytes: what is
/// skipped as a hole must be zeros. That all data is a hole's opposite nobody promises.
pub fn seek(bytes: &[u8], offset: u64, hole: bool, answer: Result<u64, i32>) -> Result<(), String> {
    let zeros = |to: usize| bytes[offset as usize..to].iter().all(|byte| *byte == 0);
    match answer {
        Ok(at) if at < offset || at > bytes.len() as u64 => Err(format!("{at} is out of range")),
        Ok(at) if hole => {
            let page = (at as usize).min(bytes.len());
            let behind = &bytes[page..(page / 4096 * 4096 + 4096).min(bytes.len()).max(page)];
            if behind.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(format!("there is data at {at}")) }
        }
        Ok(at) if at == bytes.len() as u64 => Err("there is no data at the end".into()),
        Ok(at) => {
            if zeros(at as usize) {
                Ok(())
            } else {
                Err(format!("there is data before {at}"))
            }
        }
        Err(libc::ENXIO) if !hole && zeros(bytes.len()) => Ok(()),
        Err(errno) => Err(format!("errno {errno}")),
    }
}
