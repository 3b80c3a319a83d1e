//! Dockerfiles: parsing, variables, and the instructions that change an image's config (the Dockerfile reference).
//!
//! [`parse`] reads a whole Dockerfile for `build`; [`apply`] applies single instructions for `--change` of `import` and
//! `commit`. Both use the same parser. Docker's parser, the one of BuildKit, is followed also where the reference is
//! silent. Pure: nothing is read or run here.

mod config;
mod expand;
mod healthcheck;
mod instruction;
mod lexer;
mod words;

pub use config::{Config, clean_path};
pub use expand::{Lookup, expand, expand_heredoc};
pub use instruction::{Base, Change, CopyFiles, Instruction, Run, Source, What};
pub use lexer::Heredoc;
pub use words::Command;

use serde_json::{Map, Value};

/// Error of an instruction for `--change`. Prints as one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("change `{line}`: {why}")]
pub struct BadChange {
    /// The line as given.
    line: String,
    /// The reason.
    why: String,
}

/// Error in a Dockerfile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct SyntaxError {
    /// Line number of the instruction, from 1.
    pub line: usize,
    /// The reason.
    pub why: String,
}

type Result<T> = std::result::Result<T, String>;

/// A Dockerfile.
#[derive(Clone, PartialEq, Debug)]
pub struct Dockerfile {
    /// The escape character.
    pub escape: char,
    /// Build arguments before the first `FROM`, with their defaults.
    pub args: Vec<(String, Option<String>)>,
    /// The stages, at least one.
    pub stages: Vec<Stage>,
}

/// A build stage.
#[derive(Clone, PartialEq, Debug)]
pub struct Stage {
    /// Line number of its `FROM`.
    pub line: usize,
    /// Its `FROM`.
    pub from: Base,
    /// Its other instructions.
    pub instructions: Vec<Instruction>,
}

/// Parses a Dockerfile.
pub fn parse(text: &str) -> std::result::Result<Dockerfile, SyntaxError> {
    let escape = lexer::escape_of(text)?;
    let (mut args, mut stages) = (Vec::new(), Vec::<Stage>::new());
    for line in lexer::lines(text, escape)? {
        let wrong = |why| SyntaxError { line: line.first, why };
        let instruction = instruction::parse(&line, escape).map_err(wrong)?;
        match (instruction.what, stages.last_mut()) {
            (What::From(from), _) => stages.push(Stage { line: line.first, from, instructions: Vec::new() }),
            (What::Arg(more), None) => args.extend(more),
            (what, Some(stage)) => stage.instructions.push(Instruction { what, ..instruction }),
            (_, None) => return Err(wrong("no build stage in current context: FROM must come first".into())),
        }
    }
    if stages.is_empty() {
        let why = if args.is_empty() { "file with no instructions" } else { "the file has no FROM" };
        return Err(SyntaxError { line: 1, why: why.into() });
    }
    Ok(Dockerfile { escape, args, stages })
}

/// Whether a command is nothing but one heredoc operator, so that the heredoc is the script.
pub fn is_heredoc(text: &str) -> bool {
    lexer::operator(text.trim()).is_some()
}

/// Parses the instruction of an `ONBUILD` trigger, for a `FROM` in that line.
pub fn parse_trigger(text: &str, line: usize) -> std::result::Result<Instruction, SyntaxError> {
    let wrong = |why| SyntaxError { line, why };
    let mut lines = lexer::lines(text, '\\').map_err(|e| wrong(e.why))?.into_iter();
    let (Some(first), None) = (lines.next(), lines.next()) else {
        return Err(wrong(format!("the trigger `{text}` of the base image is no instruction")));
    };
    let parsed = instruction::parse(&first, '\\').map_err(|why| wrong(format!("trigger `{text}`: {why}")))?;
    Ok(Instruction { first: line, last: line, ..parsed })
}

/// Applies changes, in order, to a config: the object under `config` in an image's document.
pub fn apply(config: &mut Map<String, Value>, changes: &[String]) -> std::result::Result<(), BadChange> {
    let mut changed = Config::new(std::mem::take(config));
    let done = changes.iter().try_for_each(|change| apply_lines(&mut changed, change));
    *config = changed.fields;
    done
}

fn apply_lines(config: &mut Config, change: &str) -> std::result::Result<(), BadChange> {
    let wrong = |line: &str, why| BadChange { line: line.to_owned(), why };
    for line in lexer::lines(change, '\\').map_err(|e| wrong(change, e.why))? {
        let split = lexer::split_instruction(&line.text, '\\');
        let is_change =
            !matches!(split.name.as_str(), "ADD" | "ARG" | "COPY" | "FROM" | "MAINTAINER" | "RUN" | "SHELL");
        if !is_change || !instruction::is_known(&split.name) {
            return Err(wrong(&line.text, format!("{} is not a valid change command", split.name)));
        }
        let before = config.clone();
        let change = instruction::change(&split, '\\');
        let done = change.and_then(|change| config.apply(&change, '\\', &|name| before.variable(name)));
        done.map_err(|why| wrong(&line.text, why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn changed(changes: &[&str]) -> std::result::Result<Value, String> {
        let mut config = Map::new();
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        apply(&mut config, &changes).map(|()| Value::from(config)).map_err(|e| e.to_string())
    }

    #[test]
    fn commands_in_both_forms() {
        let both = changed(&["CMD echo  \"hi\" $A", "entrypoint [\"/init\", \"-x\"]"]).unwrap();
        assert_eq!(both, json!({ "Cmd": ["/bin/sh", "-c", "echo  \"hi\" $A"], "Entrypoint": ["/init", "-x"] }));
        // Invalid JSON is the shell form, as in Docker.
        assert_eq!(changed(&["CMD ['a']"]).unwrap(), json!({ "Cmd": ["/bin/sh", "-c", "['a']"] }));
        assert_eq!(changed(&["CMD []"]).unwrap(), json!({ "Cmd": [] }));
        let mut config = json!({ "Cmd": ["old"], "Shell": ["/bin/bash", "-ec"] }).as_object().unwrap().clone();
        apply(&mut config, &["ENTRYPOINT exec top".into()]).unwrap();
        let want = json!({ "Shell": ["/bin/bash", "-ec"], "Entrypoint": ["/bin/bash", "-ec", "exec top"] });
        assert_eq!(Value::from(config), want);
    }

    #[test]
    fn variables_of_the_config_itself() {
        let all = changed(&[
            "ENV A=1 B=\"two words\" C=a\\ b",
            "ENV D the  rest of it",
            "ENV A=2 E=$A",
            "LABEL x.y=\"${B}\" '$A'=${nope:-none}",
            "USER $A:${D:+5}",
            "WORKDIR /srv/$A",
            "WORKDIR ../b/./c",
            "VOLUME /v$A [x]",
            "VOLUME [\"/w w\"]",
            "EXPOSE 80 $A$A-23/UDP",
            "ONBUILD RUN echo $A",
            "STOPSIGNAL SIGRTMIN+3",
        ]);
        let want = json!({
            "Env": ["A=2", "B=two words", "C=a b", "D=the  rest of it", "E=1"],
            "Labels": { "x.y": "two words", "$A": "none" },
            "User": "2:5",
            "WorkingDir": "/srv/b/c",
            "Volumes": { "/v2": {}, "[x]": {}, "/w w": {} },
            "ExposedPorts": { "80/tcp": {}, "22/udp": {}, "23/udp": {} },
            "OnBuild": ["RUN echo $A"],
            "StopSignal": "SIGRTMIN+3",
        });
        assert_eq!(all.unwrap(), want);
    }

    #[test]
    fn lines_as_in_a_dockerfile() {
        let one = changed(&["# nothing\n\nENV A=1 \\\n  # between\n    B=2\nUSER me"]).unwrap();
        assert_eq!(one, json!({ "Env": ["A=1", "B=2"], "User": "me" }));
        let mut config = json!({ "Env": null, "Volumes": null }).as_object().unwrap().clone();
        apply(&mut config, &["ENV A=1".into(), "VOLUME /x".into()]).unwrap();
        assert_eq!(Value::from(config), json!({ "Env": ["A=1"], "Volumes": { "/x": {} } }));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, why) in [
            ("RUN make", "RUN is not a valid change command"),
            ("from scratch", "FROM is not a valid change command"),
            ("CMD", "CMD requires at least one argument"),
            ("CMD [1]", "when using JSON array syntax, arrays must be comprised of strings only"),
            ("CMD --x y", "unknown flag: --x"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV A", "ENV must have two arguments"),
            ("ENV A=1 B", "Syntax error - can't find = in \"B\". Must be of the form: name=value"),
            ("ENV =1", "ENV names can not be blank"),
            ("LABEL a=\"b", "unexpected end of statement while looking for matching double-quote"),
            ("USER", "USER requires exactly one argument"),
            ("USER $nope", "USER requires exactly one argument"),
            ("USER ${A", "syntax error: missing '}'"),
            ("USER ${A^x}", "unsupported modifier (^) in substitution"),
            ("USER ${A:?not there}", "A: not there"),
            ("EXPOSE", "EXPOSE requires at least one argument"),
            ("EXPOSE 70000", "invalid containerPort: 70000"),
            ("EXPOSE 9-8", "invalid containerPort: 9-8"),
            ("EXPOSE 1/icmp", "invalid proto: icmp"),
            ("FOO x", "FOO is not a valid change command"),
            ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
            ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("STOPSIGNAL SIGNOPE", "invalid signal: SIGNOPE"),
            ("STOPSIGNAL 65", "invalid signal: 65"),
        ] {
            assert_eq!(changed(&[line]), Err(format!("change `{line}`: {why}")));
        }
    }

    #[test]
    fn stages_and_their_instructions() {
        let text = "ARG V=1 W\nFROM a:$V AS Build\nRUN --mount=type=cache,target=/c --network=none x\nfrom scratch\n\
            COPY --from=build --chown=1:2 --link [\"/a b\", \"/c\"]\nADD <<E a /d/\nhi\nE\nworkdir  x\n";
        let file = parse(text).unwrap();
        assert_eq!(file.args, [("V".to_owned(), Some("1".to_owned())), ("W".to_owned(), None)]);
        let [build, last] = &file.stages[..] else { panic!("{file:?}") };
        assert_eq!((build.line, build.from.image.as_str(), build.from.name.as_deref()), (2, "a:$V", Some("build")));
        let What::Run(run) = &build.instructions[0].what else { panic!("{build:?}") };
        assert_eq!(run.command, Command::Text("x".into()));
        assert_eq!(run.mounts[0][1], ("target".to_owned(), Some("/c".to_owned())));
        let What::Copy(copy) = &last.instructions[0].what else { panic!("{last:?}") };
        assert_eq!((copy.from.as_deref(), copy.chown.as_deref(), copy.link), (Some("build"), Some("1:2"), true));
        assert_eq!((&copy.sources[..], copy.target.as_str()), (&[Source::Path("/a b".into())][..], "/c"));
        let What::Copy(add) = &last.instructions[1].what else { panic!("{last:?}") };
        assert!(add.is_add && matches!(&add.sources[..], [Source::Heredoc(_), Source::Path(_)]));
        assert_eq!((last.instructions[1].first, last.instructions[1].last), (6, 8));
        assert_eq!(last.instructions[2].text, "WORKDIR x");
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line, why) in [
            ("", 1, "file with no instructions"),
            ("ARG a", 1, "the file has no FROM"),
            ("RUN x", 1, "no build stage in current context: FROM must come first"),
            ("FROM a\n\nFOO x", 3, "unknown instruction: FOO"),
            ("FROM a\nRUNN x", 2, "unknown instruction: RUNN (did you mean RUN?)"),
            ("FROM", 1, "FROM requires either one or three arguments"),
            (
                "FROM a AS 1x",
                1,
                "invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
            ),
            (
                "FROM a\nCOPY x",
                2,
                "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
            ),
            ("FROM a\nCOPY --chwon=1 x y", 2, "unknown flag: --chwon"),
            ("FROM a\nADD --from=x a b", 2, "unknown flag: --from"),
            ("FROM a\nRUN", 2, "RUN requires at least one argument"),
            ("FROM a\nRUN [1]", 2, "when using JSON array syntax, arrays must be comprised of strings only"),
            ("FROM a\nSHELL sh", 2, "SHELL requires the arguments to be in JSON form"),
            ("FROM a\nARG =1", 2, "ARG names can not be blank"),
            ("FROM a\nENV a", 2, "ENV must have two arguments"),
            ("FROM a\nRUN --network=x y", 2, "invalid network mode \"x\": use default, host or none"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.line, error.why.as_str()), (line, why), "{text}");
        }
    }
}
