//! A model of a terminal's alternate screen, on which programs place text by coordinates.

use super::terminal::Model;
use std::collections::BTreeSet;
use unicode_width::UnicodeWidthChar;

/// A character cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The character; empty behind a wide one.
    pub text: String,
    /// The SGR attributes.
    pub style: Style,
}

/// The SGR attributes that plyfs uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether foreground and background are exchanged.
    pub is_reversed: bool,
    /// Whether it is bold.
    pub is_bold: bool,
    /// The number of the foreground color.
    pub color: Option<u8>,
}

/// The model. It knows only the escape sequences that plyfs uses: an unknown one fails the test, and so does text
/// outside of the screen.
pub struct Grid {
    columns: usize,
    rows: usize,
    cells: Vec<Vec<Cell>>,
    row: usize,
    column: usize,
    style: Style,
    /// The private modes that are set, such as 1049, the alternate screen.
    pub modes: BTreeSet<u16>,
    /// How often the screen was cleared.
    pub clears: usize,
    /// Whether text may be outside of the screen, since it was written for an earlier size.
    is_resized: bool,
    /// What was printed outside of the alternate screen.
    pub plain: String,
    /// The bytes of an incomplete character or sequence.
    pending: Vec<u8>,
}

impl Grid {
    /// An empty screen.
    pub fn new(columns: u16, rows: u16) -> Self {
        let (columns, rows) = (columns.into(), rows.into());
        let cells = vec![vec![Cell::empty(); columns]; rows];
        let modes = [25].into();
        let style = Style::default();
        let (plain, pending) = (String::new(), Vec::new());
        Self { columns, rows, cells, row: 0, column: 0, style, modes, clears: 0, is_resized: false, plain, pending }
    }

    /// The lines, without spaces at their ends.
    pub fn lines(&self) -> Vec<String> {
        let line =
            |row: &Vec<Cell>| row.iter().map(|cell| cell.text.as_str()).collect::<String>().trim_end().to_owned();
        self.cells.iter().map(line).collect()
    }

    /// Whether a line contains the text.
    pub fn has(&self, text: &str) -> bool {
        self.find(text).is_some()
    }

    /// Where a text is: row and column.
    pub fn find(&self, text: &str) -> Option<(usize, usize)> {
        let lines = self.lines();
        let mut found = lines.iter().enumerate().filter_map(|(row, line)| Some((row, line.find(text)?)));
        found.next().map(|(row, at)| (row, lines[row][..at].chars().count()))
    }

    /// The style of the first character of a text.
    #[track_caller]
    pub fn style_of(&self, text: &str) -> Style {
        let (row, column) = self.find(text).unwrap_or_else(|| panic!("no {text:?}:\n{}", self.text()));
        self.cells[row][column].style
    }

    /// Whether the line with the text is selected.
    pub fn is_selected(&self, text: &str) -> bool {
        self.find(text).is_some_and(|(row, column)| self.cells[row][column].style.is_reversed)
    }

    fn put(&mut self, c: char) {
        if !self.modes.contains(&1049) {
            self.plain.push(c);
            return;
        }
        let width = c.width().unwrap_or(0);
        if width == 0 {
            let before = self.column.checked_sub(1).expect("a combining character at the beginning of a line");
            self.cells[self.row][before].text.push(c);
            return;
        }
        let fits = self.row < self.rows && self.column + width <= self.columns;
        if !fits && self.is_resized {
            return;
        }
        assert!(fits, "{c:?} at {}:{} of {}x{}", self.row, self.column, self.columns, self.rows);
        self.cells[self.row][self.column] = Cell { text: c.into(), style: self.style };
        for behind in 1..width {
            self.cells[self.row][self.column + behind] = Cell { text: String::new(), style: self.style };
        }
        self.column += width;
    }

    fn apply(&mut self, sequence: &str) {
        let body = &sequence[2..sequence.len() - 1];
        let numbers: Vec<u16> = body.trim_start_matches('?').split(';').map(|part| part.parse().unwrap_or(0)).collect();
        match (sequence.chars().last(), body.strip_prefix('?')) {
            (Some('H'), None) => (self.row, self.column) = (numbers[0] as usize - 1, numbers[1] as usize - 1),
            (Some('J'), None) if body == "2" => {
                self.clears += 1;
                self.cells = vec![vec![Cell::empty(); self.columns]; self.rows];
            }
            (Some('m'), None) => self.set_style(&numbers, sequence),
            (Some('h'), Some(_)) => self.modes.extend(numbers),
            (Some('l'), Some(_)) => self.modes.retain(|mode| !numbers.contains(mode)),
            _ => panic!("the terminal does not know {sequence:?}"),
        }
    }

    fn set_style(&mut self, numbers: &[u16], sequence: &str) {
        let mut rest = numbers;
        while let Some((first, left)) = rest.split_first() {
            rest = left;
            match first {
                0 => self.style = Style::default(),
                1 => self.style.is_bold = true,
                7 => self.style.is_reversed = true,
                22 => self.style.is_bold = false,
                27 => self.style.is_reversed = false,
                38 if left.first() == Some(&5) => {
                    self.style.color = Some(left[1] as u8);
                    rest = &left[2..];
                }
                39 => self.style.color = None,
                49 | 59 => {}
                _ => panic!("the terminal does not know {sequence:?}"),
            }
        }
    }
}

impl Model for Grid {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.pending.push(*byte);
            let Ok(text) = String::from_utf8(self.pending.clone()) else {
                assert!(self.pending.len() < 4, "not UTF-8: {:?}", self.pending);
                continue;
            };
            if text.starts_with('\x1b') {
                let is_end = |c: char| matches!(c, '@'..='~') && c != '[';
                assert!(text.len() < 30 && (text.len() < 2 || text.starts_with("\x1b[")), "unknown: {text:?}");
                if text.len() > 2 && text.ends_with(is_end) {
                    self.pending.clear();
                    self.apply(&text);
                }
                continue;
            }
            self.pending.clear();
            for c in text.chars() {
                let is_shown = !c.is_control() && !matches!(c, '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                assert!(is_shown || !self.modes.contains(&1049), "the terminal got {c:?} raw");
                self.put(c);
            }
        }
    }

    fn resize(&mut self, columns: usize, rows: usize) {
        self.cells.resize(rows, Vec::new());
        self.cells.iter_mut().for_each(|row| row.resize(columns, Cell::empty()));
        (self.columns, self.rows, self.is_resized) = (columns, rows, true);
    }

    fn text(&self) -> String {
        self.lines().join("\n")
    }
}

impl Cell {
    fn empty() -> Self {
        Self { text: " ".into(), style: Style::default() }
    }
}
