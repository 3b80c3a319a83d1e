//! The viewer of a file's content, as text or in hexadecimal. Reads only what is shown.

use crate::browse::{Item, View};
use crate::fs::{Fs, Ino};
use crate::name::show;
use ratatui::crossterm::event::KeyCode;
use unicode_width::UnicodeWidthStr;

/// How much of a file decides whether it is text.
const SAMPLE: u32 = 8 << 10;
/// How far back the beginning of a line is searched for; a longer line is cut there.
const LONGEST_LINE: u64 = 64 << 10;
const TAB: usize = 8;

/// An open file, and the part of it that is shown.
pub(super) struct Viewer {
    /// The view and the entry that the file was opened from.
    pub view: View,
    pub item: Item,
    /// Its path, printable.
    pub title: String,
    pub size: u64,
    pub is_hex: bool,
    /// The offset of the first byte that is shown.
    pub top: u64,
    ino: Ino,
}

impl Viewer {
    /// Opens a regular file: as text, unless its beginning has control characters or is no UTF-8.
    pub fn open(fs: &Fs, ino: Ino, (view, item): (View, Item), title: String) -> anyhow::Result<Viewer> {
        let size = fs.getattr(ino)?.size;
        let is_hex = !is_text(&fs.read(ino, 0, SAMPLE)?);
        Ok(Viewer { view, item, title, size, is_hex, top: 0, ino })
    }

    /// Scrolls, or changes between text and hexadecimal. `size` is that of the whole viewer, with its heading.
    pub fn key(&mut self, code: KeyCode, fs: &Fs, size: (usize, usize)) -> anyhow::Result<()> {
        let (width, page) = (size.0, size.1.saturating_sub(1).max(1));
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.up(fs, width, 1)?,
            KeyCode::Down | KeyCode::Char('j') | KeyCode::Enter => self.down(fs, width, 1)?,
            KeyCode::PageUp => self.up(fs, width, page)?,
            KeyCode::PageDown | KeyCode::Char(' ') => self.down(fs, width, page)?,
            KeyCode::Home | KeyCode::Char('g') => self.top = 0,
            KeyCode::End | KeyCode::Char('G') => {
                self.top = self.size;
                self.up(fs, width, page)?;
            }
            KeyCode::Char('h') => {
                self.is_hex = !self.is_hex;
                if self.is_hex {
                    self.top -= self.top % per_line(width);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the lines that are shown.
    pub fn lines(&self, fs: &Fs, width: usize, height: usize) -> anyhow::Result<Vec<String>> {
        let step = if self.is_hex { per_line(width) as usize } else { longest(width) };
        let most = u32::try_from(step.saturating_mul(height)).unwrap_or(u32::MAX);
        let bytes = fs.read(self.ino, self.top, most)?;
        let mut rest = &bytes[..];
        let mut lines = Vec::new();
        while !rest.is_empty() && lines.len() < height {
            let (line, used) = if self.is_hex {
                let used = rest.len().min(step);
                let offset = self.top + (bytes.len() - rest.len()) as u64;
                (hex(offset, &rest[..used], step), used)
            } else {
                text(rest, width)
            };
            lines.push(line);
            rest = &rest[used..];
        }
        Ok(lines)
    }

    fn down(&mut self, fs: &Fs, width: usize, lines: usize) -> anyhow::Result<()> {
        for _ in 0..lines {
            let used = if self.is_hex {
                per_line(width)
            } else {
                text(&fs.read(self.ino, self.top, longest(width) as u32)?, width).1 as u64
            };
            if used == 0 || self.top.saturating_add(used) >= self.size {
                break;
            }
            self.top += used;
        }
        Ok(())
    }

    fn up(&mut self, fs: &Fs, width: usize, lines: usize) -> anyhow::Result<()> {
        if self.is_hex {
            let step = per_line(width);
            self.top = self.top.next_multiple_of(step).saturating_sub(step.saturating_mul(lines as u64));
            return Ok(());
        }
        for _ in 0..lines {
            let from = self.top.saturating_sub(LONGEST_LINE);
            let above = fs.read(self.ino, from, (self.top - from) as u32)?;
            if above.is_empty() {
                break;
            }
            let newline = above[..above.len() - 1].iter().rposition(|byte| *byte == b'\n');
            // A long line is shown as several: the last of these that begins above.
            let mut start = newline.map_or(0, |at| at + 1);
            loop {
                let used = text(&above[start..], width).1;
                if used == 0 || start + used >= above.len() {
                    break;
                }
                start += used;
            }
            self.top = from + start as u64;
        }
        Ok(())
    }
}

/// The most bytes that one line of text takes.
fn longest(width: usize) -> usize {
    width.max(1) * 4 + 16
}

/// Whether a file that begins with these bytes is shown as text. They may end within a character.
fn is_text(bytes: &[u8]) -> bool {
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c');
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        let is_cut = chunks.peek().is_none() && bytes.len() == SAMPLE as usize && chunk.invalid().len() < 4;
        if chunk.valid().contains(is_control) || !(chunk.invalid().is_empty() || is_cut) {
            return false;
        }
    }
    true
}

/// Returns the first line of a text, printable and at most `width` columns wide, and the bytes that it takes.
fn text(bytes: &[u8], width: usize) -> (String, usize) {
    let (mut line, mut columns, mut used) = (String::new(), 0, 0);
    while used < bytes.len() && used < longest(width) {
        let next = &bytes[used..bytes.len().min(used + 4)];
        let piece = match next.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()) {
            Some('\n') => return (line, used + 1),
            Some('\r') if next.get(1) == Some(&b'\n') => return (line, used + 2),
            Some(c) => &next[..c.len_utf8()],
            None => &next[..1],
        };
        let shown = if piece == b"\t" { " ".repeat(TAB - columns % TAB) } else { show(piece) };
        // At least one character, for a width of none at all would never end.
        if columns + shown.width() > width && used > 0 {
            break;
        }
        columns += shown.width();
        line.push_str(&shown);
        used += piece.len();
    }
    (line, used)
}

/// The number of bytes on a line in hexadecimal.
fn per_line(width: usize) -> u64 {
    [16, 8, 4, 2].into_iter().find(|count| 13 + 4 * count <= width).unwrap_or(1) as u64
}

/// Formats a line as `hexdump -C` does.
fn hex(offset: u64, bytes: &[u8], per_line: usize) -> String {
    let digits: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
    let letter = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' };
    let letters: String = bytes.iter().map(letter).collect();
    format!("{offset:08x} {digits:<width$}  |{letters}|", width = per_line * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_other_data_are_told_apart() {
        for (bytes, expected) in [
            (&b""[..], true),
            (b"a\tb\r\n", true),
            ("grün".as_bytes(), true),
            (b"\x7fELF\0", false),
            (b"a\x1b[31m", false),
            (b"a\xff", false),
            ("\u{85}".as_bytes(), false),
        ] {
            assert_eq!(is_text(bytes), expected, "{bytes:?}");
        }
        // The sample ends within a character.
        let long = ["a".repeat(SAMPLE as usize - 1).as_bytes(), &"é".as_bytes()[..1]].concat();
        assert!(is_text(&long));
    }

    #[test]
    fn lines_are_cut_at_the_width() {
        assert_eq!(text(b"abcdef\n", 4), ("abcd".into(), 4));
        assert_eq!(text(b"abcd\nx", 4), ("abcd".into(), 5));
        assert_eq!(text(b"\nx", 4), (String::new(), 1));
        assert_eq!(text(b"ab\r\nx", 4), ("ab".into(), 4));
        assert_eq!(text("漢字漢".as_bytes(), 5), ("漢字".into(), 6));
        assert_eq!(text(b"a\tb", 20), ("a       b".into(), 3));
        assert_eq!(text(b"\x1b[31m", 20), ("\\u{1b}[31m".into(), 5));
        assert_eq!(text("漢".as_bytes(), 0), ("漢".into(), 3));
    }

    #[test]
    fn bytes_are_shown_as_hexdump_does() {
        assert_eq!(per_line(80), 16);
        assert_eq!(per_line(40), 4);
        assert_eq!(hex(16, b"a\0b", 4), "00000010  61 00 62     |a.b|");
    }
}
