//! Names of directory entries, and paths in a layer: parsing, limits, and display.

/// The longest name of a directory entry, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// The longest path of an entry, in bytes (PATH_MAX less its NUL).
pub const PATH_MAX: usize = 4095;

/// Why an archive's path cannot be used in a layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A component is longer than [`NAME_MAX`].
    #[error("has a name of {0} bytes; the limit is 255")]
    NameTooLong(usize),
    /// The path is longer than [`PATH_MAX`].
    #[error("has a path of {0} bytes; the limit is 4095")]
    PathTooLong(usize),
    /// The path contains a NUL byte.
    #[error("has a NUL byte in its path")]
    Nul,
    /// `..` leads out of the root.
    #[error("has a path that leaves the layer through `..`")]
    Escapes,
}

/// Splits an archive's path into components: leading slashes, `.` and empty components are dropped and `..` is resolved
/// lexically, as archivers write them. The root is the empty list. Lengths of components are not checked: a whiteout's
/// name may be longer than the name it hides, so the caller must call [`check`] once it knows which it has.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, NameError> {
    if path.contains(&0) {
        return Err(NameError::Nul);
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or(NameError::Escapes)?),
            _ => parts.push(part),
        }
    }
    let length = parts.iter().map(|p| p.len() + 1).sum::<usize>().saturating_sub(1);
    if length > PATH_MAX {
        return Err(NameError::PathTooLong(length));
    }
    Ok(parts)
}

/// Checks the length of a component.
pub fn check(name: &[u8]) -> Result<(), NameError> {
    if name.len() > NAME_MAX { Err(NameError::NameTooLong(name.len())) } else { Ok(()) }
}

/// Whether `name` is valid in a directory: [`crate::layer::Index::check`] applies this to every stored name.
pub fn is_valid(name: &[u8]) -> bool {
    !name.is_empty()
        && name != b"."
        && name != b".."
        && name.len() <= NAME_MAX
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// Formats a path as one printable line: UTF-8 where valid, `\xNN` otherwise. Control characters, line separators and
/// characters that change the direction of text are escaped: a terminal would show another name than the real one.
pub fn show(path: &[u8]) -> String {
    let mut line = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_layout_control(c) { line.extend(c.escape_default()) } else { line.push(c) }
        }
        for byte in chunk.invalid() {
            line.push_str(&format!("\\x{byte:02x}"));
        }
    }
    line
}

/// Whether a character changes the direction of the text around it, or ends a line.
fn is_layout_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_paths_are_normalized_lexically() {
        let parts: &[&[u8]] = &[b"a", b"b"];
        for path in ["a/b", "/a/b", "./a//b/", "a/./b", "x/../a/b"] {
            assert_eq!(components(path.as_bytes()).unwrap(), parts, "{path}");
        }
        for root in ["", "/", ".", "./", "a/.."] {
            assert!(components(root.as_bytes()).unwrap().is_empty(), "{root}");
        }
    }

    #[test]
    fn names_beyond_file_system_limits_are_rejected() {
        assert_eq!(components(b"../a"), Err(NameError::Escapes));
        assert_eq!(components(b"a/../../b"), Err(NameError::Escapes));
        assert_eq!(components(b"a\0b"), Err(NameError::Nul));
        let long = "a/".repeat(2048);
        assert_eq!(components(long.as_bytes()).unwrap().len(), 2048);
        assert_eq!(components(format!("{long}b").as_bytes()), Err(NameError::PathTooLong(4097)));
        assert!(check(&[b'x'; 255]).is_ok());
        assert_eq!(check(&[b'x'; 256]), Err(NameError::NameTooLong(256)));
    }

    #[test]
    fn every_path_shows_on_one_line() {
        assert_eq!(show(b"a\xffb\n"), "a\\xffb\\n");
    }

    #[test]
    fn characters_that_change_the_direction_of_text_are_escaped() {
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
        for c in marks.into_iter().chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert_eq!(show(format!("a{c}b").as_bytes()), format!("a\\u{{{:x}}}b", u32::from(c)));
        }
        assert_eq!(show("עברית".as_bytes()), "עברית");
    }
}
