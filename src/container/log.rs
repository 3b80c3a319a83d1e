//! What a container in the background prints, as the Kubernetes runtimes write it (CRI): a line each, with the time,
//! `stdout` or `stderr`, and `F`, or `P` where the line goes on in the next one.
//!
//! ```text
//! 2026-11-26T21:38:20.123456789Z stdout F what it printed
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longer lines are written in parts.
const LONGEST: usize = 16 << 10;

/// One piece of output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When it was printed, RFC 3339.
    pub time: String,
    /// Whether it went to standard error.
    pub is_error: bool,
    /// The text, with its end of line unless it goes on.
    pub text: Vec<u8>,
}

/// Opens a container's log for what is printed next. What a crash cut off in it stays a line of its own.
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

/// Writes all that comes from `from` down, until it ends. Lines are whole in the log whoever else writes there. What
/// cannot be written, as on a full disk, is lost: whoever prints must not end of that.
pub(super) fn keep(from: impl Read, mut log: &File, is_error: bool) -> io::Result<()> {
    let mut from = BufReader::with_capacity(LONGEST, from);
    let mut text = Vec::new();
    let mut failing = false;
    loop {
        text.clear();
        let read = match (&mut from).take(LONGEST as u64).read_until(b'\n', &mut text) {
            // A terminal's end, when nobody has its other side any more.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => 0,
            read => read?,
        };
        if read == 0 {
            return Ok(());
        }
        let whole = text.last() == Some(&b'\n');
        let time = format!("{:.9}", jiff::Timestamp::now());
        let stream = if is_error { "stderr" } else { "stdout" };
        let mut line = format!("{time} {stream} {} ", if whole { 'F' } else { 'P' }).into_bytes();
        line.extend(&text);
        if !whole {
            line.push(b'\n');
        }
        match log.write_all(&line) {
            Err(error) if !failing => {
                tracing::error!("output is lost: {error}");
                failing = true;
            }
            Err(_) => {}
            Ok(()) => failing = false,
        }
    }
}

/// Reads the next entry; none at the end, and where one is just being written. What is no entry is left out: a crash may
/// have cut one off.
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
    fn what_is_kept_is_read_back_byte_for_byte() {
        let long = [vec![b'x'; LONGEST + 10], b"\nend without a line".to_vec()].concat();
        let printed = [b"one\n\n two \xff\0\n".to_vec(), long].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = open(&path).unwrap();
        keep(&printed[..], &log, false).unwrap();
        keep(&b"bad\n"[..], &log, true).unwrap();
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
    fn a_full_disk_stops_nobody_who_prints() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut printed = &b"one\ntwo\n"[..];
        keep(&mut printed, &full, false).unwrap();
        assert!(printed.is_empty());
    }

    #[test]
    fn what_a_crash_cut_off_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "2026-11-26T21:38:20Z stdout F whole\n2026-11-26T21:38:20Z std").unwrap();
        keep(&b"more\n"[..], &open(&path).unwrap(), false).unwrap();
        let mut from = BufReader::new(File::open(&path).unwrap());
        assert_eq!(next(&mut from).unwrap().unwrap().text, b"whole\n");
        assert_eq!(next(&mut from).unwrap().unwrap().text, b"more\n");
        assert_eq!(next(&mut from).unwrap(), None);
    }
}
