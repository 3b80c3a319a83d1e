//! Writing workloads, each run on a fresh mount over an empty upper directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::chroot::{APT, chroot};
use crate::engine::{milliseconds, run};
use crate::lower::{BIGS, LAYER_DIR};
use crate::paths::Paths;
use crate::report::Unit;

/// The input of a workload.
pub struct WorkloadInput<'a> {
    /// The mount.
    pub at: &'a Path,
    /// The tar of small files.
    pub small: &'a Path,
    /// The packages of `scripts/make-debs`.
    pub debs: &'a Path,
    /// Paths of the image.
    pub paths: &'a Paths,
}

/// One row's sample, or the reason why there is none.
pub type Measurement = (&'static str, Unit, Result<f64, String>);

/// One workload, which may fill several rows.
pub struct WriteWorkload {
    /// Name, for `--workload` and for the row of the daemon's processor time.
    pub name: &'static str,
    /// Whether the daemon's processor time is reported as a row.
    pub daemon: bool,
    /// Runs one pass.
    pub run: fn(&WorkloadInput<'_>) -> Vec<Measurement>,
}

/// All workloads, in the order in which they run.
pub const WRITE_WORKLOADS: &[WriteWorkload] = &[
    WriteWorkload { name: "untar 20,000", daemon: true, run: untar },
    WriteWorkload { name: "write 512 MiB", daemon: true, run: sequential },
    WriteWorkload { name: "write+fsync", daemon: false, run: write_and_fsync },
    WriteWorkload { name: "append", daemon: false, run: append },
    WriteWorkload { name: "cheap changes", daemon: false, run: cheap_changes },
    WriteWorkload { name: "apt-get install", daemon: true, run: apt_get_install },
    WriteWorkload { name: "copy-up x4", daemon: false, run: parallel_copy_up },
];

impl WorkloadInput<'_> {
    /// A path in the layer's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(LAYER_DIR).join(name)
    }
}

/// Runs something and returns its duration in milliseconds.
pub fn timed<E: std::fmt::Display>(what: impl FnOnce() -> Result<(), E>) -> Result<f64, String> {
    let start = Instant::now();
    what().map_err(|error| error.to_string())?;
    Ok(milliseconds(start.elapsed()))
}

fn untar(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let words = ["tar", "-xf", &input.small.display().to_string(), "-C", &input.path("into").display().to_string()]
        .map(str::to_owned);
    vec![("untar 20,000", Unit::Milliseconds, timed(|| run(&words).map(drop)))]
}

fn sequential(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let block: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8).collect();
    let write = || -> io::Result<()> {
        let mut file = File::create_new(input.path("into/sequential"))?;
        (0..512).try_for_each(|_| file.write_all(&block))?;
        file.sync_all()
    };
    vec![("write 512 MiB", Unit::Milliseconds, timed(write))]
}

/// Writes and fsyncs as a database's journal does. fio reports the duration of its writes, without its own start.
fn write_and_fsync(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    const COUNT: u64 = 500;
    let file = format!("--filename={}", input.path("into/journal").display());
    let size = format!("--size={}", COUNT * 4096);
    let words = ["fio", "--name=journal", &file, &size, "--rw=write", "--bs=4k", "--fsync=1", "--ioengine=psync"];
    let more = ["--fallocate=none", "--output-format=json"];
    let words: Vec<_> = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
    let runtime = run(&words).and_then(|output| {
        let json = output.find('{').map_or("", |at| &output[at..]);
        let report: serde_json::Value = serde_json::from_str(json).map_err(|e| format!("fio: {e}"))?;
        report["jobs"][0]["job_runtime"].as_f64().ok_or_else(|| "fio named no runtime".to_owned())
    });
    vec![("write+fsync 4 KiB", Unit::Microseconds, runtime.map(|ms| ms * 1000.0 / COUNT as f64))]
}

/// Appends a byte to a file.
pub fn append_to(file: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(b"x")
}

fn append(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    vec![("append to 256 MiB", Unit::Milliseconds, timed(|| append_to(&input.path("big-0"))))]
}

/// Changes that need no copy-up of the file's or directory's data. Each has a file of its own.
fn cheap_changes(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let truncate = || OpenOptions::new().write(true).truncate(true).open(input.path("big-1")).map(drop);
    let chmod = || fs::set_permissions(input.path("big-2"), fs::Permissions::from_mode(0o600));
    let mut figures = vec![
        ("rename 10,000 files", Unit::Milliseconds, timed(|| fs::rename(input.path("many"), input.path("moved")))),
        ("unlink 256 MiB", Unit::Milliseconds, timed(|| fs::remove_file(input.path("big-0")))),
        ("O_TRUNC 256 MiB", Unit::Milliseconds, timed(truncate)),
        ("chmod 256 MiB", Unit::Milliseconds, timed(chmod)),
    ];
    if let Err(wrong) = check_changes(input, figures[0].2.is_ok()) {
        figures.iter_mut().for_each(|figure| figure.2 = Err(wrong.clone()));
    }
    figures
}

/// Checks that the changes took place: a change that did not happen is not a fast one.
fn check_changes(input: &WorkloadInput<'_>, renamed: bool) -> Result<(), String> {
    let many = input.path(if renamed { "moved" } else { "many" });
    let count = fs::read_dir(&many).map_err(|e| format!("{}: {e}", many.display()))?.count();
    let big = |n: usize| fs::metadata(input.path(&format!("big-{n}"))).map_err(|e| format!("big-{n}: {e}"));
    match (count, big(0).is_err(), big(1)?.len(), big(2)?.permissions().mode() & 0o777) {
        (crate::lower::MANY, true, 0, 0o600) => Ok(()),
        other => Err(format!("afterwards: {other:?}")),
    }
}

fn apt_get_install(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let run_in_chroot = |script: String| -> Result<(), String> {
        let output = tempfile::tempfile().map_err(|e| e.to_string())?;
        let handle = || output.try_clone().map_err(|e| e.to_string());
        let mut command: Command = chroot(input.at, input.debs, &script);
        command.stdin(std::process::Stdio::null()).stdout(handle()?).stderr(handle()?);
        let status = command.status().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("{script}: {status}: {}", last_line(output))) }
    };
    let time =
        run_in_chroot(format!("{APT} update")).and_then(|()| timed(|| run_in_chroot(format!("{APT} install git"))));
    vec![("apt-get install", Unit::Milliseconds, time)]
}

fn last_line(mut file: File) -> String {
    let mut text = String::new();
    let _ = io::Seek::rewind(&mut file).and_then(|()| io::Read::read_to_string(&mut file, &mut text));
    text.trim().lines().last().unwrap_or_default().to_owned()
}

/// Latency of stat in another process while big files are copied up.
fn parallel_copy_up(input: &WorkloadInput<'_>) -> Vec<Measurement> {
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let (copied, mut waits) = std::thread::scope(|scope| {
        let files: Vec<_> = (0..BIGS).map(|n| input.path(&format!("big-{n}"))).collect();
        let copies: Vec<_> = files.into_iter().map(|file| scope.spawn(move || append_to(&file))).collect();
        let stats = scope.spawn(|| stat_until(input, &done));
        let copies = copies.into_iter().map(|copy| copy.join().unwrap_or_else(panicked));
        let copied = copies.fold(Ok(()), io::Result::and);
        done.store(true, Ordering::Release);
        (copied, stats.join().unwrap_or_default())
    });
    let took = milliseconds(start.elapsed());
    waits.sort_by(f64::total_cmp);
    let p99 = waits.get(waits.len() * 99 / 100).copied().ok_or_else(|| "no stat completed".to_owned());
    let copied = copied.map_err(|error| error.to_string());
    vec![
        ("4 x 256 MiB copied", Unit::Milliseconds, copied.clone().map(|()| took)),
        ("stat p99 meanwhile", Unit::Milliseconds, copied.and(p99)),
    ]
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> io::Result<()> {
    Err(io::Error::other("a thread panicked"))
}

/// Calls stat, in turn, on a path of the image and on a name never looked up before, which no cache can answer; at
/// least once.
fn stat_until(input: &WorkloadInput<'_>, done: &AtomicBool) -> Vec<f64> {
    let mut waits = Vec::new();
    let absent = |number: usize| input.path(&format!("many/absent-{number}"));
    let path = |path: &std::ffi::CString| input.at.join(path.to_string_lossy().as_ref());
    for (number, known) in input.paths.every.iter().cycle().enumerate() {
        for path in [path(known), absent(number)] {
            let start = Instant::now();
            let _ = std::hint::black_box(fs::symlink_metadata(path));
            waits.push(milliseconds(start.elapsed()));
        }
        if done.load(Ordering::Acquire) {
            break;
        }
    }
    waits
}
