//! `export`: write an image's merged file system as one tar.

use crate::cli::image::archive;
use crate::cli::{Global, usage_errors};
use crate::fs::{ExportError, Fs, export as pack};
use crate::store::{Intent, Session};
use std::io::{self, Write};
use std::path::PathBuf;

const FAILED: &str = "failed to export image";

#[derive(clap::Args)]
#[command(override_usage = "plyfs export [OPTIONS] IMAGE")]
#[command(after_help = "\
Examples:
  plyfs export -o rootfs.tar debian:12
  plyfs export debian:12 | tar -C /srv/root --xattrs --xattrs-include='*' --numeric-owner -xp")]
pub(in crate::cli) struct ExportArgs {
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Image to export
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(in crate::cli) fn export(global: &Global, a: &ExportArgs) -> anyhow::Result<()> {
    let [wanted] = usage_errors::exactly("export", &a.args)?;
    archive::refuse_terminal(a.output.as_deref())?;
    let place = a.output.as_deref().map(|path| archive::Place::new(path, FAILED)).transpose()?;
    let store = global.store()?;
    let image = store.resolve(wanted)?;
    // The session keeps the image until its files are open; open files survive a removal.
    let session = Session::begin(&store)?;
    let layers = image.layers.iter().map(|l| l.diff_id.clone()).collect();
    session.intend(&Intent { layers, trees: [image.chain_id()].into(), ..Intent::default() })?;
    let opened = crate::image::open_tree(&store, &image)?;
    drop(session);
    let fs = opened.into_fs(None, None)?;
    match place {
        Some(place) => place.file(FAILED, |out| write(&fs, out)),
        None => write(&fs, archive::stdout()),
    }
}

fn write(fs: &Fs, out: impl Write) -> anyhow::Result<()> {
    pack(fs, out).map(drop).map_err(|error| match error {
        // A closed pipe (EPIPE) is reported differently from a full disk.
        ExportError::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => e.into(),
        other => other.into(),
    })
}
