//! The layout of an EROFS image: selects the form of each inode's data, and assigns each inode and block its place.

use super::chunks::{Choice, Extent, File};
use super::format::{BLOCK, CHUNK_INDEX, Device, INODE, Layout, SLOT, SUPER_OFFSET, Super};
use super::input::{Layer, WriteError, path_of};
use super::names::{self, Name};
use super::xattrs::Xattrs;
use crate::layer::{Index, IndexError, Node, node_flags};
use crate::meta::Kind;

/// The places of everything in an image.
pub(super) struct Plan {
    pub inodes: Vec<Placed>,
    /// Offset of the shared attributes.
    pub xattrs: u64,
    /// Length of the image.
    pub length: u64,
}

/// One inode's place and form.
#[derive(Clone, Copy)]
pub(super) struct Placed {
    /// Offset of the inode.
    pub at: u64,
    /// The first of its blocks in the image.
    pub block: u64,
    pub form: Form,
}

/// The form of an inode's data.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// A directory or a symbolic link: bytes in whole blocks, and the rest inline if it fits.
    Bytes { size: u64, layout: Layout },
    /// A file.
    Chunks(Choice),
    /// No data.
    Empty,
}

impl Form {
    pub fn layout(&self) -> Layout {
        match self {
            Form::Bytes { layout, .. } => *layout,
            Form::Chunks(_) => Layout::Chunks,
            Form::Empty => Layout::Plain,
        }
    }

    /// Returns the number of bytes behind the inode and its attributes, and the number of blocks elsewhere in the image.
    fn takes(&self) -> (u64, u64) {
        match self {
            Form::Bytes { size, layout: Layout::Inline } => (inline_part(*size), (size - inline_part(*size)) / BLOCK),
            Form::Bytes { size, .. } => (0, size.div_ceil(BLOCK)),
            // The array begins at a multiple of 8, and the inode's end may be 4 bytes before that.
            Form::Chunks(choice) => (choice.chunks * CHUNK_INDEX + CHUNK_INDEX / 2, choice.copied),
            Form::Empty => (0, 0),
        }
    }
}

/// The bytes of the last block.
pub(super) fn inline_part(size: u64) -> u64 {
    size - size.saturating_sub(1) / BLOCK * BLOCK
}

impl Plan {
    pub fn new(tree: &Index, layers: &[Layer<'_>], xattrs: &Xattrs) -> Result<Plan, WriteError> {
        let mut inodes = Vec::with_capacity(tree.nodes().len());
        let mut at = (SUPER_OFFSET + size_of::<Super>() + layers.len() * size_of::<Device>()) as u64;
        let mut blocks = 0;
        for (id, node) in tree.nodes().iter().enumerate() {
            let head = INODE + xattrs.of(node).len() as u64;
            let form = form_of(tree, layers, id as u32, head)?;
            let (behind, elsewhere) = form.takes();
            at = at.next_multiple_of(SLOT);
            if form.layout() == Layout::Inline {
                // Inline data must not cross the end of a block.
                while (at + head) % BLOCK + behind > BLOCK {
                    at += SLOT;
                }
            }
            inodes.push(Placed { at, block: blocks, form });
            at += head + behind;
            blocks += elsewhere;
        }
        let xattrs_at = at.next_multiple_of(BLOCK);
        let first = (xattrs_at + xattrs.shared.len() as u64).div_ceil(BLOCK);
        inodes.iter_mut().for_each(|placed| placed.block += first);
        // The programs of erofs-utils read this much at once.
        let length = ((first + blocks) * BLOCK).next_multiple_of(4096);
        // Block numbers have 32 bits.
        if first + blocks > u64::from(u32::MAX) {
            return Err(WriteError::TooLarge);
        }
        Ok(Plan { inodes, xattrs: xattrs_at, length })
    }

    /// Returns the number of an inode in the image.
    pub fn nid(&self, id: u32) -> u64 {
        self.inodes.get(id as usize).map_or(0, |placed| placed.at / SLOT)
    }
}

fn form_of(tree: &Index, layers: &[Layer<'_>], id: u32, head: u64) -> Result<Form, WriteError> {
    let node = tree.node(id)?;
    let size = match node.kind() {
        Some(Kind::Dir) => dir_size(&names_of(tree, id)?),
        Some(Kind::Symlink) => tree.target(node)?.len() as u64,
        Some(Kind::File) if node.size.get() > 0 => return Ok(Form::Chunks(choice_of(tree, layers, id)?)),
        _ => return Ok(Form::Empty),
    };
    let fits = head % BLOCK + inline_part(size) <= BLOCK;
    Ok(Form::Bytes { size, layout: if fits { Layout::Inline } else { Layout::Plain } })
}

/// The size of a directory: all its blocks but the last are whole.
fn dir_size(names: &[Name<'_>]) -> u64 {
    let (mut whole, mut last) = (0, 0);
    for block in names::blocks(names) {
        (whole, last) = (whole + u64::from(last > 0) * BLOCK, names::length(block));
    }
    whole + last
}

/// Returns a directory's entries, with `.` and `..`.
pub(super) fn names_of(tree: &Index, id: u32) -> Result<Vec<Name<'_>>, IndexError> {
    let node = tree.node(id)?;
    let entries = tree.children(node)?.iter();
    let names = entries.map(|entry| Ok(Name { name: tree.name(entry)?, node: entry.node.get(), kind: entry.kind() }));
    Ok(names::with_dots(names.collect::<Result<_, IndexError>>()?, id, node.parent.get()))
}

fn choice_of(tree: &Index, layers: &[Layer<'_>], id: u32) -> Result<Choice, WriteError> {
    let node = tree.node(id)?;
    let extents = extents_of(tree, node)?;
    let tar = layer_of(layers, node)?.tar.length();
    File { size: node.size.get(), extents: &extents, tar }.choose().ok_or_else(|| WriteError::Sparse(path_of(tree, id)))
}

/// Returns a file's data extents.
pub(super) fn extents_of(tree: &Index, node: &Node) -> Result<Vec<Extent>, IndexError> {
    if !node.has(node_flags::SPARSE) {
        return Ok(vec![Extent { logical: 0, offset: node.data.get(), len: node.size.get() }]);
    }
    let extent = |extent: &crate::layer::Extent| Extent {
        logical: extent.logical.get(),
        offset: extent.offset.get(),
        len: extent.len.get(),
    };
    Ok(tree.extents(node)?.iter().map(extent).filter(|extent| extent.len > 0).collect())
}

pub(super) fn layer_of<'a, 'l>(layers: &'a [Layer<'l>], node: &Node) -> Result<&'a Layer<'l>, IndexError> {
    layers.get(usize::from(node.layer.get())).ok_or(IndexError::Damaged("an inode's layer does not exist"))
}
