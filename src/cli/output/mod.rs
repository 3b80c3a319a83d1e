//! Terminal output: standard output, tables, formats, progress displays, units and prompts.

pub(super) mod format;
pub(super) mod glob;
pub(super) mod progress;
pub(super) mod stdout;
pub(super) mod terminal;
pub(super) mod units;
