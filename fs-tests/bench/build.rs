//! `scripts/bench build`: building images on the Debian image, with plyfs and with buildah and podman on kernel
//! overlayfs.
//!
//! Every round runs all of them in turn. Slowness is never a failure.

// The modules shared with the tests panic as they do; their unit tests run with the tests only.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(unused_imports))]

mod below;
#[expect(dead_code, reason = "what mounting needs")]
mod engine;
mod load;
#[expect(dead_code, reason = "what mounting needs")]
mod options;
#[expect(dead_code, reason = "what reading needs")]
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use below::unmount_below;
use engine::{milliseconds, run};
use options::{Options, cache};
use report::{Goal, Samples, Unit};

type Outcome<T> = Result<T, String>;

const PLYFS: &str = "plyfs";
const BUILDAH: &str = "buildah";
const PODMAN: &str = "podman";
/// tar of the same files, and `plyfs run` of the same command.
const OTHER: &str = "tar, plyfs run";

const STEPS: &str = "ten steps";
const CACHED: &str = "ten steps, cached";
const COPY: &str = "COPY 20,000 files";
const TRUE: &str = "RUN true";

/// Goals of plyfs.
const GOALS: &[(&str, Goal)] = &[
    (STEPS, Goal::Ratio(BUILDAH, 0.5)),
    (STEPS, Goal::Ratio(PODMAN, 0.5)),
    (CACHED, Goal::Below(100.0)),
    (COPY, Goal::Ratio(OTHER, 1.2)),
    (TRUE, Goal::More(OTHER, 30.0)),
];

/// Ten steps with small changes.
const TEN: &str = "\
FROM localhost/base:1
ENV A=1
RUN mkdir -p /work/src && echo 1 >/one
RUN for n in 1 2 3 4 5 6 7 8 9; do echo $n >/work/src/$n; done
COPY file /work/file
RUN cp -a /etc/default /work/etc
RUN mv /work/src /work/moved
RUN rm -rf /usr/share/doc/bash
WORKDIR /srv/app
RUN echo >>/etc/passwd
RUN ln -s work /w && chmod 700 /work/etc
";
/// Resource limits: the programs raise them by default, which some machines do not permit.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

fn main() -> std::process::ExitCode {
    options::run(&[], |options| bench(options).map(|()| true))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The stores of all programs, and the contexts. Dropping it removes everything.
struct Bed {
    scratch: TempDir,
    /// A short path for podman's runtime data: podman refuses long ones.
    running: TempDir,
    program: String,
}

impl Drop for Bed {
    fn drop(&mut self) {
        unmount_below(self.scratch.path());
        unmount_below(self.running.path());
    }
}

impl Bed {
    fn new(options: &Options) -> Outcome<Bed> {
        let cache = cache()?;
        let failed = |e: std::io::Error| e.to_string();
        let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&cache).map_err(failed)?;
        let running = tempfile::Builder::new().prefix("bench-").tempdir().map_err(failed)?;
        let bed = Bed { scratch, running, program: text(&options.plyfs) };
        for (name, dockerfile) in [
            (STEPS, TEN),
            (COPY, "FROM localhost/base:1\nCOPY files /files\n"),
            (TRUE, "FROM localhost/base:1\nRUN true\n"),
        ] {
            let dir = bed.context(name);
            fs::create_dir_all(&dir).map_err(failed)?;
            fs::write(dir.join("Dockerfile"), dockerfile).map_err(failed)?;
        }
        fs::write(bed.context(STEPS).join("file"), "file").map_err(failed)?;
        for number in 0..20_000 {
            let dir = bed.context(COPY).join("files").join((number / 200).to_string());
            fs::create_dir_all(&dir).map_err(failed)?;
            fs::write(dir.join(number.to_string()), format!("{number:4000}")).map_err(failed)?;
        }
        // The lowest layer of the Debian image is an image of its own.
        let image = format!("oci:{}", text(&cache.join("debian/oci")));
        run(&bed.words(PLYFS, &["pull", "-q", &image]))?;
        let layers = run(&bed.words(PLYFS, &["inspect", "-f", "{{index .RootFS.Layers 0}}", "oci:latest"]))?;
        let layer = layers.trim().strip_prefix("sha256:").ok_or("the image has no layers")?;
        let tar = text(&bed.scratch.path().join(PLYFS).join("root/layers/sha256").join(layer).join("layer.tar"));
        run(&bed.words(PLYFS, &["import", &tar, "localhost/base:1"]))?;
        run(&bed.words(PODMAN, &["import", "-q", &tar, "localhost/base:1"]))?;
        Ok(bed)
    }

    fn context(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("context {name}"))
    }

    /// A command of a program on its own store.
    fn words(&self, program: &str, more: &[&str]) -> Vec<String> {
        // buildah and podman have one store.
        let store = if program == BUILDAH { PODMAN } else { program };
        let path = |name: &str| text(&self.scratch.path().join(store).join(name));
        let running = text(&self.running.path().join(store));
        let (root, tmp) = (path("root"), path("tmp"));
        let base = match program {
            PLYFS => vec![self.program.as_str(), "--root", &root],
            PODMAN => {
                vec![program, "--root", &root, "--runroot", &running, "--tmpdir", &tmp, "--storage-driver", "overlay"]
            }
            _ => vec![program, "--root", &root, "--runroot", &running, "--storage-driver", "overlay"],
        };
        [&base[..], more].concat().iter().map(|word| (*word).to_owned()).collect()
    }

    /// Builds; returns the milliseconds.
    fn build(&self, program: &str, name: &str, cached: bool) -> Outcome<f64> {
        let context = text(&self.context(name));
        let mut words = vec!["build", "-q", "-t", "localhost/built:1", "--network", "host"];
        if !cached {
            words.push("--no-cache");
        }
        if program != PLYFS {
            words.extend(["--layers", "--runtime", "runc"]);
            words.extend(LIMITS);
        }
        words.push(&context);
        rustix::fs::sync();
        let start = Instant::now();
        run(&self.words(program, &words))?;
        Ok(milliseconds(start.elapsed()))
    }
}

fn bench(options: &Options) -> Outcome<()> {
    let bed = Bed::new(options)?;
    let samples = Samples::of_rounds(options.rounds, &options.loads, |samples| {
        for (row, context, cached) in
            [(STEPS, STEPS, false), (CACHED, STEPS, true), (COPY, COPY, false), (TRUE, TRUE, false)]
        {
            if !options.is_selected(row) {
                continue;
            }
            for program in [BUILDAH, PODMAN, PLYFS] {
                samples.add(row, Unit::Milliseconds, program, bed.build(program, context, cached)?);
            }
            let other = match row {
                COPY => {
                    let (files, tar) = (text(&bed.context(COPY)), text(&bed.scratch.path().join("files.tar")));
                    vec!["tar".to_owned(), "-C".into(), files, "-cf".into(), tar, "files".into()]
                }
                TRUE => bed.words(PLYFS, &["run", "--rm", "localhost/base:1", "true"]),
                _ => continue,
            };
            rustix::fs::sync();
            let start = Instant::now();
            run(&other)?;
            samples.add(row, Unit::Milliseconds, OTHER, milliseconds(start.elapsed()));
        }
        Ok(())
    })?;
    samples.print(&[BUILDAH, PODMAN, PLYFS, OTHER].map(str::to_owned), BUILDAH);
    samples.print_goals(PLYFS, GOALS);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-build.json");
    fs::write(&target, format!("{:#}\n", samples.json())).map_err(|e| format!("{}: {e}", target.display()))?;
    println!("{}", target.display());
    Ok(())
}
