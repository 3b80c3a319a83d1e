//! Registries to pull from: an HTTP server in the test that can misbehave on request, and Debian's `docker-registry` as
//! a process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::env::{Output, TestEnv, run};
use super::oci::{Image, digest};

/// A request as a server saw it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: String,
    /// The path with the query.
    pub path: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, as text.
    pub body: String,
    /// The body.
    pub bytes: Vec<u8>,
    /// How many requests for the same path came before.
    pub before: usize,
}

impl Request {
    /// A header's text, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Where a `Range` begins.
    pub fn range_start(&self) -> Option<usize> {
        self.header("range").strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }
}

/// A response of the server.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    after: After,
}

/// How a response ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum After {
    /// Normally, after the body.
    End,
    /// The server closes the connection after this many bytes.
    Cut(usize),
    /// The server sends nothing more after this many bytes.
    Stall(usize),
    /// The server repeats the body without end, in chunks.
    Endless,
    /// The server closes the connection without a response.
    Silence,
}

impl Reply {
    /// A response without a body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: vec![], body: vec![], after: After::End }
    }

    /// Sets the body.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// Adds or replaces a header.
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// A header's text.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether the status is not an error.
    pub fn is_found(&self) -> bool {
        self.status < 300
    }

    /// The body.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Changes the body.
    pub fn edit(mut self, edit: impl Fn(&mut Vec<u8>)) -> Self {
        edit(&mut self.body);
        self
    }

    /// Closes the connection after this many bytes.
    pub fn cut(self, at: usize) -> Self {
        Self { after: After::Cut(at), ..self }
    }

    /// Stalls after this many bytes.
    pub fn stall(self, at: usize) -> Self {
        Self { after: After::Stall(at), ..self }
    }

    /// Repeats the body without end.
    pub fn endless(self) -> Self {
        Self { after: After::Endless, ..self }
    }

    /// Closes the connection instead of responding.
    pub fn hang_up() -> Self {
        Self { after: After::Silence, ..Self::new(500) }
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        if self.after == After::Silence {
            return Ok(());
        }
        write!(stream, "HTTP/1.1 {} Whatever\r\nConnection: close\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        if self.after == After::Endless {
            write!(stream, "Transfer-Encoding: chunked\r\n\r\n")?;
            // Until the client closes the connection.
            loop {
                write!(stream, "{:x}\r\n", self.body.len())?;
                stream.write_all(&self.body)?;
                write!(stream, "\r\n")?;
            }
        }
        write!(stream, "Content-Length: {}\r\n\r\n", self.body.len())?;
        match self.after {
            After::Cut(at) => stream.write_all(&self.body[..at]),
            After::Stall(at) => {
                stream.write_all(&self.body[..at])?;
                // Until the client hangs up.
                stream.read(&mut [0]).map(drop)
            }
            _ => stream.write_all(&self.body),
        }
    }
}

/// A server on a free port of this machine that answers as the test says. It ends with the test's process.
pub struct Server {
    /// `127.0.0.1:PORT`.
    pub host: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server with this request handler.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (log.clone(), answer.clone());
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { host, requests }
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The number of requests whose path contains this text.
    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.path.contains(part)).count()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut first = [0];
    // Refuse TLS clients.
    if stream.peek(&mut first).is_err() || first[0] == 0x16 {
        return;
    }
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let (bytes, body) = (body.clone(), String::from_utf8_lossy(&body).into_owned());
    let request = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|s| s.path == path).count();
        log.push(Request { method, path, headers, body, bytes, before });
        log.last().unwrap().clone()
    };
    // An error is fine: the client may have closed the connection.
    let _gone = answer(&request).send(&mut stream);
}

/// The contents of a well-behaved registry: manifests and blobs by path.
#[derive(Clone, Default)]
pub struct Content {
    files: BTreeMap<String, (String, Vec<u8>)>,
}

impl Content {
    /// Adds an image as `REPO` under its tag and its digest. Returns the manifest's digest too.
    pub fn of(image: &Image, repo: &str, tag: &str) -> (Self, String) {
        let dir = tempfile::tempdir().unwrap();
        let manifest = image.write_layout(dir.path());
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("sha256:{}", path.file_name().unwrap().to_str().unwrap());
            let bytes = fs::read(&path).unwrap();
            if name == manifest {
                let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let kind = parsed["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
                for name in [&name, tag] {
                    files.insert(format!("/v2/{repo}/manifests/{name}"), (kind.to_owned(), bytes.clone()));
                }
            } else {
                files.insert(format!("/v2/{repo}/blobs/{name}"), ("application/octet-stream".to_owned(), bytes));
            }
        }
        (Self { files }, manifest)
    }

    /// The response of a well-behaved registry.
    pub fn reply(&self, request: &Request) -> Reply {
        let Some((kind, bytes)) = self.files.get(&request.path) else {
            return Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
        };
        let reply = match request.range_start() {
            Some(from) if from < bytes.len() => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206).header("Content-Range", range).body(&bytes[from..])
            }
            Some(_) => Reply::new(416),
            None => Reply::new(200).body(bytes.clone()),
        };
        let reply = reply.header("Content-Type", kind);
        if request.path.contains("/manifests/") { reply.header("Docker-Content-Digest", digest(bytes)) } else { reply }
    }

    /// The path of the biggest blob, and its length.
    pub fn biggest(&self) -> (String, usize) {
        let blobs = self.files.iter().filter(|(path, _)| path.contains("/blobs/"));
        let (path, (_, bytes)) = blobs.max_by_key(|(_, (_, bytes))| bytes.len()).unwrap();
        (path.clone(), bytes.len())
    }
}

/// A plyfs command that uses none of the host user's configuration and has short timeouts.
pub fn command(env: &TestEnv, args: &[&str]) -> Command {
    let mut command = env.command(args);
    for name in ["XDG_CONFIG_HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_DEFAULT_PLATFORM"] {
        command.env_remove(name);
    }
    command.env("HOME", env.path("home")).env("XDG_RUNTIME_DIR", env.path("run"));
    command
}

/// Pulls from a registry in the test, with short waits.
pub fn pull(env: &TestEnv, image: &str, more: &[&str]) -> Output {
    let waits = ["pull", "--stall-timeout", "0.5", "--retry-pause", "0.02"];
    run(&mut command(env, &[&waits, more, &[image]].concat()))
}

/// Debian's registry as a process of this test.
pub struct DockerRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    child: Child,
    _dir: TempDir,
}

impl DockerRegistry {
    /// Starts a registry: without authentication, or for `USER:PASSWORD` only; with the certificate and key in a
    /// directory, or by plain HTTP. With `clients.crt`, clients must present a certificate signed by it.
    pub fn start(user: Option<&str>, tls: Option<&Path>) -> Self {
        for _ in 0..5 {
            if let Some(registry) = Self::try_start(user, tls) {
                return registry;
            }
        }
        panic!("docker-registry does not start");
    }

    fn try_start(user: Option<&str>, tls: Option<&Path>) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("plyfs-registry-").tempdir().unwrap();
        // The port is free now, and most likely still when the registry binds it.
        let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let data = dir.path().join("data");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: \
             {{rootdirectory: {}}}}}\nhttp:\n  addr: {host}\n",
            data.display()
        );
        if let Some(tls) = tls {
            let (cert, key) = (tls.join("server.crt"), tls.join("server.key"));
            let clients = tls.join("clients.crt");
            let clients =
                if clients.exists() { format!(", clientcas: [{}]", clients.display()) } else { String::new() };
            config += &format!("  tls: {{certificate: {}, key: {}{clients}}}\n", cert.display(), key.display());
        }
        if let Some(user) = user {
            let (name, password) = user.split_once(':').unwrap();
            let made = run(Command::new("htpasswd").args(["-Bbn", name, password]));
            assert_eq!(made.code, 0, "htpasswd: {made:?}");
            let file = dir.path().join("htpasswd");
            fs::write(&file, made.stdout).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
        }
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("docker-registry is missing: run scripts/setup --test");
        let mut registry = Self { host, child, _dir: dir };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.host).is_err() {
            let ended = registry.child.try_wait().unwrap().is_some();
            if ended || Instant::now() > until {
                return None;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// Copies an image in by skopeo: `source` as skopeo writes it, `to` as `REPO:TAG`.
    #[track_caller]
    pub fn fill(&self, source: &str, to: &str, more: &[&str]) {
        let to = format!("docker://{}/{to}", self.host);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]).args(more).args([source, &to]);
        let done = run(&mut command);
        assert_eq!(done.code, 0, "{command:?}: {done:?}");
    }

    /// The digest of `REPO:TAG` according to skopeo.
    pub fn digest(&self, image: &str, more: &[&str]) -> String {
        let image = format!("docker://{}/{image}", self.host);
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"]).args(more).arg(&image);
        let done = run(&mut command);
        assert_eq!(done.code, 0, "{command:?}: {done:?}");
        done.stdout.trim().to_owned()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // The process may have ended, and an error cannot be reported during a panic.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}
