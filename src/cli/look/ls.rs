//! `ls`: lists the files of an image, as ls(1) does.

use super::colors::Colors;
use super::columns::columns;
use super::long::{Line, Marks, Style, Widths};
use super::record::{self, absolute};
use super::target::{Complaints, LookArgs, Opened, paths};
use crate::browse::{Entry, Owners, PathError, entries, join};
use crate::cli::Global;
use crate::cli::output::format;
use crate::cli::output::stdout as output;
use crate::fs::{Attr, Fs};
use crate::meta::Kind;
use crate::name::show;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
#[command(
    override_usage = "plyfs ls [OPTIONS] IMAGE|CONTAINER [PATH...]\n       plyfs ls [OPTIONS] --upper DIR [PATH...]"
)]
#[command(after_help = "\
Names are sorted by their bytes, owners come from the image's own /etc/passwd and
/etc/group, and symbolic links are followed inside the image only. + after a mode:
the file has an ACL.

Examples:
  plyfs ls -l debian:12 /etc
  plyfs ls -lR debian:12 /usr/lib | less
  plyfs ls --format json debian:12 /etc | jq -r .Path")]
pub(in crate::cli) struct LsArgs {
    /// List one entry per line with mode, links, owner, group, size and modification time
    #[arg(short)]
    long: bool,
    /// Do not hide names that begin with a dot
    #[arg(short, long)]
    all: bool,
    /// Do not hide names that begin with a dot, but . and ..
    #[arg(short = 'A', long)]
    almost_all: bool,
    /// List directories themselves, not their content
    #[arg(short, long)]
    directory: bool,
    /// List subdirectories too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print sizes with units of 1024
    #[arg(short, long)]
    human_readable: bool,
    /// Print numeric owners; implies -l
    #[arg(short, long)]
    numeric_uid_gid: bool,
    /// Sort by size, the largest first
    #[arg(short = 'S')]
    by_size: bool,
    /// Sort by modification time, the newest first
    #[arg(short = 't')]
    by_time: bool,
    /// Reverse the order
    #[arg(short, long)]
    reverse: bool,
    /// List one name per line
    #[arg(short = '1')]
    single: bool,
    /// `table`, `table TEMPLATE`, `json`, or a Go template over Path, Name, Kind, Mode, Links, User, UID, Group, GID,
    /// Size, ModTime, Target, Device, ACL, Capabilities
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    look: LookArgs,
    /// Image or container, and paths in it [default: /]
    #[arg(value_name = "IMAGE PATH", num_args = 0..)]
    args: Vec<OsString>,
}

impl LsArgs {
    /// The positional arguments.
    pub(in crate::cli) fn words(&self) -> &[OsString] {
        &self.args
    }
}

pub(in crate::cli) fn ls(global: &Global, a: &LsArgs) -> anyhow::Result<()> {
    let (opened, words) = a.look.open(global, "ls", &a.args)?;
    let paths = paths(words);
    if let Some(format) = &a.format {
        return records(&opened, &paths, a, format);
    }
    let owners = if a.numeric_uid_gid { None } else { Some(Owners::of(&opened.fs)) };
    let mut listing = Listing {
        fs: &opened.fs,
        a,
        style: Style::new(owners, a.human_readable),
        colors: Colors::of_environment(),
        width: terminal_width(),
        any: false,
    };
    let mut complaints = Complaints::default();
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    // As ls does without -l: a symbolic link to a directory on the command line is followed.
    let follow = !a.is_long() && !a.directory;
    opened.each(&paths, follow, &mut complaints, |path, attr, _| {
        let is_dir = attr.kind == Kind::Dir && !a.directory;
        if is_dir { &mut dirs } else { &mut files }.push(Entry { name: path.to_vec(), attr });
        Ok(())
    })?;
    let mut out = output::writer();
    a.sort(&mut files);
    a.sort(&mut dirs);
    if !files.is_empty() {
        listing.write(&files, &mut out)?;
    }
    let has_heading = a.recursive || paths.len() > 1;
    for dir in &dirs {
        listing.dir(dir, has_heading, &mut out, &mut complaints)?;
    }
    out.flush().map_err(output::failed)?;
    complaints.end()
}

impl LsArgs {
    fn is_long(&self) -> bool {
        self.long || self.numeric_uid_gid
    }

    fn sort(&self, entries: &mut [Entry]) {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        if self.by_size {
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.attr.size));
        } else if self.by_time {
            entries.sort_by_key(|entry| std::cmp::Reverse((entry.attr.mtime.sec, entry.attr.mtime.nsec)));
        }
        if self.reverse {
            entries.reverse();
        }
    }

    fn shows(&self, name: &[u8]) -> bool {
        self.all || self.almost_all || !name.starts_with(b".")
    }

    /// Returns the entries of a directory that are listed, in their order.
    fn content(&self, fs: &Fs, dir: &Attr) -> Result<Vec<Entry>, PathError> {
        let mut found = entries(fs, dir)?;
        found.retain(|entry| self.shows(&entry.name));
        if self.all {
            found.push(Entry { name: b".".to_vec(), attr: *dir });
            found.push(Entry { name: b"..".to_vec(), attr: fs.getattr(fs.parent(dir.ino)?)? });
        }
        self.sort(&mut found);
        Ok(found)
    }
}

/// Returns the width of the terminal on standard output in columns; `None` if there is no terminal.
fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok();
    Some(size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(80))
}

/// A listing that is being written.
struct Listing<'a> {
    fs: &'a Fs,
    a: &'a LsArgs,
    style: Style,
    colors: Colors,
    width: Option<usize>,
    /// Whether anything has been written.
    any: bool,
}

impl Listing<'_> {
    /// Lists a directory, and those below it with -R.
    fn dir(
        &mut self,
        from: &Entry,
        has_heading: bool,
        out: &mut impl Write,
        complaints: &mut Complaints,
    ) -> anyhow::Result<()> {
        let mut todo = vec![(from.name.clone(), from.attr)];
        while let Some((path, dir)) = todo.pop() {
            let content = match self.a.content(self.fs, &dir) {
                Ok(content) => content,
                Err(error) => {
                    complaints.add(&path, error);
                    continue;
                }
            };
            if has_heading {
                let gap = if self.any { "\n" } else { "" };
                out.write_all(gap.as_bytes()).map_err(output::failed)?;
                out.write_all(&self.name(&path)).map_err(output::failed)?;
                out.write_all(b":\n").map_err(output::failed)?;
            }
            if self.a.is_long() {
                let blocks: u64 = content.iter().map(|entry| entry.attr.blocks).sum();
                let total =
                    if self.a.human_readable { self.style.size(blocks * 512) } else { (blocks / 2).to_string() };
                writeln!(out, "total {total}").map_err(output::failed)?;
            }
            self.write(&content, out)?;
            if self.a.recursive {
                let is_below =
                    |entry: &&Entry| entry.attr.kind == Kind::Dir && !matches!(&entry.name[..], b"." | b"..");
                let below = content.iter().rev().filter(is_below);
                todo.extend(below.map(|entry| (join(&path, &entry.name), entry.attr)));
            }
        }
        Ok(())
    }

    /// Returns a name as it is written: as it is to a file or a pipe, without control characters to a terminal.
    fn name(&self, name: &[u8]) -> Vec<u8> {
        if self.width.is_some() { show(name).into_bytes() } else { name.to_vec() }
    }

    fn write(&mut self, found: &[Entry], out: &mut impl Write) -> anyhow::Result<()> {
        self.any = true;
        let done = match self.width {
            _ if self.a.is_long() => return self.write_long(found, out),
            Some(width) if !self.a.single => {
                let shown = |entry: &Entry| (show(&entry.name), self.colors.around(&entry.name, &entry.attr, false));
                out.write_all(columns(&found.iter().map(shown).collect::<Vec<_>>(), width).as_bytes())
            }
            _ => found.iter().try_for_each(|entry| {
                let (before, after) = self.colors.around(&entry.name, &entry.attr, false);
                out.write_all(&[before.as_bytes(), &self.name(&entry.name), after.as_bytes(), b"\n"].concat())
            }),
        };
        done.map_err(output::failed)
    }

    fn write_long(&mut self, found: &[Entry], out: &mut impl Write) -> anyhow::Result<()> {
        let mut lines: Vec<(Line, Marks)> = Vec::with_capacity(found.len());
        for entry in found {
            let marks = Marks::of(self.fs, &entry.attr)?;
            lines.push((self.style.line(&entry.attr, marks), marks));
        }
        let widths = Widths::of(lines.iter().map(|(line, _)| line));
        let mut text = String::new();
        for ((line, marks), entry) in lines.iter().zip(found) {
            text.clear();
            line.write(&widths, &mut text);
            let (before, after) = self.colors.around(&entry.name, &entry.attr, marks.capabilities);
            let mut whole = [text.as_bytes(), before.as_bytes(), &self.name(&entry.name), after.as_bytes()].concat();
            if entry.attr.kind == Kind::Symlink {
                whole.extend_from_slice(b" -> ");
                whole.extend(self.name(&self.fs.readlink(entry.attr.ino)?));
            }
            whole.push(b'\n');
            out.write_all(&whole).map_err(output::failed)?;
        }
        Ok(())
    }
}

/// Prints one record per entry.
fn records(opened: &Opened, paths: &[Vec<u8>], a: &LsArgs, format: &str) -> anyhow::Result<()> {
    let owners = Owners::of(&opened.fs);
    let (mut complaints, mut rows) = (Complaints::default(), Vec::new());
    opened.each(paths, !a.directory, &mut complaints, |path, attr, complaints| {
        let mut add = |path: &[u8], attr: &Attr| -> anyhow::Result<()> {
            rows.push(record::row(&opened.fs, path, attr, &owners)?);
            Ok(())
        };
        if attr.kind != Kind::Dir || a.directory {
            return add(&absolute(path), &attr);
        }
        let mut todo = vec![(absolute(path), attr)];
        while let Some((path, dir)) = todo.pop() {
            let mut found = match entries(&opened.fs, &dir) {
                Ok(found) => found,
                Err(error) => {
                    complaints.add(&path, error);
                    continue;
                }
            };
            found.retain(|entry| a.shows(&entry.name));
            a.sort(&mut found);
            for entry in &found {
                add(&join(&path, &entry.name), &entry.attr)?;
            }
            if a.recursive {
                let below = found.iter().rev().filter(|entry| entry.attr.kind == Kind::Dir);
                todo.extend(below.map(|entry| (join(&path, &entry.name), entry.attr)));
            }
        }
        Ok(())
    })?;
    format::list(Some(format), record::TABLE, &record::COLUMNS, rows)?;
    complaints.end()
}
