//! `podman build` with each engine as its storage driver: one store per engine, with the same base image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use crate::below::unmount_below;
use crate::engine::{milliseconds, run};

type Outcome<T> = Result<T, String>;

/// A Dockerfile of ten typical steps: files are created, copied, changed, moved and removed.
const STEPS: &str = "\
FROM localhost/base:1
RUN mkdir -p /work/src && echo 1 >/one
RUN for n in $(seq 2000); do echo $n >/work/src/$n; done
RUN cp -a /etc /work/etc
RUN chmod -R g+w /work/src
RUN mv /work/src /work/moved
RUN rm -rf /usr/share/doc && mkdir /usr/share/doc
RUN for file in /etc/*.conf; do echo >>$file; done
RUN tar -C /usr -cf /work/share.tar share
RUN find / -xdev -type f -newer /one >/found
RUN rm -rf /work/moved /work/share.tar && ln -s work /w
";
/// Resource limits for containers: podman raises them by default, which some machines do not permit.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// The stores of all engines. Dropping it removes everything except its directory.
pub struct BuildStores {
    dir: PathBuf,
    /// A short path for podman's runtime data: podman refuses long ones.
    running: TempDir,
}

impl BuildStores {
    /// Creates a store for each engine, with an image of one directory. The result names the engines for which that
    /// failed.
    pub fn make(dir: PathBuf, plyfs: &Path, base: &Path, engines: &[String]) -> Outcome<(Self, Vec<(String, String)>)> {
        let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
        fs::create_dir_all(dir.join("context")).map_err(failed)?;
        fs::create_dir(dir.join("program")).map_err(failed)?;
        fs::write(dir.join("context/Containerfile"), STEPS).map_err(failed)?;
        // Container tools look at the name of the mount program.
        symlink(plyfs, dir.join("program/fuse-overlayfs")).map_err(failed)?;
        let running = tempfile::Builder::new().prefix("bench-").tempdir().map_err(failed)?;
        let tar = dir.join("base.tar").display().to_string();
        run(&["tar", "-cf", &tar, "-C", &base.display().to_string(), "."].map(str::to_owned))?;
        let stores = Self { dir, running };
        let imported = |engine: &String| {
            let error = run(&stores.podman(engine, &["import", "-q", &tar, "localhost/base:1"])).err()?;
            Some((engine.clone(), error))
        };
        let failures = engines.iter().filter_map(imported).collect();
        Ok((stores, failures))
    }

    fn podman(&self, engine: &str, words: &[&str]) -> Vec<String> {
        let path = |name: &str| self.dir.join(engine).join(name).display().to_string();
        let run_root = self.running.path().join(engine).display().to_string();
        let (root, tmp) = (path("root"), path("tmp"));
        let base = ["podman", "--root", &root, "--runroot", &run_root, "--tmpdir", &tmp, "--storage-driver", "overlay"];
        let program = match engine {
            "overlayfs" => None,
            "fuse-overlayfs" => Some("/usr/bin/fuse-overlayfs".to_owned()),
            _ => Some(self.dir.join("program/fuse-overlayfs").display().to_string()),
        };
        let option = program.map(|program| format!("overlay.mount_program={program}"));
        let storage: Vec<&str> = option.iter().flat_map(|option| ["--storage-opt", option.as_str()]).collect();
        [&base[..], &storage, words].concat().iter().map(|word| (*word).to_owned()).collect()
    }

    /// Builds once, and removes the result. Returns the milliseconds.
    pub fn build(&self, engine: &str) -> Outcome<f64> {
        let context = self.dir.join("context").display().to_string();
        let options = ["build", "-q", "--no-cache", "--layers", "--network", "none", "--runtime", "runc"];
        rustix::fs::sync();
        let start = Instant::now();
        run(&self.podman(engine, &[&options[..], &LIMITS, &["-t", "localhost/built:1", &context]].concat()))?;
        let took = milliseconds(start.elapsed());
        run(&self.podman(engine, &["rmi", "-f", "localhost/built:1"]))?;
        Ok(took)
    }
}

impl Drop for BuildStores {
    fn drop(&mut self) {
        unmount_below(&self.dir);
        unmount_below(self.running.path());
    }
}
