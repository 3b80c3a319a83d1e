//! The last lines of the terminal, drawn again and again.
//!
//! The cursor rests at the beginning of the line below them, shown as ever, and no mode of the terminal is changed: a
//! program that ends anywhere leaves nothing to be put right. Each change is one write.

use rustix::termios::tcgetwinsize;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// What is assumed of a terminal that does not tell.
const USUAL: Size = Size { columns: 80, rows: 24 };
/// A terminal may be held up (Ctrl-S). Who ends the program waits no longer than this.
const PATIENCE: Duration = Duration::from_millis(200);

/// There is one terminal.
static SCREEN: Mutex<Screen> = Mutex::new(Screen { drawn: Vec::new(), size: USUAL });

/// How large the terminal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// The lines that are drawn at the moment.
pub(in crate::cli) struct Screen {
    drawn: Vec<String>,
    /// The terminal's when they were drawn.
    size: Size,
}

/// The screen, for as long as the guard lives.
pub(in crate::cli) fn lock() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The terminal's size now.
pub(in crate::cli) fn size() -> Size {
    let found = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stderr()));
    let or = |n: u16, usual: usize| if n == 0 { usual } else { n.into() };
    found.map_or(USUAL, |w| Size { columns: or(w.ws_col, USUAL.columns), rows: or(w.ws_row, USUAL.rows) })
}

impl Screen {
    /// Draws the lines where those before them stand. They fit: each is shorter than the terminal is wide, and there are
    /// fewer than it has rows.
    pub(in crate::cli) fn draw(&mut self, lines: Vec<String>, size: Size) {
        if lines != self.drawn || size != self.size {
            self.replace(&lines, size);
            (self.drawn, self.size) = (lines, size);
        }
    }

    /// Writes the lines where those before them stand, for good. They may be more than the terminal has rows.
    pub(in crate::cli) fn settle(&mut self, lines: &[String]) {
        self.replace(lines, size());
        self.drawn.clear();
    }

    fn replace(&self, lines: &[String], size: Size) {
        let mut text = self.up(size);
        for line in lines {
            // What stood there goes behind the new text and not before it, or it would flicker.
            text += &format!("{line}\x1b[K\r\n");
        }
        write(&(text + "\x1b[J"));
    }

    /// Where the lines begin. A terminal that has become narrower has wrapped them.
    fn up(&self, size: Size) -> String {
        let rows = |line: &String| line.len().div_ceil(size.columns.max(1)).max(1);
        match self.drawn.iter().map(rows).sum::<usize>().min(size.rows.saturating_sub(1)) {
            0 => "\r".into(),
            rows => format!("\r\x1b[{rows}A"),
        }
    }
}

fn write(text: &str) {
    // A pull goes on when nobody looks any more.
    let _gone = crate::cli::output::text(text);
}

/// Ends all drawing, for a program that is about to end. What the terminal has shown of the keys that ended it goes.
pub(in crate::cli) fn leave() {
    let until = Instant::now() + PATIENCE;
    loop {
        match SCREEN.try_lock() {
            Ok(screen) => {
                if !screen.drawn.is_empty() {
                    write("\r\x1b[J");
                }
                // Nobody draws any more.
                return std::mem::forget(screen);
            }
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(PATIENCE / 20),
            Err(_) => return,
        }
    }
}

/// Standard error, which prints above the lines when both are on the terminal.
pub(in crate::cli) struct Above;

impl Write for Above {
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
