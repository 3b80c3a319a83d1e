//! The FUSE connection: the descriptor between the kernel and a server, and the INIT handshake.
//!
//! A connection outlives its server. The kernel sends INIT once, at the mount; it is kept, and each server's session
//! gets it through a socket pair, in place of the kernel. The answer of the first server goes to the kernel. Then the
//! session's descriptor is replaced by the real one.

use super::server::Server;
use super::{MountError, Options, SUBTYPE, why_refused};
use crate::sys::{self, MountFlags};
use fuser::{Config, Session};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The smallest buffer to read a request into: FUSE_MIN_READ_BUFFER of linux/fuse.h.
const REQUEST_BUFFER: usize = 8192;
/// Lengths of `struct fuse_in_header` and `struct fuse_out_header`.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Offsets of `flags` and `flags2` in `struct fuse_init_in` and `struct fuse_init_out`.
const IN_FLAGS: [usize; 2] = [IN_HEADER + 12, IN_HEADER + 16];
const OUT_FLAGS: [usize; 2] = [OUT_HEADER + 12, OUT_HEADER + 32];
/// FUSE_INIT_EXT: the second word of flags is valid.
const INIT_EXT: u32 = 1 << 30;
/// FUSE_HAS_RESEND, in the second word of flags.
const HAS_RESEND: u32 = 1 << 7;
/// FUSE_NOTIFY_RESEND: the kernel queues again every request that was read and not answered.
const NOTIFY_RESEND: i32 = 7;
/// Opcodes of linux/fuse.h that have no answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// What a connection is besides its descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The kernel's INIT request.
    pub init: Vec<u8>,
    /// The mountpoint, as an absolute path.
    pub mountpoint: PathBuf,
    /// The device number of the file system.
    pub st_dev: u64,
}

/// A mounted FUSE file system without a server.
pub struct Connection {
    device: OwnedFd,
    /// The kernel's INIT request.
    init: Vec<u8>,
    mountpoint: PathBuf,
    st_dev: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

impl Connection {
    /// Mounts at the existing directory `at`. Every access to the mount waits until a server has begun.
    pub fn mount(at: &Path, options: &Options, writable: bool) -> Result<Connection, MountError> {
        let unusable = |why: String| MountError::Mountpoint { path: at.into(), why };
        let mountpoint = at.canonicalize().map_err(|e| unusable(sys::describe(&e)))?;
        if !mountpoint.is_dir() {
            return Err(unusable("it is not a directory".into()));
        }
        let refused = |e: io::Error| MountError::Refused { path: at.into(), why: why_refused(&e) };
        let device = options.mount(&mountpoint, writable && !options.read_only).map_err(refused)?;
        let known = sys::device_of(&mountpoint).and_then(|st_dev| {
            let mut init = vec![0; REQUEST_BUFFER];
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&device, &mut *init))?;
            init.truncate(length);
            Ok((st_dev, init))
        });
        let (st_dev, init) = known.map_err(|e| {
            let _gone = sys::unmount(&mountpoint, true);
            refused(e)
        })?;
        Ok(Connection { device, init, mountpoint, st_dev })
    }

    /// Takes a connection over from the process that had this one's place before an exec.
    pub(super) fn of_parts(device: OwnedFd, parts: Parts) -> Connection {
        Connection { device, init: parts.init, mountpoint: parts.mountpoint, st_dev: parts.st_dev }
    }

    /// Returns what [`Connection::of_parts`] takes, without the descriptor.
    pub(super) fn parts(&self) -> Parts {
        Parts { init: self.init.clone(), mountpoint: self.mountpoint.clone(), st_dev: self.st_dev }
    }

    /// The mountpoint, as an absolute path.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The device number of the file system.
    pub(super) fn st_dev(&self) -> u64 {
        self.st_dev
    }

    /// Whether the kernel can send requests again that a server has read and not answered (Linux 6.9).
    pub fn can_resend(&self) -> bool {
        word(&self.init, IN_FLAGS[0]) & INIT_EXT != 0 && word(&self.init, IN_FLAGS[1]) & HAS_RESEND != 0
    }

    /// Makes a session of a server on this connection. `is_first` says that no server is known to
    /// have answered INIT.
    pub(super) fn session(&self, server: Server, config: Config, is_first: bool) -> io::Result<Session<Server>> {
        let (kernels, servers) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::write(&kernels, &self.init)?;
        let session = Session::from_fd(server, servers, config.acl, config)?;
        let mut answer = [0; REQUEST_BUFFER];
        let length = rustix::io::read(&kernels, &mut answer)?;
        if is_first {
            let answer = &mut answer[..length];
            if self.can_resend() && word(answer, OUT_FLAGS[0]) & INIT_EXT != 0 {
                let flags = word(answer, OUT_FLAGS[1]) | HAS_RESEND;
                answer[OUT_FLAGS[1]..][..4].copy_from_slice(&flags.to_ne_bytes());
            }
            match rustix::io::write(&self.device, answer) {
                // A server that died then has answered.
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        sys::replace_descriptor(&session, &self.device)?;
        Ok(session)
    }

    /// Makes the kernel send again what dead servers have not answered.
    pub(super) fn resend(&self) -> io::Result<()> {
        let header = [&(OUT_HEADER as u32).to_ne_bytes()[..], &NOTIFY_RESEND.to_ne_bytes(), &[0; 8]].concat();
        rustix::io::write(&self.device, &header)?;
        Ok(())
    }

    /// Answers every request with EIO, until the mount is gone.
    pub(super) fn answer_with_errors(&self) -> io::Result<()> {
        // The kernel wants a buffer for the largest request.
        let mut request = vec![0; (super::negotiate::MAX_REQUEST as usize) + REQUEST_BUFFER];
        loop {
            match rustix::io::read(&self.device, &mut *request) {
                Ok(length) if length >= IN_HEADER && !UNANSWERED.contains(&word(&request, 4)) => {
                    let error = -rustix::io::Errno::IO.raw_os_error();
                    let header = [&(OUT_HEADER as u32).to_ne_bytes()[..], &error.to_ne_bytes(), &request[8..16]];
                    // An error means that the caller has gone.
                    let _unwanted = rustix::io::write(&self.device, &header.concat());
                }
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::NODEV) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Options {
    /// Mounts with mount(2); through fusermount3 if mount(2) is not permitted.
    fn mount(&self, at: &Path, writable: bool) -> io::Result<OwnedFd> {
        let entered = self.allow_other || self.allow_root;
        let wanted = [(entered, "allow_other"), (self.default_permissions, "default_permissions")];
        let switches = wanted.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        let options: Vec<&str> = switches.chain(self.kernel_options.iter().map(String::as_str)).collect();
        let flags = MountFlags { write: writable, suid: self.suid, dev: self.dev, exec: self.exec };
        match sys::mount_fuse(&self.source, SUBTYPE, at, flags, &options) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let either = |on: bool, yes: &'static str, no: &'static str| if on { yes } else { no };
                let flags = [
                    either(writable, "rw", "ro"),
                    "noatime",
                    either(self.suid, "suid", "nosuid"),
                    either(self.dev, "dev", "nodev"),
                    either(self.exec, "exec", "noexec"),
                ];
                let names = [format!("fsname={}", self.source), format!("subtype={SUBTYPE}")];
                let others = flags.iter().chain(&options).map(|option| (*option).to_owned());
                let all: Vec<String> = names.into_iter().chain(others).collect();
                sys::mount_fuse_by_helper(at, &all)
            }
            mounted => mounted,
        }
    }
}
