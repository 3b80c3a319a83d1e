//! The `process` object of config.json: arguments, environment, user, capabilities and working directory.

use super::capabilities::{self, Set};
use super::{SpecError, SpecInput};
use crate::container::User;
use crate::container::userns::Mapping;
use crate::store::containers::{Container, Network, list_of};
use oci_spec::runtime::{LinuxCapabilities, Process, User as Account};

/// Docker's default `PATH`.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const UMASK: u32 = 0o022;

/// An exec in a running container. Its user and terminal are [`SpecInput::user`] and [`SpecInput::terminal`].
#[derive(Clone, Copy, Debug)]
pub struct Exec<'a> {
    /// The program and its arguments.
    pub args: &'a [String],
    /// Environment variables, `NAME=value`, in addition to the container's.
    pub env: &'a [String],
    /// The working directory; `None`: the container's.
    pub directory: Option<&'a str>,
}

/// The container's first process.
pub fn process(input: &SpecInput) -> Result<Process, SpecError> {
    made(input, input.container.command(), &[], None)
}

/// The process of an exec.
pub fn exec(input: &SpecInput, asked: &Exec) -> Result<Process, SpecError> {
    made(input, asked.args.to_vec(), asked.env, asked.directory)
}

/// The container's host name: the configured one; otherwise the host's if the container uses the host's network, or the
/// short ID.
pub fn hostname(container: &Container, host_name: &str) -> String {
    let own = match container.host.network {
        Network::Host => host_name,
        Network::None => container.short(),
    };
    Some(container.text("Hostname")).filter(|name| !name.is_empty()).unwrap_or(own).to_owned()
}

fn made(input: &SpecInput, args: Vec<String>, env: &[String], directory: Option<&str>) -> Result<Process, SpecError> {
    if args.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let directory = directory.unwrap_or_else(|| input.container.text("WorkingDir"));
    let directory = if directory.is_empty() { "/" } else { directory };
    if !directory.starts_with('/') {
        return Err(SpecError::Directory(directory.to_owned()));
    }
    let mut process = Process::default();
    process
        .set_args(Some(args))
        .set_env(Some(environment(input, env)))
        .set_cwd(directory.into())
        .set_user(account(input.user, input.mapping)?)
        .set_capabilities(Some(rights(chosen(input)?, input.user.uid == 0)))
        .set_terminal(Some(input.terminal))
        .set_no_new_privileges(Some(false))
        .set_rlimits(None);
    Ok(process)
}

/// The container's capabilities.
pub(super) fn chosen(input: &SpecInput) -> Result<Set, SpecError> {
    let host = &input.container.host;
    capabilities::chosen(&host.cap_add, &host.cap_drop, input.host_info.capabilities)
}

/// The capability sets of a process. For a user other than root only the bounding set is filled: execve(2) would clear
/// the others anyway.
fn rights(chosen: Set, is_root: bool) -> LinuxCapabilities {
    let own = if is_root { chosen } else { Set::default() };
    let mut rights = LinuxCapabilities::default();
    rights
        .set_bounding(Some(chosen.document()))
        .set_permitted(Some(own.document()))
        .set_effective(Some(own.document()))
        .set_inheritable(Some(Set::default().document()))
        .set_ambient(None);
    rights
}

/// The default variables, then the container's, then `more`. An entry without `=` removes the variable.
fn environment(input: &SpecInput, more: &[String]) -> Vec<String> {
    let mut env =
        vec![format!("PATH={PATH}"), format!("HOSTNAME={}", hostname(input.container, &input.host_info.hostname))];
    if input.terminal {
        env.push("TERM=xterm".to_owned());
    }
    let is = |line: &str, name: &str| line.split_once('=').is_some_and(|(known, _)| known == name);
    for line in list_of(&input.container.config, "Env").into_iter().chain(more.iter().cloned()) {
        let (name, sets) = line.split_once('=').map_or((&line[..], false), |(name, _)| (name, true));
        let at = env.iter().position(|known| is(known, name));
        match (at, sets) {
            (Some(at), true) => env[at] = line,
            (None, true) => env.push(line),
            (Some(at), false) => drop(env.remove(at)),
            (None, false) => {}
        }
    }
    if !env.iter().any(|line| is(line, "HOME")) {
        env.push(format!("HOME={}", input.user.home));
    }
    env
}

/// The user object. If only root is mapped, supplementary groups are left out, because setgroups(2) is denied.
fn account(user: &User, mapping: Option<&Mapping>) -> Result<Account, SpecError> {
    let mut account = Account::default();
    account.set_uid(user.uid).set_gid(user.gid).set_umask(Some(UMASK));
    let nobody = |why: &str| Err(SpecError::Nobody { uid: user.uid, gid: user.gid, why: why.to_owned() });
    match mapping {
        Some(Mapping::Own { why }) if user.uid != 0 || user.gid != 0 => nobody(&format!("only root is mapped: {why}")),
        Some(Mapping::Own { .. }) => Ok(account),
        Some(Mapping::Ranges { last_user, .. }) if user.uid > *last_user => {
            nobody("the ID exceeds your range in /etc/subuid")
        }
        Some(Mapping::Ranges { last_group, .. }) if user.groups.iter().chain([&user.gid]).any(|g| g > last_group) => {
            nobody("a group ID exceeds your range in /etc/subgid")
        }
        _ => {
            account.set_additional_gids(Some(user.groups.clone()));
            Ok(account)
        }
    }
}
