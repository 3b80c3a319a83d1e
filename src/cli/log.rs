//! The log. In front it goes to standard error, warnings and worse, without the time. A daemon's goes into its file, with
//! the time, and tells what it does too (`info`).

use super::Exit;
use super::progress::screen::Above;
use std::fmt;
use std::io;
use std::sync::OnceLock;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

const LEVEL_IN_FRONT: &str = "warn";
const LEVEL_OF_DAEMON: &str = "info";

type Lines = Box<dyn Layer<Registry> + Send + Sync>;
type Printing = Layered<reload::Layer<Lines, Registry>, Registry>;

static LOG: OnceLock<Log> = OnceLock::new();

/// What can be changed of the log while the program runs.
struct Log {
    lines: reload::Handle<Lines, Registry>,
    filter: reload::Handle<EnvFilter, Printing>,
    /// Whether the user chose what is logged.
    chosen: bool,
}

/// Begins to log, with the user's filter if there is one.
pub(super) fn begin(wanted: Option<&str>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(wanted.unwrap_or(LEVEL_IN_FRONT))
        .map_err(|e| Exit::Text(125, format!("invalid argument for --log-level: {e}")))?;
    let lines: Lines = Box::new(tracing_subscriber::fmt::layer().with_writer(|| Above).without_time());
    let (lines, lines_handle) = reload::Layer::new(lines);
    let (filter, filter_handle) = reload::Layer::new(filter);
    tracing::subscriber::set_global_default(Registry::default().with(lines).with(filter))?;
    // Set once, as the global default is.
    let _first = LOG.set(Log { lines: lines_handle, filter: filter_handle, chosen: wanted.is_some() });
    Ok(())
}

/// From now on standard error is a daemon's log file.
pub(super) fn become_daemons() -> anyhow::Result<()> {
    let Some(log) = LOG.get() else { return Ok(()) };
    log.lines.reload(Box::new(tracing_subscriber::fmt::layer().with_writer(io::stderr).with_timer(Clock)) as Lines)?;
    if !log.chosen {
        log.filter.reload(EnvFilter::new(LEVEL_OF_DAEMON))?;
    }
    Ok(())
}

/// RFC 3339, to the millisecond.
struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> fmt::Result {
        write!(writer, "{:.3}", jiff::Timestamp::now())
    }
}
