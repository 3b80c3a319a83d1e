//! Looking into images without a mount: the layers one by one, what each changes, and the space that they waste.

mod stack;
mod waste;

pub use stack::{DirSizes, Item, Mark, Side, Stack, Tree, View};
pub use waste::{Waste, WastedFile};
