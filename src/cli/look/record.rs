//! One file as a row of `--format`, for `ls` and `find`.

use super::long::Marks;
use crate::browse::{Owners, join};
use crate::cli::output::format::{Columns, Row};
use crate::fs::{Attr, Fs, FsError};
use crate::meta::{Kind, device_parts};
use crate::name::show;
use jiff::Timestamp;

pub(super) const COLUMNS: Columns = Columns {
    type_name: "*formatter.fileContext",
    fields: &[
        ("ACL", "ACL"),
        ("Capabilities", "CAPABILITIES"),
        ("Device", "DEVICE"),
        ("GID", "GID"),
        ("Group", "GROUP"),
        ("Kind", "KIND"),
        ("Links", "LINKS"),
        ("ModTime", "MODIFIED"),
        ("Mode", "MODE"),
        ("Name", "NAME"),
        ("Path", "PATH"),
        ("Size", "SIZE"),
        ("Target", "TARGET"),
        ("UID", "UID"),
        ("User", "USER"),
    ],
};
pub(super) const TABLE: &str = r"{{.Mode}}\t{{.User}}\t{{.Group}}\t{{.Size}}\t{{.ModTime}}\t{{.Path}}";

/// Returns the row of a file.
pub(super) fn row(fs: &Fs, path: &[u8], attr: &Attr, owners: &Owners) -> Result<Row, FsError> {
    let marks = Marks::of(fs, attr)?;
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let device = match attr.kind {
        Kind::Char | Kind::Block => {
            let (major, minor) = device_parts(attr.rdev);
            format!("{major}:{minor}")
        }
        _ => String::new(),
    };
    let target = match attr.kind {
        Kind::Symlink => show(&fs.readlink(attr.ino)?),
        _ => String::new(),
    };
    Ok(vec![
        marks.acl.to_string(),
        marks.capabilities.to_string(),
        device,
        attr.gid.to_string(),
        show(owners.group(attr.gid).as_bytes()),
        kind_text(attr.kind).to_owned(),
        attr.nlink.to_string(),
        time(attr),
        format!("{:04o}", attr.mode),
        show(name),
        show(path),
        attr.size.to_string(),
        target,
        attr.uid.to_string(),
        show(owners.user(attr.uid).as_bytes()),
    ])
}

pub(super) fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Dir => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Char => "character device",
        Kind::Block => "block device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// Returns the modification time in RFC 3339; seconds since 1970 if it has no such form.
pub(super) fn time(attr: &Attr) -> String {
    let nanoseconds = i32::try_from(attr.mtime.nsec).unwrap_or_default();
    Timestamp::new(attr.mtime.sec, nanoseconds).map_or_else(|_| attr.mtime.sec.to_string(), |time| time.to_string())
}

/// Makes a path absolute.
pub(super) fn absolute(path: &[u8]) -> Vec<u8> {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(start, |at| at + 1);
    join(b"/", &path[start..end])
}
