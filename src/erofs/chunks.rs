//! Chunks of a file: selects the chunk size of a file, and says for each chunk whether it is a hole, is in the tar or
//! must be copied into the image. Pure arithmetic.

use super::format::{BLOCK, BLOCK_BITS, CHUNK_INDEX};
use std::ops::Range;

/// The most bytes that chunk indexes and copied data of one file may take.
pub const MOST: u64 = 256 << 20;
/// The largest exponent of a chunk size in blocks (EROFS_CHUNK_FORMAT_BLKBITS_MASK).
const MOST_BITS: u8 = 31;

/// A data extent: offset in the file, offset in the tar, length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub logical: u64,
    pub offset: u64,
    pub len: u64,
}

/// A file's data: ascending extents that do not overlap, with holes between them.
pub(super) struct File<'a> {
    pub size: u64,
    pub extents: &'a [Extent],
    /// Length of the tar.
    pub tar: u64,
}

/// One chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chunk {
    Hole,
    /// In the tar, from this block on.
    Tar(u64),
    /// To be copied: a piece of an extent and a piece of a hole, or data that does not begin at a block of the tar.
    Copied,
}

/// A chunk size, by its exponent in blocks, and what it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    pub bits: u8,
    pub chunks: u64,
    /// Number of blocks to be copied.
    pub copied: u64,
}

impl Choice {
    fn cost(&self) -> u64 {
        self.chunks.saturating_mul(CHUNK_INDEX).saturating_add(self.copied.saturating_mul(BLOCK))
    }
}

impl File<'_> {
    /// Selects the chunk size with the smallest cost. `None` if it exceeds [`MOST`].
    pub fn choose(&self) -> Option<Choice> {
        // A chunk of the whole file is the best that there can be, and nearly every file can have it.
        let whole = self.blocks().next_power_of_two().trailing_zeros().min(MOST_BITS.into()) as u8;
        let one = self.choice(whole);
        if one.chunks <= 1 && one.copied == 0 {
            return Some(one);
        }
        let all = (0..=whole).map(|bits| self.choice(bits));
        all.min_by_key(|choice| (choice.cost(), choice.bits)).filter(|choice| choice.cost() <= MOST)
    }

    fn choice(&self, bits: u8) -> Choice {
        let chunks = self.blocks().div_ceil(1 << bits);
        // The copied chunks are counted without looking at each chunk: a file of terabytes has billions.
        let (mut copied, mut next) = (0, 0);
        for (at, extent) in self.extents.iter().enumerate() {
            for range in self.partial_chunks(at, extent, bits) {
                let range = range.start.max(next)..range.end;
                if range.is_empty() {
                    continue;
                }
                copied += blocks_in(&range, bits, self.blocks());
                next = range.end;
            }
        }
        Choice { bits, chunks, copied }
    }

    /// The chunks of an extent that must be copied, as at most two ascending ranges.
    fn partial_chunks(&self, at: usize, extent: &Extent, bits: u8) -> [Range<u64>; 2] {
        let size = chunk_size(bits);
        let (first, end) = (extent.logical / size, extent.end().div_ceil(size));
        if extent.len == 0 {
            return [0..0, 0..0];
        }
        if !extent.is_aligned() {
            return [first..end, 0..0];
        }
        let whole_first = if extent.logical.is_multiple_of(size) { first } else { first + 1 };
        let whole_end = if self.ends_whole(at, size) { end } else { end - 1 };
        if whole_first >= whole_end { [first..end, 0..0] } else { [first..whole_first, whole_end..end] }
    }

    /// Whether the last chunk of an extent can be read from the tar: it ends with the chunk, or with the file and the
    /// tar has the rest of its last block.
    fn ends_whole(&self, at: usize, size: u64) -> bool {
        let extent = &self.extents[at];
        let is_last_of_file = extent.end() >= self.size;
        (extent.end().is_multiple_of(size) || is_last_of_file) && round_up(extent.offset + extent.len) <= self.tar
    }

    /// Returns chunk number `number`.
    pub fn chunk(&self, bits: u8, number: u64) -> Chunk {
        let size = chunk_size(bits);
        let (start, end) = (number * size, ((number + 1) * size).min(self.size));
        let at = self.extents.partition_point(|extent| extent.end() <= start);
        let Some(extent) = self.extents.get(at).filter(|extent| extent.logical < end) else { return Chunk::Hole };
        let covers = extent.logical <= start && extent.end() >= end;
        let offset = extent.offset.wrapping_add(start.wrapping_sub(extent.logical));
        if covers && extent.is_aligned() && round_up(offset + (end - start)) <= self.tar {
            Chunk::Tar(offset >> BLOCK_BITS)
        } else {
            Chunk::Copied
        }
    }

    /// The bytes of the file in chunk `number`.
    pub fn range(&self, bits: u8, number: u64) -> Range<u64> {
        let size = chunk_size(bits);
        (number * size).min(self.size)..((number + 1) * size).min(self.size)
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }
}

impl Extent {
    pub fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }

    /// Whether blocks of the file are blocks of the tar.
    fn is_aligned(&self) -> bool {
        self.offset % BLOCK == self.logical % BLOCK
    }
}

/// The number of a file's blocks in a range of chunks; `blocks` is how many the file has.
fn blocks_in(chunks: &Range<u64>, bits: u8, blocks: u64) -> u64 {
    let chunk = 1_u64 << bits;
    chunks.end.saturating_mul(chunk).min(blocks).saturating_sub(chunks.start.saturating_mul(chunk))
}

fn chunk_size(bits: u8) -> u64 {
    1 << (u32::from(bits) + u32::from(BLOCK_BITS))
}

pub(super) fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contiguous(size: u64, offset: u64, tar: u64) -> (Choice, Chunk) {
        let file = File { size, extents: &[Extent { logical: 0, offset, len: size }], tar };
        let choice = file.choose().unwrap();
        (choice, file.chunk(choice.bits, choice.chunks.saturating_sub(1)))
    }

    #[test]
    fn a_contiguous_file_is_one_chunk() {
        for (size, bits) in [(1, 0), (512, 0), (513, 1), (1 << 20, 11), (5 << 30, 24), (1 << 40, 31)] {
            let (choice, chunk) = contiguous(size, 1536, 2048 + size + 512);
            assert_eq!((choice, chunk), (Choice { bits, chunks: 1, copied: 0 }, Chunk::Tar(3)), "{size}");
        }
        let (choice, _) = contiguous(3 << 40, 512, 4 << 40);
        assert_eq!((choice.bits, choice.chunks, choice.copied), (31, 3, 0));
    }

    #[test]
    fn the_end_of_a_tar_without_padding_is_copied() {
        let (choice, chunk) = contiguous(100, 512, 612);
        assert_eq!((choice, chunk), (Choice { bits: 0, chunks: 1, copied: 1 }, Chunk::Copied));
        let (choice, chunk) = contiguous((5 << 30) + 1, 512, 512 + (5 << 30) + 1);
        assert_eq!(chunk, Chunk::Copied);
        assert!(choice.cost() < 2 << 20, "{choice:?}");
        assert_eq!(contiguous(1024, 512, 1536).1, Chunk::Tar(1), "whole blocks");
    }

    #[test]
    fn sparse_files_take_the_chunk_size_that_costs_least() {
        let extents = [Extent { logical: 1 << 30, offset: 512, len: 1 << 20 }];
        let file = File { size: 1 << 40, extents: &extents, tar: 1 << 30 };
        let choice = file.choose().unwrap();
        // Chunks of 1 MiB would need no copy, and 8 MiB for their array.
        assert_eq!((choice.bits, choice.chunks, choice.copied), (12, 1 << 19, 4096));
        // 1 MiB at an odd place of a file of 4 PiB: the array alone would take more than allowed.
        let extents = [Extent { logical: (1 << 30) + 512, offset: 512, len: 1 << 20 }];
        assert!(File { size: 1 << 52, extents: &extents, tar: 1 << 30 }.choose().is_none());
    }

    /// A file of extents and holes in blocks of odd lengths.
    fn files() -> impl Strategy<Value = (u64, Vec<Extent>, u64)> {
        let piece = (0_u64..3000, 1_u64..3000, 0_u64..2);
        (proptest::collection::vec(piece, 0..6), 0_u64..2000, any::<bool>()).prop_map(|(pieces, rest, padded)| {
            let (mut logical, mut offset, mut extents) = (0, 512, Vec::new());
            for (hole, len, aligned) in pieces {
                // Archives have extents of whole blocks most of the time.
                let unit = if aligned == 1 { BLOCK } else { 1 };
                logical += if extents.is_empty() { hole / unit * unit } else { (hole + 1).next_multiple_of(unit) };
                let len = len.next_multiple_of(unit);
                extents.push(Extent { logical, offset, len });
                (logical, offset) = (logical + len, offset + len);
            }
            (logical + rest, extents, if padded { round_up(offset) } else { offset })
        })
    }

    proptest! {
        #[test]
        fn every_chunk_is_what_the_file_has_there((size, extents, tar) in files()) {
            let file = File { size, extents: &extents, tar };
            let choice = file.choose().unwrap();
            let mut copied = 0;
            for number in 0..choice.chunks {
                let range = file.range(choice.bits, number);
                let has_data = extents.iter().any(|e| e.logical < range.end && e.end() > range.start);
                match file.chunk(choice.bits, number) {
                    Chunk::Hole => prop_assert!(!has_data),
                    Chunk::Copied => copied += (range.end - range.start).div_ceil(BLOCK),
                    Chunk::Tar(block) => {
                        prop_assert!((block << BLOCK_BITS) + round_up(range.end - range.start) <= tar);
                        for at in [range.start, range.end - 1] {
                            let extent = extents.iter().find(|e| e.logical <= at && at < e.end()).unwrap();
                            prop_assert_eq!(extent.offset + at - extent.logical, (block << BLOCK_BITS) + at - range.start);
                        }
                    }
                }
            }
            prop_assert_eq!(copied, choice.copied);
        }
    }
}
