//! The only code that knows how a deletion is written down, in a layer and in an upper directory.
//!
//! In an OCI layer (image-spec, layer.md, "Whiteouts") an empty file `.wh.NAME` hides NAME of the layers below, and
//! `.wh..wh..opq` hides everything that they have in its directory. Both are judged by name alone, whatever type the
//! entry has: tools have shipped them as hard links.
//!
//! In an upper directory the marks are those of the kernel's overlayfs (overlayfs.rst): a character device 0:0 hides a
//! name, and extended attributes say the rest. The kernel hides every attribute under `overlay.` from those who use its
//! mount, so what it has no form for lies there too, under `overlay.plyfs.`.
//!
//! Directories that other tools use too may have all of these, and marks of those tools' own; then every form is read and
//! the kernel's written ([`Dialect`]). A name `.wh.NAME` is judged by [`marker`] there.

use crate::meta::Kind;
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

/// How an upper directory's whiteouts are written. All forms are read, also mixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhiteoutForm {
    /// Character devices 0:0, the kernel's first form; RENAME_WHITEOUT writes it.
    Device,
    /// Empty regular files with [`Mark::Whiteout`] in directories whose [`Mark::Opaque`] is `x`, the kernel's form for
    /// nested overlays (overlayfs.rst, "Nesting overlayfs mounts"; kernel 6.7): where a device 0:0 cannot be made.
    Attribute,
    /// Empty files `.wh.NAME` and `.wh..wh..opq`, as fuse-overlayfs writes them: where attributes are refused too. Nothing
    /// else can be recorded there: no redirect, no metacopy, no inode number.
    Name,
}

impl WhiteoutForm {
    /// The form as [`Mark::Form`] records it.
    pub fn word(self) -> &'static str {
        match self {
            WhiteoutForm::Device => "device",
            WhiteoutForm::Attribute => "attribute",
            WhiteoutForm::Name => "name",
        }
    }

    /// The reverse of [`WhiteoutForm::word`].
    pub fn of_word(word: &str) -> Option<WhiteoutForm> {
        [WhiteoutForm::Device, WhiteoutForm::Attribute, WhiteoutForm::Name].into_iter().find(|form| form.word() == word)
    }
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
    /// On the root: the form of the whiteouts ([`WhiteoutForm::word`]), and the type of the file system that it was chosen for.
    Form,
    /// On a directory: names, separated by `/`, that count as whiteouts unless the directory has them. Written before a
    /// rename that must leave a whiteout where RENAME_WHITEOUT is refused.
    Hides,
    /// Owner and mode of what an unprivileged user keeps, as `uid:gid:mode[:kind]`.
    Override,
}

impl Namespace {
    /// The mark's name. The override is one that other tools know too, and has no namespace of its own.
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

/// How a directory keeps what has no native form there: its own marks, and attributes that users of the mount set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// Where its own marks are.
    pub namespace: Namespace,
    /// Whether other tools write marks of their own there, which are obeyed: what users of the mount set under such a
    /// name must not be taken for one.
    pub shared: bool,
    /// Whether only `user.` attributes can be set: a plain user's directory, who may set no others on his own files.
    pub plain: bool,
}

impl Dialect {
    /// The mark's name.
    pub fn mark(self, mark: Mark) -> &'static CStr {
        self.namespace.mark(mark)
    }

    /// All names under which a mark is read.
    pub fn read(self, mark: Mark) -> &'static [&'static CStr] {
        match (self.shared, self.namespace, mark) {
            (true, ..) => all_names(mark),
            (false, _, Mark::Override) => &[CONTAINERS_OVERRIDE],
            (false, Namespace::Trusted, mark) => &all_names(mark)[..1],
            (false, Namespace::User, mark) => &all_names(mark)[1..2],
        }
    }

    /// The name under which an attribute that a user of the mount sets is kept. One that looks like a mark gets a second
    /// `overlay.`, as the kernel has it, so that it is neither obeyed nor lost; what the kernel has no such form for
    /// (other tools' marks, and in a plain user's directory whatever he may not set) is kept among plyfs's own.
    pub fn stored(self, name: &[u8]) -> Cow<'_, [u8]> {
        let prefix = self.namespace.prefix();
        if let Some(rest) = name.strip_prefix(prefix) {
            return Cow::Owned([prefix, b"overlay.", rest].concat());
        }
        let foreign = self.shared && is_tools_own(name)
            || self.plain && !(name.starts_with(b"user.") && name != CONTAINERS_OVERRIDE.to_bytes());
        if foreign { Cow::Owned([prefix, FOREIGN, name].concat()) } else { Cow::Borrowed(name) }
    }

    /// The reverse of [`Dialect::stored`]; `None` for what is bookkeeping.
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

/// Under which name a lower directory's attribute is seen; `None` for what any tool keeps there for itself.
pub fn shown_in_layer(stored: &[u8]) -> Option<Vec<u8>> {
    let namespaces = [Namespace::Trusted, Namespace::User];
    let own = namespaces.into_iter().find(|namespace| stored.starts_with(namespace.prefix()));
    let namespace = own.unwrap_or(Namespace::Trusted);
    Dialect { namespace, shared: true, plain: false }.shown(stored)
}

/// The names under which directories that any tool wrote carry a mark: root's, and those of users.
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
        Mark::Override => &[PRIVILEGED_OVERRIDE, CONTAINERS_OVERRIDE, c"user.fuseoverlayfs.override_stat"],
    }
}

/// The first of several attributes that there is, and its value.
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

/// In which attribute owner and mode of a directory's objects are, if in any: the directory itself has it then.
pub fn override_of<E>(read: impl Fn(&CStr) -> Result<Option<Vec<u8>>, E>) -> Result<Option<&'static CStr>, E> {
    Ok(first_of(all_names(Mark::Override).iter().copied(), read)?.map(|(name, _)| name))
}

/// Whether an attribute is one that tools keep in layers for themselves.
fn is_tools_own(name: &[u8]) -> bool {
    let prefixes = [Namespace::Trusted.prefix(), Namespace::User.prefix(), b"user.fuseoverlayfs."];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || all_names(Mark::Override).iter().any(|own| own.to_bytes() == name)
}

/// The attribute for owner and mode that container tools share.
pub const CONTAINERS_OVERRIDE: &CStr = c"user.containers.override_stat";
/// The same, where only root may write it.
pub const PRIVILEGED_OVERRIDE: &CStr = c"security.fuseoverlayfs.override_stat";
/// Behind the namespace's prefix: attributes that cannot be kept under their own names.
const FOREIGN: &[u8] = b"plyfs.x.";

/// What an entry of a directory stands for by its name: the name that it hides, or nothing at all. `None` for one like any
/// other, as whatever carries a number of a mount of plyfs is (`is_numbered`): it was made under that name.
pub fn marker<E>(
    name: &[u8],
    kind: Option<Kind>,
    is_numbered: impl FnOnce() -> Result<bool, E>,
) -> Result<Option<Marker<'_>>, E> {
    if check_name(name).is_ok() || !may_be_marker(kind) || is_numbered()? {
        return Ok(None);
    }
    // One that names nothing which could be deleted is no part of the tree either.
    Ok(Some(classify(name).unwrap_or(Marker::Reserved)))
}

/// What tools write the markers of a layer as where it is unpacked, whatever they are in its tar. What else has such a name
/// was given it by somebody.
pub fn may_be_marker(kind: Option<Kind>) -> bool {
    matches!(kind, None | Some(Kind::File | Kind::Char | Kind::Dir))
}

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
    fn what_looks_like_a_mark_is_kept_apart_and_comes_back() {
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
    fn a_layers_own_attributes_are_seen_and_tools_marks_are_not() {
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
