//! `export` of an image as a tar, compared with what other tools unpack, and `import` of that tar.

use std::path::Path;
use std::process::{Command, Stdio};

use super::support::big_image;
use super::support::env::{TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::tar::{Entry, Sparse, Tar};
use super::support::tree::{Contents, Difference, diff, scan_both};
use super::truth;

/// Unpacks a tar with GNU tar, as root.
fn unpack(tar: &Path, into: &Path) {
    std::fs::create_dir(into).unwrap();
    let mut command = Command::new("tar");
    // GNU tar would warn of times in the distant past and in the future.
    command.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp", "-xp", "-f"]);
    let done = run(command.arg(tar).arg("-C").arg(into));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
}

/// A sub-second time before 1970 that GNU tar reads with the wrong sign.
fn is_gnu_tars(difference: &Difference) -> bool {
    difference.field == "mtime" && difference.expected.starts_with('-') && !difference.expected.ends_with("+ 0 ns")
}

#[test]
fn export_equals_what_umoci_unpacks() {
    let image = big_image();
    let want = image.join("unpacked/rootfs");
    let env = TestEnv::new();
    env.ok(["pull", "-q", &format!("oci:{}:latest", image.join("oci").display())]);
    let tar = env.path("tree.tar");
    env.ok(["export", "-o", tar.to_str().unwrap(), "oci"]);
    let unpacked = env.path("unpacked");
    unpack(&tar, &unpacked);
    let (expected, actual) = scan_both(&want, &unpacked, Contents::Hash);
    truth::report(diff(&expected, &actual).into_iter().filter(|d| !is_gnu_tars(d)).collect());
    std::fs::remove_dir_all(&unpacked).unwrap();
    // Imported as an image of one layer, the tree is the same.
    env.ok(["import", tar.to_str().unwrap(), "flat"]);
    std::fs::remove_file(&tar).unwrap();
    let mount = env.mount("flat", &[]);
    let (expected, actual) = scan_both(&want, mount.path(), Contents::Hash);
    truth::report(diff(&expected, &actual));
    mount.unmount();
}

/// An image of two layers with all metadata that a tar can store and that tools easily lose.
fn odd() -> TestEnv {
    let long = [b"\xff\xfe".to_vec(), vec![b'n'; 200]].concat();
    let deep = [b"deep/".repeat(300), b"end".to_vec()].concat();
    let lower = Tar::new()
        .add(Entry::dir("./").mode(0o1711).owner(7, 8).mtime(1_500_000_000, 1).xattr("user.root", b"r"))
        .add(Entry::file("bin", b"#!").mode(0o6755).xattr("security.capability", CAPABILITY).mtime(-1, 250_000_000))
        .add(Entry::file(&long, b"").owner(4_294_967_294, 4_294_967_293).xattr("user.bin", b"\0=\n\xff"))
        .add(Entry::file("acl", b"x").xattr("system.posix_acl_access", ACL).xattr("user.a=b", b"v"))
        .add(Entry::dir("d").xattr("trusted.overlay.opaque", b"y").xattr("system.posix_acl_default", ACL))
        .file(&deep, b"deep")
        .hard_link("again", "bin")
        .symlink("link", [b"/".repeat(150), b"t".to_vec()].concat())
        .hard_link("link2", "link")
        .add(Entry::sparse("holes", 1 << 20, &[(4096, vec![1; 512]), (900_000, vec![2; 100])], Sparse::Pax10))
        .file("gone", b"x")
        .add(Entry::char_device("null", 1, 3).mode(0o666))
        .add(Entry::block_device("disk", 4095, 1_048_575))
        .add(Entry::fifo("pipe").mode(0o600).mtime(1 << 33, 999_999_999));
    let upper = Tar::new().whiteout("gone").hard_link("over", "bin").file("a b\nc", b"odd name");
    let env = TestEnv::new();
    Image::new().layer(lower.finish()).layer(upper.finish()).write_layout(&env.path("odd"));
    env.ok(["pull", "-q", &format!("oci:{}", env.path("odd").display())]);
    env
}

/// cap_net_raw+ep, as `security.capability` has it (capabilities(7), version 2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// user::rwx, user:5:r--, group::r-x, mask::r-x, other::r-- (acl(5), version 2).
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 5, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

#[test]
fn export_and_import_preserve_all_metadata() {
    let env = odd();
    let tar = env.path("odd.tar");
    env.ok(["export", "-o", tar.to_str().unwrap(), "odd"]);
    env.ok(["import", tar.to_str().unwrap(), "again"]);
    let (one, two) = (env.mount("odd", &[]), env.mount("again", &[]));
    let (expected, actual) = scan_both(one.path(), two.path(), Contents::Hash);
    assert!(expected.records.len() > 300 && expected.faults.is_empty(), "{:?}", expected.faults);
    assert_eq!(diff(&expected, &actual), []);
    // Directories precede their entries and all paths are sorted: a second export has the same bytes.
    let out = std::fs::File::create(env.path("again.tar")).unwrap();
    assert!(env.command(["export", "again"]).stdout(out).status().unwrap().success());
    assert_eq!(std::fs::read(&tar).unwrap(), std::fs::read(env.path("again.tar")).unwrap());
    // GNU tar sees the same names.
    let listed = run(Command::new("tar").args(["--quoting-style=escape", "-tf"]).arg(&tar)).stdout;
    let names: Vec<&str> = listed.lines().take(5).collect();
    assert_eq!(names, ["./", "a b\\nc", "acl", "again", "bin"]);
    one.unmount();
    two.unmount();
}

#[test]
fn an_export_is_complete_or_fails() {
    let env = TestEnv::new();
    Image::new().layer(Tar::new().file("f", vec![7; 3 << 20]).finish()).write_layout(&env.path("app"));
    env.ok(["pull", "-q", &format!("oci:{}", env.path("app").display())]);
    let at = env.path("out/tree.tar");
    let text = at.to_str().unwrap();
    let error = env.fails(["export", "-o", text, "app"]);
    assert!(error.starts_with("Error: failed to export image: invalid output path: "), "{error}");
    std::fs::create_dir(env.path("out")).unwrap();
    assert_eq!(env.fails(["export", "-o", text, "nope"]), "Error: No such image: nope:latest");
    assert!(env.fails(["export", "-o", env.path("out").to_str().unwrap(), "app"]).ends_with("out is a directory"));
    assert_eq!(run(&mut env.command(["export"])).code, 1);
    assert_eq!(std::fs::read_dir(env.path("out")).unwrap().count(), 0);
    env.ok(["export", "-o", text, "app"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&at).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);
    // A truncated layer cannot be exported.
    let layer = std::fs::read_dir(env.root().join("layers/sha256")).unwrap().next().unwrap().unwrap().path();
    let tar = std::fs::File::options().write(true).open(layer.join("layer.tar")).unwrap();
    let length = tar.metadata().unwrap().len();
    tar.set_len(length - 512).unwrap();
    let before = digest(&std::fs::read(&at).unwrap());
    assert!(env.fails(["export", "-o", text, "app"]).starts_with("Error: image app:latest is damaged: layer "));
    assert_eq!(digest(&std::fs::read(&at).unwrap()), before);
    tar.set_len(length).unwrap();
    // A full disk, and a reader that closes the pipe.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = env.command(["export", "app"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr, "Error: cannot write the archive: No space left on device (os error 28)\n");
    let mut child = env.command(["export", "app"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]));
}
