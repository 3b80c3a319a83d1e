//! Config changes: applies Dockerfile instructions to an image's config (`config` in its document).

use super::Result;
use super::expand::{Lookup, expand};
use super::instruction::Change;
use super::words::Command;
use serde_json::{Map, Value, json};

/// Default shell for the shell form, unless the config names one.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
const PORT_KINDS: [&str; 3] = ["tcp", "udp", "sctp"];
/// Signal names of signal(7) that Docker accepts; real-time signals count from both ends.
const SIGNALS: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// A config that instructions are applied to, in order.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The config.
    pub fields: Map<String, Value>,
    /// Whether one of the instructions was a CMD; a new ENTRYPOINT drops the CMD of the base image.
    command_set: bool,
}

impl Config {
    /// Takes a config to change.
    pub fn new(fields: Map<String, Value>) -> Config {
        Config { fields, command_set: false }
    }

    /// Applies an instruction. Variables are looked up by `lookup`.
    pub fn apply(&mut self, change: &Change, escape: char, lookup: Lookup<'_>) -> Result<()> {
        let expand = |word: &str| expand(word, escape, lookup);
        let pairs = |pairs: &[(String, String)]| -> Result<Vec<(String, String)>> {
            pairs.iter().map(|(key, value)| Ok((expand(key)?, expand(value)?))).collect()
        };
        let one = |name: &str, rest: &str| match expand(rest)? {
            value if value.is_empty() => Err(format!("{name} requires exactly one argument")),
            value => Ok(value),
        };
        match change {
            Change::Cmd(command) => {
                let command = self.command_line(command);
                self.set("Cmd", json!(command));
                self.command_set = true;
            }
            Change::Entrypoint(command) => {
                let command = self.command_line(command);
                self.set("Entrypoint", json!(command));
                if !self.command_set {
                    self.fields.remove("Cmd");
                }
            }
            Change::Env(list) => self.env(pairs(list)?),
            Change::Expose(words) => self.expose(words, &expand)?,
            Change::Healthcheck(check) => self.set("Healthcheck", check.clone()),
            Change::Label(list) => {
                self.add("Labels", pairs(list)?.into_iter().map(|(key, value)| (key, json!(value))));
            }
            // It is no part of the config.
            Change::Maintainer(_) => {}
            Change::OnBuild(trigger) => {
                let mut list = self.list("OnBuild");
                list.push(json!(trigger));
                self.set("OnBuild", Value::from(list));
            }
            Change::Shell(list) => self.set("Shell", json!(list)),
            Change::StopSignal(signal) => {
                let signal = one("STOPSIGNAL", signal)?;
                known_signal(&signal)?;
                self.set("StopSignal", json!(signal));
            }
            Change::User(user) => self.set("User", json!(one("USER", user)?)),
            Change::Volume(paths) => self.volume(paths, &expand)?,
            Change::WorkDir(dir) => self.work_dir(&one("WORKDIR", dir)?),
        }
        Ok(())
    }

    /// Returns the value of a variable in the config's environment.
    pub fn variable(&self, name: &str) -> Option<String> {
        let entries = self.fields.get("Env").and_then(Value::as_array).into_iter().flatten();
        let mut pairs = entries.filter_map(|entry| entry.as_str()?.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    }

    /// Converts a command to a list: the JSON form as it is, the shell form wrapped in the shell.
    pub fn command_line(&self, command: &Command) -> Vec<String> {
        match command {
            Command::List(list) => list.clone(),
            Command::Text(text) => {
                let words = |list: &Value| {
                    list.as_array().map(|l| l.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect())
                };
                let own: Option<Vec<String>> = self.fields.get("Shell").and_then(words);
                let mut line = own.filter(|own| !own.is_empty()).unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
                line.push(text.clone());
                line
            }
        }
    }

    fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    fn env(&mut self, pairs: Vec<(String, String)>) {
        let mut list = self.list("Env");
        for (key, value) in pairs {
            let is_key = |old: &Value| old.as_str().and_then(|old| old.split('=').next()) == Some(key.as_str());
            let new = json!(format!("{key}={value}"));
            match list.iter_mut().find(|old| is_key(old)) {
                Some(old) => *old = new,
                None => list.push(new),
            }
        }
        self.set("Env", Value::from(list));
    }

    fn expose(&mut self, words: &[String], expand: &dyn Fn(&str) -> Result<String>) -> Result<()> {
        let mut ports = Vec::new();
        for word in words {
            for spec in expand(word)?.split_whitespace() {
                ports.extend(port_range(spec)?);
            }
        }
        if ports.is_empty() {
            return Err("EXPOSE requires at least one argument".into());
        }
        self.add("ExposedPorts", ports.into_iter().map(|port| (port, json!({}))));
        Ok(())
    }

    fn volume(&mut self, paths: &[String], expand: &dyn Fn(&str) -> Result<String>) -> Result<()> {
        for path in paths {
            let path = expand(path)?;
            if path.trim().is_empty() {
                return Err("VOLUME specified can not be an empty string".into());
            }
            self.add("Volumes", [(path.trim().to_owned(), json!({}))]);
        }
        Ok(())
    }

    fn work_dir(&mut self, dir: &str) {
        let before = self.fields.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
        let whole = if dir.starts_with('/') { dir.to_owned() } else { format!("/{before}/{dir}") };
        let clean = format!("/{}", clean_path(&whole));
        self.set("WorkingDir", json!(clean));
    }

    /// Returns the config's list of that name; empty if it is missing.
    fn list(&self, name: &str) -> Vec<Value> {
        self.fields.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// Adds entries to the config's object of that name.
    fn add(&mut self, name: &str, entries: impl IntoIterator<Item = (String, Value)>) {
        let mut all = self.fields.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        all.extend(entries);
        self.set(name, Value::from(all));
    }
}

/// Normalizes a path lexically, relative to the root: without `.`, `..`, repeated and outer slashes.
pub fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
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
