//! `bundle`: writes an OCI bundle for an OCI runtime that the user calls.

use crate::cli::container::create::{self, ContainerArgs};
use crate::cli::mount::image as mount;
use crate::cli::{Global, usage_errors};
use crate::container::bundle::{self, Wanted};
use crate::container::userns::Mapping;
use crate::store::containers::ROOTFS;
use crate::sys;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(override_usage = "plyfs bundle [OPTIONS] IMAGE DIR [COMMAND [ARG...]]")]
#[command(after_help = "\
Creates DIR with config.json for the runtime, and mounts the image read-write at
DIR/rootfs. Changes are kept in DIR/upper.

Example:
  plyfs bundle debian:12 ./debian sleep 100
  runc run --bundle ./debian sleeper
  plyfs umount ./debian/rootfs")]
pub(in crate::cli) struct BundleArgs {
    #[command(flatten)]
    container: ContainerArgs,
    /// Image, directory to create, and command to run
    #[arg(value_names = ["IMAGE", "DIR", "COMMAND"], num_args = 0.., trailing_var_arg = true)]
    args: Vec<String>,
}

pub(in crate::cli) fn bundle(global: &Global, a: &BundleArgs) -> anyhow::Result<()> {
    let [wanted, dir, command @ ..] = &a.args[..] else {
        return Err(usage_errors::wrong_count("bundle", "requires at least 2 arguments"));
    };
    let store = global.store()?;
    let image = create::image(&store, wanted, &a.container)?;
    let container = create::described(&store, &image, wanted, command, &a.container)?;
    let dir = make(Path::new(dir))?;
    let rootfs = dir.join(ROOTFS);
    let begin = || {
        fs::create_dir(&rootfs)
            .map_err(|e| anyhow::anyhow!("cannot create {}: {}", rootfs.display(), sys::describe(&e)))?;
        mount::mount_writable(&store, wanted, &rootfs, dir.join("upper"), a.container.engine)
    };
    begin().inspect_err(|_| clear_away(&dir))?;
    // For an unprivileged user, the runtime creates the user namespace.
    let own_users = !sys::is_root();
    let alone = Mapping::Own { why: "the runtime maps only this user to its user namespace".into() };
    let written = bundle::write(&Wanted {
        container: &container,
        dir: &dir,
        root: Path::new(ROOTFS),
        mapping: own_users.then_some(&alone),
        own_users,
        terminal: a.container.tty,
        size: None,
    });
    written.map(drop).map_err(|error| {
        match mount::unmount_now(&store, &rootfs) {
            Ok(()) => clear_away(&dir),
            Err(error) => tracing::warn!("{error}"),
        }
        anyhow::anyhow!(error.text)
    })
}

/// Creates the bundle's directory. Fails if it exists and is not empty.
fn make(dir: &Path) -> anyhow::Result<PathBuf> {
    let failed = |e: &std::io::Error| anyhow::anyhow!("cannot create {}: {}", dir.display(), sys::describe(e));
    fs::create_dir_all(dir).map_err(|e| failed(&e))?;
    let dir = dir.canonicalize().map_err(|e| failed(&e))?;
    let is_empty = fs::read_dir(&dir).map_err(|e| failed(&e))?.next().is_none();
    anyhow::ensure!(is_empty, "{} is not empty", dir.display());
    Ok(dir)
}

/// Removes an incomplete bundle. Everything in the directory was created by this process: it was empty before.
fn clear_away(dir: &Path) {
    if let Err(e) = fs::remove_dir_all(dir) {
        tracing::warn!("cannot remove {}: {}", dir.display(), sys::describe(&e));
    }
}
