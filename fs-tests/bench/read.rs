//! `scripts/bench read`: the same reading workloads on a plain directory, kernel overlayfs, fuse-overlayfs and plyfs.
//!
//! Every round runs every workload on every engine in turn, so that what else the machine does falls on all of them.
//! Nothing here fails because it was slow; it fails if an engine answers wrongly.

mod engine;
mod options;
mod paths;
#[expect(dead_code, reason = "what writing needs")]
mod report;
mod workload;

use std::path::Path;
use std::time::{Duration, Instant};

use engine::{Engine, Mounted, Setting, lower, milliseconds};
use options::{Options, cache};
use paths::{Paths, open_root};
use report::{Samples, Unit};
use workload::{WORKLOADS, Workload};

/// The engines besides plyfs, the plain directory first.
const ENGINES: &[(&str, &[&str])] = &[
    ("directory", &["mount", "--bind", "{rootfs}", "{at}"]),
    ("overlayfs", &["mount", "-t", "overlay", "overlay", "-o", "ro,lowerdir={lower}", "{at}"]),
    ("fuse-overlayfs", &["fuse-overlayfs", "-o", "lowerdir={lower}", "{at}"]),
];
const PLYFS: &[&str] = &["{plyfs}", "--root", "{root}", "mount", "{image}", "{at}"];

type Outcome<T> = Result<T, String>;

fn main() -> std::process::ExitCode {
    match Options::read("wake=off").and_then(|options| bench(&options)) {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(message) => {
            eprintln!("bench: {message}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Returns whether every engine could be measured.
fn bench(options: &Options) -> Outcome<bool> {
    let cache = cache()?.join("debian");
    let scratch = tempfile::Builder::new().prefix("plyfs-bench-").tempdir().map_err(|e| e.to_string())?;
    let setting = Setting {
        plyfs: options.plyfs.clone(),
        root: scratch.path().join("root"),
        image: "oci:latest".to_owned(),
        at: scratch.path().join("mnt"),
        lower: lower(&cache)?,
        upper: scratch.path().join("upper"),
        work: scratch.path().join("work"),
        cache,
    };
    std::fs::create_dir(&setting.at).map_err(|e| e.to_string())?;
    let mut all = options.chosen(ENGINES, PLYFS);
    let wanted = all.len();
    let mut samples = Samples::default();
    let source = format!("oci:{}:latest", setting.cache.join("oci").display());
    if let Some(took) = setting.pull(&source, &mut all) {
        samples.add("pull", Unit::Milliseconds, "plyfs", milliseconds(took));
    }
    all.retain(|engine| setting.works(engine));
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
        for workload in WORKLOADS.iter().filter(|workload| options.wants(workload.name)) {
            for engine in &all {
                measure(&setting, engine, workload, &paths, &mut samples)
                    .map_err(|error| format!("{}, {}: {error}", engine.name, workload.name))?;
            }
        }
    }
    finish(&samples, &all, &paths)?;
    Ok(all.len() == wanted)
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

fn finish(samples: &Samples, all: &[Engine], paths: &Paths) -> Outcome<()> {
    let names: Vec<_> = all.iter().map(|engine| engine.name.clone()).collect();
    samples.print(&names, report::BASE);
    println!("cold: a fresh mount over warm files. warm: the second pass on the same mount. The plain directory");
    println!("has no fresh mount: its cold passes find the kernel's caches full.");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-read.json");
    let result = serde_json::json!({ "entries": paths.every.len(), "rows": samples.json() });
    std::fs::write(&target, format!("{result:#}\n")).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}
