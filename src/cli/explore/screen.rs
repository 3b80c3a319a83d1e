//! The terminal while `explore` runs: alternate screen, raw mode and mouse, all undone at the end, however that comes.

use crate::sys::Signals;
use parking_lot::{Mutex, MutexGuard};
use ratatui::backend::{Backend, ClearType, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::style::Print;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{event, execute, queue};
use ratatui::layout::{Position, Rect, Size};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;
use std::io::{self, BufWriter, Stdout, Write};
use std::time::Duration;

/// Reports clicks and the wheel (1000) in the form that has no limit of columns (1006). Not movements, as crossterm's
/// command does: each would wake the program.
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";
/// How long a signal waits for a frame that is being written. A terminal that reads nothing blocks the write without
/// end.
const FRAME_LIMIT: Duration = Duration::from_secs(1);
/// The exit code after a hangup: 128 + SIGHUP.
pub(super) const HANGUP: u8 = 129;

/// Held while a frame is written, and by whoever ends the program, who never releases it: nothing is written after the
/// sequences that restore the terminal.
static WRITING: Mutex<()> = Mutex::new(());

/// The terminal, set up. Dropping it restores the terminal.
pub(super) struct Screen {
    backend: CrosstermBackend<BufWriter<Stdout>>,
    /// What the terminal shows; `None` if that is unknown.
    shown: Option<Buffer>,
}

impl Screen {
    /// Sets the terminal up. From now on SIGINT, SIGTERM, SIGHUP and the end of the terminal restore it and end the
    /// program with 128 plus the signal's number. The process must be single-threaded.
    pub fn begin() -> anyhow::Result<Screen> {
        let signals = Signals::block_heeded()?;
        enable_raw_mode()?;
        let screen = Screen { backend: CrosstermBackend::new(BufWriter::new(io::stdout())), shown: None };
        let signalled = move || signals.wait().map_or((), |signal| end(128 + signal));
        std::thread::Builder::new().name("plyfs-signals".into()).spawn(signalled)?;
        std::thread::Builder::new().name("plyfs-hangup".into()).spawn(exit_on_hangup)?;
        let mut out = io::stdout().lock();
        // Begins to receive SIGWINCH: a change of the size after the first frame must not be lost.
        event::poll(Duration::ZERO)?;
        execute!(out, EnterAlternateScreen, Print(MOUSE_ON))?;
        Ok(screen)
    }

    /// Whether the terminal has been closed.
    pub fn is_closed() -> bool {
        let stdin = io::stdin();
        let mut polled = [PollFd::new(&stdin, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|found| found > 0)
    }

    /// Returns the size of the terminal on standard output; 80x24 if it does not say.
    pub fn size() -> io::Result<Size> {
        let size = tcgetwinsize(io::stdout())?;
        Ok(match (size.ws_col, size.ws_row) {
            (0, _) | (_, 0) => Size { width: 80, height: 24 },
            (width, height) => Size { width, height },
        })
    }

    /// Draws a frame of that size: writes only what differs from the last one. `draw` returns where the cursor is.
    pub fn frame(&mut self, size: Size, draw: impl FnOnce(&mut Buffer) -> Option<Position>) -> io::Result<()> {
        let area = Rect { x: 0, y: 0, width: size.width, height: size.height };
        let mut next = Buffer::empty(area);
        let cursor = draw(&mut next);
        let _writing = WRITING.lock();
        let before = self.shown.take().filter(|shown| shown.area == area);
        let before = match before {
            Some(before) => before,
            None => {
                self.backend.hide_cursor()?;
                self.backend.clear_region(ClearType::All)?;
                Buffer::empty(area)
            }
        };
        let changes = before.diff(&next);
        if !changes.is_empty() {
            self.backend.draw(changes.into_iter())?;
        }
        match cursor {
            Some(at) => {
                self.backend.set_cursor_position(at)?;
                self.backend.show_cursor()?;
            }
            None => self.backend.hide_cursor()?,
        }
        Write::flush(&mut self.backend)?;
        self.shown = Some(next);
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let writing = WRITING.lock();
        restore();
        // A signal from now on ends the program, but does not restore the terminal a second time: what the program
        // prints after this stays visible.
        MutexGuard::leak(writing);
    }
}

/// Leaves the alternate screen and raw mode. Errors cannot be reported anywhere: the terminal may be gone.
fn restore() {
    let mut out = io::stdout();
    let _gone = queue!(out, Print(MOUSE_OFF), LeaveAlternateScreen, Show).and_then(|()| out.flush());
    let _gone = disable_raw_mode();
}

/// Restores the terminal, if that has not been done, and ends the program.
fn end(code: i32) {
    if let Some(writing) = WRITING.try_lock_for(FRAME_LIMIT) {
        restore();
        MutexGuard::leak(writing);
    }
    std::process::exit(code);
}

/// Ends the program when the terminal is closed. The kernel sends SIGHUP then only to the session's processes in the
/// foreground, and reading would return nothing again and again.
fn exit_on_hangup() {
    let stdin = io::stdin();
    loop {
        // Without events, only a hangup or an error ends the wait.
        let mut polled = [PollFd::new(&stdin, PollFlags::empty())];
        match poll(&mut polled, None) {
            Ok(_) => return end(HANGUP.into()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
