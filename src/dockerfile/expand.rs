//! Dockerfile variables: `$NAME`, `${NAME}` and its modifiers, with quotes and escapes removed.

use super::Result;
use std::iter::Peekable;
use std::str::Chars;

/// Returns the value of a variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How a text is expanded.
#[derive(Clone, Copy)]
struct Rules<'a> {
    escape: char,
    lookup: Lookup<'a>,
    /// Whether quotes and the escapes of other characters stay, as in a heredoc.
    raw: bool,
}

/// Removes a word's quotes and escapes and replaces its variables: `$NAME`, `${NAME}`, `${NAME:-WORD}` with `-`, `+` or
/// `?`, with or without the colon, and `${NAME#PATTERN}` with `#`, `##`, `%`, `%%`, `/` or `//`.
pub fn expand(word: &str, escape: char, lookup: Lookup<'_>) -> Result<String> {
    until(&mut word.chars().peekable(), None, Rules { escape, lookup, raw: false })
}

/// Replaces the variables of a heredoc. Quotes stay; `\\$` is a dollar sign.
pub fn expand_heredoc(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String> {
    until(&mut text.chars().peekable(), None, Rules { escape, lookup, raw: true })
}

fn until(chars: &mut Peekable<Chars<'_>>, ends: Option<&[char]>, rules: Rules<'_>) -> Result<String> {
    let mut out = String::new();
    while let Some(c) = chars.peek().copied() {
        if ends.is_some_and(|ends| ends.contains(&c)) {
            return Ok(out);
        }
        chars.next();
        match c {
            '\'' if !rules.raw => loop {
                match chars.next() {
                    Some('\'') => break,
                    Some(c) => out.push(c),
                    None => return Err(unclosed("single")),
                }
            },
            '"' if !rules.raw => double(chars, rules, &mut out)?,
            '$' => out.push_str(&variable(chars, rules)?),
            c if c == rules.escape && rules.raw => match chars.next_if(|c| *c == '$' || *c == rules.escape) {
                Some(escaped) => out.push(escaped),
                None => out.push(c),
            },
            c if c == rules.escape => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    if ends.is_some() { Err("syntax error: missing '}'".into()) } else { Ok(out) }
}

fn double(chars: &mut Peekable<Chars<'_>>, rules: Rules<'_>, out: &mut String) -> Result<()> {
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(()),
            '$' => out.push_str(&variable(chars, rules)?),
            // Inside double quotes only these can be escaped.
            c if c == rules.escape => match chars.next_if(|next| matches!(next, '"' | '$') || *next == c) {
                Some(escaped) => out.push(escaped),
                None => out.push(c),
            },
            c => out.push(c),
        }
    }
    Err(unclosed("double"))
}

fn unclosed(kind: &str) -> String {
    format!("unexpected end of statement while looking for matching {kind}-quote")
}

/// Returns the value of the variable after a `$`.
fn variable(chars: &mut Peekable<Chars<'_>>, rules: Rules<'_>) -> Result<String> {
    let braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    let value = if name.is_empty() { None } else { (rules.lookup)(&name) };
    if !braced {
        return Ok(if name.is_empty() { "$".into() } else { value.unwrap_or_default() });
    }
    let missing = || "syntax error: missing '}'".to_owned();
    let mut how = chars.next().ok_or_else(missing)?;
    if name.is_empty() {
        return Err("syntax error: bad substitution".into());
    }
    let close = |chars: &mut Peekable<Chars<'_>>| chars.next_if_eq(&'}').map(drop).ok_or_else(missing);
    match how {
        '}' => return Ok(value.unwrap_or_default()),
        '#' | '%' | '/' => {
            let all = chars.next_if_eq(&how).is_some();
            let pattern = until(chars, Some(if how == '/' { &['/', '}'] } else { &['}'] }), rules)?;
            let other = match chars.next_if_eq(&'/') {
                Some(_) => until(chars, Some(&['}']), rules)?,
                None => String::new(),
            };
            close(chars)?;
            let value = value.unwrap_or_default();
            return Ok(match how {
                '#' => without_prefix(&value, &pattern, all),
                '%' => without_suffix(&value, &pattern, all),
                _ => replaced(&value, &pattern, &other, all),
            });
        }
        _ => {}
    }
    let empty_counts = how == ':';
    if empty_counts {
        how = chars.next().ok_or_else(missing)?;
    }
    if !matches!(how, '-' | '+' | '?') {
        return Err(format!("unsupported modifier ({how}) in substitution"));
    }
    let other = until(chars, Some(&['}']), rules)?;
    close(chars)?;
    let value = value.filter(|value| !(empty_counts && value.is_empty()));
    match (how, value) {
        ('-', None) | ('+', Some(_)) => Ok(other),
        ('+', None) => Ok(String::new()),
        ('?', None) => Err(format!("{name}: {}", if other.is_empty() { "not allowed to be unset" } else { &other })),
        (_, Some(value)) => Ok(value),
        (_, None) => Ok(other),
    }
}

/// Returns the offsets of all character boundaries, the end included.
fn boundaries(text: &str) -> Vec<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).collect()
}

fn without_prefix(value: &str, pattern: &str, longest: bool) -> String {
    let mut ends = boundaries(value);
    if longest {
        ends.reverse();
    }
    let end = ends.into_iter().find(|end| matches(pattern, &value[..*end]));
    value[end.unwrap_or(0)..].to_owned()
}

fn without_suffix(value: &str, pattern: &str, longest: bool) -> String {
    let mut starts = boundaries(value);
    if !longest {
        starts.reverse();
    }
    let start = starts.into_iter().find(|start| matches(pattern, &value[*start..]));
    value[..start.unwrap_or(value.len())].to_owned()
}

/// Replaces the first or all matches, the longest at each place.
fn replaced(value: &str, pattern: &str, other: &str, all: bool) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < value.len() {
        let ends = boundaries(&value[at..]);
        let end = ends.into_iter().rev().find(|end| *end > 0 && matches(pattern, &value[at..at + end]));
        match end {
            Some(end) => {
                out.push_str(other);
                at += end;
                if !all {
                    break;
                }
            }
            None => {
                let next = value[at..].chars().next().map_or(1, char::len_utf8);
                out.push_str(&value[at..at + next]);
                at += next;
            }
        }
    }
    out + &value[at..]
}

/// Whether a shell pattern with `*`, `?` and escapes matches the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // The position after the last `*`, and how much of the text that one has taken.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        let escaped = pattern.get(p) == Some(&'\\') && p + 1 < pattern.len();
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                star = Some((p, t));
            }
            Some(_) if escaped && pattern[p + 1] == text[t] => (p, t) = (p + 2, t + 1),
            Some(c) if !escaped && (*c == '?' || *c == text[t]) => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((after, taken)) => {
                    (p, t) = (after, taken + 1);
                    star = Some((after, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(word: &str) -> Result<String> {
        expand(word, '\\', &|name| match name {
            "A" => Some("foo.tar.gz".into()),
            "E" => Some(String::new()),
            "P" => Some("*.gz".into()),
            _ => None,
        })
    }

    #[test]
    fn every_modifier() {
        for (word, want) in [
            ("$A-${A}", "foo.tar.gz-foo.tar.gz"),
            ("${N:-x}${N-y}${E:-z}${E-w}", "xyz"),
            ("${A:+x}${E:+y}${E+z}${N+w}", "xz"),
            ("${N:-${A}}", "foo.tar.gz"),
            ("${A#*.}|${A##*.}|${A%.*}|${A%%.*}", "tar.gz|gz|foo.tar|foo"),
            ("${A/o/0}|${A//o/0}|${A/.*}|${A//?o/}", "f0o.tar.gz|f00.tar.gz|foo|o.tar.gz"),
            ("${A%$P}|${A#x}|${N#x}", "foo.tar|foo.tar.gz|"),
            ("\\$A '$A' \"$A\" \"\\$A\"", "$A $A foo.tar.gz $A"),
            ("a\\ b$", "a b$"),
            ("$A.x$9", "foo.tar.gz.x"),
        ] {
            assert_eq!(made(word).as_deref(), Ok(want), "{word}");
        }
        assert_eq!(made("${A^}"), Err("unsupported modifier (^) in substitution".into()));
        assert_eq!(made("${A"), Err("syntax error: missing '}'".into()));
        assert_eq!(made("${A%x"), Err("syntax error: missing '}'".into()));
        assert_eq!(expand("`$A\\", '`', &|_| Some("v".into())).as_deref(), Ok("$A\\"));
    }

    #[test]
    fn heredocs_keep_their_quotes() {
        let text = "\"$A\" '$A' \\$A \\n\n";
        let made = expand_heredoc(text, '\\', &|_| Some("v".into()));
        assert_eq!(made.as_deref(), Ok("\"v\" 'v' $A \\n\n"));
    }
}
