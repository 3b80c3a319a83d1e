//! The merge: one tree out of an image's layers. It is the only place that knows which layer wins, and does no I/O.
//! Images are merged as a whole ([`merge`]), plain directories one by one as they are looked at, by the same [`rule`].
//!
//! The rules are those of the OCI image specification (layer.md, "Applying Changesets"): the topmost layer that has a
//! name decides; a directory over a directory gives its attributes and both give their entries; anything else hides
//! what is below. A whiteout or an opaque directory hides lower layers only, never its own, wherever it stood in the
//! tar, since every layer's index is whole before it comes here.

mod merge;
pub mod rule;

pub use merge::{MergeError, merge};
