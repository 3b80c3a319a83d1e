//! Whiteouts and opaque directories of an upper directory, in its selected form ([`WhiteoutForm`]).
//!
//! Where a character device 0:0 cannot be created (on kernel overlayfs and on another mount of plyfs, that is, in most
//! containers) RENAME_WHITEOUT is refused too. A rename that must leave a whiteout then first writes [`Mark::Hides`] to
//! the directory, or the marker `.wh.NAME`, and so is crash-safe: neither has an effect while the name exists.

use super::Upper;
use super::object::Place;
use crate::backing::{Handle, Listed, share};
use crate::meta::Kind;
use crate::whiteout::{self, Mark, Marker, OPAQUE, WhiteoutForm, is_whiteout_device, may_be_marker, whiteout_name};
use rustix::fs::{OFlags, RenameFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

impl Upper {
    /// Whether whiteouts are character devices 0:0, which kernel overlayfs can read.
    pub fn has_whiteout_devices(&self) -> bool {
        self.form == WhiteoutForm::Device
    }

    /// Whether marks can be written. Without them there are no redirects, metacopies or inode numbers.
    pub fn has_marks(&self) -> bool {
        self.form != WhiteoutForm::Name
    }

    /// Whether a directory with this [`Mark::Opaque`] may hold empty files that are whiteouts. A crash may leave some
    /// in a directory that was made opaque to be removed.
    pub fn may_hold_file_whiteouts(&self, opaque: Option<&[u8]>) -> bool {
        match opaque {
            Some(b"x") => true,
            Some(b"y") => self.form == WhiteoutForm::Attribute,
            _ => false,
        }
    }

    /// Whether an open directory is opaque.
    pub fn is_opaque(&self, dir: BorrowedFd) -> io::Result<bool> {
        if self.mark(dir, Mark::Opaque)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
        self.has_opaque_marker(dir, OPAQUE)
    }

    /// Whether a directory's entry is an opaque directory.
    pub fn is_opaque_at(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<bool> {
        if self.mark_at(dir, name, Mark::Opaque)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
        self.has_opaque_marker(dir, &[name, b"/", OPAQUE].concat())
    }

    fn has_opaque_marker(&self, dir: BorrowedFd, path: &[u8]) -> io::Result<bool> {
        if !self.dialect.shared {
            return Ok(false);
        }
        match self.backing.stat_at(dir, path) {
            Ok(found) => Ok(may_be_marker(Kind::of(found.mode)) && self.mark_at(dir, path, Mark::Id)?.is_none()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes a directory opaque.
    pub fn set_opaque(&self, dir: BorrowedFd) -> io::Result<()> {
        if self.has_marks() { self.set_mark(dir, Mark::Opaque, b"y") } else { self.make_marker(dir, OPAQUE) }
    }

    /// Makes a directory opaque that is about to be emptied: without creating an entry in it.
    pub fn set_opaque_from_outside(&self, dir: BorrowedFd, at: Place) -> io::Result<()> {
        if self.has_marks() { self.set_opaque(dir) } else { self.make_whiteout(at) }
    }

    /// Returns what an entry means by its name, on a shared directory, where other tools encode whiteouts in names.
    pub fn marker<'a>(&self, dir: BorrowedFd, entry: &'a Listed) -> io::Result<Option<Marker<'a>>> {
        if !self.dialect.shared {
            return Ok(None);
        }
        whiteout::marker(&entry.name, entry.kind, || Ok(self.mark_at(dir, &entry.name, Mark::Id)?.is_some()))
    }

    /// Returns the names that count as whiteouts unless the directory has them ([`Mark::Hides`]).
    pub fn hidden_names(&self, dir: BorrowedFd) -> io::Result<Vec<Vec<u8>>> {
        if self.form != WhiteoutForm::Attribute {
            return Ok(Vec::new());
        }
        let value = self.mark(dir, Mark::Hides)?.unwrap_or_default();
        Ok(value.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    fn set_hidden_names(&self, dir: BorrowedFd, names: &[Vec<u8>]) -> io::Result<()> {
        if names.is_empty() {
            return self.clear_mark(dir, Mark::Hides);
        }
        self.set_mark(dir, Mark::Hides, &names.join(&b'/'))
    }

    /// Prepares the replacement of a whiteout by an object: creates the whiteout under the name itself, in the selected
    /// form, if it exists in another form. The view does not change. Returns whether the name exists; with the form
    /// [`WhiteoutForm::Name`] it may not.
    pub fn settle_whiteout(&self, at: Place) -> io::Result<bool> {
        if self.form == WhiteoutForm::Device && !self.dialect.shared {
            return Ok(true);
        }
        let taken = match self.backing.stat_at(at.dir, at.name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            found => found.map(|_| true)?,
        };
        if !self.has_marks() {
            return Ok(taken);
        }
        if !taken {
            self.make_whiteout(at)?;
        }
        if self.dialect.shared {
            // The marker is redundant now. A directory of such a name may stay.
            let marker = whiteout_name(at.name);
            match self.backing.stat_at(at.dir, &marker) {
                Ok(found)
                    if Kind::of(found.mode) != Some(Kind::Dir)
                        && self.mark_at(at.dir, &marker, Mark::Id)?.is_none() =>
                {
                    self.backing.unlink(at.dir, &marker)?;
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// Removes the marker of a name that has just been given to an object, or that need not be hidden any more.
    pub fn drop_marker(&self, at: Place) {
        if self.has_marks() {
            return;
        }
        match self.backing.unlink(at.dir, &whiteout_name(at.name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let name = at.name.escape_ascii();
                tracing::warn!("cannot remove the unneeded whiteout of `{name}` from the upper directory: {e}");
            }
            _ => {}
        }
    }

    /// Creates a whiteout at a name that does not exist.
    pub fn make_whiteout(&self, at: Place) -> io::Result<()> {
        match self.form {
            WhiteoutForm::Device => self.place_whiteout(at),
            WhiteoutForm::Attribute => {
                self.allow_file_whiteouts(at.dir)?;
                self.place_whiteout(at)
            }
            WhiteoutForm::Name => self.make_marker(at.dir, &whiteout_name(at.name)),
        }
    }

    fn make_marker(&self, dir: BorrowedFd, name: &[u8]) -> io::Result<()> {
        match self.backing.open(dir, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, 0o600) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn allow_file_whiteouts(&self, dir: BorrowedFd) -> io::Result<()> {
        match self.mark(dir, Mark::Opaque)? {
            Some(_) => Ok(()),
            None => self.set_mark(dir, Mark::Opaque, b"x"),
        }
    }

    /// Creates a whiteout as a hard link to the last one, as long as that has a name and can have more links. A new
    /// inode costs the backing file system much more than a name (ext4 skips recently freed inodes one by one).
    fn place_whiteout(&self, at: Place) -> io::Result<()> {
        let shared = self.whiteout.lock().clone();
        if let Some(whiteout) = shared {
            match self.backing.link(whiteout.as_fd(), at.dir, at.name) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {}
                done => return done,
            }
        }
        let made = if self.form == WhiteoutForm::Device {
            self.backing.mknod(at.dir, at.name, Kind::Char.bits(), 0)?;
            self.backing.open(at.dir, at.name, OFlags::PATH, 0).and_then(|fd| {
                let raw = self.backing.stat(fd.as_fd())?;
                Ok((Kind::of(raw.mode) == Some(Kind::Char) && is_whiteout_device(raw.rdev)).then(|| share(fd)))
            })
        } else {
            self.place_file_whiteout(at).map(Some)
        };
        match made {
            Err(e) if self.form == WhiteoutForm::Attribute => return Err(e),
            made => *self.whiteout.lock() = made.ok().flatten(),
        }
        Ok(())
    }

    /// Creates a whiteout file in the work directory and moves it into place: without its mark an empty file is a file.
    fn place_file_whiteout(&self, at: Place) -> io::Result<Handle> {
        let name = self.serial();
        let here = Place { dir: self.tmp.as_fd(), name: name.as_bytes() };
        let file =
            share(self.backing.open(here.dir, here.name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, 0o600)?);
        self.set_mark(file.as_fd(), Mark::Whiteout, b"y")
            .and_then(|()| self.rename(here, at, RenameFlags::NOREPLACE))
            .inspect_err(|_| {
                self.discard(&name, false);
            })?;
        Ok(file)
    }

    /// Removes an object, and leaves a whiteout if wanted. A directory must hold nothing but whiteouts, and nothing at
    /// all with the form [`WhiteoutForm::Name`]. The view changes in one system call; what fails after it is cleaned up
    /// by the next mount.
    pub fn take_away(&self, at: Place, is_dir: bool, leave_whiteout: bool) -> io::Result<()> {
        let remove = || if is_dir { self.backing.rmdir(at.dir, at.name) } else { self.backing.unlink(at.dir, at.name) };
        if !leave_whiteout {
            remove()?;
            self.drop_marker(at);
            return Ok(());
        }
        match self.form {
            WhiteoutForm::Device => {}
            WhiteoutForm::Attribute => self.allow_file_whiteouts(at.dir)?,
            WhiteoutForm::Name => {
                self.make_whiteout(at)?;
                return remove();
            }
        }
        let name = self.serial();
        let here = Place { dir: self.tmp.as_fd(), name: name.as_bytes() };
        self.place_whiteout(here)?;
        // A file is replaced by the whiteout; a directory is exchanged with it.
        let flags = if is_dir { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        self.rename(here, at, flags).inspect_err(|_| {
            self.discard(&name, false);
        })?;
        if is_dir {
            self.discard(&name, true);
        }
        Ok(())
    }

    /// Prepares a rename of `from` that must leave a whiteout, and returns its flags. [`Upper::finish_leaving`] must
    /// follow.
    pub fn begin_leaving(&self, from: Place) -> io::Result<RenameFlags> {
        match self.form {
            WhiteoutForm::Device => return Ok(RenameFlags::WHITEOUT),
            WhiteoutForm::Attribute => {
                let mut names = self.hidden_names(from.dir)?;
                if !names.iter().any(|name| name == from.name) {
                    names.push(from.name.to_vec());
                    self.set_hidden_names(from.dir, &names)?;
                }
            }
            WhiteoutForm::Name => self.make_whiteout(from)?,
        }
        Ok(RenameFlags::empty())
    }

    /// Completes such a rename: the name is now a whiteout, unless the rename `failed`.
    pub fn finish_leaving(&self, from: Place, failed: bool) {
        let done = match self.form {
            WhiteoutForm::Device => Ok(()),
            WhiteoutForm::Attribute => {
                let made = if failed { Ok(()) } else { self.make_whiteout(from) };
                made.and_then(|()| {
                    let mut names = self.hidden_names(from.dir)?;
                    names.retain(|name| name != from.name);
                    self.set_hidden_names(from.dir, &names)
                })
            }
            WhiteoutForm::Name => {
                if failed {
                    self.drop_marker(from);
                }
                Ok(())
            }
        };
        if let Err(e) = done {
            tracing::warn!("`{}` stays hidden by the plyfs.hides mark of its directory: {e}", from.name.escape_ascii());
        }
    }
}
