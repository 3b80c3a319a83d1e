//! `run`, `create` and `start`: creating and starting containers, in the foreground or detached.

use crate::cli::container::attach::{self, StartMode};
use crate::cli::container::create::{self, CreateArgs};
use crate::cli::output::stdout as output;
use crate::cli::{Exit, Global, usage_errors};
use crate::container::RunError;
use crate::container::runtime;
use crate::store::containers::{self, Container, Held};
use crate::store::{Error, Store};
use std::io::IsTerminal;

#[derive(clap::Args)]
#[command(override_usage = "plyfs run [OPTIONS] IMAGE [COMMAND [ARG...]]")]
#[command(after_help = "\
The container has a copy-on-write view of the image, and is isolated by an OCI
runtime with Docker's default capabilities and seccomp filter. It uses the
host's network unless --network none is given.

Exit code: the command's, or 128 + N if signal N killed it. 125: the container
could not be started; 126: the command cannot be executed; 127: the command was
not found.

Examples:
  plyfs run -it --rm debian:12
  plyfs run -d --name web -v ./site:/srv:ro httpd:2
  plyfs run --rm --network none -v .:/src -w /src golang:1 go build")]
pub(in crate::cli) struct RunArgs {
    /// Run the container in the background and print its ID
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    create: CreateArgs,
    /// Image, and the command to run in it
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs create [OPTIONS] IMAGE [COMMAND [ARG...]]")]
#[command(after_help = "Example:\n  plyfs create --name web httpd:2\n  plyfs start web")]
pub(in crate::cli) struct OnlyCreateArgs {
    #[command(flatten)]
    create: CreateArgs,
    /// Image, and the command to run in it
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs start [OPTIONS] CONTAINER...")]
#[command(after_help = "Examples:\n  plyfs start web\n  plyfs start -ai shell")]
pub(in crate::cli) struct StartArgs {
    /// Attach stdout and stderr, forward signals, and exit with the container's exit code
    #[arg(short, long)]
    attach: bool,
    /// Attach stdin too
    #[arg(short, long)]
    interactive: bool,
    /// Containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

/// The error of a container that did not start, with its exit code.
fn exit_with(error: &RunError) -> anyhow::Error {
    Exit::Text(error.exit_code, format!("Error: {error}")).into()
}

/// Gives errors before the container's start the exit code 125.
fn not_started(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Exit>() {
        Some(_) => error,
        None => exit_with(&RunError::own(error.to_string())),
    }
}

pub(in crate::cli) fn run(global: &Global, a: &RunArgs) -> anyhow::Result<()> {
    let (wanted, command) = usage_errors::at_least_one("run", &a.args).map(|all| (&all[0], &all[1..]))?;
    let begin = || {
        if a.create.interactive && a.create.container.tty && !a.detach && !std::io::stdin().is_terminal() {
            anyhow::bail!("the input device is not a TTY");
        }
        let store = global.store()?;
        // Checked before the image is pulled and the container created.
        find_runtime(a.create.runtime.as_deref()).map_err(|error| exit_with(&error))?;
        let image = create::image(&store, wanted, &a.create.container)?;
        let (container, held) = create::create(&store, &image, wanted, command, &a.create, a.detach)?;
        Ok((store, container, held))
    };
    let (store, container, held) = begin().map_err(not_started)?;
    let mode = if a.detach { StartMode::Background } else { StartMode::Foreground { input: a.create.interactive } };
    match start_container(&store, &container, held, mode).map_err(not_started)? {
        None => output::line(&container.id),
        Some(0) => Ok(()),
        Some(code) => Err(Exit::Said(code).into()),
    }
}

pub(in crate::cli) fn create(global: &Global, a: &OnlyCreateArgs) -> anyhow::Result<()> {
    let (wanted, command) = usage_errors::at_least_one("create", &a.args).map(|all| (&all[0], &all[1..]))?;
    let store = global.store()?;
    let image = create::image(&store, wanted, &a.create.container)?;
    let (container, _held) = create::create(&store, &image, wanted, command, &a.create, true)?;
    output::line(&container.id)
}

pub(in crate::cli) fn start(global: &Global, a: &StartArgs) -> anyhow::Result<()> {
    let wanted = usage_errors::at_least_one("start", &a.args)?;
    let foreground = a.attach || a.interactive;
    anyhow::ensure!(!foreground || wanted.len() == 1, "you cannot start and attach multiple containers at once");
    let store = global.store()?;
    let mode = if foreground { StartMode::Foreground { input: a.interactive } } else { StartMode::Background };
    let mut failed = None;
    for name in wanted {
        match start_one(&store, name, mode) {
            Ok(None) => output::line(name)?,
            Ok(Some(0)) => {}
            Ok(Some(code)) => return Err(Exit::Said(code).into()),
            Err(error) => {
                output::complaint(&error);
                failed = Some(match error.downcast_ref::<Exit>() {
                    // In the foreground there is only one container.
                    Some(Exit::Text(code, _) | Exit::Said(code)) if foreground => *code,
                    _ => 1,
                });
            }
        }
    }
    failed.map_or(Ok(()), |code| Err(Exit::Said(code).into()))
}

fn start_one(store: &Store, name: &str, mode: StartMode) -> anyhow::Result<Option<u8>> {
    let begin = || {
        let container = containers::find(store, name)?;
        let held = containers::try_hold(store, &container.id)?;
        Ok::<_, Error>((container, held))
    };
    let (container, held) = begin().map_err(|e| Exit::Text(1, format!("Error: {e}")))?;
    match held {
        Some(held) => start_container(store, &container, held, mode),
        // As in Docker: starting a running container succeeds.
        None => Ok(None),
    }
}

fn find_runtime(wanted: Option<&str>) -> Result<std::path::PathBuf, RunError> {
    runtime::find(wanted, std::env::var_os("PATH").as_deref())
}

/// Starts the container. Returns its exit code, or `None` if it runs in the background.
fn start_container(store: &Store, container: &Container, held: Held, mode: StartMode) -> anyhow::Result<Option<u8>> {
    let started = find_runtime(container.host.runtime.as_deref())
        .map_err(|error| exit_with(&error))
        .and_then(|runtime| attach::start(store, container, held, runtime, mode));
    match started? {
        attach::Done::Detached => Ok(None),
        attach::Done::Ended(code) => Ok(Some(u8::try_from(code).unwrap_or(125))),
        attach::Done::Failed(error) => Err(exit_with(&error)),
    }
}
