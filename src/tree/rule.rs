//! The rule: which of the things that layers have under one name is seen.

/// What a layer has under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Has {
    /// A whiteout: the layers below do not count.
    Whiteout,
    /// A directory. A bare one holds markers only: it hides, but does not make, so alone it is nothing.
    Dir {
        /// Whether it is one of those.
        bare: bool,
    },
    /// Anything else.
    Other,
}

/// What a name comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nothing.
    Nothing,
    /// What that one of the layers has, counted from 0, the topmost.
    Other(usize),
    /// A directory: all those from the topmost one down to the first layer that has something else under the name, or
    /// to the first that is opaque, make it up.
    Dir,
}

/// What is seen of all that layers have under one name, the topmost first. Directories that hold markers only do not
/// count, unless they lie over a directory.
pub fn seen<E>(found: impl IntoIterator<Item = Result<Has, E>>) -> Result<Seen, E> {
    for (at, has) in found.into_iter().enumerate() {
        match has? {
            Has::Whiteout => return Ok(Seen::Nothing),
            Has::Other => return Ok(Seen::Other(at)),
            Has::Dir { bare: false } => return Ok(Seen::Dir),
            Has::Dir { bare: true } => {}
        }
    }
    Ok(Seen::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_decides() {
        use Has::{Other, Whiteout};
        const DIR: Has = Has::Dir { bare: false };
        const BARE: Has = Has::Dir { bare: true };
        for (found, expected) in [
            (&[][..], Seen::Nothing),
            (&[Whiteout, DIR], Seen::Nothing),
            (&[Other, Whiteout], Seen::Other(0)),
            (&[DIR, Other], Seen::Dir),
            (&[BARE], Seen::Nothing),
            (&[BARE, DIR], Seen::Dir),
            (&[BARE, Other, DIR], Seen::Other(1)),
            (&[BARE, Whiteout, DIR], Seen::Nothing),
        ] {
            assert_eq!(seen(found.iter().map(|has| Ok::<_, ()>(*has))), Ok(expected), "{found:?}");
        }
    }
}
