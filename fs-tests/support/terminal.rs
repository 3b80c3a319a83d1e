//! A terminal emulator for tests: a pseudo-terminal to run plyfs on, and a model of its screen.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A terminal's screen. It knows only the escape sequences that plyfs uses: an unknown one fails the test.
pub struct Screen {
    columns: usize,
    rows: usize,
    /// All rows, including those scrolled off the top, each with whether the next row continues it.
    lines: Vec<(String, bool)>,
    row: usize,
    column: usize,
    /// The number of lines that were wrapped when written.
    pub wrapped: usize,
    /// An incomplete escape sequence.
    pending: String,
}

impl Screen {
    /// An empty screen.
    pub fn new(columns: usize, rows: usize) -> Self {
        let lines = vec![(String::new(), false)];
        Self { columns, rows, lines, row: 0, column: 0, wrapped: 0, pending: String::new() }
    }

    /// All text, including the scrollback, without empty lines at the end.
    pub fn text(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(|(line, _)| line.as_str()).collect();
        lines.join("\n").trim_end().to_owned()
    }

    /// The visible lines.
    pub fn visible(&self) -> Vec<&str> {
        self.lines[self.top()..].iter().map(|(line, _)| line.as_str()).collect()
    }

    /// Whether the cursor stands at the beginning of an empty line with nothing below it.
    pub fn is_cursor_at_end(&self) -> bool {
        self.column == 0 && self.row + 1 == self.lines.len() && self.lines[self.row].0.is_empty()
    }

    /// All lines that contain `part`.
    pub fn lines_with(&self, part: &str) -> Vec<&str> {
        self.lines.iter().map(|(line, _)| line.as_str()).filter(|line| line.contains(part)).collect()
    }

    /// Changes the width, wrapping and joining lines as terminals do.
    pub fn resize(&mut self, columns: usize, rows: usize) {
        assert!(self.is_cursor_at_end(), "the screen model can only be resized between two frames");
        let mut joined = vec![String::new()];
        for (line, is_continued) in &self.lines {
            *joined.last_mut().unwrap() += line;
            if !is_continued {
                joined.push(String::new());
            }
        }
        self.lines.clear();
        for line in &joined[..joined.len() - 1] {
            let pieces: Vec<&str> = match line.as_str() {
                "" => vec![""],
                line => (0..line.len()).step_by(columns).map(|at| &line[at..line.len().min(at + columns)]).collect(),
            };
            let last = pieces.len() - 1;
            self.lines.extend(pieces.into_iter().enumerate().map(|(at, piece)| (piece.to_owned(), at < last)));
        }
        (self.columns, self.rows, self.row) = (columns, rows, self.lines.len() - 1);
    }

    /// Processes a program's output.
    pub fn feed(&mut self, bytes: &[u8]) {
        for c in String::from_utf8(bytes.to_vec()).expect("plyfs draws in ASCII").chars() {
            match c {
                _ if !self.pending.is_empty() => self.apply_escape(c),
                '\x1b' => self.pending.push(c),
                '\r' => self.column = 0,
                '\n' => self.line_feed(),
                ' '..='~' => self.put(c),
                other => panic!("the terminal does not know {other:?}"),
            }
        }
    }

    fn top(&self) -> usize {
        self.lines.len().saturating_sub(self.rows)
    }

    fn line_feed(&mut self) {
        self.row += 1;
        if self.row == self.lines.len() {
            self.lines.push((String::new(), false));
        }
    }

    fn put(&mut self, c: char) {
        if self.column == self.columns {
            self.wrapped += 1;
            self.lines[self.row].1 = true;
            self.line_feed();
            self.column = 0;
        }
        let line = &mut self.lines[self.row].0;
        while line.len() < self.column {
            line.push(' ');
        }
        line.replace_range(self.column..line.len().min(self.column + 1), c.encode_utf8(&mut [0; 4]));
        self.column += 1;
    }

    fn apply_escape(&mut self, c: char) {
        self.pending.push(c);
        if matches!(c, '[' | '0'..='9') {
            return;
        }
        let sequence = std::mem::take(&mut self.pending);
        let number = sequence[2..sequence.len() - 1].parse::<usize>();
        match (c, number) {
            ('A', Ok(rows)) => self.row = self.row.saturating_sub(rows).max(self.top()),
            ('K', Err(_)) => self.erase_to_end(),
            ('J', Err(_)) => {
                self.lines.truncate(self.row + 1);
                self.erase_to_end();
            }
            _ => panic!("the terminal does not know {sequence:?}"),
        }
    }

    fn erase_to_end(&mut self) {
        let (line, is_continued) = &mut self.lines[self.row];
        line.truncate(self.column);
        *is_continued = false;
    }
}

/// A model of what a terminal shows.
pub trait Model {
    /// Processes a program's output.
    fn feed(&mut self, bytes: &[u8]);
    /// Changes the size.
    fn resize(&mut self, columns: usize, rows: usize);
    /// All text.
    fn text(&self) -> String;
}

impl Model for Screen {
    fn feed(&mut self, bytes: &[u8]) {
        Screen::feed(self, bytes);
    }

    fn resize(&mut self, columns: usize, rows: usize) {
        Screen::resize(self, columns, rows);
    }

    fn text(&self) -> String {
        Screen::text(self)
    }
}

/// A program on its own pseudo-terminal, killed on drop.
pub struct Terminal<M = Screen> {
    /// What the terminal shows.
    pub screen: M,
    /// The terminal's settings before the program ran.
    pub settings: Termios,
    child: Child,
    controller: File,
    output: Receiver<Vec<u8>>,
}

impl Terminal {
    /// Runs a command that prints lines on a terminal, with default signal dispositions.
    pub fn run(command: &Command, columns: u16, rows: u16) -> Self {
        Terminal::run_on(Screen::new(columns.into(), rows.into()), command, columns, rows)
    }
}

impl<M: Model> Terminal<M> {
    /// Runs a command on a terminal of that model, with default signal dispositions.
    pub fn run_on(screen: M, command: &Command, columns: u16, rows: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = File::from(rustix::fs::open(&name, flags, Mode::empty()).unwrap());
        set_size(&controller, columns, rows);
        let mut outer = Command::new("setsid");
        outer.args(["--ctty", "env", "--default-signal"]).arg(command.get_program()).args(command.get_args());
        outer.env("TERM", "xterm");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        let end = || user.try_clone().unwrap();
        let settings = tcgetattr(&user).unwrap();
        let child = outer.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let controller = File::from(controller);
        let (sender, output) = channel();
        let mut reader = controller.try_clone().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails once the program has closed the terminal.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { screen, settings, child, controller, output }
    }

    /// The program's process ID.
    pub fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The terminal's settings now.
    pub fn settings_now(&self) -> Termios {
        tcgetattr(&self.controller).unwrap()
    }

    /// Waits until the screen satisfies `shown`.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, shown: impl Fn(&M) -> bool) {
        let until = Instant::now() + TIMEOUT;
        while !shown(&self.screen) {
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.feed(&bytes),
                Err(why) => panic!("{what} was never shown ({why}):\n{}", self.screen.text()),
            }
        }
    }

    /// Sends keys to the program.
    pub fn send(&mut self, keys: &str) {
        self.controller.write_all(keys.as_bytes()).unwrap();
    }

    /// Changes the terminal's size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.screen.resize(columns.into(), rows.into());
        set_size(&self.controller, columns, rows);
    }

    /// Waits for the program's end and for all of its output.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        let until = Instant::now() + TIMEOUT;
        loop {
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.feed(&bytes),
                Err(RecvTimeoutError::Disconnected) => return status,
                Err(RecvTimeoutError::Timeout) => panic!("the terminal is still in use:\n{}", self.screen.text()),
            }
        }
    }
}

impl<M> Drop for Terminal<M> {
    fn drop(&mut self) {
        // The program may have ended, and an error cannot be reported during a panic.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn set_size(terminal: &impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
