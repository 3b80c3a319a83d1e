//! Random stacks of overlay directories, written in random on-disk forms and compared with a model of their meaning.
//!
//! The model uses no file system: its layers are trees of names, and it looks a name up from the top layer down. Kernel
//! overlayfs and fuse-overlayfs check the model, with the forms they know.
//!
//! ```text
//! PLYFS_FORMS_SEED=7 cargo test --test fs forms::random      # one stack, printed
//! PLYFS_FORMS_RUNS=1000 cargo test --test fs forms::random   # many
//! ```

use std::collections::BTreeMap;

use super::driver::{Driver, MountUser};
use super::language::expected;
use super::{Failures, MountKind, check};
use crate::model::random::Random;
use crate::support::nest::UpperFs;

/// The form of a whiteout.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hidden {
    Device,
    /// A file whose name is `.wh.` and the hidden name.
    Named,
    /// An empty file with a whiteout attribute, in a directory whose attribute announces such whiteouts.
    Attribute,
}

/// A layer's entry under a name. Without a node it hides the name; with a node and `hidden`, it does both.
#[derive(Debug, Clone, Default)]
struct Slot {
    hidden: Option<Hidden>,
    node: Option<Node>,
}

#[derive(Debug, Clone)]
enum Node {
    Dir(Dir),
    File(File),
    Link(&'static str),
}

#[derive(Debug, Clone)]
struct File {
    content: String,
    /// The data is in a lower layer; `content` is unused then.
    metacopy: bool,
    redirect: Option<Vec<&'static str>>,
    /// The redirect is a name in the same directory.
    relative: bool,
}

#[derive(Debug, Clone, Default)]
struct Dir {
    mode: u32,
    /// The attribute or file name that makes the directory opaque.
    opaque: Option<&'static str>,
    redirect: Option<Vec<&'static str>>,
    relative: bool,
    entries: BTreeMap<&'static str, Slot>,
}

/// The on-disk forms to generate.
#[derive(Debug, Clone, Copy)]
struct FormSet {
    named: bool,
    attributes: bool,
    /// Redirects of renamed directories, and metacopy files.
    moved: bool,
    /// Whiteouts of names that no lower layer has.
    needless: bool,
    /// A `.wh.` whiteout beside an entry of the hidden name in the same layer.
    beside: bool,
    opaque: &'static [&'static str],
    /// The target of symbolic links.
    target: &'static str,
}

const NAMES: [&str; 3] = ["a", "b", "c"];
/// A name that only renames create.
const NEW: &str = "new";
const OPAQUE_FILE: &str = ".wh..wh..opq";

/// Directories that are merged, the topmost first, each with its layer's number.
type Sources<'a> = Vec<(usize, &'a Dir)>;

/// The result of looking a name up in the union.
enum Found<'a> {
    Nothing,
    Dir(Sources<'a>),
    Link(&'a str),
    /// A file, with its data if a layer has it.
    File(Option<&'a str>),
}

fn roots(layers: &[Dir]) -> Sources<'_> {
    layers.iter().enumerate().rev().collect()
}

/// Resolves a path in the union of these layers.
fn resolve<'a>(layers: &'a [Dir], path: &[&str]) -> Found<'a> {
    let mut found = Found::Dir(roots(layers));
    for name in path {
        let Found::Dir(sources) = found else { return Found::Nothing };
        found = lookup(layers, &sources, name);
    }
    found
}

/// Looks a name up in a merged directory.
fn lookup<'a>(layers: &'a [Dir], sources: &[(usize, &'a Dir)], name: &str) -> Found<'a> {
    let mut merged = Sources::new();
    for (at, (layer, dir)) in sources.iter().enumerate() {
        let Some(slot) = dir.entries.get(name) else { continue };
        let below = |redirect: &Option<Vec<&'static str>>, relative: bool| match redirect {
            Some(path) if relative => lookup(layers, &sources[at + 1..], path.last().unwrap()),
            Some(path) => resolve(&layers[..*layer], path),
            None => lookup(layers, &sources[at + 1..], name),
        };
        match &slot.node {
            Some(Node::Dir(dir)) => {
                merged.push((*layer, dir));
                if dir.opaque.is_some() || slot.hidden.is_some() {
                    break;
                }
                if dir.redirect.is_some() {
                    if let Found::Dir(rest) = below(&dir.redirect, dir.relative) {
                        merged.extend(rest);
                    }
                    break;
                }
            }
            _ if !merged.is_empty() => break,
            None => return Found::Nothing,
            Some(Node::Link(target)) => return Found::Link(target),
            Some(Node::File(file)) if !file.metacopy => return Found::File(Some(&file.content)),
            Some(Node::File(_)) if slot.hidden.is_some() => return Found::File(None),
            Some(Node::File(file)) => match below(&file.redirect, file.relative) {
                Found::File(data) => return Found::File(data),
                _ => return Found::File(None),
            },
        }
    }
    if merged.is_empty() { Found::Nothing } else { Found::Dir(merged) }
}

/// Writes the union as text.
fn format_union(layers: &[Dir], sources: &[(usize, &Dir)], path: &str, text: &mut String) {
    let mut names: Vec<_> = sources.iter().flat_map(|(_, dir)| dir.entries.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        match lookup(layers, sources, name) {
            Found::Nothing => {}
            Found::Link(target) => *text += &format!(" {path}{name}->{target}"),
            Found::File(Some(content)) => *text += &format!(" {path}{name}={content}"),
            Found::File(None) => *text += &format!(" {path}{name}!"),
            Found::Dir(below) => {
                *text += &format!(" {path}{name}/,0{:o}", below[0].1.mode);
                format_union(layers, &below, &format!("{path}{name}/"), text);
            }
        }
    }
}

/// Writes a layer as text.
fn format_layer(dir: &Dir, path: &str, text: &mut String) {
    let redirected = |redirect: &Option<Vec<&str>>, relative: bool| match redirect {
        Some(path) if relative => format!(",@.redirect={}", path.last().unwrap()),
        Some(path) => format!(",@.redirect=/{}", path.join("/")),
        None => String::new(),
    };
    *text += &format!(" {}/,0{:o}{}", path.trim_end_matches('/'), dir.mode, redirected(&dir.redirect, dir.relative));
    let marked = dir.entries.values().any(|slot| slot.hidden == Some(Hidden::Attribute));
    if marked {
        *text += ",@.opaque=x";
    }
    match dir.opaque {
        Some(OPAQUE_FILE) => *text += &format!(" {path}{OPAQUE_FILE}="),
        Some(attribute) => *text += &format!(",{attribute}=y"),
        None => {}
    }
    for (name, slot) in &dir.entries {
        match slot.hidden {
            Some(Hidden::Device) => *text += &format!(" {path}{name},wh"),
            Some(Hidden::Named) => *text += &format!(" {path}.wh.{name}="),
            Some(Hidden::Attribute) => *text += &format!(" {path}{name}=,@.whiteout=y"),
            None => {}
        }
        match &slot.node {
            Some(Node::Dir(dir)) => format_layer(dir, &format!("{path}{name}/"), text),
            Some(Node::Link(target)) => *text += &format!(" {path}{name}->{target}"),
            Some(Node::File(file)) if file.metacopy => {
                let redirect = redirected(&file.redirect, file.relative);
                *text += &format!(" {path}{name}=,size-4,@.metacopy={redirect}");
            }
            Some(Node::File(file)) => *text += &format!(" {path}{name}={}", file.content),
            None => {}
        }
    }
}

/// A generator of layers from a seed.
struct StackGenerator {
    random: Random,
    forms: FormSet,
    files: u32,
}

impl StackGenerator {
    fn stack(&mut self) -> Vec<Dir> {
        let mut layers = Vec::new();
        for _ in 0..2 + self.random.below(5) {
            let below = roots(&layers);
            let mut layer = self.dir(&layers, &below, 3);
            (layer.opaque, layer.mode) = (None, 0o755);
            if self.forms.moved && self.random.percent(60) {
                self.rename(&layers, &mut layer);
            }
            layers.push(layer);
        }
        layers
    }

    /// Generates a directory above the merged `below`.
    fn dir(&mut self, layers: &[Dir], below: &[(usize, &Dir)], depth: u64) -> Dir {
        let mut dir = Dir { mode: self.random.pick(&[0o700, 0o711, 0o755, 0o1777]), ..Dir::default() };
        if self.random.percent(15) && !self.forms.opaque.is_empty() {
            dir.opaque = Some(self.random.pick(self.forms.opaque));
        }
        // The root is never opaque; the caller ensures that.
        let below = if dir.opaque.is_some() && depth < 3 { &[] } else { below };
        for name in NAMES {
            if self.random.percent(45) {
                let slot = self.slot(layers, below, name, depth);
                slot.into_iter().for_each(|slot| drop(dir.entries.insert(name, slot)));
            }
        }
        if dir.opaque.is_some_and(|form| form != OPAQUE_FILE) {
            // One attribute cannot mean both opaque and attribute whiteouts.
            dir.entries.retain(|_, slot| slot.hidden != Some(Hidden::Attribute));
        }
        dir
    }

    fn slot(&mut self, layers: &[Dir], below: &[(usize, &Dir)], name: &'static str, depth: u64) -> Option<Slot> {
        let found = lookup(layers, below, name);
        match self.random.below(100) {
            0..25 => {
                let something = !matches!(found, Found::Nothing);
                let hidden = Some(self.hidden());
                (something || self.forms.needless).then_some(Slot { hidden, node: None })
            }
            25..60 if depth > 1 => {
                let below = if let Found::Dir(below) = found { below } else { Sources::new() };
                let hidden = self.shadowing_whiteout();
                let below = if hidden.is_some() { Sources::new() } else { below };
                Some(Slot { hidden, node: Some(Node::Dir(self.dir(layers, &below, depth - 1))) })
            }
            60..67 => Some(Slot { hidden: None, node: Some(Node::Link(self.forms.target)) }),
            67..77 if self.forms.moved && matches!(found, Found::File(Some(_))) => {
                let file = File { content: String::new(), metacopy: true, redirect: None, relative: false };
                Some(Slot { hidden: None, node: Some(Node::File(file)) })
            }
            _ => Some(Slot { hidden: self.shadowing_whiteout(), node: Some(Node::File(self.file())) }),
        }
    }

    fn file(&mut self) -> File {
        self.files += 1;
        File { content: format!("{:04}", self.files), metacopy: false, redirect: None, relative: false }
    }

    fn hidden(&mut self) -> Hidden {
        match self.random.below(3) {
            0 if self.forms.named => Hidden::Named,
            1 if self.forms.attributes => Hidden::Attribute,
            _ => Hidden::Device,
        }
    }

    fn shadowing_whiteout(&mut self) -> Option<Hidden> {
        (self.forms.beside && self.random.percent(10)).then_some(Hidden::Named)
    }

    /// Renames a path of the lower layers to a new name, as a union does: with a whiteout at the old name.
    fn rename(&mut self, layers: &[Dir], layer: &mut Dir) {
        let from: Vec<&'static str> = (0..=self.random.below(2)).map(|_| self.random.pick(&NAMES)).collect();
        let found = resolve(layers, &from);
        let (name, above) = from.split_last().unwrap();
        let Some(old) = own_dir_mut(layer, above) else { return };
        if matches!(found, Found::Nothing | Found::Link(_) | Found::File(None)) {
            return;
        }
        old.entries.insert(name, Slot { hidden: Some(Hidden::Device), node: None });
        // Into a directory of this layer, unless it is the old path's own.
        let into: Vec<&'static str> = (0..self.random.below(2)).map(|_| self.random.pick(&NAMES)).collect();
        let relative = into == above && self.random.percent(50);
        let redirect = Some(from);
        let node = match found {
            Found::Dir(below) => {
                let made = self.dir(layers, &below, 2);
                Node::Dir(Dir { redirect, relative, opaque: None, ..made })
            }
            _ => Node::File(File { content: String::new(), metacopy: true, redirect, relative }),
        };
        let dir = match into.first() {
            None => Some(layer),
            Some(into) => match layer.entries.get_mut(into) {
                Some(Slot { node: Some(Node::Dir(dir)), .. }) => Some(dir),
                _ => None,
            },
        };
        // A directory for which there was no place is removed.
        if let Some(dir) = dir.filter(|dir| !relative || dir.opaque.is_none()) {
            dir.entries.insert(NEW, Slot { hidden: None, node: Some(node) });
        }
    }
}

/// A directory of a layer that merges with the same path below; created if missing.
fn own_dir_mut<'a>(layer: &'a mut Dir, path: &[&'static str]) -> Option<&'a mut Dir> {
    let mut dir = layer;
    for name in path {
        let new = || Slot { hidden: None, node: Some(Node::Dir(Dir { mode: 0o755, ..Dir::default() })) };
        let slot = dir.entries.entry(name).or_insert_with(new);
        match &mut slot.node {
            Some(Node::Dir(below)) if slot.hidden.is_none() && below.opaque.is_none() && below.redirect.is_none() => {
                dir = below;
            }
            _ => return None,
        }
    }
    Some(dir)
}

fn env_number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name}: no number")))
}

fn check_random_stacks(driver: Driver, user: MountUser, kinds: &[MountKind], forms: FormSet, runs: u64) {
    let seed = env_number("PLYFS_FORMS_SEED");
    let runs = env_number("PLYFS_FORMS_RUNS").unwrap_or(runs);
    let mut failures = Failures::default();
    for seed in seed.map_or(0..runs, |seed| seed..seed + 1) {
        let mut generator = StackGenerator { random: Random::new(seed), forms, files: 0 };
        let layers = generator.stack();
        let text = |layer: &Dir| {
            let mut text = String::new();
            format_layer(layer, "", &mut text);
            text
        };
        let texts: Vec<String> = layers.iter().map(text).collect();
        let mut shows = String::new();
        format_union(&layers, &roots(&layers), "", &mut shows);
        let placeholders = user.placeholders("user.containers.override_stat");
        let kind = kinds[seed as usize % kinds.len()];
        let name = format!("seed {seed}, {driver:?}, {user:?}, {kind:?}: layers {texts:#?}, which are{shows}");
        if env_number("PLYFS_FORMS_SEED").is_some() {
            println!("{name}");
        }
        let wanted = expected(&shows, placeholders);
        failures.add(&name, check(UpperFs::Disk, driver, user, kind, &texts, wanted, placeholders));
    }
    failures.assert_none();
}

const MOUNT_KINDS: [MountKind; 3] = [MountKind::Lower, MountKind::Below, MountKind::Upper];
const KERNEL: FormSet = FormSet {
    named: false,
    attributes: false,
    moved: true,
    needless: false,
    beside: false,
    opaque: &["@.opaque"],
    target: "a",
};

#[test]
fn the_model_agrees_with_kernel_overlayfs() {
    check_random_stacks(Driver::Kernel, MountUser::Root, &MOUNT_KINDS, KERNEL, 60);
    check_random_stacks(Driver::Kernel, MountUser::User, &MOUNT_KINDS, FormSet { moved: false, ..KERNEL }, 20);
    // Kernel overlayfs does not expect attribute whiteouts in an upper directory.
    check_random_stacks(Driver::Kernel, MountUser::Root, &MOUNT_KINDS[..2], FormSet { attributes: true, ..KERNEL }, 40);
}

#[test]
fn the_model_agrees_with_fuse_overlayfs() {
    let opaque = &["@.opaque", "user.fuseoverlayfs.opaque", OPAQUE_FILE];
    // fuse-overlayfs follows symbolic links of lower layers, and fails at a link to itself.
    let forms = FormSet { named: true, moved: false, needless: true, opaque, target: "nowhere", ..KERNEL };
    check_random_stacks(Driver::FuseOverlayfs, MountUser::Root, &MOUNT_KINDS, forms, 40);
    check_random_stacks(Driver::FuseOverlayfs, MountUser::User, &MOUNT_KINDS, forms, 20);
}

#[test]
fn plyfs_agrees_with_the_model() {
    let opaque = &["@.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque", OPAQUE_FILE];
    let forms =
        FormSet { named: true, attributes: true, moved: true, needless: true, beside: true, opaque, target: "a" };
    check_random_stacks(Driver::Plyfs, MountUser::Root, &MOUNT_KINDS, forms, 120);
    check_random_stacks(Driver::Plyfs, MountUser::User, &MOUNT_KINDS, forms, 60);
}
