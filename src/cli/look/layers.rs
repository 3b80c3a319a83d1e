//! `layers`: shows what each layer of an image does, to all files or to one path.

use super::record::absolute;
use super::target::{LookArgs, text};
use crate::browse::{Counts, Did, Layers, Owners, Place, digest, mode_text};
use crate::cli::image::history::commands;
use crate::cli::output::format::{self, Columns, Row};
use crate::cli::output::units;
use crate::cli::{Global, usage_errors};
use crate::image::{open_layers, open_tree};
use crate::meta::Kind;
use crate::name::show;
use crate::store::{Image, Store};
use jiff::Timestamp;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

const COLUMNS: Columns = Columns {
    type_name: "*formatter.layerContext",
    fields: &[
        ("Added", "ADDED"),
        ("Changed", "CHANGED"),
        ("CreatedBy", "CREATED BY"),
        ("ID", "LAYER ID"),
        ("Number", "LAYER"),
        ("Removed", "REMOVED"),
        ("Size", "SIZE"),
    ],
};
const TABLE: &str = r"{{.Number}}\t{{.ID}}\t{{.Size}}\t{{.Added}}\t{{.Changed}}\t{{.Removed}}\t{{.CreatedBy}}";

const PATH_COLUMNS: Columns = Columns {
    type_name: "*formatter.layerPathContext",
    fields: &[
        ("Change", "CHANGE"),
        ("CreatedBy", "CREATED BY"),
        ("Digest", "DIGEST"),
        ("ID", "LAYER ID"),
        ("ModTime", "MODIFIED"),
        ("Mode", "MODE"),
        ("Number", "LAYER"),
        ("Owner", "OWNER"),
        ("Size", "SIZE"),
    ],
};
const PATH_TABLE: &str =
    r"{{.Number}}\t{{.Change}}\t{{.Mode}}\t{{.Owner}}\t{{.Size}}\t{{.ModTime}}\t{{.Digest}}\t{{.CreatedBy}}";
/// The width to which a command is truncated.
const COMMAND_WIDTH: usize = 45;
/// The digits of a digest that are shown.
const DIGITS: usize = 12;

#[derive(clap::Args)]
#[command(override_usage = "plyfs layers [OPTIONS] IMAGE [PATH]")]
#[command(after_help = "\
Layers are numbered from 1, the bottom one.

Examples:
  plyfs layers debian:12
  plyfs layers debian:12 /etc/os-release
  plyfs layers --format json debian:12 /etc/passwd")]
pub(in crate::cli) struct LayersArgs {
    /// `table`, `table TEMPLATE`, `json`, or a Go template over Number, ID, Size, Added, Changed, Removed, CreatedBy;
    /// with PATH, over Number, ID, Change, Mode, Owner, Size, ModTime, Digest, CreatedBy
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    look: LookArgs,
    /// Image, and a path in it
    #[arg(value_name = "IMAGE PATH", num_args = 0..)]
    args: Vec<OsString>,
}

impl LayersArgs {
    /// The positional arguments.
    pub(in crate::cli) fn words(&self) -> &[OsString] {
        &self.args
    }
}

pub(in crate::cli) fn layers(global: &Global, a: &LayersArgs) -> anyhow::Result<()> {
    let words = usage_errors::at_least_one("layers", &a.args)?;
    let store = global.store()?;
    let image = a.look.image(&store, text(&words[0])?)?;
    match words {
        [_] => all(&store, &image, a),
        [_, path] => one(&store, &image, path.as_bytes(), a),
        _ => usage_errors::exactly::<2, _>("layers", words).map(drop),
    }
}

impl LayersArgs {
    fn command(&self, command: &str) -> String {
        if self.no_trunc { command.to_owned() } else { units::ellipsis(command, COMMAND_WIDTH) }
    }

    fn id(&self, image: &Image, layer: usize) -> String {
        let id = &image.layers[layer].diff_id;
        if self.no_trunc { id.to_string() } else { id.short().to_owned() }
    }
}

fn all(store: &Store, image: &Image, a: &LayersArgs) -> anyhow::Result<()> {
    let layers = Layers(open_layers(store, image)?);
    let commands = commands(store, image)?;
    let row = |layer: usize| -> anyhow::Result<Row> {
        let Counts { added, changed, removed } = layers.counts(layer)?;
        Ok(vec![
            added.to_string(),
            changed.to_string(),
            a.command(&commands[layer]),
            a.id(image, layer),
            (layer + 1).to_string(),
            removed.to_string(),
            units::size(image.layers[layer].size),
        ])
    };
    let rows = (0..image.layers.len()).map(row).collect::<anyhow::Result<Vec<Row>>>()?;
    format::list(a.format.as_deref(), TABLE, &COLUMNS, rows)
}

fn one(store: &Store, image: &Image, path: &[u8], a: &LayersArgs) -> anyhow::Result<()> {
    let layers = Layers(open_layers(store, image)?);
    let opened = open_tree(store, image)?;
    let tars = opened.tars.iter().map(File::try_clone).collect::<std::io::Result<Vec<File>>>()?;
    let owners = Owners::of(&opened.into_fs(None, None)?);
    let path = absolute(path);
    let history = layers.history(&path)?;
    anyhow::ensure!(!history.is_empty(), "{}: no layer of the image has it", show(&path));
    let commands = commands(store, image)?;
    let mut rows = Vec::new();
    for (layer, did, place) in history {
        let word = match did {
            Did::Added => "added",
            Did::Changed => "changed",
            Did::Removed => "removed",
        };
        let mut row = vec![word.to_owned(), a.command(&commands[layer])];
        let told = match place {
            Some(place) => told(&layers, &tars, place, &owners, a)?,
            None => Default::default(),
        };
        let [digest, time, mode, owner, size] = told;
        row.extend([digest, a.id(image, layer), time, mode, (layer + 1).to_string(), owner, size]);
        rows.push(row);
    }
    format::list(a.format.as_deref(), PATH_TABLE, &PATH_COLUMNS, rows)
}

/// Returns digest, modification time, mode, owner and size.
fn told(layers: &Layers, tars: &[File], place: Place, owners: &Owners, a: &LayersArgs) -> anyhow::Result<[String; 5]> {
    let Some(place) = layers.data_of(place)? else { return Ok(Default::default()) };
    let node = layers.node(place)?;
    let kind = node.kind().unwrap_or(Kind::File);
    let digest = match kind {
        Kind::File => digest(layers, tars, place)?.to_string(),
        _ => String::new(),
    };
    let digest = match digest.split_once(':') {
        Some((_, hex)) if !a.no_trunc => hex.chars().take(DIGITS).collect(),
        _ => digest,
    };
    let time =
        Timestamp::from_second(node.mtime().sec).map_or_else(|_| node.mtime().sec.to_string(), |t| t.to_string());
    let owner = format!("{}:{}", owners.user(node.uid.get()), owners.group(node.gid.get()));
    let size = if kind == Kind::File { node.size.get().to_string() } else { String::new() };
    Ok([digest, time, mode_text(kind, node.mode.get() as u16 & 0o7777), show(owner.as_bytes()), size])
}
