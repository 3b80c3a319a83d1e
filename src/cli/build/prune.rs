//! `builder prune`: remove the build cache.

use crate::cli::image::prune::confirmed;
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::{Global, usage_errors};
use crate::container::userns;
use crate::image::FORMATS;
use crate::store::{builds, gc};
use crate::sys;
use clap::Subcommand;

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one")]
pub(in crate::cli) enum BuilderCommand {
    /// Remove the build cache
    Prune(PruneArgs),
    /// Build an image from a Dockerfile
    Build(super::BuildArgs),
}

#[derive(clap::Args)]
#[command(after_help = "\
Layers that an image or a container uses stay in the store. Directories of
RUN --mount=type=cache are removed too, unless a build uses them.

Examples:
  plyfs builder prune
  plyfs builder prune -f")]
pub(in crate::cli) struct PruneArgs {
    /// Accepted for compatibility: the whole cache is removed
    #[arg(short, long, hide = true)]
    all: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    force: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

const WARNING: &str = "WARNING! This will remove the whole build cache.";

pub(in crate::cli) fn prune(global: &Global, a: &PruneArgs) -> anyhow::Result<()> {
    usage_errors::none("builder prune", &a.args)?;
    let store = global.store()?;
    if !a.force && !confirmed(WARNING)? {
        return Ok(());
    }
    // A cache mount of an unprivileged user has files of subordinate IDs.
    if !sys::is_root()
        && let Err(error) = userns::enter()
    {
        tracing::debug!("{error}");
    }
    let lock = store.lock_exclusive()?;
    let mut freed = 0;
    for entry in builds::list(&store)? {
        let size = builds::size(&entry);
        if builds::remove(&entry)? && entry.step.is_none() {
            freed += size;
        }
    }
    builds::forget_shapes(&store)?;
    let (found, trash) = gc::collect(&store, &lock, &store.catalog()?, FORMATS)?;
    freed += found.iter().map(|item| item.bytes).sum::<u64>();
    drop(lock);
    drop(trash);
    output::line(format!("Total reclaimed space: {}", units::precise_size(freed)))
}
