//! Command-line options of the benchmarks, and the location of the test image.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::engine::Engine;
use crate::load::Load;

/// The arguments that all benchmarks take.
pub struct Options {
    /// Number of rounds.
    pub rounds: usize,
    /// Further sets of mount options for plyfs, one column each.
    pub variants: Vec<String>,
    /// The program to measure, to compare builds; default: the one built with the benchmark.
    pub plyfs: PathBuf,
    /// The background loads under which everything is measured, in turn.
    pub loads: Vec<Load>,
    /// Run only engines whose name contains this.
    only: Option<String>,
    /// Run only workloads whose name contains this.
    workload: Option<String>,
}

/// Runs a benchmark and returns its exit code; the benchmark returns whether every engine could be measured. `variants`
/// is passed to [`Options::read`].
pub fn run(variants: &[&str], bench: impl FnOnce(&Options) -> Result<bool, String>) -> ExitCode {
    match Options::read(variants).and_then(|options| bench(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    /// Reads the command line. `variants` is the default if none is given.
    pub fn read(variants: &[&str]) -> Result<Self, String> {
        let plyfs = PathBuf::from(env!("CARGO_BIN_EXE_plyfs"));
        let mut options =
            Self { rounds: 5, variants: Vec::new(), plyfs, loads: vec![Load::Quiet], only: None, workload: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                // Cargo passes it to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = value()?.parse().map_err(|e| format!("--rounds: {e}"))?,
                "--plyfs" => options.plyfs = value()?.into(),
                "--busy" => options.loads.push(Load::Busy),
                "--variant" => options.variants.push(value()?),
                "--only" => options.only = Some(value()?),
                "--workload" => options.workload = Some(value()?),
                other => return Err(format!("unknown argument '{other}'")),
            }
        }
        if options.variants.is_empty() {
            options.variants = variants.iter().map(|variant| (*variant).to_owned()).collect();
        }
        Ok(options)
    }

    /// Whether a workload is selected.
    pub fn is_selected(&self, workload: &str) -> bool {
        self.workload.as_ref().is_none_or(|part| workload.contains(part.as_str()))
    }

    /// The engines to measure: those given, plyfs by this mount command, and plyfs with each variant.
    pub fn selected_engines(&self, others: &[(&str, &[&str])], plyfs: &[&str]) -> Vec<Engine> {
        let engine = |name: &str, words: &[&str]| Engine {
            name: name.to_owned(),
            mount: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        let mut all: Vec<_> = others.iter().map(|(name, words)| engine(name, words)).collect();
        all.push(engine("plyfs", plyfs));
        for options in &self.variants {
            let mut variant = engine(&format!("plyfs {options}"), plyfs);
            let at = variant.mount.iter().position(|word| word == "mount" || word == "overlay").map_or(0, |at| at + 1);
            variant.mount.splice(at..at, ["-o".to_owned(), options.clone()]);
            all.push(variant);
        }
        all.retain(|engine| self.only.as_ref().is_none_or(|only| engine.name.contains(only.as_str())));
        all
    }
}

/// The cache directory of the scripts.
pub fn cache() -> Result<PathBuf, String> {
    let cache = PathBuf::from(std::env::var_os("PLYFS_TEST_CACHE").unwrap_or_else(|| "/var/cache/plyfs-tests".into()));
    match cache.join("debian/stamp").is_file() {
        true => Ok(cache),
        false => Err(format!("no test image in {}: run scripts/make-image", cache.display())),
    }
}
