//! Names of directory entries, and paths inside a layer.

/// The longest name of a directory entry, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// The longest path of an entry, in bytes (PATH_MAX less its NUL).
pub const PATH_MAX: usize = 4095;

/// Why a path of an archive cannot be a path inside a layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A component over [`NAME_MAX`].
    #[error("has a name of {0} bytes, 255 is the most a file system takes")]
    NameTooLong(usize),
    /// Over [`PATH_MAX`].
    #[error("has a path of {0} bytes, 4095 is the most a file system takes")]
    PathTooLong(usize),
    /// A NUL byte.
    #[error("has a NUL byte in its path")]
    Nul,
    /// `..` beyond the root.
    #[error("leads out of the layer by `..`")]
    Escapes,
}

/// The components of an archive's path: leading slashes, `.` and empty components are dropped and `..` is resolved by
/// its text, as archivers write them. The root is the empty list. Lengths of the components are not judged here: a
/// whiteout's name may be longer than the name it hides, so [`check`] is for the caller once it knows which it has.
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

/// Judges one component's length.
pub fn check(name: &[u8]) -> Result<(), NameError> {
    if name.len() > NAME_MAX { Err(NameError::NameTooLong(name.len())) } else { Ok(()) }
}

/// Whether `name` can stand in a directory: what [`crate::layer::Index::check`] holds every stored name against.
pub fn is_valid(name: &[u8]) -> bool {
    !name.is_empty()
        && name != b"."
        && name != b".."
        && name.len() <= NAME_MAX
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// A path as one line for people: UTF-8 where it is, `\xNN` where not, control characters escaped.
pub fn show(path: &[u8]) -> String {
    let mut line = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
        }
        for byte in chunk.invalid() {
            line.push_str(&format!("\\x{byte:02x}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_paths_are_cleaned_by_their_text() {
        let parts: &[&[u8]] = &[b"a", b"b"];
        for path in ["a/b", "/a/b", "./a//b/", "a/./b", "x/../a/b"] {
            assert_eq!(components(path.as_bytes()).unwrap(), parts, "{path}");
        }
        for root in ["", "/", ".", "./", "a/.."] {
            assert!(components(root.as_bytes()).unwrap().is_empty(), "{root}");
        }
    }

    #[test]
    fn what_no_file_system_holds_is_refused() {
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
}
