//! Dockerfile lexer: parser directives, comments, continued lines and heredocs (the Dockerfile reference, "Format").

use super::words;
use super::{Result, SyntaxError};

/// A heredoc: the lines after an instruction up to its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heredoc {
    /// The name.
    pub name: String,
    /// The lines, each with its newline; without leading tabs if the operator is `<<-`.
    pub content: String,
    /// The lines as they are in the file.
    pub raw: String,
    /// Whether variables are replaced: the name is not quoted.
    pub expand: bool,
}

/// An instruction as text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// Line number of its beginning, from 1.
    pub first: usize,
    /// Line number of its end.
    pub last: usize,
    /// The instruction, with continued lines joined, without heredocs.
    pub text: String,
    pub heredocs: Vec<Heredoc>,
}

/// Instructions that can have heredocs.
const WITH_HEREDOCS: [&str; 3] = ["ADD", "COPY", "RUN"];

/// Returns the escape character: `\`, or what the parser directive `escape` says.
pub(super) fn escape_of(text: &str) -> std::result::Result<char, SyntaxError> {
    let mut escape = None;
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let Some((key, value)) = directive(line) else { break };
        match key.as_str() {
            "escape" => {}
            "syntax" | "check" => continue,
            _ => break,
        }
        let wrong = |why: String| SyntaxError { line: at + 1, why };
        if escape.is_some() {
            return Err(wrong("only one escape parser directive can be used".into()));
        }
        escape = match value {
            "\\" | "`" => value.chars().next(),
            other => return Err(wrong(format!("invalid escape token '{other}' does not match ` or \\"))),
        };
    }
    Ok(escape.unwrap_or('\\'))
}

/// Parses a parser directive: `# name=value`.
fn directive(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let key = key.trim().to_ascii_lowercase();
    let known = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric());
    known.then_some((key, value.trim()))
}

/// Splits a Dockerfile, or lines of one, into instructions.
pub(super) fn lines(text: &str, escape: char) -> std::result::Result<Vec<Line>, SyntaxError> {
    let mut all = Vec::new();
    let text = text.trim_start_matches('\u{feff}');
    let mut rest = text.split_inclusive('\n').enumerate().map(|(at, line)| (at + 1, line));
    while let Some((first, line)) = rest.next() {
        let (part, mut continues) = continued(line.trim_start(), escape);
        if is_comment(line) || (part.trim().is_empty() && !continues) {
            continue;
        }
        let (mut whole, mut last) = (part.to_owned(), first);
        while continues {
            let Some((at, line)) = rest.next() else { break };
            last = at;
            if is_comment(line) || line.trim().is_empty() {
                continue;
            }
            let part;
            (part, continues) = continued(line, escape);
            whole.push_str(part);
        }
        let text = whole.trim_end().to_owned();
        if text.is_empty() {
            continue;
        }
        let mut heredocs = Vec::new();
        for (name, expand, chomp) in operators(&text, escape) {
            let mut raw = String::new();
            loop {
                let wrong = || SyntaxError { line: first, why: format!("unterminated heredoc {name}") };
                let (at, line) = rest.next().ok_or_else(wrong)?;
                last = at;
                let end = line.trim_end_matches(['\n', '\r']);
                if (if chomp { end.trim_start_matches('\t') } else { end }) == name {
                    break;
                }
                raw.push_str(line);
            }
            let chomped = || raw.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect();
            let content = if chomp { chomped() } else { raw.clone() };
            heredocs.push(Heredoc { name, content, raw, expand });
        }
        all.push(Line { first, last, text, heredocs });
    }
    Ok(all)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Returns a line without its end, and whether it continues: it ends with one escape character.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let line = line.trim_end_matches(['\n', '\r']);
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(part) if !part.ends_with(escape) => (part, true),
        _ => (line, false),
    }
}

/// Lists the heredoc operators of an instruction: name, whether variables are replaced, whether tabs are removed.
fn operators(text: &str, escape: char) -> Vec<(String, bool, bool)> {
    let mut words = text.split_whitespace().map(str::to_ascii_uppercase);
    let mut name = words.next().unwrap_or_default();
    if name == "ONBUILD" {
        name = words.next().unwrap_or_default();
    }
    if !WITH_HEREDOCS.contains(&name.as_str()) {
        return vec![];
    }
    words::split(text, escape).iter().filter_map(|word| operator(word)).collect()
}

/// Parses a word as a heredoc operator: digits, `<<`, `-` for the removal of tabs, and the name.
pub(super) fn operator(word: &str) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, chomp) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    if rest.contains('<') {
        return None;
    }
    let name: String = rest.chars().filter(|c| !matches!(c, '"' | '\'' | '\\')).collect();
    (!name.is_empty()).then(|| (name.clone(), name == rest, chomp))
}

/// An instruction's name in upper case, its flags, and the rest.
pub(super) struct Split<'a> {
    pub name: String,
    /// Names and values of `--name=value`.
    pub flags: Vec<(String, Option<String>)>,
    pub rest: &'a str,
}

/// Splits an instruction.
pub(super) fn split_instruction(text: &str, escape: char) -> Split<'_> {
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let mut rest = rest.trim();
    let mut flags = Vec::new();
    let name = name.to_ascii_uppercase();
    // HEALTHCHECK and ONBUILD parse their own.
    while name != "ONBUILD" && rest.starts_with("--") {
        let end = flag_end(rest, escape);
        let word = &rest[2..end];
        rest = rest[end..].trim_start();
        if word.is_empty() {
            break;
        }
        let unquoted = |text: &str| text.chars().filter(|c| *c != '"').collect::<String>();
        flags.push(match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(unquoted(value))),
            None => (word.to_owned(), None),
        });
    }
    Split { name, flags, rest }
}

/// Returns the offset of the first space that is neither quoted nor escaped.
fn flag_end(text: &str, escape: char) -> usize {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            _ if escaped => escaped = false,
            (c, _) if c == escape => escaped = true,
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

/// Flags that need no value.
const SWITCHES: [&str; 3] = ["keep-git-dir", "link", "parents"];

/// Rejects an unknown or repeated flag; returns the values of the known ones in the order of `known`. That of a switch
/// without a value is `true`.
pub(super) fn flags<const N: usize>(
    given: &[(String, Option<String>)],
    known: [&str; N],
) -> Result<[Option<String>; N]> {
    let mut found = [const { None }; N];
    for (name, value) in given {
        let Some(at) = known.iter().position(|known| known == name) else {
            return Err(format!("unknown flag: --{name}"));
        };
        if found[at].is_some() {
            return Err(format!("duplicate flag specified: --{name}"));
        }
        found[at] = match value {
            Some(value) => Some(value.clone()),
            None if SWITCHES.contains(&known[at]) => Some("true".into()),
            None => return Err(format!("missing a value on flag: --{name}")),
        };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(usize, usize, String)> {
        let escape = escape_of(text).unwrap();
        lines(text, escape).unwrap().into_iter().map(|l| (l.first, l.last, l.text)).collect()
    }

    fn is(first: usize, last: usize, text: &str) -> (usize, usize, String) {
        (first, last, text.to_owned())
    }

    #[test]
    fn continued_lines_comments_and_empty_lines() {
        let text = "\u{feff}# c\n\nFROM a\nRUN x \\\n  # between\n\n  y \\ \n\tz\nRUN end\\\\\nRUN q\\";
        assert_eq!(
            texts(text),
            [is(3, 3, "FROM a"), is(4, 8, "RUN x   y \tz"), is(9, 9, "RUN end\\\\"), is(10, 10, "RUN q")]
        );
        let text = "# syntax=docker/dockerfile:1\n# escape = `\nFROM a\nRUN x `\n y\nRUN c:\\\n";
        assert_eq!(texts(text), [is(3, 3, "FROM a"), is(4, 5, "RUN x  y"), is(6, 6, "RUN c:\\")]);
        // After any other line a directive is a comment.
        assert_eq!(escape_of("# a comment\n# escape=`\n").unwrap(), '\\');
        assert_eq!(escape_of("# escape=x\n").unwrap_err().why, "invalid escape token 'x' does not match ` or \\");
        assert_eq!(escape_of("#escape=`\n#escape=`\n").unwrap_err().line, 2);
    }

    #[test]
    fn heredocs_follow_their_instruction() {
        let text = "FROM a\nRUN <<A cat >x && <<-\"B\" cat > y\n1\nA\n\t2 $x\n\tB\nRUN echo $((1<<2)) <<< w\nRUN z\n";
        let all = lines(text, '\\').unwrap();
        assert_eq!(all.len(), 4);
        let [a, b] = &all[1].heredocs[..] else { panic!("{all:?}") };
        assert_eq!((a.name.as_str(), a.content.as_str(), a.expand), ("A", "1\n", true));
        assert_eq!((b.name.as_str(), b.content.as_str(), b.raw.as_str(), b.expand), ("B", "2 $x\n", "\t2 $x\n", false));
        assert_eq!((all[1].first, all[1].last, all[3].first), (2, 6, 8));
        let error = lines("FROM a\nCOPY <<E /x\nhi\n", '\\').unwrap_err();
        assert_eq!((error.line, error.why.as_str()), (2, "unterminated heredoc E"));
        assert!(lines("ENV A=<<E\n", '\\').unwrap()[0].heredocs.is_empty());
        assert_eq!(lines("ONBUILD COPY <<E /x\nhi\nE\n", '\\').unwrap()[0].heredocs.len(), 1);
    }

    #[test]
    fn flags_are_split_from_the_rest() {
        let split = split_instruction("run --mount=type=cache,target=\"/a b\" --network=none  -- x --y", '\\');
        assert_eq!(split.name, "RUN");
        let value = Some("type=cache,target=/a b".to_owned());
        assert_eq!(split.flags, [("mount".to_owned(), value), ("network".to_owned(), Some("none".to_owned()))]);
        assert_eq!(split.rest, "x --y");
        assert_eq!(split_instruction("COPY --link a b", '\\').flags, [("link".to_owned(), None)]);
        let given = [("link".to_owned(), None), ("chown".to_owned(), Some("1".to_owned()))];
        assert_eq!(flags(&given, ["chown", "link"]).unwrap(), [Some("1".to_owned()), Some("true".to_owned())]);
        assert_eq!(flags(&given, ["link"]).unwrap_err(), "unknown flag: --chown");
    }
}
