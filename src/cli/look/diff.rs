//! `diff`: the changed files of a container or an upper directory, or what differs between two images.

use super::record::{absolute, kind_text, time};
use super::target::{LookArgs, open_image, text};
use crate::browse::{Changed, Difference, Side, Upgrade, compare, packages, upgrades};
use crate::cli::container::changes::{changes, of_container, of_upper, sync};
use crate::cli::output::stdout as output;
use crate::cli::{Exit, Global, usage_errors};
use crate::fs::{Attr, How};
use crate::image::open_layers;
use crate::name::show;
use crate::store::{Image, Store};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

#[derive(clap::Args)]
#[command(
    override_usage = "plyfs diff [OPTIONS] CONTAINER\n       plyfs diff [OPTIONS] --upper DIR\n       plyfs diff [OPTIONS] IMAGE IMAGE [PATH]"
)]
#[command(after_help = "\
A: added, C: changed, D: deleted. Between two images, it also shows how a file
changed, and which packages of dpkg and apk did.

Examples:
  plyfs diff web
  plyfs diff --upper ./changes
  plyfs diff debian:12.4 debian:12.5 /etc
  plyfs diff --format json --exit-code app:1 app:2")]
pub(in crate::cli) struct DiffArgs {
    /// Output format: json prints one object per line
    #[arg(long, value_name = "FORMAT", value_parser = ["json"], hide_possible_values = true)]
    format: Option<String>,
    /// Exit with code 1 if there are differences
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    look: LookArgs,
    /// Container, by name or ID, which is paused meanwhile if it runs; or two images, and a path in them
    #[arg(value_name = "CONTAINER|IMAGE IMAGE", num_args = 0..)]
    args: Vec<OsString>,
}

impl DiffArgs {
    /// The positional arguments.
    pub(in crate::cli) fn words(&self) -> &[OsString] {
        &self.args
    }
}

pub(in crate::cli) fn diff(global: &Global, a: &DiffArgs) -> anyhow::Result<()> {
    let store = global.store()?;
    let lines = match (a.look.upper(), a.args.as_slice()) {
        (None, [old, new]) => images(&store, text(old)?, text(new)?, b"/", a)?,
        (None, [old, new, path]) => images(&store, text(old)?, text(new)?, path.as_bytes(), a)?,
        _ => upper(&store, a)?,
    };
    output::text(&lines.concat())?;
    if a.exit_code && !lines.is_empty() { Err(Exit::Said(1).into()) } else { Ok(()) }
}

/// Returns one line for each change in a container or an upper directory.
fn upper(store: &Store, a: &DiffArgs) -> anyhow::Result<Vec<String>> {
    let target = match a.look.upper() {
        Some((upper, image)) => usage_errors::none("diff", &a.args).and_then(|()| of_upper(store, upper, image))?,
        None => usage_errors::exactly("diff", &a.args).and_then(|[name]| of_container(store, text(name)?, true))?,
    };
    for mount in &target.live {
        sync(mount)?;
    }
    let found = target.consistently(|| changes(store, &target))?;
    let line = |path: &[u8], how: How| {
        let letter = match how {
            How::Added => 'A',
            How::Changed => 'C',
            How::Deleted => 'D',
        };
        match a.format {
            Some(_) => format!("{}\n", json!({"Path": show(path), "Change": letter.to_string()})),
            None => format!("{letter} {}\n", show(path)),
        }
    };
    Ok(found.iter().filter(|(path, _)| *path != b"/").map(|(path, changed)| line(path, changed.how)).collect())
}

/// Returns one line for each difference between two images.
fn images(store: &Store, old: &str, new: &str, path: &[u8], a: &DiffArgs) -> anyhow::Result<Vec<String>> {
    let (old, new) = (a.look.image(store, old)?, a.look.image(store, new)?);
    let common = old.layers.iter().zip(&new.layers).take_while(|(a, b)| a.diff_id == b.diff_id).count();
    let side = |image: &Image| -> anyhow::Result<Side> {
        let own = open_layers(store, image)?.split_off(common);
        Ok(Side { fs: open_image(store, image)?, own })
    };
    let (old, new) = (side(&old)?, side(&new)?);
    let differences = compare(&old, &new, &absolute(path))?;
    let is_json = a.format.is_some();
    let mut lines: Vec<String> = differences.iter().map(|(path, found)| line(path, found, is_json)).collect();
    if !lines.is_empty() {
        let found = upgrades(&packages(&old.fs), &packages(&new.fs));
        lines.extend(found.iter().map(|upgrade| package_line(upgrade, is_json)));
    }
    Ok(lines)
}

fn line(path: &[u8], found: &Difference, is_json: bool) -> String {
    let (letter, changed) = match found {
        Difference::Added(_) => ('A', None),
        Difference::Removed(_) => ('D', None),
        Difference::Changed(changed) => ('C', Some(changed)),
    };
    let fields = changed.map(|changed| fields(changed)).unwrap_or_default();
    if is_json {
        let mut object = Map::new();
        object.insert("Path".into(), show(path).into());
        object.insert("Change".into(), letter.to_string().into());
        object.extend(fields.into_iter().map(|(name, old, new)| (name.to_owned(), json!({"Old": old, "New": new}))));
        return format!("{}\n", Value::Object(object));
    }
    let mut text = format!("{letter} {}", show(path));
    for (at, (name, old, new)) in fields.iter().enumerate() {
        text += if at == 0 { "  " } else { ", " };
        // Writing to a String cannot fail.
        let _infallible = match (old.is_empty(), new.is_empty()) {
            (true, true) => write!(text, "{}", name.to_lowercase()),
            _ => write!(text, "{} {old} -> {new}", name.to_lowercase()),
        };
    }
    text + "\n"
}

/// Returns what changed: the name of the attribute, and how it was and is; empty for what is too long to show.
fn fields(changed: &Changed) -> Vec<(&'static str, String, String)> {
    let (old, new) = (&changed.old, &changed.new);
    let mut fields = Vec::new();
    let mut add = |name, differs: bool, text: &dyn Fn(&Attr) -> String| {
        if differs {
            fields.push((name, text(old), text(new)));
        }
    };
    add("Kind", changed.kind(), &|attr| kind_text(attr.kind).to_owned());
    add("Mode", changed.mode(), &|attr| format!("{:04o}", attr.mode));
    add("Owner", changed.owner(), &|attr| format!("{}:{}", attr.uid, attr.gid));
    add("Size", changed.size(), &|attr| attr.size.to_string());
    add("Content", changed.content, &|_| String::new());
    add("Time", changed.time(), &time);
    if !changed.xattrs.is_empty() {
        let names: Vec<String> = changed.xattrs.iter().map(|name| show(name)).collect();
        fields.push(("Xattr", names.join(" "), names.join(" ")));
    }
    fields
}

fn package_line((name, old, new): &Upgrade, is_json: bool) -> String {
    let name = show(name.as_bytes());
    if is_json {
        return format!("{}\n", json!({"Package": name, "Old": old, "New": new}));
    }
    let shown = |version: &Option<String>| version.as_ref().map_or("none".into(), |text| show(text.as_bytes()));
    format!("package {name}  {} -> {}\n", shown(old), shown(new))
}
