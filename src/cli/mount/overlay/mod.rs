//! Overlay mounts: the command `overlay`, also called as `fuse-overlayfs` by podman and buildah. Mounts a union of
//! directories, without the store.

mod options;

use crate::backing::Disk;
use crate::cli::mount::daemon;
use crate::cli::mount::mountpoint;
use crate::cli::mount::takeover::{Program, Taken};
use crate::cli::{Cli, log};
use crate::fs::{Fs, LowerDirs, LowerDirsOptions};
use crate::sys;
use crate::upper::{Below, Settings, Upper, User, most_descriptors};
use clap::CommandFactory;
use options::Parsed;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Default)]
#[command(override_usage = "plyfs overlay [OPTIONS] -o lowerdir=DIR[:DIR...] MOUNTPOINT")]
#[command(after_help = "\
Mount options, as of fuse-overlayfs (options that it ignores are ignored, for
unknown ones a warning is printed):
  lowerdir=A:B:..          lower directories, the topmost first, at most 500;
                           `\\:` is a colon in a name
  upperdir=DIR             upper directory, which receives changes; without it
                           the mount is read-only
  workdir=DIR              work directory, on the file system of upperdir
  uidmapping=DISK:SHOWN:N[:..], gidmapping=..
                           map N IDs on disk, from DISK, to IDs from SHOWN;
                           show all others as the overflow ID
  squash_to_root, squash_to_uid=N, squash_to_gid=N
                           show that user or group as the owner of all files
  xattr_permissions=N      store owner, mode and type in an attribute:
                           1: security.fuseoverlayfs.override_stat
                           2: user.containers.override_stat
  volatile, fsync=0        never sync to disk
  redirect_dir=off         renaming a lower directory fails (EXDEV)
  metacopy=off             changing attributes of a lower file copies its data
                           (fuse-overlayfs supports neither redirects nor
                           metacopies)
  noacl, noxattrs          disable POSIX ACLs, extended attributes
  static_nlink             show a link count of 1 for every directory
  allow_other, allow_root, default_permissions, ro, [no]suid, [no]dev,
  [no]exec, fsname=NAME, context=LABEL, wake=auto|latency|poll|off,
  place=auto|follow|off
  replace                  unmount a dead mount at the mountpoint first
  remount                  change ro, rw, [no]suid, [no]dev, [no]exec of a mount

podman and buildah use plyfs with these lines in storage.conf and a link of that
name to plyfs. Without the lines they use their previous driver again (README:
which containers to commit before):
  [storage.options.overlay]
  mount_program = \"/usr/local/bin/fuse-overlayfs\"

Examples:
  plyfs overlay -o lowerdir=/a:/b,upperdir=/up,workdir=/work /mnt
  ln -s $(command -v plyfs) ~/bin/fuse-overlayfs
  fusermount3 -u /mnt")]
pub(in crate::cli) struct OverlayArgs {
    /// Mount options, comma-separated; `\,` is a comma in a value
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Run in the foreground
    #[arg(short)]
    foreground: bool,
    /// Run in the foreground, as -f
    #[arg(short, long)]
    debug: bool,
    /// Directory to mount at; an argument before it (the source, from mount.fuse3) is ignored
    #[arg(value_name = "MOUNTPOINT")]
    args: Vec<OsString>,
}

/// Runs as `fuse-overlayfs`, with its command line. Warns about unknown arguments and ignores them.
pub(in crate::cli) fn as_fuse_overlayfs(args: &[OsString], wanted: Option<&str>) -> anyhow::Result<()> {
    let mut called = OverlayArgs::default();
    let mut rest = args.iter();
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-o" => match rest.next() {
                Some(list) => called.options.push(list.clone()),
                None => anyhow::bail!("missing argument after -o"),
            },
            [b'-', b'o', list @ ..] => called.options.push(OsString::from_vec(list.to_vec())),
            b"-f" => called.foreground = true,
            b"-d" | b"--debug" => called.debug = true,
            b"-h" | b"--help" => return help(),
            b"-V" | b"--version" => {
                return crate::cli::output::stdout::line(format_args!(
                    "fuse-overlayfs: plyfs {}",
                    env!("CARGO_PKG_VERSION")
                ));
            }
            [b'-', b'-', ..] | [b'-', _, ..] => options::warn_unknown(argument.as_bytes()),
            _ => called.args.push(argument.clone()),
        }
    }
    log::begin(wanted)?;
    overlay(&called)
}

fn help() -> anyhow::Result<()> {
    let mut command = Cli::command();
    command.build();
    let overlay = command.find_subcommand_mut("overlay").map(|found| found.render_help().to_string());
    Ok(std::io::stdout().lock().write_all(overlay.unwrap_or_default().as_bytes())?)
}

/// Mounts a union, and serves it in the background unless `-f` or `-d` is given.
pub(in crate::cli) fn overlay(a: &OverlayArgs) -> anyhow::Result<()> {
    let Some(at) = a.args.last().map(Path::new) else { anyhow::bail!("no mountpoint given") };
    if let Some(flags) = options::remount(&a.options) {
        return mountpoint::remount(at, flags, |_| Ok(false));
    }
    let parsed = options::parse(&a.options)?;
    for unknown in &parsed.unknown {
        options::warn_unknown(unknown);
    }
    let taken = Taken::find()?;
    let mountpoint = match &taken {
        Some(taken) => taken.mountpoint().to_owned(),
        None => mountpoint::directory(at, parsed.replace)?,
    };
    let locks = taken.as_ref().map_or(&[][..], |taken| &taken.locks);
    let writable = WritableDirs::check(&parsed)?;
    let layers = LowerDirsOptions {
        layers: parsed.lower.clone(),
        static_nlink: parsed.static_nlink,
        descriptors: most_descriptors()?,
    };
    let dirs = LowerDirs::open(&layers).map_err(|(path, e)| {
        anyhow::anyhow!("cannot open the lower directory {}: {}", path.display(), sys::describe(&e))
    })?;
    let upper = writable.as_ref().map(|dirs| dirs.open(&parsed, locks)).transpose()?;
    let log = match &writable {
        Some(dirs) => dirs.work.join("plyfs/log"),
        None => "/dev/null".into(),
    };
    let job = daemon::Job {
        inodes: 0,
        writable: upper.is_some(),
        make: Box::new(move |handover| {
            let fs = Fs::of_dirs(dirs, upper, parsed.forms, Some(handover));
            fs.map_err(|e| anyhow::anyhow!("cannot use the upper directory with the lower directories: {e}"))
        }),
        guard: None,
        log,
        mountpoint,
        options: parsed.options,
        program: Program::own()?,
        taken,
    };
    daemon::serve(job, a.foreground || a.debug)
}

/// Resolves the path of a directory; an error if there is none.
fn existing(path: &Path, what: &str) -> anyhow::Result<PathBuf> {
    let refuse = |why: &str| anyhow::anyhow!("cannot use {what} {}: {why}", path.display());
    let found = path.canonicalize().map_err(|e| refuse(&sys::describe(&e)))?;
    if found.is_dir() { Ok(found) } else { Err(refuse("it is not a directory")) }
}

/// The upper and work directories, with resolved paths.
struct WritableDirs {
    upper: PathBuf,
    work: PathBuf,
}

impl WritableDirs {
    /// Checks that the directories exist and that none contains another, before anything is changed. `None` without
    /// `upperdir=`.
    fn check(parsed: &Parsed) -> anyhow::Result<Option<WritableDirs>> {
        let lower: Vec<PathBuf> =
            parsed.lower.iter().map(|path| existing(path, "the lower directory")).collect::<anyhow::Result<_>>()?;
        let (upper, work) = match (&parsed.upper, &parsed.work) {
            (None, _) => return Ok(None),
            (Some(_), None) => anyhow::bail!("upperdir= needs workdir=, a directory on the same file system"),
            (Some(upper), Some(work)) => (upper, work),
        };
        let (upper, work) = (existing(upper, "the upper directory")?, existing(work, "the work directory")?);
        let writable = WritableDirs { upper, work };
        for (given, real) in parsed.lower.iter().zip(&lower) {
            for (what, own) in [("upper", &writable.upper), ("work", &writable.work)] {
                if own.starts_with(real) || real.starts_with(own) {
                    let (own, given) = (own.display(), given.display());
                    anyhow::bail!(
                        "the {what} directory {own} and the lower directory {given} must not contain each other"
                    );
                }
            }
        }
        Ok(Some(writable))
    }

    fn open(&self, parsed: &Parsed, locks: &[OwnedFd]) -> anyhow::Result<Upper> {
        let settings = Settings {
            upper: self.upper.clone(),
            work: self.work.clone(),
            below: Below::Directories(parsed.owners),
            volatile: parsed.volatile,
            user: User::own(),
            native_owners: false,
            descriptors: most_descriptors()?,
        };
        Ok(Upper::open_locked(&settings, Box::new(Disk), locks)?)
    }
}
