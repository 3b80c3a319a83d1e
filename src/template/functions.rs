//! Template functions: Go's built-in ones, and Docker's.

use super::data::Data;
use super::printf::sprintf;
use super::{Functions, OUTPUT_MAX};
use std::cmp::Ordering;
use std::fmt::Write;
use std::rc::Rc;

const TOO_LONG: &str = "the result is too long";
/// Maximum number of parts that `split` returns.
const PIECES_MAX: usize = 1 << 18;

/// The type of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Param {
    Any,
    Text,
    Int,
    Texts,
}

impl Param {
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Param::Any => "interface {}",
            Param::Text => "string",
            Param::Int => "int",
            Param::Texts => "[]string",
        }
    }

    /// The type's name in errors about constant arguments.
    pub(super) fn constant_name(self) -> &'static str {
        match self {
            Param::Int => "integer",
            other => other.type_name(),
        }
    }
}

/// All functions: name, parameters, and whether the last parameter is variadic. The executor implements `and`, `or` and
/// `call`.
const ALL: &[(&str, &[Param], bool)] = {
    use Param::{Any, Int, Text, Texts};
    &[
        ("and", &[Any, Any], true),
        ("call", &[Any, Any], true),
        ("eq", &[Any, Any], true),
        ("ge", &[Any, Any], false),
        ("gt", &[Any, Any], false),
        ("html", &[Any], true),
        ("index", &[Any, Any], true),
        ("join", &[Texts, Text], false),
        ("js", &[Any], true),
        ("json", &[Any], false),
        ("le", &[Any, Any], false),
        ("len", &[Any], false),
        ("lower", &[Text], false),
        ("lt", &[Any, Any], false),
        ("ne", &[Any, Any], false),
        ("not", &[Any], false),
        ("or", &[Any, Any], true),
        ("pad", &[Text, Int, Int], false),
        ("print", &[Any], true),
        ("printf", &[Text, Any], true),
        ("println", &[Any], true),
        ("slice", &[Any, Any], true),
        ("split", &[Text, Text], false),
        ("title", &[Text], false),
        ("truncate", &[Text, Int], false),
        ("upper", &[Text], false),
        ("urlquery", &[Any], true),
    ]
};

/// Looks a function up.
fn signature(name: &str) -> Option<&'static (&'static str, &'static [Param], bool)> {
    ALL.iter().find(|(known, ..)| *known == name)
}

/// Whether the function exists.
pub(super) fn exists(name: &str) -> bool {
    signature(name).is_some()
}

/// The minimum number of arguments, and whether the function accepts more.
pub(super) fn arity(name: &str) -> (usize, bool) {
    signature(name).map_or((0, true), |(_, params, more)| (params.len() - usize::from(*more), *more))
}

/// The type of the parameter at that position.
pub(super) fn param(name: &str, at: usize) -> Param {
    signature(name).and_then(|(_, params, _)| params.get(at).or(params.last())).copied().unwrap_or(Param::Any)
}

type Result<T> = std::result::Result<T, String>;

/// Calls a function. The executor has checked the number and the types of the arguments.
pub(super) fn call(name: &str, args: &[Data], functions: Functions) -> Result<Data> {
    let first = args.first().unwrap_or(&Data::Missing);
    let rest = args.get(1..).unwrap_or_default();
    let text = |at: usize| match args.get(at) {
        Some(Data::Str(s)) => s.to_string(),
        _ => String::new(),
    };
    let number = |at: usize| match args.get(at) {
        Some(Data::Int(n)) => *n,
        _ => 0,
    };
    let changes = matches!(name, "json" | "title" | "lower" | "upper" | "pad" | "truncate" | "split" | "join");
    if functions == Functions::Headings && changes {
        return Ok(first.clone());
    }
    // Bounds the result: a template may double a string repeatedly.
    if args.iter().fold(0, |sum: usize, arg| sum.saturating_add(arg.weight())) > OUTPUT_MAX {
        return Err(TOO_LONG.into());
    }
    Ok(match name {
        "eq" => Data::Bool(equals_any(first, rest)?),
        "ne" => Data::Bool(!equals(first, rest.first().unwrap_or(&Data::Missing))?),
        "lt" => Data::Bool(less(args)?),
        "le" => Data::Bool(less(args)? || equals(first, &args[1])?),
        "gt" => Data::Bool(!less(args)? && !equals(first, &args[1])?),
        "ge" => Data::Bool(!less(args)?),
        "not" => Data::Bool(!first.truth()),
        "len" => Data::Int(length(first)?),
        "index" => index(first, rest)?,
        "slice" => slice(first, rest)?,
        "print" => Data::str(sprint(args)),
        "println" => Data::str(args.iter().map(Data::print).collect::<Vec<_>>().join(" ") + "\n"),
        "printf" => Data::str(sprintf(&text(0), rest)?),
        "html" => Data::str(html(&plain(args))),
        "js" => Data::str(js(&plain(args))),
        "urlquery" => Data::str(urlquery(&plain(args))),
        "json" => Data::str(first.json()),
        "title" => Data::str(title(&text(0))),
        "lower" => Data::str(text(0).to_lowercase()),
        "upper" => Data::str(text(0).to_uppercase()),
        "split" => split(&text(0), &text(1))?,
        "join" => Data::str(join(first, &text(1))?),
        "pad" => Data::str(pad(&text(0), number(1), number(2))?),
        "truncate" => Data::str(truncate(&text(0), number(1))?),
        _ => return Err("not a function".into()),
    })
}

/// Go's Sprint: adds a space between operands if neither is a string.
fn sprint(args: &[Data]) -> String {
    let mut out = String::new();
    for (at, arg) in args.iter().enumerate() {
        let texts = matches!(arg, Data::Str(_)) || at > 0 && matches!(args[at - 1], Data::Str(_));
        if at > 0 && !texts {
            out.push(' ');
        }
        out += &if *arg == Data::Missing { Data::Nil.print() } else { arg.print() };
    }
    out
}

fn plain(args: &[Data]) -> String {
    match args {
        [Data::Str(s)] => s.to_string(),
        _ => sprint(args),
    }
}

/// The class of a basic type: Go compares only values of the same class.
fn kind(value: &Data) -> Option<u8> {
    match value {
        Data::Bool(_) => Some(0),
        Data::Int(_) => Some(1),
        Data::Float(_) => Some(2),
        Data::Str(_) => Some(3),
        _ => None,
    }
}

fn is_nil(value: &Data) -> bool {
    matches!(value, Data::Missing | Data::Nil)
}

fn equals_any(first: &Data, rest: &[Data]) -> Result<bool> {
    if rest.is_empty() {
        return Err("missing argument for comparison".into());
    }
    for other in rest {
        if equals(first, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn equals(a: &Data, b: &Data) -> Result<bool> {
    if is_nil(a) || is_nil(b) {
        let nil = |d: &Data| is_nil(d) || matches!(d, Data::NilMap | Data::NilList);
        return Ok(nil(a) && nil(b));
    }
    match (kind(a), kind(b)) {
        (Some(x), Some(y)) if x == y => Ok(a == b),
        (None, None) => Err(format!("non-comparable type {}: {}", a.print(), a.type_name())),
        _ => Err("incompatible types for comparison".into()),
    }
}

fn less(args: &[Data]) -> Result<bool> {
    let [a, b] = args else { return Err("missing argument for comparison".into()) };
    let ordered = |d: &Data| kind(d).is_some();
    let order = match (a, b) {
        (Data::Int(x), Data::Int(y)) => Some(x.cmp(y)),
        (Data::Float(x), Data::Float(y)) => x.partial_cmp(y),
        (Data::Str(x), Data::Str(y)) => Some(x.as_bytes().cmp(y.as_bytes())),
        (a, b) if !ordered(a) || !ordered(b) || matches!((a, b), (Data::Bool(_), Data::Bool(_))) => {
            return Err("invalid type for comparison".into());
        }
        _ => return Err("incompatible types for comparison".into()),
    };
    Ok(order == Some(Ordering::Less))
}

fn length(value: &Data) -> Result<i64> {
    let length = match value {
        Data::Str(s) => s.len(),
        Data::List(list) => list.len(),
        Data::Map(map) => map.len(),
        Data::NilMap | Data::NilList => 0,
        value if is_nil(value) => return Err("reflect: call of reflect.Value.Type on zero Value".into()),
        other => return Err(format!("len of type {}", other.type_name())),
    };
    Ok(i64::try_from(length).unwrap_or(i64::MAX))
}

fn position(at: &Data, limit: usize) -> Result<usize> {
    match at {
        Data::Int(n) => {
            usize::try_from(*n).ok().filter(|n| *n <= limit).ok_or_else(|| format!("index out of range: {n}"))
        }
        value if is_nil(value) => Err("cannot index slice/array with nil".into()),
        other => Err(format!("cannot index slice/array with type {}", other.type_name())),
    }
}

fn index(value: &Data, keys: &[Data]) -> Result<Data> {
    if is_nil(value) {
        return Err("index of untyped nil".into());
    }
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Data::Str(s), key) => {
                let at = position(key, s.len())?;
                let byte = s.as_bytes().get(at).ok_or_else(|| format!("index out of range: {at}"))?;
                Data::Int(i64::from(*byte))
            }
            (Data::List(_) | Data::NilList, key) => {
                let list = value.as_list().unwrap_or_default();
                let at = position(key, list.len())?;
                list.get(at).cloned().ok_or_else(|| format!("index out of range: {at}"))?
            }
            (Data::Map(map), Data::Str(key)) => match map.get(&**key) {
                Some(found) => found.clone(),
                // A missing key: the zero value of the map's element type.
                None if value.type_name() == "map[string]string" => Data::str(""),
                None => Data::Nil,
            },
            (Data::NilMap, Data::Str(_)) => Data::str(""),
            (Data::Map(_) | Data::NilMap, key) if is_nil(key) => {
                return Err("value is nil; should be of type string".into());
            }
            (Data::Map(_) | Data::NilMap, key) => {
                return Err(format!("value has type {}; should be string", key.type_name()));
            }
            (nil, _) if is_nil(nil) => return Err("index of nil pointer".into()),
            (other, _) => return Err(format!("can't index item of type {}", other.type_name())),
        };
    }
    Ok(value)
}

fn slice(value: &Data, bounds: &[Data]) -> Result<Data> {
    let whole = match value {
        Data::Str(s) => s.len(),
        Data::List(_) | Data::NilList => value.as_list().map_or(0, <[Data]>::len),
        value if is_nil(value) => return Err("slice of untyped nil".into()),
        other => return Err(format!("can't slice item of type {}", other.type_name())),
    };
    if bounds.len() > 3 {
        return Err(format!("too many slice indexes: {}", bounds.len()));
    }
    if bounds.len() == 3 && matches!(value, Data::Str(_)) {
        return Err("cannot 3-index slice a string".into());
    }
    let mut at = [0, whole, whole];
    for (bound, slot) in bounds.iter().zip(&mut at) {
        *slot = position(bound, whole)?;
    }
    let [from, to, cap] = at;
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    if to > cap {
        return Err(format!("invalid slice index: {to} > {cap}"));
    }
    Ok(match value {
        Data::Str(s) => Data::str(String::from_utf8_lossy(&s.as_bytes()[from..to])),
        other => Data::List(Rc::new(other.as_list().unwrap_or_default()[from..to].to_vec())),
    })
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\0' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' | '\u{2028}' | '\u{2029}' => push_js(c, &mut out),
            c if c.is_control() => push_js(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

fn push_js(c: char, out: &mut String) {
    // Writing to a String cannot fail.
    let _never = write!(out, "\\u{:04X}", u32::from(c));
}

fn urlquery(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            b if b.is_ascii_alphanumeric() => out.push(b.into()),
            b => {
                let _never = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

/// Go's Title: capitalizes each letter after a character other than a letter, digit or underscore.
fn title(text: &str) -> String {
    let mut before = ' ';
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let separator =
            if before.is_ascii() { !(before.is_ascii_alphanumeric() || before == '_') } else { before.is_whitespace() };
        if separator {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        before = c;
    }
    out
}

fn split(text: &str, by: &str) -> Result<Data> {
    let pieces = if by.is_empty() { text.chars().count() } else { text.matches(by).count() + 1 };
    if pieces > PIECES_MAX {
        return Err(TOO_LONG.into());
    }
    Ok(if by.is_empty() { Data::strings(text.chars().map(String::from)) } else { Data::strings(text.split(by)) })
}

fn join(list: &Data, by: &str) -> Result<String> {
    let list = list.as_list().unwrap_or_default();
    let total = list.len().saturating_mul(by.len());
    if total > OUTPUT_MAX {
        return Err(TOO_LONG.into());
    }
    Ok(list.iter().map(Data::print).collect::<Vec<_>>().join(by))
}

fn pad(text: &str, before: i64, after: i64) -> Result<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let spaces = |n: i64| {
        let n = usize::try_from(n).map_err(|_| "strings: negative Repeat count".to_owned())?;
        if n > OUTPUT_MAX { Err(TOO_LONG.to_owned()) } else { Ok(" ".repeat(n)) }
    };
    Ok(format!("{}{text}{}", spaces(before)?, spaces(after)?))
}

fn truncate(text: &str, length: i64) -> Result<String> {
    let Ok(wanted) = usize::try_from(length) else {
        return Err(format!("runtime error: slice bounds out of range [:{length}]"));
    };
    let bytes = &text.as_bytes()[..wanted.min(text.len())];
    Ok(String::from_utf8_lossy(bytes).into_owned())
}
