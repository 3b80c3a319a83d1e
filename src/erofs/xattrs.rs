//! Extended attributes: the shared ones, and what follows an inode.

use super::input::{WriteError, path_of};
use crate::layer::{Index, IndexError, Node};
use crate::whiteout::is_kernel_mark;
use std::collections::{HashMap, HashSet};

/// Length of the header of an inode's attributes.
const HEADER: usize = 12;
/// The most shared attributes of an inode (`h_shared_count`).
const MOST_SHARED: usize = u8::MAX as usize;
/// `i_xattr_icount` has 16 bits.
const MOST_BYTES: usize = HEADER + (u16::MAX as usize - 1) * 4;
/// POSIX ACLs, whose names are one index each, and the namespaces; the index of each (`e_name_index`).
const NAMES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The attributes of a whole image.
pub(super) struct Xattrs {
    /// The shared attributes, one after the other, each at a multiple of 4.
    pub shared: Vec<u8>,
    /// What follows an inode, for each set of attributes.
    bodies: Vec<Vec<u8>>,
    /// The number of a set's body, by what an inode of the index has in `xattrs`.
    numbers: HashMap<u32, usize>,
}

/// One attribute in the image's form.
type Encoded = Vec<u8>;

impl Xattrs {
    /// Encodes all attributes of an image's inodes.
    pub fn new(tree: &Index) -> Result<Xattrs, WriteError> {
        let (mut sets, mut numbers) = (Vec::<(Vec<Encoded>, usize)>::new(), HashMap::<u32, usize>::new());
        for (id, node) in tree.nodes().iter().enumerate().filter(|(_, node)| node.xattrs.get() != 0) {
            match numbers.get(&node.xattrs.get()) {
                Some(number) => sets[*number].1 += 1,
                None => {
                    numbers.insert(node.xattrs.get(), sets.len());
                    sets.push((encoded(tree, id as u32, node)?, 1));
                }
            }
        }
        let mut uses: HashMap<&[u8], usize> = HashMap::new();
        for (set, inodes) in &sets {
            set.iter().for_each(|attribute| *uses.entry(attribute).or_default() += inodes);
        }
        let (mut shared, mut places, mut bodies) = (Vec::new(), HashMap::new(), Vec::new());
        for (set, _) in &sets {
            bodies.push(body(set, |attribute| {
                (uses[attribute] > 1).then(|| {
                    *places.entry(attribute.to_vec()).or_insert_with(|| {
                        let at = shared.len() as u32 / 4;
                        shared.extend_from_slice(attribute);
                        at
                    })
                })
            }));
        }
        let many = |bytes: &Vec<u8>| bytes.len() > MOST_BYTES;
        if let Some(number) = bodies.iter().position(many) {
            let id = tree.nodes().iter().position(|node| numbers.get(&node.xattrs.get()) == Some(&number));
            return Err(WriteError::Xattrs(path_of(tree, id.unwrap_or_default() as u32)));
        }
        Ok(Xattrs { shared, bodies, numbers })
    }

    /// Returns what follows an inode; empty without attributes.
    pub fn of(&self, node: &Node) -> &[u8] {
        self.numbers.get(&node.xattrs.get()).map_or(&[], |number| &self.bodies[*number])
    }
}

/// Returns the value for `i_xattr_icount`.
pub(super) fn count(body: &[u8]) -> u16 {
    if body.is_empty() { 0 } else { ((body.len() - HEADER) / 4 + 1) as u16 }
}

/// Encodes an inode's attributes, without those that Linux would not show.
fn encoded(tree: &Index, id: u32, node: &Node) -> Result<Vec<Encoded>, WriteError> {
    let mut set = Vec::new();
    for attribute in tree.xattrs(node)? {
        let (name, value) = attribute?;
        let known = NAMES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)));
        let Some((rest, index)) = known.filter(|(rest, index)| matches!(index, 2 | 3) == rest.is_empty()) else {
            continue;
        };
        let too_large = || WriteError::Xattrs(path_of(tree, id));
        let name_len = u8::try_from(rest.len()).map_err(|_| too_large())?;
        let value_len = u16::try_from(value.len()).map_err(|_| too_large())?;
        let mut bytes = vec![name_len, index];
        bytes.extend(value_len.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        set.push(bytes);
    }
    Ok(set)
}

/// Assembles what follows an inode. `share` returns the place of a shared attribute.
fn body(set: &[Encoded], mut share: impl FnMut(&[u8]) -> Option<u32>) -> Vec<u8> {
    if set.is_empty() {
        return Vec::new();
    }
    let (mut places, mut inline) = (Vec::new(), Vec::new());
    for attribute in set {
        match if places.len() < MOST_SHARED { share(attribute) } else { None } {
            Some(place) => places.push(place),
            None => inline.extend_from_slice(attribute),
        }
    }
    let mut bytes = vec![0; HEADER];
    bytes[4] = places.len() as u8;
    places.iter().for_each(|place| bytes.extend(place.to_le_bytes()));
    bytes.extend(inline);
    bytes
}

/// Whether any inode of the image has an attribute that kernel overlayfs would take for its own mark.
pub(super) fn has_overlay_marks(tree: &Index) -> Result<bool, IndexError> {
    let mut seen = HashSet::new();
    for node in tree.nodes().iter().filter(|node| node.xattrs.get() != 0) {
        // Most inodes with attributes have the same ones.
        if !seen.insert(node.xattrs.get()) {
            continue;
        }
        for attribute in tree.xattrs(node)? {
            if is_kernel_mark(attribute?.0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
