//! `commit`: creates an image from the changes of a container or an upper directory.

use super::changes::{UpperArgs, of_container, of_upper};
use crate::cli::image::import;
use crate::cli::output::stdout as output;
use crate::cli::{Global, interrupt, usage_errors};
use crate::image::commit::{self, Wanted};
use jiff::Timestamp;

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]\n       plyfs commit [OPTIONS] --upper DIR [REPOSITORY[:TAG]]"
)]
#[command(after_help = "\
Examples:
  plyfs commit -m 'with curl' web web:2
  plyfs commit --upper ./changes -c 'CMD [\"nginx\"]' web:2

If SOURCE_DATE_EPOCH is set, it is the image's creation time and the latest file
time, so that equal changes make equal images.")]
pub(in crate::cli) struct CommitArgs {
    /// Author, for example: Jane Doe <jane@example.com>
    #[arg(short, long)]
    author: Option<String>,
    /// Apply a Dockerfile instruction to the image: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME or WORKDIR
    #[arg(short, long, value_name = "LINE")]
    change: Vec<String>,
    /// Commit message, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Pause the container during commit [default: true]
    #[arg(short, long, value_name = "BOOL", default_value_t = true, default_missing_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, hide_default_value = true, action = clap::ArgAction::Set)]
    pause: bool,
    #[command(flatten)]
    upper: UpperArgs,
    /// Container, by name or ID, and the new image's name
    #[arg(value_names = ["CONTAINER", "REPOSITORY[:TAG]"], num_args = 0..)]
    args: Vec<String>,
}

pub(in crate::cli) fn commit(global: &Global, a: &CommitArgs) -> anyhow::Result<()> {
    let store = global.store()?;
    let (target, name) = match &a.upper.upper {
        Some(upper) => {
            let name = usage_errors::at_most_one("commit", &a.args)?;
            (of_upper(&store, upper, a.upper.image.as_deref())?, name)
        }
        None => {
            let (container, name) = usage_errors::one_or_two("commit", &a.args)?;
            (of_container(&store, container, a.pause)?, name)
        }
    };
    let newest = import::source_date()?;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let wanted = Wanted {
        image: &target.image,
        upper: &target.upper,
        config: target.config.clone(),
        changes: &a.change,
        author: given(&a.author),
        message: given(&a.message),
        created: newest.unwrap_or_else(Timestamp::now),
        created_by: None,
        newest,
        left_out: &target.left_out,
        name: name.map(import::name_of).transpose()?,
    };
    let image = interrupt::in_session(&store, |session| {
        target.write_back(&store)?;
        target.consistently(|| commit::commit(session, &wanted, &|text| tracing::warn!("{text}")))
    })?;
    output::line(image.id)
}
