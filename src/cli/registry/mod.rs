//! Registry commands: pull, push, login, search, manifest.

pub(super) mod login;
pub(super) mod manifest;
mod manifest_list;
pub(super) mod options;
pub(super) mod pull;
pub(super) mod push;
pub(super) mod search;
