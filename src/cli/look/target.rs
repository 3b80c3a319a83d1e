//! What a command looks into: an image, a container, or an upper directory on an image.

use crate::browse::{PathError, resolve};
use crate::cli::container::changes::{Target, UpperArgs, of_container, of_upper};
use crate::cli::output::stdout as output;
use crate::cli::registry::pull::MissingArgs;
use crate::cli::{Exit, Global, usage_errors};
use crate::fs::{Attr, Fs};
use crate::image::{self, commit};
use crate::name::show;
use crate::store::{self, Image, Store, containers};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The options that select what to look into.
#[derive(clap::Args)]
pub(super) struct LookArgs {
    #[command(flatten)]
    upper: UpperArgs,
    #[command(flatten)]
    missing: MissingArgs,
}

/// What was found, open for reading.
pub(super) struct Opened {
    pub(super) fs: Fs,
    /// Keeps a container paused.
    _target: Option<Target>,
}

impl LookArgs {
    /// Opens what the arguments name: the first word unless there is `--upper`. Returns the words left.
    pub(super) fn open<'a>(
        &self,
        global: &Global,
        verb: &str,
        words: &'a [OsString],
    ) -> anyhow::Result<(Opened, &'a [OsString])> {
        let store = global.store()?;
        if let Some(upper) = &self.upper.upper {
            let target = of_upper(&store, upper, self.upper.image.as_deref())?;
            return Ok((view(&store, target)?, words));
        }
        let words = usage_errors::at_least_one(verb, words)?;
        let wanted = text(&words[0])?;
        match containers::find(&store, wanted) {
            Ok(_) => {
                let target = of_container(&store, wanted, true)?;
                return Ok((view(&store, target)?, &words[1..]));
            }
            Err(store::Error::NoSuchContainer(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let image = self.missing.bring_in(&store, wanted)?;
        Ok((Opened { fs: open_image(&store, &image)?, _target: None }, &words[1..]))
    }

    /// The upper directory that the options name, and its image's name.
    pub(super) fn upper(&self) -> Option<(&Path, Option<&str>)> {
        Some((self.upper.upper.as_deref()?, self.upper.image.as_deref()))
    }

    /// Finds an image, or pulls it.
    pub(super) fn image(&self, store: &Store, wanted: &str) -> anyhow::Result<Image> {
        self.missing.bring_in(store, wanted)
    }
}

/// Opens an image's file system.
pub(in crate::cli) fn open_image(store: &Store, image: &Image) -> anyhow::Result<Fs> {
    let opened = {
        // The lock keeps the image until its files are open; open files survive a removal.
        let _beginning = store.lock_shared()?;
        image::open_tree(store, image)?
    };
    Ok(opened.into_fs(None, None)?)
}

/// Opens the union of an image and an upper directory, as its mount shows it.
fn view(store: &Store, target: Target) -> anyhow::Result<Opened> {
    target.write_back(store)?;
    let fs = target.consistently(|| commit::open_view(store, &target.image, &target.upper))?;
    Ok(Opened { fs, _target: Some(target) })
}

/// Returns a word as text: names of images and containers are UTF-8.
pub(super) fn text(word: &OsString) -> anyhow::Result<&str> {
    word.to_str().ok_or_else(|| anyhow::anyhow!("No such image: {}", show(word.as_bytes())))
}

/// Returns the paths of a command line, relative to the root; `/` if there are none.
pub(super) fn paths(words: &[OsString]) -> Vec<Vec<u8>> {
    match words {
        [] => vec![b"/".to_vec()],
        words => words.iter().map(|word| word.as_bytes().to_vec()).collect(),
    }
}

/// Collects errors of single paths: each is printed as one line, and the command goes on and fails at the end.
#[derive(Default)]
pub(super) struct Complaints {
    any: bool,
}

impl Complaints {
    pub(super) fn add(&mut self, path: &[u8], error: impl std::fmt::Display) {
        output::complaint(format_args!("Error: {}: {error}", show(path)));
        self.any = true;
    }

    /// Returns an error with exit code 1 if there were any.
    pub(super) fn end(self) -> anyhow::Result<()> {
        if self.any { Err(Exit::Said(1).into()) } else { Ok(()) }
    }
}

impl Opened {
    /// [`resolve`], for a path of the command line.
    pub(super) fn find(&self, path: &[u8], follow: bool) -> Result<Attr, PathError> {
        resolve(&self.fs, path, follow)
    }

    /// Calls `with` with each path that exists, and its attributes; complains about the others.
    pub(super) fn each(
        &self,
        paths: &[Vec<u8>],
        follow: bool,
        complaints: &mut Complaints,
        mut with: impl FnMut(&[u8], Attr, &mut Complaints) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for path in paths {
            match self.find(path, follow) {
                Ok(attr) => with(path, attr, complaints)?,
                Err(error) => complaints.add(path, error),
            }
        }
        Ok(())
    }
}
