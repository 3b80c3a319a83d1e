//! `du`: sums up the disk usage of directories of an image, as du(1) does on its mount.

use super::long::human;
use super::target::{Complaints, LookArgs, Opened, paths};
use crate::browse::{Visited, Walk, When};
use crate::cli::Global;
use crate::cli::output::stdout as output;
use crate::fs::{Attr, Ino};
use crate::meta::Kind;
use crate::name::show;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
#[command(
    override_usage = "plyfs du [OPTIONS] IMAGE|CONTAINER [PATH...]\n       plyfs du [OPTIONS] --upper DIR [PATH...]"
)]
#[command(after_help = "\
Sizes are in units of 1024 bytes. A file with several hard links counts once
unless -l is given.

Examples:
  plyfs du -sh debian:12
  plyfs du -h -d 1 debian:12 /usr")]
pub(in crate::cli) struct DuArgs {
    /// Print files too, not only directories
    #[arg(short, long)]
    all: bool,
    /// Print sizes of files instead of disk usage, in bytes
    #[arg(short, long)]
    bytes: bool,
    /// Print a total
    #[arg(short = 'c', long)]
    total: bool,
    /// Print directories at most N levels below a path
    #[arg(short = 'd', long, value_name = "N")]
    max_depth: Option<usize>,
    /// Count a file with several hard links each time
    #[arg(short = 'l', long)]
    count_links: bool,
    /// Print sizes with units of 1024
    #[arg(short, long)]
    human_readable: bool,
    /// Print only the sum of each path
    #[arg(short, long)]
    summarize: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    look: LookArgs,
    /// Image or container, and paths in it [default: /]
    #[arg(value_name = "IMAGE PATH", num_args = 0..)]
    args: Vec<OsString>,
}

impl DuArgs {
    /// The positional arguments.
    pub(in crate::cli) fn words(&self) -> &[OsString] {
        &self.args
    }
}

pub(in crate::cli) fn du(global: &Global, a: &DuArgs) -> anyhow::Result<()> {
    let (opened, words) = a.look.open(global, "du", &a.args)?;
    let mut complaints = Complaints::default();
    let mut sums = Sums { a, opened: &opened, seen: HashSet::new(), levels: Vec::new(), total: 0 };
    let mut out = output::writer();
    opened.each(&paths(words), false, &mut complaints, |path, attr, _| sums.add(path, attr, &mut out))?;
    if a.total {
        let total = sums.total;
        sums.line(b"total", total, &mut out)?;
    }
    out.flush().map_err(output::failed)?;
    complaints.end()
}

struct Sums<'a> {
    a: &'a DuArgs,
    opened: &'a Opened,
    /// Files with several hard links that have been counted.
    seen: HashSet<Ino>,
    /// The sums of the directories that have been entered, the innermost last.
    levels: Vec<u64>,
    total: u64,
}

impl Sums<'_> {
    fn add(&mut self, path: &[u8], from: Attr, out: &mut impl Write) -> anyhow::Result<()> {
        self.levels = vec![0];
        let mut walk = Walk::new(&self.opened.fs, path.to_vec(), from);
        while let Some(Visited { when, path, attr, depth }) = walk.step()? {
            let is_dir = attr.kind == Kind::Dir;
            let size = match when {
                When::Before if is_dir => {
                    let size = self.size(&attr);
                    self.levels.push(size);
                    continue;
                }
                When::Before => self.size(&attr),
                When::After => self.levels.pop().unwrap_or_default(),
            };
            if let Some(level) = self.levels.last_mut() {
                *level += size;
            }
            if depth == 0 || self.is_shown(depth) && (is_dir || self.a.all) {
                self.line(&path, size, out)?;
            }
        }
        self.total += self.levels.pop().unwrap_or_default();
        Ok(())
    }

    fn is_shown(&self, depth: usize) -> bool {
        if self.a.summarize { depth == 0 } else { self.a.max_depth.is_none_or(|most| depth <= most) }
    }

    /// Returns what an object adds, in bytes: nothing for a further hard link.
    fn size(&mut self, attr: &Attr) -> u64 {
        if !self.a.count_links && attr.kind != Kind::Dir && attr.nlink > 1 && !self.seen.insert(attr.ino) {
            return 0;
        }
        match (self.a.bytes, attr.kind) {
            (true, Kind::Char | Kind::Block) => 0,
            (true, _) => attr.size,
            (false, _) => attr.blocks * 512,
        }
    }

    fn line(&self, path: &[u8], bytes: u64, out: &mut impl Write) -> anyhow::Result<()> {
        let size = match (self.a.human_readable, self.a.bytes) {
            (true, _) => human(bytes),
            (false, true) => bytes.to_string(),
            (false, false) => bytes.div_ceil(1024).to_string(),
        };
        let name = if std::io::stdout().is_terminal() { show(path).into_bytes() } else { path.to_vec() };
        out.write_all(&[size.as_bytes(), b"\t", &name, b"\n"].concat()).map_err(output::failed)
    }
}
