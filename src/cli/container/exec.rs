//! `exec`: runs a command in a running container.

use crate::cli::{Exit, Global, usage_errors};
use crate::container::RunError;
use crate::container::exec::{self, Plan};
use crate::store::containers;
use std::io::IsTerminal;

#[derive(clap::Args)]
#[command(override_usage = "plyfs exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
#[command(after_help = "\
Exit code: the command's; 126: the command cannot be executed; 127: the command
was not found.

Examples:
  plyfs exec web ls /srv
  plyfs exec -it -u root web sh")]
pub(in crate::cli) struct ExecArgs {
    /// Run the command in the background
    #[arg(short, long)]
    detach: bool,
    /// Pass stdin to the command
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; NAME alone copies it from plyfs's environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory inside the container [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User name or ID, as in the image's /etc/passwd [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Container, by name or ID, and the command to run in it
    #[arg(value_names = ["CONTAINER", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

pub(in crate::cli) fn exec(global: &Global, a: &ExecArgs) -> anyhow::Result<()> {
    let (name, command) = match &a.args[..] {
        [name, command @ ..] if !command.is_empty() => (name, command),
        _ => return Err(usage_errors::wrong_count("exec", "requires at least 2 arguments")),
    };
    if a.tty && a.interactive && !a.detach && !std::io::stdin().is_terminal() {
        anyhow::bail!("the input device is not a TTY");
    }
    let store = global.store()?;
    let container = containers::find(&store, name)?;
    let inherited = |text: &String| match (text.contains('='), std::env::var(text)) {
        (true, _) => Some(text.clone()),
        (false, value) => value.ok().map(|value| format!("{text}={value}")),
    };
    let plan = Plan {
        command: command.to_vec(),
        env: a.env.iter().filter_map(inherited).collect(),
        directory: a.workdir.clone(),
        user: a.user.clone(),
        terminal: a.tty,
        input: a.interactive && !a.detach,
        detach: a.detach,
    };
    match exec::run(&store, &container, &plan) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Exit::Said(u8::try_from(code).unwrap_or(125)).into()),
        Err(RunError { exit_code: code, text }) => Err(Exit::Text(code, format!("Error: {text}")).into()),
    }
}
