//! Colours of names on a terminal, by LS_COLORS (dircolors(5)).

use crate::fs::Attr;
use crate::meta::Kind;
use std::collections::HashMap;
use std::io::IsTerminal;

/// What `ls` uses if LS_COLORS is not set.
const DEFAULT: &str =
    "di=01;34:ln=01;36:pi=33:so=01;35:bd=01;33:cd=01;33:or=:su=37;41:sg=30;43:tw=30;42:ow=34;42:st=37;44:ex=01;32";

/// The colours, if any.
pub(super) struct Colors(Option<HashMap<String, String>>);

impl Colors {
    /// Reads the environment: no colours unless standard output is a terminal, and none if NO_COLOR is set.
    pub(super) fn of_environment() -> Colors {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if is_set("NO_COLOR") || is_dumb || !std::io::stdout().is_terminal() {
            return Colors(None);
        }
        let text = std::env::var("LS_COLORS").ok().filter(|text| !text.is_empty());
        Colors(Some(parse(text.as_deref().unwrap_or(DEFAULT))))
    }

    /// Returns what to write before and after a name.
    pub(super) fn around(&self, name: &[u8], attr: &Attr, has_capabilities: bool) -> (String, &'static str) {
        let Some(colors) = &self.0 else { return (String::new(), "") };
        match color(colors, name, attr, has_capabilities) {
            Some(color) => (format!("\x1b[{color}m"), "\x1b[0m"),
            None => (String::new(), ""),
        }
    }
}

fn parse(text: &str) -> HashMap<String, String> {
    let is_color = |value: &str| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit() || byte == b';');
    let pairs = text.split(':').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(_, value)| is_color(value)).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn color<'a>(
    colors: &'a HashMap<String, String>,
    name: &[u8],
    attr: &Attr,
    has_capabilities: bool,
) -> Option<&'a String> {
    let bit = |bit: u16| attr.mode & bit != 0;
    let keys: &[&str] = match attr.kind {
        Kind::Dir if bit(0o1000) && bit(0o002) => &["tw", "di"],
        Kind::Dir if bit(0o002) => &["ow", "di"],
        Kind::Dir if bit(0o1000) => &["st", "di"],
        Kind::Dir => &["di"],
        Kind::Symlink => &["ln"],
        Kind::Fifo => &["pi"],
        Kind::Socket => &["so"],
        Kind::Block => &["bd"],
        Kind::Char => &["cd"],
        Kind::File if bit(0o4000) && colors.contains_key("su") => &["su"],
        Kind::File if bit(0o2000) && colors.contains_key("sg") => &["sg"],
        Kind::File if has_capabilities && colors.contains_key("ca") => &["ca"],
        Kind::File if bit(0o111) && colors.contains_key("ex") => &["ex"],
        Kind::File => return extension(colors, name).or_else(|| colors.get("fi")),
    };
    keys.iter().find_map(|key| colors.get(*key))
}

/// Finds the colour of `*SUFFIX`, the longest that fits.
fn extension<'a>(colors: &'a HashMap<String, String>, name: &[u8]) -> Option<&'a String> {
    let dots = name.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
    let suffixes = dots.filter_map(|at| str::from_utf8(&name[at..]).ok());
    suffixes.into_iter().find_map(|suffix| colors.get(&format!("*{suffix}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_coloured_by_kind_mode_and_suffix() {
        let colors = parse("di=01;34:ex=32:*.tar=31:*.tar.gz=33:evil=\x1b[2J:ln=target");
        let attr = |kind, mode| Attr { kind, mode, ..ATTR };
        let of = |name: &[u8], kind, mode| color(&colors, name, &attr(kind, mode), false).map(String::as_str);
        assert_eq!(of(b"x", Kind::Dir, 0o755), Some("01;34"));
        assert_eq!(of(b"x", Kind::File, 0o755), Some("32"));
        assert_eq!(of(b"a.b.tar.gz", Kind::File, 0o644), Some("33"));
        assert_eq!(of(b"a.tar", Kind::File, 0o644), Some("31"));
        assert_eq!(of(b"x", Kind::Symlink, 0o777), None);
        assert!(!colors.contains_key("evil"));
    }

    const TIME: crate::meta::Time = crate::meta::Time { sec: 0, nsec: 0 };
    const ATTR: Attr = Attr {
        ino: 1,
        kind: Kind::File,
        mode: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: TIME,
        mtime: TIME,
        ctime: TIME,
    };
}
