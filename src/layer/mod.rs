//! Stand-in.
use crate::digest::Digest;
use crate::sys::Bytes;
use std::io::{self, BufRead};

/// Format.
pub const FORMAT: u32 = 0;

/// Limits.
#[derive(Default)]
pub struct Limits {}

/// Error.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Stream.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Entry.
    #[error("{0}")]
    Bad(String),
}

/// Error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IndexError(String);

/// Draft.
pub struct Draft(u64);

impl Draft {
    /// Seal.
    pub fn seal(self, diff_id: &Digest) -> Vec<u8> {
        sealed(diff_id)
    }
    /// Entries.
    pub fn entries(&self) -> u64 {
        self.0
    }
    /// Warnings.
    pub fn warnings(&self) -> &[String] {
        &[]
    }
}

pub(crate) fn sealed(of: &Digest) -> Vec<u8> {
    let body = format!("standin {of}\n");
    let sum = Digest::of(body.as_bytes());
    format!("{body}{sum}\n").into_bytes()
}

/// Index.
pub struct Index(Digest, bool);

impl Index {
    /// Open.
    pub fn open(bytes: Bytes) -> Result<Index, IndexError> {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let d = text.lines().next().and_then(|l| l.strip_prefix("standin ")).and_then(|d| d.parse::<Digest>().ok());
        let d = d.ok_or_else(|| IndexError("bad header".into()))?;
        let ok = sealed(&d) == bytes[..];
        Ok(Index(d, ok))
    }
    /// Check.
    pub fn check(&self) -> Result<(), IndexError> {
        if self.1 { Ok(()) } else { Err(IndexError("bad checksum".into())) }
    }
    /// Source.
    pub fn source(&self) -> &Digest {
        &self.0
    }
}

/// Index.
pub fn index_tar<R: BufRead>(tar: &mut R, _limits: &Limits) -> Result<Draft, LayerError> {
    let mut n = 0;
    {
        let mut archive = tar::Archive::new(&mut *tar);
        for entry in archive.entries()? {
            let entry = entry?;
            let path = entry.path_bytes().into_owned();
            if path.ends_with(b".wh..") {
                return Err(LayerError::Bad(format!("`{}`: a whiteout of `.`", String::from_utf8_lossy(&path))));
            }
            n += 1;
        }
    }
    loop {
        let len = tar.fill_buf()?.len();
        if len == 0 {
            return Ok(Draft(n));
        }
        tar.consume(len);
    }
}
