//! The engines under comparison, as data, and the memory and processor time of their daemons.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// One way of mounting the image.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Column heading and JSON key.
    pub name: String,
    /// Program and arguments. `{rootfs}` is the unpacked tree, `{lower}` the layers topmost first with colons between,
    /// `{upper}` and `{work}` the directories of a writable mount, `{plyfs}` the program, `{root}` its store, `{image}` the
    /// image in it, `{at}` the mount point.
    pub mount: Vec<String>,
}

/// The values of the placeholders of a mount command.
pub struct Setting {
    /// The directory that `scripts/make-image` created.
    pub cache: PathBuf,
    /// The plyfs program.
    pub plyfs: PathBuf,
    /// The layers as overlay lower directories, topmost first.
    pub lower: Vec<PathBuf>,
    /// The upper directory of writable engines.
    pub upper: PathBuf,
    /// The work directory of writable engines.
    pub work: PathBuf,
    /// A store with the image in it.
    pub root: PathBuf,
    /// The image's name in the store.
    pub image: String,
    /// The mountpoint of all engines, one after the other.
    pub at: PathBuf,
}

/// A mounted engine; unmounted when dropped.
pub struct Mounted<'a> {
    at: &'a Path,
    /// Duration of the mount command.
    pub took: Duration,
    daemon: Option<u32>,
}

impl Setting {
    fn fill(&self, word: &str) -> String {
        let lower: Vec<_> = self.lower.iter().map(|layer| layer.display().to_string()).collect();
        word.replace("{rootfs}", &self.cache.join("unpacked/rootfs").display().to_string())
            .replace("{lower}", &lower.join(":"))
            .replace("{upper}", &self.upper.display().to_string())
            .replace("{work}", &self.work.display().to_string())
            .replace("{plyfs}", &self.plyfs.display().to_string())
            .replace("{root}", &self.root.display().to_string())
            .replace("{image}", &self.image)
            .replace("{at}", &self.at.display().to_string())
    }

    /// Mounts an engine.
    pub fn mount(&self, engine: &Engine) -> Result<Mounted<'_>, String> {
        let words = engine.mount.iter().map(|word| self.fill(word)).collect::<Vec<_>>();
        let start = Instant::now();
        run(&words)?;
        let took = start.elapsed();
        if !is_mounted(&self.at) {
            return Err(format!("{} ended well and mounted nothing", engine.name));
        }
        Ok(Mounted { at: &self.at, took, daemon: daemon_of(&self.at) })
    }

    /// Whether an engine can be mounted here; prints the reason if not.
    pub fn can_mount(&self, engine: &Engine) -> bool {
        self.mount(engine).map_err(|error| eprintln!("bench: left out {}: {error}", engine.name)).is_ok()
    }

    /// Pulls the image into a store, for the plyfs engines; without it they are left out. Returns the duration.
    pub fn pull(&self, source: &str, all: &mut Vec<Engine>) -> Option<Duration> {
        if !all.iter().any(|engine| engine.name.starts_with("plyfs")) {
            return None;
        }
        let (plyfs, root) = (self.plyfs.display().to_string(), self.root.display().to_string());
        let start = Instant::now();
        match run(&[plyfs, "--root".to_owned(), root, "pull".to_owned(), source.to_owned()]) {
            Ok(_) => Some(start.elapsed()),
            Err(error) => {
                eprintln!("bench: left out plyfs: {error}");
                all.retain(|engine| !engine.name.starts_with("plyfs"));
                None
            }
        }
    }
}

impl Mounted<'_> {
    /// The daemon's private memory in bytes; 0 for an engine in the kernel.
    pub fn memory(&self) -> u64 {
        let Some(text) = self.proc("smaps_rollup") else { return 0 };
        let private =
            text.lines().filter(|line| line.starts_with("Private_Clean") || line.starts_with("Private_Dirty"));
        private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>() * 1024
    }

    /// The daemon's processor time so far, in clock ticks of 10 ms.
    pub fn processor_time(&self) -> Duration {
        // Fields after the name in parentheses, which may contain anything: utime and stime are the 12th and 13th.
        let ticks = self.proc("stat").and_then(|text| {
            let fields = text.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
            fields.map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()
        });
        Duration::from_millis(ticks.unwrap_or(0) * 10)
    }

    fn proc(&self, file: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.daemon?)).ok()
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let at = self.at.display().to_string();
        if run(&["umount".to_owned(), at.clone()]).is_err() {
            // A busy or dead mount must not stay below the next engine.
            let _ = run(&["umount".to_owned(), "--lazy".to_owned(), at]);
        }
        // Waits for the daemon to end, so that its end is not measured with the next engine.
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.proc("stat").is_some() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The image's layers as overlay lower directories, topmost first.
pub fn lower(cache: &Path) -> Result<Vec<PathBuf>, String> {
    let layers = cache.join("layers");
    let count = fs::read_dir(&layers).map_err(|e| format!("{}: {e}", layers.display()))?.count();
    Ok((0..count).rev().map(|n| layers.join(n.to_string())).collect())
}

/// A duration in milliseconds, as the table has it.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Runs a command; its output is the error. The output goes to a file, since a daemon may keep it open.
pub fn run(words: &[String]) -> Result<String, String> {
    let failed = |what: String| format!("{}: {what}", words.join(" "));
    let out = tempfile::NamedTempFile::new().map_err(|e| failed(e.to_string()))?;
    let handle = || out.reopen().map_err(|e| failed(e.to_string()));
    let [program, arguments @ ..] = words else { return Err("no command".to_owned()) };
    let mut command = Command::new(program);
    command.args(arguments).stdout(handle()?).stderr(handle()?).stdin(std::process::Stdio::null());
    let status = command.status().map_err(|e| failed(e.to_string()))?;
    let output = fs::read_to_string(out.path()).unwrap_or_default().trim().to_owned();
    if status.success() { Ok(output) } else { Err(failed(format!("{status}: {output}"))) }
}

fn is_mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == at))
}

/// The running process that has the mount point as an argument; if it supervises another one, that.
fn daemon_of(at: &Path) -> Option<u32> {
    let at = at.display().to_string();
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found = processes.filter(|pid| *pid != std::process::id()).find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == at.as_bytes())
    })?;
    let children = fs::read_to_string(format!("/proc/{found}/task/{found}/children")).unwrap_or_default();
    Some(children.split_whitespace().last().and_then(|child| child.parse().ok()).unwrap_or(found))
}
