//! Test support: environments to run plyfs in, builders of images and tars, registries, terminals and a tree scanner.

// No test uses every item, and the builders are kept complete.
#![allow(dead_code)]

pub mod bed;
pub mod build_case;
pub mod buildah;
pub mod chroot;
pub mod env;
pub mod erofs;
pub mod faulty;
pub mod grid;
pub mod handles;
pub mod killer;
pub mod nest;
pub mod oci;
pub mod podman;
pub mod proxy;
pub mod registry;
pub mod small;
pub mod tar;
pub mod terminal;
pub mod tls;
pub mod tree;
pub mod uploads;
pub mod writable;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The directory in which the scripts cache their results.
pub fn cache() -> PathBuf {
    std::env::var_os("PLYFS_TEST_CACHE").map_or_else(|| PathBuf::from("/var/cache/plyfs-tests"), PathBuf::from)
}

/// The output of `scripts/make-image`: the big image, its unpacked tree and its layers.
///
/// A missing cache fails the test: a truth test that can be skipped is not one.
pub fn big_image() -> PathBuf {
    let image = cache().join("debian");
    assert!(image.join("stamp").is_file(), "no test image in {}: run scripts/make-image as root", image.display());
    image
}

/// The download of `scripts/make-debs`: packages and sources.
pub fn debs() -> PathBuf {
    let debs = cache().join("debs");
    assert!(debs.join("stamp").is_file(), "no packages in {}: run scripts/make-debs as root", debs.display());
    debs
}

/// A program that `scripts/setup --test` built.
pub fn tool(name: &str) -> PathBuf {
    let tool = cache().join("tools/bin").join(name);
    assert!(tool.is_file(), "no {}: run scripts/setup --test", tool.display());
    tool
}

/// Waits until a condition holds, by polling.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 20 seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes as text that shows every byte: a path or value in a message must not hide what is odd about it.
pub fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
