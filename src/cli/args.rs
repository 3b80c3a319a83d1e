//! Wrong command lines, in Docker's words and with its exit codes.

use super::Exit;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Ends the program as a command line that clap refuses, or that asks for help, should.
pub(super) fn clap_error(error: &clap::Error) -> anyhow::Result<()> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let arg = context(ContextKind::InvalidArg);
    let see = format!("See '{} --help'.", command_of(error));
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
        _ => (125, error.render().to_string().trim_end().trim_start_matches("error: ").to_owned()),
    };
    Err(Exit::Text(code_and_text.0, code_and_text.1).into())
}

/// The command that was being parsed, taken from its usage line.
fn command_of(error: &clap::Error) -> String {
    let usage = error.get(ContextKind::Usage).map(ToString::to_string).unwrap_or_default();
    let words = usage.split_whitespace().skip_while(|w| *w != "plyfs");
    let command: Vec<&str> = words.take_while(|w| w.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    if command.is_empty() { "plyfs".into() } else { command.join(" ") }
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

/// No argument to `plyfs VERB`.
pub(super) fn none(verb: &str, args: &[String]) -> anyhow::Result<()> {
    if args.is_empty() { Ok(()) } else { Err(wrong_count(verb, "accepts no arguments")) }
}

fn wrong_count(verb: &str, what: &str) -> anyhow::Error {
    Exit::Text(1, format!("\"plyfs {verb}\" {what}.\nSee 'plyfs {verb} --help'.")).into()
}
