//! The one test binary.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod concurrent;
mod corpus;
mod crash;
mod documents;
mod exporting;
mod external;
mod faults;
mod hostile;
mod importing;
mod listing;
mod merge_model;
mod model;
mod mounting;
mod pushing;
mod real_work;
mod registry;
mod registry_real;
mod registry_resume;
mod saving;
mod store;
mod support;
mod tidy;
mod truth;
mod writable;
mod writable_model;
