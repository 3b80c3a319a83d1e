//! `cp`: copies files and directories between a container and the host.

use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::{Exit, Global, usage_errors};
use crate::container::RunError;
use crate::container::access;
use crate::container::copy::{self, CopyError, Owner, Place};
use crate::container::rootfs::Rootfs;
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
A path with a colon is a local path if it begins with / or a dot. SRC_PATH/.
copies the content of a directory; - is a tar archive on stdin or stdout.

Examples:
  plyfs cp web:/etc/hosts .
  plyfs cp -a ./site/. web:/srv/www
  plyfs cp web:/var/log - | tar -tv")]
pub(in crate::cli) struct CpArgs {
    /// Archive mode: keep user and group IDs [default: root in a container, the caller on the host]
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link at the end of SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress the summary; it is printed only if stdout is a terminal
    #[arg(short, long)]
    quiet: bool,
    /// Source and destination
    #[arg(value_name = "SRC DEST", num_args = 0..)]
    args: Vec<OsString>,
}

/// The source or destination: a container and a path in it, or a path on the host.
#[derive(PartialEq, Debug)]
enum Side<'a> {
    In(&'a str, &'a [u8]),
    Here(&'a [u8]),
}

/// Calls `job` with a container's root file system. `job` may run in another process and other namespaces, and must
/// access the host through descriptors opened before.
fn with_container(
    store: &Store,
    name: &str,
    pause: bool,
    job: impl FnOnce(&Rootfs) -> copy::Result<()>,
) -> anyhow::Result<()> {
    let container = containers::find(store, name)?;
    // Fails for a stopped container, which needs no pause.
    let _paused = if pause { access::pause(store, &container) } else { None };
    let run_error = |error: CopyError| match error {
        // A closed pipe exits silently, as if killed by SIGPIPE.
        CopyError::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            RunError { exit_code: 141, text: String::new() }
        }
        error => RunError { exit_code: 1, text: error.to_string() },
    };
    match access::with_files(store, &container, |root| job(root).map_err(run_error)) {
        Err(RunError { exit_code: code, text }) if text.is_empty() => Err(Exit::Said(code).into()),
        done => Ok(done.map_err(|error| anyhow::anyhow!(error.text))?),
    }
}

pub(in crate::cli) fn cp(global: &Global, a: &CpArgs) -> anyhow::Result<()> {
    let [from, to] = usage_errors::exactly("cp", &a.args)?;
    if from.is_empty() {
        anyhow::bail!("source can not be empty");
    }
    if to.is_empty() {
        anyhow::bail!("destination can not be empty");
    }
    let host = Rootfs::open(Path::new("/"))?;
    let store = global.store()?;
    match (side(from.as_bytes()), side(to.as_bytes())) {
        (Side::In(..), Side::In(..)) => anyhow::bail!("copying between containers is not supported"),
        (Side::Here(_), Side::Here(_)) => anyhow::bail!("must specify at least one container source"),
        (Side::In(name, path), Side::Here(b"-")) => {
            let path = from_root(path);
            // Not paused: the container may be reading the output.
            with_container(&store, name, false, move |root| pack(root, name, &path, a))
        }
        (Side::In(name, path), Side::Here(here)) => {
            let (path, here) = (from_root(path), absolute(here)?);
            let job = move |root: &Rootfs| {
                let from = Place { root, path: &path, container: Some(name) };
                let to = Place { root: &host, path: &here, container: None };
                // Read here, because the IDs differ in a user namespace.
                let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                let owner = if a.archive { Owner::Kept } else { Owner::Is(user.0, user.1) };
                let bytes = copy::copy(&from, &to, a.follow_link, owner)?;
                report_copied(a, bytes, &show(&here));
                Ok(())
            };
            with_container(&store, name, true, job)
        }
        (Side::Here(here), Side::In(name, path)) => {
            let path = from_root(path);
            let from_stdin = here == b"-";
            let here = if from_stdin { None } else { Some(absolute(here)?) };
            let job = move |root: &Rootfs| {
                let to = Place { root, path: &path, container: Some(name) };
                let bytes = match &here {
                    None => copy::unpack(io::stdin().lock(), &to, Owner::Kept)?,
                    Some(here) => {
                        let from = Place { root: &host, path: here, container: None };
                        let owner = if a.archive { Owner::Kept } else { Owner::Is(0, 0) };
                        copy::copy(&from, &to, a.follow_link, owner)?
                    }
                };
                report_copied(a, bytes, &format!("{name}:{}", show(&path)));
                Ok(())
            };
            // Not paused with stdin: the container may be writing the input.
            with_container(&store, name, !from_stdin, job)
        }
    }
}

fn pack(root: &Rootfs, name: &str, path: &[u8], a: &CpArgs) -> copy::Result<()> {
    let from = Place { root, path, container: Some(name) };
    let out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    copy::pack(&from, a.follow_link, out).map(drop)
}

fn report_copied(a: &CpArgs, bytes: u64, place: &str) {
    if !a.quiet && io::stdout().is_terminal() {
        output::complaint(format_args!("Successfully copied {} to {place}", units::size(bytes)));
    }
}

/// Parses an argument, as Docker does: a colon ends a container's name, unless the text begins with `/` or `.`.
fn side(text: &[u8]) -> Side<'_> {
    let colon = text.iter().position(|byte| *byte == b':');
    match colon.map(|at| (str::from_utf8(&text[..at]), &text[at + 1..])) {
        Some((Ok(name), path)) if !name.is_empty() && !name.starts_with(['/', '.']) => Side::In(name, path),
        _ => Side::Here(text),
    }
}

/// Makes a container path absolute: it is relative to the root.
fn from_root(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
}

/// Makes a local path absolute. Keeps its end, because a final `/` or `/.` has a meaning.
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
