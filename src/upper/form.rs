//! Selection of the whiteout form of an upper directory, by the features of its file system.

use crate::backing::Backing;
use crate::meta::Kind;
use crate::whiteout::{Mark, Namespace, WhiteoutForm, is_whiteout_device};
use rustix::fs::{RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;

/// An upper directory while it is opened.
pub(super) struct Opening<'a> {
    pub backing: &'a dyn Backing,
    pub root: BorrowedFd<'a>,
    /// A directory in the work directory.
    pub tmp: BorrowedFd<'a>,
    /// The namespace of the marks; `None` if they cannot be written.
    pub namespace: Option<Namespace>,
    /// Whether the directory was mounted before.
    pub bound: bool,
}

impl Opening<'_> {
    /// Returns the whiteout form. It is selected once per upper directory and recorded: another probe could fail on a
    /// full file system. A directory that was copied to another type of file system is probed again.
    ///
    /// An error comes with the failed action, as a verb.
    pub fn form(&self) -> Result<WhiteoutForm, (&'static str, io::Error)> {
        let Some(namespace) = self.namespace else { return Ok(WhiteoutForm::Name) };
        let name = namespace.mark(Mark::Form).to_bytes();
        let unread = |e| ("read xattrs of", e);
        let here = format!("{:x}", rustix::fs::fstatfs(self.tmp).map_err(|e| unread(e.into()))?.f_type);
        let value = self.backing.get_xattr(self.root, name).map_err(unread)?;
        let recorded = value.as_deref().and_then(|value| str::from_utf8(value).ok()?.split_once(' '));
        if let Some((word, there)) = recorded
            && let Some(form) = WhiteoutForm::of_word(word).filter(|_| there == here)
        {
            return Ok(form);
        }
        let form = match self.has_devices() {
            Ok(true) => WhiteoutForm::Device,
            Ok(false) => WhiteoutForm::Attribute,
            // A mounted directory without a record is from before other forms existed.
            Err(e) if self.bound => {
                tracing::warn!("cannot probe which form of whiteouts the upper directory supports: {e}");
                return Ok(WhiteoutForm::Device);
            }
            Err(e) => return Err(("create whiteouts in", e)),
        };
        let value = format!("{} {here}", form.word());
        let record = self.backing.set_xattr(self.root, name, value.as_bytes(), XattrFlags::empty());
        match record {
            Err(e) if !self.bound => return Err(("set xattrs of", e)),
            Err(e) => tracing::warn!("cannot record the form of whiteouts on the upper directory: {e}"),
            Ok(()) => {}
        }
        Ok(form)
    }

    /// Returns the recorded form, for a view.
    pub fn recorded(backing: &dyn Backing, root: BorrowedFd, namespace: Namespace) -> io::Result<WhiteoutForm> {
        let value = backing.get_xattr(root, namespace.mark(Mark::Form).to_bytes())?;
        let word = value.as_deref().and_then(|value| str::from_utf8(value).ok()?.split(' ').next());
        Ok(word.and_then(WhiteoutForm::of_word).unwrap_or(WhiteoutForm::Device))
    }

    /// Whether character devices 0:0 can be created, left by RENAME_WHITEOUT, and seen: another union would treat them
    /// as its own whiteouts.
    fn has_devices(&self) -> io::Result<bool> {
        let (backing, tmp) = (self.backing, self.tmp);
        let names: [&[u8]; 2] = [b"probe", b"moved"];
        let is_device = |name: &&[u8]| {
            let found = backing.stat_at(tmp, name);
            found.is_ok_and(|raw| Kind::of(raw.mode) == Some(Kind::Char) && is_whiteout_device(raw.rdev))
        };
        let made = backing
            .mknod(tmp, names[0], Kind::Char.bits(), 0)
            .and_then(|()| backing.rename(tmp, names[0], tmp, names[1], RenameFlags::WHITEOUT));
        let found = made.map(|()| names.iter().all(is_device));
        for name in names {
            match backing.unlink(tmp, name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        match found {
            Err(e) if is_refused(&e) => Ok(false),
            found => found,
        }
    }
}

/// Whether an error means that a file system does not support a call, rather than that the call failed.
pub(super) fn is_refused(error: &io::Error) -> bool {
    use Errno as E;
    matches!(Errno::from_io_error(error), Some(E::PERM | E::ACCESS | E::OPNOTSUPP | E::INVAL | E::NOSYS))
}
