//! `tag`, `rmi` and `image rm`: add and remove image names, and remove images.

use crate::cli::mount::daemon;
use crate::cli::output::stdout as output;
use crate::cli::{Exit, Global, usage_errors};
use crate::image::{Error, remove};
use crate::reference::Reference;
use crate::store::{self, gc::Trash};

/// Total layer size, in bytes, that is deleted in the foreground. Deleting on a disk with online discard takes a second
/// per gigabyte, so more is deleted in the background.
const SMALL: u64 = 32 << 20;

#[derive(clap::Args)]
#[command(override_usage = "plyfs tag [OPTIONS] SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")]
#[command(after_help = "Example:\n  plyfs tag debian:12 localhost:5000/debian:stable")]
pub(in crate::cli) struct TagArgs {
    /// Source image and new name
    #[arg(value_names = ["SOURCE_IMAGE[:TAG]", "TARGET_IMAGE[:TAG]"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs rmi [OPTIONS] IMAGE...")]
#[command(after_help = "\
A manifest list of the name is removed too; its images keep their own names.

Examples:
  plyfs rmi debian:12                            the name, and with the last one the image
  plyfs image ls -q | xargs plyfs image rm -f    everything")]
pub(in crate::cli) struct RmiArgs {
    /// Force removal of the image with all its names; ignore images that do not exist
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents (accepted for compatibility; there are none)
    #[arg(long)]
    no_prune: bool,
    /// Images to remove
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(in crate::cli) fn tag(global: &Global, a: &TagArgs) -> anyhow::Result<()> {
    let [image, name] = usage_errors::exactly("tag", &a.args)?;
    let parsed: Reference = name.parse().map_err(|e| {
        Exit::Text(1, format!("Error parsing reference: \"{name}\" is not a valid repository/tag: {e}"))
    })?;
    Ok(remove::tag(&global.store()?, image, &parsed)?)
}

pub(in crate::cli) fn rmi(global: &Global, a: &RmiArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("rmi", &a.args)?;
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
