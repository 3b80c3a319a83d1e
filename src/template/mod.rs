//! Go's text/template, as `--format` knows it: parsing, execution, Go's printing of values and Docker's functions.
//!
//! Texts, positions and errors are those of Go, compared with the real `docker` client over a long list of templates
//! (`recorded.json`). What differs on purpose: nesting, output and work are bounded, so that no template exhausts the
//! stack or the memory; complex numbers and hexadecimal floats are not known.
//!
//! No I/O and nothing of plyfs: a template takes [`Data`] and gives text.

mod data;
mod exec;
mod float;
mod functions;
mod lex;
mod node;
mod parse;
mod printf;

pub use data::{Data, Record};
pub use printf::quote;

use node::Tree;

/// Why a template did not work; prints as Go's whole message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The text is no template.
    #[error("template parsing error: {0}")]
    Parse(String),
    /// It does not fit what it was given.
    #[error("template parsing error: {0}")]
    Exec(String),
}

/// What becomes of a key that a map does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissingKey {
    /// It prints as `<no value>`.
    NoValue,
    /// It is an error.
    Error,
}

/// Which functions a template may call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Functions {
    /// Docker's, for data.
    Data,
    /// Docker's for a table's headings: those that would change a text leave it as it is.
    Headings,
}

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    tree: Tree,
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Template, Error> {
        parse::parse(text).map(|tree| Template { tree }).map_err(Error::Parse)
    }

    /// Runs it over `data`. On an error nothing of the output is returned.
    pub fn execute(&self, data: &Data, missing: MissingKey, functions: Functions) -> Result<String, Error> {
        exec::execute(&self.tree, data, missing, functions).map_err(Error::Exec)
    }
}

#[cfg(test)]
mod tests {
    // Against what the real `docker` client printed.

    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::rc::Rc;

    /// `docker image inspect -f TEMPLATE` of docker 28 on the image in `data`: each template with what it printed, or with
    /// its error and exit code. Left out is what plyfs has otherwise on purpose: how many levels of templates may call each
    /// other, complex numbers, and the type that Go gives to numbers of unknown origin.
    const RECORDED: &str = include_str!("recorded.json");

    /// Docker tries the data as a thing with known fields first, and as a plain map when that fails.
    fn as_docker(text: &str, data: &Value) -> Result<String, Error> {
        let template = Template::parse(text)?;
        let typed = template.execute(&typed(data), MissingKey::NoValue, Functions::Data);
        typed.or_else(|_| template.execute(&Data::from(data), MissingKey::Error, Functions::Data))
    }

    fn record(value: &Value, name: &'static str, known: &[&str]) -> Data {
        let field = |key: &&str| {
            let inner = match (*key, &value[*key]) {
                ("Config", inner) => {
                    record(inner, "Config", &["User", "ExposedPorts", "Env", "Cmd", "Volumes", "Entrypoint", "Labels"])
                }
                ("GraphDriver", inner) => record(inner, "Driver", &["Data", "Name"]),
                ("RootFS", inner) => record(inner, "RootFS", &["Type", "Layers"]),
                ("Volumes" | "Data", Value::Null) => Data::NilMap,
                ("Entrypoint", Value::Null) => Data::NilList,
                ("ExposedPorts", Value::Object(ports)) => {
                    let port = |(key, _): (&String, _)| (key.clone(), record(&Value::Null, "struct {}", &[]));
                    Data::Map(Rc::new(ports.iter().map(port).collect()))
                }
                (_, inner) => Data::from(inner),
            };
            ((*key).to_owned(), inner)
        };
        Data::record(name, known.iter().map(field).collect())
    }

    fn typed(data: &Value) -> Data {
        let known =
            ["Id", "RepoTags", "RepoDigests", "Created", "Author", "Config", "Os", "Size", "GraphDriver", "RootFS"];
        record(data, "image.InspectResponse", &known)
    }

    #[test]
    fn as_the_docker_client_prints() {
        let recorded: Value = serde_json::from_str(RECORDED).unwrap();
        let mut wrong = Vec::new();
        for case in recorded["cases"].as_array().unwrap() {
            let text = case[0].as_str().unwrap();
            let want = match (case[1].as_str(), case[2].as_str(), case[3].as_i64()) {
                (Some(printed), _, _) => Ok(printed.to_owned()),
                (_, Some(message), Some(64)) => Err((true, message.to_owned())),
                (_, message, _) => Err((false, message.unwrap().to_owned())),
            };
            let got = as_docker(text, &recorded["data"])
                .map_err(|error| (matches!(error, Error::Parse(_)), error.to_string()));
            if got != want {
                wrong.push(format!("{text}\n  want {want:?}\n  got  {got:?}"));
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    #[test]
    fn headings_leave_texts_alone() {
        let template = Template::parse(r#"{{upper .A}} {{json .B}} {{truncate .A 1}} {{pad .A 1 1}}{{.C}}"#).unwrap();
        let data = Data::from(&serde_json::json!({"A": "Aa", "B": "Bb"}));
        let text = template.execute(&data, MissingKey::NoValue, Functions::Headings).unwrap();
        assert_eq!(text, "Aa Bb Aa Aa<no value>");
    }

    #[test]
    fn lines_and_columns() {
        let error = |text: &str| as_docker(text, &serde_json::json!({})).unwrap_err().to_string();
        let head = "template parsing error: template: ";
        assert_eq!(error("a\nb{{.X}}"), format!("{head}:2:3: executing \"\" at <.X>: map has no entry for key \"X\""));
        assert_eq!(error("a\n{{x}}"), format!("{head}:2: function \"x\" not defined"));
        assert_eq!(error("{{if 1\n}}"), format!("{head}:2: unexpected EOF"));
        assert_eq!(error("{{.X\n"), format!("{head}:2: unclosed action started at :1"));
    }

    #[test]
    fn nothing_is_without_bounds() {
        let run = |text: &str| as_docker(text, &serde_json::json!({}));
        let deep = |n: usize| format!("{}1{}", "{{if (1)}}".repeat(n), "{{end}}".repeat(n));
        assert!(run(&deep(20)).is_ok());
        assert!(run(&deep(10_000)).unwrap_err().to_string().contains("nested deeper than"));
        assert!(run(&format!("{{{{{}1}}}}", "(".repeat(100_000))).is_err());
        assert!(run(&"{{if 1}}{{else ".repeat(5000)).is_err());
        let forever = run(r#"{{define "r"}}{{template "r"}}{{end}}{{template "r"}}"#).unwrap_err().to_string();
        assert!(
            forever.contains("executing \"r\" at <{{template \"r\"}}>: exceeded maximum template depth"),
            "{forever}"
        );
        assert!(run("{{range 1000000000}}{{end}}").unwrap_err().to_string().contains("exceeded"));
        assert!(run("{{range 1000000}}{{pad \"x\" 100000 1}}{{end}}").unwrap_err().to_string().contains("longer than"));
        assert!(run("{{pad \"x\" 999999999 1}}").is_err());
        let double = |by: &str| format!("{{{{$x := \"ab\"}}}}{{{{range 60}}}}{{{{$x = {by}}}}}{{{{end}}}}");
        for by in ["print $x $x", "printf \"%s%s\" $x $x", "join (split $x \"b\") $x", "json (print $x $x)"] {
            assert!(run(&double(by)).unwrap_err().to_string().contains("too long"), "{by}");
        }
        assert!(run("{{printf \"%999999999d\" 1}}").unwrap().starts_with("%!d(BADINDEX)"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn no_text_makes_it_panic(text in r#"(\{\{-?|-?\}\}|[ .|()$"`'%,:=\-0-9]|if|end|else|range|with|define|template|index|slice|printf|len|eq|json|nil|true|\.X|\.L|"a"|\$x|\PC|\n){0,24}"#) {
            let data = serde_json::json!({"X": {"a": 1}, "L": ["é", 1.5, null]});
            // Any outcome is right, as long as there is one.
            let _outcome = as_docker(&text, &data);
        }

        #[test]
        fn no_printf_makes_it_panic(format in r#"(%|[-+# 0*.\[\]0-9]|[vTtdxXqcUsefg]|\PC){0,12}"#, n in any::<i64>(), f in any::<f64>(), s in "\\PC{0,5}") {
            let args = [Data::Int(n), Data::Float(f), Data::str(s), Data::Nil, Data::strings(["a"])];
            let _outcome = printf::sprintf(&format, &args);
        }
    }
}
