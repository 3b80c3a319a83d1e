//! Layer compression for push: gzip or zstd, reproducible: the same tar always gives the same bytes with this program.

use flate2::GzBuilder;
use std::io::{self, Read, Write};
use std::str::FromStr;

const BUFFER: usize = 256 << 10;

/// Compression format of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// gzip, which every registry and tool supports.
    Gzip,
    /// zstd, smaller and faster; not supported by old tools.
    Zstd,
}

impl Compression {
    /// Name for users and in media types.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }

    /// The default level and the range of levels.
    pub fn levels(self) -> (u32, std::ops::RangeInclusive<u32>) {
        match self {
            Compression::Gzip => (6, 1..=9),
            Compression::Zstd => (3, 1..=20),
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Compression, String> {
        match text {
            "gzip" => Ok(Compression::Gzip),
            "zstd" => Ok(Compression::Zstd),
            _ => Err(format!("unknown compression `{text}`: wanted gzip or zstd")),
        }
    }
}

/// Compresses all of `tar` into `out`.
pub(super) fn pack(mut tar: impl Read, how: Compression, level: u32, out: impl Write) -> io::Result<()> {
    match how {
        Compression::Gzip => {
            // No file name and no time in the header: the bytes depend on the content only.
            let mut packer = GzBuilder::new().write(out, flate2::Compression::new(level));
            copy(&mut tar, &mut packer)?;
            packer.finish()?.flush()
        }
        Compression::Zstd => {
            let mut packer = zstd::stream::write::Encoder::new(out, i32::try_from(level).unwrap_or(3))?;
            packer.include_checksum(true)?;
            copy(&mut tar, &mut packer)?;
            packer.finish()?.flush()
        }
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inflate::Inflate;
    use super::*;
    use crate::image::Problem;

    #[test]
    fn packed_layers_come_out_as_they_were_and_always_the_same() {
        let tar: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7 % 251) as u8).collect();
        for how in [Compression::Gzip, Compression::Zstd] {
            let (level, levels) = how.levels();
            assert!(levels.contains(&level));
            let packed = || {
                let mut out = Vec::new();
                pack(&tar[..], how, level, &mut out).unwrap();
                out
            };
            let first = packed();
            assert!(first.len() < tar.len() / 10 && first == packed());
            let wrap = |cause| Problem::Read { what: "test".into(), cause };
            let mut plain = Vec::new();
            let mut inflate = Inflate::new(&first[..], wrap).unwrap();
            assert_eq!(inflate.kind().name(), how.name());
            inflate.read_to_end(&mut plain).unwrap();
            assert!(plain == tar);
        }
    }
}
