//! `push`: upload an image or a manifest list to a registry.

use crate::cli::output::progress::{Kind, Report};
use crate::cli::output::stdout as output;
use crate::cli::registry::options::RegistryArgs;
use crate::cli::{Global, interrupt, usage_errors};
use crate::image::deflate::Compression;
use crate::image::manifest_list::{self, PushOptions};
use crate::image::push::{self, Packing, Pushed};
use crate::reference::{DEFAULT_TAG, Reference};
use crate::store::lists::{self, ManifestList};
use crate::store::{Store, write_new};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(override_usage = "plyfs push [OPTIONS] NAME[:TAG]")]
#[command(after_help = "\
If NAME is a manifest list (plyfs manifest, plyfs build --platform), the list is
pushed with all its images.

Examples:
  plyfs push registry.example/team/app:1
  plyfs tag app:1 localhost:5000/app:1 && plyfs push localhost:5000/app:1
  plyfs push --compression-format zstd registry.example/team/app:1")]
pub(in crate::cli) struct PushArgs {
    /// Push all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the image name
    #[arg(short, long)]
    quiet: bool,
    /// Progress output
    #[arg(long, value_name = "KIND", default_value = "auto")]
    progress: Kind,
    /// Compression of all layers: gzip or zstd [default: as in the registry, else gzip]
    #[arg(long, value_name = "FORMAT")]
    compression_format: Option<Compression>,
    /// Compression level: 1 to 9 for gzip, 1 to 20 for zstd [default: 6, 3]
    #[arg(long, value_name = "LEVEL")]
    compression_level: Option<u32>,
    /// Write the manifest's digest to a file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// [HOST[:PORT]/]REPO[:TAG]
    #[arg(value_name = "NAME")]
    args: Vec<String>,
}

pub(in crate::cli) fn push(global: &Global, a: &PushArgs) -> anyhow::Result<()> {
    let [text] = usage_errors::exactly("push", &a.args)?;
    let named: Reference = text.parse()?;
    let report = if a.quiet { Report::quiet() } else { Report::of_push(a.progress) };
    push_all(global, a, &named, &report).inspect_err(|error| report.failed(error))?;
    if a.quiet {
        let name = if a.all_tags { named } else { named.or_latest() };
        output::line(name)?;
    }
    Ok(())
}

fn push_all(global: &Global, a: &PushArgs, named: &Reference, report: &Report) -> anyhow::Result<()> {
    let is_bare = named.tag().is_none() && named.digest().is_none();
    if a.all_tags && !is_bare {
        anyhow::bail!("tag can't be used with --all-tags/-a");
    }
    let packing = packing(a)?;
    if is_bare && !a.all_tags {
        report.note(&format!("Using default tag: {DEFAULT_TAG}"));
    }
    let store = global.store()?;
    if !a.all_tags
        && named.digest().is_none()
        && let Some(list) = lists::find(&store, named)?
    {
        report.note(&format!("The push refers to repository [{}]", named.name()));
        let options = PushOptions { packing, family: None };
        return push_list(&store, a, &list, options, report);
    }
    let chosen = push::choose(&store, named, a.all_tags)?;
    report.note(&format!("The push refers to repository [{}]", named.name()));
    let settings = a.registry.settings();
    interrupt::in_session(&store, |session| {
        let each = |(image, name): &(_, Reference)| -> anyhow::Result<()> {
            let pushed = push::push(session, image, name, &settings, packing, report)?;
            report.pushed(name.tag().unwrap_or_default(), &pushed)?;
            write_digest(a, &pushed)
        };
        let done = chosen.iter().try_for_each(each);
        report.end();
        done
    })
}

/// Pushes a manifest list and its images under the list's name.
fn push_list(
    store: &Store,
    a: &PushArgs,
    list: &ManifestList,
    options: PushOptions,
    report: &Report,
) -> anyhow::Result<()> {
    let settings = a.registry.settings();
    interrupt::in_session(store, |session| {
        let pushed = manifest_list::push(session, list, &list.name, &settings, options, report);
        let done = pushed.map_err(anyhow::Error::from).and_then(|pushed| {
            report.pushed(list.name.tag().unwrap_or_default(), &pushed)?;
            write_digest(a, &pushed)
        });
        report.end();
        done
    })
}

fn write_digest(a: &PushArgs, pushed: &Pushed) -> anyhow::Result<()> {
    match &a.digestfile {
        Some(file) => Ok(write_new(file, pushed.digest.to_string().as_bytes())?),
        None => Ok(()),
    }
}

fn packing(a: &PushArgs) -> anyhow::Result<Packing> {
    let (compression, level) = (a.compression_format, a.compression_level);
    let how = compression.unwrap_or(Compression::Gzip);
    let (_, levels) = how.levels();
    if let Some(level) = level.filter(|level| !levels.contains(level)) {
        let (low, high) = levels.into_inner();
        anyhow::bail!("invalid compression level {level}: {} has {low} to {high}", how.name());
    }
    Ok(Packing { compression, level })
}
