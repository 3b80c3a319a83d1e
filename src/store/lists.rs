//! Manifest lists: images for several platforms under one name, to be pushed as one image index.
//!
//! ```text
//! lists/<digest of the name>.json   a list (see [`ManifestList`])
//! ```
//!
//! A list keeps its images' layers and documents from garbage collection, with or without the images in the catalog.
//! All changes are made under the store's exclusive lock. A list that cannot be read keeps everything, as a damaged
//! container does; `system fsck --repair` renames it to `.damaged`.

use super::{Error, Image, Lock, Result, Store, folder, publish, sealed};
use crate::digest::Digest;
use crate::reference::Reference;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const EXTENSION: &str = ".json";

/// A manifest list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestList {
    /// Full name with a tag.
    pub name: Reference,
    /// Creation time, RFC 3339.
    pub created: String,
    /// The images, in the order of the index.
    pub entries: Vec<Entry>,
}

/// An image of a manifest list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The image as the user named it.
    pub reference: String,
    /// Where the image is.
    pub location: Location,
    /// Its manifest; unknown for a local image that was neither pulled nor pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestRecord>,
    /// Platform, as the index states it.
    pub platform: PlatformRecord,
    /// Annotations of the entry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Where the image of an entry is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Location {
    /// In the store: the image's whole record, so that the list can be pushed after the image lost its names or was
    /// removed.
    Local(Box<Image>),
    /// Only in a registry: the image's name by digest.
    Registry(Reference),
}

/// Descriptor of an image manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestRecord {
    /// Media type.
    pub media_type: String,
    /// Digest.
    pub digest: Digest,
    /// Size, in bytes.
    pub size: u64,
}

/// Platform of an entry, in the form of the OCI image index.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PlatformRecord {
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Required features of the operating system.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl ManifestList {
    /// Makes an empty list.
    pub fn new(name: &Reference) -> ManifestList {
        ManifestList { name: name.clone().or_latest(), created: jiff::Timestamp::now().to_string(), entries: vec![] }
    }

    /// Adds an entry. It replaces the entry of the same image or manifest.
    pub fn add(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|known| known.is_same_image(&entry)) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// The images in the store.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.entries.iter().filter_map(Entry::image)
    }
}

impl Entry {
    /// The image, if it is in the store.
    pub fn image(&self) -> Option<&Image> {
        match &self.location {
            Location::Local(image) => Some(image),
            Location::Registry(_) => None,
        }
    }

    fn is_same_image(&self, other: &Entry) -> bool {
        match (self.image(), other.image()) {
            (Some(own), Some(others)) => own.id == others.id,
            _ => self.manifest.is_some() && self.manifest == other.manifest,
        }
    }

    /// Display name: the name of an image in a registry, a local image's name or ID.
    pub fn title(&self) -> String {
        match &self.location {
            Location::Local(image) => image.title(),
            Location::Registry(name) => name.familiar(),
        }
    }
}

/// A manifest list that cannot be read.
pub struct Damaged {
    path: PathBuf,
    /// The error.
    pub why: Error,
}

impl Damaged {
    /// Renames the file to `.damaged`, so that it no longer keeps anything.
    pub fn set_aside(&self) -> Result<()> {
        let mut to = self.path.clone().into_os_string();
        to.push(".damaged");
        fs::rename(&self.path, &to).map_err(Error::io("rename", &self.path))
    }
}

fn path_of(store: &Store, name: &Reference) -> PathBuf {
    let name = name.clone().or_latest().to_string();
    store.root().join("lists").join(format!("{}{EXTENSION}", Digest::of(name.as_bytes()).hex()))
}

/// Returns the list of that name; without a tag, of the tag `latest`.
pub fn find(store: &Store, name: &Reference) -> Result<Option<ManifestList>> {
    sealed::load(&path_of(store, name))
}

/// Whether there is a list of that name, even a damaged one.
pub fn exists(store: &Store, name: &Reference) -> bool {
    fs::symlink_metadata(path_of(store, name)).is_ok()
}

/// Lists all manifest lists by name, and those that cannot be read.
pub fn list_with_damaged(store: &Store) -> Result<(Vec<ManifestList>, Vec<Damaged>)> {
    let (mut all, mut damaged) = (Vec::new(), Vec::new());
    for (name, path) in folder::list(&store.root().join("lists"))? {
        if !name.ends_with(EXTENSION) {
            continue;
        }
        match sealed::load::<ManifestList>(&path) {
            Ok(list) => all.extend(list),
            Err(why) => damaged.push(Damaged { path, why }),
        }
    }
    all.sort_by_key(|list| list.name.to_string());
    Ok((all, damaged))
}

/// Writes a list; replaces one of the same name. Every image must be in the catalog, or in the list before; else the
/// error is [`Error::NoSuchImage`]. Once this returns, the images' layers and documents cannot be removed.
pub fn put(store: &Store, lock: &Lock, list: &ManifestList) -> Result<()> {
    debug_assert!(lock.exclusive());
    let path = path_of(store, &list.name);
    let before = find(store, &list.name)?;
    let catalog = store.catalog()?;
    let is_kept = |image: &Image| {
        let is_listed = |old: &ManifestList| old.images().any(|known| known.id == image.id);
        catalog.get(&image.id).is_some() || before.as_ref().is_some_and(is_listed)
    };
    if let Some(gone) = list.images().find(|image| !is_kept(image)) {
        return Err(Error::NoSuchImage(gone.title()));
    }
    publish::replace(&path, &sealed::encode(list, &path)?)
}

/// Changes the list of that name, or makes it: `change` gets the present one.
pub fn update<E: From<Error>>(
    store: &Store,
    name: &Reference,
    change: impl FnOnce(Option<ManifestList>) -> std::result::Result<ManifestList, E>,
) -> std::result::Result<(), E> {
    let lock = store.lock_exclusive()?;
    let changed = change(find(store, name)?)?;
    Ok(put(store, &lock, &changed)?)
}

/// Removes a list, even a damaged one. Returns whether there was one. What only the list has kept is then garbage.
pub fn remove(store: &Store, lock: &Lock, name: &Reference) -> Result<bool> {
    debug_assert!(lock.exclusive());
    let is_there = exists(store, name);
    folder::unlink(&path_of(store, name))?;
    publish::sync_dir(&store.root().join("lists"))?;
    Ok(is_there)
}

/// Remains of an interrupted change.
pub(super) fn stale(store: &Store, lock: &Lock) -> Result<Vec<PathBuf>> {
    debug_assert!(lock.exclusive());
    let all = folder::list(&store.root().join("lists"))?;
    Ok(all.into_iter().filter(|(name, _)| name.ends_with(".new")).map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Catalog, LayerRecord, gc, tests::FORMATS};

    fn image(seed: &str) -> Image {
        let layer = LayerRecord {
            diff_id: Digest::of(seed.as_bytes()),
            blob: None,
            media_type: String::new(),
            compressed_size: 1,
            size: 1,
        };
        Image {
            id: Digest::of(format!("config of {seed}").as_bytes()),
            manifest: None,
            indexes: vec![],
            others: vec![],
            layers: vec![layer],
            tags: vec![],
            digests: vec![],
            created: None,
            pulled: String::new(),
        }
    }

    fn local(image: &Image) -> Entry {
        Entry {
            reference: image.title(),
            location: Location::Local(Box::new(image.clone())),
            manifest: None,
            platform: PlatformRecord { os: "linux".into(), architecture: "amd64".into(), ..PlatformRecord::default() },
            annotations: BTreeMap::new(),
        }
    }

    fn add_to_catalog(store: &Store, image: &Image) {
        fs::create_dir(store.layer_dir(&image.layers[0].diff_id)).unwrap();
        fs::write(store.layer_tar(&image.layers[0].diff_id), "x").unwrap();
        let insert = |_: &Lock, catalog: &mut Catalog| {
            catalog.insert(image.clone());
            Ok::<_, Error>(())
        };
        store.update(insert).unwrap();
    }

    #[test]
    fn a_list_keeps_the_layers_of_removed_images_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (name, app, other) = ("team/app".parse::<Reference>().unwrap(), image("app"), image("other"));
        add_to_catalog(&store, &app);
        let mut list = ManifestList::new(&name);
        list.add(local(&other));
        let missing = update(&store, &name, |_| Ok::<_, Error>(list.clone()));
        assert!(matches!(missing, Err(Error::NoSuchImage(_))));
        list.entries = vec![local(&app)];
        list.add(local(&app));
        assert_eq!(list.entries.len(), 1);
        update(&store, &name, |before| {
            assert_eq!(before, None);
            Ok::<_, Error>(list.clone())
        })
        .unwrap();
        assert_eq!(find(&store, &"team/app:latest".parse().unwrap()).unwrap(), Some(list.clone()));
        store.update(|_, catalog| Ok::<_, Error>(catalog.remove(&app.id).is_some())).unwrap();
        let lock = store.lock_exclusive().unwrap();
        let collect = || drop(gc::collect(&store, &lock, &store.catalog().unwrap(), FORMATS).unwrap());
        collect();
        assert!(store.has_layer(&app.layers[0].diff_id));
        // The list may be changed although the image is no longer in the catalog.
        list.entries[0].annotations.insert("a".into(), "b".into());
        put(&store, &lock, &list).unwrap();
        assert!(remove(&store, &lock, &name).unwrap() && !remove(&store, &lock, &name).unwrap());
        collect();
        assert!(!store.has_layer(&app.layers[0].diff_id));
    }

    #[test]
    fn a_damaged_list_keeps_everything_until_it_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (name, app) = ("app:1".parse::<Reference>().unwrap(), image("app"));
        add_to_catalog(&store, &app);
        update(&store, &name, |_| Ok::<_, Error>(ManifestList::new(&name))).unwrap();
        fs::write(path_of(&store, &name), "{").unwrap();
        store.update(|_, catalog| Ok::<_, Error>(catalog.remove(&app.id).is_some())).unwrap();
        let lock = store.lock_exclusive().unwrap();
        let collect = || drop(gc::collect(&store, &lock, &store.catalog().unwrap(), FORMATS).unwrap());
        collect();
        assert!(store.has_layer(&app.layers[0].diff_id));
        let (lists, damaged) = list_with_damaged(&store).unwrap();
        assert!(lists.is_empty() && damaged[0].why.to_string().contains("is damaged"));
        damaged[0].set_aside().unwrap();
        collect();
        assert!(!store.has_layer(&app.layers[0].diff_id));
    }
}
