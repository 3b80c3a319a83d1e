//! Content digests (`sha256:...`): parsing, hashing, and verification of streams.
//!
//! [`Digest`] is the only type that may become part of a path in the store: its grammar admits an algorithm from a
//! closed list and lower-case hex of exactly the right length, so no separator and no `..` can get into a path
//! (CVE-2024-3727 is the result of not checking).

use sha2::Digest as _;
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

/// The hash functions that the OCI image specification registers and plyfs accepts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Algorithm {
    /// `sha256`, 64 hex digits.
    Sha256,
    /// `sha512`, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// Returns the name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Computes the digest of `bytes`.
    pub fn digest_of(self, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }

    fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A validated content digest, `sha256:<64 hex>` or `sha512:<128 hex>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// The text is not a valid digest.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a digest (wanted sha256: and 64, or sha512: and 128, lower-case hex digits)")]
pub struct ParseDigestError(String);

impl Digest {
    /// Computes the sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Algorithm::Sha256.digest_of(bytes)
    }

    /// Returns the hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the lower-case hex digits, without the algorithm: safe as a file name.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Returns the first twelve hex digits, for display.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        let bad = || ParseDigestError(text.chars().take(160).collect());
        let (name, hex) = text.split_once(':').ok_or_else(bad)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(bad()),
        };
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !digits || hex.len() != algorithm.hex_len() {
            return Err(bad());
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running hash.
#[derive(Clone)]
pub enum Hasher {
    /// A running sha256.
    Sha256(sha2::Sha256),
    /// A running sha512.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Creates a hash of no bytes.
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    /// Returns the digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest { algorithm: Algorithm::Sha256, hex: hex(&h.finalize()) },
            Hasher::Sha512(h) => Digest { algorithm: Algorithm::Sha512, hex: hex(&h.finalize()) },
        }
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char])
        .collect::<String>()
        .into()
}

/// Why a stream does not match its descriptor.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Fewer bytes than the descriptor's size.
    #[error("has {got} bytes, its descriptor has {want}")]
    Short {
        /// The descriptor's size.
        want: u64,
        /// The bytes received.
        got: u64,
    },
    /// More bytes than the descriptor's size.
    #[error("is longer than {want} bytes, the size in its descriptor")]
    Long {
        /// The descriptor's size.
        want: u64,
    },
    /// The digest differs.
    #[error("has digest {got}, its descriptor has {want}")]
    Digest {
        /// The descriptor's digest.
        want: Digest,
        /// The digest of the received bytes.
        got: Digest,
    },
}

/// A reader that verifies a stream against its descriptor. It never yields a byte past the descriptor's size; a short
/// stream, an extra byte or a wrong digest is an [`io::Error`] of kind `InvalidData` with a [`VerifyError`], at the
/// latest when the inner stream ends. A caller that stops before the end must call [`Verifier::drain`].
pub struct Verifier<R> {
    inner: R,
    hasher: Option<Hasher>,
    want: Digest,
    size: u64,
    got: u64,
}

impl<R: Read> Verifier<R> {
    /// Verifies `inner` against `want` and a size of `size` bytes.
    pub fn new(inner: R, want: &Digest, size: u64) -> Verifier<R> {
        Verifier { inner, hasher: Some(Hasher::new(want.algorithm())), want: want.clone(), size, got: 0 }
    }

    /// Reads the rest, so that size and digest are verified although the caller stopped early.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    fn end(&mut self) -> Result<(), VerifyError> {
        if self.got < self.size {
            return Err(VerifyError::Short { want: self.size, got: self.got });
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(got) if got != self.want => Err(VerifyError::Digest { want: self.want.clone(), got }),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Verifier<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let invalid = |e: VerifyError| io::Error::new(io::ErrorKind::InvalidData, e);
        let n = self.inner.read(buf)?;
        if n == 0 {
            self.end().map_err(invalid)?;
            return Ok(0);
        }
        self.got += n as u64;
        if self.got > self.size {
            return Err(invalid(VerifyError::Long { want: self.size }));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        Ok(n)
    }
}

impl Write for Hasher {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_match_known_answers() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::of(b"abc").short(), "ba7816bf8f01");
    }

    #[test]
    fn only_the_exact_grammar_is_accepted() {
        assert!(EMPTY.parse::<Digest>().is_ok());
        let upper = EMPTY.to_uppercase();
        for bad in ["", "sha256", "sha256:", "md5:00", "sha256:../../etc", &EMPTY[..70], upper.as_str()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad} parsed");
        }
    }

    #[test]
    fn a_stream_is_verified_to_its_end() {
        let want = Digest::of(b"hello");
        let read = |bytes: &'static [u8], size| {
            let mut v = Verifier::new(bytes, &want, size);
            v.drain().map_err(|e| e.to_string())
        };
        assert!(read(b"hello", 5).is_ok());
        assert!(read(b"hell", 5).is_err_and(|e| e.contains("4 bytes")));
        assert!(read(b"hello!", 5).is_err_and(|e| e.contains("longer")));
        assert!(read(b"hullo", 5).is_err_and(|e| e.contains("digest")));
    }
}
