//! `manifest create`, `add`, `annotate`, `remove`, `rm` and `push`: manifest lists in the store.

use crate::cli::output::progress::{Kind, Report};
use crate::cli::output::stdout as output;
use crate::cli::registry::options::RegistryArgs;
use crate::cli::{Exit, Global, config, interrupt, usage_errors};
use crate::image::manifest::Family;
use crate::image::manifest_list::{self, Annotation, Choice, PushOptions};
use crate::image::{FORMATS, Platform};
use crate::reference::Reference;
use crate::registry::Settings;
use crate::store::lists::{self, Entry, ManifestList};
use crate::store::{Store, gc};
use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest create [OPTIONS] LIST [IMAGE...]")]
#[command(after_help = "\
An IMAGE is one of the store, by name or ID, else one in a registry. Of a manifest
list in a registry the image for this machine (DOCKER_DEFAULT_PLATFORM) is added;
with --all, every image of it. The list is in the store until it is removed, and
keeps the layers of its images there.

Examples:
  plyfs manifest create registry.example/app:1 app:1-amd64 app:1-arm64
  plyfs manifest push registry.example/app:1")]
pub(in crate::cli) struct CreateArgs {
    /// Add the images to a list that exists
    #[arg(short, long)]
    amend: bool,
    #[command(flatten)]
    images: ImagesArgs,
}

/// Which images are added to a list.
#[derive(clap::Args)]
struct ImagesArgs {
    /// Add all images of a manifest list in a registry
    #[arg(long)]
    all: bool,
    /// Allow plain http and unverified certificates
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Name of the list, and the images to add
    #[arg(value_names = ["LIST", "IMAGE"], num_args = 0..)]
    args: Vec<String>,
}

impl ImagesArgs {
    /// Makes the entries of the images.
    fn entries(&self, store: &Store, images: &[String], choice: &Choice) -> anyhow::Result<Vec<Entry>> {
        let settings = settings(&self.registry, self.insecure);
        let mut entries = Vec::new();
        for image in images {
            entries.extend(manifest_list::entries_of(store, image, choice, &settings)?);
        }
        Ok(entries)
    }
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest add [OPTIONS] LIST IMAGE...")]
#[command(after_help = "\
IMAGE is as in `plyfs manifest create`; --os, --arch and --variant also choose the
image of a manifest list in a registry.

Examples:
  plyfs manifest add registry.example/app:1 app:1-arm64
  plyfs manifest add --arch arm --variant v7 registry.example/app:1 registry.example/app:1-armv7")]
pub(in crate::cli) struct AddArgs {
    #[command(flatten)]
    annotation: AnnotationArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest annotate [OPTIONS] LIST IMAGE|DIGEST")]
#[command(after_help = "\
Example:
  plyfs manifest annotate --arch arm64 --variant v8 registry.example/app:1 app:1-arm64")]
pub(in crate::cli) struct AnnotateArgs {
    #[command(flatten)]
    annotation: AnnotationArgs,
    /// Name of the list, and one of its images
    #[arg(value_names = ["LIST", "IMAGE"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
struct AnnotationArgs {
    /// Operating system
    #[arg(long, value_name = "OS")]
    os: Option<String>,
    /// Architecture, as Go names it: amd64, arm64
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Variant of the architecture: v7
    #[arg(long, value_name = "VARIANT")]
    variant: Option<String>,
    /// Version of the operating system
    #[arg(long, value_name = "VERSION")]
    os_version: Option<String>,
    /// Required features of the operating system, separated by commas
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    os_features: Option<Vec<String>>,
    /// Annotation of the image in the list; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = annotation)]
    annotation: Vec<(String, String)>,
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("wanted KEY=VALUE".into()),
    }
}

impl AnnotationArgs {
    fn annotation(&self) -> Annotation {
        Annotation {
            os: self.os.clone(),
            architecture: self.arch.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            annotations: self.annotation.iter().cloned().collect::<BTreeMap<_, _>>(),
        }
    }
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest remove LIST IMAGE|DIGEST...")]
#[command(after_help = "Example:\n  plyfs manifest remove registry.example/app:1 app:1-arm64")]
pub(in crate::cli) struct RemoveArgs {
    /// Name of the list, and images of it
    #[arg(value_names = ["LIST", "IMAGE"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest rm LIST...")]
#[command(after_help = "\
The images stay in the store, unless they were removed before.

Example:
  plyfs manifest rm registry.example/app:1")]
pub(in crate::cli) struct RmArgs {
    /// Manifest lists to remove
    #[arg(value_name = "LIST")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs manifest push [OPTIONS] LIST [DESTINATION]")]
#[command(after_help = "\
The images of the store are pushed by digest to the repository of the list. An image
that is only in a registry must be in the same one as the list; from another
repository of it, its blobs are mounted.

Examples:
  plyfs manifest push --purge registry.example/app:1
  plyfs manifest push app:1 localhost:5000/team/app:1")]
pub(in crate::cli) struct ListPushArgs {
    /// Remove the list from the store after the push
    #[arg(short, long)]
    purge: bool,
    /// Format of the list: oci or docker [default: docker if all its images are Docker's, else oci]
    #[arg(long, value_name = "FORMAT", value_parser = family)]
    format: Option<Family>,
    /// Accepted for compatibility: all images are pushed
    #[arg(long, hide = true)]
    all: bool,
    /// Print only the digest
    #[arg(short, long)]
    quiet: bool,
    /// Allow plain http and unverified certificates
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Name of the list, and [HOST[:PORT]/]REPO[:TAG] to push to, if it is another
    #[arg(value_names = ["LIST", "DESTINATION"], num_args = 0..)]
    args: Vec<String>,
}

fn family(text: &str) -> Result<Family, String> {
    match text {
        "oci" => Ok(Family::Oci),
        "docker" | "v2s2" => Ok(Family::Docker),
        _ => Err("wanted oci or docker".into()),
    }
}

/// Parses the name of a list, which has no digest.
fn name_of(text: &str) -> anyhow::Result<Reference> {
    let name = text.parse::<Reference>()?.or_latest();
    if name.digest().is_some() {
        anyhow::bail!("{text} is not the name of a manifest list: it has a digest");
    }
    Ok(name)
}

fn missing(name: &Reference) -> anyhow::Error {
    Exit::Text(1, format!("No such manifest: {name}")).into()
}

/// Parses a list's name. Returns it with the list.
fn open(store: &Store, text: &str) -> anyhow::Result<(Reference, ManifestList)> {
    let name = name_of(text)?;
    let list = lists::find(store, &name)?.ok_or_else(|| missing(&name))?;
    Ok((name, list))
}

/// Returns the settings of the flags, with `--insecure`.
pub(super) fn settings(registry: &RegistryArgs, insecure: bool) -> Settings {
    let mut settings = registry.settings();
    settings.tls_verify &= !insecure;
    settings
}

fn default_platform() -> anyhow::Result<Platform> {
    match std::env::var("DOCKER_DEFAULT_PLATFORM") {
        Ok(text) if !text.is_empty() => text.parse().map_err(anyhow::Error::msg),
        _ => Ok(config::platform()),
    }
}

pub(super) fn create(global: &Global, a: &CreateArgs) -> anyhow::Result<()> {
    let given = usage_errors::at_least_one("manifest create", &a.images.args)?;
    let (name, store) = (name_of(&given[0])?, global.store()?);
    let is_refused = |list: &Option<ManifestList>| list.is_some() && !a.amend;
    let exists = || Exit::Text(1, format!("refusing to amend an existing manifest list with no --amend flag: {name}"));
    if is_refused(&lists::find(&store, &name)?) {
        return Err(exists().into());
    }
    let choice = if a.images.all { Choice::All } else { Choice::Best(default_platform()?) };
    let entries = a.images.entries(&store, &given[1..], &choice)?;
    lists::update(&store, &name, |before| {
        if is_refused(&before) {
            return Err(anyhow::Error::from(exists()));
        }
        let mut list = before.unwrap_or_else(|| ManifestList::new(&name));
        entries.into_iter().for_each(|entry| list.add(entry));
        Ok(list)
    })?;
    output::line(format_args!("Created manifest list {name}"))
}

pub(super) fn add(global: &Global, a: &AddArgs) -> anyhow::Result<()> {
    let [text, images @ ..] = a.images.args.as_slice() else { return Err(too_few("manifest add")) };
    if images.is_empty() {
        return Err(too_few("manifest add"));
    }
    let store = global.store()?;
    let (name, _) = open(&store, text)?;
    let annotation = a.annotation.annotation();
    let choice = if a.images.all { Choice::All } else { Choice::Best(annotation.platform(&default_platform()?)) };
    let mut entries = a.images.entries(&store, images, &choice)?;
    entries.iter_mut().for_each(|entry| annotation.apply(entry));
    change(&store, &name, |list| {
        entries.into_iter().for_each(|entry| list.add(entry));
        Ok(())
    })
}

fn too_few(verb: &str) -> anyhow::Error {
    usage_errors::wrong_count(verb, "requires at least 2 arguments")
}

/// Changes a list that exists.
fn change(
    store: &Store,
    name: &Reference,
    change: impl FnOnce(&mut ManifestList) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    lists::update(store, name, |before| {
        let mut list = before.ok_or_else(|| missing(name))?;
        change(&mut list)?;
        Ok(list)
    })
}

pub(super) fn annotate(global: &Global, a: &AnnotateArgs) -> anyhow::Result<()> {
    let [text, image] = usage_errors::exactly("manifest annotate", &a.args)?;
    let store = global.store()?;
    change(&store, &name_of(text)?, |list| {
        let at = manifest_list::position(&store, list, image)?;
        a.annotation.annotation().apply(&mut list.entries[at]);
        Ok(())
    })
}

pub(super) fn remove(global: &Global, a: &RemoveArgs) -> anyhow::Result<()> {
    let [text, images @ ..] = a.args.as_slice() else { return Err(too_few("manifest remove")) };
    if images.is_empty() {
        return Err(too_few("manifest remove"));
    }
    let store = global.store()?;
    change(&store, &name_of(text)?, |list| {
        for image in images {
            list.entries.remove(manifest_list::position(&store, list, image)?);
        }
        Ok(())
    })?;
    collect(&store)
}

pub(super) fn rm(global: &Global, a: &RmArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("manifest rm", &a.args)?;
    let store = global.store()?;
    let mut failed = false;
    for text in wanted {
        let name = name_of(text)?;
        let lock = store.lock_exclusive()?;
        if !lists::remove(&store, &lock, &name)? {
            output::complaint(format_args!("No such manifest: {name}"));
            failed = true;
        }
    }
    collect(&store)?;
    if failed { Err(Exit::Said(1).into()) } else { Ok(()) }
}

/// Removes the layers that only a changed list has kept.
fn collect(store: &Store) -> anyhow::Result<()> {
    let lock = store.lock_exclusive()?;
    let (_removed, trash) = gc::collect(store, &lock, &store.catalog()?, FORMATS)?;
    drop(lock);
    drop(trash);
    Ok(())
}

pub(super) fn push(global: &Global, a: &ListPushArgs) -> anyhow::Result<()> {
    let (text, to) = usage_errors::one_or_two("manifest push", &a.args)?;
    let store = global.store()?;
    let (name, list) = open(&store, text)?;
    let to = match to {
        Some(text) => name_of(text.strip_prefix("docker://").unwrap_or(text))?,
        None => name.clone(),
    };
    let settings = settings(&a.registry, a.insecure);
    // A script reads the digest alone.
    let report = if a.quiet || !io::stdout().is_terminal() { Report::quiet() } else { Report::of_push(Kind::Auto) };
    let options = PushOptions { family: a.format, ..PushOptions::default() };
    let pushed = interrupt::in_session(&store, |session| {
        let pushed = manifest_list::push(session, &list, &to, &settings, options, &report);
        report.end();
        Ok(pushed?)
    })?;
    if a.purge {
        let lock = store.lock_exclusive()?;
        lists::remove(&store, &lock, &name)?;
        drop(lock);
        collect(&store)?;
    }
    output::line(pushed.digest)
}
