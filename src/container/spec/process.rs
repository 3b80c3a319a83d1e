//! A process of a container: what it runs, as whom, and what it knows.

use super::capabilities::{self, Set};
use super::{Place, SpecError};
use crate::container::User;
use crate::container::userns::Mapping;
use crate::store::containers::{Container, Network, list_of};
use oci_spec::runtime::{LinuxCapabilities, Process, User as Account};

/// Docker's.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const UMASK: u32 = 0o022;

/// Another process in a container that runs. [`Place::user`] is for whom, [`Place::terminal`] whether it has a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Exec<'a> {
    /// The program and its arguments.
    pub args: &'a [String],
    /// Variables besides the container's, `NAME=value`.
    pub env: &'a [String],
    /// Where it runs; none: where the container's own process does.
    pub directory: Option<&'a str>,
}

/// The container's own process.
pub fn process(place: &Place) -> Result<Process, SpecError> {
    made(place, place.container.command(), &[], None)
}

/// What the runtime is told of another one.
pub fn exec(place: &Place, asked: &Exec) -> Result<Process, SpecError> {
    made(place, asked.args.to_vec(), asked.env, asked.directory)
}

/// What a container is called by itself: as the user or the image says; with this machine's network like the machine, as
/// the name is one of that network; else by the beginning of its ID.
pub fn hostname(container: &Container, machine: &str) -> String {
    let own = match container.host.network {
        Network::Host => machine,
        Network::None => container.short(),
    };
    Some(container.text("Hostname")).filter(|name| !name.is_empty()).unwrap_or(own).to_owned()
}

fn made(place: &Place, args: Vec<String>, env: &[String], directory: Option<&str>) -> Result<Process, SpecError> {
    if args.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let directory = directory.unwrap_or_else(|| place.container.text("WorkingDir"));
    let directory = if directory.is_empty() { "/" } else { directory };
    if !directory.starts_with('/') {
        return Err(SpecError::Directory(directory.to_owned()));
    }
    let mut process = Process::default();
    process
        .set_args(Some(args))
        .set_env(Some(environment(place, env)))
        .set_cwd(directory.into())
        .set_user(account(place.user, place.mapping)?)
        .set_capabilities(Some(rights(chosen(place)?, place.user.uid == 0)))
        .set_terminal(Some(place.terminal))
        .set_no_new_privileges(Some(false))
        .set_rlimits(None);
    Ok(process)
}

/// What of root's rights the container has.
pub(super) fn chosen(place: &Place) -> Result<Set, SpecError> {
    let host = &place.container.host;
    capabilities::chosen(&host.cap_add, &host.cap_drop, place.machine.capabilities)
}

/// Who is not root has them only through programs that give them: so it would be after the first `execve` anyway.
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

/// The usual variables, then the container's, then `more`. One without `=` takes a variable away that stands before it.
fn environment(place: &Place, more: &[String]) -> Vec<String> {
    let mut env =
        vec![format!("PATH={PATH}"), format!("HOSTNAME={}", hostname(place.container, &place.machine.hostname))];
    if place.terminal {
        env.push("TERM=xterm".to_owned());
    }
    let is = |line: &str, name: &str| line.split_once('=').is_some_and(|(known, _)| known == name);
    for line in list_of(&place.container.config, "Env").into_iter().chain(more.iter().cloned()) {
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
        env.push(format!("HOME={}", place.user.home));
    }
    env
}

/// Where nobody but root can be anybody, the groups cannot be set either.
fn account(user: &User, mapping: Option<&Mapping>) -> Result<Account, SpecError> {
    let mut account = Account::default();
    account.set_uid(user.uid).set_gid(user.gid).set_umask(Some(UMASK));
    let nobody = |why: &str| Err(SpecError::Nobody { uid: user.uid, gid: user.gid, why: why.to_owned() });
    match mapping {
        Some(Mapping::Own { why }) if user.uid != 0 || user.gid != 0 => {
            nobody(&format!("there is nobody but root: {why}"))
        }
        Some(Mapping::Own { .. }) => Ok(account),
        Some(Mapping::Ranges { last_user, .. }) if user.uid > *last_user => {
            nobody("the number is not among yours in /etc/subuid")
        }
        Some(Mapping::Ranges { last_group, .. }) if user.groups.iter().chain([&user.gid]).any(|g| g > last_group) => {
            nobody("a group's number is not among yours in /etc/subgid")
        }
        _ => {
            account.set_additional_gids(Some(user.groups.clone()));
            Ok(account)
        }
    }
}
