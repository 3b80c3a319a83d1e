//! Usage errors: wrong command lines, with Docker's messages and exit codes.

use crate::cli::Exit;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Turns clap's error into Docker's message and exit code; prints the help or version if the user asked for it.
pub(in crate::cli) fn clap_error(
    error: &clap::Error,
    parser: &clap::Command,
    words: &[OsString],
) -> anyhow::Result<()> {
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
            return crate::cli::output::stdout::text(&error.render().to_string());
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

/// The full name of the command on the command line, such as `plyfs image ls`, with aliases resolved.
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

/// Requires exactly `N` arguments to `plyfs VERB`.
pub(in crate::cli) fn exactly<'a, const N: usize, T>(verb: &str, args: &'a [T]) -> anyhow::Result<&'a [T; N]> {
    let noun = if N == 1 { "argument" } else { "arguments" };
    args.try_into().map_err(|_| wrong_count(verb, &format!("requires exactly {N} {noun}")))
}

/// Requires at least one argument to `plyfs VERB`.
pub(in crate::cli) fn at_least_one<'a, T>(verb: &str, args: &'a [T]) -> anyhow::Result<&'a [T]> {
    if args.is_empty() { Err(wrong_count(verb, "requires at least 1 argument")) } else { Ok(args) }
}

/// Requires at most one argument to `plyfs VERB`.
pub(in crate::cli) fn at_most_one<'a>(verb: &str, args: &'a [String]) -> anyhow::Result<Option<&'a str>> {
    match args {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(wrong_count(verb, "requires at most 1 argument")),
    }
}

/// Requires one or two arguments to `plyfs VERB`.
pub(in crate::cli) fn one_or_two<'a>(verb: &str, args: &'a [String]) -> anyhow::Result<(&'a str, Option<&'a str>)> {
    match args {
        [one] => Ok((one, None)),
        [one, two] => Ok((one, Some(two))),
        _ => Err(wrong_count(verb, "requires at least 1 and at most 2 arguments")),
    }
}

/// Requires that `plyfs VERB` has no arguments.
pub(in crate::cli) fn none<T>(verb: &str, args: &[T]) -> anyhow::Result<()> {
    if args.is_empty() { Ok(()) } else { Err(wrong_count(verb, "accepts no arguments")) }
}

/// The error for a wrong number of arguments to `plyfs VERB`: exit code 1.
pub(in crate::cli) fn wrong_count(verb: &str, what: &str) -> anyhow::Error {
    Exit::Text(1, format!("\"plyfs {verb}\" {what}.\nSee 'plyfs {verb} --help'.")).into()
}
