//! `tag`, `rmi` and `image rm`: names given and taken.

use super::{Exit, Global, args, daemon, output};
use crate::image::{Error, remove};
use crate::reference::Reference;
use crate::store::{self, gc::Trash};

/// Layers of so many bytes are gone before anybody notices. A disk that discards what is freed takes a second for each
/// gigabyte, and that need not be waited for.
const SMALL: u64 = 32 << 20;

#[derive(clap::Args)]
#[command(override_usage = "plyfs tag [OPTIONS] SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")]
#[command(after_help = "Example:\n  plyfs tag debian:12 localhost:5000/debian:stable")]
pub(super) struct TagArgs {
    /// The image and its new name
    #[arg(value_names = ["SOURCE_IMAGE[:TAG]", "TARGET_IMAGE[:TAG]"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs rmi [OPTIONS] IMAGE...")]
#[command(after_help = "\
Examples:
  plyfs rmi debian:12                            the name, and with the last one the image
  plyfs image ls -q | xargs plyfs image rm -f    everything")]
pub(super) struct RmiArgs {
    /// Remove an image with all its names, and do not mind one that is not there
    #[arg(short, long)]
    force: bool,
    /// Accepted for Docker's sake; there are no untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Images
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(super) fn tag(global: &Global, a: &TagArgs) -> anyhow::Result<()> {
    let [image, name] = args::exactly("tag", &a.args)?;
    let parsed: Reference = name.parse().map_err(|e| {
        Exit::Text(1, format!("Error parsing reference: \"{name}\" is not a valid repository/tag: {e}"))
    })?;
    Ok(remove::tag(&global.store()?, image, &parsed)?)
}

pub(super) fn rmi(global: &Global, a: &RmiArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("rmi", &a.args)?;
    let _nothing_to_prune = a.no_prune;
    let store = global.store()?;
    let (mut failed, mut trash) = (false, Trash::default());
    for text in wanted {
        match remove::remove(&store, text, a.force) {
            Ok((records, more)) => {
                trash.extend(more);
                let lines: Vec<String> = records.iter().map(|r| format!("{r}\n")).collect();
                output::text(&lines.concat())?;
            }
            Err(error) => {
                output::complaint(format_args!("Error: {error}"));
                failed |= !(a.force && matches!(error, Error::Store(store::Error::NoSuchImage(_))));
            }
        }
    }
    if trash.bytes() > SMALL {
        daemon::leave_to_child(trash);
    }
    if failed { Err(Exit::Said(1).into()) } else { Ok(()) }
}
