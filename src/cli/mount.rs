//! `mount`, `umount`, `mounts`, and the `mount.plyfs` helper.

use super::{Global, args, output};
use crate::store::mounts;
use std::ffi::OsString;

#[derive(clap::Args)]
pub(super) struct MountArgs {
    /// Stay in front
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, comma-separated
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// The image and where to mount it
    #[arg(value_names = ["IMAGE", "MOUNTPOINT"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct UmountArgs {
    /// Mountpoints
    #[arg(value_name = "MOUNTPOINT")]
    args: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct MountsArgs {
    #[arg(hide = true)]
    args: Vec<String>,
}

pub(super) fn mount(_global: &Global, a: &MountArgs) -> anyhow::Result<()> {
    let [image, _at] = args::exactly("mount", &a.args)?;
    let _later = (a.foreground, &a.options);
    anyhow::bail!("cannot mount {image}: not built yet")
}

pub(super) fn umount(_global: &Global, a: &UmountArgs) -> anyhow::Result<()> {
    let wanted = args::at_least_one("umount", &a.args)?;
    anyhow::bail!("cannot unmount {}: not built yet", wanted.join(" "))
}

pub(super) fn mounts(global: &Global, a: &MountsArgs) -> anyhow::Result<()> {
    args::none("mounts", &a.args)?;
    let row = |m: mounts::Info| {
        let mountpoint = m.mountpoint.display().to_string();
        vec![m.id, m.reference, m.image.short().to_owned(), m.pid.to_string(), mountpoint]
    };
    let rows: Vec<Vec<String>> = mounts::list(&global.store()?)?.into_iter().map(row).collect();
    output::table(&["MOUNT ID", "IMAGE", "IMAGE ID", "PID", "MOUNTPOINT"], &rows)
}

/// What mount(8) calls: `mount.plyfs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS]`.
pub(super) fn helper(_args: &[OsString]) -> anyhow::Result<()> {
    anyhow::bail!("cannot mount: not built yet")
}
