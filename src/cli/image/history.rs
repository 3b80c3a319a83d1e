//! `history`: show how an image was built, from its config.

use crate::cli::image::document::config;
use crate::cli::output::format::{self, Columns, Row};
use crate::cli::output::units;
use crate::cli::output::units::ago;
use crate::cli::{Global, usage_errors};
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
/// ID column of the steps below the image's own.
const MISSING: &str = "<missing>";
/// Width to which a command is truncated.
const COMMAND_WIDTH: usize = 45;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  plyfs history debian:12\n  plyfs history --no-trunc --format '{{.CreatedBy}}' debian:12"
)]
pub(in crate::cli) struct HistoryArgs {
    /// `table`, `table TEMPLATE`, `json`, or a Go template over ID, CreatedSince, CreatedAt, CreatedBy, Size, Comment
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print sizes and dates in human readable format; with =false, bytes and RFC 3339 times
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// Image to show
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(in crate::cli) fn history(global: &Global, a: &HistoryArgs) -> anyhow::Result<()> {
    let [wanted] = usage_errors::exactly("history", &a.args)?;
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
        // Steps and layers are in the same order; not every step made a layer.
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

/// Returns the command that made each layer, the bottom one first, as far as the config's history has them.
pub(in crate::cli) fn layer_commands(config: &Map<String, Value>) -> Vec<String> {
    let steps = config.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let made_layer = |step: &&Value| !step.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
    let command = |step: &Value| step.get("created_by").and_then(Value::as_str).unwrap_or_default().to_owned();
    steps.iter().filter(made_layer).map(command).collect()
}

fn cells(step: &Map<String, Value>, size: u64, a: &HistoryArgs, now: Timestamp) -> Row {
    let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
    let created: Option<Timestamp> = text("created").parse().ok();
    let at = created.map_or_else(String::new, |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let mut command = text("created_by").replace('\t', " ");
    if !a.no_trunc {
        command = units::ellipsis(&command, COMMAND_WIDTH);
    }
    let shown = if a.human { units::size(size) } else { size.to_string() };
    vec![text("comment").to_owned(), at, command, ago(created, now), MISSING.to_owned(), shown]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut_as_docker_cuts_them() {
        let long = "/bin/sh -c #(nop) ADD file:0123456789abcdef0123456789abcdef in /";
        assert_eq!(units::ellipsis(long, COMMAND_WIDTH), "/bin/sh -c #(nop) ADD file:0123456789abcdef0…");
    }
}
