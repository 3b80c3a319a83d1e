//! `run`, `create` and `start`: containers that begin, in front or in the background.

use super::attach::{self, Way};
use super::create::{self, CreateArgs};
use super::{Exit, Global, args, output};
use crate::container::room::Refusal;
use crate::container::runtime;
use crate::store::containers::{self, Container, Held};
use crate::store::{Error, Store};
use std::io::IsTerminal;

#[derive(clap::Args)]
#[command(override_usage = "plyfs run [OPTIONS] IMAGE [COMMAND [ARG...]]")]
#[command(after_help = "\
The container has the image's files, with changes of its own on them, and is
locked in by the runtime as Docker's are: its own processes, users' rights as
far as Docker gives them, and this machine's network unless that is taken away.

The exit code is the command's; above 128 it was killed by signal N - 128.
125: the container could not be started; 126: the command cannot be executed;
127: it was not found.

Examples:
  plyfs run -it --rm debian:12
  plyfs run -d --name web -v ./site:/srv:ro httpd:2
  plyfs run --rm --network none -v .:/src -w /src golang:1 go build")]
pub(super) struct RunArgs {
    /// Run it in the background and print its ID
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    create: CreateArgs,
    /// The image, and what to run in it
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs create [OPTIONS] IMAGE [COMMAND [ARG...]]")]
#[command(after_help = "Example:\n  plyfs create --name web httpd:2\n  plyfs start web")]
pub(super) struct OnlyCreateArgs {
    #[command(flatten)]
    create: CreateArgs,
    /// The image, and what to run in it
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs start [OPTIONS] CONTAINER...")]
#[command(after_help = "Examples:\n  plyfs start web\n  plyfs start -ai shell")]
pub(super) struct StartArgs {
    /// Stay in front: show what it prints, pass signals on, and end with its code
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on too
    #[arg(short, long)]
    interactive: bool,
    /// Containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

/// An error of a container that did not come to run.
fn refused(refusal: &Refusal) -> anyhow::Error {
    Exit::Text(refusal.code, format!("Error: {refusal}")).into()
}

/// Everything that goes wrong before the command runs ends with 125.
fn before_it_runs(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Exit>() {
        Some(_) => error,
        None => refused(&Refusal::own(error.to_string())),
    }
}

pub(super) fn run(global: &Global, a: &RunArgs) -> anyhow::Result<()> {
    let (wanted, command) = args::at_least_one("run", &a.args).map(|all| (&all[0], &all[1..]))?;
    let begin = || {
        if a.create.interactive && a.create.what.tty && !a.detach && !std::io::stdin().is_terminal() {
            anyhow::bail!("the input device is not a TTY");
        }
        let store = global.store()?;
        // Before anything is pulled or made for nothing.
        find_runtime(a.create.runtime.as_deref()).map_err(|refusal| refused(&refusal))?;
        let image = create::image(&store, wanted, &a.create.what)?;
        let (container, held) = create::create(&store, &image, wanted, command, &a.create, a.detach)?;
        Ok((store, container, held))
    };
    let (store, container, held) = begin().map_err(before_it_runs)?;
    let way = if a.detach { Way::Background } else { Way::Front { input: a.create.interactive } };
    match begin_to_run(&store, &container, held, way).map_err(before_it_runs)? {
        None => output::line(&container.id),
        Some(0) => Ok(()),
        Some(code) => Err(Exit::Said(code).into()),
    }
}

pub(super) fn create(global: &Global, a: &OnlyCreateArgs) -> anyhow::Result<()> {
    let (wanted, command) = args::at_least_one("create", &a.args).map(|all| (&all[0], &all[1..]))?;
    let store = global.store()?;
    let image = create::image(&store, wanted, &a.create.what)?;
    let (container, _held) = create::create(&store, &image, wanted, command, &a.create, true)?;
    output::line(&container.id)
}

pub(super) fn start(global: &Global, a: &StartArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("start", &a.args)?;
    let in_front = a.attach || a.interactive;
    anyhow::ensure!(!in_front || wanted.len() == 1, "you cannot start and attach multiple containers at once");
    let store = global.store()?;
    let way = if in_front { Way::Front { input: a.interactive } } else { Way::Background };
    let mut failed = None;
    for name in wanted {
        match start_one(&store, name, way) {
            Ok(None) => output::line(name)?,
            Ok(Some(0)) => {}
            Ok(Some(code)) => return Err(Exit::Said(code).into()),
            Err(error) => {
                output::complaint(&error);
                failed = Some(match error.downcast_ref::<Exit>() {
                    // With several there is no one code.
                    Some(Exit::Text(code, _) | Exit::Said(code)) if in_front => *code,
                    _ => 1,
                });
            }
        }
    }
    failed.map_or(Ok(()), |code| Err(Exit::Said(code).into()))
}

fn start_one(store: &Store, name: &str, way: Way) -> anyhow::Result<Option<u8>> {
    let begin = || {
        let container = containers::find(store, name)?;
        let held = containers::try_hold(store, &container.id)?;
        Ok::<_, Error>((container, held))
    };
    let (container, held) = begin().map_err(|e| Exit::Text(1, format!("Error: {e}")))?;
    match held {
        Some(held) => begin_to_run(store, &container, held, way),
        // As in Docker: what runs has been started.
        None => Ok(None),
    }
}

fn find_runtime(wanted: Option<&str>) -> Result<std::path::PathBuf, Refusal> {
    runtime::find(wanted, std::env::var_os("PATH").as_deref())
}

/// Has the container run: the code that it ended with, or none if it goes on in the background.
fn begin_to_run(store: &Store, container: &Container, held: Held, way: Way) -> anyhow::Result<Option<u8>> {
    let started = find_runtime(container.host.runtime.as_deref())
        .map_err(|refusal| refused(&refusal))
        .and_then(|runtime| attach::start(store, container, held, runtime, way));
    match started? {
        attach::Done::Goes => Ok(None),
        attach::Done::Ended(code) => Ok(Some(u8::try_from(code).unwrap_or(125))),
        attach::Done::Failed(refusal) => Err(refused(&refusal)),
    }
}
