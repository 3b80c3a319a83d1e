//! A tar builder: entries one by one, with every byte under the test's control.
//!
//! ```ignore
//! let tar = Tar::new()
//!     .dir("etc")
//!     .file("etc/hostname", b"box\n")
//!     .add(Entry::file("etc/x", b"x").mode(0o4755).owner(4294967294, 7).mtime(-1, 5).xattr("user.nul", b"a\0b"))
//!     .whiteout("etc/gone")
//!     .finish();
//! ```
//!
//! Values that the old header cannot hold (long names, large numbers, fractions of a second) go into PAX records unless
//! a method asks for another form.

/// A tar being written.
#[derive(Debug, Default, Clone)]
pub struct Tar {
    out: Vec<u8>,
}

/// One entry: build it with a constructor, change it with the methods, and [`Tar::add`] it.
#[derive(Debug, Clone)]
pub struct Entry {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: (i64, u32),
    rdev: (u64, u64),
    data: Vec<u8>,
    size: Option<u64>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
    gnu: bool,
    gnu_map: Option<(u64, Vec<Segment>)>,
    edits: Vec<fn(&mut [u8; 512])>,
    bad_checksum: bool,
}

/// A data segment of a sparse file: its offset and bytes.
pub type Segment = (u64, Vec<u8>);

/// The formats of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    /// Type `S`, the map in the header and in blocks behind it.
    OldGnu,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, a pair for each segment.
    Pax00,
    /// `GNU.sparse.map`, all in one record.
    Pax01,
    /// The map at the beginning of the data.
    Pax10,
}

impl Tar {
    /// An empty tar.
    pub fn new() -> Self {
        Self::default()
    }

    /// Append an entry.
    pub fn add(mut self, entry: Entry) -> Self {
        entry.write(&mut self.out);
        self
    }

    /// Append a directory of mode 0755, root's.
    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.add(Entry::dir(name))
    }

    /// Append a file of mode 0644, root's.
    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.add(Entry::file(name, data))
    }

    /// Append a symlink.
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(Entry::symlink(name, target))
    }

    /// Append a hard link to an earlier (or later, or lower) entry.
    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(Entry::hard_link(name, target))
    }

    /// Append the whiteout that hides `path` in lower layers.
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let cut = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        self.file([&path[..cut], b".wh.", &path[cut..]].concat(), b"")
    }

    /// Append the marker that makes directory `path` opaque; an empty path means the root.
    pub fn opaque(self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        self.file([path, slash, b".wh..wh..opq"].concat(), b"")
    }

    /// Append a global PAX header.
    pub fn global_pax(mut self, records: &[(&[u8], &[u8])]) -> Self {
        let records: Vec<_> = records.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        Entry::new("pax_global_header", b'g').data(pax_records(&records)).write(&mut self.out);
        self
    }

    /// Append bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// The tar, ended by two blocks of zeros.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.resize(self.out.len() + 1024, 0);
        self.out
    }

    /// The tar without an end marker, as some tools leave it.
    pub fn unfinished(self) -> Vec<u8> {
        self.out
    }
}

impl Entry {
    /// An entry of any type flag, mode 0644, owned by root, without data.
    pub fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (1_600_000_000, 0),
            rdev: (0, 0),
            data: Vec::new(),
            size: None,
            pax: Vec::new(),
            gnu: false,
            gnu_map: None,
            edits: Vec::new(),
            bad_checksum: false,
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'0').data(data)
    }

    /// A directory of mode 0755.
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'5').mode(0o755)
    }

    /// A symlink of mode 0777.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'2').mode(0o777).link(target)
    }

    /// A hard link.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'1').link(target)
    }

    /// A fifo.
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'6')
    }

    /// A character device.
    pub fn char_device(name: impl AsRef<[u8]>, major: u64, minor: u64) -> Self {
        Self { rdev: (major, minor), ..Self::new(name, b'3') }
    }

    /// A block device.
    pub fn block_device(name: impl AsRef<[u8]>, major: u64, minor: u64) -> Self {
        Self { rdev: (major, minor), ..Self::new(name, b'4') }
    }

    /// A sparse file of `size` bytes with data in some segments, which are in order and do not overlap.
    pub fn sparse(name: impl AsRef<[u8]>, size: u64, segments: &[Segment], form: Sparse) -> Self {
        let name = name.as_ref();
        let data: Vec<u8> = segments.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let entry = Self::file(name, data);
        let pairs = || segments.iter().map(|(at, bytes)| (at.to_string(), bytes.len().to_string()));
        let real = size.to_string();
        match form {
            Sparse::OldGnu => Self { kind: b'S', gnu: true, gnu_map: Some((size, segments.to_vec())), ..entry },
            Sparse::Pax00 => pairs().fold(
                entry.pax("GNU.sparse.size", &real).pax("GNU.sparse.numblocks", segments.len().to_string()),
                |entry, (at, length)| entry.pax("GNU.sparse.offset", at).pax("GNU.sparse.numbytes", length),
            ),
            Sparse::Pax01 => {
                let map: Vec<_> = pairs().map(|(at, length)| format!("{at},{length}")).collect();
                let entry = entry.pax("GNU.sparse.size", &real).pax("GNU.sparse.numblocks", segments.len().to_string());
                sparse_name(entry.pax("GNU.sparse.map", map.join(",")), name)
            }
            Sparse::Pax10 => {
                let mut map = format!("{}\n", segments.len());
                pairs().for_each(|(at, length)| map.push_str(&format!("{at}\n{length}\n")));
                let mut data = map.into_bytes();
                data.resize(data.len().next_multiple_of(512), 0);
                data.extend_from_slice(&entry.data);
                let entry = entry.data(data).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
                sparse_name(entry.pax("GNU.sparse.realsize", &real), name)
            }
        }
    }

    /// Permission bits, set-id and sticky.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Owner and group.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Modification time; a fraction of a second goes into a PAX record.
    pub fn mtime(mut self, seconds: i64, nanos: u32) -> Self {
        self.mtime = (seconds, nanos);
        self
    }

    /// Link target.
    pub fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    /// Content.
    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    /// Claim this size in the header, whatever the content.
    pub fn claim_size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Add a PAX record. The value may hold any bytes.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Add an extended attribute as `SCHILY.xattr.NAME`.
    pub fn xattr(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax([b"SCHILY.xattr.", name.as_ref()].concat(), value)
    }

    /// Use GNU's own forms, `L` and `K` entries and base-256 numbers, instead of PAX records.
    pub fn gnu(mut self) -> Self {
        self.gnu = true;
        self
    }

    /// Change the finished header before its checksum is made.
    pub fn edit_header(mut self, edit: fn(&mut [u8; 512])) -> Self {
        self.edits.push(edit);
        self
    }

    /// Write a wrong checksum.
    pub fn bad_checksum(mut self) -> Self {
        self.bad_checksum = true;
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut pax = self.pax.clone();
        self.long_names(out, &mut pax);
        if self.mtime.1 != 0 {
            pax.push((b"mtime".to_vec(), fraction(self.mtime).into_bytes()));
        }
        if !self.gnu {
            for (key, value) in [("uid", self.uid), ("gid", self.gid)].iter().filter(|(_, value)| *value > 0o7777777) {
                pax.push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
            }
        }
        if !pax.is_empty() {
            Entry::new("PaxHeaders/entry", b'x').data(pax_records(&pax)).write(out);
        }
        out.extend_from_slice(&self.header());
        if let Some((_, segments)) = &self.gnu_map {
            gnu_map_blocks(segments, out);
        }
        append_padded(&self.data, out);
    }

    /// Writes the GNU entries or PAX records for names that do not fit in the header.
    fn long_names(&self, out: &mut Vec<u8>, pax: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        for (value, key, kind) in [(&self.name, "path", b'L'), (&self.link, "linkpath", b'K')] {
            if value.len() <= 100 {
            } else if self.gnu {
                Entry::new("././@LongLink", kind).data([value.as_slice(), b"\0"].concat()).write(out);
            } else if !pax.iter().any(|(present, _)| present == key.as_bytes()) {
                pax.push((key.as_bytes().to_vec(), value.clone()));
            }
        }
    }

    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &number(i128::from(self.mode), 8));
        put(108, &number(i128::from(self.uid), 8));
        put(116, &number(i128::from(self.gid), 8));
        put(124, &number(i128::from(self.size.unwrap_or(self.data.len() as u64)), 12));
        put(136, &number(i128::from(self.mtime.0), 12));
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, if self.gnu { b"ustar  \0" } else { b"ustar\x0000" });
        put(329, &number(i128::from(self.rdev.0), 8));
        put(337, &number(i128::from(self.rdev.1), 8));
        if let Some((size, segments)) = &self.gnu_map {
            for (index, segment) in segments.iter().take(4).enumerate() {
                put(386 + index * 24, &gnu_pair(segment));
            }
            put(482, &[u8::from(segments.len() > 4)]);
            put(483, &number(i128::from(*size), 12));
        }
        self.edits.iter().for_each(|edit| edit(&mut header));
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum::<u32>() + u32::from(self.bad_checksum);
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// PAX sparse entries carry their true name in a record and another in the header.
fn sparse_name(mut entry: Entry, name: &[u8]) -> Entry {
    entry.name = b"GNUSparseFile.0/placeholder".to_vec();
    entry.pax("GNU.sparse.name", name)
}

/// Octal where it fits, else base-256: a set top bit, then two's complement.
fn number(value: i128, width: usize) -> Vec<u8> {
    let octal = format!("{value:0digits$o}\0", digits = width - 1);
    if value >= 0 && octal.len() <= width {
        return octal.into_bytes();
    }
    let mut field = value.to_be_bytes()[16 - width..].to_vec();
    field[0] |= 0x80;
    field
}

fn gnu_pair((at, bytes): &Segment) -> Vec<u8> {
    [number(i128::from(*at), 12), number(bytes.len() as i128, 12)].concat()
}

/// The segments after the header's four, 21 to a block.
fn gnu_map_blocks(segments: &[Segment], out: &mut Vec<u8>) {
    let more: Vec<_> = segments.iter().skip(4).collect();
    let blocks = more.chunks(21).count();
    for (index, chunk) in more.chunks(21).enumerate() {
        let mut block: Vec<u8> = chunk.iter().flat_map(|segment| gnu_pair(segment)).collect();
        block.resize(512, 0);
        block[504] = u8::from(index + 1 < blocks);
        out.extend_from_slice(&block);
    }
}

/// Seconds as PAX writes them: a sign and a magnitude, so -1 s + 0.25 s is "-0.75".
fn fraction((seconds, nanos): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

/// Each record is its own length in decimal, a space, key=value and a newline.
fn pax_records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        out.extend([length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat());
    }
    out
}

fn append_padded(data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A layer of this many incompressible bytes.
pub fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    let content: Vec<u8> = (0..bytes / 4).flat_map(|_| next()).collect();
    Tar::new().file(format!("noise-{seed}"), content).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(tar: &[u8], arguments: &[&str]) -> String {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut command = Command::new("tar");
        command.args(arguments).env("TZ", "UTC").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(tar).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn gnu_tar_reads_the_written_tars() {
        let long = "l/".repeat(80) + "end";
        let tar = Tar::new()
            .dir("d")
            .add(Entry::file("d/pax", b"x").owner(4294967294, 7).mtime(5, 250_000_000))
            .add(Entry::file("d/gnu", b"x").owner(4294967294, 7).mtime(-1, 0).gnu())
            .file(&long, b"pax")
            .add(Entry::symlink("d/link", &long).gnu())
            .add(Entry::char_device("d/null", 1, 3))
            .whiteout("d/gone")
            .finish();
        let seen = listed(&tar, &["--list", "--verbose", "--full-time", "--numeric-owner"]);
        assert_eq!(seen.matches("4294967294/7").count(), 2, "{seen}");
        assert_eq!(seen.matches("1969-12-31 23:59:59").count(), 1, "{seen}");
        assert!(seen.contains("00:00:05.25 d/pax") && seen.contains(&format!("d/link -> {long}")), "{seen}");
        assert!(seen.contains("1,3") && seen.contains("d/.wh.gone"), "{seen}");
    }

    /// Not compared with GNU tar: version 1.34 reads the fraction of a time before 1970 with the wrong sign.
    #[test]
    fn times_before_1970_are_written_with_the_sign_before_the_fraction() {
        assert_eq!(fraction((-1, 250_000_000)), "-0.750000000");
        assert_eq!(fraction((-2, 0)), "-2.000000000");
        assert_eq!(fraction((1, 5)), "1.000000005");
    }

    #[test]
    fn gnu_tar_reads_the_same_file_from_every_sparse_format() {
        let segments: Vec<Segment> = (0..30).map(|n| (n * 1024, vec![b'a' + n as u8; 512])).collect();
        // To a pipe, GNU tar writes no hole at the end.
        let size = 29 * 1024 + 512;
        let mut want = vec![0; size as usize];
        segments.iter().for_each(|(at, bytes)| want[*at as usize..][..512].copy_from_slice(bytes));
        for form in [Sparse::OldGnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
            let tar = Tar::new().add(Entry::sparse("holes", size, &segments, form)).finish();
            let seen = listed(&tar, &["--extract", "--to-stdout", "holes"]);
            assert!(seen.as_bytes() == want, "{form:?}: {} bytes", seen.len());
        }
    }
}
