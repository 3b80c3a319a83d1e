//! Commands that look into an image, a container or an upper directory without a mount: `ls`, `cat`, `du`, `find`,
//! `layers` and `diff`.

pub(super) mod cat;
mod colors;
mod columns;
pub(super) mod diff;
pub(super) mod du;
pub(super) mod find;
mod glob;
pub(super) mod layers;
mod long;
pub(super) mod ls;
mod predicate;
mod record;
pub(super) mod target;
