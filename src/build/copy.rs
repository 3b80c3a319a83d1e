//! `COPY` and `ADD`: selects the sources' files and their places in the image (the Dockerfile reference, "COPY").

use super::items::{Item, What};
use super::mode::Mode;
use super::patterns::{self, Patterns};
use super::place::NewFiles;
use super::source::{Node, Tree};
use crate::dockerfile::clean_path;
use crate::meta::{Kind, Time};
use crate::name::show;
use std::sync::Arc;

/// A source, with its variables replaced.
#[derive(Clone)]
pub enum Source {
    /// A path or a pattern in a tree.
    Path(Arc<Tree>, String),
    /// A file with this name, content, mode and modification time.
    File(String, Vec<u8>, u32, Option<Time>),
    /// A file of the host with this name, of a tree that has nothing else, and its mode and modification time.
    Download(String, Arc<Tree>, u32, Option<Time>),
    /// All files of an archive.
    Archive(Arc<Tree>),
}

/// What is copied where.
pub struct Wanted<'a> {
    /// The sources.
    pub sources: Vec<Source>,
    /// The destination, absolute in the image; with a slash at its end it is a directory.
    pub target: &'a str,
    /// The owner of everything copied; `None`: that of the source.
    pub owner: Option<(u32, u32)>,
    /// The change of the mode of everything copied; `None`: that of the source.
    pub mode: Option<&'a Mode>,
    /// Whether the directories above the sources are copied too.
    pub parents: bool,
    /// What is left out, by its path in the source.
    pub exclude: &'a Patterns,
    /// Now.
    pub now: Time,
}

/// A file or directory to copy.
struct Chosen {
    tree: Arc<Tree>,
    node: Node,
    /// The name that it was found by.
    name: Vec<u8>,
    /// The path that it was found by, as far as it is kept.
    above: Vec<u8>,
}

/// Adds what is copied to `files`.
pub fn copy(files: &mut NewFiles<'_>, wanted: Wanted<'_>) -> Result<(), String> {
    let mut given = Vec::new();
    let mut chosen = Vec::new();
    for source in &wanted.sources {
        match source {
            Source::Path(tree, path) => {
                let found = choose(tree, path)?;
                chosen.extend(found);
            }
            other => given.push(other),
        }
    }
    let place = files.resolve(wanted.target.as_bytes())?;
    let is_dir = wanted.target.ends_with('/') || place.attr.is_some_and(|attr| attr.kind == Kind::Dir);
    let count = chosen.len() + given.len();
    if count > 1 && !is_dir && !wanted.parents {
        return Err("when using COPY or ADD with more than one source file, the destination must be a directory and end with a /".into());
    }
    let copier = Copier { wanted: &wanted, to: place.path, is_dir };
    for chosen in chosen {
        copier.add(files, &chosen)?;
    }
    for source in given {
        copier.add_given(files, source)?;
    }
    Ok(())
}

/// Lists what matches a path or a pattern: paths and inodes.
pub fn files(tree: &Arc<Tree>, path: &str) -> Result<Vec<(String, Node)>, String> {
    let path_of = |chosen: &Chosen| String::from_utf8_lossy(&[&chosen.above[..], &chosen.name].concat()).into_owned();
    Ok(choose(tree, path)?.into_iter().map(|chosen| (path_of(&chosen), chosen.node)).collect())
}

/// Finds the files that match a path or a pattern.
fn choose(tree: &Arc<Tree>, path: &str) -> Result<Vec<Chosen>, String> {
    let clean = clean_path(path);
    let chosen = |node: Node, path: &[u8]| {
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        Chosen { tree: Arc::clone(tree), node, name: path[at..].to_vec(), above: path[..at].to_vec() }
    };
    if !patterns::is_pattern(&clean) {
        let node = tree.find(clean.as_bytes()).map_err(|why| format!("/{clean}: {why}"))?;
        let node = node.ok_or_else(|| format!("\"/{clean}\": not found"))?;
        return Ok(vec![chosen(node, clean.as_bytes())]);
    }
    // The directories that match so far.
    let mut found: Vec<Vec<u8>> = vec![Vec::new()];
    for part in clean.split('/') {
        let pattern = patterns::name_pattern(part).ok_or_else(|| format!("`{path}` is not a pattern"))?;
        let mut next = Vec::new();
        for dir in found {
            let Some(node) = tree.find(&dir)?.filter(|node| node.kind == Kind::Dir) else { continue };
            for (name, _) in tree.list(&node)?.iter() {
                if pattern.is_match(&String::from_utf8_lossy(name)) {
                    next.push(joined(&dir, name));
                }
            }
        }
        found = next;
    }
    let nodes = found.into_iter().map(|path| Ok(tree.find(&path)?.map(|node| chosen(node, &path))));
    Ok(nodes.collect::<Result<Vec<_>, String>>()?.into_iter().flatten().collect())
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

struct Copier<'a> {
    wanted: &'a Wanted<'a>,
    /// The destination without symbolic links.
    to: Vec<u8>,
    is_dir: bool,
}

impl Copier<'_> {
    fn owner(&self) -> (u32, u32) {
        self.wanted.owner.unwrap_or((0, 0))
    }

    /// Adds a file, or what is in a directory.
    fn add(&self, files: &mut NewFiles<'_>, chosen: &Chosen) -> Result<(), String> {
        let Chosen { tree, node, name, above } = chosen;
        let to = if self.wanted.parents { joined(&self.to, above.trim_ascii_end()) } else { self.to.clone() };
        let to = to.strip_suffix(b"/").map_or(to.clone(), <[u8]>::to_vec);
        if node.kind == Kind::Dir {
            let to = if self.wanted.parents { joined(&to, name) } else { to };
            // A new one has the attributes of a new directory, not those of the source.
            files.make_dir(&to, self.owner())?;
            return self.add_below(files, tree, node, &to, node.path.len()).map(drop);
        }
        let to = if self.is_dir || self.wanted.parents { joined(&to, name) } else { to };
        let to = match files.kind(&to)? {
            // The destination is a directory that another source has made.
            Some(Kind::Dir) if !self.is_dir => joined(&to, name),
            _ => to,
        };
        self.put(files, tree, node, &to)
    }

    /// Adds everything in a directory; returns whether there was anything.
    fn add_below(
        &self,
        files: &mut NewFiles<'_>,
        tree: &Arc<Tree>,
        dir: &Node,
        to: &[u8],
        root: usize,
    ) -> Result<bool, String> {
        let mut any = false;
        for (name, node) in tree.list(dir).map_err(|why| format!("/{}: {why}", show(&dir.path)))?.iter() {
            let inside = node.path.get(root..).unwrap_or_default();
            let inside = inside.strip_prefix(b"/").unwrap_or(inside);
            let excluded = self.wanted.exclude.exclude(inside);
            if excluded && !(node.kind == Kind::Dir && self.wanted.exclude.have_exceptions()) {
                continue;
            }
            let at = joined(to, name);
            if node.kind != Kind::Dir {
                self.put(files, tree, node, &at)?;
                any = true;
                continue;
            }
            // A symbolic link to a directory is followed, as it was when the image was made.
            let at = match files.kind(&at)? {
                Some(Kind::Symlink) => files.resolve(&at)?.path,
                _ => at,
            };
            if excluded || tree.is_ignored(node) {
                // It is only there for what it holds.
                any |= self.add_below(files, tree, node, &at, root)?;
                continue;
            }
            let item = self.item(tree, node)?;
            files.put(&at, item, self.owner())?;
            self.add_below(files, tree, node, &at, root)?;
            any = true;
        }
        Ok(any)
    }

    fn put(&self, files: &mut NewFiles<'_>, tree: &Arc<Tree>, node: &Node, to: &[u8]) -> Result<(), String> {
        // Tar has no sockets.
        if node.kind == Kind::Socket {
            return Ok(());
        }
        let item = self.item(tree, node)?;
        files.put(to, item, self.owner())
    }

    fn item(&self, tree: &Arc<Tree>, node: &Node) -> Result<Item, String> {
        let failed = |why: String| format!("/{}: {why}", show(&node.path));
        let what = match node.kind {
            Kind::Dir => What::Dir,
            Kind::File => What::File(Arc::clone(tree), node.clone()),
            Kind::Symlink => What::Symlink(tree.target(node).map_err(failed)?),
            kind => What::Special(kind, node.rdev),
        };
        let (uid, gid) = self.wanted.owner.unwrap_or((node.uid, node.gid));
        // A symbolic link has no mode of its own.
        let change = self.wanted.mode.filter(|_| node.kind != Kind::Symlink);
        let mode = change.map_or(node.mode, |change| change.apply(node.mode, node.kind == Kind::Dir));
        Ok(Item { mode, uid, gid, mtime: node.mtime, xattrs: tree.xattrs(node).map_err(failed)?, what })
    }

    fn add_given(&self, files: &mut NewFiles<'_>, source: &Source) -> Result<(), String> {
        let (uid, gid) = self.owner();
        let named = |name: &str| if self.is_dir { joined(&self.to, name.as_bytes()) } else { self.to.clone() };
        let made = |mode: u32, mtime: Option<Time>, what| Item {
            mode: self.wanted.mode.map_or(mode, |change| change.apply(mode, false)),
            uid,
            gid,
            mtime: mtime.unwrap_or(self.wanted.now),
            xattrs: Vec::new(),
            what,
        };
        match source {
            Source::Path(..) => Ok(()),
            Source::File(name, bytes, mode, mtime) => {
                files.put(&named(name), made(*mode, *mtime, What::Bytes(bytes.clone())), (uid, gid))
            }
            Source::Download(name, tree, mode, mtime) => {
                let node = tree.find(b"download")?.ok_or("the download is gone")?;
                files.put(&named(name), made(*mode, *mtime, What::File(Arc::clone(tree), node)), (uid, gid))
            }
            Source::Archive(tree) => {
                let root = tree.find(b"")?.ok_or("the archive is empty")?;
                files.make_dir(&self.to, (uid, gid))?;
                self.add_below(files, tree, &root, &self.to, 0).map(drop)
            }
        }
    }
}
