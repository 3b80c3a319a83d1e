//! Go templates (text/template) for `--format`: parser, executor, Go's printing of values and Docker's functions.
//!
//! Output, error messages and positions are those of Go, tested against recorded output of the `docker` client
//! (`recorded.json`). Deliberate differences: nesting, output and steps are bounded, so that no template exhausts the
//! stack or memory; complex numbers and hexadecimal floats are not supported.
//!
//! Independent of the rest of plyfs, without I/O: a template takes [`Data`] and returns text.

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

/// Maximum length of the output, and of any intermediate string, in bytes.
const OUTPUT_MAX: usize = 16 << 20;

/// A template error; displays Go's full message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A syntax error.
    #[error("template parsing error: {0}")]
    Parse(String),
    /// An error during execution: the template does not fit the data.
    #[error("template parsing error: {0}")]
    Exec(String),
}

/// Handling of missing map keys (Go's option `missingkey`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissingKey {
    /// The value prints as `<no value>`.
    NoValue,
    /// A missing key is an error.
    Error,
}

/// The set of functions that a template may call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Functions {
    /// Docker's, for data.
    Data,
    /// Docker's for table headings: functions that would change a string return it unchanged.
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

    /// Executes the template on `data`. On an error no output is returned.
    pub fn execute(&self, data: &Data, missing: MissingKey, functions: Functions) -> Result<String, Error> {
        exec::execute(&self.tree, data, missing, functions).map_err(Error::Exec)
    }
}

#[cfg(test)]
mod tests {
    // Compared with output of the `docker` client.

    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::rc::Rc;

    /// `docker image inspect -f TEMPLATE` of docker 28 on the image in `data`: each template with its output, or its
    /// error and exit code. Omits the deliberate differences: maximum template depth, complex numbers, and the Go
    /// type of numbers in untyped JSON.
    const RECORDED: &str = include_str!("recorded.json");

    /// Executes as Docker does: with the data as a struct first, and if that fails, as a map.
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
    fn output_and_errors_match_the_docker_client() {
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
    fn functions_leave_headings_unchanged() {
        let template = Template::parse(r#"{{upper .A}} {{json .B}} {{truncate .A 1}} {{pad .A 1 1}}{{.C}}"#).unwrap();
        let data = Data::from(&serde_json::json!({"A": "Aa", "B": "Bb"}));
        let text = template.execute(&data, MissingKey::NoValue, Functions::Headings).unwrap();
        assert_eq!(text, "Aa Bb Aa Aa<no value>");
    }

    #[test]
    fn errors_name_line_and_column() {
        let error = |text: &str| as_docker(text, &serde_json::json!({})).unwrap_err().to_string();
        let head = "template parsing error: template: ";
        assert_eq!(error("a\nb{{.X}}"), format!("{head}:2:3: executing \"\" at <.X>: map has no entry for key \"X\""));
        assert_eq!(error("a\n{{x}}"), format!("{head}:2: function \"x\" not defined"));
        assert_eq!(error("{{if 1\n}}"), format!("{head}:2: unexpected EOF"));
        assert_eq!(error("{{.X\n"), format!("{head}:2: unclosed action started at :1"));
    }

    #[test]
    fn nesting_output_and_steps_are_bounded() {
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
            // Any result is accepted, but no panic.
            let _outcome = as_docker(&text, &data);
        }

        #[test]
        fn no_printf_makes_it_panic(format in r#"(%|[-+# 0*.\[\]0-9]|[vTtdxXqcUsefg]|\PC){0,12}"#, n in any::<i64>(), f in any::<f64>(), s in "\\PC{0,5}") {
            let args = [Data::Int(n), Data::Float(f), Data::str(s), Data::Nil, Data::strings(["a"])];
            let _outcome = printf::sprintf(&format, &args);
        }
    }
}
