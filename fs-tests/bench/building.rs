//! `podman build` with each engine under it: a store for each, with the same image to begin with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use crate::below::unmount_below;
use crate::engine::{milliseconds, run};

type Outcome<T> = Result<T, String>;

/// Ten steps, as those of images are: files made, copied, changed, moved and removed.
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
/// Podman raises these unless told otherwise, which not every machine lets it.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// The stores. All of it is gone when this is dropped, but for its directory.
pub struct Building {
    dir: PathBuf,
    /// Podman takes no long path for what is running.
    running: TempDir,
}

impl Building {
    /// Makes a store for each engine, with an image of one directory. Those for which that fails are named in the result.
    pub fn make(dir: PathBuf, plyfs: &Path, base: &Path, engines: &[String]) -> Outcome<(Self, Vec<(String, String)>)> {
        let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
        fs::create_dir_all(dir.join("context")).map_err(failed)?;
        fs::create_dir(dir.join("program")).map_err(failed)?;
        fs::write(dir.join("context/Containerfile"), STEPS).map_err(failed)?;
        // Containers' tools look at the name of what they mount with.
        symlink(plyfs, dir.join("program/fuse-overlayfs")).map_err(failed)?;
        let running = tempfile::Builder::new().prefix("bench-").tempdir().map_err(failed)?;
        let tar = dir.join("base.tar").display().to_string();
        run(&["tar", "-cf", &tar, "-C", &base.display().to_string(), "."].map(str::to_owned))?;
        let building = Self { dir, running };
        let imported = |engine: &String| {
            let error = run(&building.podman(engine, &["import", "-q", &tar, "localhost/base:1"])).err()?;
            Some((engine.clone(), error))
        };
        let failures = engines.iter().filter_map(imported).collect();
        Ok((building, failures))
    }

    fn podman(&self, engine: &str, words: &[&str]) -> Vec<String> {
        let place = |name: &str| self.dir.join(engine).join(name).display().to_string();
        let run_root = self.running.path().join(engine).display().to_string();
        let (root, tmp) = (place("root"), place("tmp"));
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

    /// Builds once, and removes what came of it. Returns the milliseconds.
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

impl Drop for Building {
    fn drop(&mut self) {
        unmount_below(&self.dir);
        unmount_below(self.running.path());
    }
}
