//! Template lexer. An error is a token too, which the parser reports when it reaches it, as Go's does.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Error,
    Eof,
    Text,
    LeftDelim,
    RightDelim,
    Space,
    Assign,
    Declare,
    Pipe,
    LeftParen,
    RightParen,
    Char,
    String,
    RawString,
    CharConstant,
    Number,
    Bool,
    Identifier,
    Field,
    Variable,
    Dot,
    Nil,
    Keyword,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    /// Offset in bytes.
    pub pos: usize,
    /// Line number, from 1.
    pub line: usize,
    pub text: String,
}

const KEYWORDS: [&str; 9] = ["block", "break", "continue", "define", "else", "end", "if", "range", "template"];

struct Lexer<'a> {
    input: &'a str,
    pos: usize,
    line: usize,
    parens: usize,
    tokens: Vec<Token>,
}

type Done = Result<(), String>;

/// Splits a template into tokens; the last one is [`Kind::Eof`] or [`Kind::Error`].
pub(super) fn lex(input: &str) -> Vec<Token> {
    let mut lexer = Lexer { input, pos: 0, line: 1, parens: 0, tokens: Vec::new() };
    let last = match lexer.text() {
        Ok(()) => (Kind::Eof, String::new()),
        Err(error) => (Kind::Error, error),
    };
    let (pos, line) = (lexer.pos, lexer.line);
    lexer.tokens.push(Token { kind: last.0, pos, line, text: last.1 });
    lexer.tokens
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn named(c: char) -> String {
    let code = u32::from(c);
    if c.is_control() { format!("U+{code:04X}") } else { format!("U+{code:04X} '{c}'") }
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.input[self.pos..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest()[..bytes].matches('\n').count();
        self.pos += bytes;
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.skip(rest.find(|c| !wanted(c)).unwrap_or(rest.len()));
    }

    /// Emits the next bytes as a token.
    fn emit(&mut self, kind: Kind, bytes: usize) {
        let (pos, line) = (self.pos, self.line);
        let text = self.rest()[..bytes].to_owned();
        self.skip(bytes);
        self.tokens.push(Token { kind, pos, line, text });
    }

    fn text(&mut self) -> Done {
        loop {
            let rest = self.rest();
            let Some(at) = rest.find("{{") else {
                if !rest.is_empty() {
                    self.emit(Kind::Text, rest.len());
                }
                return Ok(());
            };
            let after = &rest[at + 2..];
            let trim = after.starts_with('-') && after[1..].starts_with(is_space);
            let text = if trim { rest[..at].trim_end_matches(is_space) } else { &rest[..at] };
            if !text.is_empty() {
                self.emit(Kind::Text, text.len());
            }
            self.skip(at - text.len());
            if after[if trim { 2 } else { 0 }..].starts_with("/*") {
                self.skip(if trim { 4 } else { 2 });
                self.comment()?;
            } else {
                self.emit(Kind::LeftDelim, 2);
                self.skip(if trim { 1 } else { 0 });
                self.parens = 0;
                self.action()?;
            }
        }
    }

    fn comment(&mut self) -> Done {
        let Some(end) = self.rest().find("*/") else { return Err("unclosed comment".into()) };
        self.skip(end + 2);
        let Some(trim) = self.right_delim() else { return Err("comment ends before closing delimiter".into()) };
        self.skip(if trim { 4 } else { 2 });
        if trim {
            self.skip_while(is_space);
        }
        Ok(())
    }

    /// `Some` at a right delimiter; true if it has a trim marker.
    fn right_delim(&self) -> Option<bool> {
        let rest = self.rest();
        if rest.starts_with(is_space) && rest[1..].starts_with("-}}") {
            return Some(true);
        }
        rest.starts_with("}}").then_some(false)
    }

    fn action(&mut self) -> Done {
        loop {
            if let Some(trim) = self.right_delim() {
                if self.parens > 0 {
                    return Err("unclosed left paren".into());
                }
                self.skip(if trim { 2 } else { 0 });
                self.emit(Kind::RightDelim, 2);
                if trim {
                    self.skip_while(is_space);
                }
                return Ok(());
            }
            self.inside()?;
        }
    }

    fn inside(&mut self) -> Done {
        let Some(c) = self.peek() else { return Err("unclosed action".into()) };
        match c {
            c if is_space(c) => self.space(),
            '=' => self.emit(Kind::Assign, 1),
            ':' if self.rest().starts_with(":=") => self.emit(Kind::Declare, 2),
            ':' => return Err("expected :=".into()),
            '|' => self.emit(Kind::Pipe, 1),
            '"' => self.quoted('"', Kind::String, "unterminated quoted string")?,
            '\'' => self.quoted('\'', Kind::CharConstant, "unterminated character constant")?,
            '`' => {
                let end = self.rest()[1..].find('`').ok_or("unterminated raw quoted string")?;
                self.emit(Kind::RawString, end + 2);
            }
            '$' => self.word(Kind::Variable)?,
            '.' if !self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => self.word(Kind::Field)?,
            '.' | '+' | '-' | '0'..='9' => self.number()?,
            c if is_word(c) => self.identifier()?,
            '(' => {
                self.emit(Kind::LeftParen, 1);
                self.parens += 1;
            }
            ')' => {
                self.parens = self.parens.checked_sub(1).ok_or("unexpected right paren")?;
                self.emit(Kind::RightParen, 1);
            }
            c if c.is_ascii_graphic() => self.emit(Kind::Char, 1),
            c => return Err(format!("unrecognized character in action: {}", named(c))),
        }
        Ok(())
    }

    /// Emits a run of spaces, without the one that belongs to a trim marker.
    fn space(&mut self) {
        let rest = self.rest();
        let mut length = rest.find(|c| !is_space(c)).unwrap_or(rest.len());
        if rest[length..].starts_with("-}}") {
            length -= 1;
        }
        self.emit(Kind::Space, length);
    }

    fn quoted(&mut self, quote: char, kind: Kind, unterminated: &str) -> Done {
        let mut escaped = false;
        for (at, c) in self.rest().char_indices().skip(1) {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    self.emit(kind, at + 1);
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(unterminated.into())
    }

    /// Checks that a word of this length is followed by a terminator; else the error names the character.
    fn terminated(&self, length: usize) -> Done {
        let after = &self.rest()[length..];
        match after.chars().next() {
            None => Ok(()),
            Some(c) if is_space(c) || matches!(c, '.' | ',' | '|' | ':' | ')' | '(') => Ok(()),
            Some(_) if after.starts_with("}}") => Ok(()),
            Some(c) => Err(format!("bad character {}", named(c))),
        }
    }

    /// Emits `.Name` or `$name`; the name may be empty.
    fn word(&mut self, kind: Kind) -> Done {
        let name = &self.rest()[1..];
        let length = 1 + name.find(|c| !is_word(c)).unwrap_or(name.len());
        // Also checked for a lone dot or dollar sign.
        self.terminated(length)?;
        self.emit(if length == 1 && kind == Kind::Field { Kind::Dot } else { kind }, length);
        Ok(())
    }

    fn identifier(&mut self) -> Done {
        let rest = self.rest();
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        self.terminated(length)?;
        let kind = match &rest[..length] {
            "true" | "false" => Kind::Bool,
            "nil" => Kind::Nil,
            word if KEYWORDS.contains(&word) || word == "with" => Kind::Keyword,
            _ => Kind::Identifier,
        };
        self.emit(kind, length);
        Ok(())
    }

    fn number(&mut self) -> Done {
        let length = number_length(self.rest());
        match self.rest()[length..].chars().next() {
            Some(c) if is_word(c) => {
                let bad = &self.rest()[..length + c.len_utf8()];
                Err(format!("bad number syntax: {}", super::printf::quote(bad)))
            }
            // As in `3-4`: numbers must be separated by a space.
            Some(c @ ('+' | '-')) => {
                Err(format!("bad number syntax: {}", super::printf::quote(&format!("{}{c}", &self.rest()[..length]))))
            }
            _ => {
                self.emit(Kind::Number, length);
                Ok(())
            }
        }
    }
}

/// The length of a number: sign, digits of its base, fraction, exponent.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    let mut base = 10;
    if bytes.get(at) == Some(&b'0') {
        base = match bytes.get(at + 1) {
            Some(b'x' | b'X') => 16,
            Some(b'o' | b'O') => 8,
            Some(b'b' | b'B') => 2,
            _ => 10,
        };
        at += if base == 10 { 1 } else { 2 };
    }
    let digits = |mut at: usize, base: u32| {
        while bytes.get(at).is_some_and(|b| *b == b'_' || char::from(*b).is_digit(base)) {
            at += 1;
        }
        at
    };
    at = digits(at, base);
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1, base);
    }
    if base == 10 && matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at = digits(at, 10);
    }
    at
}
