//! Whether a pull can fit, asked before anything is fetched.
//!
//! How long a layer's tar is nobody says before it is unpacked. That it is hardly shorter than its blob is all that is
//! certain; so only a pull that must fail is refused, and one that may fail is tried.

use super::source::{LayerPlan, Place, Source};
use super::{Error, Result};
use crate::store::Store;

/// What a compressor may add to what it cannot make smaller: its framing, and indexes that some put behind it.
const FRAMING: u64 = 64 << 10;

/// Refuses the layers if they cannot fit into the store.
pub(super) fn check(store: &Store, source: &dyn Source, layers: &[&LayerPlan]) -> Result<()> {
    let Some(free) = store.free_space()? else { return Ok(()) };
    let need = least(store, source, layers);
    if need <= free {
        return Ok(());
    }
    Err(Error::NoSpace { origin: source.origin().to_owned(), root: store.root().to_owned(), need, free })
}

/// How much more will be in use, at least, when the last of the layers comes: its blob, if that is kept meanwhile, and
/// everybody's tar; what is kept of blobs now is a part of that or gone by then.
fn least(store: &Store, source: &dyn Source, layers: &[&LayerPlan]) -> u64 {
    let (mut tars, mut kept, mut last) = (0u64, 0, None::<u64>);
    for layer in layers {
        let mut blob = 0;
        if let Place::Blob(descriptor) = &layer.place
            && source.keeps(descriptor)
        {
            // Another pull is fetching it, into this store: there is no telling how much of it is still to come.
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

/// The least that a blob of this length can unpack to.
fn plain(blob: u64) -> u64 {
    (blob - blob / 64).saturating_sub(FRAMING)
}
