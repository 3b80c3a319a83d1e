//! `search` and `manifest inspect`: their requests to registries, and their output.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::digest;
use super::support::registry::{DockerRegistry, Reply, Request, Server, command};

fn plyfs(args: &[&str]) -> Output {
    run(&mut command(&TestEnv::new(), args))
}

/// Runs `search` with short retry pauses.
fn search(term: &str, more: &[&str]) -> Output {
    plyfs(&[&["search", "--stall-timeout", "0.5", "--retry-pause", "0.02"], more, &[term]].concat())
}

/// A server with Docker Hub's search API, as the first part of the search term.
fn hub() -> Server {
    let hit = |name: &str, description: &str, stars: i64, official: bool| {
        json!({"name": name, "description": description,
        "star_count": stars, "is_official": official, "is_automated": true, "is_trusted": false})
    };
    let results = [
        hit("team/python", "Python\twith\nlines \u{1b}[31m", 46, false),
        hit(
            "python",
            "Python is an interpreted, interactive, object-oriented, open-source programming language.",
            9235,
            true,
        ),
        hit("pypy", "PyPy is a fast, compliant alternative implementation", 240, true),
        json!({"name": "none/python", "description": null, "star_count": 0}),
    ];
    let answer = json!({"num_results": 4, "query": "python", "results": results}).to_string();
    Server::start(move |request| match request.path.as_str() {
        path if path.starts_with("/v1/search?q=") => Reply::new(200).body(answer.clone()),
        "/v2/" => Reply::new(200),
        _ => Reply::new(404),
    })
}

#[test]
fn search_prints_dockers_table() {
    let server = hub();
    let host = &server.host;
    let out = search(&format!("{host}/pyth on"), &[]);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
    let wide = host.len() + "/team/python".len() + 3;
    let want = [
        format!("{:wide$}DESCRIPTION                                     STARS     OFFICIAL\n", "NAME"),
        format!("{:wide$}Python is an interpreted, interactive, objec…   9235      [OK]\n", format!("{host}/python")),
        format!("{:wide$}PyPy is a fast, compliant alternative implem…   240       [OK]\n", format!("{host}/pypy")),
        format!("{:wide$}Python with lines  [31m                         46        \n", format!("{host}/team/python")),
        format!("{:wide$}                                                0         \n", format!("{host}/none/python")),
    ];
    assert_eq!(out.stdout, want.concat());
    let asked: Vec<String> = server.requests().into_iter().map(|s| s.path).filter(|p| p.starts_with("/v1/")).collect();
    assert_eq!(asked, ["/v1/search?q=pyth%20on&n=25"]);
    let shown = |more: &[&str]| {
        let out = search(&format!("{host}/python"), more);
        assert_eq!(out.code, 0, "{out:#?}");
        out.stdout.replace(&format!("{host}/"), "")
    };
    let names = ["--format", "{{.Name}}"];
    assert_eq!(shown(&[&names[..], &["-f", "is-official=true"]].concat()), "python\npypy\n");
    assert_eq!(shown(&[&names[..], &["--filter", "stars=46", "-f", "is-official=0"]].concat()), "team/python\n");
    assert_eq!(shown(&[&names[..], &["--limit", "1"]].concat()), "team/python\n", "the server gave more than it may");
    assert!(server.requests().last().unwrap().path.ends_with("&n=1"));
    assert_eq!(shown(&[&names[..], &["--limit", "0"]].concat()).lines().count(), 4);
    assert_eq!(
        shown(&["--format", "{{.StarCount}}{{.IsOfficial}}|{{.IsAutomated}}", "-f", "stars=9000"]),
        "9235[OK]|\n"
    );
    let full_text = shown(&["--no-trunc", "--format", "{{.Description}}", "-f", "stars=9000"]);
    assert!(full_text.ends_with("programming language.\n"), "{full_text}");
    let line = shown(&["--format", "json", "-f", "stars=9000"]);
    let parsed: Value = serde_json::from_str(&line).unwrap();
    let want = json!({"Description": "Python is an interpreted, interactive, objec…", "IsAutomated": "false",
        "IsOfficial": "true", "Name": "python", "StarCount": "9235"});
    assert_eq!(parsed, want);
    let table = shown(&["--format", "table {{.StarCount}}\\t{{.IsOfficial}}", "-f", "stars=9000"]);
    assert_eq!(table, "STARS     OFFICIAL\n9235      [OK]\n");
    let before = server.requests().len();
    let out = search(&format!("{host}/python"), &["--filter", "is-automated=true"]);
    assert_eq!((out.code, out.stdout.as_str()), (0, "NAME      DESCRIPTION   STARS     OFFICIAL\n"));
    assert!(out.stderr.starts_with("WARNING: the \"is-automated\" filter is deprecated"), "{out:#?}");
    assert_eq!(server.requests().len(), before);
}

#[test]
fn invalid_search_arguments_are_refused() {
    for (args, code, words) in [
        (&["--limit", "101", "x"][..], 1, "Error: limit 101 is outside the range of [1, 100]\n"),
        (&["--limit=-1", "x"], 1, "Error: limit -1 is outside the range of [1, 100]\n"),
        (&["-f", "star=1", "x"], 1, "Error: invalid filter 'star'\n"),
        (&["-f", "stars=many", "x"], 1, "Error: invalid filter 'stars=many'\n"),
        (&["-f", "is-official=yes", "x"], 1, "Error: invalid filter 'is-official=[yes]'\n"),
        (
            &["https://quay.io/x"],
            1,
            "Error: invalid repository name: repository name (https://quay.io/x) should not have a scheme\n",
        ),
        (&[], 1, "\"plyfs search\" requires exactly 1 argument.\nSee 'plyfs search --help'.\n"),
        (
            &["-f", "stars", "x"],
            125,
            "invalid argument \"stars\" for \"-f, --filter\" flag: bad format of filter (expected name=value)\n",
        ),
        (&["-s", "x"], 125, "unknown shorthand flag: 's' in -s\nSee 'plyfs search --help'.\n"),
    ] {
        let out = plyfs(&[&["search"], args].concat());
        assert_eq!((out.code, out.stderr.as_str()), (code, words), "{args:?}");
    }
    assert_eq!(search(&format!("{}/x", hub().host), &["--format", "{{"]).code, 64);
}

/// A registry without a search API, whose catalog of three pages requires a bearer token.
fn catalog(last: &'static str) -> Server {
    let own = std::sync::Arc::new(OnceLock::<String>::new());
    let host = own.clone();
    let server = Server::start(move |request| {
        let page = |names: &[&str], next: &str| {
            let reply = Reply::new(200).body(json!({"repositories": names}).to_string());
            if next.is_empty() { reply } else { reply.header("Link", format!("<{next}>; rel=\"next\"")) }
        };
        match (request.path.as_str(), request.header("authorization")) {
            ("/token?service=reg&scope=registry%3Acatalog%3A%2A", _) => Reply::new(200).body(r#"{"token":"good"}"#),
            ("/v2/_catalog", "Bearer good") => {
                page(&["a/app", "b/other", "b/app-2"], "/v2/_catalog?last=b%2Fapp-2&n=3")
            }
            ("/v2/_catalog?last=b%2Fapp-2&n=3", "Bearer good") => page(&["app", "c/app"], last),
            ("/v2/_catalog?last=c", "Bearer good") => page(&["d/app"], ""),
            (path, _) if path.starts_with("/v2/_catalog") => {
                let realm = format!("http://{}/token", host.get().map_or("", String::as_str));
                let challenge = format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"registry:catalog:*\"");
                Reply::new(401).header("WWW-Authenticate", challenge)
            }
            ("/v2/", _) => Reply::new(200),
            (path, _) if path.starts_with("/v1/search") => Reply::new(200).body("<html>a page</html>"),
            _ => Reply::new(404),
        }
    });
    own.set(server.host.clone()).unwrap();
    server
}

#[test]
fn search_lists_the_catalog_of_a_registry_without_search_api() {
    let server = catalog("/v2/_catalog?last=c");
    let names = |more: &[&str]| {
        let out = search(&format!("{}/app", server.host), &[&["--format", "{{.Name}}"], more].concat());
        assert_eq!(out.code, 0, "{out:#?}");
        out.stdout.replace(&format!("{}/", server.host), "")
    };
    assert_eq!(names(&[]), "app\na/app\nb/app-2\nc/app\nd/app\n");
    let pages = server.count("/v2/_catalog");
    assert_eq!(names(&["--limit", "2"]), "a/app\nb/app-2\n");
    assert_eq!(server.count("/v2/_catalog"), pages + 2, "more pages were read than were needed");
    let away = catalog("http://localhost:1/v2/_catalog");
    let out = search(&format!("{}/app", away.host), &[]);
    assert!(out.code == 1 && out.stderr.contains("the next page of the list is on another host"), "{out:#?}");
    let circle = catalog("/v2/_catalog");
    let out = search(&format!("{}/zzz", circle.host), &[]);
    assert!(out.code == 1 && out.stderr.contains("the list has more than 1000 pages"), "{out:#?}");
    let nothing = Server::start(|_| Reply::new(404));
    let out = search(&format!("{}/app", nothing.host), &[]);
    let why = format!("Error: {}: catalog of repositories: 404 Not Found (without credentials)\n", nothing.host);
    assert_eq!((out.code, out.stderr), (1, why));
    let endless = Server::start(|_| Reply::new(200).body("[".repeat(10_000)).endless());
    let out = search(&format!("{}/app", endless.host), &[]);
    assert!(out.code == 1 && out.stderr.contains("longer than 4194304 bytes"), "{out:#?}");
    // A registry that is down is asked once.
    let out = search("127.0.0.1:1/app", &[]);
    assert_eq!(out.stderr, "Error: 127.0.0.1:1: search for app: Connection refused\n");
}

#[test]
fn search_lists_the_catalog_of_docker_registry() {
    let registry = DockerRegistry::start(Some("me:secret"), None);
    let image = super::support::oci::Image::new().layer(super::support::tar::Tar::new().file("a", "b").finish());
    let env = TestEnv::new();
    image.write_layout(&env.path("image"));
    for name in ["one/app:1", "two/app:1", "two/other:1"] {
        registry.fill(&format!("oci:{}:latest", env.path("image").display()), name, &["--dest-creds", "me:secret"]);
    }
    let host = &registry.host;
    let out = search(&format!("{host}/app"), &["--creds", "me:secret", "--format", "{{.Name}}"]);
    assert_eq!(out.stdout, format!("{host}/one/app\n{host}/two/app\n"), "{out:#?}");
    let out = search(&format!("{host}/app"), &["--creds", "me:wrong"]);
    assert!(out.stderr.contains("wrong user name or password (user me from --creds)"), "{out:#?}");
    let out = search(&format!("{host}/app"), &[]);
    assert!(out.stderr.contains("missing or private (without credentials)"), "{out:#?}");
}

/// One image of each media type and an index of both, with unusual JSON formatting.
struct ManifestRegistry {
    server: Server,
    docker: (String, String),
    oci: (String, String),
    config: String,
}

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const LIST: &str = "application/vnd.oci.image.index.v1+json";

fn manifest_registry() -> ManifestRegistry {
    let config = r#"{"architecture":"arm64","os":"linux","variant":"v8","rootfs":{}}"#;
    let at = |text: &str| (digest(text.as_bytes()), text.to_owned());
    let (config_digest, size) = (digest(config.as_bytes()), config.len());
    let manifest = |kind: &str, more: &str| {
        let config = format!(r#"{{"mediaType": "c", "size": {size}, "digest": "{config_digest}"}}"#);
        at(&format!(r#"{{"schemaVersion":2,"mediaType":"{kind}", "config": {config},"layers":[ ]{more}}}"#))
    };
    let (docker, oci) = (manifest(DOCKER, ""), manifest(OCI, r#","annotations":{"a":"<b>&\u00e9"},"n":1.50"#));
    let entry = |kind: &str, digest: &str, platform: &str| {
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1{platform}}}"#)
    };
    let first = entry(DOCKER, &docker.0, r#","platform":{"os":"linux","architecture":"amd64"}"#);
    let list =
        format!(r#"{{"schemaVersion":2,"mediaType":"{LIST}","manifests":[{first},{}]}}"#, entry(OCI, &oci.0, ""));
    let files = [
        ("manifests/docker", DOCKER, docker.1.clone()),
        ("manifests/oci", OCI, oci.1.clone()),
        ("manifests/list", LIST, list),
        ("manifests/both", LIST, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned()),
        ("manifests/old", "application/json", r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned()),
        ("manifests/text", DOCKER, "<html>".to_owned()),
        ("manifests/damaged", LIST, r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../x"}]}"#.to_owned()),
    ];
    let mut files: Vec<(String, String, String)> =
        files.into_iter().map(|(path, kind, text)| (format!("/v2/a/{path}"), kind.to_owned(), text)).collect();
    for (kind, (digest, text)) in [(DOCKER, &docker), (OCI, &oci)] {
        files.push((format!("/v2/a/manifests/{digest}"), kind.to_owned(), text.clone()));
    }
    files.push((format!("/v2/a/blobs/{config_digest}"), "x".into(), config.to_owned()));
    let server = Server::start(move |request: &Request| match files.iter().find(|(path, ..)| *path == request.path) {
        Some((_, kind, text)) => Reply::new(200).header("Content-Type", kind).body(text.clone()),
        None if request.path == "/v2/" => Reply::new(200),
        None => Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
    });
    ManifestRegistry { server, docker, oci, config: config_digest }
}

#[test]
fn manifest_inspect_prints_what_docker_prints() {
    let registry = manifest_registry();
    let host = &registry.server.host;
    let shown = |args: &[&str], tag: &str| {
        let out = plyfs(&[&["manifest", "inspect"], args, &[&format!("{host}/a:{tag}")]].concat());
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
        out.stdout
    };
    let config = &registry.config;
    let tabs = |depth: usize| "\t".repeat(depth);
    let manifest = |kind: &str, more: &str, depth: usize| {
        let t = tabs(depth);
        format!(
            "{{\n{t}\t\"schemaVersion\": 2,\n{t}\t\"mediaType\": \"{kind}\",\n{t}\t\"config\": {{\n\
             {t}\t\t\"mediaType\": \"c\",\n{t}\t\t\"size\": 64,\n{t}\t\t\"digest\": \"{config}\"\n{t}\t}},\n\
             {t}\t\"layers\": []{more}\n{t}}}"
        )
    };
    assert_eq!(shown(&[], "docker"), manifest(DOCKER, "", 0) + "\n");
    let plain = ",\n\t\"annotations\": {\n\t\t\"a\": \"<b>&\\u00e9\"\n\t},\n\t\"n\": 1.50";
    assert_eq!(shown(&[], "oci"), manifest(OCI, plain, 0) + "\n");
    let list = shown(&[], "list");
    let platform =
        "         \"platform\": {\n            \"os\": \"linux\",\n            \"architecture\": \"amd64\"\n";
    assert!(list.starts_with("{\n   \"schemaVersion\": 2,\n   \"mediaType\"") && list.contains(platform), "{list}");
    // A single image: an object, with the platform of its config.
    let raw = |text: &str| {
        let done = run(std::process::Command::new("sh").args(["-c", "printf %s \"$1\" | base64 -w0", "sh", text]));
        done.stdout
    };
    let image = |name: &str,
                 kind: &str,
                 (digest, text): &(String, String),
                 platform: &str,
                 parsed: &str,
                 depth: usize| {
        let (t, size, raw) = (tabs(depth), text.len(), raw(text));
        format!(
            "{{\n{t}\t\"Ref\": \"{name}\",\n{t}\t\"Descriptor\": {{\n{t}\t\t\"mediaType\": \"{kind}\",\n\
             {t}\t\t\"digest\": \"{digest}\",\n{t}\t\t\"size\": {size},\n{t}\t\t\"platform\": {{\n{platform}\n{t}\t\t}}\n\
             {t}\t}},\n{t}\t\"Raw\": \"{raw}\",\n{t}\t{parsed}\n{t}}}"
        )
    };
    let arm = "\t\t\t\"architecture\": \"arm64\",\n\t\t\t\"os\": \"linux\",\n\t\t\t\"variant\": \"v8\"";
    let parsed = format!("\"SchemaV2Manifest\": {}", manifest(DOCKER, "", 1));
    let want = image(&format!("{host}/a:docker"), DOCKER, &registry.docker, arm, &parsed, 0);
    assert_eq!(shown(&["-v"], "docker"), want + "\n");
    // An index: its images, with the platforms that it names.
    let amd = "\t\t\t\t\"architecture\": \"amd64\",\n\t\t\t\t\"os\": \"linux\"";
    let parsed = format!("\"SchemaV2Manifest\": {}", manifest(DOCKER, "", 2));
    let first = image(&format!("{host}/a:list@{}", registry.docker.0), DOCKER, &registry.docker, amd, &parsed, 1);
    let none = "\t\t\t\t\"architecture\": \"\",\n\t\t\t\t\"os\": \"\"";
    let safe =
        ",\n\t\t\t\"annotations\": {\n\t\t\t\t\"a\": \"\\u003cb\\u003e\\u0026\\u00e9\"\n\t\t\t},\n\t\t\t\"n\": 1.50";
    let parsed = format!("\"OCIManifest\": {}", manifest(OCI, safe, 2));
    let second = image(&format!("{host}/a:list@{}", registry.oci.0), OCI, &registry.oci, none, &parsed, 1);
    assert_eq!(shown(&["--verbose", "--insecure"], "list"), format!("[\n\t{first},\n\t{second}\n]\n"));
    let by_digest = plyfs(&["manifest", "inspect", &format!("{host}/a@{}", registry.docker.0)]);
    assert_eq!(by_digest.stdout, manifest(DOCKER, "", 0) + "\n");
}

#[test]
fn manifest_inspect_refuses_invalid_manifests() {
    let (registry, env) = (manifest_registry(), TestEnv::new());
    let host = &registry.server.host;
    let inspect = |args: &[&str]| run(&mut command(&env, &[&["manifest", "inspect"], args].concat()));
    let missing = inspect(&[&format!("{host}/a")]);
    let why = "404 Not Found: manifest unknown (without credentials)";
    assert_eq!((missing.code, missing.stderr), (1, format!("no such manifest: {host}/a:latest: {why}\n")));
    for (tag, words) in [
        ("both", "has both `manifests` and `layers`"),
        ("old", "schema 1 manifest, which is obsolete"),
        ("text", "not valid JSON"),
    ] {
        let out = inspect(&[&format!("{host}/a:{tag}")]);
        let name = format!("Error: {host}/a:{tag}: ");
        assert!(out.code == 1 && out.stderr.starts_with(&name) && out.stderr.contains(words), "{out:#?}");
    }
    let out = inspect(&["-v", &format!("{host}/a:damaged")]);
    assert!(out.code == 1 && out.stderr.contains("the list is damaged"), "{out:#?}");
    let out = inspect(&["list", "image"]);
    assert!(out.code == 1 && out.stderr == "No such manifest: docker.io/library/list:latest\n", "{out:#?}");
    let words = "\"plyfs manifest inspect\" requires at least 1 and at most 2 arguments.\nSee 'plyfs manifest inspect --help'.\n";
    for args in [&[][..], &["a", "b", "c"]] {
        let out = inspect(args);
        assert_eq!((out.code, out.stderr.as_str()), (1, words));
    }
    assert!(!env.root().exists(), "something was stored");
}
