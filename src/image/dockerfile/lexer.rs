//! Dockerfile lexer: continued lines, JSON and shell forms, `key=value` pairs, quotes and variables.

use super::Result;
use std::iter::Peekable;
use std::str::Chars;

/// Splits changes into instructions: without comments and empty lines, with continued lines joined.
pub(super) fn lines(changes: &[String]) -> Vec<String> {
    let mut whole = Vec::new();
    let mut open = String::new();
    for line in changes.iter().flat_map(|change| change.lines()) {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let start = if open.is_empty() { line.trim_start() } else { line };
        match start.trim_end().strip_suffix('\\') {
            Some(more) => open.push_str(more),
            None => whole.push(std::mem::take(&mut open) + start.trim_end()),
        }
    }
    if !open.trim().is_empty() {
        whole.push(open.trim_end().to_owned());
    }
    whole
}

/// Form of a command.
pub(super) enum Form<'a> {
    /// JSON (exec) form: a list of words.
    List(Vec<String>),
    /// Shell form: a text.
    Text(&'a str),
}

/// Parses a JSON form; any other text is the shell form.
pub(super) fn form(rest: &str) -> Result<Form<'_>> {
    if !rest.starts_with('[') {
        return Ok(Form::Text(rest));
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(rest) {
        Err(_) => Ok(Form::Text(rest)),
        Ok(list) => {
            let words = list.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>();
            let why = "when using JSON array syntax, arrays must be comprised of strings only";
            words.map(Form::List).ok_or_else(|| why.to_owned())
        }
    }
}

/// Parses `KEY=VALUE ...`, or `KEY` and the rest of the line including its quotes.
pub(super) fn pairs(name: &str, rest: &str) -> Result<Vec<(String, String)>> {
    let words = split(rest);
    let Some(first) = words.first() else { return Err(format!("{name} requires at least one argument")) };
    let pairs = if first.contains('=') {
        let pair = |word: &String| match word.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(format!("Syntax error - can't find = in \"{word}\". Must be of the form: name=value")),
        };
        words.iter().map(pair).collect::<Result<Vec<_>>>()?
    } else {
        let two = || format!("{name} must have two arguments");
        let (key, value) = rest.split_once(char::is_whitespace).ok_or_else(two)?;
        vec![(key.to_owned(), value.trim().to_owned())]
    };
    if pairs.iter().any(|(key, _)| key.is_empty()) {
        return Err(format!("{name} names can not be blank"));
    }
    Ok(pairs)
}

/// Splits at spaces that are neither quoted nor escaped; keeps quotes and escapes.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Removes a word's quotes and escapes and replaces its variables: `$NAME`, `${NAME}`, and `${NAME:-WORD}` with `-`,
/// `+` or `?`, with or without the colon.
pub(super) fn expand(word: &str, lookup: Lookup<'_>) -> Result<String> {
    until(&mut word.chars().peekable(), None, lookup)
}

fn until(chars: &mut Peekable<Chars<'_>>, end: Option<char>, lookup: Lookup<'_>) -> Result<String> {
    let mut out = String::new();
    while let Some(c) = chars.next() {
        match c {
            c if Some(c) == end => return Ok(out),
            '\'' => loop {
                match chars.next() {
                    Some('\'') => break,
                    Some(c) => out.push(c),
                    None => return Err(unclosed("single")),
                }
            },
            '"' => double(chars, lookup, &mut out)?,
            '$' => out.push_str(&variable(chars, lookup)?),
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    if end.is_some() { Err("syntax error: missing '}'".into()) } else { Ok(out) }
}

fn double(chars: &mut Peekable<Chars<'_>>, lookup: Lookup<'_>, out: &mut String) -> Result<()> {
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(()),
            '$' => out.push_str(&variable(chars, lookup)?),
            // Inside double quotes only these can be escaped.
            '\\' if matches!(chars.peek(), Some('"' | '$' | '\\')) => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    Err(unclosed("double"))
}

fn unclosed(kind: &str) -> String {
    format!("unexpected end of statement while looking for matching {kind}-quote")
}

/// Returns the value of the variable after a `$`.
fn variable(chars: &mut Peekable<Chars<'_>>, lookup: Lookup<'_>) -> Result<String> {
    let braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if !braced {
        return Ok(if name.is_empty() { "$".into() } else { lookup(&name).unwrap_or_default() });
    }
    let missing = || "syntax error: missing '}'".to_owned();
    let mut how = chars.next().ok_or_else(missing)?;
    if name.is_empty() {
        return Err("syntax error: bad substitution".into());
    }
    let value = lookup(&name);
    if how == '}' {
        return Ok(value.unwrap_or_default());
    }
    let empty_counts = how == ':';
    if empty_counts {
        how = chars.next().ok_or_else(missing)?;
    }
    if !matches!(how, '-' | '+' | '?') {
        return Err(format!("unsupported modifier ({how}) in substitution"));
    }
    let other = until(chars, Some('}'), lookup)?;
    let value = value.filter(|value| !(empty_counts && value.is_empty()));
    match (how, value) {
        ('-', None) | ('+', Some(_)) => Ok(other),
        ('+', None) => Ok(String::new()),
        ('?', None) => Err(format!("{name}: {}", if other.is_empty() { "not allowed to be unset" } else { &other })),
        (_, Some(value)) => Ok(value),
        (_, None) => Ok(other),
    }
}
