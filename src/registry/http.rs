//! HTTP transport: TLS trust, client certificates, proxies and timeouts of one exchange. No retries, credentials or
//! redirects.

use super::url::Url;
use super::{Settings, Timing};
use rustls_native_certs::load_native_certs;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// A response whose body has not been read.
pub(super) type Response = ureq::http::Response<ureq::Body>;

/// An HTTP method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Patch,
    Put,
}

impl Method {
    /// Whether the method changes nothing on the server, so that any redirect of it may be followed.
    pub fn is_safe(self) -> bool {
        matches!(self, Method::Get | Method::Head)
    }

    fn verb(self) -> ureq::http::Method {
        match self {
            Method::Get => ureq::http::Method::GET,
            Method::Head => ureq::http::Method::HEAD,
            Method::Post => ureq::http::Method::POST,
            Method::Patch => ureq::http::Method::PATCH,
            Method::Put => ureq::http::Method::PUT,
        }
    }
}

/// A request to send.
pub(super) struct Request<'a> {
    /// Method.
    pub method: Method,
    /// URL.
    pub url: &'a Url,
    /// Additional headers.
    pub headers: &'a [(&'static str, String)],
    /// Body; empty for safe methods.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Makes a GET request for `url`.
    pub fn get(url: &'a Url, headers: &'a [(&'static str, String)]) -> Request<'a> {
        Request { method: Method::Get, url, headers, body: &[] }
    }
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Fault {
    /// A permanent failure: another try will not help.
    Lasting(String),
    /// The server cannot be reached, or the reason for the failure is not known yet.
    Unreachable(String),
    /// A temporary failure: another try may help.
    Passing(String),
}

impl Fault {
    /// Description of the failure.
    pub fn text(&self) -> &str {
        match self {
            Fault::Lasting(text) | Fault::Unreachable(text) | Fault::Passing(text) => text,
        }
    }
}

/// The connection pools of one pull or push.
pub(super) struct Http {
    verify: bool,
    timing: Timing,
    /// Folders whose `*.crt` files are trusted too, and whose `*.cert` files hold client certificates.
    folders: Vec<PathBuf>,
    /// Root URL of the registry, the only server that gets the client certificate; `None` if the name is no server's.
    registry: Option<Url>,
    /// Agents, built on first use: for http, for https to other servers and to the registry; each through a proxy and,
    /// for loopback addresses, direct.
    agents: [OnceLock<Result<Agent, String>>; 6],
}

impl Http {
    /// Makes the connection pools for a registry at `authority` and the servers that it redirects to.
    pub fn new(settings: &Settings, authority: &str) -> Http {
        Http {
            verify: settings.tls_verify,
            timing: settings.timing,
            registry: Url::of_server(authority, true),
            folders: settings.cert_dirs.iter().map(|dir| dir.join(authority)).collect(),
            agents: Default::default(),
        }
    }

    /// Sends one request and waits for the response's head, whatever its status.
    pub fn send(&self, request: &Request<'_>) -> Result<Response, Fault> {
        let agent = self.agent(request.url)?;
        let head = ureq::http::Request::builder().method(request.method.verb()).uri(request.url.to_string());
        let head = request.headers.iter().fold(head, |head, (name, value)| head.header(*name, value));
        let wrong = |e: ureq::http::Error| Fault::Lasting(e.to_string());
        let done = match request.method.is_safe() {
            true => agent.run(head.body(()).map_err(wrong)?),
            false => agent.run(head.body(request.body).map_err(wrong)?),
        };
        done.map_err(|e| fault(&e))
    }

    fn agent(&self, url: &Url) -> Result<&Agent, Fault> {
        // No proxy is used for loopback addresses.
        let (https, local) = (url.is_https(), url.is_loopback());
        let own = self.registry.as_ref().is_some_and(|registry| url.same_origin(registry));
        let slot = &self.agents[(usize::from(https) + usize::from(own)) * 2 + usize::from(local)];
        let made = slot.get_or_init(|| {
            let tls = if https { Some(self.trust(own)?) } else { None };
            Ok(self.build(tls, local))
        });
        made.as_ref().map_err(|why| Fault::Lasting(why.clone()))
    }

    fn build(&self, tls: Option<TlsConfig>, direct: bool) -> Agent {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("plyfs/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(self.timing.connect))
            .timeout_recv_response(Some(self.timing.stall))
            .timeout_per_read(Some(self.timing.stall))
            .timeout_per_write(Some(self.timing.stall))
            .input_buffer_size(128 << 10);
        if direct {
            config = config.proxy(None);
        }
        if let Some(tls) = tls {
            config = config.tls_config(tls);
        }
        config.build().new_agent()
    }

    /// Makes the TLS configuration: the system's certificates and those for this registry; with `own`, the client
    /// certificate.
    fn trust(&self, own: bool) -> Result<TlsConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        if own {
            let found = self.folders.iter().map(|folder| identity(folder)).find_map(Result::transpose);
            tls = tls.client_cert(found.transpose()?);
        }
        if !self.verify {
            return Ok(tls.root_certs(RootCerts::from([])).disable_verification(true).build());
        }
        let mut roots: Vec<Certificate<'static>> = Vec::new();
        roots.extend(load_native_certs().certs.iter().map(|cert| Certificate::from_der(cert).to_owned()));
        for folder in &self.folders {
            for path in files(folder, "crt")? {
                roots.extend(certificates(&path)?);
            }
        }
        Ok(tls.root_certs(RootCerts::from(roots)).build())
    }
}

/// Lists a folder's files with this extension, sorted by name; empty if there is no such folder.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, String> {
    let failed = |e: io::Error| format!("cannot read {}: {e}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(vec![]),
        Err(e) => return Err(failed(e)),
    };
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|e| e == ending));
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// Reads the certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let mut found = Vec::new();
    for item in parse_pem(&read(path)?) {
        match item {
            Ok(PemItem::Certificate(cert)) => found.push(cert),
            Ok(_) => {}
            Err(e) => return Err(format!("{} contains no certificate: {e}", path.display())),
        }
    }
    Ok(found)
}

/// Reads the folder's first `NAME.cert` with its `NAME.key`, if there is one.
fn identity(folder: &Path) -> Result<Option<ClientCert>, String> {
    let Some(cert) = files(folder, "cert")?.into_iter().next() else { return Ok(None) };
    let key = cert.with_extension("key");
    let chain = certificates(&cert)?;
    if chain.is_empty() {
        return Err(format!("{} contains no certificate", cert.display()));
    }
    // The parser's message could quote the key.
    let secret =
        PrivateKey::from_pem(&read(&key)?).map_err(|_| format!("{} contains no private key", key.display()))?;
    Ok(Some(ClientCert::new_with_certs(&chain, secret)))
}

fn fault(error: &ureq::Error) -> Fault {
    use ureq::Error as E;
    match error {
        E::Io(e) => io_fault(e),
        E::HostNotFound => Fault::Unreachable("no such host".into()),
        E::ConnectionFailed => Fault::Unreachable("cannot connect".into()),
        E::ConnectProxyFailed(why) => Fault::Unreachable(format!("the proxy refused: {why}")),
        E::Timeout(ureq::Timeout::Connect) => Fault::Unreachable("timed out connecting".into()),
        E::Timeout(_) => Fault::Passing("timed out waiting for data".into()),
        E::Rustls(e) => tls_fault(e),
        E::Protocol(e) => Fault::Passing(format!("not an HTTP response: {e}")),
        E::BodyStalled => Fault::Passing(error.to_string()),
        other => Fault::Lasting(other.to_string()),
    }
}

fn io_fault(error: &io::Error) -> Fault {
    if let Some(e) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return tls_fault(e);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Fault::Unreachable(describe(error))
        }
        // Resolver errors have no `ErrorKind` of their own.
        _ => match error.to_string().strip_prefix("failed to lookup address information: ") {
            Some(why) => Fault::Unreachable(format!("cannot find the host: {why}")),
            None => Fault::Passing(describe(error)),
        },
    }
}

fn tls_fault(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InvalidCertificate(why) => Fault::Lasting(format!("its TLS certificate is not trusted: {why}")),
        other => Fault::Unreachable(format!("TLS: {other}")),
    }
}

/// Describes an error of reading a body in a few words.
pub(super) fn describe(error: &io::Error) -> String {
    match error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>()) {
        Some(inner) => fault(inner).text().to_owned(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the connection broke".to_owned(),
        None => crate::sys::describe(error),
    }
}

/// Reads a body of at most `cap` bytes.
pub(super) fn small_body(response: Response, cap: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let read = response.into_body().into_reader().take(cap + 1).read_to_end(&mut bytes);
    read.map_err(|e| Fault::Passing(describe(&e)))?;
    if bytes.len() as u64 > cap {
        return Err(Fault::Lasting(format!("the answer is longer than {cap} bytes")));
    }
    Ok(bytes)
}

/// Returns a header's text; `None` if it is missing or not text.
pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
