//! Wrong command lines, in Docker's words and with its exit codes.

use super::Exit;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Ends the program as a command line that clap refuses, or that asks for help, should.
pub(super) fn clap_error(error: &clap::Error, parser: &clap::Command, words: &[OsString]) -> anyhow::Result<()> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let arg = context(ContextKind::InvalidArg);
    let command = command_of(parser, words);
    let see = format!("See '{command} --help'.");
    let code_and_text = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return super::output::text(&error.render().to_string());
        }
        ErrorKind::UnknownArgument if arg.starts_with("--") => (125, format!("unknown flag: {arg}\n{see}")),
        ErrorKind::UnknownArgument if arg.starts_with('-') => {
            let letter = arg.trim_start_matches('-');
            (125, format!("unknown shorthand flag: '{letter}' in {arg}\n{see}"))
        }
        ErrorKind::UnknownArgument => (1, format!("unexpected argument: {arg}\n{see}")),
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand);
            (1, format!("plyfs: '{name}' is not a plyfs command.\nSee 'plyfs --help'"))
        }
        ErrorKind::MissingRequiredArgument => (1, format!("\"{command}\" requires {arg}.\n{see}")),
        ErrorKind::MissingSubcommand => (1, format!("\"{command}\" requires a command.\n{see}")),
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            (125, format!("{first}\n{see}"))
        }
    };
    Err(Exit::Text(code_and_text.0, code_and_text.1).into())
}

/// The command that the words mean, `plyfs image ls`, in its own name where an alias was used.
fn command_of(mut at: &clap::Command, words: &[OsString]) -> String {
    let mut path = at.get_name().to_owned();
    for word in words.iter().skip(1) {
        if let Some(command) = at.find_subcommand(word) {
            path = format!("{path} {}", command.get_name());
            at = command;
        }
    }
    path
}

/// Exactly `N` arguments to `plyfs VERB`.
pub(super) fn exactly<'a, const N: usize, T>(verb: &str, args: &'a [T]) -> anyhow::Result<&'a [T; N]> {
    let noun = if N == 1 { "argument" } else { "arguments" };
    args.try_into().map_err(|_| wrong_count(verb, &format!("requires exactly {N} {noun}")))
}

/// At least one argument to `plyfs VERB`.
pub(super) fn at_least_one<'a, T>(verb: &str, args: &'a [T]) -> anyhow::Result<&'a [T]> {
    if args.is_empty() { Err(wrong_count(verb, "requires at least 1 argument")) } else { Ok(args) }
}

/// One argument to `plyfs VERB`, or none.
pub(super) fn at_most_one<'a>(verb: &str, args: &'a [String]) -> anyhow::Result<Option<&'a str>> {
    match args {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(wrong_count(verb, "requires at most 1 argument")),
    }
}

/// One argument to `plyfs VERB`, or two.
pub(super) fn one_or_two<'a>(verb: &str, args: &'a [String]) -> anyhow::Result<(&'a str, Option<&'a str>)> {
    match args {
        [one] => Ok((one, None)),
        [one, two] => Ok((one, Some(two))),
        _ => Err(wrong_count(verb, "requires at least 1 and at most 2 arguments")),
    }
}

/// No argument to `plyfs VERB`.
pub(super) fn none(verb: &str, args: &[String]) -> anyhow::Result<()> {
    if args.is_empty() { Ok(()) } else { Err(wrong_count(verb, "accepts no arguments")) }
}

/// A wrong number of arguments to `plyfs VERB`.
pub(super) fn wrong_count(verb: &str, what: &str) -> anyhow::Error {
    Exit::Text(1, format!("\"plyfs {verb}\" {what}.\nSee 'plyfs {verb} --help'.")).into()
}
