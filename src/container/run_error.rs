//! Errors of starting a command in an image, with their exit code.

use crate::sys;
use std::io;

/// Why a command was not run, and the exit code to report that with.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct RunError {
    /// 126 if the command cannot be executed, 127 if it was not found, otherwise 125.
    pub exit_code: u8,
    /// The reason, one line.
    pub text: String,
}

impl RunError {
    /// A failure of plyfs itself: exit code 125.
    pub fn own(text: impl Into<String>) -> RunError {
        RunError { exit_code: 125, text: text.into() }
    }
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> RunError {
        RunError::own(sys::describe(&error))
    }
}
