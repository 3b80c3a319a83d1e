//! `scripts/bench read`: the same reading workloads on a plain directory, kernel overlayfs, fuse-overlayfs and plyfs.
//!
//! Every round runs every workload on every engine in turn, so that other load on the machine affects all of them.
//! Slowness is never a failure; a wrong answer of an engine is.

mod engine;
mod load;
mod options;
mod paths;
mod reading;
#[expect(dead_code, reason = "what writing needs")]
mod report;
mod workload;

use std::path::Path;

use engine::{Engine, Setting, lower, milliseconds};
use options::{Options, cache};
use paths::Paths;
use reading::{measure, warm_up};
use report::{Samples, Unit};
use workload::WORKLOADS;

/// The engines besides plyfs, the plain directory first.
const ENGINES: &[(&str, &[&str])] = &[
    ("directory", &["mount", "--bind", "{rootfs}", "{at}"]),
    ("overlayfs", &["mount", "-t", "overlay", "overlay", "-o", "ro,lowerdir={lower}", "{at}"]),
    ("fuse-overlayfs", &["fuse-overlayfs", "-o", "lowerdir={lower}", "{at}"]),
];
const PLYFS: &[&str] = &["{plyfs}", "--root", "{root}", "mount", "{image}", "{at}"];

type Outcome<T> = Result<T, String>;

fn main() -> std::process::ExitCode {
    options::run(&["wake=off", "engine=kernel"], bench)
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
    let mut all = options.selected_engines(ENGINES, PLYFS);
    let wanted = all.len();
    let mut samples = Samples::default();
    let source = format!("oci:{}:latest", setting.cache.join("oci").display());
    if let Some(took) = setting.pull(&source, &mut all) {
        samples.add("pull", Unit::Milliseconds, "plyfs", milliseconds(took));
    }
    all.retain(|engine| setting.can_mount(engine));
    let paths = Paths::scan(&setting.cache.join("unpacked/rootfs")).map_err(|e| format!("unpacked/rootfs: {e}"))?;
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
        for load in &options.loads {
            let _running = samples.start_load(*load);
            for workload in WORKLOADS.iter().filter(|workload| options.is_selected(workload.name)) {
                for engine in &all {
                    measure(&setting, engine, workload, &paths, &mut samples)
                        .map_err(|error| format!("{}, {}: {error}", engine.name, workload.name))?;
                }
            }
        }
    }
    finish(&samples, &all, &paths)?;
    Ok(all.len() == wanted)
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
