//! Dockerfile instructions: parsed, and with their variables still in place.

use super::lexer::{self, Heredoc, Line, Split, flags, split_instruction};
use super::words::{self, Command, command, pairs};
use super::{Result, healthcheck};
use serde_json::Value;

/// An instruction.
#[derive(Clone, PartialEq, Debug)]
pub struct Instruction {
    /// Line number of its beginning, from 1.
    pub first: usize,
    /// Line number of its end, heredocs included.
    pub last: usize,
    /// The instruction on one line, without heredocs, its name in upper case.
    pub text: String,
    /// What it does.
    pub what: What,
}

/// What an instruction does.
#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// `FROM`: begins a stage.
    From(Base),
    /// `ARG`: build arguments with their defaults.
    Arg(Vec<(String, Option<String>)>),
    /// `RUN`.
    Run(Run),
    /// `COPY` or `ADD`.
    Copy(CopyFiles),
    /// An instruction that changes the image's config; `WORKDIR` also makes the directory.
    Change(Change),
}

/// A `FROM` instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// The base image or stage.
    pub image: String,
    /// The platform of the base image.
    pub platform: Option<String>,
    /// The stage's name, in lower case.
    pub name: Option<String>,
}

/// A `RUN` instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// Heredocs.
    pub heredocs: Vec<Heredoc>,
    /// The fields of each `--mount`.
    pub mounts: Vec<Vec<(String, Option<String>)>>,
    /// `--network`.
    pub network: Option<String>,
}

/// A source of a `COPY` or `ADD`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A path, pattern or URL.
    Path(String),
    /// A file with this content.
    Heredoc(Heredoc),
}

/// A `COPY` or `ADD` instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyFiles {
    /// Whether it is `ADD`, which extracts archives and fetches URLs.
    pub is_add: bool,
    /// Sources, at least one.
    pub sources: Vec<Source>,
    /// Destination.
    pub target: String,
    /// `--from`: a stage or an image.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--checksum`, of a URL's content.
    pub checksum: Option<String>,
    /// `--link`: the layer does not depend on the ones below.
    pub link: bool,
    /// `--parents`: keeps the sources' parent directories.
    pub parents: bool,
    /// `--exclude`: patterns of what is left out.
    pub exclude: Vec<String>,
}

/// A change of the image's config.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "each is the instruction of its name")]
pub enum Change {
    Cmd(Command),
    Entrypoint(Command),
    Env(Vec<(String, String)>),
    Expose(Vec<String>),
    Healthcheck(Value),
    Label(Vec<(String, String)>),
    Maintainer(String),
    OnBuild(String),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    WorkDir(String),
}

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Whether there is an instruction of that name, in upper case.
pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Parses an instruction.
pub(super) fn parse(line: &Line, escape: char) -> Result<Instruction> {
    let split = split_instruction(&line.text, escape);
    let what = match split.name.as_str() {
        "FROM" => What::From(from(&split)?),
        "ARG" => What::Arg(arg(&split, escape)?),
        "RUN" => What::Run(run(&split, line)?),
        "COPY" | "ADD" => What::Copy(copy(&split, line)?),
        _ => What::Change(change(&split, escape)?),
    };
    let rest = line.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim());
    let text = format!("{} {rest}", split.name).trim_end().to_owned();
    Ok(Instruction { first: line.first, last: line.last, text, what })
}

/// Parses an instruction that changes the config.
pub(super) fn change(split: &Split<'_>, escape: char) -> Result<Change> {
    let (name, rest) = (split.name.as_str(), split.rest);
    if name != "HEALTHCHECK" && is_known(name) {
        flags(&split.flags, [])?;
    }
    Ok(match name {
        "CMD" => Change::Cmd(wanted_command(name, rest)?),
        "ENTRYPOINT" => Change::Entrypoint(wanted_command(name, rest)?),
        "ENV" => Change::Env(pairs(name, rest, escape)?),
        "EXPOSE" => Change::Expose(at_least_one(name, rest.split_whitespace().map(str::to_owned).collect())?),
        "HEALTHCHECK" => Change::Healthcheck(healthcheck::check(&split.flags, rest)?),
        "LABEL" => Change::Label(pairs(name, rest, escape)?),
        "MAINTAINER" => Change::Maintainer(one(name, rest)?),
        "ONBUILD" => Change::OnBuild(on_build(rest)?),
        "SHELL" => match command(rest)? {
            _ if rest.is_empty() => return Err("SHELL requires at least one argument".into()),
            Command::List(list) if !list.is_empty() => Change::Shell(list),
            _ => return Err("SHELL requires the arguments to be in JSON form".into()),
        },
        "STOPSIGNAL" => Change::StopSignal(one(name, rest)?),
        "USER" => Change::User(one(name, rest)?),
        "VOLUME" => Change::Volume(at_least_one(name, list(rest)?)?),
        "WORKDIR" => Change::WorkDir(one(name, rest)?),
        other => return Err(format!("unknown instruction: {other}{}", suggestion(other))),
    })
}

/// Suggests the instruction that differs in few letters.
fn suggestion(name: &str) -> String {
    let near = NAMES.iter().map(|known| (distance(name, known), known)).min();
    near.filter(|(distance, _)| distance * 2 <= name.len())
        .map_or_else(String::new, |(_, known)| format!(" (did you mean {known}?)"))
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = replaced.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn wanted_command(name: &str, rest: &str) -> Result<Command> {
    match command(rest)? {
        Command::Text(text) if text.is_empty() => Err(format!("{name} requires at least one argument")),
        command => Ok(command),
    }
}

fn one(name: &str, rest: &str) -> Result<String> {
    if rest.is_empty() { Err(format!("{name} requires exactly one argument")) } else { Ok(rest.to_owned()) }
}

fn at_least_one(name: &str, words: Vec<String>) -> Result<Vec<String>> {
    if words.is_empty() { Err(format!("{name} requires at least one argument")) } else { Ok(words) }
}

/// Parses a JSON list, or words.
fn list(rest: &str) -> Result<Vec<String>> {
    Ok(match command(rest)? {
        Command::List(list) => list,
        Command::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
    })
}

fn on_build(rest: &str) -> Result<String> {
    let trigger = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match trigger.as_str() {
        "" => Err("ONBUILD requires at least one argument".into()),
        "ONBUILD" => Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into()),
        "MAINTAINER" | "FROM" => Err(format!("{trigger} isn't allowed as an ONBUILD trigger")),
        _ => Ok(rest.to_owned()),
    }
}

fn from(split: &Split<'_>) -> Result<Base> {
    let [platform] = flags(&split.flags, ["platform"])?;
    let words: Vec<&str> = split.rest.split_whitespace().collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
        _ => return Err("FROM requires either one or three arguments".into()),
    };
    if let Some(name) = &name {
        let mut letters = name.bytes();
        let first = letters.next().is_some_and(|b| b.is_ascii_lowercase());
        if !first || !letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)) {
            return Err(format!(
                "invalid name for build stage: \"{name}\", name can't start with a number or contain symbols"
            ));
        }
        if name == "scratch" || name == "context" {
            return Err(format!("the name {name} is reserved and cannot be that of a build stage"));
        }
    }
    Ok(Base { image: image.to_owned(), platform, name })
}

fn arg(split: &Split<'_>, escape: char) -> Result<Vec<(String, Option<String>)>> {
    flags(&split.flags, [])?;
    let words = at_least_one("ARG", words::split(split.rest, escape))?;
    let one = |word: String| match word.split_once('=') {
        Some(("", _)) => Err("ARG names can not be blank".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    };
    words.into_iter().map(one).collect()
}

fn run(split: &Split<'_>, line: &Line) -> Result<Run> {
    let (mounts, others): (Vec<_>, Vec<_>) = split.flags.iter().cloned().partition(|(name, _)| name == "mount");
    let [network, security] = flags(&others, ["network", "security"])?;
    if let Some(other) = security.filter(|mode| mode != "sandbox") {
        return Err(format!("--security={other} is not supported: a step has the rights of a container"));
    }
    if let Some(other) = network.as_deref().filter(|mode| !matches!(*mode, "default" | "host" | "none")) {
        return Err(format!("invalid network mode \"{other}\": use default, host or none"));
    }
    let mounts = mounts.into_iter().map(|(_, fields)| mount_fields(&fields.unwrap_or_default()));
    let command = wanted_command("RUN", split.rest)?;
    let heredocs = line.heredocs.clone();
    Ok(Run { command, heredocs, mounts: mounts.collect::<Result<_>>()?, network })
}

/// Splits the comma-separated fields of `--mount`.
fn mount_fields(text: &str) -> Result<Vec<(String, Option<String>)>> {
    if text.is_empty() || text == "true" {
        return Err("--mount has no fields: wanted --mount=type=TYPE,target=PATH".into());
    }
    let field = |field: &str| match field.split_once('=') {
        Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value.to_owned())),
        None => (field.trim().to_ascii_lowercase(), None),
    };
    Ok(text.split(',').map(field).collect())
}

fn copy(split: &Split<'_>, line: &Line) -> Result<CopyFiles> {
    let name = split.name.as_str();
    let is_add = name == "ADD";
    let (excludes, others): (Vec<_>, Vec<_>) = split.flags.iter().cloned().partition(|(name, _)| name == "exclude");
    let [from, chown, chmod, checksum, link, parents, keep] =
        flags(&others, ["from", "chown", "chmod", "checksum", "link", "parents", "keep-git-dir"])?;
    for (flag, given, only_add) in [
        ("from", &from, false),
        ("parents", &parents, false),
        ("checksum", &checksum, true),
        ("keep-git-dir", &keep, true),
    ] {
        if given.is_some() && is_add != only_add {
            return Err(format!("unknown flag: --{flag}"));
        }
    }
    if from.as_ref().is_some_and(|from| from.contains('$')) {
        return Err(
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
            scope as a workaround"
                .into(),
        );
    }
    let mut words = list(split.rest)?;
    let target = words.pop().filter(|_| !words.is_empty());
    let target = target.ok_or_else(|| {
        format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        )
    })?;
    let mut heredocs = line.heredocs.iter();
    let source = |word: String| match lexer::operator(&word) {
        Some(_) => heredocs.next().cloned().map(Source::Heredoc).ok_or_else(|| format!("{word} has no heredoc")),
        None => Ok(Source::Path(word)),
    };
    let sources = words.into_iter().map(source).collect::<Result<Vec<_>>>()?;
    if lexer::operator(&target).is_some() {
        return Err(format!("{name} cannot accept a heredoc as a destination"));
    }
    let truth = |flag: &str, value: Option<String>| match value.as_deref() {
        None => Ok(false),
        Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("expecting boolean value for flag --{flag}, not: {other}")),
    };
    let (link, parents) = (truth("link", link)?, truth("parents", parents)?);
    let exclude = excludes.into_iter().filter_map(|(_, pattern)| pattern).collect();
    Ok(CopyFiles { is_add, sources, target, from, chown, chmod, checksum, link, parents, exclude })
}
