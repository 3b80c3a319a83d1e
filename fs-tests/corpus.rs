//! Layer contents: one small image for each tar or whiteout corner case that other tools got wrong, indexed, merged and
//! read without a kernel.

use crate::support::erofs;
use crate::support::tar::{Entry, Sparse, Tar};
use plyfs::digest::Digest;
use plyfs::erofs::WriteError;
use plyfs::fs::{Attr, Data, Fs, FsError, Ino, ROOT};
use plyfs::layer::{Index, Limits, index_tar};
use plyfs::meta::Kind;
use plyfs::sys::Bytes;
use plyfs::tree;
use std::io::Write;

/// An image in memory.
pub struct Image {
    pub fs: Fs,
    pub warnings: Vec<String>,
}

/// Indexes and merges layers, the bottom one first, and checks every index on the way.
pub fn image(layers: &[Vec<u8>]) -> Result<Image, String> {
    image_within(layers, &Limits::default())
}

pub fn image_within(layers: &[Vec<u8>], limits: &Limits) -> Result<Image, String> {
    let (mut indexes, mut data, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for tar in layers {
        let draft = index_tar(&mut &tar[..], limits).map_err(|e| e.to_string())?;
        warnings.extend_from_slice(draft.warnings());
        let index = Index::open(Bytes::Owned(draft.seal(&Digest::of(tar)))).unwrap();
        index.check().unwrap();
        indexes.push(index);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(tar).unwrap();
        data.push(Data::open(file).unwrap());
    }
    let merged = tree::merge(&Digest::of(b"chain"), &indexes).map_err(|e| e.to_string())?;
    let merged = Index::open(Bytes::Owned(merged)).unwrap();
    merged.check().unwrap();
    let image = erofs::write(&merged, layers);
    let fs = Fs::new(merged, data);
    match image {
        Ok(image) => erofs::assert_same_tree(&erofs::Reader::new(&image, layers), &fs),
        // A file of terabytes with a few bytes of data.
        Err(WriteError::Sparse(_)) => {}
        Err(why) => panic!("no EROFS image: {why}"),
    }
    Ok(Image { fs, warnings })
}

/// An index whose data lies outside of the tar: the tar lost its end, or the index was forged.
#[test]
fn no_erofs_image_is_written_of_data_outside_of_the_tar() {
    let tar = Tar::new().file("a", "x".repeat(3000)).file("b", "y".repeat(600)).finish();
    let index = index_tar(&mut &tar[..], &Limits::default()).unwrap().seal(&Digest::of(&tar));
    let merged = tree::merge(&Digest::of(b"chain"), &[Index::open(Bytes::Owned(index)).unwrap()]).unwrap();
    let merged = Index::open(Bytes::Owned(merged)).unwrap();
    assert!(erofs::write(&merged, std::slice::from_ref(&tar)).is_ok());
    for length in [0, 512, 1024, 3000, 3584, 4607, 4695] {
        let written = erofs::write(&merged, &[tar[..length].to_vec()]);
        assert!(matches!(written, Err(WriteError::Read { .. })), "{length} bytes are left");
    }
    assert!(matches!(erofs::write(&merged, &[]), Err(WriteError::Index(_))), "no layer");
}

impl Image {
    /// The inode at a path.
    pub fn at(&self, path: &str) -> Result<Attr, FsError> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(self.fs.getattr(ROOT), |at, name| self.fs.lookup(at?.ino, name.as_bytes()))
    }

    fn attr(&self, path: &str) -> Attr {
        self.at(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// A file's content.
    pub fn content(&self, ino: Ino) -> Vec<u8> {
        let size = self.fs.getattr(ino).unwrap().size;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            // An odd size, so that reads cut segments and holes at any offset.
            let piece = self.fs.read(ino, bytes.len() as u64, 1021).unwrap();
            assert!(!piece.is_empty(), "a file ends early");
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.content(self.attr(path).ino)).unwrap()
    }

    /// Lists every path, one line each: directories end in a slash, files show their content, links their target.
    fn list(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.list_below(ROOT, "", &mut lines);
        lines
    }

    fn list_below(&self, dir: Ino, path: &str, lines: &mut Vec<String>) {
        let mut entries = Vec::new();
        let take = |entry: &plyfs::fs::DirEntry<'_>| {
            entries.push((entry.name.to_vec(), entry.ino, entry.kind));
            false
        };
        self.fs.readdir(dir, 2, take).unwrap();
        for (name, ino, kind) in entries {
            let path = format!("{path}{}", name.escape_ascii());
            assert_eq!(self.fs.lookup(dir, &name).unwrap().ino, ino);
            match kind {
                Kind::Dir => {
                    lines.push(format!("{path}/"));
                    assert_eq!(self.fs.parent(ino).unwrap(), dir);
                    self.list_below(ino, &format!("{path}/"), lines);
                }
                Kind::File => lines.push(format!("{path}={}", self.content(ino).escape_ascii())),
                Kind::Symlink => lines.push(format!("{path}->{}", self.fs.readlink(ino).unwrap().escape_ascii())),
                other => lines.push(format!("{path} {other:?}")),
            }
        }
    }
}

#[track_caller]
fn assert_tree(layers: &[Vec<u8>], lines: &[&str]) -> Image {
    let image = image(layers).unwrap_or_else(|e| panic!("refused: {e}"));
    assert_eq!(image.list(), lines);
    image
}

#[track_caller]
fn assert_rejected(layers: &[Vec<u8>], says: &[&str]) {
    let output = image(layers).err().expect("was not refused");
    assert!(!output.contains('\n'), "more than one line: {output}");
    for word in says {
        assert!(output.contains(word), "`{word}` is not in: {output}");
    }
}

fn base() -> Vec<u8> {
    Tar::new().dir("d").file("d/old", "1").dir("d/sub").file("d/sub/x", "2").file("f", "3").finish()
}

#[test]
fn an_opaque_marker_hides_only_lower_layers_at_any_position_in_the_tar() {
    let first = Tar::new().dir("d").opaque("d").file("d/new", "n").finish();
    let last = Tar::new().dir("d").file("d/new", "n").opaque("d").finish();
    for top in [first, last] {
        assert_tree(&[base(), top], &["d/", "d/new=n", "f=3"]);
    }
    assert_tree(&[base(), Tar::new().file("new", "n").opaque("").finish()], &["new=n"]);
}

#[test]
fn a_whiteout_of_dot_dot_dot_or_nothing_is_refused() {
    for bad in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh...", ".wh../x"] {
        assert_rejected(&[base(), Tar::new().file(bad, "").finish()], &[&format!("entry `{bad}`"), "whiteout"]);
    }
    assert_rejected(&[base(), Tar::new().file(".wh.d/x", "").finish()], &["`.wh.d/x`", "inside a whiteout"]);
}

#[test]
fn the_root_stays_a_directory() {
    for root in [".", "/", "./", "d/.."] {
        assert_rejected(&[Tar::new().symlink(root, "/etc").finish()], &["root", "not a directory"]);
        assert_rejected(&[Tar::new().file(root, "x").finish()], &["root", "not a directory"]);
    }
    let image = assert_tree(&[Tar::new().add(Entry::dir("./").mode(0o1750).owner(7, 8)).finish()], &[]);
    let root = image.attr("/");
    assert_eq!((root.kind, root.mode, root.uid, root.gid, root.nlink), (Kind::Dir, 0o1750, 7, 8, 2));
}

#[test]
fn a_planted_symlink_does_not_lead_outside_the_layer() {
    let planted =
        Tar::new().symlink("out", "/../../etc").file("out/passwd", "mine").hard_link("h", "out/passwd").finish();
    let image = assert_tree(&[planted], &["etc/", "etc/passwd=mine", "h=mine", "out->/../../etc"]);
    assert_eq!(image.attr("h").ino, image.attr("etc/passwd").ino);
    assert_rejected(
        &[Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "").finish()],
        &["`a/x`", "too many symbolic links"],
    );
    assert_rejected(&[Tar::new().file("../x", "").finish()], &["`../x`", "leaves the layer"]);
    assert_rejected(&[Tar::new().file("a/../../x", "").finish()], &["`a/../../x`", "leaves the layer"]);
}

#[test]
fn entries_below_a_symlink_of_the_same_layer_land_at_its_target() {
    let usrmerge =
        Tar::new().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("lib/a", "a").whiteout("lib/gone").finish();
    let below = Tar::new().file("usr/lib/gone", "g").finish();
    assert_tree(&[below, usrmerge], &["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/a=a"]);
}

#[test]
fn a_directory_over_a_lower_symlink_shadows_it() {
    let lower = Tar::new().dir("usr").file("usr/x", "x").symlink("lib", "usr").finish();
    let real = Tar::new().dir("lib").file("lib/y", "y").finish();
    let opaque = Tar::new().dir("lib").opaque("lib").file("lib/y", "y").finish();
    let implicit = Tar::new().file("lib/y", "y").finish();
    for top in [real, opaque, implicit] {
        assert_tree(&[lower.clone(), top], &["lib/", "lib/y=y", "usr/", "usr/x=x"]);
    }
}

#[test]
fn a_whiteout_beside_a_new_directory_of_its_name_makes_it_opaque() {
    let (before, after) = (Tar::new().whiteout("d").file("d/c/e", "e"), Tar::new().file("d/c/e", "e").whiteout("d"));
    let lower = Tar::new().add(Entry::dir("d").mode(0o700).owner(5, 5)).file("d/old", "1").finish();
    for top in [before, after] {
        let image = assert_tree(&[lower.clone(), top.finish()], &["d/", "d/c/", "d/c/e=e"]);
        assert_eq!(
            (image.attr("d").mode, image.attr("d").uid),
            (0o755, 0),
            "the deleted directory's attributes came back"
        );
    }
    assert_tree(
        &[base(), Tar::new().whiteout("f").file("f", "new").finish()],
        &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "f=new"],
    );
}

#[test]
fn a_whiteout_of_a_missing_name_is_tolerated() {
    let odd =
        Tar::new().whiteout("no/such/parent").whiteout("gone").dir("d").opaque("d").whiteout("d/old").whiteout("f/x");
    assert_tree(&[base(), odd.finish()], &["d/", "f=3"]);
    assert_tree(&[Tar::new().whiteout("a").opaque("b").finish()], &[]);
    assert_tree(&[base(), Tar::new().whiteout("d").whiteout("d/old").opaque("d/sub").finish()], &["f=3"]);
}

/// umoci deletes a directory's entries one by one beside the device that takes its place.
#[test]
fn whiteouts_below_a_replaced_directory_are_tolerated() {
    let (before, after) =
        (Tar::new().whiteout("d/old").file("d", "new"), Tar::new().file("d", "new").whiteout("d/old"));
    let deeper = Tar::new().file("d", "new").whiteout("d/sub/x").opaque("d/sub");
    for top in [before, after, deeper] {
        assert_tree(&[base(), top.finish()], &["d=new", "f=3"]);
    }
}

#[test]
fn a_whiteout_is_known_by_its_name_whatever_its_type() {
    let link = Tar::new().file("empty", "").hard_link(".wh.f", "empty").finish();
    let dir = Tar::new().file("empty", "").dir(".wh.f").finish();
    let symlink = Tar::new().file("empty", "").symlink(".wh.f", "x").finish();
    for top in [link, dir, symlink] {
        assert_tree(&[base(), top], &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "empty="]);
    }
    let opaque = Tar::new().file("empty", "").hard_link("d/.wh..wh..opq", "empty").finish();
    assert_tree(&[base(), opaque], &["d/", "empty=", "f=3"]);
}

#[test]
fn aufs_metadata_is_left_out_of_the_image() {
    let aufs = Tar::new().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").file(".wh..wh.aufs", "").finish();
    assert_tree(&[base(), aufs], &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "f=3"]);
}

#[test]
fn hard_links_are_one_inode_across_layers_and_in_any_order() {
    let across = Tar::new().hard_link("g", "f").finish();
    let image = assert_tree(&[base(), across.clone()], &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "f=3", "g=3"]);
    assert_eq!((image.attr("f").ino, image.attr("f").nlink), (image.attr("g").ino, 2));
    let third = assert_tree(
        &[base(), across, Tar::new().hard_link("h", "g").whiteout("f").finish()],
        &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "g=3", "h=3"],
    );
    assert_eq!((third.attr("h").ino, third.attr("h").nlink), (third.attr("g").ino, 2));

    let before_target = Tar::new().hard_link("a", "b").hard_link("b", "c").file("c", "x").finish();
    let image = assert_tree(&[before_target], &["a=x", "b=x", "c=x"]);
    assert_eq!((image.attr("a").ino, image.attr("a").nlink), (image.attr("c").ino, 3));

    let onto_existing = Tar::new().file("a", "1").file("b", "2").hard_link("b", "a").finish();
    assert_eq!(assert_tree(&[onto_existing], &["a=1", "b=1"]).attr("a").nlink, 2);
}

#[test]
fn an_inode_survives_the_loss_of_some_of_its_names() {
    let replaced = Tar::new().file("a", "first").hard_link("b", "a").file("a", "second").finish();
    let image = assert_tree(&[replaced], &["a=second", "b=first"]);
    assert_eq!((image.attr("a").nlink, image.attr("b").nlink), (1, 1));
    let deleted = Tar::new().hard_link("keep", "f").whiteout("f").finish();
    let image = assert_tree(&[base(), deleted], &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "keep=3"]);
    assert_eq!(image.attr("keep").nlink, 1);
    let (linked, half) = (Tar::new().file("a", "x").hard_link("b", "a").finish(), Tar::new().whiteout("a").finish());
    assert_eq!(assert_tree(&[linked, half], &["b=x"]).attr("b").nlink, 1);
}

#[test]
fn hard_links_without_a_target_are_refused() {
    assert_rejected(&[Tar::new().hard_link("a", "b").hard_link("b", "a").finish()], &["hard link", "refers to itself"]);
    assert_rejected(&[Tar::new().hard_link("a", "a").finish()], &["`a`", "refers to itself"]);
    assert_rejected(&[Tar::new().hard_link("a", "nowhere/x").finish()], &["layer 1", "`nowhere/x`", "no layer below"]);
    assert_rejected(&[base(), Tar::new().hard_link("a", "d").finish()], &["layer 2", "`d`", "directory"]);
    assert_rejected(&[Tar::new().dir("d").hard_link("a", "d").finish()], &["`a`", "directory"]);
    assert_rejected(
        &[base(), Tar::new().whiteout("f").finish(), Tar::new().hard_link("a", "f").finish()],
        &["layer 3", "`f`"],
    );
    assert_rejected(&[Tar::new().hard_link("a", "").finish()], &["`a`", "is a link without a target"]);
    assert_rejected(&[Tar::new().symlink("a", "").finish()], &["`a`", "is a link without a target"]);
}

/// Found by the merge model: a hard link to a directory was refused although a later entry had replaced the link.
#[test]
fn a_replaced_hard_link_is_not_validated() {
    assert_tree(&[Tar::new().hard_link("c", "b").file("c", "x").dir("b").finish()], &["b/", "c=x"]);
    assert_tree(&[Tar::new().hard_link("c", "nowhere").file("c", "x").finish()], &["c=x"]);
}

#[test]
fn missing_parent_directories_are_created() {
    let image = assert_tree(&[Tar::new().file("a/b/c", "x").finish()], &["a/", "a/b/", "a/b/c=x"]);
    assert_eq!((image.attr("a").mode, image.attr("a").uid, image.attr("a").nlink), (0o755, 0, 3));
    let lower = Tar::new().add(Entry::dir("a").mode(0o2711).owner(3, 4).mtime(-5, 6)).finish();
    let image = assert_tree(&[lower, Tar::new().file("a/b", "x").opaque("a").finish()], &["a/", "a/b=x"]);
    let dir = image.attr("a");
    assert_eq!((dir.mode, dir.uid, dir.gid, dir.mtime.sec, dir.mtime.nsec), (0o2711, 3, 4, -5, 6));
}

#[test]
fn the_last_entry_of_a_path_wins() {
    let image = assert_tree(&[Tar::new().file("a", "1").file("a", "2").finish()], &["a=2"]);
    assert_eq!(image.warnings.len(), 1, "{:?}", image.warnings);
    assert!(image.warnings[0].contains("`a`"));
    let same = Tar::new().dir("d").file("d/x", "1").add(Entry::dir("d").mode(0o711)).finish();
    assert_eq!(assert_tree(&[same], &["d/", "d/x=1"]).attr("d").mode, 0o711);
    assert_tree(&[Tar::new().dir("d").file("d/x", "1").file("d", "f").finish()], &["d=f"]);
    assert_tree(&[Tar::new().file("d", "f").dir("d").file("d/x", "1").finish()], &["d/", "d/x=1"]);
    assert_rejected(&[Tar::new().file("d", "f").file("d/x", "1").finish()], &["`d/x`", "not a directory"]);
    let many = (0..50).fold(Tar::new(), |tar, _| tar.file("a", "x")).finish();
    assert_eq!(image_within(&[many], &Limits::default()).unwrap().warnings.len(), 11);
}

#[test]
fn only_xattr_records_become_xattrs_and_values_keep_their_bytes() {
    let entry = Entry::file("a", "x")
        .xattr("user.bin", b"\0\xff\n12 path=b\n")
        .xattr("user.empty", b"")
        .pax("LIBARCHIVE.xattr.user.a%25b", b"AP8=")
        .pax("comment", b"no attribute")
        .pax("SCHILY.acl.access", b"user::rwx")
        .pax("atime", b"1");
    let image = assert_tree(&[Tar::new().add(entry).finish()], &["a=x"]);
    let ino = image.attr("a").ino;
    assert_eq!(*image.fs.getxattr(ino, b"user.bin").unwrap(), *b"\0\xff\n12 path=b\n");
    assert!(matches!(image.fs.getxattr(ino, b"user.empty"), Err(FsError::NoAttribute)));
    assert_eq!(*image.fs.getxattr(ino, b"user.a%b").unwrap(), *b"\0\xff");
    assert_eq!(image.fs.listxattr(ino, true).unwrap(), b"user.a%b\0user.bin\0");
    assert!(matches!(image.fs.getxattr(ino, b"comment"), Err(FsError::NoAttribute)));
}

#[test]
fn overlay_xattrs_of_an_image_are_kept_without_effect() {
    let dir = Entry::dir("d")
        .xattr("trusted.overlay.opaque", b"y")
        .xattr("user.overlay.redirect", b"/f")
        .xattr("user.plyfs.x", b"1");
    let image = assert_tree(&[base(), Tar::new().add(dir).finish()], &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "f=3"]);
    let ino = image.attr("d").ino;
    assert_eq!(*image.fs.getxattr(ino, b"trusted.overlay.opaque").unwrap(), *b"y");
    assert_eq!(image.fs.listxattr(ino, false).unwrap(), b"user.overlay.redirect\0user.plyfs.x\0");
    let device = Tar::new().add(Entry::char_device("f", 0, 0)).finish();
    assert_tree(&[base(), device], &["d/", "d/old=1", "d/sub/", "d/sub/x=2", "f Char"]);
}

#[test]
fn sparse_files_in_every_tar_format_are_read_correctly() {
    let segments = [(1000, vec![b'a'; 700]), (10_000, b"tail".to_vec())];
    let mut intact = vec![0; 12_345];
    for (at, bytes) in &segments {
        intact[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    for form in [Sparse::OldGnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        // Old GNU pieces are cut at 512 bytes, so the first is made one that fills its blocks.
        let segments: Vec<_> = if form == Sparse::OldGnu {
            vec![(1000, vec![b'a'; 512]), (1512, vec![b'a'; 188])]
        } else {
            segments.to_vec()
        };
        let mut want = intact.clone();
        if form == Sparse::OldGnu {
            want[10_000..10_004].fill(0);
        }
        let tar = Tar::new().add(Entry::sparse("s", 12_345, &segments, form)).file("after", "ok").finish();
        let image = image(&[tar]).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        let attr = image.attr("s");
        assert_eq!(attr.size, 12_345, "{form:?}");
        assert!(attr.blocks < 12_345 / 512, "{form:?} lost its holes");
        assert_eq!(image.content(attr.ino), want, "{form:?}");
        assert_eq!(image.text("after"), "ok");
        assert_eq!(image.fs.seek(attr.ino, 0, false).unwrap(), 1000);
        assert_eq!(image.fs.seek(attr.ino, 0, true).unwrap(), 0);
        assert_eq!(image.fs.seek(attr.ino, 1000, true).unwrap(), 1700);
    }
    let hole = image(&[Tar::new().add(Entry::sparse("s", 1 << 40, &[], Sparse::Pax10)).finish()]).unwrap();
    assert_eq!((hole.attr("s").size, hole.attr("s").blocks), (1 << 40, 0));
    assert!(hole.fs.read(hole.attr("s").ino, (1 << 40) - 5, 100).unwrap().iter().eq([0u8; 5].iter()));
}

#[test]
fn tar_bombs_and_oversized_entries_are_refused() {
    let long = "x".repeat(256);
    assert_rejected(&[Tar::new().file(&long, "").finish()], &["256 bytes", "255"]);
    assert_rejected(&[Tar::new().file("a/".repeat(2047) + "aa", "").finish()], &["4096 bytes", "4095"]);
    assert_rejected(&[Tar::new().symlink("l", "t".repeat(4096)).finish()], &["`l`", "4096 bytes"]);
    assert_rejected(
        &[Tar::new().add(Entry::file("p", "").pax("comment", vec![b'x'; 2 << 20])).finish()],
        &["extension header", "1048576"],
    );
    assert_rejected(&[Tar::new().add(Entry::new("L", b'L').claim_size(1 << 40)).finish()], &["extension header"]);
    assert_rejected(
        &[Tar::new().add(Entry::file("x", "").xattr("user.".to_string() + &"n".repeat(251), b"v")).finish()],
        &["`x`", "attributes"],
    );
    assert_rejected(
        &[Tar::new().add(Entry::file("x", "").xattr("user.v", vec![0; 65537])).finish()],
        &["`x`", "attributes"],
    );
    let names = (0..400).fold(Entry::file("x", ""), |e, i| e.xattr(format!("user.{i:0>200}"), b"v"));
    assert_rejected(&[Tar::new().add(names).finish()], &["`x`", "attributes"]);
    assert_rejected(
        &[Tar::new().add(Entry::file("huge", "").pax("size", u64::MAX.to_string())).finish()],
        &["`huge`", "maximum file size"],
    );
    assert_rejected(
        &[Tar::new().add(Entry::sparse("s", u64::MAX, &[], Sparse::Pax10)).finish()],
        &["`s`", "maximum file size"],
    );

    let within = |tar: Vec<u8>, limits: Limits| image_within(&[tar], &limits).err().expect("was not refused");
    let three = Tar::new().file("a", "").file("b", "").file("c", "").finish();
    assert!(within(three.clone(), Limits { entries: 2, ..Limits::default() }).contains("more than 2 entries"));
    assert!(within(three, Limits { metadata: 2, ..Limits::default() }).contains("more than 2 bytes"));
    for form in [Sparse::OldGnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        let pieces: Vec<_> = (0..60).map(|i| (i * 2048, vec![b'x'; 512])).collect();
        let tar = Tar::new().add(Entry::sparse("s", 1 << 20, &pieces, form)).finish();
        let output = within(tar, Limits { extents: 50, ..Limits::default() });
        assert!(output.contains("`s`") && output.contains("50"), "{form:?}: {output}");
    }
}

#[test]
fn the_deepest_path_and_the_longest_name_work() {
    let deep = "d/".repeat(2047) + "f";
    assert_eq!(deep.len(), 4095);
    let name = "n".repeat(255);
    let tar = Tar::new().file(&deep, "deep").file(&name, "long").add(Entry::file(b"\xff\xfe", "bytes")).finish();
    let image = image(&[tar]).unwrap();
    assert_eq!(image.text(&deep), "deep");
    assert_eq!(image.text(&name), "long");
    assert_eq!(image.content(image.fs.lookup(ROOT, b"\xff\xfe").unwrap().ino), b"bytes");
    let gnu = Tar::new().add(Entry::file(&deep, "deep").gnu()).finish();
    assert_eq!(super::corpus::image(&[gnu]).unwrap().text(&deep), "deep");
}

#[test]
fn every_stat_field_comes_from_the_layer() {
    let tar = Tar::new()
        .add(Entry::file("suid", "x").mode(0o6755).owner(4_294_967_294, 4_294_967_295))
        .add(Entry::dir("sticky").mode(0o1777))
        .add(Entry::file("old", "").mtime(-1, 999_999_999))
        .add(Entry::file("older", "").mtime(-2_208_988_800, 0).gnu())
        .add(Entry::file("future", "").mtime(7_258_118_400, 123_456_789))
        .add(Entry::char_device("null", 1, 3).mode(0o666))
        .add(Entry::block_device("sda", 8, 1048575))
        .add(Entry::fifo("pipe"))
        .add(Entry::file("gnu", "y").owner(3_000_000, 3_000_001).gnu())
        .finish();
    let image = image(&[tar]).unwrap();
    let suid = image.attr("suid");
    assert_eq!((suid.mode, suid.uid, suid.gid), (0o6755, 4_294_967_294, 4_294_967_295));
    assert_eq!(image.attr("sticky").mode, 0o1777);
    let time = |path| (image.attr(path).mtime.sec, image.attr(path).mtime.nsec);
    assert_eq!(time("old"), (-1, 999_999_999));
    assert_eq!(time("older"), (-2_208_988_800, 0));
    assert_eq!(time("future"), (7_258_118_400, 123_456_789));
    assert_eq!((image.attr("null").kind, image.attr("null").rdev), (Kind::Char, 0x103));
    assert_eq!((image.attr("sda").kind, image.attr("sda").rdev), (Kind::Block, 0xfff0_08ff));
    assert_eq!(image.attr("pipe").kind, Kind::Fifo);
    assert_eq!((image.attr("gnu").uid, image.attr("gnu").gid), (3_000_000, 3_000_001));
    assert_rejected(&[Tar::new().add(Entry::file("u", "").owner(1 << 32, 0)).finish()], &["`u`", "owner"]);
    assert_rejected(&[Tar::new().add(Entry::char_device("c", 1 << 12, 0)).finish()], &["`c`", "4096:0"]);
    assert_rejected(&[Tar::new().add(Entry::new("odd", b'Z')).finish()], &["`odd`", "type", "Z"]);
}

#[test]
fn a_global_pax_header_is_ignored() {
    let tar = Tar::new()
        .global_pax(&[(b"comment", b"commit"), (b"path", b"other"), (b"size", b"99")])
        .file("a", "x")
        .finish();
    assert_tree(&[tar], &["a=x"]);
}

#[test]
fn a_missing_end_marker_is_accepted_and_truncation_is_refused() {
    assert_tree(&[Tar::new().file("a", "x").unfinished()], &["a=x"]);
    assert_tree(&[[Tar::new().file("a", "x").finish(), vec![7; 5000]].concat()], &["a=x"]);
    assert_tree(&[vec![]], &[]);
    assert_tree(&[vec![0; 512]], &[]);
    let intact = Tar::new().file("a", vec![b'x'; 1000]).file("b", "y").finish();
    for cut in [1, 511, 513, 1000, 1500, 1537, 2047, 2048] {
        assert_rejected(&[intact[..cut].to_vec()], &["truncated"]);
    }
    assert_rejected(&[Tar::new().add(Entry::file("a", "x").bad_checksum()).finish()], &["byte 0", "checksum"]);
    assert_rejected(&[[vec![0; 512], Tar::new().file("a", "x").finish()].concat()], &["block of zeros"]);
    assert_rejected(&[vec![b'x'; 4096]], &["byte 0"]);
    let dangling = Tar::new().add(Entry::file("a", "").pax("comment", "x")).unfinished();
    assert_rejected(&[dangling[..dangling.len() - 512].to_vec()], &["truncated", "extension header"]);
}

#[test]
fn a_corrupted_index_never_panics() {
    let tar = Tar::new()
        .dir("d")
        .file("d/x", "1")
        .symlink("l", "d")
        .add(Entry::file("a", "x").xattr("user.a", b"1"))
        .finish();
    let sealed = index_tar(&mut &tar[..], &Limits::default()).unwrap().seal(&Digest::of(&tar));
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 0x81;
        assert!(Index::open(Bytes::Owned(damaged.clone())).is_err(), "damage at byte {at} was not found");
        let Ok(index) = Index::open_unverified(Bytes::Owned(damaged)) else { continue };
        assert!(index.check().is_err(), "damage at byte {at} was not found");
        for node in index.nodes() {
            for entry in index.children(node).into_iter().flatten() {
                let _ = (index.name(entry), index.node(entry.node.get()).is_ok());
            }
            let _ = (index.find(node, b"x").is_ok(), index.target(node), index.extents(node).is_ok());
            let _ = index.xattrs(node).map(|set| set.count());
        }
        let _ = tree::merge(&Digest::of(b"chain"), &[index]);
    }
    for length in 0..sealed.len() {
        assert!(Index::open(Bytes::Owned(sealed[..length].to_vec())).is_err());
    }
}
