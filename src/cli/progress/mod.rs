//! What a pull or a push shows: Docker's lines, drawn again and again on a terminal, or as JSON.

mod bars;
mod json;
pub(super) mod screen;

use super::output;
use crate::image::pull::{Event, Progress, Pulled};
use crate::image::push::{self, Pushed};
use crate::image::source::{LayerPlan, Plan};
use crate::reference::{DEFAULT_TAG, Reference};
use crate::store::LayerRecord;
use bars::Bars;
use json::Json;
use std::fmt::Display;
use std::io::{self, IsTerminal};

/// How it is shown how a pull or a push goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Kind {
    /// On a terminal as tty, else as plain
    Auto,
    /// A line when something is done
    Plain,
    /// Bars for a terminal
    Tty,
    /// JSON objects, one a line
    Json,
    /// Only how it ended
    None,
}

impl Kind {
    fn resolved(self) -> Kind {
        let dumb = || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match self {
            Kind::Auto if io::stdout().is_terminal() && !dumb() => Kind::Tty,
            Kind::Auto => Kind::Plain,
            kind => kind,
        }
    }
}

/// Shows one pull, or one push.
pub(super) struct Report {
    /// For `TAG: Pulling from ...`.
    from: String,
    /// Whether that is a registry.
    remote: bool,
    form: Form,
}

enum Form {
    /// Nothing.
    Quiet,
    /// How it ended.
    Result,
    Lines,
    Bars(Bars),
    Json(Json),
}

impl Report {
    /// One of a pull from a source, which is a registry or not.
    pub(super) fn new(kind: Kind, from: &str, remote: bool) -> Report {
        let form = match kind.resolved() {
            Kind::Auto | Kind::Plain => Form::Lines,
            Kind::Tty => Form::Bars(Bars::default()),
            Kind::Json => Form::Json(Json::default()),
            Kind::None => Form::Result,
        };
        Report { from: from.to_owned(), remote, form }
    }

    /// One of a push.
    pub(super) fn of_push(kind: Kind) -> Report {
        Report::new(kind, "", true)
    }

    /// One that says nothing.
    pub(super) fn quiet() -> Report {
        Report { from: String::new(), remote: false, form: Form::Quiet }
    }

    /// A word on what happens, before any layer.
    pub(super) fn note(&self, text: &str) {
        // A pull goes on when nobody listens any more.
        let _gone = match &self.form {
            Form::Quiet | Form::Result => Ok(()),
            Form::Lines | Form::Bars(_) => output::line(text),
            Form::Json(json) => json.message(text, None),
        };
    }

    /// The layers have all been shown as they are; what is printed next stands below them.
    pub(super) fn end(&self) {
        if let Form::Bars(bars) = &self.form {
            bars.end();
        }
    }

    /// What came of it.
    pub(super) fn result(&self, text: impl Display) -> anyhow::Result<()> {
        match &self.form {
            Form::Quiet => Ok(()),
            Form::Json(json) => json.message(&text.to_string(), None),
            Form::Result | Form::Lines | Form::Bars(_) => output::line(text),
        }
    }

    /// The last line: a name for scripts to use. `all` is what it stands for.
    pub(super) fn name(&self, name: &str, all: &[Pulled]) -> anyhow::Result<()> {
        match &self.form {
            Form::Json(json) => all.iter().try_for_each(|pulled| json.pulled(pulled)),
            _ => output::line(name),
        }
    }

    /// What went out under a tag.
    pub(super) fn pushed(&self, tag: &str, pushed: &Pushed) -> anyhow::Result<()> {
        let Pushed { digest, size } = pushed;
        if let Form::Bars(bars) = &self.form {
            bars.settle();
        }
        self.result(format_args!("{tag}: digest: {digest} size: {size}"))?;
        match &self.form {
            Form::Json(json) => json.pushed(tag, pushed),
            _ => Ok(()),
        }
    }

    /// Why it failed, for those who read nothing but JSON.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        if let Form::Json(json) = &self.form {
            // The error itself is on standard error.
            let _gone = json.failed(error);
        }
    }
}

impl Progress for Report {
    fn image(&self, plan: &Plan) {
        let tag = plan.names.iter().find_map(Reference::tag).map(str::to_owned);
        // By digest alone, Docker says the whole name.
        let by_digest = || plan.names.iter().find(|n| n.digest().is_some()).map(Reference::to_string);
        let what = tag.or_else(|| by_digest().filter(|_| self.remote)).unwrap_or_else(|| DEFAULT_TAG.to_owned());
        let text = format!("Pulling from {}", self.from);
        match &self.form {
            // A pull goes on when nobody listens any more.
            Form::Json(json) => drop(json.message(&text, Some(&what))),
            _ => self.note(&format!("{what}: {text}")),
        }
    }

    fn taken(&self, plan: &Plan) {
        if let Form::Bars(bars) = &self.form {
            bars.settle();
        }
        if let Some(digest) = &plan.root {
            // If that cannot be written, neither can the last line, and there it is an error.
            let _gone = self.result(format_args!("Digest: {digest}"));
        }
    }

    fn layer(&self, layer: &LayerPlan, event: Event) {
        // A pull goes on when nobody listens any more.
        let _gone = match (&self.form, event) {
            (Form::Bars(bars), _) => {
                bars.layer(&Layer::new(layer.short(), layer.size()), |known| known.heed(event));
                Ok(())
            }
            (Form::Json(json), _) => json.layer(&Layer::new(layer.short(), layer.size()), |known| known.heed(event)),
            (Form::Lines, Event::AlreadyExists) => output::line(format_args!("{}: Already exists", layer.short())),
            (Form::Lines, Event::Complete) => output::line(format_args!("{}: Pull complete", layer.short())),
            _ => Ok(()),
        };
    }

    fn warning(&self, layer: &LayerPlan, text: &str) {
        tracing::warn!("layer {}: {text}", layer.short());
    }
}

impl push::Progress for Report {
    fn layer(&self, layer: &LayerRecord, event: push::Event) {
        let new = Layer::new(layer.diff_id.short(), layer.size);
        // A push goes on when nobody listens any more.
        let _gone = match &self.form {
            Form::Bars(bars) => {
                bars.layer(&new, |known| known.heed_push(event));
                Ok(())
            }
            Form::Json(json) => json.layer(&new, |known| known.heed_push(event)),
            Form::Lines if !matches!(event, push::Event::Sent(_)) => {
                let mut known = new;
                known.heed_push(event);
                output::line(format_args!("{}: {}", known.id, known.stage.words()))
            }
            _ => Ok(()),
        };
    }
}

/// Where a layer is, in Docker's order. plyfs inflates, indexes and writes what comes while it comes: `Extracting` is what
/// remains of that when all has come.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    Planned,
    Waiting,
    Downloading,
    Retrying(u64),
    Verifying,
    Extracting,
    Complete,
    Exists,
    Preparing,
    Pushing,
    Pushed,
    ExistsThere,
    Mounted(String),
    Foreign,
}

impl Stage {
    /// Docker's words.
    fn words(&self) -> String {
        let words = match self {
            Stage::Planned => "Pulling fs layer",
            Stage::Waiting => "Waiting",
            Stage::Downloading => "Downloading",
            Stage::Retrying(1) => "Retrying in 1 second",
            Stage::Retrying(seconds) => return format!("Retrying in {seconds} seconds"),
            Stage::Verifying => "Verifying Checksum",
            Stage::Extracting => "Extracting",
            Stage::Complete => "Pull complete",
            Stage::Exists => "Already exists",
            Stage::Preparing => "Preparing",
            Stage::Pushing => "Pushing",
            Stage::Pushed => "Pushed",
            Stage::ExistsThere => "Layer already exists",
            Stage::Mounted(from) => return format!("Mounted from {from}"),
            Stage::Foreign => "Skipped foreign layer",
        };
        words.to_owned()
    }

    /// Whether the layer has come, or gone out.
    fn is_done(&self) -> bool {
        matches!(self, Stage::Complete | Stage::Pushed)
    }

    /// Whether nothing of the layer needs to come or to go out.
    fn is_spared(&self) -> bool {
        matches!(self, Stage::Exists | Stage::ExistsThere | Stage::Mounted(_) | Stage::Foreign)
    }

    fn is_last(&self) -> bool {
        self.is_done() || self.is_spared()
    }
}

/// How far a layer is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Layer {
    /// The twelve digits that people see.
    id: String,
    size: u64,
    /// So much has come of it.
    got: u64,
    stage: Stage,
}

impl Layer {
    fn new(id: &str, size: u64) -> Layer {
        Layer { id: id.to_owned(), size, got: 0, stage: Stage::Planned }
    }

    fn heed(&mut self, event: Event) {
        if event == Event::Started {
            self.got = 0;
        }
        if let Event::Read(got) = event {
            self.got = got;
        }
        self.stage = match event {
            Event::AlreadyExists => Stage::Exists,
            Event::Planned | Event::Started => Stage::Planned,
            Event::Waiting => Stage::Waiting,
            Event::Retrying(0) if self.got == 0 => Stage::Planned,
            Event::Read(_) | Event::Retrying(0) => Stage::Downloading,
            Event::Retrying(seconds) => Stage::Retrying(seconds),
            Event::Verifying => Stage::Verifying,
            Event::Verified => Stage::Extracting,
            Event::Complete => Stage::Complete,
        };
    }

    fn heed_push(&mut self, event: push::Event) {
        if let push::Event::Sent(sent) = event {
            self.got = sent;
        }
        self.stage = match event {
            push::Event::Preparing => Stage::Preparing,
            push::Event::Sent(_) => Stage::Pushing,
            push::Event::Pushed => Stage::Pushed,
            push::Event::Exists => Stage::ExistsThere,
            push::Event::Mounted(from) => Stage::Mounted(from),
            push::Event::Foreign => Stage::Foreign,
        };
    }

    /// Whether a bar says more than the words.
    fn has_bar(&self) -> bool {
        matches!(self.stage, Stage::Downloading | Stage::Extracting | Stage::Pushing)
    }
}
