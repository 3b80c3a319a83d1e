//! Image catalog: the list of all images with their names, layers and documents, in one JSON file replaced as a whole.

use super::sealed::{self, Sealed};
use super::{Error, Result};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::path::Path;

const VERSION: u32 = 2;
/// The file's version before checksums were added.
const UNSEALED: u32 = 1;

/// All images of a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Catalog {
    version: u32,
    images: Vec<Image>,
}

/// An image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    /// Image ID: the digest of the config.
    pub id: Digest,
    /// The manifest; an image from a `docker save` archive has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// The image indexes above the manifest, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Digest>,
    /// Further manifests and indexes of the same image, for example with layers in another compression.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Digest>,
    /// Layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// Names with a tag.
    pub tags: Vec<Reference>,
    /// Names with a digest.
    pub digests: Vec<Reference>,
    /// Build time as in the config, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Time of the last pull or tag, RFC 3339.
    pub pulled: String,
}

/// A layer of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayerRecord {
    /// DiffID: the digest of the uncompressed tar, under which the layer is stored.
    pub diff_id: Digest,
    /// Digest of the blob that was pulled or loaded, if the source stated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
    /// Media type of the blob.
    pub media_type: String,
    /// Size of the blob, in bytes.
    pub compressed_size: u64,
    /// Size of the uncompressed tar, in bytes.
    pub size: u64,
}

/// Computes the ChainIDs of a stack of layers, bottom first; the last one identifies the whole stack.
pub fn chain_ids<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

impl Image {
    /// An image of these layers, bottom first, without manifests and names.
    pub fn new(id: Digest, layers: Vec<LayerRecord>) -> Image {
        Image {
            id,
            manifest: None,
            indexes: Vec::new(),
            others: Vec::new(),
            layers,
            tags: Vec::new(),
            digests: Vec::new(),
            created: None,
            pulled: String::new(),
        }
    }

    /// ChainIDs of the layers, bottom first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        chain_ids(self.layers.iter().map(|l| &l.diff_id))
    }

    /// ChainID of the whole image; for an image without layers, the digest of the empty string.
    pub fn chain_id(&self) -> Digest {
        self.chain_ids().pop().unwrap_or_else(|| Digest::of(b""))
    }

    /// Total size of the uncompressed layers, in bytes.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }

    /// Digests of the documents: config, manifests, indexes.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.id).chain(self.origins())
    }

    /// Digests of all manifests and indexes of the image.
    pub fn origins(&self) -> impl Iterator<Item = &Digest> {
        self.manifest.iter().chain(&self.indexes).chain(&self.others)
    }

    /// All names, those with tags first.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.tags.iter().chain(&self.digests)
    }

    /// Display name: the first tag, else the ID.
    pub fn title(&self) -> String {
        self.tags.first().map_or_else(|| self.id.short().to_owned(), Reference::familiar)
    }
}

impl Default for Catalog {
    fn default() -> Catalog {
        Catalog { version: VERSION, images: vec![] }
    }
}

impl Catalog {
    /// Reads the catalog from a file; `None` if there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Catalog>> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let damaged = |why: String| Error::DamagedCatalog { path: path.to_owned(), why };
        let bytes = match sealed::read(path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(e) if sys::is_callers(&e) => return Err(Error::io("read", path)(e)),
            Err(e) => return Err(damaged(sys::describe(&e))),
        };
        let header: Sealed<Header> = sealed::decode(&bytes).map_err(damaged)?;
        let version = header.value.version;
        if version > VERSION {
            let why = format!("has version {version}, this plyfs knows version {VERSION}: use the plyfs that wrote it");
            return Err(Error::Catalog { path: path.to_owned(), why });
        }
        if version != UNSEALED && !header.is_sealed {
            return Err(damaged("it has no checksum".into()));
        }
        let mut catalog: Catalog = sealed::decode(&bytes).map_err(damaged)?.value;
        catalog.version = VERSION;
        Ok(Some(catalog))
    }

    /// Encodes the file's bytes.
    pub(super) fn encode(&self, path: &Path) -> Result<Vec<u8>> {
        sealed::encode(self, path)
    }

    /// All images, in the order in which they were added.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Returns the image with that ID.
    pub fn get(&self, id: &Digest) -> Option<&Image> {
        self.images.iter().find(|i| i.id == *id)
    }

    fn get_mut(&mut self, id: &Digest) -> Option<&mut Image> {
        self.images.iter_mut().find(|i| i.id == *id)
    }

    /// Returns the image that has exactly this name.
    pub fn named(&self, name: &Reference) -> Option<&Image> {
        self.images.iter().find(|i| i.references().any(|r| r == name))
    }

    /// Adds an image, or updates its record; an existing record keeps its names and its other manifests and indexes.
    pub fn insert(&mut self, image: Image) {
        let names: Vec<Reference> = image.references().cloned().collect();
        match self.get_mut(&image.id) {
            Some(old) => {
                let (tags, digests) = (std::mem::take(&mut old.tags), std::mem::take(&mut old.digests));
                let mut others: Vec<Digest> = old.origins().cloned().collect();
                others.retain(|d| image.manifest.as_ref() != Some(d) && !image.indexes.contains(d));
                *old = Image { tags, digests, others, ..image.clone() };
            }
            None => self.images.push(Image { tags: vec![], digests: vec![], ..image.clone() }),
        }
        for name in names {
            self.give_name(&image.id, &name);
        }
    }

    /// Adds a manifest to the origins of an image.
    pub fn add_origin(&mut self, id: &Digest, manifest: &Digest) {
        if let Some(image) = self.get_mut(id).filter(|image| image.origins().all(|o| o != manifest)) {
            image.others.push(manifest.clone());
        }
    }

    /// Gives a name to an image and removes it from any other. Returns that other image's ID.
    pub fn give_name(&mut self, id: &Digest, name: &Reference) -> Option<Digest> {
        let before = self.named(name).map(|i| i.id.clone());
        if before.as_ref() == Some(id) {
            return None;
        }
        self.take_name(name);
        if let Some(image) = self.get_mut(id) {
            let list = if name.digest().is_some() { &mut image.digests } else { &mut image.tags };
            list.push(name.clone());
        }
        before
    }

    /// Removes a name from the image that has it.
    pub fn take_name(&mut self, name: &Reference) {
        for image in &mut self.images {
            image.tags.retain(|r| r != name);
            image.digests.retain(|r| r != name);
        }
    }

    /// Removes an image with all its names. Its files stay on disk until garbage collection.
    pub fn remove(&mut self, id: &Digest) -> Option<Image> {
        let at = self.images.iter().position(|i| i.id == *id)?;
        Some(self.images.remove(at))
    }

    /// See [`super::Store::resolve`].
    pub fn resolve(&self, text: &str) -> Result<&Image> {
        let name = text.parse::<Reference>().ok().map(Reference::or_latest);
        if let Some(image) = name.as_ref().and_then(|name| self.lookup(name)) {
            return Ok(image);
        }
        if let Some(image) = self.by_prefix(text)? {
            return Ok(image);
        }
        Err(Error::NoSuchImage(name.map_or_else(|| text.to_owned(), |n| n.familiar())))
    }

    /// Looks up a name; one with both tag and digest by its digest, as Docker does.
    fn lookup(&self, name: &Reference) -> Option<&Image> {
        match name.digest() {
            Some(digest) => self.named(&name.by_digest(digest)),
            None => self.named(name),
        }
    }

    fn by_prefix(&self, text: &str) -> Result<Option<&Image>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() || hex.len() > 128 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(None);
        }
        let mut found = self.images.iter().filter(|i| i.id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(Error::Ambiguous(text.to_owned())),
            (one, None) => Ok(one),
        }
    }
}

/// Whether `text` is the image's ID or a prefix of it, so that the user meant the ID and no name.
pub(crate) fn is_id_prefix(id: &Digest, text: &str) -> bool {
    id.hex().starts_with(text.strip_prefix("sha256:").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(seed: &str, tags: &[&str]) -> Image {
        Image {
            id: Digest::of(seed.as_bytes()),
            manifest: None,
            indexes: vec![],
            others: vec![],
            layers: vec![],
            tags: tags.iter().map(|t| t.parse().unwrap()).collect(),
            digests: vec![],
            created: None,
            pulled: "2026-01-01T00:00:00Z".into(),
        }
    }

    fn catalog(images: Vec<Image>) -> Catalog {
        let mut catalog = Catalog { version: VERSION, images: vec![] };
        images.into_iter().for_each(|i| catalog.insert(i));
        catalog
    }

    #[test]
    fn a_name_belongs_to_one_image() {
        let c = catalog(vec![image("1", &["a:1", "b:1"]), image("2", &["a:1"])]);
        assert_eq!(c.images()[0].tags.len(), 1);
        assert_eq!(c.resolve("a:1").unwrap().id, Digest::of(b"2"));
        assert_eq!(c.resolve("docker.io/library/b:1").unwrap().id, Digest::of(b"1"));
    }

    #[test]
    fn names_come_before_ids() {
        let id = Digest::of(b"1");
        let short = &id.hex()[..6];
        let c = catalog(vec![image("1", &["a:latest"]), image("2", &[&format!("{short}:latest")])]);
        assert_eq!(c.resolve(short).unwrap().id, Digest::of(b"2"));
        assert_eq!(c.resolve(&id.hex()[..7]).unwrap().id, id);
        assert_eq!(c.resolve(&id.to_string()).unwrap().id, id);
        assert_eq!(c.resolve("a").unwrap().id, id);
    }

    #[test]
    fn what_is_not_there_is_named_with_its_tag() {
        let c = catalog(vec![]);
        assert_eq!(c.resolve("nope").unwrap_err().to_string(), "No such image: nope:latest");
        assert_eq!(c.resolve("NOPE").unwrap_err().to_string(), "No such image: NOPE");
        let many = catalog((0..40).map(|i| image(&i.to_string(), &[])).collect());
        let first = &many.images()[0].id.hex()[..1];
        let twice = many.images().iter().filter(|i| i.id.hex().starts_with(first)).count();
        assert_eq!(matches!(many.resolve(first), Err(Error::Ambiguous(_))), twice > 1);
    }

    #[test]
    fn chains_follow_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chain = chain_ids([&a, &b]);
        assert_eq!(chain, [a.clone(), Digest::of(format!("{a} {b}").as_bytes())]);
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.json");
        std::fs::write(&path, br#"{"version":9,"pictures":{}}"#).unwrap();
        assert!(Catalog::read(&path).unwrap_err().to_string().contains("has version 9"));
    }

    #[test]
    fn a_catalog_without_a_checksum_is_one_of_version_1_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.json");
        let c = catalog(vec![image("1", &["a:1"])]);
        let mut plain = serde_json::to_value(&c).unwrap();
        std::fs::write(&path, plain.to_string()).unwrap();
        assert!(Catalog::read(&path).unwrap_err().to_string().contains("no checksum"));
        plain["version"] = 1.into();
        std::fs::write(&path, plain.to_string()).unwrap();
        assert_eq!(Catalog::read(&path).unwrap().unwrap(), c);
        std::fs::write(&path, c.encode(&path).unwrap()).unwrap();
        assert_eq!(Catalog::read(&path).unwrap().unwrap(), c);
    }
}
