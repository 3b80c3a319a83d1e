//! `ps`: lists containers and their status.

use crate::cli::output::format::{self, Columns, Row};
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::output::units::ago;
use crate::cli::{Exit, Global, filter, usage_errors};
use crate::reference::Reference;
use crate::store::containers::{self, Container, Network, State, Status};
use crate::store::{Catalog, Image, Store};
use crate::template::quote;
use jiff::Timestamp;
use regex_lite::Regex;
use serde_json::Value;
use std::path::Path;

const COLUMNS: Columns = Columns {
    type_name: "*formatter.ContainerContext",
    fields: &[
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Labels", "LABELS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Mounts", "MOUNTS"),
        ("Names", "NAMES"),
        ("Networks", "NETWORKS"),
        ("Ports", "PORTS"),
        ("RunningFor", "CREATED"),
        ("Size", "SIZE"),
        ("State", "STATE"),
        ("Status", "STATUS"),
    ],
};
const TABLE: &str = r"{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const TABLE_WITH_SIZES: &str =
    r"{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";
/// The display widths of a command and of a mount, in characters.
const COMMAND_WIDTH: usize = 20;
const MOUNT_WIDTH: usize = 15;
/// Docker's container states, which the status filter accepts; plyfs uses only some of them.
const STATES: &[&str] = &["created", "dead", "exited", "paused", "removing", "restarting", "running"];

#[derive(clap::Args)]
#[command(override_usage = "plyfs ps [OPTIONS]")]
#[command(after_help = "\
Examples:
  plyfs ps -a
  plyfs ps -aq --filter status=exited
  plyfs ps -a --filter ancestor=debian:12 --format '{{.Names}}: {{.Status}}'")]
pub(in crate::cli) struct PsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Filter output: id=ID, name=NAME, status=STATUS, exited=CODE, ancestor=IMAGE, label=KEY[=VALUE], before=CONTAINER, since=CONTAINER
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output with `table`, `table TEMPLATE`, `json`, or a Go template with the fields ID, Names, Image, Command, CreatedAt, RunningFor, Status, State, Ports, Size, Labels, Mounts, Networks, LocalVolumes
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show N last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, hide_default_value = true)]
    last: i64,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

/// A container and its state.
struct Listed {
    container: Container,
    state: State,
}

pub(in crate::cli) fn ps(global: &Global, a: &PsArgs) -> anyhow::Result<()> {
    usage_errors::none("ps", &a.args)?;
    let format = a.format.as_deref().filter(|_| !a.quiet);
    if a.quiet && a.format.is_some() {
        output::complaint("WARNING: Ignoring custom format, because both --format and --quiet are set.");
    }
    let store = global.store()?;
    let filters = Filters::parse(&a.filter, &store)?;
    let limit = usize::try_from(if a.latest && a.last < 0 { 1 } else { a.last }).unwrap_or(0);
    let all = a.all || limit > 0 || !filters.statuses.is_empty();
    let mut shown = Vec::new();
    for container in containers::list(&store)? {
        // Removed meanwhile.
        let Ok(state) = containers::state(&store, &container.id) else { continue };
        let listed = Listed { container, state };
        if (all || listed.state.status == Status::Running) && filters.fit(&listed) {
            shown.push(listed);
        }
    }
    if limit > 0 {
        shown.truncate(limit);
    }
    let sizes = a.size || format.is_some_and(|f| f.contains(".Size"));
    let catalog = store.catalog()?;
    let now = Timestamp::now();
    let rows = shown.iter().map(|listed| row(&store, &catalog, listed, now, !a.no_trunc, sizes)).collect();
    let format = if a.quiet { Some("{{.ID}}") } else { format };
    format::list(format, if a.size { TABLE_WITH_SIZES } else { TABLE }, &COLUMNS, rows)
}

/// A container's cells, in the order of [`COLUMNS`].
fn row(store: &Store, catalog: &Catalog, listed: &Listed, now: Timestamp, short: bool, sizes: bool) -> Row {
    let Listed { container, state } = listed;
    let created = container.created.parse().ok();
    let id = if short { container.short() } else { &container.id };
    let cut = |text: String, width| if short { units::ellipsis(&text, width) } else { text };
    let volumes = store.container_dir(&container.id).join("volumes");
    let sources = container.host.binds.iter().map(|bind| &bind.source);
    let local = sources.clone().filter(|source| Path::new(source).starts_with(&volumes)).count();
    let mounts: Vec<String> = sources.map(|source| cut(source.clone(), MOUNT_WIDTH)).collect();
    let network = match container.host.network {
        Network::Host => "host",
        Network::None => "none",
    };
    vec![
        quote(&cut(command_text(container), COMMAND_WIDTH)),
        created.map_or_else(|| "N/A".into(), |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()),
        id.to_owned(),
        image_of(catalog, container, short),
        labels(container).map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
        local.to_string(),
        mounts.join(","),
        container.name.clone(),
        network.into(),
        String::new(),
        ago(created, now),
        if sizes { size(store, container) } else { units::size(0) },
        state.status.name().into(),
        status(state, now),
    ]
}

/// The image's name as the user gave it, or its ID if the name refers to another image now.
fn image_of(catalog: &Catalog, container: &Container, short: bool) -> String {
    let id = &container.image.id;
    if catalog.resolve(&container.reference).is_ok_and(|image| image.id != *id) {
        return if short { id.short().to_owned() } else { id.to_string() };
    }
    // An ID, or a name that is not in the store any more, is shown as given.
    if !short {
        return container.reference.clone();
    }
    if id.to_string().starts_with(&container.reference) || id.hex().starts_with(&container.reference) {
        return id.short().to_owned();
    }
    container.reference.parse::<Reference>().map_or_else(|_| container.reference.clone(), |name| name.familiar())
}

/// The status text: `Up 3 minutes`, `Exited (0) 2 minutes ago`, `Created`.
fn status(state: &State, now: Timestamp) -> String {
    let moment = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    match (state.status, moment(&state.finished)) {
        (Status::Created, _) => "Created".into(),
        (Status::Running, _) => {
            let started = moment(&state.started).unwrap_or(now);
            format!("Up {}", units::age(now.as_second() - started.as_second()))
        }
        (Status::Exited, None) => format!("Exited ({})", state.exit_code),
        (Status::Exited, finished) => format!("Exited ({}) {}", state.exit_code, ago(finished, now)),
    }
}

/// The command as one line, with arguments that have spaces in quotes.
fn command_text(container: &Container) -> String {
    let quoted = |(at, word): (usize, String)| match at > 0 && word.contains(' ') {
        true => format!("'{word}'"),
        false => word,
    };
    container.command().into_iter().enumerate().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The container's labels, sorted.
fn labels(container: &Container) -> impl Iterator<Item = (&str, &str)> {
    let object = container.config.get("Labels").and_then(Value::as_object);
    let mut all: Vec<_> =
        object.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
    all.sort_unstable();
    all.into_iter()
}

/// The size text, `5B (virtual 21.5MB)`: bytes written, and the same with the image.
fn size(store: &Store, container: &Container) -> String {
    let written = written(store, container);
    format!("{} (virtual {})", units::size(written), units::size(written + container.image.size()))
}

/// The size of a container's changes in bytes.
pub(in crate::cli) fn written(store: &Store, container: &Container) -> u64 {
    files(&store.container_upper(&container.id).0)
}

/// The total size of the files below a directory in bytes. Skips unreadable and removed files.
fn files(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => files(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    };
    entries.map(of).sum()
}

/// The filters of `--filter`. As in Docker, a container must match one value of each key, and all labels.
#[derive(Default)]
struct Filters {
    ids: Vec<Pattern>,
    names: Vec<Pattern>,
    statuses: Vec<String>,
    exited: Vec<i32>,
    /// `None` for an unknown image, which no container matches.
    ancestors: Vec<Option<Image>>,
    labels: Vec<String>,
    /// Only containers created before this one.
    before: Option<Container>,
    /// Only containers created after this one.
    since: Option<Container>,
}

/// A filter value: an unanchored regular expression, or the exact text.
struct Pattern {
    text: String,
    /// `None` if the text is no valid regular expression.
    expression: Option<Regex>,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        Pattern { text: text.to_owned(), expression: Regex::new(text).ok() }
    }

    fn fits(&self, text: &str) -> bool {
        self.text == text || self.expression.as_ref().is_some_and(|expression| expression.is_match(text))
    }
}

impl Filters {
    /// Parses `name=value` texts. Fails if a container of `before` or `since` does not exist.
    fn parse(texts: &[String], store: &Store) -> anyhow::Result<Filters> {
        let mut filters = Filters::default();
        for text in texts {
            let Some((name, value)) = filter::split(text) else {
                let why = "bad format of filter (expected name=value)";
                return Err(
                    Exit::Text(125, format!("invalid argument \"{text}\" for \"-f, --filter\" flag: {why}")).into()
                );
            };
            match name.as_str() {
                "id" => filters.ids.push(Pattern::new(value)),
                "name" => filters.names.push(Pattern::new(value)),
                "status" if STATES.contains(&value) => filters.statuses.push(value.to_owned()),
                "status" => anyhow::bail!("invalid filter 'status={value}'"),
                "exited" => match value.parse() {
                    Ok(code) => filters.exited.push(code),
                    Err(_) => anyhow::bail!("invalid filter 'exited={value}'"),
                },
                "ancestor" => filters.ancestors.push(store.resolve(value).ok()),
                "label" => filters.labels.push(value.to_owned()),
                "before" => filters.before = Some(containers::find(store, value)?),
                "since" => filters.since = Some(containers::find(store, value)?),
                _ => anyhow::bail!("invalid filter '{name}'"),
            }
        }
        Ok(filters)
    }

    fn fit(&self, listed: &Listed) -> bool {
        fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(fits)
        }
        let Listed { container, state } = listed;
        let slashed = format!("/{}", container.name);
        let has = |wanted: &String| match wanted.split_once('=') {
            Some(wanted) => labels(container).any(|label| label == wanted),
            None => labels(container).any(|(key, _)| key == wanted),
        };
        let ended = |code: &i32| state.status == Status::Exited && state.exit_code == *code;
        any(&self.ids, |id| id.fits(&container.id))
            && any(&self.names, |name| name.fits(&container.name) || name.fits(&slashed))
            && any(&self.statuses, |status| status == state.status.name())
            && any(&self.exited, ended)
            && any(&self.ancestors, |image| image.as_ref().is_some_and(|image| is_ancestor(image, container)))
            && self.labels.iter().all(has)
            && self.before.as_ref().is_none_or(|other| container.created < other.created)
            && self.since.as_ref().is_none_or(|other| container.created > other.created)
    }
}

/// Whether a container's image is this image, or has its layers as the lowest ones.
fn is_ancestor(image: &Image, container: &Container) -> bool {
    let mut below = image.layers.iter().zip(&container.image.layers);
    let above = !image.layers.is_empty() && image.layers.len() < container.image.layers.len();
    image.id == container.image.id || above && below.all(|(a, b)| a.diff_id == b.diff_id)
}
