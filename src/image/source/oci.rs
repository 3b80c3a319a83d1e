//! Image planning: resolves a descriptor to a [`Plan`], for any source that serves blobs by digest.

use super::{LayerPlan, Place, Plan, Want};
use crate::digest::{Digest, Verifier};
use crate::image::Problem;
use crate::image::manifest::{self, DOCUMENT_CAP, Descriptor, Document, Parsed};
use crate::store::read_capped;
use std::io::Read;

/// Maximum depth of nested indexes.
const DEPTH: usize = 4;

/// A source of blobs by digest.
pub trait Blobs: Sync {
    /// Opens the blob's stream, unverified.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, Problem>;
}

/// Reads a small blob into memory and verifies it.
pub fn document(blobs: &dyn Blobs, descriptor: &Descriptor) -> Result<Document, Problem> {
    let digest: &Digest = &descriptor.digest;
    if descriptor.size > DOCUMENT_CAP {
        let why = format!("document {digest} has {} bytes, more than {DOCUMENT_CAP}", descriptor.size);
        return Err(Problem::Document(why));
    }
    let stream = Verifier::new(blobs.blob(descriptor)?, digest, descriptor.size);
    let bytes =
        read_capped(stream, DOCUMENT_CAP).map_err(|e| Problem::read(format!("blob {digest}"), Some(digest), e))?;
    Ok(Document { descriptor: descriptor.clone(), bytes })
}

/// Follows a descriptor through indexes to the image for the platform; verifies every document.
pub fn plan(blobs: &dyn Blobs, root: &Descriptor, want: &Want) -> Result<Plan, Problem> {
    let mut indexes = Vec::new();
    let mut at = root.clone();
    loop {
        let named = |problem| match problem {
            Problem::Document(why) => Problem::Document(format!("manifest {}: {why}", at.digest)),
            other => other,
        };
        let doc = document(blobs, &at)?;
        match manifest::parse(&doc).map_err(named)? {
            Parsed::Index(_) if indexes.len() == DEPTH => {
                return Err(Problem::Document(format!("manifest {}: indexes nest deeper than {DEPTH}", at.digest)));
            }
            Parsed::Index(list) => {
                let next = manifest::choose(&list, &want.platform).map_err(named)?.clone();
                indexes.push(doc);
                at = next;
            }
            Parsed::Manifest { config, layers } => {
                let config = document(blobs, &config)?;
                let parsed = manifest::parse_config(&config.bytes, Some(layers.len())).map_err(named)?;
                if want.strict && parsed.platform.rank(&want.platform).is_none() {
                    let why = format!(
                        "the image's platform ({}) does not match the specified platform ({})",
                        parsed.platform, want.platform
                    );
                    return Err(Problem::Document(why));
                }
                let layers = parsed.diff_ids.into_iter().zip(layers);
                return Ok(Plan {
                    names: Vec::new(),
                    root: Some(root.digest.clone()),
                    indexes,
                    manifest: Some(doc),
                    config,
                    created: parsed.created,
                    layers: layers.map(|(diff_id, blob)| LayerPlan { diff_id, place: Place::Blob(blob) }).collect(),
                });
            }
        }
    }
}
