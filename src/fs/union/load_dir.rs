//! Loading of upper directories: entries to inodes, whiteouts, redirects and metacopies.

use super::Union;
use super::inode_table::{Data, Dir, Entry, Name, NameState, Names};
use crate::backing::{Handle, Listed, Object};
use crate::fs::lower_types::Item;
use crate::fs::{FsError, Ino, ROOT};
use crate::meta::Kind;
use crate::upper::{derived, is_own};
use crate::whiteout::{Mark, Marker, is_whiteout_device};
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What an entry of the upper directory was found to be.
enum Seen {
    Whiteout,
    Inode { raw: u64, number: Option<u64>, kind: Kind, lower: Option<Ino>, data: Data },
}

impl Union {
    /// Loads a directory of the upper, unless it is loaded. A directory that only the image has needs no loading.
    pub(super) fn ensure_loaded(&self, dir: Ino) -> Result<(), FsError> {
        let (locks, lower) = {
            let table = self.table();
            match table.get(dir) {
                Some(entry) => match &entry.dir {
                    Some(here) if here.names.is_none() => (entry.locks.clone(), here.lower),
                    _ => return Ok(()),
                },
                None => return Ok(()),
            }
        };
        let _reading = locks.load.lock();
        if self.table().names(dir).is_some() {
            return Ok(());
        }
        let handle = self.handle(dir)?;
        let mixed = self.upper.may_hold_file_whiteouts(self.upper.mark(handle.as_fd(), Mark::Opaque)?.as_deref());
        let (mut found, mut hidden) = (Vec::new(), HashSet::new());
        for listed in self.upper.backing().list(handle.as_fd())? {
            match self.upper.marker(handle.as_fd(), &listed)? {
                None | Some(Marker::Plain) => {}
                Some(Marker::Whiteout(name)) => {
                    hidden.insert(Name::from(name));
                    continue;
                }
                Some(Marker::Opaque | Marker::Reserved) => continue,
            }
            match self.inspect(&handle, lower, mixed, &listed) {
                Err(e) if self.is_concurrent_removal(&e) => {}
                seen => found.push((Name::from(listed.name), seen?)),
            }
        }
        for name in self.upper.hidden_names(handle.as_fd())? {
            if !found.iter().any(|(other, _)| other[..] == name[..]) {
                hidden.insert(Name::from(name));
            }
        }
        // A whiteout hides lower layers only: an object of the same name beside it is visible, and a directory is then
        // opaque.
        for (name, seen) in &mut found {
            if let Seen::Inode { lower, .. } = seen
                && hidden.contains(name)
            {
                *lower = None;
            }
        }
        let hidden = hidden.into_iter().map(|name| (name, Seen::Whiteout));
        let found: Vec<(Name, Seen)> = hidden.chain(found).collect();
        // Held so that an inode without a number gets only one, though several of its hard links may be loaded at once.
        let _numbering = self.numbering.lock();
        let (mut given, mut settled) = (HashMap::new(), Vec::with_capacity(found.len()));
        for (name, mut seen) in found {
            match self.settle_number(&handle, &name, &mut seen, &mut given) {
                Err(e) if self.is_concurrent_removal(&e) => {}
                done => settled.push(done.map(|()| (name, seen))?),
            }
        }
        self.enter(dir, lower, settled)
    }

    /// Whether an error in a view comes from a concurrent change by the mount that uses the directory.
    fn is_concurrent_removal(&self, error: &FsError) -> bool {
        self.is_view() && error.is_absence()
    }

    /// Loads all directories of the upper, unless they are loaded. Later ones are created loaded.
    pub(super) fn load_all(&self) -> Result<(), FsError> {
        if self.all_loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut left = vec![ROOT];
        while let Some(dir) = left.pop() {
            self.ensure_loaded(dir)?;
            let table = self.table();
            let Some(names) = table.names(dir) else { continue };
            let is_dir = |ino: Ino| table.get(ino).is_some_and(|entry| entry.dir.is_some());
            left.extend(names.all().filter_map(|(_, what)| match what {
                NameState::Inode(ino) if is_dir(ino) => Some(ino),
                _ => None,
            }));
            drop(table);
            if left.is_empty() {
                // A directory that is not loaded may have been moved below one that is, so the search is repeated.
                left = self.table().unread();
            }
        }
        self.all_loaded.store(true, Ordering::Release);
        Ok(())
    }

    fn inspect(&self, dir: &Handle, lower: Option<Ino>, mixed: bool, listed: &Listed) -> Result<Seen, FsError> {
        let (fd, name) = (dir.as_fd(), &*listed.name);
        // The listed kind is not sufficient for files, which may stand for another kind, and devices, whose number
        // matters.
        let sure = match listed.kind {
            Some(kind @ (Kind::Dir | Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::Block)) => Some(kind),
            Some(Kind::File) if !self.upper.overrides() && !mixed => Some(Kind::File),
            _ => None,
        };
        let kind = match sure {
            Some(kind) => kind,
            None => {
                let object = self.upper.object_at(fd, name)?;
                if self.is_whiteout(dir, name, mixed, &object)? {
                    return Ok(Seen::Whiteout);
                }
                object.kind
            }
        };
        // On a shared upper directory, most objects of other tools have no attributes.
        let bare = self.upper.dialect().shared && self.upper.backing().list_xattrs_at(fd, name)?.is_empty();
        let number = if bare { None } else { self.upper.number_at(fd, name)? };
        let mut seen = (None, Data::Upper);
        match kind {
            Kind::Dir => seen.0 = self.lower_of(dir, lower, name)?,
            Kind::File if !bare && number.is_none_or(|number| !is_own(number)) => {
                seen.1 = self.data_at(dir, lower, name, number)?;
            }
            _ => {}
        }
        Ok(Seen::Inode { raw: listed.ino, number, kind, lower: seen.0, data: seen.1 })
    }

    fn is_whiteout(&self, dir: &Handle, name: &[u8], mixed: bool, object: &Object) -> Result<bool, FsError> {
        match object.kind {
            Kind::Char => Ok(!object.overridden && is_whiteout_device(object.rdev)),
            Kind::File if mixed && object.raw.size == 0 => {
                Ok(self.upper.mark_at(dir.as_fd(), name, Mark::Whiteout)?.is_some())
            }
            _ => Ok(false),
        }
    }

    /// Finds the lower directory that shows through one of the upper: by its redirect, else by its name, unless it is
    /// opaque.
    fn lower_of(&self, dir: &Handle, parent: Option<Ino>, name: &[u8]) -> Result<Option<Ino>, FsError> {
        let redirect = self.upper.mark_at(dir.as_fd(), name, Mark::Redirect)?;
        let found = self.redirected(parent, redirect.as_deref(), name)?.filter(|ino| self.lower.is_dir(*ino));
        match found {
            Some(_) if self.upper.is_opaque_at(dir.as_fd(), name)? => Ok(None),
            found => Ok(found),
        }
    }

    /// Resolves a redirect as the kernel does: an absolute path from the root, or a name in the same directory.
    fn redirected(&self, parent: Option<Ino>, redirect: Option<&[u8]>, name: &[u8]) -> Result<Option<Ino>, FsError> {
        match redirect {
            Some(path) if path.starts_with(b"/") => self.lower.at_path(path),
            other => match parent {
                Some(parent) => self.lower.find(parent, other.unwrap_or(name)),
                None => Ok(None),
            },
        }
    }

    /// Finds the data of a file; that of a metacopy by its inode number on an image, else by redirect or name.
    fn data_at(&self, dir: &Handle, parent: Option<Ino>, name: &[u8], number: Option<u64>) -> Result<Data, FsError> {
        if self.upper.mark_at(dir.as_fd(), name, Mark::Metacopy)?.is_none() {
            return Ok(Data::Upper);
        }
        let is_file = |ino: &Ino| self.lower.kind(*ino).is_ok_and(|kind| kind == Kind::File);
        let origin = match number.filter(|number| self.lower.is_certain() && self.lower.has(*number)) {
            Some(number) => Some(number),
            None => {
                let redirect = self.upper.mark_at(dir.as_fd(), name, Mark::Redirect)?;
                self.redirected(parent, redirect.as_deref(), name)?
            }
        };
        let size = self.upper.object_at(dir.as_fd(), name)?.raw.size;
        match origin.filter(is_file) {
            Some(ino) => Ok(Data::Lower(ino, size)),
            None => {
                let shown = crate::name::show(name);
                tracing::error!(
                    "the data of `{shown}` in the upper directory belongs to a file that the image does not have"
                );
                Ok(Data::Missing)
            }
        }
    }

    /// Assigns an inode number that no other inode has to an entry. `given` are numbers assigned in this call, which
    /// are not in the table yet, by the backing file system's numbers.
    fn settle_number(
        &self,
        dir: &Handle,
        name: &[u8],
        seen: &mut Seen,
        given: &mut HashMap<u64, Ino>,
    ) -> Result<(), FsError> {
        let Seen::Inode { raw, number, kind, lower, data } = seen else { return Ok(()) };
        if let Some(known) = self.table().by_raw(*raw).or_else(|| given.get(raw).copied()) {
            *number = Some(known);
            return Ok(());
        }
        let taken = |ino: Ino| self.table().get(ino).is_some_and(|entry| entry.raw.is_some_and(|other| other != *raw));
        if lower.is_some_and(taken) {
            tracing::warn!(
                "`{}` in the upper directory redirects to the same directory as another one: it is hidden",
                crate::name::show(name)
            );
            *lower = None;
        }
        let meant = match (&lower, &data, *number) {
            (Some(lower), ..) => Some(*lower),
            (None, Data::Lower(origin, _), None) => Some(*origin),
            (None, _, number) => number.filter(|ino| is_own(*ino) || self.lower.accepts(*ino, *kind)),
        };
        if let Some(ino) = meant.filter(|ino| !taken(*ino)) {
            *number = Some(ino);
            return Ok(());
        }
        let new = match self.upper.new_number()? {
            None => derived(*raw),
            Some(new) => {
                let object = self.upper.backing().stat_at(dir.as_fd(), name)?;
                let (opened, _) = self.upper.open_entry(dir.as_fd(), name, object.mode)?;
                self.upper.give_number(opened.as_fd(), *raw, Some(new))?
            }
        };
        given.insert(*raw, new);
        *number = Some(new);
        Ok(())
    }

    /// Enters a loaded directory into the table.
    fn enter(&self, dir: Ino, lower: Option<Ino>, found: Vec<(Name, Seen)>) -> Result<(), FsError> {
        let mut subdirs = 0;
        let below = lower.map(|lower| self.lower.listing(lower)).transpose()?;
        let mut table = self.table_mut();
        let mut names = Names::default();
        for (name, seen) in found {
            let Seen::Inode { raw, number: Some(ino), kind, lower, data } = seen else {
                names.load(&name, NameState::Whiteout);
                continue;
            };
            subdirs += u32::from(kind == Kind::Dir);
            names.load(&name, NameState::Inode(ino));
            if let Some(entry) = table.get_mut(ino).filter(|entry| entry.raw == Some(raw)) {
                if !entry.names.contains(&(dir, name.clone())) {
                    entry.add_name(dir, name);
                }
                continue;
            }
            let mut entry = Entry::new(kind, Some(raw));
            entry.add_name(dir, name);
            entry.data = data;
            entry.dir = (kind == Kind::Dir).then(|| Dir::new(lower, None));
            table.insert(ino, entry);
        }
        for item in below.iter().flat_map(|listing| listing.from(0)) {
            let (_, Item { name, kind, .. }) = item?;
            subdirs += u32::from(kind == Kind::Dir && names.get(name).is_none());
        }
        if let Some(here) = table.dir_mut(dir) {
            here.names = Some(names);
            here.subdirs = subdirs;
        }
        Ok(())
    }

    /// Completes the copy-ups of hard-linked files that a crash interrupted before all names were created.
    pub(super) fn finish_links(&self) -> Result<(), FsError> {
        let unfinished = self.upper.unfinished()?;
        if unfinished.is_empty() {
            return Ok(());
        }
        self.load_all()?;
        self.lower.load_all()?;
        for ino in unfinished {
            let (handle, object) = self.upper.open_unfinished(ino)?;
            if !self.lower.has(ino) {
                self.upper.finished(ino)?;
                continue;
            }
            let known = self.table().by_raw(object.raw.ino);
            if known.is_none() {
                let mut entry = Entry::new(object.kind, Some(object.raw.ino));
                let metacopy = self.upper.mark(handle.as_fd(), Mark::Metacopy)?.is_some();
                entry.data = if metacopy { Data::Lower(ino, object.raw.size) } else { Data::Upper };
                entry.held = Some(handle.clone());
                self.table_mut().insert(ino, entry);
            }
            for (dir, name) in self.visible_names(ino)? {
                self.link_up(ino, &handle, dir, &name)?;
            }
            self.upper.finished(ino)?;
            if let Some(entry) = self.table_mut().get_mut(ino) {
                entry.held = None;
            }
            self.drop_removed(ino);
        }
        Ok(())
    }
}

/// Converts a name to the table's type.
pub(super) fn name(bytes: &[u8]) -> Name {
    Arc::from(bytes)
}
