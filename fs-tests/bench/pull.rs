//! `scripts/bench pull`: pulls from Debian's docker-registry on this machine, by plyfs until the image can be mounted,
//! by podman, and by skopeo with umoci; and inflating and hashing alone, in as many threads as plyfs uses.
//!
//! Every round runs all of them in turn, each into an empty store. Slowness is never a failure.

// The modules shared with the tests panic as they do; their unit tests run with the tests only.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(unused_imports))]

#[expect(dead_code, reason = "what mounting needs")]
mod engine;
#[path = "../support/env.rs"]
#[expect(dead_code, reason = "what tests need")]
mod env;
mod floor;
mod load;
#[path = "../support/oci.rs"]
#[expect(dead_code, reason = "what tests need")]
mod oci;
#[expect(dead_code, reason = "what mounting needs")]
mod options;
#[path = "../support/registry.rs"]
#[expect(dead_code, reason = "what tests need")]
mod registry;
#[expect(dead_code, reason = "what reading needs")]
mod report;
#[path = "../support/tar.rs"]
#[expect(dead_code, reason = "what tests need")]
mod tar;
mod watched;
mod whole;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{milliseconds, run};
use flate2::Compression;
use flate2::write::GzEncoder;
use options::{Options, cache};
use registry::DockerRegistry;
use report::{Goal, Samples, Unit};
use serde_json::Value;
use watched::ResourceUsage;
use whole::{copy_data_layers, put, read_json, text};

type Outcome<T> = Result<T, String>;

const PLYFS: &str = "plyfs";
const FLOOR: &str = "inflate+hash";
const ENGINES: [&str; 4] = [PLYFS, "podman", "skopeo+umoci", FLOOR];
/// Size of the huge layer.
const HUGE: u64 = 3 << 30;
const HUGE_BLOCK: u64 = 1 << 20;

/// Goals of plyfs.
const GOALS: &[(&str, Goal)] = &[
    ("pull", Goal::Ratio("podman", 0.5)),
    ("pull", Goal::Ratio("skopeo+umoci", 0.5)),
    ("pull", Goal::Ratio(FLOOR, 1.25)),
    ("pull again", Goal::Below(50.0)),
    ("rmi", Goal::Below(50.0)),
    ("pull, peak", Goal::Below(100.0)),
    ("3 GiB layer, peak", Goal::Below(100.0)),
];

fn main() -> std::process::ExitCode {
    options::run(&[], |options| bench(options).map(|()| true))
}

/// The stores and the registry of the benchmark, all on one disk.
struct Setting {
    plyfs: PathBuf,
    scratch: PathBuf,
    /// Host and port of the registry.
    host: String,
    /// The blobs of the image's layers.
    blobs: Vec<PathBuf>,
}

fn bench(options: &Options) -> Outcome<()> {
    let cache = cache()?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&cache).map_err(|e| e.to_string())?;
    eprintln!("filling the registry");
    let registry = DockerRegistry::start(None, None);
    let layout = scratch.path().join("whole");
    let blobs =
        copy_data_layers(&cache.join("debian/oci"), &layout).map_err(|e| format!("{}: {e}", layout.display()))?;
    registry.fill(&format!("oci:{}", layout.display()), "debian:12", &["--preserve-digests"]);
    let huge = scratch.path().join("huge");
    huge_image(&huge).map_err(|e| format!("{}: {e}", huge.display()))?;
    registry.fill(&format!("oci:{}:latest", huge.display()), "huge:1", &[]);
    let setting = Setting {
        plyfs: options.plyfs.clone(),
        scratch: scratch.path().to_owned(),
        host: registry.host.clone(),
        blobs,
    };
    let samples = Samples::of_rounds(options.rounds, &options.loads, |samples| {
        setting.plyfs(samples)?;
        setting.podman(samples)?;
        setting.skopeo_and_umoci(samples)?;
        rustix::fs::sync();
        let start = Instant::now();
        floor::inflate_and_hash(&setting.blobs).map_err(|e| format!("{FLOOR}: {e}"))?;
        samples.add("pull", Unit::Milliseconds, FLOOR, milliseconds(start.elapsed()));
        Ok(())
    })?;
    finish(&samples, &setting.podman_driver()?)
}

fn finish(samples: &Samples, driver: &str) -> Outcome<()> {
    samples.print(&ENGINES.map(str::to_owned), FLOOR);
    println!(
        "podman's storage driver: {driver}. peak, anon: VmHWM, and the most of it that is no file's, of the process."
    );
    samples.print_goals(PLYFS, GOALS);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-pull.json");
    let result = serde_json::json!({ "rows": samples.json(), "podman driver": driver });
    fs::write(&target, format!("{result:#}\n")).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}

impl Setting {
    /// Runs one command after syncing earlier writes. Returns its duration and memory.
    fn timed(&self, words: &[&str]) -> Outcome<ResourceUsage> {
        rustix::fs::sync();
        watched::run(words)
    }

    fn path(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }

    /// Removes a directory, so that no run is measured with the leftovers of another.
    fn clear(&self, name: &str) -> Outcome<()> {
        let dir = self.path(name);
        if Path::new(&dir).exists() {
            fs::remove_dir_all(&dir).map_err(|e| format!("{dir}: {e}"))?;
        }
        Ok(())
    }

    fn plyfs(&self, samples: &mut Samples) -> Outcome<()> {
        let (plyfs, root) = (self.plyfs.display().to_string(), self.path("root"));
        self.clear("root")?;
        let measure = |words: &[&str]| self.timed(&[&[plyfs.as_str(), "--root", &root], words].concat());
        let image = format!("{}/debian:12", self.host);
        let mut record = |row: &str, unit, value| samples.add(row, unit, PLYFS, value);
        let pull = measure(&["pull", "-q", &image])?;
        record("pull", Unit::Milliseconds, milliseconds(pull.took));
        record("pull again", Unit::Milliseconds, milliseconds(measure(&["pull", "-q", &image])?.took));
        record("rmi", Unit::Milliseconds, milliseconds(measure(&["rmi", &image])?.took));
        record("pull, peak", Unit::Mebibytes, pull.peak);
        record("pull, anon", Unit::Mebibytes, pull.anonymous);
        let huge = measure(&["pull", "-q", &format!("{}/huge:1", self.host)])?;
        record("3 GiB layer", Unit::Milliseconds, milliseconds(huge.took));
        record("3 GiB layer, peak", Unit::Mebibytes, huge.peak);
        record("3 GiB layer, anon", Unit::Mebibytes, huge.anonymous);
        self.clear("root")
    }

    fn podman(&self, samples: &mut Samples) -> Outcome<()> {
        let (root, run_root) = (self.path("podman/root"), self.path("podman/run"));
        let image = format!("{}/debian:12", self.host);
        let base = ["podman", "--root", &root, "--runroot", &run_root];
        let pull = self.timed(&[&base[..], &["pull", "-q", "--tls-verify=false", &image]].concat())?;
        samples.add("pull", Unit::Milliseconds, "podman", milliseconds(pull.took));
        // podman unmounts what it mounted itself.
        watched::run(&[&base[..], &["rmi", "-af"]].concat())?;
        self.clear("podman")
    }

    fn podman_driver(&self) -> Outcome<String> {
        let (root, run_root) = (self.path("podman/root"), self.path("podman/run"));
        let words = ["podman", "--root", &root, "--runroot", &run_root, "info", "-f", "{{.Store.GraphDriverName}}"];
        run(&words.map(str::to_owned))
    }

    fn skopeo_and_umoci(&self, samples: &mut Samples) -> Outcome<()> {
        let (image, to) = (format!("docker://{}/debian:12", self.host), format!("oci:{}:12", self.path("copied")));
        let copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", &image, &to];
        let copied = self.timed(&copy)?;
        let (from, to) = (format!("{}:12", self.path("copied")), self.path("unpacked"));
        let unpacked = watched::run(&["umoci", "unpack", "--image", &from, &to])?;
        samples.add("pull", Unit::Milliseconds, "skopeo+umoci", milliseconds(copied.took + unpacked.took));
        self.clear("copied")?;
        self.clear("unpacked")
    }
}

/// A writer that hashes the bytes it passes on.
struct HashingWriter<W> {
    inner: W,
    hasher: plyfs::digest::Hasher,
}

impl<W: Write> HashingWriter<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: plyfs::digest::Hasher::new(plyfs::digest::Algorithm::Sha256) }
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Creates an image of one layer with one huge file.
fn huge_image(to: &Path) -> io::Result<()> {
    // A small image provides every document; its layer is replaced.
    oci::Image::new().layer(tar::Tar::new().finish()).write_layout(to);
    let mut index: Value = serde_json::from_slice(&fs::read(to.join("index.json"))?)?;
    let mut manifest = read_json(to, text(&index["manifests"][0]["digest"])?)?;
    let mut config = read_json(to, text(&manifest["config"]["digest"])?)?;
    let raw = to.join("layer");
    let zipped = HashingWriter::new(io::BufWriter::new(fs::File::create(&raw)?));
    let mut plain = HashingWriter::new(GzEncoder::new(zipped, Compression::fast()));
    let mut header = ::tar::Header::new_gnu();
    header.set_path("huge")?;
    header.set_size(HUGE);
    header.set_mode(0o644);
    header.set_cksum();
    plain.write_all(header.as_bytes())?;
    let block: Vec<u8> = (0..HUGE_BLOCK).map(|n| (n * n / 7 % 61) as u8).collect();
    (0..HUGE / HUGE_BLOCK).try_for_each(|_| plain.write_all(&block))?;
    plain.write_all(&[0; 1024])?;
    let mut zipped = plain.inner.finish()?;
    zipped.flush()?;
    let digest = zipped.hasher.finish().to_string();
    fs::rename(&raw, to.join(oci::blob_path(&digest)))?;
    config["rootfs"]["diff_ids"][0] = plain.hasher.finish().to_string().into();
    manifest["layers"][0]["size"] = fs::metadata(to.join(oci::blob_path(&digest)))?.len().into();
    manifest["layers"][0]["digest"] = digest.into();
    put(to, &mut manifest["config"], &config)?;
    put(to, &mut index["manifests"][0], &manifest)?;
    fs::write(to.join("index.json"), index.to_string())
}
