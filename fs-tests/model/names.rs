//! The model's steps on names: create, unlink, link, rename. The order of checks is the kernel's (fs/namei.c).

use std::collections::{BTreeMap, BTreeSet};

use super::op::{At, Op, Outcome, Replace, Special, expand};
use super::state::{Body, Content, Held, Id, Model, Mtime, Node, Step, StepError, count_link, refuse};

/// The expected result of a step.
#[derive(Debug)]
pub enum Expected {
    /// Exactly this.
    Outcome(Outcome),
    /// The attributes of this inode.
    Stat(Id),
    /// An offset that agrees with these bytes; see [`super::check::seek`].
    Seek { bytes: Vec<u8>, offset: u64, hole: bool },
    /// Entries of a directory that changed meanwhile: each of `sure` once, of `maybe` as it happens, and no others.
    Listing { sure: Vec<(Vec<u8>, u32)>, maybe: BTreeSet<Vec<u8>> },
}

pub(super) const DONE: Step<Expected> = Ok(Expected::Outcome(Outcome::Done));

fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

impl Model {
    /// Carries out a step on the model and returns the expected result.
    pub fn apply(&mut self, op: &Op) -> Step<Expected> {
        match *op {
            Op::Create { at, mode, excl } => self.create(at, mode, excl),
            Op::Mkdir { at, mode } => self.mkdir(at, mode),
            Op::Mknod { at, kind, mode, rdev } => {
                let body = match kind {
                    Special::Regular => Body::File(Content::default()),
                    _ => Body::Special(kind, rdev),
                };
                self.make(at, body, mode & 0o7777 & !self.umask)
            }
            Op::Symlink { at, target } => self.make(at, Body::Symlink(expand(target)), 0o777),
            Op::Link { from, to, follow } => {
                let id = self.walk(from, follow)?;
                self.link(id, to)
            }
            Op::Unlink { at } => self.unlink(at),
            Op::Rmdir { at } => self.rmdir(at),
            Op::RemoveAll { at } => self.remove_all(at),
            Op::Rename { from, to, how } => self.rename(from, to, how),
            Op::Hold { slot, at, write } => self.hold(slot, at, write, false),
            Op::HoldMap { slot, at, write } => self.hold(slot, at, write, true),
            Op::HeldLink { slot, to } => match self.held(slot)? {
                held if held.map => Err(StepError::Skip),
                held => self.link(held.id, to),
            },
            Op::HeldMkdir { slot, name } => self.held_mkdir(slot, name),
            Op::Release { slot } => {
                self.held(slot)?;
                self.release(slot);
                DONE
            }
            Op::Check => DONE,
            Op::Remount | Op::Kill => {
                (0..self.slots.len()).for_each(|slot| self.release(slot));
                DONE
            }
            _ => self.apply_to_content(op),
        }
    }

    fn create(&mut self, at: At, mode: u32, excl: bool) -> Step<Expected> {
        let mut links = 0;
        let (mut dir, mut name) = self.parent(at)?;
        loop {
            if is_dots(&name) {
                return refuse(if excl { libc::EEXIST } else { libc::EISDIR });
            }
            let Some(id) = self.child(dir, &name)? else {
                self.insert(dir, name, Body::File(Content::default()), mode & 0o7777 & !self.umask);
                return DONE;
            };
            match &self.node(id).body {
                _ if excl => return refuse(libc::EEXIST),
                Body::Dir { .. } => return refuse(libc::EISDIR),
                Body::Special(..) => return Err(StepError::Skip),
                Body::File(_) => return DONE,
                // The target of a dangling symlink is created.
                Body::Symlink(target) => {
                    count_link(&mut links)?;
                    (dir, name) = self.parent_from(dir, target, &mut links)?;
                }
            }
        }
    }

    fn mkdir(&mut self, at: At, mode: u32) -> Step<Expected> {
        self.make(at, Body::empty_dir(0), mode & 0o1777 & !self.umask)
    }

    fn held_mkdir(&mut self, slot: usize, name: At) -> Step<Expected> {
        let held = self.held(slot)?;
        if held.map || name.contains('/') {
            return Err(StepError::Skip);
        }
        let (dir, name) = (held.id, expand(name));
        if !self.node(dir).is_dir() {
            return refuse(libc::ENOTDIR);
        }
        if self.child(dir, &name)?.is_some() {
            return refuse(libc::EEXIST);
        }
        if self.node(dir).names == 0 {
            return refuse(libc::ENOENT);
        }
        self.insert(dir, name, Body::empty_dir(dir), 0o755 & !self.umask);
        DONE
    }

    /// A place for a new name: its directory and the name, which is not there.
    fn vacant(&self, at: At) -> Step<(Id, String)> {
        let (dir, name) = self.parent(at)?;
        if is_dots(&name) || self.child(dir, &name)?.is_some() {
            return refuse(libc::EEXIST);
        }
        Ok((dir, name))
    }

    fn make(&mut self, at: At, body: Body, mode: u32) -> Step<Expected> {
        let (dir, name) = self.vacant(at)?;
        self.insert(dir, name, body, mode);
        DONE
    }

    /// A new inode with a name: it takes a set-gid directory's group.
    pub(super) fn insert(&mut self, dir: Id, name: String, body: Body, mode: u32) {
        let above = self.node(dir);
        let set_gid = above.mode & 0o2000 != 0;
        let gid = if set_gid { above.gid } else { 0 };
        let inherited = if set_gid && matches!(body, Body::Dir { .. }) { 0o2000 } else { 0 };
        let (mode, mtime) = (mode | inherited, Mtime::Recent);
        let id = self.add(Node { body, mode, uid: 0, gid, mtime, xattrs: BTreeMap::new(), names: 0 });
        self.add_name(dir, name, id);
        self.changed(dir);
    }

    /// A directory's entries changed.
    pub(super) fn changed(&mut self, dir: Id) {
        self.node_mut(dir).mtime = Mtime::Recent;
    }

    fn link(&mut self, id: Id, to: At) -> Step<Expected> {
        let (dir, name) = self.vacant(to)?;
        if self.node(id).is_dir() {
            return refuse(libc::EPERM);
        }
        if self.node(id).names == 0 {
            return refuse(libc::ENOENT);
        }
        self.add_name(dir, name, id);
        self.changed(dir);
        DONE
    }

    fn unlink(&mut self, at: At) -> Step<Expected> {
        let (dir, name) = self.parent(at)?;
        if is_dots(&name) {
            return refuse(libc::EISDIR);
        }
        let id = self.child(dir, &name)?.ok_or(StepError::Errno(libc::ENOENT))?;
        if self.node(id).is_dir() {
            return refuse(libc::EISDIR);
        }
        self.remove(dir, &name);
        DONE
    }

    fn rmdir(&mut self, at: At) -> Step<Expected> {
        let (dir, name) = self.parent(at)?;
        match name.as_str() {
            "." => return refuse(libc::EINVAL),
            ".." => return refuse(libc::ENOTEMPTY),
            _ => {}
        }
        let id = self.child(dir, &name)?.ok_or(StepError::Errno(libc::ENOENT))?;
        if !self.node(id).is_dir() {
            return refuse(libc::ENOTDIR);
        }
        if !self.entries(id).is_empty() {
            return refuse(libc::ENOTEMPTY);
        }
        self.remove(dir, &name);
        DONE
    }

    fn remove(&mut self, dir: Id, name: &str) {
        let id = self.remove_name(dir, name);
        self.changed(dir);
        self.drop_unused(id);
    }

    fn remove_all(&mut self, at: At) -> Step<Expected> {
        let (dir, name) = self.parent(at)?;
        if is_dots(&name) {
            return Err(StepError::Skip);
        }
        let id = self.child(dir, &name)?.ok_or(StepError::Errno(libc::ENOENT))?;
        self.empty(id);
        self.remove(dir, &name);
        DONE
    }

    fn empty(&mut self, id: Id) {
        if !self.node(id).is_dir() {
            return;
        }
        for (name, child) in self.entries(id).clone() {
            self.empty(child);
            self.remove(id, &name);
        }
    }

    fn rename(&mut self, from: At, to: At, how: Replace) -> Step<Expected> {
        let (old_dir, old_name) = self.parent(from)?;
        let (new_dir, new_name) = self.parent(to)?;
        if is_dots(&old_name) {
            return refuse(libc::EBUSY);
        }
        if is_dots(&new_name) {
            return refuse(if how == Replace::Forbid { libc::EEXIST } else { libc::EBUSY });
        }
        let old = self.child(old_dir, &old_name)?.ok_or(StepError::Errno(libc::ENOENT))?;
        let new = self.child(new_dir, &new_name)?;
        match (how, new) {
            (Replace::Exchange, None) => return refuse(libc::ENOENT),
            (Replace::Forbid, Some(_)) => return refuse(libc::EEXIST),
            _ => {}
        }
        self.may_replace(old, old_dir, new, new_dir, how)?;
        if new == Some(old) {
            return DONE;
        }
        self.remove_name(old_dir, &old_name);
        if let Some(new) = new {
            self.remove_name(new_dir, &new_name);
            match how {
                Replace::Exchange => self.add_name(old_dir, old_name, new),
                _ => self.drop_unused(new),
            }
        }
        self.add_name(new_dir, new_name, old);
        self.changed(old_dir);
        self.changed(new_dir);
        DONE
    }

    fn may_replace(&self, old: Id, old_dir: Id, new: Option<Id>, new_dir: Id, how: Replace) -> Step<()> {
        let exchange = how == Replace::Exchange;
        if self.is_below(new_dir, old) {
            return refuse(libc::EINVAL);
        }
        let Some(new) = new else { return Ok(()) };
        if self.is_below(old_dir, new) {
            return refuse(if exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if exchange || old == new {
            return Ok(());
        }
        match (self.node(old).is_dir(), self.node(new).is_dir()) {
            (true, false) => refuse(libc::ENOTDIR),
            (false, true) => refuse(libc::EISDIR),
            (true, true) if !self.entries(new).is_empty() => refuse(libc::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn hold(&mut self, slot: usize, at: At, write: bool, map: bool) -> Step<Expected> {
        let id = self.walk(at, true);
        // Closed before the new one is opened, and also when that fails.
        let gone = !matches!(id, Err(StepError::Skip)) && !self.is_special(id);
        if gone {
            self.release(slot);
        }
        let id = id?;
        match &self.node(id).body {
            Body::Special(..) => return Err(StepError::Skip),
            Body::Dir { .. } if write => return refuse(libc::EISDIR),
            Body::Dir { .. } if map => return refuse(libc::ENODEV),
            _ => {}
        }
        self.slots[slot] = Some(Held { id, write, map });
        DONE
    }

    fn is_special(&self, id: Step<Id>) -> bool {
        id.is_ok_and(|id| matches!(self.node(id).body, Body::Special(..)))
    }

    fn release(&mut self, slot: usize) {
        self.listings[slot] = None;
        if let Some(held) = self.slots[slot].take() {
            self.drop_unused(held.id);
        }
    }
}
