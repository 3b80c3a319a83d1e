//! A small reader of EROFS images, written from the kernel's description of the format (fs/erofs/erofs_fs.h,
//! Documentation/filesystems/erofs.rst) and independent of plyfs's writer. Panics on anything that the kernel would
//! refuse.

use std::collections::BTreeMap;
use std::io;

use plyfs::digest::Digest;
use plyfs::erofs::{self, Layer, Tar, WriteError};
use plyfs::fs::{Attr, Fs, Ino, ROOT};
use plyfs::layer::Index;
use plyfs::meta::Kind;
use plyfs::sys::Bytes;

const BLOCK: usize = 512;

/// An image and its extra devices.
pub struct Reader<'a> {
    image: &'a [u8],
    devices: &'a [Vec<u8>],
}

/// A decoded inode.
#[derive(Debug)]
pub struct Inode {
    layout: u16,
    pub mode: u32,
    pub size: u64,
    pub detail: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub nlink: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Offset of what follows the inode and its attributes.
    behind: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl<'a> Reader<'a> {
    /// Checks the superblock and the device table.
    pub fn new(image: &'a [u8], devices: &'a [Vec<u8>]) -> Reader<'a> {
        let sb = &image[1024..1152];
        assert_eq!((u32_at(sb, 0), sb[12], sb[13], sb[90]), (0xE0F5_E1E2, 9, 0, 0));
        assert_eq!((u32_at(sb, 40), u32_at(sb, 80)), (0, 4 | 8), "metadata begins at block 0");
        assert_eq!(usize::from(u16_at(sb, 86)), devices.len());
        assert_eq!(u32_at(sb, 36) as usize * BLOCK, image.len());
        for (number, device) in devices.iter().enumerate() {
            let slot = &image[(usize::from(u16_at(sb, 88)) + number) * 128..][..128];
            assert_eq!(u32_at(slot, 64) as usize, device.len().div_ceil(BLOCK));
            assert!(slot[..64].iter().all(u8::is_ascii_hexdigit));
        }
        Reader { image, devices }
    }

    pub fn root(&self) -> u64 {
        u16_at(self.image, 1024 + 14).into()
    }

    /// The number of inodes that the superblock states.
    pub fn inodes(&self) -> u64 {
        u64_at(self.image, 1024 + 16)
    }

    pub fn inode(&self, nid: u64) -> Inode {
        let at = nid as usize * 32;
        let raw = &self.image[at..at + 64];
        let format = u16_at(raw, 0);
        assert_eq!(format & 1, 1, "the extended form");
        let xattr_bytes = match u16_at(raw, 2) {
            0 => 0,
            count => 12 + (usize::from(count) - 1) * 4,
        };
        Inode {
            layout: format >> 1,
            mode: u16_at(raw, 4).into(),
            size: u64_at(raw, 8),
            detail: u32_at(raw, 16),
            uid: u32_at(raw, 24),
            gid: u32_at(raw, 28),
            mtime: (u64_at(raw, 32) as i64, u32_at(raw, 40)),
            nlink: u32_at(raw, 44),
            xattrs: self.xattrs(&self.image[at + 64..at + 64 + xattr_bytes]),
            behind: at + 64 + xattr_bytes,
        }
    }

    fn xattrs(&self, body: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        if body.is_empty() {
            return found;
        }
        let shared = usize::from(body[4]);
        let area = u32_at(self.image, 1024 + 44) as usize * BLOCK;
        for number in 0..shared {
            let at = area + u32_at(body, 12 + number * 4) as usize * 4;
            take_xattr(&self.image[at..], &mut found);
        }
        let mut rest = &body[12 + shared * 4..];
        while !rest.is_empty() {
            let used = take_xattr(rest, &mut found);
            rest = &rest[used..];
        }
        found
    }

    /// A directory's entries, with `.` and `..`.
    pub fn entries(&self, dir: &Inode) -> Vec<(Vec<u8>, u64, u8)> {
        let data = self.data(dir);
        let mut all: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in data.chunks(BLOCK) {
            let count = usize::from(u16_at(block, 8)) / 12;
            assert!(count > 0, "an empty block");
            for number in 0..count {
                let entry = &block[number * 12..][..12];
                let start = usize::from(u16_at(entry, 8));
                let end = if number + 1 < count { u16_at(block, number * 12 + 20).into() } else { block.len() };
                let name = block[start..end].split(|byte| *byte == 0).next().unwrap();
                assert!(!name.is_empty() && name.len() <= 255);
                assert!(all.last().is_none_or(|last| last.0.as_slice() < name), "sorted");
                all.push((name.to_vec(), u64_at(entry, 0), entry[10]));
            }
        }
        all
    }

    /// An inode's data: a file's content, a directory's blocks, a link's target.
    pub fn data(&self, inode: &Inode) -> Vec<u8> {
        let size = inode.size as usize;
        match inode.layout {
            0 => self.image[inode.detail as usize * BLOCK..][..size].to_vec(),
            2 => {
                let whole = size.saturating_sub(1) / BLOCK * BLOCK;
                let (first, tail) = (inode.detail as usize * BLOCK, size - whole);
                assert!(inode.behind % BLOCK + tail <= BLOCK, "inline data crosses the end of a block");
                let blocks = if whole > 0 { &self.image[first..first + whole] } else { &[] };
                [blocks, &self.image[inode.behind..][..tail]].concat()
            }
            4 => self.chunks(inode),
            other => panic!("data layout {other}"),
        }
    }

    fn chunks(&self, inode: &Inode) -> Vec<u8> {
        assert_eq!(inode.detail & !0x1f, 0x20, "an array of chunk indexes");
        let (size, chunk) = (inode.size as usize, BLOCK << (inode.detail & 0x1f));
        let array = inode.behind.next_multiple_of(8);
        let mut data = Vec::new();
        for number in 0..size.div_ceil(chunk) {
            let index = &self.image[array + number * 8..][..8];
            let wanted = chunk.min(size - number * chunk);
            let (device, block) = (usize::from(u16_at(index, 2)), u32_at(index, 4));
            if block == u32::MAX {
                data.resize(data.len() + wanted, 0);
                continue;
            }
            let from = if device == 0 { self.image } else { &self.devices[device - 1] };
            // The kernel reads whole blocks: the last one must be there, too.
            let whole = &from[block as usize * BLOCK..][..wanted.next_multiple_of(BLOCK)];
            data.extend_from_slice(&whole[..wanted]);
        }
        data
    }
}

/// Decodes one attribute, and returns its length.
fn take_xattr(entry: &[u8], into: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> usize {
    let (name_len, index, value_len) = (usize::from(entry[0]), entry[1], usize::from(u16_at(entry, 2)));
    let prefix = ["", "user.", "system.posix_acl_access", "system.posix_acl_default", "trusted.", "", "security."];
    let name = [prefix[usize::from(index)].as_bytes(), &entry[4..4 + name_len]].concat();
    let value = entry[4 + name_len..][..value_len].to_vec();
    assert!(into.insert(name, value).is_none(), "an attribute twice");
    (4 + name_len + value_len).next_multiple_of(4)
}

/// A tar in memory.
struct InMemory<'a>(&'a [u8]);

impl Tar for InMemory<'_> {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Writes the EROFS image of a merged index; the same input must give the same bytes.
pub fn write(tree: &Index, tars: &[Vec<u8>]) -> Result<Vec<u8>, WriteError> {
    let digests: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let in_memory: Vec<InMemory<'_>> = tars.iter().map(|tar| InMemory(tar)).collect();
    let layers: Vec<Layer<'_>> = digests.iter().zip(&in_memory).map(|(diff_id, tar)| Layer { diff_id, tar }).collect();
    let image = erofs::write(tree, &layers)?;
    assert!(image == erofs::write(tree, &layers)?);
    let opened = erofs::open(&Bytes::Owned(image.clone())).unwrap();
    assert_eq!(&opened.source, tree.source());
    Ok(image)
}

/// Asserts that an EROFS image has the tree that the FUSE engine serves.
pub fn assert_same_tree(reader: &Reader<'_>, fs: &Fs) {
    let mut inodes = BTreeMap::new();
    assert_same_inode(reader, fs, reader.root(), ROOT, "/", &mut inodes);
    assert_same_dir(reader, fs, (reader.root(), reader.root()), ROOT, "", &mut inodes);
    assert_eq!(reader.inodes(), inodes.len() as u64);
}

fn assert_same_inode(reader: &Reader<'_>, fs: &Fs, nid: u64, ino: Ino, path: &str, inodes: &mut BTreeMap<u64, Ino>) {
    assert!(nid > 0, "{path}: no program shows an entry whose inode number is 0");
    let (inode, attr) = (reader.inode(nid), fs.getattr(ino).unwrap());
    assert_eq!(*inodes.entry(nid).or_insert(ino), ino, "{path}: hard links");
    let of = |attr: &Attr| (u32::from(attr.mode) | attr.kind.bits(), attr.uid, attr.gid, attr.nlink);
    assert_eq!((inode.mode, inode.uid, inode.gid, inode.nlink), of(&attr), "{path}");
    assert_eq!(inode.mtime, (attr.mtime.sec, attr.mtime.nsec), "{path}");
    let shown =
        |name: &[u8]| [&b"user."[..], b"trusted.", b"security.", b"system."].iter().any(|p| name.starts_with(p));
    let xattrs = fs.listxattr(ino, true).unwrap();
    let names = xattrs.split(|byte| *byte == 0).filter(|name| !name.is_empty() && shown(name));
    let expected: BTreeMap<_, _> =
        names.map(|name| (name.to_vec(), fs.getxattr(ino, name).unwrap().into_owned())).collect();
    assert_eq!(inode.xattrs, expected, "{path}");
    match attr.kind {
        Kind::File => {
            assert_eq!(inode.size, attr.size, "{path}");
            if attr.size < 64 << 20 {
                let mut content = Vec::new();
                while (content.len() as u64) < attr.size {
                    content.extend_from_slice(&fs.read(ino, content.len() as u64, 1 << 20).unwrap());
                }
                assert!(reader.data(&inode) == content, "{path}: other content");
            }
        }
        Kind::Symlink => assert_eq!(reader.data(&inode), &*fs.readlink(ino).unwrap(), "{path}"),
        Kind::Char | Kind::Block => assert_eq!(inode.detail, attr.rdev, "{path}"),
        Kind::Dir | Kind::Fifo | Kind::Socket => {}
    }
}

fn assert_same_dir(
    reader: &Reader<'_>,
    fs: &Fs,
    (nid, parent): (u64, u64),
    ino: Ino,
    path: &str,
    inodes: &mut BTreeMap<u64, Ino>,
) {
    let (mut expected, mut listed) = (Vec::new(), reader.entries(&reader.inode(nid)));
    listed.retain(|(name, to, kind)| match &name[..] {
        b"." | b".." => {
            assert_eq!((*to, *kind), (if name == b"." { nid } else { parent }, 2), "{path}");
            false
        }
        _ => true,
    });
    fs.readdir(ino, 2, |entry| {
        expected.push((entry.name.to_vec(), entry.ino, entry.kind));
        false
    })
    .unwrap();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    let names = |all: &[(Vec<u8>, u64, u8)]| all.iter().map(|entry| entry.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&listed), expected.iter().map(|entry| entry.0.clone()).collect::<Vec<_>>(), "{path}/");
    for ((name, to, kind), (_, child, expected)) in listed.iter().zip(&expected) {
        let path = format!("{path}/{}", name.escape_ascii());
        let kinds = [Kind::File, Kind::Dir, Kind::Char, Kind::Block, Kind::Fifo, Kind::Socket, Kind::Symlink];
        assert_eq!(kinds[usize::from(*kind) - 1], *expected, "{path}");
        assert_same_inode(reader, fs, *to, *child, &path, inodes);
        if *expected == Kind::Dir {
            assert_same_dir(reader, fs, (*to, nid), *child, &path, inodes);
        }
    }
}
