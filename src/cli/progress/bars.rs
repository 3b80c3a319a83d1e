//! Progress on a terminal: a line for each layer and one for all of them, in place.

use super::screen::{self, Size};
use super::{Layer, Stage};
use crate::cli::human;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between one picture and the next.
const TICK: Duration = Duration::from_millis(100);
/// What the rate is taken over.
const WINDOW: Duration = Duration::from_secs(5);
/// Docker's bar, where there is room for it.
const LONGEST_BAR: usize = 50;
/// A shorter one says nothing.
const SHORTEST_BAR: usize = 10;
/// `%8v/%v` of two sizes.
const NUMBERS: usize = 8 + 1 + 7;

/// Draws layers as they come. Drawing is a thread's of its own, so that a terminal that is held up holds up nothing else.
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
    /// Of the image that is being taken, in the order of its layers.
    layers: Vec<Layer>,
    /// How much has come of all layers at which time.
    samples: VecDeque<(Instant, u64)>,
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paint(&self) {
        let mut state = self.state();
        while !state.ended {
            drop(state);
            // The screen before the state, here and in `settle`: what is drawn is never older than what was settled.
            let mut screen = screen::lock();
            let size = screen::size();
            let lines = self.state().picture(size, Instant::now());
            screen.draw(lines, size);
            drop(screen);
            let waited = self.ended.wait_timeout_while(self.state(), TICK, |state| !state.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Bars {
    /// Shows what happened to a layer; `new` is it when nothing has.
    pub(super) fn layer(&self, new: &Layer, happened: impl FnOnce(&mut Layer)) {
        let mut state = self.shared.state();
        let at = state.layers.iter().position(|layer| layer.id == new.id);
        let at = at.unwrap_or_else(|| {
            state.layers.push(new.clone());
            state.layers.len() - 1
        });
        happened(&mut state.layers[at]);
        drop(state);
        self.begin();
    }

    fn begin(&self) {
        let mut painter = self.painter.lock().unwrap_or_else(PoisonError::into_inner);
        if painter.is_none() {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new().name("plyfs-progress".into()).spawn(move || shared.paint());
            // Without it, the layers are shown when all have come.
            *painter = spawned.ok();
        }
    }

    /// The layers stay on the screen as they are now; further ones are another image's.
    pub(super) fn settle(&self) {
        let mut screen = screen::lock();
        let columns = screen::size().columns;
        let mut state = self.shared.state();
        state.samples.clear();
        let layers = std::mem::take(&mut state.layers);
        drop(state);
        if !layers.is_empty() {
            screen.settle(&layers.iter().map(|layer| line(layer, columns)).collect::<Vec<_>>());
        }
    }

    /// Settles the last ones and draws nothing any more.
    pub(super) fn end(&self) {
        self.settle();
        self.shared.state().ended = true;
        self.shared.ended.notify_all();
        let painter = self.painter.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It has nothing to say, and a panic of its own has been printed.
        let _ended = painter.map(JoinHandle::join);
    }
}

impl State {
    /// What the screen is to show.
    fn picture(&mut self, size: Size, now: Instant) -> Vec<String> {
        let total = self.total(now);
        let room = size.rows.saturating_sub(1).saturating_sub(usize::from(total.is_some()));
        let shown = fitting(&self.layers, room);
        let total = total.map(|total| cut(total, size.columns));
        shown.into_iter().map(|layer| line(layer, size.columns)).chain(total).collect()
    }

    /// The line for all layers that come.
    fn total(&mut self, now: Instant) -> Option<String> {
        let coming = || self.layers.iter().filter(|layer| !layer.stage.is_spared());
        let (got, size) = coming().fold((0, 0u64), |(got, size), l| (got + l.got, size.saturating_add(l.size)));
        let (done, all) = (coming().filter(|l| l.stage.is_done()).count(), coming().count());
        if all == 0 {
            return None;
        }
        self.samples.push_back((now, got));
        while self.samples.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.samples.pop_front();
        }
        let numbers = format!("{}/{}", human::precise_size(got), human::precise_size(size));
        let mut text = format!("Total: {done} of {all} layers  {numbers}");
        if let Some(rate) = self.rate() {
            text += &format!("  {}/s", human::size(rate));
            if rate > 0 && size > got {
                text += &format!("  {} left", time((size - got) / rate));
            }
        }
        Some(text)
    }

    /// Bytes a second, lately.
    fn rate(&self) -> Option<u64> {
        let (from, to) = (self.samples.front()?, self.samples.back()?);
        let millis = u64::try_from((to.0 - from.0).as_millis()).ok().filter(|millis| *millis > 0)?;
        Some(to.1.saturating_sub(from.1).saturating_mul(1000) / millis)
    }
}

/// As many of the layers as there is room for. Finished ones are left out first, from the top, then waiting ones, from the
/// bottom.
fn fitting(layers: &[Layer], room: usize) -> Vec<&Layer> {
    let mut over = layers.len().saturating_sub(room);
    let mut spare = |layer: &&Layer, stage: fn(&Stage) -> bool| {
        let spared = over > 0 && stage(&layer.stage);
        over -= usize::from(spared);
        spared
    };
    let mut shown: Vec<&Layer> = layers.iter().filter(|layer| !spare(layer, Stage::is_last)).collect();
    shown.reverse();
    shown.retain(|layer| !spare(layer, |stage| matches!(stage, Stage::Waiting | Stage::Preparing)));
    shown.reverse();
    shown.truncate(room);
    shown
}

/// A layer's line.
fn line(layer: &Layer, columns: usize) -> String {
    let mut text = format!("{}: {}", layer.id, layer.stage.words());
    if layer.has_bar() {
        text += " ";
        text += &bar(layer.got, layer.size, columns.saturating_sub(1 + text.len()));
    }
    cut(text, columns)
}

/// Docker's bar and numbers, the bar as long as there is room for it.
fn bar(got: u64, size: u64, room: usize) -> String {
    let got = got.min(size);
    let numbers = format!("{:>8}/{}", human::precise_size(got), human::precise_size(size));
    let long = room.saturating_sub("[>] ".len() + NUMBERS).min(LONGEST_BAR);
    if long < SHORTEST_BAR {
        return numbers;
    }
    let part = u128::from(got) * long as u128 / u128::from(size.max(1));
    let full = usize::try_from(part).unwrap_or(long);
    format!("[{}>{}] {numbers}", "=".repeat(full), " ".repeat(long - full))
}

/// A line that leaves the terminal's last column free, where the next character would wrap.
fn cut(mut text: String, columns: usize) -> String {
    text.truncate(columns.saturating_sub(1));
    text
}

/// `3s`, `2m5s`, `1h4m`.
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
    fn lines_in_dockers_words() {
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
    fn the_line_for_all() {
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
    fn more_layers_than_rows() {
        let mut state = State::default();
        let size = |rows| Size { columns: 80, rows };
        let stage = |n| match n {
            0..10 => Stage::Complete,
            10..13 => Stage::Downloading,
            _ => Stage::Waiting,
        };
        state.layers = (0..20).map(|n| layer(n, stage(n))).collect();
        let mut shown = |rows| {
            let picture = state.picture(size(rows), Instant::now());
            assert!(picture.len() < rows.max(2), "{rows}: {picture:#?}");
            assert!(picture.last().unwrap().starts_with("Total: 10 of 20 layers"));
            let numbers = picture[..picture.len() - 1].iter().map(|l| u8::from_str_radix(&l[..12], 16).unwrap());
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
