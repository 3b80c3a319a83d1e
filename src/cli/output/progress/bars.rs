//! Progress bars on a terminal: one line per layer and one for the total, redrawn in place.

use super::screen::{self, Size};
use super::{Layer, Stage};
use crate::cli::output::units;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Interval between two frames.
const TICK: Duration = Duration::from_millis(100);
/// Period over which the rate is measured.
const WINDOW: Duration = Duration::from_secs(5);
/// Width of Docker's bar, used if the terminal is wide enough.
const LONGEST_BAR: usize = 50;
/// Minimum width of a bar; on narrower terminals only the numbers are shown.
const SHORTEST_BAR: usize = 10;
/// Width of two sizes in the format `%8v/%v`.
const NUMBERS: usize = 8 + 1 + 7;

/// Draws the layers of a pull or push. A separate thread draws, so that a stopped terminal (Ctrl-S) does not block the
/// transfer.
#[derive(Default)]
pub(super) struct Bars {
    shared: Arc<Shared>,
    painter: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// The current image's layers, in order.
    layers: Vec<Layer>,
    /// Times, and the bytes transferred of all layers until then.
    samples: VecDeque<(Instant, u64)>,
    ended: bool,
}

impl Shared {
    fn paint(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            drop(state);
            // Lock order, here and in `settle`: screen, then state. So no frame is older than the settled lines.
            let mut screen = screen::lock();
            let size = screen::size();
            let lines = self.state.lock().frame(size, Instant::now());
            screen.draw(lines, size);
            drop(screen);
            state = self.state.lock();
            self.ended.wait_while_for(&mut state, |state| !state.ended, TICK);
        }
    }
}

impl Bars {
    /// Applies an event to a layer. `new` is the layer's initial state.
    pub(super) fn layer(&self, new: &Layer, apply: impl FnOnce(&mut Layer)) {
        let mut state = self.shared.state.lock();
        let at = state.layers.iter().position(|layer| layer.id == new.id);
        let at = at.unwrap_or_else(|| {
            state.layers.push(new.clone());
            state.layers.len() - 1
        });
        apply(&mut state.layers[at]);
        drop(state);
        self.begin();
    }

    fn begin(&self) {
        let mut painter = self.painter.lock();
        if painter.is_none() {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new().name("plyfs-progress".into()).spawn(move || shared.paint());
            // Without the thread, the layers are shown once at the end.
            *painter = spawned.ok();
        }
    }

    /// Makes the layers' lines permanent; further layers belong to another image.
    pub(super) fn settle(&self) {
        let mut screen = screen::lock();
        let columns = screen::size().columns;
        let mut state = self.shared.state.lock();
        state.samples.clear();
        let layers = std::mem::take(&mut state.layers);
        drop(state);
        if !layers.is_empty() {
            screen.settle(&layers.iter().map(|layer| line(layer, columns)).collect::<Vec<_>>());
        }
    }

    /// Makes the last lines permanent and stops drawing.
    pub(super) fn end(&self) {
        self.settle();
        self.shared.state.lock().ended = true;
        self.shared.ended.notify_all();
        let painter = self.painter.lock().take();
        // The thread returns nothing, and a panic of it is printed already.
        let _ended = painter.map(JoinHandle::join);
    }
}

impl State {
    /// The lines of a frame.
    fn frame(&mut self, size: Size, now: Instant) -> Vec<String> {
        let total = self.total(now);
        let room = size.rows.saturating_sub(1).saturating_sub(usize::from(total.is_some()));
        let shown = fitting(&self.layers, room);
        let total = total.map(|total| cut(total, size.columns));
        shown.into_iter().map(|layer| line(layer, size.columns)).chain(total).collect()
    }

    /// The total of all layers to transfer; `None` if there are none.
    fn total(&mut self, now: Instant) -> Option<String> {
        let coming = || self.layers.iter().filter(|layer| !layer.stage.is_skipped());
        let (got, size) = coming().fold((0, 0u64), |(got, size), l| (got + l.got, size.saturating_add(l.size)));
        let (done, all) = (coming().filter(|l| l.stage.is_done()).count(), coming().count());
        if all == 0 {
            return None;
        }
        self.samples.push_back((now, got));
        while self.samples.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.samples.pop_front();
        }
        let numbers = format!("{}/{}", units::precise_size(got), units::precise_size(size));
        let mut text = format!("Total: {done} of {all} layers  {numbers}");
        if let Some(rate) = self.rate() {
            text += &format!("  {}/s", units::size(rate));
            if rate > 0 && size > got {
                text += &format!("  {} left", time((size - got) / rate));
            }
        }
        Some(text)
    }

    /// The rate over [`WINDOW`], in bytes per second.
    fn rate(&self) -> Option<u64> {
        let (from, to) = (self.samples.front()?, self.samples.back()?);
        let millis = u64::try_from((to.0 - from.0).as_millis()).ok().filter(|millis| *millis > 0)?;
        Some(to.1.saturating_sub(from.1).saturating_mul(1000) / millis)
    }
}

/// The layers to show in `room` lines. Leaves out finished layers first, from the top, then waiting ones, from the
/// bottom.
fn fitting(layers: &[Layer], room: usize) -> Vec<&Layer> {
    let mut over = layers.len().saturating_sub(room);
    let mut spare = |layer: &&Layer, stage: fn(&Stage) -> bool| {
        let spared = over > 0 && stage(&layer.stage);
        over -= usize::from(spared);
        spared
    };
    let mut shown: Vec<&Layer> = layers.iter().filter(|layer| !spare(layer, Stage::is_final)).collect();
    shown.reverse();
    shown.retain(|layer| !spare(layer, |stage| matches!(stage, Stage::Waiting | Stage::Preparing)));
    shown.reverse();
    shown.truncate(room);
    shown
}

/// Formats the line of a layer.
fn line(layer: &Layer, columns: usize) -> String {
    let mut text = format!("{}: {}", layer.id, layer.stage.words());
    if layer.has_bar() {
        text += " ";
        text += &bar(layer.got, layer.size, columns.saturating_sub(1 + text.len()));
    }
    cut(text, columns)
}

/// Formats Docker's bar and numbers, the bar as wide as `room` allows.
fn bar(got: u64, size: u64, room: usize) -> String {
    let got = got.min(size);
    let numbers = format!("{:>8}/{}", units::precise_size(got), units::precise_size(size));
    let long = room.saturating_sub("[>] ".len() + NUMBERS).min(LONGEST_BAR);
    if long < SHORTEST_BAR {
        return numbers;
    }
    let part = u128::from(got) * long as u128 / u128::from(size.max(1));
    let full = usize::try_from(part).unwrap_or(long);
    format!("[{}>{}] {numbers}", "=".repeat(full), " ".repeat(long - full))
}

/// Cuts a line before the terminal's last column, after which the next character would wrap.
fn cut(mut text: String, columns: usize) -> String {
    text.truncate(columns.saturating_sub(1));
    text
}

/// Formats seconds: `3s`, `2m5s`, `1h4m`.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(n: u8, stage: Stage) -> Layer {
        Layer { id: format!("{n:012x}"), size: 28_210_000, got: 3_400_000, stage }
    }

    #[test]
    fn layer_lines_are_those_of_docker() {
        let said = |stage, columns| line(&layer(1, stage), columns);
        for (stage, words) in [
            (Stage::Planned, "Pulling fs layer"),
            (Stage::Waiting, "Waiting"),
            (Stage::Retrying(5), "Retrying in 5 seconds"),
            (Stage::Retrying(1), "Retrying in 1 second"),
            (Stage::Verifying, "Verifying Checksum"),
            (Stage::Complete, "Pull complete"),
            (Stage::Exists, "Already exists"),
            (Stage::Preparing, "Preparing"),
            (Stage::Pushed, "Pushed"),
            (Stage::ExistsThere, "Layer already exists"),
            (Stage::Mounted("library/alpine".into()), "Mounted from library/alpine"),
            (Stage::Foreign, "Skipped foreign layer"),
        ] {
            assert_eq!(said(stage, 80), format!("000000000001: {words}"));
        }
        let docker = "[======>                                            ]    3.4MB/28.21MB";
        assert_eq!(said(Stage::Downloading, 200), format!("000000000001: Downloading {docker}"));
        assert_eq!(said(Stage::Extracting, 200), format!("000000000001: Extracting {docker}"));
        assert_eq!(said(Stage::Pushing, 200), format!("000000000001: Pushing {docker}"));
        let narrow = "000000000001: Downloading [===>                              ]    3.4MB/28.21MB";
        assert_eq!(said(Stage::Downloading, 80), narrow);
        assert_eq!(said(Stage::Downloading, 50), "000000000001: Downloading    3.4MB/28.21MB");
        assert_eq!(said(Stage::Downloading, 32), "000000000001: Downloading    3.");
        let whole = Layer { got: 28_210_000, ..layer(1, Stage::Downloading) };
        let full = "000000000001: Downloading [==================================================>]  28.21MB/28.21MB";
        assert_eq!(line(&whole, 200), full);
        for (got, size) in [(0, 0), (7, 0), (u64::MAX, u64::MAX), (u64::MAX, 3), (999_900_000, 999_900_000)] {
            for columns in 0..120 {
                let text = line(&Layer { got, size, ..layer(1, Stage::Extracting) }, columns);
                assert!(text.len() < columns.max(1), "{columns}: {text}");
            }
        }
    }

    #[test]
    fn the_total_shows_rate_and_time_left() {
        let mut state = State::default();
        let begun = Instant::now();
        assert_eq!(state.total(begun), None);
        state.layers = vec![layer(1, Stage::Exists), layer(2, Stage::Downloading), layer(3, Stage::Complete)];
        state.layers[2].got = 28_210_000;
        assert_eq!(state.total(begun).unwrap(), "Total: 1 of 2 layers  31.61MB/56.42MB");
        state.layers[1].got += 2_000_000;
        let later = state.total(begun + Duration::from_secs(2)).unwrap();
        assert_eq!(later, "Total: 1 of 2 layers  33.61MB/56.42MB  1MB/s  22s left");
        let stalled = state.total(begun + Duration::from_secs(9)).unwrap();
        assert_eq!(stalled, "Total: 1 of 2 layers  33.61MB/56.42MB  0B/s");
        assert_eq!([3, 125, 3840].map(time), ["3s", "2m5s", "1h4m"]);
    }

    #[test]
    fn finished_layers_are_hidden_first_if_rows_are_scarce() {
        let mut state = State::default();
        let size = |rows| Size { columns: 80, rows };
        let stage = |n| match n {
            0..10 => Stage::Complete,
            10..13 => Stage::Downloading,
            _ => Stage::Waiting,
        };
        state.layers = (0..20).map(|n| layer(n, stage(n))).collect();
        let mut shown = |rows| {
            let frame = state.frame(size(rows), Instant::now());
            assert!(frame.len() < rows.max(2), "{rows}: {frame:#?}");
            assert!(frame.last().unwrap().starts_with("Total: 10 of 20 layers"));
            let numbers = frame[..frame.len() - 1].iter().map(|l| u8::from_str_radix(&l[..12], 16).unwrap());
            numbers.collect::<Vec<_>>()
        };
        assert_eq!(shown(50), (0..20).collect::<Vec<_>>());
        assert_eq!(shown(14), (8..20).collect::<Vec<_>>());
        assert_eq!(shown(9), [10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(shown(5), [10, 11, 12]);
        assert_eq!(shown(4), [10, 11]);
        assert_eq!(shown(2), [0; 0]);
        assert_eq!(shown(0), [0; 0]);
    }
}
