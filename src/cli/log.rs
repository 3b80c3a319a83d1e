//! Logging. In the foreground: warnings and errors to standard error, without timestamps. In a daemon: `info` and above
//! to the log file, with timestamps.

use crate::cli::Exit;
use crate::cli::output::progress::screen::StderrAboveLines;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::OnceLock;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

const FOREGROUND_LEVEL: &str = "warn";
const DAEMON_LEVEL: LevelFilter = LevelFilter::INFO;

type Lines = Box<dyn Layer<Registry> + Send + Sync>;
type Printing = Layered<reload::Layer<Lines, Registry>, Registry>;

static LOG: OnceLock<Log> = OnceLock::new();

/// Handles to change the log while the program runs.
struct Log {
    lines: reload::Handle<Lines, Registry>,
    filter: reload::Handle<Targets, Printing>,
    /// Whether the user chose the level.
    chosen: bool,
}

/// Installs the global subscriber, with the user's filter if there is one. Call once. A bad filter exits with 125.
pub(in crate::cli) fn begin(wanted: Option<&str>) -> anyhow::Result<()> {
    let filter = Targets::from_str(wanted.unwrap_or(FOREGROUND_LEVEL))
        .map_err(|e| Exit::Text(125, format!("invalid argument for --log-level: {e}")))?;
    let lines: Lines = Box::new(tracing_subscriber::fmt::layer().with_writer(|| StderrAboveLines).without_time());
    let (lines, lines_handle) = reload::Layer::new(lines);
    let (filter, filter_handle) = reload::Layer::new(filter);
    tracing::subscriber::set_global_default(Registry::default().with(lines).with(filter))?;
    // Never set before: a second call has failed above.
    let _first = LOG.set(Log { lines: lines_handle, filter: filter_handle, chosen: wanted.is_some() });
    Ok(())
}

/// Switches to the daemon's format and level. Standard error must be the log file by then.
pub(in crate::cli) fn switch_to_daemon() -> anyhow::Result<()> {
    let Some(log) = LOG.get() else { return Ok(()) };
    log.lines.reload(Box::new(tracing_subscriber::fmt::layer().with_writer(io::stderr).with_timer(Clock)) as Lines)?;
    if !log.chosen {
        log.filter.reload(Targets::new().with_default(DAEMON_LEVEL))?;
    }
    Ok(())
}

/// Timestamps in RFC 3339, with milliseconds.
struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> fmt::Result {
        write!(writer, "{:.3}", jiff::Timestamp::now())
    }
}
