//! `search`: find repositories on Docker Hub or in a registry.

use crate::cli::output::format::{self, Columns, Row};
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::registry::options::RegistryArgs;
use crate::cli::{Exit, usage_errors};
use crate::registry::search::{Hit, Term, search as find};

const COLUMNS: Columns = Columns {
    type_name: "*registry.searchContext",
    fields: &[
        ("Description", "DESCRIPTION"),
        ("IsAutomated", "AUTOMATED"),
        ("IsOfficial", "OFFICIAL"),
        ("Name", "NAME"),
        ("StarCount", "STARS"),
    ],
};
const TABLE: &str = r"{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";
const DEFAULT_LIMIT: usize = 25;
const LIMITS: std::ops::RangeInclusive<i64> = 1..=100;
/// Width to which a description is truncated.
const DESCRIPTION_WIDTH: usize = 45;

#[derive(clap::Args)]
#[command(override_usage = "plyfs search [OPTIONS] [HOST[:PORT]/]TERM")]
#[command(after_help = "\
Docker Hub is searched, or the registry that TERM begins with.

Examples:
  plyfs search alpine
  plyfs search --filter is-official=true --limit 5 python
  plyfs search registry.example:5000/app
  plyfs search --format '{{.Name}}: {{.StarCount}}' nginx")]
pub(in crate::cli) struct SearchArgs {
    /// Filter repositories: is-official=BOOL, stars=NUMBER
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json`, or a Go template over Name, Description, StarCount, IsOfficial, IsAutomated
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Maximum number of results, up to 100 [default: 25]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    limit: Option<i64>,
    /// Don't truncate descriptions
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Text to find in names and descriptions
    #[arg(value_name = "TERM")]
    args: Vec<String>,
}

pub(in crate::cli) fn search(a: &SearchArgs) -> anyhow::Result<()> {
    let [text] = usage_errors::exactly("search", &a.args)?;
    let filters = Filters::parse(&a.filter)?;
    if text.contains("://") {
        anyhow::bail!("invalid repository name: repository name ({text}) should not have a scheme");
    }
    let limit = match a.limit.unwrap_or_default() {
        // As in Docker, 0 means the default.
        0 => DEFAULT_LIMIT,
        limit if LIMITS.contains(&limit) => usize::try_from(limit)?,
        limit => anyhow::bail!("limit {limit} is outside the range of [{}, {}]", LIMITS.start(), LIMITS.end()),
    };
    if filters.automated.is_some() {
        output::complaint(
            "WARNING: the \"is-automated\" filter is deprecated, and searching for \"is-automated=true\" \
             will not yield any results in future.",
        );
    }
    let mut hits = Vec::new();
    // Automated builds no longer exist.
    if filters.automated != Some(true) {
        hits = find(&Term::new(text), limit, &a.registry.settings())?;
    }
    hits.retain(|hit| filters.fits(hit));
    hits.sort_by_key(|hit| std::cmp::Reverse(hit.star_count));
    // As in Docker, a table's check marks are not used in JSON.
    let json = a.format.as_deref().is_some_and(|f| f == "json" || f.contains("{{json .}}"));
    let rows = hits.iter().map(|hit| cells(hit, a.no_trunc, json)).collect();
    format::list(a.format.as_deref(), TABLE, &COLUMNS, rows)
}

fn cells(hit: &Hit, whole: bool, json: bool) -> Row {
    let mark = |yes: bool| match (yes, json) {
        (true, true) => "true",
        (true, false) => "[OK]",
        (false, true) => "false",
        (false, false) => "",
    };
    // Descriptions are untrusted: control characters could move the cursor or break the table.
    let plain = |text: &str| text.replace(char::is_control, " ");
    let description = plain(&hit.description);
    let description = if whole { description } else { units::ellipsis(&description, DESCRIPTION_WIDTH) };
    let (official, automated) = (mark(hit.is_official).to_owned(), mark(false).to_owned());
    vec![description, automated, official, plain(&hit.name), hit.star_count.to_string()]
}

/// The filters of `--filter`, by Docker's rules.
#[derive(Default, Debug)]
struct Filters {
    automated: Option<bool>,
    official: Option<bool>,
    stars: i64,
}

impl Filters {
    fn parse(texts: &[String]) -> anyhow::Result<Filters> {
        let mut filters = Filters { stars: i64::MIN, ..Filters::default() };
        for text in texts {
            let Some((name, value)) = text.split_once('=') else {
                let why = "bad format of filter (expected name=value)";
                let text = format!("invalid argument \"{text}\" for \"-f, --filter\" flag: {why}");
                return Err(Exit::Text(125, text).into());
            };
            let (name, value) = (name.trim().to_lowercase(), value.trim());
            match name.as_str() {
                "is-automated" => filters.automated = flag(&name, value, filters.automated)?,
                "is-official" => filters.official = flag(&name, value, filters.official)?,
                "stars" => {
                    let stars = value.parse().map_err(|_| anyhow::anyhow!("invalid filter 'stars={value}'"))?;
                    filters.stars = filters.stars.max(stars);
                }
                _ => anyhow::bail!("invalid filter '{name}'"),
            }
        }
        Ok(filters)
    }

    fn fits(&self, hit: &Hit) -> bool {
        self.official.is_none_or(|wanted| wanted == hit.is_official) && hit.star_count >= self.stars
    }
}

fn flag(name: &str, value: &str, before: Option<bool>) -> anyhow::Result<Option<bool>> {
    let now = match value {
        "1" | "true" => true,
        "0" | "false" => false,
        _ => anyhow::bail!("invalid filter '{name}=[{value}]'"),
    };
    match before {
        Some(before) if before != now => anyhow::bail!("invalid filter '{name}=[{before} {now}]'"),
        _ => Ok(Some(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Filters, String> {
        Filters::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).map_err(|e| e.to_string())
    }

    #[test]
    fn filters() {
        let hit = |is_official, star_count| Hit { is_official, star_count, ..Hit::default() };
        let both = parse(&["is-official=1", "stars=3", "STARS = 10"]).unwrap();
        assert!(both.fits(&hit(true, 10)) && !both.fits(&hit(true, 9)) && !both.fits(&hit(false, 10)));
        assert!(parse(&["is-official=false"]).unwrap().fits(&hit(false, -1)));
        for (bad, why) in [
            (
                &["stars"][..],
                "invalid argument \"stars\" for \"-f, --filter\" flag: bad format of filter (expected name=value)",
            ),
            (&["star=1"], "invalid filter 'star'"),
            (&["stars=many"], "invalid filter 'stars=many'"),
            (&["is-official=yes"], "invalid filter 'is-official=[yes]'"),
            (&["is-automated=true", "is-automated=0"], "invalid filter 'is-automated=[true false]'"),
        ] {
            assert_eq!(parse(bad).unwrap_err(), why);
        }
    }

    #[test]
    fn a_stranger_s_text_is_made_harmless() {
        let hit = Hit { name: "a\u{1b}[2J".into(), description: "x\ty\r\nz\u{9b}".into(), ..Hit::default() };
        assert_eq!(cells(&hit, false, false), ["x y  z ", "", "", "a [2J", "0"]);
        let long = Hit { description: "é".repeat(46), is_official: true, star_count: 3, ..Hit::default() };
        assert_eq!(cells(&long, false, true), [&("é".repeat(44) + "…"), "false", "true", "", "3"]);
        assert_eq!(cells(&long, true, false)[0].chars().count(), 46);
    }
}
