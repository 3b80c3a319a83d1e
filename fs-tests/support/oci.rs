//! A builder of images from a test's layers: as an OCI layout, an oci-archive or a docker-archive.
//!
//! ```ignore
//! Image::new()
//!     .layer(Tar::new().file("a", b"a").finish())
//!     .compressed(Tar::new().whiteout("a").finish(), Compression::ZstdFrames(3))
//!     .write_layout(&env.path("image"));
//! env.ok(["pull", &format!("oci:{}", env.path("image").display())]);
//! ```
//!
//! The image is valid unless a hook breaks it. There are two kinds of hooks: `edit_` hooks change a document before its
//! digest is computed, so that the digests match and the content is wrong; [`Image::damage`] changes the bytes of a
//! blob afterwards, so that its digest does not match.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tar::Tar;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// One gzip member.
    Gzip,
    /// Several gzip members, one after the other.
    GzipMembers(usize),
    /// One zstd frame.
    Zstd,
    /// Several zstd frames, one after the other.
    ZstdFrames(usize),
    /// So many xz streams, one after the other.
    XzStreams(usize),
    /// So many bzip2 streams, one after the other.
    Bzip2Streams(usize),
}

/// Which blob [`Image::damage`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// The manifest.
    Manifest,
    /// The image's configuration.
    Config,
    /// A layer, as stored; 0 is the lowest.
    Layer(usize),
}

type Edit = Box<dyn Fn(&mut Value)>;
type Damage = (Blob, Box<dyn Fn(&mut Vec<u8>)>);

/// An image to be written.
#[derive(Default)]
pub struct Image {
    layers: Vec<(Vec<u8>, Compression)>,
    docker: bool,
    tag: Option<String>,
    edit_config: Vec<Edit>,
    edit_manifest: Vec<Edit>,
    edit_index: Vec<Edit>,
    damage: Vec<Damage>,
}

/// The documents and blobs of an image, in memory.
struct Parts {
    config: Vec<u8>,
    manifest: Vec<u8>,
    index: Vec<u8>,
    layers: Vec<Vec<u8>>,
    /// Each blob under its digest.
    blobs: Vec<(String, Vec<u8>)>,
}

impl Image {
    /// An image without layers, tagged `latest`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a gzip layer on top.
    pub fn layer(self, tar: Vec<u8>) -> Self {
        self.compressed(tar, Compression::Gzip)
    }

    /// Add a layer on top, stored as asked.
    pub fn compressed(mut self, tar: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((tar, compression));
        self
    }

    /// Use Docker's media types (v2, schema 2) instead of OCI's.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Use this tag instead of `latest`.
    pub fn tag(mut self, tag: &str) -> Self {
        self.tag = Some(tag.to_owned());
        self
    }

    /// Change the configuration before it is digested.
    pub fn edit_config(mut self, edit: impl Fn(&mut Value) + 'static) -> Self {
        self.edit_config.push(Box::new(edit));
        self
    }

    /// Change the manifest before it is digested.
    pub fn edit_manifest(mut self, edit: impl Fn(&mut Value) + 'static) -> Self {
        self.edit_manifest.push(Box::new(edit));
        self
    }

    /// Change a layout's `index.json`.
    pub fn edit_index(mut self, edit: impl Fn(&mut Value) + 'static) -> Self {
        self.edit_index.push(Box::new(edit));
        self
    }

    /// Change a blob's bytes after its digest is in every document that refers to it.
    pub fn damage(mut self, blob: Blob, damage: impl Fn(&mut Vec<u8>) + 'static) -> Self {
        self.damage.push((blob, Box::new(damage)));
        self
    }

    /// Write an OCI layout into a directory, which is made. Returns the manifest's digest.
    pub fn write_layout(&self, dir: &Path) -> String {
        let parts = self.parts();
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (name, bytes) in layout_files(&parts) {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        digest(&parts.manifest)
    }

    /// Write an oci-archive: an OCI layout in a tar. Returns the manifest's digest.
    pub fn write_oci_archive(&self, file: &Path) -> String {
        let parts = self.parts();
        let tar = Tar::new().dir("blobs").dir("blobs/sha256");
        let tar = layout_files(&parts).into_iter().fold(tar, |tar, (name, bytes)| tar.file(name, bytes));
        std::fs::write(file, tar.finish()).unwrap();
        digest(&parts.manifest)
    }

    /// Write a docker-archive, as `docker save` does, for these names. Layers are plain tars in it, whatever was asked.
    pub fn write_docker_archive(&self, file: &Path, names: &[&str]) {
        let parts = self.parts();
        let hex = digest(&parts.config).replace("sha256:", "");
        let layer_name = |index: usize| format!("{index:064x}/layer.tar");
        let layers: Vec<_> = (0..self.layers.len()).map(layer_name).collect();
        let mut manifest = json!([{ "Config": format!("{hex}.json"), "RepoTags": names, "Layers": layers }]);
        self.edit_manifest.iter().for_each(|edit| edit(&mut manifest));
        let mut tar = Tar::new();
        for (index, (bytes, _)) in self.layers.iter().enumerate() {
            let bytes = self.damaged(Blob::Layer(index), bytes.clone());
            tar = tar.dir(format!("{index:064x}")).file(layer_name(index), bytes);
        }
        let config = self.damaged(Blob::Config, parts.config);
        let manifest = self.damaged(Blob::Manifest, manifest.to_string().into_bytes());
        let tar = tar.file(format!("{hex}.json"), config).file("manifest.json", manifest);
        std::fs::write(file, tar.finish()).unwrap();
    }

    fn parts(&self) -> Parts {
        let layers: Vec<_> = self.layers.iter().map(|(tar, compression)| compress(tar, *compression)).collect();
        let config = self.config();
        let manifest = self.manifest(&config, &layers);
        let index = self.index(&manifest);
        let mut blobs = vec![
            (digest(&config), self.damaged(Blob::Config, config.clone())),
            (digest(&manifest), self.damaged(Blob::Manifest, manifest.clone())),
        ];
        for (number, layer) in layers.iter().enumerate() {
            blobs.push((digest(layer), self.damaged(Blob::Layer(number), layer.clone())));
        }
        Parts { config, manifest, index, layers, blobs }
    }

    fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self.layers.iter().map(|(tar, _)| digest(tar)).collect();
        let history: Vec<_> = diff_ids.iter().map(|_| json!({ "created_by": "a test" })).collect();
        let mut config = json!({
            "created": "2024-01-02T03:04:05Z",
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        self.edit_config.iter().for_each(|edit| edit(&mut config));
        config.to_string().into_bytes()
    }

    fn manifest(&self, config: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
        let types = self.layers.iter().map(|(_, compression)| self.layer_type(*compression));
        let described: Vec<_> = layers.iter().zip(types).map(|(layer, kind)| descriptor(layer, &kind)).collect();
        let (own, config_type) = match self.docker {
            true => (self.manifest_type(), "application/vnd.docker.container.image.v1+json"),
            false => (self.manifest_type(), "application/vnd.oci.image.config.v1+json"),
        };
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": own,
            "config": descriptor(config, config_type),
            "layers": described,
        });
        self.edit_manifest.iter().for_each(|edit| edit(&mut manifest));
        manifest.to_string().into_bytes()
    }

    fn index(&self, manifest: &[u8]) -> Vec<u8> {
        let mut entry = descriptor(manifest, self.manifest_type());
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": self.tag.as_deref().unwrap_or("latest") });
        let mut index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        self.edit_index.iter().for_each(|edit| edit(&mut index));
        index.to_string().into_bytes()
    }

    fn manifest_type(&self) -> &'static str {
        match self.docker {
            true => "application/vnd.docker.distribution.manifest.v2+json",
            false => "application/vnd.oci.image.manifest.v1+json",
        }
    }

    fn layer_type(&self, compression: Compression) -> String {
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip | Compression::GzipMembers(_) => "gzip",
            Compression::Zstd | Compression::ZstdFrames(_) => "zstd",
            // There is no media type for these compressions.
            Compression::XzStreams(_) | Compression::Bzip2Streams(_) => "gzip",
        };
        match (self.docker, suffix) {
            (true, "") => "application/vnd.docker.image.rootfs.diff.tar".to_owned(),
            (true, suffix) => format!("application/vnd.docker.image.rootfs.diff.tar.{suffix}"),
            (false, "") => "application/vnd.oci.image.layer.v1.tar".to_owned(),
            (false, suffix) => format!("application/vnd.oci.image.layer.v1.tar+{suffix}"),
        }
    }

    fn damaged(&self, blob: Blob, mut bytes: Vec<u8>) -> Vec<u8> {
        self.damage.iter().filter(|(which, _)| *which == blob).for_each(|(_, damage)| damage(&mut bytes));
        bytes
    }
}

fn layout_files(parts: &Parts) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), parts.index.clone()),
    ];
    files.extend(parts.blobs.iter().map(|(digest, bytes)| (blob_path(digest), bytes.clone())));
    files
}

/// The path of a blob in a layout.
pub fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// `sha256:` and the hash.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// A descriptor of these bytes.
pub fn descriptor(bytes: &[u8], media_type: &str) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

/// Compress a layer.
pub fn compress(tar: &[u8], compression: Compression) -> Vec<u8> {
    let pieces = |count: usize| tar.chunks(tar.len().div_ceil(count.max(1)).max(1));
    match compression {
        Compression::None => tar.to_vec(),
        Compression::Gzip => gzip(tar),
        Compression::GzipMembers(count) => pieces(count).flat_map(gzip).collect(),
        Compression::Zstd => zstd::encode_all(tar, 3).unwrap(),
        Compression::ZstdFrames(count) => pieces(count).flat_map(|piece| zstd::encode_all(piece, 3).unwrap()).collect(),
        Compression::XzStreams(count) => {
            pieces(count).flat_map(|piece| liblzma::encode_all(piece, 1).unwrap()).collect()
        }
        Compression::Bzip2Streams(count) => pieces(count).flat_map(bzip2).collect(),
    }
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// skopeo checks every digest and diff ID of what it copies.
    #[test]
    fn skopeo_accepts_the_written_images() {
        let dir = tempfile::tempdir().unwrap();
        let kinds = [Compression::None, Compression::Gzip, Compression::GzipMembers(3), Compression::Zstd];
        let tar = |n: usize| Tar::new().file(format!("file-{n}"), vec![n as u8; 5000]).finish();
        let build = || kinds.iter().enumerate().fold(Image::new(), |image, (n, kind)| image.compressed(tar(n), *kind));
        build().write_layout(&dir.path().join("layout"));
        build().write_oci_archive(&dir.path().join("oci.tar"));
        build().docker().write_docker_archive(&dir.path().join("docker.tar"), &["name:tag"]);
        for source in ["oci:layout:latest", "oci-archive:oci.tar", "docker-archive:docker.tar"] {
            let mut command = Command::new("skopeo");
            command.current_dir(dir.path()).args([
                "--insecure-policy",
                "copy",
                "-q",
                source,
                &format!("dir:{source}.out"),
            ]);
            assert!(command.status().unwrap().success(), "{source}");
        }
    }
}
