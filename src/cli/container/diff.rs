//! `diff`: lists the added, changed and deleted files of a container or an upper directory.

use super::changes::{UpperArgs, changes, of_container, of_upper, sync};
use crate::cli::output::stdout as output;
use crate::cli::{Global, usage_errors};
use crate::fs::How;
use crate::name::show;
use std::fmt::Write as _;

#[derive(clap::Args)]
#[command(override_usage = "plyfs diff CONTAINER\n       plyfs diff [OPTIONS] --upper DIR")]
#[command(after_help = "\
A: added, C: changed, D: deleted.

Examples:
  plyfs diff web
  plyfs diff --upper ./changes")]
pub(in crate::cli) struct DiffArgs {
    #[command(flatten)]
    upper: UpperArgs,
    /// Container, by name or ID; a running one is paused meanwhile
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

pub(in crate::cli) fn diff(global: &Global, a: &DiffArgs) -> anyhow::Result<()> {
    let store = global.store()?;
    let target = match &a.upper.upper {
        Some(upper) => {
            usage_errors::none("diff", &a.args).and_then(|()| of_upper(&store, upper, a.upper.image.as_deref()))?
        }
        None => usage_errors::exactly("diff", &a.args).and_then(|[name]| of_container(&store, name, true))?,
    };
    for mount in &target.live {
        sync(mount)?;
    }
    let mut text = String::new();
    let found = target.consistently(|| changes(&store, &target))?;
    for (path, changed) in found.iter().filter(|(path, _)| *path != b"/") {
        let letter = match changed.how {
            How::Added => 'A',
            How::Changed => 'C',
            How::Deleted => 'D',
        };
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{letter} {}", show(path));
    }
    output::text(&text)
}
