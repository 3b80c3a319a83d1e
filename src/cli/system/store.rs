//! Store maintenance: `system gc` and `system fsck`; and `version`.

use crate::cli::output::format;
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::{Exit, Global, usage_errors};
use crate::image::fsck::{self, Finding, Options};
use crate::image::{self, Platform};
use crate::store::gc;
use crate::template::{Data, Functions, MissingKey};

#[derive(clap::Subcommand)]
pub(in crate::cli) enum SystemCommand {
    /// Remove data that no image, container, mount or pull refers to
    Gc(GcArgs),
    /// Check the integrity of the store
    Fsck(FsckArgs),
    /// Show disk usage
    Df(crate::cli::system::df::DfArgs),
    /// Show information on the store and this host
    Info(crate::cli::system::info::InfoArgs),
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  plyfs system gc")]
pub(in crate::cli) struct GcArgs {
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  plyfs system fsck\n  plyfs system fsck --repair")]
pub(in crate::cli) struct FsckArgs {
    /// Repair the damage that can be repaired
    #[arg(long)]
    repair: bool,
    /// Do not read the tar archives of layers
    #[arg(long)]
    fast: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  plyfs version -f '{{.Client.Version}}'")]
pub(in crate::cli) struct VersionArgs {
    /// Output format: `json`, or a Go template over Client.Version, Client.Os and Client.Arch
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

pub(in crate::cli) fn system(global: &Global, command: &SystemCommand) -> anyhow::Result<()> {
    match command {
        SystemCommand::Gc(a) => collect(global, a),
        SystemCommand::Fsck(a) => check(global, a),
        SystemCommand::Df(a) => crate::cli::system::df::df(global, a),
        SystemCommand::Info(a) => crate::cli::system::info::info(global, a),
    }
}

fn collect(global: &Global, a: &GcArgs) -> anyhow::Result<()> {
    usage_errors::none("system gc", &a.args)?;
    let store = global.store()?;
    let lock = store.lock_exclusive()?;
    let (mut removed, trash) = gc::collect(&store, &lock, &store.catalog()?, image::FORMATS)?;
    removed.extend(gc::remove_downloads(&store, &lock)?);
    drop(lock);
    drop(trash);
    for item in &removed {
        output::line(format_args!("Deleted {}: {}", item.kind.name(), item.path.display()))?;
    }
    let bytes = removed.iter().map(|item| item.bytes).sum();
    output::line(format_args!("Total reclaimed space: {}", units::size(bytes)))
}

fn check(global: &Global, a: &FsckArgs) -> anyhow::Result<()> {
    usage_errors::none("system fsck", &a.args)?;
    let store = global.store()?;
    let mut told = Ok(());
    let mut tell = |finding: &Finding| {
        let mended = if finding.mended { " (repaired)" } else { "" };
        if told.is_ok() {
            told = output::line(format_args!("{}{mended}", finding.what));
        }
    };
    let summary = fsck::fsck(&store, Options { repair: a.repair, fast: a.fast }, &mut tell)?;
    told?;
    if summary.wrong > 0 { Err(Exit::Said(1).into()) } else { Ok(()) }
}

pub(in crate::cli) fn version(a: &VersionArgs) -> anyhow::Result<()> {
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
