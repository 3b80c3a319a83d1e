//! `find`: searches an image for files, as find(1) does.

use super::predicate::{File, Query, parse};
use super::record::{self, absolute};
use super::target::{Complaints, LookArgs, Opened};
use crate::browse::{Owners, Visited, Walk, When};
use crate::cli::Global;
use crate::cli::output::format;
use crate::cli::output::stdout as output;
use crate::fs::Attr;
use crate::name::show;
use jiff::Timestamp;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs find [OPTIONS] IMAGE|CONTAINER [PATH...] [EXPRESSION]\n       plyfs find [OPTIONS] --upper DIR [PATH...] [EXPRESSION]"
)]
#[command(after_help = "\
Expressions are those of find(1): -name, -iname, -path, -ipath, -lname, -type,
-size, -newer PATH, -newermt DATE, -mtime, -perm, -user, -group, -nouser, -nogroup,
-links, -inum, -empty, -prune, -maxdepth, -mindepth, -print0, !, -o and parentheses.
Options come before IMAGE.

Examples:
  plyfs find debian:12 /etc -name '*.conf' -size +4k
  plyfs find debian:12 -type f -perm -4000
  plyfs find --format json debian:12 /usr -newer /etc/os-release")]
pub(in crate::cli) struct FindArgs {
    /// `table`, `table TEMPLATE`, `json`, or a Go template, as for `ls` [default: paths]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    look: LookArgs,
    /// Image or container, paths in it [default: /], and an expression
    #[arg(value_name = "IMAGE PATH", num_args = 0.., allow_hyphen_values = true, trailing_var_arg = true)]
    args: Vec<OsString>,
}

impl FindArgs {
    /// The positional arguments.
    pub(in crate::cli) fn words(&self) -> &[OsString] {
        &self.args
    }
}

pub(in crate::cli) fn find(global: &Global, a: &FindArgs) -> anyhow::Result<()> {
    let (opened, words) = a.look.open(global, "find", &a.args)?;
    let is_expression = |word: &OsString| word.as_bytes().starts_with(b"-") || word == "!" || word == "(";
    let (paths, words) = words.split_at(words.iter().position(is_expression).unwrap_or(words.len()));
    let query = parse(words, &opened.fs)?;
    let owners = Owners::of(&opened.fs);
    let mut search = Search { opened: &opened, query: &query, owners: &owners, rows: None, now: 0 };
    search.now = Timestamp::now().as_nanosecond();
    search.rows = a.format.is_some().then(Vec::new);
    let mut out = output::writer();
    let mut complaints = Complaints::default();
    opened.each(&super::target::paths(paths), false, &mut complaints, |path, attr, complaints| {
        search.walk(path, attr, &mut out, complaints)
    })?;
    out.flush().map_err(output::failed)?;
    drop(out);
    if let Some(rows) = search.rows {
        format::list(a.format.as_deref(), record::TABLE, &record::COLUMNS, rows)?;
    }
    complaints.end()
}

struct Search<'a> {
    opened: &'a Opened,
    query: &'a Query,
    owners: &'a Owners,
    /// The files found so far, if they are not printed at once.
    rows: Option<Vec<format::Row>>,
    now: i128,
}

impl Search<'_> {
    fn walk(
        &mut self,
        from: &[u8],
        attr: Attr,
        out: &mut impl Write,
        complaints: &mut Complaints,
    ) -> anyhow::Result<()> {
        let fs = &self.opened.fs;
        let mut walk = Walk::new(fs, from.to_vec(), attr);
        loop {
            let Visited { when, path, attr, depth } = match walk.step() {
                Ok(None) => return Ok(()),
                Ok(Some(visited)) => visited,
                // A directory of a live mount may have gone meanwhile.
                Err(error) => {
                    complaints.add(from, error);
                    continue;
                }
            };
            if when == When::After {
                continue;
            }
            if depth >= self.query.max_depth {
                walk.skip();
            }
            if depth < self.query.min_depth {
                continue;
            }
            let (owners, now) = (self.owners, self.now);
            let mut file = File { fs, path: &path, attr: &attr, owners, now, pruned: false };
            let fits = self.query.expr.fits(&mut file)?;
            if file.pruned {
                walk.skip();
            }
            if fits {
                self.found(&path, &attr, out)?;
            }
        }
    }

    fn found(&mut self, path: &[u8], attr: &Attr, out: &mut impl Write) -> anyhow::Result<()> {
        if let Some(rows) = &mut self.rows {
            rows.push(record::row(&self.opened.fs, &absolute(path), attr, self.owners)?);
            return Ok(());
        }
        let end: &[u8] = if self.query.with_nul { b"\0" } else { b"\n" };
        let shown = if std::io::stdout().is_terminal() { show(path).into_bytes() } else { path.to_vec() };
        out.write_all(&[&shown[..], end].concat()).map_err(output::failed)
    }
}
