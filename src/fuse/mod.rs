//! FUSE server: mounts an [`Fs`] and serves the kernel's requests. The only module that uses fuser, so that the
//! library can be replaced.

mod caller;
mod connection;
mod convert;
mod governor;
mod ids;
mod ioctl;
mod listings;
mod negotiate;
mod once;
mod placement;
mod pool;
mod processors;
mod reply;
mod server;
mod set_id;
mod supervisor;
mod syncing;
mod traffic;
mod wake;

use connection::Connection;
pub use connection::Parts;
pub use ids::{IdMap, IdRange};
pub use placement::Placing;
pub use supervisor::{OnSignal, Owner, ServiceError, SupervisedMount, Supervisor};
pub use wake::Waking;

use crate::fs::Fs;
use crate::handover::Handover;
use crate::sys;
use fuser::{Config, SessionACL};
use governor::Governor;
use server::Server;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
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

    fn config(&self, waking: Waking) -> Config {
        let mut config = Config::default();
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

/// The threads of this process that serve a connection.
struct Session {
    worker: JoinHandle<io::Result<()>>,
    governor: Governor,
}

/// Starts serving a connection. `handover` is the mount's memory.
fn serve(connection: &Connection, fs: Arc<Fs>, options: &Options, handover: Arc<Handover>) -> io::Result<Session> {
    let traffic = Arc::new(Traffic::new());
    let waking = options.waking.resolve();
    let notifier = Arc::new(OnceLock::new());
    let (is_first, is_resumed) = (!handover.is_live(), handover.is_resumed());
    let server = Server::new(fs, traffic.clone(), notifier.clone(), options, handover.clone());
    let session = connection.session(server, options.config(waking), is_first)?;
    notifier.get_or_init(|| session.notifier());
    let governor = Governor::start(&traffic, waking, options.placing, session.as_fd().try_clone_to_owned()?)?;
    if is_resumed {
        connection.resend()?;
    }
    let (begin, begun) = mpsc::channel();
    let work = move || {
        handover.set_thread(rustix::thread::gettid().as_raw_nonzero().get());
        drop(begin);
        session.run()
    };
    let worker = std::thread::Builder::new().name("plyfs-serve".into()).spawn(work)?;
    // The thread closes the channel when its ID is known.
    let _closed: Result<(), _> = begun.recv();
    if is_first && let Err(e) = sys::set_read_ahead(connection.st_dev(), READ_AHEAD_KIB) {
        tracing::debug!("the kernel's read-ahead stays what it was: {e}");
    }
    Ok(Session { worker, governor })
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

/// Returns a function that detaches the mount with that device number at all its mountpoints, also where it was bind-mounted or
/// moved to. It may be called from any thread. Open files stay usable, and the mount is served, until the last one is
/// closed. An error if another mount covers it: detaching would remove that one as well.
fn detacher(device: u64) -> impl Fn() -> io::Result<()> + Send + 'static {
    move || detach_all(device)
}

impl Session {
    /// Waits until the mount is detached and all its files are closed.
    fn run(self) -> io::Result<()> {
        let ended =
            self.worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that serves the mount failed")));
        drop(self.governor);
        ended
    }
}
