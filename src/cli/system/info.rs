//! `info`: the store, the host, and the kernel features that plyfs can use, in Docker's shape.

use crate::cli::output::format;
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::registry::options::{AUTHFILE_VARIABLE, mirror_sources, sources};
use crate::cli::{Global, config, usage_errors};
use crate::container::probe::{self, HostProbe, Probe};
use crate::container::runtime::{self, Installed};
use crate::kernel::Engine;
use crate::registry::credentials;
use crate::registry::mirrors::{self, Configured};
use crate::store::containers::{self, Status};
use crate::store::{Store, builds, gc, lists, mounts};
use crate::sys;
use crate::template::{Data, Functions, MissingKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

/// Docker Hub, as Docker names its registry.
const REGISTRY: &str = "https://index.docker.io/v1/";
const HUB: &str = "docker.io";

#[derive(clap::Args)]
#[command(after_help = "\
Kernel features are tried: /dev/fuse is opened, overlayfs and EROFS are mounted, a user
namespace is created. Warnings on standard error say what is missing.

Examples:
  plyfs info
  plyfs info -f '{{.Images}} images, engine {{.Driver}}'
  plyfs info -f json")]
pub(in crate::cli) struct InfoArgs {
    /// Output format: `json`, or a Go template over Docker's fields
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[arg(hide = true)]
    args: Vec<String>,
}

pub(in crate::cli) fn info(global: &Global, a: &InfoArgs) -> anyhow::Result<()> {
    usage_errors::none("info", &a.args)?;
    let template = match a.format.as_deref() {
        None | Some("") => None,
        Some("json") => Some(format::parse("{{json .}}")?),
        Some(text) => Some(format::parse(text)?),
    };
    let store = global.store()?;
    let info = Info::collect(&store)?;
    match template {
        None => {
            output::text(&info.text())?;
            info.warnings.iter().for_each(|warning| output::complaint(format_args!("WARNING: {warning}")));
            Ok(())
        }
        Some(template) => {
            let filled = template.execute(&info.data(), MissingKey::NoValue, Functions::Data);
            output::line(filled.map_err(format::failed)?)
        }
    }
}

/// Numbers of images, containers and other objects in the store.
#[derive(Default)]
struct Counts {
    running: usize,
    stopped: usize,
    images: usize,
    layers: usize,
    mounts: usize,
    lists: usize,
    cache: builds::Usage,
}

impl Counts {
    fn of(store: &Store) -> anyhow::Result<Counts> {
        let catalog = store.catalog()?;
        let layers: BTreeSet<_> = catalog.images().iter().flat_map(|i| &i.layers).map(|l| &l.diff_id).collect();
        let mut counts = Counts {
            images: catalog.images().len(),
            layers: layers.len(),
            mounts: mounts::list(store)?.len(),
            lists: lists::list_with_damaged(store)?.0.len(),
            cache: builds::usage(store)?,
            ..Counts::default()
        };
        for container in containers::list(store)? {
            // The container may have been removed since it was listed.
            match containers::state(store, &container.id).map(|state| state.status) {
                Ok(Status::Running) => counts.running += 1,
                Ok(_) => counts.stopped += 1,
                Err(error) => tracing::debug!("{error}"),
            }
        }
        Ok(counts)
    }
}

/// The host.
struct Host {
    name: String,
    kernel: String,
    system: String,
    architecture: String,
    processors: usize,
    /// In bytes.
    memory: u64,
}

impl Host {
    fn detect() -> Host {
        let names = rustix::system::uname();
        let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
        let release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(path).ok());
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |line: &str| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        Host {
            name: text(names.nodename()),
            kernel: text(names.release()),
            system: system_name(&release.unwrap_or_default()).unwrap_or_else(|| "Linux".into()),
            architecture: text(names.machine()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory.lines().find_map(field).unwrap_or_default() * 1024,
        }
    }
}

/// Returns the system's name in an os-release(5) file.
fn system_name(release: &str) -> Option<String> {
    let quoted = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name = quoted.trim().trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}

/// A credential file and the registries in it, or why it cannot be read.
struct CredentialFile {
    path: PathBuf,
    hosts: Result<Vec<String>, String>,
}

/// Everything that `info` shows.
struct Info {
    root: PathBuf,
    size: u64,
    free: Option<u64>,
    counts: Counts,
    host: Host,
    probe: HostProbe,
    engine: Engine,
    runtimes: Vec<Installed>,
    registries: Vec<Configured>,
    credentials: Vec<CredentialFile>,
    warnings: Vec<String>,
}

impl Info {
    fn collect(store: &Store) -> anyhow::Result<Info> {
        let search = std::env::var_os("PATH");
        let authfile = std::env::var_os(AUTHFILE_VARIABLE).map(PathBuf::from);
        let sources = sources(authfile.as_deref());
        let files = sources.file.clone().map_or(sources.usual_files, |file| vec![file]);
        let exists = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
        let read = |path: PathBuf| CredentialFile { hosts: credentials::hosts(&path), path };
        let (registries, unread) = match mirrors::configured(&mirror_sources()) {
            Ok(all) => (all, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let mut info = Info {
            root: store.root().to_owned(),
            size: gc::store_usage(store),
            free: store.free_space()?,
            counts: Counts::of(store)?,
            host: Host::detect(),
            probe: probe::probe(store),
            engine: config::engine()?,
            runtimes: runtime::installed(search.as_deref()),
            registries,
            credentials: files.into_iter().filter(exists).map(read).collect(),
            warnings: unread.into_iter().collect(),
        };
        let has_helper = sys::is_root() || runtime::find_program("fusermount3", search.as_deref()).is_some();
        info.warn(has_helper);
        Ok(info)
    }

    /// Adds the warnings for what is missing; `has_helper`: whether this user can mount FUSE file systems.
    fn warn(&mut self, has_helper: bool) {
        let mut warn = |text: String| self.warnings.push(text);
        let (probe, is_root) = (&self.probe, sys::is_root());
        let of = |name: &str, probe: &Probe| probe.as_ref().err().map(|why| format!("{name}: {why}"));
        of("FUSE", &probe.fuse).into_iter().for_each(&mut warn);
        if !has_helper {
            warn("FUSE: no fusermount3, which mounts without root: install fuse3".into());
        }
        if self.engine != Engine::Fuse {
            of("Kernel overlayfs", &probe.overlayfs).into_iter().for_each(&mut warn);
            // Without root the FUSE engine serves the image.
            of("EROFS", &probe.erofs).filter(|_| is_root).into_iter().for_each(&mut warn);
        }
        if is_root {
            of("Cgroups", &probe.cgroups).into_iter().for_each(&mut warn);
        } else {
            of("User namespaces", &probe.user_namespaces).into_iter().for_each(&mut warn);
            let missing = probe.subordinate_ids.as_ref().err().filter(|_| probe.user_namespaces.is_ok());
            missing.into_iter().for_each(|why| {
                warn(format!(
                    "Subordinate IDs: {why}: install uidmap, and add them with \
                     `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`"
                ));
            });
        }
        if self.runtimes.is_empty() {
            warn("no OCI runtime: install runc, crun or youki for `plyfs run` (`plyfs chroot` needs none)".into());
        }
        for file in &self.credentials {
            file.hosts.as_ref().err().cloned().into_iter().for_each(&mut warn);
        }
    }

    fn text(&self) -> String {
        let mut out = Lines::default();
        self.add_store(&mut out);
        self.add_kernel(&mut out);
        out.add(0, "Runtimes", self.runtimes.iter().map(|found| found.name).collect::<Vec<_>>().join(" "));
        for found in &self.runtimes {
            let version = found.version.as_deref().unwrap_or("it does not run");
            out.add(1, found.name, format!("{} ({version})", found.path.display()));
        }
        out.add(0, "Default Runtime", self.runtimes.first().map_or("none", |found| found.name));
        let host = &self.host;
        out.add(0, "Kernel Version", &host.kernel);
        out.add(0, "Operating System", &host.system);
        out.add(0, "OSType", "linux");
        out.add(0, "Architecture", &host.architecture);
        out.add(0, "CPUs", host.processors.to_string());
        out.add(0, "Total Memory", binary_size(host.memory));
        out.add(0, "Name", &host.name);
        out.add(0, "Docker Root Dir", self.root.display().to_string());
        out.add(1, "Size", units::precise_size(self.size));
        out.add(1, "Free Space", self.free.map_or_else(|| "unknown".into(), units::precise_size));
        self.add_registries(&mut out);
        out.0
    }

    fn add_store(&self, out: &mut Lines) {
        let counts = &self.counts;
        out.add(0, "Containers", (counts.running + counts.stopped).to_string());
        out.add(1, "Running", counts.running.to_string());
        out.add(1, "Paused", "0");
        out.add(1, "Stopped", counts.stopped.to_string());
        out.add(0, "Images", counts.images.to_string());
        out.add(1, "Layers", counts.layers.to_string());
        out.add(0, "Mounts", counts.mounts.to_string());
        out.add(0, "Manifest Lists", counts.lists.to_string());
        out.add(0, "Build Cache", counts.cache.count.to_string());
        out.add(1, "Size", units::precise_size(counts.cache.size));
        out.add(0, "Server Version", env!("CARGO_PKG_VERSION"));
    }

    fn add_kernel(&self, out: &mut Lines) {
        out.add(0, "Storage Driver", self.engine.word());
        for (name, value) in self.driver_status() {
            out.add(1, name, value);
        }
        out.add(0, "User Namespaces", state(&self.probe.user_namespaces));
        out.add(1, "Subordinate IDs", state(&self.probe.subordinate_ids));
        out.add(0, "Cgroup Driver", "cgroupfs");
        out.add(0, "Cgroup Version", self.cgroup_version());
    }

    fn cgroup_version(&self) -> String {
        self.probe.cgroups.clone().unwrap_or_else(|why| format!("not usable: {why}"))
    }

    fn driver_status(&self) -> [(&'static str, String); 3] {
        let HostProbe { fuse, overlayfs, erofs, .. } = &self.probe;
        [("FUSE", state(fuse)), ("Kernel Overlayfs", state(overlayfs)), ("EROFS", state(erofs))]
    }

    fn add_registries(&self, out: &mut Lines) {
        out.add(0, "Registry", REGISTRY);
        let mirrored = self.registries.iter().filter(|entry| !entry.mirrors.is_empty());
        out.add_list("Registry Mirrors", mirrored.map(|e| format!("{}: {}", e.prefix, e.mirrors.join(", "))));
        let moved = self.registries.iter().filter(|entry| entry.location != entry.prefix);
        out.add_list("Registry Locations", moved.map(|e| format!("{}: {}", e.prefix, e.location)));
        let of = |is_wanted: fn(&Configured) -> bool| {
            self.registries.iter().filter(move |entry| is_wanted(entry)).map(|entry| entry.prefix.clone())
        };
        out.add_list("Insecure Registries", of(|entry| entry.is_insecure));
        out.add_list("Blocked Registries", of(|entry| entry.is_blocked));
        out.add_list(
            "Credential Files",
            self.credentials.iter().map(|file| match &file.hosts {
                Ok(hosts) => format!("{}: {}", file.path.display(), hosts.join(", ")),
                Err(_) => format!("{}: not readable", file.path.display()),
            }),
        );
    }

    /// Returns the fields for a template.
    fn data(&self) -> Data {
        let (counts, host) = (&self.counts, &self.host);
        let text = |text: &str| Data::str(text);
        let number = |n: usize| Data::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let bytes = |n: u64| Data::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let status = self.driver_status().map(|(name, value)| Data::strings([name, value.as_str()]));
        let warnings = match self.warnings.is_empty() {
            true => Data::NilList,
            false => Data::strings(&self.warnings),
        };
        let fields = vec![
            ("Containers", number(counts.running + counts.stopped)),
            ("ContainersRunning", number(counts.running)),
            ("ContainersPaused", Data::Int(0)),
            ("ContainersStopped", number(counts.stopped)),
            ("Images", number(counts.images)),
            ("Layers", number(counts.layers)),
            ("Mounts", number(counts.mounts)),
            ("ManifestLists", number(counts.lists)),
            ("BuildCache", number(counts.cache.count)),
            ("BuildCacheSize", bytes(counts.cache.size)),
            ("Driver", text(self.engine.word())),
            ("DriverStatus", Data::List(Rc::new(status.into()))),
            ("UserNamespaces", text(&state(&self.probe.user_namespaces))),
            ("SubordinateIDs", text(&state(&self.probe.subordinate_ids))),
            ("CgroupDriver", text("cgroupfs")),
            ("CgroupVersion", text(self.probe.cgroups.as_deref().unwrap_or_default())),
            ("KernelVersion", text(&host.kernel)),
            ("OperatingSystem", text(&host.system)),
            ("OSType", text("linux")),
            ("Architecture", text(&host.architecture)),
            ("IndexServerAddress", text(REGISTRY)),
            ("RegistryConfig", self.registry_config()),
            ("NCPU", number(host.processors)),
            ("MemTotal", bytes(host.memory)),
            ("DockerRootDir", Data::str(self.root.to_string_lossy())),
            ("StoreSize", bytes(self.size)),
            ("StoreFree", self.free.map_or(Data::Nil, bytes)),
            ("Name", text(&host.name)),
            ("ServerVersion", text(env!("CARGO_PKG_VERSION"))),
            ("Runtimes", self.runtimes_data()),
            ("DefaultRuntime", text(self.runtimes.first().map_or("", |found| found.name))),
            ("CredentialFiles", Data::strings(self.credentials.iter().map(|file| file.path.to_string_lossy()))),
            ("Warnings", warnings),
        ];
        Data::record("*system.Info", fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn runtimes_data(&self) -> Data {
        let runtime = |found: &Installed| {
            let fields = [
                ("path".to_owned(), Data::str(found.path.to_string_lossy())),
                ("version".to_owned(), Data::str(found.version.as_deref().unwrap_or_default())),
            ];
            (found.name.to_owned(), Data::Map(Rc::new(fields.into())))
        };
        Data::Map(Rc::new(self.runtimes.iter().map(runtime).collect()))
    }

    /// Docker's form of the registries: an entry per registry, Docker Hub among them.
    fn registry_config(&self) -> Data {
        let entry = |name: &str, found: Option<&Configured>| {
            let mirrors = found.map(|found| found.mirrors.as_slice()).unwrap_or_default();
            let fields = vec![
                ("Name".to_owned(), Data::str(name)),
                ("Mirrors".to_owned(), Data::strings(mirrors)),
                ("Secure".to_owned(), Data::Bool(found.is_none_or(|found| !found.is_insecure))),
                ("Official".to_owned(), Data::Bool(name == HUB)),
            ];
            (name.to_owned(), Data::record("*registry.IndexInfo", fields))
        };
        let mut all = BTreeMap::from([entry(HUB, None)]);
        all.extend(self.registries.iter().map(|found| entry(&found.prefix, Some(found))));
        let hub = self.registries.iter().find(|found| found.prefix == HUB);
        let mirrors = hub.map(|found| found.mirrors.as_slice()).unwrap_or_default();
        let fields =
            vec![("IndexConfigs".to_owned(), Data::Map(Rc::new(all))), ("Mirrors".to_owned(), Data::strings(mirrors))];
        Data::record("*registry.ServiceConfig", fields)
    }
}

/// Describes a probe's result.
fn state(probe: &Probe) -> String {
    match probe {
        Ok(detail) if detail.is_empty() => "usable".into(),
        Ok(detail) => format!("usable ({detail})"),
        Err(why) => format!("not usable: {why}"),
    }
}

/// Formats a size with a binary unit, as Docker shows memory.
fn binary_size(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib >= 1.0 { format!("{gib:.2}GiB") } else { format!("{:.1}MiB", gib * 1024.0) }
}

/// Lines `NAME: VALUE`.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, indent: usize, name: &str, value: impl AsRef<str>) {
        let line = format!("{:indent$}{name}: {}", "", value.as_ref());
        self.0 += line.trim_end();
        self.0.push('\n');
    }

    /// Adds a heading and a line per value, unless there is none.
    fn add_list(&mut self, name: &str, values: impl Iterator<Item = String>) {
        for (at, value) in values.enumerate() {
            if at == 0 {
                self.add(0, name, "");
            }
            self.0 += &format!(" {value}\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_formatted() {
        assert_eq!(system_name("ID=x\nPRETTY_NAME=\"A System 1 (one)\"\n").as_deref(), Some("A System 1 (one)"));
        assert_eq!((system_name("PRETTY_NAME=\n"), system_name("")), (None, None));
        assert_eq!((binary_size(16_704_000_000).as_str(), binary_size(512 << 20).as_str()), ("15.56GiB", "512.0MiB"));
        assert_eq!(state(&Ok(String::new())), "usable");
        assert_eq!(state(&Err("why".into())), "not usable: why");
    }

    #[test]
    fn empty_lists_have_no_heading() {
        let mut lines = Lines::default();
        lines.add_list("None", std::iter::empty());
        lines.add_list("Two", ["a".to_owned(), "b".to_owned()].into_iter());
        lines.add(1, "C", "d");
        assert_eq!(lines.0, "Two:\n a\n b\n C: d\n");
    }
}
