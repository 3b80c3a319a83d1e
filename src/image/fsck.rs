//! Store check (fsck): verifies catalog, documents, layers, indexes and trees, and rebuilds what the tars allow.

use super::restore::{self, Restored};
use super::{FORMATS, Result, erofs, manifest, open};
use crate::digest::{Digest, Hasher};
use crate::layer;
use crate::store::{self, Catalog, Image, LayerRecord, Lock, Session, Store, containers, gc, lists};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Options of a check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Repair what can be repaired.
    pub repair: bool,
    /// Skip reading the layers' tars.
    pub fast: bool,
}

/// A fault found by a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Description, one line.
    pub what: String,
    /// Whether the fault was repaired.
    pub mended: bool,
}

/// Result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Number of findings.
    pub found: usize,
    /// Number of findings not repaired.
    pub wrong: usize,
}

/// Apparent faults found without a lock, to be checked again under it.
#[derive(Default)]
struct Suspects {
    layers: BTreeSet<Digest>,
    trees: BTreeSet<Digest>,
    blobs: BTreeSet<Digest>,
}

struct Check<'a> {
    store: &'a Store,
    options: Options,
    /// Session for rebuilding; only with `repair`.
    session: Option<Session>,
    tell: &'a mut dyn FnMut(&Finding),
    wrong: usize,
    found: usize,
}

/// Checks the whole store and reports each finding through `tell`.
///
/// The long part, reading everything, holds no lock: pulls, mounts and removals continue. Only apparent faults, which
/// may be removals in progress, are checked again under the exclusive lock, where garbage is searched and repairs are
/// made. Data published meanwhile was verified when it was published.
pub fn fsck(store: &Store, options: Options, tell: &mut dyn FnMut(&Finding)) -> Result<Summary> {
    let suspects = Suspects::of(store, &Listed::of(store)?.catalog, options)?;
    // Session::begin takes the shared lock, so it must precede the exclusive lock.
    let session = if options.repair { Some(Session::begin(store)?) } else { None };
    let lock = store.lock_exclusive()?;
    let listed = Listed::of(store)?;
    let mut check = Check { store, options, session, tell, wrong: 0, found: 0 };
    check.privacy()?;
    check.catalog(&lock, &listed)?;
    let catalog = listed.catalog;
    // A restored catalog may lack images, so no garbage is removed.
    if listed.damage.is_none() {
        check.garbage(&lock, &catalog)?;
    }
    check.containers(&lock)?;
    check.lists(&lock)?;
    let bad_layers = check.layers(&catalog, &suspects.layers)?;
    check.trees(&catalog, &suspects.trees, &bad_layers);
    check.images(&catalog, &suspects.blobs, &bad_layers)?;
    Ok(Summary { found: check.found, wrong: check.wrong })
}

impl Suspects {
    fn of(store: &Store, catalog: &Catalog, options: Options) -> Result<Suspects> {
        let mut suspects = Suspects::default();
        for record in distinct_layers(catalog) {
            if tar_fault(store, record, options.fast)?.is_some() || index_fault(store, &record.diff_id).is_some() {
                suspects.layers.insert(record.diff_id.clone());
            }
        }
        for (chain, _) in distinct_trees(catalog) {
            if tree_fault(store, &chain).is_some() {
                suspects.trees.insert(chain);
            }
        }
        let blobs: BTreeSet<&Digest> = catalog.images().iter().flat_map(Image::blobs).collect();
        suspects.blobs.extend(blobs.into_iter().filter(|digest| blob_fault(store, digest).is_some()).cloned());
        Ok(suspects)
    }
}

/// The store's images.
struct Listed {
    catalog: Catalog,
    /// What is wrong with the catalog's file, and what `catalog` was restored from.
    damage: Option<String>,
}

impl Listed {
    fn of(store: &Store) -> Result<Listed> {
        let damage = match store.catalog() {
            Ok(catalog) => return Ok(Listed { catalog, damage: None }),
            Err(store::Error::DamagedCatalog { path, why }) => format!("{} is damaged: {why}", path.display()),
            Err(other) => return Err(other.into()),
        };
        let Restored { catalog, from_backup, from_documents } = restore::restore(store)?;
        let damage = format!(
            "{damage}; {from_backup} images are in its backup, {from_documents} more without a name in the store"
        );
        Ok(Listed { catalog, damage: Some(damage) })
    }
}

/// Lists the distinct layers of all images.
fn distinct_layers(catalog: &Catalog) -> impl Iterator<Item = &LayerRecord> {
    let mut seen = BTreeSet::new();
    catalog.images().iter().flat_map(|i| &i.layers).filter(move |record| seen.insert(&record.diff_id))
}

/// Lists the distinct stacks of layers, each with one of its images.
fn distinct_trees(catalog: &Catalog) -> impl Iterator<Item = (Digest, &Image)> {
    let mut seen = BTreeSet::new();
    catalog.images().iter().map(|image| (image.chain_id(), image)).filter(move |(chain, _)| seen.insert(chain.clone()))
}

fn tar_fault(store: &Store, record: &LayerRecord, fast: bool) -> Result<Option<String>> {
    let path = store.layer_tar(&record.diff_id);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Some("layer.tar is missing".into()));
        }
        Err(e) => return Err(store::Error::io("open", path)(e).into()),
    };
    let length = file.metadata().map_err(store::Error::io("read", &path))?.len();
    if length != record.size {
        return Ok(Some(format!("layer.tar has {length} bytes, wanted {}", record.size)));
    }
    if fast {
        return Ok(None);
    }
    let mut hasher = Hasher::new(record.diff_id.algorithm());
    if let Err(e) = io::copy(&mut file, &mut hasher) {
        return Ok(Some(format!("layer.tar cannot be read: {e}")));
    }
    let got = hasher.finish();
    Ok((got != record.diff_id).then(|| format!("layer.tar has digest {got}")))
}

fn index_fault(store: &Store, diff_id: &Digest) -> Option<String> {
    file_fault(&store.layer_index(diff_id), diff_id).map(|why| format!("its index {why}"))
}

/// What is wrong with the files of a merged tree. A missing EROFS image is no fault: it is made when it is needed.
fn tree_fault(store: &Store, chain: &Digest) -> Option<String> {
    let index = file_fault(&store.tree_path(chain, layer::FORMAT), chain);
    index.or_else(|| erofs::fault(store, chain).map(|why| format!("its EROFS image {why}")))
}

fn file_fault(path: &Path, source: &Digest) -> Option<String> {
    match open::map_index_file(path, source) {
        Ok(index) => index.check().err().map(|why| open::Unusable::Damaged(why.to_string()).to_string()),
        Err(unusable) => Some(unusable.to_string()),
    }
}

fn blob_fault(store: &Store, digest: &Digest) -> Option<String> {
    match store.blob(digest, manifest::DOCUMENT_CAP) {
        Ok(_) => None,
        Err(store::Error::Document { why, .. }) => Some(format!("blob {} {why}", digest.short())),
        Err(e) => Some(e.to_string()),
    }
}

impl Check<'_> {
    fn report(&mut self, what: String, mended: bool) {
        self.found += 1;
        self.wrong += usize::from(!mended);
        (self.tell)(&Finding { what, mended });
    }

    /// Checks folder permissions: tars and indexes are world-readable, and contain files that only the image's root may
    /// read.
    fn privacy(&mut self) -> Result<()> {
        for folder in self.store.folders() {
            let mode = fs::metadata(&folder).map_err(store::Error::io("read", &folder))?.mode() & 0o7777;
            if mode & 0o077 == 0 {
                continue;
            }
            if self.options.repair {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
                    .map_err(store::Error::io("change the mode of", &folder))?;
            }
            let what = format!("{} is accessible to others: it has mode {mode:04o}, wanted 0700", folder.display());
            self.report(what, self.options.repair);
        }
        Ok(())
    }

    /// Checks the catalog's file and its backup.
    fn catalog(&mut self, lock: &Lock, listed: &Listed) -> Result<()> {
        let fault = match (&listed.damage, self.store.catalog_backup()) {
            (Some(damage), _) => damage.clone(),
            (None, Err(store::Error::DamagedCatalog { path, why })) => format!("{} is damaged: {why}", path.display()),
            _ => return Ok(()),
        };
        if self.options.repair {
            self.store.restore_catalog(lock, &listed.catalog)?;
        }
        self.report(fault, self.options.repair);
        Ok(())
    }

    /// Reports and removes garbage.
    fn garbage(&mut self, lock: &Lock, catalog: &Catalog) -> Result<()> {
        let found = gc::find(self.store, lock, catalog, FORMATS)?;
        if self.options.repair {
            drop(gc::remove(self.store, lock, &found)?);
        }
        for item in found {
            let what = match item.kind {
                gc::Kind::Mount => format!("stale mount: {}", item.path.display()),
                kind => format!("leaked {}: {}", kind.name(), item.path.display()),
            };
            self.report(what, self.options.repair);
        }
        Ok(())
    }

    /// Checks records that cannot be read, and containers whose state wrongly says `running`. Garbage was searched
    /// before, and what a damaged record may need was kept, so it still exists after this check.
    fn containers(&mut self, lock: &Lock) -> Result<()> {
        let (containers, damaged) = containers::list_with_damaged(self.store)?;
        for record in damaged {
            let set_aside = if self.options.repair { record.set_aside(self.store)? } else { None };
            let what = match &set_aside {
                Some(upper) => format!(
                    "{}; renamed to record.json.damaged: the container is given up, its changes stay in {} for `plyfs \
                     commit --upper`",
                    record.why,
                    upper.display()
                ),
                None if self.options.repair => format!("{}; its container is running: stop it first", record.why),
                None => record.why.to_string(),
            };
            self.report(what, set_aside.is_some());
        }
        for found in containers::settle(self.store, containers, self.options.repair)? {
            let (id, name) = (found.container.short(), &found.container.name);
            let what = match found.why {
                None => format!("container {id} ({name}) and its monitor were killed"),
                Some(why) if self.options.repair && !found.mended => {
                    format!("{why}; container {id} ({name}) is running: stop it first")
                }
                Some(why) => why.to_string(),
            };
            self.report(what, found.mended);
        }
        for why in gc::unreadable_live(self.store, lock)? {
            self.report(format!("{why}; no layer is removed until the mount or the pull has ended"), false);
        }
        Ok(())
    }

    /// Checks for manifest lists that cannot be read. Garbage was searched before, and kept what they may need.
    fn lists(&mut self, lock: &Lock) -> Result<()> {
        debug_assert!(lock.exclusive());
        for list in lists::list_with_damaged(self.store)?.1 {
            if self.options.repair {
                list.set_aside()?;
            }
            let set_aside =
                if self.options.repair { "; renamed to .damaged: create the manifest list again" } else { "" };
            self.report(format!("{}{set_aside}", list.why), self.options.repair);
        }
        Ok(())
    }

    /// Checks suspect layers: the tar, then the index. Returns the faults of those that must be fetched again.
    fn layers(&mut self, catalog: &Catalog, suspects: &BTreeSet<Digest>) -> Result<BTreeMap<Digest, String>> {
        let mut bad = BTreeMap::new();
        for record in distinct_layers(catalog).filter(|record| suspects.contains(&record.diff_id)) {
            let diff_id = &record.diff_id;
            if let Some(why) = tar_fault(self.store, record, self.options.fast)? {
                if fs::symlink_metadata(self.store.layer_dir(diff_id)).is_ok() {
                    let mended = self.session.as_ref().map(|session| session.set_layer_aside(diff_id)).transpose()?;
                    self.report(format!("layer {diff_id}: {why}"), mended.is_some());
                }
                bad.insert(diff_id.clone(), why);
            } else if let Some(why) = index_fault(self.store, diff_id) {
                let mended = self.session.as_ref().map(|session| open::make_index(session, diff_id));
                self.report_made(&format!("layer {diff_id}: {why}"), mended);
            }
        }
        Ok(bad)
    }

    /// Checks the suspect merged trees of images whose layers are undamaged.
    fn trees(&mut self, catalog: &Catalog, suspects: &BTreeSet<Digest>, bad: &BTreeMap<Digest, String>) {
        for (chain, image) in distinct_trees(catalog).filter(|(chain, _)| suspects.contains(chain)) {
            if image.layers.iter().any(|l| bad.contains_key(&l.diff_id)) {
                continue;
            }
            let Some(why) = tree_fault(self.store, &chain) else { continue };
            let diff_ids: Vec<&Digest> = image.layers.iter().map(|l| &l.diff_id).collect();
            let mended = self.session.as_ref().map(|s| open::make_tree(s, &diff_ids, &image.title()));
            self.report_made(&format!("tree {chain}: {why}"), mended);
        }
    }

    /// Reports a fault with the result of rebuilding; a failure is part of the report.
    fn report_made(&mut self, fault: &str, made: Option<Result<()>>) {
        match made {
            Some(Err(e)) => self.report(format!("{fault}; cannot repair it: {e}"), false),
            other => self.report(fault.to_owned(), other.is_some()),
        }
    }

    /// Reports images with layers or documents that cannot be rebuilt.
    fn images(&mut self, catalog: &Catalog, suspects: &BTreeSet<Digest>, bad: &BTreeMap<Digest, String>) -> Result<()> {
        let mut bad_blobs = BTreeMap::new();
        for digest in suspects {
            if let Some(why) = blob_fault(self.store, digest) {
                bad_blobs.insert(digest, why);
            }
        }
        for image in catalog.images() {
            let layers = image.layers.iter().filter_map(|l| {
                let why = bad.get(&l.diff_id)?;
                // A pull accepts a tar of the right length as undamaged.
                let first = if self.store.has_layer(&l.diff_id) { "repair with --repair, then " } else { "" };
                Some(format!("layer {}: {why}; {first}pull it again", l.diff_id.short()))
            });
            let blobs = image.blobs().filter_map(|digest| Some(format!("{}; pull it again", bad_blobs.get(digest)?)));
            let faults: BTreeSet<String> = layers.chain(blobs).collect();
            for fault in faults {
                self.report(format!("image {} ({}): {fault}", title(image), image.id.short()), false);
            }
        }
        if self.options.repair {
            // Moved away, so that the next pull fetches them again.
            for digest in bad_blobs.into_keys() {
                crate::store::remove_path(&self.store.blob_path(digest))?;
            }
        }
        Ok(())
    }
}

fn title(image: &Image) -> String {
    if image.tags.is_empty() { "<none>".into() } else { image.title() }
}
