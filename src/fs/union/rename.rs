//! Rename: a plan, the preparations that no caller can see, one rename system call, and the update of the inode table.

use super::create::check_name;
use super::inode_table::{Entry, Name, NameState};
use super::load_dir::name as owned;
use super::{Found, TRIES, Union};
use crate::fs::{FsError, Ino, ROOT, Replace};
use crate::meta::Kind;
use crate::upper::Place;
use crate::whiteout::Mark;
use rustix::fs::RenameFlags;
use std::os::fd::AsFd;

/// One side of a rename: a directory and a name.
struct Side {
    dir: Ino,
    name: Name,
}

/// The effects of a rename. It is computed with the directories locked, so it holds until they are unlocked.
struct Plan {
    flags: RenameFlags,
    /// What the old name is afterwards.
    left: Left,
    /// The inode that the rename removes from the new name, if any.
    replaced: Option<Ino>,
    /// The inode that an exchange moves to the old name.
    exchanged: Option<Ino>,
    /// Whether an exchange moves a whiteout to the old name that is not needed there.
    sweep: bool,
    /// Whether the rename system call must leave a whiteout.
    leaves: bool,
}

/// What remains under the old name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Whiteout,
}

impl Union {
    /// Renames `name` of `dir` to `new_name` of `new_dir`. A directory of the image is moved by a redirect, without
    /// reading its content. Returns the directories whose parent has changed.
    pub fn rename(
        &self,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        replace: Replace,
    ) -> Result<Vec<Ino>, FsError> {
        check_name(new_name)?;
        let _renaming = self.renames.lock();
        let (from, to) = (Side { dir, name: owned(name) }, Side { dir: new_dir, name: owned(new_name) });
        for _ in 0..TRIES {
            if let Some(moved) = self.try_rename(&from, &to, replace)? {
                return Ok(moved);
            }
        }
        Err(FsError::NotFound)
    }

    /// Returns `None` if concurrent changes of the names came before the locks; the caller retries.
    fn try_rename(&self, from: &Side, to: &Side, replace: Replace) -> Result<Option<Vec<Ino>>, FsError> {
        let source = self.find(from.dir, &from.name)?.ok_or(FsError::NotFound)?;
        let target = self.find(to.dir, &to.name)?;
        if !self.is_allowed(source, from.dir, target, to.dir, replace)? {
            return Ok(Some(Vec::new()));
        }
        self.copy_up_for_rename(source, true)?;
        if let Some(target) = target {
            self.copy_up_for_rename(target, replace == Replace::Exchange)?;
        }
        self.copy_up_dir(from.dir)?;
        self.copy_up_dir(to.dir)?;
        let target = self.find(to.dir, &to.name)?;
        let mut involved = vec![from.dir, to.dir];
        // The lock of a replaced file is left out: it is held while the file's data is copied, and is not needed here.
        involved.extend(target.map(Found::ino).filter(|ino| self.kind(*ino).is_ok_and(|kind| kind == Kind::Dir)));
        let dir_locks = self.dir_locks(&involved);
        let _changing = dir_locks.lock();
        let ino = source.ino();
        self.check_alive(to.dir)?;
        if self.find(from.dir, &from.name)? != Some(Found::Upper(ino)) || self.find(to.dir, &to.name)? != target {
            return Ok(None);
        }
        // Checked again under the locks: before, a directory to be replaced could still get entries.
        if !self.is_allowed(Found::Upper(ino), from.dir, target, to.dir, replace)? {
            return Ok(Some(Vec::new()));
        }
        let plan = self.plan(from, to, ino, target, replace)?;
        self.carry_out(&plan, from, to)?;
        self.enter_rename(&plan, from, to, ino)?;
        let moved = [Some(ino), plan.exchanged].into_iter().flatten().filter(|_| from.dir != to.dir);
        Ok(Some(moved.filter(|ino| self.kind(*ino).is_ok_and(|kind| kind == Kind::Dir)).collect()))
    }

    /// Whether the rename changes anything; an error if it is not allowed.
    fn is_allowed(
        &self,
        source: Found,
        dir: Ino,
        target: Option<Found>,
        new_dir: Ino,
        replace: Replace,
    ) -> Result<bool, FsError> {
        let is_dir = |found: Found| Ok::<_, FsError>(self.kind(found.ino())? == Kind::Dir);
        if is_dir(source)? && self.lies_in(new_dir, source.ino())? {
            return Err(FsError::Invalid);
        }
        let Some(target) = target else {
            return if replace == Replace::Exchange { Err(FsError::NotFound) } else { Ok(true) };
        };
        match replace {
            Replace::Forbid => return Err(FsError::Exists),
            Replace::Exchange => {
                if is_dir(target)? && self.lies_in(dir, target.ino())? {
                    return Err(FsError::Invalid);
                }
            }
            Replace::Allow => match (is_dir(source)?, is_dir(target)?) {
                (true, false) => return Err(FsError::NotDir),
                (false, true) => return Err(FsError::IsDir),
                (true, true) => self.check_empty(target.ino())?,
                (false, false) => {}
            },
        }
        // Both names are hard links to one file: rename(2) does nothing.
        Ok(source.ino() != target.ino())
    }

    /// Whether a directory is `other` or one of its descendants.
    fn lies_in(&self, mut dir: Ino, other: Ino) -> Result<bool, FsError> {
        while dir != other {
            if dir == ROOT {
                return Ok(false);
            }
            let parent = self.parent(dir)?;
            if parent == dir {
                // A removed directory has no ancestors.
                return Ok(false);
            }
            dir = parent;
        }
        Ok(true)
    }

    /// Copies up an inode that the rename needs in the upper; a replaced one only if it has other hard links.
    fn copy_up_for_rename(&self, found: Found, moves: bool) -> Result<(), FsError> {
        if !moves {
            return self.copy_up_if_hard_linked(found);
        }
        self.copy_up(found.ino())?;
        self.copy_data_bound_to_path(found.ino())
    }

    fn plan(&self, from: &Side, to: &Side, ino: Ino, target: Option<Found>, replace: Replace) -> Result<Plan, FsError> {
        let is_dir = self.kind(ino)? == Kind::Dir;
        // A whiteout that hides nothing would be visible to the kernel in a directory that is not merged.
        let needs = self.covers(from.dir, &from.name)?;
        let left = if needs { Left::Whiteout } else { Left::Nothing };
        self.mark_moved(ino, to)?;
        self.upper.claim_name(self.handle(ino)?.as_fd(), &to.name)?;
        if replace == Replace::Exchange {
            let other = target.map(Found::ino).ok_or(FsError::NotFound)?;
            self.mark_moved(other, from)?;
            self.upper.claim_name(self.handle(other)?.as_fd(), &from.name)?;
            let (flags, left, exchanged) = (RenameFlags::EXCHANGE, Left::Nothing, Some(other));
            return Ok(Plan { flags, left, replaced: None, exchanged, sweep: false, leaves: false });
        }
        let slot = self.table().names(to.dir).and_then(|names| names.get(&to.name));
        let parent = self.handle(to.dir)?;
        let at = Place { dir: parent.as_fd(), name: &to.name };
        let replaced = target.map(Found::ino);
        if let (Some(old), true) = (replaced, is_dir)
            && target == Some(Found::Upper(old))
        {
            self.clear(old, at)?;
        }
        let taken = slot == Some(NameState::Whiteout) && self.upper.settle_whiteout(at)?;
        // rename(2) cannot put a directory over a whiteout, but RENAME_EXCHANGE can; the whiteout then lands at the old
        // name.
        if taken && is_dir {
            let sweep = left == Left::Nothing;
            return Ok(Plan { flags: RenameFlags::EXCHANGE, left, replaced, exchanged: None, sweep, leaves: false });
        }
        let flags = if slot.is_none() { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        Ok(Plan { flags, left, replaced, exchanged: None, sweep: false, leaves: needs })
    }

    /// Writes the redirect, or the opaque mark, to a directory that is about to move: where it is now, its lower
    /// directory follows from its path.
    fn mark_moved(&self, ino: Ino, to: &Side) -> Result<(), FsError> {
        let lower = match self.table().get(ino) {
            Some(Entry { dir: Some(dir), .. }) => dir.lower,
            _ => return Ok(()),
        };
        let handle = self.handle(ino)?;
        match lower {
            Some(_) if !self.forms.redirects => return Err(FsError::OtherDevice),
            Some(lower) => self.upper.set_mark(
                handle.as_fd(),
                Mark::Redirect,
                &self.redirect_of(lower)?.ok_or(FsError::OtherDevice)?,
            )?,
            None if self.covers(to.dir, &to.name)? => self.upper.set_opaque(handle.as_fd())?,
            None => {}
        }
        Ok(())
    }

    fn carry_out(&self, plan: &Plan, from: &Side, to: &Side) -> Result<(), FsError> {
        if let Some(replaced) = plan.replaced {
            self.hold_if_last(replaced)?;
        }
        let (old, new) = (self.handle(from.dir)?, self.handle(to.dir)?);
        let (old, new) = (Place { dir: old.as_fd(), name: &from.name }, Place { dir: new.as_fd(), name: &to.name });
        let done = self.move_object(plan, old, new);
        if done.is_err()
            && let Some(replaced) = plan.replaced
        {
            self.release(replaced);
        }
        done?;
        self.upper.drop_marker(new);
        if plan.sweep
            && let Err(e) = self.upper.backing().unlink(old.dir, old.name)
        {
            let name = old.name.escape_ascii();
            tracing::warn!("cannot remove the unneeded whiteout of `{name}` from the upper directory: {e}");
        }
        Ok(())
    }

    /// Makes the rename system call, between the two steps that make it leave a whiteout.
    fn move_object(&self, plan: &Plan, old: Place, new: Place) -> std::io::Result<()> {
        if !plan.leaves {
            return self.upper.rename(old, new, plan.flags);
        }
        let leaving = self.upper.begin_leaving(old)?;
        let moved = self.upper.rename(old, new, plan.flags | leaving);
        self.upper.finish_leaving(old, moved.is_err());
        moved
    }

    fn enter_rename(&self, plan: &Plan, from: &Side, to: &Side, ino: Ino) -> Result<(), FsError> {
        let is_dir = |table: &super::Table, ino: Ino| {
            table.get(ino).map_or_else(|| self.lower.is_dir(ino), |e| e.kind == Kind::Dir)
        };
        let mut table = self.table_mut();
        let count = |table: &mut super::Table, ino: Ino, away: Ino, there: Ino| {
            if is_dir(table, ino) {
                table.count_subdirs(away, -1);
                table.count_subdirs(there, 1);
            }
        };
        if let Some(other) = plan.exchanged {
            table.lose_name(to.dir, &to.name, other);
            table.lose_name(from.dir, &from.name, ino);
            table.add_name(from.dir, &from.name, other);
            table.add_name(to.dir, &to.name, ino);
            count(&mut table, ino, from.dir, to.dir);
            count(&mut table, other, to.dir, from.dir);
            return Ok(());
        }
        if let Some(replaced) = plan.replaced {
            if table.get(replaced).is_none() {
                let kind = self.lower.kind(replaced)?;
                table.insert(replaced, removed(kind));
                self.leave_removed(replaced);
            }
            if is_dir(&table, replaced) {
                table.count_subdirs(to.dir, -1);
            }
            table.lose_name(to.dir, &to.name, replaced);
        }
        table.take_name(from.dir, &from.name, ino, plan.left == Left::Whiteout);
        table.add_name(to.dir, &to.name, ino);
        count(&mut table, ino, from.dir, to.dir);
        drop(table);
        if let Some(replaced) = plan.replaced {
            self.drop_if_unreferenced(replaced);
        }
        Ok(())
    }
}

/// Creates the table entry of an inode of the image that has lost its last name and may be open.
pub(super) fn removed(kind: Kind) -> Entry {
    let mut entry = Entry::new(kind, None);
    if kind == Kind::Dir {
        entry.dir = Some(super::Dir::new(None, Some(Default::default())));
    }
    entry
}
