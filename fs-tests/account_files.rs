//! Credential storage: which file and which credential helper `login` and `logout` use, and what they do with entries
//! that exist already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run, run_with_input};
use super::support::registry::{Reply, Server, command};

/// A registry that accepts any credentials.
fn accepting_server() -> Server {
    Server::start(|_| Reply::new(200).body("{}"))
}

fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn login(env: &TestEnv, server: &str, set: impl Fn(&mut Command) -> &mut Command) -> Output {
    let mut command = command(env, &["login", "-u", "me", "--password-stdin", server]);
    set(&mut command);
    run_with_input(&mut command, "secret")
}

fn write_json(file: PathBuf, content: &Value) -> PathBuf {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content.to_string()).unwrap();
    file
}

#[test]
fn login_writes_the_credential_file_with_the_highest_precedence() {
    let (env, server) = (TestEnv::new(), accepting_server());
    let host = server.host.as_str();
    let is_stored = |file: &Path| file.exists() && read_json(file)["auths"][host]["auth"] == "bWU6c2VjcmV0";
    let expect = |set: &dyn Fn(&mut Command) -> &mut Command, file: &str| {
        let out = login(&env, host, set);
        assert_eq!(out.code, 0, "{out:#?}");
        assert!(is_stored(&env.path(file)), "not in {file}: {out:#?}");
        let mode = fs::metadata(env.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    };
    expect(&|c| c.arg("--authfile").arg(env.path("a/named.json")), "a/named.json");
    expect(&|c| c.env("REGISTRY_AUTH_FILE", env.path("variable.json")), "variable.json");
    assert!(!env.path("run").exists());
    // Without a usable XDG_RUNTIME_DIR, podman's other file. An empty REGISTRY_AUTH_FILE counts as unset.
    fs::write(env.path("file"), "").unwrap();
    expect(
        &|c| c.env("XDG_RUNTIME_DIR", env.path("file")).env("REGISTRY_AUTH_FILE", ""),
        "home/.config/containers/auth.json",
    );
    expect(&|c| c, "run/containers/auth.json");
    expect(&|c| c.env("DOCKER_CONFIG", env.path("docker")), "docker/config.json");
    // podman's files precede Docker's: logout removes their entries, and warns of one that remains in Docker's.
    write_json(env.path("home/.docker/config.json"), &json!({"auths": {host: {"auth": "b2xkOm9sZA=="}}}));
    let out = run(&mut command(&env, &["logout", host]));
    assert_eq!(out.stdout, format!("Removing login credentials for {host}\n"));
    let warning =
        format!("WARNING: credentials for {host} remain in {}\n", env.path("home/.docker/config.json").display());
    assert_eq!(out.stderr, warning);
    let unused = ["run/containers/auth.json", "home/.config/containers/auth.json"];
    assert!(!unused.into_iter().any(|file| is_stored(&env.path(file))));
    assert!(is_stored(&env.path("docker/config.json")));
    let out = run(command(&env, &["logout", "-a"]).env("DOCKER_CONFIG", env.path("docker")));
    assert_eq!((out.code, read_json(&env.path("docker/config.json"))), (0, json!({"auths": {}})), "{out:#?}");
}

#[test]
fn login_names_a_credential_file_that_it_cannot_write() {
    let (env, server) = (TestEnv::new(), accepting_server());
    let file = write_json(env.path("run/containers/auth.json"), &json!([]));
    let out = login(&env, &server.host, |c| c);
    let why = format!("Error: {} is not a credentials file", file.display());
    assert!(out.code == 1 && out.stderr.starts_with(&why) && out.stdout.is_empty(), "{out:#?}");
    let out = login(&env, &server.host, |c| c.arg("--authfile").arg(env.path("run")));
    assert!(out.code == 1 && out.stderr.contains(&env.path("run").display().to_string()), "{out:#?}");
}

#[test]
fn concurrent_logins_lose_no_credentials() {
    let (env, server) = (TestEnv::new(), accepting_server());
    thread::scope(|scope| {
        for n in 0..12 {
            let (env, host) = (&env, &server.host);
            scope.spawn(move || assert_eq!(login(env, &format!("{host}/team{n}"), |c| c).code, 0));
        }
    });
    let file = read_json(&env.path("run/containers/auth.json"));
    assert_eq!(file["auths"].as_object().unwrap().len(), 12);
    assert_eq!(fs::read_dir(env.path("run/containers")).unwrap().count(), 1);
}

/// Writes a credential helper `docker-credential-test` that stores entries in a directory; returns a PATH that has it.
fn install_helper(env: &TestEnv) -> String {
    let script = r#"#!/bin/sh
dir="${0%/*}/kept"
file() { printf %s "$1" | tr / _; }
case $1 in
    store)
        entry=$(cat)
        key=$(printf %s "$entry" | jq -r .ServerURL)
        [ "$key" != full.example ] || { echo "no room for $entry"; exit 1; }
        printf %s "$entry" | jq -c '{Username, Secret}' >"$dir/$(file "$key")" ;;
    get) cat "$dir/$(file "$(cat)")" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
    erase) rm "$dir/$(file "$(cat)")" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
    list) for file in "$dir"/*; do [ -e "$file" ] && echo "${file##*/}"; done | jq -Rn '[inputs | {(.): "x"}] | add // {}' ;;
esac
"#;
    let bin = env.path("bin");
    fs::create_dir_all(bin.join("kept")).unwrap();
    let program = bin.join("docker-credential-test");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

/// The helper's entry for a key.
fn helper_entry(env: &TestEnv, key: &str) -> Option<Value> {
    let bytes = fs::read(env.path("bin/kept").join(key.replace('/', "_"))).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn login_and_logout_use_the_configured_credential_helper() {
    let (env, server) = (TestEnv::new(), accepting_server());
    let (host, path) = (server.host.as_str(), install_helper(&env));
    let entry = json!({"Username": "me", "Secret": "secret"});
    let old = json!({host: {"auth": "b2xkOm9sZA=="}, "other.example": {"auth": "YTpi"}});
    for how in [json!({"credHelpers": {host: "test"}}), json!({"credsStore": "test"})] {
        let mut content = how.clone();
        content["auths"] = old.clone();
        content["more"] = json!(1);
        let file = write_json(env.path("run/containers/auth.json"), &content);
        let out = login(&env, host, |c| c.env("PATH", &path));
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (0, "Login Succeeded\n", ""));
        assert_eq!(helper_entry(&env, host), Some(entry.clone()));
        // The entry in the file is removed, since it would be found before the helper's.
        content["auths"].as_object_mut().unwrap().remove(host);
        assert_eq!(read_json(&file), content);
        let again = run(command(&env, &["login", host]).env("PATH", &path));
        assert!(again.code == 0 && again.stderr.contains("[Username: me]"), "{again:#?}");
        // Credentials for a namespace of a registry go to the file, as helpers have none.
        assert_eq!(login(&env, &format!("{host}/team"), |c| c.env("PATH", &path)).code, 0);
        assert_eq!(read_json(&file)["auths"][format!("{host}/team")]["auth"], "bWU6c2VjcmV0");
        let out = run(command(&env, &["logout", host]).env("PATH", &path));
        assert_eq!(out.stdout, format!("Removing login credentials for {host}\n"), "{out:#?}");
        assert_eq!(helper_entry(&env, host), None);
        let out = run(command(&env, &["logout", host]).env("PATH", &path));
        assert_eq!(out.stdout, format!("Not logged in to {host}\n"), "{out:#?}");
        assert_eq!(login(&env, host, |c| c.env("PATH", &path)).code, 0);
        let out = run(command(&env, &["logout", "--all"]).env("PATH", &path));
        assert_eq!((out.code, helper_entry(&env, host)), (0, None), "{out:#?}");
        assert_eq!(read_json(&file)["auths"], json!({}));
    }
    write_json(env.path("run/containers/auth.json"), &json!({"credsStore": "nowhere"}));
    let out = login(&env, host, |c| c);
    assert!(out.code == 1 && out.stderr.contains("cannot run docker-credential-nowhere"), "{out:#?}");
}

#[test]
fn the_error_of_a_failing_credential_helper_shows_no_secret() {
    let (env, server) = (TestEnv::new(), accepting_server());
    let path = install_helper(&env);
    // This helper fails to store, and its message quotes the credentials.
    let script = fs::read_to_string(env.path("bin/docker-credential-test")).unwrap();
    let program = env.path("bin/docker-credential-full");
    fs::write(&program, script.replace("full.example", &server.host)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    write_json(env.path("run/containers/auth.json"), &json!({"credsStore": "full"}));
    let out = login(&env, &server.host, |c| c.env("PATH", &path));
    let why = format!("Error: docker-credential-full cannot store the credentials for {}: ", server.host);
    assert!(out.code == 1 && out.stderr.starts_with(&why), "{out:#?}");
    assert!(!out.stderr.contains("secret"), "{out:#?}");
}
