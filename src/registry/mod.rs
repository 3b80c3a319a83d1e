//! The client side of the distribution specification: manifests, blobs and tags of one repository, to be read and written.
//! Writes nothing on this machine but files of credentials (`keep`).
//!
//! What comes from a registry is a claim. Manifests are hashed here; a blob's stream is handed out unchecked, survives
//! broken connections, and is for the taker to verify. Credentials go to the registry and to the token server that it
//! names by the rules in `auth`, to nobody else, and only over TLS unless the user said otherwise or the registry is
//! this machine. What is read may come from mirrors, each asked with its own credentials. A proxy is used as `ALL_PROXY`,
//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.

pub mod account;
mod auth;
mod blob;
mod client;
pub mod credentials;
mod helper;
mod http;
pub mod keep;
pub mod mirrors;
mod pages;
mod repository;
pub mod search;
mod upload;
mod url;

pub use blob::Blob;
pub use repository::{Manifest, Referrer, Repository};
pub use upload::{Begun, Upload};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Is told again and again how long it still is until a failed request is tried another time; of the last moment as zero.
pub type Notice = Arc<dyn Fn(Duration) + Send + Sync>;

/// How a pull talks to a registry.
#[derive(Clone)]
pub struct Settings {
    /// Whether servers must prove who they are. If not, plain http will do too.
    pub tls_verify: bool,
    /// Folders with further certificates to trust: in each, `HOST[:PORT]/*.crt` for that registry, and `NAME.cert` with
    /// `NAME.key` there to show to it.
    pub cert_dirs: Vec<PathBuf>,
    /// Where credentials come from.
    pub credentials: credentials::Sources,
    /// Where it is said who stands in for registries.
    pub mirrors: mirrors::Sources,
    /// How long to wait for what.
    pub timing: Timing,
}

/// How long to wait for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// For a connection.
    pub connect: Duration,
    /// For the next byte.
    pub stall: Duration,
    /// Before the second try; every further pause is twice as long.
    pub pause: Duration,
    /// How often to try.
    pub tries: u32,
}

impl Default for Timing {
    fn default() -> Timing {
        let seconds = Duration::from_secs;
        Timing { connect: seconds(15), stall: seconds(30), pause: seconds(1), tries: 5 }
    }
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// There is no such thing, or it is not for us to see.
    Missing,
    /// The credentials are wrong.
    WrongCredentials,
    /// The registry cannot be reached or trusted.
    Unreachable,
    /// It does not keep to the protocol.
    Protocol,
    /// Any other answer, and failures that outlasted all tries.
    Failed,
    /// The registry does not know how far an upload has come.
    Lost,
    /// The caller gave up.
    Cancelled,
}

/// Why a registry did not give what was asked. Prints as one line with the host, what was asked, and why not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{host}: {asked}: {why}")]
pub struct Error {
    /// The registry.
    pub host: String,
    /// What was asked, `manifest latest of library/alpine`.
    pub asked: String,
    /// What kind of thing went wrong.
    pub kind: Kind,
    /// The answer, and where the credentials came from if they matter.
    pub why: String,
}

/// The result of asking a registry.
pub type Result<T> = std::result::Result<T, Error>;
