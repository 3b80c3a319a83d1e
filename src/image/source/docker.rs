//! Source: `docker save` archive, whose `manifest.json` lists each image's config, tags and layer tars.

use super::archive::TarFiles;
use super::{Files, LayerPlan, Place, Plan, Select, Source, Want};
use crate::digest::Digest;
use crate::image::manifest::{self, DOCUMENT_CAP, Descriptor, Document};
use crate::image::{Error, Problem, Result};
use crate::reference::{DEFAULT_TAG, Reference};
use crate::registry::Notice;
use crate::store::read_capped;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;

const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// A `docker save` archive.
pub(super) struct Archive {
    origin: String,
    files: TarFiles,
    items: Vec<Item>,
    select: Select,
    /// Repository that gives an image without names the tag `latest`; with `None` it stays without a name.
    base: Option<Reference>,
}

impl Archive {
    pub(super) fn open(
        origin: &str,
        files: TarFiles,
        select: Select,
        base: Option<Reference>,
    ) -> std::result::Result<Archive, Problem> {
        let bytes = member(&files, "manifest.json")?;
        let items = serde_json::from_slice(&bytes).map_err(|e| Problem::Document(format!("manifest.json: {e}")))?;
        Ok(Archive { origin: origin.into(), files, items, select, base })
    }

    fn chosen(&self, all: bool) -> std::result::Result<Vec<&Item>, Problem> {
        if all {
            return Ok(self.items.iter().collect());
        }
        let parsed = |text: &str| text.parse::<Reference>().ok().map(Reference::or_latest);
        let fits = |item: &&Item| match &self.select {
            Select::Default => true,
            Select::Name(name) => item.repo_tags.iter().flatten().any(|tag| tag == name || parsed(tag) == parsed(name)),
            Select::Digest(digest) => item.config.contains(digest.hex()),
        };
        let fitting: Vec<&Item> = self.items.iter().filter(fits).collect();
        match fitting.len() {
            1 => Ok(fitting),
            n => {
                let tags: Vec<&str> =
                    self.items.iter().flat_map(|i| i.repo_tags.iter().flatten()).map(String::as_str).collect();
                let there = if tags.is_empty() { "images without names".to_owned() } else { tags.join(", ") };
                let what = if n == 0 { "has no such image" } else { "has several images: name one" };
                Err(Problem::Document(format!("{what}; it has: {there}")))
            }
        }
    }

    fn place(&self, member: &str) -> Place {
        // A missing member is an error later, when the layer is read.
        Place::Member(member.to_owned(), self.files.length(member).unwrap_or_default())
    }

    fn plan(&self, item: &Item, want: &Want) -> std::result::Result<Plan, Problem> {
        let bytes = member(&self.files, &item.config)?;
        let digest = Digest::of(&bytes);
        if let Some(claimed) = item.config.strip_prefix("blobs/sha256/")
            && claimed != digest.hex()
        {
            return Err(Problem::Document(format!("the config {} has digest {digest}", item.config)));
        }
        let members = item.layers.as_deref().unwrap_or_default();
        let named = |problem| match problem {
            Problem::Document(why) => Problem::Document(format!("{}: {why}", item.config)),
            other => other,
        };
        let config = manifest::parse_config(&bytes, Some(members.len())).map_err(named)?;
        if want.strict && config.platform.rank(&want.platform).is_none() {
            let why = format!(
                "the image's platform ({}) does not match the specified platform ({})",
                config.platform, want.platform
            );
            return Err(Problem::Document(why));
        }
        let mut names = Vec::new();
        for tag in item.repo_tags.iter().flatten() {
            let name = tag.parse::<Reference>().map_err(|e| Problem::Document(format!("RepoTags `{tag}`: {e}")))?;
            names.push(name.or_latest());
        }
        if names.is_empty() {
            names.extend(self.base.as_ref().and_then(|base| base.by_tag(DEFAULT_TAG).ok()));
        }
        let size = bytes.len() as u64;
        let descriptor =
            Descriptor { media_type: CONFIG_TYPE.into(), digest, size, platform: None, annotations: BTreeMap::new() };
        let layers = config.diff_ids.into_iter().zip(members);
        Ok(Plan {
            names,
            root: None,
            indexes: Vec::new(),
            manifest: None,
            config: Document { descriptor, bytes },
            created: config.created,
            layers: layers.map(|(diff_id, at)| LayerPlan { diff_id, place: self.place(at) }).collect(),
        })
    }
}

fn open_member(files: &TarFiles, name: &str) -> std::result::Result<Box<dyn Read + Send>, Problem> {
    files.read(name)?.ok_or_else(|| Problem::Document(format!("has no member {name}")))
}

fn member(files: &TarFiles, name: &str) -> std::result::Result<Vec<u8>, Problem> {
    let stream = open_member(files, name)?;
    read_capped(stream, DOCUMENT_CAP).map_err(|cause| Problem::Read { what: name.into(), cause })
}

impl Source for Archive {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn images(&self, want: &Want) -> Result<Vec<Plan>> {
        let wrap = |problem| Error::Source { origin: self.origin.clone(), problem: Box::new(problem) };
        let chosen = self.chosen(want.all).map_err(wrap)?;
        chosen.into_iter().map(|item| self.plan(item, want).map_err(wrap)).collect()
    }

    fn layer(&self, layer: &LayerPlan, _waits: Notice) -> std::result::Result<Box<dyn Read + Send>, Problem> {
        match &layer.place {
            Place::Member(name, _) => open_member(&self.files, name),
            Place::Blob(descriptor) => Err(Problem::Document(format!("has no blob {}", descriptor.digest))),
        }
    }
}
