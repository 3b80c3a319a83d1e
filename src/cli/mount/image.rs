//! Image mounts: the commands `mount`, `umount`, `mounts`, and the mount helper mount.plyfs. The module `daemon` serves
//! the mount.

use crate::cli::mount::daemon;
use crate::cli::mount::kernel;
use crate::cli::mount::mountpoint;
use crate::cli::mount::options::{self as mount_options, Parsed};
use crate::cli::mount::takeover::{Program, Taken};
use crate::cli::output::format::{self, Columns};
use crate::cli::output::stdout as output;
use crate::cli::output::units::ago;
use crate::cli::{Exit, Global, open_store, usage_errors};
use crate::fuse::Options;
use crate::image;
use crate::kernel::Engine;
use crate::store::{Image, Store, mounts};
use crate::sys::{self, RemountFlags};
use jiff::Timestamp;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs mount [OPTIONS] IMAGE MOUNTPOINT\n       plyfs mount [OPTIONS] --print IMAGE\n       \
                         plyfs mount --restart-server MOUNTPOINT"
)]
#[command(after_help = "Examples:\n  plyfs mount debian:12 /mnt\n  plyfs mount --upper ./changes debian:12 /mnt\n  \
        plyfs mount -o nosuid,nodev,wake=off debian:12 /mnt\n  \
        tree=$(plyfs mount --rw --print debian:12) && plyfs umount \"$tree\"")]
pub(in crate::cli) struct MountArgs {
    /// Run in the foreground and log to stderr
    #[arg(short, long)]
    foreground: bool,
    /// Mount read-write; changes are kept in this directory, which is created if missing
    #[arg(long, value_name = "DIR", conflicts_with = "rw")]
    upper: Option<PathBuf>,
    /// Work directory, on the file system of the upper directory [default: the upper directory's name with the suffix
    /// .work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Mount read-write; changes are kept in the store, per image and mountpoint
    #[arg(long)]
    rw: bool,
    /// Mount at a new directory in the store and print its path, for scripts. `plyfs umount` removes the directory, and
    /// with --rw the changes too; --upper keeps them
    #[arg(long, conflicts_with = "foreground")]
    print: bool,
    /// Unmount a dead mount at the mountpoint first (a mount whose process has ended)
    #[arg(long, conflicts_with = "print")]
    replace: bool,
    /// Restart the server of the mount at the mountpoint, with open files; if another version of plyfs has been
    /// installed, that takes over
    #[arg(long, conflicts_with_all = ["foreground", "upper", "rw", "print", "replace", "engine", "options"])]
    restart_server: bool,
    /// Engine that serves the mount: fuse (a daemon), kernel (EROFS and overlayfs: no daemon; needs root and Linux 6.12)
    /// or auto (kernel where possible, else fuse) [default: fuse]
    #[arg(long, value_name = "ENGINE", value_parser = mount_options::engine)]
    engine: Option<Engine>,
    /// Mount options, comma-separated: ro, rw, volatile (never sync to disk), upper=DIR, work=DIR, [no]suid, [no]dev,
    /// [no]exec, allow_other, default_permissions, fsname=NAME, wake=auto|latency|poll|off (how to avoid the cost of
    /// waking idle processors), place=auto|follow|off (run the daemon on the processor of its caller: while no
    /// processor is idle and requests come fast, always, never), engine=ENGINE (as --engine), replace (as --replace),
    /// remount (change ro, rw, suid, dev, exec of a mount)
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Image (name, name:tag, name@digest or ID) and directory to mount it at
    #[arg(value_names = ["IMAGE", "MOUNTPOINT"], num_args = 0..)]
    args: Vec<OsString>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs umount [OPTIONS] MOUNTPOINT...")]
#[command(after_help = "Example:\n  plyfs umount /mnt")]
pub(in crate::cli) struct UmountArgs {
    /// Detach the mount even if it is in use; open files stay usable until they are closed
    #[arg(short, long)]
    lazy: bool,
    /// Mountpoints
    #[arg(value_name = "MOUNTPOINT")]
    args: Vec<OsString>,
}

/// The columns of `mounts`.
const COLUMNS: Columns = Columns {
    type_name: "plyfs.Mount",
    fields: &[
        ("CreatedSince", "CREATED"),
        ("Engine", "ENGINE"),
        ("ID", "MOUNT ID"),
        ("Image", "IMAGE"),
        ("ImageID", "IMAGE ID"),
        ("Mode", "MODE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("PID", "PID"),
        ("Restarts", "RESTARTS"),
        ("State", "STATE"),
    ],
};
const TABLE: &str =
    r"{{.ID}}\t{{.Image}}\t{{.ImageID}}\t{{.PID}}\t{{.Restarts}}\t{{.Engine}}\t{{.Mode}}\t{{.State}}\t{{.Mountpoint}}";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  plyfs mounts
  plyfs mounts --format '{{.Mode}} {{.Mountpoint}}'")]
pub(in crate::cli) struct MountsArgs {
    /// Output format: `table`, `table TEMPLATE`, `json`, or a Go template over ID, Image, ImageID, PID, Restarts
    /// (how often the server has died and been restarted), Engine (fuse or kernel), Mode (ro or rw), State (live, or
    /// dead if the process has ended), Mountpoint, CreatedSince
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only show mount IDs
    #[arg(short, long)]
    quiet: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

pub(in crate::cli) fn mount(global: &Global, a: &MountArgs) -> anyhow::Result<()> {
    if a.restart_server {
        let [at] = usage_errors::exactly("mount --restart-server", &a.args)?;
        return restart_server(&global.store()?, Path::new(at));
    }
    let (image, at) = match a.print {
        true => {
            let [image] = usage_errors::exactly("mount --print", &a.args)?;
            (image, At::Own)
        }
        false => {
            let [image, at] = usage_errors::exactly("mount", &a.args)?;
            (image, At::Given(Path::new(at)))
        }
    };
    let image = image.to_string_lossy();
    let mut parsed = mount_options::parse(&a.options, Options::for_user(&image, sys::is_root()), false)?;
    match (&at, mount_options::remount(words(&a.options), RemountFlags::empty())) {
        (At::Given(at), Some(flags)) => {
            let store = parsed.root.as_deref().or(global.root.as_deref());
            return mountpoint::remount(at, flags, |path| kernel::serves(&open_store(store)?, path));
        }
        (At::Own, Some(_)) => anyhow::bail!("--print and the option remount exclude each other"),
        (_, None) => {}
    }
    parsed.replace |= a.replace;
    parsed.engine = a.engine.or(parsed.engine);
    parsed.upper = a.upper.clone().or(parsed.upper);
    parsed.work = a.work.clone().or(parsed.work);
    let writable = a.rw || parsed.upper.is_some();
    match parsed.writable {
        Some(true) if !writable => {
            anyhow::bail!("an image is mounted read-only by default: --upper DIR or --rw makes it writable")
        }
        Some(false) if writable => anyhow::bail!("the option ro excludes --upper and --rw"),
        _ if parsed.volatile && !writable => {
            anyhow::bail!("the option volatile needs a writable mount (--upper or --rw)")
        }
        _ => {}
    }
    let store = match &parsed.root {
        Some(root) => Store::open(root)?,
        None => global.store()?,
    };
    start(&store, &image, at, parsed, a.rw, a.foreground)
}

/// How long `--restart-server` waits for the next server.
const WAIT_FOR_RESTART: Duration = Duration::from_secs(30);

/// Restarts the server of the mount at a path, and waits for the next one.
fn restart_server(store: &Store, at: &Path) -> anyhow::Result<()> {
    let at = at.canonicalize().map_err(|e| anyhow::anyhow!("cannot open {}: {}", at.display(), sys::describe(&e)))?;
    let found = || mounts::by_mountpoint(store, &at);
    let Some(mount) = found()? else { anyhow::bail!("{} is not a mount of this store", at.display()) };
    if mount.kernel.is_some() {
        anyhow::bail!("{} is a mount of the kernel engine, which has no server", at.display());
    }
    let asked = sys::kill(mount.pid as i32, libc::SIGHUP);
    asked.map_err(|e| anyhow::anyhow!("cannot signal process {}: {}", mount.pid, sys::describe(&e)))?;
    let deadline = Instant::now() + WAIT_FOR_RESTART;
    while Instant::now() < deadline {
        match found()? {
            Some(now) if now.restarts > mount.restarts => return Ok(()),
            Some(_) => std::thread::sleep(Duration::from_millis(5)),
            None => anyhow::bail!(
                "the mount at {} has ended: see {}",
                at.display(),
                mounts::log_path(store, &mount.id).display()
            ),
        }
    }
    anyhow::bail!(
        "the server of {} was not restarted: see {}",
        at.display(),
        mounts::log_path(store, &mount.id).display()
    )
}

/// Where to mount an image.
enum At<'a> {
    Given(&'a Path),
    /// At a new directory in the store, whose path is printed.
    Own,
}

/// Splits comma-separated lists into options.
fn words(lists: &[String]) -> impl Iterator<Item = &str> {
    lists.iter().flat_map(|list| list.split(','))
}

/// The program that called the mount helper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Caller {
    /// mount(8), for type plyfs or fuse.plyfs.
    Mount,
    /// mount.fuse(8), which passes `suid` and `dev` if they are wanted, but never `nosuid` and `nodev`.
    MountFuse,
}

const HELPER_USAGE: &str = "usage: mount.plyfs IMAGE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]";

/// Arguments of the mount helper.
#[derive(Default)]
struct HelperArgs<'a> {
    operands: Vec<&'a OsStr>,
    lists: Vec<String>,
    namespace: Option<PathBuf>,
    sloppy: bool,
    pretend: bool,
    verbose: bool,
}

impl HelperArgs<'_> {
    /// Parses flags as getopt(3) does: several after one dash, a value in the same argument or the next. `None` if a
    /// flag is unknown or its value is missing.
    fn parse(arguments: &[OsString]) -> Option<HelperArgs<'_>> {
        let mut read = HelperArgs::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(mut flags) = argument.to_str().and_then(|text| text.strip_prefix('-')).filter(|f| !f.is_empty())
            else {
                read.operands.push(argument);
                continue;
            };
            while let Some(flag) = flags.chars().next() {
                flags = &flags[flag.len_utf8()..];
                match flag {
                    's' => read.sloppy = true,
                    'f' => read.pretend = true,
                    'v' => read.verbose = true,
                    // There is no mtab to write.
                    'n' => {}
                    'o' | 'N' | 't' => {
                        let value = match std::mem::take(&mut flags) {
                            "" => rest.next()?.to_string_lossy().into_owned(),
                            value => value.to_owned(),
                        };
                        match flag {
                            'o' => read.lists.push(value),
                            'N' => read.namespace = Some(value.into()),
                            _ => {}
                        }
                    }
                    _ => return None,
                }
            }
        }
        Some(read)
    }
}

/// Runs as the mount helper: `mount.plyfs IMAGE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS]`, which mount(8) calls
/// for type plyfs. mount(8) passes `rw` by default, so `rw` is ignored: without `upper=` the mount is read-only, as
/// with other read-only media.
pub(in crate::cli) fn helper(arguments: &[OsString], caller: Caller) -> anyhow::Result<()> {
    let usage = || Exit::Text(1, HELPER_USAGE.into());
    let called = HelperArgs::parse(arguments).ok_or_else(usage)?;
    let [image, at] = called.operands[..] else { return Err(usage().into()) };
    let (image, at) = (image.to_string_lossy(), Path::new(at));
    let (mut defaults, mut flags) = (Options::for_user(&image, sys::is_root()), RemountFlags::empty());
    if caller == Caller::MountFuse {
        (defaults.suid, defaults.dev) = (false, false);
        flags = RemountFlags::NOSUID | RemountFlags::NODEV;
    }
    let parsed = mount_options::parse(&called.lists, defaults, called.sloppy)?;
    let remount = mount_options::remount(words(&called.lists), flags);
    if let Some(namespace) = &called.namespace {
        // Before the store is opened: its path and the mountpoint are paths in that namespace.
        let file = File::open(namespace).and_then(|file| sys::enter_mount_namespace(&file));
        file.map_err(|e| {
            anyhow::anyhow!("cannot enter the mount namespace {}: {}", namespace.display(), sys::describe(&e))
        })?;
    }
    match remount {
        _ if called.pretend => {}
        Some(flags) => {
            mountpoint::remount(at, flags, |path| kernel::serves(&open_store(parsed.root.as_deref())?, path))?;
        }
        None => start(&open_store(parsed.root.as_deref())?, &image, At::Given(at), parsed, false, false)?,
    }
    if called.verbose {
        let done = if remount.is_some() { "remounted" } else { "mounted" };
        output::line(format_args!("mount.plyfs: {image} {done} on {}.", at.display()))?;
    }
    Ok(())
}

/// Mounts an image read-write, without waiting for its end; `upper` receives the changes.
pub(in crate::cli) fn mount_writable(
    store: &Store,
    image: &str,
    at: &Path,
    upper: PathBuf,
    engine: Option<Engine>,
) -> anyhow::Result<()> {
    let mut parsed = mount_options::parse(&[], Options::for_user(image, sys::is_root()), false)?;
    (parsed.upper, parsed.engine) = (Some(upper), engine);
    start(store, image, At::Given(at), parsed, false, false)
}

/// Unmounts a mount made by `mount --print`, given its path or ID. Returns false if there is none.
pub(in crate::cli) fn end_own(store: &Store, name: &str) -> anyhow::Result<bool> {
    let own = store.root().join("mounts");
    let meant = |mount: &mounts::Info| mount.id == name || mount.mountpoint == Path::new(name);
    let mut all = mounts::list(store)?.into_iter().chain(mounts::dead(store)?);
    let found = all.find(|mount| meant(mount) && mount.mountpoint.starts_with(&own));
    found.map(|mount| unmount_one(store, &mount.mountpoint, false)).transpose().map(|done| done.is_some())
}

/// Unmounts, and waits until all changes are in the upper directory.
pub(in crate::cli) fn unmount_now(store: &Store, at: &Path) -> anyhow::Result<()> {
    unmount_one(store, at, false)
}

fn start(store: &Store, image: &str, at: At<'_>, parsed: Parsed, kept: bool, foreground: bool) -> anyhow::Result<()> {
    let taken = Taken::find()?;
    let writable = kept || parsed.upper.is_some();
    let (found, guard) = match taken.as_ref().and_then(|taken| taken.registration.as_ref()) {
        Some((id, lock)) => {
            let guard = mounts::take_over(store, id, lock.try_clone()?)?;
            (store.resolve(&guard.info().image.to_string())?, guard)
        }
        None => register(store, image, &at, writable, parsed.replace)?,
    };
    let mountpoint = guard.info().mountpoint.clone();
    let is_own = matches!(at, At::Own);
    let place = match &parsed.upper {
        Some(upper) => Some((upper.clone(), parsed.work.clone().unwrap_or_else(|| beside(upper)))),
        None if kept && is_own => Some(guard.own_upper()),
        None if kept => Some(store.kept_upper(&found.chain_id(), &mountpoint)),
        None => None,
    };
    let show = || if is_own { output::line(mountpoint.display()) } else { Ok(()) };
    let guard = match taken {
        Some(_) => guard,
        None => match kernel::mount(store, &found, guard, place.as_ref(), &parsed, foreground)? {
            Some(guard) => guard,
            None => return show(),
        },
    };
    let locks = taken.as_ref().map_or(&[][..], |taken| &taken.locks);
    let opened = image::open_tree(store, &found).map_err(anyhow::Error::from).and_then(|opened| {
        let open = |(upper, work)| image::open_upper(upper, work, &opened.tree, parsed.volatile, locks);
        let upper = place.map(open).transpose()?;
        Ok((opened, upper))
    });
    let (opened, upper) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            guard.release()?;
            return Err(error);
        }
    };
    let job = daemon::Job {
        inodes: opened.tree.nodes().len() as u64,
        writable: upper.is_some(),
        make: Box::new(move |handover| Ok(opened.into_fs(upper, Some(handover))?)),
        log: guard.log_path(),
        guard: Some(guard),
        mountpoint: mountpoint.clone(),
        options: parsed.options,
        program: Program::own()?,
        taken,
    };
    daemon::serve(job, foreground)?;
    show()
}

/// Finds an image and registers its mount, before its files are opened, so that no other process removes it.
fn register(
    store: &Store,
    image: &str,
    at: &At<'_>,
    writable: bool,
    replace: bool,
) -> anyhow::Result<(Image, mounts::Guard)> {
    let given = match at {
        At::Given(at) => Some(mountpoint::directory(at, replace)?),
        At::Own => None,
    };
    let found = store.resolve(image)?;
    let guard = match &given {
        Some(mountpoint) => mounts::register(store, &found.id, image, mountpoint, writable)?,
        None => mounts::register_own(store, &found.id, image, writable)?,
    };
    Ok((found, guard))
}

/// The default work directory of an upper directory: its path with the suffix `.work`.
pub(in crate::cli) fn beside(upper: &Path) -> PathBuf {
    let absolute = std::path::absolute(upper).unwrap_or_else(|_| upper.into());
    let mut name = absolute.file_name().unwrap_or_default().to_os_string();
    name.push(".work");
    absolute.with_file_name(name)
}

/// How long `umount` waits for the daemon to end, so that the next command finds the image unused. A daemon with much
/// to remove may take long on a busy disk.
const WAIT_FOR_END: Duration = Duration::from_secs(120);

pub(in crate::cli) fn umount(global: &Global, a: &UmountArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("umount", &a.args)?;
    let store = global.store()?;
    let mut failed = false;
    for at in wanted {
        if let Err(error) = unmount_one(&store, Path::new(at), a.lazy) {
            output::complaint(format_args!("Error: {error}"));
            failed = true;
        }
    }
    if failed { Err(Exit::Said(1).into()) } else { Ok(()) }
}

fn unmount_one(store: &Store, at: &Path, lazy: bool) -> anyhow::Result<()> {
    let path = mountpoint::resolve(at);
    let served = mounts::by_mountpoint(store, &path)?;
    if !mountpoint::is_plyfs(&path)? && !kernel::serves(store, &path)? {
        anyhow::bail!("{} is not a plyfs mount", at.display());
    }
    sys::unmount(&path, lazy).map_err(|e| match e.kind() {
        std::io::ErrorKind::ResourceBusy => {
            anyhow::anyhow!("{} is in use: end the processes that use it, or unmount with --lazy", at.display())
        }
        _ => anyhow::anyhow!("cannot unmount {}: {}", at.display(), sys::describe(&e)),
    })?;
    if served.as_ref().is_none_or(|mount| mount.kernel.is_some()) {
        mounts::forget_ended(store, &path)?;
    }
    let Some(served) = served.filter(|_| !lazy) else { return Ok(()) };
    let deadline = Instant::now() + WAIT_FOR_END;
    while mounts::is_live(store, &served.id) {
        if Instant::now() > deadline {
            anyhow::bail!("{} is unmounted, but process {} has not exited", at.display(), served.pid);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

pub(in crate::cli) fn mounts(global: &Global, a: &MountsArgs) -> anyhow::Result<()> {
    usage_errors::none("mounts", &a.args)?;
    let now = Timestamp::now();
    let store = global.store()?;
    let live = mounts::list(&store)?.into_iter().map(|mount| (mount, "live"));
    let dead = mounts::dead(&store)?.into_iter().map(|mount| (mount, "dead"));
    let rows = live.chain(dead).map(|(m, state)| {
        vec![
            ago(m.started.parse().ok(), now),
            if m.kernel.is_some() { "kernel" } else { "fuse" }.to_owned(),
            m.id,
            m.reference,
            m.image.short().to_owned(),
            if m.writable { "rw" } else { "ro" }.to_owned(),
            crate::name::show(m.mountpoint.as_os_str().as_bytes()),
            if m.kernel.is_some() { "-".to_owned() } else { m.pid.to_string() },
            m.restarts.to_string(),
            state.to_owned(),
        ]
    });
    let is_default = matches!(a.format.as_deref(), None | Some("" | "table"));
    let format = if a.quiet && is_default { Some("{{.ID}}") } else { a.format.as_deref() };
    format::list(format, TABLE, &COLUMNS, rows.collect())
}
