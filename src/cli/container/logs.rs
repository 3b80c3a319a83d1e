//! `logs`: prints a container's log, and follows it.

use crate::cli::{Global, filter, usage_errors};
use crate::container::log::{self, Entry};
use crate::store::Store;
use crate::store::containers::{self, Container};
use crate::sys;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::time::Duration;

#[derive(clap::Args)]
#[command(override_usage = "plyfs logs [OPTIONS] CONTAINER")]
#[command(after_help = "\
Examples:
  plyfs logs web
  plyfs logs -f --tail 10 web")]
pub(in crate::cli) struct LogsArgs {
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    tail: String,
    /// Show logs since a timestamp: RFC 3339, seconds since 1970, or relative (10m, 1h30m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show logs before a timestamp
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Container, by name or ID
    #[arg(value_name = "CONTAINER")]
    args: Vec<String>,
}

/// The polling interval of `--follow`.
const PAUSE: Duration = Duration::from_millis(20);

pub(in crate::cli) fn logs(global: &Global, a: &LogsArgs) -> anyhow::Result<()> {
    let [name] = usage_errors::exactly("logs", &a.args)?;
    let store = global.store()?;
    let container = containers::find(&store, name)?;
    let moment = |text: &Option<String>, name| {
        text.as_deref().map(|text| filter::moment(text, Timestamp::now(), name)).transpose()
    };
    let (since, until) = (moment(&a.since, "\"since\"")?, moment(&a.until, "\"until\"")?);
    let shown = Shown { times: a.timestamps, since, until };
    let most = match a.tail.as_str() {
        "all" => usize::MAX,
        // As in Docker: any other text means all.
        number => number.parse().unwrap_or(usize::MAX),
    };
    let path = store.container_dir(&container.id).join("log");
    let mut from = match File::open(&path) {
        Ok(file) => BufReader::new(file),
        // The container has never been started.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => anyhow::bail!("cannot read {}: {}", path.display(), sys::describe(&e)),
    };
    let mut last = VecDeque::new();
    while let Some(entry) = log::next(&mut from)? {
        if !shown.wants(&entry) {
            continue;
        }
        if last.len() == most {
            last.pop_front();
        }
        if most > 0 {
            last.push_back(entry);
        }
        if most == usize::MAX {
            last.drain(..).try_for_each(|entry| shown.print(&entry))?;
        }
    }
    last.drain(..).try_for_each(|entry| shown.print(&entry))?;
    if a.follow { follow(&store, &container, from, &shown) } else { Ok(()) }
}

/// Prints new entries until the container exits.
fn follow(store: &Store, container: &Container, mut from: BufReader<File>, shown: &Shown) -> anyhow::Result<()> {
    loop {
        // Checked before reading: when the lock is free, all output is in the log.
        let runs = containers::is_held(store, &container.id);
        while let Some(entry) = log::next(&mut from)? {
            if shown.wants(&entry) {
                shown.print(&entry)?;
            }
        }
        if !runs || shown.until.is_some_and(|until| until < Timestamp::now()) {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Selects the entries to show, and their format.
struct Shown {
    times: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Shown {
    fn wants(&self, entry: &Entry) -> bool {
        let Ok(time) = entry.time.parse::<Timestamp>() else { return false };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }

    /// Prints an entry to the stream it was written to, stdout or stderr.
    fn print(&self, entry: &Entry) -> io::Result<()> {
        let mut line = Vec::new();
        if self.times {
            line.extend_from_slice(entry.time.as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(&entry.text);
        if entry.is_error { write(io::stderr().lock(), &line) } else { write(io::stdout().lock(), &line) }
    }
}

fn write(mut to: impl Write, line: &[u8]) -> io::Result<()> {
    to.write_all(line)?;
    to.flush()
}
