//! Shell patterns on bytes (fnmatch(3) without flags), for `find`: `*` and `?` fit a slash and a leading dot too.

/// Whether a name fits a pattern. `folds`: letters fit in either case (ASCII).
pub(super) fn fits(pattern: &[u8], name: &[u8], folds: bool) -> bool {
    let (mut at, mut to) = (0, 0);
    // Where to go on after the last `*`, if the rest does not fit.
    let mut star: Option<(usize, usize)> = None;
    while to < name.len() {
        let next = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, to));
                at += 1;
                continue;
            }
            Some(_) => one(&pattern[at..], name[to], folds),
            None => None,
        };
        match (next, star) {
            (Some(length), _) => (at, to) = (at + length, to + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (at, to) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Returns the length of the pattern's first element if it fits a byte.
fn one(pattern: &[u8], byte: u8, folds: bool) -> Option<usize> {
    let same = |a: u8, b: u8| a == b || folds && a.eq_ignore_ascii_case(&b);
    match pattern[0] {
        b'?' => Some(1),
        b'[' => match class(pattern, byte, folds) {
            Some((is_in, length)) => is_in.then_some(length),
            // Without an end it stands for itself.
            None => same(b'[', byte).then_some(1),
        },
        b'\\' if pattern.len() > 1 => same(pattern[1], byte).then_some(2),
        literal => same(literal, byte).then_some(1),
    }
}

/// Whether a byte is in a class such as `[a-z]` or `[!0-9]`, and the length of the class.
fn class(pattern: &[u8], byte: u8, folds: bool) -> Option<(bool, usize)> {
    let is_negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let mut at = 1 + usize::from(is_negated);
    let first = at;
    let mut is_in = false;
    loop {
        let low = match *pattern.get(at)? {
            b']' if at > first => return Some((is_in != is_negated, at + 1)),
            b'\\' => {
                at += 1;
                *pattern.get(at)?
            }
            low => low,
        };
        at += 1;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1).is_some_and(|end| *end != b']') {
            high = pattern[at + 1];
            at += 2;
        }
        let is_between = |byte: u8| (low..=high).contains(&byte);
        is_in |= is_between(byte)
            || folds && (is_between(byte.to_ascii_lowercase()) || is_between(byte.to_ascii_uppercase()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_the_shell() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "a/b", true),
            ("*.txt", ".txt", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "", false),
            ("?x", "ax", true),
            ("[abc]", "b", true),
            ("[!abc]", "b", false),
            ("[^abc]", "d", true),
            ("[a-c]x", "bx", true),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[", "[", true),
            ("[a", "[a", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("", "", true),
            ("", "a", false),
            ("**a", "ba", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes(), false), expected, "{pattern} {name}");
        }
        assert!(fits(b"*.TXT", b"a.txt", true) && !fits(b"*.TXT", b"a.txt", false));
        assert!(fits(b"[A-C]", b"b", true) && fits(b"\xff*", b"\xffa", false));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = b"a*".repeat(200);
        assert!(!fits(&[&pattern[..], b"b"].concat(), &b"a".repeat(5000), false));
    }
}
