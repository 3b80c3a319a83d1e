//! Malicious layers: tars and indexes crafted to break a reader, and random damage to valid ones.

use crate::corpus::{image, image_within};
use crate::support::tar::{Entry, Sparse, Tar};
use plyfs::digest::Digest;
use plyfs::fs::{Data, Fs, ROOT};
use plyfs::layer::{Index, IndexError, Limits, Node, Of, Writer, index_tar};
use plyfs::meta::Kind;
use plyfs::sys::Bytes;
use plyfs::tree;
use proptest::prelude::*;
use std::io::Write;
use zerocopy::FromZeros;

#[track_caller]
fn assert_rejected(tar: Vec<u8>, limits: &Limits, says: &str) {
    let output = image_within(&[tar], limits).err().expect("was not refused");
    assert!(output.contains(says), "`{says}` is not in: {output}");
}

/// Found by random damage: following a symbolic link created directories with names that only a link target can hold,
/// and the index did not pass its own check.
#[test]
fn a_symlink_target_creates_no_directory_with_a_forbidden_name() {
    let below = |target: &str| Tar::new().symlink("l", target).file("l/f", "x").finish();
    assert_rejected(below(&"n".repeat(300)), &Limits::default(), "300 bytes");
    assert_rejected(below("a/.wh.b"), &Limits::default(), "inside a whiteout");
    assert_rejected(below(".wh..wh..opq"), &Limits::default(), "inside a whiteout");
    let nul = Tar::new().add(Entry::symlink("l", "").pax("linkpath", "a\0b")).finish();
    assert_rejected(nul, &Limits::default(), "NUL");
}

#[test]
fn directories_made_by_paths_and_links_count_as_entries() {
    let limits = Limits { entries: 50, ..Limits::default() };
    assert_rejected(Tar::new().file("d/".repeat(60) + "f", "").finish(), &limits, "limit of 50");
    assert_rejected(Tar::new().symlink("l", "d/".repeat(60)).file("l/f", "").finish(), &limits, "limit of 50");
    assert!(image_within(&[Tar::new().file("d/".repeat(40) + "f", "").finish()], &limits).is_ok());
}

#[test]
fn followed_symlinks_and_sparse_maps_are_bounded() {
    let limits = Limits { metadata: 20_000, ..Limits::default() };
    let tar = Tar::new().symlink("l", "x/../".repeat(100)).dir("x");
    let tar = (0..100).fold(tar, |tar, i| tar.file(format!("l/f{i}"), ""));
    assert_rejected(tar.finish(), &limits, "too many symbolic links");
    let pieces: Vec<_> = (0..1000).map(|i| (i * 2, vec![b'x'])).collect();
    assert_rejected(
        Tar::new().add(Entry::sparse("s", 4000, &pieces, Sparse::Pax10)).finish(),
        &limits,
        "names and attributes",
    );
}

/// Found as a denial of service: each link of a chain was followed from its beginning, which took hours for a tar of a
/// few hundred megabytes.
#[test]
fn a_long_chain_of_hard_links_is_followed_once() {
    const LENGTH: usize = 60_000;
    let chain = (0..LENGTH).fold(Tar::new(), |tar, i| tar.hard_link(format!("{i:06}"), format!("{:06}", i + 1)));
    let image = image(&[chain.file(format!("{LENGTH:06}"), "x").finish()]).unwrap();
    assert_eq!(image.at("000000").unwrap().nlink as usize, LENGTH + 1);
}

/// The tar crate drops the upper bytes, Go's archive/tar refuses the number. Two tools must not read different layers
/// from the same tar.
#[test]
fn a_size_beyond_64_bits_is_refused() {
    let huge = Entry::file("a", "x").edit_header(|header| {
        header[124..136].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    });
    assert_rejected(Tar::new().add(huge).finish(), &Limits::default(), "not a number: size");
}

/// A tree is checked when it is mapped; reads are bounds-checked all the same.
#[test]
fn reading_through_a_damaged_tree_never_panics() {
    let sparse = Entry::sparse("s", 9000, &[(512, vec![1; 512]), (4096, vec![2; 700])], Sparse::Pax10);
    let tar = Tar::new().dir("d").file("d/x", "1").symlink("l", "d").add(sparse).finish();
    let index =
        Index::open(Bytes::Owned(index_tar(&mut &tar[..], &Limits::default()).unwrap().seal(&Digest::of(b"x"))));
    let intact = tree::merge(&Digest::of(b"chain"), &[index.unwrap()]).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&tar).unwrap();
    for (at, bits) in (0..intact.len()).flat_map(|at| [0x01, 0x80, 0xff].map(|bits| (at, bits))) {
        let mut damaged = intact.clone();
        damaged[at] ^= bits;
        let Ok(tree) = Index::open_unverified(Bytes::Owned(damaged)) else { continue };
        let fs = Fs::new(tree, vec![Data::open(file.try_clone().unwrap()).unwrap()]);
        for ino in 0..8 {
            for offset in [0, 1, 600, 4096, 8999, i64::MAX as u64] {
                let _ = (fs.read(ino, offset, 10).is_ok(), fs.read(ino, offset, 1 << 20).is_ok());
                let _ = (fs.seek(ino, offset, true).is_ok(), fs.seek(ino, offset, false).is_ok());
            }
            let _ = (fs.readdirplus(ino, 0, |_, _| false).is_ok(), fs.readlink(ino).is_ok(), fs.parent(ino).is_ok());
        }
    }
}

/// A layer's index with a correct checksum may still contain a cycle.
#[test]
fn the_merge_refuses_a_directory_that_contains_itself() {
    let mut writer = Writer::default();
    let mut root = Node::new_zeroed();
    (root.mode, root.count, root.nlink) = (0o040_755.into(), 1.into(), 3.into());
    writer.node(root).unwrap();
    writer.dirent(b"d", 0, Kind::Dir.bits()).unwrap();
    let index = Index::open(Bytes::Owned(writer.seal(Of::Layer, &Digest::of(b"x")))).unwrap();
    assert!(matches!(index.check(), Err(IndexError::Damaged(_))));
    assert!(tree::merge(&Digest::of(b"chain"), &[index]).unwrap_err().to_string().contains("wrong parent"));
}

const NAMES: &[&str] = &["a", "b", "a/b", "a/b/c", "l", "l/x/y", "../a", "./", ".wh.a", "a/.wh..wh..opq", "l/.wh.x"];
const TARGETS: &[&str] = &["a", "/a/b", "..", "l", "m", "x/y/z", ".wh.q", "a/../b", "."];

fn entry() -> impl Strategy<Value = Entry> {
    let (name, target) = (prop::sample::select(NAMES), prop::sample::select(TARGETS));
    (0..7u8, name, target, 0..1500usize, any::<bool>()).prop_map(|(kind, name, target, size, more)| {
        let entry = match kind {
            0 => Entry::file(name, vec![b'x'; size]),
            1 => Entry::dir(name),
            2 => Entry::symlink(name, target),
            3 => Entry::hard_link(name, target),
            4 => Entry::sparse(name, 9000, &[(512, vec![1; 512]), (4096, vec![2; 512])], Sparse::OldGnu),
            5 => Entry::sparse(name, 9000, &[(7, vec![1; size]), (4096, vec![2; 9])], Sparse::Pax10),
            _ => Entry::char_device(name, size as u64, 3),
        };
        if more { entry.xattr("user.a", vec![b'v'; size / 9]).mtime(-(size as i64), 5) } else { entry }
    })
}

/// Damages a tar by edits of (kind, position, value), then corrects the header checksums, so that readers get past
/// them.
fn damage(tar: &mut Vec<u8>, edits: &[(u8, usize, u8)]) {
    for (what, at, byte) in edits {
        let at = at % tar.len().max(1);
        let block = at / 512 * 512;
        match what {
            0..=3 if at < tar.len() => tar[at] = *byte,
            4 => tar.truncate(at),
            5 => drop(tar.drain(block..(block + 512).min(tar.len()))),
            6 => drop(tar.splice(block..block, vec![*byte; 512])),
            _ if block + 512 <= tar.len() => {
                let field = [100, 108, 116, 124, 136, 156, 329, 337, 386, 398, 482, 483][usize::from(*byte) % 12];
                tar[block + field..block + field + 8].fill(*byte);
            }
            _ => {}
        }
    }
    for header in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_layers_are_refused_or_read(
        entries in prop::collection::vec(entry(), 0..8),
        edits in prop::collection::vec((0..9u8, any::<usize>(), any::<u8>()), 0..4),
    ) {
        let mut tar = entries.into_iter().fold(Tar::new(), Tar::add).finish();
        damage(&mut tar, &edits);
        let limits = Limits { entries: 1000, extension: 1 << 16, extents: 100, metadata: 1 << 20 };
        // An accepted layer passes the index's own check, or this panics.
        let lower = Tar::new().dir("a").file("a/b", "1").symlink("l", "a").finish();
        if let Ok(image) = image_within(&[lower, tar], &limits) {
            let mut dirs = vec![ROOT];
            while let Some(dir) = dirs.pop() {
                image.fs.readdirplus(dir, 2, |entry, attr| {
                    assert!(!entry.name.starts_with(b".wh."), "a marker is shown");
                    match entry.kind {
                        Kind::Dir => dirs.push(entry.ino),
                        Kind::File if attr.size < 100_000 => drop(image.content(entry.ino)),
                        Kind::File => drop(image.fs.read(entry.ino, attr.size - 10, 4096).unwrap()),
                        _ => {}
                    }
                    false
                }).unwrap();
            }
        }
    }
}
