//! The writer: assembles an EROFS image from a merged index.

use super::chunks::{Choice, Chunk, Extent, File};
use super::format::{
    BLOCK, BLOCK_BITS, CHUNK_INDEX, ChunkIndex, Device, Header, INODE, Inode, Layout, OVERLAY_MARKS, SUPER_OFFSET,
    Super,
};
use super::input::{Layer, WriteError};
use super::names;
use super::plan::{Form, Placed, Plan, extents_of, layer_of, names_of};
use super::xattrs::{self, Xattrs};
use crate::layer::{Index, IndexError, Node};
use crate::meta::Kind;
use crate::whiteout::is_whiteout_device;
use zerocopy::IntoBytes;

/// The most layers: the device table must end before the offset of the root exceeds 16 bits.
const MOST_LAYERS: usize = 10_000;

/// Writes the EROFS image of a merged index, whose layers are `layers`, the bottom one first. The same input gives the
/// same bytes. The device of layer `n` at the mount is number `n + 1`.
pub fn write(tree: &Index, layers: &[Layer<'_>]) -> Result<Vec<u8>, WriteError> {
    if layers.len() > MOST_LAYERS {
        return Err(WriteError::Layers(layers.len()));
    }
    let xattrs = Xattrs::new(tree)?;
    let plan = Plan::new(tree, layers, &xattrs)?;
    let mut image = vec![0; plan.length as usize];
    write_super(&mut image, tree, layers, &plan)?;
    image[plan.xattrs as usize..][..xattrs.shared.len()].copy_from_slice(&xattrs.shared);
    let mut writer = Writer { tree, layers, plan: &plan, xattrs: &xattrs, image: &mut image };
    for id in 0..tree.nodes().len() as u32 {
        writer.inode(id)?;
    }
    let flags = if has_overlay_marks(tree)? { OVERLAY_MARKS } else { 0 };
    let header = Header::of(&image, tree.source(), flags);
    image[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    Ok(image)
}

fn write_super(image: &mut [u8], tree: &Index, layers: &[Layer<'_>], plan: &Plan) -> Result<(), WriteError> {
    let mut sb = Super::new();
    // The casts are lossless: the plan has checked the limits.
    sb.root_nid = (plan.nid(0) as u16).into();
    sb.inodes = (tree.nodes().len() as u64).into();
    sb.blocks = ((plan.length / BLOCK) as u32).into();
    sb.xattr_block = ((plan.xattrs / BLOCK) as u32).into();
    let digits = tree.source().hex().as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap_or_default());
    let bytes = digits.filter_map(|pair| u8::from_str_radix(pair, 16).ok());
    sb.uuid.iter_mut().zip(bytes).for_each(|(byte, from)| *byte = from);
    sb.devices = (layers.len() as u16).into();
    image[SUPER_OFFSET..][..size_of::<Super>()].copy_from_slice(sb.as_bytes());
    for (number, layer) in layers.iter().enumerate() {
        let blocks = u32::try_from(layer.tar.length().div_ceil(BLOCK)).map_err(|_| WriteError::TooLarge)?;
        let at = SUPER_OFFSET + size_of::<Super>() + number * size_of::<Device>();
        image[at..][..size_of::<Device>()].copy_from_slice(Device::new(layer.diff_id, blocks).as_bytes());
    }
    Ok(())
}

/// Whether kernel overlayfs would take anything in an image for its own mark: a whiteout device or an attribute.
pub fn has_overlay_marks(tree: &Index) -> Result<bool, IndexError> {
    let is_whiteout = |node: &Node| node.kind() == Some(Kind::Char) && is_whiteout_device(node.data.get() as u32);
    Ok(tree.nodes().iter().any(is_whiteout) || xattrs::has_overlay_marks(tree)?)
}

struct Writer<'a, 'l> {
    tree: &'a Index,
    layers: &'a [Layer<'l>],
    plan: &'a Plan,
    xattrs: &'a Xattrs,
    image: &'a mut [u8],
}

impl Writer<'_, '_> {
    fn inode(&mut self, id: u32) -> Result<(), WriteError> {
        let (node, placed) = (self.tree.node(id)?, self.plan.inodes[id as usize]);
        let body = self.xattrs.of(node);
        let mut inode = Inode::new(placed.form.layout());
        inode.xattr_count = xattrs::count(body).into();
        inode.mode = (node.mode.get() as u16).into();
        inode.ino = (id + 1).into();
        (inode.uid, inode.gid, inode.nlink) = (node.uid, node.gid, node.nlink);
        inode.mtime = (node.mtime_sec.get() as u64).into();
        inode.mtime_nsec = node.mtime_nsec;
        match placed.form {
            Form::Bytes { size, .. } => {
                inode.size = size.into();
                inode.detail = (placed.block as u32).into();
            }
            Form::Chunks(choice) => {
                inode.size = node.size;
                // EROFS_CHUNK_FORMAT_INDEXES
                inode.detail = (u32::from(choice.bits) | 0x20).into();
            }
            Form::Empty if matches!(node.kind(), Some(Kind::Char | Kind::Block)) => {
                inode.detail = (node.data.get() as u32).into();
            }
            Form::Empty => {}
        }
        self.put(placed.at, inode.as_bytes());
        self.put(placed.at + INODE, body);
        let behind = placed.at + INODE + body.len() as u64;
        match node.kind() {
            Some(Kind::Dir) => self.dir(id, &placed, behind),
            Some(Kind::Symlink) => self.link(node, &placed, behind),
            _ => match placed.form {
                Form::Chunks(choice) => self.file(node, &placed, choice, behind),
                _ => Ok(()),
            },
        }
    }

    fn dir(&mut self, id: u32, placed: &Placed, behind: u64) -> Result<(), WriteError> {
        let names = names_of(self.tree, id)?;
        let count = names::blocks(&names).count();
        for (number, block) in names::blocks(&names).enumerate() {
            let is_inline = placed.form.layout() == Layout::Inline && number + 1 == count;
            let at = if is_inline { behind } else { (placed.block + number as u64) * BLOCK };
            let into = &mut self.image[at as usize..][..names::length(block) as usize];
            names::write(block, into, |node| self.plan.nid(node));
        }
        Ok(())
    }

    fn link(&mut self, node: &Node, placed: &Placed, behind: u64) -> Result<(), WriteError> {
        let target = self.tree.target(node)?;
        let is_inline = placed.form.layout() == Layout::Inline;
        let split =
            if is_inline { target.len().saturating_sub(1) / BLOCK as usize * BLOCK as usize } else { target.len() };
        self.put(placed.block * BLOCK, &target[..split]);
        self.put(behind, &target[split..]);
        Ok(())
    }

    fn file(&mut self, node: &Node, placed: &Placed, choice: Choice, behind: u64) -> Result<(), WriteError> {
        let (extents, layer) = (extents_of(self.tree, node)?, layer_of(self.layers, node)?);
        let file = File { size: node.size.get(), extents: &extents, tar: layer.tar.length() };
        let array = behind.next_multiple_of(CHUNK_INDEX);
        let mut copied = placed.block;
        for number in 0..choice.chunks {
            let index = match file.chunk(choice.bits, number) {
                Chunk::Hole => ChunkIndex::HOLE,
                Chunk::Tar(block) => {
                    ChunkIndex::new(node.layer.get() + 1, u32::try_from(block).map_err(|_| WriteError::TooLarge)?)
                }
                Chunk::Copied => {
                    let range = file.range(choice.bits, number);
                    let into = &mut self.image[(copied << BLOCK_BITS) as usize..][..(range.end - range.start) as usize];
                    copy(layer, &extents, range.start, into)?;
                    let index = ChunkIndex::new(0, copied as u32);
                    copied += (range.end - range.start).div_ceil(BLOCK);
                    index
                }
            };
            self.put(array + number * CHUNK_INDEX, index.as_bytes());
        }
        Ok(())
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.image[at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// Reads a part of a file, from `start` on, out of its tar. `into` has zeros, which stay where the file has holes.
fn copy(layer: &Layer<'_>, extents: &[Extent], start: u64, into: &mut [u8]) -> Result<(), WriteError> {
    let end = start + into.len() as u64;
    for extent in extents.iter().filter(|extent| extent.logical < end && extent.end() > start) {
        let (from, to) = (extent.logical.max(start), extent.end().min(end));
        let piece = &mut into[(from - start) as usize..(to - start) as usize];
        layer
            .tar
            .read_exact(piece, extent.offset.saturating_add(from - extent.logical))
            .map_err(|why| WriteError::Read { diff_id: layer.diff_id.clone(), why })?;
    }
    Ok(())
}
