//! A writable union for tests: an image or lower directories, with an upper directory that persists across mounts.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::big_image;
use super::env::{Mount, TestEnv, run, unmount, wait_until_unused};
use super::killer::Disturbance;
use super::oci::{Compression, Image};

/// The implementation that serves the union. The environment variable `PLYFS_TEST_ENGINE` selects another one than
/// plyfs: a test that fails on kernel overlayfs too is wrong, or meets a limit of such unions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Plyfs,
    /// plyfs over plain directories, called as fuse-overlayfs would be.
    Directories,
    Overlayfs,
    FuseOverlayfs,
}

/// A store with one image, and an upper and a work directory for it.
pub struct WritableUnion {
    /// The store, and scratch space on the disk that the upper is on.
    pub env: TestEnv,
    engine: Engine,
    image: String,
    /// The layers as directories for the peers, topmost first.
    lower: Vec<PathBuf>,
    options: Vec<String>,
    disturbance: RefCell<Disturbance>,
}

/// The longest life of a server that is killed again and again.
const KILL_INTERVAL: Duration = Duration::from_millis(175);

impl Engine {
    fn from_env() -> Self {
        match std::env::var("PLYFS_TEST_ENGINE").as_deref() {
            Err(_) | Ok("" | "plyfs") => Self::Plyfs,
            Ok("directories") => Self::Directories,
            Ok("overlayfs") => Self::Overlayfs,
            Ok("fuse-overlayfs") => Self::FuseOverlayfs,
            Ok(other) => panic!("PLYFS_TEST_ENGINE={other}: wanted plyfs, directories, overlayfs or fuse-overlayfs"),
        }
    }
}

impl WritableUnion {
    /// A union over the image of `scripts/make-image`.
    pub fn debian() -> Self {
        let cache = big_image();
        let mut new = Self::empty("oci:latest");
        match new.engine {
            Engine::Plyfs => drop(new.env.ok(["pull", &format!("oci:{}:latest", cache.join("oci").display())])),
            Engine::Directories | Engine::Overlayfs | Engine::FuseOverlayfs => {
                let count = fs::read_dir(cache.join("layers")).unwrap().count();
                new.lower = (0..count).rev().map(|n| cache.join(format!("layers/{n}"))).collect();
            }
        }
        new
    }

    /// A union over a directory with the tar's content and further ones above it that have the same directories.
    pub fn over_directories(tar: Vec<u8>, count: usize) -> Self {
        let mut new = Self::empty("small:latest");
        if new.engine == Engine::Plyfs {
            new.engine = Engine::Directories;
        }
        new = new.with_tar(tar);
        let bottom = new.env.path("lower");
        for number in 1..count {
            let dir = new.env.path(format!("lower{number}"));
            copy_directories(&bottom, &dir);
            new.lower.insert(0, dir);
        }
        new
    }

    /// A union over an image of one layer.
    pub fn with_layer(tar: Vec<u8>) -> Self {
        Self::empty("small:latest").with_tar(tar)
    }

    fn with_tar(self, tar: Vec<u8>) -> Self {
        let mut new = self;
        let (layout, dir) = (new.env.path("small"), new.env.path("lower"));
        match new.engine {
            Engine::Plyfs => {
                Image::new().compressed(tar, Compression::None).write_layout(&layout);
                new.env.ok(["pull", &format!("oci:{}:latest", layout.display())]);
            }
            Engine::Directories | Engine::Overlayfs | Engine::FuseOverlayfs => {
                fs::create_dir(&dir).unwrap();
                fs::write(new.env.path("layer.tar"), tar).unwrap();
                let output = run(Command::new("tar").arg("-xpf").arg(new.env.path("layer.tar")).arg("-C").arg(&dir));
                assert_eq!(output.code, 0, "{output:#?}");
                new.lower = vec![dir];
            }
        }
        new
    }

    fn empty(image: &str) -> Self {
        let env = TestEnv::new();
        fs::create_dir(env.path("upper")).unwrap();
        fs::create_dir(env.path("work")).unwrap();
        let new = Self {
            env,
            engine: Engine::from_env(),
            image: image.to_owned(),
            lower: Vec::new(),
            options: Vec::new(),
            disturbance: RefCell::default(),
        };
        let kills = std::env::var_os("PLYFS_TEST_KILL_SERVERS").is_some();
        if kills { new.with_server_kills() } else { new }.with_options(&[])
    }

    /// Kills the server of every mount from now on, several times a second. The environment variable
    /// `PLYFS_TEST_KILL_SERVERS` does so for all tests.
    pub fn with_server_kills(mut self) -> Self {
        self.disturbance = RefCell::new(Disturbance::kills(KILL_INTERVAL));
        self
    }

    /// Mount with these options of `-o` from now on, after the comma-separated list in the environment variable
    /// `PLYFS_TEST_OPTIONS`, which applies to every mount of plyfs.
    pub fn with_options(mut self, options: &[&str]) -> Self {
        let own = matches!(self.engine, Engine::Plyfs | Engine::Directories);
        let all = std::env::var("PLYFS_TEST_OPTIONS").ok().filter(|_| own).unwrap_or_default();
        let all = all.split(',').filter(|option| !option.is_empty());
        self.options = all.chain(options.iter().copied()).map(str::to_owned).collect();
        self
    }

    /// Mount the union, with the changes of earlier mounts.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        let (upper, work) = (self.env.path("upper"), self.env.path("work"));
        let lower: Vec<_> = self.lower.iter().map(|layer| layer.display().to_string()).collect();
        let dirs = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        let all = [&[dirs], self.options.as_slice()].concat().join(",");
        let mut command = match self.engine {
            Engine::Plyfs => self.env.command(["mount", "--upper"]),
            Engine::Directories => self.env.command(["overlay"]),
            Engine::Overlayfs => Command::new("mount"),
            Engine::FuseOverlayfs => Command::new("fuse-overlayfs"),
        };
        match self.engine {
            Engine::Plyfs => {
                command.arg(upper).arg("--work").arg(work);
                if !self.options.is_empty() {
                    command.args(["-o", &self.options.join(",")]);
                }
                command.arg(&self.image);
            }
            Engine::Overlayfs => drop(command.args(["-t", "overlay", "overlay", "-o", &all])),
            Engine::Directories | Engine::FuseOverlayfs => drop(command.args(["-o", &all])),
        }
        let mount = Mount::start(&self.env, &mut command);
        if matches!(self.engine, Engine::Plyfs | Engine::Directories) {
            self.disturbance.borrow_mut().start(&self.env.path("upper"));
        }
        mount
    }

    /// Unmount, and require that it worked.
    #[track_caller]
    pub fn unmount(&self, mount: Mount) {
        self.disturbance.borrow_mut().stop();
        if self.engine == Engine::Plyfs {
            return mount.unmount();
        }
        unmount(mount.path());
        if self.engine == Engine::Directories {
            wait_until_unused(&self.env.path("upper"));
        }
    }

    /// Require that the digest of every layer in the store matches its name, computed without plyfs.
    #[track_caller]
    pub fn assert_lower_unchanged(&self) {
        if self.engine != Engine::Plyfs {
            return;
        }
        let mut seen = 0;
        for layer in fs::read_dir(self.env.root().join("layers/sha256")).unwrap() {
            let layer = layer.unwrap();
            assert_eq!(digest_of(&layer.path().join("layer.tar")), *layer.file_name().to_string_lossy());
            seen += 1;
        }
        assert!(seen > 0, "the store has no layers");
    }
}

/// Copies a directory tree without its files.
fn copy_directories(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        copy_directories(&entry.path(), &to.join(entry.file_name()));
    }
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
}

fn digest_of(file: &Path) -> String {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).unwrap() {
            0 => return hasher.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
            count => hasher.update(&buffer[..count]),
        }
    }
}
