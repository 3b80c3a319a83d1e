//! `exec`: one more program in a running container.

use super::{Exit, Global, args};
use crate::container::exec::{self, Plan};
use crate::container::room::Refusal;
use crate::store::containers;
use std::io::IsTerminal;

#[derive(clap::Args)]
#[command(override_usage = "plyfs exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
#[command(after_help = "\
The exit code is the command's; 126: it cannot be executed; 127: it was not
found.

Examples:
  plyfs exec web ls /srv
  plyfs exec -it -u root web sh")]
pub(super) struct ExecArgs {
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable, or hand down the one of that name
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The directory to run in [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Whom to run as, of the image's users [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The container, by name or ID, and what to run in it
    #[arg(value_names = ["CONTAINER", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

pub(super) fn exec(global: &Global, a: &ExecArgs) -> anyhow::Result<()> {
    let (name, command) = match &a.args[..] {
        [name, command @ ..] if !command.is_empty() => (name, command),
        _ => return Err(args::wrong_count("exec", "requires at least 2 arguments")),
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
        Err(Refusal { code, text }) => Err(Exit::Text(code, format!("Error: {text}")).into()),
    }
}
