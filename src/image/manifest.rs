//! Manifests, image indexes and configs: strict parsing of untrusted documents.
//!
//! A document's type is that of its descriptor; its own `mediaType` must agree, and fields of another type are errors,
//! so that no two readers can see two different images in the same bytes (CVE-2021-41190).

use super::Problem;
use super::platform::Platform;
use crate::digest::Digest;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Largest manifest, index or config, in bytes.
pub const DOCUMENT_CAP: u64 = 4 << 20;
/// Maximum number of layers of an image.
pub const LAYERS_CAP: usize = 4096;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Media type recorded for a layer that was a plain tar without a descriptor.
pub const PLAIN_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const LAYERS: [&str; 11] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    PLAIN_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// `Accept` header for a registry: all types that [`parse`] supports, then schema 1, so that it is refused by name.
pub fn accept() -> String {
    let wanted = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
    format!("{wanted}, {};q=0.1", SCHEMA_1[1])
}

/// Whether the media type is one of a manifest or index, supported or not.
pub fn is_manifest(media_type: &str) -> bool {
    [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type) || SCHEMA_1.contains(&media_type)
}

/// Family of media types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Open Container Initiative.
    Oci,
    /// Docker, which has no type for zstd.
    Docker,
}

impl Family {
    /// Media type of an image index.
    pub fn index_type(self) -> &'static str {
        match self {
            Family::Oci => OCI_INDEX,
            Family::Docker => DOCKER_LIST,
        }
    }

    /// Media type of an image's manifest.
    pub fn manifest_type(self) -> &'static str {
        match self {
            Family::Oci => OCI_MANIFEST,
            Family::Docker => DOCKER_MANIFEST,
        }
    }

    /// Media type of an image's config.
    pub fn config_type(self) -> &'static str {
        match self {
            Family::Oci => CONFIGS[0],
            Family::Docker => CONFIGS[1],
        }
    }
}

/// Returns the family of an image's manifest, by its own media type or else by its config's.
pub fn family_of(bytes: &[u8]) -> Option<Family> {
    let fields = object(bytes, "manifest").ok()?;
    let own = fields.get("mediaType").and_then(Value::as_str);
    let config = fields.get("config").and_then(|c| c.get("mediaType")).and_then(Value::as_str);
    match (own, config) {
        (Some(DOCKER_MANIFEST), _) => Some(Family::Docker),
        (Some(OCI_MANIFEST) | None, Some(_)) => Some(Family::Oci),
        _ => None,
    }
}

/// Returns the layers' descriptors of an image's manifest, parsed and as JSON, bottom first.
pub fn layers_of(bytes: &[u8]) -> Option<Vec<(Descriptor, Value)>> {
    let mut fields = object(bytes, "manifest").ok()?;
    let Some(Value::Array(layers)) = fields.remove("layers") else { return None };
    layers.into_iter().map(|raw| Some((Descriptor::deserialize(&raw).ok()?, raw))).collect()
}

/// Returns the compression of a layer's media type: `gzip`, `zstd` or, for a plain tar, the empty string.
pub fn compression_of(layer_type: &str) -> Option<&'static str> {
    let known = LAYERS.iter().find(|known| **known == layer_type)?;
    Some(["gzip", "zstd"].into_iter().find(|how| known.ends_with(how)).unwrap_or_default())
}

/// Whether layers of that media type are non-distributable.
pub fn is_foreign(layer_type: &str) -> bool {
    layer_type.contains(".nondistributable.") || layer_type.contains(".foreign.")
}

/// Returns the media type of a layer with that compression.
pub fn layer_type(family: Family, compression: &str) -> &'static str {
    match (family, compression) {
        (Family::Oci, "gzip") => LAYERS[1],
        (Family::Oci, "zstd") => LAYERS[2],
        (Family::Oci, _) => LAYERS[0],
        (Family::Docker, "gzip") => LAYERS[7],
        (Family::Docker, "zstd") => LAYERS[8],
        (Family::Docker, _) => PLAIN_LAYER,
    }
}

/// Returns the `mediaType` field of a manifest or index; empty if it has none.
pub fn own_media_type(bytes: &[u8]) -> Option<String> {
    match object(bytes, "manifest").ok()?.remove("mediaType") {
        None => Some(String::new()),
        Some(Value::String(text)) => Some(text),
        Some(_) => None,
    }
}

/// A descriptor: media type, digest and size of a blob.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    #[serde(default)]
    pub media_type: String,
    /// Digest.
    pub digest: Digest,
    /// Size, in bytes.
    pub size: u64,
    /// Platform, in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Annotations; in an index they hold names.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A verified document with its descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// The descriptor.
    pub descriptor: Descriptor,
    /// The exact bytes.
    pub bytes: Vec<u8>,
}

/// A parsed manifest or index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// An image index: descriptors to choose from.
    Index(Vec<Descriptor>),
    /// An image manifest.
    Manifest {
        /// Descriptor of the config.
        config: Descriptor,
        /// Descriptors of the layers, bottom first.
        layers: Vec<Descriptor>,
    },
}

/// The fields of an image config that plyfs uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// DiffIDs of the layers, bottom first.
    pub diff_ids: Vec<Digest>,
    /// Platform.
    pub platform: Platform,
    /// Build time, RFC 3339.
    pub created: Option<String>,
}

/// Parses a manifest or an index.
pub fn parse(document: &Document) -> Result<Parsed, Problem> {
    let claimed = document.descriptor.media_type.as_str();
    let fields = object(&document.bytes, "manifest")?;
    let inner = match fields.get("mediaType") {
        None => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(bad("the manifest's mediaType is not a string")),
    };
    let is_schema_1 = |t: &str| SCHEMA_1.contains(&t);
    if is_schema_1(claimed) || inner.is_some_and(is_schema_1) || fields.get("schemaVersion") == Some(&Value::from(1)) {
        return Err(bad("is a Docker schema 1 manifest, which is obsolete and not supported"));
    }
    let has = |name: &str| fields.contains_key(name);
    if has("manifests") && (has("layers") || has("config")) {
        return Err(bad("has both `manifests` and `layers` or `config`: refused as ambiguous"));
    }
    if has("fsLayers") || has("history") {
        return Err(bad("has fields of a schema 1 manifest: refused as ambiguous"));
    }
    if let (false, Some(inner)) = (claimed.is_empty(), inner)
        && inner != claimed
    {
        return Err(bad(format!("has mediaType `{inner}`, its descriptor has `{claimed}`")));
    }
    if fields.get("schemaVersion") != Some(&Value::from(2)) {
        return Err(bad("has no schemaVersion 2"));
    }
    let kind = match (claimed, inner) {
        ("", None) if has("manifests") => OCI_INDEX,
        ("", None) => OCI_MANIFEST,
        ("", Some(inner)) => inner,
        (claimed, _) => claimed,
    };
    match kind {
        OCI_INDEX | DOCKER_LIST => Ok(Parsed::Index(typed(&fields, "manifests")?)),
        OCI_MANIFEST | DOCKER_MANIFEST => image(&fields),
        other => Err(bad(format!("has the unknown media type `{other}`"))),
    }
}

/// Checks the fields of an image's manifest.
fn image(fields: &Map<String, Value>) -> Result<Parsed, Problem> {
    let config: Descriptor = typed(fields, "config")?;
    let layers: Vec<Descriptor> = typed(fields, "layers")?;
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let kind = match fields.get("artifactType").and_then(Value::as_str) {
            Some(kind) if !kind.is_empty() => kind,
            _ => &config.media_type,
        };
        return Err(bad(format!("is an artifact of type `{kind}`, not a container image")));
    }
    if layers.len() > LAYERS_CAP {
        return Err(bad(format!("has {} layers, more than {LAYERS_CAP}", layers.len())));
    }
    for (at, layer) in layers.iter().enumerate() {
        let kind = layer.media_type.as_str();
        if kind.ends_with("+encrypted") {
            return Err(bad(format!("layer {} is encrypted (`{kind}`), which is not supported", at + 1)));
        }
        if !LAYERS.contains(&kind) {
            return Err(bad(format!("layer {} has the unknown media type `{kind}`", at + 1)));
        }
    }
    Ok(Parsed::Manifest { config, layers })
}

/// Parses a config; it must list as many layers as the manifest, if there is one.
pub fn parse_config(bytes: &[u8], layers: Option<usize>) -> Result<Config, Problem> {
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(rename = "type", default)]
        kind: String,
        #[serde(default, deserialize_with = "null_is_empty")]
        diff_ids: Vec<Digest>,
    }
    let fields = object(bytes, "config")?;
    let rootfs: RootFs = typed(&fields, "rootfs")?;
    if rootfs.kind != "layers" {
        return Err(bad(format!("the config's rootfs has type `{}`, wanted `layers`", rootfs.kind)));
    }
    let count = rootfs.diff_ids.len();
    if layers.is_some_and(|layers| layers != count) {
        let layers = layers.unwrap_or_default();
        return Err(bad(format!("the config lists {count} layers, the manifest {layers}")));
    }
    if count > LAYERS_CAP {
        return Err(bad(format!("the config lists {count} layers, more than {LAYERS_CAP}")));
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Config {
        diff_ids: rootfs.diff_ids,
        platform: Platform {
            os: text("os").unwrap_or_default(),
            architecture: text("architecture").unwrap_or_default(),
            variant: text("variant"),
        },
        created: text("created").filter(|c| c.parse::<jiff::Timestamp>().is_ok()),
    })
}

/// Returns the descriptor in an index that suits the platform best.
pub fn choose<'a>(list: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, Problem> {
    let ranked = list.iter().filter_map(|d| Some((d.platform.as_ref()?.rank(platform)?, d)));
    // `min_by_key` returns the first of equals, as the specification requires.
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    if let Some(unmarked) = list.iter().find(|d| d.platform.is_none()) {
        return Ok(unmarked);
    }
    let there: Vec<String> = list.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_string).collect();
    Err(bad(format!("no matching manifest for {platform} in the manifest list entries ({})", there.join(", "))))
}

fn object(bytes: &[u8], what: &str) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(bad(format!("the {what} is not a JSON object"))),
        Err(e) => Err(bad(format!("the {what} is not valid JSON: {e}"))),
    }
}

fn typed<T: serde::de::DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Result<T, Problem> {
    let value = fields.get(name).ok_or_else(|| bad(format!("has no `{name}`")))?;
    T::deserialize(value).map_err(|e| bad(format!("bad `{name}`: {e}")))
}

fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn bad(why: impl Into<String>) -> Problem {
    Problem::Document(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse_as(media_type: &str, value: &Value) -> Result<Parsed, String> {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = Digest::of(&bytes);
        let size = bytes.len() as u64;
        let descriptor = Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::default(),
        };
        parse(&Document { descriptor, bytes }).map_err(|e| e.to_string())
    }

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"x").to_string(), "size": 1})
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 2, "config": descriptor(CONFIGS[0]), "layers": [descriptor(LAYERS[1])]})
    }

    #[track_caller]
    fn refused(media_type: &str, value: &Value, why: &str) {
        let error = parse_as(media_type, value).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn good_ones_parse() {
        assert!(matches!(parse_as(OCI_MANIFEST, &manifest()), Ok(Parsed::Manifest { .. })));
        let index = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []});
        assert_eq!(parse_as(DOCKER_LIST, &index), Ok(Parsed::Index(vec![])));
    }

    #[test]
    fn confusion_is_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        refused(OCI_MANIFEST, &both, "both");
        refused(OCI_INDEX, &both, "both");
        let mut other = manifest();
        other["mediaType"] = json!(OCI_INDEX);
        refused(OCI_MANIFEST, &other, "its descriptor has");
        refused(OCI_INDEX, &manifest(), "has no `manifests`");
        refused("text/plain", &manifest(), "unknown media type `text/plain`");
        let mut old = manifest();
        old["schemaVersion"] = json!(1);
        refused(OCI_MANIFEST, &old, "schema 1");
        refused(SCHEMA_1[1], &manifest(), "schema 1");
        let mut artifact = manifest();
        artifact["config"] = descriptor("application/vnd.oci.empty.v1+json");
        refused(OCI_MANIFEST, &artifact, "is an artifact of type");
        let mut layer = manifest();
        layer["layers"][0] = descriptor("application/x-rar");
        refused(OCI_MANIFEST, &layer, "layer 1 has the unknown media type `application/x-rar`");
        layer["layers"][0] = descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        refused(OCI_MANIFEST, &layer, "encrypted");
        let mut path = manifest();
        path["layers"][0]["digest"] = json!("sha256:../../../etc/passwd");
        refused(OCI_MANIFEST, &path, "is not a digest");
        let mut many = manifest();
        many["layers"] = json!(vec![descriptor(LAYERS[0]); LAYERS_CAP + 1]);
        refused(OCI_MANIFEST, &many, "more than 4096");
    }

    #[test]
    fn configs_count_their_layers() {
        let config = json!({"rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1")]}, "created": "nonsense"});
        let bytes = serde_json::to_vec(&config).unwrap();
        assert_eq!(parse_config(&bytes, Some(1)).unwrap().created, None);
        let error = parse_config(&bytes, Some(2)).unwrap_err().to_string();
        assert_eq!(error, "the config lists 1 layers, the manifest 2");
        assert!(parse_config(b"[]", None).is_err());
        assert!(parse_config(b"{}", None).unwrap_err().to_string().contains("rootfs"));
    }

    #[test]
    fn the_best_platform_wins() {
        let of = |arch: &str, size| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(b""),
            size,
            platform: Some(format!("linux/{arch}").parse().unwrap()),
            annotations: BTreeMap::default(),
        };
        let list = [of("arm/v5", 1), of("arm/v7", 2), of("arm/v6", 3), of("amd64", 4)];
        let pick = |p: &str| choose(&list, &format!("linux/{p}").parse().unwrap()).map(|d| d.size);
        assert_eq!(pick("arm/v7").unwrap(), 2);
        assert_eq!(pick("arm/v6").unwrap(), 3);
        assert_eq!(pick("amd64").unwrap(), 4);
        assert!(pick("s390x").unwrap_err().to_string().contains("no matching manifest for linux/s390x"));
    }
}
