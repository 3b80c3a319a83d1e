//! Layer streams made plain: the compression is judged by the first bytes, whatever the media type says.

use super::Problem;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

const INPUT_BUFFER: usize = 128 << 10;

/// How a stream is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Plain,
    Gzip,
    Zstd,
}

impl Kind {
    fn of(head: &[u8]) -> Result<Kind, Problem> {
        let unsupported = |what: &str| {
            Err(Problem::Document(format!("is compressed with {what}, which is not supported (gzip and zstd are)")))
        };
        match head {
            [0x1f, 0x8b, 0x08, ..] => Ok(Kind::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Kind::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => unsupported("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => unsupported("bzip2"),
            _ => Ok(Kind::Plain),
        }
    }

    /// The name for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Gzip => "gzip",
            Kind::Zstd => "zstd",
        }
    }
}

type Headed<R> = Chain<Cursor<Vec<u8>>, BufReader<R>>;

/// A stream made plain: all members of a gzip stream, all frames of a zstd stream.
pub(crate) enum Inflate<R: Read> {
    Plain(Headed<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Headed<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Headed<R>>>),
}

impl<R: Read> Inflate<R> {
    /// Looks at the first bytes of `inner` and picks the decompressor. `wrap` names errors of reading.
    pub(crate) fn new(inner: R, wrap: impl Fn(io::Error) -> Problem) -> Result<Inflate<R>, Problem> {
        let mut reader = BufReader::with_capacity(INPUT_BUFFER, inner);
        let mut head = Vec::with_capacity(8);
        reader.by_ref().take(6).read_to_end(&mut head).map_err(&wrap)?;
        let kind = Kind::of(&head)?;
        let whole = Cursor::new(head).chain(reader);
        Ok(match kind {
            Kind::Plain => Inflate::Plain(whole),
            Kind::Gzip => Inflate::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
            Kind::Zstd => Inflate::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(wrap)?)),
        })
    }

    /// The compression found.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Inflate::Plain(_) => Kind::Plain,
            Inflate::Gzip(_) => Kind::Gzip,
            Inflate::Zstd(_) => Kind::Zstd,
        }
    }

    /// The stream that came in, to read what the decompressor left.
    pub(crate) fn inner_mut(&mut self) -> &mut R {
        match self {
            Inflate::Plain(r) => r.get_mut().1.get_mut(),
            Inflate::Gzip(r) => r.get_mut().get_mut().1.get_mut(),
            Inflate::Zstd(r) => r.get_mut().get_mut().1.get_mut(),
        }
    }

    /// Whether all that was read from the stream has been used too. False when something follows a compressed stream.
    pub(crate) fn used_up(&mut self) -> io::Result<bool> {
        let rest = match self {
            Inflate::Plain(r) => r.fill_buf()?,
            Inflate::Gzip(r) => r.get_mut().fill_buf()?,
            Inflate::Zstd(r) => r.get_mut().fill_buf()?,
        };
        Ok(rest.is_empty())
    }
}

impl<R: Read> Read for Inflate<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Inflate::Plain(r) => r.read(buf),
            Inflate::Gzip(r) => r.read(buf),
            Inflate::Zstd(r) => r.read(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn inflate(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let wrap = |cause| Problem::Read { what: "test".into(), cause };
        let mut plain = Vec::new();
        let mut inflate = Inflate::new(bytes, wrap).map_err(|e| e.to_string())?;
        inflate.read_to_end(&mut plain).map_err(|e| e.to_string())?;
        assert!(inflate.used_up().unwrap());
        Ok(plain)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_and_frames_follow_one_another() {
        let big = vec![7u8; 1 << 20];
        let two = [gzip(b"one "), gzip(&big)].concat();
        assert_eq!(inflate(&two).unwrap(), [b"one ".as_slice(), &big].concat());
        let frames = [zstd::encode_all(&b"one "[..], 3).unwrap(), zstd::encode_all(&big[..], 3).unwrap()].concat();
        assert_eq!(inflate(&frames).unwrap(), [b"one ".as_slice(), &big].concat());
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &frames].concat();
        assert_eq!(inflate(&skippable).unwrap().len(), 4 + big.len());
        assert_eq!(inflate(b"").unwrap(), b"");
        assert_eq!(inflate(b"abc").unwrap(), b"abc");
    }

    #[test]
    fn cut_and_foreign_streams_are_errors() {
        let whole = gzip(&vec![7u8; 1 << 16]);
        assert!(inflate(&whole[..whole.len() - 4]).is_err());
        let frame = zstd::encode_all(&vec![7u8; 1 << 16][..], 3).unwrap();
        assert!(inflate(&frame[..frame.len() - 3]).is_err());
        assert!(inflate(b"\xfd7zXZ\0rest").unwrap_err().contains("xz"));
    }
}
