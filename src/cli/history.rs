//! `history`: how an image was built, as its config tells it.

use super::format::{self, Columns, Row};
use super::images::ago;
use super::inspect::config;
use super::{Global, args, human};
use jiff::Timestamp;
use serde_json::{Map, Value};

const COLUMNS: Columns = Columns {
    type_name: "*formatter.historyContext",
    fields: &[
        ("Comment", "COMMENT"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("CreatedSince", "CREATED"),
        ("ID", "IMAGE"),
        ("Size", "SIZE"),
    ],
};
const TABLE: &str = r"{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const TABLE_FOR_MACHINES: &str = r"{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
/// What the image's own line has instead of an ID on those below.
const MISSING: &str = "<missing>";
/// How much of a command is shown.
const COMMAND_WIDTH: usize = 45;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  plyfs history debian:12\n  plyfs history --no-trunc --format '{{.CreatedBy}}' debian:12"
)]
pub(super) struct HistoryArgs {
    /// `table`, `table TEMPLATE`, `json`, or a Go template over ID, CreatedSince, CreatedAt, CreatedBy, Size, Comment
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Sizes and dates for people; --human=false for bytes and moments
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Show whole IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// Show only IDs
    #[arg(short, long)]
    quiet: bool,
    /// The image
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(super) fn history(global: &Global, a: &HistoryArgs) -> anyhow::Result<()> {
    let [wanted] = args::exactly("history", &a.args)?;
    let store = global.store()?;
    let image = store.resolve(wanted)?;
    let config = config(&store, &image)?;
    let steps = config.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut sizes = image.layers.iter().map(|l| l.size);
    let now = Timestamp::now();
    let none = Map::new();
    let mut rows: Vec<Row> = Vec::new();
    for step in steps {
        let step = step.as_object().unwrap_or(&none);
        let empty = step.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
        // Steps and layers come in the same order; only some steps made one.
        let size = if empty { 0 } else { sizes.next().unwrap_or(0) };
        rows.push(cells(step, size, a, now));
    }
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top[4] = if a.no_trunc { image.id.to_string() } else { image.id.short().to_owned() };
    }
    let is_default = matches!(a.format.as_deref(), None | Some("" | "table"));
    let format = if a.quiet && is_default { Some("{{.ID}}") } else { a.format.as_deref() };
    format::list(format, if a.human { TABLE } else { TABLE_FOR_MACHINES }, &COLUMNS, rows)
}

fn cells(step: &Map<String, Value>, size: u64, a: &HistoryArgs, now: Timestamp) -> Row {
    let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
    let created: Option<Timestamp> = text("created").parse().ok();
    let at = created.map_or_else(String::new, |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let mut command = text("created_by").replace('\t', " ");
    if !a.no_trunc {
        command = human::ellipsis(&command, COMMAND_WIDTH);
    }
    let shown = if a.human { human::size(size) } else { size.to_string() };
    vec![text("comment").to_owned(), at, command, ago(created, now), MISSING.to_owned(), shown]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut_as_docker_cuts_them() {
        let long = "/bin/sh -c #(nop) ADD file:0123456789abcdef0123456789abcdef in /";
        assert_eq!(human::ellipsis(long, COMMAND_WIDTH), "/bin/sh -c #(nop) ADD file:0123456789abcdef0…");
    }
}
