//! The list of images, restored: from the catalog's backup, and from the documents and layers that are in the store.

use super::Result;
use super::manifest::{self, DOCUMENT_CAP, Descriptor, Document, PLAIN_LAYER, Parsed};
use crate::digest::Digest;
use crate::store::{self, Catalog, Image, LayerRecord, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// A restored catalog.
pub(super) struct Restored {
    pub(super) catalog: Catalog,
    /// How many of its images the backup has, with their names.
    pub(super) from_backup: usize,
    /// How many have all their parts in the store and no name.
    pub(super) from_documents: usize,
}

/// Restores the catalog of a store whose own is damaged. Images that the backup does not have are listed without a name
/// if their config and all their layers are there, so that no collection takes them away.
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

/// All whole documents of a store, by what they are.
#[derive(Default)]
struct Documents {
    configs: BTreeMap<Digest, Vec<u8>>,
    /// With the config's digest and the layers' descriptors.
    manifests: BTreeMap<Digest, (Digest, Vec<Descriptor>)>,
    /// With the digests that each lists.
    indexes: BTreeMap<Digest, BTreeSet<Digest>>,
}

impl Documents {
    fn read(store: &Store) -> Result<Documents> {
        let mut all = Documents::default();
        for digest in store.stored_blobs()? {
            // Damaged ones are no part of any image.
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

    /// The images whose layers are all in the store, each with all manifests and indexes that lead to it.
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

    /// The image with that config, if it is one and all is there. Without descriptors, as of an archive by `docker save`,
    /// its layers came as plain tars.
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

    /// The indexes that lead to that manifest, by way of others too.
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
