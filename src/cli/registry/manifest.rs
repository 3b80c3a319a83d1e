//! `manifest`: dispatch; and `manifest inspect`: show a manifest list of the store, or a manifest or image index of a
//! registry without pulling the image, in Docker's format.

use crate::cli::output::stdout as output;
use crate::cli::registry::manifest_list;
use crate::cli::registry::options::RegistryArgs;
use crate::cli::{Exit, Global, usage_errors};
use crate::digest::{Digest, Hasher};
use crate::image::manifest::{self, DOCUMENT_CAP, Family};
use crate::image::manifest_list::{descriptor_of, family_of, index_of, position};
use crate::reference::Reference;
use crate::registry::{self, Kind, Manifest, Repository, Settings};
use crate::store::Store;
use crate::store::lists::{self, Entry, Location, ManifestList};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::io::Read;

/// Docker's indentation of a single image manifest, and of all output with -v.
const TAB: &str = "\t";
/// Docker's indentation for an image index.
const OF_A_LIST: &str = "   ";
/// Fields of a platform in Docker's order, and whether each is always printed.
const PLATFORM: [(&str, bool); 5] =
    [("architecture", true), ("os", true), ("os.version", false), ("os.features", false), ("variant", false)];

#[derive(Subcommand)]
pub(in crate::cli) enum ManifestCommand {
    /// Add images to a manifest list
    Add(manifest_list::AddArgs),
    /// Change the platform or the annotations of an image in a manifest list
    Annotate(manifest_list::AnnotateArgs),
    /// Create a manifest list of images for several platforms
    Create(manifest_list::CreateArgs),
    /// Display an image manifest, or manifest list
    Inspect(InspectArgs),
    /// Push a manifest list and its images to a registry
    Push(manifest_list::ListPushArgs),
    /// Remove images from a manifest list
    Remove(manifest_list::RemoveArgs),
    /// Remove manifest lists from the store
    Rm(manifest_list::RmArgs),
}

pub(in crate::cli) fn manifest(global: &Global, command: &ManifestCommand) -> anyhow::Result<()> {
    match command {
        ManifestCommand::Add(a) => manifest_list::add(global, a),
        ManifestCommand::Annotate(a) => manifest_list::annotate(global, a),
        ManifestCommand::Create(a) => manifest_list::create(global, a),
        ManifestCommand::Inspect(a) => inspect(global, a),
        ManifestCommand::Push(a) => manifest_list::push(global, a),
        ManifestCommand::Remove(a) => manifest_list::remove(global, a),
        ManifestCommand::Rm(a) => manifest_list::rm(global, a),
    }
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest inspect [OPTIONS] [LIST] MANIFEST")]
#[command(after_help = "\
A manifest list of the store is shown first, else what the registry has. With LIST,
the manifest of one of its images. An image that was neither pulled nor pushed has no
manifest yet: in the list its digest and size are omitted.

Examples:
  plyfs manifest inspect golang | grep 'architecture\\|os'
  plyfs manifest inspect -v registry.example/team/app:1
  plyfs manifest inspect --insecure 192.0.2.1:5000/app@sha256:...")]
pub(in crate::cli) struct InspectArgs {
    /// Allow plain http and unverified certificates
    #[arg(long)]
    insecure: bool,
    /// Show the digest, size, platform and manifest of each image
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// [HOST[:PORT]/]REPO[:TAG][@DIGEST], the second one in a manifest list of the store
    #[arg(value_names = ["LIST", "MANIFEST"], num_args = 0..)]
    args: Vec<String>,
}

/// A document of a registry.
struct Document {
    name: Reference,
    digest: Digest,
    /// Text, which is valid JSON.
    text: String,
    fields: Map<String, Value>,
}

fn inspect(global: &Global, a: &InspectArgs) -> anyhow::Result<()> {
    let (text, further) = usage_errors::one_or_two("manifest inspect", &a.args)?;
    let name = text.parse::<Reference>()?.or_latest();
    let settings = manifest_list::settings(&a.registry, a.insecure);
    if let Some((store, list)) = local_list(global, &name, further.is_some())? {
        return match further {
            Some(image) => inspect_entry(&store, &list, image, &settings),
            None if a.verbose => verbose_list(&store, &list, &settings),
            None => output::line(indented(&index_of(&list, family_of(&list)).to_string(), OF_A_LIST)),
        };
    }
    let repository = Repository::new(&name, &settings);
    let document = fetch(&repository, &name)?;
    let list = document.fields.get("manifests").and_then(Value::as_array);
    match (a.verbose, list) {
        (false, list) => {
            output::line(indented(&document.text, if list.is_some() { OF_A_LIST } else { TAB }))?;
        }
        (true, None) => {
            let platform = platform_of_config(&repository, &document)?;
            output::line(indented(&described(&document, &platform), TAB))?;
        }
        (true, Some(list)) => {
            let mut all = Vec::new();
            for entry in list {
                let digest = entry.get("digest").and_then(Value::as_str).unwrap_or_default();
                let digest: Digest = digest.parse().map_err(|e| anyhow::anyhow!("{name}: the list is damaged: {e}"))?;
                let image = fetch(&repository, &within(&name, &digest)?)?;
                all.push(described(&image, &platform(&entry["platform"])));
            }
            output::line(indented(&format!("[{}]", all.join(",")), TAB))?;
        }
    }
    Ok(())
}

/// Returns the list of that name in the store. If none must be there, a store that cannot be read is no error: the
/// name is then looked up in its registry.
fn local_list(global: &Global, name: &Reference, is_needed: bool) -> anyhow::Result<Option<(Store, ManifestList)>> {
    if name.digest().is_some() && !is_needed {
        return Ok(None);
    }
    let store = match global.existing_store() {
        Err(error) if !is_needed => {
            tracing::debug!("{error}");
            None
        }
        store => store?,
    };
    let list = store.as_ref().map(|store| lists::find(store, name)).transpose()?.flatten();
    match store.zip(list) {
        None if is_needed => Err(Exit::Text(1, format!("No such manifest: {name}")).into()),
        found => Ok(found),
    }
}

/// Prints the manifest of an image of a list.
fn inspect_entry(store: &Store, list: &ManifestList, image: &str, settings: &Settings) -> anyhow::Result<()> {
    let entry = &list.entries[position(store, list, image)?];
    match document_of(store, list, entry, settings)? {
        Some(document) => output::line(indented(&document.text, TAB)),
        None => anyhow::bail!("{} has no manifest yet: it is made by a push of the list", entry.title()),
    }
}

/// Prints a list as -v does.
fn verbose_list(store: &Store, list: &ManifestList, settings: &Settings) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for entry in &list.entries {
        let shown = platform(&json!(entry.platform));
        all.push(match document_of(store, list, entry, settings)? {
            Some(document) => described(&document, &shown),
            None => json!({ "Ref": entry.reference, "Descriptor": descriptor_of(entry) }).to_string(),
        });
    }
    output::line(indented(&format!("[{}]", all.join(",")), TAB))
}

/// Returns the manifest of an entry of a list: from the store, or from its registry.
fn document_of(
    store: &Store,
    list: &ManifestList,
    entry: &Entry,
    settings: &Settings,
) -> anyhow::Result<Option<Document>> {
    match (&entry.location, &entry.manifest) {
        (Location::Registry(name), _) => fetch(&Repository::new(name, settings), name).map(Some),
        (Location::Local(image), Some(record)) if store.blob_path(&record.digest).exists() => {
            let text = String::from_utf8(store.blob(&record.digest, DOCUMENT_CAP)?)?;
            let name = image.tags.first().unwrap_or(&list.name).by_digest(&record.digest);
            Ok(Some(Document { name, digest: record.digest.clone(), fields: serde_json::from_str(&text)?, text }))
        }
        (Location::Local(_), _) => Ok(None),
    }
}

/// Fetches the document under a tag or digest.
fn fetch(repository: &Repository, name: &Reference) -> anyhow::Result<Document> {
    let asked = match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or_default().to_owned(),
    };
    let found = repository.manifest(&asked, &manifest::accept(), DOCUMENT_CAP);
    let Manifest { digest, bytes, .. } = found.map_err(|error| missing(name, error))?;
    let refused = |why: String| anyhow::anyhow!("{name}: {why}");
    let text = String::from_utf8(bytes).map_err(|e| refused(format!("its manifest is not UTF-8: {e}")))?;
    let fields: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| refused(format!("its manifest is not valid JSON: {e}")))?;
    if fields.contains_key("manifests") && (fields.contains_key("layers") || fields.contains_key("config")) {
        return Err(refused("its manifest has both `manifests` and `layers`: refused as ambiguous".into()));
    }
    if fields.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        return Err(refused("it is a Docker schema 1 manifest, which is obsolete and not supported".into()));
    }
    Ok(Document { name: name.clone(), digest, text, fields })
}

/// Makes the error for a missing manifest: Docker's text, then the registry's.
fn missing(name: &Reference, error: registry::Error) -> anyhow::Error {
    match error.kind {
        Kind::Missing => Exit::Text(1, format!("no such manifest: {name}: {}", error.why)).into(),
        _ => error.into(),
    }
}

/// Formats an image as `-v` shows it, as JSON.
fn described(document: &Document, platform: &Value) -> String {
    let (text, fields) = (&document.text, &document.fields);
    let family = manifest::family_of(text.as_bytes());
    let own = fields.get("mediaType").and_then(Value::as_str);
    let descriptor = json!({
        "mediaType": own.or(family.map(Family::manifest_type)).unwrap_or_default(),
        "digest": document.digest,
        "size": text.len(),
        "platform": platform,
    });
    let (name, raw) = (json!(document.name.to_string()), json!(BASE64_STANDARD.encode(text)));
    // The manifest is inserted verbatim, so that numbers and the order of fields do not change.
    let parsed = match family {
        Some(Family::Docker) => format!(",\"SchemaV2Manifest\":{text}"),
        Some(Family::Oci) => format!(",\"OCIManifest\":{text}"),
        None => String::new(),
    };
    for_html(&format!("{{\"Ref\":{name},\"Descriptor\":{descriptor},\"Raw\":{raw}{parsed}}}"))
}

/// Returns the reference of an image of an index. As in Docker, the tag stays beside the digest.
fn within(list: &Reference, digest: &Digest) -> anyhow::Result<Reference> {
    let tag = list.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    Ok(format!("{}{tag}@{digest}", list.name()).parse()?)
}

/// Returns the platform in the config of a single image.
fn platform_of_config(repository: &Repository, document: &Document) -> anyhow::Result<Value> {
    let config = document.fields.get("config").unwrap_or(&Value::Null);
    let digest = config.get("digest").and_then(Value::as_str).and_then(|text| text.parse::<Digest>().ok());
    let size = config.get("size").and_then(Value::as_u64).filter(|size| *size <= DOCUMENT_CAP);
    let (Some(digest), Some(size)) = (digest, size) else {
        anyhow::bail!("{}: its manifest has no config of at most {DOCUMENT_CAP} bytes", document.name);
    };
    let mut bytes = Vec::new();
    repository.blob(&digest, size, 0)?.take(size + 1).read_to_end(&mut bytes)?;
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&bytes);
    if hasher.finish() != digest {
        anyhow::bail!("{}: image config verification failed for digest {digest}", document.name);
    }
    // The config of an artifact may have any format.
    Ok(platform(&serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Formats a platform as Docker prints it.
fn platform(fields: &Value) -> Value {
    let known = PLATFORM.iter().filter_map(|(name, always)| {
        let empty = always.then(|| json!(""));
        let value = fields.get(*name).filter(|value| value.is_string() || value.is_array()).cloned().or(empty);
        Some(((*name).to_owned(), value?))
    });
    Value::Object(known.collect())
}

/// Reindents JSON as Go does, without changing any token.
fn indented(json: &str, indent: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped, mut opened) = (0, false, false, false);
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    };
    for c in json.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(c, '}' | ']');
        // Empty objects and arrays stay on one line.
        if opened && !closes {
            new_line(&mut out, depth);
        }
        if closes {
            depth = depth.saturating_sub(1);
            if !opened {
                new_line(&mut out, depth);
            }
        }
        out.push(c);
        opened = matches!(c, '{' | '[');
        match c {
            '{' | '[' => depth += 1,
            ',' => new_line(&mut out, depth),
            ':' => out.push(' '),
            '"' => in_string = true,
            _ => {}
        }
    }
    out
}

/// Escapes HTML characters as Go's JSON encoder does: they occur in strings only.
fn for_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indented_as_go_does() {
        let json = r#" {"a" :[ ], "b":{ },"c":[1.50,{"d":"x: {\"\\" }],"e" : null} "#;
        let want = "{\n\t\"a\": [],\n\t\"b\": {},\n\t\"c\": [\n\t\t1.50,\n\t\t{\n\t\t\t\"d\": \"x: {\\\"\\\\\"\n\t\t}\n\t],\n\t\"e\": null\n}";
        assert_eq!(indented(json, TAB), want);
        assert_eq!((indented("[]", TAB), indented(" \"a b\" ", TAB)), ("[]".into(), "\"a b\"".into()));
        assert_eq!(for_html("\"<a>&\u{2028}\""), r#""\u003ca\u003e\u0026\u2028""#);
    }

    #[test]
    fn platforms() {
        let all = json!({"variant": "v8", "os.version": "1", "os": "linux", "architecture": "arm64", "x": 1});
        assert_eq!(
            platform(&all).to_string(),
            r#"{"architecture":"arm64","os":"linux","os.version":"1","variant":"v8"}"#
        );
        assert_eq!(platform(&Value::Null).to_string(), r#"{"architecture":"","os":""}"#);
    }
}
