//! One more program in a running container.

use super::inside::Inside;
use super::room::{self, Refusal};
use super::spec::{self, Exec, Machine, Place};
use super::{reach, runtime, user};
use crate::store::Store;
use crate::store::containers::{self, Container, State, Status};
use crate::sys::{self, Signals};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

/// What is to be run.
pub struct Plan {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables over the container's own, `NAME=VALUE`.
    pub env: Vec<String>,
    /// The directory to run in; none: the container's.
    pub directory: Option<String>,
    /// Whom to run as; none: the container's user.
    pub user: Option<String>,
    /// Whether it gets a terminal; this process's is passed on then.
    pub terminal: bool,
    /// Whether it reads what this process reads.
    pub input: bool,
    /// Whether to come back as soon as it runs.
    pub detach: bool,
}

/// Runs it, and gives the code that it ended with. The process must have one thread, and is good for nothing else
/// afterwards: it works in the container's namespaces.
pub fn run(store: &Store, container: &Container, plan: &Plan) -> Result<i32, Refusal> {
    // Whatever fails because the container has just ended, that is why.
    attempt(store, container, plan).map_err(|refusal| running(store, container).err().unwrap_or(refusal))
}

fn attempt(store: &Store, container: &Container, plan: &Plan) -> Result<i32, Refusal> {
    let failed = |what: &'static str| move |e: io::Error| Refusal::own(format!("cannot {what}: {}", sys::describe(&e)));
    let state = running(store, container)?;
    let there = Namespaces::enter_users(&state).map_err(failed("enter the container's namespaces"))?;
    // The numbers were read before somebody else could have them only if the container still runs.
    running(store, container)?;
    let dir = store.container_dir(&container.id);
    let root = Inside::open(&reach::tree_of(store, container, &state)).map_err(failed("enter the container"))?;
    let spec_of = plan.user.as_deref().unwrap_or(container.text("User"));
    let user = user::resolve(&root, spec_of).map_err(|e| Refusal::own(e.to_string()))?;
    let place = Place {
        container,
        user: &user,
        root: &dir,
        binds: &[],
        mapping: None,
        terminal: plan.terminal,
        machine: &Machine::look().map_err(failed("look at this machine"))?,
    };
    let wanted = Exec { args: &plan.command, env: &plan.env, directory: plan.directory.as_deref() };
    let process = spec::exec(&place, &wanted).map_err(|e| Refusal::own(e.to_string()))?;
    let files = Files::new(&dir);
    let bytes = serde_json::to_vec(&process).map_err(|e| Refusal::own(e.to_string()))?;
    fs::write(&files.process, bytes).map_err(failed("write what is to be run"))?;
    // From here on /proc tells nothing of this process.
    there.enter().map_err(failed("enter the container's namespaces"))?;
    let program = PathBuf::from(&state.runtime);
    let mut call = runtime::call(&program, &dir, &files.log);
    call.arg("exec").arg("--process").arg(&files.process);
    if plan.detach {
        call.arg("--detach").stdout(Stdio::null()).stderr(Stdio::null());
    }
    if !plan.input {
        call.stdin(Stdio::null());
    }
    let signals = Signals::block_for_child()?;
    let child = call.arg(&container.id).spawn();
    let child = child.map_err(|e| Refusal::own(format!("cannot run {}: {}", state.runtime, sys::describe(&e))))?;
    let code = room::wait(child.id() as i32, &signals)?.code();
    match runtime::why_if_said(&program, &files.log) {
        Some(refusal) if code != 0 && plan.detach => Err(refusal),
        // The runtime has said why, where the program would have said something.
        Some(refusal) if code != 0 => Ok(refusal.code.into()),
        _ => Ok(code),
    }
}

fn running(store: &Store, container: &Container) -> Result<State, Refusal> {
    let state = containers::state(store, &container.id).map_err(|e| Refusal::own(e.to_string()))?;
    if state.status == Status::Running {
        return Ok(state);
    }
    Err(Refusal { code: 1, text: format!("container {} is not running", container.id) })
}

/// Where the container's runtime works.
struct Namespaces {
    mounts: File,
    processes: File,
}

impl Namespaces {
    /// Opens them, and enters the user namespace, which is asked first.
    fn enter_users(state: &State) -> io::Result<Namespaces> {
        let of = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", state.runner));
        let there = Namespaces { mounts: of("mnt")?, processes: of("pid")? };
        reach::enter_users(state.runner)?;
        Ok(there)
    }

    /// Enters all others.
    fn enter(&self) -> io::Result<()> {
        sys::enter_process_namespace(&self.processes)?;
        sys::enter_mount_namespace(&self.mounts)
    }
}

/// What the runtime reads and writes for one call; gone with this value.
struct Files {
    process: PathBuf,
    log: PathBuf,
}

impl Files {
    fn new(dir: &std::path::Path) -> Files {
        let number = std::process::id();
        Files { process: dir.join(format!("exec-{number}.json")), log: dir.join(format!("exec-{number}.log")) }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _never_made = fs::remove_file(&self.process);
        let _never_made = fs::remove_file(&self.log);
    }
}
