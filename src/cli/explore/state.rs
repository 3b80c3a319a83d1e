//! The state of `explore`: what is shown, what is selected, and how keys and clicks change it. No terminal.

use super::extract;
use super::geometry::{Areas, Scroll, WASTE_HEADING, areas};
use super::help;
use super::viewer::Viewer;
use crate::browse::{Item, Owners, Stack, View};
use crate::cli::output::units;
use crate::fs::Fs;
use crate::meta::Kind;
use crate::name::show;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use ratatui::layout::{Rect, Size};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::Path;

/// How many rows one step of the mouse wheel scrolls.
const WHEEL: isize = 3;

/// A layer as the list of layers shows it.
pub(super) struct Layer {
    /// Bytes of its uncompressed tar.
    pub size: u64,
    /// The command that made it, printable.
    pub command: String,
}

/// An expanded tree's line.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub item: Item,
    pub depth: u16,
    /// Whether it is a directory whose entries follow.
    pub is_open: bool,
}

/// The two lists beside each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pane {
    Layers,
    Tree,
}

/// The order of a directory's entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Name,
    Size,
}

/// What covers both lists.
pub(super) enum Overlay {
    None,
    Help(Scroll),
    Waste(Scroll),
    Viewer(Box<Viewer>),
}

/// What the text that is being typed is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Search,
    Destination,
}

/// A line of text that is being typed.
pub(super) struct Prompt {
    pub ask: Ask,
    pub text: String,
    /// The entry that was selected when the search began: each key searches from there.
    from: Option<Item>,
}

/// Work that is done once for a burst of keys: in a large image it takes longer than the next key is away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    None,
    /// Another layer is selected.
    Layer,
    /// Another text is to be searched for.
    Search,
}

/// Everything that is shown.
pub(super) struct State {
    pub stack: Stack,
    pub owners: Owners,
    pub title: String,
    pub layers: Vec<Layer>,
    pub layer: Scroll,
    pub view: View,
    pub order: Order,
    pub rows: Vec<Row>,
    pub row: Scroll,
    pub pane: Pane,
    pub overlay: Overlay,
    pub prompt: Option<Prompt>,
    /// The text that was searched for last.
    pub pattern: String,
    /// The result of the last key, until the next one.
    pub message: String,
    /// Whether the program must end.
    pub is_done: bool,
    pub areas: Areas,
    pending: Pending,
    /// The paths of the expanded directories.
    open: HashSet<Vec<u8>>,
}

impl State {
    /// Shows the whole image, with the topmost layer selected.
    pub fn new(stack: Stack, title: String, layers: Vec<Layer>, size: Size) -> anyhow::Result<State> {
        let mut state = State {
            layer: Scroll::at(layers.len().saturating_sub(1)),
            owners: Owners::of(stack.whole().fs()),
            stack,
            title,
            layers,
            view: View::Whole,
            order: Order::Name,
            rows: Vec::new(),
            row: Scroll::at(0),
            pane: Pane::Tree,
            overlay: Overlay::None,
            prompt: None,
            pattern: String::new(),
            message: String::new(),
            is_done: false,
            areas: Areas::default(),
            pending: Pending::None,
            open: HashSet::new(),
        };
        state.rows = state.build()?;
        state.resize(size);
        Ok(state)
    }

    /// Lays the panes out for a terminal of that size.
    pub fn resize(&mut self, size: Size) {
        self.areas = areas(size, self.pane == Pane::Tree);
        self.settle();
    }

    /// Handles a key. An error is shown, and ends nothing. [`State::refresh`] must be called before the state is drawn.
    pub fn key(&mut self, key: KeyEvent) {
        self.message.clear();
        if !self.continues(key) {
            self.refresh();
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            self.is_done = true;
            return;
        }
        let done = if self.prompt.is_some() {
            self.prompt_key(key)
        } else if matches!(self.overlay, Overlay::None) {
            self.list_key(key)
        } else {
            self.overlay_key(key)
        };
        self.report(done);
        self.settle();
    }

    /// Does what the last keys have left to do.
    pub fn refresh(&mut self) {
        let done = match std::mem::replace(&mut self.pending, Pending::None) {
            Pending::None => return,
            Pending::Layer => self.choose(self.layer.at),
            Pending::Search => {
                let from = self.prompt.as_ref().and_then(|prompt| prompt.from);
                self.search(true, from, true)
            }
        };
        self.report(done);
        self.settle();
    }

    /// Whether a key only adds to the pending work.
    fn continues(&self, key: KeyEvent) -> bool {
        match self.pending {
            Pending::None => true,
            Pending::Layer => Scroll::at(0).key(key.code, 1, 1),
            Pending::Search => matches!(key.code, KeyCode::Char(_) | KeyCode::Backspace),
        }
    }

    /// Handles a click or the wheel; returns whether anything has changed.
    pub fn mouse(&mut self, event: MouseEvent) -> bool {
        let by = match event.kind {
            MouseEventKind::ScrollUp => -WHEEL,
            MouseEventKind::ScrollDown => WHEEL,
            MouseEventKind::Down(MouseButton::Left) => 0,
            _ => return false,
        };
        self.message.clear();
        let at = (event.column, event.row);
        let is_over_layers = self.areas.line_of(self.areas.layers, at).is_some();
        if !(is_over_layers && by != 0 && self.pending == Pending::Layer) {
            self.refresh();
        }
        let done = if by == 0 { self.click(at) } else { self.wheel(at, by) };
        self.report(done);
        self.settle();
        true
    }

    /// Returns the file system that has an entry.
    pub fn fs(&self, item: &Item) -> anyhow::Result<&Fs> {
        Ok(self.stack.tree_of(self.view, item)?.fs())
    }

    /// Returns the path of a row from the root, without a leading slash.
    pub fn path(&self, row: usize) -> anyhow::Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut depth = self.rows[row].depth + 1;
        for row in self.rows[..=row].iter().rev() {
            if row.depth < depth {
                names.push(self.stack.name(self.view, &row.item)?);
                depth = row.depth;
            }
            if depth == 0 {
                break;
            }
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Returns the selected row.
    pub fn selected(&self) -> Option<&Row> {
        self.rows.get(self.row.at)
    }

    fn report(&mut self, done: anyhow::Result<()>) {
        if let Err(error) = done {
            self.message = show(error.to_string().as_bytes());
        }
    }

    /// Keeps every selection within its list and visible.
    fn settle(&mut self) {
        self.areas = areas(self.areas.size, self.pane == Pane::Tree);
        let height = |area: Rect| usize::from(area.height);
        self.layer.settle(self.layers.len(), height(self.areas.layers));
        self.row.settle(self.rows.len(), height(self.areas.tree));
        let whole = height(self.areas.overlay);
        match &mut self.overlay {
            Overlay::None | Overlay::Viewer(_) => {}
            Overlay::Help(scroll) => scroll.settle_view(help::LINES.len(), whole),
            Overlay::Waste(scroll) => {
                let files = self.stack.waste().map_or(0, |waste| waste.files.len());
                scroll.settle(files, whole.saturating_sub(WASTE_HEADING));
            }
        }
    }

    fn list_key(&mut self, key: KeyEvent) -> anyhow::Result<()> {
        match key.code {
            KeyCode::Char('q') => self.is_done = true,
            KeyCode::Char('?') => self.overlay = Overlay::Help(Scroll::at(0)),
            KeyCode::Char('m') => {
                let layer = self.layer.at;
                return self.show(match self.view {
                    View::Whole if self.layers.is_empty() => View::Whole,
                    View::Whole => View::AsOf(layer),
                    View::AsOf(_) => View::Changes(layer),
                    View::Changes(_) => View::Whole,
                });
            }
            KeyCode::Char('s') => {
                self.order = if self.order == Order::Name { Order::Size } else { Order::Name };
                return self.show(self.view);
            }
            KeyCode::Char('w') => {
                self.stack.waste()?;
                self.overlay = Overlay::Waste(Scroll::at(0));
            }
            KeyCode::Char('/') => self.ask(Ask::Search, String::new()),
            KeyCode::Char('n') => return self.search(true, self.selected().map(|row| row.item), false),
            KeyCode::Char('N') => return self.search(false, self.selected().map(|row| row.item), false),
            KeyCode::Char('x') => return self.ask_destination(),
            KeyCode::Tab | KeyCode::BackTab => {
                self.pane = if self.pane == Pane::Tree { Pane::Layers } else { Pane::Tree };
            }
            _ if self.pane == Pane::Layers => return self.layer_key(key),
            _ => return self.tree_key(key),
        }
        Ok(())
    }

    fn layer_key(&mut self, key: KeyEvent) -> anyhow::Result<()> {
        if matches!(key.code, KeyCode::Enter | KeyCode::Right) {
            self.pane = Pane::Tree;
        } else if self.layer.key(key.code, self.layers.len(), self.areas.layers.height.into()) {
            self.pending = Pending::Layer;
        }
        Ok(())
    }

    /// Shows the tree as of a layer, or its changes.
    fn choose(&mut self, layer: usize) -> anyhow::Result<()> {
        self.layer.at = layer;
        self.show(if matches!(self.view, View::Changes(_)) { View::Changes(layer) } else { View::AsOf(layer) })
    }

    fn tree_key(&mut self, key: KeyEvent) -> anyhow::Result<()> {
        let at = self.row.at;
        let Some(row) = self.selected().copied() else { return Ok(()) };
        let is_dir = self.is_dir(&row.item)?;
        match key.code {
            KeyCode::Right if is_dir && !row.is_open => self.toggle(at)?,
            // Into the directory.
            KeyCode::Right if is_dir => {
                self.row.at += usize::from(self.rows.get(at + 1).is_some_and(|r| r.depth > row.depth))
            }
            KeyCode::Left if row.is_open => self.toggle(at)?,
            KeyCode::Left => self.row.at = self.rows[..at].iter().rposition(|r| r.depth < row.depth).unwrap_or(at),
            KeyCode::Enter if is_dir => self.toggle(at)?,
            KeyCode::Enter => self.view_file(&row.item)?,
            code => drop(self.row.key(code, self.rows.len(), self.areas.tree.height.into())),
        }
        Ok(())
    }

    fn overlay_key(&mut self, key: KeyEvent) -> anyhow::Result<()> {
        if matches!(key.code, KeyCode::Esc | KeyCode::Char('q')) {
            self.overlay = Overlay::None;
            return Ok(());
        }
        let size = (self.areas.overlay.width.into(), self.areas.overlay.height.into());
        match &mut self.overlay {
            Overlay::None => {}
            Overlay::Help(_) if key.code == KeyCode::Char('?') => self.overlay = Overlay::None,
            Overlay::Help(scroll) => scroll.key_view(key.code, size.1),
            Overlay::Waste(_) if key.code == KeyCode::Char('w') => self.overlay = Overlay::None,
            Overlay::Waste(scroll) if key.code == KeyCode::Enter => {
                let at = scroll.at;
                return self.show_wasted(at);
            }
            Overlay::Waste(scroll) => {
                let files = self.stack.waste()?.files.len();
                scroll.key(key.code, files, size.1.saturating_sub(WASTE_HEADING));
            }
            Overlay::Viewer(viewer) => {
                let tree = self.stack.tree_of(viewer.view, &viewer.item)?;
                viewer.key(key.code, tree.fs(), size)?;
            }
        }
        Ok(())
    }

    /// Selects a wasted file in the tree as of the layer that has it.
    fn show_wasted(&mut self, at: usize) -> anyhow::Result<()> {
        let Some(file) = self.stack.waste()?.files.get(at).copied() else { return Ok(()) };
        let path = file.path(self.stack.layers())?;
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        self.open.extend(slashes.map(|(at, _)| path[..at].to_vec()));
        self.layer.at = file.layer.into();
        self.view = View::AsOf(file.layer.into());
        self.rows = self.build()?;
        self.select(&path)?;
        (self.overlay, self.pane) = (Overlay::None, Pane::Tree);
        Ok(())
    }

    fn ask(&mut self, ask: Ask, text: String) {
        self.prompt = Some(Prompt { ask, text, from: self.selected().map(|row| row.item) });
    }

    fn ask_destination(&mut self) -> anyhow::Result<()> {
        let Some(row) = self.selected() else { return Ok(()) };
        let name = String::from_utf8(self.stack.name(self.view, &row.item)?.to_vec()).unwrap_or_default();
        self.ask(Ask::Destination, name);
        Ok(())
    }

    fn prompt_key(&mut self, key: KeyEvent) -> anyhow::Result<()> {
        let Some(prompt) = &mut self.prompt else { return Ok(()) };
        match key.code {
            KeyCode::Esc => {
                self.prompt = None;
                return Ok(());
            }
            KeyCode::Enter => {
                let (ask, text) = (prompt.ask, std::mem::take(&mut prompt.text));
                self.prompt = None;
                return if ask == Ask::Destination { self.extract(&text) } else { Ok(()) };
            }
            KeyCode::Char('u') if key.modifiers.contains(KeyModifiers::CONTROL) => prompt.text.clear(),
            KeyCode::Backspace => drop(prompt.text.pop()),
            KeyCode::Char(c) if !key.modifiers.contains(KeyModifiers::CONTROL) => prompt.text.push(c),
            _ => return Ok(()),
        }
        if prompt.ask == Ask::Search {
            self.pattern.clone_from(&prompt.text);
            self.pending = Pending::Search;
        }
        Ok(())
    }

    fn extract(&mut self, destination: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!destination.is_empty(), "no destination");
        let Some(row) = self.selected() else { return Ok(()) };
        let (id, _) = self.stack.node(self.view, &row.item)?;
        let done = extract::extract(self.fs(&row.item)?, u64::from(id) + 1, Path::new(destination))?;
        let size = units::size(done.bytes);
        self.message = match done.skipped {
            0 => format!("Extracted {} files, {size}", done.files),
            skipped => format!("Extracted {} files, {size}; {skipped} devices, pipes and sockets left out", done.files),
        };
        Ok(())
    }

    fn view_file(&mut self, item: &Item) -> anyhow::Result<()> {
        let (id, node) = self.stack.node(self.view, item)?;
        if node.kind() != Some(Kind::File) {
            self.message = "only regular files can be viewed".into();
            return Ok(());
        }
        let title = show(&self.path(self.row.at)?);
        let viewer = Viewer::open(self.fs(item)?, u64::from(id) + 1, (self.view, *item), title)?;
        self.overlay = Overlay::Viewer(Box::new(viewer));
        Ok(())
    }

    fn click(&mut self, at: (u16, u16)) -> anyhow::Result<()> {
        if !matches!(self.overlay, Overlay::None) {
            let top = usize::from(self.areas.overlay.y) + WASTE_HEADING;
            if let (Overlay::Waste(scroll), Some(line)) = (&mut self.overlay, usize::from(at.1).checked_sub(top)) {
                scroll.at = scroll.top + line;
            }
        } else if let Some(line) = self.areas.line_of(self.areas.layers, at).map(|line| self.layer.top + line) {
            self.pane = Pane::Layers;
            if line < self.layers.len() {
                return self.choose(line);
            }
        } else if let Some(line) = self.areas.line_of(self.areas.tree, at).map(|line| self.row.top + line) {
            self.pane = Pane::Tree;
            if line < self.rows.len() {
                self.row.at = line;
                if self.is_dir(&self.rows[line].item)? {
                    return self.toggle(line);
                }
            }
        }
        Ok(())
    }

    fn wheel(&mut self, at: (u16, u16), by: isize) -> anyhow::Result<()> {
        let size = (self.areas.overlay.width.into(), self.areas.overlay.height.into());
        match &mut self.overlay {
            Overlay::None if self.areas.line_of(self.areas.layers, at).is_some() => {
                let before = self.layer.at;
                self.layer.step(by, self.layers.len());
                if self.layer.at != before {
                    self.pending = Pending::Layer;
                }
            }
            Overlay::None => self.row.step(by, self.rows.len()),
            Overlay::Help(scroll) => scroll.top = scroll.top.saturating_add_signed(by),
            Overlay::Waste(scroll) => scroll.step(by, usize::MAX),
            Overlay::Viewer(viewer) => {
                let tree = self.stack.tree_of(viewer.view, &viewer.item)?;
                let code = if by < 0 { KeyCode::Up } else { KeyCode::Down };
                for _ in 0..WHEEL {
                    viewer.key(code, tree.fs(), size)?;
                }
            }
        }
        Ok(())
    }
}

/// The rows of the tree.
impl State {
    fn is_dir(&self, item: &Item) -> anyhow::Result<bool> {
        Ok(self.stack.node(self.view, item)?.1.is_dir())
    }

    /// Shows another view, or the same one in another order: with the same directories expanded and the same path
    /// selected, as far as they exist.
    fn show(&mut self, view: View) -> anyhow::Result<()> {
        let path = if self.rows.is_empty() { Vec::new() } else { self.path(self.row.at)? };
        let before = std::mem::replace(&mut self.view, view);
        match self.build() {
            Ok(rows) => self.rows = rows,
            Err(error) => {
                self.view = before;
                return Err(error);
            }
        }
        self.select(&path)
    }

    /// Selects a path, or the last of its directories that is shown.
    fn select(&mut self, path: &[u8]) -> anyhow::Result<()> {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let mut matched = 0;
        self.row.at = 0;
        for (at, row) in self.rows.iter().enumerate() {
            let depth = usize::from(row.depth);
            if depth < matched || matched == parts.len() {
                break;
            }
            if depth == matched && self.stack.name(self.view, &row.item)? == parts[matched] {
                self.row.at = at;
                matched += 1;
            }
        }
        Ok(())
    }

    /// Lists a directory, or the root, in the chosen order.
    fn children(&self, dir: Option<&Item>) -> anyhow::Result<Vec<Item>> {
        let mut items = self.stack.children(self.view, dir)?;
        if self.order == Order::Size {
            items.sort_by_cached_key(|item| Reverse(self.stack.size(self.view, item).unwrap_or(0)));
        }
        Ok(items)
    }

    /// Lists the tree, with the entries of the expanded directories.
    fn build(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut path = Vec::new();
        let mut todo = vec![(self.children(None)?.into_iter(), 0)];
        while let Some((items, length)) = todo.last_mut() {
            path.truncate(*length);
            let Some(item) = items.next() else {
                todo.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(self.stack.name(self.view, &item)?);
            let is_open = self.open.contains(&path) && self.is_dir(&item)?;
            rows.push(Row { item, depth: (todo.len() - 1) as u16, is_open });
            if is_open {
                todo.push((self.children(Some(&item))?.into_iter(), path.len()));
            }
        }
        Ok(rows)
    }

    /// Expands or collapses a directory.
    fn toggle(&mut self, at: usize) -> anyhow::Result<()> {
        let path = self.path(at)?;
        let row = self.rows[at];
        if row.is_open {
            let below = self.rows[at + 1..].iter().take_while(|r| r.depth > row.depth).count();
            self.rows.drain(at + 1..=at + below);
            self.open.retain(|other| !(other.starts_with(&path) && matches!(other.get(path.len()), None | Some(b'/'))));
        } else {
            let depth = row.depth + 1;
            let items = self.children(Some(&row.item))?;
            let rows = items.into_iter().map(|item| Row { item, depth, is_open: false });
            self.rows.splice(at + 1..at + 1, rows);
            self.open.insert(path);
        }
        self.rows[at].is_open = !row.is_open;
        Ok(())
    }

    /// Visits every entry of the tree, also of collapsed directories, in the order shown, until `visit` returns true.
    /// It gets the entry with all directories above it.
    fn walk(&self, mut visit: impl FnMut(&[Item]) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let mut chain = Vec::new();
        let mut todo = vec![self.children(None)?.into_iter()];
        while let Some(items) = todo.last_mut() {
            let Some(item) = items.next() else {
                todo.pop();
                chain.pop();
                continue;
            };
            chain.push(item);
            if visit(&chain)? {
                break;
            }
            if self.is_dir(&item)? {
                todo.push(self.children(Some(&item))?.into_iter());
            } else {
                chain.pop();
            }
        }
        Ok(())
    }

    /// Selects the next or the previous entry whose name has the pattern, and goes round at the end. With `inclusive`,
    /// `from` itself may be it.
    fn search(&mut self, forward: bool, from: Option<Item>, inclusive: bool) -> anyhow::Result<()> {
        let pattern = Pattern::new(&self.pattern);
        if self.pattern.is_empty() {
            return Ok(());
        }
        let mut is_past = from.is_none();
        let (mut first, mut last, mut next) = (Vec::new(), Vec::new(), Vec::new());
        self.walk(|chain| {
            let item = chain.last();
            let is_from = item == from.as_ref();
            let is_match =
                item.map_or(Ok(false), |item| self.stack.name(self.view, item).map(|name| pattern.is_in(name)))?;
            is_past |= is_from && (inclusive || !forward);
            if is_match && forward && is_past {
                next.extend_from_slice(chain);
                return Ok(true);
            }
            if is_match && forward && first.is_empty() {
                first.extend_from_slice(chain);
            }
            let is_end = !forward && is_from && !last.is_empty();
            if is_match && !forward && !is_from {
                last.clear();
                last.extend_from_slice(chain);
            }
            is_past |= is_from;
            Ok(is_end)
        })?;
        let found = [next, if forward { first } else { last }].into_iter().find(|chain| !chain.is_empty());
        match found {
            Some(chain) => self.reveal(&chain),
            None => anyhow::bail!("no name contains {}", self.pattern),
        }
    }

    /// Expands the directories above an entry and selects it.
    fn reveal(&mut self, chain: &[Item]) -> anyhow::Result<()> {
        for item in chain {
            let Some(at) = self.rows.iter().position(|row| row.item == *item) else { return Ok(()) };
            self.row.at = at;
            if Some(item) != chain.last() && !self.rows[at].is_open {
                self.toggle(at)?;
            }
        }
        Ok(())
    }
}

/// A text to search names for. One without upper case matches both cases.
struct Pattern {
    bytes: Vec<u8>,
    is_exact: bool,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        Pattern { bytes: text.as_bytes().to_vec(), is_exact: text.chars().any(char::is_uppercase) }
    }

    fn is_in(&self, name: &[u8]) -> bool {
        let Some(first) = self.bytes.first() else { return false };
        name.windows(self.bytes.len()).any(|part| {
            if self.is_exact {
                part == self.bytes
            } else {
                part[0].eq_ignore_ascii_case(first) && part.eq_ignore_ascii_case(&self.bytes)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_without_upper_case_matches_both_cases() {
        for (pattern, name, expected) in [
            ("read", &b"README"[..], true),
            ("READ", b"README", true),
            ("Read", b"README", false),
            ("me", b"README", true),
            ("readme.md", b"README", false),
            ("\u{fc}", "gr\u{fc}n".as_bytes(), true),
            ("a", b"\xffa", true),
            ("", b"a", false),
        ] {
            assert_eq!(Pattern::new(pattern).is_in(name), expected, "{pattern} in {name:?}");
        }
    }
}
