//! Catalog restoration: rebuilds a damaged image catalog from its backup, and from the store's documents and layers.

use super::Result;
use super::manifest::{self, DOCUMENT_CAP, Descriptor, Document, PLAIN_LAYER, Parsed};
use crate::digest::Digest;
use crate::store::{self, Catalog, Image, LayerRecord, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// A restored catalog.
pub(super) struct Restored {
    pub(super) catalog: Catalog,
    /// Number of images from the backup, with their names.
    pub(super) from_backup: usize,
    /// Number of images found by their documents and layers, without a name.
    pub(super) from_documents: usize,
}

/// Restores the catalog of a store whose own is damaged. Images missing in the backup are added without a name if their
/// config and all their layers are in the store, so that garbage collection keeps them.
pub(super) fn restore(store: &Store) -> Result<Restored> {
    let mut catalog = match store.catalog_backup() {
        Ok(backup) => backup.unwrap_or_default(),
        Err(store::Error::DamagedCatalog { .. }) => Catalog::default(),
        Err(newer) => return Err(newer.into()),
    };
    let from_backup = catalog.images().len();
    for image in Documents::read(store)?.images(store) {
        for origin in image.origins() {
            catalog.add_origin(&image.id, origin);
        }
        if catalog.get(&image.id).is_none() {
            catalog.insert(image);
        }
    }
    let from_documents = catalog.images().len() - from_backup;
    Ok(Restored { catalog, from_backup, from_documents })
}

/// All undamaged documents of a store, by kind.
#[derive(Default)]
struct Documents {
    configs: BTreeMap<Digest, Vec<u8>>,
    /// By the manifest's digest: the config's digest and the layers' descriptors.
    manifests: BTreeMap<Digest, (Digest, Vec<Descriptor>)>,
    /// By the index's digest: the digests that it lists.
    indexes: BTreeMap<Digest, BTreeSet<Digest>>,
}

impl Documents {
    fn read(store: &Store) -> Result<Documents> {
        let mut all = Documents::default();
        for digest in store.stored_blobs()? {
            // Damaged documents belong to no image.
            let Ok(bytes) = store.blob(&digest, DOCUMENT_CAP) else { continue };
            let descriptor = Descriptor {
                media_type: String::new(),
                digest: digest.clone(),
                size: bytes.len() as u64,
                platform: None,
                annotations: BTreeMap::new(),
            };
            let document = Document { descriptor, bytes };
            match manifest::parse(&document) {
                Ok(Parsed::Index(list)) => {
                    all.indexes.insert(digest, list.into_iter().map(|entry| entry.digest).collect());
                }
                Ok(Parsed::Manifest { config, layers }) => drop(all.manifests.insert(digest, (config.digest, layers))),
                Err(_) => drop(all.configs.insert(digest, document.bytes)),
            }
        }
        Ok(all)
    }

    /// Lists the images whose layers are all in the store, each with all manifests and indexes that lead to it.
    fn images(&self, store: &Store) -> Vec<Image> {
        let mut images: BTreeMap<&Digest, Image> = BTreeMap::new();
        for (digest, (id, layers)) in &self.manifests {
            let Some(mut image) = self.image(store, id, Some(layers)) else { continue };
            image.manifest = Some(digest.clone());
            image.others = self.indexes_above(digest);
            match images.get_mut(id) {
                Some(same) => same.others.extend(image.origins().cloned()),
                None => drop(images.insert(id, image)),
            }
        }
        for id in self.configs.keys().filter(|id| !images.contains_key(id)).collect::<Vec<_>>() {
            images.extend(self.image(store, id, None).map(|image| (id, image)));
        }
        images.into_values().collect()
    }

    /// Returns the image with that config, if the document is a config and all layers are in the store. Without
    /// descriptors, as after loading a `docker save` archive, the layers count as plain tars.
    fn image(&self, store: &Store, id: &Digest, descriptors: Option<&[Descriptor]>) -> Option<Image> {
        let config = manifest::parse_config(self.configs.get(id)?, descriptors.map(<[Descriptor]>::len)).ok()?;
        let mut layers = Vec::new();
        for (at, diff_id) in config.diff_ids.into_iter().enumerate() {
            let size = fs::metadata(store.layer_tar(&diff_id)).ok().filter(fs::Metadata::is_file)?.len();
            let blob = descriptors.map(|all| &all[at]);
            layers.push(LayerRecord {
                diff_id,
                blob: blob.map(|blob| blob.digest.clone()),
                media_type: blob.map_or_else(|| PLAIN_LAYER.to_owned(), |blob| blob.media_type.clone()),
                compressed_size: blob.map_or(size, |blob| blob.size),
                size,
            });
        }
        Some(Image {
            id: id.clone(),
            manifest: None,
            indexes: vec![],
            others: vec![],
            layers,
            tags: vec![],
            digests: vec![],
            created: config.created,
            pulled: jiff::Timestamp::now().to_string(),
        })
    }

    /// Lists the indexes that lead to that manifest, directly or through other indexes.
    fn indexes_above(&self, manifest: &Digest) -> Vec<Digest> {
        let mut found = BTreeSet::new();
        let mut todo = vec![manifest];
        while let Some(below) = todo.pop() {
            let above = self.indexes.iter().filter(|(_, list)| list.contains(below)).map(|(digest, _)| digest);
            todo.extend(above.filter(|digest| found.insert((*digest).clone())).collect::<Vec<_>>());
        }
        found.into_iter().collect()
    }
}
