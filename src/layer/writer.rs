//! The index writer: appends inodes, entries, extents and strings, and assembles the file.

use super::index::{BodyHash, Dirent, Extent, Header, Node, Of, index_flags};
use crate::digest::Digest;
use crate::meta::Kind;
use std::collections::HashMap;
use zerocopy::IntoBytes;

/// A number exceeds what the index format can hold.
#[derive(Debug, thiserror::Error)]
#[error("has more {0} than an index can hold")]
pub struct TooMany(&'static str);

/// An index under construction. [`Writer::seal`] assembles the file.
#[derive(Default)]
pub struct Writer {
    nodes: Vec<Node>,
    dirents: Vec<Dirent>,
    extents: Vec<Extent>,
    strings: Vec<u8>,
    xattrs: Vec<u8>,
    /// Most sets of attributes recur (one label on every file), so each is stored once.
    xattr_sets: HashMap<Box<[u8]>, u32>,
    flags: u32,
    blocks: u64,
}

impl Writer {
    /// Appends an inode and returns its number.
    pub fn node(&mut self, node: Node) -> Result<u32, TooMany> {
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id < u32::MAX).ok_or(TooMany("inodes"))?;
        if node.mode.get() == 0 {
            self.flags |= index_flags::FOREIGN_LINKS;
        }
        if node.kind() == Some(Kind::File) {
            self.blocks = self.blocks.saturating_add(node.blocks.get().into());
        }
        self.nodes.push(node);
        Ok(id)
    }

    /// Returns an inode, for changes.
    pub fn node_mut(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// Returns the number of the next directory entry.
    pub fn next_dirent(&self) -> Result<u32, TooMany> {
        u32::try_from(self.dirents.len()).map_err(|_| TooMany("directory entries"))
    }

    /// Appends a directory entry. The caller must append the entries of one directory together, sorted by name.
    pub fn dirent(&mut self, name: &[u8], node: u32, kind: u32) -> Result<(), TooMany> {
        let at = self.string(name)?;
        let name_len = u16::try_from(name.len()).map_err(|_| TooMany("bytes in a name"))?;
        self.dirents.push(Dirent {
            name: at.into(),
            node: node.into(),
            name_len: name_len.into(),
            kind: ((kind >> 12) as u16).into(),
        });
        Ok(())
    }

    /// Appends a file's extents and returns the number of the first.
    pub fn extents(&mut self, extents: &[Extent]) -> Result<u32, TooMany> {
        let first = u32::try_from(self.extents.len()).map_err(|_| TooMany("extents"))?;
        self.extents.extend_from_slice(extents);
        Ok(first)
    }

    /// Appends a string and returns its offset.
    pub fn string(&mut self, bytes: &[u8]) -> Result<u32, TooMany> {
        let at = u32::try_from(self.strings.len()).map_err(|_| TooMany("bytes of names"))?;
        self.strings.extend_from_slice(bytes);
        Ok(at)
    }

    /// Returns the target string of a link of this index.
    pub fn string_at(&self, link: &Node) -> &[u8] {
        let start = link.data.get() as usize;
        &self.strings[start..start + link.count.get() as usize]
    }

    /// Appends a set of extended attributes and returns the value for [`Node::xattrs`].
    pub fn xattrs<N: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, set: &[(N, V)]) -> Result<u32, TooMany> {
        if set.is_empty() {
            return Ok(0);
        }
        let too_many = || TooMany("extended attributes");
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(set.len()).map_err(|_| too_many())?.to_le_bytes());
        for (name, value) in set {
            let (name, value) = (name.as_ref(), value.as_ref());
            if name.starts_with(b"system.posix_acl_") {
                self.flags |= index_flags::ACLS;
            }
            bytes.extend(u16::try_from(name.len()).map_err(|_| too_many())?.to_le_bytes());
            bytes.extend(u32::try_from(value.len()).map_err(|_| too_many())?.to_le_bytes());
            bytes.extend(name);
            bytes.extend(value);
        }
        if let Some(at) = self.xattr_sets.get(&bytes[..]) {
            return Ok(*at);
        }
        let at = u32::try_from(self.xattrs.len() + 1).map_err(|_| too_many())?;
        self.xattrs.extend_from_slice(&bytes);
        self.xattr_sets.insert(bytes.into(), at);
        Ok(at)
    }

    /// Assembles the index file.
    pub fn seal(self, of: Of, source: &Digest) -> Vec<u8> {
        let mut header = Header::new(of, source);
        // The casts are lossless: every append was checked against the format's limits.
        header.nodes = (self.nodes.len() as u32).into();
        header.dirents = (self.dirents.len() as u32).into();
        header.extents = (self.extents.len() as u32).into();
        header.strings = (self.strings.len() as u64).into();
        header.xattrs = (self.xattrs.len() as u64).into();
        header.flags = self.flags.into();
        header.blocks = self.blocks.into();
        let parts = [
            self.nodes.as_bytes(),
            self.dirents.as_bytes(),
            self.extents.as_bytes(),
            &self.strings[..],
            &self.xattrs[..],
        ];
        let mut hash = BodyHash::default();
        parts.iter().for_each(|part| hash.update(part));
        header.body_hash = hash.finish();
        header.header_hash = header.hash();
        let mut file = Vec::with_capacity(size_of::<Header>() + parts.iter().map(|p| p.len()).sum::<usize>());
        file.extend_from_slice(header.as_bytes());
        parts.iter().for_each(|part| file.extend_from_slice(part));
        file
    }
}
