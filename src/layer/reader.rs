//! Reads the entries of a tar as it streams by. Headers are the tar crate's; the loop is our own, because that crate's
//! reads extension headers of any size into memory, splits PAX records at newlines and knows no PAX sparse files.

use super::index::Extent;
use super::sparse::{self, Described, Map};
use super::{EntryError, LayerError, Limits, pax};
use crate::meta::{Kind, PERMISSION_BITS, Time, device};
use crate::name::{PATH_MAX, show};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use tar::{GnuExtSparseHeader, Header};

const BLOCK: u64 = 512;

/// One entry, with everything that any header said of it.
pub struct Entry {
    /// As the archive has it.
    pub path: Vec<u8>,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it is.
    pub body: Body,
}

/// What an entry is.
pub enum Body {
    /// A directory.
    Dir,
    /// A file whose bytes lie together in the tar.
    File {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        size: u64,
    },
    /// A file with holes.
    Sparse {
        /// Its size.
        size: u64,
        /// Where it has data.
        extents: Vec<Extent>,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A hard link and the path it names.
    Link(Vec<u8>),
    /// A device of that kind and number.
    Device(Kind, u32),
    /// A named pipe.
    Fifo,
}

/// The entries of one tar.
pub struct Reader<'r, R> {
    stream: &'r mut R,
    limits: &'r Limits,
    /// Bytes of the tar read so far.
    at: u64,
    /// Data and padding of the last entry, still to be passed over.
    data: u64,
    padding: u64,
    /// The last entry's path, for the message when its data is cut short.
    current: Vec<u8>,
}

/// What extension headers say of the entry that follows them.
#[derive(Default)]
struct Extension {
    seen: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<u8>,
}

/// The data of the entry that was read last, as it lies in the tar.
impl<R: BufRead> Read for Reader<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = self.data.min(into.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let n = self.stream.read(&mut into[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        self.data -= n as u64;
        Ok(n)
    }
}

impl<'r, R: BufRead> Reader<'r, R> {
    /// From the beginning of a tar.
    pub fn new(stream: &'r mut R, limits: &'r Limits) -> Reader<'r, R> {
        Reader { stream, limits, at: 0, data: 0, padding: 0, current: Vec::new() }
    }

    /// The next entry; `None` at the end, when the whole stream has been read, also what lies behind the tar's end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extension = Extension::default();
        loop {
            self.pass_over_data()?;
            let Some(header) = self.header()? else {
                if extension.seen {
                    return Err(LayerError::Truncated("an extension header that no entry follows".into()));
                }
                return Ok(None);
            };
            let path = header.path_bytes().into_owned();
            self.current = path.clone();
            let wrong = |why| LayerError::Entry { path: path.clone(), why };
            match header.as_old().linkflag[0] {
                // What a global header says is ignored, as it is by Go's archive/tar, with which the layers were made
                // and are read elsewhere: two readers must not see two images in one blob.
                b'g' => drop(self.extension(&header)?),
                b'x' | b'X' => extension.pax = self.extension(&header)?,
                b'L' => extension.path = Some(until_nul(self.extension(&header)?)),
                b'K' => extension.link = Some(until_nul(self.extension(&header)?)),
                _ => {
                    let records = pax::records(&extension.pax).map_err(wrong)?;
                    return self.entry(&header, &extension, &records).map(Some);
                }
            }
            extension.seen |= header.as_old().linkflag[0] != b'g';
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        extension: &Extension,
        records: &[pax::Record<'_>],
    ) -> Result<Entry, LayerError> {
        let find = |key: &[u8]| records.iter().rev().find(|r| r.0 == key && !r.1.is_empty()).map(|r| r.1.to_vec());
        let ustar = || header.path_bytes().into_owned();
        let path =
            find(b"GNU.sparse.name").or_else(|| find(b"path")).or_else(|| extension.path.clone()).unwrap_or_else(ustar);
        self.current = path.clone();
        let wrong = |why| LayerError::Entry { path: path.clone(), why };
        let link = find(b"linkpath").or_else(|| extension.link.clone());
        let link = link.or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        let mut entry = plain_metadata(header, records).map_err(wrong)?;
        entry.body = match header.as_old().linkflag[0] {
            b'\0' if path.ends_with(b"/") => Body::Dir,
            b'5' => Body::Dir,
            b'\0' | b'0' | b'7' | b'S' => self.file(header, records, &path)?,
            b'1' | b'2' if link.is_empty() => return Err(wrong(EntryError::NoTarget)),
            b'1' | b'2' if link.contains(&0) => return Err(wrong(EntryError::TargetNul)),
            b'1' | b'2' if link.len() > PATH_MAX => return Err(wrong(EntryError::TargetTooLong(link.len()))),
            b'1' => Body::Link(link),
            b'2' => Body::Symlink(link),
            b'3' => Body::Device(Kind::Char, device_number(header).map_err(wrong)?),
            b'4' => Body::Device(Kind::Block, device_number(header).map_err(wrong)?),
            b'6' => Body::Fifo,
            other => return Err(wrong(EntryError::Type(other))),
        };
        entry.path = path;
        Ok(entry)
    }

    /// A regular file; leaves its data to be passed over. Entries of other types have none, whatever their size field
    /// says.
    fn file(&mut self, header: &Header, records: &[pax::Record<'_>], path: &[u8]) -> Result<Body, LayerError> {
        let wrong = |why| LayerError::Entry { path: path.to_vec(), why };
        let stored = match records.iter().rev().find(|r| r.0 == b"size" && !r.1.is_empty()) {
            Some(record) => pax::number(record.1).ok_or(EntryError::Number("size")),
            None => field(&header.as_old().size, || header.entry_size(), "size"),
        };
        let mut stored = stored.map_err(wrong)?;
        if stored > i64::MAX as u64 - 2 * BLOCK {
            return Err(wrong(EntryError::TooLarge(stored)));
        }
        self.padding = stored.next_multiple_of(BLOCK) - stored;
        let map = if header.as_old().linkflag[0] == b'S' {
            Some(self.old_sparse_map(header, path)?)
        } else {
            match sparse::described(records, self.limits).map_err(wrong)? {
                None => None,
                Some(Described::InRecords(map)) => Some(map),
                Some(Described::InData(size)) => Some(sparse::listed(size, self.limits, wrong, || {
                    stored =
                        stored.checked_sub(BLOCK).ok_or_else(|| wrong(EntryError::Sparse("its list has no end")))?;
                    self.block()?.ok_or_else(|| self.truncated())
                })?),
            }
        };
        self.data = stored;
        let Some(map) = map else {
            return Ok(Body::File { offset: self.at, size: stored });
        };
        if map.size > i64::MAX as u64 {
            return Err(wrong(EntryError::TooLarge(map.size)));
        }
        let extents = sparse::extents(&map, self.at, stored).map_err(wrong)?;
        Ok(Body::Sparse { size: map.size, extents })
    }

    /// GNU's old sparse form: four pieces in the header, more in blocks that follow it.
    fn old_sparse_map(&mut self, header: &Header, path: &[u8]) -> Result<Map, LayerError> {
        let wrong = |why| LayerError::Entry { path: path.to_vec(), why };
        let number = |n: io::Result<u64>| n.map_err(|_| wrong(EntryError::Sparse("a number in it is none")));
        let gnu = header.as_gnu().ok_or_else(|| wrong(EntryError::Sparse("its header is not GNU's")))?;
        let mut map = Map { size: number(gnu.real_size())?, pieces: Vec::new() };
        let mut add = |listed: &[tar::GnuSparseHeader]| {
            for piece in listed.iter().filter(|piece| !piece.is_empty()) {
                map.pieces.push((number(piece.offset())?, number(piece.length())?));
            }
            if map.pieces.len() > self.limits.extents {
                Err(wrong(EntryError::Extents(self.limits.extents)))
            } else {
                Ok(())
            }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            let bytes = self.block()?.ok_or_else(|| self.truncated())?;
            block.as_mut_bytes().copy_from_slice(&bytes);
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok(map)
    }

    /// The next header, its checksum checked. Two blocks of zeros, or the end of the stream where a header could
    /// begin, are the end of the tar.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let offset = self.at;
        let damaged = |why: &str| LayerError::NotTar { offset, why: why.into() };
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|b| *b == 0) {
            if self.block()?.is_some_and(|next| next.iter().any(|b| *b != 0)) {
                return Err(damaged("a block of zeros stands alone"));
            }
            self.drain()?;
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let stated = header.cksum().map_err(|_| damaged("no tar header stands there"))?;
        let summed = |signed: bool| {
            block.iter().enumerate().fold(0i64, |sum, (i, byte)| {
                let byte = if (148..156).contains(&i) { b' ' } else { *byte };
                sum + if signed { i64::from(byte as i8) } else { i64::from(byte) }
            })
        };
        // Some old tars summed signed bytes; POSIX asks readers to take both.
        if i64::from(stated) != summed(false) && i64::from(stated) != summed(true) {
            return Err(damaged("a tar header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The payload of an extension header.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let wrong = |why| LayerError::Entry { path: header.path_bytes().into_owned(), why };
        let size = field(&header.as_old().size, || header.entry_size(), "size").map_err(wrong)?;
        if size > self.limits.extension {
            return Err(wrong(EntryError::Extension(size, self.limits.extension)));
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(bytes)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            let n = self.stream.read(bytes)?;
            if n == 0 {
                return Err(self.truncated());
            }
            self.at += n as u64;
            bytes = &mut bytes[n..];
        }
        Ok(())
    }

    /// The next block; `None` if the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; 512]>, LayerError> {
        let mut block = [0; 512];
        if self.stream.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.fill(&mut block)?;
        Ok(Some(block))
    }

    fn pass_over_data(&mut self) -> Result<(), LayerError> {
        let short = self.skip(self.data)?;
        if short > 0 {
            return Err(self.truncated());
        }
        // A writer that leaves out the last entry's padding loses nothing.
        self.skip(self.padding)?;
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Passes over bytes, and tells how many of them the stream did not have.
    fn skip(&mut self, mut bytes: u64) -> Result<u64, LayerError> {
        while bytes > 0 {
            let n = (self.stream.fill_buf()?.len() as u64).min(bytes);
            if n == 0 {
                break;
            }
            self.stream.consume(n as usize);
            self.at += n;
            bytes -= n;
        }
        Ok(bytes)
    }

    fn drain(&mut self) -> Result<(), LayerError> {
        self.skip(u64::MAX).map(drop)
    }

    fn truncated(&self) -> LayerError {
        LayerError::Truncated(match &self.current[..] {
            [] => "its first header".into(),
            path => format!("or behind entry `{}`", show(path)),
        })
    }
}

fn plain_metadata(header: &Header, records: &[pax::Record<'_>]) -> Result<Entry, EntryError> {
    let find = |key: &[u8]| records.iter().rev().find(|r| r.0 == key && !r.1.is_empty()).map(|r| r.1);
    let old = header.as_old();
    let owner = |key: &'static str, raw: &[u8], value: &dyn Fn() -> io::Result<u64>| {
        let id = match find(key.as_bytes()) {
            Some(text) => pax::number(text).ok_or(EntryError::Number(key))?,
            None => field(raw, value, key)?,
        };
        u32::try_from(id).map_err(|_| EntryError::Owner(id))
    };
    let mtime = match find(b"mtime") {
        Some(text) => pax::time(text).ok_or(EntryError::Number("mtime"))?,
        // Base-256 is two's complement: the cast gives times before 1970 their sign.
        None => Time { sec: field(&old.mtime, || header.mtime(), "mtime")? as i64, nsec: 0 },
    };
    Ok(Entry {
        path: Vec::new(),
        mode: field(&old.mode, || header.mode().map(u64::from), "mode")? as u32 & PERMISSION_BITS,
        uid: owner("uid", &old.uid, &|| header.uid())?,
        gid: owner("gid", &old.gid, &|| header.gid())?,
        mtime,
        xattrs: xattrs(records)?,
        body: Body::Dir,
    })
}

/// The extended attributes, held to what Linux can hold (xattr(7)): so no listing is ever too long to be read.
fn xattrs(records: &[pax::Record<'_>]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, EntryError> {
    // An empty value unsets what the key meant so far (POSIX), for attributes too: Docker and umoci show none either.
    let mut set = records.iter().filter_map(|r| pax::xattr(*r)).collect::<Result<BTreeMap<_, _>, _>>()?;
    set.retain(|_, value| !value.is_empty());
    if set.keys().any(|name| name.is_empty() || name.len() > 255 || name.contains(&0)) {
        return Err(EntryError::Xattr("a name is empty, longer than 255 bytes or has a NUL"));
    }
    if set.values().any(|value| value.len() > 65536) {
        return Err(EntryError::Xattr("a value is longer than 65536 bytes"));
    }
    if set.keys().map(|name| name.len() + 1).sum::<usize>() > 65536 {
        return Err(EntryError::Xattr("their names together are longer than 65536 bytes"));
    }
    Ok(set)
}

fn device_number(header: &Header) -> Result<u32, EntryError> {
    let part = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default).map_err(|_| EntryError::Number("device"));
    let (major, minor) = (part(header.device_major())?, part(header.device_minor())?);
    device(major, minor).ok_or(EntryError::Device(major, minor))
}

/// A numeric field; blank means 0, as old tars leave what does not apply.
fn field(raw: &[u8], value: impl Fn() -> io::Result<u64>, name: &'static str) -> Result<u64, EntryError> {
    if raw.iter().all(|b| matches!(b, 0 | b' ')) {
        return Ok(0);
    }
    // The tar crate takes the last eight bytes of a base-256 number and drops what does not fit into them.
    let dropped = raw.len().saturating_sub(8);
    if raw[0] & 0x80 != 0 && ![&[0x80, 0, 0, 0][..], &[0xff; 4]].iter().any(|sign| sign[..dropped] == raw[..dropped]) {
        return Err(EntryError::Number(name));
    }
    value().map_err(|_| EntryError::Number(name))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}
