//! Commit of a union's changes: a new OCI layer on top of the image's layers.
//!
//! A deletion becomes a whiteout. A directory that replaces one of the image becomes opaque, with all its content.
//! Everything else is written as it is, with its parent directories, since unpacking tools create missing parents with
//! attributes of their choice. A file with several hard links is written under all of them, unchanged ones too: other
//! tools unpack each layer on its own, and cannot link to a file of another layer.

use super::changes::{join, parent};
use super::export::names;
use super::tar_export::{Entries, ExportError, Rules};
use super::{Changes, Fs, FsError, How, Ino, ROOT};
use crate::meta::{Kind, Time};
use crate::whiteout::{self, OPAQUE};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

/// The entry of a layer at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    Inode(Ino),
    /// An opaque directory: it hides the image's content.
    Opaque(Ino),
    Whiteout,
}

/// The content of a layer to be written.
pub struct NewLayer<'a> {
    fs: &'a Fs,
    /// The entries by absolute path; the root is `/`.
    items: BTreeMap<Vec<u8>, Item>,
}

impl<'a> NewLayer<'a> {
    /// Collects the entries for changes of a union, found with the same `left_out` ([`Fs::changes`]). Fails before
    /// anything is written if a name cannot be in a layer.
    pub fn of(fs: &'a Fs, changes: &Changes, left_out: &BTreeSet<Vec<u8>>) -> Result<Self, ExportError> {
        let mut layer = NewLayer { fs, items: BTreeMap::new() };
        for (path, changed) in changes {
            let item = match changed.how {
                How::Deleted => Item::Whiteout,
                // Tar has no sockets, but the image's file there is still deleted.
                How::Changed if changed.kind == Kind::Socket => Item::Whiteout,
                _ if changed.replaces => Item::Opaque(changed.ino),
                _ => Item::Inode(changed.ino),
            };
            layer.items.insert(path.clone(), item);
        }
        let opaque = changes.iter().filter(|(_, changed)| changed.replaces);
        opaque.for_each(|(path, _)| layer.drop_redundant_whiteouts(path));
        for (path, ino) in layer.opaque() {
            layer.fill(&path, ino, &|path| left_out.contains(path) && !changes.contains_key(path))?;
        }
        layer.add_names()?;
        if !layer.items.is_empty() {
            layer.items.entry(b"/".to_vec()).or_insert(Item::Inode(ROOT));
        }
        for path in layer.items.keys() {
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            whiteout::check_name(name).map_err(|why| ExportError::Name { path: path[1..].to_vec(), why })?;
        }
        Ok(layer)
    }

    /// Writes the layer as a sorted tar. Modification times are capped at `newest`, in seconds. Also returns what tar
    /// cannot express and was dropped, one line each.
    pub fn write<W: Write>(&self, out: W, newest: Option<i64>) -> Result<(W, Vec<String>), ExportError> {
        let newest = newest.map(|sec| Time { sec, nsec: 0 });
        let mut entries = Entries::new(self.fs, out, Rules { newest, without_labels: true });
        for (path, item) in &self.items {
            let inside = &path[1..];
            let (Item::Inode(ino) | Item::Opaque(ino)) = *item else {
                let (dir, name) = inside.split_at(inside.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1));
                entries.marker(&[dir, &whiteout::whiteout_name(name)].concat())?;
                continue;
            };
            match self.fs.getattr(ino) {
                Ok(attr) => entries.entry(inside, &attr)?,
                // Removed since the changes were collected: processes may still run in the tree.
                Err(e) if e.is_absence() => continue,
                Err(cause) => return Err(ExportError::Read { path: inside.to_vec(), cause }),
            }
            if matches!(item, Item::Opaque(_)) {
                // The opaque marker precedes the directory's content: unpacking tools apply it to earlier siblings.
                entries.marker(&join(path, OPAQUE)[1..])?;
            }
        }
        Ok(entries.finish()?)
    }

    /// Removes whiteouts and opaque marks below an opaque directory, which hides everything already.
    fn drop_redundant_whiteouts(&mut self, path: &[u8]) {
        let below = join(path, b"");
        let inside: Vec<Vec<u8>> = self
            .items
            .range(below.clone()..)
            .map(|(at, _)| at)
            .take_while(|at| at.starts_with(&below))
            .cloned()
            .collect();
        for at in inside.into_iter().filter(|at| at != path) {
            match self.items.get_mut(&at) {
                Some(Item::Whiteout) => drop(self.items.remove(&at)),
                Some(item @ Item::Opaque(_)) => {
                    if let Item::Opaque(ino) = *item {
                        *item = Item::Inode(ino);
                    }
                }
                _ => {}
            }
        }
    }

    fn opaque(&self) -> Vec<(Vec<u8>, Ino)> {
        let one = |(path, item): (&Vec<u8>, &Item)| match item {
            Item::Opaque(ino) => Some((path.clone(), *ino)),
            _ => None,
        };
        self.items.iter().filter_map(one).collect()
    }

    /// Adds the whole content of a directory.
    fn fill(&mut self, path: &[u8], dir: Ino, is_left_out: &dyn Fn(&[u8]) -> bool) -> Result<(), ExportError> {
        let mut todo = vec![(path.to_vec(), dir)];
        while let Some((path, dir)) = todo.pop() {
            for (name, ino) in names(self.fs, dir).map_err(|cause| failed(&path, cause))? {
                let at = join(&path, &name);
                if is_left_out(&at) {
                    continue;
                }
                let is_dir = self.fs.getattr(ino).map_err(|cause| failed(&at, cause))?.kind == Kind::Dir;
                self.items.entry(at.clone()).or_insert(Item::Inode(ino));
                if is_dir {
                    todo.push((at, ino));
                }
            }
        }
        Ok(())
    }

    /// Adds the other hard links of files.
    fn add_names(&mut self) -> Result<(), ExportError> {
        let mut counts: HashMap<Ino, (u32, Vec<u8>)> = HashMap::new();
        for (path, item) in &self.items {
            if let Item::Inode(ino) = *item {
                counts.entry(ino).or_insert_with(|| (0, path.clone())).0 += 1;
            }
        }
        for (ino, (count, path)) in counts {
            let attr = match self.fs.getattr(ino) {
                Err(e) if e.is_absence() => continue,
                attr => attr.map_err(|cause| failed(&path, cause))?,
            };
            if matches!(attr.kind, Kind::Dir | Kind::Socket) || attr.nlink <= count {
                continue;
            }
            for further in self.fs.paths_of(ino).map_err(|cause| failed(&path, cause))? {
                self.add_above(&further)?;
                self.items.insert(further, Item::Inode(ino));
            }
        }
        Ok(())
    }

    /// Adds the parent directories of a path.
    fn add_above(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let mut at = ROOT;
        for part in parent(path).split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            at = self.fs.lookup(at, part).map_err(|cause| failed(path, cause))?.ino;
        }
        let mut dir = parent(path);
        while dir != b"/" && !self.items.contains_key(dir) {
            self.items.insert(dir.to_vec(), Item::Inode(at));
            at = self.fs.parent(at).map_err(|cause| failed(path, cause))?;
            dir = parent(dir);
        }
        Ok(())
    }
}

fn failed(path: &[u8], cause: FsError) -> ExportError {
    ExportError::Read { path: path.strip_prefix(b"/").unwrap_or(path).to_vec(), cause }
}
