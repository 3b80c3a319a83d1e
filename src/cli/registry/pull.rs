//! `pull` and `load`: store images from a registry, an OCI layout or an archive.

use crate::cli::output::progress::{Kind, Report};
use crate::cli::output::stdout as output;
use crate::cli::registry::options::RegistryArgs;
use crate::cli::{Exit, Global, config, interrupt, usage_errors};
use crate::container::sandbox;
use crate::digest::Digest;
use crate::image::Platform;
use crate::image::progress::Progress;
use crate::image::pull::{Pulled, pull as take};
use crate::image::source::{self, LoadFrom, Source, Want};
use crate::image::verify::Key;
use crate::reference::{DEFAULT_TAG, Reference};
use crate::store::{self, Image, Session, Store};
use crate::sys::{self, Fork, Signals};
use rustix::pipe::PipeFlags;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
#[command(override_usage = "plyfs pull [OPTIONS] NAME[:TAG|@DIGEST]|SOURCE")]
#[command(
    after_help = "Examples:\n  plyfs pull alpine:3\n  plyfs pull oci:/srv/debian:12\n  plyfs pull docker-archive:saved.tar:me/app:1\n  plyfs pull --progress=json alpine:3 | jq -r .status\n  plyfs pull --verify cosign.pub registry.example/app:1"
)]
pub(in crate::cli) struct PullArgs {
    /// Pull all images of the repository or source
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the image name
    #[arg(short, long)]
    quiet: bool,
    /// Progress output: plain (lines), tty (bars), json (one object per line), none (only the result), or auto: tty on
    /// a terminal, else plain
    #[arg(long, value_name = "KIND", default_value = "auto", hide_possible_values = true)]
    progress: Kind,
    /// Pull the image only if this cosign public key signed it
    #[arg(long, value_name = "KEY.pub")]
    verify: Option<PathBuf>,
    #[command(flatten)]
    platform: PlatformArg,
    #[command(flatten)]
    registry: RegistryArgs,
    /// [HOST[:PORT]/]REPO[:TAG][@DIGEST] of a registry, or oci:DIR[:TAG|@DIGEST], oci-archive:FILE[:TAG|@DIGEST],
    /// docker-archive:FILE[:REF]
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs load [OPTIONS] [-i FILE]")]
#[command(after_help = "Examples:\n  plyfs load -i saved.tar.gz\n  docker save me/app:1 | plyfs load")]
pub(in crate::cli) struct LoadArgs {
    /// Read from a file instead of stdin
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print only the image names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    platform: PlatformArg,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
struct PlatformArg {
    /// Platform of the image, OS/ARCH[/VARIANT] [default: the host's]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", hide_env_values = true)]
    platform: Option<Platform>,
}

impl PlatformArg {
    fn want(&self, all: bool) -> Want {
        let named = self.platform.as_ref().or(config::get().platform.as_ref());
        let platform = named.cloned().unwrap_or_else(Platform::host);
        Want { platform, strict: named.is_some(), all }
    }
}

/// Options for an image that may not be in the store.
#[derive(clap::Args)]
pub(in crate::cli) struct MissingArgs {
    /// Pull the image first: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing", hide_possible_values = true)]
    pull: When,
    #[command(flatten)]
    platform: PlatformArg,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// When an image is pulled first.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum When {
    Missing,
    Always,
    Never,
}

impl MissingArgs {
    /// Finds an image, or pulls it if `--pull` requires that ([`Missing::bring_in`]).
    pub(in crate::cli) fn bring_in(&self, store: &Store, wanted: &str) -> anyhow::Result<Image> {
        let want = self.platform.want(false);
        Missing { pull: self.pull, want, registry: &self.registry }.bring_in(store, wanted, |_| true)
    }
}

/// How an image that may not be in the store is found.
pub(in crate::cli) struct Missing<'a> {
    pub(in crate::cli) pull: When,
    pub(in crate::cli) want: Want,
    pub(in crate::cli) registry: &'a RegistryArgs,
}

impl Missing<'_> {
    /// Finds an image, or pulls it if `pull` requires that or the one in the store does not suit, with progress on
    /// stderr. `wanted` may be a source too, such as `oci:DIR`. The process must be single-threaded and stays so: a
    /// child process pulls.
    pub(in crate::cli) fn bring_in(
        &self,
        store: &Store,
        wanted: &str,
        suits: impl Fn(&Image) -> bool,
    ) -> anyhow::Result<Image> {
        let there = store.resolve(wanted);
        // An image may have a name that looks like a source.
        let is_source = there.is_err() && source::is_source(wanted);
        let is_unsuited = there.as_ref().is_ok_and(|image| !suits(image));
        let is_absent = is_source || is_unsuited || matches!(there, Err(store::Error::NoSuchImage(_)));
        if !is_absent && (there.is_err() || self.pull != When::Always) || is_absent && self.pull == When::Never {
            return Ok(there?);
        }
        if is_absent && !is_source && !is_unsuited {
            let whole = wanted.parse::<Reference>()?.or_latest();
            output::complaint(format_args!("Unable to find image '{}' locally", whole.familiar()));
        }
        let id = self.pull_in_child(store, wanted)?;
        store.catalog()?.get(&id).cloned().ok_or_else(|| store::Error::NoSuchImage(wanted.into()).into())
    }

    /// Pulls an image in a child process, and returns its ID.
    fn pull_in_child(&self, store: &Store, wanted: &str) -> anyhow::Result<Digest> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Signals of the terminal end the child, which cleans up; this process waits for it.
        let signals = Signals::block_for_child()?;
        let child = match sys::fork()? {
            Fork::Parent(child) => child,
            Fork::Child => {
                let pulled = signals.let_through().map_err(anyhow::Error::from).and_then(|()| self.pull(store, wanted));
                let text = pulled.as_ref().map_or_else(ToString::to_string, ToString::to_string);
                let told = File::from(write).write_all(text.as_bytes());
                sys::leave(if pulled.is_ok() && told.is_ok() { 0 } else { 125 })
            }
        };
        drop(write);
        let ended = sandbox::wait(child, &signals)?;
        signals.let_through()?;
        // A pipe holds the text of any error.
        let mut text = String::new();
        File::from(read).read_to_string(&mut text)?;
        match u8::try_from(ended.code()).unwrap_or(125) {
            0 => Ok(text.parse()?),
            // It was ended by a signal.
            code if text.is_empty() => Err(Exit::Said(code).into()),
            code => Err(Exit::Text(code, format!("Error: {text}")).into()),
        }
    }

    fn pull(&self, store: &Store, wanted: &str) -> anyhow::Result<Digest> {
        // Progress must not mix with the command's output.
        rustix::stdio::dup2_stdout(io::stderr())?;
        let named: Option<Reference> = if source::is_source(wanted) { None } else { Some(wanted.parse()?) };
        let report = match &named {
            Some(named) => Report::new(Kind::Auto, named.path(), true),
            None => Report::new(Kind::Auto, wanted, false),
        };
        let report = Arc::new(report);
        let progress: Arc<dyn Progress> = report.clone();
        let settings = self.registry.settings();
        let want = self.want.clone();
        let all = interrupt::in_session(store, |session| {
            let source = match &named {
                Some(named) => source::open_registry(named, &settings, None, store),
                None => source::open(wanted, session)?,
            };
            let done = take(session, &*source, &want, &progress);
            report.end();
            Ok(done?)
        })?;
        for pulled in &all {
            let title = pulled.names.first().map_or_else(|| pulled.image.id.to_string(), Reference::familiar);
            report.result(status(pulled.up_to_date, &title))?;
        }
        let first = all.first().ok_or_else(|| store::Error::NoSuchImage(wanted.into()))?;
        Ok(first.image.id.clone())
    }
}

pub(in crate::cli) fn pull(global: &Global, a: &PullArgs) -> anyhow::Result<()> {
    let [text] = usage_errors::exactly("pull", &a.args)?;
    let named: Option<Reference> = if source::is_source(text) { None } else { Some(text.parse()?) };
    let report = match &named {
        _ if a.quiet => Report::quiet(),
        Some(named) => Report::new(a.progress, named.path(), true),
        None => Report::new(a.progress, text, false),
    };
    let report = Arc::new(report);
    let done = match &named {
        Some(named) => pull_registry(global, a, named, &report),
        None => pull_source(global, a, text, &report),
    };
    done.inspect_err(|error| report.failed(error))
}

fn pull_source(global: &Global, a: &PullArgs, text: &str, report: &Arc<Report>) -> anyhow::Result<()> {
    if a.verify.is_some() {
        anyhow::bail!("--verify needs an image in a registry: {text} is not one");
    }
    let all = taken(&global.store()?, a, report, |session| Ok(source::open(text, session)?))?;
    all.iter().try_for_each(|pulled| summary(report, pulled))
}

fn pull_registry(global: &Global, a: &PullArgs, named: &Reference, report: &Arc<Report>) -> anyhow::Result<()> {
    let is_bare = named.tag().is_none() && named.digest().is_none();
    if a.all_tags && !is_bare {
        anyhow::bail!("tag can't be used with --all-tags/-a");
    }
    let key = a.verify.as_deref().map(read_key).transpose()?;
    if is_bare && !a.all_tags {
        report.note(&format!("Using default tag: {DEFAULT_TAG}"));
    }
    let (store, settings) = (global.store()?, a.registry.settings());
    let all = taken(&store, a, report, |_| Ok(source::open_registry(named, &settings, key, &store)))?;
    if !a.all_tags {
        return all.iter().try_for_each(|pulled| summary(report, pulled));
    }
    report.result(status(all.iter().all(|pulled| pulled.up_to_date), &named.familiar()))?;
    report.name(&named.to_string(), &all)
}

fn read_key(path: &Path) -> anyhow::Result<Key> {
    let name = path.display();
    let pem = fs::read(path).map_err(|e| anyhow::anyhow!("cannot read {name}: {}", crate::sys::describe(&e)))?;
    Ok(Key::from_pem(&name.to_string(), &pem)?)
}

/// Pulls the wanted images of a source.
fn taken(
    store: &Store,
    a: &PullArgs,
    report: &Arc<Report>,
    open: impl FnOnce(&Session) -> anyhow::Result<Box<dyn Source>>,
) -> anyhow::Result<Vec<Pulled>> {
    let progress: Arc<dyn Progress> = report.clone();
    interrupt::in_session(store, |session| {
        let done = open(session).and_then(|s| Ok(take(session, &*s, &a.platform.want(a.all_tags), &progress)?));
        report.end();
        done
    })
}

fn summary(report: &Report, pulled: &Pulled) -> anyhow::Result<()> {
    let title = pulled.names.first().map_or_else(|| pulled.image.id.to_string(), Reference::familiar);
    report.result(status(pulled.up_to_date, &title))?;
    report.name(&canonical(pulled), std::slice::from_ref(pulled))
}

fn status(up_to_date: bool, title: &str) -> String {
    let what = if up_to_date { "Image is up to date" } else { "Downloaded newer image" };
    format!("Status: {what} for {title}")
}

fn canonical(pulled: &Pulled) -> String {
    pulled.names.first().map_or_else(|| pulled.image.id.to_string(), Reference::to_string)
}

pub(in crate::cli) fn load(global: &Global, a: &LoadArgs) -> anyhow::Result<()> {
    usage_errors::none("load", &a.args)?;
    if a.input.is_none() && io::stdin().is_terminal() {
        return Err(Exit::Text(1, "requested load from stdin, but stdin is empty".into()).into());
    }
    let mut stdin = io::stdin();
    let from = match &a.input {
        Some(path) => LoadFrom::File(path),
        None => LoadFrom::Stream(&mut stdin),
    };
    let progress: Arc<dyn Progress> = Arc::new(Report::quiet());
    let all = interrupt::in_session(&global.store()?, |session| {
        let source = source::open_load(from, session)?;
        Ok(take(session, &*source, &a.platform.want(true), &progress)?)
    })?;
    for pulled in all {
        for (name, id) in &pulled.taken {
            let name = name.familiar();
            output::line(format!(
                "The image {name} already exists, renaming the old one with ID {id} to empty string"
            ))?;
        }
        let tags: Vec<&Reference> = pulled.names.iter().filter(|n| n.tag().is_some()).collect();
        for tag in &tags {
            output::line(format!("Loaded image: {}", tag.familiar()))?;
        }
        if tags.is_empty() {
            output::line(format!("Loaded image ID: {}", pulled.image.id))?;
        }
    }
    Ok(())
}
