//! `images` and `image ls`: list images.

use crate::cli::filter::{self, Filters, created};
use crate::cli::output::format::{self, Columns, Row};
use crate::cli::output::stdout as output;
use crate::cli::output::units::{self, UNKNOWN, ago};
use crate::cli::{Global, usage_errors};
use crate::reference::Reference;
use crate::store::{Image, Store, containers, mounts};
use jiff::Timestamp;

pub(in crate::cli) const NONE: &str = "<none>";
/// Columns of the image list, with Docker's names.
pub(in crate::cli) const COLUMNS: Columns = Columns {
    type_name: "*formatter.imageContext",
    fields: &[
        ("Containers", "CONTAINERS"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedSince", "CREATED"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("Repository", "REPOSITORY"),
        ("SharedSize", "SHARED SIZE"),
        ("Size", "SIZE"),
        ("Tag", "TAG"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("VirtualSize", "SIZE"),
    ],
};
const TABLE: &str = r"{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_WITH_DIGESTS: &str = r"{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

#[derive(clap::Args)]
#[command(override_usage = "plyfs images [OPTIONS] [REPOSITORY[:TAG]]")]
#[command(after_help = "\
Examples:
  plyfs images -f reference='*:latest'              only what has the tag latest
  plyfs images -f dangling=true -q                  the IDs of images without a tag
  plyfs images --format '{{.Repository}}: {{.Size}}'
  plyfs images --format 'table {{.ID}}\\t{{.Tag}}'")]
pub(in crate::cli) struct ImagesArgs {
    /// Show all images (there are no intermediate images to hide)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter images: dangling=BOOL, before=IMAGE, since=IMAGE, until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE],
    /// reference=PATTERN
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json`, or a Go template over ID, Repository, Tag, Digest, CreatedSince, CreatedAt, Size
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// Show each image once, with all its names
    #[arg(long, conflicts_with_all = ["digests", "format", "quiet"])]
    tree: bool,
    /// REPOSITORY[:TAG], or a pattern for it
    #[arg(value_name = "REPOSITORY[:TAG]")]
    args: Vec<String>,
}

/// A row of the image list.
pub(in crate::cli) struct Line<'a> {
    pub image: &'a Image,
    pub repository: String,
    pub tag: String,
    digest: String,
}

pub(in crate::cli) fn images(global: &Global, a: &ImagesArgs) -> anyhow::Result<()> {
    let pattern = usage_errors::at_most_one("images", &a.args)?;
    let store = global.store()?;
    let catalog = store.catalog()?;
    let mut filters = Filters::parse(&a.filter, filter::LIST, &catalog)?;
    if let Some(pattern) = pattern {
        filters.or_reference(pattern);
    }
    let _nothing_hidden = a.all;
    let mut images = Vec::new();
    for image in catalog.images() {
        images.extend(filters.apply(&store, image)?);
    }
    images.sort_by_key(|i| std::cmp::Reverse(created(i)));
    let id = |image: &Image| if a.no_trunc { image.id.to_string() } else { image.id.short().to_owned() };
    if a.tree {
        return tree(&store, &images, &id);
    }
    let is_default = matches!(a.format.as_deref(), None | Some("" | "table"));
    let format = if a.quiet && is_default { Some("{{.ID}}") } else { a.format.as_deref() };
    let digests = a.digests || format.is_some_and(|f| f.contains("{{.Digest}}"));
    let lines: Vec<Line<'_>> = images.iter().flat_map(|i| rows(i, digests)).collect();
    let now = Timestamp::now();
    let unknown = || [(); 3].map(|()| UNKNOWN.to_owned());
    let table = lines.iter().map(|line| cells(line, id(line.image), now, unknown())).collect();
    format::list(format, if digests { TABLE_WITH_DIGESTS } else { TABLE }, &COLUMNS, table)
}

/// Returns the cells of [`COLUMNS`]; the caller passes the counts `[containers, shared, unique]`.
pub(in crate::cli) fn cells(line: &Line<'_>, id: String, now: Timestamp, counted: [String; 3]) -> Row {
    let [containers, shared, unique] = counted;
    let image = line.image;
    vec![
        containers,
        created_at(image),
        since(image, now),
        line.digest.clone(),
        id,
        line.repository.clone(),
        shared,
        units::size(image.size()),
        line.tag.clone(),
        unique,
        units::precise_size(image.size()),
    ]
}

/// Prints each image once: names, disk usage, compressed size, `U` if a mount or a container uses it.
fn tree(store: &Store, images: &[Image], id: &dyn Fn(&Image) -> String) -> anyhow::Result<()> {
    let mounts = mounts::list(store)?.into_iter().map(|mount| mount.image);
    let used: Vec<_> = mounts.chain(containers::list(store)?.into_iter().map(|c| c.image.id)).collect();
    let mut lines = vec!["IMAGE\tID\tDISK USAGE\tCONTENT SIZE\tEXTRA".to_owned()];
    for image in images {
        let mut names: Vec<String> = image.tags.iter().map(Reference::familiar).collect();
        let last = names.pop().unwrap_or_else(|| "<untagged>".into());
        lines.append(&mut names);
        let content = image.layers.iter().map(|l| l.compressed_size).sum();
        let used = if used.contains(&image.id) { "U" } else { "" };
        let (disk, content) = (units::size(image.size()), units::size(content));
        lines.push(format!("{last}\t{}\t{disk}\t{content}\t{used}", id(image)));
    }
    output::text(&output::tabbed(&(lines.join("\n") + "\n"))?)
}

/// Formats the creation time as Go prints a time.
fn created_at(image: &Image) -> String {
    match created(image) {
        Some(at) => at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        None => UNKNOWN.into(),
    }
}

/// Returns an image's rows by Docker's rule: one per tag, with `digests` one per tag and digest of the same repository;
/// names by digest alone get a row without a tag.
pub(in crate::cli) fn rows(image: &Image, digests: bool) -> Vec<Line<'_>> {
    let row = |repository: String, tag: &str, digest: String| Line { image, repository, tag: tag.to_owned(), digest };
    let none = || NONE.to_owned();
    if image.references().count() == 0 {
        return vec![row(none(), NONE, none())];
    }
    let mut rows = Vec::new();
    for name in &image.tags {
        let same = image.digests.iter().filter(|d| digests && d.name() == name.name()).filter_map(Reference::digest);
        let tag = name.tag().unwrap_or(NONE);
        let before = rows.len();
        rows.extend(same.map(|digest| row(name.familiar_name(), tag, digest.to_string())));
        if rows.len() == before {
            rows.push(row(name.familiar_name(), tag, none()));
        }
    }
    let mut alone: Vec<&Reference> =
        image.digests.iter().filter(|d| image.tags.iter().all(|t| t.name() != d.name())).collect();
    if !digests {
        alone.dedup_by_key(|d| d.name());
    }
    let digest = |d: &Reference| d.digest().map_or_else(none, ToString::to_string);
    rows.extend(alone.into_iter().map(|d| row(d.familiar_name(), NONE, digest(d))));
    rows
}

/// Formats the age, `2 weeks ago`; `N/A` if the config states no time.
fn since(image: &Image, now: Timestamp) -> String {
    ago(created(image), now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn image(tags: &[&str], digests: &[&str]) -> Image {
        let by_digest = |d: &&str| d.parse::<Reference>().unwrap().by_digest(&Digest::of(b"m"));
        Image {
            id: Digest::of(b"1"),
            manifest: None,
            indexes: vec![],
            others: vec![],
            layers: vec![],
            tags: tags.iter().map(|t| t.parse().unwrap()).collect(),
            digests: digests.iter().map(by_digest).collect(),
            created: None,
            pulled: String::new(),
        }
    }

    fn shown(image: &Image, digests: bool) -> Vec<(String, String, bool)> {
        rows(image, digests).into_iter().map(|r| (r.repository, r.tag, r.digest != NONE)).collect()
    }

    #[test]
    fn a_row_for_each_name() {
        let row = |repo: &str, tag: &str, digest| (repo.to_owned(), tag.to_owned(), digest);
        assert_eq!(shown(&image(&[], &[]), true), [row(NONE, NONE, false)]);
        let both = image(&["a:1", "a:2", "b:1"], &["a", "c"]);
        let plain: Vec<_> = shown(&both, false).into_iter().map(|r| (r.0, r.1)).collect();
        let want = [("a", "1"), ("a", "2"), ("b", "1"), ("c", NONE)].map(|(r, t)| (r.to_owned(), t.to_owned()));
        assert_eq!(plain, want);
        let want = [row("a", "1", true), row("a", "2", true), row("b", "1", false), row("c", NONE, true)];
        assert_eq!(shown(&both, true), want);
    }

    #[test]
    fn what_has_no_date_says_so() {
        let mut image = image(&[], &[]);
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(since(&image, now), "N/A");
        image.created = Some("0001-01-01T00:00:00Z".into());
        assert_eq!(since(&image, now), "N/A");
        image.created = Some("2025-12-31T22:00:00.5Z".into());
        assert_eq!(since(&image, now), "2 hours ago");
    }
}
