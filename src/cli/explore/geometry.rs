//! Where the parts of the screen are, and positions in scrolled lists.

use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Rect, Size};

/// Below this width only the pane with the focus is shown.
const TWO_PANES: u16 = 60;
/// The widest list of layers.
const MAX_LAYERS: u16 = 56;

/// The number of lines above the list of wasted files.
pub(super) const WASTE_HEADING: usize = 2;

/// The areas of the screen. Those that do not fit are empty.
#[derive(Clone, Copy, Default)]
pub(super) struct Areas {
    pub size: Size,
    pub title: Rect,
    /// The headings above the two lists.
    pub headings: [Rect; 2],
    /// The lines of the list of layers.
    pub layers: Rect,
    /// The lines of the tree.
    pub tree: Rect,
    /// What covers both lists and their headings.
    pub overlay: Rect,
    /// The line about the selected entry.
    pub detail: Rect,
    pub status: Rect,
}

/// Returns the areas for a terminal's size.
pub(super) fn areas(size: Size, is_tree_focused: bool) -> Areas {
    let Size { width, height } = size;
    let (title, detail) = (u16::from(height >= 4), u16::from(height >= 6));
    let status = u16::from(height >= 3);
    let line = |y, height| Rect { x: 0, y, width, height };
    let body = line(title, height - title - detail - status);
    let heading = u16::from(body.height >= 3);
    let left = match () {
        () if width >= TWO_PANES => (width * 2 / 5).min(MAX_LAYERS),
        () if is_tree_focused => 0,
        () => width,
    };
    // One column separates the two.
    let gap = u16::from(left > 0 && left < width);
    let right = Rect { x: left + gap, width: width - left - gap, ..body };
    let left = Rect { width: left, ..body };
    let below = |area: Rect| Rect { y: area.y + heading, height: area.height - heading, ..area };
    let above = |area: Rect| Rect { height: heading, ..area };
    Areas {
        size,
        title: line(0, title),
        headings: [above(left), above(right)],
        layers: below(left),
        tree: below(right),
        overlay: body,
        detail: line(height - status - detail, detail),
        status: line(height - status, status),
    }
}

impl Areas {
    /// Returns the line of an area at a position of the terminal.
    pub fn line_of(&self, area: Rect, (x, y): (u16, u16)) -> Option<usize> {
        area.contains((x, y).into()).then(|| usize::from(y - area.y))
    }
}

/// A selection in a list, and the first line that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scroll {
    pub at: usize,
    pub top: usize,
}

impl Scroll {
    pub fn at(at: usize) -> Scroll {
        Scroll { at, top: 0 }
    }

    /// Moves the selection by a key; returns whether the key is one that moves.
    pub fn key(&mut self, code: KeyCode, length: usize, page: usize) -> bool {
        let page = isize::try_from(page.max(2) - 1).unwrap_or(isize::MAX);
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.step(-1, length),
            KeyCode::Down | KeyCode::Char('j') => self.step(1, length),
            KeyCode::PageUp => self.step(-page, length),
            KeyCode::PageDown => self.step(page, length),
            KeyCode::Home | KeyCode::Char('g') => self.at = 0,
            KeyCode::End | KeyCode::Char('G') => self.at = length.saturating_sub(1),
            _ => return false,
        }
        true
    }

    /// Moves what is shown of a text by a key, without a selection.
    pub fn key_view(&mut self, code: KeyCode, page: usize) {
        self.at = self.top;
        self.key(code, usize::MAX, page);
        self.top = self.at;
    }

    pub fn step(&mut self, by: isize, length: usize) {
        self.at = self.at.saturating_add_signed(by).min(length.saturating_sub(1));
    }

    /// Puts the selection within the list, and what is shown around it.
    pub fn settle(&mut self, length: usize, page: usize) {
        self.at = self.at.min(length.saturating_sub(1));
        let page = page.max(1);
        self.top = self.top.clamp((self.at + 1).saturating_sub(page), self.at).min(length.saturating_sub(page));
    }

    /// Puts what is shown within a text.
    pub fn settle_view(&mut self, length: usize, page: usize) {
        self.top = self.top.min(length.saturating_sub(page.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_lie_within_the_terminal_at_every_size() {
        for width in 0..130 {
            for height in 0..40 {
                for focus in [false, true] {
                    let size = Size { width, height };
                    let found = areas(size, focus);
                    let [a, b] = found.headings;
                    let all = [found.title, a, b, found.layers, found.tree, found.overlay, found.detail, found.status];
                    for area in all {
                        assert!(area.right() <= width && area.bottom() <= height, "{area:?} in {width}x{height}");
                    }
                    let list = if focus { found.tree } else { found.layers };
                    assert!(width == 0 || height == 0 || list.area() > 0, "{width}x{height}");
                }
            }
        }
    }

    #[test]
    fn the_selection_stays_visible() {
        let mut scroll = Scroll::at(0);
        scroll.key(KeyCode::End, 100, 10);
        scroll.settle(100, 10);
        assert_eq!(scroll, Scroll { at: 99, top: 90 });
        scroll.key(KeyCode::PageUp, 100, 10);
        scroll.settle(100, 10);
        assert_eq!(scroll, Scroll { at: 90, top: 90 });
        scroll.settle(5, 10);
        assert_eq!(scroll, Scroll { at: 4, top: 0 });
        scroll.settle(0, 0);
        assert_eq!(scroll, Scroll { at: 0, top: 0 });
    }
}
