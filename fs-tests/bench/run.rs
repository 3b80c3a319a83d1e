//! `scripts/bench run`: a no-op command in a container of the test image, by plyfs, by podman and by runc alone on
//! kernel overlayfs; the same in a chroot; `diff` and `commit` of changed containers.
//!
//! Every round runs all of them in turn. Slowness is never a failure.

// The modules shared with the tests panic as they do; their unit tests run with the tests only.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(unused_imports))]

mod below;
mod containers;
#[expect(dead_code, reason = "what mounting needs")]
mod engine;
mod load;
#[path = "../support/oci.rs"]
#[expect(dead_code, reason = "what tests need")]
mod oci;
#[expect(dead_code, reason = "what mounting needs")]
mod options;
#[expect(dead_code, reason = "what reading needs")]
mod report;
#[path = "../support/tar.rs"]
#[expect(dead_code, reason = "what tests need")]
mod tar;
mod whole;

use std::fs;
use std::path::Path;
use std::time::Instant;

use containers::Setting;
use engine::{milliseconds, run};
use options::{Options, cache};
use report::{Goal, Samples, Unit};

type Outcome<T> = Result<T, String>;

const PLYFS: &str = "plyfs";
const TAR: &str = "tar+gzip";
const KERNEL: &str = "plyfs engine=kernel";
const ENGINES: [&str; 5] = [PLYFS, KERNEL, "podman", "runc", TAR];
/// Runs per round of each short command.
const TIMES: usize = 10;
/// The changed files that `diff` has to list.
const CHANGED: usize = 100;

/// Goals of plyfs.
const GOALS: &[(&str, Goal)] = &[
    ("run true", Goal::Ratio("podman", 0.5)),
    ("run true", Goal::More("runc", 40.0)),
    ("chroot true", Goal::Below(30.0)),
    ("diff", Goal::Below(10.0)),
    ("commit", Goal::Ratio(TAR, 1.2)),
];

/// Goals of the kernel engine.
const KERNEL_GOALS: &[(&str, Goal)] = &[("run true", Goal::More("runc", 25.0))];

fn main() -> std::process::ExitCode {
    options::run(&[], |options| bench(options).map(|()| true))
}

fn bench(options: &Options) -> Outcome<()> {
    // On one disk with the image, as a store is.
    let setting = Setting::make(options.plyfs.clone(), &cache()?)?;
    let samples = Samples::of_rounds(options.rounds, &options.loads, |samples| {
        measure_noop(&setting, samples)?;
        diff(&setting, samples)?;
        commit(&setting, samples)?;
        Ok(())
    })?;
    finish(&samples, &setting)
}

/// Records the duration of a command; returns its output.
fn timed(samples: &mut Samples, row: &str, engine: &str, words: &[String]) -> Outcome<String> {
    let start = Instant::now();
    let output = run(words)?;
    samples.add(row, Unit::Milliseconds, engine, milliseconds(start.elapsed()));
    Ok(output)
}

/// Runs no-op containers and a no-op chroot, in turn.
fn measure_noop(setting: &Setting, samples: &mut Samples) -> Outcome<()> {
    let image = setting.image.as_str();
    rustix::fs::sync();
    for _ in 0..TIMES {
        let ours = setting.plyfs(&["run", "--rm", "--network", "none", image, "true"]);
        timed(samples, "run true", PLYFS, &ours)?;
        let kernels = setting.plyfs(&["run", "--engine=kernel", "--rm", "--network", "none", image, "true"]);
        timed(samples, "run true", KERNEL, &kernels)?;
        timed(samples, "run true", "podman", &setting.podman_run("true"))?;
        timed(samples, "run true", "runc", &setting.runc(&["run", "-b", &setting.path("bundle"), "true"]))?;
        timed(samples, "chroot true", PLYFS, &setting.plyfs(&["chroot", image, "true"]))?;
        timed(samples, "chroot true", KERNEL, &setting.plyfs(&["chroot", "--engine=kernel", image, "true"]))?;
    }
    Ok(())
}

fn diff(setting: &Setting, samples: &mut Samples) -> Outcome<()> {
    for _ in 0..TIMES {
        let output = timed(samples, "diff", PLYFS, &setting.plyfs(&["diff", &setting.changed]))?;
        // Their directories have changed too.
        if output.lines().count() <= CHANGED {
            return Err(format!("diff does not tell of {CHANGED} files:\n{output}"));
        }
    }
    Ok(())
}

fn commit(setting: &Setting, samples: &mut Samples) -> Outcome<()> {
    rustix::fs::sync();
    timed(samples, "commit", PLYFS, &setting.plyfs(&["commit", &setting.big, "committed:1"]))?;
    run(&setting.plyfs(&["rmi", "committed:1"]))?;
    rustix::fs::sync();
    let packed = setting.path("packed.tar.gz");
    let line = "set -o pipefail; tar -C \"$0\" -cf - . | gzip >\"$1\"".to_owned();
    let words = ["bash".to_owned(), "-c".to_owned(), line, setting.upper()?.display().to_string(), packed.clone()];
    timed(samples, "commit", TAR, &words)?;
    fs::remove_file(&packed).map_err(|e| format!("{packed}: {e}"))
}

fn finish(samples: &Samples, setting: &Setting) -> Outcome<()> {
    let upper = setting.upper()?;
    let size = run(&["du", "-sm", "--apparent-size", &upper.display().to_string()].map(str::to_owned))?;
    let size = size.split_whitespace().next().unwrap_or_default().to_owned();
    samples.print(&ENGINES.map(str::to_owned), "podman");
    println!(
        "podman's storage driver: {}. runc: alone, on a bundle that is ready. diff: of {CHANGED} changed files on an image \
         of {} entries. commit: of {size} MiB of changes.",
        setting.podman_driver()?,
        setting.entries
    );
    samples.print_goals(PLYFS, GOALS);
    samples.print_goals(KERNEL, KERNEL_GOALS);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-run.json");
    let result = serde_json::json!({ "rows": samples.json(), "committed MiB": size, "entries": setting.entries });
    fs::write(&target, format!("{result:#}\n")).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}
