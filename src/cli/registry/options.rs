//! Options of the registry commands: credentials, TLS verification, and the paths of this user's configuration files.

use crate::cli::config::{self, absolute, config_home};
use crate::registry::credentials::{Given, Sources};
use crate::registry::{Settings, Timing, mirrors};
use clap::builder::{OsStringValueParser, TypedValueParser};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names a credential file, as `--authfile`.
pub(in crate::cli) const AUTHFILE_VARIABLE: &str = "REGISTRY_AUTH_FILE";

#[derive(clap::Args)]
pub(in crate::cli) struct RegistryArgs {
    /// Credential file to use, instead of the default ones
    #[arg(long, value_name = "FILE", env = AUTHFILE_VARIABLE, hide_env_values = true, value_parser = any_path())]
    authfile: Option<PathBuf>,
    /// User name and password for the registry, instead of a credential file
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Options of the commands that contact a registry.
#[derive(clap::Args)]
pub(in crate::cli) struct ServerArgs {
    /// Require https and verify certificates; with =false, allow plain http and unverified certificates
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    tls_verify: bool,
    /// For tests: timeout in seconds while a server is silent
    #[arg(long, hide = true, value_parser = seconds)]
    stall_timeout: Option<Duration>,
    /// For tests: pause in seconds before the second try
    #[arg(long, hide = true, value_parser = seconds)]
    retry_pause: Option<Duration>,
}

/// Accepts an empty path too: an environment variable set to nothing names no file.
pub(in crate::cli) fn any_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|e| e.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

impl RegistryArgs {
    /// Returns the registry settings of the flags, the environment and the default files.
    pub(in crate::cli) fn settings(&self) -> Settings {
        let given = self.creds.as_ref().map(|text| {
            let (user, password) = text.split_once(':').unwrap_or((text, ""));
            Given { user: user.to_owned(), password: password.to_owned(), origin: "--creds".into() }
        });
        self.server.settings(Sources { given, ..sources(self.authfile.as_deref()) })
    }
}

impl ServerArgs {
    /// Returns the registry settings with credentials from these sources.
    pub(in crate::cli) fn settings(&self, credentials: Sources) -> Settings {
        let usual = Timing::default();
        Settings {
            tls_verify: self.tls_verify,
            cert_dirs: cert_dirs(),
            credentials,
            mirrors: mirror_sources(),
            timing: Timing {
                stall: self.stall_timeout.unwrap_or(usual.stall),
                pause: self.retry_pause.unwrap_or(usual.pause),
                ..usual
            },
        }
    }
}

/// Returns the sources of credentials: the named file, unless its name is empty, and the default ones.
pub(in crate::cli) fn sources(authfile: Option<&Path>) -> Sources {
    let authfile = authfile.or(config::get().authfile.as_deref());
    let file = authfile.filter(|file| !file.as_os_str().is_empty()).map(Path::to_owned);
    let mut usual_files = own_files();
    usual_files.extend(dockers_file().filter(|file| !usual_files.contains(file)));
    Sources { given: None, file, usual_files }
}

/// Returns the credential files that `login` may write, in the order in which they are read: podman's; before it
/// Docker's if `DOCKER_CONFIG` is set, as in podman.
pub(in crate::cli) fn own_files() -> Vec<PathBuf> {
    let places = [
        absolute("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
        runtime_dir().map(|dir| dir.join("containers/auth.json")),
        config_home().map(|dir| dir.join("containers/auth.json")),
    ];
    places.into_iter().flatten().collect()
}

fn dockers_file() -> Option<PathBuf> {
    let folder = absolute("DOCKER_CONFIG").or_else(|| Some(absolute("HOME")?.join(".docker")));
    folder.map(|dir| dir.join("config.json"))
}

/// Returns the runtime directory, with podman's fallback.
fn runtime_dir() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let user = || std::fs::metadata("/proc/self").map(|m| m.uid()).ok();
    absolute("XDG_RUNTIME_DIR").or_else(|| Some(Path::new("/run/containers").join(user()?.to_string())))
}

/// Returns the paths of registries.conf. The user's own file, if it exists, replaces the system's with its drop-ins.
pub(in crate::cli) fn mirror_sources() -> mirrors::Sources {
    let shared = Path::new("/etc/containers");
    let own = config_home().map(|dir| dir.join("containers"));
    let own_folder = own.as_ref().map(|dir| dir.join("registries.conf.d"));
    let named = absolute("CONTAINERS_REGISTRIES_CONF").or_else(|| config::get().registries_conf.clone());
    let own_file = own.map(|dir| dir.join("registries.conf")).filter(|file| named.is_none() && file.exists());
    let shared_folder = own_file.is_none().then(|| shared.join("registries.conf.d"));
    mirrors::Sources {
        file: named.or(own_file).or_else(|| Some(shared.join("registries.conf"))),
        folders: shared_folder.into_iter().chain(own_folder).collect(),
    }
}

fn cert_dirs() -> Vec<PathBuf> {
    let own = config_home().map(|dir| dir.join("containers/certs.d"));
    let shared = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
    own.into_iter().chain(shared).collect()
}
