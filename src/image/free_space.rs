//! Free space check: refuses a pull that cannot fit, before anything is fetched.
//!
//! The size of a layer's tar is unknown until it is unpacked; it is only certain that the tar is hardly smaller than
//! its blob. So a pull is refused only if it must fail; one that may fail is tried.

use super::source::{LayerPlan, Place, Source};
use super::{Error, Result};
use crate::store::Store;

/// Maximum size added by a compressor to incompressible data, in bytes: framing, and an index appended by some.
const FRAMING: u64 = 64 << 10;

/// Fails if the layers cannot fit into the store.
pub(super) fn check(store: &Store, source: &dyn Source, layers: &[&LayerPlan]) -> Result<()> {
    let Some(free) = store.free_space()? else { return Ok(()) };
    let need = least(store, source, layers);
    if need <= free {
        return Ok(());
    }
    Err(Error::NoSpace { origin: source.origin().to_owned(), root: store.root().to_owned(), need, free })
}

/// Returns the minimum of additional bytes in use when the last layer is fetched: all tars, and that layer's blob if it
/// is kept as a partial; existing partials are part of that or removed by then.
fn least(store: &Store, source: &dyn Source, layers: &[&LayerPlan]) -> u64 {
    let (mut tars, mut kept, mut last) = (0u64, 0, None::<u64>);
    for layer in layers {
        let mut blob = 0;
        if let Place::Blob(descriptor) = &layer.place
            && source.keeps(descriptor)
        {
            // Another pull is fetching the blob into this store: how much is still to come is unknown.
            let Some(length) = store.partial_length(&descriptor.digest) else {
                last = Some(0);
                continue;
            };
            kept += length;
            blob = descriptor.size;
        }
        tars = tars.saturating_add(plain(layer.size()));
        last = Some(last.map_or(blob, |least| least.min(blob)));
    }
    tars.saturating_add(last.unwrap_or_default()).saturating_sub(kept)
}

/// Returns the minimum size of a blob's unpacked content.
fn plain(blob: u64) -> u64 {
    (blob - blob / 64).saturating_sub(FRAMING)
}
