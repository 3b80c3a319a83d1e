//! Words of Dockerfile instructions: JSON and shell forms, and `key=value` pairs.

use super::Result;

/// A command, in one of its two forms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// JSON (exec) form: a list of words.
    List(Vec<String>),
    /// Shell form: a text.
    Text(String),
}

/// Parses a JSON form; any other text is the shell form.
pub(super) fn command(rest: &str) -> Result<Command> {
    if !rest.starts_with('[') {
        return Ok(Command::Text(rest.to_owned()));
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(rest) {
        Err(_) => Ok(Command::Text(rest.to_owned())),
        Ok(list) => {
            let words = list.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>();
            let why = "when using JSON array syntax, arrays must be comprised of strings only";
            words.map(Command::List).ok_or_else(|| why.to_owned())
        }
    }
}

/// Parses `KEY=VALUE ...`, or `KEY` and the rest of the line including its quotes.
pub(super) fn pairs(name: &str, rest: &str, escape: char) -> Result<Vec<(String, String)>> {
    let words = split(rest, escape);
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
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, None | Some('"')) if c == escape => {
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
