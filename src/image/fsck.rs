//! Checking a store, and mending what follows from what is still whole.

use super::{Result, manifest, open};
use crate::digest::{Digest, Hasher};
use crate::layer;
use crate::store::{self, Catalog, Image, Lock, Session, Store, gc};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;

/// How to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Mend what can be mended.
    pub repair: bool,
    /// Leave the layers' tars unread.
    pub fast: bool,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What, in one line.
    pub what: String,
    /// Whether it is right again.
    pub mended: bool,
}

struct Check<'a> {
    store: &'a Store,
    options: Options,
    tell: &'a mut dyn FnMut(&Finding),
    wrong: usize,
    found: usize,
}

/// What a check came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// So many findings.
    pub found: usize,
    /// So many of them are still wrong.
    pub wrong: usize,
}

/// Checks the whole store, telling each finding as it comes. Holds the store's lock: pulls that want to finish and
/// removals wait.
pub fn fsck(store: &Store, options: Options, tell: &mut dyn FnMut(&Finding)) -> Result<Summary> {
    // Mending publishes through a session, which must begin before the exclusive lock is taken.
    let session = if options.repair { Some(Session::begin(store)?) } else { None };
    let lock = store.lock_exclusive()?;
    let catalog = store.catalog()?;
    let mut check = Check { store, options, tell, wrong: 0, found: 0 };
    check.garbage(&lock, &catalog)?;
    let bad_layers = check.layers(session.as_ref(), &catalog)?;
    check.trees(session.as_ref(), &catalog, &bad_layers);
    check.images(&catalog, &bad_layers)?;
    Ok(Summary { found: check.found, wrong: check.wrong })
}

impl Check<'_> {
    fn report(&mut self, what: String, mended: bool) {
        self.found += 1;
        self.wrong += usize::from(!mended);
        (self.tell)(&Finding { what, mended });
    }

    /// What nothing refers to.
    fn garbage(&mut self, lock: &Lock, catalog: &Catalog) -> Result<()> {
        let found = gc::find(self.store, lock, catalog, layer::FORMAT)?;
        if self.options.repair {
            gc::remove(self.store, lock, &found)?;
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

    /// Every layer that an image names: its tar, then its index. Returns what is wrong with those that must be fetched
    /// again.
    fn layers(&mut self, session: Option<&Session>, catalog: &Catalog) -> Result<BTreeMap<Digest, String>> {
        let mut bad = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for record in catalog.images().iter().flat_map(|i| &i.layers) {
            let diff_id = &record.diff_id;
            if !seen.insert(diff_id.clone()) {
                continue;
            }
            if let Some(why) = self.tar_fault(diff_id, record.size)? {
                let dir = self.store.layer_dir(diff_id);
                let there = dir.exists();
                if self.options.repair && there {
                    remove_layer(session, self.store, diff_id)?;
                }
                if there {
                    self.report(format!("layer {diff_id}: {why}"), self.options.repair);
                }
                bad.insert(diff_id.clone(), why);
                continue;
            }
            if let Some(why) = self.index_fault(diff_id) {
                let mended = session.map(|s| open::make_index(s, diff_id));
                match mended {
                    Some(Err(e)) => self.report(format!("layer {diff_id}: {why}, and {e}"), false),
                    other => self.report(format!("layer {diff_id}: {why}"), other.is_some()),
                }
            }
        }
        Ok(bad)
    }

    fn tar_fault(&self, diff_id: &Digest, size: u64) -> Result<Option<String>> {
        let path = self.store.layer_tar(diff_id);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some("layer.tar is missing".into())),
            Err(e) => return Err(store::Error::io("open", path)(e).into()),
        };
        let length = file.metadata().map_err(store::Error::io("read", &path))?.len();
        if length != size {
            return Ok(Some(format!("layer.tar has {length} bytes, wanted {size}")));
        }
        if self.options.fast {
            return Ok(None);
        }
        let mut hasher = Hasher::new(diff_id.algorithm());
        if let Err(e) = io::copy(&mut file, &mut hasher) {
            return Ok(Some(format!("layer.tar cannot be read: {e}")));
        }
        let got = hasher.finish();
        Ok((got != *diff_id).then(|| format!("layer.tar has digest {got}")))
    }

    fn index_fault(&self, diff_id: &Digest) -> Option<String> {
        if !self.store.layer_index(diff_id).exists() {
            return Some("its index is missing".into());
        }
        match open::map_index(self.store, diff_id) {
            None => Some("its index is damaged or outdated".into()),
            Some(index) => index.check().err().map(|e| format!("its index is damaged: {e}")),
        }
    }

    /// The merged tree of every image whose layers are whole.
    fn trees(&mut self, session: Option<&Session>, catalog: &Catalog, bad: &BTreeMap<Digest, String>) {
        let mut seen = BTreeSet::new();
        for image in catalog.images() {
            let chain = image.chain_id();
            if image.layers.iter().any(|l| bad.contains_key(&l.diff_id)) || !seen.insert(chain.clone()) {
                continue;
            }
            let why = match open::map_tree(self.store, &chain) {
                None if self.store.tree_path(&chain, layer::FORMAT).exists() => "is damaged".to_owned(),
                None => "is missing".to_owned(),
                Some(tree) => match tree.check() {
                    Ok(()) => continue,
                    Err(e) => format!("is damaged: {e}"),
                },
            };
            let diff_ids: Vec<&Digest> = image.layers.iter().map(|l| &l.diff_id).collect();
            let mended = session.map(|s| open::make_tree(s, &diff_ids, &image.title()));
            match mended {
                Some(Err(e)) => self.report(format!("tree {chain}: {why}, and {e}"), false),
                other => self.report(format!("tree {chain}: {why}"), other.is_some()),
            }
        }
    }

    /// What images name and cannot be made again.
    fn images(&mut self, catalog: &Catalog, bad: &BTreeMap<Digest, String>) -> Result<()> {
        for image in catalog.images() {
            let mut faults: Vec<String> = Vec::new();
            for layer in &image.layers {
                if let Some(why) = bad.get(&layer.diff_id) {
                    faults.push(format!("layer {}: {why}", layer.diff_id.short()));
                }
            }
            for digest in image.blobs() {
                faults.extend(self.blob_fault(digest)?);
            }
            faults.dedup();
            for fault in faults {
                self.report(format!("image {} ({}): {fault}; pull it again", title(image), image.id.short()), false);
            }
        }
        Ok(())
    }

    fn blob_fault(&self, digest: &Digest) -> Result<Option<String>> {
        let fault = match self.store.blob(digest, manifest::DOCUMENT_CAP) {
            Ok(bytes) => {
                let mut hasher = Hasher::new(digest.algorithm());
                hasher.update(&bytes);
                let got = hasher.finish();
                if got == *digest {
                    return Ok(None);
                }
                format!("blob {} has digest {got}", digest.short())
            }
            Err(_) if !self.store.blob_path(digest).exists() => format!("blob {} is missing", digest.short()),
            Err(e) => e.to_string(),
        };
        if self.options.repair {
            // Out of the way, so that the next pull brings it back.
            match fs::remove_file(self.store.blob_path(digest)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(store::Error::io("remove", self.store.blob_path(digest))(e).into());
                }
                _ => {}
            }
        }
        Ok(Some(fault))
    }
}

fn title(image: &Image) -> String {
    if image.tags.is_empty() { "<none>".into() } else { image.title() }
}

fn remove_layer(session: Option<&Session>, store: &Store, diff_id: &Digest) -> Result<()> {
    let Some(session) = session else { return Ok(()) };
    let dir = store.layer_dir(diff_id);
    let aside = session.temp_path("dead");
    fs::rename(&dir, &aside).map_err(store::Error::io("rename", &dir))?;
    Ok(dir.parent().map_or(Ok(()), store::sync_dir)?)
}
