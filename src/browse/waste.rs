//! Wasted space: the data of files in an image's layers that a later layer hides or replaces.
//!
//! A file's data is wasted if the image shows none of its names. That is decided by the merged index, which says for
//! every inode which layer has its data; which layer hides a file is found by the layers' own indexes.

use crate::layer::{Dirent, Index, IndexError, Node, node_flags};
use crate::meta::Kind;
use std::cmp::Ordering;
use std::collections::HashMap;

/// The wasted space of an image.
pub struct Waste {
    /// Bytes of regular files' data in each layer, the bottom one first; hard links count once. Holes do not count.
    pub stored: Vec<u64>,
    /// Of these, the bytes that the image does not show.
    pub wasted: Vec<u64>,
    /// The files with this data, the largest first. A file with several names is listed under one of them.
    pub files: Vec<WastedFile>,
}

/// A file of one layer that the image does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WastedFile {
    /// Bytes of its data in the layer's tar.
    pub size: u64,
    /// The layer that has it; the bottom one is 0.
    pub layer: u16,
    /// The lowest layer that hides it.
    pub hidden_by: u16,
    /// Its directory, an inode of the layer's index.
    dir: u32,
    /// Its position in the directory.
    position: u32,
}

/// Where a file's data lies: the layer, and the offset of its first byte in the layer's tar.
type Place = (u16, u64);

impl Waste {
    /// Computes the waste of an image from the indexes of its layers, bottom first, and their merged index.
    pub fn of(layers: &[Index], whole: &Index) -> Result<Waste, IndexError> {
        let mut waste = Waste { stored: Vec::new(), wasted: vec![0; layers.len()], files: Vec::new() };
        let mut hidden = HashMap::new();
        for (layer, index) in (0..).zip(layers) {
            let mut stored: u64 = 0;
            for node in index.nodes() {
                stored = stored.saturating_add(data_of(index, node)?.map_or(0, |(_, len)| len));
            }
            waste.stored.push(stored);
            find_hidden(index, whole, layer, &mut hidden)?;
        }
        // A file may be hidden under one name and visible under another.
        for node in whole.nodes() {
            if let Some((offset, _)) = data_of(whole, node)? {
                hidden.remove(&(node.layer.get(), offset));
            }
        }
        for mut file in hidden.into_values() {
            file.hidden_by = hider(layers, file.layer, &file.path(layers)?)?;
            waste.wasted[usize::from(file.layer)] += file.size;
            waste.files.push(file);
        }
        waste.files.sort_unstable_by_key(|f| (std::cmp::Reverse(f.size), f.layer, f.dir, f.position));
        Ok(waste)
    }

    /// Returns the bytes of all files' data in all layers.
    pub fn total(&self) -> u64 {
        self.stored.iter().sum()
    }

    /// Returns the wasted bytes in all layers.
    pub fn total_wasted(&self) -> u64 {
        self.wasted.iter().sum()
    }

    /// Returns the share of the data that is not wasted, 0 to 1; 1 if there is no data.
    pub fn efficiency(&self) -> f64 {
        1.0 - share(self.total_wasted(), self.total())
    }

    /// Returns the share of wasted data in the layers above the base layer, 0 to 1; 0 if they have no data.
    pub fn user_wasted_share(&self) -> f64 {
        let above = |all: &[u64]| all.iter().skip(1).sum();
        share(above(&self.wasted), above(&self.stored))
    }
}

impl WastedFile {
    /// Returns its path from the root, without a leading slash. `layers` must be those the waste was computed from.
    pub fn path(&self, layers: &[Index]) -> Result<Vec<u8>, IndexError> {
        let index = layers.get(usize::from(self.layer)).ok_or(IndexError::Damaged("a layer does not exist"))?;
        let entry = index.children(index.node(self.dir)?)?.get(self.position as usize);
        let mut names = vec![index.name(entry.ok_or(IndexError::Damaged("an entry does not exist"))?)?];
        let mut at = self.dir;
        while at != 0 {
            let parent = index.node(at)?.parent.get();
            let found = index.children(index.node(parent)?)?.iter().find(|entry| entry.node.get() == at);
            names.push(index.name(found.ok_or(IndexError::Damaged("a directory is not in its parent"))?)?);
            at = parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }
}

// Exact enough: a few digits are shown.
#[allow(clippy::cast_precision_loss)]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Returns the offset of a regular file's first byte of data in its layer's tar, and the length of all its data; `None`
/// for anything without data.
fn data_of(index: &Index, node: &Node) -> Result<Option<(u64, u64)>, IndexError> {
    if node.kind() != Some(Kind::File) {
        return Ok(None);
    }
    if !node.has(node_flags::SPARSE) {
        return Ok((node.size.get() > 0).then(|| (node.data.get(), node.size.get())));
    }
    let extents = index.extents(node)?;
    let len = extents.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.len.get()));
    Ok(extents.first().map(|first| (first.offset.get(), len)))
}

/// Adds the files with data of one layer that the image does not show under their names in the layer.
fn find_hidden(
    index: &Index,
    whole: &Index,
    layer: u16,
    hidden: &mut HashMap<Place, WastedFile>,
) -> Result<(), IndexError> {
    let mut dirs: Vec<(u32, Option<u32>)> = vec![(0, Some(0))];
    while let Some((dir, visible_dir)) = dirs.pop() {
        let visible = visible_dir.map_or(Ok(&[][..]), |dir| whole.children(whole.node(dir)?))?;
        let mut visible = Names { index: whole, left: visible };
        for (position, entry) in (0..).zip(index.children(index.node(dir)?)?) {
            if entry.is_whiteout() {
                continue;
            }
            let node = index.node(entry.node.get())?;
            let seen = visible.find(index.name(entry)?)?.map(|entry| entry.node.get());
            if node.is_dir() {
                // In a damaged index a directory might be its own descendant.
                if entry.node.get() <= dir {
                    return Err(IndexError::Damaged("a directory has the wrong parent"));
                }
                dirs.push((entry.node.get(), seen));
                continue;
            }
            let Some((offset, size)) = data_of(index, node)? else { continue };
            let shown = seen.map(|id| whole.node(id)).transpose()?.filter(|shown| shown.layer.get() == layer);
            let place = shown.map_or(Ok(None), |shown| data_of(whole, shown))?;
            if place.is_none_or(|(shown, _)| shown != offset) {
                hidden.insert((layer, offset), WastedFile { size, layer, hidden_by: layer, dir, position });
            }
        }
    }
    Ok(())
}

/// A directory's entries, searched for names in ascending order.
pub(super) struct Names<'a> {
    pub index: &'a Index,
    pub left: &'a [Dirent],
}

impl<'a> Names<'a> {
    /// Finds a name, which must not be less than those searched for before.
    pub fn find(&mut self, name: &[u8]) -> Result<Option<&'a Dirent>, IndexError> {
        while let Some((first, rest)) = self.left.split_first() {
            match self.index.name(first)?.cmp(name) {
                Ordering::Less => self.left = rest,
                Ordering::Equal => {
                    self.left = rest;
                    return Ok(Some(first));
                }
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }
}

/// Returns the lowest layer above `layer` that hides what is below it at a path.
fn hider(layers: &[Index], layer: u16, path: &[u8]) -> Result<u16, IndexError> {
    for (above, index) in (0..).zip(layers).skip(usize::from(layer) + 1) {
        if hides(index, path)? {
            return Ok(above);
        }
    }
    // Not reached: what no layer hides is visible.
    Ok(layer)
}

/// Whether a layer hides a file that lower layers have at a path.
fn hides(index: &Index, path: &[u8]) -> Result<bool, IndexError> {
    let mut dir = index.node(0)?;
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(part) = parts.next() {
        let Some(entry) = index.find(dir, part)? else { return Ok(dir.has(node_flags::OPAQUE)) };
        if entry.is_whiteout() || dir.has(node_flags::OPAQUE) {
            return Ok(true);
        }
        let node = index.node(entry.node.get())?;
        if !node.is_dir() {
            return Ok(true);
        }
        if parts.peek().is_none() {
            // A bare directory is there only if a lower layer has a directory.
            return Ok(!node.has(node_flags::BARE));
        }
        dir = node;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::{Limits, Meta, Packed, Packer, index_tar};
    use crate::sys::Bytes;
    use crate::tree::merge;

    /// An entry of a test's layer. Whiteouts and opaque markers are files with their names.
    #[derive(Clone, Debug)]
    enum Put {
        File(String, u64),
        Dir(String),
        Link(String, String),
    }

    fn file(path: &str, size: u64) -> Put {
        Put::File(path.into(), size)
    }

    fn index(entries: &[Put]) -> Option<Index> {
        let mut packer = Packer::new(Vec::new());
        let meta = Meta { mode: 0o755, ..Meta::default() };
        for entry in entries {
            match entry {
                Put::File(path, size) => {
                    packer.entry(path.as_bytes(), &meta, Packed::File(*size)).unwrap();
                    packer.data(&vec![b'x'; *size as usize]).unwrap();
                }
                Put::Dir(path) => packer.entry(path.as_bytes(), &meta, Packed::Dir).unwrap(),
                Put::Link(path, to) => packer.entry(path.as_bytes(), &meta, Packed::Link(to.as_bytes())).unwrap(),
            }
        }
        let tar = packer.finish().unwrap();
        let id = Digest::of(&tar);
        let draft = index_tar(&mut &tar[..], &Limits::default()).ok()?;
        Some(Index::open(Bytes::Owned(draft.seal(&id))).unwrap())
    }

    fn waste(layers: &[Index]) -> Waste {
        let whole = Index::open(Bytes::Owned(merge(&Digest::of(b""), layers).unwrap())).unwrap();
        Waste::of(layers, &whole).unwrap()
    }

    /// The wasted files as (path, size, layer, hidden by), sorted.
    fn listed(layers: &[Index], waste: &Waste) -> Vec<(String, u64, u16, u16)> {
        let path = |f: &WastedFile| String::from_utf8(f.path(layers).unwrap()).unwrap();
        let mut all: Vec<_> = waste.files.iter().map(|f| (path(f), f.size, f.layer, f.hidden_by)).collect();
        all.sort();
        all
    }

    #[test]
    fn each_way_of_hiding_a_file_wastes_its_data() {
        let base = [file("a/f", 3), file("a/g", 5), file("b", 7)];
        for (above, want) in [
            (vec![], &[][..]),
            (vec![file("a/.wh.f", 0)], &[("a/f", 3)][..]),
            (vec![file(".wh.a", 0)], &[("a/f", 3), ("a/g", 5)]),
            (vec![file("a/.wh..wh..opq", 0), file("a/f", 1)], &[("a/f", 3), ("a/g", 5)]),
            (vec![file(".wh..wh..opq", 0)], &[("a/f", 3), ("a/g", 5), ("b", 7)]),
            (vec![file("a/f", 3)], &[("a/f", 3)]),
            (vec![file("a", 0)], &[("a/f", 3), ("a/g", 5)]),
            (vec![Put::Dir("b".into())], &[("b", 7)]),
            (vec![file("b/c", 0)], &[("b", 7)]),
            // Only a whiteout lies below: the file stays.
            (vec![file("b/.wh.c", 0)], &[]),
            (vec![Put::Dir("a".into())], &[]),
            // The data is still there under its new name.
            (vec![Put::Link("z".into(), "a/f".into()), file("a/.wh.f", 0)], &[]),
        ] {
            let layers = [index(&base).unwrap(), index(&above).unwrap()];
            let waste = waste(&layers);
            let want: Vec<_> = want.iter().map(|(path, size)| ((*path).to_owned(), *size, 0, 1)).collect();
            assert_eq!(listed(&layers, &waste), want, "{above:?}");
            assert_eq!(waste.total_wasted(), want.iter().map(|f| f.1).sum::<u64>());
        }
    }

    #[test]
    fn hard_links_count_once() {
        let base = [file("a", 4), Put::Link("b".into(), "a".into())];
        let layers = [index(&base).unwrap(), index(&[file(".wh.a", 0)]).unwrap()];
        assert_eq!((waste(&layers).total(), waste(&layers).total_wasted()), (4, 0));
        let layers = [index(&base).unwrap(), index(&[file(".wh.a", 0), file(".wh.b", 0)]).unwrap()];
        assert_eq!((waste(&layers).total(), waste(&layers).total_wasted()), (4, 4));
        assert_eq!(waste(&layers).files.len(), 1);
    }

    #[test]
    fn shares_are_of_all_layers_and_of_those_above_the_base() {
        let layers =
            [index(&[file("a", 60)]).unwrap(), index(&[file("b", 30)]).unwrap(), index(&[file("b", 10)]).unwrap()];
        let found = waste(&layers);
        assert_eq!((found.stored.as_slice(), found.wasted.as_slice()), (&[60, 30, 10][..], &[0, 30, 0][..]));
        assert!((found.efficiency() - 0.7).abs() < 1e-9);
        assert!((found.user_wasted_share() - 0.75).abs() < 1e-9);
        let none = waste(&[]);
        assert!((none.efficiency() - 1.0).abs() < 1e-9 && none.user_wasted_share().abs() < 1e-9);
    }

    /// Whether a later layer's entries hide a file, by comparison of the paths alone.
    fn is_hidden(path: &str, later: &[Put]) -> bool {
        let is_above = |dir: &str| dir.is_empty() || path.starts_with(&format!("{dir}/"));
        later.iter().any(|entry| match entry {
            Put::Dir(other) => other == path || other.starts_with(&format!("{path}/")),
            Put::Link(other, _) | Put::File(other, _) => {
                let (dir, name) = other.rsplit_once('/').unwrap_or(("", other));
                if name == ".wh..wh..opq" {
                    return is_above(dir);
                }
                if let Some(gone) = name.strip_prefix(".wh.") {
                    let gone = if dir.is_empty() { gone.to_owned() } else { format!("{dir}/{gone}") };
                    return gone == path || is_above(&gone);
                }
                other == path || is_above(other) || other.starts_with(&format!("{path}/"))
            }
        })
    }

    #[test]
    fn random_images_waste_what_a_comparison_of_all_paths_finds() {
        let mut seed: u64 = 7;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let (mut images, mut wasted) = (0, 0);
        for _ in 0..10_000 {
            let layers: Vec<Vec<Put>> = (0..4)
                .map(|_| {
                    let entries = 1 + random(5);
                    (0..entries)
                        .map(|_| {
                            let depth = 1 + random(3);
                            let dir: String = (1..depth).map(|_| ["a/", "b/"][random(2)]).collect();
                            let name = ["a", "b", "c"][random(3)];
                            match random(8) {
                                0 => file(&format!("{dir}.wh.{name}"), 0),
                                1 => file(&format!("{dir}.wh..wh..opq"), 0),
                                2 => Put::Dir(format!("{dir}{name}")),
                                _ => file(&format!("{dir}{name}"), 1 + random(50) as u64),
                            }
                        })
                        .collect()
                })
                .collect();
            // A path that is twice in a layer, or a file with something below it, is not what this test is about.
            let is_plain = |layer: &Vec<Put>| {
                layer.iter().enumerate().all(|(at, entry)| {
                    let (Put::File(path, _) | Put::Dir(path) | Put::Link(path, _)) = entry;
                    let same = |other: &Put| {
                        let (Put::File(other, _) | Put::Dir(other) | Put::Link(other, _)) = other;
                        path == other || matches!(entry, Put::File(..)) && other.starts_with(&format!("{path}/"))
                    };
                    !layer.iter().enumerate().any(|(other_at, other)| other_at != at && same(other))
                })
            };
            if !layers.iter().all(is_plain) {
                continue;
            }
            let Some(indexes) = layers.iter().map(|layer| index(layer)).collect::<Option<Vec<_>>>() else { continue };
            let mut want = Vec::new();
            for (at, layer) in layers.iter().enumerate() {
                for entry in layer {
                    let Put::File(path, size @ 1..) = entry else { continue };
                    let by = (at + 1..layers.len()).find(|later| is_hidden(path, &layers[*later]));
                    want.extend(by.map(|by| (path.clone(), *size, at as u16, by as u16)));
                }
            }
            want.sort();
            let found = waste(&indexes);
            assert_eq!(listed(&indexes, &found), want, "{layers:?}");
            images += 1;
            wasted += want.len();
        }
        assert!(images > 500 && wasted > 500, "{images} images, {wasted} wasted files");
    }
}
