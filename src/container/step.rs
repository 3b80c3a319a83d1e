//! A step of a build: one command in an image's root file system, with changes in an upper directory of its own.
//!
//! The command runs in an OCI runtime, or without one, as `chroot` runs it. It runs in a process of its own, because a
//! sandbox can be forked only by a process without threads.

use super::bundle::{self, Wanted};
use super::chroot::{self, Plan};
use super::copy;
use super::init::mount_proc;
use super::root::{MountedRoot, Root};
use super::rootfs::Rootfs;
use super::run_error::RunError;
use super::runtime;
use super::sandbox::{self, Sandbox, StartupPipe};
use super::userns::Mapping;
use crate::kernel::Engine;
use crate::store::containers::{Bind, Container, ROOTFS, Tmpfs, list_of};
use crate::store::{Image, Store};
use crate::sys::{self, Ended, Namespaces, Restrictions, Signals};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What runs a step's command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Isolation {
    /// The OCI runtime at this path.
    Runtime(PathBuf),
    /// Nothing but namespaces, as `chroot`.
    Chroot,
}

/// A file system that is mounted for one step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StepMount {
    /// Absolute path in the root file system.
    pub target: String,
    /// What is mounted there.
    pub what: Mounted,
}

/// The kind of a step's mount.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Mounted {
    /// A path in an image; if it is writable, what is written is discarded.
    Image {
        /// The image.
        image: Box<Image>,
        /// The path in it.
        source: String,
        /// Whether it is writable.
        writable: bool,
    },
    /// A directory of the host.
    Dir {
        /// Its path.
        path: PathBuf,
        /// Whether it is read-only.
        read_only: bool,
        /// The mode, owner and group that it gets if it is empty.
        attributes: (u32, u32, u32),
        /// What it is filled with if it is empty: a path in an image.
        filling: Option<(Box<Image>, String)>,
    },
    /// A tmpfs with these mount options.
    Tmpfs(String),
    /// A file in memory.
    File {
        /// Its content.
        content: Vec<u8>,
        /// Its mode.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Whether it may be executed.
        is_program: bool,
    },
}

/// A step to run.
pub struct Step<'a> {
    /// The store that has the image.
    pub store: &'a Store,
    /// An empty folder for the step, which gets `upper`, `work` and more.
    pub dir: &'a Path,
    /// The command as a container's configuration; its image is the root file system. Its own mounts are those of
    /// `mounts`.
    pub container: Container,
    /// What runs the command.
    pub isolation: &'a Isolation,
    /// The mounts, in order.
    pub mounts: &'a [StepMount],
}

/// The end of a step's command.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Absolute paths that were created only as mount points.
    pub made: BTreeSet<Vec<u8>>,
}

const MADE: &str = "made.json";

/// The upper directory of the step in the folder `dir`.
pub fn upper(dir: &Path) -> PathBuf {
    dir.join("upper")
}

/// Runs the step; its changes are in [`upper`] afterwards. The process must be single-threaded; without root's rights
/// it is root in a user namespace afterwards.
pub fn run(mut step: Step<'_>) -> Result<Ran, RunError> {
    let failed =
        |what: &'static str| move |e: io::Error| RunError::own(format!("cannot {what}: {}", sys::describe(&e)));
    let mapping = sandbox::isolate().map_err(|e| RunError::own(e.to_string()))?;
    for name in [ROOTFS, "upper", "work"] {
        DirBuilder::new().mode(0o755).create(step.dir.join(name)).map_err(failed("create the step's folders"))?;
    }
    let mut images = Vec::new();
    for (number, mount) in step.mounts.iter().enumerate() {
        prepare(&mut step.container, step.dir, number, mount, &mut images).map_err(failed("prepare a mount"))?;
    }
    let at = step.dir.join(ROOTFS);
    let sandbox = Sandbox::prepare(at, |startup, signals| work(&step, mapping.as_ref(), startup, signals))?;
    let code = sandbox.run(|at| mount_all(&step, &images, mapping.as_ref(), at))?;
    let made = match fs::read(step.dir.join(MADE)) {
        Ok(bytes) => serde_json::from_slice::<BTreeSet<String>>(&bytes).unwrap_or_default(),
        Err(_) => BTreeSet::new(),
    };
    if let Isolation::Runtime(_) = step.isolation {
        runtime::sweep(step.dir, &step.container.id);
    }
    Ok(Ran { code, made: made.into_iter().map(|path| format!("/{}", path.trim_matches('/')).into_bytes()).collect() })
}

/// An image to mount for a step.
struct ImageMount<'a> {
    image: &'a Image,
    source: &'a str,
    writable: bool,
    /// The folder for its mountpoint and its upper directory.
    dir: PathBuf,
    /// The path that is bind-mounted: what is at `source`.
    bound: PathBuf,
    /// The directory that is filled with it.
    fills: Option<&'a Path>,
}

impl<'a> ImageMount<'a> {
    fn new(
        image: &'a Image,
        source: &'a str,
        writable: bool,
        dir: PathBuf,
        fills: Option<&'a Path>,
    ) -> io::Result<ImageMount<'a>> {
        for name in ["root", "upper", "work"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let bound = dir.join("bound");
        Ok(ImageMount { image, source, writable, dir, bound, fills })
    }

    /// Copies the mounted directory into the one that it fills, which is empty.
    fn fill(&self) -> Result<(), RunError> {
        let Some(path) = self.fills else { return Ok(()) };
        let failed = |e: io::Error| RunError::own(format!("cannot fill a cache mount: {}", sys::describe(&e)));
        let from = Rootfs::open(&self.bound).map_err(failed)?;
        let to = Rootfs::open(path).map_err(failed)?;
        let copied = copy::tree(&from, Path::new("/"), &to, Path::new("/"));
        copied.map(drop).map_err(|e| {
            // The next step shall not take a part for the whole.
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                let path = entry.path();
                let _left = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            }
            RunError::own(format!("cannot fill a cache mount: {e}"))
        })
    }
}

/// Adds a mount to the container's configuration, and creates what it needs in the folder `dir`.
fn prepare<'a>(
    container: &mut Container,
    dir: &Path,
    number: usize,
    mount: &'a StepMount,
    images: &mut Vec<ImageMount<'a>>,
) -> io::Result<()> {
    let own = dir.join(format!("mount-{number}"));
    let mut bind = |source: &Path, read_only| {
        let source = source.to_string_lossy().into_owned();
        container.host.binds.push(Bind { source, target: mount.target.clone(), read_only });
    };
    match &mount.what {
        Mounted::Dir { path, read_only, attributes: (mode, uid, gid), filling } => {
            bind(path, *read_only);
            if fs::read_dir(path)?.next().is_none() {
                chown(path, Some(*uid), Some(*gid))?;
                fs::set_permissions(path, Permissions::from_mode(*mode))?;
                if let Some((image, source)) = filling {
                    images.push(ImageMount::new(image, source, false, own, Some(path))?);
                }
            }
        }
        Mounted::Tmpfs(options) => {
            container.host.tmpfs.push(Tmpfs { target: mount.target.clone(), options: options.clone() });
        }
        Mounted::File { content, mode, uid, gid, is_program } => {
            // In memory: a secret must not be left on a disk.
            fs::create_dir(&own)?;
            let closed = Restrictions { read_only: false, no_devices: true, no_programs: !is_program };
            let memory = sys::new_file_system("tmpfs", &[("source", "tmpfs"), ("mode", "0711")], closed)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            sys::attach(&memory, &rustix::fs::open(&own, flags, Mode::empty())?)?;
            let file = own.join("file");
            fs::write(&file, content)?;
            chown(&file, Some(*uid), Some(*gid))?;
            fs::set_permissions(&file, Permissions::from_mode(*mode))?;
            bind(&file, true);
        }
        Mounted::Image { image, source, writable } => {
            let mount = ImageMount::new(image, source, *writable, own, None)?;
            bind(&mount.bound, !writable);
            images.push(mount);
        }
    }
    Ok(())
}

/// Mounts the root file system and the images.
fn mount_all(
    step: &Step<'_>,
    images: &[ImageMount<'_>],
    mapping: Option<&Mapping>,
    at: &Path,
) -> Result<MountedRoot, RunError> {
    let engine = Engine::of_word(&step.container.host.engine).unwrap_or_default();
    let store = step.store;
    let source = step.container.reference.as_str();
    let mut all: Vec<MountedRoot> = Vec::new();
    let mut bound = Vec::new();
    for mount in images {
        let upper = mount.writable.then(|| (mount.dir.join("upper"), mount.dir.join("work")));
        let scratch = mount.dir.join("scratch");
        let root = Root { store, image: mount.image, source, upper, volatile: true, engine, mapping, scratch };
        all.push(root.mount(&mount.dir.join("root"))?);
        bind_inside(mount)
            .map_err(|e| RunError::own(format!("cannot mount {}: {}", mount.source, sys::describe(&e))))?;
        mount.fill()?;
        bound.push(mount.bound.clone());
    }
    let upper = Some((upper(step.dir), step.dir.join("work")));
    let (image, scratch) = (&step.container.image, step.dir.join("scratch"));
    // The upper directory is discarded once the layer is written.
    let root = Root { store, image, source, upper, volatile: true, engine, mapping, scratch };
    all.push(root.mount(at)?);
    let (detachers, finishers): (Vec<_>, Vec<_>) = all.into_iter().map(|root| (root.detach, root.finish)).unzip();
    Ok(MountedRoot {
        detach: Box::new(move || {
            bound.iter().try_for_each(|path| sys::unmount(path, true))?;
            detachers.iter().try_for_each(|detach| detach())
        }),
        finish: Box::new(move || finishers.into_iter().try_for_each(|finish| finish())),
    })
}

/// Bind-mounts what is at the source path inside a mounted image, whose symbolic links lead nowhere else.
fn bind_inside(mount: &ImageMount<'_>) -> io::Result<()> {
    let place = Rootfs::open(&mount.dir.join("root"))?.locate(mount.source)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode).is_dir();
    let copy = sys::copy_mount(&place)?;
    if is_dir {
        fs::create_dir(&mount.bound)?;
    } else {
        fs::write(&mount.bound, "")?;
    }
    sys::attach(&copy, &rustix::fs::open(&mount.bound, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The work of the sandbox's child: runs the command and returns its exit code.
fn work(step: &Step<'_>, mapping: Option<&Mapping>, mut startup: StartupPipe, signals: &Signals) -> i32 {
    match step.isolation {
        Isolation::Chroot => chroot::work(&plan(step, mapping), startup, signals),
        Isolation::Runtime(program) => match begin(step, program, mapping) {
            Ok(first) => {
                drop(startup);
                sandbox::wait(first, signals).map_or(125, Ended::code)
            }
            Err(error) => startup.report(&error),
        },
    }
}

fn plan(step: &Step<'_>, mapping: Option<&Mapping>) -> Plan {
    let container = &step.container;
    let env = list_of(&container.config, "Env");
    let env = env.iter().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into()));
    let path = ("PATH".into(), super::spec::PATH.into());
    Plan {
        at: step.dir.join(ROOTFS),
        writable: true,
        binds: container.host.binds.clone(),
        tmpfs: container.host.tmpfs.clone(),
        network: container.host.network,
        made: Some(step.dir.join(MADE)),
        user: container.text("User").to_owned(),
        directory: Path::new("/").join(container.text("WorkingDir")),
        env: [path].into_iter().chain(env).collect(),
        command: container.command().into_iter().map(Into::into).collect(),
        mapping: mapping.cloned(),
        terminal: None,
    }
}

/// Starts the command in the runtime; returns its PID.
fn begin(step: &Step<'_>, program: &Path, mapping: Option<&Mapping>) -> Result<i32, RunError> {
    let failed =
        |what: &'static str| move |e: io::Error| RunError::own(format!("cannot {what}: {}", sys::describe(&e)));
    sys::unshare(Namespaces { mount: true, ..Namespaces::default() }).map_err(failed("create a mount namespace"))?;
    mount_proc().map_err(failed("mount /proc for the runtime"))?;
    std::env::set_current_dir(step.dir).map_err(failed("change to the step's folder"))?;
    let (container, dir) = (&step.container, step.dir);
    let root = dir.join(ROOTFS);
    let wanted = Wanted { container, dir, root: &root, mapping, own_users: false, terminal: false, size: None };
    let made = bundle::write(&wanted)?;
    let written = serde_json::to_vec(&made).map_err(io::Error::from);
    written.and_then(|list| fs::write(dir.join(MADE), list)).map_err(failed("write the list of mount points"))?;
    runtime::start(program, dir, &container.id, |call| {
        call.stdin(Stdio::null());
        Ok(())
    })
}
