//! Image commands: list, inspect, tag, remove, load, save, import, export.

pub(super) mod archive;
pub(super) mod document;
pub(super) mod export;
pub(super) mod history;
pub(super) mod images;
pub(super) mod import;
pub(super) mod inspect;
pub(super) mod prune;
pub(super) mod save;
pub(super) mod tag;
