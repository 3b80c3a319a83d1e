//! `login` and `logout`: against registries with basic and token authentication, at a terminal, and together with
//! podman, skopeo and Debian's registry.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run, run_with_input};
use super::support::oci::Image;
use super::support::registry::{DockerRegistry, Reply, Request, Server, command};
use super::support::tar::Tar;

/// `me:secret` in a header.
const BASIC: &str = "Basic bWU6c2VjcmV0";

/// Logs in as `me` with this password on standard input.
fn login(env: &TestEnv, server: &str, password: &str) -> Output {
    let args = ["login", "--retry-pause", "0.02", "-u", "me", "--password-stdin", server];
    run_with_input(&mut command(env, &args), password)
}

/// The test user's credential file, at podman's path.
fn podman_auth_file(env: &TestEnv) -> std::path::PathBuf {
    env.path("run/containers/auth.json")
}

fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// A registry with basic authentication that accepts only `me:secret`.
fn basic_auth_server() -> Server {
    Server::start(|request| match request.header("authorization") {
        BASIC => Reply::new(200),
        _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
    })
}

/// A registry with token authentication that is its own token server: `me:secret` gets a token, by GET unless `get`
/// answers otherwise.
fn token_auth_server(get: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let own = std::sync::Arc::new(OnceLock::<String>::new());
    let host = own.clone();
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            let posted = request.body.contains("grant_type=password&username=me&password=secret&");
            return match get(request).filter(|_| request.method == "GET") {
                Some(reply) => reply,
                None if posted || request.header("authorization") == BASIC => {
                    Reply::new(200).body(r#"{"token":"g00d"}"#)
                }
                None => Reply::new(401),
            };
        }
        if request.header("authorization") == "Bearer g00d" {
            return Reply::new(200).body("{}");
        }
        let realm = format!("http://{}/token", host.get().map_or("", String::as_str));
        Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"reg\""))
    });
    own.set(server.host.clone()).unwrap();
    server
}

#[test]
fn login_stores_credentials_only_after_the_registry_accepts_them() {
    let (env, server) = (TestEnv::new(), basic_auth_server());
    let host = &server.host;
    let wrong = login(&env, host, "wrong\n");
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
    let why = "wrong user name or password (user me from --password-stdin)";
    assert!(wrong.stderr.starts_with(&format!("Error: {host}: login: 401 ")), "{wrong:#?}");
    assert!(wrong.stderr.ends_with(&format!(": {why}\n")), "{wrong:#?}");
    assert!(!podman_auth_file(&env).exists());
    let out = login(&env, host, "secret\r\n");
    assert_eq!((out.code, out.stdout.as_str()), (0, "Login Succeeded\n"), "{out:#?}");
    let warning = format!(
        "\nWARNING! Your credentials are stored unencrypted in '{}'.\n\
         Configure a credential helper to remove this warning. See\n\
         https://docs.docker.com/go/credential-store/\n\n",
        podman_auth_file(&env).display()
    );
    assert_eq!(out.stderr, warning);
    assert_eq!(read_json(&podman_auth_file(&env)), json!({"auths": {host: {"auth": "bWU6c2VjcmV0"}}}));
    // A failed login keeps the stored credentials, and a login without a user name uses them.
    assert_eq!(login(&env, host, "wrong").code, 1);
    let again = run(&mut command(&env, &["login", host]));
    assert_eq!((again.code, again.stdout.as_str()), (0, "Login Succeeded\n"), "{again:#?}");
    assert!(again.stderr.starts_with("Authenticating with existing credentials... [Username: me]\n"), "{again:#?}");
    fs::write(podman_auth_file(&env), json!({"auths": {host: {"auth": "bWU6b2xk"}}}).to_string()).unwrap();
    let stale = run(&mut command(&env, &["login", host]));
    assert!(stale.stderr.contains("\nStored credentials invalid or expired\n"), "{stale:#?}");
    let last = "Error: Cannot perform an interactive login from a non TTY device\n";
    assert!(stale.code == 1 && stale.stderr.ends_with(last), "{stale:#?}");
    // A server that does not listen, one that is no registry, and a registry without authentication.
    let nobody = login(&env, "127.0.0.1:1", "secret");
    assert_eq!((nobody.code, nobody.stderr.as_str()), (1, "Error: 127.0.0.1:1: login: Connection refused\n"));
    let other = Server::start(|_| Reply::new(404));
    let out = login(&env, &other.host, "secret");
    assert!(out.code == 1 && out.stderr.contains(": login: 404 "), "{out:#?}");
    let open = Server::start(|_| Reply::new(200).body("{}"));
    assert_eq!(login(&env, &open.host, "secret").code, 0);
}

#[test]
fn login_works_with_a_token_server_by_get_and_by_post() {
    for get in [|_: &Request| None, |_: &Request| Some(Reply::new(405))] {
        let (env, server) = (TestEnv::new(), token_auth_server(get));
        let out = login(&env, &server.host, "secret");
        assert_eq!((out.code, out.stdout.as_str()), (0, "Login Succeeded\n"), "{out:#?}");
        for request in server.requests() {
            let is_token = request.path.starts_with("/token");
            assert!(is_token || !request.header("authorization").starts_with("Basic"), "{request:?}");
            assert!(!request.path.contains("scope"), "{request:?}");
        }
        assert!(server.requests().iter().any(|s| s.path == "/token?service=reg&account=me"));
        let wrong = login(&env, &server.host, "wrong");
        let words =
            ["wrong credentials: its token server 127.0.0.1:", "answers 401", "(user me from --password-stdin)"];
        assert!(words.iter().all(|word| wrong.stderr.contains(word)), "{wrong:#?}");
    }
    // The registry rejects the token that its token server issued.
    let picky = token_auth_server(|_| Some(Reply::new(200).body(r#"{"token":"other"}"#)));
    let out = login(&TestEnv::new(), &picky.host, "secret");
    let why = "401 Unauthorized: these credentials are not accepted (user me from --password-stdin)\n";
    assert!(out.code == 1 && out.stderr.ends_with(why), "{out:#?}");
}

#[test]
fn login_and_logout_print_dockers_messages_for_wrong_flags() {
    let env = TestEnv::new();
    let result_of = |args: &[&str]| {
        let out = run(&mut command(&env, args));
        (out.code, out.stdout + &out.stderr)
    };
    for (args, words) in [
        (
            &["-p", "x", "--password-stdin", "-u", "me"][..],
            "conflicting options: cannot specify both --password and --password-stdin",
        ),
        (&["--password-stdin"], "the --password-stdin option requires --username to be set"),
        (&["-u", ""], "username is empty"),
        (&["-u", "me", "-p", ""], "password is empty"),
        (&["-u", "me", "--password-stdin"], "password is empty"),
        (&["-u", "me:you", "-p", "x"], "username has a colon"),
        (&["a", "b"], "\"plyfs login\" requires at most 1 argument.\nSee 'plyfs login --help'."),
        (&["a b"], "Error: \"a b\" is not a registry: wanted HOST[:PORT] or HOST[:PORT]/NAMESPACE"),
        (&["-u", "me"], "Error: Cannot perform an interactive login from a non TTY device"),
        (&[], "Error: Cannot perform an interactive login from a non TTY device"),
    ] {
        assert_eq!(result_of(&[&["login"], args].concat()), (1, format!("{words}\n")), "{args:?}");
    }
    let out = result_of(&["login", "-p", "x"]);
    assert!(out.1.starts_with("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n"), "{out:?}");
    assert_eq!(result_of(&["login", "--nope"]).0, 125);
    for (args, words) in [
        (&[][..], "Not logged in to https://index.docker.io/v1/\n"),
        (&["https://quay.io/v2/"], "Not logged in to quay.io\n"),
        (&["--all"], "Removed login credentials for all registries\n"),
    ] {
        assert_eq!(result_of(&[&["logout"], args].concat()), (0, words.to_owned()), "{args:?}");
    }
    assert_eq!(result_of(&["logout", "-a", "quay.io"]), (1, "--all takes no arguments\n".into()));
    assert_eq!(result_of(&["logout", "a", "b"]).0, 1);
}

/// A program on its own pseudo-terminal.
struct Terminal {
    master: File,
    child: Child,
    output: String,
}

impl Terminal {
    fn run(program: &Command) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.spawn().unwrap();
        Terminal { master: File::from(master), child, output: String::new() }
    }

    /// Reads output until it contains `text`.
    fn wait_for(&mut self, text: &str) {
        while !self.output.contains(text) {
            assert!(self.read(), "`{text}` is not in {:?}", self.output);
        }
    }

    /// Reads more output; false at the end.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // Reading fails once no process has the other end of the terminal open.
        let n = self.master.read(&mut bytes).unwrap_or(0);
        self.output += &String::from_utf8_lossy(&bytes[..n]);
        n > 0
    }

    fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn is_echo_enabled(&self) -> bool {
        tcgetattr(&self.master).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Waits for the exit; returns the exit code and all output.
    fn end(mut self) -> (Option<i32>, String) {
        while self.read() {}
        let code = self.child.wait().unwrap().code();
        assert!(self.is_echo_enabled(), "echo is still disabled");
        (code, std::mem::take(&mut self.output))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The program may have ended, and an error cannot be reported during a panic.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[test]
fn login_prompts_at_a_terminal_without_echoing_the_password() {
    let (env, server) = (TestEnv::new(), basic_auth_server());
    let program = command(&env, &["login", &server.host]);
    let mut terminal = Terminal::run(&program);
    terminal.wait_for("Username: ");
    assert!(terminal.is_echo_enabled());
    terminal.type_text(" me \n");
    terminal.wait_for("Password: ");
    assert!(!terminal.is_echo_enabled());
    terminal.type_text("secret\n");
    let (code, output) = terminal.end();
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("me") && !output.contains("secret"), "{output}");
    assert!(output.ends_with("\r\nLogin Succeeded\r\n"), "{output}");
    assert_eq!(read_json(&podman_auth_file(&env))["auths"][&server.host]["auth"], "bWU6c2VjcmV0");
    // An empty line accepts the user name that is stored.
    fs::write(podman_auth_file(&env), json!({"auths": {&server.host: {"auth": "bWU6b2xk"}}}).to_string()).unwrap();
    let mut terminal = Terminal::run(&program);
    terminal.wait_for("Username (me): ");
    terminal.type_text("\n");
    terminal.wait_for("Password: ");
    terminal.type_text("wrong\n");
    let (code, output) = terminal.end();
    assert!(code == Some(1) && output.contains("(user me from the terminal)"), "{output}");
    // Ctrl-C.
    let mut terminal = Terminal::run(&command(&env, &["login", "-u", "me", &server.host]));
    terminal.wait_for("Password: ");
    terminal.type_text("secr\x03");
    let (code, output) = terminal.end();
    assert!(code == Some(130) && !output.contains("secr"), "{code:?} {output}");
    let mut terminal = Terminal::run(&command(&env, &["login"]));
    terminal.wait_for("Username: ");
    terminal.type_text("\n");
    let (code, output) = terminal.end();
    assert!(code == Some(1) && output.starts_with("Log in with your Docker ID or email address"), "{output}");
    assert!(output.ends_with("Error: username is required\r\n"), "{output}");
}

#[test]
fn podman_skopeo_and_plyfs_read_each_others_credential_files() {
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(Some("me:secret"), None));
    let host = registry.host.as_str();
    Image::new().layer(Tar::new().file("a", "b").finish()).write_layout(&env.path("image"));
    let source = format!("oci:{}:latest", env.path("image").display());
    registry.fill(&source, "team/app:1", &["--dest-creds", "me:secret"]);
    let image = format!("{host}/team/app:1");
    let pulls = |file: &str| run(command(&env, &["pull", "-q", &image]).env("REGISTRY_AUTH_FILE", env.path(file)));
    let other = |program: &str, args: &[&str], file: &str, input: &str| {
        let mut command = Command::new(program);
        command.args(args).arg("--authfile").arg(env.path(file)).env("HOME", env.path("home"));
        let done = run_with_input(&mut command, input);
        assert_eq!(done.code, 0, "{command:?}: {done:#?}");
        done.stdout
    };
    let flags = ["login", "--tls-verify=false", "-u", "me", "--password-stdin", host];
    // podman and skopeo, then plyfs.
    for program in ["podman", "skopeo"] {
        let file = format!("{program}.json");
        other(program, &flags, &file, "secret");
        assert_eq!(pulls(&file).code, 0);
        let out = run(command(&env, &["logout", host]).env("REGISTRY_AUTH_FILE", env.path(&file)));
        assert_eq!(out.stdout, format!("Removing login credentials for {host}\n"));
        let stranger = pulls(&file);
        assert!(stranger.stderr.contains("missing or private (without credentials)"), "{stranger:#?}");
    }
    // plyfs, then podman and skopeo: for the registry, and for a namespace of it.
    for (file, account) in [("plyfs.json", host.to_owned()), ("part.json", format!("{host}/team"))] {
        let mut login = command(&env, &["login", "-u", "me", "--password-stdin", &account]);
        assert_eq!(run_with_input(login.env("REGISTRY_AUTH_FILE", env.path(file)), "secret").code, 0);
        assert_eq!(pulls(file).code, 0);
        assert_eq!(other("podman", &["login", "--get-login", &account], file, ""), "me\n");
        let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Name}}", &format!("docker://{image}")];
        assert_eq!(other("skopeo", &inspect, file, ""), format!("{host}/team/app\n"));
        other("podman", &["logout", &account], file, "");
        assert_eq!(pulls(file).code, 1);
    }
    let elsewhere = format!("{host}/nobody/app:1");
    let mut login = command(&env, &["login", "-u", "me", "--password-stdin", &format!("{host}/team")]);
    assert_eq!(run_with_input(login.env("REGISTRY_AUTH_FILE", env.path("part.json")), "secret").code, 0);
    let out = run(command(&env, &["pull", &elsewhere]).env("REGISTRY_AUTH_FILE", env.path("part.json")));
    assert!(out.stderr.contains("(without credentials)"), "{out:#?}");
}

#[test]
fn no_password_or_token_is_printed_or_logged() {
    let env = TestEnv::new();
    let mut all = String::new();
    let mut take = |out: Output| {
        all += &out.stdout;
        all += &out.stderr;
        out.code
    };
    let trace = |args: &[&str]| command(&env, &[&["--log-level", "trace"], args].concat());
    for server in [basic_auth_server(), token_auth_server(|_| None), token_auth_server(|_| Some(Reply::new(405)))] {
        let host = server.host.as_str();
        let image = format!("{host}/team/app:1");
        for password in ["secret", "secret-wrong"] {
            let stdin = ["login", "-u", "me", "--password-stdin", host];
            assert_eq!(take(run_with_input(&mut trace(&stdin), password)), i32::from(password != "secret"));
            take(run(&mut trace(&["login", "-u", "me", "-p", password, host])));
            let creds = format!("me:{password}");
            take(run(&mut trace(&["pull", "--creds", &creds, &image])));
            take(run(&mut trace(&["search", "--creds", &creds, &format!("{host}/app")])));
            take(run(&mut trace(&["manifest", "inspect", "--creds", &creds, &image])));
        }
        take(run(&mut trace(&["login", host])));
        take(run(&mut trace(&["pull", &image])));
        take(run(&mut trace(&["logout", host])));
        let file =
            json!({"auths": {host: {"identitytoken": "secret-identity"}, format!("{host}/x"): {"auth": "c2VjcmV0"}}});
        fs::write(podman_auth_file(&env), file.to_string()).unwrap();
        take(run(&mut trace(&["pull", &image])));
        take(run(&mut trace(&["pull", &format!("{host}/x/y:1")])));
        fs::write(podman_auth_file(&env), "{\"auths\": \"secret\"}").unwrap();
        take(run(&mut trace(&["pull", &image])));
        take(run_with_input(&mut trace(&["login", "-u", "me", "--password-stdin", host]), "secret"));
        fs::remove_file(podman_auth_file(&env)).unwrap();
    }
    assert_eq!(all.matches("Login Succeeded").count(), 9);
    // The password as typed, its encodings in headers and files, and the token.
    for secret in ["secret", "bWU6c2VjcmV0", "c2VjcmV0", "g00d"] {
        let line = all.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}
