//! `scripts/bench look`: looking into the Debian image without a mount, and coreutils on a mount of kernel overlayfs.
//!
//! Every round runs all of them in turn. Slowness is never a failure.

// The modules shared with the tests panic as they do; their unit tests run with the tests only.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(unused_imports))]

#[expect(dead_code, reason = "what mounting needs")]
mod engine;
mod load;
#[expect(dead_code, reason = "what mounting needs")]
mod options;
#[expect(dead_code, reason = "what reading needs")]
mod report;
mod watched;

use std::fs;
use std::path::Path;

use engine::{lower, milliseconds, run};
use options::{Options, cache};
use report::{BASE, Goal, Samples, Unit};

type Outcome<T> = Result<T, String>;

const PLYFS: &str = "plyfs";
const IMAGE: &str = "oci:latest";
/// The same image with one more layer.
const CHANGED: &str = "changed:1";

/// Goals of plyfs.
const GOALS: &[(&str, Goal)] = &[
    ("ls /etc", Goal::Below(10.0)),
    ("cat a file", Goal::Below(10.0)),
    ("layers PATH", Goal::Below(10.0)),
    ("ls -lR", Goal::Ratio(BASE, 0.5)),
    ("diff, one layer", Goal::Below(20.0)),
    ("explore", Goal::Below(50.0)),
];

fn main() -> std::process::ExitCode {
    options::run(&[], |options| bench(options).map(|()| true))
}

/// Takes the mount away when the benchmark ends.
struct Overlay<'a>(&'a Path);

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        // An error leaves a mount, which is seen in its directory.
        let _left = run(&words(&["umount", &text(self.0)]));
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn bench(options: &Options) -> Outcome<()> {
    let cache = cache()?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&cache).map_err(|e| e.to_string())?;
    let [root, at, upper] = ["root", "at", "upper"].map(|name| scratch.path().join(name));
    [&at, &upper].into_iter().try_for_each(fs::create_dir).map_err(|e| e.to_string())?;
    let (program, root) = (text(&options.plyfs), text(&root));
    let plyfs = |more: &[&str]| run(&words(&[&[program.as_str(), "--root", &root], more].concat()));
    plyfs(&["pull", "-q", &format!("oci:{}:latest", cache.join("debian/oci").display())])?;
    plyfs(&["mount", "--upper", &text(&upper), IMAGE, &text(&at)])?;
    fs::write(at.join("etc/changed"), "changed").map_err(|e| e.to_string())?;
    plyfs(&["umount", &text(&at)])?;
    plyfs(&["commit", "--upper", &text(&upper), CHANGED])?;
    let layers: Vec<String> = lower(&cache.join("debian"))?.iter().map(|layer| text(layer)).collect();
    run(&words(&[
        "mount",
        "-t",
        "overlay",
        "overlay",
        "-o",
        &format!("ro,lowerdir={}", layers.join(":")),
        &text(&at),
    ]))?;
    let _mounted = Overlay(&at);
    let samples = Samples::of_rounds(options.rounds, &options.loads, |samples| {
        for (row, script) in SCRIPTS {
            let ours = script.replace("PLYFS", &format!("{program} --root {root}"));
            time(samples, row, PLYFS, &ours)?;
        }
        let words = [&[PYTHON, "-c", FIRST_SCREEN][..], &[&program, "--root", &root, "explore", IMAGE]].concat();
        let took = run(&self::words(&words))?;
        let took: f64 = took.trim().parse().map_err(|_| format!("explore: {took}"))?;
        samples.add("explore", Unit::Milliseconds, PLYFS, took);
        for (row, script) in PEER {
            time(samples, row, BASE, &format!("cd {} && {script}", text(&at)))?;
        }
        Ok(())
    })?;
    samples.print(&[BASE, PLYFS].map(str::to_owned), BASE);
    samples.print_goals(PLYFS, GOALS);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-look.json");
    fs::write(&target, format!("{:#}\n", samples.json())).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}

/// What is measured: the row, and the command, from start to end.
const SCRIPTS: &[(&str, &str)] = &[
    ("ls /etc", "exec PLYFS ls oci:latest /etc"),
    ("cat a file", "exec PLYFS cat oci:latest /etc/passwd"),
    ("layers PATH", "exec PLYFS layers oci:latest /etc/passwd"),
    ("layers", "exec PLYFS layers oci:latest"),
    ("ls -lR", "exec PLYFS ls -lR oci:latest"),
    ("find -name", "exec PLYFS find oci:latest -name '*.conf'"),
    ("du -s", "exec PLYFS du -s oci:latest"),
    ("diff, one layer", "exec PLYFS diff oci:latest changed:1"),
];
const PYTHON: &str = "/usr/bin/python3";
/// Runs a command on a pseudo-terminal and prints after how many milliseconds it has drawn its last line; then types q.
const FIRST_SCREEN: &str = "
import os, pty, sys, time
begun = time.time()
pid, fd = pty.fork()
if pid == 0:
    os.environ['TERM'] = 'xterm'
    os.execv(sys.argv[1], sys.argv[1:])
shown = b''
while b'quit' not in shown:
    shown += os.read(fd, 65536)
print((time.time() - begun) * 1000)
os.write(fd, b'q')
try:
    while os.read(fd, 65536): pass
except OSError: pass
os.waitpid(pid, 0)
";
const PEER: &[(&str, &str)] = &[
    ("ls /etc", "exec ls etc"),
    ("cat a file", "exec cat etc/passwd"),
    ("ls -lR", "exec ls -lR"),
    ("find -name", "exec find . -name '*.conf'"),
    ("du -s", "exec du -s"),
];

/// Runs a script and adds its time and its anonymous memory.
fn time(samples: &mut Samples, row: &str, engine: &str, script: &str) -> Outcome<()> {
    let used = watched::run(&["env", "LC_ALL=C", "bash", "-c", script])?;
    samples.add(row, Unit::Milliseconds, engine, milliseconds(used.took));
    if row == "ls -lR" {
        samples.add("ls -lR, peak", Unit::Mebibytes, engine, used.peak);
        samples.add("ls -lR, anon", Unit::Mebibytes, engine, used.anonymous);
    }
    Ok(())
}
