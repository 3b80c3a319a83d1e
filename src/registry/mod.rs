//! Registry client for the OCI distribution specification: manifests, blobs, tags and referrers of a repository, read
//! and written. The only local files written are credential files (`credential_store`).
//!
//! Everything that a registry sends is untrusted. Manifests are hashed here; blob streams survive broken connections
//! but are returned unverified, and the caller must verify them. Credentials are sent only to the registry and to the
//! token server that it names, by the rules in `auth`, and only over TLS unless the user disabled verification or the
//! registry is on a loopback address. Reads may use mirrors, each with its own credentials. Proxies are taken from
//! `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.

mod auth;
mod blob;
mod client;
pub mod credential_store;
pub mod credentials;
mod download;
mod helper;
mod http;
pub mod identity;
pub mod login;
pub mod mirrors;
mod pagination;
mod repository;
pub mod search;
mod upload;
mod url;

pub use blob::Blob;
pub use download::download;
pub use repository::{Manifest, Referrer, Repository};
pub use upload::{Upload, UploadStart};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Callback for retries: called repeatedly with the time left until a failed request is sent again, last with zero.
pub type Notice = Arc<dyn Fn(Duration) + Send + Sync>;

/// Settings for access to registries.
#[derive(Clone)]
pub struct Settings {
    /// Whether servers must present a valid certificate. If not, plain http is allowed too.
    pub tls_verify: bool,
    /// Folders with additional certificates: `HOST[:PORT]/*.crt` in each is trusted for that registry, and `NAME.cert`
    /// with `NAME.key` there is the client certificate for it.
    pub cert_dirs: Vec<PathBuf>,
    /// Sources of credentials.
    pub credentials: credentials::Sources,
    /// Configuration of mirrors.
    pub mirrors: mirrors::Sources,
    /// Timeouts and retries.
    pub timing: Timing,
}

/// Timeouts and retries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Timeout for a connection.
    pub connect: Duration,
    /// Timeout for the next byte.
    pub stall: Duration,
    /// Pause before the second try; every further pause is twice as long.
    pub pause: Duration,
    /// Number of tries.
    pub tries: u32,
}

impl Default for Timing {
    fn default() -> Timing {
        let seconds = Duration::from_secs;
        Timing { connect: seconds(15), stall: seconds(30), pause: seconds(1), tries: 5 }
    }
}

/// Kind of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The object does not exist, or access is denied without saying so.
    Missing,
    /// The credentials are wrong.
    WrongCredentials,
    /// The registry cannot be reached, or its certificate is not trusted.
    Unreachable,
    /// The registry violates the protocol.
    Protocol,
    /// Any other error answer, or a failure that outlasted all tries.
    Failed,
    /// The registry no longer knows an upload's offset.
    Lost,
    /// The caller cancelled.
    Cancelled,
}

/// Error of a registry request. Prints as one line: host, what was requested, reason.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{host}: {asked}: {why}")]
pub struct Error {
    /// The registry.
    pub host: String,
    /// What was requested: `manifest latest of library/alpine`.
    pub asked: String,
    /// Kind of the error.
    pub kind: Kind,
    /// Reason, with the source of the credentials if they matter.
    pub why: String,
}

/// Result of a registry request.
pub type Result<T> = std::result::Result<T, Error>;
