//! `save`: write images to an archive or an OCI layout.

use crate::cli::image::archive;
use crate::cli::{Global, usage_errors};
use crate::image::save::{self, Format};
use std::io;
use std::path::PathBuf;

const FAILED: &str = "failed to save image";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  plyfs save -o alpine.tar alpine:3             for `plyfs load`, `docker load` or `skopeo copy docker-archive:alpine.tar`
  plyfs save app:1 app:2 base:1 | gzip >all.tar.gz
  plyfs save --format oci-dir -o app app:1      for `umoci unpack --image app:1`")]
pub(in crate::cli) struct SaveArgs {
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Format: docker-archive, oci-archive, or oci-dir, an OCI layout in the folder of -o [default: an archive in both
    /// formats]
    #[arg(long, value_name = "FORMAT", value_enum)]
    format: Option<Form>,
    /// Images to save: NAME:TAG, NAME for all its tags, or ID
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Form {
    DockerArchive,
    OciArchive,
    OciDir,
}

pub(in crate::cli) fn save(global: &Global, a: &SaveArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("save", &a.args)?;
    let format = match a.format {
        None => Some(Format::Both),
        Some(Form::DockerArchive) => Some(Format::Docker),
        Some(Form::OciArchive) => Some(Format::Oci),
        Some(Form::OciDir) if a.output.is_none() => {
            anyhow::bail!("the format oci-dir needs a directory: name it with -o")
        }
        Some(Form::OciDir) => None,
    };
    archive::refuse_terminal(a.output.as_deref())?;
    let place = a.output.as_deref().map(|path| archive::Place::new(path, FAILED)).transpose()?;
    let store = global.store()?;
    let images = save::choose(&store, wanted)?;
    match (place, format) {
        (Some(place), Some(format)) => place.file(FAILED, |out| Ok(save::save(&store, &images, format, out)?)),
        (Some(place), None) => place.folder(FAILED, |dir| Ok(save::save_layout(&store, &images, dir)?)),
        (None, format) => {
            let done = save::save(&store, &images, format.unwrap_or(Format::Both), archive::stdout());
            done.map_err(|error| match error {
                // A closed pipe (EPIPE) is reported differently from a full disk.
                crate::image::Error::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => e.into(),
                other => other.into(),
            })
        }
    }
}
