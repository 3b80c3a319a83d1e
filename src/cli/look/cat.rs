//! `cat`: prints files of an image.

use super::target::{Complaints, LookArgs};
use crate::cli::output::stdout as output;
use crate::cli::{Global, usage_errors};
use crate::fs::{Attr, Fs};
use crate::meta::Kind;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// Bytes that are read at a time.
const PIECE: u32 = 1 << 20;

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs cat [OPTIONS] IMAGE|CONTAINER PATH...\n       plyfs cat [OPTIONS] --upper DIR PATH..."
)]
#[command(after_help = "\
Examples:
  plyfs cat debian:12 /etc/os-release
  plyfs cat web /etc/hosts /etc/hostname")]
pub(in crate::cli) struct CatArgs {
    #[command(flatten)]
    look: LookArgs,
    /// Image or container, and the files to print
    #[arg(value_name = "IMAGE PATH", num_args = 0..)]
    args: Vec<OsString>,
}

impl CatArgs {
    /// The positional arguments.
    pub(in crate::cli) fn words(&self) -> &[OsString] {
        &self.args
    }
}

pub(in crate::cli) fn cat(global: &Global, a: &CatArgs) -> anyhow::Result<()> {
    let (opened, words) = a.look.open(global, "cat", &a.args)?;
    usage_errors::at_least_one("cat", words)?;
    let paths: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let (mut complaints, mut out) = (Complaints::default(), output::writer());
    opened.each(&paths, true, &mut complaints, |path, attr, complaints| {
        match attr.kind {
            Kind::File => print(&opened.fs, &attr, &mut out)?,
            Kind::Dir => complaints.add(path, "Is a directory"),
            _ => complaints.add(path, "Not a regular file"),
        }
        Ok(())
    })?;
    out.flush().map_err(output::failed)?;
    complaints.end()
}

fn print(fs: &Fs, file: &Attr, out: &mut impl Write) -> anyhow::Result<()> {
    let mut at = 0;
    while at < file.size {
        let piece = fs.read(file.ino, at, PIECE)?;
        if piece.is_empty() {
            break;
        }
        out.write_all(&piece).map_err(output::failed)?;
        at += piece.len() as u64;
    }
    Ok(())
}
