//! Live lines at the bottom of the terminal, redrawn in place.
//!
//! The cursor stays visible, at the beginning of the line below them, and the terminal's modes stay unchanged: nothing
//! needs to be restored when the program exits. Each change is one write.

use parking_lot::{Mutex, MutexGuard};
use rustix::termios::tcgetwinsize;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Assumed if the terminal does not report its size.
const DEFAULT_SIZE: Size = Size { columns: 80, rows: 24 };
/// How long an exiting program waits for the lock. Output may be stopped (Ctrl-S) while a drawing thread holds it.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// The one terminal of the process.
static SCREEN: Mutex<Screen> = Mutex::new(Screen { drawn: Vec::new(), size: DEFAULT_SIZE });

/// The size of a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// The live lines.
pub(in crate::cli) struct Screen {
    drawn: Vec<String>,
    /// The terminal's size when they were drawn.
    size: Size,
}

/// Locks the screen.
pub(in crate::cli) fn lock() -> MutexGuard<'static, Screen> {
    SCREEN.lock()
}

/// The terminal's current size.
pub(in crate::cli) fn size() -> Size {
    let found = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stderr()));
    let or = |n: u16, default: usize| if n == 0 { default } else { n.into() };
    found.map_or(DEFAULT_SIZE, |w| Size {
        columns: or(w.ws_col, DEFAULT_SIZE.columns),
        rows: or(w.ws_row, DEFAULT_SIZE.rows),
    })
}

impl Screen {
    /// Redraws the live lines. Each line must be shorter than the terminal is wide, and there must be fewer lines
    /// than rows.
    pub(in crate::cli) fn draw(&mut self, lines: Vec<String>, size: Size) {
        if lines != self.drawn || size != self.size {
            self.replace(&lines, size);
            (self.drawn, self.size) = (lines, size);
        }
    }

    /// Replaces the live lines by permanent ones, of which there may be more than rows.
    pub(in crate::cli) fn settle(&mut self, lines: &[String]) {
        self.replace(lines, size());
        self.drawn.clear();
    }

    fn replace(&self, lines: &[String], size: Size) {
        let mut text = self.up(size);
        for line in lines {
            // The rest of the old line is erased after the new text is written: erasing it before would flicker.
            text += &format!("{line}\x1b[K\r\n");
        }
        write(&(text + "\x1b[J"));
    }

    /// The escape sequence to move to the first live line. A terminal that became narrower has wrapped the lines.
    fn up(&self, size: Size) -> String {
        let rows = |line: &String| line.len().div_ceil(size.columns.max(1)).max(1);
        match self.drawn.iter().map(rows).sum::<usize>().min(size.rows.saturating_sub(1)) {
            0 => "\r".into(),
            rows => format!("\r\x1b[{rows}A"),
        }
    }
}

fn write(text: &str) {
    // Ignored: an operation continues if its output is closed.
    let _gone = crate::cli::output::stdout::text(text);
}

/// Stops all drawing, for a program about to exit, and erases the echo of the key that ended it (`^C`).
pub(in crate::cli) fn leave() {
    let Some(screen) = SCREEN.try_lock_for(LOCK_TIMEOUT) else { return };
    if !screen.drawn.is_empty() {
        write("\r\x1b[J");
    }
    // Leaves the lock held, so that no other thread draws.
    std::mem::forget(screen);
}

/// Writes to standard error, above the live lines if standard error is a terminal.
pub(in crate::cli) struct StderrAboveLines;

impl Write for StderrAboveLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let screen = lock();
        if screen.drawn.is_empty() || !io::stderr().is_terminal() {
            return io::stderr().write_all(bytes);
        }
        write(&(screen.up(size()) + "\x1b[J"));
        let done = io::stderr().write_all(bytes);
        let again: String = screen.drawn.iter().map(|line| format!("{line}\r\n")).collect();
        write(&again);
        done
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
