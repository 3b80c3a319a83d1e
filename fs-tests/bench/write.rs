//! `scripts/bench write`: the same writing workloads on kernel overlayfs, fuse-overlayfs and plyfs, each with an upper
//! directory over the same image.
//!
//! Every round runs every workload on every engine in turn, each on a fresh mount over an empty upper directory.
//! Slowness is never a failure; an engine that cannot run a workload has no figure for it, and the reason is printed.

#[path = "../support/chroot.rs"]
mod chroot;
mod engine;
mod load;
mod lower;
mod options;
#[expect(dead_code, reason = "what reading needs")]
mod paths;
#[expect(dead_code, reason = "what reading needs")]
mod report;
mod upper;
mod writing;

use std::fs;
use std::path::Path;

use engine::{Engine, Setting, lower as lower_dirs};
use options::{Options, cache};
use paths::Paths;
use report::{Goal, Samples};
use upper::{Failures, fresh_upper, measure};
use writing::{WRITE_WORKLOADS, WorkloadInput};

/// The engines besides plyfs.
const ENGINES: &[(&str, &[&str])] = &[
    (
        "overlayfs",
        &["mount", "-t", "overlay", "overlay", "-o", "lowerdir={lower},upperdir={upper},workdir={work}", "{at}"],
    ),
    ("fuse-overlayfs", &["fuse-overlayfs", "-o", "lowerdir={lower},upperdir={upper},workdir={work}", "{at}"]),
];
const PLYFS: &[&str] =
    &["{plyfs}", "--root", "{root}", "mount", "--upper", "{upper}", "--work", "{work}", "{image}", "{at}"];

/// Goals of plyfs.
const GOALS: &[(&str, Goal)] = &[
    ("untar 20,000", Goal::Ratio("overlayfs", 2.0)),
    ("untar 20,000", Goal::Ratio("fuse-overlayfs", 0.7)),
    ("write 512 MiB", Goal::Ratio("overlayfs", 1.3)),
    ("write+fsync 4 KiB", Goal::Ratio("overlayfs", 1.3)),
    ("append to 256 MiB", Goal::Ratio("overlayfs", 1.2)),
    ("chmod 256 MiB", Goal::Below(1.0)),
    ("unlink 256 MiB", Goal::Below(1.0)),
    ("O_TRUNC 256 MiB", Goal::Below(1.0)),
    ("rename 10,000 files", Goal::Below(5.0)),
    ("apt-get install", Goal::Ratio("overlayfs", 1.3)),
    ("stat p99 meanwhile", Goal::Below(2.0)),
];

type Outcome<T> = Result<T, String>;

fn main() -> std::process::ExitCode {
    options::run(&["volatile", "engine=kernel", "engine=kernel,volatile"], bench)
}

/// Returns whether every engine could be mounted.
fn bench(options: &Options) -> Outcome<bool> {
    let cache = cache()?;
    let debs = cache.join("debs");
    if !debs.join("stamp").is_file() {
        return Err(format!("no packages in {}: run scripts/make-debs", debs.display()));
    }
    // On one disk with the image: an upper directory in memory would measure nothing.
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&cache).map_err(|e| e.to_string())?;
    eprintln!("making the lower layer");
    let made = lower::make(scratch.path())?;
    let oci = made.add_to(&cache.join("debian"), scratch.path())?;
    let mut setting = Setting {
        plyfs: options.plyfs.clone(),
        root: scratch.path().join("root"),
        image: "oci:latest".to_owned(),
        at: scratch.path().join("mnt"),
        lower: lower_dirs(&cache.join("debian"))?,
        upper: scratch.path().join("upper"),
        work: scratch.path().join("work"),
        cache: cache.join("debian"),
    };
    setting.lower.insert(0, made.dir.clone());
    fs::create_dir(&setting.at).map_err(|e| e.to_string())?;
    let mut all = options.selected_engines(ENGINES, PLYFS);
    let wanted = all.len();
    setting.pull(&format!("oci:{}:latest", oci.display()), &mut all);
    all.retain(|engine| fresh_upper(&setting).is_ok() && setting.can_mount(engine));
    let paths = Paths::scan(&setting.cache.join("unpacked/rootfs")).map_err(|e| format!("unpacked/rootfs: {e}"))?;
    let input = WorkloadInput { at: &setting.at, small: &made.small, debs: &debs, paths: &paths };
    let mut failures = Failures::new();
    let samples = Samples::of_rounds(options.rounds, &options.loads, |samples| {
        for workload in WRITE_WORKLOADS.iter().filter(|workload| options.is_selected(workload.name)) {
            for engine in &all {
                measure(&setting, engine, workload, &input, (&mut *samples, &mut failures))
                    .map_err(|error| format!("{}, {}: {error}", engine.name, workload.name))?;
            }
        }
        Ok(())
    })?;
    finish(&samples, &failures, &all)?;
    Ok(all.len() == wanted)
}

fn finish(samples: &Samples, failures: &Failures, all: &[Engine]) -> Outcome<()> {
    let names: Vec<_> = all.iter().map(|engine| engine.name.clone()).collect();
    samples.print(&names, report::BASE);
    println!(
        "cpu, mem: the daemon's processor time and private memory. Every sample has a fresh mount over an empty upper directory."
    );
    upper::print(failures);
    samples.print_goals("plyfs", GOALS);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-write.json");
    let result = serde_json::json!({ "rows": samples.json(), "failures": upper::json(failures) });
    fs::write(&target, format!("{result:#}\n")).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}
