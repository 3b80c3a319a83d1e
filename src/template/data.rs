//! Template values, with Go's printing (`%v`) and JSON encoding.

use super::float;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

/// A value of a template. Cheap to clone.
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    /// The value of a missing map key. Prints as `<no value>`.
    Missing,
    /// JSON's null: an untyped nil.
    Nil,
    /// A nil map; `null` in JSON, `map[]` in print.
    NilMap,
    /// A nil slice; `null` in JSON, `[]` in print.
    NilList,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Str(Rc<str>),
    /// A list.
    List(Rc<Vec<Data>>),
    /// A map; a missing key is no error.
    Map(Rc<BTreeMap<String, Data>>),
    /// A struct; an unknown field is an error.
    Struct(Rc<Record>),
}

/// A struct: named fields, in order.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    /// The Go type name, for error messages.
    pub type_name: &'static str,
    /// The fields.
    pub fields: Vec<(String, Data)>,
    /// Further fields, which are empty; JSON omits them.
    pub empty: Vec<(String, Data)>,
    /// Whether the JSON encoding escapes `<`, `>` and `&`, as Docker's tables do.
    pub escape_html: bool,
}

impl Data {
    /// Creates a string.
    pub fn str(text: impl AsRef<str>) -> Data {
        Data::Str(text.as_ref().into())
    }

    /// Creates a list of strings.
    pub fn strings<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Data {
        Data::List(Rc::new(texts.into_iter().map(Data::str).collect()))
    }

    /// Creates a struct with these fields.
    pub fn record(type_name: &'static str, fields: Vec<(String, Data)>) -> Data {
        Data::Struct(Rc::new(Record { type_name, fields, empty: Vec::new(), escape_html: false }))
    }

    /// The elements of a list, or of a nil slice.
    pub(super) fn as_list(&self) -> Option<&[Data]> {
        match self {
            Data::List(list) => Some(list),
            Data::NilList => Some(&[]),
            _ => None,
        }
    }

    /// The approximate length of the printed value, in bytes.
    pub(super) fn weight(&self) -> usize {
        let sum = |all: &mut dyn Iterator<Item = usize>| all.fold(2usize, usize::saturating_add);
        match self {
            Data::Str(s) => s.len(),
            Data::List(list) => sum(&mut list.iter().map(|item| item.weight() + 1)),
            Data::Map(map) => sum(&mut map.iter().map(|(key, item)| key.len() + item.weight() + 2)),
            Data::Struct(record) => sum(&mut record.fields.iter().map(|(key, item)| key.len() + item.weight() + 2)),
            _ => 8,
        }
    }

    /// Whether `if` treats the value as true.
    pub(super) fn truth(&self) -> bool {
        match self {
            Data::Missing | Data::Nil | Data::NilMap | Data::NilList => false,
            Data::Bool(b) => *b,
            Data::Int(n) => *n != 0,
            Data::Float(f) => *f != 0.0,
            Data::Str(s) => !s.is_empty(),
            Data::List(list) => !list.is_empty(),
            Data::Map(map) => !map.is_empty(),
            Data::Struct(_) => true,
        }
    }

    /// The Go type name.
    pub(super) fn type_name(&self) -> &'static str {
        let is_text = |d: &Data| matches!(d, Data::Str(_));
        match self {
            Data::Missing | Data::Nil => "interface {}",
            Data::NilMap => "map[string]string",
            Data::NilList => "[]string",
            Data::Bool(_) => "bool",
            Data::Int(_) => "int",
            Data::Float(_) => "float64",
            Data::Str(_) => "string",
            Data::List(list) if list.iter().all(is_text) => "[]string",
            Data::List(_) => "[]interface {}",
            Data::Map(map) if map.values().all(is_text) => "map[string]string",
            Data::Map(_) => "map[string]interface {}",
            Data::Struct(record) => record.type_name,
        }
    }

    /// Prints the value as `%v` does.
    pub(super) fn print(&self) -> String {
        let joined = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>().join(" ");
        match self {
            Data::Missing => "<no value>".into(),
            Data::Nil => "<nil>".into(),
            Data::NilMap => "map[]".into(),
            Data::NilList => "[]".into(),
            Data::Bool(b) => b.to_string(),
            Data::Int(n) => n.to_string(),
            Data::Float(f) => float::general(*f),
            Data::Str(s) => s.to_string(),
            Data::List(list) => format!("[{}]", joined(&mut list.iter().map(Data::print))),
            Data::Map(map) => {
                format!("map[{}]", joined(&mut map.iter().map(|(key, value)| format!("{key}:{}", value.print()))))
            }
            Data::Struct(record) => {
                format!("{{{}}}", joined(&mut record.fields.iter().map(|(_, value)| value.print())))
            }
        }
    }

    /// Encodes the value as Go's JSON encoder does, without a final newline.
    pub fn json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out, false);
        out
    }

    fn write_json(&self, out: &mut String, html: bool) {
        match self {
            Data::Missing | Data::Nil | Data::NilMap | Data::NilList => out.push_str("null"),
            Data::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Data::Int(n) => out.push_str(&n.to_string()),
            Data::Float(f) => out.push_str(&float::json(*f)),
            Data::Str(s) => write_json_string(s, out, html),
            Data::List(list) => {
                for (at, item) in list.iter().enumerate() {
                    out.push(if at == 0 { '[' } else { ',' });
                    item.write_json(out, html);
                }
                out.push_str(if list.is_empty() { "[]" } else { "]" });
            }
            Data::Map(map) => write_fields(&mut map.iter(), out, html),
            Data::Struct(record) => {
                write_fields(
                    &mut record.fields.iter().map(|(key, value)| (key, value)),
                    out,
                    html || record.escape_html,
                );
            }
        }
    }
}

fn write_fields<'a>(fields: &mut dyn Iterator<Item = (&'a String, &'a Data)>, out: &mut String, html: bool) {
    out.push('{');
    for (at, (key, value)) in fields.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_json_string(key, out, html);
        out.push(':');
        value.write_json(out, html);
    }
    out.push('}');
}

fn write_json_string(text: &str, out: &mut String, html: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{2028}' | '\u{2029}' => push_escape(c, out),
            '<' | '>' | '&' if html => push_escape(c, out),
            c if c < ' ' => push_escape(c, out),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn push_escape(c: char, out: &mut String) {
    // Writing to a String cannot fail.
    let _never = write!(out, "\\u{:04x}", u32::from(c));
}

impl From<&Value> for Data {
    /// Converts plain JSON; objects become maps.
    fn from(value: &Value) -> Data {
        match value {
            Value::Null => Data::Nil,
            Value::Bool(b) => Data::Bool(*b),
            Value::Number(n) => n.as_i64().map_or_else(|| Data::Float(n.as_f64().unwrap_or(f64::NAN)), Data::Int),
            Value::String(s) => Data::str(s),
            Value::Array(list) => Data::List(Rc::new(list.iter().map(Data::from).collect())),
            Value::Object(map) => {
                Data::Map(Rc::new(map.iter().map(|(key, value)| (key.clone(), Data::from(value))).collect()))
            }
        }
    }
}
