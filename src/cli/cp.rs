//! `cp`: files and directories between a container and this machine.

use super::{Global, args, human, output};
use crate::container::copy::{self, CopyError, Owner, Place};
use crate::container::inside::Inside;
use crate::name::show;
use crate::store::Store;
use crate::store::containers::{self, Container};
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

/// What is to be done with a container's tree. It may be called in another process, and in other namespaces: what it has
/// of this machine it has open.
pub(super) type Job<'a> = Box<dyn FnOnce(&Inside) -> copy::Result<()> + 'a>;

/// A container and a path in it, or a path of this machine.
#[derive(PartialEq, Debug)]
enum Side<'a> {
    In(&'a str, &'a [u8]),
    Here(&'a [u8]),
}

/// Copies; `reach` calls a job on a container's tree.
pub(super) fn cp(
    global: &Global,
    a: &CpArgs,
    reach: impl FnOnce(&Store, &Container, Job<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let [from, to] = args::exactly("cp", &a.args)?;
    if from.is_empty() {
        anyhow::bail!("source can not be empty");
    }
    if to.is_empty() {
        anyhow::bail!("destination can not be empty");
    }
    let host = Inside::open(Path::new("/"))?;
    let store = global.store()?;
    let find = |name: &str| containers::find(&store, name);
    let done = match (side(from.as_bytes()), side(to.as_bytes())) {
        (Side::In(..), Side::In(..)) => anyhow::bail!("copying between containers is not supported"),
        (Side::Here(_), Side::Here(_)) => anyhow::bail!("must specify at least one container source"),
        (Side::In(name, path), Side::Here(b"-")) => {
            let path = from_root(path);
            reach(&store, &find(name)?, Box::new(move |root| pack(root, name, &path, a)))
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
            reach(&store, &find(name)?, Box::new(job))
        }
        (Side::Here(here), Side::In(name, path)) => {
            let path = from_root(path);
            let here = if here == b"-" { None } else { Some(absolute(here)?) };
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
            reach(&store, &find(name)?, Box::new(job))
        }
    };
    done.map_err(|error| match error.downcast::<CopyError>() {
        // A reader that went away is no failure to tell of.
        Ok(CopyError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => e.into(),
        Ok(error) => error.into(),
        Err(error) => error,
    })
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
    use crate::digest::Digest;
    use crate::store::{Catalog, Error, Image};
    use std::fs;

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

    /// A store with a container `web` whose tree is a folder, and a command line over it.
    struct Bed {
        dir: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Bed {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("tree")).unwrap();
            let store = Store::open(&dir.path().join("store")).unwrap();
            let image = Image {
                id: Digest::of(b"image"),
                manifest: None,
                indexes: vec![],
                others: vec![],
                layers: vec![],
                tags: vec![],
                digests: vec![],
                created: None,
                pulled: String::new(),
            };
            let insert = |_: &_, catalog: &mut Catalog| {
                catalog.insert(image.clone());
                Ok::<_, Error>(())
            };
            store.update(insert).unwrap();
            let container = Container {
                id: containers::new_id().unwrap(),
                name: "web".into(),
                image,
                reference: "a:1".into(),
                created: String::new(),
                config: serde_json::Map::new(),
                host: containers::Host::default(),
            };
            drop(containers::create(&store, &container).unwrap());
            Bed { dir }
        }

        fn run(&self, args: &[&str]) -> Result<(), String> {
            let args = args.iter().map(OsString::from).collect();
            let global = Global { root: Some(self.dir.path().join("store")), log_level: None };
            let a = CpArgs { archive: false, follow_link: false, quiet: true, args };
            let tree = self.dir.path().join("tree");
            let reach = |_: &Store, _: &Container, job: Job<'_>| Ok(job(&Inside::open(&tree)?)?);
            cp(&global, &a, reach).map_err(|e| e.to_string())
        }
    }

    #[test]
    fn both_ways_and_what_is_refused() {
        let bed = Bed::new();
        let local = bed.dir.path().join("local");
        fs::write(&local, "text").unwrap();
        let local = local.to_str().unwrap();
        bed.run(&[local, "web:there"]).unwrap();
        assert_eq!(fs::read(bed.dir.path().join("tree/there")).unwrap(), b"text");
        let back = format!("{local}.back");
        bed.run(&["web:/there", &back]).unwrap();
        assert_eq!(fs::read(back).unwrap(), b"text");
        for (args, want) in [
            (&["web:/a", "web:/b"][..], "copying between containers is not supported"),
            (&["/a", "/b"], "must specify at least one container source"),
            (&["", "/b"], "source can not be empty"),
            (&["web:/a", ""], "destination can not be empty"),
            (&["no:/a", "/b"], "No such container: no"),
            (&["web:/a", "/b"], "Could not find the file /a in container web"),
            (&["-", "web:/there"], "destination \"web:/there\" must be a directory"),
            (&["web:/a"], "\"plyfs cp\" requires exactly 2 arguments.\nSee 'plyfs cp --help'."),
        ] {
            assert_eq!(bed.run(args).unwrap_err(), want, "{args:?}");
        }
    }
}
