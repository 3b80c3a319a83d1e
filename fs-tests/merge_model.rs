//! Property test of layer merging: random layers, merged by plyfs and by a model of the OCI image specification.
//!
//! The model has no index: it unpacks each layer into a map of paths, one entry at a time, then applies that map to the
//! image so far as layer.md says. The file system must show what the model computes.

use crate::corpus::{Image, image};
use crate::support::tar::{Entry, Tar};
use plyfs::fs::{Ino, ROOT};
use plyfs::meta::Kind;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Path = Vec<&'static str>;

/// One entry of a layer's tar.
#[derive(Clone, Debug)]
enum Op {
    File(Path),
    Dir(Path, u32),
    Link(Path, Path),
    Whiteout(Path),
    Opaque(Path),
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// A directory's mode; `None` if no entry described it.
    Dir(Option<u32>),
    /// A file's inode, which is also its content.
    File(u32),
    /// A hard link whose target is not in this layer.
    Link(Path),
}

type Tree = BTreeMap<Path, Node>;

fn below(tree: &Tree, path: &[&'static str]) -> Vec<Path> {
    let path = path.to_vec();
    tree.keys().filter(|p| p.len() > path.len() && p.starts_with(&path)).cloned().collect()
}

fn remove(tree: &mut Tree, path: &[&'static str]) {
    for gone in below(tree, path) {
        tree.remove(&gone);
    }
    tree.remove(path);
}

/// One layer: the entries it adds, the names it hides, the directories it makes opaque.
#[derive(Default)]
struct Layer {
    tree: Tree,
    whiteouts: Vec<Path>,
    opaques: Vec<Path>,
}

impl Layer {
    /// Replaces the entry at a path by something other than a directory. Removes the markers in a directory, too.
    fn replace(&mut self, path: &Path, node: Node) {
        remove(&mut self.tree, path);
        self.whiteouts.retain(|marked| marked.len() <= path.len() || !marked.starts_with(path));
        self.opaques.retain(|marked| !marked.starts_with(path));
        self.tree.insert(path.clone(), node);
    }
}

impl Layer {
    /// Whether every ancestor of the path is a directory or does not exist.
    fn may_hold(&self, path: &[&'static str]) -> bool {
        (1..path.len()).all(|length| matches!(self.tree.get(&path[..length]), None | Some(Node::Dir(_))))
    }
}

/// Unpacks one layer. `None` if its entries contradict each other.
fn unpack(ops: &[Op], inodes: &mut u32) -> Option<Layer> {
    let mut layer = Layer::default();
    for op in ops {
        match op {
            // A marker creates nothing, and has no meaning below anything but a directory.
            Op::Whiteout(path) if layer.may_hold(path) => layer.whiteouts.push(path.clone()),
            Op::Opaque(path) if layer.may_hold(&[&path[..], &["x"]].concat()) => layer.opaques.push(path.clone()),
            Op::Whiteout(_) | Op::Opaque(_) => {}
            Op::Dir(path, mode) => {
                parents(&mut layer.tree, path)?;
                layer.tree.insert(path.clone(), Node::Dir(Some(*mode)));
            }
            Op::File(path) => {
                parents(&mut layer.tree, path)?;
                *inodes += 1;
                layer.replace(path, Node::File(*inodes));
            }
            Op::Link(path, target) => {
                parents(&mut layer.tree, path)?;
                let node = match layer.tree.get(target) {
                    Some(Node::Dir(_)) => return None,
                    Some(found) => found.clone(),
                    None => Node::Link(target.clone()),
                };
                layer.replace(path, node);
            }
        }
    }
    let tree = &mut layer.tree;
    for path in tree.keys().cloned().collect::<Vec<_>>() {
        let mut seen = 0;
        while let Node::Link(target) = &tree[&path] {
            let Some(found) = tree.get(target).cloned() else { break };
            seen += 1;
            if seen > tree.len() || matches!(found, Node::Dir(_)) {
                return None;
            }
            tree.insert(path.clone(), found);
        }
    }
    Some(layer)
}

fn parents(tree: &mut Tree, path: &[&'static str]) -> Option<()> {
    for length in 1..path.len() {
        match tree.entry(path[..length].to_vec()).or_insert(Node::Dir(None)) {
            Node::Dir(_) => {}
            _ => return None,
        }
    }
    Some(())
}

/// Applies a layer to the image so far.
fn apply(lower: &Tree, layer: Layer) -> Option<Tree> {
    let Layer { mut tree, whiteouts, opaques } = layer;
    for node in tree.values_mut() {
        if let Node::Link(target) = node {
            *node = lower.get(target).filter(|found| matches!(found, Node::File(_)))?.clone();
        }
    }
    let mut image = lower.clone();
    whiteouts.iter().for_each(|path| remove(&mut image, path));
    for path in opaques {
        below(&image, &path).iter().for_each(|gone| drop(image.remove(gone)));
    }
    for (path, node) in tree {
        match (&node, image.get(&path)) {
            (Node::Dir(None), Some(Node::Dir(_))) => {}
            (Node::Dir(_), Some(Node::Dir(_))) => drop(image.insert(path, node)),
            _ => {
                remove(&mut image, &path);
                image.insert(path, node);
            }
        }
    }
    Some(image)
}

fn tar_of(ops: &[Op], inodes: &mut u32) -> Vec<u8> {
    let join = |path: &Path| path.join("/");
    let mut tar = Tar::new();
    for op in ops {
        tar = match op {
            Op::File(path) => {
                *inodes += 1;
                tar.file(join(path), inodes.to_string())
            }
            Op::Dir(path, mode) => tar.add(Entry::dir(join(path)).mode(*mode)),
            Op::Link(path, target) => tar.hard_link(join(path), join(target)),
            Op::Whiteout(path) => tar.whiteout(join(path)),
            Op::Opaque(path) => tar.opaque(join(path)),
        };
    }
    tar.finish()
}

/// The tree that the file system shows, as the model represents it; checks link counts and groups while collecting it.
fn shown(image: &Image) -> Tree {
    let mut tree = Tree::new();
    let mut names: BTreeMap<Ino, u32> = BTreeMap::new();
    collect(image, ROOT, &Path::new(), &mut tree, &mut names);
    for (ino, count) in names {
        assert_eq!(image.fs.getattr(ino).unwrap().nlink, count, "link count of inode {ino}");
    }
    tree
}

fn collect(image: &Image, dir: Ino, path: &Path, tree: &mut Tree, names: &mut BTreeMap<Ino, u32>) {
    let mut entries = Vec::new();
    let take = |entry: &plyfs::fs::DirEntry<'_>| {
        entries.push((NAMES.iter().copied().find(|n| n.as_bytes() == entry.name).unwrap(), entry.ino, entry.kind));
        false
    };
    image.fs.readdir(dir, 2, take).unwrap();
    for (name, ino, kind) in entries {
        let path = [&path[..], &[name]].concat();
        if kind == Kind::Dir {
            tree.insert(path.clone(), Node::Dir(Some(image.fs.getattr(ino).unwrap().mode.into())));
            collect(image, ino, &path, tree, names);
        } else {
            *names.entry(ino).or_default() += 1;
            let content = String::from_utf8(image.content(ino)).unwrap();
            tree.insert(path, Node::File(content.parse().unwrap()));
        }
    }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(prop::sample::select(&NAMES[..]), 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => path().prop_map(Op::File),
        3 => (path(), prop::sample::select(vec![0o700, 0o711, 0o1777])).prop_map(|(p, m)| Op::Dir(p, m)),
        2 => (path(), path()).prop_map(|(p, t)| Op::Link(p, t)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn check_merge(layers: &[Vec<Op>]) {
    let (mut tars, mut model, mut count, mut inodes) = (Vec::new(), Some(Tree::new()), 0, 0);
    for ops in layers {
        tars.push(tar_of(ops, &mut count));
        model = model.and_then(|lower| apply(&lower, unpack(ops, &mut inodes)?));
    }
    match (image(&tars), model) {
        (Ok(image), Some(mut want)) => {
            want.values_mut().filter(|n| **n == Node::Dir(None)).for_each(|n| *n = Node::Dir(Some(0o755)));
            assert_eq!(shown(&image), want);
        }
        (Err(_), None) => {}
        (Ok(image), None) => panic!("the model refuses these layers, plyfs shows {:?}", shown(&image)),
        (Err(output), Some(want)) => panic!("plyfs refuses these layers: {output}; the model shows {want:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_merge_as_the_specification_says(layers in prop::collection::vec(prop::collection::vec(op(), 0..7), 1..5)) {
        check_merge(&layers);
    }
}
