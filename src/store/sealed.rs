//! Sealed state files: JSON objects whose last member is a checksum of all bytes before it.
//!
//! A changed bit often leaves valid JSON with another name or digest in it; the checksum detects that. Files written by
//! earlier versions have none and are read without; the next write adds it.

use super::{Error, Result, publish};
use crate::digest::Digest;
use crate::sys;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest state file, in bytes. A catalog of 100,000 images is smaller.
const CAP: u64 = 256 << 20;
const KEY: &[u8] = b",\n  \"checksum\": \"";
const END: &str = "\"\n}\n";

/// Content of a state file.
#[derive(Debug)]
pub(super) struct Sealed<T> {
    pub(super) value: T,
    /// Whether it had a checksum; a wrong one is an error.
    pub(super) is_sealed: bool,
}

/// Encodes `value`, which must serialize to a JSON object with members, as a state file. `path` is for the error.
pub(super) fn encode<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>> {
    let bad = |why: String| Error::State { path: path.to_owned(), why };
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| bad(e.to_string()))?;
    if !bytes.ends_with(b"\n}") {
        return Err(bad("cannot be written as a JSON object".into()));
    }
    bytes.truncate(bytes.len() - 2);
    let checksum = Digest::of(&bytes);
    bytes.extend_from_slice(KEY);
    bytes.extend_from_slice(checksum.to_string().as_bytes());
    bytes.extend_from_slice(END.as_bytes());
    Ok(bytes)
}

/// Decodes a state file's bytes; the error says why they cannot be trusted.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<Sealed<T>, String> {
    let body = bytes.windows(KEY.len()).rposition(|window| window == KEY);
    if let Some(body) = body {
        let seal = format!("{}{END}", Digest::of(&bytes[..body]));
        if bytes[body + KEY.len()..] != *seal.as_bytes() {
            return Err("its checksum is wrong".into());
        }
    }
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    let value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok(Sealed { value, is_sealed: body.is_some() })
}

/// Reads the bytes of the state file at `path`; `None` if there is no such file. Anything but a regular file is an
/// error, and a symbolic link is not followed: plyfs creates none here.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::LOOP) => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is a symbolic link"));
        }
        Err(e) => return Err(e),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    publish::read_capped(file, CAP).map(Some)
}

/// Runs [`read`] and [`decode`], for a file that may lack the checksum.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bad = |why: String| Error::State { path: path.to_owned(), why };
    let unread = |e: io::Error| if sys::is_callers(&e) { Error::io("read", path)(e) } else { bad(sys::describe(&e)) };
    let Some(bytes) = read(path).map_err(unread)? else { return Ok(None) };
    decode(&bytes).map(|sealed| Some(sealed.value)).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct State {
        name: String,
        numbers: Vec<u32>,
    }

    #[test]
    fn no_changed_byte_gives_another_value() {
        let state = State { name: "web".into(), numbers: vec![1, 20, 300] };
        let whole = encode(&state, Path::new("state.json")).unwrap();
        let plain: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!(plain["name"], "web");
        assert!(decode::<State>(&whole).unwrap().is_sealed);
        for at in 0..whole.len() {
            for bits in 1..=255 {
                let mut damaged = whole.clone();
                damaged[at] ^= bits;
                let found = decode::<State>(&damaged);
                assert!(found.is_err() || found.unwrap().value == state, "byte {at} ^ {bits}");
            }
            assert!(decode::<State>(&whole[..at]).is_err(), "{at} bytes are left");
        }
        let old = serde_json::to_vec(&state).unwrap();
        let old = decode::<State>(&old).unwrap();
        assert!(!old.is_sealed && old.value == state);
    }

    #[test]
    fn only_a_regular_file_is_a_state_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert!(load::<State>(&path).unwrap().is_none());
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &path).unwrap();
        assert!(load::<State>(&path).unwrap_err().to_string().contains("symbolic link"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(load::<State>(&path).unwrap_err().to_string().contains("not a regular file"));
    }
}
