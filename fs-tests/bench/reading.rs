//! Reading workloads on one engine: a fresh mount, a cold pass, a warm pass.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Mounted, Setting, milliseconds};
use crate::paths::{Paths, open_root};
use crate::report::{Samples, Unit};
use crate::workload::{WORKLOADS, Workload};

type Outcome<T> = Result<T, String>;

/// Reads everything once through each engine, so that no pass waits for the disk.
pub fn warm_up(setting: &Setting, all: &[Engine], paths: &Paths) -> Outcome<()> {
    for engine in all {
        let mounted = setting.mount(engine)?;
        for workload in WORKLOADS {
            pass(&setting.at, workload, paths).map_err(|e| format!("{}, {}: {e}", engine.name, workload.name))?;
        }
        drop(mounted);
    }
    Ok(())
}

/// Measures one workload on one engine: a fresh mount, a cold pass, a warm pass.
pub fn measure(
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
