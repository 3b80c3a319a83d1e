//! A writable tree against a model of one: the same steps on both, any difference is a fault.
//!
//! The model is itself judged first, by the file system that the tests run on and by kernel overlayfs. A failing run
//! prints its seed and the shortest list of steps that still fails, as a test to be kept here.
//!
//! ```text
//! PLYFS_MODEL_SEED=7 PLYFS_MODEL_OPS=5000 cargo test --test fs writable_model    # one run
//! PLYFS_MODEL_RUNS=200 cargo test --test fs writable_model                       # many
//! ```

use crate::model::place::{OverlayPlace, PlainPlace};
use crate::model::run::{Effort, by_path, soak};

#[test]
fn the_model_is_right_about_a_plain_directory() {
    soak("plain", Effort { runs: 4, ops: 2000 }, PlainPlace::MENU, &|| by_path(PlainPlace::new()));
}

#[test]
fn the_model_is_right_about_kernel_overlayfs() {
    soak("overlayfs", Effort { runs: 3, ops: 1500 }, OverlayPlace::MENU, &|| by_path(OverlayPlace::new(false)));
}

#[test]
fn the_model_is_right_about_kernel_overlayfs_that_copies_attributes_alone() {
    soak("metacopy", Effort { runs: 3, ops: 1500 }, OverlayPlace::MENU, &|| by_path(OverlayPlace::new(true)));
}
