//! Command-line interface: the clap parser and the dispatcher. Syntax and messages follow Docker's; each group of
//! commands has its own module.
//!
//! Exit codes: 0 for success; 1 for failures and a wrong number of arguments; 64 for a bad template; 125 for unknown or
//! malformed flags; 141 if the reader of the output closed the pipe.

mod build;
mod completion;
mod config;
mod container;
mod explore;
mod filter;
mod image;
mod interrupt;
mod log;
mod look;
mod mount;
mod output;
mod registry;
mod system;
mod usage_errors;

use crate::store::Store;
use build::prune::BuilderCommand;
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
  PLYFS_ROOT               store directory, as --root
  PLYFS_LOG                log level, as --log-level
  PLYFS_ENGINE             engine of mounts and containers, as --engine
  DOCKER_DEFAULT_PLATFORM  platform to pull, as --platform
  REGISTRY_AUTH_FILE       credentials file, as --authfile
  CONTAINERS_REGISTRIES_CONF
                           registry mirrors, instead of podman's registries.conf
  DOCKER_CONFIG            directory of Docker's config.json, instead of
                           ~/.docker; if set, it is read first
  XDG_DATA_HOME, XDG_CONFIG_HOME, XDG_RUNTIME_DIR
                           directories of the store, settings and credentials
  ALL_PROXY, HTTPS_PROXY, HTTP_PROXY, NO_PROXY
                           proxies for registries, also in lower case
  SSL_CERT_FILE, SSL_CERT_DIR
                           trusted certificates, instead of the system's

Files:
  /etc/plyfs/plyfs.toml, $XDG_CONFIG_HOME/plyfs/plyfs.toml
                           defaults: root, log-level, engine, platform,
                           authfile, registries-conf";
const GLOBAL: &str = "Global options";
const LOG_VARIABLE: &str = "PLYFS_LOG";

/// Options of every command.
#[derive(clap::Args)]
struct Global {
    /// Store directory [default: /var/lib/plyfs for root, else $XDG_DATA_HOME/plyfs]
    #[arg(long, global = true, value_name = "DIR", env = "PLYFS_ROOT", hide_env_values = true, help_heading = GLOBAL)]
    root: Option<PathBuf>,
    /// Log level: off, error, warn, info, debug, trace, or a filter such as plyfs::pull=debug [default: warn; info for
    /// the daemon of a mount]
    #[arg(long, global = true, value_name = "LEVEL", env = LOG_VARIABLE, hide_env_values = true, help_heading = GLOBAL)]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Pull an image from a registry, an OCI layout or an archive
    Pull(registry::pull::PullArgs),
    /// Push an image to a registry
    Push(registry::push::PushArgs),
    /// Load images from an archive
    Load(registry::pull::LoadArgs),
    /// Save images to an archive
    Save(image::save::SaveArgs),
    /// Build an image from a Dockerfile
    Build(build::BuildArgs),
    /// Create an image from a tar archive of a file system
    Import(image::import::ImportArgs),
    /// Export the file system of an image as a tar archive
    Export(image::export::ExportArgs),
    /// Create a container from an image and run a command in it
    Run(container::run::RunArgs),
    /// Create a container
    Create(container::run::OnlyCreateArgs),
    /// Start stopped containers
    Start(container::run::StartArgs),
    /// Create an OCI runtime bundle from an image
    Bundle(container::bundle::BundleArgs),
    /// Run a command in a running container
    Exec(container::exec::ExecArgs),
    /// Show the logs of a container
    Logs(container::logs::LogsArgs),
    /// Stop running containers
    Stop(container::lifecycle::StopArgs),
    /// Send a signal to containers
    Kill(container::lifecycle::KillArgs),
    /// Wait until containers stop, then print their exit codes
    Wait(container::lifecycle::WaitArgs),
    /// Remove containers
    Rm(container::lifecycle::RmArgs),
    /// Copy files between a container and the host
    Cp(container::cp::CpArgs),
    /// Show the changes in a container or an upper directory, or what differs between two images
    Diff(look::diff::DiffArgs),
    /// Create an image from the changes in a container or an upper directory
    Commit(container::commit::CommitArgs),
    /// List containers
    Ps(container::ps::PsArgs),
    /// List images
    Images(image::images::ImagesArgs),
    /// Show detailed information on containers and images
    Inspect(image::inspect::InspectArgs),
    /// Show the history of an image
    History(image::history::HistoryArgs),
    /// List files of an image or a container
    Ls(look::ls::LsArgs),
    /// Print files of an image or a container
    Cat(look::cat::CatArgs),
    /// Show the disk usage of files of an image or a container
    Du(look::du::DuArgs),
    /// Search for files in an image or a container
    Find(look::find::FindArgs),
    /// Show what each layer of an image does, to all files or to one path
    Layers(look::layers::LayersArgs),
    /// Explore the layers and files of an image on a terminal
    Explore(explore::ExploreArgs),
    /// Add a name to an image
    Tag(image::tag::TagArgs),
    /// Remove images
    Rmi(image::tag::RmiArgs),
    /// Log in to a registry
    Login(registry::login::LoginArgs),
    /// Log out from a registry
    Logout(registry::login::LogoutArgs),
    /// Search Docker Hub or another registry for images
    Search(registry::search::SearchArgs),
    /// Manage manifest lists, and inspect image manifests in registries
    #[command(subcommand, arg_required_else_help = true)]
    Manifest(registry::manifest::ManifestCommand),
    /// Build images, and manage the build cache
    #[command(subcommand, arg_required_else_help = true)]
    Builder(build::prune::BuilderCommand),
    /// The same under the name of Docker's plugin
    #[command(subcommand, arg_required_else_help = true, hide = true)]
    Buildx(build::prune::BuilderCommand),
    /// Manage containers
    #[command(subcommand, arg_required_else_help = true)]
    Container(ContainerCommand),
    /// Manage images
    #[command(subcommand, arg_required_else_help = true)]
    Image(ImageCommand),
    /// Mount an image
    Mount(mount::image::MountArgs),
    /// Unmount one or more mountpoints
    #[command(alias = "unmount")]
    Umount(mount::image::UmountArgs),
    /// List mounts
    Mounts(mount::image::MountsArgs),
    /// Mount a union of directories, compatible with fuse-overlayfs
    Overlay(mount::overlay::OverlayArgs),
    /// Run a command in an image, without a container runtime
    Chroot(container::chroot::ChrootArgs),
    /// Manage the store
    #[command(subcommand, arg_required_else_help = true)]
    System(system::store::SystemCommand),
    /// Show information on the store and this host
    Info(system::info::InfoArgs),
    /// Show the version
    Version(system::store::VersionArgs),
    /// Print a shell completion script
    Completion(completion::CompletionArgs),
    /// Complete the last word of a command line
    #[command(hide = true)]
    Complete(completion::CompleteArgs),
    /// Run one step of a build, which is on standard input
    #[command(hide = true)]
    BuildStep,
    /// Write the manual pages
    #[command(hide = true)]
    Man(completion::ManArgs),
}

#[derive(Subcommand)]
enum ContainerCommand {
    /// Create a container from an image and run a command in it
    Run(container::run::RunArgs),
    /// Create a container
    Create(container::run::OnlyCreateArgs),
    /// Start stopped containers
    Start(container::run::StartArgs),
    /// Run a command in a running container
    Exec(container::exec::ExecArgs),
    /// List containers
    #[command(aliases = ["list", "ps"])]
    Ls(container::ps::PsArgs),
    /// Show the logs of a container
    Logs(container::logs::LogsArgs),
    /// Stop running containers
    Stop(container::lifecycle::StopArgs),
    /// Send a signal to containers
    Kill(container::lifecycle::KillArgs),
    /// Wait until containers stop, then print their exit codes
    Wait(container::lifecycle::WaitArgs),
    /// Remove containers
    #[command(alias = "remove")]
    Rm(container::lifecycle::RmArgs),
    /// Show detailed information on containers
    Inspect(image::inspect::InspectArgs),
    /// Copy files between a container and the host
    Cp(container::cp::CpArgs),
    /// Show the changes in a container
    Diff(look::diff::DiffArgs),
    /// Create an image from the changes in a container
    Commit(container::commit::CommitArgs),
}

#[derive(Subcommand)]
enum ImageCommand {
    /// List images
    #[command(alias = "list")]
    Ls(image::images::ImagesArgs),
    /// Pull an image from a registry, an OCI layout or an archive
    Pull(registry::pull::PullArgs),
    /// Push an image to a registry
    Push(registry::push::PushArgs),
    /// Load images from an archive
    Load(registry::pull::LoadArgs),
    /// Save images to an archive
    Save(image::save::SaveArgs),
    /// Build an image from a Dockerfile
    Build(build::BuildArgs),
    /// Create an image from a tar archive of a file system
    Import(image::import::ImportArgs),
    /// Show detailed information on images
    Inspect(image::inspect::ImageInspectArgs),
    /// Show the history of an image
    History(image::history::HistoryArgs),
    /// Remove unused images
    Prune(image::prune::PruneArgs),
    /// Add a name to an image
    Tag(image::tag::TagArgs),
    /// Remove images
    #[command(alias = "remove")]
    Rm(image::tag::RmiArgs),
}

/// An exit code other than 0 and 1, or an error without the `Error: ` prefix.
#[derive(Debug, thiserror::Error)]
enum Exit {
    /// Prints the text to standard error, without a prefix, and exits with the code.
    #[error("{1}")]
    Text(u8, String),
    /// Exits with the code and prints nothing: the errors are printed already.
    #[error("exit {0}")]
    Said(u8),
}

/// Runs the program. The first argument is the name it was called under, which selects its behaviour.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let done = match called.to_str() {
        Some("mount.plyfs" | "mount.fuse.plyfs") => helper(&args[1..], mount::image::Caller::Mount),
        Some("fuse-overlayfs") => {
            mount::overlay::as_fuse_overlayfs(&args[1..], std::env::var(LOG_VARIABLE).ok().as_deref())
        }
        _ if args.len() == 2 && args[1] == mount::takeover::VERSION_COMMAND => mount::takeover::print_version(),
        _ if is_called_by_mount_fuse(&args) => helper(&args[1..], mount::image::Caller::MountFuse),
        _ => dispatch(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(print_error(&error)),
    }
}

/// Prints an error to standard error and returns the exit code.
fn print_error(error: &anyhow::Error) -> u8 {
    let broken_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<io::Error>().is_some_and(broken_pipe) {
        // The reader closed the pipe: no message, and the exit code of a process killed by SIGPIPE (128 + 13).
        return 141;
    }
    let mut stderr = io::stderr().lock();
    // An error on standard error cannot be reported anywhere.
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

/// Whether mount.fuse(8) called the program, for type `fuse.plyfs`: `plyfs IMAGE /MOUNTPOINT -o OPTIONS`.
fn is_called_by_mount_fuse(args: &[OsString]) -> bool {
    let [_, source, at, flag, _] = args else { return false };
    let is_verb = || source.to_str().is_some_and(|word| Cli::command().find_subcommand(word).is_some());
    flag == "-o" && Path::new(at).is_absolute() && !source.as_encoded_bytes().starts_with(b"-") && !is_verb()
}

/// Runs as a mount helper (mount.plyfs), which has no global options.
fn helper(args: &[OsString], caller: mount::image::Caller) -> anyhow::Result<()> {
    log::begin(std::env::var(LOG_VARIABLE).ok().as_deref().or(config::load()?.log_level.as_deref()))?;
    mount::image::helper(args, caller)
}

fn dispatch(args: &[OsString]) -> anyhow::Result<()> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage_errors::clap_error(&error, &Cli::command(), args),
    };
    log::begin(cli.global.log_level.as_deref().or(config::load()?.log_level.as_deref()))?;
    let global = &cli.global;
    match cli.command {
        Command::Pull(a) | Command::Image(ImageCommand::Pull(a)) => registry::pull::pull(global, &a),
        Command::Push(a) | Command::Image(ImageCommand::Push(a)) => registry::push::push(global, &a),
        Command::Load(a) | Command::Image(ImageCommand::Load(a)) => registry::pull::load(global, &a),
        Command::Save(a) | Command::Image(ImageCommand::Save(a)) => image::save::save(global, &a),
        Command::Import(a) | Command::Image(ImageCommand::Import(a)) => image::import::import(global, &a),
        Command::Build(a)
        | Command::Image(ImageCommand::Build(a))
        | Command::Builder(BuilderCommand::Build(a))
        | Command::Buildx(BuilderCommand::Build(a)) => build::build(global, &a),
        Command::Builder(BuilderCommand::Prune(a)) | Command::Buildx(BuilderCommand::Prune(a)) => {
            build::prune::prune(global, &a)
        }
        Command::BuildStep => build::build_step(),
        Command::Export(a) => image::export::export(global, &a),
        Command::Run(a) | Command::Container(ContainerCommand::Run(a)) => container::run::run(global, &a),
        Command::Create(a) | Command::Container(ContainerCommand::Create(a)) => container::run::create(global, &a),
        Command::Start(a) | Command::Container(ContainerCommand::Start(a)) => container::run::start(global, &a),
        Command::Bundle(a) => container::bundle::bundle(global, &a),
        Command::Exec(a) | Command::Container(ContainerCommand::Exec(a)) => container::exec::exec(global, &a),
        Command::Logs(a) | Command::Container(ContainerCommand::Logs(a)) => container::logs::logs(global, &a),
        Command::Stop(a) | Command::Container(ContainerCommand::Stop(a)) => container::lifecycle::stop(global, &a),
        Command::Kill(a) | Command::Container(ContainerCommand::Kill(a)) => container::lifecycle::kill(global, &a),
        Command::Wait(a) | Command::Container(ContainerCommand::Wait(a)) => container::lifecycle::wait_for(global, &a),
        Command::Rm(a) | Command::Container(ContainerCommand::Rm(a)) => container::lifecycle::rm(global, &a),
        Command::Cp(a) | Command::Container(ContainerCommand::Cp(a)) => container::cp::cp(global, &a),
        Command::Diff(a) | Command::Container(ContainerCommand::Diff(a)) => look::diff::diff(global, &a),
        Command::Commit(a) | Command::Container(ContainerCommand::Commit(a)) => container::commit::commit(global, &a),
        Command::Ps(a) | Command::Container(ContainerCommand::Ls(a)) => container::ps::ps(global, &a),
        Command::Images(a) | Command::Image(ImageCommand::Ls(a)) => image::images::images(global, &a),
        Command::Inspect(a) => image::inspect::inspect(global, &a),
        Command::Container(ContainerCommand::Inspect(a)) => image::inspect::inspect_containers(global, a),
        Command::Image(ImageCommand::Inspect(a)) => image::inspect::inspect_images(global, &a),
        Command::History(a) | Command::Image(ImageCommand::History(a)) => image::history::history(global, &a),
        Command::Ls(a) => look::ls::ls(global, &a),
        Command::Cat(a) => look::cat::cat(global, &a),
        Command::Du(a) => look::du::du(global, &a),
        Command::Find(a) => look::find::find(global, &a),
        Command::Layers(a) => look::layers::layers(global, &a),
        Command::Explore(a) => explore::explore(global, &a),
        Command::Image(ImageCommand::Prune(a)) => image::prune::prune(global, &a),
        Command::Tag(a) | Command::Image(ImageCommand::Tag(a)) => image::tag::tag(global, &a),
        Command::Rmi(a) | Command::Image(ImageCommand::Rm(a)) => image::tag::rmi(global, &a),
        Command::Login(a) => registry::login::login(&a),
        Command::Logout(a) => registry::login::logout(&a),
        Command::Search(a) => registry::search::search(&a),
        Command::Manifest(a) => registry::manifest::manifest(global, &a),
        Command::Mount(a) => mount::image::mount(global, &a),
        Command::Umount(a) => mount::image::umount(global, &a),
        Command::Mounts(a) => mount::image::mounts(global, &a),
        Command::Overlay(a) => mount::overlay::overlay(&a),
        Command::Chroot(a) => container::chroot::chroot(global, &a),
        Command::System(a) => system::store::system(global, &a),
        Command::Info(a) => system::info::info(global, &a),
        Command::Version(a) => system::store::version(&a),
        Command::Completion(a) => completion::completion(&a),
        Command::Man(a) => completion::man(&a),
        Command::Complete(a) => completion::complete(global, &a),
    }
}

impl Global {
    /// Opens the store that `--root` or the environment names, else the default one.
    fn store(&self) -> anyhow::Result<Store> {
        open_store(self.root.as_deref())
    }

    /// Opens the store, unless there is none yet.
    fn existing_store(&self) -> anyhow::Result<Option<Store>> {
        let root = self.root.clone().map_or_else(default_root, Ok)?;
        if root.is_dir() { Ok(Some(Store::open(&root)?)) } else { Ok(None) }
    }
}

/// Opens the store at `root`, or the user's default store.
fn open_store(root: Option<&Path>) -> anyhow::Result<Store> {
    let root = match root {
        Some(root) => root.into(),
        None => default_root()?,
    };
    Ok(Store::open(&root)?)
}

fn default_root() -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    if let Some(root) = &config::get().root {
        return Ok(root.clone());
    }
    // /proc/self belongs to the effective user.
    if std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0) {
        return Ok("/var/lib/plyfs".into());
    }
    if let Some(data) = config::absolute("XDG_DATA_HOME") {
        return Ok(data.join("plyfs"));
    }
    match config::absolute("HOME") {
        Some(home) => Ok(home.join(".local/share/plyfs")),
        None => anyhow::bail!("neither XDG_DATA_HOME nor HOME is set: name the store directory with --root"),
    }
}
