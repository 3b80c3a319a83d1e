//! Image sources: registries, OCI layouts and `docker save` archives. A [`Source`] verifies an image's documents and
//! lists its layers; the caller reads the layers' streams and verifies them on the way.

mod archive;
mod docker;
mod layout;
pub mod oci;
mod registry;

pub use oci::Blobs;
pub use registry::open_registry;

use super::manifest::{Descriptor, Document};
use super::platform::Platform;
use super::{Error, Problem, Result};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::Notice;
use crate::store::Session;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A source of images.
pub trait Source: Sync {
    /// The source as the user named it, for messages.
    fn origin(&self) -> &str;

    /// Plans the wanted images; their documents are verified.
    fn images(&self, want: &Want) -> Result<Vec<Plan>>;

    /// Opens a layer's stream as the source has it: compressed or not, unverified. `waits` is called before a failed
    /// request is repeated after a pause.
    fn layer(&self, layer: &LayerPlan, waits: Notice) -> std::result::Result<Box<dyn Read + Send>, Problem>;

    /// Whether the compressed blob is kept in the store until its layer is published.
    fn keeps(&self, _blob: &Descriptor) -> bool {
        false
    }

    /// Reports that the layer is in the store: the source may discard its partial.
    fn taken(&self, _layer: &LayerPlan) {}

    /// Reports that the layer's stream was wrong: discards the partial, and excludes the mirrors that served it.
    /// Returns whether another try may succeed; after finitely many calls it returns false.
    fn discard(&self, _layer: &LayerPlan, _wrong: &Problem) -> bool {
        false
    }

    /// Cancels all waiting for the outside world: nothing more is needed.
    fn cancel(&self) {}
}

/// The user's selection, beyond what the source was opened with.
#[derive(Clone, Debug)]
pub struct Want {
    /// Platform of the image.
    pub platform: Platform,
    /// Whether the user named the platform: then an image for another one is an error.
    pub strict: bool,
    /// All images of the source instead of one.
    pub all: bool,
}

/// An image to be pulled.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names for the image.
    pub names: Vec<Reference>,
    /// Digest of the index or manifest that the name refers to in the source.
    pub root: Option<Digest>,
    /// Indexes above the manifest, outermost first.
    pub indexes: Vec<Document>,
    /// The manifest; an image from a `docker save` archive has none.
    pub manifest: Option<Document>,
    /// The config. Its digest is the image ID.
    pub config: Document,
    /// Build time, RFC 3339, if the config states it.
    pub created: Option<String>,
    /// Layers, bottom first.
    pub layers: Vec<LayerPlan>,
}

/// A layer to be pulled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerPlan {
    /// DiffID: the digest that the uncompressed tar must have.
    pub diff_id: Digest,
    /// Where the source has the layer.
    pub place: Place,
}

/// Location of a layer in a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A blob with known digest and size.
    Blob(Descriptor),
    /// A member of an archive: name and length.
    Member(String, u64),
}

impl LayerPlan {
    /// Short digest for display: twelve digits of the blob's if known, else of the DiffID.
    pub fn short(&self) -> &str {
        match &self.place {
            Place::Blob(descriptor) => descriptor.digest.short(),
            Place::Member(..) => self.diff_id.short(),
        }
    }

    /// Length of the stream, in bytes.
    pub fn size(&self) -> u64 {
        match &self.place {
            Place::Blob(descriptor) => descriptor.size,
            Place::Member(_, size) => *size,
        }
    }
}

/// Selection of an image in a source.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Select {
    /// The only image, or the one tagged `latest`.
    Default,
    /// The image with that name or tag.
    Name(String),
    /// The image with that digest.
    Digest(Digest),
}

impl Select {
    fn parse(text: &str) -> Result<Select> {
        match text.strip_prefix('@') {
            _ if text.is_empty() => Ok(Select::Default),
            Some(digest) => digest.parse().map(Select::Digest).map_err(|e| Error::Usage(e.to_string())),
            None => Ok(Select::Name(text.trim_start_matches(':').to_owned())),
        }
    }
}

/// Whether `text` has the form of a source for [`open`].
pub fn is_source(text: &str) -> bool {
    ["oci:", "oci-archive:", "docker-archive:"].iter().any(|scheme| text.starts_with(scheme))
}

/// Opens `oci:DIR[:TAG|@DIGEST]`, `oci-archive:FILE[:TAG|@DIGEST]` or `docker-archive:FILE[:REF]`. A compressed archive
/// is unpacked into the session.
pub fn open(text: &str, session: &Session) -> Result<Box<dyn Source>> {
    let wrap = |problem| Error::Source { origin: text.to_owned(), problem: Box::new(problem) };
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    let (path, select) = split_path(rest)?;
    let base = Reference::from_file_name(&base_name(&path, scheme != "oci"));
    match scheme {
        "oci" => {
            let files = layout::Folder::new(path);
            Ok(Box::new(layout::Layout::open(text, Box::new(files), select, Some(base), true).map_err(wrap)?))
        }
        "oci-archive" => {
            let files = archive::open(&path, session).map_err(wrap)?;
            Ok(Box::new(layout::Layout::open(text, Box::new(files), select, Some(base), true).map_err(wrap)?))
        }
        "docker-archive" => {
            let files = archive::open(&path, session).map_err(wrap)?;
            Ok(Box::new(docker::Archive::open(text, files, select, Some(base)).map_err(wrap)?))
        }
        _ => Err(Error::Usage(format!("`{text}` is not a source (wanted oci:, oci-archive: or docker-archive:)"))),
    }
}

/// Input of `load`.
pub enum LoadFrom<'a> {
    /// A file.
    File(&'a Path),
    /// A stream, which is spooled into the session.
    Stream(&'a mut dyn Read),
}

/// Opens an archive by `docker save`, `podman save` or `skopeo`; detects which of the two formats it has.
pub fn open_load(from: LoadFrom<'_>, session: &Session) -> Result<Box<dyn Source>> {
    let (origin, base) = match &from {
        LoadFrom::File(path) => (path.display().to_string(), Some(Reference::from_file_name(&base_name(path, true)))),
        LoadFrom::Stream(_) => ("standard input".to_owned(), None),
    };
    let wrap = |problem| Error::Source { origin: origin.clone(), problem: Box::new(problem) };
    let files = match from {
        LoadFrom::File(path) => archive::open(path, session),
        LoadFrom::Stream(stream) => archive::spool(stream, "standard input", session),
    }
    .map_err(wrap)?;
    if files.has("manifest.json") {
        return Ok(Box::new(docker::Archive::open(&origin, files, Select::Default, None).map_err(wrap)?));
    }
    if files.has("oci-layout") || files.has("index.json") {
        let layout = layout::Layout::open(&origin, Box::new(files), Select::Default, base, false);
        return Ok(Box::new(layout.map_err(wrap)?));
    }
    let why = "is not an image archive: it has neither manifest.json nor oci-layout and index.json";
    Err(wrap(Problem::Document(why.into())))
}

/// Splits `PATH`, `PATH:TAG` and `PATH@DIGEST`. The longest existing path wins, so that folders may have colons in
/// their names; if none exists, the path ends at the first colon.
fn split_path(text: &str) -> Result<(PathBuf, Select)> {
    if text.is_empty() {
        return Err(Error::Usage("the source has no path".into()));
    }
    if Path::new(text).exists() {
        return Ok((text.into(), Select::Default));
    }
    let existing = || text.rmatch_indices(':').map(|(at, _)| at).find(|at| Path::new(&text[..*at]).exists());
    let colon = || existing().or_else(|| text.find(':'));
    let at = text.rfind("@sha256:").or_else(|| text.rfind("@sha512:")).or_else(colon);
    let (path, rest) = text.split_at(at.unwrap_or(text.len()));
    Ok((path.into(), Select::parse(rest)?))
}

/// Returns a file's name without the extensions of an archive.
fn base_name(path: &Path, is_archive: bool) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let given = path.file_name().or(real.file_name()).unwrap_or_default();
    let mut name = given.to_string_lossy().into_owned();
    if is_archive {
        for ending in [".gz", ".zst", ".tgz", ".tar", ".oci"] {
            if let Some(stem) = name.strip_suffix(ending).filter(|stem| !stem.is_empty()) {
                name = stem.to_owned();
            }
        }
    }
    name
}

/// Access to a source's files by name: in a folder or an archive.
trait Files: Sync + Send {
    /// Opens a file's stream; `None` if there is no such file.
    fn read(&self, name: &str) -> std::result::Result<Option<Box<dyn Read + Send>>, Problem>;
}

/// Opens a file only if it is a regular one, as others could block or be endless.
fn open_regular(path: &Path) -> std::io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_what_follows() {
        let digest = Digest::of(b"");
        assert_eq!(split_path("/no/dir").unwrap(), ("/no/dir".into(), Select::Default));
        assert_eq!(split_path("/no/dir:3.2").unwrap(), ("/no/dir".into(), Select::Name("3.2".into())));
        assert_eq!(split_path(&format!("/no/d@{digest}")).unwrap(), ("/no/d".into(), Select::Digest(digest)));
        assert_eq!(split_path("/no/f:a/b:1").unwrap(), ("/no/f".into(), Select::Name("a/b:1".into())));
        assert!(split_path("").is_err());
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(split_path(odd.to_str().unwrap()).unwrap(), (odd.clone(), Select::Default));
        let tagged = format!("{}:localhost:5000/x:1", odd.display());
        assert_eq!(split_path(&tagged).unwrap(), (odd, Select::Name("localhost:5000/x:1".into())));
    }

    #[test]
    fn base_names() {
        assert_eq!(base_name(Path::new("/x/app.tar.gz"), true), "app");
        assert_eq!(base_name(Path::new("/x/app.tar"), false), "app.tar");
    }
}
