//! Shell scripts to run on a mount, and the tree that every reader of the upper directory must see afterwards.

use super::driver::{Driver, MountUser};

use Driver::{FuseOverlayfs as F, Kernel as K, Plyfs as P};

/// One script with its expected tree.
pub struct WriteCase {
    /// The name of the case.
    pub name: &'static str,
    /// Lower directories, the bottom one first, in the language of [`super::language`].
    pub lower: &'static [&'static str],
    /// The script, run by sh in the mount. `put FILE TEXT` writes, `long X` is a name of 255 times that letter, `@` is
    /// the namespace of the overlay attributes.
    pub script: &'static str,
    /// The expected tree.
    pub shows: &'static str,
    /// The drivers that can run the script. Each must be able to read what it wrote.
    pub writers: &'static [Driver],
    /// The users to mount as.
    pub users: &'static [MountUser],
}

/// A form that one driver writes and another does not know.
pub struct Gap {
    /// The scripts that write the form; all if empty.
    pub rows: &'static [&'static str],
    pub writer: Driver,
    pub reader: Driver,
    pub user: Option<MountUser>,
    #[expect(dead_code, reason = "for the reader")]
    pub reason: &'static str,
}

const ALL: &[Driver] = &[K, F, P];
const KP: &[Driver] = &[K, P];
const ROOT: &[MountUser] = &[MountUser::Root];

const fn write(
    name: &'static str,
    lower: &'static [&'static str],
    script: &'static str,
    shows: &'static str,
    writers: &'static [Driver],
) -> WriteCase {
    WriteCase { name, lower, script, shows, writers, users: &MountUser::ALL }
}

/// Limits a script to root: only root can run it, or the form is followed for root only.
const fn root_only(row: WriteCase) -> WriteCase {
    WriteCase { users: ROOT, ..row }
}

/// All scripts.
pub const WRITES: &[WriteCase] = &[
    write("nothing", &["a=1 d/x=2"], ":", "a=1 d/x=2", ALL),
    write("unlink", &["a=1 b=2 d/x=1"], "rm a d/x", "b=2 d/", ALL),
    write("remove a directory", &["d/x=1 d/s/y=2 k=1"], "rm -r d", "k=1", ALL),
    write("remove and make again", &["d/x=1 k=1"], "rm -r d; mkdir d; put d/n 1", "d/n=1 k=1", ALL),
    write("remove and make again below", &["d/s/x=1 d/k=1"], "rm -r d/s; mkdir d/s; put d/s/n 1", "d/s/n=1 d/k=1", ALL),
    write("remove, make and remove again", &["d/x=1 k=1"], "rm -r d; mkdir d; put d/n 1; rm -r d", "k=1", ALL),
    write("a file for a directory", &["d/x=1"], "rm -r d; put d f", "d=f", ALL),
    write("a directory for a file", &["f=1"], "rm f; mkdir f; put f/x 1", "f/x=1", ALL),
    write(
        "a directory for a file for a directory",
        &["d/x=1"],
        "rm -r d; put d f; rm d; mkdir d; put d/y 1",
        "d/y=1",
        ALL,
    ),
    write("a link for a directory", &["d/x=1 e/y=2"], "rm -r d; ln -s e d", "d->e e/y=2", ALL),
    write("a directory for a link", &["d->e e/y=2"], "rm d; mkdir d; put d/x 1", "d/x=1 e/y=2", ALL),
    write(
        "new things",
        &["a=1"],
        "mkdir n; put n/f 1; ln -s f n/l; mkfifo n/p; ln n/f n/g",
        "a=1 n/f=1 n/l->f n/p,fifo n/g==n/f",
        ALL,
    ),
    root_only(write("devices", &["a=1"], "mknod c c 1 3; mknod b b 7 1", "a=1 c,char-1-3 b,block-7-1", ALL)),
    write("append", &["f=low,0640,5:6"], "printf up >>f", "f=lowup,0640,5:6", ALL),
    write("truncate", &["f=lower d/g=lower"], ": >f; put d/g new", "f= d/g=new", ALL),
    write(
        "modes",
        &["f=data d/x=1"],
        "chmod 0600 f; chmod 01777 d; chmod 04711 d/x",
        "f=data,0600 d/,01777 d/x=1,04711",
        ALL,
    ),
    write(
        "owners",
        &["f=data d/x=1 l->f"],
        "chown 5:6 f; chown 7:8 d; chown -h 9:9 l",
        "f=data,5:6 d/,7:8 d/x=1 l->f,9:9",
        ALL,
    ),
    write("the root's mode and owner", &["f=data"], "chmod 0711 .; chown 5:6 .", "/,0711,5:6 f=data", ALL),
    write("the mode of a big file", &["f=<data*40000>"], "chmod 0600 f", "f=<data*40000>,0600", ALL),
    write(
        "the mode and the data of a big file",
        &["f=<data*40000>"],
        "chmod 0600 f; printf x >>f",
        "f=<data*40000>x,0600",
        ALL,
    ),
    write(
        "attributes",
        &["f=data,user.low=1 d/x=1"],
        "setfattr -n user.a -v 1 f; setfattr -x user.low f; setfattr -n user.b -v 2 d",
        "f=data,user.a=1 d/,user.b=2 d/x=1",
        ALL,
    ),
    write("rename files", &["a=1 d/b=2"], "mv a d/c; mv d/b e", "d/c=1 e=2", ALL),
    write("rename a file to a deleted name", &["a=1 b=2"], "rm b; mv a b", "b=1", ALL),
    write("rename a file over another", &["a=1 b=2 d/c=3"], "mv a b; mv b d/c", "d/c=1", ALL),
    write("rename a file and back", &["a=1,0600"], "mv a b; mv b a; chmod 0640 a", "a=1,0640", ALL),
    write("rename a directory", &["a/s/x=1 a/y=2 k=1"], "mv a b", "b/s/x=1 b/y=2 k=1", ALL),
    write("rename in its directory", &["d/a/x=1 d/k=1"], "mv d/a d/b", "d/b/x=1 d/k=1", ALL),
    write(
        "rename into another directory",
        &["a/x=1 a/z=3 d/k=1"],
        "mv a d/b; put d/b/n 1; rm d/b/x",
        "d/b/n=1 d/b/z=3 d/k=1",
        ALL,
    ),
    write("rename a directory twice", &["a/x=1"], "mv a b; mv b c; put c/y 2", "c/x=1 c/y=2", ALL),
    write("rename a directory and back", &["a/x=1"], "mv a b; put b/y 2; mv b a", "a/x=1 a/y=2", ALL),
    write("rename outside and inside", &["p/a/x=1"], "mv p q; mv q/a q/b; mv q r; put r/b/y 2", "r/b/x=1 r/b/y=2", ALL),
    write("rename and make again", &["a/x=1"], "mv a b; mkdir a; put a/n 1", "a/n=1 b/x=1", ALL),
    write("rename and swap", &["a/x=1 b/y=2"], "mv a c; mv b a; mv c b", "a/y=2 b/x=1", ALL),
    write("rename over an empty directory", &["a/x=1 b/"], "mv -T a b", "b/x=1", ALL),
    write("rename and remove", &["a/x=1 a/y=2"], "mv a b; rm -r b; mkdir a; put a/z 1", "a/z=1", ALL),
    write("rename what was made", &["k=1"], "mkdir n; put n/f 1; mv n m; mv m/f m/g", "k=1 m/g=1", ALL),
    write(
        "rename and change the mode",
        &["a/f=data"],
        "mv a b; chmod 0600 b/f; mv b/f g; chmod 0640 g",
        "b/ g=data,0640",
        ALL,
    ),
    write(
        "change the mode and rename",
        &["d/f=data k=1"],
        "chmod 0600 d/f; mv d/f g; mv g d/h",
        "d/h=data,0600 k=1",
        ALL,
    ),
    write("names of one file", &["a=1 d/"], "ln a b; ln a d/c", "a=1 b==a d/c==a", ALL),
    write("over two directories", &["d/a=1 e/x=1", "d/b=2 d/a,wh"], "put d/a new; rm d/b", "d/a=new e/x=1", ALL),
    write("over an opaque directory", &["d/a=1", "d/,@.opaque=y d/b=2"], "put d/c 3; rm d/b", "d/c=3", ALL),
    write("an opaque directory renamed", &["d/a=1", "d/,@.opaque=y d/b=2"], "mv d e; put e/c 3", "e/b=2 e/c=3", ALL),
    write("a merged directory removed", &["d/a=1 k=1", "d/b=2"], "rm -r d; mkdir d", "d/ k=1", ALL),
    write("a merged directory renamed", &["d/a=1", "d/b=2"], "mv d e", "e/a=1 e/b=2", ALL),
    root_only(write(
        "over a redirect",
        &["a/x=1", "a,wh b/,@.redirect=/a b/y=2"],
        "mv b c; put c/z 3; rm c/x",
        "c/y=2 c/z=3",
        KP,
    )),
    root_only(write("below a redirect", &["a/s/x=1", "a,wh b/,@.redirect=/a"], "mv b/s b/t; mv b/t c", "b/ c/x=1", KP)),
    root_only(write(
        "over a file without data",
        &["f=data", "f=,size-4,0600,@.metacopy="],
        "chmod 0640 f",
        "f=data,0640",
        KP,
    )),
    root_only(write(
        "data for a file without",
        &["f=data", "f=,size-4,0600,@.metacopy="],
        "printf x >>f",
        "f=datax,0600",
        KP,
    )),
    write(
        "names like whiteouts",
        &["x=low d/y=1"],
        "put .wh.x 1; mkdir .wh.d; put .wh.d/f 2; put d/.wh..wh..opq 3",
        "x=low d/y=1 .wh.x=1 .wh.d/f=2 d/.wh..wh..opq=3",
        &[P],
    ),
    write(
        "names like whiteouts, moved",
        &["x=low d/y=1"],
        "put a 1; mv a .wh.x; mv d .wh.e; put .wh.b 2; rm .wh.b; ln -s x .wh.l",
        "x=low .wh.x=1 .wh.e/y=1 .wh.l->x",
        &[P],
    ),
    write(
        "long names",
        &["<x*255>=1 <y*255>/k=1"],
        "rm $(long x); put $(long z) 1; put $(long y)/$(long w) 2",
        "<y*255>/k=1 <z*255>=1 <y*255>/<w*255>=2",
        KP,
    ),
    write(
        "long names renamed",
        &["<x*255>=1 <y*255>/k=1"],
        "mv $(long x) $(long a); mv $(long y) $(long b)",
        "<a*255>=1 <b*255>/k=1",
        KP,
    ),
    write(
        "names of any bytes",
        &["\\xff=1 \\xfe/a=2"],
        r#"rm "$(printf '\377')"; put "$(printf '\375\200')" 1; mv "$(printf '\376')" "$(printf '\300')""#,
        "\\xfd\\x80=1 \\xc0/a=2",
        ALL,
    ),
    write(
        "attributes like marks",
        &["d/x=1 f=data e/k=1"],
        "setfattr -n @.opaque -v y d; setfattr -n @.redirect -v /e f; setfattr -n @.metacopy -v 1 e/k",
        "d/,@.opaque=y d/x=1 f=data,@.redirect=/e e/k=1,@.metacopy=1",
        KP,
    ),
    write(
        "attributes like other tools' marks",
        &["d/x=1"],
        "setfattr -n user.fuseoverlayfs.opaque -v y d; setfattr -n user.containers.override_stat -v 5:6:0700 d/x",
        "d/,user.fuseoverlayfs.opaque=y d/x=1,user.containers.override_stat=5:6:0700",
        &[P],
    ),
];

/// Scripts that leave a redirect or a metacopy file, where those are followed.
const MOVED_OR_WITHOUT_DATA: &[&str] = &[
    "modes",
    "owners",
    "the mode of a big file",
    "attributes",
    "rename files",
    "rename a file to a deleted name",
    "rename a file over another",
    "rename a file and back",
    "rename a directory",
    "rename in its directory",
    "rename into another directory",
    "rename a directory twice",
    "rename outside and inside",
    "rename and make again",
    "rename and swap",
    "rename over an empty directory",
    "rename and change the mode",
    "change the mode and rename",
    "names of one file",
    "an opaque directory renamed",
    "a merged directory renamed",
    "names of any bytes",
];

/// The known gaps, for each pair of writer and reader.
pub const GAPS: &[Gap] = &[
    Gap {
        rows: &[],
        writer: F,
        reader: K,
        user: None,
        reason: "it marks every directory that it makes by `.wh..wh..opq`, and in a user namespace by nothing else that the \
                 kernel reads; and every copy by `user.fuseoverlayfs.origin`",
    },
    Gap { rows: MOVED_OR_WITHOUT_DATA, writer: K, reader: F, user: Some(MountUser::Root), reason: UNKNOWN },
    Gap { rows: MOVED_OR_WITHOUT_DATA, writer: P, reader: F, user: None, reason: UNKNOWN },
    Gap { rows: MOVED_OR_WITHOUT_DATA, writer: P, reader: K, user: Some(MountUser::User), reason: NOT_FOLLOWED },
    Gap { rows: ALSO_MOVED, writer: P, reader: K, user: Some(MountUser::User), reason: NOT_FOLLOWED },
];

/// The same after scripts that fuse-overlayfs reads or cannot carry out.
const ALSO_MOVED: &[&str] = &["rename a directory and back", "long names renamed", "attributes like marks"];

const NOT_FOLLOWED: &str =
    "in a user namespace the kernel follows neither: whoever owns the directory could have written them";

const UNKNOWN: &str = "fuse-overlayfs 1.10 knows neither redirects nor files without data";
