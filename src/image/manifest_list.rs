//! Manifest lists: adds images of the store or of a registry to a list, and pushes a list as an image index.

use super::manifest::{self, DOCUMENT_CAP, Descriptor, Document, Family, Parsed};
use super::push::{self, Packing, Progress, Pushed};
use super::{Error, Platform, Problem, Result};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::{Repository, Settings, UploadStart};
use crate::store::lists::{self, Entry, Location, ManifestList, ManifestRecord, PlatformRecord};
use crate::store::{self, Image, Session, Store, is_id_prefix};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Changes to an entry of a list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Annotation {
    /// Operating system.
    pub os: Option<String>,
    /// Architecture.
    pub architecture: Option<String>,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// Version of the operating system.
    pub os_version: Option<String>,
    /// Required features of the operating system, instead of all present ones.
    pub os_features: Option<Vec<String>>,
    /// Annotations to add.
    pub annotations: BTreeMap<String, String>,
}

impl Annotation {
    /// Changes an entry.
    pub fn apply(&self, entry: &mut Entry) {
        let set = |field: &mut String, value: &Option<String>| {
            if let Some(value) = value {
                field.clone_from(value);
            }
        };
        let platform = &mut entry.platform;
        set(&mut platform.os, &self.os);
        set(&mut platform.architecture, &self.architecture);
        set(&mut platform.variant, &self.variant);
        set(&mut platform.os_version, &self.os_version);
        if let Some(features) = &self.os_features {
            platform.os_features.clone_from(features);
        }
        entry.annotations.extend(self.annotations.clone());
    }

    /// The platform to choose from an image index, which is `default` with these changes.
    pub fn platform(&self, default: &Platform) -> Platform {
        let is_same = self.architecture.as_ref().is_none_or(|own| *own == default.architecture);
        Platform {
            os: self.os.as_ref().unwrap_or(&default.os).clone(),
            architecture: self.architecture.as_ref().unwrap_or(&default.architecture).clone(),
            variant: self.variant.clone().or_else(|| default.variant.clone().filter(|_| is_same)),
        }
    }
}

/// Which images of an image index in a registry are added to a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The one that suits the platform best.
    Best(Platform),
    /// All.
    All,
}

/// Makes the entries for an image that the user named: one for an image in the store; else those of the image or image
/// index in its registry.
pub fn entries_of(store: &Store, named: &str, choice: &Choice, settings: &Settings) -> Result<Vec<Entry>> {
    match store.catalog()?.resolve(named) {
        Ok(image) => Ok(vec![Entry { reference: named.to_owned(), ..local_entry(store, image)? }]),
        Err(store::Error::NoSuchImage(_)) => {
            let name = named.parse::<Reference>()?.or_latest();
            let mut entries = registry_entries(&name, choice, settings)?;
            entries.iter_mut().for_each(|entry| named.clone_into(&mut entry.reference));
            Ok(entries)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes the entry for an image in the store, with the platform of its config.
pub fn local_entry(store: &Store, image: &Image) -> Result<Entry> {
    let config: Value = serde_json::from_slice(&store.blob(&image.id, DOCUMENT_CAP)?).unwrap_or_default();
    let documents = image.origins().filter_map(|digest| Some((digest, store.blob(digest, DOCUMENT_CAP).ok()?)));
    let manifests = documents.filter_map(|(digest, bytes)| {
        let media_type = manifest::family_of(&bytes)?.manifest_type().to_owned();
        manifest::layers_of(&bytes)?;
        Some(ManifestRecord { media_type, digest: digest.clone(), size: bytes.len() as u64 })
    });
    Ok(Entry {
        reference: image.title(),
        manifest: { manifests }.next(),
        location: Location::Local(Box::new(image.clone())),
        platform: PlatformRecord::deserialize(&config).unwrap_or_default(),
        annotations: BTreeMap::new(),
    })
}

/// Fetches the manifest or index of that name and makes the entries of the chosen images.
fn registry_entries(name: &Reference, choice: &Choice, settings: &Settings) -> Result<Vec<Entry>> {
    let repository = Repository::new(name, settings);
    let wrong = |problem| Error::Source { origin: name.familiar(), problem: Box::new(problem) };
    let (document, parsed) = fetch(&repository, name)?;
    let fields: Value = serde_json::from_slice(&document.bytes).unwrap_or_default();
    let entry = |descriptor: &Descriptor, platform: &Value| Entry {
        reference: name.familiar(),
        location: Location::Registry(name.by_digest(&descriptor.digest)),
        manifest: Some(ManifestRecord {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
        }),
        platform: PlatformRecord::deserialize(platform).unwrap_or_default(),
        annotations: descriptor.annotations.clone(),
    };
    match parsed {
        Parsed::Manifest { config, .. } => {
            if config.size > DOCUMENT_CAP {
                let why = format!("its config has {} bytes, more than {DOCUMENT_CAP}", config.size);
                return Err(wrong(Problem::Document(why)));
            }
            let bytes = repository.small_blob(&config.digest, config.size)?;
            let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            Ok(vec![entry(&document.descriptor, &config)])
        }
        Parsed::Index(all) => {
            let chosen = match choice {
                Choice::All => None,
                Choice::Best(platform) => Some(manifest::choose(&all, platform).map_err(wrong)?),
            };
            let is_chosen = |descriptor: &Descriptor| chosen.is_none_or(|chosen| std::ptr::eq(chosen, descriptor));
            let chosen = all.iter().enumerate().filter(|(_, descriptor)| is_chosen(descriptor));
            Ok(chosen.map(|(at, descriptor)| entry(descriptor, &fields["manifests"][at]["platform"])).collect())
        }
    }
}

/// Fetches and parses a manifest or index.
fn fetch(repository: &Repository, name: &Reference) -> Result<(Document, Parsed)> {
    let wanted = name.digest().map_or_else(|| name.tag().unwrap_or_default().to_owned(), Digest::to_string);
    let found = repository.manifest(&wanted, &manifest::accept(), DOCUMENT_CAP)?;
    let own = manifest::own_media_type(&found.bytes).unwrap_or_default();
    let stated = Some(found.media_type).filter(|stated| own.is_empty() && manifest::is_manifest(stated));
    let descriptor = Descriptor {
        media_type: stated.unwrap_or(own),
        digest: found.digest,
        size: found.bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    };
    let mut document = Document { descriptor, bytes: found.bytes };
    let parsed = manifest::parse(&document)
        .map_err(|problem| Error::Source { origin: name.familiar(), problem: Box::new(problem) })?;
    if document.descriptor.media_type.is_empty() {
        document.descriptor.media_type = Family::Oci.manifest_type().to_owned();
    }
    Ok((document, parsed))
}

/// Returns the position of the entry that the user named: by the digest of its manifest, by an image ID, or by the name
/// under which it was added or that it has now.
pub fn position(store: &Store, list: &ManifestList, text: &str) -> Result<usize> {
    let digest = text.parse::<Digest>().ok();
    let name = text.parse::<Reference>().ok().map(Reference::or_latest);
    let resolved = store.catalog()?.resolve(text).ok().map(|image| image.id.clone());
    let is_manifest = |entry: &Entry| {
        let named = name.as_ref().and_then(Reference::digest);
        let own = entry.manifest.as_ref().map(|manifest| &manifest.digest);
        own.is_some() && (own == digest.as_ref() || own == named)
    };
    let is_name = |entry: &Entry| {
        let given = entry.reference.parse::<Reference>().ok().map(Reference::or_latest);
        entry.reference == text || (name.is_some() && given == name)
    };
    let is_image = |entry: &Entry| {
        entry.image().is_some_and(|image| resolved.as_ref() == Some(&image.id) || is_id_prefix(&image.id, text))
    };
    let all = |is_wanted: &dyn Fn(&Entry) -> bool| -> Vec<usize> {
        list.entries.iter().enumerate().filter(|(_, entry)| is_wanted(entry)).map(|(at, _)| at).collect()
    };
    let found = [all(&is_manifest), all(&is_name), all(&is_image)].into_iter().find(|found| !found.is_empty());
    match found.as_deref() {
        None => Err(Error::Usage(format!("manifest list {} has no image {text}", list.name.familiar()))),
        Some([one]) => Ok(*one),
        Some(more) => {
            let (count, list) = (more.len(), list.name.familiar());
            Err(Error::Usage(format!("manifest list {list} has {count} images {text}: name one by its digest")))
        }
    }
}

/// Returns the entry as a descriptor of an image index. The digest and size of an unknown manifest are omitted.
pub fn descriptor_of(entry: &Entry) -> Value {
    let mut fields = match &entry.manifest {
        Some(record) => json!({ "mediaType": record.media_type, "digest": record.digest, "size": record.size }),
        None => json!({ "mediaType": Family::Oci.manifest_type() }),
    };
    fields["platform"] = json!(entry.platform);
    if !entry.annotations.is_empty() {
        fields["annotations"] = json!(entry.annotations);
    }
    fields
}

/// Returns the family of a list's index: Docker's if all images have it and no entry has annotations, which Docker's
/// manifest list cannot hold.
pub fn family_of(list: &ManifestList) -> Family {
    let is_docker = |entry: &Entry| {
        let kind = entry.manifest.as_ref().map(|manifest| manifest.media_type.as_str());
        entry.annotations.is_empty() && kind == Some(Family::Docker.manifest_type())
    };
    if list.entries.iter().all(is_docker) && !list.entries.is_empty() { Family::Docker } else { Family::Oci }
}

/// Returns the list as an image index.
pub fn index_of(list: &ManifestList, family: Family) -> Value {
    let manifests: Vec<Value> = list.entries.iter().map(descriptor_of).collect();
    json!({ "schemaVersion": 2, "mediaType": family.index_type(), "manifests": manifests })
}

/// Settings of a push.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PushOptions {
    /// Family of the index; `None`: see [`family_of`]. The images keep theirs.
    pub family: Option<Family>,
    /// Compression of the images' layers.
    pub packing: Packing,
}

/// Uploads the images of a list that are in the store, by digest, then the list under the tag of `to`. An image that is
/// only in a registry must be in the same one; from another repository of it, its blobs are mounted.
pub fn push(
    session: &Session,
    list: &ManifestList,
    to: &Reference,
    settings: &Settings,
    options: PushOptions,
    progress: &dyn Progress,
) -> Result<Pushed> {
    check(list, to, options)?;
    let repository = Repository::to_write(to, settings);
    let images_to: Reference = to.name().parse()?;
    let mut list = list.clone();
    for entry in &mut list.entries {
        match &entry.location {
            Location::Local(image) => {
                let image = current(session.store(), image, entry)?;
                let pushed = push::push(session, &image, &images_to, settings, options.packing, progress)?;
                entry.manifest = Some(ManifestRecord {
                    media_type: pushed.media_type.to_owned(),
                    digest: pushed.digest,
                    size: pushed.size,
                });
            }
            Location::Registry(name) if name.path() != to.path() => copy(name, &repository, settings)?,
            Location::Registry(_) => {}
        }
    }
    let family = options.family.unwrap_or_else(|| family_of(&list));
    let bytes = index_of(&list, family).to_string().into_bytes();
    let digest = repository.put_manifest(to.tag().unwrap_or_default(), family.index_type(), &bytes)?;
    remember(session.store(), &list)?;
    Ok(Pushed { digest, size: bytes.len() as u64, media_type: family.index_type() })
}

/// Checks that a list can be pushed, before anything is uploaded.
fn check(list: &ManifestList, to: &Reference, options: PushOptions) -> Result<()> {
    let refused = |why: String| Err(Error::Usage(format!("manifest list {}: {why}", list.name.familiar())));
    if list.entries.is_empty() {
        return refused("it has no images".into());
    }
    for entry in &list.entries {
        let title = entry.title();
        if entry.platform.os.is_empty() || entry.platform.architecture.is_empty() {
            return refused(format!(
                "{title} has no operating system or architecture: set them with `plyfs manifest annotate`"
            ));
        }
        if options.family == Some(Family::Docker) && !entry.annotations.is_empty() {
            return refused(format!("{title} has annotations, which the format docker cannot hold: use oci"));
        }
        if let Location::Registry(name) = &entry.location
            && name.domain() != to.domain()
        {
            return refused(format!(
                "{title} is only in {}: pull it and add it again, or push the list to that registry",
                name.domain()
            ));
        }
    }
    Ok(())
}

/// Returns the present record of a list's image, with all known manifests.
fn current(store: &Store, image: &Image, entry: &Entry) -> Result<Image> {
    let mut image = store.catalog()?.get(&image.id).unwrap_or(image).clone();
    let known = entry.manifest.as_ref().map(|manifest| &manifest.digest);
    if let Some(digest) = known.filter(|digest| image.origins().all(|own| own != *digest)) {
        image.others.push(digest.clone());
    }
    Ok(image)
}

/// Copies an image's manifest from another repository of the same registry, and mounts its blobs.
fn copy(name: &Reference, to: &Repository, settings: &Settings) -> Result<()> {
    let (document, parsed) = fetch(&Repository::new(name, settings), name)?;
    let Parsed::Manifest { config, layers } = parsed else {
        return Err(Error::Usage(format!("{}: it is an image index, not an image", name.familiar())));
    };
    for blob in layers.iter().filter(|layer| !manifest::is_foreign(&layer.media_type)).chain([&config]) {
        if to.has_blob(&blob.digest)? {
            continue;
        }
        if let UploadStart::Upload(_) = to.mount_or_upload(&blob.digest, name.path())? {
            let (host, image) = (to.host(), name.familiar());
            let why = format!("{host} does not mount blobs of {image}: pull the image and add it to the list again");
            return Err(Error::Usage(why));
        }
    }
    let Document { descriptor, bytes } = document;
    to.put_manifest(&descriptor.digest.to_string(), &descriptor.media_type, &bytes)?;
    Ok(())
}

/// Records the manifests of a pushed list, if the list still exists.
fn remember(store: &Store, pushed: &ManifestList) -> Result<()> {
    let lock = store.lock_exclusive()?;
    let Some(mut list) = lists::find(store, &pushed.name)? else { return Ok(()) };
    for entry in &mut list.entries {
        let id = entry.image().map(|image| &image.id);
        let same = pushed.entries.iter().find(|other| id.is_some() && other.image().map(|image| &image.id) == id);
        if let Some(same) = same {
            entry.manifest.clone_from(&same.manifest);
        }
    }
    Ok(lists::put(store, &lock, &list)?)
}

/// Makes the list of that name from a build's images, or replaces it.
pub fn replace(store: &Store, name: &Reference, images: &[(Platform, Image)]) -> Result<()> {
    let mut list = ManifestList::new(name);
    for (platform, image) in images {
        let mut entry = local_entry(store, image)?;
        let wanted = Annotation {
            os: Some(platform.os.clone()),
            architecture: Some(platform.architecture.clone()),
            variant: platform.variant.clone(),
            ..Annotation::default()
        };
        wanted.apply(&mut entry);
        list.entries.push(entry);
    }
    lists::update(store, name, |_| Ok(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(reference: &str, digest: &[u8], kind: Family) -> Entry {
        let digest = Digest::of(digest);
        Entry {
            reference: reference.into(),
            location: Location::Registry(reference.parse::<Reference>().unwrap().by_digest(&digest)),
            manifest: Some(ManifestRecord { media_type: kind.manifest_type().into(), digest, size: 7 }),
            platform: PlatformRecord { os: "linux".into(), architecture: "arm".into(), ..PlatformRecord::default() },
            annotations: BTreeMap::new(),
        }
    }

    fn list(entries: Vec<Entry>) -> ManifestList {
        ManifestList { entries, ..ManifestList::new(&"list:1".parse().unwrap()) }
    }

    #[test]
    fn entries_are_found_by_name_and_digest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let all = list(vec![
            entry("r.example/a", b"1", Family::Oci),
            entry("r.example/b", b"2", Family::Oci),
            entry("r.example/b", b"3", Family::Oci),
        ]);
        let found = |text: &str| position(&store, &all, text).map_err(|e| e.to_string());
        assert_eq!(found("r.example/a:latest"), Ok(0));
        assert_eq!(found(&Digest::of(b"2").to_string()), Ok(1));
        assert_eq!(found(&format!("r.example/b@{}", Digest::of(b"3"))), Ok(2));
        assert_eq!(
            found("r.example/b"),
            Err("manifest list list:1 has 2 images r.example/b: name one by its digest".into())
        );
        assert_eq!(found("r.example/c"), Err("manifest list list:1 has no image r.example/c".into()));
    }

    #[test]
    fn the_family_is_dockers_only_if_nothing_is_lost() {
        let mut all = list(vec![entry("a", b"1", Family::Docker)]);
        assert_eq!(family_of(&all), Family::Docker);
        all.entries[0].annotations.insert("key".into(), "value".into());
        assert_eq!(family_of(&all), Family::Oci);
        let why = check(
            &all,
            &"a:1".parse().unwrap(),
            PushOptions { family: Some(Family::Docker), ..PushOptions::default() },
        );
        assert!(why.unwrap_err().to_string().contains("cannot hold"));
        assert_eq!(family_of(&list(vec![entry("a", b"1", Family::Oci)])), Family::Oci);
        assert_eq!(family_of(&list(vec![])), Family::Oci);
    }

    #[test]
    fn annotations_change_only_what_they_name() {
        let mut changed = entry("a", b"1", Family::Oci);
        let change =
            Annotation { variant: Some("v7".into()), os_features: Some(vec!["f".into()]), ..Annotation::default() };
        change.apply(&mut changed);
        let platform = json!({"architecture": "arm", "os": "linux", "os.features": ["f"], "variant": "v7"});
        assert_eq!(descriptor_of(&changed)["platform"], platform);
        let host: Platform = "linux/arm/v6".parse().unwrap();
        assert_eq!(change.platform(&host).to_string(), "linux/arm/v7");
        let other = Annotation { architecture: Some("arm64".into()), ..Annotation::default() };
        assert_eq!(other.platform(&host).to_string(), "linux/arm64");
    }
}
