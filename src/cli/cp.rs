//! `cp`: files and directories between a container and this machine.

use super::{Exit, Global, args, human, output};
use crate::container::copy::{self, CopyError, Owner, Place};
use crate::container::inside::Inside;
use crate::container::reach;
use crate::container::room::Refusal;
use crate::name::show;
use crate::store::Store;
use crate::store::containers;
use crate::sys;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BUFFER: usize = 1 << 20;

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n       plyfs cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
)]
#[command(after_help = "\
A path with a colon in it is local if it begins with / or a dot. SRC_PATH/. is what
is in a directory; - is a tar, read from standard input or written to standard output.

Examples:
  plyfs cp web:/etc/hosts .
  plyfs cp -a ./site/. web:/srv/www
  plyfs cp web:/var/log - | tar -tv")]
pub(super) struct CpArgs {
    /// Keep users and groups; without it copies are root's in a container, and yours here
    #[arg(short, long)]
    archive: bool,
    /// Copy what SRC_PATH leads to if it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not say what was copied; nothing is said either if standard output is no terminal
    #[arg(short, long)]
    quiet: bool,
    /// From where, and to where
    #[arg(value_name = "SRC DEST", num_args = 0..)]
    args: Vec<OsString>,
}

/// A container and a path in it, or a path of this machine.
#[derive(PartialEq, Debug)]
enum Side<'a> {
    In(&'a str, &'a [u8]),
    Here(&'a [u8]),
}

/// Has a job done with a container's files, in another process or other namespaces: what it has of this machine it has
/// open.
fn with(store: &Store, name: &str, pause: bool, job: impl FnOnce(&Inside) -> copy::Result<()>) -> anyhow::Result<()> {
    let container = containers::find(store, name)?;
    // One that does not run has nothing to pause.
    let _paused = if pause { reach::pause(store, &container) } else { None };
    let refused = |error: CopyError| match error {
        // A reader that went away is no failure to tell of.
        CopyError::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => Refusal { code: 141, text: String::new() },
        error => Refusal { code: 1, text: error.to_string() },
    };
    match reach::with_files(store, &container, |root| job(root).map_err(refused)) {
        Err(Refusal { code, text }) if text.is_empty() => Err(Exit::Said(code).into()),
        done => Ok(done.map_err(|refusal| anyhow::anyhow!(refusal.text))?),
    }
}

pub(super) fn cp(global: &Global, a: &CpArgs) -> anyhow::Result<()> {
    let [from, to] = args::exactly("cp", &a.args)?;
    if from.is_empty() {
        anyhow::bail!("source can not be empty");
    }
    if to.is_empty() {
        anyhow::bail!("destination can not be empty");
    }
    let host = Inside::open(Path::new("/"))?;
    let store = global.store()?;
    match (side(from.as_bytes()), side(to.as_bytes())) {
        (Side::In(..), Side::In(..)) => anyhow::bail!("copying between containers is not supported"),
        (Side::Here(_), Side::Here(_)) => anyhow::bail!("must specify at least one container source"),
        (Side::In(name, path), Side::Here(b"-")) => {
            let path = from_root(path);
            // Not paused: it may be what reads the output.
            with(&store, name, false, move |root| pack(root, name, &path, a))
        }
        (Side::In(name, path), Side::Here(here)) => {
            let (path, here) = (from_root(path), absolute(here)?);
            let job = move |root: &Inside| {
                let from = Place { root, path: &path, container: Some(name) };
                let to = Place { root: &host, path: &here, container: None };
                // Asked there: in a user namespace he is somebody else.
                let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                let owner = if a.archive { Owner::Kept } else { Owner::Is(user.0, user.1) };
                let bytes = copy::copy(&from, &to, a.follow_link, owner)?;
                say(a, bytes, &show(&here));
                Ok(())
            };
            with(&store, name, true, job)
        }
        (Side::Here(here), Side::In(name, path)) => {
            let path = from_root(path);
            let from_stdin = here == b"-";
            let here = if from_stdin { None } else { Some(absolute(here)?) };
            let job = move |root: &Inside| {
                let to = Place { root, path: &path, container: Some(name) };
                let bytes = match &here {
                    None => copy::unpack(io::stdin().lock(), &to, Owner::Kept)?,
                    Some(here) => {
                        let from = Place { root: &host, path: here, container: None };
                        let owner = if a.archive { Owner::Kept } else { Owner::Is(0, 0) };
                        copy::copy(&from, &to, a.follow_link, owner)?
                    }
                };
                say(a, bytes, &format!("{name}:{}", show(&path)));
                Ok(())
            };
            // Nor if it may be what writes the input.
            with(&store, name, !from_stdin, job)
        }
    }
}

fn pack(root: &Inside, name: &str, path: &[u8], a: &CpArgs) -> copy::Result<()> {
    let from = Place { root, path, container: Some(name) };
    let out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    copy::pack(&from, a.follow_link, out).map(drop)
}

fn say(a: &CpArgs, bytes: u64, place: &str) {
    if !a.quiet && io::stdout().is_terminal() {
        output::complaint(format_args!("Successfully copied {} to {place}", human::size(bytes)));
    }
}

/// Tells whose path an argument is, as Docker does: a colon ends a container's name, unless the path begins as a local
/// one.
fn side(text: &[u8]) -> Side<'_> {
    let colon = text.iter().position(|byte| *byte == b':');
    match colon.map(|at| (str::from_utf8(&text[..at]), &text[at + 1..])) {
        Some((Ok(name), path)) if !name.is_empty() && !name.starts_with(['/', '.']) => Side::In(name, path),
        _ => Side::Here(text),
    }
}

/// A path in a container begins at its root, with a slash or without.
fn from_root(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
}

/// A local path from the root; its end, which counts, stays as it is.
fn absolute(path: &[u8]) -> anyhow::Result<Vec<u8>> {
    if path.starts_with(b"/") {
        return Ok(path.to_vec());
    }
    let here =
        std::env::current_dir().map_err(|e| anyhow::anyhow!("there is no current directory: {}", sys::describe(&e)))?;
    Ok([here.as_os_str().as_bytes(), b"/", path].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_is_a_containers_unless_the_path_is_local() {
        for (text, want) in [
            ("web:/etc", Side::In("web", b"/etc")),
            ("web:", Side::In("web", b"")),
            ("web:a:b", Side::In("web", b"a:b")),
            ("./a:b", Side::Here(b"./a:b")),
            ("../a:b", Side::Here(b"../a:b")),
            ("/a:b", Side::Here(b"/a:b")),
            ("file", Side::Here(b"file")),
            ("-", Side::Here(b"-")),
            (":x", Side::Here(b":x")),
        ] {
            assert_eq!(side(text.as_bytes()), want, "{text}");
        }
    }
}
