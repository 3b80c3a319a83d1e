//! Runs of the writing workloads on one engine: a fresh mount over an empty upper directory for each.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::engine::{Engine, Setting, milliseconds};
use crate::lower;
use crate::report::{Samples, Unit};
use crate::writing::{WorkloadInput, WriteWorkload};

type Outcome<T> = Result<T, String>;
/// The errors of engines that have no figure in a row.
pub type Failures = BTreeMap<(String, String), String>;

/// Prints the failures, one line each.
pub fn print(failures: &Failures) {
    for ((row, engine), error) in failures {
        println!("failed: {row}, {engine}: {error}");
    }
}

/// The failures as JSON.
pub fn json(failures: &Failures) -> Value {
    failures.iter().map(|((row, engine), error)| json!([row, engine, error])).collect()
}

/// Runs one workload on one engine.
pub fn measure(
    setting: &Setting,
    engine: &Engine,
    workload: &WriteWorkload,
    input: &WorkloadInput<'_>,
    (samples, failures): (&mut Samples, &mut Failures),
) -> Outcome<()> {
    fresh_upper(setting)?;
    let mounted = setting.mount(engine)?;
    samples.add("mount", Unit::Milliseconds, &engine.name, milliseconds(mounted.took));
    // Accesses the fresh mount once, so that the first access is not measured.
    let _ = fs::read_dir(setting.at.join(lower::LAYER_DIR)).map(Iterator::count);
    let before = mounted.processor_time();
    for (row, unit, value) in (workload.run)(input) {
        match value {
            Ok(value) => samples.add(row, unit, &engine.name, value),
            Err(error) => {
                samples.row(row, unit);
                failures.insert((row.to_owned(), engine.name.clone()), error);
            }
        }
    }
    if workload.daemon {
        let burnt = mounted.processor_time().saturating_sub(before);
        samples.add(&format!("{} cpu", workload.name), Unit::Milliseconds, &engine.name, milliseconds(burnt));
        let memory = mounted.memory() as f64 / f64::from(1 << 20);
        samples.add(&format!("{} mem", workload.name), Unit::Mebibytes, &engine.name, memory);
    }
    Ok(())
}

/// Creates empty upper and work directories, and syncs all earlier writes: the next engine must not wait for them.
///
/// Renames the old ones, and removes only their big files: ext4 without a journal takes seconds of processor time to
/// create files soon after as many were removed, which would be the greater part of every figure.
pub fn fresh_upper(setting: &Setting) -> Outcome<()> {
    let failed = |dir: &Path, e: std::io::Error| format!("{}: {e}", dir.display());
    for dir in [&setting.upper, &setting.work] {
        if dir.exists() {
            remove_big_files(dir).map_err(|e| failed(dir, e))?;
            let used = dir.with_file_name("used");
            fs::create_dir_all(&used).map_err(|e| failed(&used, e))?;
            let aside = tempfile::Builder::new().prefix("").tempdir_in(&used).map_err(|e| failed(&used, e))?.keep();
            fs::rename(dir, aside.join("old")).map_err(|e| failed(dir, e))?;
        }
        fs::create_dir(dir).map_err(|e| failed(dir, e))?;
    }
    rustix::fs::sync();
    Ok(())
}

fn remove_big_files(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            remove_big_files(&entry.path())?;
        } else if kind.is_file() && entry.metadata()?.len() > 1 << 20 {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
