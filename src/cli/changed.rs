//! `diff` and `commit`: what was changed on top of an image, in a container or an upper directory, and what becomes of it.

use super::{Global, args, import, interrupt, output};
use crate::container::control::Paused;
use crate::container::inside::Inside;
use crate::container::{reach, userns};
use crate::fs::{Changes, ExportError, FsError, How};
use crate::image;
use crate::image::commit::{self, Wanted};
use crate::name::show;
use crate::store::containers::{self, Status};
use crate::store::mounts::{self, Info};
use crate::store::{Image, Store};
use crate::sys;
use crate::upper::Upper;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(clap::Args)]
#[command(override_usage = "plyfs diff CONTAINER\n       plyfs diff [OPTIONS] --upper DIR")]
#[command(after_help = "\
A is what was added, C what was changed, D what was deleted.

Examples:
  plyfs diff web
  plyfs diff --upper ./changes")]
pub(super) struct DiffArgs {
    #[command(flatten)]
    of: Of,
    /// The container, by name or ID; it is paused meanwhile if it runs
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]\n       plyfs commit [OPTIONS] --upper DIR [REPOSITORY[:TAG]]"
)]
#[command(after_help = "\
Examples:
  plyfs commit -m 'with curl' web web:2
  plyfs commit --upper ./changes -c 'CMD [\"nginx\"]' web:2

With SOURCE_DATE_EPOCH in the environment the image is dated by it and no file is
younger, so that the same changes make the same image.")]
pub(super) struct CommitArgs {
    /// Who made the image, as in: Jane Doe <jane@example.com>
    #[arg(short, long)]
    author: Option<String>,
    /// Apply a line of a Dockerfile to the image: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL,
    /// USER, VOLUME or WORKDIR
    #[arg(short, long, value_name = "LINE")]
    change: Vec<String>,
    /// What the image's history says
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Pause a running container meanwhile [default: true]
    #[arg(short, long, value_name = "BOOL", default_value_t = true, default_missing_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, hide_default_value = true, action = clap::ArgAction::Set)]
    pause: bool,
    #[command(flatten)]
    of: Of,
    /// The container, by name or ID, and the new image's name
    #[arg(value_names = ["CONTAINER", "REPOSITORY[:TAG]"], num_args = 0..)]
    args: Vec<String>,
}

/// Whose changes.
#[derive(clap::Args)]
struct Of {
    /// The changes in this directory, which a mount was given by the same option; also while it has it
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// The image that the directory was mounted with [default: the newest with the same layers]
    #[arg(long, value_name = "IMAGE", requires = "upper")]
    image: Option<String>,
}

/// Changes on top of an image, and what belongs to them.
struct Target {
    image: Image,
    upper: PathBuf,
    /// What is there only for something to be mounted on.
    left_out: BTreeSet<Vec<u8>>,
    /// What a container is to be, which a new image is to be too.
    config: Option<Map<String, Value>>,
    /// The mounts that may be of this union, so that the kernel may hold changes back.
    live: Vec<Live>,
    /// The container as long as it does not run on.
    _paused: Option<Paused>,
}

/// A mount that can be seen at a path.
struct Live {
    root: PathBuf,
    of: String,
    server: u32,
}

pub(super) fn diff(global: &Global, a: &DiffArgs) -> anyhow::Result<()> {
    let store = global.store()?;
    let target = match &a.of.upper {
        Some(upper) => args::none("diff", &a.args).and_then(|()| of_upper(&store, upper, a.of.image.as_deref()))?,
        None => args::exactly("diff", &a.args).and_then(|[name]| of_container(&store, name, true))?,
    };
    for mount in &target.live {
        sync(mount)?;
    }
    let mut text = String::new();
    let found = target.consistently(|| changes(&store, &target))?;
    for (path, changed) in found.iter().filter(|(path, _)| *path != b"/") {
        let letter = match changed.how {
            How::Added => 'A',
            How::Changed => 'C',
            How::Deleted => 'D',
        };
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{letter} {}", show(path));
    }
    output::text(&text)
}

pub(super) fn commit(global: &Global, a: &CommitArgs) -> anyhow::Result<()> {
    let store = global.store()?;
    let (target, name) = match &a.of.upper {
        Some(upper) => {
            let name = args::at_most_one("commit", &a.args)?;
            (of_upper(&store, upper, a.of.image.as_deref())?, name)
        }
        None => {
            let (container, name) = args::one_or_two("commit", &a.args)?;
            (of_container(&store, container, a.pause)?, name)
        }
    };
    let newest = import::source_date()?;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let wanted = Wanted {
        image: &target.image,
        upper: &target.upper,
        config: target.config.clone(),
        changes: &a.change,
        author: given(&a.author),
        message: given(&a.message),
        created: newest.unwrap_or_else(Timestamp::now),
        created_by: None,
        newest,
        left_out: &target.left_out,
        name: name.map(import::name_of).transpose()?,
    };
    let image = interrupt::in_session(&store, |session| {
        write_back(&store, &target)?;
        target.consistently(|| commit::commit(session, &wanted, &|text| tracing::warn!("{text}")))
    })?;
    output::line(image.id)
}

/// What a container changed. A plain user's files are other users' too: for them this process, which must have one
/// thread, becomes root of a user namespace.
fn of_container(store: &Store, name: &str, pause: bool) -> anyhow::Result<Target> {
    let container = containers::find(store, name)?;
    let state = containers::state(store, &container.id)?;
    let mut live = Vec::new();
    let mut paused = None;
    if state.status == Status::Running {
        paused = if pause { reach::pause(store, &container) } else { None };
        reach::enter_users(state.runner)?;
        let root = reach::tree_of(store, &container, &state);
        live.push(Live { root, of: format!("container {}", container.name), server: state.keeper });
    } else if !sys::is_root() {
        userns::enter()?;
    }
    Ok(Target {
        upper: store.container_upper(&container.id).0,
        left_out: state.made.iter().map(|path| [b"/", path.as_bytes()].concat()).collect(),
        config: Some(container.config_of_image()),
        image: container.image,
        live,
        _paused: paused,
    })
}

/// The changes in a directory. Which image they belong to it says itself.
fn of_upper(store: &Store, upper: &Path, image: Option<&str>) -> anyhow::Result<Target> {
    let chain = Upper::image_of(upper)?;
    let catalog = store.catalog()?;
    let has_chain = |image: &Image| Some(image.chain_id().to_string()) == chain;
    let image = match (image, &chain) {
        (Some(name), _) => store.resolve(name)?,
        (None, None) => {
            anyhow::bail!("no mount ever had {}: --image says which image it belongs to", upper.display())
        }
        (None, Some(chain)) => {
            let found = catalog.images().iter().filter(|image| has_chain(image));
            let newest = found.max_by_key(|image| image.created.as_ref().and_then(|at| at.parse::<Timestamp>().ok()));
            let none = || anyhow::anyhow!("{} belongs to an image that the store lacks: {chain}", upper.display());
            newest.cloned().ok_or_else(none)?
        }
    };
    let mut live = Vec::new();
    if Upper::is_in_use(upper)? {
        // Which of them it is is not written down anywhere; the others lose nothing.
        let over = |id: &_| catalog.get(id).is_some_and(has_chain);
        let mounts = mounts::list(store)?.into_iter().filter(|mount| mount.writable && over(&mount.image));
        let seen = |mount: Info| Live { root: mount.seen_at(store), of: mount.reference, server: mount.pid };
        live = mounts.map(seen).collect();
    }
    Ok(Target { image, upper: upper.to_owned(), left_out: BTreeSet::new(), config: None, live, _paused: None })
}

fn changes(store: &Store, target: &Target) -> Result<Changes, image::Error> {
    let fs = commit::open_view(store, &target.image, &target.upper)?;
    fs.changes(&target.left_out).map_err(image::Error::Changes)
}

/// How often changes that are disturbed by more of them are read, and how long to wait in between.
const TRIES: u32 = 20;
const REST: Duration = Duration::from_millis(20);

impl Target {
    /// Reads the changes by `pass`, again from the start where somebody who could not be paused changed them meanwhile.
    fn consistently<T>(&self, pass: impl Fn() -> Result<T, image::Error>) -> anyhow::Result<T> {
        let Some(mount) = self.live.first() else { return Ok(pass()?) };
        for _ in 1..TRIES {
            match pass() {
                Err(e) if is_disturbed(&e) => std::thread::sleep(REST),
                done => return Ok(done?),
            }
        }
        pass().map_err(|e| match is_disturbed(&e) {
            true => anyhow::anyhow!(
                "the files of {} changed while they were read, {TRIES} times: stop what changes them first ({e})",
                mount.of
            ),
            false => e.into(),
        })
    }
}

/// Whether something was removed or replaced while it was read.
fn is_disturbed(error: &image::Error) -> bool {
    let changed = |e: &FsError| e.is_absence() || matches!(e, FsError::NotDir | FsError::IsDir | FsError::WrongType);
    match error {
        image::Error::Changes(e) | image::Error::NewLayer(ExportError::Read { cause: e, .. }) => changed(e),
        image::Error::NewLayer(ExportError::Shorter(_)) => true,
        _ => false,
    }
}

/// How often files that have come up meanwhile are looked for: each time there are fewer.
const ROUNDS: usize = 4;

/// Has live mounts write what they hold back. A file that is written for the first time comes up only then, so they are
/// looked for again.
fn write_back(store: &Store, target: &Target) -> anyhow::Result<()> {
    if target.live.is_empty() {
        return Ok(());
    }
    let roots = target.live.iter().map(sync).collect::<anyhow::Result<Vec<Inside>>>()?;
    let mut done = BTreeSet::new();
    for _ in 0..ROUNDS {
        let files =
            target.consistently(|| changes(store, target))?.into_iter().filter(|(_, changed)| changed.is_file());
        let new: Vec<Vec<u8>> = files.map(|(path, _)| path).filter(|path| !done.contains(path)).collect();
        if new.is_empty() {
            break;
        }
        for root in &roots {
            flush(root, &new)?;
        }
        done.extend(new);
    }
    Ok(())
}

/// Has a mount write what it holds back, as far as that need not be waited for, and gives its root.
fn sync(mount: &Live) -> anyhow::Result<Inside> {
    let failed = |e: io::Error| {
        let (of, server, why) = (&mount.of, mount.server, sys::describe(&e));
        anyhow::anyhow!(
            "cannot reach what process {server} has mounted of {of}, and may not have written yet: {why}; end it first"
        )
    };
    let root = File::open(&mount.root).map_err(failed)?;
    rustix::fs::syncfs(&root).map_err(|e| failed(e.into()))?;
    Ok(Inside::new(root.into()))
}

/// Waits until files of a mount are written. Those that are gone, or are no files any more, need not be.
fn flush(root: &Inside, paths: &[Vec<u8>]) -> anyhow::Result<()> {
    for path in paths {
        match root.open_file(OsStr::from_bytes(path)).and_then(|file| file.sync_data()) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput) => {}
            Err(e) => anyhow::bail!("cannot write {} back: {}", show(path), sys::describe(&e)),
        }
    }
    Ok(())
}
