//! Directory blocks: packs a directory's entries into blocks of 512 bytes.

use super::format::{BLOCK, ENTRY, Entry};
use crate::meta::Kind;
use zerocopy::IntoBytes;

/// One entry of a directory.
#[derive(Clone, Copy)]
pub(super) struct Name<'a> {
    pub name: &'a [u8],
    /// The inode's number in the index.
    pub node: u32,
    pub kind: Option<Kind>,
}

/// Adds `.` and `..` to names that are sorted by bytes.
pub(super) fn with_dots<'a>(mut names: Vec<Name<'a>>, own: u32, parent: u32) -> Vec<Name<'a>> {
    for (name, node) in [(&b"."[..], own), (b"..", parent)] {
        let at = names.partition_point(|other| other.name < name);
        names.insert(at, Name { name, node, kind: Some(Kind::Dir) });
    }
    names
}

/// Splits names into the longest runs that fit into a block each.
pub(super) fn blocks<'a, 'n>(names: &'n [Name<'a>]) -> impl Iterator<Item = &'n [Name<'a>]> {
    let mut rest = names;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fits = |name: &&Name<'_>| {
            used += ENTRY + name.name.len();
            used as u64 <= BLOCK
        };
        let count = rest.iter().take_while(fits).count();
        let (block, others) = rest.split_at(count);
        rest = others;
        (count > 0).then_some(block)
    })
}

/// The bytes that a block's names take.
pub(super) fn length(block: &[Name<'_>]) -> u64 {
    block.iter().map(|name| (ENTRY + name.name.len()) as u64).sum()
}

/// Writes a block's entries and names; the rest of `into` stays zero. `nid` returns an inode's number in the image.
pub(super) fn write(block: &[Name<'_>], into: &mut [u8], nid: impl Fn(u32) -> u64) {
    let mut at = block.len() * ENTRY;
    for (number, name) in block.iter().enumerate() {
        let entry = Entry::new(nid(name.node), at, name.kind);
        into[number * ENTRY..][..ENTRY].copy_from_slice(entry.as_bytes());
        into[at..][..name.name.len()].copy_from_slice(name.name);
        at += name.name.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dots_are_sorted_among_the_names() {
        let name = |name: &'static str| Name { name: name.as_bytes(), node: 9, kind: Some(Kind::File) };
        let all = with_dots(vec![name("!"), name("-"), name(".-"), name("..."), name("a")], 5, 1);
        let shown: Vec<_> = all.iter().map(|name| (str::from_utf8(name.name).unwrap(), name.node)).collect();
        assert_eq!(shown, [("!", 9), ("-", 9), (".", 5), (".-", 9), ("..", 1), ("...", 9), ("a", 9)]);
    }

    #[test]
    fn blocks_are_filled_and_never_overflow() {
        let long: Vec<Vec<u8>> = (0..1000).map(|n| format!("{n:0>width$}", width = 4 + n % 252).into_bytes()).collect();
        let names: Vec<_> = long.iter().map(|name| Name { name, node: 1, kind: None }).collect();
        let found: Vec<&[Name<'_>]> = blocks(&names).collect();
        assert_eq!(found.iter().map(|block| block.len()).sum::<usize>(), 1000);
        for pair in found.windows(2) {
            assert!(length(pair[0]) <= BLOCK && length(pair[0]) + length(&pair[1][..1]) > BLOCK);
        }
    }
}
