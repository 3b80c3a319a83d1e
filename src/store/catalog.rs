//! The list of images, one small JSON file replaced as a whole.

use super::sealed::{self, Sealed};
use super::{Error, Result};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::path::Path;

const VERSION: u32 = 2;
/// The version that has no checksum.
const UNSEALED: u32 = 1;

/// All images of a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Catalog {
    version: u32,
    images: Vec<Image>,
}

/// One image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its config, which is its ID.
    pub id: Digest,
    /// The manifest it came by; a `docker save` archive has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// The image indexes that led to the manifest, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Digest>,
    /// Manifests and indexes by which the same image came too: with its layers compressed otherwise, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Digest>,
    /// Its layers, the bottom one first.
    pub layers: Vec<LayerRecord>,
    /// Its names with a tag.
    pub tags: Vec<Reference>,
    /// Its names by digest.
    pub digests: Vec<Reference>,
    /// When it was built, RFC 3339, as its config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it last came in or got a name, RFC 3339.
    pub pulled: String,
}

/// One layer of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The digest of the uncompressed tar, under which the layer is stored.
    pub diff_id: Digest,
    /// The digest of the blob that it came as, where the source said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
    /// The media type of that blob.
    pub media_type: String,
    /// The length of that blob.
    pub compressed_size: u64,
    /// The length of the uncompressed tar.
    pub size: u64,
}

/// The ChainIDs of a stack of layers, bottom first; the last one stands for the whole stack.
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
    /// The ChainIDs of its layers, bottom first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        chain_ids(self.layers.iter().map(|l| &l.diff_id))
    }

    /// The ChainID of the whole image; for one without layers, the digest of nothing.
    pub fn chain_id(&self) -> Digest {
        self.chain_ids().pop().unwrap_or_else(|| Digest::of(b""))
    }

    /// The bytes of its uncompressed layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }

    /// The documents it needs: config, manifests, indexes.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.id).chain(self.origins())
    }

    /// The manifests and indexes by which it came.
    pub fn origins(&self) -> impl Iterator<Item = &Digest> {
        self.manifest.iter().chain(&self.indexes).chain(&self.others)
    }

    /// Its names, those with tags first.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.tags.iter().chain(&self.digests)
    }

    /// How people should see it named: its first tag, else its ID.
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
    /// The catalog in that file; none if there is no such file.
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

    /// The bytes of the file.
    pub(super) fn encode(&self, path: &Path) -> Result<Vec<u8>> {
        sealed::encode(self, path)
    }

    /// All images, in the order they came in.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The image of that ID.
    pub fn get(&self, id: &Digest) -> Option<&Image> {
        self.images.iter().find(|i| i.id == *id)
    }

    fn get_mut(&mut self, id: &Digest) -> Option<&mut Image> {
        self.images.iter_mut().find(|i| i.id == *id)
    }

    /// The image that has exactly this name.
    pub fn named(&self, name: &Reference) -> Option<&Image> {
        self.images.iter().find(|i| i.references().any(|r| r == name))
    }

    /// Adds an image, or brings the record of one that is there up to date; names it had stay, and so do the documents
    /// by which it came before.
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

    /// Notes a manifest by which an image can be had too.
    pub fn add_origin(&mut self, id: &Digest, manifest: &Digest) {
        if let Some(image) = self.get_mut(id).filter(|image| image.origins().all(|o| o != manifest)) {
            image.others.push(manifest.clone());
        }
    }

    /// Gives a name to an image, taking it from whichever had it. Returns that other image's ID.
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

    /// Takes a name away from whichever image has it.
    pub fn take_name(&mut self, name: &Reference) {
        for image in &mut self.images {
            image.tags.retain(|r| r != name);
            image.digests.retain(|r| r != name);
        }
    }

    /// Takes an image out, names and all. What it referred to stays on disk until it is collected.
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

    /// A name with both tag and digest is looked up by its digest, as everywhere.
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

/// Whether `text` is (the beginning of) the image's ID, so that a user who gave it meant the ID and no name.
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
