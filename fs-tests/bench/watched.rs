//! Commands measured for duration and peak memory.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Interval between two samples of the memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

/// Duration and memory of a command.
pub struct ResourceUsage {
    /// From start to end.
    pub took: Duration,
    /// Peak resident memory, in mebibytes.
    pub peak: f64,
    /// Peak of the sampled anonymous memory, in mebibytes.
    pub anonymous: f64,
}

/// Runs a command; its output is the error. A very short command has no memory samples.
pub fn run(words: &[&str]) -> Result<ResourceUsage, String> {
    let failed = |what: String| format!("{}: {what}", words.join(" "));
    let output = tempfile::NamedTempFile::new().map_err(|e| failed(e.to_string()))?;
    let handle = || output.reopen().map_err(|e| failed(e.to_string()));
    let [program, arguments @ ..] = words else { return Err("no command".to_owned()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(handle()?).stderr(handle()?);
    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let status = format!("/proc/{}/status", child.id());
    let done = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| sample_memory(&status));
        let code = child.wait().map_err(|e| e.to_string());
        let took = start.elapsed();
        let (peak, anonymous) = watcher.join().map_err(|_| "the watcher panicked".to_owned())?;
        Ok((code?, ResourceUsage { took, peak, anonymous }))
    });
    let (code, usage) = done.map_err(failed)?;
    if code.success() {
        return Ok(usage);
    }
    let text = fs::read_to_string(output.path()).unwrap_or_default();
    Err(failed(format!("{code}: {}", text.trim())))
}

/// Samples a process until it ends. A dead one has no memory in its status, or no status.
fn sample_memory(status: &str) -> (f64, f64) {
    let (mut peak, mut anonymous) = (0.0, 0.0_f64);
    loop {
        let text = fs::read_to_string(status).unwrap_or_default();
        let field = |name: &str| -> Option<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
        };
        let (Some(most), Some(now)) = (field("VmHWM"), field("RssAnon")) else { return (peak, anonymous) };
        (peak, anonymous) = (most, anonymous.max(now));
        std::thread::sleep(SAMPLE_INTERVAL);
    }
}
