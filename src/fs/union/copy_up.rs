//! Copy-up: copies inodes of the lower side to the upper directory, attributes only. A file's data stays in the lower
//! layer until the first write (a metacopy); small data that is about to be written is copied at once.

use super::inode_table::{Data, Dir, Entry, Name, NameState, Names};
use super::xattr::CAPABILITY;
use super::{STRIPES, TRIES, Union};
use crate::backing::Handle;
use crate::fs::{FsError, Ino};
use crate::meta::{Kind, PERMISSION_BITS};
use crate::upper::{Draft, Made, Place, timestamps};
use crate::whiteout::is_whiteout_device;
use std::borrow::Cow;
use std::os::fd::AsFd;

/// The longest redirect that is written: file systems limit the room for longer attributes (ext4: one block for all of
/// an inode), or cannot hold them at all.
const LONGEST_REDIRECT: usize = 2048;
/// Up to this many bytes, data is copied while the file is created: metacopy marks that are removed soon cost more.
const SMALL: u64 = 1 << 20;

/// The set-user-ID and set-group-ID bits, which a write clears.
const SET_ID: u32 = 0o6000;

/// The part of a file that is copied up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Attributes,
    /// The attributes, and the data if it is small.
    Small,
}

impl Union {
    /// Copies an inode up, under all its hard links. Attributes only; data too where metacopies are not allowed
    /// ([`crate::fs::Forms::metacopies`]). An open inode that has lost its last name is copied up without a name.
    pub(super) fn copy_up(&self, ino: Ino) -> Result<(), FsError> {
        if self.forms.metacopies { self.copy_up_attributes(ino) } else { self.copy_up_whole(ino) }
    }

    /// Copies up attributes only, also of a small file: for callers that write or discard the data themselves.
    pub(super) fn copy_up_attributes(&self, ino: Ino) -> Result<(), FsError> {
        self.copy_up_part(ino, Part::Attributes)
    }

    /// Copies up attributes and data.
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
                // A name was removed during the copy-up, perhaps the last one: retry.
                Err(FsError::NotFound | FsError::Stale(_)) if self.lower.has(ino) => {}
                done => return done,
            }
        }
        self.try_copy_up(ino, part)
    }

    fn try_copy_up(&self, ino: Ino, part: Part) -> Result<(), FsError> {
        if self.is_copied_up(ino) {
            return Ok(());
        }
        if !self.lower.has(ino) {
            return Err(FsError::Stale(ino));
        }
        if self.lower.kind(ino)? == Kind::Dir {
            return self.copy_up_dir(ino);
        }
        let _copying = self.copying[ino as usize % STRIPES].lock();
        if self.is_copied_up(ino) {
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
            // An image may hold a character device 0:0, but in the upper directory it would be a whiteout.
            return Err(FsError::NotPermitted);
        }
        let small = part == Part::Small && draft.size <= SMALL && !loses_privileges_on_write(&draft);
        let made = self.create_copy(ino, &mut draft, small)?;
        match &names[..] {
            [] => Err(FsError::Stale(ino)),
            [(dir, name)] => self.put_file(ino, made, &draft, *dir, name),
            names => self.put_links(ino, made, &draft, names),
        }
    }

    /// Creates the copy in the work directory; with its data if wanted, or if no metacopy mark can be written there.
    fn create_copy(&self, ino: Ino, draft: &mut Draft, with_data: bool) -> Result<Made<'_>, FsError> {
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

    /// Copies the data to a copy that is not in place yet, and syncs it before it becomes visible.
    fn fill(&self, ino: Ino, made: &Made, draft: &Draft) -> Result<(), FsError> {
        self.copy_pieces(ino, draft.size, &made.handle)?;
        if draft.mode & SET_ID != 0 {
            self.upper.backing().chmod(made.handle.as_fd(), draft.mode)?;
        }
        self.upper.sync(made.handle.as_fd(), true)?;
        let mtime = draft.times.map(|(_, mtime)| mtime);
        Ok(self.upper.backing().utimens(made.handle.as_fd(), &timestamps(None, mtime))?)
    }

    /// Returns the path of an inode in the lower layers, as a redirect; `None` if it is too long to be written.
    pub(super) fn redirect_of(&self, lower: Ino) -> Result<Option<Vec<u8>>, FsError> {
        Ok(Some(self.lower.path(lower)?).filter(|path| path.len() <= LONGEST_REDIRECT))
    }

    /// Copies a file's data before the file gets another name, if the data is found through the current name: that is
    /// so where the redirect would be too long and lower inode numbers are not persistent.
    pub(super) fn copy_data_bound_to_path(&self, ino: Ino) -> Result<(), FsError> {
        let Some(Data::Lower(origin, _)) = self.data_of(ino) else { return Ok(()) };
        let is_known = !self.is_copied_up(ino) || self.lower.is_certain() || self.redirect_of(origin)?.is_some();
        if is_known { Ok(()) } else { self.copy_data(ino, u64::MAX).map(drop) }
    }

    pub(super) fn is_copied_up(&self, ino: Ino) -> bool {
        self.table().get(ino).is_some_and(|entry| entry.raw.is_some() && !entry.linking)
    }

    /// Describes the copy of an image's inode in the upper directory.
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

    /// Copies a directory up, and all its ancestors.
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
        let _changing = locks.change.lock();
        if self.table().get(ino).is_some() {
            return Ok(());
        }
        self.ensure_loaded(parent)?;
        if self.table().names(parent).is_some_and(|names| names.get(&name).is_some()) {
            return Err(FsError::NotFound);
        }
        let subdirs = self.lower.subdirs(ino)?;
        self.upper.claim_name(made.handle.as_fd(), &name)?;
        self.keeping_times(parent, |dir| Ok(made.put(Place { dir: dir.as_fd(), name: &name })?))?;
        let mut entry = self.entry_of(ino, &draft, raw);
        entry.dir = Some(Box::new(Dir { subdirs, ..*Dir::new(Some(ino), Some(Names::default())) }));
        let mut table = self.table_mut();
        table.insert(ino, entry);
        table.add_name(parent, &name, ino);
        Ok(())
    }

    /// Runs `put` on a directory and restores its times: a copy-up is not a change that users may see.
    fn keeping_times<T>(&self, dir: Ino, put: impl FnOnce(&Handle) -> Result<T, FsError>) -> Result<T, FsError> {
        let handle = self.handle(dir)?;
        let before = self.upper.backing().stat(handle.as_fd())?;
        let done = put(&handle)?;
        let times = timestamps(None, Some(before.mtime));
        if let Err(e) = self.upper.backing().utimens(handle.as_fd(), &times) {
            tracing::warn!("cannot restore the modification time of directory inode {dir} after a copy-up: {e}");
        }
        Ok(done)
    }

    fn put_file(&self, ino: Ino, made: Made, draft: &Draft, dir: Ino, name: &Name) -> Result<(), FsError> {
        let raw = made.raw_ino;
        let locks = self.locks_of(dir)?;
        let _changing = locks.change.lock();
        self.still_shows(dir, name)?;
        self.upper.claim_name(made.handle.as_fd(), name)?;
        let handle = self.keeping_times(dir, |handle| Ok(made.put(Place { dir: handle.as_fd(), name })?))?;
        let mut table = self.table_mut();
        table.insert(ino, self.entry_of(ino, draft, raw));
        table.add_name(dir, name, ino);
        drop(table);
        self.upper.handles().put(ino, handle);
        Ok(())
    }

    /// Fails unless a name of the image still shows through. The caller has locked the directory.
    fn still_shows(&self, dir: Ino, name: &Name) -> Result<(), FsError> {
        self.ensure_loaded(dir)?;
        match self.table().names(dir) {
            Some(names) if names.get(name).is_none() => Ok(()),
            // A concurrent operation was faster. The kernel never lets that happen, and would retry on this error.
            _ => Err(FsError::NotFound),
        }
    }

    /// Links a copied-up file under several names. The file must not be changed before it has all of them.
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

    /// Creates one of the hard links of a file of the image in the upper.
    pub(super) fn link_up(&self, ino: Ino, file: &Handle, dir: Ino, name: &Name) -> Result<(), FsError> {
        self.copy_up_dir(dir)?;
        let locks = self.locks_of(dir)?;
        let _changing = locks.change.lock();
        self.still_shows(dir, name)?;
        self.upper.claim_name(file.as_fd(), name)?;
        self.keeping_times(dir, |handle| {
            Ok(self.upper.link(file.as_fd(), Place { dir: handle.as_fd(), name }, false)?)
        })?;
        self.table_mut().add_name(dir, name, ino);
        Ok(())
    }

    /// Removes the links that were created: the image's names show through again, and nothing has changed.
    fn undo_links(&self, ino: Ino) -> Result<(), FsError> {
        let names = self.table().get(ino).map(|entry| entry.names.clone()).unwrap_or_default();
        for (dir, name) in names {
            let locks = self.locks_of(dir)?;
            let _changing = locks.change.lock();
            self.keeping_times(dir, |handle| Ok(self.upper.backing().unlink(handle.as_fd(), &name)?))?;
            self.table_mut().take_name(dir, &name, ino, false);
        }
        self.upper.finished(ino)?;
        self.table_mut().remove(ino);
        self.upper.handles().take(ino);
        Ok(())
    }

    /// Copies up a file that has lost its last name and is open: the copy has no name either.
    fn copy_up_removed(&self, ino: Ino) -> Result<(), FsError> {
        let mut draft = self.draft_of(ino)?;
        // Dropping the copy unlinks it, once its descriptor is in the table.
        let made = self.create_copy(ino, &mut draft, false)?;
        let mut table = self.table_mut();
        let locks = table.get(ino).map(|entry| entry.locks.clone()).unwrap_or_default();
        let mut entry = self.entry_of(ino, &draft, made.raw_ino);
        (entry.locks, entry.held) = (locks, Some(made.handle.clone()));
        table.insert(ino, entry);
        Ok(())
    }

    /// Prepares a name for a new object: it must not exist. Returns whether a whiteout has the name.
    pub(super) fn prepare_name(&self, dir: Ino, name: &[u8]) -> Result<bool, FsError> {
        self.ensure_loaded(dir)?;
        let table = self.table();
        match table.names(dir).and_then(|names| names.get(name)) {
            Some(NameState::Whiteout) => {
                drop(table);
                let parent = self.handle(dir)?;
                Ok(self.upper.settle_whiteout(Place { dir: parent.as_fd(), name })?)
            }
            Some(NameState::Inode(_)) => Err(FsError::Exists),
            None => {
                drop(table);
                if self.covers(dir, name)? { Err(FsError::Exists) } else { Ok(false) }
            }
        }
    }
}

/// Whether a file has what the backing file system clears at a write: set-id bits or capabilities.
fn loses_privileges_on_write(draft: &Draft) -> bool {
    draft.mode & SET_ID != 0 || draft.xattrs.iter().any(|(name, _)| name == CAPABILITY)
}
