//! Copying files between a container and the host, as `docker cp` does.
//!
//! A source passes one object at a time to a `Sink`: a directory tree (`reader`) or a tar stream (`archive`) is
//! copied to a directory tree (`writer`) or a tar stream (`archive`).
//!
//! A malicious program may change both trees during the copy. So each path given by the user is resolved inside its
//! root ([`Rootfs`]); below it only single names are looked up in open directories, and symbolic links are never
//! followed. The type of an object is read from the same descriptor as its data.

mod archive;
mod endpoints;
mod error;
mod reader;
mod writer;

pub use endpoints::Place;
pub use error::{CopyError, Result};

use super::rootfs::Rootfs;
use crate::image;
use crate::layer::Meta;
use crate::meta::Kind;
use endpoints::{destination_text, find_destination, find_source, kind_of};
use error::failed;
use rustix::fs::{FileType, OFlags};
use std::ffi::OsStr;
use std::io::{BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use writer::TreeWriter;

const BUFFER: usize = 256 << 10;

/// The owner of the copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The source's user and group IDs.
    Kept,
    /// This user and group ID.
    Is(u32, u32),
}

/// One object of a copy. A sink gets a directory before its entries.
enum Object<'a> {
    Dir,
    File(Content<'a>),
    Symlink(&'a [u8]),
    /// A hard link to the object with this earlier path.
    Link(&'a [u8]),
    Device(Kind, u32),
    Fifo,
}

/// A file's data.
struct Content<'a> {
    size: u64,
    /// The data ranges: offset and length in bytes.
    pieces: Vec<(u64, u64)>,
    /// The data of all ranges, one after the other.
    data: &'a mut dyn Read,
}

/// The destination of a copy.
trait Sink {
    fn put(&mut self, path: &[u8], meta: &Meta, what: Object<'_>) -> Result<()>;

    /// Whether this directory (device and inode) was created by this copy: then it must not be copied into itself.
    fn is_target(&self, _directory: (u64, u64)) -> bool {
        false
    }
}

/// Copies `from` to `to`, which need not exist. A symbolic link at the end of `from` is copied as a link unless
/// `follow` is set. Returns the total size of the files in bytes.
pub fn copy(from: &Place<'_>, to: &Place<'_>, follow: bool, owner: Owner) -> Result<u64> {
    let source = find_source(from, follow)?;
    let (directory, name) = find_destination(to, &source)?;
    let mut writer = TreeWriter::new(directory, to.path, owner);
    reader::walk(source.object, &name, &mut writer)?;
    writer.end()
}

/// Copies a directory's content into another directory, with owners and with the directory's own attributes: fills a
/// new volume.
pub fn tree(from: &Rootfs, from_path: &Path, to: &Rootfs, to_path: &Path) -> Result<u64> {
    let (from_path, to_path) = (from_path.as_os_str().as_bytes(), to_path.as_os_str().as_bytes());
    let open = |root: &Rootfs, path| root.open_dir(OsStr::from_bytes(path)).map_err(failed("open", path));
    let mut writer = TreeWriter::new(open(to, to_path)?, to_path, Owner::Kept).with_root();
    reader::walk(open(from, from_path)?, b"", &mut writer)?;
    writer.end()
}

/// Writes `from` as a tar archive.
pub fn pack<W: Write>(from: &Place<'_>, follow: bool, out: W) -> Result<W> {
    let source = find_source(from, follow)?;
    let mut writer = archive::TarWriter::new(out);
    reader::walk(source.object, &source.name.unwrap_or_else(|| b".".to_vec()), &mut writer)?;
    writer.end()
}

/// Unpacks a tar archive, plain or compressed with gzip or zstd, into a directory. Symbolic links to directories in the
/// destination are followed inside its root. Returns the total size of the files in bytes.
pub fn unpack(tar: impl Read, to: &Place<'_>, owner: Owner) -> Result<u64> {
    let directory = to.root.locate(OsStr::from_bytes(to.path)).ok();
    let directory = directory.filter(|found| kind_of(found).is_ok_and(|kind| kind == FileType::Directory));
    let directory = directory.ok_or_else(|| CopyError::MustBeDirectory(destination_text(to)))?;
    let mut writer = TreeWriter::new(directory, to.path, owner).follow_links(to.root);
    archive::unpack(&mut BufReader::with_capacity(BUFFER, image::plain(tar)?), &mut writer)?;
    writer.end()
}

/// Opens an object of any type without accessing its data.
const LOOK: OFlags = OFlags::PATH;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    /// A container root and a host directory under one temporary directory.
    struct Bed {
        dir: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Bed {
            let dir = tempfile::tempdir().unwrap();
            for name in ["root", "host"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            Bed { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn make(&self, name: &str) -> PathBuf {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            path
        }

        fn inside(&self, root: &str) -> Rootfs {
            Rootfs::open(&self.path(root)).unwrap()
        }

        /// Copies out of the container, to a path in `host`.
        fn get(&self, from: &str, to: &str, follow: bool) -> std::result::Result<u64, String> {
            let (root, host) = (self.inside("root"), self.inside("host"));
            let from = Place { root: &root, path: from.as_bytes(), container: Some("c") };
            let to = Place { root: &host, path: to.as_bytes(), container: None };
            copy(&from, &to, follow, Owner::Kept).map_err(|e| e.to_string())
        }

        /// Copies into the container, from a path in `host`.
        fn put(&self, from: &str, to: &str) -> std::result::Result<u64, String> {
            let (root, host) = (self.inside("root"), self.inside("host"));
            let from = Place { root: &host, path: from.as_bytes(), container: None };
            let to = Place { root: &root, path: to.as_bytes(), container: Some("c") };
            copy(&from, &to, false, Owner::Is(7, 8)).map_err(|e| e.to_string())
        }

        fn unpack(&self, tar: &[u8], to: &str) -> std::result::Result<u64, String> {
            let root = self.inside("root");
            let to = Place { root: &root, path: to.as_bytes(), container: Some("c") };
            unpack(tar, &to, Owner::Kept).map_err(|e| e.to_string())
        }

        fn pack(&self, from: &str) -> Vec<u8> {
            let root = self.inside("root");
            pack(&Place { root: &root, path: from.as_bytes(), container: Some("c") }, false, Vec::new()).unwrap()
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_else(|e| e.to_string())
        }
    }

    fn tar(entries: &[(&str, u8, &str)]) -> Vec<u8> {
        let mut out = crate::layer::Packer::new(Vec::new());
        let meta = Meta { mode: 0o644, ..Meta::default() };
        for (path, kind, text) in entries {
            let what = match kind {
                b'5' => crate::layer::Packed::Dir,
                b'2' => crate::layer::Packed::Symlink(text.as_bytes()),
                b'1' => crate::layer::Packed::Link(text.as_bytes()),
                _ => crate::layer::Packed::File(text.len() as u64),
            };
            out.entry(path.as_bytes(), &meta, what).unwrap();
            if *kind == b'0' {
                out.data(text.as_bytes()).unwrap();
            }
        }
        out.finish().unwrap()
    }

    #[test]
    fn a_file_by_every_row_of_the_table() {
        let bed = Bed::new();
        bed.make("root/dir/f");
        bed.make("host/there");
        fs::create_dir(bed.path("host/d")).unwrap();
        assert_eq!(bed.get("/dir/f", "/new", false), Ok(10));
        assert_eq!(bed.read("host/new"), "root/dir/f");
        assert_eq!(bed.get("/dir/f", "/newdir/", false), Err("no such directory".into()));
        assert_eq!(bed.get("/dir/f", "/there", false), Ok(10));
        assert_eq!(bed.read("host/there"), "root/dir/f");
        assert_eq!(bed.get("/dir/f", "/d", false), Ok(10));
        assert_eq!(bed.get("dir/../dir/f", "/d/./", false), Ok(10));
        assert_eq!(bed.read("host/d/f"), "root/dir/f");
        assert_eq!(bed.get("/dir/f", "/there/", false), Err("not a directory".into()));
        assert_eq!(bed.get("/dir/f/.", "/x", false), Err("not a directory".into()));
        assert_eq!(bed.get("/no", "/x", false), Err("Could not find the file /no in container c".into()));
        let no_parent = "invalid output path: directory \"/no\" does not exist";
        assert_eq!(bed.get("/dir/f", "/no/x", false), Err(no_parent.into()));
        assert_eq!(bed.put("/no", "/x"), Err("lstat /no: No such file or directory".into()));
        assert_eq!(bed.put("/there", "/no/x"), Err("Could not find the file /no in container c".into()));
        // A directory does not give way to a file.
        fs::create_dir(bed.path("host/d/there")).unwrap();
        bed.make("root/there");
        assert_eq!(
            bed.get("/there", "/d", false),
            Err("cannot overwrite directory \"/d/there\" with non-directory".into())
        );
    }

    #[test]
    fn a_directory_by_every_row_of_the_table() {
        let bed = Bed::new();
        bed.make("root/src/sub/f");
        bed.make("host/file");
        assert_eq!(bed.get("/src", "/new", false), Ok(14));
        assert_eq!(bed.read("host/new/sub/f"), "root/src/sub/f");
        assert_eq!(bed.get("/src/.", "/new2/", false), Ok(14));
        assert_eq!(bed.read("host/new2/sub/f"), "root/src/sub/f");
        assert_eq!(bed.get("/src", "/file", false), Err("cannot copy directory".into()));
        assert_eq!(bed.get("/src", "/new", false), Ok(14));
        assert_eq!(bed.read("host/new/src/sub/f"), "root/src/sub/f");
        fs::create_dir(bed.path("host/into")).unwrap();
        assert_eq!(bed.get("/src/.", "/into", false), Ok(14));
        assert_eq!(bed.read("host/into/sub/f"), "root/src/sub/f");
        assert_eq!(bed.get("/", "/whole", false), Ok(14));
        assert_eq!(bed.read("host/whole/src/sub/f"), "root/src/sub/f");
        fs::create_dir(bed.path("host/clash")).unwrap();
        bed.make("host/clash/sub");
        let clash = "cannot overwrite non-directory \"/clash/sub\" with directory";
        assert_eq!(bed.get("/src/.", "/clash", false), Err(clash.into()));
    }

    #[test]
    fn links_are_copied_as_links_unless_they_are_to_be_followed() {
        let bed = Bed::new();
        bed.make("root/dir/f");
        symlink("dir", bed.path("root/to-dir")).unwrap();
        symlink("/dir/f", bed.path("root/to-file")).unwrap();
        bed.get("/to-file", "/link", false).unwrap();
        assert_eq!(fs::read_link(bed.path("host/link")).unwrap(), Path::new("/dir/f"));
        bed.get("/to-file", "/followed", true).unwrap();
        assert_eq!(bed.read("host/followed"), "root/dir/f");
        bed.get("/to-dir", "/", true).unwrap();
        assert_eq!(bed.read("host/to-dir/f"), "root/dir/f");
        bed.get("/to-dir/.", "/content", false).unwrap();
        assert_eq!(bed.read("host/content/f"), "root/dir/f");
        // A destination that is a link leads where it says, inside; also to nothing yet.
        bed.make("host/new");
        symlink("/dir/made", bed.path("root/dangling")).unwrap();
        bed.put("/new", "/dangling").unwrap();
        assert_eq!(bed.read("root/dir/made"), "host/new");
        bed.put("/new", "/to-dir").unwrap();
        bed.put("/new", "/to-file").unwrap();
        assert_eq!((bed.read("root/dir/new"), bed.read("root/dir/f")), ("host/new".into(), "host/new".into()));
        assert!(bed.path("root/to-file").is_symlink());
    }

    #[test]
    fn attributes_are_copied() {
        let bed = Bed::new();
        let file = bed.make("root/t/file");
        fs::hard_link(&file, bed.path("root/t/other")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, bed.path("root/t/fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(bed.path("root/t/socket")).unwrap();
        fs::hard_link(bed.path("root/t/socket"), bed.path("root/t/zocket")).unwrap();
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(rustix::fs::CWD, bed.path("root/t/null"), FileType::CharacterDevice, 0o666.into(), null)
            .unwrap();
        symlink("nowhere", bed.path("root/t/link")).unwrap();
        let sparse = fs::File::create(bed.path("root/t/sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"data", 32 << 20).unwrap();
        std::os::unix::fs::chown(&file, Some(11), Some(12)).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o4751)).unwrap();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(&file, "security.capability", &capability, rustix::fs::XattrFlags::empty()).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
        fs::File::open(&file).unwrap().set_modified(old).unwrap();
        fs::File::open(bed.path("root/t")).unwrap().set_modified(old).unwrap();
        fs::set_permissions(bed.path("root/t"), PermissionsExt::from_mode(0o555)).unwrap();
        bed.get("/t", "/t", false).unwrap();
        let meta = |name: &str| fs::symlink_metadata(bed.path(name)).unwrap();
        let check = |name: &str, owner| {
            let found = meta(name);
            let seen = (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime(), found.mtime_nsec());
            assert_eq!(seen, (0o4751, owner, owner + 1, 1_000_000, 5), "{name}");
        };
        check("host/t/file", 11);
        assert_eq!(meta("host/t/file").ino(), meta("host/t/other").ino());
        let mut value = [0; 40];
        let n = rustix::fs::getxattr(bed.path("host/t/file"), "security.capability", &mut value).unwrap();
        assert_eq!(value[..n], capability);
        assert_eq!((meta("host/t").mtime(), meta("host/t").mode() & 0o7777), (1_000_000, 0o555));
        assert_eq!(meta("host/t/null").rdev(), null);
        assert_eq!(FileType::from_raw_mode(meta("host/t/fifo").mode()), FileType::Fifo);
        assert!(!bed.path("host/t/socket").exists());
        assert_eq!(fs::read_link(bed.path("host/t/link")).unwrap(), Path::new("nowhere"));
        assert!(meta("host/t/sparse").blocks() < 1 << 10 && meta("host/t/sparse").len() == 64 << 20);
        assert!(fs::read(bed.path("host/t/sparse")).unwrap()[32 << 20..].starts_with(b"data"));
        // Into a container things become its root's, or whose it is said.
        bed.put("/t", "/back").unwrap();
        check("root/back/file", 7);
        // By way of a tar the same.
        let packed = bed.pack("/t");
        fs::create_dir(bed.path("root/unpacked")).unwrap();
        bed.unpack(&packed, "/unpacked").unwrap();
        check("root/unpacked/t/file", 11);
        assert_eq!(meta("root/unpacked/t/file").ino(), meta("root/unpacked/t/other").ino());
        assert_eq!(meta("root/unpacked/t").mtime(), 1_000_000);
        assert_eq!(fs::read(bed.path("root/unpacked/t/sparse")).unwrap(), fs::read(bed.path("root/t/sparse")).unwrap());
    }

    #[test]
    fn a_fresh_volume_gets_all_of_a_directory() {
        let bed = Bed::new();
        bed.make("root/data/f");
        fs::set_permissions(bed.path("root/data"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::os::unix::fs::chown(bed.path("root/data"), Some(5), Some(6)).unwrap();
        fs::create_dir(bed.path("host/volume")).unwrap();
        tree(&bed.inside("root"), Path::new("/data"), &bed.inside("host"), Path::new("/volume")).unwrap();
        let meta = fs::metadata(bed.path("host/volume")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o1777, 5, 6));
        assert_eq!(bed.read("host/volume/f"), "root/data/f");
    }

    #[test]
    fn no_link_leads_out_of_either_root() {
        let bed = Bed::new();
        let secret = bed.make("secret");
        bed.make("host/f");
        for (name, target) in [("up", "../secret"), ("absolute", secret.to_str().unwrap()), ("out", "..")] {
            symlink(target, bed.path("root").join(name)).unwrap();
        }
        assert!(bed.get("/up", "/x", true).unwrap_err().starts_with("Could not find"));
        assert!(bed.get("/absolute", "/x", true).unwrap_err().starts_with("Could not find"));
        assert_eq!(
            bed.get("/out/secret", "/x", false).unwrap_err(),
            "Could not find the file /out/secret in container c"
        );
        bed.put("/f", "/up").unwrap();
        bed.put("/f", "/out/new").unwrap();
        assert_eq!(
            (bed.read("secret"), bed.read("root/secret"), bed.read("root/new")),
            ("secret".into(), "host/f".into(), "host/f".into())
        );
        // What is copied out cannot write through links that are there, or that came with it.
        bed.make("root/tree/sub/f");
        fs::create_dir_all(bed.path("host/t/tree")).unwrap();
        symlink("../../..", bed.path("host/t/tree/sub")).unwrap();
        let in_the_way = "cannot overwrite non-directory \"/t/tree/sub\" with directory";
        assert_eq!(bed.get("/tree", "/t", false).unwrap_err(), in_the_way);
        symlink("../../secret", bed.path("host/t/f")).unwrap();
        bed.get("/tree/sub/f", "/t/f", false).unwrap();
        assert_eq!(bed.read("secret"), "secret");
    }

    #[test]
    fn tars_that_lead_out_are_refused() {
        let bed = Bed::new();
        bed.make("secret");
        fs::create_dir_all(bed.path("root/d")).unwrap();
        fs::create_dir_all(bed.path("root/real")).unwrap();
        symlink("/real", bed.path("root/d/lib")).unwrap();
        symlink("../../..", bed.path("root/d/up")).unwrap();
        let refused = |entries: &[(&str, u8, &str)]| bed.unpack(&tar(entries), "/d").unwrap_err();
        assert_eq!(refused(&[("../x", b'0', "x")]), "entry `../x` of the tar is outside the directory");
        assert_eq!(refused(&[("a/../../x", b'0', "x")]), "entry `a/../../x` of the tar is outside the directory");
        assert_eq!(refused(&[("l", b'1', "../real")]), "entry `../real` of the tar is outside the directory");
        assert!(refused(&[("l", b'1', "nothing")]).starts_with("cannot open /d/nothing: "));
        assert_eq!(bed.unpack(&tar(&[]), "/secret").unwrap_err(), "destination \"c:/secret\" must be a directory");
        // Directories without entries are made; links to directories are followed, and end inside.
        let entries = [("/abs/new/f", b'0', "one"), ("lib/f", b'0', "two"), ("up/secret", b'0', "three")];
        assert_eq!(bed.unpack(&tar(&entries), "/d"), Ok(11));
        let read = |name: &str| bed.read(&format!("root/{name}"));
        assert_eq!((read("d/abs/new/f"), read("real/f"), read("secret")), ("one".into(), "two".into(), "three".into()));
        let planted = [("evil", b'2', "../../.."), ("evil/secret", b'0', "four"), ("evil", b'0', "a file")];
        assert_eq!(bed.unpack(&tar(&planted), "/d"), Ok(10));
        assert_eq!(
            (read("secret"), read("d/evil"), bed.read("secret")),
            ("four".into(), "a file".into(), "secret".into())
        );
        let cut = tar(&[("f", b'0', "some text")]);
        let packed = zstd::encode_all(&cut[..], 1).unwrap();
        assert_eq!((bed.unpack(&packed, "/d"), read("d/f")), (Ok(9), "some text".into()));
        assert!(bed.unpack(b"BZh91AY", "/d").is_err());
        assert!(bed.unpack(&cut[..515], "/d").is_err());
    }

    #[test]
    fn a_directory_is_not_copied_into_itself() {
        let bed = Bed::new();
        bed.make("root/a/f");
        let root = bed.inside("root");
        let place = |path: &'static str| Place { root: &root, path: path.as_bytes(), container: Some("c") };
        copy(&place("/a"), &place("/a"), false, Owner::Kept).unwrap();
        assert_eq!(bed.read("root/a/a/f"), "root/a/f");
        assert!(!bed.path("root/a/a/a").exists());
    }

    #[test]
    fn a_tree_that_changes_while_it_is_copied_never_leads_out() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let bed = Bed::new();
        bed.make("outside/f");
        bed.make("root/tree/dir/f");
        symlink(bed.path("outside"), bed.path("root/tree/link")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (dir, link) = (bed.path("root/tree/dir"), bed.path("root/tree/link"));
                while !stop.load(Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags).unwrap();
                }
            });
            for n in 0..300 {
                let to = format!("/{n}");
                // One that changes under the copy may fail it; what it copied is the container's.
                let _may_fail = bed.get("/tree", &to, false);
                for name in ["dir", "link"] {
                    let path = bed.path("host").join(&to[1..]).join(name);
                    if !path.is_symlink() && path.is_dir() {
                        assert_ne!(bed.read(path.join("f").to_str().unwrap()), "outside/f");
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
