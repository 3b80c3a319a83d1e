//! Source: OCI image layout, in a folder or in a tar.

use super::{Blobs, Files, LayerPlan, Place, Plan, Select, Source, Want, oci, open_regular};
use crate::image::manifest::{self, DOCUMENT_CAP, Descriptor};
use crate::image::{Error, Problem, Result};
use crate::reference::{DEFAULT_TAG, Reference};
use crate::registry::Notice;
use crate::store::read_capped;
use serde::Deserialize;
use std::io::Read;
use std::path::PathBuf;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// An OCI layout in a folder.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: PathBuf) -> Folder {
        Folder(path)
    }
}

impl Files for Folder {
    fn read(&self, name: &str) -> std::result::Result<Option<Box<dyn Read + Send>>, Problem> {
        let path = self.0.join(name);
        match open_regular(&path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Problem::Read { what: path.display().to_string(), cause }),
        }
    }
}

/// An OCI layout.
pub(super) struct Layout {
    origin: String,
    files: Box<dyn Files>,
    roots: Vec<Descriptor>,
    select: Select,
    /// Repository for images that have a tag and no name.
    base: Option<Reference>,
    /// Whether an image without a name gets the repository's tag `latest`; else it stays without a name.
    name_all: bool,
}

impl Layout {
    pub(super) fn open(
        origin: &str,
        files: Box<dyn Files>,
        select: Select,
        base: Option<Reference>,
        name_all: bool,
    ) -> std::result::Result<Layout, Problem> {
        #[derive(Deserialize)]
        struct Version {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        let bad = |name: &str, e: serde_json::Error| Problem::Document(format!("{name}: {e}"));
        let version: Version =
            serde_json::from_slice(&small(&*files, "oci-layout")?).map_err(|e| bad("oci-layout", e))?;
        if !version.version.starts_with("1.") {
            return Err(Problem::Document(format!("oci-layout has version {}, wanted 1.x", version.version)));
        }
        let bytes = small(&*files, "index.json")?;
        // The same rules as for any index: it must have no field of a manifest.
        let any: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| bad("index.json", e))?;
        if any.get("layers").is_some() || any.get("config").is_some() {
            return Err(Problem::Document("index.json has both `manifests` and `layers` or `config`".into()));
        }
        let index: Index = serde_json::from_value(any).map_err(|e| bad("index.json", e))?;
        Ok(Layout { origin: origin.into(), files, roots: index.manifests, select, base, name_all })
    }

    /// Returns the descriptors of the wanted manifests or indexes.
    fn chosen(&self, want: &Want) -> std::result::Result<Vec<&Descriptor>, Problem> {
        if want.all {
            return Ok(self.roots.iter().collect());
        }
        let fits = |d: &&Descriptor| match &self.select {
            Select::Default => true,
            Select::Digest(digest) => d.digest == *digest,
            Select::Name(name) => is_named(d, name),
        };
        let fitting: Vec<&Descriptor> = self.roots.iter().filter(fits).collect();
        if fitting.len() < 2 {
            return match fitting.first() {
                Some(one) => Ok(vec![one]),
                None => Err(self.not_found()),
            };
        }
        if self.select == Select::Default {
            let latest: Vec<&Descriptor> = fitting.iter().copied().filter(|d| is_named(d, DEFAULT_TAG)).collect();
            if let [one] = latest[..] {
                return Ok(vec![one]);
            }
        }
        // One name for images of several platforms.
        let same = fitting.iter().all(|d| ref_name(d) == ref_name(fitting[0]));
        if same && fitting.iter().all(|d| d.platform.is_some()) {
            let list: Vec<Descriptor> = fitting.iter().map(|d| (*d).clone()).collect();
            let best = manifest::choose(&list, &want.platform)?;
            return Ok(fitting.into_iter().filter(|d| *d == best).take(1).collect());
        }
        Err(Problem::Document(format!("has several images, name one of: {}", self.listing())))
    }

    fn not_found(&self) -> Problem {
        let what = match &self.select {
            Select::Default => return Problem::Document("has no image".into()),
            Select::Name(name) => name.clone(),
            Select::Digest(digest) => digest.to_string(),
        };
        Problem::Document(format!("has no image `{what}`; it has: {}", self.listing()))
    }

    fn listing(&self) -> String {
        let names = self.roots.iter().map(|d| match ref_name(d) {
            Some(name) => name.to_owned(),
            None => format!("@{}", d.digest),
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Returns the names for an image.
    fn names(&self, root: &Descriptor) -> Vec<Reference> {
        let by_digest = |name: &Reference| name.by_digest(&root.digest);
        if matches!(self.select, Select::Digest(_)) {
            return self.base.iter().map(by_digest).collect();
        }
        let full = root.annotations.get(FULL_NAME).map(String::as_str).or(ref_name(root));
        let whole = full.filter(|n| n.contains(['/', ':'])).and_then(|n| n.parse::<Reference>().ok());
        let tagged = |tag: &str| self.base.as_ref().and_then(|base| base.by_tag(tag).ok());
        let name = match (whole, ref_name(root)) {
            (Some(name), _) => Some(name.or_latest()),
            (None, Some(tag)) => tagged(tag),
            (None, None) if self.name_all => tagged(DEFAULT_TAG),
            (None, None) => None,
        };
        name.iter().flat_map(|name| [name.clone(), by_digest(name)]).collect()
    }
}

fn ref_name(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations.get(REF_NAME).map(String::as_str)
}

/// Whether `wanted` is the image's full name, in any spelling, or its tag.
fn is_named(descriptor: &Descriptor, wanted: &str) -> bool {
    let parsed = |text: &str| text.parse::<Reference>().ok().map(Reference::or_latest);
    [ref_name(descriptor), descriptor.annotations.get(FULL_NAME).map(String::as_str)].into_iter().flatten().any(
        |name| {
            let same = || parsed(name).is_some_and(|name| Some(name) == parsed(wanted));
            let tag = || name.contains(['/', ':']) && parsed(name).is_some_and(|name| name.tag() == Some(wanted));
            name == wanted || same() || tag()
        },
    )
}

fn small(files: &dyn Files, name: &str) -> std::result::Result<Vec<u8>, Problem> {
    let stream =
        files.read(name)?.ok_or_else(|| Problem::Document(format!("is not an OCI image layout: it has no {name}")))?;
    read_capped(stream, DOCUMENT_CAP).map_err(|cause| Problem::Read { what: name.into(), cause })
}

impl Blobs for Layout {
    fn blob(&self, descriptor: &Descriptor) -> std::result::Result<Box<dyn Read + Send>, Problem> {
        let digest = &descriptor.digest;
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        self.files.read(&name)?.ok_or_else(|| Problem::Document(format!("blob {digest} is missing")))
    }
}

impl Source for Layout {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn images(&self, want: &Want) -> Result<Vec<Plan>> {
        let wrap = |problem| Error::Source { origin: self.origin.clone(), problem: Box::new(problem) };
        let mut plans = Vec::new();
        for root in self.chosen(want).map_err(wrap)? {
            let plan = oci::plan(self, root, want).map_err(wrap)?;
            plans.push(Plan { names: self.names(root), ..plan });
        }
        Ok(plans)
    }

    fn layer(&self, layer: &LayerPlan, _waits: Notice) -> std::result::Result<Box<dyn Read + Send>, Problem> {
        match &layer.place {
            Place::Blob(descriptor) => self.blob(descriptor),
            Place::Member(name, _) => Err(Problem::Document(format!("has no layer {name}"))),
        }
    }
}
