//! The kernel's side: mounts an [`Fs`] and answers for it. The only module that names fuser, so that the transport can be
//! replaced one day.

mod adapter;
mod caller;
mod convert;
mod governor;
mod ids;
mod placement;
mod pool;
mod processors;
mod set_id;
mod traffic;
mod wake;

pub use ids::{IdMap, IdRange};
pub use placement::Placing;
pub use wake::Waking;

use crate::fs::Fs;
use crate::sys::{self, MountFlags};
use adapter::Adapter;
use fuser::{Config, MountOption, SessionACL};
use governor::Governor;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use traffic::Traffic;

/// How an image is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What stands as the mount's source in `/proc/mounts`.
    pub source: String,
    /// Whether others than the user who mounts may enter (`allow_other`).
    pub allow_other: bool,
    /// Whether root may, if others may not (`allow_root`).
    pub allow_root: bool,
    /// Whether nothing may be changed, whatever is mounted.
    pub read_only: bool,
    /// Whether POSIX ACLs are heeded, where there are any.
    pub acls: bool,
    /// Whether there are extended attributes.
    pub xattrs: bool,
    /// Further options for the kernel, as `context=...`.
    pub kernel_options: Vec<String>,
    /// Which owners are shown as which.
    pub users: IdMap,
    /// Which groups are shown as which.
    pub groups: IdMap,
    /// Whether the kernel checks permissions by mode, owner and ACL (`default_permissions`).
    pub default_permissions: bool,
    /// Whether set-id bits and file capabilities work.
    pub suid: bool,
    /// Whether device nodes work.
    pub dev: bool,
    /// Whether programs can be run.
    pub exec: bool,
    /// What is done against the cost of wake-ups.
    pub waking: Waking,
    /// Worker placement.
    pub placing: Placing,
}

impl Options {
    /// What suits the user: for root the mount is for everyone and works like a local file system, with set-id programs
    /// and devices, so that one can chroot into it. Another user's is his alone; the kernel leaves set-id and devices
    /// out of it, and he may read all of it, as he may read the layers that it is made of.
    pub fn for_user(source: &str, root: bool) -> Options {
        Options {
            source: source.into(),
            allow_other: root,
            allow_root: false,
            read_only: false,
            acls: true,
            xattrs: true,
            kernel_options: Vec::new(),
            users: IdMap::default(),
            groups: IdMap::default(),
            default_permissions: root,
            suid: root,
            dev: root,
            exec: true,
            waking: Waking::Auto,
            placing: Placing::Auto,
        }
    }

    fn config(&self, waking: Waking, writable: bool) -> Config {
        let either = |on: bool, yes: MountOption, no: MountOption| if on { yes } else { no };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(self.source.clone()),
            MountOption::Subtype(SUBTYPE.into()),
            either(writable, MountOption::RW, MountOption::RO),
            MountOption::NoAtime,
            either(self.suid, MountOption::Suid, MountOption::NoSuid),
            either(self.dev, MountOption::Dev, MountOption::NoDev),
            either(self.exec, MountOption::Exec, MountOption::NoExec),
        ];
        if self.default_permissions {
            config.mount_options.push(MountOption::DefaultPermissions);
        }
        config.mount_options.extend(self.kernel_options.iter().cloned().map(MountOption::CUSTOM));
        config.acl = self.acl();
        // With wake-ups cheap, a second worker lets one request wait for the disk and the others go on. Where the
        // worker polls, a second would poll against the caller for a processor.
        config.n_threads = Some(if waking == Waking::Poll { 1 } else { 2 });
        config
    }

    fn acl(&self) -> SessionACL {
        match (self.allow_other, self.allow_root) {
            (true, _) => SessionACL::All,
            (false, true) => SessionACL::RootAndOwner,
            (false, false) => SessionACL::Owner,
        }
    }

    /// Mounts by the system call where that is allowed, which knows the subtype that fuser would leave out, and through
    /// fusermount3 where it is not.
    fn connect(
        &self,
        adapter: Adapter,
        at: &Path,
        waking: Waking,
        writable: bool,
    ) -> io::Result<fuser::Session<Adapter>> {
        let entered = self.allow_other || self.allow_root;
        let wanted = [(entered, "allow_other"), (self.default_permissions, "default_permissions")];
        let switches = wanted.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        let options: Vec<&str> = switches.chain(self.kernel_options.iter().map(String::as_str)).collect();
        let flags = MountFlags { write: writable, suid: self.suid, dev: self.dev, exec: self.exec };
        match sys::mount_fuse(&self.source, SUBTYPE, at, flags, &options) {
            Ok(connection) => fuser::Session::from_fd(adapter, connection, self.acl(), self.config(waking, writable))
                .inspect_err(|_| drop(sys::unmount(at, true))),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                fuser::Session::new(adapter, at, &self.config(waking, writable))
            }
            Err(e) => Err(e),
        }
    }
}

/// The mount's type is `fuse.` and this.
const SUBTYPE: &str = "plyfs";

/// Why an image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint is missing or of no use.
    #[error("cannot mount at {}: {why}", path.display())]
    Mountpoint {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel, or fusermount3 for it, refused.
    #[error("cannot mount at {}: {why}", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What it said.
        why: String,
    },
}

/// How much the kernel reads ahead of a reader, in KiB: the default of 128 makes eight requests of one.
const READ_AHEAD_KIB: u32 = 1024;

/// A live mount and the threads that answer for it.
pub struct Session {
    worker: JoinHandle<io::Result<()>>,
    governor: Governor,
    mountpoint: PathBuf,
    device: u64,
}

/// Mounts `fs` at the existing directory `at` and begins to answer. The mount is live when this returns.
pub fn mount(fs: Arc<Fs>, at: &Path, options: &Options) -> Result<Session, MountError> {
    let unusable = |why: String| MountError::Mountpoint { path: at.into(), why };
    let refused = |e: io::Error| MountError::Refused { path: at.into(), why: why_refused(&e) };
    let mountpoint = at.canonicalize().map_err(|e| unusable(sys::describe(&e)))?;
    if !mountpoint.is_dir() {
        return Err(unusable("it is not a directory".into()));
    }
    let traffic = Arc::new(Traffic::new());
    let waking = options.waking.settle();
    let writable = fs.is_writable() && !options.read_only;
    let notifier = Arc::new(OnceLock::new());
    let adapter = Adapter::new(fs, traffic.clone(), notifier.clone(), options);
    let session = options.connect(adapter, &mountpoint, waking, writable).map_err(refused)?;
    notifier.get_or_init(|| session.notifier());
    // From here on the mount is there, and must not stay if nobody is to answer for it.
    serve(session, &traffic, (waking, options.placing), mountpoint.clone()).map_err(|e| {
        let _gone = sys::unmount(&mountpoint, true);
        refused(e)
    })
}

fn serve(
    session: fuser::Session<Adapter>,
    traffic: &Arc<Traffic>,
    (waking, placing): (Waking, Placing),
    mountpoint: PathBuf,
) -> io::Result<Session> {
    let governor = Governor::start(traffic, waking, placing, session.as_fd().try_clone_to_owned()?)?;
    let worker = std::thread::Builder::new().name("plyfs-serve".into()).spawn(move || session.run())?;
    let device = sys::device_of(&mountpoint)?;
    if let Err(e) = sys::set_read_ahead(device, READ_AHEAD_KIB) {
        tracing::debug!("the kernel's read-ahead stays what it was: {e}");
    }
    Ok(Session { worker, governor, mountpoint, device })
}

/// Detaches the mounts of that device number that nothing covers, the last one first.
fn detach_all(device: u64) -> io::Result<()> {
    let mut table = sys::mounts()?;
    while let Some(last) = table.pop() {
        if last.device != device {
            if let Some(covered) = table.iter().rfind(|below| below.mountpoint == last.mountpoint)
                && covered.device == device
            {
                return Err(io::Error::other(format!("another mount lies over {}", last.mountpoint.display())));
            }
            continue;
        }
        sys::unmount(&last.mountpoint, true)?;
    }
    Ok(())
}

/// One line out of what fuser and fusermount3 say, and what to do about it.
fn why_refused(error: &io::Error) -> String {
    let said = error.to_string();
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it gave no reason");
    match error.kind() {
        io::ErrorKind::NotFound => format!("{line} (is FUSE in the kernel, and fusermount3 installed?)"),
        io::ErrorKind::PermissionDenied if line.contains("user_allow_other") => {
            "others may enter a user's mount only if /etc/fuse.conf has the line user_allow_other".into()
        }
        _ => line.strip_prefix("fusermount3: ").unwrap_or(line).to_string(),
    }
}

impl Session {
    /// Where it is mounted, as an absolute path.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Takes the mount out of the tree of mounts, from any thread, wherever it has been bound or moved to. Files that are
    /// open stay usable, and [`Session::run`] goes on, until the last of them is closed. Under another mount it has to
    /// stay, which is an error: taking it away would take the other one with it.
    pub fn detacher(&self) -> impl Fn() -> io::Result<()> + Send + 'static {
        let device = self.device;
        move || detach_all(device)
    }

    /// Waits until the mount is gone and all its files are closed.
    pub fn run(self) -> io::Result<()> {
        let ended =
            self.worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that serves the mount failed")));
        drop(self.governor);
        ended
    }
}
