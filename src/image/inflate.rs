//! Layer decompression: gzip, zstd, xz and bzip2, detected by the first bytes whatever the media type says.

use super::Problem;
use liblzma::stream::{CONCATENATED, Stream};
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

const INPUT_BUFFER: usize = 128 << 10;
/// Memory limit of the xz decoder, in bytes: a stream's header states the size of its dictionary, up to 4 GiB, and `xz
/// -9` takes 64 MiB. The decoder needs a little more than the dictionary.
const XZ_MEMORY: u64 = (256 << 20) + (1 << 20);

/// Compression of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Kind {
    fn of(head: &[u8]) -> Kind {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Kind::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Kind::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Kind::Xz,
            // The magic number of a block, or of the end of a stream without blocks.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, ..] => {
                Kind::Bzip2
            }
            _ => Kind::Plain,
        }
    }

    /// Name for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Gzip => "gzip",
            Kind::Zstd => "zstd",
            Kind::Xz => "xz",
            Kind::Bzip2 => "bzip2",
        }
    }
}

type Headed<R> = Chain<Cursor<Vec<u8>>, BufReader<R>>;

/// A decompressing reader: reads all members of a gzip file, frames of a zstd file, streams of an xz or bzip2 file.
pub(crate) enum Inflate<R: Read> {
    Plain(Headed<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Headed<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Headed<R>>>),
    Xz(Box<liblzma::bufread::XzDecoder<Headed<R>>>),
    Bzip2(Box<bzip2::bufread::MultiBzDecoder<Headed<R>>>),
}

impl<R: Read> Inflate<R> {
    /// Detects the compression by the first bytes of `inner`. `wrap` converts read errors.
    pub(crate) fn new(inner: R, wrap: impl Fn(io::Error) -> Problem) -> Result<Inflate<R>, Problem> {
        let mut reader = BufReader::with_capacity(INPUT_BUFFER, inner);
        let mut head = Vec::with_capacity(8);
        reader.by_ref().take(6).read_to_end(&mut head).map_err(&wrap)?;
        let kind = Kind::of(&head);
        let whole = Cursor::new(head).chain(reader);
        Ok(match kind {
            Kind::Plain => Inflate::Plain(whole),
            Kind::Gzip => Inflate::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
            Kind::Zstd => Inflate::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(wrap)?)),
            Kind::Xz => {
                let decoder = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(|e| wrap(e.into()))?;
                Inflate::Xz(Box::new(liblzma::bufread::XzDecoder::new_stream(whole, decoder)))
            }
            Kind::Bzip2 => Inflate::Bzip2(Box::new(bzip2::bufread::MultiBzDecoder::new(whole))),
        })
    }

    /// The detected compression.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Inflate::Plain(_) => Kind::Plain,
            Inflate::Gzip(_) => Kind::Gzip,
            Inflate::Zstd(_) => Kind::Zstd,
            Inflate::Xz(_) => Kind::Xz,
            Inflate::Bzip2(_) => Kind::Bzip2,
        }
    }

    /// The compressed stream, for reading what the decompressor left.
    pub(crate) fn inner_mut(&mut self) -> &mut R {
        match self {
            Inflate::Plain(r) => r.get_mut().1.get_mut(),
            Inflate::Gzip(r) => r.get_mut().get_mut().1.get_mut(),
            Inflate::Zstd(r) => r.get_mut().get_mut().1.get_mut(),
            Inflate::Xz(r) => r.get_mut().get_mut().1.get_mut(),
            Inflate::Bzip2(r) => r.get_mut().get_mut().1.get_mut(),
        }
    }

    /// Whether all bytes of the stream were used. False if data follows a compressed stream.
    pub(crate) fn used_up(&mut self) -> io::Result<bool> {
        let rest = match self {
            Inflate::Plain(r) => r.fill_buf()?,
            Inflate::Gzip(r) => r.get_mut().fill_buf()?,
            Inflate::Zstd(r) => r.get_mut().fill_buf()?,
            Inflate::Xz(r) => r.get_mut().fill_buf()?,
            Inflate::Bzip2(r) => r.get_mut().fill_buf()?,
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
            Inflate::Xz(r) => r.read(buf).map_err(xz_error),
            Inflate::Bzip2(r) => r.read(buf),
        }
    }
}

/// Names the limit in the error of a stream that exceeds it.
fn xz_error(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<liblzma::stream::Error>());
    if cause != Some(&liblzma::stream::Error::MemLimit) {
        return error;
    }
    io::Error::other("its dictionary is larger than 256 MiB, the limit: compress it with `xz -9` or lower")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn xz(bytes: &[u8]) -> Vec<u8> {
        liblzma::encode_all(bytes, 1).unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn xz_and_bzip2_files_of_several_streams_are_read_to_their_end() {
        let big: Vec<u8> = (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for pack in [xz, bzip2] {
            let whole = [pack(b"one "), pack(&big), pack(b"")].concat();
            assert!(inflate(&whole).unwrap() == [b"one ".as_slice(), &big].concat());
            assert_eq!(inflate(&pack(b"")).unwrap(), b"");
            let mut file = pack(&big);
            for cut in [7, file.len() / 2, file.len() - 1] {
                assert!(inflate(&file[..cut]).is_err(), "cut at {cut}");
            }
            let middle = file.len() / 2;
            file[middle] ^= 1;
            assert!(inflate(&file).is_err(), "a flipped bit");
            assert!(inflate(&[pack(b"one"), b"rest".to_vec()].concat()).is_err(), "something behind the end");
        }
        // Zero padding in multiples of four bytes may follow an xz stream.
        assert_eq!(inflate(&[xz(b"one"), vec![0; 8], xz(b" two"), vec![0; 4]].concat()).unwrap(), b"one two");
    }

    #[test]
    fn an_xz_stream_that_asks_for_too_much_memory_is_refused() {
        let mut file = xz(b"small");
        // Block header: size in words, flags, filter LZMA2, one byte of properties, dictionary size.
        assert_eq!(file[13..16], [0, 0x21, 1]);
        let sized = |file: &mut Vec<u8>, size: u8| {
            file[16] = size;
            let end = 12 + 4 * usize::from(file[12]);
            let mut crc = flate2::Crc::new();
            crc.update(&file[12..end]);
            file[end..end + 4].copy_from_slice(&crc.sum().to_le_bytes());
        };
        sized(&mut file, 30);
        assert_eq!(inflate(&file).unwrap(), b"small", "128 MiB");
        sized(&mut file, 40);
        assert!(inflate(&file).unwrap_err().contains("larger than 256 MiB"), "4 GiB");
    }

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
        assert!(inflate(b"\xfd7zXZ\0rest").is_err());
    }
}
