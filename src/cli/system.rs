//! `system gc`, `system fsck`, `version`.

use super::{Exit, Global, args, format, human, output};
use crate::image::Platform;
use crate::image::fsck::{self, Finding, Options};
use crate::layer;
use crate::store::gc;
use crate::template::{Data, Functions, MissingKey};

#[derive(clap::Subcommand)]
pub(super) enum SystemCommand {
    /// Remove what no image, mount or running pull needs
    Gc(GcArgs),
    /// Check the store, every byte of it
    Fsck(FsckArgs),
    /// Show what takes how much room
    Df(super::df::DfArgs),
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  plyfs system gc")]
pub(super) struct GcArgs {
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  plyfs system fsck\n  plyfs system fsck --repair")]
pub(super) struct FsckArgs {
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// Leave the layers' tars unread
    #[arg(long)]
    fast: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  plyfs version -f '{{.Client.Version}}'")]
pub(super) struct VersionArgs {
    /// `json`, or a Go template over Client.Version, Client.Os and Client.Arch
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

pub(super) fn system(global: &Global, command: &SystemCommand) -> anyhow::Result<()> {
    match command {
        SystemCommand::Gc(a) => collect(global, a),
        SystemCommand::Fsck(a) => check(global, a),
        SystemCommand::Df(a) => super::df::df(global, a),
    }
}

fn collect(global: &Global, a: &GcArgs) -> anyhow::Result<()> {
    args::none("system gc", &a.args)?;
    let store = global.store()?;
    let lock = store.lock_exclusive()?;
    let (mut removed, trash) = gc::collect(&store, &lock, &store.catalog()?, layer::FORMAT)?;
    removed.extend(gc::remove_downloads(&store, &lock)?);
    drop(lock);
    drop(trash);
    for item in &removed {
        output::line(format_args!("Deleted {}: {}", item.kind.name(), item.path.display()))?;
    }
    let bytes = removed.iter().map(|item| item.bytes).sum();
    output::line(format_args!("Total reclaimed space: {}", human::size(bytes)))
}

fn check(global: &Global, a: &FsckArgs) -> anyhow::Result<()> {
    args::none("system fsck", &a.args)?;
    let store = global.store()?;
    let mut told = Ok(());
    let mut tell = |finding: &Finding| {
        let mended = if finding.mended { " (mended)" } else { "" };
        if told.is_ok() {
            told = output::line(format_args!("{}{mended}", finding.what));
        }
    };
    let summary = fsck::fsck(&store, Options { repair: a.repair, fast: a.fast }, &mut tell)?;
    told?;
    if summary.wrong > 0 { Err(Exit::Said(1).into()) } else { Ok(()) }
}

pub(super) fn version(a: &VersionArgs) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let template = match a.format.as_deref() {
        None | Some("") => return output::line(format_args!("plyfs version {version}")),
        Some("json") => "{{json .}}",
        Some(template) => template,
    };
    let host = Platform::host();
    let text = |name: &str, value: &str| (name.to_owned(), Data::str(value));
    let client = vec![text("Version", version), text("Os", &host.os), text("Arch", &host.architecture)];
    let all = Data::record("plyfs.Version", vec![("Client".to_owned(), Data::record("plyfs.Client", client))]);
    let filled = format::parse(template)?.execute(&all, MissingKey::NoValue, Functions::Data);
    output::line(filled.map_err(format::failed)?)
}
