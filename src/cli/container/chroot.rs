//! `chroot`: runs a command in an image, without an OCI runtime.

use crate::cli::container::create::volume;
use crate::cli::image::document;
use crate::cli::mount::image as mount;
use crate::cli::mount::options::engine;
use crate::cli::{Exit, Global, config, usage_errors};
use crate::container::RunError;
use crate::container::chroot::{self, Plan};
use crate::container::root::Root;
use crate::container::sandbox::{self, Sandbox};
use crate::container::spec::PATH;
use crate::container::userns::Mapping;
use crate::kernel::Engine;
use crate::store::containers::{Network, list_of, text_of};
use crate::store::{Image, Store, mounts};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(override_usage = "plyfs chroot [OPTIONS] IMAGE [COMMAND [ARG...]]")]
#[command(after_help = "\
The command has the image as its root file system, its own PID namespace and the
host's network. It is not isolated: without resource limits, and with all
capabilities if run by root. Use a container for untrusted programs.

Without COMMAND, runs the image's entrypoint and command, or /bin/sh if the
image has none. Exit code: the command's, or 128 + N if signal N killed it. 125:
the command could not be started; 126: the command cannot be executed; 127: the
command was not found.

Examples:
  plyfs chroot debian:12
  plyfs chroot --rw debian:12 apt-get install -y make
  plyfs chroot -v ./src:/src -w /src golang:1 go build")]
pub(in crate::cli) struct ChrootArgs {
    /// Mount read-write; changes are kept in the store, per image, for the next chroot --rw. Only one at a time
    #[arg(long)]
    rw: bool,
    /// Mount read-write; changes are kept in DIR, which is created if missing
    #[arg(long, value_name = "DIR", conflicts_with = "rw")]
    upper: Option<PathBuf>,
    /// Bind mount a directory or file of the host; a missing SRC is created as a directory
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Working directory inside the image [default: the image's, or /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// User name or ID, as in the image's /etc/passwd [default: the image's, or root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Set an environment variable; NAME alone copies it from plyfs's environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Engine that mounts the root file system: fuse, kernel or auto (see `plyfs mount --help`) [default: fuse]
    #[arg(long, value_name = "ENGINE", value_parser = engine)]
    engine: Option<Engine>,
    /// Image, and the command to run in it
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<OsString>,
}

/// The mountpoint's name in the store's list of mounts and kept changes: the mount is visible at no path of the host.
const PLACE: &str = "chroot";
const FAILED: u8 = 125;

pub(in crate::cli) fn chroot(global: &Global, a: &ChrootArgs) -> anyhow::Result<()> {
    let (image, command) =
        usage_errors::at_least_one("chroot", &a.args).map(|all| (all[0].to_string_lossy(), &all[1..]))?;
    let failed = |error: anyhow::Error| anyhow::Error::from(Exit::Text(FAILED, format!("Error: {error}")));
    match run(&global.store().map_err(failed)?, &image, command, a).map_err(failed)? {
        Ok(0) => Ok(()),
        Ok(code) => Err(Exit::Said(u8::try_from(code).unwrap_or(FAILED)).into()),
        Err(error) => Err(Exit::Text(error.exit_code, format!("Error: {error}")).into()),
    }
}

/// Runs the command. Returns its exit code, or why it could not be started; `Err` if the sandbox could not be set up.
fn run(store: &Store, wanted: &str, command: &[OsString], a: &ChrootArgs) -> anyhow::Result<Result<i32, RunError>> {
    let image = store.resolve(wanted)?;
    let plan = plan(store, &image, command, a)?;
    let engine = a.engine.map_or_else(config::engine, Ok)?;
    let writable = plan.writable;
    let guard = mounts::register(store, &image.id, wanted, Path::new(PLACE), writable)?;
    let done = sandbox::isolate().map_err(anyhow::Error::from).and_then(|mapping| {
        if let Some(Mapping::Own { why }) = &mapping {
            tracing::warn!("only root's user and group ID are available: {why}");
        }
        // The mount is private to this process's mount namespace, and needs no cleanup.
        let plan = Plan { mapping: mapping.clone(), at: guard.dir().to_owned(), ..plan };
        let sandbox = match Sandbox::prepare(plan.at.clone(), |startup, signals| chroot::work(&plan, startup, signals))
        {
            Ok(sandbox) => sandbox,
            Err(error) => return Ok(Err(error)),
        };
        let upper = match &a.upper {
            Some(upper) => Some((upper.clone(), mount::beside(upper))),
            None => writable.then(|| store.kept_upper(&image.chain_id(), Path::new(PLACE))),
        };
        let (source, scratch) = (wanted, guard.scratch()?);
        let mapping = mapping.as_ref();
        let root = Root { store, image: &image, source, upper, volatile: false, engine, mapping, scratch };
        Ok(sandbox.run(|at| root.mount(at)))
    });
    guard.release()?;
    done
}

/// Makes the plan from the image's config, overridden by the user's options.
fn plan(store: &Store, image: &Image, command: &[OsString], a: &ChrootArgs) -> anyhow::Result<Plan> {
    let document = document::config(store, image)?;
    let none = Map::new();
    let config = document.get("config").and_then(Value::as_object).unwrap_or(&none);
    let mut words: Vec<OsString> = command.to_vec();
    if words.is_empty() {
        words =
            [list_of(config, "Entrypoint"), list_of(config, "Cmd")].concat().into_iter().map(OsString::from).collect();
    }
    if words.is_empty() {
        words.push("/bin/sh".into());
    }
    let directory = a.workdir.clone().unwrap_or_else(|| text_of(config, "WorkingDir").into());
    anyhow::ensure!(
        a.workdir.is_none() || directory.is_absolute(),
        "the working directory '{}' is invalid, it needs to be an absolute path",
        directory.display()
    );
    Ok(Plan {
        at: PathBuf::new(),
        writable: a.rw || a.upper.is_some(),
        binds: a.volume.iter().map(|text| volume(text)).collect::<anyhow::Result<_>>()?,
        tmpfs: Vec::new(),
        network: Network::Host,
        made: None,
        user: a.user.clone().unwrap_or_else(|| text_of(config, "User").to_owned()),
        directory: Path::new("/").join(directory),
        env: environment(&list_of(config, "Env"), &a.env),
        command: words,
        mapping: None,
        terminal: chroot::terminal(),
    })
}

/// The environment: `PATH` and `TERM`, overridden by the image's variables, overridden by the user's.
fn environment(images: &[String], users: &[OsString]) -> Vec<(OsString, OsString)> {
    let pair = |text: &[u8]| {
        let at = text.iter().position(|b| *b == b'=')?;
        let own = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        (at > 0).then(|| (own(&text[..at]), own(&text[at + 1..])))
    };
    let mut all = vec![(OsString::from("PATH"), OsString::from(PATH))];
    if let Some(terminal) = std::env::var_os("TERM").filter(|_| std::io::stdin().is_terminal()) {
        all.push(("TERM".into(), terminal));
    }
    all.extend(images.iter().filter_map(|text| pair(text.as_bytes())));
    for wanted in users {
        let inherited = || Some((wanted.clone(), std::env::var_os(wanted)?));
        all.extend(pair(wanted.as_bytes()).or_else(inherited));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_the_images_and_then_the_users() {
        let images = ["PATH=/opt".to_owned(), "A=1=2".to_owned(), "=x".to_owned(), "junk".to_owned()];
        let users = ["A=3".into(), "B=".into(), "NO_SUCH_VARIABLE_HERE".into()];
        let all = environment(&images, &users);
        let shown: Vec<String> = all
            .iter()
            .map(|(k, v)| format!("{}={}", k.display(), v.display()))
            .filter(|p| !p.starts_with("TERM="))
            .collect();
        assert_eq!(shown, [format!("PATH={PATH}").as_str(), "PATH=/opt", "A=1=2", "A=3", "B="]);
    }
}
