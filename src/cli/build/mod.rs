//! `build`: make an image from a Dockerfile; `builder prune`: remove the build cache.

mod input;
pub(in crate::cli) mod prune;
mod report;

use crate::build::{self, Download, ImageName, Options, Plan, Request, Tree, Triggers};
use crate::cli::image::{document, import};
use crate::cli::mount::options::engine;
use crate::cli::output::stdout as output;
use crate::cli::registry::options::RegistryArgs;
use crate::cli::registry::pull::{Missing, When};
use crate::cli::{Exit, Global, config, interrupt, usage_errors};
use crate::container::step::Isolation;
use crate::container::{runtime, userns};
use crate::dockerfile::Dockerfile;
use crate::image::source::Want;
use crate::image::{Platform, manifest_list, platform_of};
use crate::kernel::Engine;
use crate::reference::Reference;
use crate::registry;
use crate::store::containers::{Network, list_of};
use crate::store::{Image, Store, gc, write_new};
use crate::sys::{self, Fork};
use input::Input;
use report::{Report, Style};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
#[command(override_usage = "plyfs build [OPTIONS] PATH|-")]
#[command(after_help = "\
PATH is the build context, the directory that COPY and ADD copy from; .dockerignore
in it says what they do not see. With -, the Dockerfile or a tar archive of the
context is read from standard input.

Each RUN works in an OCI runtime if one is installed, otherwise as `plyfs chroot`.
The results of all steps are cached: `plyfs system df` shows their size, `plyfs
builder prune` removes them. If SOURCE_DATE_EPOCH is set, it is the image's creation
time and the latest file time, so that the same input makes the same image.

Examples:
  plyfs build -t app:1 .
  plyfs build -t app:1 -f docker/Dockerfile --target test --build-arg VERSION=2 .
  plyfs build --secret id=token,src=$HOME/.token -t app:1 .
  plyfs build -t tools - < Dockerfile")]
pub(in crate::cli) struct BuildArgs {
    /// Name of the image; may be repeated
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<String>,
    /// Dockerfile, or - for standard input [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Build only up to this stage
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a build argument (ARG); NAME alone copies it from plyfs's environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Set a label on the image
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Platforms of the image, OS/ARCH[/VARIANT]; several make a manifest list [default: the host's]
    #[arg(long, value_delimiter = ',', env = "DOCKER_DEFAULT_PLATFORM", hide_env_values = true)]
    platform: Vec<Platform>,
    /// Do not use the cache
    #[arg(long)]
    no_cache: bool,
    /// Pull the base images first, even if they are in the store
    #[arg(long)]
    pull: bool,
    /// Network of RUN: host, or none for only a loopback device
    #[arg(long, value_name = "host|none", default_value = "host")]
    network: String,
    /// Pass a secret to RUN --mount=type=secret: a file, or an environment variable
    #[arg(long, value_name = "id=ID[,src=FILE|,env=NAME]")]
    secret: Vec<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Print only the image ID
    #[arg(short, long)]
    quiet: bool,
    /// Progress output: auto, plain or tty
    #[arg(long, value_name = "KIND", default_value = "auto", hide_possible_values = true)]
    progress: Style,
    /// What runs the commands: oci for an OCI runtime, chroot for none, or auto
    #[arg(long, value_name = "KIND", default_value = "auto", hide_possible_values = true)]
    isolation: Wanted,
    /// OCI runtime, by name or path [default: the first of runc, crun and youki that is installed]
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<String>,
    /// Engine that mounts the root file systems: fuse, kernel or auto (see `plyfs mount --help`) [default: fuse]
    #[arg(long, value_name = "ENGINE", value_parser = engine)]
    engine: Option<Engine>,
    /// Accepted for compatibility: the image is always in the store
    #[arg(long, hide = true)]
    load: bool,
    /// Accepted for compatibility: nothing is left to remove
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    rm: Option<Option<String>>,
    /// Accepted for compatibility: nothing is left to remove
    #[arg(long, hide = true)]
    force_rm: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Directory of the build context, or - for standard input
    #[arg(value_name = "PATH")]
    args: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    Auto,
    Oci,
    Chroot,
}

/// Runs one step for a build, which has started this process.
pub(in crate::cli) fn build_step() -> anyhow::Result<()> {
    build::run_step(&mut std::io::stdin().lock()).map_err(anyhow::Error::msg)
}

pub(in crate::cli) fn build(global: &Global, a: &BuildArgs) -> anyhow::Result<()> {
    let [context] = usage_errors::exactly("build", &a.args)?;
    let names = a.tag.iter().map(|name| import::name_of(name)).collect::<anyhow::Result<Vec<Reference>>>()?;
    let settings = Settings::new(a)?;
    let store = global.store()?;
    let input = Input::open(context, a.file.as_deref())?;
    let file = input.parse()?;
    let platforms = platforms(a);
    let strict = !a.platform.is_empty() || config::get().platform.is_some();
    let request = |platform| Request { target: a.target.as_deref(), args: &settings.args, platform, strict };
    let failed = |error: build::Error| anyhow::Error::msg(input.describe(&error));
    reap(&store)?;
    // The images are pulled before there are threads.
    let mut jobs = Vec::new();
    for platform in &platforms {
        let (mut images, mut triggers) = (BTreeMap::new(), Triggers::new());
        // The triggers of the images may need more images.
        let plan = loop {
            let plan = Plan::new(&file, &request(platform), &triggers).map_err(failed)?;
            bring_in(&store, a, &plan, &input, &mut images)?;
            let before = triggers.len();
            for (name, image) in &images {
                if !triggers.contains_key(name) {
                    triggers.insert(name.clone(), onbuild(&store, image)?);
                }
            }
            if triggers.len() == before {
                break plan;
            }
        };
        jobs.push((platform.clone(), plan, images));
    }
    let report = Report::new(if a.quiet { Style::Quiet } else { a.progress });
    report.start_drawing();
    let made = interrupt::in_session(&store, |session| {
        let mut made: Vec<(Platform, Image)> = Vec::new();
        for (platform, plan, images) in jobs {
            let names = if platforms.len() == 1 { names.clone() } else { vec![] };
            let options = settings.options(&file, &plan, images, input.context(), platform.clone(), names);
            let image = build::build(session, &options, &report).map_err(|error| {
                report.stop_drawing();
                report.failed(&input, &error);
                failed(error)
            })?;
            made.push((platform, image));
        }
        report.stop_drawing();
        Ok(made)
    })?;
    let image = finish(&store, &names, &made)?;
    if let Some(path) = &a.iidfile {
        write_new(path, image.to_string().as_bytes())?;
    }
    if a.quiet { output::line(image) } else { Ok(()) }
}

/// Removes what an unprivileged user's killed builds have left: a child process does, as root in the user's namespace.
/// The process must be single-threaded.
fn reap(store: &Store) -> anyhow::Result<()> {
    if sys::is_root() || !gc::reap_partials(store)? {
        return Ok(());
    }
    match sys::fork()? {
        Fork::Parent(child) => drop(sys::wait_for(child)?),
        Fork::Child => {
            let reaped = userns::enter().is_ok() && gc::reap_partials(store).is_ok();
            sys::leave(i32::from(!reaped))
        }
    }
    Ok(())
}

/// Names the images of a build for several platforms: each name is that of a manifest list of all images, and of the
/// image for this machine. Returns the ID of that image, or of the first.
fn finish(store: &Store, names: &[Reference], made: &[(Platform, Image)]) -> anyhow::Result<crate::digest::Digest> {
    let host = Platform::host();
    let best = made.iter().min_by_key(|(platform, _)| platform.rank(&host).unwrap_or(u32::MAX));
    let (_, own) = best.ok_or_else(|| anyhow::anyhow!("no image was built"))?;
    if made.len() > 1 {
        store.update(|_, catalog| {
            names.iter().for_each(|name| drop(catalog.give_name(&own.id, name)));
            Ok::<_, crate::store::Error>(())
        })?;
        names.iter().try_for_each(|name| manifest_list::replace(store, name, made))?;
    }
    Ok(own.id.clone())
}

fn platforms(a: &BuildArgs) -> Vec<Platform> {
    let mut all: Vec<Platform> = Vec::new();
    for platform in &a.platform {
        if !all.contains(platform) {
            all.push(platform.clone());
        }
    }
    if all.is_empty() {
        all.push(config::platform());
    }
    all
}

/// Returns the `ONBUILD` instructions of an image.
fn onbuild(store: &Store, image: &Image) -> anyhow::Result<Vec<String>> {
    let document = document::config(store, image)?;
    let config = document.get("config").and_then(Value::as_object);
    Ok(config.map(|config| list_of(config, "OnBuild")).unwrap_or_default())
}

/// Finds or pulls the images that a plan needs, unless they are there already.
fn bring_in(
    store: &Store,
    a: &BuildArgs,
    plan: &Plan,
    input: &Input,
    all: &mut BTreeMap<ImageName, Image>,
) -> anyhow::Result<()> {
    for (name, line) in &plan.images {
        if all.contains_key(name) {
            continue;
        }
        let platform: Platform = name.platform.parse().map_err(anyhow::Error::msg)?;
        let suits = |image: &Image| {
            let own = platform_of(store, image).ok();
            !name.strict || own.is_none_or(|own| own.rank(&platform).is_some())
        };
        let pull = if a.pull { When::Always } else { When::Missing };
        let want = Want { platform: platform.clone(), strict: name.strict, all: false };
        let missing = Missing { pull, want, registry: &a.registry };
        let image = missing.bring_in(store, &name.name, suits);
        let image = image.map_err(|error| match error.downcast::<Exit>() {
            Ok(Exit::Text(_, text)) => {
                let why = text.strip_prefix("Error: ").unwrap_or(&text);
                anyhow::anyhow!("{}:{line}: cannot pull {}: {why}", input.name(), name.name)
            }
            Ok(said) => said.into(),
            Err(error) => anyhow::anyhow!("{}:{line}: {error}", input.name()),
        })?;
        all.insert(name.clone(), image);
    }
    Ok(())
}

/// The options that all platforms share.
struct Settings {
    args: BTreeMap<String, String>,
    labels: Vec<(String, String)>,
    network: Network,
    secrets: BTreeMap<String, Vec<u8>>,
    isolation: Isolation,
    engine: String,
    use_cache: bool,
    newest: Option<jiff::Timestamp>,
    program: PathBuf,
    fetch: Box<build::Fetch>,
}

impl Settings {
    fn new(a: &BuildArgs) -> anyhow::Result<Settings> {
        let network = match a.network.as_str() {
            "host" | "default" => Network::Host,
            "none" => Network::None,
            other => anyhow::bail!("network {other} not found: use host or none"),
        };
        let search = std::env::var_os("PATH");
        let find = || runtime::find(a.runtime.as_deref(), search.as_deref()).map_err(|e| anyhow::anyhow!(e.text));
        let isolation = match a.isolation {
            Wanted::Chroot => Isolation::Chroot,
            Wanted::Oci => Isolation::Runtime(find()?),
            Wanted::Auto if a.runtime.is_some() => Isolation::Runtime(find()?),
            Wanted::Auto => find().map_or(Isolation::Chroot, Isolation::Runtime),
        };
        let engine = match a.engine.map_or_else(config::engine, Ok)? {
            Engine::Fuse => String::new(),
            other => other.word().to_owned(),
        };
        let label = |text: &String| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        };
        let settings = a.registry.settings();
        let fetch = move |url: &str, to: &Path| {
            let modified = registry::download(url, &settings, to).map_err(|e| e.to_string())?;
            Ok(Download { path: to.to_owned(), modified })
        };
        Ok(Settings {
            args: input::build_args(&a.build_arg)?,
            labels: a.label.iter().map(label).collect(),
            network,
            secrets: input::secrets(&a.secret)?,
            isolation,
            engine,
            use_cache: !a.no_cache,
            newest: import::source_date()?,
            // The file that this process runs, also if it was replaced meanwhile.
            program: "/proc/self/exe".into(),
            fetch: Box::new(fetch),
        })
    }

    fn options<'a>(
        &'a self,
        file: &'a Dockerfile,
        plan: &'a Plan,
        images: BTreeMap<ImageName, Image>,
        context: Option<Arc<Tree>>,
        platform: Platform,
        names: Vec<Reference>,
    ) -> Options<'a> {
        Options {
            file,
            plan,
            images,
            context,
            args: self.args.clone(),
            labels: self.labels.clone(),
            platform,
            use_cache: self.use_cache,
            network: self.network,
            secrets: self.secrets.clone(),
            isolation: self.isolation.clone(),
            engine: self.engine.clone(),
            program: self.program.clone(),
            newest: self.newest,
            fetch: &*self.fetch,
            names,
        }
    }
}
