//! The command line: Docker's shape and messages. A dispatcher; each family of verbs has its own file.
//!
//! Exit codes: 0; 1 for failures and a wrong number of arguments; 64 for a bad template; 125 for flags that are unknown or
//! malformed.

mod archive;
mod args;
mod attach;
mod bundle;
mod changed;
mod chroot;
mod cp;
mod create;
mod daemon;
mod df;
mod exec;
mod export;
mod filter;
mod format;
mod generate;
mod history;
pub mod human;
mod images;
mod import;
mod inspect;
mod inspect_container;
mod interrupt;
mod lifecycle;
mod log;
mod login;
mod logs;
mod manifest;
mod mount;
mod mount_options;
mod mountpoint;
mod output;
mod overlay;
mod pattern;
mod progress;
mod prune;
mod ps;
mod pull;
mod push;
mod registry;
mod run;
mod save;
mod search;
mod system;
mod tag;
mod terminal;

use crate::store::Store;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A union file system for container images
#[derive(Parser)]
#[command(name = "plyfs", bin_name = "plyfs", version, disable_help_subcommand = true, arg_required_else_help = true)]
#[command(max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  plyfs pull debian:12
  plyfs mount debian:12 /mnt
  plyfs umount /mnt

Environment:
  PLYFS_ROOT               the store, as --root
  PLYFS_LOG                what to log, as --log-level
  DOCKER_DEFAULT_PLATFORM  for which machine to pull, as --platform
  REGISTRY_AUTH_FILE       credentials, as --authfile
  CONTAINERS_REGISTRIES_CONF
                           mirrors, instead of podman's usual registries.conf
  DOCKER_CONFIG            where Docker's config.json is, instead of ~/.docker; if set, it is read first
  XDG_DATA_HOME, XDG_CONFIG_HOME, XDG_RUNTIME_DIR
                           where a user's store, settings and credentials are
  ALL_PROXY, HTTPS_PROXY, HTTP_PROXY, NO_PROXY
                           how registries are reached, also in lower case
  SSL_CERT_FILE, SSL_CERT_DIR
                           certificates to trust instead of the system's";
const GLOBAL: &str = "Global options";
const LOG_VARIABLE: &str = "PLYFS_LOG";

/// What every verb takes.
#[derive(clap::Args)]
struct Global {
    /// The store [default: /var/lib/plyfs for root, else $XDG_DATA_HOME/plyfs]
    #[arg(long, global = true, value_name = "DIR", env = "PLYFS_ROOT", hide_env_values = true, help_heading = GLOBAL)]
    root: Option<PathBuf>,
    /// What to log: off, error, warn, info, debug, trace, or a filter such as plyfs::pull=debug [default: warn; for a
    /// mount's daemon info]
    #[arg(long, global = true, value_name = "LEVEL", env = LOG_VARIABLE, hide_env_values = true, help_heading = GLOBAL)]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Bring in an image
    Pull(pull::PullArgs),
    /// Put an image into a registry
    Push(push::PushArgs),
    /// Bring in the images of an archive
    Load(pull::LoadArgs),
    /// Write images into an archive
    Save(save::SaveArgs),
    /// Make an image out of a tar
    Import(import::ImportArgs),
    /// Write an image's files as one tar
    Export(export::ExportArgs),
    /// Make a container of an image and run a command in it
    Run(run::RunArgs),
    /// Make a container
    Create(run::OnlyCreateArgs),
    /// Have containers run again
    Start(run::StartArgs),
    /// Make a bundle of an image, for a runtime
    Bundle(bundle::BundleArgs),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// Show what a container printed
    Logs(logs::LogsArgs),
    /// End containers
    Stop(lifecycle::StopArgs),
    /// Send containers a signal
    Kill(lifecycle::KillArgs),
    /// Wait for the end of containers
    Wait(lifecycle::WaitArgs),
    /// Remove containers
    Rm(lifecycle::RmArgs),
    /// Copy files between a container and this machine
    Cp(cp::CpArgs),
    /// Show what a container or an upper directory changes
    Diff(changed::DiffArgs),
    /// Make an image of what a container or an upper directory changes
    Commit(changed::CommitArgs),
    /// List containers
    Ps(ps::PsArgs),
    /// List images
    Images(images::ImagesArgs),
    /// Show what is known of containers and images
    Inspect(inspect::InspectArgs),
    /// Show how an image was built
    History(history::HistoryArgs),
    /// Give an image another name
    Tag(tag::TagArgs),
    /// Remove images
    Rmi(tag::RmiArgs),
    /// Log in to a registry
    Login(login::LoginArgs),
    /// Log out from a registry
    Logout(login::LogoutArgs),
    /// Search Docker Hub or another registry for images
    Search(search::SearchArgs),
    /// Look at manifests in registries
    #[command(subcommand, arg_required_else_help = true)]
    Manifest(manifest::ManifestCommand),
    /// Manage containers
    #[command(subcommand, arg_required_else_help = true)]
    Container(ContainerCommand),
    /// Manage images
    #[command(subcommand, arg_required_else_help = true)]
    Image(ImageCommand),
    /// Mount an image
    Mount(mount::MountArgs),
    /// Unmount
    #[command(alias = "unmount")]
    Umount(mount::UmountArgs),
    /// List mounts
    Mounts(mount::MountsArgs),
    /// Merge directories at a mountpoint, as fuse-overlayfs does
    Overlay(overlay::OverlayArgs),
    /// Run a command in an image, without a runtime
    Chroot(chroot::ChrootArgs),
    /// Look after the store
    #[command(subcommand, arg_required_else_help = true)]
    System(system::SystemCommand),
    /// Show the version
    Version(system::VersionArgs),
    /// Print completions for a shell
    Completion(generate::CompletionArgs),
    /// Write manual pages
    #[command(hide = true)]
    Man(generate::ManArgs),
}

#[derive(Subcommand)]
enum ContainerCommand {
    /// Make a container of an image and run a command in it
    Run(run::RunArgs),
    /// Make a container
    Create(run::OnlyCreateArgs),
    /// Have containers run again
    Start(run::StartArgs),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// List containers
    #[command(aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    /// Show what a container printed
    Logs(logs::LogsArgs),
    /// End containers
    Stop(lifecycle::StopArgs),
    /// Send containers a signal
    Kill(lifecycle::KillArgs),
    /// Wait for the end of containers
    Wait(lifecycle::WaitArgs),
    /// Remove containers
    #[command(alias = "remove")]
    Rm(lifecycle::RmArgs),
    /// Show what is known of containers
    Inspect(inspect::InspectArgs),
    /// Copy files between a container and this machine
    Cp(cp::CpArgs),
    /// Show what a container changes
    Diff(changed::DiffArgs),
    /// Make an image of what a container changes
    Commit(changed::CommitArgs),
}

#[derive(Subcommand)]
enum ImageCommand {
    /// List images
    #[command(alias = "list")]
    Ls(images::ImagesArgs),
    /// Bring in an image
    Pull(pull::PullArgs),
    /// Put an image into a registry
    Push(push::PushArgs),
    /// Bring in the images of an archive
    Load(pull::LoadArgs),
    /// Write images into an archive
    Save(save::SaveArgs),
    /// Make an image out of a tar
    Import(import::ImportArgs),
    /// Show what is known of images
    Inspect(inspect::ImageInspectArgs),
    /// Show how an image was built
    History(history::HistoryArgs),
    /// Remove images that nobody needs
    Prune(prune::PruneArgs),
    /// Give an image another name
    Tag(tag::TagArgs),
    /// Remove images
    #[command(alias = "remove")]
    Rm(tag::RmiArgs),
}

/// How a verb ends when it does not simply succeed.
#[derive(Debug, thiserror::Error)]
enum Exit {
    /// With this code and this text on standard error, as it stands.
    #[error("{1}")]
    Text(u8, String),
    /// With this code; everything has been said.
    #[error("exit {0}")]
    Said(u8),
}

/// Runs the program with these arguments, the first being the name it was called under.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let done = match called.to_str() {
        Some("mount.plyfs" | "mount.fuse.plyfs") => helper(&args[1..], mount::Caller::Mount),
        Some("fuse-overlayfs") => overlay::as_fuse_overlayfs(&args[1..], std::env::var(LOG_VARIABLE).ok().as_deref()),
        _ if is_called_by_mount_fuse(&args) => helper(&args[1..], mount::Caller::MountFuse),
        _ => dispatch(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(complain(&error)),
    }
}

/// Prints an error as it should be printed; returns the exit code.
fn complain(error: &anyhow::Error) -> u8 {
    let broken_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<io::Error>().is_some_and(broken_pipe) {
        // Whoever read our output has seen enough: the code of a death by SIGPIPE, and silence.
        return 141;
    }
    let mut stderr = io::stderr().lock();
    // Nothing is left to complain to when standard error is gone.
    match error.downcast_ref::<Exit>() {
        Some(Exit::Said(code)) => *code,
        Some(Exit::Text(code, text)) => {
            let _gone = writeln!(stderr, "{text}");
            *code
        }
        None => {
            let _gone = writeln!(stderr, "Error: {error}");
            1
        }
    }
}

/// Whether these are the arguments that mount.fuse(8) has for the program of a type `fuse.plyfs`:
/// `plyfs IMAGE /MOUNTPOINT -o OPTIONS`.
fn is_called_by_mount_fuse(args: &[OsString]) -> bool {
    let [_, source, at, flag, _] = args else { return false };
    let is_verb = || source.to_str().is_some_and(|word| Cli::command().find_subcommand(word).is_some());
    flag == "-o" && Path::new(at).is_absolute() && !source.as_encoded_bytes().starts_with(b"-") && !is_verb()
}

/// The program as mount(8)'s helper, which has no flags of its own.
fn helper(args: &[OsString], caller: mount::Caller) -> anyhow::Result<()> {
    log::begin(std::env::var(LOG_VARIABLE).ok().as_deref())?;
    mount::helper(args, caller)
}

fn dispatch(args: &[OsString]) -> anyhow::Result<()> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return args::clap_error(&error, &Cli::command(), args),
    };
    log::begin(cli.global.log_level.as_deref())?;
    let global = &cli.global;
    match cli.command {
        Command::Pull(a) | Command::Image(ImageCommand::Pull(a)) => pull::pull(global, &a),
        Command::Push(a) | Command::Image(ImageCommand::Push(a)) => push::push(global, &a),
        Command::Load(a) | Command::Image(ImageCommand::Load(a)) => pull::load(global, &a),
        Command::Save(a) | Command::Image(ImageCommand::Save(a)) => save::save(global, &a),
        Command::Import(a) | Command::Image(ImageCommand::Import(a)) => import::import(global, &a),
        Command::Export(a) => export::export(global, &a),
        Command::Run(a) | Command::Container(ContainerCommand::Run(a)) => run::run(global, &a),
        Command::Create(a) | Command::Container(ContainerCommand::Create(a)) => run::create(global, &a),
        Command::Start(a) | Command::Container(ContainerCommand::Start(a)) => run::start(global, &a),
        Command::Bundle(a) => bundle::bundle(global, &a),
        Command::Exec(a) | Command::Container(ContainerCommand::Exec(a)) => exec::exec(global, &a),
        Command::Logs(a) | Command::Container(ContainerCommand::Logs(a)) => logs::logs(global, &a),
        Command::Stop(a) | Command::Container(ContainerCommand::Stop(a)) => lifecycle::stop(global, &a),
        Command::Kill(a) | Command::Container(ContainerCommand::Kill(a)) => lifecycle::kill(global, &a),
        Command::Wait(a) | Command::Container(ContainerCommand::Wait(a)) => lifecycle::wait_for(global, &a),
        Command::Rm(a) | Command::Container(ContainerCommand::Rm(a)) => lifecycle::rm(global, &a),
        Command::Cp(a) | Command::Container(ContainerCommand::Cp(a)) => cp::cp(global, &a),
        Command::Diff(a) | Command::Container(ContainerCommand::Diff(a)) => changed::diff(global, &a),
        Command::Commit(a) | Command::Container(ContainerCommand::Commit(a)) => changed::commit(global, &a),
        Command::Ps(a) | Command::Container(ContainerCommand::Ls(a)) => ps::ps(global, &a),
        Command::Images(a) | Command::Image(ImageCommand::Ls(a)) => images::images(global, &a),
        Command::Inspect(a) => inspect::inspect(global, &a),
        Command::Container(ContainerCommand::Inspect(a)) => inspect::inspect_containers(global, a),
        Command::Image(ImageCommand::Inspect(a)) => inspect::inspect_images(global, &a),
        Command::History(a) | Command::Image(ImageCommand::History(a)) => history::history(global, &a),
        Command::Image(ImageCommand::Prune(a)) => prune::prune(global, &a),
        Command::Tag(a) | Command::Image(ImageCommand::Tag(a)) => tag::tag(global, &a),
        Command::Rmi(a) | Command::Image(ImageCommand::Rm(a)) => tag::rmi(global, &a),
        Command::Login(a) => login::login(&a),
        Command::Logout(a) => login::logout(&a),
        Command::Search(a) => search::search(&a),
        Command::Manifest(manifest::ManifestCommand::Inspect(a)) => manifest::inspect(&a),
        Command::Mount(a) => mount::mount(global, &a),
        Command::Umount(a) => mount::umount(global, &a),
        Command::Mounts(a) => mount::mounts(global, &a),
        Command::Overlay(a) => overlay::overlay(&a),
        Command::Chroot(a) => chroot::chroot(global, &a),
        Command::System(a) => system::system(global, &a),
        Command::Version(a) => system::version(&a),
        Command::Completion(a) => generate::completion(&a),
        Command::Man(a) => generate::man(&a),
    }
}

impl Global {
    /// Opens the store that the flags and the environment mean.
    fn store(&self) -> anyhow::Result<Store> {
        open_store(self.root.as_deref())
    }
}

/// Opens the store that was named, or the user's own.
fn open_store(root: Option<&Path>) -> anyhow::Result<Store> {
    let root = match root {
        Some(root) => root.into(),
        None => default_root()?,
    };
    Ok(Store::open(&root)?)
}

fn default_root() -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    // A process's own folder belongs to its effective user.
    if std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0) {
        return Ok("/var/lib/plyfs".into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if let Some(data) = absolute("XDG_DATA_HOME") {
        return Ok(data.join("plyfs"));
    }
    match absolute("HOME") {
        Some(home) => Ok(home.join(".local/share/plyfs")),
        None => anyhow::bail!("neither XDG_DATA_HOME nor HOME is set: say where the store is by --root"),
    }
}
