//! Lines of `ls -l`: mode, links, owner, group, size, time, name and target, aligned.

use crate::browse::{Owners, mode_text};
use crate::fs::{ACCESS_ACL, Attr, DEFAULT_ACL, Fs, FsError};
use crate::meta::{Kind, device_parts};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt::Write as _;

/// Half of a mean Gregorian year in seconds: an older time is shown with its year.
const RECENT: i64 = 31_556_952 / 2;
/// The attribute of a file's capabilities (capabilities(7)).
const CAPABILITIES: &[u8] = b"security.capability";

/// How owners and sizes are shown, and times.
pub(super) struct Style {
    /// Owners as numbers if `None`.
    pub(super) owners: Option<Owners>,
    /// Sizes with units.
    pub(super) human: bool,
    /// The local time zone, read when the first time is shown: that takes longer than the rest of a short listing.
    zone: Option<TimeZone>,
    now: i64,
    /// The last time that was formatted: entries of a layer often have the same.
    last: Option<(i64, String)>,
}

/// The columns of one entry.
pub(super) struct Line {
    mode: String,
    links: String,
    user: String,
    group: String,
    /// A device's major number.
    major: String,
    /// Size, or a device's minor number.
    size: String,
    time: String,
}

/// Attributes that are not in [`Attr`].
#[derive(Clone, Copy, Default)]
pub(super) struct Marks {
    pub(super) acl: bool,
    pub(super) capabilities: bool,
}

impl Marks {
    /// Reads which of the attributes an inode has. An image without any is not asked.
    pub(super) fn of(fs: &Fs, attr: &Attr) -> Result<Marks, FsError> {
        if attr.kind == Kind::Symlink {
            return Ok(Marks::default());
        }
        let has = |name: &[u8]| match fs.getxattr(attr.ino, name) {
            Ok(_) => Ok(true),
            Err(FsError::NoAttribute | FsError::Unsupported) => Ok(false),
            Err(error) => Err(error),
        };
        let acl = has(ACCESS_ACL)? || attr.kind == Kind::Dir && has(DEFAULT_ACL)?;
        Ok(Marks { acl, capabilities: attr.kind == Kind::File && has(CAPABILITIES)? })
    }
}

impl Style {
    pub(super) fn new(owners: Option<Owners>, human: bool) -> Style {
        Style { owners, human, zone: None, now: Timestamp::now().as_second(), last: None }
    }

    /// Formats a size or a number of bytes.
    pub(super) fn size(&self, bytes: u64) -> String {
        if self.human { human(bytes) } else { bytes.to_string() }
    }

    /// Formats a time as `ls -l` does in the C locale.
    fn time(&mut self, sec: i64) -> String {
        if let Some((last, text)) = &self.last
            && *last == sec
        {
            return text.clone();
        }
        let is_recent = sec <= self.now && sec > self.now - RECENT;
        let text = match Timestamp::from_second(sec) {
            Ok(time) => {
                let zone = self.zone.get_or_insert_with(TimeZone::system).clone();
                let format = if is_recent { "%b %e %H:%M" } else { "%b %e  %Y" };
                time.to_zoned(zone).strftime(format).to_string()
            }
            Err(_) => sec.to_string(),
        };
        self.last = Some((sec, text.clone()));
        text
    }

    /// Returns an entry's columns.
    pub(super) fn line(&mut self, attr: &Attr, marks: Marks) -> Line {
        let (user, group) = match &self.owners {
            Some(owners) => (owners.user(attr.uid), owners.group(attr.gid)),
            None => (attr.uid.to_string(), attr.gid.to_string()),
        };
        let (major, size) = match attr.kind {
            Kind::Char | Kind::Block => {
                let (major, minor) = device_parts(attr.rdev);
                (format!("{major},"), minor.to_string())
            }
            _ => (String::new(), self.size(attr.size)),
        };
        let mark = if marks.acl { "+" } else { "" };
        Line {
            mode: mode_text(attr.kind, attr.mode) + mark,
            links: attr.nlink.to_string(),
            user: crate::name::show(user.as_bytes()),
            group: crate::name::show(group.as_bytes()),
            major,
            size,
            time: self.time(attr.mtime.sec),
        }
    }
}

/// The widths of the columns of a listing.
#[derive(Default)]
pub(super) struct Widths {
    mode: usize,
    links: usize,
    user: usize,
    group: usize,
    major: usize,
    size: usize,
}

impl Widths {
    pub(super) fn of<'a>(lines: impl Iterator<Item = &'a Line>) -> Widths {
        let mut widths = Widths::default();
        let wider = |width: &mut usize, text: &str| *width = (*width).max(text.chars().count());
        // As in ls, the minor number has a width of its own, and both together are as wide as the widest size.
        let (mut minor, mut bytes) = (0, 0);
        for line in lines {
            wider(&mut widths.mode, &line.mode);
            wider(&mut widths.links, &line.links);
            wider(&mut widths.user, &line.user);
            wider(&mut widths.group, &line.group);
            wider(&mut widths.major, &line.major);
            wider(if line.major.is_empty() { &mut bytes } else { &mut minor }, &line.size);
        }
        if widths.major > 0 {
            widths.size = bytes.max(widths.major + 1 + minor);
            widths.major = widths.size - minor - 1;
        } else {
            widths.size = bytes;
        }
        widths
    }
}

impl Line {
    /// Appends the columns before the name.
    pub(super) fn write(&self, widths: &Widths, out: &mut String) {
        let (mode, links, user, group) = (widths.mode, widths.links, widths.user, widths.group);
        // Writing to a String cannot fail.
        let _infallible = write!(out, "{:mode$} {:>links$} ", self.mode, self.links);
        for (owner, width) in [(&self.user, user), (&self.group, group)] {
            // As in ls: names to the left, numbers to the right.
            let is_number = owner.bytes().all(|byte| byte.is_ascii_digit());
            let _infallible = if is_number { write!(out, "{owner:>width$} ") } else { write!(out, "{owner:width$} ") };
        }
        let _infallible = if self.major.is_empty() {
            write!(out, "{:>width$}", self.size, width = widths.size)
        } else {
            let minor = widths.size - widths.major - 1;
            write!(out, "{:>major$} {:>minor$}", self.major, self.size, major = widths.major)
        };
        let _infallible = write!(out, " {} ", self.time);
    }
}

/// Formats bytes as `ls -h` and `du -h` do: powers of 1024, rounded up, with one decimal below 10.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: &[u8] = b"KMGTPE";
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut unit = 0;
    let mut size = u128::from(bytes);
    let mut scale = 1024u128;
    // The next unit as soon as this one would need four digits.
    while unit + 1 < UNITS.len() && size.div_ceil(scale) >= 1024 {
        unit += 1;
        scale *= 1024;
    }
    size *= 10;
    let tenths = size.div_ceil(scale);
    let letter = char::from(UNITS[unit]);
    if tenths < 100 {
        format!("{}.{}{letter}", tenths / 10, tenths % 10)
    } else {
        format!("{}{letter}", tenths.div_ceil(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_as_coreutils_do() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10_137, "9.9K"),
            (10_138, "10K"),
            (10_240, "10K"),
            (10_241, "11K"),
            (1_047_553, "1.0M"),
            (1_047_552, "1023K"),
            (1 << 30, "1.0G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
