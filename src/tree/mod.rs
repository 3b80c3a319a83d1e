//! The merge of layers into one tree, by the rules of OCI layers. The only code that decides which layer's entry is
//! visible; no I/O. Images are merged as a whole ([`merge`]), lower directories one by one at their first lookup, by
//! the same [`rule`].
//!
//! The rules are those of the OCI image specification (layer.md, "Applying Changesets"): the topmost layer that has a
//! name decides; a directory over a directory sets the attributes, and the entries of both are merged; anything else
//! hides the lower entry. A whiteout or an opaque directory hides lower layers only, never its own, wherever it stood
//! in the tar, since every layer's index is complete before the merge.

mod merge;
pub mod rule;

pub use merge::{MergeError, merge};
