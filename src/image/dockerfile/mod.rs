//! Dockerfile instructions that change an image's config, for `--change` of `import` and `commit`.
//!
//! Lines are read as Docker reads them: in order, with comments, continued lines, quotes and variables from the
//! config's own environment. Instructions that need a build (`RUN`, `COPY`, ...) are errors that name them.

mod healthcheck;
mod lexer;

use lexer::{Form, expand, form, pairs};
use serde_json::{Map, Value, json};

/// Error of an instruction. Prints as one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("change `{line}`: {why}")]
pub struct BadChange {
    /// The line as given.
    line: String,
    /// The reason.
    why: String,
}

type Result<T> = std::result::Result<T, String>;

/// Default shell for the shell form, unless the config names one.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
const PORT_KINDS: [&str; 3] = ["tcp", "udp", "sctp"];
/// Signal names of signal(7) that Docker accepts; real-time signals count from both ends.
const SIGNALS: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Applies changes, in order, to a config: the object under `config` in an image's document.
pub fn apply(config: &mut Map<String, Value>, changes: &[String]) -> std::result::Result<(), BadChange> {
    let mut changed = Changed { config, command_set: false };
    for line in lexer::lines(changes) {
        changed.make(&line).map_err(|why| BadChange { line, why })?;
    }
    Ok(())
}

struct Changed<'a> {
    config: &'a mut Map<String, Value>,
    /// Whether one of the changes was a CMD; a new ENTRYPOINT drops the CMD of the base image.
    command_set: bool,
}

impl Changed<'_> {
    fn make(&mut self, line: &str) -> Result<()> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (name, rest) = (name.to_ascii_uppercase(), rest.trim());
        if name != "HEALTHCHECK" && rest.starts_with("--") {
            return Err(format!("unknown flag: {}", rest.split_whitespace().next().unwrap_or_default()));
        }
        match name.as_str() {
            "CMD" => self.command(rest)?,
            "ENTRYPOINT" => self.entrypoint(rest)?,
            "ENV" => self.env(rest)?,
            "EXPOSE" => self.expose(rest)?,
            "HEALTHCHECK" => drop(self.config.insert("Healthcheck".into(), healthcheck::check(rest)?)),
            "LABEL" => self.label(rest)?,
            "ONBUILD" => self.on_build(rest)?,
            "STOPSIGNAL" => {
                let signal = self.one("STOPSIGNAL", rest)?;
                known_signal(&signal)?;
                self.config.insert("StopSignal".into(), json!(signal));
            }
            "USER" => {
                let user = self.one("USER", rest)?;
                self.config.insert("User".into(), json!(user));
            }
            "VOLUME" => self.volume(rest)?,
            "WORKDIR" => self.work_dir(rest)?,
            other => return Err(format!("{other} is not a valid change command")),
        }
        Ok(())
    }

    fn command(&mut self, rest: &str) -> Result<()> {
        let command = self.run_by("CMD", rest)?;
        self.config.insert("Cmd".into(), command);
        self.command_set = true;
        Ok(())
    }

    fn entrypoint(&mut self, rest: &str) -> Result<()> {
        let command = self.run_by("ENTRYPOINT", rest)?;
        self.config.insert("Entrypoint".into(), command);
        if !self.command_set {
            self.config.remove("Cmd");
        }
        Ok(())
    }

    /// Converts a command to a list: the JSON form as it is, the shell form wrapped in the shell.
    fn run_by(&self, name: &str, rest: &str) -> Result<Value> {
        Ok(match form(rest)? {
            Form::List(list) => json!(list),
            Form::Text("") => return Err(format!("{name} requires at least one argument")),
            Form::Text(text) => {
                let own = self.config.get("Shell").and_then(Value::as_array).filter(|shell| !shell.is_empty());
                let mut command = own.cloned().unwrap_or_else(|| SHELL.map(Value::from).to_vec());
                command.push(json!(text));
                Value::from(command)
            }
        })
    }

    fn env(&mut self, rest: &str) -> Result<()> {
        let pairs = self.expanded(pairs("ENV", rest)?)?;
        let mut list = self.list("Env");
        for (key, value) in pairs {
            let is_key = |old: &Value| old.as_str().and_then(|old| old.split('=').next()) == Some(key.as_str());
            let new = json!(format!("{key}={value}"));
            match list.iter_mut().find(|old| is_key(old)) {
                Some(old) => *old = new,
                None => list.push(new),
            }
        }
        self.config.insert("Env".into(), Value::from(list));
        Ok(())
    }

    fn label(&mut self, rest: &str) -> Result<()> {
        let pairs = self.expanded(pairs("LABEL", rest)?)?;
        self.add("Labels", pairs.into_iter().map(|(key, value)| (key, json!(value))));
        Ok(())
    }

    fn expanded(&self, pairs: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
        pairs.into_iter().map(|(key, value)| Ok((self.expand(&key)?, self.expand(&value)?))).collect()
    }

    fn expose(&mut self, rest: &str) -> Result<()> {
        let mut ports = Vec::new();
        for word in rest.split_whitespace() {
            for spec in self.expand(word)?.split_whitespace() {
                ports.extend(port_range(spec)?);
            }
        }
        if ports.is_empty() {
            return Err("EXPOSE requires at least one argument".into());
        }
        self.add("ExposedPorts", ports.into_iter().map(|port| (port, json!({}))));
        Ok(())
    }

    fn on_build(&mut self, rest: &str) -> Result<()> {
        let trigger = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        match trigger.as_str() {
            "" => return Err("ONBUILD requires at least one argument".into()),
            "ONBUILD" => return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into()),
            "MAINTAINER" | "FROM" => return Err(format!("{trigger} isn't allowed as an ONBUILD trigger")),
            _ => {}
        }
        let mut list = self.list("OnBuild");
        list.push(json!(rest));
        self.config.insert("OnBuild".into(), Value::from(list));
        Ok(())
    }

    fn volume(&mut self, rest: &str) -> Result<()> {
        let paths = match form(rest)? {
            Form::List(list) => list,
            Form::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        };
        if paths.is_empty() {
            return Err("VOLUME requires at least one argument".into());
        }
        for path in paths {
            let path = self.expand(&path)?;
            if path.trim().is_empty() {
                return Err("VOLUME specified can not be an empty string".into());
            }
            self.add("Volumes", [(path.trim().to_owned(), json!({}))]);
        }
        Ok(())
    }

    fn work_dir(&mut self, rest: &str) -> Result<()> {
        let dir = self.one("WORKDIR", rest)?;
        let before = self.config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
        let whole = if dir.starts_with('/') { dir } else { format!("/{before}/{dir}") };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let clean = format!("/{}", parts.join("/"));
        self.config.insert("WorkingDir".into(), json!(clean));
        Ok(())
    }

    /// Returns the config's list of that name; empty if it is missing.
    fn list(&self, name: &str) -> Vec<Value> {
        self.config.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// Adds entries to the config's object of that name.
    fn add(&mut self, name: &str, entries: impl IntoIterator<Item = (String, Value)>) {
        let mut all = self.config.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        all.extend(entries);
        self.config.insert(name.to_owned(), Value::from(all));
    }

    /// Returns the rest of the line as one argument.
    fn one(&self, name: &str, rest: &str) -> Result<String> {
        let value = self.expand(rest)?;
        if value.is_empty() { Err(format!("{name} requires exactly one argument")) } else { Ok(value) }
    }

    fn expand(&self, word: &str) -> Result<String> {
        expand(word, &|name| {
            let entries = self.config.get("Env").and_then(Value::as_array).into_iter().flatten();
            let mut pairs = entries.filter_map(|entry| entry.as_str()?.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        })
    }
}

/// Parses `80`, `80/udp` or `8000-8010/tcp` to single ports with their protocol.
fn port_range(spec: &str) -> Result<Vec<String>> {
    let (range, kind) = spec.split_once('/').unwrap_or((spec, "tcp"));
    let kind = kind.to_ascii_lowercase();
    if !PORT_KINDS.contains(&kind.as_str()) {
        return Err(format!("invalid proto: {kind}"));
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first..=last).map(|port| format!("{port}/{kind}")).collect()),
        _ => Err(format!("invalid containerPort: {range}")),
    }
}

/// Checks a signal: its number, or its name with or without `SIG`.
fn known_signal(text: &str) -> Result<()> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |from: &str, most: u32| {
        let steps = name.strip_prefix(from).and_then(|n| n.parse::<u32>().ok());
        steps.is_some_and(|n| (1..=most).contains(&n))
    };
    let number = text.parse::<u32>().is_ok_and(|n| (1..=64).contains(&n));
    if number || SIGNALS.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14) {
        Ok(())
    } else {
        Err(format!("invalid signal: {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("USER ${A%x}", "unsupported modifier (%) in substitution"),
            ("USER ${A:?not there}", "A: not there"),
            ("EXPOSE", "EXPOSE requires at least one argument"),
            ("EXPOSE 70000", "invalid containerPort: 70000"),
            ("EXPOSE 9-8", "invalid containerPort: 9-8"),
            ("EXPOSE 1/icmp", "invalid proto: icmp"),
            ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
            ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("STOPSIGNAL SIGNOPE", "invalid signal: SIGNOPE"),
            ("STOPSIGNAL 65", "invalid signal: 65"),
        ] {
            assert_eq!(changed(&[line]), Err(format!("change `{line}`: {why}")));
        }
    }
}
