//! Comparison of a mounted Debian image with the tree that `umoci unpack` makes of it.

use std::process::Command;

use crate::support::env::{TestEnv, run};
use crate::support::tree::{Contents, Difference, diff, scan_both};
use crate::support::{big_image, show};

/// Allowed differences: where umoci and the OCI image specification disagree, the specification decides.
const ALLOWED: &[Allowed] = &[
    Allowed {
        path: "/opt/odd/times/at15032385535",
        field: "mtime",
        right: Some("15032385535 s + 0 ns"),
        reason: "umoci counts nanoseconds in 64 bits and cannot say a time after 2262; the tar can",
    },
    Allowed {
        path: "/opt/raw/time_15032385535_1",
        field: "mtime",
        right: Some("15032385535 s + 0 ns"),
        reason: "as above; ext4 cut the nanosecond off before GNU tar saw it",
    },
    Allowed {
        path: "/opt/pax",
        field: "mtime",
        right: Some("1600000000 s + 0 ns"),
        reason: "the tar lists it with this time; making `never` below it later moved umoci's",
    },
    Allowed {
        path: "/opt/changes/whited-and-refilled",
        field: "mtime",
        right: Some("1600000000 s + 0 ns"),
        reason: "the tar lists it with this time; the whiteout behind it moved umoci's",
    },
    Allowed {
        path: "/opt/pax/never",
        field: "mtime",
        right: None,
        reason: "no layer lists it, so none gives it a time; umoci leaves that of the unpacking",
    },
    Allowed { path: "/opt/pax/never/listed", field: "mtime", right: None, reason: "as above" },
    Allowed {
        path: "/opt/changes/opaque-late/deep",
        field: "mtime",
        right: None,
        reason: "its layer does not list it and hides the lower one; umoci leaves the time of the unpacking",
    },
];

/// One allowed difference, and the one right value if the specification gives one.
struct Allowed {
    path: &'static str,
    field: &'static str,
    right: Option<&'static str>,
    #[expect(dead_code, reason = "for the reader")]
    reason: &'static str,
}

#[test]
fn a_mounted_image_equals_the_tree_that_umoci_unpacks() {
    compare_with_umoci("--engine=fuse");
}

#[test]
fn an_image_that_the_kernel_engine_mounts_equals_the_tree_that_umoci_unpacks() {
    compare_with_umoci("--engine=kernel");
}

fn compare_with_umoci(engine: &str) {
    let image = big_image();
    let env = TestEnv::new();
    env.ok(["pull", &format!("oci:{}:latest", image.join("oci").display())]);
    let mount = env.mount("oci:latest", &[engine]);
    let (expected, actual) = scan_both(&image.join("unpacked/rootfs"), mount.path(), Contents::Hash);
    assert!(expected.faults.is_empty(), "the unpacked tree itself: {:?}", expected.faults);
    assert!(expected.records.len() > 50_000, "only {} entries: not the whole image", expected.records.len());
    report(diff(&expected, &actual));
    mount.unmount();
}

/// Checks the scanner and the cached image themselves, against kernel overlayfs over the extracted layers.
#[test]
fn kernel_overlayfs_of_the_layers_equals_the_tree_that_umoci_unpacks() {
    let image = big_image();
    let env = TestEnv::new();
    let mount = Overlay::new(&image, &env);
    let (expected, actual) = scan_both(&image.join("unpacked/rootfs"), &mount.at, Contents::Hash);
    report(diff(&expected, &actual).into_iter().filter(|difference| !overlay_differs(difference)).collect());
}

/// Whether kernel overlayfs, or GNU tar that extracted its layers, is known to differ here.
fn overlay_differs(difference: &Difference) -> bool {
    match (show(&difference.path).as_str(), difference.field.as_str()) {
        // Every merged directory has one link, and hard links across layers are separate inodes.
        (_, "nlink" | "links" | "d_ino") => true,
        // A PAX record with an empty value means no attribute: GNU tar sets it nevertheless.
        ("/opt/raw/user.empty", "xattr user.empty") => true,
        // GNU tar sets times of its own for directories without an entry or changed later, and for times in the far
        // future.
        ("/opt/pax" | "/opt/changes/opaque-late/deep" | "/opt/raw/time_15032385535_1", "mtime") => true,
        _ => false,
    }
}

struct Overlay {
    at: std::path::PathBuf,
}

impl Overlay {
    fn new(image: &std::path::Path, env: &TestEnv) -> Self {
        let at = env.path("overlay");
        std::fs::create_dir(&at).unwrap();
        let count = std::fs::read_dir(image.join("layers")).unwrap().count();
        let lower: Vec<_> = (0..count).rev().map(|n| image.join(format!("layers/{n}")).display().to_string()).collect();
        let mut command = Command::new("mount");
        command.args(["-t", "overlay", "overlay", "-o", &format!("lowerdir={}", lower.join(":"))]).arg(&at);
        let output = run(&mut command);
        assert_eq!(output.code, 0, "{output:?}");
        Self { at }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

/// Fails with every difference that is not allowed.
#[track_caller]
pub fn report(found: Vec<Difference>) {
    let found: Vec<_> = found.into_iter().filter(|difference| !is_allowed(difference)).collect();
    found.iter().take(50).for_each(|difference| println!("{difference}"));
    assert!(found.is_empty(), "{} differences; the first 50 are above", found.len());
}

fn is_allowed(difference: &Difference) -> bool {
    let path = show(&difference.path);
    ALLOWED.iter().any(|row| {
        row.path == path && row.field == difference.field && row.right.is_none_or(|right| right == difference.actual)
    })
}
