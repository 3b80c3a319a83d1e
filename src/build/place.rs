//! Places in an image's tree for new files: paths are resolved in the image, and what is missing is made.

use super::items::{Item, Items, What};
use crate::dockerfile::clean_path;
use crate::fs::{Attr, Fs, FsError, ROOT};
use crate::layer::Xattr;
use crate::meta::{Kind, Time};

/// The most symbolic links that a path may lead through, as in Linux.
const MOST_LINKS: u32 = 40;

/// A path without symbolic links in a tree.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// The path, relative to the root.
    pub path: Vec<u8>,
    /// What is there.
    pub attr: Option<Attr>,
}

/// Resolves a path, following symbolic links, also the last one. What is missing is taken literally.
fn resolve(fs: &Fs, path: &[u8]) -> Result<Place, String> {
    let failed = |e: FsError| e.to_string();
    let mut left: Vec<Vec<u8>> = Vec::new();
    let push = |left: &mut Vec<Vec<u8>>, path: &[u8]| {
        left.extend(path.split(|b| *b == b'/').filter(|part| !part.is_empty()).rev().map(<[u8]>::to_vec));
    };
    push(&mut left, path);
    // The directories entered: their names, and what is there.
    let mut at: Vec<(Vec<u8>, Option<Attr>)> = Vec::new();
    let root = fs.getattr(ROOT).map_err(failed)?;
    let mut links = 0;
    while let Some(name) = left.pop() {
        match &name[..] {
            b"." => continue,
            b".." => {
                at.pop();
                continue;
            }
            _ => {}
        }
        let here = at.last().map_or(Some(root), |(_, attr)| *attr);
        let found = match here {
            Some(dir) if dir.kind == Kind::Dir => match fs.lookup(dir.ino, &name) {
                Ok(attr) => Some(attr),
                Err(e) if e.is_absence() => None,
                Err(e) => return Err(failed(e)),
            },
            Some(_) => return Err(format!("/{} is not a directory", crate::name::show(&joined(&at)))),
            None => None,
        };
        match found {
            Some(link) if link.kind == Kind::Symlink => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(format!("/{}: too many levels of symbolic links", crate::name::show(path)));
                }
                let target = fs.readlink(link.ino).map_err(failed)?.into_owned();
                if target.starts_with(b"/") {
                    at.clear();
                }
                push(&mut left, &target);
            }
            found => at.push((name, found)),
        }
    }
    let attr = at.last().map_or(Some(root), |(_, attr)| *attr);
    Ok(Place { path: joined(&at), attr })
}

fn joined(at: &[(Vec<u8>, Option<Attr>)]) -> Vec<u8> {
    at.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>().join(&b'/')
}

/// New files in an image's tree.
pub struct NewFiles<'a> {
    /// The tree below; `None`: nothing.
    fs: Option<&'a Fs>,
    /// What is new, and the directories above it.
    pub items: Items,
    /// Time of directories that are made.
    now: Time,
}

impl<'a> NewFiles<'a> {
    /// Begins without any.
    pub fn new(fs: Option<&'a Fs>, now: Time) -> NewFiles<'a> {
        NewFiles { fs, items: Items::new(), now }
    }

    /// Returns what is at a resolved path now: the kind of a new file, or of one of the tree below.
    pub fn kind(&self, path: &[u8]) -> Result<Option<Kind>, String> {
        if let Some(item) = self.items.get(path) {
            return Ok(Some(match &item.what {
                What::Dir | What::Known => Kind::Dir,
                What::File(..) | What::Bytes(_) => Kind::File,
                What::Symlink(_) => Kind::Symlink,
                What::Special(kind, _) => *kind,
            }));
        }
        if path.is_empty() {
            return Ok(Some(Kind::Dir));
        }
        Ok(self.look(path)?.map(|attr| attr.kind))
    }

    /// Returns the inode at a resolved path in the tree below; a symbolic link is not followed.
    fn look(&self, path: &[u8]) -> Result<Option<Attr>, String> {
        let Some(fs) = self.fs else { return Ok(None) };
        let mut at = fs.getattr(ROOT).map_err(|e| e.to_string())?;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            at = match fs.lookup(at.ino, name) {
                Ok(attr) => attr,
                Err(e) if e.is_absence() || matches!(e, FsError::NotDir) => return Ok(None),
                Err(e) => return Err(e.to_string()),
            };
        }
        Ok(Some(at))
    }

    /// Resolves a path in the tree below; the parts that are new are taken as they are.
    pub fn resolve(&self, path: &[u8]) -> Result<Place, String> {
        match self.fs {
            Some(fs) => resolve(fs, path),
            None => Ok(Place { path: clean_path(&String::from_utf8_lossy(path)).into_bytes(), attr: None }),
        }
    }

    /// Adds a file, or a directory that is new or gets other attributes, and the directories above it. Missing ones are
    /// made with this owner. A file replaces a file, and a directory keeps its content.
    pub fn put(&mut self, path: &[u8], item: Item, owner: (u32, u32)) -> Result<(), String> {
        let shown = || crate::name::show(path);
        let is_dir = matches!(item.what, What::Dir);
        match self.kind(path)? {
            Some(Kind::Dir) if !is_dir => return Err(format!("cannot copy a file to /{}: it is a directory", shown())),
            Some(kind) if is_dir && kind != Kind::Dir => {
                return Err(format!("cannot copy a directory to /{}: it is not a directory", shown()));
            }
            _ => {}
        }
        self.add_parents(path, owner)?;
        self.items.insert(path.to_vec(), item);
        Ok(())
    }

    /// Makes a directory, and the missing ones above it, if there is none.
    pub fn make_dir(&mut self, path: &[u8], owner: (u32, u32)) -> Result<(), String> {
        match self.kind(path)? {
            Some(Kind::Dir) => Ok(()),
            Some(_) => Err(format!("/{} is not a directory", crate::name::show(path))),
            None => {
                let item = self.new_dir(owner);
                self.put(path, item, owner)
            }
        }
    }

    fn new_dir(&self, (uid, gid): (u32, u32)) -> Item {
        Item { mode: 0o755, uid, gid, mtime: self.now, xattrs: Vec::new(), what: What::Dir }
    }

    /// Adds the directories above a path: those of the tree below with their attributes, since some unpacking tools
    /// make missing parents with attributes of their choice.
    fn add_parents(&mut self, path: &[u8], owner: (u32, u32)) -> Result<(), String> {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for end in std::iter::once(0).chain(ends).take_while(|end| !path.is_empty() && *end < path.len()) {
            let dir = &path[..end];
            if self.items.contains_key(dir) {
                continue;
            }
            let item = match self.look(dir)? {
                Some(attr) if attr.kind == Kind::Dir => Item {
                    mode: attr.mode.into(),
                    uid: attr.uid,
                    gid: attr.gid,
                    mtime: attr.mtime,
                    xattrs: self.xattrs(&attr)?,
                    what: What::Known,
                },
                None if dir.is_empty() => Item { what: What::Known, ..self.new_dir((0, 0)) },
                Some(_) => return Err(format!("/{} is not a directory", crate::name::show(dir))),
                None => self.new_dir(owner),
            };
            self.items.insert(dir.to_vec(), item);
        }
        Ok(())
    }

    fn xattrs(&self, attr: &Attr) -> Result<Vec<Xattr>, String> {
        let Some(fs) = self.fs else { return Ok(vec![]) };
        let names = fs.listxattr(attr.ino, true).map_err(|e| e.to_string())?;
        let names = names.split(|b| *b == 0).filter(|name| !name.is_empty());
        let one = |name: &[u8]| {
            let value = fs.getxattr(attr.ino, name).map_err(|e| e.to_string())?;
            Ok((name.to_vec(), value.into_owned()))
        };
        let mut all = names.map(one).collect::<Result<Vec<Xattr>, String>>()?;
        all.sort();
        Ok(all)
    }

    /// Whether nothing is new.
    pub fn is_empty(&self) -> bool {
        self.items.values().all(|item| matches!(item.what, What::Known))
    }
}
