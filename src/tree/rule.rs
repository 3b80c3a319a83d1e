//! The merge rule: which of the layers' entries of one name is visible.

/// A layer's entry of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Has {
    /// A whiteout: it hides the layers below.
    Whiteout,
    /// A directory. A bare one holds only whiteouts and opaque markers: alone it is not visible.
    Dir {
        /// Whether it is bare.
        bare: bool,
    },
    /// Any other kind of file.
    Other,
}

/// The merged entry of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The name does not exist.
    Nothing,
    /// The entry of that layer, counted from 0, the topmost.
    Other(usize),
    /// A merged directory: its sources are the directories from the topmost layer down to the first layer that has
    /// something else under the name, or to the first opaque one.
    Dir,
}

/// Merges the entries that layers have under one name, the topmost first. Bare directories do not count, unless they
/// lie over a directory.
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
    fn the_topmost_layer_decides() {
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
