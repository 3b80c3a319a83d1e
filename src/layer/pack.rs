//! Tar writer: ustar headers, with PAX records for what they cannot hold, which all layer readers support. Owners are
//! numeric. The same entries give the same bytes.

use super::pax::Xattr;
use crate::meta::{Kind, PERMISSION_BITS, Time, device_parts};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use std::io::{self, Write};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// The length of a ustar header's name fields.
const NAME_FIELD: usize = 100;
/// The largest numbers of seven, and of eleven, octal digits.
const SEVEN_DIGITS: u64 = 0o777_7777;
const ELEVEN_DIGITS: u64 = 0o777_7777_7777;

/// Attributes that entries of all kinds have. A hard link's must equal its target's: plyfs ignores them, but other
/// tools apply them again.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// A directory.
    Dir,
    /// A regular file of that many bytes, which [`Packer::data`] must write next.
    File(u64),
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A hard link to an earlier entry, by its path.
    Link(&'a [u8]),
    /// A device of that kind and number ([`crate::meta::device`]).
    Device(Kind, u32),
    /// A named pipe.
    Fifo,
}

/// A tar archive being written.
pub struct Packer<W> {
    out: W,
    /// Data bytes of the last file that are still to be written, and the padding after them.
    left: u64,
    padding: u64,
}

impl<W: Write> Packer<W> {
    /// Creates an archive without entries.
    pub fn new(out: W) -> Packer<W> {
        Packer { out, left: 0, padding: 0 }
    }

    /// Begins an entry. A trailing slash of a directory's path is optional; it is added.
    pub fn entry(&mut self, path: &[u8], meta: &Meta, what: Packed<'_>) -> io::Result<()> {
        self.end_data()?;
        let mut path = path.to_vec();
        if matches!(what, Packed::Dir) && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        header.set_mode(meta.mode & PERMISSION_BITS);
        let uid = fitting("uid", meta.uid.into(), SEVEN_DIGITS, &mut records);
        header.set_uid(uid);
        let gid = fitting("gid", meta.gid.into(), SEVEN_DIGITS, &mut records);
        header.set_gid(gid);
        header.set_mtime(seconds(meta.mtime, &mut records));
        let (kind, size) = (type_of(what), if let Packed::File(size) = what { size } else { 0 });
        header.set_entry_type(kind);
        header.set_size(fitting("size", size, ELEVEN_DIGITS, &mut records));
        let old = header.as_old_mut();
        name("path", &path, &mut old.name, &mut records);
        match what {
            Packed::Symlink(target) | Packed::Link(target) => {
                name("linkpath", target, &mut old.linkname, &mut records);
            }
            Packed::Device(_, number) => {
                let (major, minor) = device_parts(number);
                header.set_device_major(major)?;
                header.set_device_minor(minor)?;
            }
            _ => {}
        }
        meta.xattrs.iter().for_each(|(name, value)| records.extend(attribute(name, value)));
        header.set_cksum();
        self.extension(&records)?;
        self.out.write_all(header.as_bytes())?;
        (self.left, self.padding) = (size, size.next_multiple_of(BLOCK) - size);
        Ok(())
    }

    /// Writes data of the file that was begun last.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = || io::Error::other("a file grew while it was written");
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(more)?;
        self.out.write_all(bytes)
    }

    /// Ends the archive, and returns the underlying writer, flushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_data()?;
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_data(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("a file shrank while it was written"));
        }
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; BLOCK as usize][..padding as usize])
    }

    fn extension(&mut self, records: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let size = bytes.len() as u64;
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(size);
        let old = header.as_old_mut();
        old.name[..b"PaxHeaders/entry".len()].copy_from_slice(b"PaxHeaders/entry");
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(&bytes)?;
        self.padding = size.next_multiple_of(BLOCK) - size;
        self.pad()
    }
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn type_of(what: Packed<'_>) -> EntryType {
    match what {
        Packed::Dir => EntryType::Directory,
        Packed::File(_) => EntryType::Regular,
        Packed::Symlink(_) => EntryType::Symlink,
        Packed::Link(_) => EntryType::Link,
        Packed::Device(Kind::Block, _) => EntryType::Block,
        Packed::Device(..) => EntryType::Char,
        Packed::Fifo => EntryType::Fifo,
    }
}

/// Returns the number for a header field; a number that is too large is written as a PAX record.
fn fitting(key: &str, value: u64, most: u64, records: &mut Records) -> u64 {
    if value <= most {
        return value;
    }
    records.push((key.into(), value.to_string().into_bytes()));
    0
}

/// Returns the seconds for a header field; a time with a fraction, before 1970 or too large becomes a PAX record.
fn seconds(time: Time, records: &mut Records) -> u64 {
    match u64::try_from(time.sec) {
        Ok(sec) if sec <= ELEVEN_DIGITS && time.nsec == 0 => return sec,
        _ => records.push((b"mtime".to_vec(), decimal(time).into_bytes())),
    }
    u64::try_from(time.sec).map_or(0, |sec| sec.min(ELEVEN_DIGITS))
}

/// Formats a time as PAX does, with one sign for seconds and fraction: half a second before 1970 is -0.5.
fn decimal(time: Time) -> String {
    let total = i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    let (sign, total) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
    let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writes a name to a header field; one that is too long is also written as a PAX record.
fn name(key: &str, value: &[u8], field: &mut [u8; NAME_FIELD], records: &mut Records) {
    let fits = value.len().min(NAME_FIELD);
    field[..fits].copy_from_slice(&value[..fits]);
    if value.len() > NAME_FIELD {
        records.push((key.into(), value.to_vec()));
    }
}

/// Returns the PAX record of an extended attribute. A name with `=` cannot be in a SCHILY key, so libarchive's form is
/// used. An empty value cannot be expressed: in a PAX record it means that the attribute is unset.
fn attribute(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if value.is_empty() {
        return None;
    }
    if !name.contains(&b'=') {
        return Some(([b"SCHILY.xattr.", name].concat(), value.to_vec()));
    }
    let encoded = percent_encode(name, NON_ALPHANUMERIC);
    Some((format!("LIBARCHIVE.xattr.{encoded}").into_bytes(), STANDARD.encode(value).into_bytes()))
}

/// Formats a PAX record: its own length in decimal, a space, `key=value` and a newline.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::super::reader::{Body, Entry, Reader};
    use super::super::{Limits, pax};
    use super::*;

    fn read(tar: &[u8]) -> Vec<Entry> {
        let (mut stream, limits) = (tar, Limits::default());
        let mut reader = Reader::new(&mut stream, &limits);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            entries.push(entry);
        }
        entries
    }

    #[test]
    fn entries_written_are_read_back() {
        let odd = Meta {
            mode: 0o6755,
            uid: u32::MAX,
            gid: 0o1000_0000,
            mtime: Time { sec: -2, nsec: 750_000_000 },
            xattrs: vec![
                (b"user.bin".to_vec(), b"\0\n=\xff".to_vec()),
                (b"user.a=b c".to_vec(), b"x\0".to_vec()),
                (b"user.\xfe".to_vec(), b"y".to_vec()),
            ],
        };
        let far = Meta { mtime: Time { sec: 1 << 40, nsec: 1 }, ..Meta::default() };
        let long = [b"\xff/".repeat(60), b"end".to_vec()].concat();
        let mut packer = Packer::new(Vec::new());
        packer.entry(b"./", &odd, Packed::Dir).unwrap();
        packer.entry(&long, &odd, Packed::File(513)).unwrap();
        packer.data(&[7; 500]).unwrap();
        packer.data(&[8; 13]).unwrap();
        packer.entry(b"link", &odd, Packed::Link(&long)).unwrap();
        packer.entry(b"sym", &far, Packed::Symlink(&[b'x'; 101])).unwrap();
        packer.entry(b"dev", &far, Packed::Device(Kind::Block, 0xffff_ffff)).unwrap();
        packer.entry(b"pipe", &Meta::default(), Packed::Fifo).unwrap();
        packer.entry(&[b'n'; 100], &Meta::default(), Packed::File(0)).unwrap();
        let tar = packer.finish().unwrap();
        assert_eq!(tar.len() % 512, 0);
        let entries = read(&tar);
        let told: Vec<(Vec<u8>, String)> = entries.iter().map(|e| (e.path.clone(), tell(&e.body))).collect();
        let want = [
            (b"./".to_vec(), "dir".to_owned()),
            (long.clone(), "file of 513".into()),
            (b"link".to_vec(), format!("link to {}", long.escape_ascii())),
            (b"sym".to_vec(), format!("symlink to {}", "x".repeat(101))),
            (b"dev".to_vec(), "Block 0xffffffff".into()),
            (b"pipe".to_vec(), "fifo".into()),
            (vec![b'n'; 100], "file of 0".into()),
        ];
        assert_eq!(told, want);
        let file = &entries[1];
        assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o6755, odd.uid, odd.gid, odd.mtime));
        assert_eq!(file.xattrs, odd.xattrs.iter().cloned().collect());
        assert_eq!((entries[2].mode, &entries[2].xattrs), (0o6755, &file.xattrs));
        assert_eq!((entries[3].mtime, entries[5].mtime), (far.mtime, Time::default()));
        let Body::File { offset, size } = file.body else { panic!("no file") };
        assert_eq!(tar[offset as usize..][..size as usize], [vec![7; 500], vec![8; 13]].concat());
    }

    fn tell(body: &Body) -> String {
        match body {
            Body::Dir => "dir".into(),
            Body::File { size, .. } => format!("file of {size}"),
            Body::Sparse { size, .. } => format!("sparse file of {size}"),
            Body::Symlink(target) => format!("symlink to {}", target.escape_ascii()),
            Body::Link(target) => format!("link to {}", target.escape_ascii()),
            Body::Device(kind, number) => format!("{kind:?} {number:#x}"),
            Body::Fifo => "fifo".into(),
        }
    }

    #[test]
    fn large_sizes_are_written_as_a_pax_record() {
        let mut packer = Packer::new(Vec::new());
        packer.entry(b"big", &Meta::default(), Packed::File(1 << 33)).unwrap();
        assert_eq!(pax::records(&packer.out[512..][..19]).unwrap(), [(&b"size"[..], &b"8589934592"[..])]);
        let short = packer.entry(b"next", &Meta::default(), Packed::Fifo).unwrap_err();
        assert_eq!(short.to_string(), "a file shrank while it was written");
        packer.entry(b"none", &Meta::default(), Packed::Fifo).unwrap_err();
        let mut packer = Packer::new(Vec::new());
        packer.entry(b"small", &Meta::default(), Packed::File(1)).unwrap();
        assert_eq!(packer.data(b"ab").unwrap_err().to_string(), "a file grew while it was written");
    }

    #[test]
    fn a_record_counts_its_own_digits() {
        for length in 85..120 {
            let bytes = record(b"k", &vec![b'v'; length]);
            assert_eq!(pax::records(&bytes).unwrap(), [(&b"k"[..], &vec![b'v'; length][..])]);
        }
    }

    #[test]
    fn negative_times_have_one_sign() {
        let text = |sec, nsec| decimal(Time { sec, nsec });
        assert_eq!([text(1, 5), text(-1, 500_000_000), text(-2, 0)], ["1.000000005", "-0.5", "-2"]);
    }
}
