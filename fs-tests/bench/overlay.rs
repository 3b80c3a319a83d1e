//! `scripts/bench overlay`: kernel overlayfs, fuse-overlayfs and `plyfs overlay` on the same directories: the test
//! image's layers and one of big files, with an upper directory; and `podman build` with each of them as storage
//! driver.
//!
//! Every round runs every workload on every engine in turn. Reading is measured cold, on a fresh mount over files in
//! the page cache, and warm, by a second pass; writing starts with an empty upper directory. Slowness is never a
//! failure; an engine that cannot run a workload has no figure for it, and the reason is printed.

mod below;
mod building;
#[path = "../support/chroot.rs"]
mod chroot;
#[expect(dead_code, reason = "what a store needs")]
mod engine;
mod load;
#[expect(dead_code, reason = "what a store needs")]
mod lower;
mod options;
mod paths;
mod reading;
#[expect(dead_code, reason = "what others are held against")]
mod report;
mod upper;
mod workload;
mod writing;

use std::fs;
use std::path::Path;

use building::BuildStores;
use engine::{Engine, Setting, lower as lower_dirs};
use options::{Options, cache};
use paths::Paths;
use report::{Goal, Samples, Unit};
use upper::{Failures, fresh_upper};
use workload::WORKLOADS;
use writing::{Measurement, WRITE_WORKLOADS, WorkloadInput, WriteWorkload, append_to, timed};

/// The engines besides plyfs.
const ENGINES: &[(&str, &[&str])] = &[
    (KERNEL, &["mount", "-t", "overlay", "overlay", "-o", "lowerdir={lower},upperdir={upper},workdir={work}", "{at}"]),
    (FUSE, &["fuse-overlayfs", "-o", "lowerdir={lower},upperdir={upper},workdir={work}", "{at}"]),
];
const PLYFS: &[&str] = &["{plyfs}", "overlay", "-o", "lowerdir={lower},upperdir={upper},workdir={work}", "{at}"];
const KERNEL: &str = "overlayfs";
const FUSE: &str = "fuse-overlayfs";
const BUILD: &str = "podman build";

/// The reading workloads, a selection of those for images.
const READ: &[&str] = &["walk", "stat", "missing names", "open+close", "small reads", "big reads"];
/// The writing workloads, a selection of those for writable images.
const WRITTEN: &[&str] = &["untar 20,000", "write 512 MiB", "append", "cheap changes"];
/// Workloads for directories only.
const MORE: &[WriteWorkload] = &[
    WriteWorkload { name: "rm -r", daemon: false, run: remove_tree },
    WriteWorkload { name: "copy-up", daemon: false, run: copy_up_many },
];
/// Number of small files that are copied up.
const COPIED: usize = 5_000;

/// Goal: nothing is slower than with fuse-overlayfs.
const NO_WORSE: &[&str] = &[
    "mount",
    "walk warm",
    "stat cold",
    "open+close cold",
    "small reads warm",
    "missing names warm",
    "big reads cold",
    "big reads warm",
    "daemon memory",
    "untar 20,000",
    "write 512 MiB",
    "append to 256 MiB",
    "rename 10,000 files",
    "unlink 256 MiB",
    "O_TRUNC 256 MiB",
    "chmod 256 MiB",
    "rm -r of a tree",
    "copy-up of 5,000",
];
/// Further goals of plyfs.
const GOALS: &[(&str, Goal)] = &[
    ("walk cold", Goal::Ratio(FUSE, 0.5)),
    ("small reads cold", Goal::Ratio(FUSE, 0.5)),
    ("missing names cold", Goal::Ratio(FUSE, 0.5)),
    ("stat warm", Goal::Ratio(KERNEL, 1.0)),
    ("open+close warm", Goal::Ratio(KERNEL, 1.0)),
    ("small reads warm", Goal::Ratio(KERNEL, 1.0)),
    (BUILD, Goal::Ratio(FUSE, 0.8)),
];

type Outcome<T> = Result<T, String>;

fn main() -> std::process::ExitCode {
    options::run(&[], bench)
}

/// Returns whether every engine could be mounted.
fn bench(options: &Options) -> Outcome<bool> {
    let cache = cache()?;
    // On one disk with the image: an upper directory in memory would measure nothing.
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&cache).map_err(|e| e.to_string())?;
    eprintln!("making the lower layer");
    let made = lower::make(scratch.path())?;
    fs::remove_file(&made.tar).map_err(|e| e.to_string())?;
    let mut setting = Setting {
        plyfs: options.plyfs.clone(),
        root: scratch.path().join("root"),
        image: String::new(),
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
    all.retain(|engine| fresh_upper(&setting).is_ok() && setting.can_mount(engine));
    let paths = Paths::scan(&setting.cache.join("unpacked/rootfs")).map_err(|e| format!("unpacked/rootfs: {e}"))?;
    let input = WorkloadInput { at: &setting.at, small: &made.small, debs: &cache.join("debs"), paths: &paths };
    let mut figures = Figures { samples: Samples::default(), failures: Failures::new() };
    let stores =
        options.is_selected(BUILD).then(|| create_stores(scratch.path(), options, &all, &mut figures)).transpose()?;
    if READ.iter().any(|name| options.is_selected(name)) {
        reading::warm_up(&setting, &all, &paths)?;
    }
    // The first round warms the disk caches and is discarded.
    for round in 0..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        if round == 1 {
            figures.samples = Samples::default();
        }
        for load in &options.loads {
            let _running = figures.samples.start_load(*load);
            read(&setting, options, &all, &paths, &mut figures)?;
            write(&setting, options, &all, &input, &mut figures)?;
            if let Some(stores) = &stores {
                build(stores, &all, &mut figures);
            }
        }
    }
    finish(&figures, &all)?;
    Ok(all.len() == wanted)
}

/// The samples and failures of all rounds.
struct Figures {
    samples: Samples,
    failures: Failures,
}

fn read(setting: &Setting, options: &Options, all: &[Engine], paths: &Paths, figures: &mut Figures) -> Outcome<()> {
    fresh_upper(setting)?;
    for workload in
        WORKLOADS.iter().filter(|workload| READ.contains(&workload.name) && options.is_selected(workload.name))
    {
        for engine in all {
            reading::measure(setting, engine, workload, paths, &mut figures.samples)
                .map_err(|error| format!("{}, {}: {error}", engine.name, workload.name))?;
        }
    }
    Ok(())
}

fn write(
    setting: &Setting,
    options: &Options,
    all: &[Engine],
    input: &WorkloadInput<'_>,
    figures: &mut Figures,
) -> Outcome<()> {
    let known = WRITE_WORKLOADS.iter().filter(|workload| WRITTEN.contains(&workload.name));
    for workload in known.chain(MORE).filter(|workload| options.is_selected(workload.name)) {
        for engine in all {
            upper::measure(setting, engine, workload, input, (&mut figures.samples, &mut figures.failures))
                .map_err(|error| format!("{}, {}: {error}", engine.name, workload.name))?;
        }
    }
    Ok(())
}

/// Creates a store for each engine that podman can use: not for variants, whose options podman would have to pass.
fn create_stores(scratch: &Path, options: &Options, all: &[Engine], figures: &mut Figures) -> Outcome<BuildStores> {
    eprintln!("making podman's stores");
    let names: Vec<_> = all.iter().map(|engine| engine.name.clone()).filter(|name| !name.contains(' ')).collect();
    let base = cache()?.join("debian/layers/0");
    let (stores, failed) = BuildStores::make(scratch.join("podman"), &options.plyfs, &base, &names)?;
    for (engine, error) in failed {
        figures.failures.insert((BUILD.to_owned(), engine), error);
    }
    Ok(stores)
}

/// Builds once with each engine; one that failed is not tried again.
fn build(stores: &BuildStores, all: &[Engine], figures: &mut Figures) {
    figures.samples.row(BUILD, Unit::Milliseconds);
    for engine in all.iter().filter(|engine| !engine.name.contains(' ')) {
        let key = (BUILD.to_owned(), engine.name.clone());
        if figures.failures.contains_key(&key) {
            continue;
        }
        match stores.build(&engine.name) {
            Ok(took) => figures.samples.add(BUILD, Unit::Milliseconds, &engine.name, took),
            Err(error) => drop(figures.failures.insert(key, error)),
        }
    }
}

/// Removes a third of the image's files.
fn remove_tree(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let tree = input.at.join("usr/share");
    let took = timed(|| fs::remove_dir_all(&tree));
    let gone = fs::symlink_metadata(&tree).is_err();
    vec![("rm -r of a tree", Unit::Milliseconds, if gone { took } else { Err("it is still there".to_owned()) })]
}

/// Appends a byte to each of many files of a hundred bytes.
fn copy_up_many(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let file = |number: usize| input.path(&format!("many/file-{number}"));
    let took = timed(|| (0..COPIED).try_for_each(|number| append_to(&file(number))));
    let size = fs::metadata(file(COPIED - 1)).map(|found| found.len()).map_err(|e| e.to_string());
    let took = match size {
        Ok(101) => took,
        other => Err(format!("the last file's size: {other:?}")),
    };
    vec![("copy-up of 5,000", Unit::Milliseconds, took)]
}

fn finish(figures: &Figures, all: &[Engine]) -> Outcome<()> {
    let names: Vec<_> = all.iter().map(|engine| engine.name.clone()).collect();
    figures.samples.print(&names, FUSE);
    println!(
        "cold: a fresh mount over warm files. warm: the second pass on the same mount. cpu, mem: the daemon's processor time"
    );
    println!(
        "and private memory. What is written goes to an empty upper directory. podman build: ten steps on Debian's lowest"
    );
    println!("layer, each engine with a store of its own, native for the kernel's.");
    upper::print(&figures.failures);
    let no_worse = NO_WORSE.iter().map(|row| (*row, Goal::Ratio(FUSE, 1.0)));
    figures.samples.print_goals("plyfs", &no_worse.chain(GOALS.iter().copied()).collect::<Vec<_>>());
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-overlay.json");
    let result = serde_json::json!({ "rows": figures.samples.json(), "failures": upper::json(&figures.failures) });
    fs::create_dir_all(target.parent().unwrap_or(Path::new("."))).map_err(|e| e.to_string())?;
    fs::write(&target, format!("{result:#}\n")).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}
