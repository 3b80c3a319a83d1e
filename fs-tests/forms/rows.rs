//! Tables of on-disk forms: the contents of lower directories, and the tree that their union shows.

use super::MountKind;
use super::driver::{Driver, MountUser};

/// One test case: a stack of directories and the expected tree.
pub struct Row {
    /// The name of the case.
    pub name: &'static str,
    /// Layers, the bottom one first, in the language of [`super::language`].
    pub layers: &'static [&'static str],
    /// The expected tree.
    pub shows: &'static str,
    /// The other implementations that know the form, and the users they mount as: they must show the same tree.
    pub peers: Peers,
}

pub type Peers = &'static [(Driver, MountUser)];

const K: (Driver, MountUser) = (Driver::Kernel, MountUser::Root);
const KU: (Driver, MountUser) = (Driver::Kernel, MountUser::User);
const F: (Driver, MountUser) = (Driver::FuseOverlayfs, MountUser::Root);
const FU: (Driver, MountUser) = (Driver::FuseOverlayfs, MountUser::User);
const ALL: Peers = &[K, KU, F, FU];
const KERNEL: Peers = &[K, KU];
/// Kernel overlayfs as root: the form needs root to write, or the kernel follows it for root only.
const KERNEL_ROOT: Peers = &[K];
const FUSE: Peers = &[F, FU];
const NOBODY: Peers = &[];

const fn row(name: &'static str, layers: &'static [&'static str], shows: &'static str, peers: Peers) -> Row {
    Row { name, layers, shows, peers }
}

/// A case in which an implementation does not obey a form that it knows.
pub struct Limit {
    pub row: &'static str,
    pub driver: Driver,
    pub kind: MountKind,
    #[expect(dead_code, reason = "for the reader")]
    reason: &'static str,
}

/// A limit of kernel overlayfs, which never writes this form.
const fn lower_only(row: &'static str) -> Limit {
    let reason = "a listing of the upper directory shows what a lookup then hides: the form is meant for lower ones";
    Limit { row, driver: Driver::Kernel, kind: MountKind::Upper, reason }
}

/// All known limits.
pub const LIMITS: &[Limit] = &[
    lower_only("an attribute hides a file"),
    lower_only("an attribute without a value"),
    lower_only("an attribute hides a directory"),
    lower_only("an attribute hides at the root"),
];

/// Whiteouts.
pub const WHITEOUTS: &[Row] = &[
    row("a device hides a file", &["a=1 b=2", "a,wh"], "b=2", ALL),
    row("a device hides a directory", &["d/x/y=1 b=2", "d,wh"], "b=2", ALL),
    row("a device hides below", &["d/a=1 d/b=2", "d/a,wh"], "d/b=2", ALL),
    row("a device hides other kinds", &["l->b b=2 p,fifo c,char-1-3", "l,wh p,wh c,wh"], "b=2", ALL),
    row("a named file hides a file", &["a=1 b=2", ".wh.a="], "b=2", FUSE),
    row("a named file hides a directory", &["d/x/y=1 b=2", ".wh.d="], "b=2", FUSE),
    row("a named file hides below", &["d/a=1 d/b=2", "d/.wh.a="], "d/b=2", FUSE),
    row("a named file with content", &["a=1 b=2", ".wh.a=content,0000"], "b=2", FUSE),
    row("an attribute hides a file", &["d/a=1 d/b=2", "d/,@.opaque=x d/a=,@.whiteout=y"], "d/b=2", KERNEL),
    row("an attribute without a value", &["d/a=1 d/b=2", "d/,@.opaque=x d/a=,@.whiteout="], "d/b=2", KERNEL),
    row("an attribute hides a directory", &["d/a/x=1 d/b=2", "d/,@.opaque=x d/a=,@.whiteout=y"], "d/b=2", KERNEL),
    row("an attribute hides at the root", &["a=1 b=2", "/,@.opaque=x a=,@.whiteout=y"], "b=2", KERNEL),
    row("an attribute in a directory that is not marked", &["d/a=1", "d/a=,@.whiteout=y"], "d/a=", NOBODY),
    row("an attribute on a file with content", &["d/a=1", "d/,@.opaque=x d/a=2,@.whiteout=y"], "d/a=2", KERNEL),
    row("files of a directory marked x", &["d/a=1 d/b=2", "d/,@.opaque=x d/b="], "d/a=1 d/b=", KERNEL),
    row("an attribute in the middle", &["d/a=1", "d/,@.opaque=x d/a=,@.whiteout=y", "d/b=2"], "d/b=2", KERNEL),
    row("a device over nothing", &["b=1", "a,wh"], "b=1", ALL),
    row("a device over nothing in a new directory", &["b=1", "d/a,wh d/c=2"], "b=1 d/c=2", FUSE),
    row("a device at the bottom", &["a,wh d/b,wh d/c=1", "d/e=2"], "d/c=1 d/e=2", ALL),
    row("a named file over nothing", &["b=1", ".wh.a= d/.wh.x= d/c=2"], "b=1 d/c=2", FUSE),
    row("a whiteout whose directory is not below", &["b=1", "no/such/a,wh", "no/c=2"], "b=1 no/such/ no/c=2", FUSE),
    row("a named file beside the file", &["x=low y=low", ".wh.x= x=new"], "x=new y=low", NOBODY),
    row("a named file beside the directory", &["x/old=1", ".wh.x= x/new=2"], "x/new=2", NOBODY),
    row("a named file beside the file, lower", &["x=low", ".wh.x= x=new", "y=2"], "x=new y=2", NOBODY),
    row("gone and back", &["a=1", "a,wh", "a=3"], "a=3", ALL),
    row("a directory gone and back", &["d/x=1", "d,wh", "d/y=2"], "d/y=2", ALL),
    row("a directory gone by name and back", &["d/x=1", ".wh.d=", "d/y=2"], "d/y=2", FUSE),
    row("back and gone", &["a=1", "a,wh", "a=3", "a,wh b=4"], "b=4", ALL),
    row("marks of nothing that can be deleted", &["a=1 d/b=1", ".wh..= d/.wh...= c=2"], "a=1 d/b=1 c=2", FUSE),
    row("the files of another union", &["a=1", ".wh..wh.aufs= b=2"], "a=1 b=2", FUSE),
];

/// Opaque directories.
pub const OPAQUE: &[Row] = &[
    row("root's mark", &["d/a=1 d/s/b=2", "d/,trusted.overlay.opaque=y d/c=3"], "d/c=3", &[K, F]),
    row("a user's mark", &["d/a=1 d/s/b=2", "d/,user.overlay.opaque=y d/c=3"], "d/c=3", &[KU, F, FU]),
    row("fuse-overlayfs's mark", &["d/a=1 d/s/b=2", "d/,user.fuseoverlayfs.opaque=y d/c=3"], "d/c=3", FUSE),
    row("a named file", &["d/a=1 d/s/b=2", "d/.wh..wh..opq= d/c=3"], "d/c=3", FUSE),
    row("a named file, whatever its kind", &["d/a=1 d/s/b=2", "d/c=3 d/.wh..wh..opq==d/c"], "d/c=3", FUSE),
    row("a named file at the root", &["a=1 d/b=1", ".wh..wh..opq= d/c=2", "e=3"], "d/c=2 e=3", NOBODY),
    row("in the middle", &["d/a=1", "d/,@.opaque=y d/b=2", "d/c=3"], "d/b=2 d/c=3", ALL),
    row("a named file in the middle", &["d/a=1", "d/.wh..wh..opq= d/b=2", "d/c=3"], "d/b=2 d/c=3", FUSE),
    row("deeper", &["d/s/a=1 d/b=1", "d/s/,@.opaque=y d/s/c=2"], "d/b=1 d/s/c=2", ALL),
    row("deeper than another", &["d/s/a=1 d/b=1", "d/,@.opaque=y d/s/c=2", "d/s/,@.opaque=y d/e=3"], "d/s/ d/e=3", ALL),
    row("of no other value", &["d/a=1", "d/,@.opaque=n d/b=2"], "d/a=1 d/b=2", ALL),
    row("over a file", &["d=1", "d/,@.opaque=y d/x=2"], "d/x=2", ALL),
    row("over nothing", &["a=1", "d/,@.opaque=y d/x=2"], "a=1 d/x=2", ALL),
    row("at the bottom", &["d/,@.opaque=y d/x=2", "d/y=1"], "d/x=2 d/y=1", ALL),
    row("empty", &["d/x=1 d/s/y=2", "d/,@.opaque=y"], "d/", ALL),
    row("with a whiteout in it", &["d/x=1 d/y=2", "d/,@.opaque=y d/x,wh d/z=3", "d/w=4"], "d/z=3 d/w=4", ALL),
    row(
        "three of six",
        &["d/a=1 e=1", "d/b=2", "d/,@.opaque=y d/c=3", "d/d=4", "d/,@.opaque=y d/e=5", "d/f=6"],
        "e=1 d/e=5 d/f=6",
        ALL,
    ),
];

/// Entries over lower entries of another type.
pub const KINDS: &[Row] = &[
    row("a directory over a file over a directory", &["p/a=1", "p=file", "p/b=2"], "p/b=2", ALL),
    row("a link over a directory", &["p/a=1 q/x=1", "p->q"], "p->q q/x=1", ALL),
    row("a directory over a link", &["p->q q/x=1", "p/b=2"], "p/b=2 q/x=1", ALL),
    row("a directory over a link over a directory", &["p/a=1 q/x=1", "p->q", "p/b=2"], "p/b=2 q/x=1", ALL),
    row("a file over a link", &["p->q q=1", "p=2"], "p=2 q=1", ALL),
    row(
        "pipes, sockets and devices",
        &["p,fifo s,socket c,char-1-3 b,block-7-0"],
        "p,fifo s,socket c,char-1-3 b,block-7-0",
        ALL,
    ),
    row("others over directories", &["p/a=1 c/a=1", "p,fifo c,char-5-1"], "p,fifo c,char-5-1", ALL),
    row(
        "a character device of no whiteout's number",
        &["a=1 b=1", "a,char-0-1 b,block-0-0"],
        "a,char-0-1 b,block-0-0",
        ALL,
    ),
    row("modes and owners", &["a=1,04755,5:6 d/,01777,7:8 l->a,9:9"], "a=1,04755,5:6 d/,01777,7:8 l->a,9:9", ALL),
    row(
        "the topmost directory's attributes",
        &["d/,0700,5:6,user.a=1 d/x=1", "d/,0711,7:8,user.b=2 d/y=2"],
        "d/,0711,7:8,user.b=2 d/x=1 d/y=2",
        ALL,
    ),
    row(
        "the topmost root's attributes",
        &["/,0700,5:6 a=1", "/,0711,7:8,user.a=1 b=2"],
        "/,0711,7:8,user.a=1 a=1 b=2",
        ALL,
    ),
    row("names of one file", &["d/a=1 b==d/a", "c=2"], "d/a=1 b==d/a c=2", ALL),
    row("names without a meaning", &[".wh=1 .whx=2 wh.a=3 ..wh.a=4", "a=5"], ".wh=1 .whx=2 wh.a=3 ..wh.a=4 a=5", ALL),
    row("long names", &["<x*255>=1 <y*255>/<z*255>=2", "<x*255>,wh k=3"], "k=3 <y*255>/<z*255>=2", ALL),
    row("a long name hidden by a name", &["<x*251>=1 k=2", ".wh.<x*251>="], "k=2", FUSE),
    row(
        "names of any bytes",
        &["\\xff\\xfe=1 d\\x80/\\x01\\x0a=2 a=1", "\\xff\\xfe,wh"],
        "d\\x80/\\x01\\x0a=2 a=1",
        ALL,
    ),
    row("any bytes hidden by a name", &["\\xff\\xfe=1 a=1", ".wh.\\xff\\xfe="], "a=1", FUSE),
];

/// Redirects of renamed directories and files.
pub const REDIRECTS: &[Row] = &[
    row("absolute", &["a/b/x=1 k=1", "a/b,wh n/,@.redirect=/a/b n/y=2"], "a/ k=1 n/x=1 n/y=2", KERNEL_ROOT),
    row("relative", &["d/old/x=1", "d/old,wh d/new/,@.redirect=old d/new/y=2"], "d/new/x=1 d/new/y=2", KERNEL_ROOT),
    row("of the root's directory", &["a/x=1", "a,wh b/,@.redirect=a"], "b/x=1", KERNEL_ROOT),
    row(
        "a chain",
        &["a/x=1", "a,wh b/,@.redirect=/a b/y=2", "b,wh c/,@.redirect=/b c/z=3"],
        "c/x=1 c/y=2 c/z=3",
        KERNEL_ROOT,
    ),
    row(
        "a chain of four, relative and absolute",
        &["p/a/x=1", "p/a,wh p/b/,@.redirect=a", "p,wh q/,@.redirect=/p", "q/b,wh r/,@.redirect=/q/b r/z=4"],
        "q/ r/x=1 r/z=4",
        KERNEL_ROOT,
    ),
    row("below another", &["a/s/x=1 a/k=1", "a,wh b/,@.redirect=/a b/s/y=2"], "b/s/x=1 b/s/y=2 b/k=1", KERNEL_ROOT),
    row(
        "in one that is redirected",
        &["p/a/x=1", "p,wh q/,@.redirect=/p q/a,wh q/b/,@.redirect=a q/b/y=2"],
        "q/b/x=1 q/b/y=2",
        KERNEL_ROOT,
    ),
    row(
        "in one that is redirected, a layer later",
        &["p/a/x=1", "p,wh q/,@.redirect=/p", "q/a,wh q/b/,@.redirect=a q/b/y=2"],
        "q/b/x=1 q/b/y=2",
        KERNEL_ROOT,
    ),
    row("past a layer without it", &["a/x=1", "c=1", "a,wh b/,@.redirect=/a"], "b/x=1 c=1", KERNEL_ROOT),
    row(
        "whose old name is used again",
        &["a/x=1", "a/,@.opaque=y a/new=2 b/,@.redirect=/a"],
        "a/new=2 b/x=1",
        KERNEL_ROOT,
    ),
    row("to nothing", &["k=1", "b/,@.redirect=/gone b/y=2"], "k=1 b/y=2", KERNEL_ROOT),
    row("to a file", &["a=1", "b/,@.redirect=/a b/y=2"], "a=1 b/y=2", KERNEL_ROOT),
    row("that is opaque", &["a/x=1", "b/,@.opaque=y,@.redirect=/a b/y=2"], "a/x=1 b/y=2", KERNEL_ROOT),
    row("to what a layer between has hidden", &["a/x=1", "a,wh", "b/,@.redirect=/a b/y=2"], "b/y=2", KERNEL_ROOT),
    row(
        "through an opaque directory",
        &["a/b/x=1", "a/,@.opaque=y a/b/y=2", "a/b,wh n/,@.redirect=/a/b n/z=3"],
        "a/ n/y=2 n/z=3",
        KERNEL_ROOT,
    ),
    row(
        "over a directory of the new name",
        &["a/x=1 b/gone=1", "a,wh b/,@.redirect=/a b/y=2"],
        "b/x=1 b/y=2",
        KERNEL_ROOT,
    ),
    row("and deletions in it", &["a/x=1 a/y=2", "a,wh b/,@.redirect=/a b/x,wh"], "b/y=2", KERNEL_ROOT),
    row("of a file means nothing", &["f=data g=z", "f=own,@.redirect=/g"], "f=own g=z", KERNEL_ROOT),
];

/// Metacopy files, whose data is in a lower layer.
pub const METACOPY: &[Row] = &[
    row("of one name", &["f=data", "f=,size-4,0600,5:6,@.metacopy="], "f=data,0600,5:6", KERNEL_ROOT),
    row(
        "through several layers",
        &["f=data", "k=1", "f=,size-4,0640,@.metacopy=", "f=,size-4,0600,5:6,@.metacopy="],
        "f=data,0600,5:6 k=1",
        KERNEL_ROOT,
    ),
    row("renamed", &["d/f=data", "d/f,wh g=,size-4,0600,@.metacopy=,@.redirect=/d/f"], "d/ g=data,0600", KERNEL_ROOT),
    row(
        "renamed in its directory",
        &["d/f=data", "d/f,wh d/g=,size-4,@.metacopy=,@.redirect=f"],
        "d/g=data",
        KERNEL_ROOT,
    ),
    row(
        "renamed twice",
        &[
            "d/f=data",
            "d/f,wh g=,size-4,0640,@.metacopy=,@.redirect=/d/f",
            "g,wh d/h=,size-4,0600,@.metacopy=,@.redirect=/g",
        ],
        "d/h=data,0600",
        KERNEL_ROOT,
    ),
    row(
        "in a renamed directory",
        &["a/f=data", "a,wh b/,@.redirect=/a b/f=,size-4,0600,@.metacopy="],
        "b/f=data,0600",
        KERNEL_ROOT,
    ),
    row(
        "out of a renamed directory",
        &["a/f=data", "a,wh b/,@.redirect=/a", "b/f,wh g=,size-4,0600,@.metacopy=,@.redirect=/b/f"],
        "b/ g=data,0600",
        KERNEL_ROOT,
    ),
    row("with attributes", &["f=data,user.a=1", "f=,size-4,user.b=2,@.metacopy="], "f=data,user.b=2", KERNEL_ROOT),
    row(
        "with a digest's header",
        &["f=data", "f=,size-4,0600,@.metacopy=\\x00\\x04\\x00\\x00"],
        "f=data,0600",
        KERNEL_ROOT,
    ),
    row("whose data nobody has", &["k=1", "f=,size-4,@.metacopy="], "k=1 f!", KERNEL_ROOT),
    row("whose data is hidden", &["f=data k=1", "f,wh", "f=,size-4,@.metacopy="], "k=1 f!", KERNEL_ROOT),
    row("over a directory", &["f/x=1 k=1", "f=,size-4,@.metacopy="], "k=1 f!", KERNEL_ROOT),
    row("with new data on top", &["f=data", "f=,size-4,0600,@.metacopy=", "f=new"], "f=new", KERNEL_ROOT),
];

/// Escaped overlay attributes, and extended attributes that are not overlay marks.
pub const ATTRIBUTES: &[Row] = &[
    row("escaped", &["d/a=1", "d/,@.overlay.opaque=y d/b=2"], "d/,@.opaque=y d/a=1 d/b=2", KERNEL),
    row("escaped twice", &["d/a=1,@.overlay.overlay.opaque=y"], "d/a=1,@.overlay.opaque=y", KERNEL),
    row("an escaped redirect", &["a/x=1", "b/,@.overlay.redirect=/a"], "a/x=1 b/,@.redirect=/a", KERNEL),
    row(
        "an escaped metacopy",
        &["f=data", "f=,size-4,@.overlay.metacopy="],
        "f=\\x00\\x00\\x00\\x00,@.metacopy=",
        KERNEL,
    ),
    row("an escaped whiteout", &["d/a=1", "d/,@.opaque=x d/a=,@.overlay.whiteout=y"], "d/a=,@.whiteout=y", KERNEL),
    row(
        "what overlayfs keeps for itself",
        &["d/x=1 d/f=1", "d/,@.impure=y,@.origin=junk d/f=2,@.origin=junk,@.nlink=U-1"],
        "d/x=1 d/f=2",
        ALL,
    ),
    row("others", &["f=1,user.a=1,security.c=3 d/,user.x="], "f=1,user.a=1,security.c=3 d/,user.x=", ALL),
    row("root's", &["f=1,trusted.b=2 l->f,trusted.x=y"], "f=1,trusted.b=2 l->f,trusted.x=y", &[K, F]),
    row("of the top only", &["f=1,user.a=1", "f=2,user.b=2"], "f=2,user.b=2", ALL),
];

/// Owner and mode overrides by an attribute.
pub const OVERRIDES: &[Row] = &[
    row(
        "of files and directories",
        &["/,%=0:0:0755 f=1,0600,%=5:6:0640 d/,%=7:8:1711 d/x=2,%=1:2:4755"],
        "f=1,0640,5:6 d/,01711,7:8 d/x=2,04755,1:2",
        FUSE,
    ),
    row("with kinds", &["/,%=0:0:0755:dir f=1,%=5:6:0640:file d/,%=7:8:1711:dir"], "f=1,0640,5:6 d/,01711,7:8", NOBODY),
    row(
        "of other kinds",
        &["/,%=0:0:0755:dir p=,%=1:2:0600:pipe s=,%=1:2:0600:socket c=,%=0:5:0666:char-1-3 b=,%=0:6:0660:block-7-1"],
        "p,fifo,0600,1:2 s,socket,0600,1:2 c,char-1-3,0666,0:5 b,block-7-1,0660,0:6",
        NOBODY,
    ),
    row("of a link that is a file", &["/,%=0:0:0755:dir l=target,%=5:6:0777:symlink"], "l->target,5:6", NOBODY),
    row("of the root", &["/,%=5:6:0711 f=1"], "/,0711,5:6 f=1", NOBODY),
    row("that the root lacks", &["f=1,0600,%=5:6:0640"], "f=1,0600", NOBODY),
    row(
        "that say nothing",
        &["/,%=0:0:0755 f=1,0600,1:2 d/,%=junk d/g=1,0640,%=5:6"],
        "f=1,0600,1:2 d/ d/g=1,0640",
        NOBODY,
    ),
    row(
        "of one layer of two",
        &["/,%=0:0:0755 f=1,%=5:6:0600 g=2,%=5:6:0600", "g=3,0640"],
        "f=1,0600,5:6 g=3,0640",
        FUSE,
    ),
    row(
        "of the upper layer of two",
        &["f=1,0640 g=1 d/,0700 d/a=1", "/,%=0:0:0755 g=2,%=5:6:0600 d/,%=7:8:0711"],
        "f=1,0640 g=2,0600,5:6 d/,0711,7:8 d/a=1",
        FUSE,
    ),
    row("with a whiteout", &["a=1 b=2", "/,%=0:0:0755 a,wh c=3,%=5:6:0600"], "b=2 c=3,0600,5:6", FUSE),
];

/// All tables, by topic.
pub const TABLES: &[(&str, &[Row])] = &[
    ("whiteouts", WHITEOUTS),
    ("opaque directories", OPAQUE),
    ("kinds and names", KINDS),
    ("redirects", REDIRECTS),
    ("metacopy", METACOPY),
    ("attributes", ATTRIBUTES),
    ("overrides", OVERRIDES),
];

/// The override attribute names that `%` stands for.
pub const OVERRIDE_NAMES: [&str; 3] =
    ["security.fuseoverlayfs.override_stat", "user.containers.override_stat", "user.fuseoverlayfs.override_stat"];
