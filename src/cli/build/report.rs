//! Progress of a build, as BuildKit shows it: lines, or live lines on a terminal. All of it goes to standard error.

use super::input::Input;
use crate::build::{Ended, Error, StepId, Watch};
use crate::cli::output::progress::screen::{self, Size};
use crate::name::show;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Style {
    /// tty on a terminal, else plain
    Auto,
    /// Lines
    Plain,
    /// Live lines, for a terminal
    Tty,
    #[value(skip)]
    Quiet,
}

/// Lines of a command's output that are shown live below its step.
const LIVE_LINES: usize = 4;
/// Lines of a failed command's output that are shown again.
const LAST_LINES: usize = 100;
/// Time between two drawings.
const TICK: Duration = Duration::from_millis(100);

struct Step {
    title: String,
    begun: Instant,
    /// How it ended, and after how long.
    ended: Option<(Ended, Duration)>,
    /// The beginning of a line of output.
    part: Vec<u8>,
    /// The last lines of output.
    last: VecDeque<String>,
}

#[derive(Default)]
struct State {
    steps: BTreeMap<StepId, Step>,
}

/// The display of a build.
pub(super) struct Report {
    style: Style,
    begun: Instant,
    state: Arc<Mutex<State>>,
    drawing: Arc<AtomicBool>,
    drawer: Mutex<Option<JoinHandle<()>>>,
}

impl Report {
    pub(super) fn new(style: Style) -> Report {
        let dumb = || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // The live lines are drawn on standard output.
        let is_terminal = io::stderr().is_terminal() && io::stdout().is_terminal();
        let style = match style {
            Style::Auto if is_terminal && !dumb() => Style::Tty,
            Style::Auto => Style::Plain,
            style => style,
        };
        let state = Arc::default();
        Report { style, begun: Instant::now(), state, drawing: Arc::default(), drawer: Mutex::default() }
    }

    /// Begins to draw, if there is a terminal.
    pub(super) fn start_drawing(&self) {
        if self.style != Style::Tty {
            return;
        }
        self.drawing.store(true, Ordering::SeqCst);
        let (state, drawing, begun) = (Arc::clone(&self.state), Arc::clone(&self.drawing), self.begun);
        let draw = move || {
            while drawing.load(Ordering::SeqCst) {
                let size = screen::size();
                let lines = frame(&state.lock(), begun, size);
                screen::lock().draw(lines, size);
                thread::sleep(TICK);
            }
        };
        // Without the thread nothing is drawn until the end.
        *self.drawer.lock() = thread::Builder::new().name("plyfs-drawing".into()).spawn(draw).ok();
    }

    /// Ends the drawing.
    pub(super) fn stop_drawing(&self) {
        if !self.drawing.swap(false, Ordering::SeqCst) {
            return;
        }
        if let Some(drawer) = self.drawer.lock().take() {
            let _ended = drawer.join();
        }
        let size = Size { rows: usize::MAX, ..screen::size() };
        let lines = frame(&self.state.lock(), self.begun, size);
        screen::lock().settle(&lines);
    }

    /// Shows the output of the step that failed, and the lines of the Dockerfile.
    pub(super) fn failed(&self, input: &Input, error: &Error) {
        let state = self.state.lock();
        let mut out = String::new();
        let failed = state.steps.values().find(|step| matches!(step.ended, Some((Ended::Failed(_), _))));
        if let Some(step) = failed.filter(|step| !step.last.is_empty()) {
            out += &format!("------\n > {}:\n", step.title);
            for line in &step.last {
                out += &format!("{line}\n");
            }
            out += "------\n";
        }
        if let Some(at) = error.line {
            out += &format!("{}:{at}\n--------------------\n", input.name());
            let lines = input.lines();
            for number in at.saturating_sub(2).max(1)..=(at + 2).min(lines.len()) {
                let mark = if number == at { ">>>" } else { "   " };
                let line = lines.get(number - 1).copied().unwrap_or_default();
                out += format!(" {number:3} | {mark} {}", plain(line)).trim_end();
                out.push('\n');
            }
            out += "--------------------\n";
        }
        say(&out);
    }
}

/// Prints to standard error. A build goes on when nobody reads it.
fn say(text: &str) {
    let _gone = io::stderr().lock().write_all(text.as_bytes());
}

/// A line of output without control characters, which could change the terminal.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push(c),
            '\x1b' => {
                // Colours and the like.
                if chars.next_if_eq(&'[').is_some() {
                    while chars.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                    chars.next();
                }
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Makes the live lines.
fn frame(state: &State, begun: Instant, size: Size) -> Vec<String> {
    let done = state.steps.values().filter(|step| step.ended.is_some()).count();
    let total = begun.elapsed().as_secs_f64();
    let mut lines = vec![format!("[+] Building {total:.1}s ({done}/{})", state.steps.len())];
    for step in state.steps.values() {
        let (mark, time) = match &step.ended {
            Some((Ended::Cached, _)) => ("CACHED ", Duration::ZERO),
            Some((Ended::Failed(_), time)) => ("ERROR ", *time),
            Some((Ended::Done, time)) => ("", *time),
            None => ("", step.begun.elapsed()),
        };
        let time = format!("{:.1}s", time.as_secs_f64());
        let left = format!(" => {mark}{}", step.title);
        let room = size.columns.saturating_sub(time.len() + 2);
        let left: String = left.chars().take(room).collect();
        lines.push(format!("{left:room$} {time}"));
        if step.ended.is_none() {
            let skip = step.last.len().saturating_sub(LIVE_LINES);
            lines.extend(
                step.last.iter().skip(skip).map(|line| {
                    format!(" => => {line}").chars().take(size.columns.saturating_sub(1)).collect::<String>()
                }),
            );
        }
    }
    // The latest steps are the interesting ones.
    let most = size.rows.saturating_sub(1).max(1);
    if lines.len() > most {
        lines.drain(1..=lines.len() - most);
    }
    lines
}

impl Watch for Report {
    fn begin(&self, title: &str) -> StepId {
        let mut state = self.state.lock();
        let id = state.steps.len() as StepId + 1;
        let title = plain(title);
        if self.style == Style::Plain {
            say(&format!("#{id} {title}\n"));
        }
        let (begun, part, last) = (Instant::now(), Vec::new(), VecDeque::new());
        state.steps.insert(id, Step { title, begun, ended: None, part, last });
        id
    }

    fn output(&self, id: StepId, bytes: &[u8]) {
        let mut state = self.state.lock();
        let Some(step) = state.steps.get_mut(&id) else { return };
        step.part.extend_from_slice(bytes);
        while let Some(end) = step.part.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let line: Vec<u8> = step.part.drain(..=end).collect();
            step.line(self.style, id, &line[..end]);
        }
    }

    fn end(&self, id: StepId, ended: Ended) {
        let mut state = self.state.lock();
        let Some(step) = state.steps.get_mut(&id) else { return };
        let rest = std::mem::take(&mut step.part);
        step.line(self.style, id, &rest);
        let time = step.begun.elapsed();
        if self.style == Style::Plain {
            say(&match &ended {
                Ended::Done => format!("#{id} DONE {:.1}s\n\n", time.as_secs_f64()),
                Ended::Cached => format!("#{id} CACHED\n\n"),
                Ended::Failed(why) => format!("#{id} ERROR: {why}\n\n"),
            });
        }
        step.ended = Some((ended, time));
    }

    fn warn(&self, text: &str) {
        tracing::warn!("{text}");
    }
}

impl Step {
    /// Takes one line of output.
    fn line(&mut self, style: Style, id: StepId, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => plain(text),
            Err(_) => show(bytes),
        };
        if style == Style::Plain {
            say(&format!("#{id} {:.3} {text}\n", self.begun.elapsed().as_secs_f64()));
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_cannot_change_the_terminal() {
        assert_eq!(plain("a\x1b[31mred\x1b[0m\x07b\x1b]0;title\tc"), "aredb]0;title\tc");
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let report = Report::new(Style::Quiet);
        for number in 0..30 {
            let id = report.begin(&format!("[{number}/30] RUN {}", "x".repeat(100)));
            report.output(id, "y".repeat(200).as_bytes());
            report.output(id, b"\nz\n");
        }
        let lines = frame(&report.state.lock(), Instant::now(), Size { columns: 40, rows: 10 });
        assert!(lines.len() == 9 && lines.iter().all(|line| line.chars().count() < 40), "{lines:#?}");
        assert!(lines[0].starts_with("[+] Building") && lines[8] == " => => z", "{lines:#?}");
    }
}
