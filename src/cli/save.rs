//! `save`: images into an archive.

use super::{Exit, Global, args};
use crate::image::save;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 20;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  plyfs save -o alpine.tar alpine:3             for `plyfs load`, `docker load` or `skopeo copy docker-archive:alpine.tar`
  plyfs save app:1 app:2 base:1 | gzip >all.tar.gz")]
pub(super) struct SaveArgs {
    /// Write this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Images: NAME:TAG, all tags of a NAME, or an ID
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(super) fn save(global: &Global, a: &SaveArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("save", &a.args)?;
    if a.output.is_none() && io::stdout().is_terminal() {
        let text = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
        return Err(Exit::Text(1, text.into()).into());
    }
    let store = global.store()?;
    let images = save::choose(&store, wanted)?;
    match &a.output {
        Some(path) => into_file(path, |out| Ok(save::save(&store, &images, out)?)),
        None => {
            let done = save::save(&store, &images, BufWriter::with_capacity(BUFFER, io::stdout().lock()));
            done.map_err(|error| match error {
                // A reader that went away is told apart from a disk that is full.
                crate::image::Error::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => e.into(),
                other => other.into(),
            })
        }
    }
}

/// Makes the file, for its owner only, whole or not at all. What is no plain file, a pipe or a device, is written to.
fn into_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let invalid = |why: &str| anyhow::anyhow!("failed to save image: invalid output path: {why}");
    if let Err(e) = fs::metadata(folder) {
        return Err(invalid(&format!("{}: {e}", folder.display())));
    }
    let there = fs::metadata(path);
    if there.as_ref().is_ok_and(fs::Metadata::is_dir) {
        return Err(invalid(&format!("{} is a directory", path.display())));
    }
    if there.is_ok_and(|m| !m.is_file()) {
        let mut out = BufWriter::with_capacity(BUFFER, File::options().write(true).open(path)?);
        write(&mut out)?;
        return Ok(out.flush()?);
    }
    let mut name = path.file_name().ok_or_else(|| invalid("it names no file"))?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(name);
    let done = write_new(&temporary, write).and_then(|()| Ok(fs::rename(&temporary, path)?));
    if done.is_err() {
        // Nothing half written stays behind.
        let _gone = fs::remove_file(&temporary);
    }
    done?;
    Ok(File::open(folder)?.sync_all()?)
}

fn write_new(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|e| anyhow::anyhow!("cannot create {}: {e}", path.display()))?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    write(&mut out)?;
    out.flush()?;
    Ok(out.get_ref().sync_all()?)
}
