//! `scripts/bench read`: the same reading workloads on a plain directory, kernel overlayfs, fuse-overlayfs and plyfs.
//!
//! Every round runs every workload on every engine in turn, so that what else the machine does falls on all of them.
//! Nothing here fails because it was slow; it fails if an engine answers wrongly.

mod engine;
mod report;
mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::{Engine, Mounted, Setting, engines, run};
use report::{Samples, Unit};
use workload::{Paths, WORKLOADS, Workload, open_root};

struct Options {
    rounds: usize,
    variants: Vec<String>,
    /// The program to measure, to compare builds; else the one built with the benchmark.
    plyfs: PathBuf,
    /// Run only engines whose name contains this.
    only: Option<String>,
}

type Outcome<T> = Result<T, String>;

fn main() -> std::process::ExitCode {
    match options().and_then(|options| bench(&options)) {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(message) => {
            eprintln!("bench: {message}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn options() -> Outcome<Options> {
    let plyfs = PathBuf::from(env!("CARGO_BIN_EXE_plyfs"));
    let mut options = Options { rounds: 5, variants: Vec::new(), plyfs, only: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            // Cargo passes it to every benchmark.
            "--bench" => {}
            "--rounds" => options.rounds = value()?.parse().map_err(|e| format!("--rounds: {e}"))?,
            "--plyfs" => options.plyfs = value()?.into(),
            "--variant" => options.variants.push(value()?),
            "--only" => options.only = Some(value()?),
            other => return Err(format!("unknown argument '{other}'")),
        }
    }
    if options.variants.is_empty() {
        options.variants.push("wake=off".to_owned());
    }
    Ok(options)
}

/// Returns whether every engine could be measured.
fn bench(options: &Options) -> Outcome<bool> {
    let cache = std::env::var_os("PLYFS_TEST_CACHE").unwrap_or_else(|| "/var/cache/plyfs-tests".into());
    let cache = PathBuf::from(cache).join("debian");
    if !cache.join("stamp").is_file() {
        return Err(format!("no test image in {}: run scripts/make-image", cache.display()));
    }
    let scratch = tempfile::Builder::new().prefix("plyfs-bench-").tempdir().map_err(|e| e.to_string())?;
    let setting = Setting {
        plyfs: options.plyfs.clone(),
        root: scratch.path().join("root"),
        image: "oci:latest".to_owned(),
        at: scratch.path().join("mnt"),
        cache,
    };
    std::fs::create_dir(&setting.at).map_err(|e| e.to_string())?;
    let chosen = |engine: &Engine| options.only.as_ref().is_none_or(|only| engine.name.contains(only.as_str()));
    let mut all: Vec<_> = engines(&options.variants).into_iter().filter(chosen).collect();
    let wanted = all.len();
    let mut samples = Samples::default();
    pull(&setting, &mut all, &mut samples);
    all.retain(|engine| works(&setting, engine));
    let paths = Paths::of(&setting.cache.join("unpacked/rootfs")).map_err(|e| format!("unpacked/rootfs: {e}"))?;
    println!(
        "{} entries, {} small files ({} MiB), {} big files ({} MiB), {} missing names, {} rounds",
        paths.every.len(),
        paths.small.len(),
        paths.small_bytes >> 20,
        paths.big.len(),
        paths.big_bytes >> 20,
        paths.missing.len(),
        options.rounds
    );
    warm_up(&setting, &all, &paths)?;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for workload in WORKLOADS {
            for engine in &all {
                measure(&setting, engine, workload, &paths, &mut samples)
                    .map_err(|error| format!("{}, {}: {error}", engine.name, workload.name))?;
            }
        }
    }
    finish(&samples, &all, &paths)?;
    Ok(all.len() == wanted)
}

/// Bring the image into a store, for the plyfs engines; without it they are left out.
fn pull(setting: &Setting, all: &mut Vec<Engine>, samples: &mut Samples) {
    if !all.iter().any(|engine| engine.name.starts_with("plyfs")) {
        return;
    }
    let source = format!("oci:{}:latest", setting.cache.join("oci").display());
    let (plyfs, root) = (setting.plyfs.display().to_string(), setting.root.display().to_string());
    let start = Instant::now();
    match run(&[plyfs, "--root".to_owned(), root, "pull".to_owned(), source]) {
        Ok(_) => samples.add("pull", Unit::Milliseconds, "plyfs", milliseconds(start.elapsed())),
        Err(error) => {
            eprintln!("bench: left out plyfs: {error}");
            all.retain(|engine| !engine.name.starts_with("plyfs"));
        }
    }
}

fn works(setting: &Setting, engine: &Engine) -> bool {
    match setting.mount(engine) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("bench: left out {}: {error}", engine.name);
            false
        }
    }
}

/// Read everything once through each engine, so that no pass pays for a disk.
fn warm_up(setting: &Setting, all: &[Engine], paths: &Paths) -> Outcome<()> {
    for engine in all {
        let mounted = setting.mount(engine)?;
        for workload in WORKLOADS {
            pass(&setting.at, workload, paths).map_err(|e| format!("{}, {}: {e}", engine.name, workload.name))?;
        }
        drop(mounted);
    }
    Ok(())
}

/// One workload on one engine: a fresh mount, a cold pass, a warm pass.
fn measure(
    setting: &Setting,
    engine: &Engine,
    workload: &Workload,
    paths: &Paths,
    samples: &mut Samples,
) -> Outcome<()> {
    let mounted = setting.mount(engine)?;
    samples.add("mount", Unit::Milliseconds, &engine.name, milliseconds(mounted.took));
    let before = mounted.processor_time();
    let (cold, calls) = pass(&setting.at, workload, paths)?;
    let burnt = mounted.processor_time().saturating_sub(before);
    let (warm, _) = pass(&setting.at, workload, paths)?;
    for (heat, time) in [("cold", cold), ("warm", warm)] {
        let row = format!("{} {heat}", workload.name);
        match workload.name {
            "walk" | "small reads" | "big reads" | "mmap" => {
                samples.add(&row, Unit::Milliseconds, &engine.name, milliseconds(time));
            }
            _ => samples.add(&row, Unit::Microseconds, &engine.name, milliseconds(time) * 1000.0 / calls as f64),
        }
    }
    if matches!(workload.name, "walk" | "small reads") {
        let row = format!("{} daemon", workload.name);
        samples.add(&row, Unit::Milliseconds, &engine.name, milliseconds(burnt));
    }
    if workload.name == "walk" {
        daemon_memory(&mounted, engine, calls, samples);
    }
    Ok(())
}

fn daemon_memory(mounted: &Mounted<'_>, engine: &Engine, entries: u64, samples: &mut Samples) {
    let bytes = mounted.memory() as f64;
    samples.add("daemon memory", Unit::Mebibytes, &engine.name, bytes / f64::from(1 << 20));
    samples.add("daemon memory each", Unit::BytesPerEntry, &engine.name, bytes / entries as f64);
}

fn pass(at: &Path, workload: &Workload, paths: &Paths) -> Outcome<(Duration, u64)> {
    let root = open_root(at).map_err(|e| e.to_string())?;
    let start = Instant::now();
    let calls = (workload.run)(&root, paths).map_err(|e| e.to_string())?;
    Ok((start.elapsed(), calls))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn finish(samples: &Samples, all: &[Engine], paths: &Paths) -> Outcome<()> {
    let names: Vec<_> = all.iter().map(|engine| engine.name.clone()).collect();
    samples.print(&names);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-read.json");
    let result = serde_json::json!({ "entries": paths.every.len(), "rows": samples.json() });
    std::fs::write(&target, format!("{result:#}\n")).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}
