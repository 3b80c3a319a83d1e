//! Exec: another process in a running container, started by the OCI runtime.

use super::rootfs::Rootfs;
use super::run_error::RunError;
use super::sandbox;
use super::spec::{self, Exec, HostInfo, SpecInput};
use super::{access, runtime, user};
use crate::store::Store;
use crate::store::containers::{self, Container, State, Status};
use crate::sys::{self, Signals};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

/// The parameters of an exec.
pub struct Plan {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables, `NAME=VALUE`, that override the container's.
    pub env: Vec<String>,
    /// The working directory; `None`: the container's.
    pub directory: Option<String>,
    /// The user, `USER[:GROUP]`; `None`: the container's.
    pub user: Option<String>,
    /// Whether to allocate a terminal, connected to this process's.
    pub terminal: bool,
    /// Whether to pass on this process's standard input.
    pub input: bool,
    /// Whether to return as soon as the process has started.
    pub detach: bool,
}

/// Runs the command and returns its exit code. The process must be single-threaded, and must not do other work
/// afterwards: it has entered the container's namespaces.
pub fn run(store: &Store, container: &Container, plan: &Plan) -> Result<i32, RunError> {
    // If the container exited meanwhile, that is the error to report, not the step that failed.
    attempt(store, container, plan).map_err(|error| running(store, container).err().unwrap_or(error))
}

fn attempt(store: &Store, container: &Container, plan: &Plan) -> Result<i32, RunError> {
    let failed =
        |what: &'static str| move |e: io::Error| RunError::own(format!("cannot {what}: {}", sys::describe(&e)));
    let state = running(store, container)?;
    let there = Namespaces::enter_users(&state).map_err(failed("enter the container's namespaces"))?;
    // The PIDs in the state were not reused only if the container is still running.
    running(store, container)?;
    let dir = store.container_dir(&container.id);
    let root = Rootfs::open(&access::tree_of(store, container, &state)).map_err(failed("open the root file system"))?;
    let spec_of = plan.user.as_deref().unwrap_or(container.text("User"));
    let user = user::resolve(&root, spec_of).map_err(|e| RunError::own(e.to_string()))?;
    let input = SpecInput {
        container,
        user: &user,
        root: &dir,
        binds: &[],
        mapping: None,
        terminal: plan.terminal,
        host_info: &HostInfo::detect().map_err(failed("detect the host's capabilities"))?,
    };
    let wanted = Exec { args: &plan.command, env: &plan.env, directory: plan.directory.as_deref() };
    let process = spec::exec(&input, &wanted).map_err(|e| RunError::own(e.to_string()))?;
    let files = Files::new(&dir);
    let bytes = serde_json::to_vec(&process).map_err(|e| RunError::own(e.to_string()))?;
    fs::write(&files.process, bytes).map_err(failed("write the process specification"))?;
    // From here on, /proc is that of the container's PID namespace, without this process.
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
    let child = child.map_err(|e| RunError::own(format!("cannot run {}: {}", state.runtime, sys::describe(&e))))?;
    let code = sandbox::wait(child.id() as i32, &signals)?.code();
    match runtime::why_if_said(&program, &files.log) {
        Some(error) if code != 0 && plan.detach => Err(error),
        // The runtime has printed the error to the same standard error as the program.
        Some(error) if code != 0 => Ok(error.exit_code.into()),
        _ => Ok(code),
    }
}

fn running(store: &Store, container: &Container) -> Result<State, RunError> {
    let state = containers::state(store, &container.id).map_err(|e| RunError::own(e.to_string()))?;
    if state.status == Status::Running {
        return Ok(state);
    }
    Err(RunError { exit_code: 1, text: format!("container {} is not running", container.id) })
}

/// The mount and PID namespace of the container's `init`, where the runtime is called.
struct Namespaces {
    mounts: File,
    processes: File,
}

impl Namespaces {
    /// Opens both namespaces and enters the user namespace, whose privileges [`Namespaces::enter`] needs.
    fn enter_users(state: &State) -> io::Result<Namespaces> {
        let of = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", state.init));
        let there = Namespaces { mounts: of("mnt")?, processes: of("pid")? };
        access::enter_users(state.init)?;
        Ok(there)
    }

    /// Enters the PID namespace, for children, and the mount namespace.
    fn enter(&self) -> io::Result<()> {
        sys::enter_process_namespace(&self.processes)?;
        sys::enter_mount_namespace(&self.mounts)
    }
}

/// The runtime's input file and log of one exec; removed on drop.
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
