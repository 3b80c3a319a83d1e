//! Go's Sprintf, for the verbs that apply to template values.

use super::OUTPUT_MAX;
use super::data::Data;
use super::float;
use std::fmt::Write;

/// Maximum width and precision, as in Go; larger ones are errors.
const WIDTH_MAX: usize = 1_000_000;

#[derive(Clone, Copy, Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

struct Printer<'a> {
    args: &'a [Data],
    next: usize,
    reordered: bool,
    out: String,
}

/// Formats as Go does: a wrong verb or argument appears in the text, as `%!d(string=x)`.
pub(super) fn sprintf(format: &str, args: &[Data]) -> Result<String, String> {
    let mut printer = Printer { args, next: 0, reordered: false, out: String::new() };
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        printer.out += &rest[..at];
        rest = printer.verb(&rest[at + 1..]);
        if printer.out.len() > OUTPUT_MAX {
            return Err("the result is too long".into());
        }
    }
    printer.out += rest;
    if !printer.reordered && printer.next < args.len() {
        let extra: Vec<String> = args[printer.next..].iter().map(typed).collect();
        printer.out += &format!("%!(EXTRA {})", extra.join(", "));
    }
    Ok(printer.out)
}

/// Formats an argument with its type, for errors in the text.
fn typed(arg: &Data) -> String {
    match arg {
        Data::Nil | Data::Missing => "<nil>".into(),
        other => format!("{}={}", other.type_name(), other.print()),
    }
}

impl Printer<'_> {
    /// Formats the directive after a `%`; returns the rest of the format.
    fn verb<'t>(&mut self, text: &'t str) -> &'t str {
        let mut spec = Spec::default();
        let mut rest = text;
        while let Some(flag) = rest.chars().next() {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        let mut good = true;
        rest = self.argument_number(rest, &mut good);
        let (width, after) = self.number(rest, &mut good);
        (spec.width, rest) = (width, after);
        if let Some(after) = rest.strip_prefix('.') {
            let after = self.argument_number(after, &mut good);
            let (precision, after) = self.number(after, &mut good);
            (spec.precision, rest) = (Some(precision.unwrap_or(0)), after);
        }
        rest = self.argument_number(rest, &mut good);
        let Some(verb) = rest.chars().next() else {
            self.out += "%!(NOVERB)";
            return rest;
        };
        rest = &rest[verb.len_utf8()..];
        if verb == '%' {
            self.out.push('%');
        } else if !good {
            self.out += &format!("%!{verb}(BADINDEX)");
        } else if let Some(arg) = self.args.get(self.next) {
            self.next += 1;
            let text = formatted(arg, verb, spec);
            self.out += &text;
        } else {
            self.out += &format!("%!{verb}(MISSING)");
        }
        rest
    }

    /// Parses an argument index `[n]`.
    fn argument_number<'t>(&mut self, text: &'t str, good: &mut bool) -> &'t str {
        let Some((inner, after)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) else { return text };
        self.reordered = true;
        match inner.parse::<usize>() {
            Ok(n) if (1..=self.args.len()).contains(&n) => self.next = n - 1,
            _ => *good = false,
        }
        after
    }

    /// Parses a width or precision: digits, or `*` for an argument.
    fn number<'t>(&mut self, text: &'t str, good: &mut bool) -> (Option<usize>, &'t str) {
        if let Some(after) = text.strip_prefix('*') {
            let arg = self.args.get(self.next);
            self.next += 1;
            let value = match arg {
                Some(Data::Int(n)) => usize::try_from(*n).ok().filter(|n| *n <= WIDTH_MAX),
                _ => None,
            };
            *good &= value.is_some();
            return (value, after);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let value = text[..digits].parse::<usize>().ok().filter(|n| *n <= WIDTH_MAX);
        *good &= digits == 0 || value.is_some();
        (value, &text[digits..])
    }
}

fn formatted(arg: &Data, verb: char, spec: Spec) -> String {
    match verb {
        'T' if matches!(arg, Data::Nil | Data::Missing) => return padded("<nil>", spec),
        'T' => return padded(arg.type_name(), spec),
        _ => {}
    }
    match arg {
        Data::Missing | Data::Nil if verb == 'v' => padded("<nil>", spec),
        Data::Missing | Data::Nil => format!("%!{verb}(<nil>)"),
        Data::Bool(b) if matches!(verb, 't' | 'v') => padded(&b.to_string(), spec),
        Data::Int(n) => integer(*n, verb, spec),
        Data::Float(f) => floating(*f, verb, spec),
        Data::Str(s) => text(s, verb, spec),
        _ if verb == 'v' && spec.sharp => padded(&go_syntax(arg), spec),
        Data::List(_) | Data::NilList => {
            let list = arg.as_list().unwrap_or_default();
            format!("[{}]", each(&mut list.iter().map(|item| element(item, verb, spec))))
        }
        Data::NilMap => "map[]".into(),
        Data::Map(map) => {
            let mut items =
                map.iter().map(|(key, value)| format!("{}:{}", text(key, verb, spec), element(value, verb, spec)));
            format!("map[{}]", each(&mut items))
        }
        Data::Struct(record) => {
            let name = |name: &str| if spec.plus { format!("{name}:") } else { String::new() };
            let spec = Spec { plus: false, ..spec };
            let mut items = record.fields.iter().map(|(n, value)| name(n) + &element(value, verb, spec));
            format!("{{{}}}", each(&mut items))
        }
        Data::Bool(_) => bad(arg, verb),
    }
}

/// Formats a list element. A nil element is `<nil>` with any verb.
fn element(arg: &Data, verb: char, spec: Spec) -> String {
    if matches!(arg, Data::Nil | Data::Missing) { padded("<nil>", spec) } else { formatted(arg, verb, spec) }
}

fn each(items: &mut dyn Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(" ")
}

fn bad(arg: &Data, verb: char) -> String {
    format!("%!{verb}({})", typed(arg))
}

/// Formats in Go syntax (`%#v`).
fn go_syntax(arg: &Data) -> String {
    let name = arg.type_name();
    match arg {
        Data::Str(s) => quote(s),
        Data::List(list) => {
            format!("{name}{{{}}}", list.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Data::Map(map) => {
            let items = map.iter().map(|(key, value)| format!("{}:{}", quote(key), go_syntax(value)));
            format!("{name}{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
        Data::Struct(record) => {
            let items = record.fields.iter().map(|(key, value)| format!("{key}:{}", go_syntax(value)));
            format!("{name}{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
        Data::NilMap | Data::NilList => format!("{name}(nil)"),
        other => other.print(),
    }
}

fn padded(text: &str, spec: Spec) -> String {
    let missing = spec.width.unwrap_or(0).saturating_sub(text.chars().count());
    match spec {
        Spec { minus: true, .. } => format!("{text}{}", " ".repeat(missing)),
        Spec { zero: true, .. } => format!("{}{text}", "0".repeat(missing)),
        _ => format!("{}{text}", " ".repeat(missing)),
    }
}

/// Formats a number, with the sign before padding zeros.
fn signed(negative: bool, digits: &str, spec: Spec) -> String {
    let sign = match spec {
        _ if negative => "-",
        Spec { plus: true, .. } => "+",
        Spec { space: true, .. } => " ",
        _ => "",
    };
    if spec.zero && !spec.minus {
        let width = spec.width.unwrap_or(0).saturating_sub(sign.len());
        return format!("{sign}{}", padded(digits, Spec { width: Some(width), ..spec }));
    }
    padded(&format!("{sign}{digits}"), Spec { zero: false, ..spec })
}

fn integer(value: i64, verb: char, spec: Spec) -> String {
    let size = value.unsigned_abs();
    let character = u32::try_from(value).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
    let digits = match verb {
        'v' | 'd' => size.to_string(),
        'b' => format!("{}{size:b}", if spec.sharp { "0b" } else { "" }),
        'o' => format!("{}{size:o}", if spec.sharp { "0" } else { "" }),
        'O' => format!("0o{size:o}"),
        'x' => format!("{}{size:x}", if spec.sharp { "0x" } else { "" }),
        'X' => format!("{}{size:X}", if spec.sharp { "0X" } else { "" }),
        'c' => return padded(&character.to_string(), spec),
        'q' => return padded(&quote_with(&character.to_string(), '\''), spec),
        'U' => return padded(&format!("U+{size:04X}"), spec),
        _ => return bad(&Data::Int(value), verb),
    };
    let digits = format!("{}{digits}", "0".repeat(spec.precision.unwrap_or(0).saturating_sub(digits.len())));
    signed(value < 0, &digits, spec)
}

fn floating(value: f64, verb: char, spec: Spec) -> String {
    let size = value.abs();
    let digits = match (verb, spec.precision) {
        ('v' | 'g' | 'G', None) => float::general(size),
        ('v' | 'g' | 'G', Some(precision)) => float::significant(size, precision.min(400)),
        ('e' | 'E', precision) => float::scientific(size, precision.unwrap_or(6).min(400)),
        ('f' | 'F', precision) => float::fixed(size, precision.unwrap_or(6).min(400)),
        _ => return bad(&Data::Float(value), verb),
    };
    let digits = if matches!(verb, 'E' | 'G') { digits.to_uppercase() } else { digits };
    signed(value.is_sign_negative(), digits.trim_start_matches('+'), spec)
}

fn text(value: &str, verb: char, spec: Spec) -> String {
    let cut: String = value.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    let hex = |upper: bool| {
        let mut out = String::new();
        for byte in cut.bytes() {
            // Writing to a String cannot fail.
            let _never = if upper { write!(out, "{byte:02X}") } else { write!(out, "{byte:02x}") };
        }
        out
    };
    match verb {
        'v' if spec.sharp => padded(&quote(&cut), spec),
        'v' | 's' => padded(&cut, spec),
        'q' => padded(&quote(&cut), spec),
        'x' => padded(&hex(false), spec),
        'X' => padded(&hex(true), spec),
        _ => bad(&Data::str(value), verb),
    }
}

/// Quotes a string as Go does, in double quotes.
pub fn quote(text: &str) -> String {
    quote_with(text, '"')
}

fn quote_with(text: &str, mark: char) -> String {
    let mut out = String::from(mark);
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if u32::from(c) < 0x80 && c.is_control() => {
                let _never = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if c.is_control() => {
                let _never = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(mark);
    out
}
