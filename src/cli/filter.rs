//! `--filter` of images: which ones a user means, by Docker's rules.

use super::Exit;
use super::inspect::config;
use super::pattern::{self, BadPattern};
use crate::reference::Reference;
use crate::store::{Catalog, Image, Store};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Which filters a verb knows.
pub(super) const LIST: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];
/// The same for `image prune`.
pub(super) const PRUNE: &[&str] = &["dangling", "label", "label!", "until"];

/// What was asked for. Different filters must all agree; several patterns for the reference are alternatives.
#[derive(Default, Debug)]
pub(super) struct Filters {
    /// Without a tag, or with one.
    pub dangling: Option<bool>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    labels: Vec<String>,
    not_labels: Vec<String>,
    references: Vec<String>,
}

impl Filters {
    /// Reads `name=value` texts. Images that they name are looked up in the catalog.
    pub(super) fn parse(texts: &[String], known: &[&str], catalog: &Catalog) -> anyhow::Result<Filters> {
        let mut filters = Filters::default();
        for text in texts {
            let Some((name, value)) = split(text) else {
                let why = "bad format of filter (expected name=value)";
                let flag = if known == PRUNE { "--filter" } else { "-f, --filter" };
                let text = format!("invalid argument \"{text}\" for \"{flag}\" flag: {why}");
                return Err(Exit::Text(125, text).into());
            };
            if !known.contains(&name.as_str()) {
                anyhow::bail!("invalid filter '{name}'");
            }
            filters.take(&name, value, catalog)?;
        }
        Ok(filters)
    }

    fn take(&mut self, name: &str, value: &str, catalog: &Catalog) -> anyhow::Result<()> {
        let date = |image: &Image| created(image).unwrap_or(Timestamp::UNIX_EPOCH);
        let earlier = |old: Option<Timestamp>, new: Timestamp| Some(old.map_or(new, |old| old.min(new)));
        match name {
            "dangling" => {
                self.dangling = Some(match value.to_ascii_lowercase().as_str() {
                    "1" | "true" | "t" => true,
                    "0" | "false" | "f" => false,
                    _ => anyhow::bail!("invalid filter 'dangling=[{value}]'"),
                });
            }
            "before" => self.before = earlier(self.before, date(catalog.resolve(value)?)),
            "since" => {
                let new = date(catalog.resolve(value)?);
                self.since = Some(self.since.map_or(new, |old| old.max(new)));
            }
            "until" => self.until = earlier(self.until, moment(value, Timestamp::now(), UNTIL)?),
            "label" => self.labels.push(value.to_owned()),
            "label!" => self.not_labels.push(value.to_owned()),
            _ => self.references.push(value.to_owned()),
        }
        Ok(())
    }

    /// One more pattern for the reference.
    pub(super) fn or_reference(&mut self, pattern: &str) {
        self.references.push(pattern.to_owned());
    }

    /// The image with only the names that fit, if it is one of those asked for.
    pub(super) fn apply(&self, store: &Store, image: &Image) -> anyhow::Result<Option<Image>> {
        let date = created(image).unwrap_or(Timestamp::UNIX_EPOCH);
        let too_late = self.before.is_some_and(|before| date >= before) || self.until.is_some_and(|until| date > until);
        if too_late || self.since.is_some_and(|since| date <= since) || !self.labels_fit(store, image)? {
            return Ok(None);
        }
        if self.dangling.is_some_and(|wanted| wanted != image.tags.is_empty()) {
            return Ok(None);
        }
        let mut image = image.clone();
        if !self.references.is_empty() {
            image.tags = self.fitting(image.tags)?;
            image.digests = self.fitting(image.digests)?;
            return Ok((image.references().count() > 0).then_some(image));
        }
        Ok(Some(image))
    }

    fn fitting(&self, names: Vec<Reference>) -> anyhow::Result<Vec<Reference>> {
        let mut fitting = Vec::new();
        for name in names {
            if fits(&name, &self.references)? {
                fitting.push(name);
            }
        }
        Ok(fitting)
    }

    fn labels_fit(&self, store: &Store, image: &Image) -> anyhow::Result<bool> {
        if self.labels.is_empty() && self.not_labels.is_empty() {
            return Ok(true);
        }
        let config = config(store, image)?;
        let none = Map::new();
        let labels = config.get("config").and_then(|c| c.get("Labels")).and_then(Value::as_object).unwrap_or(&none);
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).and_then(Value::as_str) == Some(value),
            None => labels.contains_key(wanted),
        };
        Ok(self.labels.iter().all(has) && !self.not_labels.iter().any(has))
    }
}

/// When the image was built, where it says so.
pub(super) fn created(image: &Image) -> Option<Timestamp> {
    image.created.as_ref()?.parse().ok()
}

/// The name in lower case without space, and the value; `label!=x` is the filter `label!`.
pub(super) fn split(text: &str) -> Option<(String, &str)> {
    let (name, value) = text.split_once('=')?;
    Some((name.trim().to_lowercase(), value.trim()))
}

/// Whether any pattern fits the name: short or long, with or without what follows the repository.
fn fits(name: &Reference, patterns: &[String]) -> Result<bool, BadPattern> {
    let forms = [name.familiar(), name.familiar_name(), name.to_string(), name.name()];
    for pattern in patterns {
        for form in &forms {
            if pattern::matches(pattern, form)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

const UNTIL: &str = "\"until\" filter";

/// A moment as Docker reads it: a Go duration back from now, seconds since 1970, a date, or RFC 3339.
/// `what` says in the error what the moment is for.
pub(super) fn moment(text: &str, now: Timestamp, what: &str) -> anyhow::Result<Timestamp> {
    let bad = || anyhow::anyhow!("invalid value for {what}: failed to parse value as time or duration: \"{text}\"");
    if let Some(back) = duration(text) {
        let seconds = now.as_second().checked_sub(back).ok_or_else(bad)?;
        return Timestamp::from_second(seconds).map_err(|_| bad());
    }
    if let Ok(seconds) = text.split('.').next().unwrap_or_default().parse::<i64>() {
        return Timestamp::from_second(seconds).map_err(|_| bad());
    }
    let tries = [
        text.to_owned(),
        format!("{text}Z"),
        format!("{text}:00Z"),
        format!("{text}:00:00Z"),
        format!("{text}T00:00:00Z"),
    ];
    tries.iter().find_map(|t| t.parse::<Timestamp>().ok()).ok_or_else(bad)
}

/// `1h30m` and the like, in whole seconds.
fn duration(text: &str) -> Option<i64> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // Beyond any date there is: the caller says so.
    #[allow(clippy::cast_possible_truncation)]
    (!text.is_empty()).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (text, want) in [
            ("24h", "2026-01-01T00:00:00Z"),
            ("1h30m", "2026-01-01T22:30:00Z"),
            ("10", "1970-01-01T00:00:10Z"),
            ("2025-06-07", "2025-06-07T00:00:00Z"),
            ("2025-06-07T08:09", "2025-06-07T08:09:00Z"),
            ("2025-06-07T08:09:10", "2025-06-07T08:09:10Z"),
            ("2025-06-07T08:09:10+02:00", "2025-06-07T06:09:10Z"),
        ] {
            assert_eq!(moment(text, now, UNTIL).unwrap().to_string(), want, "{text}");
        }
        for bad in ["", "soon", "1x", "99999999999999999999h", "2025-13-01"] {
            assert!(moment(bad, now, UNTIL).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_see_every_form_of_a_name() {
        let fits = |pattern: &str, name: &str| fits(&name.parse().unwrap(), &[pattern.to_owned()]).unwrap();
        assert!(fits("*:latest", "alpine:latest") && fits("alp*", "alpine:3") && fits("alpine", "alpine:3"));
        assert!(fits("docker.io/library/alpine:3", "alpine:3") && fits("docker.io/*/alpine", "alpine:3"));
        assert!(!fits("*:latest", "me/app:latest") && fits("*/*:latest", "me/app:latest") && !fits("alpin", "alpine"));
    }
}
