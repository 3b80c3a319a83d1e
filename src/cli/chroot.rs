//! `chroot`: a command in an image, by nothing but the kernel.

use super::create::volume;
use super::{Exit, Global, args, inspect, mount};
use crate::container::chroot::{self, Plan};
use crate::container::room::{self, Refusal, Room};
use crate::container::spec::PATH;
use crate::container::userns::Mapping;
use crate::fuse::Options;
use crate::image;
use crate::store::containers::{list_of, text_of};
use crate::store::{Image, Store, mounts};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(override_usage = "plyfs chroot [OPTIONS] IMAGE [COMMAND [ARG...]]")]
#[command(after_help = "\
The command sees the image's files, its own processes and this machine's
network. It is not locked in: root in it is root, nothing limits it, and it
reaches what root can reach. What is not trusted belongs into a container of
runc, podman or Docker.

Without COMMAND the image's own entrypoint and command are run, and /bin/sh if
it has none. The exit code is the command's; above 128 it was killed by signal
N - 128. 125: it could not be started; 126: it cannot be executed; 127: it was
not found.

Examples:
  plyfs chroot debian:12
  plyfs chroot --rw debian:12 apt-get install -y make
  plyfs chroot -v ./src:/src -w /src golang:1 go build")]
pub(super) struct ChrootArgs {
    /// Make it writable: the store keeps the changes, and they are there again the next time that a command is run so in
    /// this image. One at a time
    #[arg(long)]
    rw: bool,
    /// Make it writable: changes go to this directory, which is made if it is not there and keeps them
    #[arg(long, value_name = "DIR", conflicts_with = "rw")]
    upper: Option<PathBuf>,
    /// Mount a directory or file of this machine; a directory is made if it is not there
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// The directory to run in [default: the image's, or /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Whom to run as, of the image's users [default: the image's, or root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Set an environment variable, or hand down the one of that name
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// The image, and what to run in it
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<OsString>,
}

/// Where changes are kept and what is listed as the mountpoint: there is no other place that it is seen at.
const PLACE: &str = "chroot";
const FAILED: u8 = 125;

pub(super) fn chroot(global: &Global, a: &ChrootArgs) -> anyhow::Result<()> {
    let (image, command) = args::at_least_one("chroot", &a.args).map(|all| (all[0].to_string_lossy(), &all[1..]))?;
    let failed = |error: anyhow::Error| anyhow::Error::from(Exit::Text(FAILED, format!("Error: {error}")));
    match run(&global.store().map_err(failed)?, &image, command, a).map_err(failed)? {
        Ok(0) => Ok(()),
        Ok(code) => Err(Exit::Said(u8::try_from(code).unwrap_or(FAILED)).into()),
        Err(refusal) => Err(Exit::Text(refusal.code, format!("Error: {refusal}")).into()),
    }
}

/// How the command ended, or why it did not begin; an error if it did not come to that.
fn run(store: &Store, wanted: &str, command: &[OsString], a: &ChrootArgs) -> anyhow::Result<Result<i32, Refusal>> {
    let image = store.resolve(wanted)?;
    let plan = plan(store, &image, command, a)?;
    let writable = plan.writable;
    let guard = mounts::register(store, &image.id, wanted, Path::new(PLACE), writable)?;
    let done = room::isolate().map_err(anyhow::Error::from).and_then(|mapping| {
        if let Some(Mapping::Own { why }) = &mapping {
            tracing::warn!("files and programs can belong to root only: {why}");
        }
        // Nobody else sees what is mounted there, and it need not be cleared away.
        let plan = Plan { mapping, at: guard.dir().to_owned(), ..plan };
        let room = match Room::prepare(plan.at.clone(), |say, signals| chroot::work(&plan, say, signals)) {
            Ok(room) => room,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let opened = image::open_tree(store, &image)?;
        let place = match &a.upper {
            Some(upper) => Some((upper.clone(), mount::beside(upper))),
            None => writable.then(|| store.kept_upper(opened.tree.source(), Path::new(PLACE))),
        };
        let upper = place.map(|(upper, work)| image::open_upper(upper, work, &opened.tree, false)).transpose()?;
        // In its namespace the process is root.
        Ok(room.run(opened, upper, &Options::for_user(wanted, true)))
    });
    guard.release()?;
    done
}

/// What is to be run, by what the image says and what the user says instead.
fn plan(store: &Store, image: &Image, command: &[OsString], a: &ChrootArgs) -> anyhow::Result<Plan> {
    let document = inspect::config(store, image)?;
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
        user: a.user.clone().unwrap_or_else(|| text_of(config, "User").to_owned()),
        directory: Path::new("/").join(directory),
        env: environment(&list_of(config, "Env"), &a.env),
        command: words,
        mapping: None,
        terminal: chroot::terminal(),
    })
}

/// The image's environment and the user's over the least that programs need.
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
