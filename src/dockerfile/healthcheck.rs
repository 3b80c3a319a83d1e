//! The `HEALTHCHECK` instruction: a container's health command, interval, timeout and retries.

use super::Result;
use super::words::{self, Command};
use serde_json::{Map, Value, json};

/// Flags with a duration, and their names in the config.
const SPANS: [(&str, &str); 4] = [
    ("interval", "Interval"),
    ("timeout", "Timeout"),
    ("start-period", "StartPeriod"),
    ("start-interval", "StartInterval"),
];
/// Docker's minimum duration: one millisecond, in nanoseconds.
const LEAST: i128 = 1_000_000;

/// Parses `NONE`, or `[--interval=TIME] [--timeout=TIME] [--start-period=TIME] [--start-interval=TIME] [--retries=N]
/// CMD ...`.
pub(super) fn check(flags: &[(String, Option<String>)], rest: &str) -> Result<Value> {
    let mut found = Map::new();
    for (name, value) in flags {
        let (key, value) = setting(name, value.as_deref().unwrap_or_default())?;
        found.extend(value.map(|value| (key.to_owned(), value)));
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let test = match kind.to_ascii_uppercase().as_str() {
        "" => return Err("HEALTHCHECK requires at least one argument".into()),
        "NONE" if !command.is_empty() => return Err("HEALTHCHECK NONE takes no arguments".into()),
        "NONE" => return Ok(json!({ "Test": ["NONE"] })),
        "CMD" => match words::command(command.trim())? {
            Command::Text(text) if !text.is_empty() => vec!["CMD-SHELL".to_owned(), text],
            Command::List(list) if !list.is_empty() => [vec!["CMD".to_owned()], list].concat(),
            _ => return Err("Missing command after HEALTHCHECK CMD".into()),
        },
        other => return Err(format!("Unknown type \"{other}\" in HEALTHCHECK (try CMD)")),
    };
    let mut check = Map::from_iter([("Test".to_owned(), json!(test))]);
    check.extend(found);
    Ok(Value::from(check))
}

/// Parses a flag to the config's name and value; the value is `None` for the default.
fn setting(name: &str, value: &str) -> Result<(&'static str, Option<Value>)> {
    if name == "retries" {
        let retries: i32 = value.parse().map_err(|_| format!("--retries is not a number: {value}"))?;
        if retries < 1 {
            return Err(format!("--retries must be at least 1 (not {retries})"));
        }
        return Ok(("Retries", Some(json!(retries))));
    }
    let Some((_, key)) = SPANS.iter().find(|(flag, _)| *flag == name) else {
        return Err(format!("unknown flag: --{name}"));
    };
    if value.is_empty() {
        return Ok((key, None));
    }
    let span: jiff::SignedDuration =
        value.parse().map_err(|_| format!("--{name} is not a duration such as 1m30s: {value}"))?;
    match (span.as_nanos(), i64::try_from(span.as_nanos())) {
        (0, _) => Ok((key, None)),
        (nanos, Ok(value)) if nanos >= LEAST => Ok((key, Some(json!(value)))),
        _ => Err(format!("Interval \"{name}\" cannot be less than 1ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Value> {
        let line = format!("HEALTHCHECK {text}");
        let split = super::super::lexer::split_instruction(&line, '\\');
        super::check(&split.flags, split.rest)
    }

    #[test]
    fn every_form() {
        let whole = "--interval=1m30s --timeout=500ms --retries=3 --start-period=0s CMD curl -f http://localhost/";
        let want = json!({
            "Test": ["CMD-SHELL", "curl -f http://localhost/"],
            "Interval": 90_000_000_000i64, "Timeout": 500_000_000, "Retries": 3,
        });
        assert_eq!(check(whole), Ok(want));
        assert_eq!(check("cmd [\"/ok\", \"-v\"]"), Ok(json!({ "Test": ["CMD", "/ok", "-v"] })));
        assert_eq!(check("NONE"), Ok(json!({ "Test": ["NONE"] })));
        for (bad, why) in [
            ("", "HEALTHCHECK requires at least one argument"),
            ("NONE x", "HEALTHCHECK NONE takes no arguments"),
            ("CMD", "Missing command after HEALTHCHECK CMD"),
            ("/ok", "Unknown type \"/OK\" in HEALTHCHECK (try CMD)"),
            ("--retries=0 CMD x", "--retries must be at least 1 (not 0)"),
            ("--interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
            ("--interval=soon CMD x", "--interval is not a duration such as 1m30s: soon"),
            ("--often CMD x", "unknown flag: --often"),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
