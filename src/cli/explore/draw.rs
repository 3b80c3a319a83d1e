//! The drawing of `explore`'s state. Only visible rows are formatted. All text of an image passes through
//! [`crate::name::show`].

use super::geometry::{Scroll, WASTE_HEADING};
use super::help;
use super::state::{Ask, Order, Overlay, Pane, Row, State};
use super::viewer::Viewer;
use crate::browse::{self, Mark, View};
use crate::cli::output::units;
use crate::layer::{Index, Node};
use crate::meta::Kind;
use crate::name::show;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use unicode_width::UnicodeWidthStr;

/// From this width on, the tree has columns for mode and owner; below, only the line of the selected entry has them.
const WIDE_TREE: u16 = 64;
const HINTS: &str = "?: help  Tab: pane  m: view  s: sort  /: find  w: wasted  x: extract  q: quit";
const VIEWER_HINTS: &str = "h: text or hex  PgUp PgDn Home End: move  q: close";
const HELP_HINTS: &str = "Up Down PgUp PgDn: move  q: close";
const LIST_HINTS: &str = "Up Down PgUp PgDn: move  Enter: show in the tree  q: close";

/// Draws the state; returns where the cursor is while text is typed.
pub(super) fn draw(state: &State, has_colors: bool, buffer: &mut Buffer) -> Option<Position> {
    let areas = &state.areas;
    let mut canvas = Canvas { buffer, has_colors };
    let count = state.layers.len();
    let size: u64 = state.layers.iter().map(|layer| layer.size).sum();
    let layers = if count == 1 { "layer" } else { "layers" };
    let title = format!("plyfs explore {}  ({count} {layers}, {})", state.title, units::size(size));
    canvas.line(areas.title, 0, &title, heading());
    match &state.overlay {
        Overlay::None => lists(state, &mut canvas),
        Overlay::Help(scroll) => {
            for (line, text) in help::LINES.iter().skip(scroll.top).enumerate() {
                canvas.line(areas.overlay, line, text, Style::new());
            }
        }
        Overlay::Waste(scroll) => waste(state, scroll, &mut canvas),
        Overlay::Viewer(viewer) => file(state, viewer, &mut canvas),
    }
    status(state, &mut canvas)
}

/// The buffer, with what clips text to an area.
struct Canvas<'a> {
    buffer: &'a mut Buffer,
    has_colors: bool,
}

impl Canvas<'_> {
    /// Writes a line of an area; the style fills all of it. Lines outside of the area are not drawn.
    fn line(&mut self, area: Rect, line: usize, text: &str, style: Style) {
        let Some(y) = u16::try_from(line).ok().filter(|line| *line < area.height) else { return };
        let row = Rect { y: area.y + y, height: 1, ..area }.intersection(self.buffer.area);
        if row.is_empty() {
            return;
        }
        self.buffer.set_stringn(row.x, row.y, text, row.width.into(), style);
        self.buffer.set_style(row, style);
    }

    fn colored(&self, color: Color) -> Style {
        if self.has_colors { Style::new().fg(color) } else { Style::new() }
    }

    fn mark(&self, mark: Mark) -> Style {
        match mark {
            Mark::Same => Style::new(),
            Mark::Added => self.colored(Color::Green),
            Mark::Changed => self.colored(Color::Yellow),
            Mark::Removed => self.colored(Color::Red),
        }
    }
}

fn heading() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn selected(style: Style, has_focus: bool) -> Style {
    style.add_modifier(if has_focus { Modifier::REVERSED } else { Modifier::BOLD })
}

fn lists(state: &State, canvas: &mut Canvas<'_>) {
    let areas = &state.areas;
    if areas.layers.width > 0 && areas.tree.width > 0 {
        let gap = Rect { x: areas.layers.right(), width: 1, ..areas.overlay };
        for line in 0..usize::from(gap.height) {
            canvas.line(gap, line, "│", Style::new());
        }
    }
    canvas.line(areas.headings[0], 0, "  #    SIZE SHARE COMMAND", heading());
    let total: u64 = state.layers.iter().map(|layer| layer.size).sum();
    let shown = state.layers.iter().enumerate().skip(state.layer.top).take(areas.layers.height.into());
    for (line, (at, layer)) in shown.enumerate() {
        let percent = (u128::from(layer.size) * 100).checked_div(total.into()).unwrap_or(0);
        let text = format!("{:>3} {:>7} {percent:>4}% {}", at + 1, units::size(layer.size), layer.command);
        let is_selected = at == state.layer.at;
        let style = if is_selected { selected(Style::new(), state.pane == Pane::Layers) } else { Style::new() };
        canvas.line(areas.layers, line, &text, style);
    }
    let view = match state.view {
        View::Whole => "Whole image".to_owned(),
        View::AsOf(layer) => format!("As of layer {}", layer + 1),
        View::Changes(layer) => format!("Only changes of layer {}", layer + 1),
    };
    let order = if state.order == Order::Name { "name" } else { "size" };
    canvas.line(areas.headings[1], 0, &format!("{view}, by {order}"), heading());
    tree(state, canvas);
    detail(state, canvas);
}

fn tree(state: &State, canvas: &mut Canvas<'_>) {
    let area = state.areas.tree;
    if state.rows.is_empty() {
        canvas.line(area, 0, "(nothing)", Style::new());
    }
    let shown = state.rows.iter().enumerate().skip(state.row.top).take(area.height.into());
    for (line, (at, row)) in shown.enumerate() {
        let mut style = canvas.mark(row.item.mark);
        if at == state.row.at {
            style = selected(style, state.pane == Pane::Tree);
        }
        let text = tree_line(state, row, area.width).unwrap_or_else(|error| format!("? {error}"));
        canvas.line(area, line, &text, style);
    }
}

fn tree_line(state: &State, row: &Row, width: u16) -> anyhow::Result<String> {
    let (_, node) = state.stack.node(state.view, &row.item)?;
    let mark = match row.item.mark {
        Mark::Same => ' ',
        Mark::Added => '+',
        Mark::Changed => '~',
        Mark::Removed => '-',
    };
    let mut line = format!("{mark} ");
    if width >= WIDE_TREE {
        line += &format!("{} {:>11} ", mode_text(node), shortened(&owner(state, node), 11));
    }
    line += &format!("{:>7} ", units::size(state.stack.size(state.view, &row.item)?));
    // Deep directories are not indented further: their names must be seen.
    let indent = (usize::from(row.depth) * 2).min(usize::from(width / 3));
    let arrow = match (node.is_dir(), row.is_open) {
        (true, true) => "v ",
        (true, false) => "> ",
        (false, _) => "  ",
    };
    line += &format!("{:indent$}{arrow}{}", "", show(state.stack.name(state.view, &row.item)?));
    if node.is_dir() {
        line.push('/');
    }
    line += &target(state.stack.tree_of(state.view, &row.item)?.index()?, node)?;
    Ok(line)
}

fn target(index: &Index, node: &Node) -> anyhow::Result<String> {
    if node.kind() != Some(Kind::Symlink) {
        return Ok(String::new());
    }
    Ok(format!(" -> {}", show(index.target(node)?)))
}

/// The names of user and group that the image has, or their numbers.
fn owner(state: &State, node: &Node) -> String {
    let (user, group) = (state.owners.user(node.uid.get()), state.owners.group(node.gid.get()));
    show(format!("{user}:{group}").as_bytes())
}

/// Formats an inode's kind and permissions. A hard link to a file of a lower layer has no kind of its own.
fn mode_text(node: &Node) -> String {
    let mode = node.mode.get() as u16 & 0o7777;
    node.kind().map_or_else(|| "?---------".into(), |kind| browse::mode_text(kind, mode))
}

fn detail(state: &State, canvas: &mut Canvas<'_>) {
    let text = match state.pane {
        Pane::Layers => state.layers.get(state.layer.at).map(|layer| layer.command.clone()).unwrap_or_default(),
        Pane::Tree => state.selected().map_or(Ok(String::new()), |row| entry_detail(state, row)).unwrap_or_default(),
    };
    canvas.line(state.areas.detail, 0, &text, heading());
}

fn entry_detail(state: &State, row: &Row) -> anyhow::Result<String> {
    let (_, node) = state.stack.node(state.view, &row.item)?;
    let size = units::size(state.stack.size(state.view, &row.item)?);
    let start = format!("{} {} {size} ", mode_text(node), owner(state, node));
    let width = usize::from(state.areas.detail.width).saturating_sub(start.width());
    let path = show(&state.path(state.row.at)?);
    Ok(start + &shortened(&format!("/{path}"), width))
}

/// Cuts a text at its beginning, since the end of a path says most.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut start = text.len();
    let mut columns = 1;
    for (at, c) in text.char_indices().rev() {
        columns += c.to_string().width();
        if columns > width {
            break;
        }
        start = at;
    }
    format!("…{}", &text[start..])
}

fn waste(state: &State, scroll: &Scroll, canvas: &mut Canvas<'_>) {
    let area = state.areas.overlay;
    let waste = match state.stack.waste() {
        Ok(waste) => waste,
        Err(error) => return canvas.line(area, 0, &show(error.to_string().as_bytes()), Style::new()),
    };
    let (wasted, total) = (units::size(waste.total_wasted()), units::size(waste.total()));
    let (efficiency, user) = (waste.efficiency(), waste.user_wasted_share() * 100.0);
    let text = format!("Wasted: {wasted} of {total}, efficiency {efficiency:.3}; above the base layer: {user:.1}%");
    canvas.line(area, 0, &text, heading());
    canvas.line(area, 1, "   SIZE LAYER HIDDEN BY  PATH", heading());
    let shown = waste.files.iter().enumerate().skip(scroll.top).take(area.height.into());
    for (line, (at, file)) in shown.enumerate() {
        let path = file.path(state.stack.layers()).map_or_else(|why| why.to_string(), |path| show(&path));
        let (layer, by) = (file.layer + 1, file.hidden_by + 1);
        let text = format!("{:>7} {layer:>5} {by:>9}  /{path}", units::size(file.size));
        let style = if at == scroll.at { selected(Style::new(), true) } else { Style::new() };
        canvas.line(area, line + WASTE_HEADING, &text, style);
    }
    if waste.files.is_empty() {
        canvas.line(area, WASTE_HEADING, "No layer hides a file of another.", Style::new());
    }
}

fn file(state: &State, viewer: &Viewer, canvas: &mut Canvas<'_>) {
    let area = state.areas.overlay;
    let percent = (u128::from(viewer.top) * 100).checked_div(viewer.size.into()).unwrap_or(0);
    let form = if viewer.is_hex { "hex" } else { "text" };
    let end = format!("  ({}, {form}, from {percent}%)", units::size(viewer.size));
    let width = usize::from(area.width).saturating_sub(end.width());
    canvas.line(area, 0, &(shortened(&format!("/{}", viewer.title), width) + &end), heading());
    let height = usize::from(area.height).saturating_sub(1);
    let tree = state.stack.tree_of(viewer.view, &viewer.item).map_err(anyhow::Error::from);
    match tree.and_then(|tree| viewer.lines(tree.fs(), area.width.into(), height)) {
        Ok(lines) => {
            for (line, text) in lines.iter().enumerate() {
                canvas.line(area, line + 1, text, Style::new());
            }
        }
        Err(error) => canvas.line(area, 1, &show(error.to_string().as_bytes()), Style::new()),
    }
}

/// Draws the last line: a prompt, a message, or the keys.
fn status(state: &State, canvas: &mut Canvas<'_>) -> Option<Position> {
    let area = state.areas.status;
    if let Some(prompt) = &state.prompt {
        let start = if prompt.ask == Ask::Search { "/" } else { "Extract to: " };
        let width = usize::from(area.width).saturating_sub(start.len() + 1);
        let mut text = start.to_owned() + &shortened(&show(prompt.text.as_bytes()), width);
        let cursor = u16::try_from(text.width()).unwrap_or(u16::MAX);
        if !state.message.is_empty() {
            text = format!("{text}   ({})", state.message);
        }
        canvas.line(area, 0, &text, Style::new());
        let x = area.x.saturating_add(cursor).min(area.right().saturating_sub(1));
        return (!area.is_empty()).then_some(Position { x, y: area.y });
    }
    let hints = match &state.overlay {
        _ if !state.message.is_empty() => state.message.as_str(),
        Overlay::None => HINTS,
        Overlay::Viewer(_) => VIEWER_HINTS,
        Overlay::Help(_) => HELP_HINTS,
        Overlay::Waste(_) => LIST_HINTS,
    };
    canvas.line(area, 0, hints, selected(Style::new(), true));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_lose_their_beginning() {
        assert_eq!(shortened("/usr/bin", 8), "/usr/bin");
        assert_eq!(shortened("/usr/bin", 5), "…/bin");
        assert_eq!(shortened("/usr/漢字", 4), "…字");
        assert_eq!(shortened("/usr", 0), "…");
    }
}
