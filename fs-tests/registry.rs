//! Registry pulls from a scripted server: wrong bytes, broken connections, redirects and authentication.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image, digest};
use super::support::registry::{Content, Reply, Request, Server, command, pull};
use super::support::tar::Tar;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Two small layers and one of 300 kB that does not compress.
fn image() -> Image {
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let tar = |n: u8| Tar::new().file(format!("file-{n}"), vec![n; 3000]).finish();
    let big = Tar::new().file("noise", noise).finish();
    Image::new().layer(tar(1)).compressed(big, Compression::None).compressed(tar(2), Compression::Zstd)
}

/// `team/app:1` with its manifest's digest.
fn app() -> (Content, String) {
    Content::of(&image(), "team/app", "1")
}

/// The server, its content, and the one blob whose replies the tests alter.
struct PullTest {
    server: Server,
    env: TestEnv,
    manifest: String,
    big: String,
    length: usize,
}

impl PullTest {
    /// A correct registry, except that `answer` may alter each reply.
    fn with(answer: impl Fn(&Request, Reply, bool) -> Reply + Send + Sync + 'static) -> Self {
        let (content, manifest) = app();
        let (big, length) = content.biggest();
        let path = big.clone();
        let server = Server::start(move |request| answer(request, content.reply(request), request.path == path));
        PullTest { server, env: TestEnv::new(), manifest, big, length }
    }

    fn pull(&self) -> Output {
        pull(&self.env, &format!("{}/team/app:1", self.server.host), &[])
    }

    /// Requires a successful pull; returns the offset of each request for the big blob.
    #[track_caller]
    fn succeeds(&self) -> Vec<Option<usize>> {
        let out = self.pull();
        assert_eq!(out.code, 0, "{out:#?}");
        assert!(out.stdout.contains(&format!("Digest: {}\n", self.manifest)), "{out:#?}");
        self.env.ok(["system", "fsck"]);
        self.server.requests().iter().filter(|s| s.path == self.big).map(Request::range_start).collect()
    }

    /// Requires that the pull fails with these words in its last line, and leaves nothing.
    #[track_caller]
    fn fails(&self, words: &[&str]) -> String {
        let out = self.pull();
        assert_eq!(out.code, 1, "{out:#?}");
        let last = out.stderr.trim_end().lines().last().unwrap_or_default().to_owned();
        for word in words.iter().chain([&self.server.host.as_str()]) {
            assert!(last.contains(word), "`{word}` is not in: {last}");
        }
        assert!(last.starts_with("Error: "), "{last}");
        assert_eq!(self.env.ok(["images", "-q"]), "");
        // Complete layers stay for the next pull until they are collected.
        self.env.ok(["system", "gc"]);
        self.env.ok(["system", "fsck"]);
        assert_eq!(fs::read_dir(self.env.root().join("layers/sha256")).unwrap().count(), 0);
        last
    }
}

#[test]
fn a_pull_prints_dockers_lines_and_a_second_fetches_only_the_manifest() {
    let t = PullTest::with(|_, reply, _| reply);
    let name = format!("{}/team/app", t.server.host);
    let out = pull(&t.env, &format!("{name}:1"), &[]);
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[0], "1: Pulling from team/app");
    assert_eq!(lines[1..4].iter().filter(|l| l.ends_with(": Pull complete")).count(), 3, "{out:#?}");
    let rest = [
        format!("Digest: {}", t.manifest),
        format!("Status: Downloaded newer image for {name}:1"),
        format!("{name}:1"),
    ];
    assert_eq!(lines[4..], rest);
    assert_eq!(out.stderr, "");
    let asked = t.server.requests().len();
    // A second pull: one request for the manifest, everything else is in the store.
    let again = pull(&t.env, &format!("{name}:1"), &[]);
    assert_eq!(again.stdout.matches(": Already exists").count(), 3);
    assert!(again.stdout.contains(&format!("Status: Image is up to date for {name}:1\n")), "{again:#?}");
    assert_eq!(t.server.requests().len(), asked + 1);
    // By digest, with and without a tag, which is ignored then.
    for text in [format!("{name}@{}", t.manifest), format!("{name}:x@{}", t.manifest)] {
        let out = pull(&t.env, &text, &[]).stdout;
        assert!(out.starts_with(&format!("{name}@{}: Pulling from team/app\n", t.manifest)), "{out}");
        assert!(out.ends_with(&format!("\n{name}@{}\n", t.manifest)), "{out}");
    }
    assert_eq!(t.server.requests().len(), asked + 1, "a request for content that the store has by digest");
    assert_eq!(pull(&t.env, &format!("{name}:1"), &["-q"]).stdout, format!("{name}:1\n"));
    let missing = pull(&t.env, &name, &[]);
    assert_eq!(missing.stdout, "Using default tag: latest\n");
    let host = &t.server.host;
    let want =
        format!("Error: {host}: manifest latest of team/app: 404 Whatever: manifest unknown (without credentials)\n");
    assert_eq!(missing.stderr.replace("404 Not Found", "404 Whatever"), want);
    assert_eq!(pull(&t.env, &format!("{name}:1"), &["-a"]).stderr, "Error: tag can't be used with --all-tags/-a\n");
    let accept =
        t.server.requests().iter().find(|s| s.path.contains("/manifests/")).unwrap().header("accept").to_owned();
    for kind in ["image.index.v1+json", "image.manifest.v1+json", "list.v2+json", "manifest.v2+json"] {
        assert!(accept.contains(kind), "{accept}");
    }
}

#[test]
fn broken_downloads_resume_with_a_range_request() {
    let cut = PullTest::with(|request, reply, big| match request.before {
        0 if big => reply.cut(100_000),
        1 | 2 if big => reply.cut(50_000),
        _ => reply,
    });
    assert_eq!(cut.succeeds(), [None, Some(100_000), Some(150_000), Some(200_000)]);
    // A complete answer (200) to a range request.
    let whole = PullTest::with(|request, reply, big| match request.before {
        0 if big => reply.cut(100_000),
        _ => reply,
    });
    assert_eq!(whole.succeeds(), [None, Some(100_000)]);
    let (content, _) = app();
    let ignores = PullTest::with(move |request, reply, big| match request.before {
        0 if big => reply.cut(100_000),
        _ if big => content.reply(&Request { headers: Default::default(), ..request.clone() }),
        _ => reply,
    });
    assert_eq!(ignores.succeeds(), [None, Some(100_000)]);
    let stalls = PullTest::with(|request, reply, big| match request.before {
        0 if big => reply.stall(70_000),
        _ => reply,
    });
    assert_eq!(stalls.succeeds(), [None, Some(70_000)]);
    // A wrong range, and an unsatisfiable one: the whole blob is fetched again.
    for range in ["bytes 0-9/307200", "bytes 100000-307199/5", "lines 1-2/3"] {
        let wrong = PullTest::with(move |request, reply, big| match (request.before, request.range_start()) {
            (0, _) if big => reply.cut(100_000),
            (_, Some(_)) if big => reply.header("Content-Range", range),
            _ => reply,
        });
        assert_eq!(wrong.succeeds(), [None, Some(100_000), None], "{range}");
    }
    let refuses = PullTest::with(|request, reply, big| match (request.before, request.range_start()) {
        (0, _) if big => reply.cut(100_000),
        (_, Some(_)) if big => Reply::new(416),
        _ => reply,
    });
    assert_eq!(refuses.succeeds(), [None, Some(100_000), None]);
    let never = PullTest::with(|_, reply, big| if big { reply.cut(10) } else { reply });
    never.fails(&["layer 2 of 3 (", "blob sha256:", "the connection broke", "(5 tries)"]);
}

#[test]
fn blobs_with_wrong_bytes_are_refused() {
    let flipped = PullTest::with(|_, reply, big| if big { reply.edit(|b| b[1000] ^= 1) } else { reply });
    flipped.fails(&["layer 2 of 3 (", "has digest sha256:"]);
    // Damage in the resumed part is found too: the hash covers both parts.
    let later = PullTest::with(|request, reply, big| match request.before {
        0 if big => reply.cut(1000),
        _ if big => reply.edit(|b| b[5] ^= 1),
        _ => reply,
    });
    later.fails(&["layer 2 of 3 (", "has digest sha256:"]);
    let long = PullTest::with(|_, reply, big| if big { reply.edit(|b| b.push(0)) } else { reply });
    let error = format!("it has {} bytes, longer than the {}", long.length + 1, long.length);
    long.fails(&["layer 2 of 3 (", &error]);
    let endless = PullTest::with(|_, reply, big| if big { reply.endless() } else { reply });
    endless.fails(&["layer 2 of 3 (", "is longer than"]);
    let short = PullTest::with(|_, reply, big| if big { reply.edit(|b| b.truncate(9)) } else { reply });
    short.fails(&["layer 2 of 3 (", "it has 9 bytes, shorter than the"]);
}

#[test]
fn busy_registries_are_retried() {
    let busy = PullTest::with(|request, reply, _| match request.before {
        0 => Reply::new(503),
        1 => Reply::new(429).header("Retry-After", 0),
        2 => Reply::new(500),
        _ => reply,
    });
    busy.succeeds();
    let patient = PullTest::with(|request, reply, big| match request.before {
        0 if big => Reply::new(429).header("Retry-After", 1),
        _ => reply,
    });
    let begun = Instant::now();
    patient.succeeds();
    assert!(begun.elapsed() >= Duration::from_secs(1), "Retry-After was ignored");
    let storm = PullTest::with(|_, reply, big| if big { Reply::new(429) } else { reply });
    storm.fails(&["layer 2 of 3 (", "429 Too Many Requests", "(5 tries)"]);
    assert_eq!(storm.server.count(&storm.big), 5);
    let silent = PullTest::with(|request, _, _| {
        if request.path.contains("/manifests/") { Reply::new(200).stall(0).body("x") } else { Reply::new(404) }
    });
    silent.fails(&["manifest 1 of team/app", "timed out waiting for data", "(5 tries)"]);
    let gone = PullTest::with(|_, reply, big| if big { Reply::new(404) } else { reply });
    gone.fails(&["layer 2 of 3 (", "404 Not Found"]);
}

#[test]
fn redirects_carry_no_credentials() {
    let (content, _) = app();
    let (big, _) = content.biggest();
    let store = content.clone();
    let other = Server::start(move |request| match request.before {
        0 => store.reply(request).cut(1000),
        _ => store.reply(request),
    });
    let place = format!("http://{}{big}", other.host);
    let server = Server::start(move |request| match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
        _ if request.path == big => Reply::new(307).header("Location", &place),
        _ => content.reply(request),
    });
    let env = TestEnv::new();
    let out = pull(&env, &format!("{}/team/app:1", server.host), &["--creds", "me:secret"]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert!(!out.stderr.contains("secret"), "{out:#?}");
    let requests = other.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|s| s.header("authorization").is_empty()), "{requests:#?}");
    assert_eq!(requests[1].range_start(), Some(1000));
    assert!(server.requests().iter().any(|s| s.header("authorization") == "Basic bWU6c2VjcmV0"));
    let loops = PullTest::with(
        |request, reply, big| if big { Reply::new(302).header("Location", &request.path) } else { reply },
    );
    loops.fails(&["layer 2 of 3 (", "more than 10 redirects"]);
    let away = PullTest::with(
        |_, reply, big| {
            if big { Reply::new(302).header("Location", "http://storage.invalid/x") } else { reply }
        },
    );
    away.fails(&["layer 2 of 3 (", "it redirects to storage.invalid without https"]);
}

/// RFC 3986, 5.2.4; a signed query must arrive unchanged.
#[test]
fn a_redirect_with_dot_segments_is_followed_and_its_query_stays_byte_for_byte() {
    const QUERY: &str = "sig=a%2Fb+c%2f%7E==&x=~!$()*,;:@/?&e=%e2%98%83&../..";
    for reference in ["../../../../s3/", "./.././../%2e%2e/.%2E/s3/x/../", "/a/b/../../s3/"] {
        let (content, _) = app();
        let server =
            Server::start(move |request| match request.path.strip_prefix("/s3/").and_then(|p| p.split_once('?')) {
                Some((name, QUERY)) => {
                    let kind = if name == "1" { "manifests" } else { "blobs" };
                    content.reply(&Request { path: format!("/v2/team/app/{kind}/{name}"), ..request.clone() })
                }
                Some(_) => Reply::new(403),
                None => {
                    let (_, name) = request.path.rsplit_once('/').unwrap();
                    Reply::new(307).header("Location", format!("{reference}{name}?{QUERY}"))
                }
            });
        let out = pull(&TestEnv::new(), &format!("{}/team/app:1", server.host), &[]);
        assert_eq!(out.code, 0, "{reference}: {out:#?}");
    }
}

#[test]
fn manifests_and_configs_with_false_claims_are_refused() {
    let manifest = |answer: fn(Reply) -> Reply| {
        PullTest::with(
            move |request, reply, _| if request.path.contains("/manifests/") { answer(reply) } else { reply },
        )
    };
    manifest(|reply| reply.edit(|b| b.resize(5 << 20, b' ')))
        .fails(&["manifest 1 of team/app", "longer than 4194304 bytes"]);
    manifest(|reply| reply.endless()).fails(&["longer than 4194304 bytes"]);
    let other = |reply: Reply| reply.header("Docker-Content-Digest", digest(b"other"));
    manifest(other).fails(&["instead of", &digest(b"other")]);
    manifest(|reply| reply.header("Docker-Content-Digest", "sha256:../../x")).succeeds();
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let confused =
        manifest(move |reply| reply.header("Content-Type", "application/vnd.docker.distribution.manifest.v2+json"));
    confused.fails(&["has mediaType", docker]);
    manifest(|reply| reply.header("Content-Type", "application/json; charset=utf-8")).succeeds();
    manifest(|_| Reply::new(200).body("<html>")).fails(&["not valid JSON"]);
    let schema_1 = json!({"schemaVersion": 1, "fsLayers": []}).to_string();
    let old = Server::start(move |_| {
        let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        Reply::new(200).header("Content-Type", kind).body(schema_1.clone())
    });
    let out = pull(&TestEnv::new(), &format!("{}/a", old.host), &[]);
    assert!(out.stderr.contains("schema 1 manifest, which is obsolete"), "{out:#?}");
    let both = image().edit_manifest(|m| m["manifests"] = json!([]));
    let (content, _) = Content::of(&both, "a", "latest");
    let server = Server::start(move |request| content.reply(request));
    let out = pull(&TestEnv::new(), &format!("{}/a", server.host), &[]);
    assert!(out.stderr.contains("both `manifests` and `layers`"), "{out:#?}");
    // By digest, other bytes are refused whatever the headers say.
    let t = manifest(|reply| reply.edit(|b| b.push(b' ')).header("Docker-Content-Digest", ""));
    let out = pull(&t.env, &format!("{}/team/app@{}", t.server.host, t.manifest), &[]);
    assert!(out.code == 1 && out.stderr.contains("instead of"), "{out:#?}");
}

/// A registry that requires bearer tokens and issues them itself. `answer` may answer first.
fn with_tokens(answer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let (content, _) = app();
    let own = std::sync::Arc::new(OnceLock::<String>::new());
    let host = own.clone();
    let server = Server::start(move |request| {
        if let Some(reply) = answer(request) {
            return reply;
        }
        if request.path.starts_with("/token") {
            return Reply::new(200).body(r#"{"access_token":"good"}"#);
        }
        if request.header("authorization") == "Bearer good" {
            return content.reply(request);
        }
        let realm = format!("http://{}/token", host.get().map_or("", String::as_str));
        let challenge = format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:team/app:pull\"");
        Reply::new(401).header("WWW-Authenticate", challenge)
    });
    own.set(server.host.clone()).unwrap();
    server
}

#[test]
fn bearer_tokens_are_requested_and_used() {
    let env = TestEnv::new();
    let server = with_tokens(|_| None);
    let name = format!("{}/team/app:1", server.host);
    let out = pull(&env, &name, &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert_eq!(server.count("/token"), 1, "one token serves them all");
    let asked = server.requests().into_iter().find(|s| s.path.starts_with("/token")).unwrap();
    assert_eq!((asked.method.as_str(), asked.header("authorization")), ("GET", ""));
    assert_eq!(asked.path, "/token?service=reg&scope=repository%3Ateam%2Fapp%3Apull");
    // A password is sent to the token server only.
    let server = with_tokens(|_| None);
    let name = format!("{}/team/app:1", server.host);
    assert_eq!(pull(&TestEnv::new(), &name, &["--creds", "me:secret"]).code, 0);
    for request in server.requests() {
        assert_eq!(
            request.header("authorization").starts_with("Basic"),
            request.path.starts_with("/token"),
            "{request:?}"
        );
    }
    // An identity token requires the OAuth2 endpoint.
    let server = with_tokens(|_| None);
    let (host, env) = (&server.host, TestEnv::new());
    fs::write(env.path("auth.json"), json!({"auths": {host: {"identitytoken": "r/t"}}}).to_string()).unwrap();
    let file = env.path("auth.json");
    let name = format!("{host}/team/app:1");
    let out = pull(&env, &name, &["--authfile", file.to_str().unwrap()]);
    assert_eq!(out.code, 0, "{out:#?}");
    let post = server.requests().into_iter().find(|s| s.method == "POST").unwrap();
    assert_eq!(
        post.body,
        "grant_type=refresh_token&refresh_token=r%2Ft&service=reg&client_id=plyfs&scope=repository%3Ateam%2Fapp%3Apull"
    );
    // A token server with the OAuth2 endpoint only.
    let server = with_tokens(|request| (request.path.contains("/token?")).then(|| Reply::new(405)));
    let name = format!("{}/team/app:1", server.host);
    assert_eq!(pull(&TestEnv::new(), &name, &["--creds", "me:se cret"]).code, 0);
    let post = server.requests().into_iter().find(|s| s.method == "POST").unwrap();
    assert!(post.body.starts_with("grant_type=password&username=me&password=se%20cret&"), "{}", post.body);
}

#[test]
fn an_expired_token_is_renewed_during_a_pull() {
    let t = with_tokens(|request| {
        if request.path.starts_with("/token") && request.before > 0 {
            return Some(Reply::new(200).body(r#"{"token":"good"}"#));
        }
        if request.path.starts_with("/token") {
            return Some(Reply::new(200).body(r#"{"token":"old","expires_in":600}"#));
        }
        // The first token is valid for the manifest only.
        let old = request.header("authorization") == "Bearer old" && request.path.contains("/manifests/");
        old.then(|| app().0.reply(request))
    });
    let env = TestEnv::new();
    let out = pull(&env, &format!("{}/team/app:1", t.host), &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert_eq!((t.count("/token"), out.stderr.as_str()), (2, ""));
}

#[test]
fn authentication_failures_say_which_credentials_were_used() {
    let env = TestEnv::new();
    let refused = |server: &Server, more: &[&str], words: &[&str]| {
        let out = pull(&env, &format!("{}/team/app:1", server.host), more);
        assert_eq!((out.code, out.stderr.lines().count()), (1, 1), "{out:#?}");
        for word in words {
            assert!(out.stderr.contains(word), "`{word}` is not in {}", out.stderr);
        }
        assert!(!out.stderr.contains("secret"), "{out:#?}");
    };
    let basic = Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    refused(&basic, &[], &["401 Unauthorized: it is missing or private (without credentials)"]);
    refused(&basic, &["--creds", "me:secret"], &["wrong user name or password (user me from --creds)"]);
    let private = with_tokens(|request| {
        (!request.path.starts_with("/token") && !request.header("authorization").is_empty()).then(|| Reply::new(403))
    });
    refused(&private, &[], &["403 Forbidden: it is missing or private (without credentials)"]);
    refused(&private, &["--creds", "me:secret"], &["missing or private (user me from --creds)"]);
    let strict = with_tokens(|request| request.path.starts_with("/token").then(|| Reply::new(401)));
    refused(&strict, &[], &["it is missing or private (without credentials)"]);
    refused(&strict, &["--creds", "me:secret"], &["wrong credentials: its token server", "(user me from --creds)"]);
    let odd = Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Negotiate"));
    refused(&odd, &[], &["an unsupported authentication scheme (negotiate)"]);
    refused(&Server::start(|_| Reply::new(401)), &[], &["401"]);
    refused(&basic, &["--authfile", "/nowhere/auth.json"], &["cannot read credentials from /nowhere/auth.json"]);
}

#[test]
fn token_servers_in_private_networks_are_not_asked() {
    for realm in [
        "http://10.0.0.1/token",
        "https://169.254.169.254/token",
        "https://[fd00::1]/t",
        "ftp://x/",
        "http://auth.invalid/t",
    ] {
        let server = Server::start(move |_| {
            Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"x\""))
        });
        let out = pull(&TestEnv::new(), &format!("{}/a:1", server.host), &["--creds", "me:secret"]);
        assert_eq!(out.code, 1);
        let why = ["is in a private network", "does not use https", "is not a URL"];
        assert!(why.iter().any(|why| out.stderr.contains(why)), "{realm}: {out:#?}");
    }
    // A token server that this machine could reach is not asked, since its host name is not the registry's.
    let spy = Server::start(|_| Reply::new(200).body(r#"{"token":"x"}"#));
    let port = spy.host.split(':').next_back().unwrap().to_owned();
    let server = Server::start(move |_| {
        Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"http://localhost:{port}/token\""))
    });
    let out = pull(&TestEnv::new(), &format!("{}/a:1", server.host), &["--tls-verify=false"]);
    assert!(out.code == 1 && out.stderr.contains("is in a private network"), "{out:#?}");
    assert_eq!(spy.requests().len(), 0);
}

#[test]
fn credentials_are_read_from_files_and_helpers_in_order() {
    let server = Server::start(|request| match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
        _ => Reply::new(404),
    });
    let (host, env) = (server.host.as_str(), TestEnv::new());
    let put = |path: &str, content: serde_json::Value| {
        fs::create_dir_all(env.path(path).parent().unwrap()).unwrap();
        fs::write(env.path(path), content.to_string()).unwrap();
    };
    let bin = env.path("bin");
    fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = "#!/bin/sh\nread -r key; [ \"$1\" = get ] && echo \"{\\\"Username\\\":\\\"helped\\\",\\\"Secret\\\":\\\"$key\\\"}\"\n";
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let user = |set: &dyn Fn(&mut std::process::Command)| {
        let before = server.requests().len();
        let mut command = command(&env, &["pull", &format!("{host}/team/app:1")]);
        command.env("PATH", &path);
        set(&mut command);
        let out = run(&mut command);
        let requests = server.requests().split_off(before);
        let header = requests.last().map_or("", |s| s.header("authorization")).trim_start_matches("Basic ").to_owned();
        let decoded = run(std::process::Command::new("sh").args(["-c", &format!("echo {header} | base64 -d")]));
        (decoded.stdout, out.stderr)
    };
    let none = |_: &mut std::process::Command| {};
    // Each file added here takes precedence over those before it.
    assert_eq!(user(&none).0, "");
    put("home/.docker/config.json", json!({"auths": {host: {}}, "credsStore": "test"}));
    assert_eq!(user(&none).0, format!("helped:{host}"));
    put("home/.docker/config.json", json!({"credHelpers": {host: "test"}}));
    let (who, error) = user(&none);
    assert_eq!(who, format!("helped:{host}"));
    assert!(error.contains("user helped from docker-credential-test, named in /"), "{error}");
    put("home/.config/containers/auth.json", json!({"auths": {host: {"auth": "eGRnOnB3"}}}));
    assert_eq!(user(&none).0, "xdg:pw");
    let team = format!("{host}/team");
    put("run/containers/auth.json", json!({"auths": {host: {"auth": "YTpi"}, team: {"auth": "dGVhbTpwdw=="}}}));
    let (who, error) = user(&none);
    assert_eq!(who, "team:pw");
    assert!(error.contains("user team from /") && error.contains("run/containers/auth.json"), "{error}");
    put("named.json", json!({"auths": {host: {"auth": "ZW52OnB3"}}}));
    let by_name = |c: &mut std::process::Command| {
        c.env("REGISTRY_AUTH_FILE", env.path("named.json"));
    };
    let given = |c: &mut std::process::Command| {
        c.args(["--creds", "given:pw:x"]);
    };
    assert_eq!(user(&by_name).0, "env:pw");
    assert_eq!(user(&given).0, "given:pw:x");
    put("named.json", json!({"credHelpers": {host: "nowhere"}}));
    let (_, error) = user(&by_name);
    assert!(error.contains("cannot run docker-credential-nowhere"), "{error}");
}

#[test]
fn all_tags_are_read_from_a_paginated_list() {
    let (content, _) = app();
    let (second, _) = Content::of(&Image::new().layer(Tar::new().file("x", "y").finish()), "team/app", "2");
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/team/app/tags/list" => {
            Reply::new(200).header("Link", "</v2/team/app/tags/list?last=1>; rel=\"next\"").body(r#"{"tags":["1"]}"#)
        }
        "/v2/team/app/tags/list?last=1" => Reply::new(200).body(r#"{"name":"team/app","tags":["2"]}"#),
        "/v2/evil/tags/list" => Reply::new(200).header("Link", "<http://localhost:1/>; rel=next").body("{}"),
        "/v2/odd/tags/list" => Reply::new(200).body(r#"{"tags":["../x"]}"#),
        "/v2/none/tags/list" => Reply::new(200).body(r#"{"tags":null}"#),
        path if path.ends_with("/1") => content.reply(request),
        path if path.ends_with("/2") => second.reply(request),
        _ if content.reply(request).is_found() => content.reply(request),
        _ => second.reply(request),
    });
    let (host, env) = (&server.host, TestEnv::new());
    let out = pull(&env, &format!("{host}/team/app"), &["-a"]);
    assert_eq!(out.code, 0, "{out:#?}");
    for part in ["1: Pulling from team/app\n", "2: Pulling from team/app\n"] {
        assert!(out.stdout.contains(part), "{out:#?}");
    }
    assert!(out.stdout.ends_with(&format!("Status: Downloaded newer image for {host}/team/app\n{host}/team/app\n")));
    assert!(pull(&env, &format!("{host}/team/app"), &["-a"]).stdout.contains("Status: Image is up to date for"));
    assert_eq!(env.ok(["images", "-q"]).lines().count(), 2);
    for (repo, words) in [("evil", "is on another host"), ("odd", "has the invalid tag"), ("none", "has no tags")] {
        let out = pull(&env, &format!("{host}/{repo}"), &["-a"]);
        assert!(out.code == 1 && out.stderr.contains(words), "{out:#?}");
    }
}

#[test]
fn an_image_index_gives_the_image_of_the_requested_platform() {
    let (content, manifest) = app();
    let bytes = content.reply(&get("/v2/team/app/manifests/1")).into_body();
    let entry = |arch: &str, digest: &str, size: usize| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": arch}});
    let list = [entry("s390x", &digest(b"no"), 2), entry("amd64", &manifest, bytes.len())];
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": list}).to_string();
    let root = digest(index.as_bytes());
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/team/app/manifests/multi" => Reply::new(200).header("Content-Type", kind).body(index.clone()),
        _ => content.reply(request),
    });
    let env = TestEnv::new();
    let name = format!("{}/team/app:multi", server.host);
    let out = pull(&env, &name, &["--platform", "linux/amd64"]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert!(out.stdout.contains(&format!("Digest: {root}\n")), "{out:#?}");
    let out = pull(&env, &name, &["--platform", "linux/riscv64"]);
    assert!(out.stderr.contains("no matching manifest for linux/riscv64"), "{out:#?}");
    let out = pull(&env, &name, &["--platform", "linux/s390x"]);
    assert!(out.code == 1 && out.stderr.contains(&digest(b"no")), "{out:#?}");
}

pub fn get(path: &str) -> Request {
    Request {
        method: "GET".into(),
        path: path.into(),
        headers: Default::default(),
        body: String::new(),
        bytes: vec![],
        before: 0,
    }
}
