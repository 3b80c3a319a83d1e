//! The configuration file: defaults for what environment variables and options set.
//!
//! `/etc/plyfs/plyfs.toml` for all users, then `$XDG_CONFIG_HOME/plyfs/plyfs.toml` for one; of a key in both the
//! user's counts. An option or an environment variable overrides both.

use crate::image::Platform;
use crate::kernel::Engine;
use crate::sys;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

/// Settings; each is `None` if no file has it.
#[derive(Deserialize, Clone, Default, PartialEq, Eq, Debug)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct Config {
    /// Store directory (`--root`).
    pub root: Option<PathBuf>,
    /// Log level (`--log-level`).
    pub log_level: Option<String>,
    /// Engine that serves mounts and containers (`--engine`).
    #[serde(deserialize_with = "engine_of")]
    pub engine: Option<Engine>,
    /// Platform to pull (`--platform`).
    #[serde(deserialize_with = "platform_of")]
    pub platform: Option<Platform>,
    /// Credentials file (`--authfile`).
    pub authfile: Option<PathBuf>,
    /// Registry mirrors (`CONTAINERS_REGISTRIES_CONF`).
    pub registries_conf: Option<PathBuf>,
}

const SYSTEM: &str = "/etc/plyfs/plyfs.toml";
const OWN: &str = "plyfs/plyfs.toml";
/// Overrides the configuration files.
pub(in crate::cli) const ENGINE_VARIABLE: &str = "PLYFS_ENGINE";

static CONFIG: OnceLock<Config> = OnceLock::new();

/// Reads the configuration files. Every way into the program calls this first.
pub(in crate::cli) fn load() -> anyhow::Result<&'static Config> {
    let own = config_home().map(|home| read(&home.join(OWN))).transpose().map_err(anyhow::Error::msg)?;
    let all = own.unwrap_or_default().or(read(Path::new(SYSTEM)).map_err(anyhow::Error::msg)?);
    Ok(CONFIG.get_or_init(|| all))
}

/// Returns the settings that [`load`] has read.
pub(in crate::cli) fn get() -> &'static Config {
    CONFIG.get_or_init(Config::default)
}

/// Returns the platform of images if no option names one.
pub(in crate::cli) fn platform() -> Platform {
    get().platform.clone().unwrap_or_else(Platform::host)
}

/// Returns the engine that serves mounts and containers if no option names one.
pub(in crate::cli) fn engine() -> anyhow::Result<Engine> {
    match env::var(ENGINE_VARIABLE) {
        Ok(word) if !word.is_empty() => Engine::of_word(&word)
            .ok_or_else(|| anyhow::anyhow!("{ENGINE_VARIABLE}={word}: wanted fuse, kernel or auto")),
        _ => Ok(get().engine.unwrap_or_default()),
    }
}

/// Returns an environment variable that is an absolute path.
pub(in crate::cli) fn absolute(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Returns the user's configuration directory.
pub(in crate::cli) fn config_home() -> Option<PathBuf> {
    absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))
}

fn read(path: &Path) -> Result<Config, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Config::default());
        }
        Err(e) => return Err(format!("cannot read {}: {}", path.display(), sys::describe(&e))),
    };
    parse(&text).map_err(|why| format!("{}: {why}", path.display()))
}

fn parse(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| text[..span.start].matches('\n').count() + 1);
        format!("{}{}", line.map(|line| format!("line {line}: ")).unwrap_or_default(), e.message())
    })?;
    let paths = [&config.root, &config.authfile, &config.registries_conf];
    let relative = paths.into_iter().flatten().find(|path| !path.is_absolute());
    let wrong = relative.map(|path| format!("`{}` is not an absolute path", path.display()));
    wrong.map_or(Ok(config), Err)
}

impl Config {
    /// Takes what is not set here from `other`.
    fn or(self, other: Config) -> Config {
        Config {
            root: self.root.or(other.root),
            log_level: self.log_level.or(other.log_level),
            engine: self.engine.or(other.engine),
            platform: self.platform.or(other.platform),
            authfile: self.authfile.or(other.authfile),
            registries_conf: self.registries_conf.or(other.registries_conf),
        }
    }
}

fn engine_of<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Engine>, D::Error> {
    let word = String::deserialize(from)?;
    let engine = Engine::of_word(&word);
    engine.map(Some).ok_or_else(|| D::Error::custom(format!("engine `{word}`: wanted fuse, kernel or auto")))
}

fn platform_of<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Platform>, D::Error> {
    Platform::from_str(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_and_the_users_file_counts_first() {
        let system = "root = \"/srv/a\"\nlog-level = \"info\"\nengine = \"auto\"\nplatform = \"linux/arm64\"\n\
            authfile = \"/etc/auth.json\"\nregistries-conf = \"/etc/r.conf\"\n";
        let system = parse(system).unwrap();
        assert_eq!((system.engine, system.root.as_deref()), (Some(Engine::Auto), Some(Path::new("/srv/a"))));
        let both = parse("engine = \"kernel\"").unwrap().or(system.clone());
        assert_eq!(both, Config { engine: Some(Engine::Kernel), ..system });
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        let wrong = |text: &str| parse(text).unwrap_err();
        assert!(wrong("# a\nengin = 1").starts_with("line 2: unknown field `engin`"), "{}", wrong("# a\nengin = 1"));
        assert_eq!(wrong("engine = \"x\""), "line 1: engine `x`: wanted fuse, kernel or auto");
        assert_eq!(wrong("root = \"a/b\""), "`a/b` is not an absolute path");
        assert!(wrong("root = ").starts_with("line 1: "));
    }
}
