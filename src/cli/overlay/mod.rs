//! `overlay`, also reached as `fuse-overlayfs`: directories merged at a mountpoint, as container tools have it mounted.
//! Nothing here touches the store.

mod options;

use super::{Cli, daemon, log, mountpoint};
use crate::backing::Disk;
use crate::fs::{Dirs, DirsOptions, Fs};
use crate::sys;
use crate::upper::{Below, Settings, Upper, User, most_descriptors};
use clap::CommandFactory;
use options::Parsed;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Default)]
#[command(override_usage = "plyfs overlay [OPTIONS] -o lowerdir=DIR[:DIR...] MOUNTPOINT")]
#[command(after_help = "\
Mount options, as fuse-overlayfs has them (what it ignores is ignored here too,
what is unknown is warned about):
  lowerdir=A:B:..          directories to merge, the topmost first, at most 500;
                           `\\:` is a colon in a name
  upperdir=DIR             where changes go; without it nothing can be changed
  workdir=DIR              for work under way, on upperdir's file system
  uidmapping=DISK:SHOWN:N[:..], gidmapping=..
                           which owners on disk are shown as which; all others
                           are shown as the overflow number
  squash_to_root, squash_to_uid=N, squash_to_gid=N
                           everything is shown as that user's or group's
  xattr_permissions=N      keep owner, mode and kind in an attribute:
                           1: security.fuseoverlayfs.override_stat
                           2: user.containers.override_stat
  volatile, fsync=0        never wait for the disk
  redirect_dir=off         renaming a directory of the lower ones fails (EXDEV)
  metacopy=off             a change of attributes copies the file
                           (neither form is known to fuse-overlayfs)
  noacl, noxattrs          without POSIX ACLs, without extended attributes
  static_nlink             one link for every directory
  allow_other, allow_root, default_permissions, ro, [no]suid, [no]dev,
  [no]exec, fsname=NAME, context=LABEL, wake=auto|latency|poll|off,
  place=auto|follow|off
  replace                  unmount a dead mount at the mountpoint first
  remount                  change ro, rw, [no]suid, [no]dev, [no]exec of a mount

podman and buildah run on plyfs with these lines of storage.conf, and a link of
that name to plyfs; without the lines they are back on what they had (README:
what a container should be committed for before):
  [storage.options.overlay]
  mount_program = \"/usr/local/bin/fuse-overlayfs\"

Examples:
  plyfs overlay -o lowerdir=/a:/b,upperdir=/up,workdir=/work /mnt
  ln -s $(command -v plyfs) ~/bin/fuse-overlayfs
  fusermount3 -u /mnt")]
pub(super) struct OverlayArgs {
    /// Mount options, comma-separated; `\,` is a comma in a value
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay in front
    #[arg(short)]
    foreground: bool,
    /// Stay in front and log what is done
    #[arg(short, long)]
    debug: bool,
    /// Where to mount; a word before it (the source, as mount.fuse3 passes it) is passed over
    #[arg(value_name = "MOUNTPOINT")]
    args: Vec<OsString>,
}

/// The program as `fuse-overlayfs`, with that one's arguments: unknown ones are warned about and passed over.
pub(super) fn as_fuse_overlayfs(args: &[OsString], wanted: Option<&str>) -> anyhow::Result<()> {
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
                return super::output::line(format_args!("fuse-overlayfs: plyfs {}", env!("CARGO_PKG_VERSION")));
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

/// Mounts, and serves in the background unless told otherwise.
pub(super) fn overlay(a: &OverlayArgs) -> anyhow::Result<()> {
    let Some(at) = a.args.last().map(Path::new) else { anyhow::bail!("no mountpoint given") };
    if let Some(flags) = options::remount(&a.options) {
        return mountpoint::remount(at, flags);
    }
    let parsed = options::parse(&a.options)?;
    for unknown in &parsed.unknown {
        options::warn_unknown(unknown);
    }
    let mountpoint = mountpoint::directory(at, parsed.replace)?;
    let places = Places::check(&parsed)?;
    let layers = DirsOptions {
        layers: parsed.lower.clone(),
        static_nlink: parsed.static_nlink,
        descriptors: most_descriptors()?,
    };
    let dirs = Dirs::open(&layers).map_err(|(path, e)| {
        anyhow::anyhow!("cannot open the lower directory {}: {}", path.display(), sys::describe(&e))
    })?;
    let upper = places.as_ref().map(|places| places.open(&parsed)).transpose()?;
    let log = match &places {
        Some(places) => places.work.join("plyfs/log"),
        None => "/dev/null".into(),
    };
    let job = daemon::Job {
        make: Box::new(move || {
            let fs = Fs::of_dirs(dirs, upper, parsed.forms);
            fs.map_err(|e| anyhow::anyhow!("cannot put the upper directory on the lower ones: {e}"))
        }),
        guard: None,
        log,
        mountpoint,
        options: parsed.options,
    };
    daemon::serve(job, a.foreground || a.debug)
}

/// A directory that must be there.
fn existing(path: &Path, what: &str) -> anyhow::Result<PathBuf> {
    let refuse = |why: &str| anyhow::anyhow!("cannot use {what} {}: {why}", path.display());
    let found = path.canonicalize().map_err(|e| refuse(&sys::describe(&e)))?;
    if found.is_dir() { Ok(found) } else { Err(refuse("it is not a directory")) }
}

/// Where changes go.
struct Places {
    upper: PathBuf,
    work: PathBuf,
}

impl Places {
    /// That the directories can be used together, before anything is changed.
    fn check(parsed: &Parsed) -> anyhow::Result<Option<Places>> {
        let lower: Vec<PathBuf> =
            parsed.lower.iter().map(|path| existing(path, "the lower directory")).collect::<anyhow::Result<_>>()?;
        let (upper, work) = match (&parsed.upper, &parsed.work) {
            (None, _) => return Ok(None),
            (Some(_), None) => anyhow::bail!("upperdir= needs workdir=, a directory on the same file system"),
            (Some(upper), Some(work)) => (upper, work),
        };
        let places =
            Places { upper: existing(upper, "the upper directory")?, work: existing(work, "the work directory")? };
        for (given, real) in parsed.lower.iter().zip(&lower) {
            for (what, own) in [("upper", &places.upper), ("work", &places.work)] {
                if own.starts_with(real) || real.starts_with(own) {
                    let (own, given) = (own.display(), given.display());
                    anyhow::bail!(
                        "the {what} directory {own} and the lower directory {given} must not lie in one another"
                    );
                }
            }
        }
        Ok(Some(places))
    }

    fn open(&self, parsed: &Parsed) -> anyhow::Result<Upper> {
        let settings = Settings {
            upper: self.upper.clone(),
            work: self.work.clone(),
            below: Below::Directories(parsed.owners),
            volatile: parsed.volatile,
            user: User::own(),
            descriptors: most_descriptors()?,
        };
        Ok(Upper::open(&settings, Box::new(Disk))?)
    }
}
