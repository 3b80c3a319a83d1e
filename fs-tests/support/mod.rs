//! What the tests share: a place to run plyfs in, builders of images byte by byte, and a scanner of trees.

// Each test uses some of it, and a builder is worth having whole.
#![allow(dead_code)]

pub mod bed;
pub mod env;
pub mod faulty;
pub mod oci;
pub mod registry;
pub mod tar;
pub mod tree;

use std::path::PathBuf;

/// Where `scripts/make-image` keeps what it made: the big image, its unpacked tree and its layers.
///
/// A missing cache fails the test: a truth test that can be skipped is not one.
pub fn big_image() -> PathBuf {
    let cache =
        std::env::var_os("PLYFS_TEST_CACHE").map_or_else(|| PathBuf::from("/var/cache/plyfs-tests"), PathBuf::from);
    let image = cache.join("debian");
    assert!(image.join("stamp").is_file(), "no test image in {}: run scripts/make-image as root", image.display());
    image
}

/// Bytes as text that shows every byte: a path or value in a message must not hide what is odd about it.
pub fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
