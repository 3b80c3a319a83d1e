//! Owner, mode and kind of an object: the native ones, or those in an override attribute that container tools share
//! (`user.containers.override_stat` and its variants): `uid:gid:mode[:kind]`.

use super::Raw;
use crate::meta::{Kind, PERMISSION_BITS};
use std::io;

/// Attributes of an object as users see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// The attributes on the backing file system.
    pub raw: Raw,
    /// Kind.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// Whether owner and mode come from the override attribute.
    pub overridden: bool,
}

impl Object {
    /// Builds the attributes from stat(2) and the override attribute, if the object has one; an error if the file type
    /// is unknown.
    pub fn seen(raw: Raw, said: Option<Vec<u8>>) -> io::Result<Object> {
        let object = match said {
            Some(value) => Object::overridden(raw, &value),
            None => Object::native(raw),
        };
        object.ok_or_else(|| io::Error::other("an object with an unknown file type"))
    }

    /// Builds the attributes from stat(2) alone; `None` if the file type is unknown.
    pub fn native(raw: Raw) -> Option<Object> {
        let kind = Kind::of(raw.mode)?;
        let rdev = if matches!(kind, Kind::Char | Kind::Block) { raw.rdev } else { 0 };
        let mode = raw.mode & PERMISSION_BITS;
        Some(Object { raw, kind, mode, uid: raw.uid, gid: raw.gid, rdev, overridden: false })
    }

    /// Builds the attributes with the override applied, if it can be parsed; `None` if the file type is unknown.
    pub fn overridden(raw: Raw, value: &[u8]) -> Option<Object> {
        let native = Object::native(raw)?;
        let Some(said) = parse(value) else { return Some(native) };
        Some(Object {
            kind: said.kind.unwrap_or(native.kind),
            mode: said.mode,
            uid: said.uid,
            gid: said.gid,
            rdev: said.rdev,
            overridden: true,
            raw,
        })
    }
}

/// The parsed override attribute.
#[derive(Debug, PartialEq, Eq)]
struct Override {
    uid: u32,
    gid: u32,
    mode: u32,
    kind: Option<Kind>,
    rdev: u32,
}

fn parse(value: &[u8]) -> Option<Override> {
    let mut fields = str::from_utf8(value).ok()?.trim_end_matches('\0').split(':');
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let mode = u32::from_str_radix(fields.next()?, 8).ok()? & PERMISSION_BITS;
    let (kind, rdev) = match fields.next() {
        None => (None, 0),
        Some(word) => {
            let (kind, rdev) = kind_of(word)?;
            (Some(kind), rdev)
        }
    };
    fields.next().is_none().then_some(Override { uid, gid, mode, kind, rdev })
}

fn kind_of(word: &str) -> Option<(Kind, u32)> {
    let device = |numbers: &str| {
        let (major, minor) = numbers.split_once('-')?;
        crate::meta::device(major.parse().ok()?, minor.parse().ok()?)
    };
    Some(match word {
        "file" => (Kind::File, 0),
        "dir" => (Kind::Dir, 0),
        "symlink" => (Kind::Symlink, 0),
        "pipe" => (Kind::Fifo, 0),
        "socket" => (Kind::Socket, 0),
        _ => match word.split_once('-')? {
            ("block", numbers) => (Kind::Block, device(numbers)?),
            ("char", numbers) => (Kind::Char, device(numbers)?),
            _ => return None,
        },
    })
}

/// Formats the override attribute.
pub fn print(kind: Kind, mode: u32, uid: u32, gid: u32, rdev: u32) -> String {
    let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & !0xff));
    let kind = match kind {
        Kind::File => "file".to_string(),
        Kind::Dir => "dir".to_string(),
        Kind::Symlink => "symlink".to_string(),
        Kind::Fifo => "pipe".to_string(),
        Kind::Socket => "socket".to_string(),
        Kind::Block => format!("block-{major}-{minor}"),
        Kind::Char => format!("char-{major}-{minor}"),
    };
    format!("{uid}:{gid}:{:04o}:{kind}", mode & PERMISSION_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_overrides_parse_back() {
        let devices = [(Kind::Char, 0x503), (Kind::Block, 0xfff0_01ff)];
        let others = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket].map(|kind| (kind, 0));
        for (kind, rdev) in devices.into_iter().chain(others) {
            let said = parse(print(kind, 0o104_755, 7, u32::MAX - 1, rdev).as_bytes()).unwrap();
            assert_eq!(said, Override { uid: 7, gid: u32::MAX - 1, mode: 0o4755, kind: Some(kind), rdev });
        }
    }

    #[test]
    fn overrides_of_other_tools_are_parsed() {
        assert_eq!(parse(b"0:5:100644").unwrap(), Override { uid: 0, gid: 5, mode: 0o644, kind: None, rdev: 0 });
        assert_eq!(parse(b"0:0:755:block-8-1").unwrap().rdev, 0x801);
        for bad in [&b""[..], b"0:0", b"a:0:644", b"0:0:9", b"0:0:644:door", b"0:0:644:char-1", b"0:0:644:file:x"] {
            assert_eq!(parse(bad), None);
        }
    }
}
