//! Build: makes an image from a Dockerfile and a context.
//!
//! A [`Plan`] says which stages are needed. Each is built by a thread of its own; one waits for another where it needs
//! it. An instruction that changes files makes one layer: `RUN` from the upper directory of its own mount, in a process
//! of its own ([`run_step`]); `COPY`, `ADD` and `WORKDIR` write the layer's tar directly from their sources, without a
//! mount. Nothing is unpacked.
//!
//! Each step is looked up in the build cache first (`store::builds`), under a digest of what its result depends on: the
//! chain ID below it, its instruction, its arguments, and the content of what it copies, without times.

mod copy;
mod items;
mod mode;
mod patterns;
mod place;
mod plan;
mod run;
mod source;
mod stage;
mod state;
mod steps;
mod watch;

pub use patterns::Patterns;
pub use plan::{Base, ImageName, Plan, Request, Triggers};
pub use run::run_step;
pub use source::{Disk, Tree};
pub use watch::{Ended, StepId, Watch};

use crate::container::step::Isolation;
use crate::dockerfile::Dockerfile;
use crate::image::import::{self, New};
use crate::image::{FORMATS, Platform};
use crate::reference::Reference;
use crate::store::containers::Network;
use crate::store::{Image, Intent, Session, gc};
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use stage::{Stage, StageRun};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

/// Error of a build. Prints as one line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{why}", line.map_or_else(String::new, |line| format!("line {line}: ")))]
pub struct Error {
    /// Line number of the instruction in the Dockerfile, from 1.
    pub line: Option<usize>,
    /// The reason.
    pub why: String,
    /// Whether another error was first, so that this one means nothing.
    is_stop: bool,
}

impl Error {
    /// Makes an error.
    pub fn new(line: Option<usize>, why: impl Into<String>) -> Error {
        Error { line, why: why.into(), is_stop: false }
    }

    fn at(line: usize) -> impl Fn(String) -> Error {
        move |why| Error::new(Some(line), why)
    }

    fn stopped() -> Error {
        Error { is_stop: true, ..Error::new(None, "cancelled, because another stage failed") }
    }
}

/// Result of a part of a build.
pub type Result<T> = std::result::Result<T, Error>;

/// A file fetched from a server.
pub struct Download {
    /// The file.
    pub path: PathBuf,
    /// Its modification time as the server says, in seconds.
    pub modified: Option<i64>,
}

/// Fetches a URL into a file.
pub type Fetch = dyn Fn(&str, &std::path::Path) -> std::result::Result<Download, String> + Sync;

/// What is built, and how.
pub struct Options<'a> {
    /// The Dockerfile.
    pub file: &'a Dockerfile,
    /// Its plan.
    pub plan: &'a Plan,
    /// The images that the plan needs, by name.
    pub images: BTreeMap<ImageName, Image>,
    /// The build context; `None` if there is none.
    pub context: Option<Arc<Tree>>,
    /// `--build-arg`.
    pub args: BTreeMap<String, String>,
    /// Labels for the new image.
    pub labels: Vec<(String, String)>,
    /// Platform of the new image.
    pub platform: Platform,
    /// Whether results in the cache are used.
    pub use_cache: bool,
    /// The network of `RUN` without `--network`.
    pub network: Network,
    /// Secrets by ID.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// What runs the commands.
    pub isolation: Isolation,
    /// The engine that mounts the root file systems, as `--engine` names it; empty for FUSE.
    pub engine: String,
    /// This program, which runs each command in a process of its own.
    pub program: PathBuf,
    /// The latest time of everything in the image (SOURCE_DATE_EPOCH).
    pub newest: Option<Timestamp>,
    /// Fetches the URLs of `ADD`.
    pub fetch: &'a Fetch,
    /// Names for the image.
    pub names: Vec<Reference>,
}

/// A running build.
struct Build<'a> {
    session: &'a Session,
    options: &'a Options<'a>,
    watch: &'a dyn Watch,
    /// What the session needs so far.
    intent: Mutex<Intent>,
    /// Chain IDs of the trees that were merged for a step only.
    trees: Mutex<BTreeSet<crate::digest::Digest>>,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// What the stages' threads share.
#[derive(Default)]
struct Shared {
    /// The finished stages.
    done: BTreeMap<usize, Arc<Stage>>,
    /// The first error.
    failed: Option<Error>,
    /// Process IDs of the running steps.
    children: BTreeSet<i32>,
    /// Build arguments that were used.
    used_args: BTreeSet<String>,
}

/// Stack size of a stage's thread: files are copied by recursion over their directories.
const STACK: usize = 32 << 20;

/// Builds the image, or leaves the store as it was but for the cache.
pub fn build(session: &Session, options: &Options<'_>, watch: &dyn Watch) -> Result<Image> {
    let build = Build {
        session,
        options,
        watch,
        intent: Mutex::default(),
        trees: Mutex::default(),
        shared: Mutex::default(),
        changed: Condvar::new(),
    };
    let done = build.run();
    let trees = std::mem::take(&mut *build.trees.lock());
    // Merged only for the steps; those of images are kept.
    let made = Intent { trees, ..Intent::default() };
    if !session.is_abandoned() && made != Intent::default() {
        let done = session.give_up().and_then(|()| gc::take_back(session.store(), &made, FORMATS));
        if let Err(error) = done {
            tracing::debug!(%error, "cannot remove the merged indexes of the steps");
        }
    }
    done
}

impl Build<'_> {
    fn run(&self) -> Result<Image> {
        let order = &self.options.plan.order;
        thread::scope(|scope| {
            for number in order {
                let worker = thread::Builder::new().name(format!("plyfs-stage-{number}")).stack_size(STACK);
                let spawned = worker.spawn_scoped(scope, || self.run_stage(*number));
                if let Err(e) = spawned {
                    self.fail(Error::new(None, format!("cannot start a thread: {}", crate::sys::describe(&e))));
                }
            }
        });
        let target = self.options.plan.target;
        let (done, failed) = {
            let shared = self.shared.lock();
            (shared.done.get(&target).cloned(), shared.failed.clone())
        };
        let stage = match (failed, done) {
            (Some(error), _) => return Err(error),
            (None, Some(stage)) => stage,
            (None, None) => return Err(Error::new(None, "the last stage was not built")),
        };
        self.warn_unused_args();
        self.publish(&stage)
    }

    fn run_stage(&self, number: usize) {
        match StageRun::new(self, number).and_then(StageRun::run) {
            Ok(stage) => {
                self.shared.lock().done.insert(number, Arc::new(stage));
                self.changed.notify_all();
            }
            Err(error) => self.fail(error),
        }
    }

    /// Records the first error, and ends the steps of other stages.
    fn fail(&self, error: Error) {
        let mut shared = self.shared.lock();
        if !error.is_stop && shared.failed.is_none() {
            shared.failed = Some(error);
        }
        for child in &shared.children {
            // It may have exited.
            let _gone = crate::sys::kill(*child, libc::SIGKILL);
        }
        self.changed.notify_all();
    }

    /// Fails if another stage has failed.
    fn check(&self) -> Result<()> {
        if self.shared.lock().failed.is_some() { Err(Error::stopped()) } else { Ok(()) }
    }

    /// Waits for a stage.
    fn wait_for(&self, number: usize) -> Result<Arc<Stage>> {
        let mut shared = self.shared.lock();
        loop {
            if let Some(stage) = shared.done.get(&number) {
                return Ok(Arc::clone(stage));
            }
            if shared.failed.is_some() {
                return Err(Error::stopped());
            }
            if !self.options.plan.order.contains(&number) {
                return Err(Error::new(None, format!("stage {number} is needed only by a trigger of the base image")));
            }
            self.changed.wait(&mut shared);
        }
    }

    /// Adds to what the session needs.
    fn need(&self, more: Intent) -> std::result::Result<(), String> {
        let mut intent = self.intent.lock();
        if intent.contains(&more) {
            return Ok(());
        }
        intent.extend(more);
        self.session.intend(&intent).map_err(|e| e.to_string())
    }

    fn warn_unused_args(&self) {
        let shared = self.shared.lock();
        let global: BTreeSet<&String> = self.options.file.args.iter().map(|(name, _)| name).collect();
        let unused =
            self.options.args.keys().filter(|name| !shared.used_args.contains(*name) && !global.contains(name));
        let unused: Vec<&str> = unused.filter(|name| !state::is_proxy(name)).map(String::as_str).collect();
        if !unused.is_empty() {
            self.watch.warn(&format!("One or more build-args [{}] were not consumed", unused.join(" ")));
        }
    }

    /// Enters the image of a stage into the catalog.
    fn publish(&self, stage: &Stage) -> Result<Image> {
        let step = self.watch.begin("exporting to image");
        let created = self.options.newest.or_else(|| stage.created()).unwrap_or_else(Timestamp::now);
        let new = New {
            layers: stage.layers.clone(),
            document: stage.document(&self.options.labels, created),
            created,
            names: &self.options.names,
        };
        let published = self
            .need(new.intent())
            .and_then(|()| import::publish(self.session, new, "the build").map_err(|e| e.to_string()));
        match published {
            Ok(image) => {
                self.watch.output(step, format!("writing image {}\n", image.id).as_bytes());
                for name in &self.options.names {
                    self.watch.output(step, format!("naming to {name}\n").as_bytes());
                }
                self.watch.end(step, Ended::Done);
                Ok(image)
            }
            Err(why) => {
                self.watch.end(step, Ended::Failed(why.clone()));
                Err(Error::new(None, why))
            }
        }
    }
}
