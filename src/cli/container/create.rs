//! Container creation: the options of `run` and `create`, merged with the image's config.

use crate::cli::config;
use crate::cli::image::document;
use crate::cli::mount::options::engine;
use crate::cli::registry::pull;
use crate::container::spec::{self, HostInfo, SpecInput};
use crate::container::{User, names, signals};
use crate::kernel::Engine;
use crate::reference::Reference;
use crate::store::containers::{self, Bind, Container, Held, Host, Network, ROOTFS, Tmpfs, list_of};
use crate::store::{Error, Image, Store};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The options that `run`, `create` and `bundle` share.
#[derive(clap::Args)]
pub(in crate::cli) struct ContainerArgs {
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub(in crate::cli) tty: bool,
    /// Set an environment variable; NAME alone copies it from plyfs's environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file, one per line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory inside the container [default: the image's, or /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User name or ID, as in the image's /etc/passwd [default: the image's, or root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Bind mount a directory or file of the host; a missing SRC is created as a directory
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Mount a tmpfs
    #[arg(long, value_name = "DST[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Engine that mounts the root file system: fuse, kernel or auto (see `plyfs mount --help`) [default: fuse]
    #[arg(long, value_name = "ENGINE", value_parser = engine)]
    pub(in crate::cli) engine: Option<Engine>,
    /// Override the image's entrypoint; an empty value removes it
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Container host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Network: host uses the host's network, none only a loopback device
    #[arg(long, alias = "net", value_name = "host|none", default_value = "host")]
    network: String,
    /// Add a Linux capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a Linux capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    #[command(flatten)]
    missing: pull::MissingArgs,
}

/// The options that `run` and `create` share.
#[derive(clap::Args)]
pub(in crate::cli) struct CreateArgs {
    /// Assign a name to the container [default: a generated one]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// Pass stdin to the container
    #[arg(short, long)]
    pub(in crate::cli) interactive: bool,
    /// Remove the container when it exits
    #[arg(long)]
    pub(in crate::cli) rm: bool,
    /// Set a label on the container
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Signal to stop the container [default: the image's, or SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// OCI runtime, by name or path [default: the first of runc, crun and youki that is installed]
    #[arg(long, value_name = "RUNTIME")]
    pub(in crate::cli) runtime: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) container: ContainerArgs,
}

/// Finds the image, or pulls it. The process must be single-threaded, and still is afterwards.
pub(in crate::cli) fn image(store: &Store, wanted: &str, a: &ContainerArgs) -> anyhow::Result<Image> {
    a.missing.bring_in(store, wanted)
}

/// Describes a container without a name; does not register it in the store.
pub(in crate::cli) fn described(
    store: &Store,
    image: &Image,
    wanted: &str,
    command: &[String],
    a: &ContainerArgs,
) -> anyhow::Result<Container> {
    let document = document::config(store, image)?;
    let images = document.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    Ok(Container {
        id: containers::new_id()?,
        name: String::new(),
        image: image.clone(),
        reference: wanted.parse::<Reference>().map_or_else(|_| wanted.to_owned(), |r| r.familiar()),
        created: format!("{:.9}", Timestamp::now()),
        config: config(images, command, a)?,
        host: host(a)?,
    })
}

/// Creates the container; returns it with its lock held.
pub(in crate::cli) fn create(
    store: &Store,
    image: &Image,
    wanted: &str,
    command: &[String],
    a: &CreateArgs,
    detached: bool,
) -> anyhow::Result<(Container, Held)> {
    let mut container = described(store, image, wanted, command, &a.container)?;
    add_own(&mut container.config, a)?;
    container.host.runtime.clone_from(&a.runtime);
    container.host.auto_remove = a.rm;
    container.host.detached = detached;
    check(&container)?;
    if let Some(name) = &a.name {
        name.clone_into(&mut container.name);
        anyhow::ensure!(
            names::is_name(name),
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        );
    }
    loop {
        if a.name.is_none() {
            container.name = names::name_of(&container.id);
        }
        match containers::create(store, &container) {
            // A generated name that is taken: tries again with another ID.
            Err(Error::NameTaken { .. }) if a.name.is_none() => container.id = containers::new_id()?,
            made => return Ok((container, made?)),
        }
    }
}

/// Fails if no runtime spec can be made of the container.
fn check(container: &Container) -> anyhow::Result<()> {
    let input = SpecInput {
        container,
        user: &User::default(),
        root: Path::new(ROOTFS),
        binds: &[],
        mapping: None,
        terminal: false,
        host_info: &HostInfo::detect()?,
    };
    spec::document(&input).map(drop).map_err(anyhow::Error::from)
}

/// The image's config, overridden by the user's options.
fn config(mut config: Map<String, Value>, command: &[String], a: &ContainerArgs) -> anyhow::Result<Map<String, Value>> {
    if let Some(program) = &a.entrypoint {
        let words: &[&str] = if program.is_empty() { &[] } else { &[program] };
        config.insert("Entrypoint".into(), json!(words));
        // As in Docker: a new entrypoint also resets the image's command.
        config.insert("Cmd".into(), json!([]));
    }
    if !command.is_empty() {
        config.insert("Cmd".into(), json!(command));
    }
    let mut env = list_of(&config, "Env");
    for line in environment(a)? {
        let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
        env.retain(|other| name(other) != name(&line));
        env.push(line);
    }
    config.insert("Env".into(), json!(env));
    for (name, value) in [("WorkingDir", &a.workdir), ("User", &a.user), ("Hostname", &a.hostname)] {
        if let Some(value) = value {
            config.insert(name.into(), json!(value));
        }
    }
    config.insert("Tty".into(), json!(a.tty));
    Ok(config)
}

/// Adds the options of a registered container: stop signal, stdin, labels.
fn add_own(config: &mut Map<String, Value>, a: &CreateArgs) -> anyhow::Result<()> {
    if let Some(signal) = &a.stop_signal {
        config.insert("StopSignal".into(), json!(signal));
    }
    if let Some(Value::String(signal)) = config.get("StopSignal").filter(|signal| **signal != json!("")) {
        signals::signal(signal).ok_or_else(|| anyhow::anyhow!("invalid signal: {signal}"))?;
    }
    config.insert("OpenStdin".into(), json!(a.interactive));
    if a.label.is_empty() {
        return Ok(());
    }
    let labels = config.entry("Labels").or_insert(Value::Null);
    if !labels.is_object() {
        *labels = json!({});
    }
    for label in &a.label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        labels[key] = json!(value);
    }
    Ok(())
}

/// The user's environment: first `--env-file`, then `--env`.
fn environment(a: &ContainerArgs) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for path in &a.env_file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| anyhow::anyhow!("open {}: {}", path.display(), crate::sys::describe(&e)))?;
        all.extend(
            text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned),
        );
    }
    all.extend(a.env.iter().cloned());
    let mut lines = Vec::new();
    for text in all {
        let name = text.split('=').next().unwrap_or_default();
        anyhow::ensure!(
            !name.is_empty() && !name.contains(char::is_whitespace),
            "invalid environment variable: {text}"
        );
        match (text.contains('='), std::env::var(name)) {
            (true, _) => lines.push(text),
            (false, Ok(value)) => lines.push(format!("{name}={value}")),
            (false, Err(_)) => {}
        }
    }
    Ok(lines)
}

fn host(a: &ContainerArgs) -> anyhow::Result<Host> {
    let network = match a.network.as_str() {
        "host" | "default" => Network::Host,
        "none" => Network::None,
        other => anyhow::bail!("network {other} not found: use host or none"),
    };
    let binds: Vec<Bind> = a.volume.iter().map(|text| volume(text)).collect::<anyhow::Result<_>>()?;
    let tmpfs: Vec<Tmpfs> = a.tmpfs.iter().map(|text| tmpfs(text)).collect::<anyhow::Result<_>>()?;
    let targets = binds.iter().map(|bind| &bind.target).chain(tmpfs.iter().map(|tmpfs| &tmpfs.target));
    let mut seen = std::collections::BTreeSet::new();
    for target in targets {
        anyhow::ensure!(seen.insert(target.trim_end_matches('/')), "Duplicate mount point: {target}");
    }
    let engine = match a.engine.map_or_else(config::engine, Ok)? {
        Engine::Fuse => "",
        other => other.word(),
    };
    Ok(Host {
        engine: engine.to_owned(),
        binds,
        tmpfs,
        read_only: a.read_only,
        network,
        cap_add: a.cap_add.clone(),
        cap_drop: a.cap_drop.clone(),
        ..Host::default()
    })
}

fn tmpfs(text: &str) -> anyhow::Result<Tmpfs> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    anyhow::ensure!(
        target.starts_with('/') && Path::new(target).components().count() > 1,
        "invalid mount target, must be an absolute path in the container: {target}"
    );
    Ok(Tmpfs { target: target.to_owned(), options: options.to_owned() })
}

/// Parses `SRC:DST[:OPTIONS]`. Creates a missing source as a directory, as Docker does.
pub(in crate::cli) fn volume(text: &str) -> anyhow::Result<Bind> {
    let fields: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match fields[..] {
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => anyhow::bail!("invalid volume specification: '{text}': wanted SRC:DST or SRC:DST:ro"),
    };
    anyhow::ensure!(
        source.starts_with(['/', '.']),
        "invalid volume specification: '{text}': SRC must be a path: write ./{source} for one in the current directory"
    );
    anyhow::ensure!(
        target.starts_with('/') && !target.trim_matches('/').is_empty(),
        "invalid volume specification: '{text}': DST must be an absolute path below /"
    );
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // SELinux relabeling is not supported; the options are ignored.
            "z" | "Z" => {}
            _ => anyhow::bail!("invalid mode: {option}"),
        }
    }
    let path = std::path::absolute(source)?;
    if !path.exists() {
        std::fs::create_dir_all(&path)
            .map_err(|e| anyhow::anyhow!("cannot create {}: {}", path.display(), crate::sys::describe(&e)))?;
    }
    Ok(Bind { source: path.to_string_lossy().into_owned(), target: target.to_owned(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        a: CreateArgs,
    }

    fn args(words: &[&str]) -> CreateArgs {
        Line::try_parse_from([&["x"], words].concat()).unwrap().a
    }

    #[test]
    fn volumes_are_read() {
        let bind =
            |source: &str, target: &str, read_only| Bind { source: source.into(), target: target.into(), read_only };
        assert_eq!(volume("/etc:/mnt/etc").unwrap(), bind("/etc", "/mnt/etc", false));
        assert_eq!(volume("/etc:/mnt:ro,z").unwrap(), bind("/etc", "/mnt", true));
        let here = std::env::current_dir().unwrap();
        assert_eq!(volume(".:/mnt:rw").unwrap(), bind(here.to_str().unwrap(), "/mnt", false));
        for bad in ["/etc", "name:/data", "/etc:data", "/etc:/", "/etc:/a:b:c", "/etc:/a:shared"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    fn images() -> Map<String, Value> {
        let Value::Object(config) = json!({
            "Entrypoint": ["/entry"], "Cmd": ["a"], "Env": ["PATH=/bin", "A=1"], "User": "ann", "Own": {"x": 1},
            "Labels": {"k": "1"},
        }) else {
            panic!()
        };
        config
    }

    #[test]
    fn options_override_the_images_config() {
        let words = |command: &[&str], flags: &[&str]| {
            let command: Vec<String> = command.iter().map(|s| (*s).to_owned()).collect();
            let a = args(flags);
            let mut config = config(images(), &command, &a.container)?;
            add_own(&mut config, &a)?;
            Ok::<_, anyhow::Error>(config)
        };
        let made =
            words(&["b", "c"], &["-e", "A=2", "-e", "B=x=y", "-e", "NO_SUCH", "-l", "k=2", "-l", "n", "-t"]).unwrap();
        assert_eq!(made["Entrypoint"], json!(["/entry"]));
        assert_eq!(made["Cmd"], json!(["b", "c"]));
        assert_eq!(made["Env"], json!(["PATH=/bin", "A=2", "B=x=y"]));
        assert_eq!(made["Labels"], json!({"k": "2", "n": ""}));
        assert_eq!(made["User"], json!("ann"));
        assert_eq!(made["Own"], json!({"x": 1}));
        assert_eq!((&made["Tty"], &made["OpenStdin"]), (&json!(true), &json!(false)));
        let made = words(&[], &["--entrypoint", "sh", "-u", "7:8", "-w", "/w", "--hostname", "h"]).unwrap();
        assert_eq!((&made["Entrypoint"], &made["Cmd"]), (&json!(["sh"]), &json!([])));
        assert_eq!((&made["User"], &made["WorkingDir"], &made["Hostname"]), (&json!("7:8"), &json!("/w"), &json!("h")));
        let said = |flags: &[&str]| words(&[], flags).unwrap_err().to_string();
        assert_eq!(said(&["--stop-signal", "SIGNO"]), "invalid signal: SIGNO");
        assert!(said(&["-e", "=x"]).contains("invalid environment variable"));
    }

    #[test]
    fn environment_files_have_a_variable_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# comment\n\n  A=1 2\nNO_SUCH_VARIABLE_HERE\nB=\n").unwrap();
        assert_eq!(
            environment(&args(&["--env-file", path.to_str().unwrap(), "-e", "C=3"]).container).unwrap(),
            ["A=1 2", "B=", "C=3"]
        );
        assert!(
            environment(&args(&["--env-file", "/no/such"]).container).unwrap_err().to_string().contains("/no/such")
        );
    }

    #[test]
    fn mount_targets_are_checked() {
        let made = host(
            &args(&["-v", "/etc:/a:ro", "--tmpfs", "/b:size=1m", "--network", "none", "--cap-drop", "ALL"]).container,
        );
        let made = made.unwrap();
        assert_eq!(made.tmpfs, [Tmpfs { target: "/b".into(), options: "size=1m".into() }]);
        assert_eq!((made.network, made.cap_drop), (Network::None, vec!["ALL".to_owned()]));
        let said = |flags: &[&str]| host(&args(flags).container).unwrap_err().to_string();
        assert_eq!(said(&["-v", "/etc:/a", "--tmpfs", "/a/"]), "Duplicate mount point: /a/");
        assert!(said(&["--tmpfs", "a"]).contains("absolute path"));
        assert!(said(&["--network", "bridge"]).contains("use host or none"));
    }
}
