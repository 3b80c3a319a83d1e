//! The only code that knows how a deletion is written down.
//!
//! In an OCI layer (image-spec, layer.md, "Whiteouts") an empty file `.wh.NAME` hides NAME of the layers below, and
//! `.wh..wh..opq` hides everything that they have in its directory. Both are judged by name alone, whatever type the
//! entry has: tools have shipped them as hard links.

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS kept its own bookkeeping under this prefix (`.wh..wh.aufs`, `.wh..wh.plnk`); nothing below it is the image's.
const RESERVED: &[u8] = b".wh..wh.";

/// What a name in a layer stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// An entry like any other.
    Plain,
    /// The directory that holds the entry hides what lower layers have in it.
    Opaque,
    /// The named entry of lower layers is hidden.
    Whiteout(&'a [u8]),
    /// Left over from AUFS: no part of the image.
    Reserved,
}

/// A whiteout that names nothing that could be deleted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is a whiteout of {}", if .0.is_empty() { "nothing".to_string() } else { format!("`{}`, which cannot be deleted", crate::name::show(.0)) })]
pub struct InvalidWhiteout(Vec<u8>);

/// Classifies one path component of a layer's entry. `.wh.`, `.wh..` and `.wh...` are errors: the specification has no
/// meaning for them, and containerd once deleted a parent directory by one.
pub fn classify(name: &[u8]) -> Result<Marker<'_>, InvalidWhiteout> {
    if name == OPAQUE {
        return Ok(Marker::Opaque);
    }
    if name.starts_with(RESERVED) {
        return Ok(Marker::Reserved);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Marker::Plain),
        Some(hidden @ (b"" | b"." | b"..")) => Err(InvalidWhiteout(hidden.to_vec())),
        Some(hidden) => Ok(Marker::Whiteout(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified() {
        assert_eq!(classify(b"wh.a"), Ok(Marker::Plain));
        assert_eq!(classify(b".wh"), Ok(Marker::Plain));
        assert_eq!(classify(b".wh.a"), Ok(Marker::Whiteout(b"a")));
        assert_eq!(classify(b".wh..a"), Ok(Marker::Whiteout(b".a")));
        assert_eq!(classify(b".wh..wh..opq"), Ok(Marker::Opaque));
        assert_eq!(classify(b".wh..wh.plnk"), Ok(Marker::Reserved));
    }

    #[test]
    fn a_whiteout_of_nothing_is_an_error() {
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(classify(bad).is_err());
        }
        let line = classify(b".wh...").unwrap_err().to_string();
        assert_eq!(line, "is a whiteout of `..`, which cannot be deleted");
    }
}
