//! The one test binary.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod account;
mod account_files;
mod changes;
mod chrooting;
mod cli;
mod committing;
mod concurrent;
mod containers;
mod corpus;
mod crash;
mod documents;
mod exporting;
mod external;
mod faults;
mod forms;
mod hostile;
mod importing;
mod listing;
mod merge_model;
mod mirrors;
mod model;
mod mounting;
mod printed;
mod progress;
mod pushing;
mod real_work;
mod registry;
mod registry_real;
mod registry_resume;
mod registry_torture;
mod running;
mod running_debian;
mod saving;
mod searching;
mod signatures;
mod space;
mod store;
mod support;
mod tidy;
mod truth;
mod writable;
mod writable_model;
