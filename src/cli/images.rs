//! `images` and `image ls`.

use super::{Global, args, human, output};
use crate::reference::Reference;
use crate::store::Image;
use jiff::Timestamp;

const NONE: &str = "<none>";

#[derive(clap::Args)]
#[command(override_usage = "plyfs images [OPTIONS] [REPOSITORY[:TAG]]")]
pub(super) struct ImagesArgs {
    /// Show all images; there are no intermediate ones to hide
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Show whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Only images of this repository, or this one
    #[arg(value_name = "REPOSITORY[:TAG]")]
    args: Vec<String>,
}

/// One line of the list.
struct Row<'a> {
    image: &'a Image,
    repository: String,
    tag: String,
    digest: String,
}

pub(super) fn images(global: &Global, a: &ImagesArgs) -> anyhow::Result<()> {
    let filter = args::at_most_one("images", &a.args)?.map(str::parse::<Reference>).transpose()?;
    let catalog = global.store()?.catalog()?;
    let _nothing_hidden = a.all;
    let mut images: Vec<Image> = catalog.images().iter().filter_map(|i| filtered(i, filter.as_ref())).collect();
    images.sort_by_key(|i| std::cmp::Reverse(created(i)));
    let rows: Vec<Row<'_>> = images.iter().flat_map(|i| rows(i, a.digests)).collect();
    let id = |image: &Image| if a.no_trunc { image.id.to_string() } else { image.id.short().to_owned() };
    if a.quiet {
        let ids: Vec<String> = rows.iter().map(|row| id(row.image) + "\n").collect();
        return output::text(&ids.concat());
    }
    let now = Timestamp::now();
    let mut headings = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if a.digests {
        headings.insert(2, "DIGEST");
    }
    let cells = |row: &Row<'_>| {
        let mut cells = vec![row.repository.clone(), row.tag.clone()];
        if a.digests {
            cells.push(row.digest.clone());
        }
        cells.extend([id(row.image), since(row.image, now), human::size(row.image.size())]);
        cells
    };
    output::table(&headings, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// The image with only the names that the filter lets through, or none.
fn filtered(image: &Image, filter: Option<&Reference>) -> Option<Image> {
    let Some(filter) = filter else { return Some(image.clone()) };
    let fits = |name: &Reference| {
        name.name() == filter.name()
            && filter.tag().is_none_or(|tag| name.tag() == Some(tag))
            && filter.digest().is_none_or(|digest| name.digest() == Some(digest))
    };
    let mut image = image.clone();
    image.tags.retain(fits);
    image.digests.retain(fits);
    (image.references().count() > 0).then_some(image)
}

/// Docker's rule: a row for each tag, with `digests` for each tag and digest of one repository; names by digest alone
/// get a row without a tag.
fn rows(image: &Image, digests: bool) -> Vec<Row<'_>> {
    let row = |repository: String, tag: &str, digest: String| Row { image, repository, tag: tag.to_owned(), digest };
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

fn created(image: &Image) -> Option<Timestamp> {
    image.created.as_ref()?.parse().ok()
}

/// `2 weeks ago`; `N/A` where the image does not say.
fn since(image: &Image, now: Timestamp) -> String {
    match created(image) {
        Some(created) if created > Timestamp::UNIX_EPOCH => {
            format!("{} ago", human::age(now.as_second() - created.as_second()))
        }
        _ => "N/A".into(),
    }
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
    fn filters_keep_only_the_names_that_fit() {
        let all = image(&["a:1", "a:2", "b:1"], &["a"]);
        let left = |f: &str| filtered(&all, Some(&f.parse().unwrap())).map(|i| i.references().count());
        assert_eq!((left("a"), left("a:2"), left("c")), (Some(3), Some(1), None));
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
