//! Looking into images without a mount: paths, listings, owners' names, layers, and the comparison of two images.

mod compare;
mod content;
mod entries;
mod layers;
mod owners;
mod packages;
mod path;
mod stack;
mod waste;

pub use compare::{Changed, Difference, Differences, Side, compare};
pub use content::digest;
pub use entries::{Entry, Visited, Walk, When, entries, join, mode_text};
pub use layers::{Counts, Did, Layers, Place};
pub use owners::Owners;
pub use packages::{Packages, Upgrade, packages, upgrades};
pub use path::{PathError, resolve};
pub use stack::{DirSizes, Item, Mark, Stack, Tree, View};
pub use waste::{Waste, WastedFile};
