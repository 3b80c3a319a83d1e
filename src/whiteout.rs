//! Whiteouts, opaque directories, redirects and metacopies: how they are encoded in a layer and in an upper directory.
//! The only code that knows the encodings.
//!
//! In an OCI layer (image-spec, layer.md, "Whiteouts") an empty file `.wh.NAME` hides NAME of the layers below, and
//! `.wh..wh..opq` makes its directory opaque. Both are recognized by name alone, whatever type the entry has: some
//! tools have written them as hard links.
//!
//! In an upper directory the marks are those of kernel overlayfs (overlayfs.rst): a character device 0:0 is a whiteout,
//! and extended attributes encode the rest. The kernel hides all attributes under `overlay.` from users of its mount,
//! so marks that it does not define are there too, under `overlay.plyfs.`.
//!
//! Directories that are shared with other tools may have all of these, and those tools' own marks; then every form is
//! read and the kernel's is written ([`Dialect`]). A name `.wh.NAME` is interpreted by [`marker`] there.

use crate::meta::Kind;
use std::borrow::Cow;
use std::ffi::CStr;

const PREFIX: &[u8] = b".wh.";
/// The opaque marker of a layer's directory.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// The prefix of AUFS's own files (`.wh..wh.aufs`, `.wh..wh.plnk`), which are not part of the image.
const RESERVED: &[u8] = b".wh..wh.";

/// The meaning of a name in a layer.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// An ordinary entry.
    Plain,
    /// The directory of the entry is opaque.
    Opaque,
    /// A whiteout of the given name.
    Whiteout(&'a [u8]),
    /// A leftover of AUFS, not part of the image.
    Reserved,
}

/// A whiteout of a name that cannot exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is a whiteout of {}", if .0.is_empty() { "nothing".to_string() } else { format!("`{}`, which cannot be deleted", crate::name::show(.0)) })]
pub struct InvalidWhiteout(Vec<u8>);

/// Classifies one path component of a layer's entry. `.wh.`, `.wh..` and `.wh...` are errors: the specification does
/// not define them, and containerd once deleted a parent directory because of one.
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

/// Returns the name of a layer's whiteout for a name.
pub fn whiteout_name(name: &[u8]) -> Vec<u8> {
    [PREFIX, name].concat()
}

/// A name that cannot be in a layer, though any file system can have it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("names that begin with `.wh.` are whiteouts")]
pub struct NoName;

/// Checks that an entry of a layer can have a name.
pub fn check_name(name: &[u8]) -> Result<(), NoName> {
    if name.starts_with(PREFIX) { Err(NoName) } else { Ok(()) }
}

/// The xattr namespace of an upper directory's marks: the kernel reads `trusted.overlay.*`, which only root may write,
/// and with its option `userxattr` `user.overlay.*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// `trusted.overlay.*`.
    Trusted,
    /// `user.overlay.*`.
    User,
}

/// The form of whiteouts that an upper directory uses. All forms are read, also mixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhiteoutForm {
    /// Character devices 0:0, the kernel's original form, which RENAME_WHITEOUT writes.
    Device,
    /// Empty regular files with [`Mark::Whiteout`] in directories whose [`Mark::Opaque`] is `x`, the kernel's form for
    /// nested overlays (overlayfs.rst, "Nesting overlayfs mounts"; kernel 6.7): used where a device 0:0 cannot be
    /// created.
    Attribute,
    /// Empty files `.wh.NAME` and `.wh..wh..opq`, as fuse-overlayfs writes them: used where extended attributes are
    /// refused too. No redirect, metacopy or inode number can be recorded there.
    Name,
}

impl WhiteoutForm {
    /// Returns the word for the form in [`Mark::Form`].
    pub fn word(self) -> &'static str {
        match self {
            WhiteoutForm::Device => "device",
            WhiteoutForm::Attribute => "attribute",
            WhiteoutForm::Name => "name",
        }
    }

    /// Parses the word of a form.
    pub fn of_word(word: &str) -> Option<WhiteoutForm> {
        [WhiteoutForm::Device, WhiteoutForm::Attribute, WhiteoutForm::Name].into_iter().find(|form| form.word() == word)
    }
}

/// Marks: the extended attributes in which an upper directory records overlay state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// `y`: the directory is opaque. `x`: it may hold whiteouts in the form of an attribute.
    Opaque,
    /// The redirect of a moved inode: the path in the lower layers from the root, or a name in the same directory.
    Redirect,
    /// The file is a metacopy: its data is in the lower layers.
    Metacopy,
    /// The empty regular file is a whiteout.
    Whiteout,
    /// The inode number.
    Id,
    /// On the root: the image (ChainID) that this upper directory belongs to.
    Image,
    /// On the root: the first inode number that was never used.
    Next,
    /// On the root: the form of the whiteouts ([`WhiteoutForm::word`]), and the file system type that it was selected
    /// for.
    Form,
    /// On a directory: names, separated by `/`, that count as whiteouts unless the directory has them. Written before a
    /// rename that must leave a whiteout where RENAME_WHITEOUT is refused.
    Hides,
    /// On the root: owners and modes are those on the backing file system, though only `user.` attributes can be set: a
    /// user namespace's upper directory that kernel overlayfs has been mounted on.
    Native,
    /// Owner and mode of an unprivileged user's files, as `uid:gid:mode[:kind]`.
    Override,
}

impl Namespace {
    /// Returns the attribute name of a mark. The override is shared with other tools, and has one name in both
    /// namespaces.
    pub fn mark(self, mark: Mark) -> &'static CStr {
        let names = all_names(mark);
        match (self, mark) {
            (_, Mark::Override) => CONTAINERS_OVERRIDE,
            (Namespace::Trusted, _) => names[0],
            (Namespace::User, _) => names[1],
        }
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Namespace::Trusted => b"trusted.overlay.",
            Namespace::User => b"user.overlay.",
        }
    }
}

/// How a directory encodes what its file system has no native form for: marks, and attributes that users of the mount
/// set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// The namespace of its own marks.
    pub namespace: Namespace,
    /// Whether other tools write their own marks there, which are obeyed: an attribute that users of the mount set must
    /// then not be taken for such a mark.
    pub shared: bool,
    /// Whether only `user.` attributes can be set, as on an unprivileged user's files.
    pub plain: bool,
}

impl Dialect {
    /// Returns the attribute name of a mark.
    pub fn mark(self, mark: Mark) -> &'static CStr {
        self.namespace.mark(mark)
    }

    /// Returns all attribute names from which a mark is read.
    pub fn read(self, mark: Mark) -> &'static [&'static CStr] {
        match (self.shared, self.namespace, mark) {
            (true, ..) => all_names(mark),
            (false, _, Mark::Override) => &[CONTAINERS_OVERRIDE],
            (false, Namespace::Trusted, mark) => &all_names(mark)[..1],
            (false, Namespace::User, mark) => &all_names(mark)[1..2],
        }
    }

    /// Returns the name on disk of an attribute that a user of the mount sets. A name that looks like a mark gets a
    /// second `overlay.`, as the kernel does (escaping), so it is neither obeyed nor lost; names that the kernel does
    /// not escape (other tools' marks, and in an unprivileged user's directory all that the user may not set) are
    /// stored under plyfs's own prefix.
    pub fn stored(self, name: &[u8]) -> Cow<'_, [u8]> {
        let prefix = self.namespace.prefix();
        if let Some(rest) = name.strip_prefix(prefix) {
            return Cow::Owned([prefix, b"overlay.", rest].concat());
        }
        let foreign = self.shared && is_tools_own(name)
            || self.plain && !(name.starts_with(b"user.") && name != CONTAINERS_OVERRIDE.to_bytes());
        if foreign { Cow::Owned([prefix, FOREIGN, name].concat()) } else { Cow::Borrowed(name) }
    }

    /// The reverse of [`Dialect::stored`]; `None` for a mark.
    pub fn shown(self, stored: &[u8]) -> Option<Vec<u8>> {
        let prefix = self.namespace.prefix();
        if let Some(own) = stored.strip_prefix(prefix) {
            let escaped = own.strip_prefix(b"overlay.").map(|rest| [prefix, rest].concat());
            return escaped.or_else(|| own.strip_prefix(FOREIGN).map(<[u8]>::to_vec));
        }
        let hidden = self.shared && is_tools_own(stored)
            || self.plain && !(stored.starts_with(b"user.") && stored != CONTAINERS_OVERRIDE.to_bytes());
        (!hidden).then(|| stored.to_vec())
    }
}

/// Returns the visible name of a lower directory's attribute; `None` for a mark of any tool.
pub fn shown_in_layer(stored: &[u8]) -> Option<Vec<u8>> {
    let namespaces = [Namespace::Trusted, Namespace::User];
    let own = namespaces.into_iter().find(|namespace| stored.starts_with(namespace.prefix()));
    let namespace = own.unwrap_or(Namespace::Trusted);
    Dialect { namespace, shared: true, plain: false }.shown(stored)
}

/// Whether kernel overlayfs takes an attribute of that name on a lower layer for its own mark, with or without the
/// option `userxattr`.
pub fn is_kernel_mark(name: &[u8]) -> bool {
    [Namespace::Trusted, Namespace::User].iter().any(|namespace| name.starts_with(namespace.prefix()))
}

/// Returns the attribute names of a mark in directories that any tool wrote: in root's and in the users' namespace.
pub fn all_names(mark: Mark) -> &'static [&'static CStr] {
    match mark {
        Mark::Opaque => &[c"trusted.overlay.opaque", c"user.overlay.opaque", c"user.fuseoverlayfs.opaque"],
        Mark::Redirect => &[c"trusted.overlay.redirect", c"user.overlay.redirect"],
        Mark::Metacopy => &[c"trusted.overlay.metacopy", c"user.overlay.metacopy"],
        Mark::Whiteout => &[c"trusted.overlay.whiteout", c"user.overlay.whiteout"],
        Mark::Id => &[c"trusted.overlay.plyfs.id", c"user.overlay.plyfs.id"],
        Mark::Image => &[c"trusted.overlay.plyfs.image", c"user.overlay.plyfs.image"],
        Mark::Next => &[c"trusted.overlay.plyfs.next", c"user.overlay.plyfs.next"],
        Mark::Form => &[c"trusted.overlay.plyfs.whiteouts", c"user.overlay.plyfs.whiteouts"],
        Mark::Hides => &[c"trusted.overlay.plyfs.hides", c"user.overlay.plyfs.hides"],
        Mark::Native => &[c"trusted.overlay.plyfs.native", c"user.overlay.plyfs.native"],
        Mark::Override => &[PRIVILEGED_OVERRIDE, CONTAINERS_OVERRIDE, c"user.fuseoverlayfs.override_stat"],
    }
}

/// Returns the first of several attributes that exists, and its value.
pub fn first_of<E>(
    names: impl IntoIterator<Item = &'static CStr>,
    read: impl Fn(&CStr) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<(&'static CStr, Vec<u8>)>, E> {
    for name in names {
        if let Some(value) = read(name)? {
            return Ok(Some((name, value)));
        }
    }
    Ok(None)
}

/// Returns the override attribute that a directory tree uses, if any: its root then has the attribute.
pub fn override_of<E>(read: impl Fn(&CStr) -> Result<Option<Vec<u8>>, E>) -> Result<Option<&'static CStr>, E> {
    Ok(first_of(all_names(Mark::Override).iter().copied(), read)?.map(|(name, _)| name))
}

/// Whether an attribute is a mark that tools keep in layers.
fn is_tools_own(name: &[u8]) -> bool {
    let prefixes = [Namespace::Trusted.prefix(), Namespace::User.prefix(), b"user.fuseoverlayfs."];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || all_names(Mark::Override).iter().any(|own| own.to_bytes() == name)
}

/// The override attribute (owner and mode) that container tools share.
pub const CONTAINERS_OVERRIDE: &CStr = c"user.containers.override_stat";
/// The same in a namespace that only root may write.
pub const PRIVILEGED_OVERRIDE: &CStr = c"security.fuseoverlayfs.override_stat";
/// The prefix, after the namespace, of attributes that cannot be stored under their own names.
const FOREIGN: &[u8] = b"plyfs.x.";

/// Interprets the name of an entry on a shared directory: a whiteout, an opaque marker, or a reserved name. `None` for
/// an ordinary entry. An object that carries a plyfs inode number (`is_numbered`) is ordinary: a user of the mount
/// created it under that name.
pub fn marker<E>(
    name: &[u8],
    kind: Option<Kind>,
    is_numbered: impl FnOnce() -> Result<bool, E>,
) -> Result<Option<Marker<'_>>, E> {
    if check_name(name).is_ok() || !may_be_marker(kind) || is_numbered()? {
        return Ok(None);
    }
    // A whiteout of a name that cannot exist is not part of the tree either.
    Ok(Some(classify(name).unwrap_or(Marker::Reserved)))
}

/// Whether an entry of that kind may be a marker. Tools create markers as files of this kind when they unpack a layer,
/// whatever kind they had in its tar; anything else was given the name by a user.
pub fn may_be_marker(kind: Option<Kind>) -> bool {
    matches!(kind, None | Some(Kind::File | Kind::Char | Kind::Dir))
}

/// Whether a character device of that number is a whiteout.
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
    fn a_whiteout_name_classifies_as_a_whiteout() {
        assert_eq!(classify(&whiteout_name(b"a")), Ok(Marker::Whiteout(b"a")));
        assert_eq!(classify(OPAQUE), Ok(Marker::Opaque));
        assert!(
            check_name(b"wh.a").is_ok() && check_name(&whiteout_name(b"a")).is_err() && check_name(OPAQUE).is_err()
        );
    }

    #[test]
    fn a_whiteout_of_nothing_is_an_error() {
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(classify(bad).is_err());
        }
        let line = classify(b".wh...").unwrap_err().to_string();
        assert_eq!(line, "is a whiteout of `..`, which cannot be deleted");
    }

    fn dialects() -> impl Iterator<Item = Dialect> {
        let all = [(Namespace::Trusted, false), (Namespace::User, false), (Namespace::User, true)];
        all.into_iter().flat_map(|(namespace, plain)| {
            [false, true].map(|shared| Dialect {
                namespace,
                shared: shared || namespace == Namespace::User && !plain,
                plain,
            })
        })
    }

    #[test]
    fn attributes_that_look_like_marks_are_escaped_and_restored() {
        for dialect in dialects() {
            for name in [
                &b"trusted.overlay.opaque"[..],
                b"trusted.overlay.overlay.opaque",
                b"user.overlay.plyfs.id",
                b"user.overlay.plyfs.x.security.capability",
                b"user.fuseoverlayfs.opaque",
                b"security.fuseoverlayfs.override_stat",
                b"user.containers.override_stat",
                b"user.a",
                b"security.capability",
                b"trusted.t",
                b"system.posix_acl_access",
            ] {
                if name.starts_with(b"user.containers") && dialect.namespace == Namespace::Trusted && !dialect.shared {
                    // Nobody reads it there.
                    continue;
                }
                let stored = dialect.stored(name);
                assert_eq!(dialect.shown(&stored).as_deref(), Some(name), "{dialect:?} {stored:?}");
                assert!(!dialect.plain || stored.starts_with(b"user."));
                for mark in MARKS {
                    assert!(
                        dialect.read(mark).iter().all(|read| read.to_bytes() != &*stored),
                        "{dialect:?} {stored:?}"
                    );
                }
            }
            for mark in MARKS.into_iter().filter(|mark| dialect.plain || dialect.shared || *mark != Mark::Override) {
                for name in dialect.read(mark) {
                    assert_eq!(dialect.shown(name.to_bytes()), None, "{dialect:?} {name:?}");
                }
                assert!(dialect.read(mark).contains(&dialect.mark(mark)));
            }
        }
    }

    #[test]
    fn a_lower_directory_shows_its_attributes_but_no_marks() {
        for mark in MARKS {
            assert!(all_names(mark).iter().all(|name| shown_in_layer(name.to_bytes()).is_none()));
        }
        for name in [&b"user.a"[..], b"security.capability", b"trusted.t", b"system.posix_acl_access"] {
            assert_eq!(shown_in_layer(name).as_deref(), Some(name));
        }
        let shown = |stored: &[u8]| shown_in_layer(stored).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(shown(b"trusted.overlay.overlay.opaque").unwrap(), "trusted.overlay.opaque");
        assert_eq!(shown(b"user.overlay.overlay.opaque").unwrap(), "user.overlay.opaque");
        assert_eq!(shown(b"user.overlay.plyfs.x.security.capability").unwrap(), "security.capability");
        assert_eq!(shown(b"trusted.overlay.plyfs.x.user.fuseoverlayfs.opaque").unwrap(), "user.fuseoverlayfs.opaque");
    }

    const MARKS: [Mark; 10] = [
        Mark::Opaque,
        Mark::Redirect,
        Mark::Metacopy,
        Mark::Whiteout,
        Mark::Id,
        Mark::Image,
        Mark::Next,
        Mark::Form,
        Mark::Hides,
        Mark::Override,
    ];
}
