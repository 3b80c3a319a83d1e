//! `pull` and `load`.

use super::registry::RegistryArgs;
use super::{Exit, Global, args, interrupt, output};
use crate::image::Platform;
use crate::image::pull::{Event, Progress, Pulled, pull as take};
use crate::image::source::{self, LayerPlan, LoadFrom, Plan, Want};
use crate::image::verify::Key;
use crate::reference::{DEFAULT_TAG, Reference};
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(override_usage = "plyfs pull [OPTIONS] NAME[:TAG|@DIGEST]|SOURCE")]
#[command(
    after_help = "Examples:\n  plyfs pull alpine:3\n  plyfs pull oci:/srv/debian:12\n  plyfs pull docker-archive:saved.tar:me/app:1\n  plyfs pull --verify cosign.pub registry.example/app:1"
)]
pub(super) struct PullArgs {
    /// Take every image of the repository or source
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the image's name
    #[arg(short, long)]
    quiet: bool,
    /// Pull only what is signed by this cosign public key
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
pub(super) struct LoadArgs {
    /// Read this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print only the images' names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    platform: PlatformArg,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
struct PlatformArg {
    /// For which machine, OS/ARCH[/VARIANT] [default: this one]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", hide_env_values = true)]
    platform: Option<Platform>,
}

impl PlatformArg {
    fn want(&self, all: bool) -> Want {
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        Want { platform, strict: self.platform.is_some(), all }
    }
}

/// Prints Docker's lines as a pull goes on.
struct Lines {
    /// For `TAG: Pulling from ...`.
    from: Option<String>,
    /// Whether that is a registry.
    remote: bool,
    quiet: bool,
}

impl Lines {
    fn say(&self, text: &str) {
        if !self.quiet {
            // A pull goes on when nobody listens any more.
            let _gone = output::line(text);
        }
    }
}

impl Progress for Lines {
    fn image(&self, plan: &Plan) {
        if let Some(from) = &self.from {
            let tag = plan.names.iter().find_map(Reference::tag).map(str::to_owned);
            // By digest alone, Docker says the whole name.
            let by_digest = || plan.names.iter().find(|n| n.digest().is_some()).map(Reference::to_string);
            let what = tag.or_else(|| by_digest().filter(|_| self.remote)).unwrap_or_else(|| DEFAULT_TAG.to_owned());
            self.say(&format!("{what}: Pulling from {from}"));
        }
    }

    fn layer(&self, layer: &LayerPlan, event: Event) {
        match event {
            Event::AlreadyExists => self.say(&format!("{}: Already exists", layer.short())),
            Event::Complete => self.say(&format!("{}: Pull complete", layer.short())),
            Event::Started | Event::Read(_) => {}
        }
    }

    fn warning(&self, layer: &LayerPlan, text: &str) {
        tracing::warn!("layer {}: {text}", layer.short());
    }
}

pub(super) fn pull(global: &Global, a: &PullArgs) -> anyhow::Result<()> {
    let [text] = args::exactly("pull", &a.args)?;
    if !source::is_source(text) {
        return pull_registry(global, a, text);
    }
    if a.verify.is_some() {
        anyhow::bail!("--verify is for images of registries, and {text} is none");
    }
    let lines = Lines { from: Some(text.to_owned()), remote: false, quiet: a.quiet };
    let all = interrupt::in_session(&global.store()?, |session| {
        let source = source::open(text, session)?;
        Ok(take(session, &*source, &a.platform.want(a.all_tags), &lines)?)
    })?;
    for pulled in all {
        if !a.quiet {
            summary(&pulled)?;
        }
        output::line(canonical(&pulled))?;
    }
    Ok(())
}

fn pull_registry(global: &Global, a: &PullArgs, text: &str) -> anyhow::Result<()> {
    let named: Reference = text.parse()?;
    let is_bare = named.tag().is_none() && named.digest().is_none();
    if a.all_tags && !is_bare {
        anyhow::bail!("tag can't be used with --all-tags/-a");
    }
    let key = a.verify.as_deref().map(read_key).transpose()?;
    let lines = Lines { from: Some(named.path().to_owned()), remote: true, quiet: a.quiet };
    if is_bare && !a.all_tags {
        lines.say(&format!("Using default tag: {DEFAULT_TAG}"));
    }
    let store = global.store()?;
    let settings = a.registry.settings();
    let all = interrupt::in_session(&store, |session| {
        let source = source::open_registry(&named, &settings, key.clone(), &store);
        Ok(take(session, &*source, &a.platform.want(a.all_tags), &lines)?)
    })?;
    if !a.all_tags {
        for pulled in &all {
            if !a.quiet {
                summary(pulled)?;
            }
            output::line(canonical(pulled))?;
        }
        return Ok(());
    }
    if !a.quiet {
        for digest in all.iter().filter_map(|pulled| pulled.root.as_ref()) {
            output::line(format!("Digest: {digest}"))?;
        }
        output::line(status(all.iter().all(|pulled| pulled.up_to_date), &named.familiar()))?;
    }
    output::line(named)
}

fn read_key(path: &Path) -> anyhow::Result<Key> {
    let name = path.display();
    let pem = fs::read(path).map_err(|e| anyhow::anyhow!("cannot read {name}: {}", crate::sys::describe(&e)))?;
    Ok(Key::from_pem(&name.to_string(), &pem)?)
}

fn summary(pulled: &Pulled) -> anyhow::Result<()> {
    if let Some(digest) = &pulled.root {
        output::line(format!("Digest: {digest}"))?;
    }
    let title = pulled.names.first().map_or_else(|| pulled.image.id.to_string(), Reference::familiar);
    output::line(status(pulled.up_to_date, &title))
}

fn status(up_to_date: bool, title: &str) -> String {
    let what = if up_to_date { "Image is up to date" } else { "Downloaded newer image" };
    format!("Status: {what} for {title}")
}

fn canonical(pulled: &Pulled) -> String {
    pulled.names.first().map_or_else(|| pulled.image.id.to_string(), Reference::to_string)
}

pub(super) fn load(global: &Global, a: &LoadArgs) -> anyhow::Result<()> {
    args::none("load", &a.args)?;
    if a.input.is_none() && io::stdin().is_terminal() {
        return Err(Exit::Text(1, "requested load from stdin, but stdin is empty".into()).into());
    }
    let mut stdin = io::stdin();
    let from = match &a.input {
        Some(path) => LoadFrom::File(path),
        None => LoadFrom::Stream(&mut stdin),
    };
    let lines = Lines { from: None, remote: false, quiet: true };
    let all = interrupt::in_session(&global.store()?, |session| {
        let source = source::open_load(from, session)?;
        Ok(take(session, &*source, &a.platform.want(true), &lines)?)
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
