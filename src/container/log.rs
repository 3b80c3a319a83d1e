//! Container logs, in the CRI log format of Kubernetes: one line per entry, with the time, `stdout` or `stderr`, and
//! `F` for a full line or `P` for a partial one that the next entry continues.
//!
//! ```text
//! 2026-11-26T21:38:20.123456789Z stdout F text
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The maximum bytes per entry; longer lines are split into partial entries.
const LONGEST: usize = 16 << 10;

/// A log entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The time of the output, RFC 3339.
    pub time: String,
    /// Whether the stream is stderr.
    pub is_error: bool,
    /// The text, with a newline unless the entry is partial.
    pub text: Vec<u8>,
}

/// Opens a container's log for appending. Ends an incomplete last line, which a crash left, with a newline.
pub fn open(path: &Path) -> io::Result<File> {
    let mut log = File::options().create(true).append(true).read(true).open(path)?;
    let length = log.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        log.read_exact_at(&mut last, length - 1)?;
    }
    if last != [b'\n'] {
        log.write_all(b"\n")?;
    }
    Ok(log)
}

/// Writes one stream of a container to its log. Each entry is one append, so that streams do not mix within a line. A
/// line is written when it is complete, or on drop. Output that cannot be written, as on a full disk, is lost, so that
/// the container does not fail.
pub(super) struct Writer<'a> {
    log: &'a File,
    is_error: bool,
    /// An incomplete line.
    begun: Vec<u8>,
    failing: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(log: &'a File, is_error: bool) -> Writer<'a> {
        Writer { log, is_error, begun: Vec::new(), failing: false }
    }

    /// Appends output.
    pub(super) fn put(&mut self, text: &[u8]) {
        for part in text.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            while self.begun.len() + rest.len() > LONGEST {
                let (now, later) = rest.split_at(LONGEST - self.begun.len());
                self.begun.extend_from_slice(now);
                self.write_line();
                rest = later;
            }
            self.begun.extend_from_slice(rest);
            if self.begun.last() == Some(&b'\n') {
                self.write_line();
            }
        }
    }

    fn write_line(&mut self) {
        let whole = self.begun.last() == Some(&b'\n');
        let time = format!("{:.9}", jiff::Timestamp::now());
        let stream = if self.is_error { "stderr" } else { "stdout" };
        let mut line = format!("{time} {stream} {} ", if whole { 'F' } else { 'P' }).into_bytes();
        line.append(&mut self.begun);
        if !whole {
            line.push(b'\n');
        }
        match self.log.write_all(&line) {
            Err(error) if !self.failing => {
                tracing::error!("cannot write the container's log: {error}");
                self.failing = true;
            }
            Err(_) => {}
            Ok(()) => self.failing = false,
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            self.write_line();
        }
    }
}

/// Reads the next entry; `None` at the end of the file, or if the last line is incomplete because it is being written.
/// Skips malformed lines, which a crash may have cut off.
pub fn next(from: &mut BufReader<File>) -> io::Result<Option<Entry>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            from.seek_relative(-(line.len() as i64))?;
            return Ok(None);
        }
        if let Some(entry) = parse(&line) {
            return Ok(Some(entry));
        }
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = str::from_utf8(fields.next()?).ok()?.to_owned();
    let is_error = match fields.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let whole = fields.next()? == b"F";
    let text = fields.next()?.strip_suffix(b"\n")?;
    let mut text = text.to_vec();
    if whole {
        text.push(b'\n');
    }
    Some(Entry { time, is_error, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_output_is_read_back_byte_for_byte() {
        let long = [vec![b'x'; LONGEST + 10], b"\nend without a line".to_vec()].concat();
        let printed = [b"one\n\n two \xff\0\n".to_vec(), long].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = open(&path).unwrap();
        let mut writer = Writer::new(&log, false);
        printed.chunks(1000).for_each(|piece| writer.put(piece));
        drop(writer);
        Writer::new(&log, true).put(b"bad\n");
        let mut from = BufReader::new(File::open(&path).unwrap());
        let mut all = Vec::new();
        while let Some(entry) = next(&mut from).unwrap() {
            assert!(entry.time.parse::<jiff::Timestamp>().is_ok(), "{}", entry.time);
            all.push(entry);
        }
        let text = |is_error| {
            let of = all.iter().filter(|e| e.is_error == is_error);
            of.flat_map(|e| e.text.clone()).collect::<Vec<u8>>()
        };
        assert_eq!(text(false), printed);
        assert_eq!(text(true), b"bad\n");
    }

    #[test]
    fn a_full_disk_does_not_block_output() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut writer = Writer::new(&full, false);
        writer.put(b"one\ntwo\nthree");
        assert_eq!(writer.begun, b"three");
    }

    #[test]
    fn incomplete_entries_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "2026-11-26T21:38:20Z stdout F whole\n2026-11-26T21:38:20Z std").unwrap();
        Writer::new(&open(&path).unwrap(), false).put(b"more\n");
        let mut from = BufReader::new(File::open(&path).unwrap());
        assert_eq!(next(&mut from).unwrap().unwrap().text, b"whole\n");
        assert_eq!(next(&mut from).unwrap().unwrap().text, b"more\n");
        assert_eq!(next(&mut from).unwrap(), None);
    }
}
