//! `bundle`: a container for a runtime that somebody else calls.

use super::create::{self, WhatArgs};
use super::{Global, args, mount};
use crate::container::bundle::{self, Wanted};
use crate::container::userns::Mapping;
use crate::store::containers::ROOTFS;
use crate::sys;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(override_usage = "plyfs bundle [OPTIONS] IMAGE DIR [COMMAND [ARG...]]")]
#[command(after_help = "\
DIR is made, with config.json for the runtime, the image mounted at DIR/rootfs,
and what is changed in it at DIR/upper, which stays.

Example:
  plyfs bundle debian:12 ./debian sleep 100
  runc run --bundle ./debian sleeper
  plyfs umount ./debian/rootfs")]
pub(super) struct BundleArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// The image, the directory, and what to run
    #[arg(value_names = ["IMAGE", "DIR", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

pub(super) fn bundle(global: &Global, a: &BundleArgs) -> anyhow::Result<()> {
    let [wanted, dir, command @ ..] = &a.args[..] else {
        return Err(args::wrong_count("bundle", "requires at least 2 arguments"));
    };
    let store = global.store()?;
    let image = create::image(&store, wanted, &a.what)?;
    let container = create::described(&store, &image, wanted, command, &a.what)?;
    let dir = make(Path::new(dir))?;
    let rootfs = dir.join(ROOTFS);
    let begin = || {
        fs::create_dir(&rootfs)
            .map_err(|e| anyhow::anyhow!("cannot make {}: {}", rootfs.display(), sys::describe(&e)))?;
        mount::mount_writable(&store, wanted, &rootfs, dir.join("upper"))
    };
    begin().inspect_err(|_| clear_away(&dir))?;
    // The runtime makes the user namespace that a plain user needs.
    let own_users = !sys::is_root();
    let alone = Mapping::Own { why: "the runtime makes a user namespace for this user alone".into() };
    let written = bundle::write(&Wanted {
        container: &container,
        dir: &dir,
        root: Path::new(ROOTFS),
        mapping: own_users.then_some(&alone),
        own_users,
        terminal: a.what.tty,
        size: None,
    });
    written.map(drop).map_err(|refusal| {
        match mount::unmount_now(&store, &rootfs) {
            Ok(()) => clear_away(&dir),
            Err(error) => tracing::warn!("{error}"),
        }
        anyhow::anyhow!(refusal.text)
    })
}

/// Makes the bundle's directory, which may be there if it is empty.
fn make(dir: &Path) -> anyhow::Result<PathBuf> {
    let failed = |e: &std::io::Error| anyhow::anyhow!("cannot make {}: {}", dir.display(), sys::describe(e));
    fs::create_dir_all(dir).map_err(|e| failed(&e))?;
    let dir = dir.canonicalize().map_err(|e| failed(&e))?;
    let is_empty = fs::read_dir(&dir).map_err(|e| failed(&e))?.next().is_none();
    anyhow::ensure!(is_empty, "{} is not empty", dir.display());
    Ok(dir)
}

/// Takes what was made of a bundle that there will not be. All of it is ours: the directory was empty.
fn clear_away(dir: &Path) {
    if let Err(e) = fs::remove_dir_all(dir) {
        tracing::warn!("cannot remove {}: {}", dir.display(), sys::describe(&e));
    }
}
