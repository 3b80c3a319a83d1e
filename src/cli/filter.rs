//! Image filters: `--filter` of `images` and `image prune`, by Docker's rules.

use crate::cli::Exit;
use crate::cli::image::document::config;
use crate::cli::output::glob::{self, BadPattern};
use crate::reference::Reference;
use crate::store::{Catalog, Image, Store};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The filters of `images`.
pub(in crate::cli) const LIST: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];
/// The filters of `image prune`.
pub(in crate::cli) const PRUNE: &[&str] = &["dangling", "label", "label!", "until"];

/// Parsed filters. An image must match every filter, but only one of several reference patterns.
#[derive(Default, Debug)]
pub(in crate::cli) struct Filters {
    /// Whether the image must be without a tag (`true`) or with one (`false`).
    pub dangling: Option<bool>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    labels: Vec<String>,
    not_labels: Vec<String>,
    references: Vec<String>,
}

impl Filters {
    /// Parses `name=value` filters. `before` and `since` look their images up in the catalog.
    pub(in crate::cli) fn parse(texts: &[String], known: &[&str], catalog: &Catalog) -> anyhow::Result<Filters> {
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

    /// Adds a reference pattern, as an alternative to those given.
    pub(in crate::cli) fn or_reference(&mut self, pattern: &str) {
        self.references.push(pattern.to_owned());
    }

    /// Returns the image, reduced to its matching names; `None` if it does not match.
    pub(in crate::cli) fn apply(&self, store: &Store, image: &Image) -> anyhow::Result<Option<Image>> {
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

/// The creation time in the image's config, if it is present and valid.
pub(in crate::cli) fn created(image: &Image) -> Option<Timestamp> {
    image.created.as_ref()?.parse().ok()
}

/// Splits `name=value`: the name in lower case, both trimmed. `label!=x` is the filter `label!`.
pub(in crate::cli) fn split(text: &str) -> Option<(String, &str)> {
    let (name, value) = text.split_once('=')?;
    Some((name.trim().to_lowercase(), value.trim()))
}

/// Whether any pattern matches the name in any form: familiar or fully qualified, with or without tag and digest.
fn fits(name: &Reference, patterns: &[String]) -> Result<bool, BadPattern> {
    let forms = [name.familiar(), name.familiar_name(), name.to_string(), name.name()];
    for pattern in patterns {
        for form in &forms {
            if glob::matches(pattern, form)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

const UNTIL: &str = "\"until\" filter";

/// Parses a point in time as Docker does: a Go duration before `now`, seconds since 1970, a date, or RFC 3339.
/// `what` names the option in the error.
pub(in crate::cli) fn moment(text: &str, now: Timestamp, what: &str) -> anyhow::Result<Timestamp> {
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

/// Parses a Go duration such as `1h30m` into whole seconds.
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
    // The cast saturates; the caller rejects a value beyond the range of dates.
    #[allow(clippy::cast_possible_truncation)]
    (!text.is_empty()).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_as_docker_does() {
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
    fn reference_patterns_match_every_form_of_a_name() {
        let fits = |pattern: &str, name: &str| fits(&name.parse().unwrap(), &[pattern.to_owned()]).unwrap();
        assert!(fits("*:latest", "alpine:latest") && fits("alp*", "alpine:3") && fits("alpine", "alpine:3"));
        assert!(fits("docker.io/library/alpine:3", "alpine:3") && fits("docker.io/*/alpine", "alpine:3"));
        assert!(!fits("*:latest", "me/app:latest") && fits("*/*:latest", "me/app:latest") && !fits("alpin", "alpine"));
    }
}
