//! External test suites, pjdfstest and fsx, run in an image directory of a writable mount.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::env::run;
use crate::support::tar::{Entry, Tar};
use crate::support::tool;
use crate::support::writable::WritableUnion;

/// Cases of pjdfstest that cannot pass on a union, as on kernel overlayfs: each creates a character device 0:0, which
/// in an upper directory is a whiteout. A case of this list that passes fails the test.
const MAKE_A_WHITEOUT: &[&str] = &[
    "chmod::change_perm::char",
    "chmod::enotdir_component::char",
    "chmod::failed_chmod_unchanged_ctime::char",
    "chmod::update_ctime::char",
    "chown::enotdir_component::char",
    "chown::lchown::enotdir_component::char",
    "link::changed_ctime_success::char",
    "link::eexist_dest_exists::char",
    "link::enotdir_component_either::char",
    "link::remove_link::char",
    "link::share_metadata::char",
    "link::unchanged_ctime_fails::char",
    "mkdir::eexist_file_exists::char",
    "mkdir::enotdir_component::char",
    "mkfifo::eexist_file_exists::char",
    "mkfifo::enotdir_component::char",
    "mknod::eexist_file_exists::char",
    "mknod::enotdir_comp_char_block::char",
    "mknod::enotdir_component::char",
    "mknod::privileged::eexist_file_exists::char",
    "open::eexist_file_exists::char",
    "rename::changed_ctime_success::char",
    "rename::eexist_enotempty_to_non_empty::char",
    "rename::eisdir_to_dir_from_not_dir::char",
    "rename::enotdir_component_either::char",
    "rename::enotdir_from_dir_to_not_dir::char",
    "rename::preserve_metadata::char",
    "rename::to_multiply_linked::char",
    "rename::unchanged_ctime_failed::char",
    "rmdir::eexist_enotempty_non_empty_dir::char",
    "rmdir::enotdir_component::char",
    "symlink::create_symlink::char",
    "symlink::eexist_file_exists::char",
    "symlink::enotdir_component::char",
    "truncate::enotdir_component::char",
    "unlink::enotdir_component::char",
    "unlink::remove_type::char",
    "unlink::unchanged_ctime_failed::char",
    "unlink::update_ctime_success::char",
    "unlink::update_mtime_ctime_success_folder::char",
    "utimensat::changes_timestamps::char",
];
/// Cases that pjdfstest skips itself, since this system has no LINK_MAX.
const CANNOT_RUN: &[&str] = &["link::link_count_max"];

/// A mount(8) that remounts without the file system's mount helper.
const MOUNT: &str = "#!/bin/sh\nPATH=${PATH#*:} exec mount -i \"$@\"\n";

/// The lower layer: a directory `work` with a file in it.
fn layer() -> Vec<u8> {
    let file = vec![b'x'; 300_000];
    Tar::new().add(Entry::dir("work").mode(0o755)).file("work/from-below", file).finish()
}

/// An image of that layer, with an upper directory.
fn writable() -> WritableUnion {
    WritableUnion::with_layer(layer())
}

#[test]
fn pjdfstest_passes() {
    pjdfstest_passes_on(&writable());
}

#[test]
fn pjdfstest_passes_on_directories() {
    for count in [1, 10] {
        pjdfstest_passes_on(&WritableUnion::over_directories(layer(), count));
    }
}

#[track_caller]
fn pjdfstest_passes_on(union: &WritableUnion) {
    fs::create_dir(union.env.path("bin")).unwrap();
    fs::write(union.env.path("bin/mount"), MOUNT).unwrap();
    fs::set_permissions(union.env.path("bin/mount"), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = union.mount();
    // pjdfstest's unprivileged users need access to the parent directories.
    fs::set_permissions(mount.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    pjdfstest(union, &mount.path().join("work"), None);
    // Run alone: a file left open by another case would prevent the remount read-only.
    pjdfstest(union, &mount.path().join("work"), Some("erofs"));
    union.unmount(mount);
    union.assert_lower_unchanged();
}

/// Runs every case except those that remount; with a pattern, runs only the cases that match, which may remount.
#[track_caller]
fn pjdfstest(union: &WritableUnion, at: &Path, pattern: Option<&str>) {
    let config = union.env.path("pjdfstest.toml");
    let elsewhere = union.env.path("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         secondary_fs = {elsewhere:?}\n\
         [settings]\nnaptime = 0.01\nallow_remount = {}\nexpected_failures = {MAKE_A_WHITEOUT:?}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
        pattern.is_some()
    );
    fs::write(&config, text).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(tool("pjdfstest"));
    command.env("NO_COLOR", "1").env("PATH", format!("{}:{path}", union.env.path("bin").display()));
    command.arg("-c").arg(&config).arg("-p").arg(at).args(pattern);
    let output = run(&mut command);
    assert_eq!(output.code, 0, "{}\n{}", failures(&output.stdout), output.stderr);
    let remounts = |name: &str| pattern.is_none() && name.contains("::erofs_");
    let skipped = output.stdout.lines().filter_map(|line| line.strip_suffix("skipped")).map(str::trim);
    let missed: Vec<_> = skipped.filter(|name| !CANNOT_RUN.contains(name) && !remounts(name)).collect();
    assert!(missed.is_empty(), "not run: {missed:?}");
    let ran = output.stdout.lines().filter(|line| line.ends_with(" ok")).count();
    assert!(ran >= if pattern.is_some() { 13 } else { 340 }, "only {ran} cases passed: not the whole suite");
}

/// Each failed case, with the line that gives the reason.
fn failures(output: &str) -> String {
    let lines: Vec<_> = output.lines().collect();
    let failed = lines.windows(2).filter(|pair| pair[0].ends_with("FAILED") || pair[0].ends_with("UNEXPECTEDLY"));
    failed.map(|pair| format!("{}: {}\n", pair[0], pair[1].trim())).collect()
}

const WITHOUT_MMAP: &str = "read = 10\nwrite = 10\nmapread = 0\nmapwrite = 0\n";
const WITH_MMAP: &str = "read = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n";
const RESIZING: &str = "close_open = 1\ntruncate = 5\nposix_fallocate = 2\n";
const OTHERS: &str = "fsync = 0.2\nfdatasync = 0.2\npunch_hole = 2\nsendfile = 2\nposix_fadvise = 1\n\
                      copy_file_range = 2\n";

#[test]
fn fsx_passes_with_mmap() {
    fsx(&writable(), &[WITH_MMAP, RESIZING, OTHERS], 25_000);
}

#[test]
fn fsx_passes_without_mmap() {
    fsx(&writable(), &[WITHOUT_MMAP, RESIZING, OTHERS], 25_000);
}

#[test]
fn fsx_passes_on_directories() {
    for (count, weights) in [(1, WITH_MMAP), (10, WITH_MMAP), (10, WITHOUT_MMAP)] {
        fsx(&WritableUnion::over_directories(layer(), count), &[weights, RESIZING, OTHERS], 15_000);
    }
}

#[test]
fn fsx_passes_while_the_server_is_killed() {
    fsx(&writable().with_server_kills(), &[WITH_MMAP, RESIZING, OTHERS], 15_000);
    fsx(&WritableUnion::over_directories(layer(), 2).with_server_kills(), &[WITH_MMAP, RESIZING, OTHERS], 10_000);
}

/// Runs fsx twice: on a new file, and on a file of the image, which it truncates first. The content survives a remount.
#[track_caller]
fn fsx(union: &WritableUnion, weights: &[&str], operations: u32) {
    let config = union.env.path("fsx.toml");
    fs::write(&config, format!("[weights]\n{}", weights.concat())).unwrap();
    let mount = union.mount();
    for (seed, file) in ["new", "from-below"].into_iter().enumerate() {
        let mut command = Command::new(tool("fsx"));
        command.args(["-q", "-S", &(seed + 1).to_string(), "-N", &operations.to_string(), "-f"]).arg(&config);
        let output = run(command.arg("-P").arg(union.env.path("")).arg(mount.path().join("work").join(file)));
        assert_eq!(output.code, 0, "{command:?}: {output:#?}");
    }
    let contents = |at: &Path| ["new", "from-below"].map(|file| fs::read(at.join("work").join(file)).unwrap());
    let before = contents(mount.path());
    union.unmount(mount);
    let mount = union.mount();
    assert!(contents(mount.path()) == before, "a remount shows other contents");
    union.unmount(mount);
    union.assert_lower_unchanged();
}
