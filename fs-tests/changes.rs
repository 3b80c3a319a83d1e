//! Changes of a union against its image, listed (`diff`) and written as a layer (`commit`), without a kernel.
//!
//! After random steps, each test compares the listed changes with a comparison of both whole trees, and the image with
//! the layer on top must equal the union in every respect that a tar can store. `PLYFS_MODEL_RUNS` and
//! `PLYFS_MODEL_SEED` work as in `writable_model`.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::model::by_inode::InodeHarness;
use crate::model::check::Checks;
use crate::model::generate::{Menu, generate};
use crate::model::harness::Harness;
use crate::model::image::image;
use crate::model::mounted::PlyfsFs;
use crate::model::op::{Op, Op::*, Replace::*, Special::*};
use crate::model::run::{Effort, Failure, search};
use crate::model::state::{Model, StepError, umask};
use crate::model::union::Union;
use crate::support::bed::content;
use plyfs::fs::{Attr, Changes, Fs, How, Ino, NewLayer, ROOT};
use plyfs::meta::{Kind, Time};
use plyfs::upper::User;

/// Everything that a tar can store about one path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PathState {
    attr: (Kind, u16, u32, u32, u32, u64, Time),
    nlink: u32,
    /// The first of the inode's names.
    first_name: Vec<u8>,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Tree = BTreeMap<Vec<u8>, PathState>;

/// A whole tree, without extended attributes of empty value, which a tar cannot store.
fn read_tree(fs: &Fs) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(b"/".to_vec(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let attr = fs.getattr(ino).unwrap();
        if attr.kind == Kind::Dir {
            fs.readdir(ino, 2, |entry| {
                let path = if path == b"/" { Vec::new() } else { path.clone() };
                todo.push(([&path[..], b"/", entry.name].concat(), entry.ino));
                false
            })
            .unwrap();
        }
        tree.insert(path, read_path_state(fs, &attr));
    }
    let mut first: BTreeMap<Ino, Vec<u8>> = BTreeMap::new();
    for (path, state) in &mut tree {
        let ino = Ino::from_be_bytes(state.first_name[..].try_into().unwrap());
        state.first_name = first.entry(ino).or_insert_with(|| path.clone()).clone();
    }
    tree
}

fn read_path_state(fs: &Fs, attr: &Attr) -> PathState {
    let names = fs.listxattr(attr.ino, true).unwrap();
    let names = names.split(|b| *b == 0).filter(|name| !name.is_empty());
    let xattrs = names.map(|name| (name.to_vec(), fs.getxattr(attr.ino, name).unwrap().into_owned()));
    PathState {
        attr: (attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev, attr.size, attr.mtime),
        nlink: attr.nlink,
        first_name: attr.ino.to_be_bytes().to_vec(),
        content: match attr.kind {
            Kind::File => content(fs, attr.ino),
            Kind::Symlink => fs.readlink(attr.ino).unwrap().into_owned(),
            _ => Vec::new(),
        },
        xattrs: xattrs.filter(|(_, value)| !value.is_empty()).collect(),
    }
}

fn write_layer(fs: &Fs, changes: &Changes) -> Vec<u8> {
    let layer = NewLayer::of(fs, changes, &BTreeSet::new()).unwrap();
    let written = layer.write(Vec::new(), None).unwrap().0;
    assert_eq!(layer.write(Vec::new(), None).unwrap().0, written, "the same changes give different bytes");
    written
}

fn parent(path: &[u8]) -> &[u8] {
    let at = path.iter().rposition(|b| *b == b'/').unwrap();
    if at == 0 { b"/" } else { &path[..at] }
}

/// The changes between two trees by Docker's rules. `None` is a path that may be listed as changed or not at all, since
/// written data may equal the old.
fn expected(old: &Tree, new: &Tree) -> BTreeMap<Vec<u8>, How> {
    let is_dir = |tree: &Tree, path: &[u8]| tree.get(path).is_some_and(|state| state.attr.0 == Kind::Dir);
    let mut all = BTreeMap::new();
    for (path, state) in new {
        let before = old.get(path);
        // A directory's size and link count do not count as attributes, nor does a file's link count.
        let same = |before: &PathState| {
            (before.attr, &before.content, &before.xattrs) == (state.attr, &state.content, &state.xattrs)
        };
        match before {
            // A path below a file of the image cannot be in the image.
            None => drop(all.insert(path.clone(), How::Added)),
            Some(before) if !same(before) => drop(all.insert(path.clone(), How::Changed)),
            _ => {}
        }
    }
    for path in old.keys().filter(|path| !new.contains_key(*path) && is_dir(new, parent(path))) {
        all.insert(path.clone(), How::Deleted);
    }
    for path in all.keys().cloned().collect::<Vec<_>>() {
        let mut at = parent(&path);
        while at != b"/" && !all.contains_key(at) {
            all.insert(at.to_vec(), How::Changed);
            at = parent(at);
        }
    }
    all
}

/// Compares the listed changes with the expected ones.
fn check_changes(old: &Tree, new: &Tree, changes: &Changes) -> Result<(), String> {
    let wanted = expected(old, new);
    for (path, how) in &wanted {
        match changes.get(path) {
            Some(changed) if changed.how == *how => {}
            other => return Err(format!("{}: expected {how:?}, listed {other:?}", path.escape_ascii())),
        }
    }
    for (path, changed) in changes.iter().filter(|(path, _)| !wanted.contains_key(*path)) {
        let possible = changed.how == How::Changed && old.contains_key(path);
        if !possible {
            return Err(format!("{}: listed {changed:?}, expected no change", path.escape_ascii()));
        }
    }
    Ok(())
}

fn first_difference(wanted: &Tree, found: &Tree) -> Result<(), String> {
    let paths: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    for path in paths {
        let shorten = |state: Option<&PathState>| {
            state.map(|t| PathState { content: t.content[..t.content.len().min(20)].to_vec(), ..t.clone() })
        };
        let (want, have) = (wanted.get(path), found.get(path));
        if want != have {
            let (want, have) = (shorten(want), shorten(have));
            return Err(format!("{}:\n  the union has {want:?}\n  the new image {have:?}", path.escape_ascii()));
        }
    }
    Ok(())
}

/// Carries out the steps and checks the changes and the layer.
fn run(user: User, ops: &[Op]) -> Result<(), Failure> {
    let fixture = Rc::new(Union::fixture(user));
    let mut harness = InodeHarness::new(Union::with_fixture(&fixture), umask(), Checks::ALL);
    let mut model = Model::new(&image());
    for op in ops {
        // Other tests check the step's result; the model only says which steps to skip.
        if !matches!(model.apply(op), Err(StepError::Skip)) {
            let _any = harness.apply(op);
        }
    }
    let _held = harness.finish();
    let shown = read_tree(harness.inodes().fs());
    let failed = |what| Failure { at: ops.len().saturating_sub(1), what };
    // A read-only view while the union has the upper directory open.
    let view = fixture.view();
    first_difference(&shown, &read_tree(&view)).map_err(|what| failed(format!("the view: {what}")))?;
    let changes = view.changes(&BTreeSet::new()).unwrap();
    check_changes(&read_tree(&fixture.image_with(&[])), &shown, &changes)
        .map_err(|what| failed(format!("listed changes: {what}")))?;
    let committed = fixture.image_with(&[write_layer(&view, &changes)]);
    // A tar cannot store a socket.
    let storable = shown.into_iter().filter(|(_, state)| state.attr.0 != Kind::Socket).collect();
    first_difference(&storable, &read_tree(&committed)).map_err(|what| failed(format!("layer: {what}")))
}

/// Random steps, without names that no layer can have and without steps that change nothing.
fn generate_steps(seed: u64, count: usize) -> Vec<Op> {
    let menu = Menu { remounts: false, optional: false, ..PlyfsFs::MENU };
    let ops = generate(seed, count, &image(), menu);
    ops.into_iter().filter(|op| *op != Check && !format!("{op:?}").contains(".wh.")).collect()
}

#[test]
fn the_diff_layer_on_the_image_equals_the_union_as_root() {
    search("changes", Effort { runs: 150, ops: 200 }, &generate_steps, &mut |ops| run(User::own(), ops).err());
}

#[test]
fn the_diff_layer_on_the_image_equals_the_union_as_a_plain_user() {
    let user = User { privileged: false, uid: 4321, gid: 4321 };
    search("a plain user's changes", Effort { runs: 50, ops: 200 }, &generate_steps, &mut |ops| run(user, ops).err());
}

#[test]
fn regression_a_socket_with_two_hard_links_hides_the_lower_entries() {
    let steps = [
        Mknod { at: "x", kind: Socket, mode: 0o777, rdev: (0, 0) },
        Rename { from: "b", to: "sparse", how: Allow },
        Link { from: "x", to: "b", follow: false },
    ];
    run(User::own(), &steps).unwrap();
}
