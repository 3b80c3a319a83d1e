//! Progress display of a pull or push: plain lines, progress bars or JSON, all as Docker's.

mod bars;
mod json;
pub(in crate::cli) mod screen;

use crate::cli::output::stdout as output;
use crate::image::progress::{Event, Progress};
use crate::image::pull::Pulled;
use crate::image::push::{self, Pushed};
use crate::image::source::{LayerPlan, Plan};
use crate::reference::{DEFAULT_TAG, Reference};
use crate::store::LayerRecord;
use bars::Bars;
use json::Json;
use std::fmt::Display;
use std::io::{self, IsTerminal};

/// Type of progress output (`--progress`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(in crate::cli) enum Kind {
    /// tty on a terminal, else plain
    Auto,
    /// One line per finished step
    Plain,
    /// Progress bars, for a terminal
    Tty,
    /// One JSON object per line
    Json,
    /// Only the result
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

/// Progress display of one pull or push.
pub(in crate::cli) struct Report {
    /// The source, in `TAG: Pulling from SOURCE`.
    from: String,
    /// Whether the source is a registry.
    remote: bool,
    form: Form,
}

enum Form {
    /// No output.
    Quiet,
    /// Only the result.
    Result,
    Lines,
    Bars(Bars),
    Json(Json),
}

impl Report {
    /// The display of a pull from a source; `remote` if that is a registry.
    pub(in crate::cli) fn new(kind: Kind, from: &str, remote: bool) -> Report {
        let form = match kind.resolved() {
            Kind::Auto | Kind::Plain => Form::Lines,
            Kind::Tty => Form::Bars(Bars::default()),
            Kind::Json => Form::Json(Json::default()),
            Kind::None => Form::Result,
        };
        Report { from: from.to_owned(), remote, form }
    }

    /// The display of a push.
    pub(in crate::cli) fn of_push(kind: Kind) -> Report {
        Report::new(kind, "", true)
    }

    /// A display without output.
    pub(in crate::cli) fn quiet() -> Report {
        Report { from: String::new(), remote: false, form: Form::Quiet }
    }

    /// Prints a message, before any layer.
    pub(in crate::cli) fn note(&self, text: &str) {
        // Ignored: a pull continues if its output is closed.
        let _gone = match &self.form {
            Form::Quiet | Form::Result => Ok(()),
            Form::Lines | Form::Bars(_) => output::line(text),
            Form::Json(json) => json.message(text, None),
        };
    }

    /// Stops drawing bars; further output is printed below them.
    pub(in crate::cli) fn end(&self) {
        if let Form::Bars(bars) = &self.form {
            bars.end();
        }
    }

    /// Prints the result.
    pub(in crate::cli) fn result(&self, text: impl Display) -> anyhow::Result<()> {
        match &self.form {
            Form::Quiet => Ok(()),
            Form::Json(json) => json.message(&text.to_string(), None),
            Form::Result | Form::Lines | Form::Bars(_) => output::line(text),
        }
    }

    /// Prints the last line: a name for use in scripts. `all` are the images that it stands for.
    pub(in crate::cli) fn name(&self, name: &str, all: &[Pulled]) -> anyhow::Result<()> {
        match &self.form {
            Form::Json(json) => all.iter().try_for_each(|pulled| json.pulled(pulled)),
            _ => output::line(name),
        }
    }

    /// Prints the digest of an image pushed under a tag.
    pub(in crate::cli) fn pushed(&self, tag: &str, pushed: &Pushed) -> anyhow::Result<()> {
        let Pushed { digest, size, .. } = pushed;
        if let Form::Bars(bars) = &self.form {
            bars.settle();
        }
        self.result(format_args!("{tag}: digest: {digest} size: {size}"))?;
        match &self.form {
            Form::Json(json) => json.pushed(tag, pushed),
            _ => Ok(()),
        }
    }

    /// Writes the error as JSON, for clients that read standard output only.
    pub(in crate::cli) fn failed(&self, error: &anyhow::Error) {
        if let Form::Json(json) = &self.form {
            // Ignored: the error is printed to standard error as well.
            let _gone = json.failed(error);
        }
    }
}

impl Progress for Report {
    fn image(&self, plan: &Plan) {
        let tag = plan.names.iter().find_map(Reference::tag).map(str::to_owned);
        // For a pull by digest Docker prints the full name.
        let by_digest = || plan.names.iter().find(|n| n.digest().is_some()).map(Reference::to_string);
        let what = tag.or_else(|| by_digest().filter(|_| self.remote)).unwrap_or_else(|| DEFAULT_TAG.to_owned());
        let text = format!("Pulling from {}", self.from);
        match &self.form {
            // Ignored: a pull continues if its output is closed.
            Form::Json(json) => drop(json.message(&text, Some(&what))),
            _ => self.note(&format!("{what}: {text}")),
        }
    }

    fn taken(&self, plan: &Plan) {
        if let Form::Bars(bars) = &self.form {
            bars.settle();
        }
        if let Some(digest) = &plan.root {
            // Ignored: if this cannot be written, neither can the last line, which returns the error.
            let _gone = self.result(format_args!("Digest: {digest}"));
        }
    }

    fn layer(&self, layer: &LayerPlan, event: Event) {
        // Ignored: a pull continues if its output is closed.
        let _gone = match (&self.form, event) {
            (Form::Bars(bars), _) => {
                bars.layer(&Layer::new(layer.short(), layer.size()), |known| known.apply(event));
                Ok(())
            }
            (Form::Json(json), _) => json.layer(&Layer::new(layer.short(), layer.size()), |known| known.apply(event)),
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
        // Ignored: a push continues if its output is closed.
        let _gone = match &self.form {
            Form::Bars(bars) => {
                bars.layer(&new, |known| known.apply_push(event));
                Ok(())
            }
            Form::Json(json) => json.layer(&new, |known| known.apply_push(event)),
            Form::Lines if !matches!(event, push::Event::Sent(_)) => {
                let mut known = new;
                known.apply_push(event);
                output::line(format_args!("{}: {}", known.id, known.stage.words()))
            }
            _ => Ok(()),
        };
    }
}

/// Stage of a layer, in Docker's order. plyfs decompresses, indexes and writes a layer while it downloads:
/// `Extracting` is the rest of that work after the download.
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
    /// Docker's text for the stage.
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

    /// Whether the layer is transferred.
    fn is_done(&self) -> bool {
        matches!(self, Stage::Complete | Stage::Pushed)
    }

    /// Whether the layer needs no transfer.
    fn is_skipped(&self) -> bool {
        matches!(self, Stage::Exists | Stage::ExistsThere | Stage::Mounted(_) | Stage::Foreign)
    }

    /// Whether the stage is final.
    fn is_final(&self) -> bool {
        self.is_done() || self.is_skipped()
    }
}

/// Progress of a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Layer {
    /// The short ID: twelve digits.
    id: String,
    size: u64,
    /// Bytes transferred.
    got: u64,
    stage: Stage,
}

impl Layer {
    fn new(id: &str, size: u64) -> Layer {
        Layer { id: id.to_owned(), size, got: 0, stage: Stage::Planned }
    }

    fn apply(&mut self, event: Event) {
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

    fn apply_push(&mut self, event: push::Event) {
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

    /// Whether the stage is shown with a progress bar.
    fn has_bar(&self) -> bool {
        matches!(self.stage, Stage::Downloading | Stage::Extracting | Stage::Pushing)
    }
}
