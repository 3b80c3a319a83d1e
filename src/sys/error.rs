//! I/O errors: their texts for messages, and their kinds.

use std::io;

/// Returns an I/O error's message without the suffix ` (os error N)`.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

/// Whether an error is about this process, its permissions or its limits, and not about the file.
pub fn is_callers(error: &io::Error) -> bool {
    use rustix::io::Errno as E;
    matches!(E::from_io_error(error), Some(E::ACCESS | E::PERM | E::MFILE | E::NFILE | E::NOMEM | E::INTR))
}
