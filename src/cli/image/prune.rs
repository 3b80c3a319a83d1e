//! `image prune`: remove unused images, after confirmation.

use crate::cli::filter::{self, Filters};
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::{Global, usage_errors};
use crate::digest::Digest;
use crate::image::remove::{Record, remove_unused};
use crate::image::{self};
use crate::store::{Image, Store, gc};
use std::collections::BTreeMap;
use std::io;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  plyfs image prune                         what has no tag, and what broken pulls left
  plyfs image prune -af --filter until=24h  every image older than a day that nobody uses")]
pub(in crate::cli) struct PruneArgs {
    /// Remove all images not used by a container or mount, not only those without a tag
    #[arg(short, long)]
    all: bool,
    /// Filter images: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE], dangling=BOOL
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

pub(in crate::cli) fn prune(global: &Global, a: &PruneArgs) -> anyhow::Result<()> {
    usage_errors::none("image prune", &a.args)?;
    let store = global.store()?;
    let catalog = store.catalog()?;
    let mut filters = Filters::parse(&a.filter, filter::PRUNE, &catalog)?;
    // For this command `dangling` selects what to remove and is no filter.
    let all = a.all || filters.dangling.take() == Some(false);
    if !a.force && !confirm(all)? {
        return Ok(());
    }
    let mut doomed = Vec::new();
    for image in catalog.images().iter().filter(|i| all || i.tags.is_empty()) {
        doomed.extend(filters.apply(&store, image)?);
    }
    let mut freed = remove_leftovers(&store)?;
    let before = layers(&store)?;
    let mut records = Vec::new();
    for image in &doomed {
        records.extend(removed(&store, image)?);
    }
    let after = layers(&store)?;
    freed += before.iter().filter(|(id, _)| !after.contains_key(*id)).map(|(_, size)| size).sum::<u64>();
    if !records.is_empty() {
        output::line("Deleted Images:")?;
        for record in records {
            match record {
                Record::Untagged(name) => output::line(format_args!("untagged: {}", name.familiar()))?,
                Record::Deleted(digest) => output::line(format_args!("deleted: {digest}"))?,
            }
        }
        output::line("")?;
    }
    output::line(format_args!("Total reclaimed space: {}", units::size(freed)))
}

fn confirm(all: bool) -> anyhow::Result<bool> {
    let what = if all { "images without at least one container associated to them" } else { "dangling images" };
    confirmed(&format!("WARNING! This will remove all {what}."))
}

/// Prints a warning and prompts for confirmation; anything but yes is a no.
pub(in crate::cli) fn confirmed(warning: &str) -> anyhow::Result<bool> {
    output::text(&format!("{warning}\nAre you sure you want to continue? [y/N] "))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Removes the image if it is unused; returns what was removed, which is nothing if it is used or gone by now.
fn removed(store: &Store, image: &Image) -> anyhow::Result<Vec<Record>> {
    match remove_unused(store, &image.id) {
        Ok((records, _trash)) => Ok(records),
        Err(image::Error::Conflict(_) | image::Error::Store(crate::store::Error::NoSuchImage(_))) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Removes data left by dead pulls and crashes; returns the bytes freed.
fn remove_leftovers(store: &Store) -> anyhow::Result<u64> {
    let lock = store.lock_exclusive()?;
    let (mut gone, trash) = gc::collect(store, &lock, &store.catalog()?, image::FORMATS)?;
    gone.extend(gc::remove_downloads(store, &lock)?);
    drop(lock);
    drop(trash);
    Ok(gone.iter().map(|item| item.bytes).sum())
}

/// Returns the distinct layers of all images, with their sizes.
pub(in crate::cli) fn layers(store: &Store) -> anyhow::Result<BTreeMap<Digest, u64>> {
    let catalog = store.catalog()?;
    Ok(catalog.images().iter().flat_map(|i| &i.layers).map(|l| (l.diff_id.clone(), l.size)).collect())
}
