//! `push`.

use super::registry::RegistryArgs;
use super::{Global, args, interrupt, output};
use crate::image::deflate::Compression;
use crate::image::push::{self, Event, Packing, Progress, Pushed};
use crate::reference::{DEFAULT_TAG, Reference};
use crate::store::{LayerRecord, write_new};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(override_usage = "plyfs push [OPTIONS] NAME[:TAG]")]
#[command(after_help = "\
Examples:
  plyfs push registry.example/team/app:1
  plyfs tag app:1 localhost:5000/app:1 && plyfs push localhost:5000/app:1
  plyfs push --compression-format zstd registry.example/team/app:1")]
pub(super) struct PushArgs {
    /// Push all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the image's name
    #[arg(short, long)]
    quiet: bool,
    /// Have all layers packed so: gzip or zstd [default: as the registry has them, or gzip]
    #[arg(long, value_name = "FORMAT")]
    compression_format: Option<Compression>,
    /// How hard to pack: 1 to 9 for gzip, 1 to 20 for zstd [default: 6, 3]
    #[arg(long, value_name = "LEVEL")]
    compression_level: Option<u32>,
    /// Write the manifest's digest into this file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// [HOST[:PORT]/]REPO[:TAG]
    #[arg(value_name = "NAME")]
    args: Vec<String>,
}

/// Prints Docker's lines as a push goes on.
struct Lines {
    quiet: bool,
}

impl Progress for Lines {
    fn layer(&self, layer: &LayerRecord, event: Event) {
        let what = match event {
            Event::Preparing => "Preparing".to_owned(),
            Event::Sent(_) => return,
            Event::Pushed => "Pushed".to_owned(),
            Event::Exists => "Layer already exists".to_owned(),
            Event::Mounted(from) => format!("Mounted from {from}"),
            Event::Foreign => "Skipped foreign layer".to_owned(),
        };
        if !self.quiet {
            // A push goes on when nobody listens any more.
            let _gone = output::line(format_args!("{}: {what}", layer.diff_id.short()));
        }
    }
}

pub(super) fn push(global: &Global, a: &PushArgs) -> anyhow::Result<()> {
    let [text] = args::exactly("push", &a.args)?;
    let named: Reference = text.parse()?;
    let is_bare = named.tag().is_none() && named.digest().is_none();
    if a.all_tags && !is_bare {
        anyhow::bail!("tag can't be used with --all-tags/-a");
    }
    let packing = packing(a)?;
    let say = |text: &str| if a.quiet { Ok(()) } else { output::line(text) };
    if is_bare && !a.all_tags {
        say(&format!("Using default tag: {DEFAULT_TAG}"))?;
    }
    let store = global.store()?;
    let chosen = push::choose(&store, &named, a.all_tags)?;
    say(&format!("The push refers to repository [{}]", named.name()))?;
    let settings = a.registry.settings();
    let lines = Lines { quiet: a.quiet };
    interrupt::in_session(&store, |session| {
        for (image, name) in &chosen {
            let Pushed { digest, size } = push::push(session, image, name, &settings, packing, &lines)?;
            say(&format!("{}: digest: {digest} size: {size}", name.tag().unwrap_or_default()))?;
            if let Some(file) = &a.digestfile {
                write_new(file, digest.to_string().as_bytes())?;
            }
        }
        Ok(())
    })?;
    if a.quiet {
        let name = if a.all_tags { named } else { named.or_latest() };
        output::line(name)?;
    }
    Ok(())
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
