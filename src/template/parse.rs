//! Template parser. It mirrors Go's step by step, so that the error messages are the same.

use super::data::Data;
use super::functions;
use super::lex::{Kind, Token, lex};
use super::node::{Branch, Command, Expr, ExprKind, Node, Pipeline, Tree};
use super::printf::quote;
use std::collections::BTreeMap;

/// Maximum nesting of blocks and parentheses.
const NESTING_MAX: usize = 60;

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// Variables in scope.
    variables: Vec<String>,
    ranges: usize,
    nesting: usize,
    /// The line where the current action starts.
    action_line: usize,
    defined: BTreeMap<String, Vec<Node>>,
}

/// The action that ended a list of nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    End,
    Else,
}

impl End {
    fn show(self) -> &'static str {
        if self == End::End { "{{end}}" } else { "{{else}}" }
    }
}

enum Item {
    Node(Node),
    End(End),
    /// A definition: no node.
    Nothing,
}

type Result<T> = std::result::Result<T, String>;

/// Parses a template.
pub(super) fn parse(text: &str) -> Result<Tree> {
    let mut parser = Parser {
        tokens: lex(text),
        at: 0,
        variables: vec!["$".into()],
        ranges: 0,
        nesting: 0,
        action_line: 0,
        defined: BTreeMap::new(),
    };
    let mut root = Vec::new();
    while parser.peek().kind != Kind::Eof {
        match parser.text_or_action(true)? {
            Item::Node(node) => root.push(node),
            Item::End(end) => return Err(parser.error(format!("unexpected {}", end.show()))),
            Item::Nothing => {}
        }
    }
    Ok(Tree { text: text.to_owned(), root, defined: parser.defined })
}

fn show(token: &Token) -> String {
    match token.kind {
        Kind::Eof => "EOF".into(),
        Kind::Keyword | Kind::Dot | Kind::Nil => format!("<{}>", token.text),
        _ if token.text.len() > 10 => {
            let short: String = token.text.chars().take(10).collect();
            format!("{}...", quote(&short))
        }
        _ => quote(&token.text),
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token (end or error) is returned again and again.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn peek_solid(&mut self) -> &Token {
        while self.peek().kind == Kind::Space {
            self.at += 1;
        }
        self.peek()
    }

    fn next_solid(&mut self) -> Token {
        self.peek_solid();
        self.next()
    }

    fn error(&self, what: impl std::fmt::Display) -> String {
        let last = self.at.saturating_sub(1).min(self.tokens.len() - 1);
        format!("template: :{}: {what}", self.tokens[last].line)
    }

    fn unexpected(&self, token: &Token, context: &str) -> String {
        if token.kind != Kind::Error {
            return self.error(format!("unexpected {} in {context}", show(token)));
        }
        if self.action_line == 0 || self.action_line == token.line {
            return self.error(&token.text);
        }
        let started = format!("started at :{}", self.action_line);
        let into = if token.text.ends_with(" action") { " " } else { " in action " };
        self.error(format!("{}{into}{started}", token.text))
    }

    fn need(&mut self, kind: Kind, context: &str) -> Result<Token> {
        let token = self.next_solid();
        if token.kind == kind { Ok(token) } else { Err(self.unexpected(&token, context)) }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Parser) -> Result<T>) -> Result<T> {
        self.nesting += 1;
        if self.nesting > NESTING_MAX {
            return Err(self.error(format!("nested deeper than {NESTING_MAX}")));
        }
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    fn text_or_action(&mut self, top: bool) -> Result<Item> {
        let token = self.next_solid();
        match token.kind {
            Kind::Text => Ok(Item::Node(Node::Text(token.text))),
            Kind::LeftDelim => {
                self.action_line = token.line;
                let item = self.nested(|p| p.action(top));
                self.action_line = 0;
                item
            }
            _ => Err(self.unexpected(&token, "input")),
        }
    }

    fn action(&mut self, top: bool) -> Result<Item> {
        let token = self.next_solid();
        if token.kind == Kind::Keyword {
            return match token.text.as_str() {
                "if" => self.control("if").map(|branch| Item::Node(Node::If(branch))),
                "with" => self.control("with").map(|branch| Item::Node(Node::With(branch))),
                "range" => self.control("range").map(|branch| Item::Node(Node::Range(branch))),
                "end" => self.need(Kind::RightDelim, "end").map(|_| Item::End(End::End)),
                "else" => {
                    let chained = self.peek_solid();
                    let chained = chained.kind == Kind::Keyword && ["if", "with"].contains(&chained.text.as_str());
                    if !chained {
                        self.need(Kind::RightDelim, "else")?;
                    }
                    Ok(Item::End(End::Else))
                }
                "template" => self.template().map(Item::Node),
                "block" => self.block().map(Item::Node),
                "break" => self.leave("{{break}}", Node::Break),
                "continue" => self.leave("{{continue}}", Node::Continue),
                "define" if top => self.definition(),
                _ => Err(self.unexpected(&token, "command")),
            };
        }
        self.at -= 1;
        self.pipeline("command", Kind::RightDelim).map(|pipeline| Item::Node(Node::Action(pipeline)))
    }

    fn leave(&mut self, shown: &str, node: Node) -> Result<Item> {
        let token = self.next_solid();
        if token.kind != Kind::RightDelim {
            return Err(self.unexpected(&token, shown));
        }
        if self.ranges == 0 {
            return Err(self.error(format!("{shown} outside {{{{range}}}}")));
        }
        Ok(Item::Node(node))
    }

    fn list(&mut self) -> Result<(Vec<Node>, End)> {
        let mut nodes = Vec::new();
        while self.peek_solid().kind != Kind::Eof {
            match self.text_or_action(false)? {
                Item::Node(node) => nodes.push(node),
                Item::End(end) => return Ok((nodes, end)),
                Item::Nothing => {}
            }
        }
        Err(self.error("unexpected EOF"))
    }

    fn control(&mut self, what: &str) -> Result<Branch> {
        let scope = self.variables.len();
        let pipeline = self.pipeline(what, Kind::RightDelim)?;
        let is_range = usize::from(what == "range");
        self.ranges += is_range;
        let (body, end) = self.list()?;
        self.ranges -= is_range;
        let mut otherwise = Vec::new();
        if end == End::Else {
            let chained = what != "range" && self.peek().kind == Kind::Keyword && self.peek().text == what;
            if chained {
                self.next();
                // One {{end}} closes the whole chain of `else if` or `else with`.
                let branch = self.nested(|p| p.control(what))?;
                otherwise.push(if what == "if" { Node::If(branch) } else { Node::With(branch) });
            } else {
                let (nodes, end) = self.list()?;
                if end != End::End {
                    return Err(self.error(format!("expected end; found {}", end.show())));
                }
                otherwise = nodes;
            }
        }
        self.variables.truncate(scope);
        Ok(Branch { pipeline, body, otherwise })
    }

    fn name(&mut self, context: &str) -> Result<(Token, String)> {
        let token = self.next_solid();
        match token.kind {
            Kind::String | Kind::RawString => {
                let name = unquote(&token.text).ok_or_else(|| self.error("invalid syntax"))?;
                Ok((token, name))
            }
            _ => Err(self.unexpected(&token, context)),
        }
    }

    fn template(&mut self) -> Result<Node> {
        let (token, name) = self.name("template clause")?;
        let mut pipeline = None;
        if self.peek_solid().kind == Kind::RightDelim {
            self.next();
        } else {
            pipeline = Some(self.pipeline("template clause", Kind::RightDelim)?);
        }
        let argument = pipeline.as_ref().map(|p| format!(" {p}")).unwrap_or_default();
        let shown = format!("{{{{template {}{argument}}}}}", quote(&name));
        Ok(Node::Template { pos: token.pos, name, shown, pipeline })
    }

    fn block(&mut self) -> Result<Node> {
        let (token, name) = self.name("block clause")?;
        let pipeline = self.pipeline("block clause", Kind::RightDelim)?;
        self.define(&name, "{{end}}")?;
        let shown = format!("{{{{template {} {pipeline}}}}}", quote(&name));
        Ok(Node::Template { pos: token.pos, name, shown, pipeline: Some(pipeline) })
    }

    fn definition(&mut self) -> Result<Item> {
        let (_, name) = self.name("define clause")?;
        self.need(Kind::RightDelim, "define clause")?;
        self.define(&name, "define clause")?;
        Ok(Item::Nothing)
    }

    /// Parses the body of a definition: a separate template with its own variables.
    fn define(&mut self, name: &str, context: &str) -> Result<()> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".into()]);
        let ranges = std::mem::take(&mut self.ranges);
        let (nodes, end) = self.list()?;
        if end != End::End {
            return Err(self.error(format!("unexpected {} in {context}", end.show())));
        }
        self.variables = variables;
        self.ranges = ranges;
        let is_empty = |nodes: &[Node]| nodes.iter().all(|n| matches!(n, Node::Text(t) if t.trim().is_empty()));
        match self.defined.get(name) {
            Some(old) if !is_empty(old) && !is_empty(&nodes) => {
                Err(self.error(format!("template: multiple definition of template {}", quote(name))))
            }
            Some(_) if is_empty(&nodes) => Ok(()),
            _ => {
                self.defined.insert(name.to_owned(), nodes);
                Ok(())
            }
        }
    }

    fn pipeline(&mut self, context: &str, end: Kind) -> Result<Pipeline> {
        let mut pipeline = Pipeline { pos: self.peek_solid().pos, ..Pipeline::default() };
        self.declarations(&mut pipeline, context)?;
        loop {
            let token = self.next_solid();
            match token.kind {
                kind if kind == end => {
                    self.check(&pipeline, context)?;
                    return Ok(pipeline);
                }
                Kind::Bool
                | Kind::CharConstant
                | Kind::Dot
                | Kind::Field
                | Kind::Identifier
                | Kind::Number
                | Kind::Nil
                | Kind::RawString
                | Kind::String
                | Kind::Variable
                | Kind::LeftParen => {
                    self.at -= 1;
                    let command = self.command()?;
                    pipeline.commands.push(command);
                }
                _ => return Err(self.unexpected(&token, context)),
            }
        }
    }

    fn declarations(&mut self, pipeline: &mut Pipeline, context: &str) -> Result<()> {
        while self.peek_solid().kind == Kind::Variable {
            let start = self.at;
            let variable = self.next();
            let next = self.peek_solid().clone();
            let comma = next.kind == Kind::Char && next.text == ",";
            if !comma && next.kind != Kind::Assign && next.kind != Kind::Declare {
                self.at = start;
                return Ok(());
            }
            self.next();
            pipeline.variables.push(variable.text.clone());
            self.variables.push(variable.text);
            pipeline.assign = next.kind == Kind::Assign;
            if !comma {
                return Ok(());
            }
            if context != "range" || pipeline.variables.len() >= 2 {
                return Err(self.error(format!("too many declarations in {context}")));
            }
            if !matches!(self.peek_solid().kind, Kind::Variable | Kind::RightDelim | Kind::RightParen) {
                return Err(self.error("range can only initialize variables"));
            }
        }
        Ok(())
    }

    fn check(&self, pipeline: &Pipeline, context: &str) -> Result<()> {
        if pipeline.commands.is_empty() {
            return Err(self.error(format!("missing value for {context}")));
        }
        for (at, command) in pipeline.commands.iter().enumerate().skip(1) {
            let kind = command.args.first().map(|arg| &arg.kind);
            let bad = matches!(
                kind,
                Some(ExprKind::Bool(_) | ExprKind::Dot | ExprKind::Nil | ExprKind::Number(..) | ExprKind::Text(..))
            );
            if bad {
                return Err(self.error(format!("non executable command in pipeline stage {}", at + 1)));
            }
        }
        Ok(())
    }

    fn command(&mut self) -> Result<Command> {
        let mut command = Command { pos: self.peek_solid().pos, args: Vec::new() };
        loop {
            self.peek_solid();
            command.args.extend(self.operand()?);
            let token = self.next();
            match token.kind {
                Kind::Space => {}
                Kind::RightDelim | Kind::RightParen => {
                    self.at -= 1;
                    break;
                }
                Kind::Pipe => break,
                _ => return Err(self.unexpected(&token, "operand")),
            }
        }
        if command.args.is_empty() { Err(self.error("empty command")) } else { Ok(command) }
    }

    fn operand(&mut self) -> Result<Option<Expr>> {
        let Some(term) = self.term()? else { return Ok(None) };
        let pos = self.peek().pos;
        let mut names = Vec::new();
        while self.peek().kind == Kind::Field {
            names.push(self.next().text[1..].to_owned());
        }
        if names.is_empty() {
            return Ok(Some(term));
        }
        let kind = match term.kind {
            ExprKind::Field(mut first) => {
                first.append(&mut names);
                ExprKind::Field(first)
            }
            ExprKind::Variable(name, _) => ExprKind::Variable(name, names),
            ExprKind::Dot | ExprKind::Nil | ExprKind::Bool(_) | ExprKind::Number(..) | ExprKind::Text(..) => {
                return Err(self.error(format!("unexpected . after term {}", quote(&term.to_string()))));
            }
            kind => ExprKind::Chain(Box::new(Expr { pos: term.pos, kind }), names),
        };
        Ok(Some(Expr { pos, kind }))
    }

    fn term(&mut self) -> Result<Option<Expr>> {
        let token = self.next_solid();
        let text = token.text.clone();
        let kind = match token.kind {
            Kind::Identifier if functions::exists(&text) => ExprKind::Function(text),
            Kind::Identifier => return Err(self.error(format!("function {} not defined", quote(&text)))),
            Kind::Dot => ExprKind::Dot,
            Kind::Nil => ExprKind::Nil,
            Kind::Bool => ExprKind::Bool(text == "true"),
            Kind::Variable if self.variables.contains(&text) => ExprKind::Variable(text, vec![]),
            Kind::Variable => return Err(self.error(format!("undefined variable {}", quote(&text)))),
            Kind::Field => ExprKind::Field(vec![text[1..].to_owned()]),
            Kind::Number | Kind::CharConstant => match number(&text) {
                Ok(value) => ExprKind::Number(value, text),
                Err(error) => return Err(self.error(error)),
            },
            Kind::String | Kind::RawString => match unquote(&text) {
                Some(value) => ExprKind::Text(value, text),
                None => return Err(self.error("invalid syntax")),
            },
            Kind::LeftParen => {
                let pipeline = self.nested(|p| p.pipeline("parenthesized pipeline", Kind::RightParen))?;
                ExprKind::Parens(Box::new(pipeline))
            }
            _ => {
                self.at -= 1;
                return Ok(None);
            }
        };
        Ok(Some(Expr { pos: token.pos, kind }))
    }
}

/// Parses a number or a character constant.
fn number(text: &str) -> Result<Data> {
    if text.starts_with('\'') {
        let value = unquote(text).ok_or("invalid syntax")?;
        let mut chars = value.chars();
        return match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(Data::Int(i64::from(u32::from(c)))),
            (None, _) => Err("invalid syntax".into()),
            _ => Err(format!("malformed character constant: {text}")),
        };
    }
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] if lower.bytes().all(|b| b.is_ascii_digit()) => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    if let Ok(value) = i64::from_str_radix(&format!("{sign}{digits}"), radix) {
        return Ok(Data::Int(value));
    }
    let whole = lower.bytes().all(|b| b.is_ascii_digit());
    if whole {
        return Err(format!("integer overflow: {}", quote(text)));
    }
    match format!("{sign}{lower}").parse::<f64>() {
        Ok(value) if radix == 10 && value.is_finite() => Ok(Data::Float(value)),
        _ => Err(format!("illegal number syntax: {}", quote(text))),
    }
}

/// Decodes a Go string or character literal with any kind of quotes; `None` if it is malformed.
fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next()?;
    let inner = text.get(1..text.len().checked_sub(1)?)?;
    if quote == '`' {
        return Some(inner.replace('\r', ""));
    }
    let mut bytes = Vec::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c == '\\' {
            unescape(&mut chars, quote, &mut bytes)?;
        } else {
            bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn unescape(chars: &mut std::str::Chars<'_>, quote: char, into: &mut Vec<u8>) -> Option<()> {
    let c = chars.next()?;
    let simple = match c {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' => '\\',
        c if c == quote => c,
        // Octal and \x escapes are single bytes.
        'x' => return digits(chars, 16, 0, 2).and_then(|n| u8::try_from(n).ok()).map(|b| push(b, quote, into)),
        '0'..='7' => {
            let byte = digits(chars, 8, c.to_digit(8)?, 2).and_then(|n| u8::try_from(n).ok())?;
            push(byte, quote, into);
            return Some(());
        }
        'u' => char::from_u32(digits(chars, 16, 0, 4)?)?,
        'U' => char::from_u32(digits(chars, 16, 0, 8)?)?,
        _ => return None,
    };
    into.extend(simple.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

/// Appends an octal or \x escape: a code point in a character constant, a byte in a string.
fn push(byte: u8, quote: char, into: &mut Vec<u8>) {
    if quote == '\'' {
        into.extend(char::from(byte).encode_utf8(&mut [0; 4]).as_bytes());
    } else {
        into.push(byte);
    }
}

fn digits(chars: &mut std::str::Chars<'_>, radix: u32, first: u32, count: usize) -> Option<u32> {
    let mut value = first;
    for _ in 0..count {
        value = value.checked_mul(radix)?.checked_add(chars.next()?.to_digit(radix)?)?;
    }
    Some(value)
}
