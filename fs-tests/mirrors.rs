//! Registry mirrors: pulls configured by containers-registries.conf(5), as podman reads it.

use std::fs;
use std::net::TcpListener;

use serde_json::json;

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image};
use super::support::registry::{Content, DockerRegistry, Reply, Request, Server, command, pull};
use super::support::tar::Tar;
use super::support::tls;

/// An image of one small layer and one of 300 kB that does not compress.
fn image() -> Image {
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let small = Tar::new().file("small", vec![1; 3000]).finish();
    Image::new().layer(small).compressed(Tar::new().file("noise", noise).finish(), Compression::None)
}

/// A correct registry with the image as `REPO:1`; `answer` may alter each reply.
fn serve(repo: &str, answer: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let (content, _) = Content::of(&image(), repo, "1");
    Server::start(move |request| answer(request, content.reply(request)))
}

fn serve_image(repo: &str) -> Server {
    serve(repo, |_, reply| reply)
}

/// The URL path of the big layer's blob.
fn big(repo: &str) -> String {
    Content::of(&image(), repo, "1").0.biggest().0
}

/// Writes the user's `registries.conf`.
fn configure(env: &TestEnv, text: &str) {
    let dir = env.path("home/.config/containers");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("registries.conf"), text).unwrap();
}

/// Configures the mirrors of the registry `host`; each is `HOST/PATH` with further lines of registries.conf.
fn mirrors(env: &TestEnv, host: &str, mirrors: &[(String, &str)]) {
    let mut text = format!("[[registry]]\nlocation = \"{host}\"\n");
    for (location, more) in mirrors {
        text += &format!("[[registry.mirror]]\nlocation = \"{location}\"\n{more}\n");
    }
    configure(env, &text);
}

/// Pulls `team/app:1` through one mirror; the pull must succeed.
#[track_caller]
fn pull_through(mirror: &Server, origin: &Server) -> Output {
    let env = TestEnv::new();
    mirrors(&env, &origin.host, &[(format!("{}/hub", mirror.host), "")]);
    let out = pull(&env, &format!("{}/team/app:1", origin.host), &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    env.ok(["system", "fsck"]);
    out
}

/// Requires a warning that names the mirror and contains these words.
#[track_caller]
fn assert_warning(out: &Output, mirror: &str, words: &str) {
    let found =
        out.stderr.lines().any(|l| l.contains("WARN") && l.contains(&format!("mirror {mirror}")) && l.contains(words));
    assert!(found, "no warning of {mirror} with `{words}`: {out:#?}");
}

#[test]
fn mirrors_are_tried_in_the_configured_order() {
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (empty, good) = (Server::start(|_| Reply::new(404)), serve_image("hub/team/app"));
    let (later, origin) = (serve_image("team/app"), serve_image("team/app"));
    let env = TestEnv::new();
    let all = [down.clone(), empty.host.clone(), format!("{}/hub/", good.host), later.host.clone()];
    mirrors(&env, &origin.host, &all.map(|mirror| (mirror, "")));
    let name = format!("{}/team/app:1", origin.host);
    let out = pull(&env, &name, &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert_warning(&out, &down, "");
    assert_warning(&out, &empty.host, "404 Not Found");
    assert!(out.stdout.ends_with(&format!("{name}\n")), "{out:#?}");
    assert_eq!((origin.requests().len(), later.requests().len()), (0, 0));
    assert_eq!(good.count("/blobs/"), 3);
    let inspected = env.ok(["inspect", &name]);
    assert!(inspected.contains(&name) && !inspected.contains("hub"), "{inspected}");
    env.ok(["system", "fsck"]);
    // If only the registry itself is left, its error is the one reported.
    let none = Server::start(|_| Reply::new(404));
    mirrors(&env, &none.host, &[(empty.host.clone(), "")]);
    let out = pull(&env, &format!("{}/team/app:1", none.host), &[]);
    let last = out.stderr.lines().last().unwrap_or_default();
    assert!(out.code == 1 && last.starts_with(&format!("Error: {}: manifest 1 of team/app", none.host)), "{out:#?}");
    // Other registries do not use these mirrors.
    let before = empty.requests().len();
    assert_eq!(pull(&env, &format!("{}/team/app:1", later.host), &[]).code, 0);
    assert_eq!(empty.requests().len(), before);
}

#[test]
fn blobs_and_manifests_from_mirrors_are_verified() {
    let origin = serve_image("team/app");
    for (part, words) in [("/manifests/1", "not valid JSON"), ("/blobs/", "has digest sha256:")] {
        let corrupt_mirror = serve("hub/team/app", move |request, reply| match request.path.contains(part) {
            true if part == "/blobs/" => reply.edit(|bytes| bytes[20] ^= 1),
            true => Reply::new(200).body("<html>Sign in to this network</html>"),
            false => reply,
        });
        let out = pull_through(&corrupt_mirror, &origin);
        assert_warning(&out, &corrupt_mirror.host, words);
    }
    let path = big("hub/team/app");
    for (more, words) in [(1, "longer than"), (-1, "shorter than")] {
        let path = path.clone();
        let corrupt_mirror = serve("hub/team/app", move |request, reply| match request.path == path {
            true => reply.edit(|bytes| bytes.resize(bytes.len().saturating_add_signed(more), 0)),
            false => reply,
        });
        assert_warning(&pull_through(&corrupt_mirror, &origin), &corrupt_mirror.host, words);
    }
    // Two mirrors that serve the same wrong bytes, one after the other.
    let lie = |path: String| {
        move |request: &Request, reply: Reply| if request.path == path { reply.edit(|b| b[9] ^= 1) } else { reply }
    };
    let liars = [serve("hub/team/app", lie(path.clone())), serve("hub/team/app", lie(path))];
    let env = TestEnv::new();
    let places = liars.each_ref().map(|corrupt_mirror| (format!("{}/hub", corrupt_mirror.host), ""));
    mirrors(&env, &origin.host, &places);
    let out = pull(&env, &format!("{}/team/app:1", origin.host), &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    for corrupt_mirror in &liars {
        assert_warning(&out, &corrupt_mirror.host, "has digest sha256:");
    }
    env.ok(["system", "fsck"]);
    // If the registry itself serves wrong bytes, the pull fails, and no request loop follows.
    let path = big("team/app");
    let bad = serve("team/app", lie(path.clone()));
    let env = TestEnv::new();
    mirrors(&env, &bad.host, &places);
    let out = pull(&env, &format!("{}/team/app:1", bad.host), &[]);
    assert!(out.code == 1 && out.stderr.contains("Error: ") && out.stderr.contains("has digest sha256:"), "{out:#?}");
    assert_eq!(bad.count(&path), 1);
}

#[test]
fn a_failing_or_busy_mirror_is_tried_twice_then_skipped() {
    let origin = serve_image("team/app");
    let path = big("hub/team/app");
    let cut = path.clone();
    let breaks = serve("hub/team/app", move |request, reply| match (request.path == cut, request.before) {
        (true, 0) => reply.cut(100_000),
        (true, _) => Reply::hang_up(),
        _ => reply,
    });
    assert_warning(&pull_through(&breaks, &origin), &breaks.host, "(2 tries)");
    let own = big("team/app");
    let rest: Vec<_> = origin.requests().iter().filter(|s| s.path == own).map(Request::range_start).collect();
    assert_eq!(rest, [Some(100_000)], "the registry was asked for what the mirror had given");
    let busy = path.clone();
    let storm = serve("hub/team/app", move |request, reply| if request.path == busy { Reply::new(429) } else { reply });
    assert_warning(&pull_through(&storm, &origin), &storm.host, "429 Too Many Requests (2 tries)");
    let all = Server::start(|_| Reply::new(429));
    assert_warning(&pull_through(&all, &origin), &all.host, "429 Too Many Requests (2 tries)");
    assert_eq!(all.requests().iter().filter(|s| s.path != "/v2/").count(), 2, "the mirror was tried again");
    let lacks = serve("hub/team/app", move |request, reply| if request.path == path { Reply::new(404) } else { reply });
    assert_warning(&pull_through(&lacks, &origin), &lacks.host, "404 Not Found");
}

#[test]
fn each_mirror_gets_only_its_own_credentials() {
    let closed = |repo| {
        serve(repo, |request, reply| match request.header("authorization") {
            "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
            _ => reply,
        })
    };
    let own = big("hub/team/app");
    let mirror = serve("hub/team/app", move |request, reply| match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
        // The mirror lacks the big blob, so the registry serves it.
        _ if request.path == own => Reply::new(404),
        _ => reply,
    });
    let origin = closed("team/app");
    let env = TestEnv::new();
    mirrors(&env, &origin.host, &[(format!("{}/hub", mirror.host), "")]);
    let auths = json!({"auths": {&mirror.host: {"auth": "bWlycm9yOnB3"}, &origin.host: {"auth": "b3JpZ2luOnB3"}}});
    fs::write(env.path("auth.json"), auths.to_string()).unwrap();
    let name = format!("{}/team/app:1", origin.host);
    let file = env.path("auth.json");
    let out = pull(&env, &name, &["--authfile", file.to_str().unwrap()]);
    assert_eq!(out.code, 0, "{out:#?}");
    let shown = |server: &Server| -> Vec<String> {
        let mut all: Vec<_> = server.requests().iter().map(|s| s.header("authorization").to_owned()).collect();
        all.sort();
        all.dedup();
        all
    };
    assert_eq!(shown(&mirror), ["", "Basic bWlycm9yOnB3"]);
    assert_eq!(shown(&origin), ["", "Basic b3JpZ2luOnB3"]);
    // Credentials given for the image are sent to its registry only.
    let (mirror, origin, env) = (closed("hub/team/app"), closed("team/app"), TestEnv::new());
    mirrors(&env, &origin.host, &[(format!("{}/hub", mirror.host), "")]);
    let out = pull(&env, &format!("{}/team/app:1", origin.host), &["--creds", "me:secret"]);
    assert_eq!(out.code, 0, "{out:#?}");
    assert_warning(&out, &mirror.host, "without credentials");
    assert_eq!(
        (shown(&mirror), shown(&origin)),
        (vec![String::new()], vec![String::new(), "Basic bWU6c2VjcmV0".into()])
    );
}

#[test]
fn pull_from_mirror_restricts_mirrors_to_digests_or_tags() {
    let (mirror, origin) = (serve_image("hub/team/app"), serve_image("team/app"));
    let (_, digest) = Content::of(&image(), "team/app", "1");
    for (mode, by_tag, by_digest) in [("all", true, true), ("digest-only", false, true), ("tag-only", true, false)] {
        let more = format!("pull-from-mirror = \"{mode}\"");
        for (name, used) in [(":1".to_owned(), by_tag), (format!("@{digest}"), by_digest)] {
            let env = TestEnv::new();
            mirrors(&env, &origin.host, &[(format!("{}/hub", mirror.host), &more)]);
            let before = (mirror.requests().len(), origin.requests().len());
            let out = pull(&env, &format!("{}/team/app{name}", origin.host), &[]);
            assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{mode} {name}");
            let asked = (mirror.requests().len() > before.0, origin.requests().len() > before.1);
            assert_eq!(asked, (used, !used), "{mode} {name}");
        }
    }
}

#[test]
fn blocked_registries_are_refused_and_relocated_ones_followed() {
    let (origin, env) = (serve_image("team/app"), TestEnv::new());
    let (host, name) = (&origin.host, format!("{}/team/app:1", origin.host));
    let file = env.path("home/.config/containers/registries.conf").display().to_string();
    configure(&env, &format!("[[registry]]\nlocation = \"{host}/team\"\nblocked = true"));
    let out = pull(&env, &name, &[]);
    assert_eq!(out.code, 1);
    assert_eq!(out.stderr, format!("Error: {host}: manifest 1 of team/app: {host}/team is blocked in {file}\n"));
    configure(&env, "[[registry]]\nlocation = \"x\"\nblocked = maybe");
    let out = pull(&env, &name, &[]);
    assert!(out.code == 1 && out.stderr.contains(&format!("{file}: line 3: ")), "{out:#?}");
    assert_eq!((out.stderr.lines().count(), origin.requests().len()), (1, 0), "{out:#?}");
    // Another configuration file works as well, and so does the user's own drop-in directory beside it.
    let other = env.path("other.conf");
    fs::write(&other, format!("[[registry]]\nprefix = \"far.example/x\"\nlocation = \"{host}/team\"")).unwrap();
    let moved = || run(command(&env, &["pull", "far.example/x/app:1"]).env("CONTAINERS_REGISTRIES_CONF", &other));
    let out = moved();
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
    assert!(out.stdout.ends_with("far.example/x/app:1\n"), "{out:#?}");
    let folder = env.path("home/.config/containers/registries.conf.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("1.conf"), "[[registry]]\nprefix = \"far.example/x\"\nlocation = \"y\"\nblocked = true")
        .unwrap();
    let out = moved();
    assert!(out.code == 1 && out.stderr.contains("1.conf"), "{out:#?}");
}

/// A registry over TLS that requires a client certificate, with the image as `hub/team/app:1`. The directory `ca` in
/// the environment has all certificates.
fn by_tls(env: &TestEnv) -> DockerRegistry {
    let (ca, certs) = (env.path("ca"), env.path("certs"));
    tls::certificates(&ca);
    tls::copy(&ca, &certs, &["server.crt", "server.key"]);
    tls::copy(&ca, &env.path("shown"), &["client.cert", "client.key"]);
    fs::copy(ca.join("ca.crt"), certs.join("clients.crt")).unwrap();
    image().write_layout(&env.path("image"));
    let registry = DockerRegistry::start(None, Some(&certs));
    let source = format!("oci:{}:latest", env.path("image").display());
    registry.fill(
        &source,
        "hub/team/app:1",
        &["--preserve-digests", "--dest-cert-dir", env.path("shown").to_str().unwrap()],
    );
    registry
}

#[test]
fn tls_certificates_are_chosen_per_mirror() {
    let (keys, origin) = (TestEnv::new(), serve_image("team/app"));
    let mirror = by_tls(&keys);
    let name = format!("{}/team/app:1", origin.host);
    // Pulls into an empty store; returns whether the registry itself was asked.
    let through = |files: &[&str], more| {
        let env = TestEnv::new();
        mirrors(&env, &origin.host, &[(format!("{}/hub", mirror.host), more)]);
        tls::copy(&keys.path("ca"), &env.path("home/.config/containers/certs.d").join(&mirror.host), files);
        let before = origin.requests().len();
        let out = run(&mut command(&env, &["pull", &name]));
        assert_eq!(out.code, 0, "{out:#?}");
        (origin.requests().len() > before, out)
    };
    let (asked, out) = through(&["client.cert", "client.key"], "");
    assert!(asked);
    assert_warning(&out, &mirror.host, "its TLS certificate is not trusted");
    let (asked, out) = through(&["ca.crt"], "");
    assert!(asked);
    // Over TLS the registry rejects clients without a certificate; on localhost plain http is tried next, and gets this
    // answer.
    assert_warning(&out, &mirror.host, "400 Bad Request");
    let (asked, out) = through(&["ca.crt", "client.cert"], "");
    assert!(asked);
    assert_warning(&out, &mirror.host, "client.key");
    for (files, more) in
        [(["client.cert", "client.key"].as_slice(), "insecure = true"), (&["ca.crt", "client.cert", "client.key"], "")]
    {
        let (asked, out) = through(files, more);
        assert!(!asked && out.stderr.is_empty(), "{out:#?}");
    }
}
