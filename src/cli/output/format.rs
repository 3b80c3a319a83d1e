//! Output format (`--format`) of listings: a table, a Go template per row, or JSON lines.

use crate::cli::Exit;
use crate::cli::output::stdout as output;
use crate::template::{Data, Error, Functions, MissingKey, Record, Template};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The columns of a listing.
pub(in crate::cli) struct Columns {
    /// The Go type name of a row, for error messages.
    pub type_name: &'static str,
    /// Field names, in alphabetical order, and their table headings.
    pub fields: &'static [(&'static str, &'static str)],
}

/// One row: the fields' texts in the order of [`Columns::fields`].
pub(in crate::cli) type Row = Vec<String>;

/// Prints the rows: as the default table for `table` or no format, as a table with headings for `table TEMPLATE`, as
/// one JSON object per line for `json`, else one execution of the template per row.
pub(in crate::cli) fn list(
    format: Option<&str>,
    default: &str,
    columns: &Columns,
    rows: Vec<Row>,
) -> anyhow::Result<()> {
    output::text(&render(format, default, columns, rows)?)
}

fn render(format: Option<&str>, default: &str, columns: &Columns, rows: Vec<Row>) -> anyhow::Result<String> {
    let format = match format {
        None | Some("" | "table") => format!("table {default}"),
        Some("json") => "{{json .}}".into(),
        Some(other) => other.into(),
    };
    let (is_table, text) = match format.strip_prefix("table") {
        Some(rest) => (true, rest),
        None => (false, format.as_str()),
    };
    let template = parse(&text.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n"))?;
    let mut out = String::new();
    for row in rows {
        let fields = columns.fields.iter().zip(row).map(|((name, _), text)| ((*name).to_owned(), Data::str(text)));
        let record =
            Record { type_name: columns.type_name, fields: fields.collect(), empty: vec![], escape_html: true };
        let line = template.execute(&Data::Struct(Rc::new(record)), MissingKey::NoValue, Functions::Data);
        out += &line.map_err(failed)?;
        out.push('\n');
    }
    if !is_table {
        return Ok(out);
    }
    let headings: BTreeMap<String, Data> =
        columns.fields.iter().map(|(name, heading)| ((*name).to_owned(), Data::str(heading))).collect();
    // A template may fail on the headings though it works on rows; then there is no heading.
    let head = template.execute(&Data::Map(Rc::new(headings)), MissingKey::NoValue, Functions::Headings);
    output::tabbed(&format!("{}\n{out}", head.unwrap_or_default()))
}

/// Parses a user's template. A syntax error has exit code 64.
pub(in crate::cli) fn parse(text: &str) -> anyhow::Result<Template> {
    Template::parse(text).map_err(failed)
}

/// Adds the exit code to a template error: 64 if it did not parse, 1 if it failed to execute.
pub(in crate::cli) fn failed(error: Error) -> anyhow::Error {
    let code = if matches!(error, Error::Parse(_)) { 64 } else { 1 };
    Exit::Text(code, error.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: Columns =
        Columns { type_name: "*formatter.imageContext", fields: &[("ID", "IMAGE ID"), ("Tag", "TAG")] };

    fn shown(format: &str) -> String {
        let rows = vec![vec!["abc".into(), "<none>".into()], vec!["defdefdefdef".into(), "1".into()]];
        render(Some(format), r"{{.Tag}}\t{{.ID}}", &COLUMNS, rows).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn rows_are_rendered_as_table_template_and_json() {
        assert_eq!(shown("table"), "TAG       IMAGE ID\n<none>    abc\n1         defdefdefdef\n");
        assert_eq!(
            shown(r"table {{.ID}}\t{{lower .Tag}}"),
            "IMAGE ID       TAG\nabc            <none>\ndefdefdefdef   1\n"
        );
        assert_eq!(shown("table {{.ID}}: {{len .Tag}}"), "IMAGE ID: 3\nabc: 6\ndefdefdefdef: 1\n");
        let json = "{\"ID\":\"abc\",\"Tag\":\"\\u003cnone\\u003e\"}\n{\"ID\":\"defdefdefdef\",\"Tag\":\"1\"}\n";
        assert_eq!(shown("json"), json);
        assert_eq!(shown("{{json .}}"), json);
        assert_eq!(shown(r"{{.ID}}\t{{json .Tag}}"), "abc\t\"<none>\"\ndefdefdefdef\t\"1\"\n");
        let nope = "template parsing error: template: :1:2: executing \"\" at <.Nope>: \
                    can't evaluate field Nope in type *formatter.imageContext";
        assert_eq!((shown("{{.Nope}}").as_str(), shown("table {{.Nope}}").as_str()), (nope, nope));
        assert_eq!(shown("{{.ID"), "template parsing error: template: :1: unclosed action");
    }
}
