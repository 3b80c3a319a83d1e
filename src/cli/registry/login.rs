//! `login` and `logout`: store and remove credentials for a registry.

use crate::cli::output::stdout as output;
use crate::cli::output::terminal;
use crate::cli::registry::options::{ServerArgs, any_path, own_files, sources};
use crate::cli::{Exit, usage_errors};
use crate::registry::credential_store::{self, Kept};
use crate::registry::credentials::{self, Given, Sources};
use crate::registry::identity::Account;
use crate::registry::login;
use crate::registry::{Error, Kind};
use std::fs::DirBuilder;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Largest password, in bytes.
const PASSWORD_CAP: u64 = 1 << 20;
/// Docker Hub's name in Docker's messages when no registry is given.
const HUB_TITLE: &str = "https://index.docker.io/v1/";
const HUB_HINT: &str = "Log in with your Docker ID or email address to push and pull images from Docker Hub. \
    If you don't have a Docker ID, head over to https://hub.docker.com/ to create one.";

#[derive(clap::Args)]
#[command(override_usage = "plyfs login [OPTIONS] [SERVER]")]
#[command(after_help = "\
Without SERVER, Docker Hub is meant. The credentials are shown to the registry first, then kept where podman, skopeo and
plyfs itself find them: in the file that --authfile or REGISTRY_AUTH_FILE names, else in DOCKER_CONFIG's config.json where
that is set, else in podman's containers/auth.json; or with the credential helper that the file names.

Examples:
  plyfs login quay.io
  plyfs login -u me --password-stdin registry.example:5000 <token
  plyfs login -u robot quay.io/team                 for what is below quay.io/team")]
pub(in crate::cli) struct LoginArgs {
    /// User name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Password or token; visible to other users in the process list
    #[arg(short, long)]
    password: Option<String>,
    /// Read the password or token from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Credential file to write
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", hide_env_values = true, value_parser = any_path())]
    authfile: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    /// HOST[:PORT] of a registry, or HOST[:PORT]/NAMESPACE for a part of one
    #[arg(value_name = "SERVER")]
    args: Vec<String>,
}

#[derive(clap::Args)]
#[command(override_usage = "plyfs logout [OPTIONS] [SERVER]")]
#[command(after_help = "Examples:\n  plyfs logout quay.io\n  plyfs logout --all")]
pub(in crate::cli) struct LogoutArgs {
    /// Remove the credentials for all registries
    #[arg(short, long)]
    all: bool,
    /// Credential file to remove from
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", hide_env_values = true, value_parser = any_path())]
    authfile: Option<PathBuf>,
    /// HOST[:PORT] of a registry, or HOST[:PORT]/NAMESPACE for a part of one
    #[arg(value_name = "SERVER")]
    args: Vec<String>,
}

pub(in crate::cli) fn login(a: &LoginArgs) -> anyhow::Result<()> {
    let account = account(usage_errors::at_most_one("login", &a.args)?)?;
    let password = password(a)?;
    let sources = sources(a.authfile.as_deref());
    let mut known = None;
    if a.username.is_none() && password.is_none() {
        known = kept(&sources, &account)?;
        if let Some(login) = &known
            && again(a, &account, login)?
        {
            return output::line("Login Succeeded");
        }
    }
    let login = ask(a, &account, password, known.as_ref().map(|login| login.user.as_str()))?;
    login::check(&account, &a.server.settings(Sources { given: Some(login.clone()), ..Sources::default() }))?;
    let file = place(&sources)?;
    let kept = credential_store::keep(&file, &account, &login).map_err(anyhow::Error::msg)?;
    if kept == Kept::File {
        output::complaint(format_args!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\n\
             Configure a credential helper to remove this warning. See\n\
             https://docs.docker.com/go/credential-store/\n",
            file.display()
        ));
    }
    output::line("Login Succeeded")
}

/// Returns the password of the flags; conflicting flags are an error in Docker's words.
fn password(a: &LoginArgs) -> anyhow::Result<Option<String>> {
    let refused = |why: &str| Err(Exit::Text(1, why.into()).into());
    match (&a.username, &a.password, a.password_stdin) {
        (_, Some(_), true) => {
            return refused("conflicting options: cannot specify both --password and --password-stdin");
        }
        (None, _, true) => return refused("the --password-stdin option requires --username to be set"),
        (Some(user), ..) if user.is_empty() => return refused("username is empty"),
        // HTTP Basic separates the user name from the password by a colon.
        (Some(user), ..) if user.contains(':') => return refused("username has a colon"),
        (_, Some(password), _) if password.is_empty() => return refused("password is empty"),
        _ => {}
    }
    if a.password.is_some() {
        output::complaint("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    if !a.password_stdin {
        return Ok(a.password.clone());
    }
    let mut text = String::new();
    io::stdin().lock().take(PASSWORD_CAP + 1).read_to_string(&mut text)?;
    if text.len() as u64 > PASSWORD_CAP {
        return refused("password is too long");
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return refused("password is empty");
    }
    Ok(Some(text.to_owned()))
}

/// Checks the stored credentials against the registry. Returns whether they are still valid.
fn again(a: &LoginArgs, account: &Account, login: &Given) -> anyhow::Result<bool> {
    let user = login.user.escape_debug();
    output::complaint(format_args!(
        "Authenticating with existing credentials... [Username: {user}]\n\
         To login with a different account, run 'plyfs logout' followed by 'plyfs login'\n"
    ));
    let settings = a.server.settings(Sources { given: Some(login.clone()), ..Sources::default() });
    match login::check(account, &settings) {
        Ok(()) => Ok(true),
        Err(Error { kind: Kind::WrongCredentials, .. }) => {
            output::complaint("Stored credentials invalid or expired");
            Ok(false)
        }
        // The failure does not depend on the credentials.
        Err(error) => Err(error.into()),
    }
}

/// Prompts for what the flags do not give.
fn ask(a: &LoginArgs, account: &Account, password: Option<String>, known: Option<&str>) -> anyhow::Result<Given> {
    let origin = match (&password, a.password_stdin) {
        (Some(_), true) => "--password-stdin",
        (Some(_), false) => "--password",
        (None, _) => "the terminal",
    };
    if (a.username.is_none() || password.is_none()) && !io::stdin().is_terminal() {
        anyhow::bail!("Cannot perform an interactive login from a non TTY device");
    }
    let user = match &a.username {
        Some(user) => user.clone(),
        None => {
            if account.is_hub() {
                output::line(HUB_HINT)?;
            }
            let known = known.unwrap_or_default();
            let prompt = if known.is_empty() { "Username: ".into() } else { format!("Username ({known}): ") };
            let typed = terminal::ask(&prompt)?;
            if typed.is_empty() { known.to_owned() } else { typed }
        }
    };
    if user.is_empty() {
        anyhow::bail!("username is required");
    }
    if user.contains(':') {
        return Err(Exit::Text(1, "username has a colon".into()).into());
    }
    let password = match password {
        Some(password) => password,
        None => terminal::ask_secret("Password: ")?,
    };
    if password.is_empty() {
        anyhow::bail!("password is required");
    }
    Ok(Given { user, password, origin: origin.into() })
}

/// Returns the file to store credentials in: the named one, else this user's first one that exists or can be created.
fn place(sources: &Sources) -> anyhow::Result<PathBuf> {
    if let Some(file) = &sources.file {
        return Ok(file.clone());
    }
    let can_be = |file: &PathBuf| {
        let folder = file.parent().unwrap_or(Path::new("/"));
        file.exists() || DirBuilder::new().recursive(true).mode(0o700).create(folder).is_ok()
    };
    let place = own_files().into_iter().find(can_be);
    place.ok_or_else(|| anyhow::anyhow!("this user has no directory for credentials: name a file with --authfile"))
}

pub(in crate::cli) fn logout(a: &LogoutArgs) -> anyhow::Result<()> {
    let named = usage_errors::at_most_one("logout", &a.args)?;
    let sources = sources(a.authfile.as_deref());
    let files = sources.file.clone().map_or_else(own_files, |file| vec![file]);
    if a.all {
        if named.is_some() {
            return Err(Exit::Text(1, "--all takes no arguments".into()).into());
        }
        files.iter().try_for_each(|file| credential_store::forget_all(file)).map_err(anyhow::Error::msg)?;
        return output::line("Removed login credentials for all registries");
    }
    let account = account(named)?;
    let title = if named.is_some() { account.to_string() } else { HUB_TITLE.to_owned() };
    let mut found = false;
    for file in &files {
        found |= credential_store::forget(file, &account).map_err(anyhow::Error::msg)?;
    }
    match found {
        true => output::line(format_args!("Removing login credentials for {title}"))?,
        false => output::line(format_args!("Not logged in to {title}"))?,
    }
    // An unreadable file that was not named is no error.
    if sources.file.is_none()
        && let Ok(Some(other)) = kept(&sources, &account)
    {
        output::complaint(format_args!("WARNING: credentials for {title} remain in {}", other.origin));
    }
    Ok(())
}

fn account(named: Option<&str>) -> anyhow::Result<Account> {
    Ok(named.map(str::parse).transpose()?.unwrap_or_else(Account::hub))
}

/// Returns the stored credentials. A named file that does not exist yet holds none.
fn kept(sources: &Sources, account: &Account) -> anyhow::Result<Option<Given>> {
    if sources.file.as_ref().is_some_and(|file| !file.exists()) {
        return Ok(None);
    }
    credentials::kept(sources, account).map_err(anyhow::Error::msg)
}
