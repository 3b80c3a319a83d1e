//! FUSE server: mounts an [`Fs`] and serves the kernel's requests. The only module that uses fuser, so that the
//! library can be replaced.

mod caller;
mod convert;
mod governor;
mod ids;
mod placement;
mod pool;
mod processors;
mod server;
mod set_id;
mod traffic;
mod wake;

pub use ids::{IdMap, IdRange};
pub use placement::Placing;
pub use wake::Waking;

use crate::fs::Fs;
use crate::sys::{self, MountFlags};
use fuser::{Config, MountOption, SessionACL};
use governor::Governor;
use server::Server;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use traffic::Traffic;

/// Options of a FUSE mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The source in `/proc/mounts` (`fsname=`).
    pub source: String,
    /// Whether other users may access the mount (`allow_other`).
    pub allow_other: bool,
    /// Whether root may access the mount if other users may not (`allow_root`).
    pub allow_root: bool,
    /// Whether the mount is read-only, even if the file system is writable.
    pub read_only: bool,
    /// Whether POSIX ACLs are enforced, if the image has any.
    pub acls: bool,
    /// Whether extended attributes are supported.
    pub xattrs: bool,
    /// Further mount options for the kernel, such as `context=...`.
    pub kernel_options: Vec<String>,
    /// The map of user IDs.
    pub users: IdMap,
    /// The map of group IDs.
    pub groups: IdMap,
    /// Whether the kernel checks permissions by mode, owner and ACL (`default_permissions`).
    pub default_permissions: bool,
    /// Whether set-id bits and file capabilities work.
    pub suid: bool,
    /// Whether device nodes work.
    pub dev: bool,
    /// Whether programs can be executed.
    pub exec: bool,
    /// Wake-up policy.
    pub waking: Waking,
    /// Worker placement policy.
    pub placing: Placing,
}

impl Options {
    /// Returns the default options. Root's mount is open to all users and works like a local file system, with set-ID
    /// programs and devices, so that one can chroot into it. Another user's mount is private, without set-ID programs
    /// and devices; the user may read all of it, as the user owns the layers it consists of.
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
        // A second worker serves requests while the first waits for the disk. With polling, a second worker would
        // compete with the caller for a processor.
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

    /// Mounts with mount(2), which sets the subtype that fuser would omit; through fusermount3 if mount(2) is not
    /// permitted.
    fn connect(&self, server: Server, at: &Path, waking: Waking, writable: bool) -> io::Result<fuser::Session<Server>> {
        let entered = self.allow_other || self.allow_root;
        let wanted = [(entered, "allow_other"), (self.default_permissions, "default_permissions")];
        let switches = wanted.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        let options: Vec<&str> = switches.chain(self.kernel_options.iter().map(String::as_str)).collect();
        let flags = MountFlags { write: writable, suid: self.suid, dev: self.dev, exec: self.exec };
        match sys::mount_fuse(&self.source, SUBTYPE, at, flags, &options) {
            Ok(connection) => fuser::Session::from_fd(server, connection, self.acl(), self.config(waking, writable))
                .inspect_err(|_| drop(sys::unmount(at, true))),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                fuser::Session::new(server, at, &self.config(waking, writable))
            }
            Err(e) => Err(e),
        }
    }
}

/// The subtype: the file system type in the mount table is `fuse.plyfs`.
const SUBTYPE: &str = "plyfs";

/// A mount error.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint does not exist or is not a directory.
    #[error("cannot mount at {}: {why}", path.display())]
    Mountpoint {
        /// The mountpoint.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The kernel or fusermount3 refused to mount.
    #[error("cannot mount at {}: {why}", path.display())]
    Refused {
        /// The mountpoint.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

/// The kernel's read-ahead, in KiB. Its default of 128 would split a request of the maximum size into eight.
const READ_AHEAD_KIB: u32 = 1024;

/// A FUSE session: a live mount and the threads that serve it.
pub struct Session {
    worker: JoinHandle<io::Result<()>>,
    governor: Governor,
    mountpoint: PathBuf,
    device: u64,
}

/// Mounts `fs` at the existing directory `at` and starts serving. The mount is live when this returns.
pub fn mount(fs: Arc<Fs>, at: &Path, options: &Options) -> Result<Session, MountError> {
    let unusable = |why: String| MountError::Mountpoint { path: at.into(), why };
    let refused = |e: io::Error| MountError::Refused { path: at.into(), why: why_refused(&e) };
    let mountpoint = at.canonicalize().map_err(|e| unusable(sys::describe(&e)))?;
    if !mountpoint.is_dir() {
        return Err(unusable("it is not a directory".into()));
    }
    let traffic = Arc::new(Traffic::new());
    let waking = options.waking.resolve();
    let writable = fs.is_writable() && !options.read_only;
    let notifier = Arc::new(OnceLock::new());
    let server = Server::new(fs, traffic.clone(), notifier.clone(), options);
    let session = options.connect(server, &mountpoint, waking, writable).map_err(refused)?;
    notifier.get_or_init(|| session.notifier());
    // The mount exists now: on an error below it must be removed, as no process would serve it.
    serve(session, &traffic, (waking, options.placing), mountpoint.clone()).map_err(|e| {
        let _gone = sys::unmount(&mountpoint, true);
        refused(e)
    })
}

fn serve(
    session: fuser::Session<Server>,
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

/// Detaches all mounts of that device number, the latest first. An error if another mount covers one of them.
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

/// Returns the first line of fuser's or fusermount3's message, with a hint for known errors.
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
    /// The mountpoint, as an absolute path.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns a function that detaches the mount at all its mountpoints, also where it was bind-mounted or moved to.
    /// It may be called from any thread. Open files stay usable, and [`Session::run`] does not return, until the last
    /// one is closed. An error if another mount covers it: detaching would remove that one as well.
    pub fn detacher(&self) -> impl Fn() -> io::Result<()> + Send + 'static {
        let device = self.device;
        move || detach_all(device)
    }

    /// Waits until the mount is detached and all its files are closed.
    pub fn run(self) -> io::Result<()> {
        let ended =
            self.worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that serves the mount failed")));
        drop(self.governor);
        ended
    }
}
