//! Random access to the members of a tar: one pass over the headers, then reads by offset.

use super::{Files, open_regular};
use crate::image::Problem;
use crate::image::inflate::{Inflate, Kind};
use crate::store::Session;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Maximum number of members of an image archive.
const MEMBERS_CAP: usize = 1 << 18;
const LINKS_CAP: usize = 16;
const COPY_BUFFER: usize = 256 << 10;

/// An uncompressed tar with the offsets of its members.
pub(super) struct TarFiles {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// A link to another member, by its normalized name.
    Link(String),
}

/// Opens an archive; one that is compressed or not seekable is first unpacked into the session.
pub(super) fn open(path: &Path, session: &Session) -> Result<TarFiles, Problem> {
    let what = path.display().to_string();
    let failed = |cause| Problem::Read { what: what.clone(), cause };
    let is_pipe = std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
    if is_pipe {
        return spool(&mut File::open(path).map_err(failed)?, &what, session);
    }
    let file = open_regular(path).map_err(failed)?;
    let plain = Inflate::new(&file, failed)?.kind() == Kind::Plain;
    if !plain {
        return spool(&mut File::open(path).map_err(failed)?, &what, session);
    }
    TarFiles::index(file, &what)
}

/// Writes a stream, decompressed, to a file of the session and opens that.
pub(super) fn spool(stream: &mut dyn Read, what: &str, session: &Session) -> Result<TarFiles, Problem> {
    let failed = |cause| Problem::Read { what: what.to_owned(), cause };
    let path = session.temp_path("archive");
    let unwritable = |cause| Problem::Write { path: path.clone(), cause };
    let mut plain = Inflate::new(stream, failed)?;
    let mut out = File::options().create_new(true).read(true).write(true).open(&path).map_err(unwritable)?;
    let mut buffer = vec![0; COPY_BUFFER];
    let mut empty = true;
    loop {
        let n = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) if plain.kind() == Kind::Plain => return Err(failed(cause)),
            Err(cause) => return Err(Problem::Inflate { kind: plain.kind().name(), cause }),
        };
        out.write_all(&buffer[..n]).map_err(unwritable)?;
        empty = false;
    }
    if empty {
        return Err(Problem::Document("is empty".into()));
    }
    // Unlinked at once: only this process reads it, and its space is freed when the process ends.
    std::fs::remove_file(&path).map_err(unwritable)?;
    TarFiles::index(out, what)
}

impl TarFiles {
    fn index(file: File, what: &str) -> Result<TarFiles, Problem> {
        let bad = |cause| Problem::Document(format!("is not a readable tar: {cause}"));
        let failed = |cause| Problem::Read { what: what.to_owned(), cause };
        let length = file.metadata().map_err(failed)?.len();
        let mut reader = &file;
        io::Seek::rewind(&mut reader).map_err(failed)?;
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::new(&file));
        for entry in archive.entries_with_seek().map_err(bad)? {
            let entry = entry.map_err(bad)?;
            if members.len() == MEMBERS_CAP {
                return Err(Problem::Document(format!("has more than {MEMBERS_CAP} members")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let target = entry.link_name_bytes().map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
            let kind = entry.header().entry_type();
            let member = if kind.is_symlink() {
                let beside = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                Member::Link(normal(&format!("{beside}/{target}")))
            } else if kind.is_hard_link() {
                Member::Link(normal(&target))
            } else if kind.is_file() || kind.is_contiguous() {
                let (offset, size) = (entry.raw_file_position(), entry.size());
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(Problem::Document(format!("is truncated in its member {name}")));
                }
                Member::File { offset, size }
            } else {
                continue;
            };
            members.insert(normal(&name), member);
        }
        Ok(TarFiles { file: Arc::new(file), members })
    }

    /// Whether there is a member with that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(&normal(name))
    }

    /// Returns a file's length, if there is such a member.
    pub(super) fn length(&self, name: &str) -> Option<u64> {
        self.find(name).ok().flatten().map(|(_, size)| size)
    }

    /// Returns the offset and length of a member's content; follows links.
    fn find(&self, name: &str) -> Result<Option<(u64, u64)>, Problem> {
        let mut at = normal(name);
        for _ in 0..LINKS_CAP {
            match self.members.get(&at) {
                None => return Ok(None),
                Some(Member::Link(to)) => at.clone_from(to),
                Some(Member::File { offset, size }) => return Ok(Some((*offset, *size))),
            }
        }
        Err(Problem::Document(format!("its member {name} has a loop of links")))
    }
}

/// Normalizes a member's name: removes `.`, `..` and empty components.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Files for TarFiles {
    fn read(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, Problem> {
        let Some((at, left)) = self.find(name)? else { return Ok(None) };
        Ok(Some(Box::new(Section { file: Arc::clone(&self.file), at, left })))
    }
}

/// A section of a file, read with pread so that several threads can read at once.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..most], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
