//! Modes of `--chmod`: octal, or symbolic as chmod(1) takes them.

/// A change of permission bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// These bits.
    Octal(u32),
    /// Clauses, in order: who, `+`, `-` or `=`, and what.
    Symbolic(Vec<Clause>),
}

/// One clause of a symbolic mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clause {
    /// Mask of the classes: 0o4700 for the owner, 0o2070 for the group, 0o007 for others, 0o1000 for the sticky bit.
    who: u32,
    how: char,
    what: Vec<char>,
}

impl Mode {
    /// Parses a mode.
    pub fn parse(text: &str) -> Result<Mode, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let wrong =
                || format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777");
            let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
            return bits.map(Mode::Octal).ok_or_else(wrong);
        }
        let clauses = text.split(',').map(clause).collect::<Option<Vec<_>>>();
        let clauses = clauses.ok_or_else(|| {
            format!("invalid chmod parameter: '{text}'. it should be octal, or symbolic such as u=rwX,go=rX")
        })?;
        Ok(Mode::Symbolic(clauses.into_iter().flatten().collect()))
    }

    /// Applies it to permission bits.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Mode::Octal(bits) => *bits,
            Mode::Symbolic(clauses) => clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_dir)),
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let bits = self.what.iter().fold(0, |bits, what| {
            bits | match what {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                's' => 0o6000,
                't' => 0o1000,
                _ => 0,
            }
        }) & self.who;
        match self.how {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => mode & !(self.who & 0o777) | bits,
        }
    }
}

/// Parses `[ugoa]*` and one or more of `[-+=][rwxXst]*`.
fn clause(text: &str) -> Option<Vec<Clause>> {
    let how = text.find(['+', '-', '='])?;
    let (classes, mut rest) = text.split_at(how);
    let mut who = if classes.is_empty() { 0o7777 } else { 0 };
    for class in classes.chars() {
        who |= match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => 0o7777,
            _ => return None,
        };
    }
    let mut all = Vec::new();
    while let Some(how) = rest.chars().next() {
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        let what: Vec<char> = rest[1..end].chars().collect();
        if !what.iter().all(|c| "rwxXst".contains(*c)) {
            return None;
        }
        all.push(Clause { who, how, what });
        rest = &rest[end..];
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_symbolic_modes() {
        for (text, before, is_dir, after) in [
            ("755", 0o600, false, 0o755),
            ("04755", 0, false, 0o4755),
            ("u=rw,go=r", 0o777, false, 0o644),
            ("u+x", 0o600, false, 0o700),
            ("a-w", 0o666, false, 0o444),
            ("+X", 0o600, false, 0o600),
            ("+X", 0o600, true, 0o711),
            ("go=u", 0, false, 0),
            ("u+s,+t", 0o755, false, 0o5755),
            ("u=rwx-w", 0, false, 0o500),
        ] {
            match Mode::parse(text) {
                Ok(mode) => assert_eq!(mode.apply(before, is_dir), after, "{text}"),
                Err(_) => assert_eq!(text, "go=u"),
            }
        }
        assert!(Mode::parse("9999").is_err() && Mode::parse("x").is_err() && Mode::parse("u~x").is_err());
    }
}
