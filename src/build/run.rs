//! `RUN`: runs a command in a process of its own, and makes a layer of what it changed.

use super::copy::{self, Source, Wanted};
use super::items::{self, DataDigests};
use super::patterns::Patterns;
use super::place::NewFiles;
use super::stage::{StageRun, image_of};
use super::steps::{Made, key};
use super::{Build, Result, StepId, state};
use crate::container::RunError;
use crate::container::step::{self, Isolation, Mounted, Step, StepMount};
use crate::digest::Digest;
use crate::dockerfile::{self, Command, Instruction};
use crate::image::{commit, import::Taken};
use crate::meta::Time;
use crate::store::builds::{self, CacheMount, Sharing};
use crate::store::containers::{self, Container, Host, Network};
use crate::store::{Intent, Store};
use crate::sys;
use jiff::Timestamp;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::thread;

type Outcome<T> = std::result::Result<T, String>;

/// A step for a process of its own, which gets it on standard input.
#[derive(Serialize, Deserialize)]
struct Job {
    /// The process ID of the build.
    parent: u32,
    /// The store's root folder.
    store: PathBuf,
    /// The step's folder, which is empty.
    dir: PathBuf,
    container: Container,
    isolation: Isolation,
    mounts: Vec<StepMount>,
    /// The latest modification time in the layer, in seconds.
    newest: Option<i64>,
}

/// The result of a step's process, in a file of the step's folder.
#[derive(Serialize, Deserialize)]
enum Report {
    /// The command succeeded; `None` if it changed nothing.
    Done(Option<Taken>),
    /// The command failed with this exit code.
    Exited(i32),
    /// The command could not be started, or its changes could not be read.
    Failed(String),
}

const REPORT: &str = "report.json";

/// Runs the step on standard input, as the process that a build has started for it. The process must be
/// single-threaded. The result is in the step's folder.
pub fn run_step(input: &mut dyn Read) -> Outcome<()> {
    sys::die_with_parent().map_err(|e| sys::describe(&e))?;
    let mut text = Vec::new();
    input.read_to_end(&mut text).map_err(|e| sys::describe(&e))?;
    let job: Job = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    // It may have died before this process asked to die with it.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32) != Some(job.parent) {
        return Err("the build has ended".into());
    }
    let report = work(&job).unwrap_or_else(Report::Failed);
    // As this process's user, who may own files that the build's user may not remove.
    for entry in fs::read_dir(&job.dir).map_err(|e| sys::describe(&e))?.flatten() {
        if entry.file_name() != "layer" {
            let path = entry.path();
            let _left = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
    let bytes = serde_json::to_vec(&report).map_err(|e| e.to_string())?;
    fs::write(job.dir.join(REPORT), bytes).map_err(|e| sys::describe(&e))
}

fn work(job: &Job) -> Outcome<Report> {
    let store = Store::open(&job.store).map_err(|e| e.to_string())?;
    let (dir, isolation, mounts) = (&job.dir, &job.isolation, &job.mounts);
    let ran = step::run(Step { store: &store, dir, container: job.container.clone(), isolation, mounts });
    let ran = ran.map_err(|RunError { text, .. }| text)?;
    if ran.code != 0 {
        return Ok(Report::Exited(ran.code));
    }
    let (image, upper) = (&job.container.image, step::upper(dir));
    let warn = |text: &str| tracing::warn!("{text}");
    let taken = commit::capture(&store, image, &upper, &ran.made, job.newest, &dir.join("layer"), &warn);
    taken.map(Report::Done).map_err(|e| e.to_string())
}

/// The ID of a cache mount, and how it is shared.
type CacheUse = (Digest, Sharing);

/// What a `RUN` needs, with its variables replaced.
struct Running {
    command: Vec<String>,
    /// The environment, `NAME=VALUE`: the image's, and arguments.
    env: Vec<String>,
    network: Network,
    mounts: Vec<StepMount>,
    /// What the result depends on of each mount.
    mount_keys: Vec<String>,
    /// Which of the mounts are cache mounts: their positions. They are opened when the command runs.
    caches: Vec<(usize, CacheUse)>,
}

impl StageRun<'_> {
    pub(super) fn run_command(&mut self, run: &dockerfile::Run, instruction: &Instruction) -> Result<()> {
        let line = instruction.first;
        let (command, script) = self.command(run);
        let shown = command.join(" ");
        let step = self.begin(&instruction.text);
        let done = self.ran(run, (command, script), step, instruction);
        let made = self.build.end(step, line, done, |made| made.cached)?;
        self.finish(&format!("RUN {shown}"), made);
        Ok(())
    }

    /// Returns the command line, and the file that it runs if a heredoc names its interpreter.
    fn command(&self, run: &dockerfile::Run) -> (Vec<String>, Option<StepMount>) {
        let mut script = None;
        let text = match (&run.command, &run.heredocs[..]) {
            (Command::List(_), _) | (_, []) => return (self.state.config.command_line(&run.command), None),
            (Command::Text(text), [only]) if dockerfile::is_heredoc(text) && only.content.starts_with("#!") => {
                let target = format!("/dev/pipes/{}", only.name);
                let content = only.content.clone().into_bytes();
                let what = Mounted::File { content, mode: 0o755, uid: 0, gid: 0, is_program: true };
                script = Some(StepMount { target: target.clone(), what });
                target
            }
            // The heredoc alone is a script.
            (Command::Text(text), [only]) if dockerfile::is_heredoc(text) => only.content.clone(),
            (Command::Text(text), all) => {
                let parts = all.iter().map(|heredoc| format!("\n{}{}", heredoc.raw, heredoc.name));
                text.clone() + &parts.collect::<String>()
            }
        };
        (self.state.config.command_line(&Command::Text(text)), script)
    }

    /// Runs the command, or finds its result in the cache.
    fn ran(
        &mut self,
        run: &dockerfile::Run,
        (command, script): (Vec<String>, Option<StepMount>),
        step: StepId,
        instruction: &Instruction,
    ) -> Outcome<Made> {
        let build = self.build;
        build.check_platform()?;
        let mut running = self.prepare(run, command, instruction.first)?;
        running.mount_keys.extend(script.as_ref().map(|script| format!("{:?}", script.what)));
        running.mounts.extend(script);
        let config = &self.state.config.fields;
        let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let newest = build.options.newest.map(|newest| newest.to_string()).unwrap_or_default();
        let mut env: Vec<&String> = running.env.iter().filter(|line| !is_proxy_line(line)).collect();
        env.sort();
        let key = key(&[
            "RUN",
            &self.state.chain().to_string(),
            &format!("{:?} {env:?} {:?} {:?}", running.command, running.mount_keys, running.network),
            &text("User"),
            &text("WorkingDir"),
            &build.options.platform.to_string(),
            &newest,
        ]);
        if let Some(made) = build.cached(&key)? {
            return Ok(made);
        }
        let made = self.execute(running, step)?;
        build.record(&[&key], &made, &instruction.text)?;
        Ok(made)
    }

    fn prepare(&mut self, run: &dockerfile::Run, command: Vec<String>, line: usize) -> Outcome<Running> {
        let options = self.build.options;
        let mut env = containers::list_of(&self.state.config.fields, "Env");
        let has = |env: &[String], name: &str| env.iter().any(|line| line.split('=').next() == Some(name));
        let proxies = options.args.iter().filter(|(name, _)| state::is_proxy(name));
        for (name, value) in self.state.args.iter().chain(proxies) {
            if !has(&env, name) {
                env.push(format!("{name}={value}"));
            }
        }
        let network = match run.network.as_deref() {
            Some("none") => Network::None,
            Some("host") => Network::Host,
            _ => options.network,
        };
        let (mut mounts, mut mount_keys, mut caches) = (Vec::new(), Vec::new(), Vec::new());
        for fields in &run.mounts {
            if let Some((mount, key, cache)) = self.mount(fields, line)? {
                caches.extend(cache.map(|cache| (mounts.len(), cache)));
                mounts.push(mount);
                mount_keys.push(key);
            }
        }
        Ok(Running { command, env, network, mounts, mount_keys, caches })
    }

    /// Runs the command in a process of its own.
    fn execute(&mut self, mut running: Running, step: StepId) -> Outcome<Made> {
        let build = self.build;
        let _in_use = open_caches(build.session.store(), &mut running)?;
        let dir = build.session.temp_path("step");
        fs::create_dir(&dir).map_err(|e| format!("cannot create {}: {}", dir.display(), sys::describe(&e)))?;
        let mut config = Map::new();
        for name in ["User", "WorkingDir"] {
            config.extend(self.state.config.fields.get(name).map(|value| (name.to_owned(), value.clone())));
        }
        config.insert("Env".into(), json!(running.env));
        config.insert("Cmd".into(), json!(running.command));
        let image = image_of(&self.state.layers);
        let chain = image.chain_id();
        build.trees.lock().insert(chain.clone());
        build.need(Intent { trees: [chain].into(), ..Intent::default() })?;
        let container = Container {
            id: containers::new_id().map_err(|e| e.to_string())?,
            name: String::new(),
            image,
            reference: "build".into(),
            created: String::new(),
            config,
            host: Host { network: running.network, engine: build.options.engine.clone(), ..Host::default() },
        };
        let job = Job {
            parent: process::id(),
            store: build.session.store().root().to_owned(),
            dir: dir.clone(),
            container,
            isolation: build.options.isolation.clone(),
            mounts: running.mounts,
            newest: build.options.newest.map(Timestamp::as_second),
        };
        build.spawn(&job, step)?;
        let report = fs::read(dir.join(REPORT)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let made = match report {
            Some(Report::Done(taken)) => build.publish_layer(taken.as_ref()),
            Some(Report::Exited(code)) => {
                let line = running.command.join(" ");
                Err(format!("process {line:?} did not complete successfully: exit code: {code}"))
            }
            Some(Report::Failed(why)) => Err(why),
            None => Err("the process of the step died".to_owned()),
        };
        let _left = fs::remove_dir_all(&dir);
        made
    }

    /// Prepares one `--mount`; returns it, what the result depends on, and the ID and the sharing of a cache mount.
    fn mount(
        &mut self,
        fields: &[(String, Option<String>)],
        line: usize,
    ) -> Outcome<Option<(StepMount, String, Option<CacheUse>)>> {
        let mount = MountFields::parse(fields, &|word| self.expand(word, line).map_err(|e| e.why))?;
        let target = |default: Option<String>| {
            let given = mount.target.clone().or(default).ok_or("--mount needs a target")?;
            Ok::<_, String>(if given.starts_with('/') { given } else { format!("{}/{given}", self.work_dir()) })
        };
        match mount.kind.as_str() {
            "bind" => {
                let target = target(None)?;
                let (what, key) = self.bind(&mount, line)?;
                let key = format!("bind {target} {key} {}", mount.writable.unwrap_or(false));
                Ok(Some((StepMount { target, what }, key, None)))
            }
            "cache" => {
                let target = target(None)?;
                let (what, cache) = self.cache(&mount, &target, line)?;
                Ok(Some((StepMount { target: target.clone(), what }, format!("cache {target}"), Some(cache))))
            }
            "tmpfs" => {
                let target = target(None)?;
                let size = mount.size.as_ref().map(|size| format!("size={size}")).unwrap_or_default();
                Ok(Some((
                    StepMount { target: target.clone(), what: Mounted::Tmpfs(size) },
                    format!("tmpfs {target}"),
                    None,
                )))
            }
            "secret" => {
                let id = mount.id.clone().or_else(|| {
                    let name = Path::new(mount.target.as_deref()?).file_name()?;
                    Some(name.to_string_lossy().into_owned())
                });
                let id = id.ok_or("--mount=type=secret needs an id or a target")?;
                let target = target(Some(format!("/run/secrets/{id}")))?;
                let Some(content) = self.build.options.secrets.get(&id) else {
                    if mount.required {
                        return Err(format!("secret {id}: not found; give it by --secret id={id},src=FILE"));
                    }
                    return Ok(None);
                };
                let (mode, uid, gid) = (mount.mode.unwrap_or(0o400), mount.uid, mount.gid);
                let what = Mounted::File { content: content.clone(), mode, uid, gid, is_program: false };
                // As in Docker, another secret does not make another result.
                Ok(Some((StepMount { target: target.clone(), what }, format!("secret {id} {target}"), None)))
            }
            other => Err(format!("unsupported mount type \"{other}\": use bind, cache, secret or tmpfs")),
        }
    }

    /// Prepares a bind mount of a stage, an image or the context; returns what its content is identified by.
    fn bind(&mut self, mount: &MountFields, line: usize) -> Outcome<(Mounted, String)> {
        let source = mount.source.clone().unwrap_or_else(|| "/".into());
        let writable = mount.writable.unwrap_or(false);
        if let Some(from) = &mount.from {
            let layers = self.layers_of(from, line).map_err(|e| e.why)?;
            let image = image_of(&layers);
            let key = format!("{} {source}", image.chain_id());
            self.build.trees.lock().insert(image.chain_id());
            return Ok((Mounted::Image { image: Box::new(image), source, writable }, key));
        }
        // The context becomes a layer, so that the command sees what COPY would copy.
        let build = self.build;
        let tree = build.options.context.clone().ok_or("there is no build context to mount")?;
        let mut files = NewFiles::new(None, build.now());
        let sources = vec![Source::Path(tree, source)];
        let exclude = Patterns::default();
        let wanted = Wanted {
            sources,
            target: "/m",
            owner: None,
            mode: None,
            parents: false,
            exclude: &exclude,
            now: Time::default(),
        };
        copy::copy(&mut files, wanted)?;
        let mut data = DataDigests::default();
        let content = items::content(&files.items, &mut data).map_err(|e| sys::describe(&e))?.to_string();
        let key = key(&["context", &content]);
        let made = match build.cached(&key)? {
            Some(made) => made,
            None => {
                let made = build.write_layer(&files, &mut data)?;
                // What was written may be newer than what was digested.
                let again = items::content(&files.items, &mut data).map_err(|e| sys::describe(&e))?.to_string();
                build.record(&[&super::steps::key(&["context", &again])], &made, "bind mount of the context")?;
                made
            }
        };
        let layers: Vec<_> = made.layer.into_iter().collect();
        let image = Box::new(image_of(&layers));
        build.trees.lock().insert(image.chain_id());
        Ok((Mounted::Image { image, source: "/m".into(), writable }, content))
    }

    fn cache(&self, mount: &MountFields, target: &str, line: usize) -> Outcome<(Mounted, CacheUse)> {
        let filling = match &mount.from {
            Some(from) => {
                let image = image_of(&self.layers_of(from, line).map_err(|e| e.why)?);
                self.build.trees.lock().insert(image.chain_id());
                Some((Box::new(image), mount.source.clone().unwrap_or_else(|| "/".into())))
            }
            None => None,
        };
        let sharing = match mount.sharing.as_deref() {
            None | Some("shared") => Sharing::Shared,
            Some("locked") => Sharing::Locked,
            Some("private") => Sharing::Private,
            Some(other) => return Err(format!("unsupported sharing value \"{other}\": use shared, private or locked")),
        };
        let id = key(&["cache mount", mount.id.as_deref().unwrap_or(target)]);
        let attributes = (mount.mode.unwrap_or(0o755), mount.uid, mount.gid);
        // A cache is writable unless it says otherwise.
        let read_only = !mount.writable.unwrap_or(true);
        Ok((Mounted::Dir { path: PathBuf::new(), read_only, attributes, filling }, (id, sharing)))
    }
}

/// Opens the cache mounts of a command, and waits for those that are in use. All commands take them in the same order,
/// and each once, so that none waits for another for ever.
fn open_caches(store: &Store, running: &mut Running) -> Outcome<BTreeMap<Digest, CacheMount>> {
    running.caches.sort_by(|(_, (a, _)), (_, (b, _))| a.cmp(b));
    let mut all = BTreeMap::new();
    for (at, (id, sharing)) in &running.caches {
        if !all.contains_key(id) {
            all.insert(id.clone(), builds::mount(store, id, *sharing).map_err(|e| e.to_string())?);
        }
        if let (Mounted::Dir { path, .. }, Some(cache)) = (&mut running.mounts[*at].what, all.get(id)) {
            path.clone_from(&cache.path);
        }
    }
    Ok(all)
}

fn is_proxy_line(line: &str) -> bool {
    line.split('=').next().is_some_and(state::is_proxy)
}

/// The fields of a `--mount`.
#[derive(Default)]
struct MountFields {
    kind: String,
    id: Option<String>,
    target: Option<String>,
    source: Option<String>,
    from: Option<String>,
    sharing: Option<String>,
    size: Option<String>,
    writable: Option<bool>,
    required: bool,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
}

impl MountFields {
    fn parse(fields: &[(String, Option<String>)], expand: &dyn Fn(&str) -> Outcome<String>) -> Outcome<MountFields> {
        let mut mount = MountFields { kind: "bind".into(), ..MountFields::default() };
        for (key, value) in fields {
            let text = || match value {
                Some(value) => expand(value),
                None => Err(format!("--mount: {key} needs a value")),
            };
            let truth = || match value.as_deref() {
                None | Some("true" | "1") => Ok(true),
                Some("false" | "0") => Ok(false),
                Some(other) => Err(format!("--mount: invalid value for {key}: {other}")),
            };
            let number = |radix: u32| {
                let text = text()?;
                u32::from_str_radix(&text, radix).map_err(|_| format!("--mount: invalid value for {key}: {text}"))
            };
            match key.as_str() {
                "type" => mount.kind = text()?.to_ascii_lowercase(),
                "id" => mount.id = Some(text()?),
                "target" | "dst" | "destination" => mount.target = Some(text()?),
                "source" | "src" => mount.source = Some(text()?),
                "from" => mount.from = Some(text()?),
                "sharing" => mount.sharing = Some(text()?.to_ascii_lowercase()),
                "size" => mount.size = Some(text()?),
                "rw" | "readwrite" => mount.writable = Some(truth()?),
                "ro" | "readonly" => mount.writable = Some(!truth()?),
                "required" => mount.required = truth()?,
                "mode" => mount.mode = Some(number(8)?),
                "uid" => mount.uid = number(10)?,
                "gid" => mount.gid = number(10)?,
                _ => {
                    let field = value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}"));
                    return Err(format!("unexpected key '{key}' in '{field}'"));
                }
            }
        }
        Ok(mount)
    }
}

impl Build<'_> {
    /// Runs a job in a new process, and passes its output on.
    fn spawn(&self, job: &Job, step: StepId) -> Outcome<()> {
        let failed =
            |e: std::io::Error| format!("cannot run {}: {}", self.options.program.display(), sys::describe(&e));
        let request = serde_json::to_vec(job).map_err(|e| e.to_string())?;
        let mut command = process::Command::new(&self.options.program);
        command.arg("build-step").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::begin_with_all_signals(&mut command);
        let mut child = command.spawn().map_err(failed)?;
        let (id, pid) = (child.id() as i32, Pid::from_child(&child));
        {
            let mut shared = self.shared.lock();
            shared.children.insert(id);
            if shared.failed.is_some() {
                // The failure of another stage came before this step could be seen.
                let _gone = child.kill();
            }
        }
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            if let Some(output) = output {
                scope.spawn(|| self.pass_on(step, output));
            }
            if let Some(errors) = errors {
                scope.spawn(|| self.pass_on(step, errors));
            }
            // A process that has died says so by its missing report.
            let _gone = input.map(|mut input| input.write_all(&request));
        });
        // Its number belongs to it until it is reaped, and must not be signalled afterwards.
        let _exited = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        self.shared.lock().children.remove(&id);
        child.wait().map(drop).map_err(failed)
    }

    fn pass_on(&self, step: StepId, mut from: impl Read) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            self.watch.output(step, &buffer[..n]);
        }
    }

    /// Fails if commands of the image's platform cannot run here.
    fn check_platform(&self) -> Outcome<()> {
        let platform = &self.options.platform;
        let host = crate::image::Platform::host();
        if platform.architecture == host.architecture || platform.rank(&host).is_some() {
            return Ok(());
        }
        if (host.architecture.as_str(), platform.architecture.as_str()) == ("amd64", "386") {
            return Ok(());
        }
        let machine = match platform.architecture.as_str() {
            "arm64" => "aarch64",
            "386" => "i386",
            "amd64" => "x86_64",
            "loong64" => "loongarch64",
            other => other,
        };
        let handlers = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
        let is_there = handlers
            .filter(|entry| entry.file_name().to_string_lossy().contains(machine))
            .any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("enabled")));
        if is_there {
            return Ok(());
        }
        Err(format!(
            "RUN for {platform} needs a binfmt handler for {machine}, which this kernel has not: install qemu-user-static"
        ))
    }
}
