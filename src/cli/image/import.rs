//! `import`: create an image from a tar of a file system.

use crate::cli::output::stdout as output;
use crate::cli::{Global, config, interrupt, usage_errors};
use crate::image::Platform;
use crate::image::import::{self, Wanted};
use crate::reference::Reference;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Read};

#[derive(clap::Args)]
#[command(override_usage = "plyfs import [OPTIONS] FILE|- [REPOSITORY[:TAG]]")]
#[command(after_help = "\
Examples:
  plyfs import rootfs.tar.gz base:1
  tar -C /srv/root --xattrs --numeric-owner -c . | plyfs import - base:2
  plyfs import -c 'ENV LANG=C.UTF-8' -c 'CMD [\"sh\"]' rootfs.tar base:3

With SOURCE_DATE_EPOCH in the environment the image is dated by it, so that the same tar makes the same image.")]
pub(in crate::cli) struct ImportArgs {
    /// Apply a Dockerfile instruction to the image: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME or WORKDIR
    #[arg(short, long, value_name = "LINE")]
    change: Vec<String>,
    /// Comment in the image's history [default: Imported from -]
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Platform of the image, OS/ARCH[/VARIANT] [default: the host's]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", hide_env_values = true)]
    platform: Option<Platform>,
    /// Tar file, plain or compressed by gzip or zstd, or - for stdin; and a name for the image
    #[arg(value_names = ["FILE", "REPOSITORY[:TAG]"], num_args = 0..)]
    args: Vec<String>,
}

pub(in crate::cli) fn import(global: &Global, a: &ImportArgs) -> anyhow::Result<()> {
    let given = usage_errors::at_least_one("import", &a.args)?;
    let (from, name) = usage_errors::one_or_two("import", given)?;
    let wanted = Wanted {
        config: import::config_of(&a.change)?,
        platform: a.platform.clone().unwrap_or_else(config::platform),
        created: source_date()?.unwrap_or_else(Timestamp::now),
        comment: a.message.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "Imported from -".into()),
        name: name.map(name_of).transpose()?,
    };
    let (origin, tar) = open(from)?;
    let image = interrupt::in_session(&global.store()?, |session| {
        Ok(import::import(session, tar, &origin, &wanted, &|text| tracing::warn!("{origin}: {text}"))?)
    })?;
    output::line(image.id)
}

/// Parses a name for an image.
pub(in crate::cli) fn name_of(text: &str) -> anyhow::Result<Reference> {
    let name: Reference = text.parse()?;
    if name.digest().is_some() {
        anyhow::bail!("cannot import digest reference");
    }
    Ok(name.or_latest())
}

/// Opens the tar; returns its name for messages, and its stream.
fn open(from: &str) -> anyhow::Result<(String, Box<dyn Read + Send>)> {
    if from == "-" {
        return Ok(("standard input".into(), Box::new(io::stdin())));
    }
    let file = File::open(from).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    match file {
        Ok(file) => Ok((from.to_owned(), Box::new(file))),
        Err(_) if from.starts_with("http://") || from.starts_with("https://") => {
            anyhow::bail!("cannot import from a URL: run curl -fL {from} | plyfs import -")
        }
        Err(e) => anyhow::bail!("cannot import {from}: {}", crate::sys::describe(&e)),
    }
}

/// Returns the time in SOURCE_DATE_EPOCH, if it is set.
pub(in crate::cli) fn source_date() -> anyhow::Result<Option<Timestamp>> {
    let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let moment = text.parse::<i64>().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    moment.map(Some).ok_or_else(|| anyhow::anyhow!("SOURCE_DATE_EPOCH is not a number of seconds: {text}"))
}
