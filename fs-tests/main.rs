//! The one test binary.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod corpus;
mod listing;
mod merge_model;
mod mounting;
mod saving;
mod store;
mod support;
mod tidy;
mod truth;
