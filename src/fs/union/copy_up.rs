//! Bringing what the image has into the upper directory: attributes only. The data of a file stays where it is until it
//! is written; what is small and about to be written comes along at once.

use super::table::{Data, Dir, Entry, Name, Names, What};
use super::xattr::CAPABILITY;
use super::{STRIPES, TRIES, Union, lock};
use crate::backing::Handle;
use crate::fs::{FsError, Ino};
use crate::meta::{Kind, PERMISSION_BITS};
use crate::upper::{Draft, Made, Place, timestamps};
use crate::whiteout::is_whiteout_device;
use std::borrow::Cow;
use std::os::fd::AsFd;

/// File systems keep longer attributes in room that may not be there, or not at all (ext4: a block for all of them).
const LONGEST_REDIRECT: usize = 2048;
/// Data up to this many bytes is copied while the file is made: marks that say where it is, and go at once, cost more.
const SMALL: u64 = 1 << 20;

/// The set-user-ID and set-group-ID bits, which a write takes away.
const SET_ID: u32 = 0o6000;

/// What of a file is brought up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Attributes,
    /// Its data too, if it is small.
    Small,
}

impl Union {
    /// Sees to it that an inode is in the upper directory, under all its names. What no longer has a name and is open
    /// still gets there without one.
    pub(super) fn copy_up(&self, ino: Ino) -> Result<(), FsError> {
        if self.forms.metacopies { self.copy_up_attributes(ino) } else { self.copy_up_whole(ino) }
    }

    /// The same where the data will be written, or goes, anyway.
    pub(super) fn copy_up_attributes(&self, ino: Ino) -> Result<(), FsError> {
        self.copy_up_part(ino, Part::Attributes)
    }

    /// The same with a file's data.
    pub(super) fn copy_up_whole(&self, ino: Ino) -> Result<(), FsError> {
        self.copy_up_part(ino, Part::Small)?;
        if matches!(self.data_of(ino), None | Some(Data::Upper)) {
            return Ok(());
        }
        self.copy_data(ino, u64::MAX).map(drop)
    }

    fn copy_up_part(&self, ino: Ino, part: Part) -> Result<(), FsError> {
        for _ in 1..TRIES {
            match self.try_copy_up(ino, part) {
                // A name went while it was on its way: perhaps the last one.
                Err(FsError::NotFound | FsError::Stale(_)) if self.lower.has(ino) => {}
                done => return done,
            }
        }
        self.try_copy_up(ino, part)
    }

    fn try_copy_up(&self, ino: Ino, part: Part) -> Result<(), FsError> {
        if self.is_up(ino) {
            return Ok(());
        }
        if !self.lower.has(ino) {
            return Err(FsError::Stale(ino));
        }
        if self.lower.kind(ino)? == Kind::Dir {
            return self.copy_up_dir(ino);
        }
        let _copying = lock(&self.copying[ino as usize % STRIPES]);
        if self.is_up(ino) {
            return Ok(());
        }
        if self.table().get(ino).is_some() {
            return self.copy_up_removed(ino);
        }
        let names = self.visible_names(ino)?;
        for (dir, _) in &names {
            self.copy_up_dir(*dir)?;
        }
        let mut draft = self.draft_of(ino)?;
        if draft.kind == Kind::Char && is_whiteout_device(draft.rdev) {
            // An image may hold such a device, but in the upper directory it would be a whiteout.
            return Err(FsError::NotPermitted);
        }
        let small = part == Part::Small && draft.size <= SMALL && !loses_by_writing(&draft);
        let made = self.make_up(ino, &mut draft, small)?;
        match &names[..] {
            [] => Err(FsError::Stale(ino)),
            [(dir, name)] => self.put_file(ino, made, &draft, *dir, name),
            names => self.put_links(ino, made, &draft, names),
        }
    }

    /// Makes it in the work directory, with its data if wanted or if nothing could say there that the data is missing.
    fn make_up(&self, ino: Ino, draft: &mut Draft, with_data: bool) -> Result<Made<'_>, FsError> {
        let with_data = draft.metacopy && (with_data || !self.upper.has_marks());
        if with_data {
            (draft.metacopy, draft.redirect) = (false, None);
        }
        let made = self.upper.make(draft)?;
        if with_data {
            self.fill(ino, &made, draft)?;
        }
        Ok(made)
    }

    /// Gives what has just been made its data, on disk before anybody sees it.
    fn fill(&self, ino: Ino, made: &Made, draft: &Draft) -> Result<(), FsError> {
        self.copy_pieces(ino, draft.size, &made.handle)?;
        if draft.mode & SET_ID != 0 {
            self.upper.backing().chmod(made.handle.as_fd(), draft.mode)?;
        }
        self.upper.sync(made.handle.as_fd(), true)?;
        let mtime = draft.times.map(|(_, mtime)| mtime);
        Ok(self.upper.backing().utimens(made.handle.as_fd(), &timestamps(None, mtime))?)
    }

    /// Where the lower layers have an inode, unless that is too long to be written down.
    pub(super) fn redirect_of(&self, lower: Ino) -> Result<Option<Vec<u8>>, FsError> {
        Ok(Some(self.lower.path(lower)?).filter(|path| path.len() <= LONGEST_REDIRECT))
    }

    /// Before a file gets another name: where its data is must not follow from its place, as it does where the way there
    /// is too long to be written down and numbers are not certain either.
    pub(super) fn settle_data(&self, ino: Ino) -> Result<(), FsError> {
        let Some(Data::Lower(origin, _)) = self.data_of(ino) else { return Ok(()) };
        let is_known = !self.is_up(ino) || self.lower.is_certain() || self.redirect_of(origin)?.is_some();
        if is_known { Ok(()) } else { self.copy_data(ino, u64::MAX).map(drop) }
    }

    pub(super) fn is_up(&self, ino: Ino) -> bool {
        self.table().get(ino).is_some_and(|entry| entry.raw.is_some() && !entry.linking)
    }

    /// What an inode of the image is made of in the upper directory.
    pub(super) fn draft_of(&self, ino: Ino) -> Result<Draft<'_>, FsError> {
        let attr = self.lower.getattr(ino)?;
        let has_data = attr.kind == Kind::File && attr.size > 0;
        Ok(Draft {
            number: Some(ino),
            kind: attr.kind,
            mode: u32::from(attr.mode) & PERMISSION_BITS,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            target: if attr.kind == Kind::Symlink { self.lower.readlink(ino)? } else { Cow::Borrowed(b"") },
            xattrs: self.lower.xattrs(ino)?,
            times: Some((attr.atime, attr.mtime)),
            size: if has_data { attr.size } else { 0 },
            opaque: false,
            metacopy: has_data,
            redirect: if has_data { self.redirect_of(ino)? } else { None },
        })
    }

    fn entry_of(&self, ino: Ino, draft: &Draft, raw: u64) -> Entry {
        let mut entry = Entry::new(draft.kind, Some(raw));
        if draft.metacopy {
            entry.data = Data::Lower(ino, draft.size);
        }
        entry
    }

    /// Sees to it that a directory is in the upper directory, and all above it.
    pub(super) fn copy_up_dir(&self, ino: Ino) -> Result<(), FsError> {
        if let Some(entry) = self.table().get(ino) {
            return match entry.dir {
                Some(_) if entry.is_removed() => Err(FsError::NotFound),
                Some(_) => Ok(()),
                None => Err(FsError::NotDir),
            };
        }
        let parent = self.lower.parent(ino)?;
        self.copy_up_dir(parent)?;
        let name = self.lower.dir_name(ino)?;
        let draft = self.draft_of(ino)?;
        let made = self.upper.make(&draft)?;
        let raw = made.raw_ino;
        let locks = self.locks_of(parent)?;
        let _changing = lock(&locks.change);
        if self.table().get(ino).is_some() {
            return Ok(());
        }
        self.ensure_loaded(parent)?;
        if self.table().names(parent).is_some_and(|names| names.get(&name).is_some()) {
            return Err(FsError::NotFound);
        }
        let subdirs = self.lower.subdirs(ino)?;
        self.upper.claim_name(made.handle.as_fd(), &name)?;
        self.put_quietly(parent, |dir| Ok(made.put(Place { dir: dir.as_fd(), name: &name })?))?;
        let mut entry = self.entry_of(ino, &draft, raw);
        entry.dir = Some(Dir { lower: Some(ino), names: Some(Names::default()), subdirs, default_acl: None });
        let mut table = self.table_mut();
        table.insert(ino, entry);
        table.add_name(parent, &name, ino);
        Ok(())
    }

    /// Does what is no change to those who look at a directory, and so must not show in its times.
    fn put_quietly<T>(&self, dir: Ino, put: impl FnOnce(&Handle) -> Result<T, FsError>) -> Result<T, FsError> {
        let handle = self.handle(dir)?;
        let before = self.upper.backing().stat(handle.as_fd())?;
        let done = put(&handle)?;
        let times = timestamps(None, Some(before.mtime));
        if let Err(e) = self.upper.backing().utimens(handle.as_fd(), &times) {
            tracing::warn!("the modification time of directory {dir} shows a copy-up: {e}");
        }
        Ok(done)
    }

    fn put_file(&self, ino: Ino, made: Made, draft: &Draft, dir: Ino, name: &Name) -> Result<(), FsError> {
        let raw = made.raw_ino;
        let locks = self.locks_of(dir)?;
        let _changing = lock(&locks.change);
        self.still_shows(dir, name)?;
        self.upper.claim_name(made.handle.as_fd(), name)?;
        let handle = self.put_quietly(dir, |handle| Ok(made.put(Place { dir: handle.as_fd(), name })?))?;
        let mut table = self.table_mut();
        table.insert(ino, self.entry_of(ino, draft, raw));
        table.add_name(dir, name, ino);
        drop(table);
        self.upper.handles().put(ino, handle);
        Ok(())
    }

    /// Whether a name of the image can be seen, now that nobody changes its directory.
    fn still_shows(&self, dir: Ino, name: &Name) -> Result<(), FsError> {
        self.ensure_loaded(dir)?;
        match self.table().names(dir) {
            Some(names) if names.get(name).is_none() => Ok(()),
            // Somebody was faster: the kernel never lets that happen, and asks again.
            _ => Err(FsError::NotFound),
        }
    }

    /// Puts a file in place under several names. Nobody may change it before it has all of them.
    fn put_links(&self, ino: Ino, made: Made, draft: &Draft, names: &[(Ino, Name)]) -> Result<(), FsError> {
        let mut entry = self.entry_of(ino, draft, made.raw_ino);
        let handle = made.keep_for_links(ino)?;
        (entry.linking, entry.spare, entry.held) = (true, 1, Some(handle.clone()));
        self.table_mut().insert(ino, entry);
        let linked = names.iter().try_for_each(|(dir, name)| self.link_up(ino, &handle, *dir, name));
        if let Err(e) = linked {
            self.undo_links(ino)?;
            return Err(e);
        }
        let finished = self.upper.finished(ino);
        if let Some(entry) = self.table_mut().get_mut(ino) {
            (entry.linking, entry.held) = (false, None);
            entry.spare = u32::from(finished.is_err());
        }
        Ok(())
    }

    /// Makes one of the names that a file of the image has.
    pub(super) fn link_up(&self, ino: Ino, file: &Handle, dir: Ino, name: &Name) -> Result<(), FsError> {
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = lock(&locks.change);
        self.still_shows(dir, name)?;
        self.upper.claim_name(file.as_fd(), name)?;
        self.put_quietly(dir, |handle| {
            Ok(self.upper.link(file.as_fd(), Place { dir: handle.as_fd(), name }, false)?)
        })?;
        self.table_mut().add_name(dir, name, ino);
        Ok(())
    }

    /// Takes back the names that were made: the image's show through again, and nothing has changed.
    fn undo_links(&self, ino: Ino) -> Result<(), FsError> {
        let names = self.table().get(ino).map(|entry| entry.names.clone()).unwrap_or_default();
        for (dir, name) in names {
            let locks = self.locks_of(dir)?;
            let _changing = lock(&locks.change);
            self.put_quietly(dir, |handle| Ok(self.upper.backing().unlink(handle.as_fd(), &name)?))?;
            self.table_mut().take_name(dir, &name, ino, false);
        }
        self.upper.finished(ino)?;
        self.table_mut().remove(ino);
        self.upper.handles().take(ino);
        Ok(())
    }

    /// A file that has no name any more, and is open: it goes on in the upper directory without one.
    fn copy_up_removed(&self, ino: Ino) -> Result<(), FsError> {
        let mut draft = self.draft_of(ino)?;
        // Dropped, and so unlinked, as soon as its descriptor is known.
        let made = self.make_up(ino, &mut draft, false)?;
        let mut table = self.table_mut();
        let locks = table.get(ino).map(|entry| entry.locks.clone()).unwrap_or_default();
        let mut entry = self.entry_of(ino, &draft, made.raw_ino);
        (entry.locks, entry.held) = (locks, Some(made.handle.clone()));
        table.insert(ino, entry);
        Ok(())
    }

    /// A name that must not be there, or must be a whiteout, before something is put under it: whether it is taken by one.
    pub(super) fn vacant(&self, dir: Ino, name: &[u8]) -> Result<bool, FsError> {
        self.ensure_loaded(dir)?;
        let table = self.table();
        match table.names(dir).and_then(|names| names.get(name)) {
            Some(What::Whiteout) => {
                drop(table);
                let parent = self.handle(dir)?;
                Ok(self.upper.settle_whiteout(Place { dir: parent.as_fd(), name })?)
            }
            Some(What::Inode(_)) => Err(FsError::Exists),
            None => {
                drop(table);
                if self.covers(dir, name)? { Err(FsError::Exists) } else { Ok(false) }
            }
        }
    }
}

/// Whether a file has what the system below takes away when data is written.
fn loses_by_writing(draft: &Draft) -> bool {
    draft.mode & SET_ID != 0 || draft.xattrs.iter().any(|(name, _)| name == CAPABILITY)
}
