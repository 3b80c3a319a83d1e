//! The only code that knows how a deletion is written down, in a layer and in an upper directory.
//!
//! In an OCI layer (image-spec, layer.md, "Whiteouts") an empty file `.wh.NAME` hides NAME of the layers below, and
//! `.wh..wh..opq` hides everything that they have in its directory. Both are judged by name alone, whatever type the
//! entry has: tools have shipped them as hard links.
//!
//! In an upper directory the marks are those of the kernel's overlayfs (overlayfs.rst): a character device 0:0 hides a
//! name, and extended attributes say the rest. The kernel hides every attribute under `overlay.` from those who use its
//! mount, so what it has no form for lies there too, under `overlay.plyfs.`.

use std::borrow::Cow;
use std::ffi::CStr;

const PREFIX: &[u8] = b".wh.";
/// The marker by which a layer's directory hides what the layers below have in it.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS kept its own bookkeeping under this prefix (`.wh..wh.aufs`, `.wh..wh.plnk`); nothing below it is the image's.
const RESERVED: &[u8] = b".wh..wh.";

/// What a name in a layer stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// An entry like any other.
    Plain,
    /// The directory that holds the entry hides what lower layers have in it.
    Opaque,
    /// The named entry of lower layers is hidden.
    Whiteout(&'a [u8]),
    /// Left over from AUFS: no part of the image.
    Reserved,
}

/// A whiteout that names nothing that could be deleted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is a whiteout of {}", if .0.is_empty() { "nothing".to_string() } else { format!("`{}`, which cannot be deleted", crate::name::show(.0)) })]
pub struct InvalidWhiteout(Vec<u8>);

/// Classifies one path component of a layer's entry. `.wh.`, `.wh..` and `.wh...` are errors: the specification has no
/// meaning for them, and containerd once deleted a parent directory by one.
pub fn classify(name: &[u8]) -> Result<Marker<'_>, InvalidWhiteout> {
    if name == OPAQUE {
        return Ok(Marker::Opaque);
    }
    if name.starts_with(RESERVED) {
        return Ok(Marker::Reserved);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Marker::Plain),
        Some(hidden @ (b"" | b"." | b"..")) => Err(InvalidWhiteout(hidden.to_vec())),
        Some(hidden) => Ok(Marker::Whiteout(hidden)),
    }
}

/// The name of the empty file by which a layer hides a name of the layers below.
pub fn hiding(name: &[u8]) -> Vec<u8> {
    [PREFIX, name].concat()
}

/// A name that no layer can have, though every file system can.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name that begins with `.wh.` means a deletion there")]
pub struct NoName;

/// Whether an entry of a layer can have that name.
pub fn check_name(name: &[u8]) -> Result<(), NoName> {
    if name.starts_with(PREFIX) { Err(NoName) } else { Ok(()) }
}

/// Where an upper directory's marks are kept: the kernel reads `trusted.overlay.*`, which only root may write, and with
/// its option `userxattr` `user.overlay.*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// `trusted.overlay.*`.
    Trusted,
    /// `user.overlay.*`.
    User,
}

/// The extended attributes that an upper directory's own bookkeeping is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// `y`: the directory hides what lower layers have in it. `x`: it may hold whiteouts in the form of an attribute.
    Opaque,
    /// Where the lower layers have what has been moved here: a path from the root, or a name in the same directory.
    Redirect,
    /// The file has attributes only; its data is the lower layers'.
    Metacopy,
    /// The empty regular file is a whiteout.
    Whiteout,
    /// The inode number, for ever.
    Id,
    /// On the root: which image this is the upper directory of.
    Image,
    /// On the root: no inode number from here on has ever been given away.
    Next,
    /// Owner and mode of what an unprivileged user keeps, as `uid:gid:mode[:kind]`.
    Override,
}

impl Namespace {
    /// The mark's name. The override is one that other tools know too, and has no namespace of its own.
    pub fn mark(self, mark: Mark) -> &'static CStr {
        match (self, mark) {
            (_, Mark::Override) => c"user.containers.override_stat",
            (Namespace::Trusted, Mark::Opaque) => c"trusted.overlay.opaque",
            (Namespace::Trusted, Mark::Redirect) => c"trusted.overlay.redirect",
            (Namespace::Trusted, Mark::Metacopy) => c"trusted.overlay.metacopy",
            (Namespace::Trusted, Mark::Whiteout) => c"trusted.overlay.whiteout",
            (Namespace::Trusted, Mark::Id) => c"trusted.overlay.plyfs.id",
            (Namespace::Trusted, Mark::Image) => c"trusted.overlay.plyfs.image",
            (Namespace::Trusted, Mark::Next) => c"trusted.overlay.plyfs.next",
            (Namespace::User, Mark::Opaque) => c"user.overlay.opaque",
            (Namespace::User, Mark::Redirect) => c"user.overlay.redirect",
            (Namespace::User, Mark::Metacopy) => c"user.overlay.metacopy",
            (Namespace::User, Mark::Whiteout) => c"user.overlay.whiteout",
            (Namespace::User, Mark::Id) => c"user.overlay.plyfs.id",
            (Namespace::User, Mark::Image) => c"user.overlay.plyfs.image",
            (Namespace::User, Mark::Next) => c"user.overlay.plyfs.next",
        }
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Namespace::Trusted => b"trusted.overlay.",
            Namespace::User => b"user.overlay.",
        }
    }

    /// The name under which an attribute that a user of the mount sets is kept. One that looks like a mark gets a second
    /// `overlay.`, as the kernel has it, so that it is neither obeyed nor lost. In an unprivileged user's upper directory
    /// whatever he may not set on his own files (`security.`, `trusted.`, ACLs) is kept as his.
    pub fn stored(self, name: &[u8]) -> Cow<'_, [u8]> {
        match (self, name.strip_prefix(self.prefix())) {
            (_, Some(rest)) => Cow::Owned([self.prefix(), b"overlay.", rest].concat()),
            (Namespace::Trusted, None) => Cow::Borrowed(name),
            (Namespace::User, None) if name.starts_with(b"user.") && name != OVERRIDE => Cow::Borrowed(name),
            (Namespace::User, None) => Cow::Owned([FOREIGN, name].concat()),
        }
    }

    /// The reverse of [`Namespace::stored`]; `None` for what is bookkeeping.
    pub fn shown(self, stored: &[u8]) -> Option<Vec<u8>> {
        let own = stored.strip_prefix(self.prefix());
        match (self, own.and_then(|rest| rest.strip_prefix(b"overlay."))) {
            (_, Some(rest)) => Some([self.prefix(), rest].concat()),
            (Namespace::Trusted, None) => own.is_none().then(|| stored.to_vec()),
            (Namespace::User, None) => match stored.strip_prefix(FOREIGN) {
                Some(name) => Some(name.to_vec()),
                None => (own.is_none() && stored.starts_with(b"user.") && stored != OVERRIDE).then(|| stored.to_vec()),
            },
        }
    }
}

const OVERRIDE: &[u8] = b"user.containers.override_stat";
const FOREIGN: &[u8] = b"user.overlay.plyfs.x.";

/// Whether a device of that number, as a character device, is a whiteout.
pub fn is_whiteout_device(rdev: u32) -> bool {
    rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified() {
        assert_eq!(classify(b"wh.a"), Ok(Marker::Plain));
        assert_eq!(classify(b".wh"), Ok(Marker::Plain));
        assert_eq!(classify(b".wh.a"), Ok(Marker::Whiteout(b"a")));
        assert_eq!(classify(b".wh..a"), Ok(Marker::Whiteout(b".a")));
        assert_eq!(classify(b".wh..wh..opq"), Ok(Marker::Opaque));
        assert_eq!(classify(b".wh..wh.plnk"), Ok(Marker::Reserved));
    }

    #[test]
    fn what_hides_a_name_is_read_as_that() {
        assert_eq!(classify(&hiding(b"a")), Ok(Marker::Whiteout(b"a")));
        assert_eq!(classify(OPAQUE), Ok(Marker::Opaque));
        assert!(check_name(b"wh.a").is_ok() && check_name(&hiding(b"a")).is_err() && check_name(OPAQUE).is_err());
    }

    #[test]
    fn a_whiteout_of_nothing_is_an_error() {
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(classify(bad).is_err());
        }
        let line = classify(b".wh...").unwrap_err().to_string();
        assert_eq!(line, "is a whiteout of `..`, which cannot be deleted");
    }

    #[test]
    fn what_looks_like_a_mark_is_kept_apart_and_comes_back() {
        for namespace in [Namespace::Trusted, Namespace::User] {
            for name in [
                &b"trusted.overlay.opaque"[..],
                b"trusted.overlay.overlay.opaque",
                b"user.overlay.plyfs.id",
                b"user.overlay.plyfs.x.security.capability",
                b"user.containers.override_stat",
                b"user.a",
                b"security.capability",
                b"trusted.t",
                b"system.posix_acl_access",
            ] {
                let stored = namespace.stored(name);
                assert_eq!(namespace.shown(&stored).as_deref(), Some(name), "{namespace:?} {stored:?}");
                assert!(namespace == Namespace::Trusted || stored.starts_with(b"user."));
            }
            for mark in [Mark::Opaque, Mark::Redirect, Mark::Metacopy, Mark::Whiteout, Mark::Id, Mark::Next] {
                let name = namespace.mark(mark).to_bytes();
                assert_eq!(namespace.shown(name), None);
                assert_ne!(&*namespace.stored(name), name);
            }
        }
        assert_eq!(Namespace::User.shown(Namespace::User.mark(Mark::Override).to_bytes()), None);
    }
}
