//! Tar reader for streams. Header fields are parsed by the tar crate; the loop is not, because that crate reads
//! extension headers of any size into memory, splits PAX records at newlines and does not support PAX sparse files.

use super::index::Extent;
use super::sparse::{self, Described, Map};
use super::{EntryError, LayerError, Limits, pax};
use crate::meta::{Kind, PERMISSION_BITS, Time, device};
use crate::name::{PATH_MAX, show};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use tar::{GnuExtSparseHeader, Header};

const BLOCK: u64 = 512;

/// A tar entry, with the data of all its headers.
pub struct Entry {
    /// The path as the archive has it.
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
    /// The kind, and its data.
    pub body: Body,
}

/// The kind of an entry, and its data.
pub enum Body {
    /// A directory.
    Dir,
    /// A file whose data is contiguous in the tar.
    File {
        /// Offset of the data in the tar.
        offset: u64,
        /// Size in bytes.
        size: u64,
    },
    /// A sparse file.
    Sparse {
        /// Its size.
        size: u64,
        /// Its data extents.
        extents: Vec<Extent>,
    },
    /// A symbolic link, by its target.
    Symlink(Vec<u8>),
    /// A hard link, by the path of its target.
    Link(Vec<u8>),
    /// A device of that kind and number.
    Device(Kind, u32),
    /// A named pipe.
    Fifo,
}

/// Iterates over the entries of one tar.
pub struct Reader<'r, R> {
    stream: &'r mut R,
    limits: &'r Limits,
    /// Bytes of the tar read so far.
    at: u64,
    /// Data and padding of the last entry that are still to be skipped.
    data: u64,
    padding: u64,
    /// The path of the last entry, for the error message about a truncated tar.
    current: Vec<u8>,
}

/// The content of extension headers, for the entry that follows them.
#[derive(Default)]
struct Extension {
    seen: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<u8>,
}

/// Reads the data of the last entry, as it is stored in the tar.
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
    /// Creates a reader at the beginning of a tar.
    pub fn new(stream: &'r mut R, limits: &'r Limits) -> Reader<'r, R> {
        Reader { stream, limits, at: 0, data: 0, padding: 0, current: Vec::new() }
    }

    /// Returns the next entry; `None` at the end, after the whole stream has been read, including anything after the
    /// tar's end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extension = Extension::default();
        loop {
            self.pass_over_data()?;
            let Some(header) = self.header()? else {
                if extension.seen {
                    return Err(LayerError::Truncated("an extension header without an entry".into()));
                }
                return Ok(None);
            };
            let path = header.path_bytes().into_owned();
            self.current = path.clone();
            let wrong = |why| LayerError::Entry { path: path.clone(), why };
            match header.as_old().linkflag[0] {
                // Global headers are ignored, as by Go's archive/tar, with which other tools write and read layers: two
                // readers must not see two images in one blob.
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

    /// Reads a regular file's entry, and leaves its data to be skipped. Entries of other kinds have no data, whatever
    /// their size field is.
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
                        stored.checked_sub(BLOCK).ok_or_else(|| wrong(EntryError::Sparse("its map has no end")))?;
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

    /// Reads GNU's old sparse map: four extents in the header, more in the blocks after it.
    fn old_sparse_map(&mut self, header: &Header, path: &[u8]) -> Result<Map, LayerError> {
        let wrong = |why| LayerError::Entry { path: path.to_vec(), why };
        let number = |n: io::Result<u64>| n.map_err(|_| wrong(EntryError::Sparse("its map has an invalid number")));
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

    /// Reads the next header and verifies its checksum. Two blocks of zeros, or the end of the stream at a header's
    /// position, end the tar.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let offset = self.at;
        let damaged = |why: &str| LayerError::NotTar { offset, why: why.into() };
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|b| *b == 0) {
            if self.block()?.is_some_and(|next| next.iter().any(|b| *b != 0)) {
                return Err(damaged("a single block of zeros instead of two"));
            }
            self.drain()?;
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let stated = header.cksum().map_err(|_| damaged("not a tar header"))?;
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

    /// Reads the payload of an extension header.
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

    /// Reads the next block; `None` if the stream ends before it.
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
        // Missing padding of the last entry is no loss of data.
        self.skip(self.padding)?;
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Skips bytes, and returns how many of them the stream did not have.
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
            path => format!("or after entry `{}`", show(path)),
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

/// Collects the extended attributes within Linux's limits (xattr(7)), so that listxattr(2) never fails.
fn xattrs(records: &[pax::Record<'_>]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, EntryError> {
    // An empty value unsets what the key meant so far (POSIX), for attributes too: Docker and umoci do the same.
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

/// Parses a numeric field; a blank one is 0, as old tars leave fields that do not apply.
fn field(raw: &[u8], value: impl Fn() -> io::Result<u64>, name: &'static str) -> Result<u64, EntryError> {
    if raw.iter().all(|b| matches!(b, 0 | b' ')) {
        return Ok(0);
    }
    // The tar crate takes the last eight bytes of a base-256 number and ignores the others.
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
