//! `explore --ci`: checks an image by dive's rules.

use crate::browse::{Stack, Waste};
use crate::cli::Exit;
use crate::cli::output::stdout as output;
use crate::sys;
use serde_json::json;
use std::path::Path;

/// The form of the results.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// What a rule limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    LowestEfficiency,
    HighestWastedBytes,
    HighestUserWastedPercent,
}

const KEYS: [(Key, &str, &str); 3] = [
    (Key::LowestEfficiency, "lowest-efficiency", "lowestEfficiency"),
    (Key::HighestWastedBytes, "highest-wasted-bytes", "highestWastedBytes"),
    (Key::HighestUserWastedPercent, "highest-user-wasted-percent", "highestUserWastedPercent"),
];

/// The limit of a rule.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Limit {
    Share(f64),
    Bytes(u64),
}

/// The rules of a file, in its order. Of a key that is there twice, the last one counts.
#[derive(Debug, PartialEq)]
pub(super) struct Rules(Vec<(Key, Limit)>);

/// Reads a file of rules. An error names the file and the line.
pub(super) fn read(path: &Path) -> anyhow::Result<Rules> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| anyhow::anyhow!("cannot read {}: {}", path.display(), sys::describe(&e)))?;
    parse(&text).map_err(|(line, why)| anyhow::anyhow!("{}:{line}: {why}", path.display()))
}

fn parse(text: &str) -> Result<Rules, (usize, String)> {
    let mut rules: Vec<(Key, Limit)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() || line == "---" || line == "rules:" {
            continue;
        }
        let wrong = |why: String| (number, why);
        let Some((name, value)) = line.split_once([':', '=']) else {
            return Err(wrong(format!("wanted KEY: VALUE, not {line:?}")));
        };
        let (name, value) = (name.trim(), unquoted(value.trim()));
        let known = KEYS.iter().find(|(_, dashed, dives)| [*dashed, *dives].contains(&name));
        let Some((key, ..)) = known else { return Err(wrong(format!("unknown rule {name:?}"))) };
        rules.retain(|(other, _)| other != key);
        if value == "disabled" {
            continue;
        }
        let limit = match key {
            Key::HighestWastedBytes => bytes(value).map(Limit::Bytes),
            _ => value.parse().ok().filter(|share| (0.0..=1.0).contains(share)).map(Limit::Share),
        };
        let form = if *key == Key::HighestWastedBytes { "bytes, such as 20MB" } else { "a number from 0 to 1" };
        rules.push((*key, limit.ok_or_else(|| wrong(format!("{name} must be {form}, not {value:?}")))?));
    }
    Ok(Rules(rules))
}

fn unquoted(value: &str) -> &str {
    let without = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    without('"').or_else(|| without('\'')).unwrap_or(value)
}

/// Reads a number of bytes with a decimal unit, or none.
fn bytes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor: u32 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor.into());
    }
    let value = number.parse::<f64>().ok()? * f64::from(factor);
    // Exact enough: beyond 2^53 a fraction does not matter.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

/// Prints the result of each rule. Exit code 1 if the image breaks one.
pub(super) fn check(rules: &Rules, stack: &Stack, format: Format) -> anyhow::Result<()> {
    let waste = stack.waste()?;
    let mut is_broken = false;
    for (key, limit) in &rules.0 {
        let result = Outcome::of(*key, *limit, waste);
        is_broken |= !result.passes;
        output::line(if format == Format::Json { result.json() } else { result.text() })?;
    }
    if is_broken { Err(Exit::Said(1).into()) } else { Ok(()) }
}

/// The result of a rule.
struct Outcome {
    passes: bool,
    name: &'static str,
    value: Limit,
    limit: Limit,
    relation: &'static str,
}

impl Outcome {
    fn of(key: Key, limit: Limit, waste: &Waste) -> Outcome {
        let name = KEYS.iter().find(|(known, ..)| *known == key).map_or("", |(_, name, _)| name);
        let value = match key {
            Key::LowestEfficiency => Limit::Share(waste.efficiency()),
            Key::HighestWastedBytes => Limit::Bytes(waste.total_wasted()),
            Key::HighestUserWastedPercent => Limit::Share(waste.user_wasted_share()),
        };
        let is_lowest = key == Key::LowestEfficiency;
        let passes = match (value, limit) {
            (Limit::Share(value), Limit::Share(limit)) if is_lowest => value >= limit,
            (Limit::Share(value), Limit::Share(limit)) => value <= limit,
            (Limit::Bytes(value), Limit::Bytes(limit)) => value <= limit,
            _ => false,
        };
        let relation = match (is_lowest, passes) {
            (true, true) => ">=",
            (true, false) => "<",
            (false, true) => "<=",
            (false, false) => ">",
        };
        Outcome { passes, name, value, limit, relation }
    }

    fn text(&self) -> String {
        let shown = |limit: Limit| match limit {
            Limit::Share(share) => {
                let text = format!("{share:.3}");
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            }
            Limit::Bytes(bytes) => bytes.to_string(),
        };
        let verdict = if self.passes { "PASS" } else { "FAIL" };
        format!("{verdict} {} {} {} {}", self.name, shown(self.value), self.relation, shown(self.limit))
    }

    fn json(&self) -> String {
        let number = |limit: Limit| match limit {
            Limit::Share(share) => json!(share),
            Limit::Bytes(bytes) => json!(bytes),
        };
        json!({
            "rule": self.name,
            "pass": self.passes,
            "value": number(self.value),
            "limit": number(self.limit),
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_in_both_spellings() {
        let text = "# dive's\nrules:\n  lowestEfficiency: 0.95 # most\n  highestWastedBytes: 20MB\n\
                    highest-user-wasted-percent = \"0.1\"\n";
        let want = vec![
            (Key::LowestEfficiency, Limit::Share(0.95)),
            (Key::HighestWastedBytes, Limit::Bytes(20_000_000)),
            (Key::HighestUserWastedPercent, Limit::Share(0.1)),
        ];
        assert_eq!(parse(text), Ok(Rules(want)));
        assert_eq!(parse("lowest-efficiency: disabled"), Ok(Rules(vec![])));
        assert_eq!(parse("lowest-efficiency: 1\nlowestEfficiency: disabled"), Ok(Rules(vec![])));
    }

    #[test]
    fn bad_rules_name_their_line() {
        for (text, line, why) in [
            ("\nlowest: 1", 2, "unknown rule \"lowest\""),
            ("lowest-efficiency", 1, "wanted KEY: VALUE"),
            ("lowest-efficiency: 95%", 1, "lowest-efficiency must be a number from 0 to 1"),
            ("lowest-efficiency: 1.5", 1, "a number from 0 to 1"),
            ("lowestEfficiency: NaN", 1, "a number from 0 to 1"),
            ("#\n#\nhighest-wasted-bytes: 20 apples", 3, "must be bytes"),
            ("highest-wasted-bytes: -1", 1, "must be bytes"),
            ("highest-wasted-bytes:", 1, "must be bytes"),
        ] {
            let (at, said) = parse(text).unwrap_err();
            assert!(at == line && said.contains(why), "{text:?}: {at}: {said}");
        }
    }

    #[test]
    fn bytes_have_decimal_units() {
        for (text, want) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("12B", Some(12)),
            ("1.5kB", Some(1500)),
            ("20 MB", Some(20_000_000)),
            ("2gb", Some(2_000_000_000)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615k", None),
            ("", None),
            ("MB", None),
            ("1TiB", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }
}
