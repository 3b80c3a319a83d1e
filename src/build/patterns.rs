//! Path patterns: `.dockerignore`, `--exclude`, and wildcards of `COPY` (Go's filepath.Match, and `**`).

use crate::dockerfile::clean_path;
use regex_lite::Regex;

/// Characters that a regular expression gives a meaning and a pattern does not.
const PLAIN: &str = ".+()|{}$^";

/// Ordered patterns; the last one that matches a path or a directory above it decides.
#[derive(Default)]
pub struct Patterns {
    /// Each pattern, and whether it excludes (no `!`).
    all: Vec<(Regex, bool)>,
}

impl Patterns {
    /// Parses the lines of a `.dockerignore`. Returns the line that is no pattern on failure.
    pub fn parse(text: &str) -> Result<Patterns, String> {
        let mut all = Vec::new();
        for line in text.trim_start_matches('\u{feff}').lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (pattern, excludes) = match line.strip_prefix('!') {
                Some(pattern) => (pattern.trim(), false),
                None => (line, true),
            };
            let clean = clean_path(pattern);
            if clean.is_empty() {
                continue;
            }
            all.push((compile(&clean, true).ok_or_else(|| format!("`{line}` is not a pattern"))?, excludes));
        }
        Ok(Patterns { all })
    }

    /// Whether the path, relative to the root of the patterns, is excluded.
    pub fn exclude(&self, path: &[u8]) -> bool {
        let path = String::from_utf8_lossy(path);
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let above: Vec<&str> = ends.map(|end| &path[..end]).collect();
        let decides = |(pattern, _): &&(Regex, bool)| above.iter().any(|path| pattern.is_match(path));
        self.all.iter().rev().find(decides).is_some_and(|(_, excludes)| *excludes)
    }

    /// Whether something inside an excluded directory may be not excluded.
    pub fn have_exceptions(&self) -> bool {
        self.all.iter().any(|(_, excludes)| !excludes)
    }
}

/// Whether a path has a wildcard.
pub fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// Makes a path or a pattern that matches only this path.
pub fn literal(path: &str) -> String {
    if !is_pattern(path) {
        return path.to_owned();
    }
    let escaped = |c: char| if "*?[\\".contains(c) { vec!['\\', c] } else { vec![c] };
    path.chars().flat_map(escaped).collect()
}

/// Compiles the pattern of one name of a path; `None` if it is malformed.
pub fn name_pattern(pattern: &str) -> Option<Regex> {
    compile(pattern, false)
}

/// Converts a pattern to a regular expression. `**` matches any number of directories if `deep`.
fn compile(pattern: &str, deep: bool) -> Option<Regex> {
    let mut text = String::from("^");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if deep && chars.next_if_eq(&'*').is_some() => {
                let slash = chars.next_if_eq(&'/').is_some();
                text += if chars.peek().is_none() && !slash { ".*" } else { "(.*/)?" };
            }
            '*' => text += "[^/]*",
            '?' => text += "[^/]",
            '[' => text += &class(&mut chars)?,
            '\\' => {
                let literal = chars.next().unwrap_or('\\');
                text += &regex_lite::escape(&literal.to_string());
            }
            c if PLAIN.contains(c) || c == ']' => {
                text.push('\\');
                text.push(c);
            }
            c => text.push(c),
        }
    }
    Regex::new(&(text + "$")).ok()
}

/// Converts the rest of a class, such as `a-c]` or `^[]`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut text = String::from("[");
    text.extend(chars.next_if_eq(&'^'));
    let start = text.len();
    loop {
        match chars.next()? {
            ']' if text.len() > start => return Some(text + "]"),
            '-' if text.len() > start => text.push('-'),
            c => {
                let c = if c == '\\' { chars.next()? } else { c };
                // Everything but letters and digits may have a meaning.
                if !c.is_alphanumeric() {
                    text.push('\\');
                }
                text.push(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_decides() {
        let lines = "# c\n*.md\n!README*.md\nREADME-secret.md\n/temp?\n*/b*\n**/*.go\n!keep/**\n dir/ \n[a-c].txt\n";
        let patterns = Patterns::parse(lines).unwrap();
        let excluded = |path: &str| patterns.exclude(path.as_bytes());
        for path in
            ["a.md", "README-secret.md", "tempa", "x/bin", "x/bin/y", "m.go", "a/b/m.go", "dir", "dir/x/y", "b.txt"]
        {
            assert!(excluded(path), "{path}");
        }
        for path in ["README.md", "sub/a.md", "temp", "temp12", "x/y/bin", "keep/m.go", "directory", "d.txt", "x"] {
            assert!(!excluded(path), "{path}");
        }
        assert!(patterns.have_exceptions());
        assert!(Patterns::parse("a[").is_err());
        let all = Patterns::parse("*\n!a/b\n").unwrap();
        assert!(all.exclude(b"a") && all.exclude(b"a/c") && !all.exclude(b"a/b") && !all.exclude(b"a/b/c"));
    }

    #[test]
    fn names_match_as_in_go() {
        let is = |pattern: &str, name: &str| name_pattern(pattern).is_some_and(|p| p.is_match(name));
        assert!(is("a*", "abc") && is("a?c", "abc") && is("[a-c]x", "bx") && is("arr[[]0].txt", "arr[0].txt"));
        assert!(is("\\*", "*") && is("a.b", "a.b") && is("[^a]", "b"));
        assert!(!is("a.b", "axb") && !is("*", "a/b") && !is("[^a]", "a") && name_pattern("[").is_none());
        assert!(is(&literal("a[b]*\\?"), "a[b]*\\?") && !is(&literal("a*"), "ab"));
        let clean = ["/a/./b//../c/", "../x", "/"].map(clean_path);
        assert_eq!(clean, ["a/c", "x", ""]);
    }
}
