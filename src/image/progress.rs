//! Progress of a pull: events per layer, and the trait that receives them.

use super::source::{LayerPlan, Plan};

/// Progress event of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The layer is in the store and is not fetched.
    AlreadyExists,
    /// The layer will be fetched.
    Planned,
    /// The layer waits for a free worker.
    Waiting,
    /// The layer's stream is opened, perhaps again.
    Started,
    /// Number of bytes of the blob read.
    Read(u64),
    /// A request failed and is repeated in this number of seconds; 0: now.
    Retrying(u64),
    /// All bytes of the blob are read; its digest is being verified.
    Verifying,
    /// The blob is verified. The rest is being inflated, indexed, written and synced.
    Verified,
    /// The layer is in the store.
    Complete,
}

/// Receiver of a pull's progress, called by several threads.
pub trait Progress: Send + Sync {
    /// Reports that an image's documents are verified; its layers follow.
    fn image(&self, plan: &Plan);
    /// Reports that all layers of an image are in the store.
    fn taken(&self, plan: &Plan);
    /// Reports an event of a layer.
    fn layer(&self, layer: &LayerPlan, event: Event);
    /// Reports a warning of the indexer about a layer that it accepts.
    fn warning(&self, layer: &LayerPlan, text: &str);
}
