//! Expressions of `find`: predicates, `-not`, `-and`, `-or` and parentheses, as in find(1).

use super::glob::fits;
use crate::browse::{Owners, PathError, resolve};
use crate::fs::{Attr, Fs};
use crate::meta::Kind;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::cmp::Ordering;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// The most parentheses inside each other.
const DEEPEST: usize = 100;

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    True,
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// The last component of the path fits a pattern.
    Name(Vec<u8>, Case),
    /// The whole path does.
    Path(Vec<u8>, Case),
    /// A symbolic link's target does.
    Target(Vec<u8>),
    Kind(Vec<Kind>),
    Size(Amount),
    /// Modified after that time, in nanoseconds since 1970.
    Newer(i128),
    /// Modified so many days ago.
    Days(Amount),
    Links(Amount),
    Uid(u32),
    Gid(u32),
    NoUser,
    NoGroup,
    Inode(u64),
    Mode(u16, Bits),
    Empty,
    /// Below it nothing is looked at.
    Prune,
}

/// Whether letters must have the same case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Same,
    Any,
}

/// How a mode is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    Exactly,
    /// All of the bits are set (`-MODE`).
    All,
    /// Any of them is (`/MODE`).
    Any,
}

/// `+N` (more), `-N` (less) or `N`, in some unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount {
    order: Ordering,
    count: u64,
    unit: u64,
}

impl Amount {
    fn parse(text: &str, unit: u64) -> Option<Amount> {
        let (order, digits) = match text.as_bytes().first()? {
            b'+' => (Ordering::Greater, &text[1..]),
            b'-' => (Ordering::Less, &text[1..]),
            _ => (Ordering::Equal, text),
        };
        Some(Amount { order, count: digits.parse().ok()?, unit })
    }

    /// Parses `-size`: blocks of 512 bytes, or the unit that the last letter names.
    fn of_size(text: &str) -> Option<Amount> {
        let unit = match text.as_bytes().last()? {
            b'c' => 1,
            b'w' => 2,
            b'b' => 512,
            b'k' => 1 << 10,
            b'M' => 1 << 20,
            b'G' => 1 << 30,
            _ => return Amount::parse(text, 512),
        };
        Amount::parse(&text[..text.len() - 1], unit)
    }

    /// Compares a value in units, rounded up.
    fn fits_rounded_up(&self, value: u64) -> bool {
        value.div_ceil(self.unit).cmp(&self.count) == self.order
    }

    fn fits(&self, value: u64) -> bool {
        value.cmp(&self.count) == self.order
    }
}

/// What the whole command is to do.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) expr: Expr,
    pub(super) min_depth: usize,
    pub(super) max_depth: usize,
    /// Paths end with a NUL instead of a newline.
    pub(super) with_nul: bool,
}

/// Parses the words after the paths.
pub(super) fn parse(words: &[OsString], fs: &Fs) -> anyhow::Result<Query> {
    let mut parser = Parser { words, at: 0, fs, owners: None, min: 0, max: usize::MAX, with_nul: false, depth: 0 };
    let expr = if words.is_empty() { Expr::True } else { parser.or()? };
    if let Some(word) = parser.peek() {
        anyhow::bail!("find: unexpected `{}`", word.to_string_lossy());
    }
    Ok(Query { expr, min_depth: parser.min, max_depth: parser.max, with_nul: parser.with_nul })
}

struct Parser<'a> {
    words: &'a [OsString],
    at: usize,
    fs: &'a Fs,
    owners: Option<Owners>,
    min: usize,
    max: usize,
    with_nul: bool,
    /// How many parentheses are open.
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&OsString> {
        self.words.get(self.at)
    }

    fn takes(&mut self, any: &[&str]) -> bool {
        let is_it = self.peek().is_some_and(|word| any.iter().any(|text| word == text));
        self.at += usize::from(is_it);
        is_it
    }

    fn or(&mut self) -> anyhow::Result<Expr> {
        let mut any = vec![self.and()?];
        while self.takes(&["-o", "-or"]) {
            any.push(self.and()?);
        }
        Ok(Expr::Or(any))
    }

    fn and(&mut self) -> anyhow::Result<Expr> {
        let mut all = vec![self.not()?];
        loop {
            let is_explicit = self.takes(&["-a", "-and"]);
            let ends = self.peek().is_none_or(|word| [")", "-o", "-or"].iter().any(|end| word == end));
            if ends && !is_explicit {
                return Ok(Expr::And(all));
            }
            all.push(self.not()?);
        }
    }

    fn not(&mut self) -> anyhow::Result<Expr> {
        // A loop: a command line may have thousands of them.
        let mut odd = false;
        while self.takes(&["!", "-not"]) {
            odd = !odd;
        }
        let expr = self.primary()?;
        Ok(if odd { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn primary(&mut self) -> anyhow::Result<Expr> {
        let Some(word) = self.peek() else { anyhow::bail!("find: an expression is missing at the end") };
        let name = word.to_string_lossy().into_owned();
        self.at += 1;
        Ok(match name.as_str() {
            "(" => {
                anyhow::ensure!(self.depth < DEEPEST, "find: more than {DEEPEST} parentheses inside each other");
                self.depth += 1;
                let inside = self.or()?;
                self.depth -= 1;
                anyhow::ensure!(self.takes(&[")"]), "find: `)` is missing");
                inside
            }
            "-name" => Expr::Name(self.bytes(&name)?, Case::Same),
            "-iname" => Expr::Name(self.bytes(&name)?, Case::Any),
            "-path" | "-wholename" => Expr::Path(self.bytes(&name)?, Case::Same),
            "-ipath" => Expr::Path(self.bytes(&name)?, Case::Any),
            "-lname" => Expr::Target(self.bytes(&name)?),
            "-type" => Expr::Kind(self.value(&name, kinds)?),
            "-size" => Expr::Size(self.value(&name, Amount::of_size)?),
            "-links" => Expr::Links(self.value(&name, |text| Amount::parse(text, 1))?),
            "-mtime" => Expr::Days(self.value(&name, |text| Amount::parse(text, 1))?),
            "-inum" => Expr::Inode(self.value(&name, |text| text.parse().ok())?),
            "-perm" => {
                let (mode, bits) = self.value(&name, mode)?;
                Expr::Mode(mode, bits)
            }
            "-newer" => self.newer()?,
            "-newermt" => Expr::Newer(self.value(&name, date)?),
            "-user" | "-uid" => Expr::Uid(self.owner(&name, Owners::user_id)?),
            "-group" | "-gid" => Expr::Gid(self.owner(&name, Owners::group_id)?),
            "-nouser" => Expr::NoUser,
            "-nogroup" => Expr::NoGroup,
            "-empty" => Expr::Empty,
            "-prune" => Expr::Prune,
            "-true" | "-print" => Expr::True,
            "-print0" => {
                self.with_nul = true;
                Expr::True
            }
            "-maxdepth" => {
                self.max = self.value(&name, |text| text.parse().ok())?;
                Expr::True
            }
            "-mindepth" => {
                self.min = self.value(&name, |text| text.parse().ok())?;
                Expr::True
            }
            other => anyhow::bail!("find: unknown predicate `{other}`"),
        })
    }

    fn bytes(&mut self, predicate: &str) -> anyhow::Result<Vec<u8>> {
        let Some(word) = self.words.get(self.at) else { anyhow::bail!("find: {predicate} needs an argument") };
        self.at += 1;
        Ok(word.as_bytes().to_vec())
    }

    fn value<T>(&mut self, predicate: &str, parse: impl FnOnce(&str) -> Option<T>) -> anyhow::Result<T> {
        let text = String::from_utf8_lossy(&self.bytes(predicate)?).into_owned();
        parse(&text).ok_or_else(|| anyhow::anyhow!("find: invalid argument `{text}` to {predicate}"))
    }

    fn newer(&mut self) -> anyhow::Result<Expr> {
        let path = self.bytes("-newer")?;
        let failed = |e: PathError| anyhow::anyhow!("find: {}: {e}", crate::name::show(&path));
        Ok(Expr::Newer(nanoseconds(&resolve(self.fs, &path, true).map_err(failed)?)))
    }

    fn owner(&mut self, name: &str, find: fn(&Owners, &str) -> Option<u32>) -> anyhow::Result<u32> {
        let text = String::from_utf8_lossy(&self.bytes(name)?).into_owned();
        let owners = self.owners.get_or_insert_with(|| Owners::of(self.fs));
        find(owners, &text).ok_or_else(|| anyhow::anyhow!("find: the image has no `{text}` for {name}"))
    }
}

/// Parses `-type`: letters, with commas between them.
fn kinds(text: &str) -> Option<Vec<Kind>> {
    let one = |letter: &str| match letter {
        "f" => Some(Kind::File),
        "d" => Some(Kind::Dir),
        "l" => Some(Kind::Symlink),
        "c" => Some(Kind::Char),
        "b" => Some(Kind::Block),
        "p" => Some(Kind::Fifo),
        "s" => Some(Kind::Socket),
        _ => None,
    };
    text.split(',').map(one).collect()
}

/// Parses `-perm` with an octal mode.
fn mode(text: &str) -> Option<(u16, Bits)> {
    let (bits, digits) = match text.as_bytes().first()? {
        b'-' => (Bits::All, &text[1..]),
        b'/' => (Bits::Any, &text[1..]),
        _ => (Bits::Exactly, text),
    };
    u16::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777).map(|mode| (mode, bits))
}

/// Parses a date, with or without a time, in the local time zone unless it names another.
fn date(text: &str) -> Option<i128> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_nanosecond());
    }
    let civil: DateTime = text.parse().ok()?;
    Some(civil.to_zoned(TimeZone::system()).ok()?.timestamp().as_nanosecond())
}

/// The modification time in nanoseconds since 1970.
fn nanoseconds(attr: &Attr) -> i128 {
    i128::from(attr.mtime.sec) * 1_000_000_000 + i128::from(attr.mtime.nsec)
}

/// A file that an expression is applied to.
pub(super) struct File<'a> {
    pub(super) fs: &'a Fs,
    pub(super) path: &'a [u8],
    pub(super) attr: &'a Attr,
    pub(super) owners: &'a Owners,
    /// The time now, in nanoseconds since 1970.
    pub(super) now: i128,
    /// Set by `-prune`.
    pub(super) pruned: bool,
}

impl Expr {
    /// Whether a file fits.
    pub(super) fn fits(&self, file: &mut File) -> anyhow::Result<bool> {
        let attr = file.attr;
        Ok(match self {
            Expr::True => true,
            Expr::Not(inside) => !inside.fits(file)?,
            Expr::And(all) => {
                for one in all {
                    if !one.fits(file)? {
                        return Ok(false);
                    }
                }
                true
            }
            Expr::Or(any) => {
                for one in any {
                    if one.fits(file)? {
                        return Ok(true);
                    }
                }
                false
            }
            Expr::Name(pattern, case) => fits(pattern, last(file.path), *case == Case::Any),
            Expr::Path(pattern, case) => fits(pattern, file.path, *case == Case::Any),
            Expr::Target(pattern) => attr.kind == Kind::Symlink && fits(pattern, &file.fs.readlink(attr.ino)?, false),
            Expr::Kind(kinds) => kinds.contains(&attr.kind),
            Expr::Size(amount) => amount.fits_rounded_up(attr.size),
            Expr::Newer(than) => nanoseconds(attr) > *than,
            Expr::Days(amount) => {
                let days = (file.now - nanoseconds(attr)).div_euclid(86_400_000_000_000);
                amount.fits(u64::try_from(days).unwrap_or_default())
            }
            Expr::Links(amount) => amount.fits(attr.nlink.into()),
            Expr::Uid(id) => attr.uid == *id,
            Expr::Gid(id) => attr.gid == *id,
            Expr::NoUser => !file.owners.has_user(attr.uid),
            Expr::NoGroup => !file.owners.has_group(attr.gid),
            Expr::Inode(number) => attr.ino == *number,
            Expr::Mode(mode, Bits::Exactly) => attr.mode == *mode,
            Expr::Mode(mode, Bits::All) => attr.mode & mode == *mode,
            Expr::Mode(mode, Bits::Any) => *mode == 0 || attr.mode & mode != 0,
            Expr::Empty => match attr.kind {
                Kind::File => attr.size == 0,
                Kind::Dir => crate::browse::entries(file.fs, attr)?.is_empty(),
                _ => false,
            },
            Expr::Prune => {
                file.pruned = true;
                true
            }
        })
    }
}

/// The last component of a path; `/` for the root.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()).unwrap_or(b"/")
}
