//! Random lists of steps from a seed. The generator prefers paths that exist according to the model.

use super::image::Initial;
use super::op::{Alloc, At, CAPABILITY_NAME, Op, Replace, SLOTS, Special, Stamp, XattrFlag};
use super::random::Random;
use super::state::{Body, Id, Model, ROOT};

/// The steps that a run may contain.
#[derive(Clone, Copy, Debug)]
pub struct Menu {
    /// Descriptors and mappings that can only read, which kernel overlayfs shows old content through.
    pub held_readers: bool,
    /// `COLLAPSE_RANGE` and `INSERT_RANGE`, which FUSE never has.
    pub optional: bool,
    pub remounts: bool,
}

/// Few names, so that steps affect each other. Several are the image's; the odd ones are difficult for unions.
const NAMES: &[&str] = &[
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "sub",
    "dir",
    "opaque",
    ".wh.a",
    ".wh.dir",
    ".wh..wh..opq",
    "<255>",
    "<252>",
    "<.wh.255>",
    "new\u{e4} x",
];
/// Names that are chosen rarely.
const ODD_NAMES: &[&str] = &["<256>", "<.wh.256>", "loop", "fifo", "node", "sparse", "suid", "big", "leaf", "..."];
const TARGETS: &[&str] = &["a", "b", "sub", "../a", "../dir", ".", "..", "dir/a", "e/a/b", "nowhere", "/nonexistent/x"];
const XATTRS: &[&str] = &["user.a", "user.a", "user.b", "trusted.c", "trusted.d", CAPABILITY_NAME];
/// Sticky directories that others may write to are left out: protected_regular(5) is no business of a file system.
const MODES: &[u32] = &[0o755, 0o644, 0o600, 0o777, 0o000, 0o4755, 0o2755, 0o6711, 0o1755, 0o2775, 0o444];
const IDS: &[u32] = &[0, 0, 1000, 50, 65_534, 4_000_000_000];
/// Above this many inodes, a run removes more than it makes.
const MANY: usize = 200;
const DEPTH_MAX: usize = 7;

/// Generates a list of steps, with a comparison of the whole tree now and then.
pub fn generate(seed: u64, count: usize, image: &[Initial], menu: Menu) -> Vec<Op> {
    let mut source = Source { random: Random::new(seed), model: Model::new(image), menu };
    let every = source.random.pick(&[10, 40, 150]);
    let mut ops = Vec::with_capacity(count);
    while ops.len() < count {
        let op = if source.random.below(every) == 0 { source.pause() } else { source.op() };
        // What it gives is no matter here, and what makes no sense is left out.
        if !matches!(source.model.apply(&op), Err(super::state::StepError::Skip)) {
            ops.push(op);
        }
    }
    ops
}

struct Source {
    random: Random,
    model: Model,
    menu: Menu,
}

impl Source {
    fn pause(&mut self) -> Op {
        match self.random.below(12) {
            0 if self.menu.remounts => Op::Remount,
            1 if self.menu.remounts => Op::Kill,
            _ => Op::Check,
        }
    }

    fn op(&mut self) -> Op {
        let many = self.model.count() > MANY;
        match self.random.below(100) {
            _ if many && self.random.percent(25) => Op::RemoveAll { at: self.existing() },
            0..=21 => self.make(),
            22..=33 => self.remove(),
            34..=45 => self.rename(),
            46..=63 => self.content(),
            64..=77 => self.attributes(),
            78..=81 => self.query(),
            _ => self.held(),
        }
    }

    fn make(&mut self) -> Op {
        let mode = self.random.pick(MODES);
        match self.random.below(11) {
            0..=2 => Op::Create { at: self.new_path(), mode, excl: self.random.percent(50) },
            3..=5 => Op::Mkdir { at: self.new_path(), mode },
            6 => {
                let kinds = [Special::Regular, Special::Fifo, Special::Char, Special::Block, Special::Socket];
                let kind = self.random.pick(&kinds);
                let device = matches!(kind, Special::Char | Special::Block);
                let rdev = if device { self.random.pick(&[(1, 3), (7, 0), (0, 1), (259, 70_000)]) } else { (0, 0) };
                Op::Mknod { at: self.new_path(), kind, mode, rdev }
            }
            7 => Op::Symlink { at: self.new_path(), target: self.random.pick(TARGETS) },
            _ => Op::Link { from: self.existing(), to: self.new_path(), follow: self.random.percent(20) },
        }
    }

    fn remove(&mut self) -> Op {
        let at = if self.random.percent(80) { self.existing() } else { self.new_path() };
        match self.random.below(20) {
            0 => Op::RemoveAll { at },
            1..=9 => match self.model.walk(at, false) {
                // The right one nearly always, so that something goes.
                Ok(id) if self.model.node(id).is_dir() => Op::Rmdir { at },
                _ => Op::Unlink { at },
            },
            10..=16 => Op::Unlink { at },
            _ => Op::Rmdir { at },
        }
    }

    fn rename(&mut self) -> Op {
        let how = match self.random.below(12) {
            0 => Replace::Forbid,
            1..=2 => Replace::Exchange,
            _ => Replace::Allow,
        };
        let to = if how == Replace::Exchange || self.random.percent(40) { self.existing() } else { self.new_path() };
        Op::Rename { from: self.existing(), to, how }
    }

    fn content(&mut self) -> Op {
        let (at, offset, len, fill) = (self.file(), self.offset(), self.length(), self.random.next() as u8);
        match self.random.below(18) {
            0..=3 => Op::Write { at, offset, len, fill },
            4..=5 => Op::Append { at, len, fill },
            6..=7 => Op::Truncate { at, size: self.offset() },
            8 => Op::Open { at, write: self.random.percent(50), truncate: false },
            9 => Op::Open { at, write: true, truncate: true },
            10..=11 => self.allocate(at),
            12..=13 => {
                let (to, to_offset) = (self.file(), self.offset());
                Op::CopyRange { from: at, from_offset: offset, to, to_offset, len: len as u64 * 3 }
            }
            14 => Op::Seek { at, offset, hole: self.random.percent(50) },
            15 => Op::Mapped { at, offset, len: len.max(1), fill, shared: self.random.percent(60) },
            16 => Op::Fsync { at, data_only: self.random.percent(50) },
            _ => Op::Read { at, offset, len: len * 4 },
        }
    }

    fn allocate(&mut self, at: At) -> Op {
        let how = match self.random.below(9) {
            0..=1 => Alloc::Plain,
            2 => Alloc::KeepSize,
            3..=4 => Alloc::PunchHole,
            5 => Alloc::ZeroRange,
            6 => Alloc::ZeroKeepSize,
            7 if self.menu.optional => Alloc::Collapse,
            8 if self.menu.optional => Alloc::Insert,
            _ => Alloc::PunchHole,
        };
        if matches!(how, Alloc::Collapse | Alloc::Insert) {
            let (offset, len) = (self.random.below(10) * 4096, (1 + self.random.below(4)) * 4096);
            return Op::Allocate { at, how, offset, len };
        }
        Op::Allocate { at, how, offset: self.offset(), len: self.length().max(1) as u64 * 2 }
    }

    fn attributes(&mut self) -> Op {
        let (at, follow) = (self.existing(), self.random.percent(60));
        match self.random.below(15) {
            0..=2 => Op::Chmod { at, mode: self.random.pick(MODES) },
            3..=4 => Op::Chown { at, uid: self.id(), gid: self.id(), follow },
            5..=7 => {
                let times =
                    [Stamp::Time(1_000_000_000, 1), Stamp::Time(-7, 999_999_999), Stamp::Time(5_000_000_000, 0)];
                let mtime = match self.random.below(5) {
                    0 => Stamp::Now,
                    1 => Stamp::Omit,
                    _ => self.random.pick(&times),
                };
                Op::Utimes { at, mtime, follow }
            }
            8..=11 => {
                let flag = self.random.pick(&[XattrFlag::Either, XattrFlag::MustCreate, XattrFlag::MustReplace]);
                let (len, fill) = (self.random.pick(&[0, 1, 20, 300]), self.random.next() as u8);
                Op::SetXattr { at, name: self.random.pick(XATTRS), len, fill, flag, follow }
            }
            12 => Op::RemoveXattr { at, name: self.xattr_of(at), follow },
            _ => Op::GetXattr { at, name: self.xattr_of(at), room: self.random.pick(&[0, 1, 400]), follow },
        }
    }

    /// The name of an attribute that exists, if there is one.
    fn xattr_of(&mut self, at: At) -> &'static str {
        let there = |name: &&'static str| {
            let id = self.model.walk(at, false).ok()?;
            self.model.node(id).xattrs.contains_key(name.as_bytes()).then_some(())
        };
        let known: Vec<_> = XATTRS.iter().copied().filter(|name| there(name).is_some()).collect();
        if known.is_empty() || self.random.percent(20) { self.random.pick(XATTRS) } else { self.random.pick(&known) }
    }

    fn id(&mut self) -> Option<u32> {
        if self.random.percent(30) { None } else { Some(self.random.pick(IDS)) }
    }

    fn query(&mut self) -> Op {
        let at = if self.random.percent(70) { self.existing() } else { self.new_path() };
        let follow = self.random.percent(50);
        match self.random.below(5) {
            0..=1 => Op::Stat { at, follow },
            2 => Op::ReadLink { at },
            3 => Op::ListXattrs { at, follow },
            _ => Op::List { at },
        }
    }

    fn held(&mut self) -> Op {
        let slot = self.random.below(SLOTS as u64) as usize;
        let Ok(held) = self.model.held(slot) else { return self.open_slot(slot) };
        let (offset, len, fill) = (self.offset(), self.length(), self.random.next() as u8);
        if self.random.percent(8) {
            return if self.random.percent(50) { Op::Release { slot } } else { self.open_slot(slot) };
        }
        let node = self.model.node(held.id);
        match &node.body {
            Body::File(content) if held.map => {
                let size = content.bytes().len() as u64;
                let offset = if size > 0 { self.random.below(size) } else { 0 };
                let len = len.clamp(1, (size - offset).max(1) as usize);
                match held.write && self.random.percent(50) {
                    true => Op::HeldMapStore { slot, offset, len, fill },
                    false => Op::HeldMapLoad { slot, offset, len },
                }
            }
            Body::Dir { .. } if self.model.listings[slot].is_some() && self.random.percent(40) => {
                Op::HeldListEnd { slot }
            }
            Body::Dir { .. } => match self.random.below(7) {
                4..=6 => Op::HeldListBegin { slot },
                0 => Op::HeldMkdir { slot, name: self.random.pick(NAMES) },
                1 => Op::HeldStat { slot },
                2 => Op::HeldSync { slot },
                _ => Op::HeldList { slot },
            },
            _ => match self.random.below(12) {
                0..=3 => Op::HeldRead { slot, offset, len: len * 4 },
                4..=6 => Op::HeldWrite { slot, offset, len, fill },
                7 => Op::HeldTruncate { slot, size: self.offset() },
                8..=9 => Op::HeldStat { slot },
                10 => Op::HeldLink { slot, to: self.new_path() },
                _ => Op::HeldSync { slot },
            },
        }
    }

    fn open_slot(&mut self, slot: usize) -> Op {
        let write = !self.menu.held_readers || self.random.percent(50);
        match self.random.below(10) {
            0..=5 => Op::Hold { slot, at: self.file(), write },
            6..=7 => Op::Hold { slot, at: self.directory(), write: false },
            _ => Op::HoldMap { slot, at: self.file(), write },
        }
    }

    fn offset(&mut self) -> u64 {
        match self.random.below(8) {
            0 => 0,
            1..=3 => self.random.below(10_000),
            4..=5 => self.random.below(20) * 4096,
            6 => self.random.below(70_000),
            _ => self.random.below(300_000),
        }
    }

    fn length(&mut self) -> usize {
        match self.random.below(8) {
            0 => 0,
            1..=3 => self.random.below(100) as usize,
            4 => 4096,
            5..=6 => self.random.below(9000) as usize,
            _ => self.random.below(40_000) as usize,
        }
    }

    /// A path that exists, or nearly.
    fn existing(&mut self) -> At {
        let path = self.random_path(|_| true);
        if self.random.percent(1) {
            return intern(path + self.random.pick(&["/.", "/.."]));
        }
        intern(path)
    }

    /// A regular file's path most of the time.
    fn file(&mut self) -> At {
        for _ in 0..6 {
            let path = self.random_path(|_| true);
            if self.model.walk(&path, true).is_ok_and(|id| matches!(self.model.node(id).body, Body::File(_))) {
                return intern(path);
            }
        }
        self.existing()
    }

    /// A directory's path most of the time.
    fn directory(&mut self) -> At {
        intern(self.random_path(is_dir))
    }

    /// A path for a new entry, which often exists already.
    fn new_path(&mut self) -> At {
        let name = if self.random.percent(92) { self.random.pick(NAMES) } else { self.random.pick(ODD_NAMES) };
        let dir = if self.random.percent(30) { String::new() } else { self.random_path(is_dir) };
        match dir.as_str() {
            "" => intern(name.to_owned()),
            _ if dir.matches('/').count() > DEPTH_MAX => intern(name.to_owned()),
            _ if self.random.percent(1) => intern(dir + "/" + self.random.pick(&[".", ".."])),
            _ => intern(dir + "/" + name),
        }
    }

    /// Walks down from the root and stops at a suitable inode. Follows symlinks to directories too.
    fn random_path(&mut self, is_suitable: fn(&Body) -> bool) -> String {
        let (mut path, mut dir) = (String::new(), ROOT);
        loop {
            let names: Vec<(String, Id)> = self.model.entries(dir).iter().map(|(n, id)| (n.clone(), *id)).collect();
            let fits: Vec<_> = names.into_iter().filter(|(_, id)| is_suitable(&self.model.node(*id).body)).collect();
            if fits.is_empty() {
                return if path.is_empty() { "a".into() } else { path };
            }
            let (name, id) = fits[self.random.below(fits.len() as u64) as usize].clone();
            path = if path.is_empty() { shorten(&name) } else { path + "/" + &shorten(&name) };
            let next = self.model.walk(&path, true).unwrap_or(id);
            if !self.model.node(next).is_dir() || self.random.percent(35) || path.matches('/').count() > DEPTH_MAX {
                return path;
            }
            dir = next;
        }
    }
}

fn is_dir(body: &Body) -> bool {
    matches!(body, Body::Dir { .. })
}

/// The form in angle brackets of a long name.
fn shorten(name: &str) -> String {
    match name.find("nnn") {
        Some(at) if name.len() > 200 => format!("<{}{}>", &name[..at], name.len()),
        _ => name.to_owned(),
    }
}

/// Paths live as long as the tests: steps are to be copied and printed as literals.
fn intern(path: String) -> At {
    use std::collections::HashSet;
    use std::sync::Mutex;
    static KNOWN: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap();
    let known = known.get_or_insert_default();
    match known.get(path.as_str()) {
        Some(path) => path,
        None => {
            let path: &'static str = path.leak();
            known.insert(path);
            path
        }
    }
}
