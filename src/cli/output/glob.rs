//! Glob patterns: Go's `path.Match`.

/// The pattern is malformed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub(in crate::cli) struct BadPattern;

/// Whether the pattern matches the whole name. `*` and `?` do not match a slash; `[a-z]` and `[^a-z]` are character
/// classes; a backslash escapes. A malformed pattern is an error only if matching reaches the malformed part, as in
/// Go.
pub(in crate::cli) fn matches(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // Where to backtrack to: the last star, and the position in the name from which it matched.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            retry = Some((p, n));
            p += 1;
            continue;
        }
        if p == pattern.len() && n == name.len() {
            return Ok(true);
        }
        let step = if p < pattern.len() { one(&pattern[p..], name.get(n).copied())? } else { None };
        if let Some(length) = step {
            p += length;
            n += 1;
            continue;
        }
        match retry {
            Some((star, from)) if from < name.len() && name[from] != '/' => {
                retry = Some((star, from + 1));
                (p, n) = (star + 1, from + 1);
            }
            _ => return Ok(false),
        }
    }
}

/// Matches one character; returns the length of the pattern element that matches it.
fn one(pattern: &[char], c: Option<char>) -> Result<Option<usize>, BadPattern> {
    let (fits, length) = match pattern[0] {
        '?' => (c.is_some_and(|c| c != '/'), 1),
        '\\' => (c == Some(*pattern.get(1).ok_or(BadPattern)?), 2),
        '[' => class(pattern, c)?,
        literal => (c == Some(literal), 1),
    };
    Ok((fits && c.is_some()).then_some(length))
}

/// Matches a character class; returns whether it matches, and its length in the pattern.
fn class(pattern: &[char], c: Option<char>) -> Result<(bool, usize), BadPattern> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let mut fits = false;
    let mut ranges = 0;
    loop {
        if pattern.get(at) == Some(&']') && ranges > 0 {
            return Ok((fits != negated, at + 1));
        }
        let low = bound(pattern, &mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            at += 1;
            high = bound(pattern, &mut at)?;
        }
        fits |= c.is_some_and(|c| (low..=high).contains(&c));
        ranges += 1;
    }
}

fn bound(pattern: &[char], at: &mut usize) -> Result<char, BadPattern> {
    let mut c = *pattern.get(*at).ok_or(BadPattern)?;
    if c == '-' || c == ']' {
        return Err(BadPattern);
    }
    if c == '\\' {
        *at += 1;
        c = *pattern.get(*at).ok_or(BadPattern)?;
    }
    *at += 1;
    // An unclosed class is an error.
    if *at >= pattern.len() { Err(BadPattern) } else { Ok(c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        // From Go's own table of tests.
        for (pattern, name, fits) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("*x", "xxx", true),
            ("*:latest", "alpine:latest", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), Ok(fits), "{pattern} {name}");
        }
        for bad in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "\\"] {
            assert_eq!(matches(bad, "a"), Err(BadPattern), "{bad}");
        }
    }
}
