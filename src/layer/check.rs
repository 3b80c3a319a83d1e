//! A full consistency check of an index (fsck).

use super::index::{Index, IndexError, Node, Of, index_flags, node_flags};
use crate::meta::Kind;
use crate::name;

impl Index {
    /// Checks the hash and the whole tree. A layer's index may hold whiteouts, an image's may not; names are valid and
    /// sorted, every directory has one parent, every inode has as many names as its link count, every reference is in
    /// range. An index that passes can be merged, mounted and read without [`IndexError`].
    pub fn check(&self) -> Result<(), IndexError> {
        if !self.body_is_intact() {
            return Err(IndexError::Damaged("its checksum is wrong"));
        }
        let mut links = vec![0u32; self.nodes().len()];
        for (id, node) in self.nodes().iter().enumerate() {
            self.check_node(node)?;
            self.check_children(id as u32, node, &mut links)?;
        }
        for (id, node) in self.nodes().iter().enumerate() {
            let want = if id == 0 { node.nlink.get() } else { links[id] };
            let holds = if node.is_dir() { id == 0 || links[id] == 1 } else { want == node.nlink.get() && want > 0 };
            ensure(holds, "an inode's link count is wrong")?;
        }
        let foreign = self.nodes().iter().any(|node| node.kind().is_none());
        ensure(
            !foreign || (self.of() == Of::Layer && self.flags() & index_flags::FOREIGN_LINKS != 0),
            "a hard link has no inode",
        )
    }

    fn check_node(&self, node: &Node) -> Result<(), IndexError> {
        let mut size = 0;
        for item in self.xattrs(node)? {
            size += item?.0.len();
        }
        ensure(size <= 65536, "an inode has too many extended attributes")?;
        match node.kind() {
            Some(Kind::Symlink) | None => self.target(node).map(drop),
            Some(Kind::File) if node.has(node_flags::SPARSE) => {
                let mut end = 0;
                for extent in self.extents(node)? {
                    ensure(extent.logical.get() >= end, "extents overlap")?;
                    end = extent.logical.get().saturating_add(extent.len.get());
                }
                ensure(end <= node.size.get(), "an extent lies beyond its file")
            }
            _ => Ok(()),
        }
    }

    fn check_children(&self, id: u32, node: &Node, links: &mut [u32]) -> Result<(), IndexError> {
        let mut last: Option<&[u8]> = None;
        let mut dirs = 2;
        for entry in self.children(node)? {
            let name = self.name(entry)?;
            ensure(name::is_valid(name), "a name is invalid")?;
            ensure(last.is_none_or(|last| last < name), "names are out of order")?;
            last = Some(name);
            if entry.is_whiteout() {
                ensure(self.of() == Of::Layer, "the merged index of an image has a whiteout")?;
                continue;
            }
            let child = self.node(entry.node.get())?;
            ensure(entry.kind() == child.kind(), "an entry's file type differs from its inode's")?;
            if child.is_dir() {
                dirs += 1;
                ensure(child.parent.get() == id && entry.node.get() > id, "a directory has the wrong parent")?;
            }
            links[entry.node.get() as usize] += 1;
        }
        ensure(!node.is_dir() || node.nlink.get() == dirs, "a directory's link count is wrong")
    }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), IndexError> {
    if holds { Ok(()) } else { Err(IndexError::Damaged(what)) }
}
