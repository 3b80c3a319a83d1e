//! Nested union mounts: an upper directory on a mount of plyfs or of kernel overlayfs, and fuse-overlayfs's upper
//! directory on a mount of plyfs. A script must leave the same tree there as in a plain directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::support::env::{TestEnv, run, unmount};
use crate::support::nest::{NestedFs, UpperFs};

/// Script that creates the lower directory's files.
const LOWER: &str = r#"
mkdir -p dir/sub/deep empty full gone/sub moved
echo one > dir/one; echo two > dir/two; echo deep > dir/sub/deep/file; echo x > full/x; echo y > full/y
echo g > gone/sub/g; echo m > moved/m; ln dir/one linked; ln -s one dir/link; echo big > big; chmod 4711 big
"#;

/// Script with every way to create a whiteout, to replace one, and to make a directory opaque.
const CHANGES: &str = r#"
rm dir/two; echo again > dir/two; rm dir/two
mv dir/one dir/renamed; mv big full/x; mv linked dir/linked
rm -r gone; mkdir gone; echo new > gone/new; rm -r gone; mkdir -p gone/sub; touch gone/sub/h
rmdir empty; echo file > empty; rm empty; ln full/x empty
rm full/y; mkdir full/y; touch full/y/z; rm -r full/y; mkfifo full/y
mkdir fresh; touch fresh/a; rm -r full; mv fresh full; mkdir fresh; mv fresh dir/sub/deep/file2; rm dir/sub/deep/file
echo appended >> moved/m; chmod 600 moved/m; mv moved/m moved/n; echo m > moved/m; mv moved/n moved/m
mkdir t; touch t/f; mv t t2; rm -r t2; touch t2
"#;

/// Script that renames lower directories, where the upper directory can record their origin.
const REDIRECTS: &str = "mv dir elsewhere; mkdir dir; mv elsewhere/sub dir/sub2; rm -r dir/sub2/deep; mv dir dir3";

/// Script that prints for each entry its path, kind, mode, link count of a file, size of a file, and link target, one
/// line each; contents too.
const LIST: &str = r#"
find . -mindepth 1 \( -type d -printf '%p %y %m\n' -o -printf '%p %y %m %n %s %l\n' \) | sort
find . -type f | sort | xargs -r grep -H ''
"#;

fn sh(at: &Path, script: &str) -> String {
    let output = run(Command::new("sh").args(["-euc", script]).current_dir(at));
    assert_eq!(output.code, 0, "in {}: {output:#?}", at.display());
    output.stdout
}

fn dir(at: PathBuf) -> PathBuf {
    std::fs::create_dir(&at).unwrap();
    at
}

/// A mount of directories; unmounted on drop.
struct Union(PathBuf);

impl Union {
    fn new(mut program: Command, base: &Path, lower: &Path) -> Union {
        let [upper, work, at] = ["upper", "work", "at"].map(|name| base.join(name));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let output = run(program.arg("-o").arg(options).arg(&at));
        assert_eq!(output.code, 0, "{output:#?}");
        Union(at)
    }

    fn tree(&self) -> String {
        sh(&self.0, LIST)
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _gone = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        } else {
            unmount(&self.0);
        }
    }
}

fn prepare(base: &Path) -> PathBuf {
    ["upper", "work", "at"].into_iter().for_each(|name| drop(dir(base.join(name))));
    let lower = dir(base.join("lower"));
    sh(&lower, LOWER);
    lower
}

/// The tree that the scripts leave in a plain directory.
fn expected(env: &TestEnv, scripts: &[&str]) -> String {
    let plain = dir(env.path("plain"));
    sh(&plain, LOWER);
    scripts.iter().for_each(|script| drop(sh(&plain, script)));
    sh(&plain, LIST)
}

/// Changes a union whose upper directory is in `base`, and requires the same tree then and after a remount.
#[track_caller]
fn check(program: impl Fn() -> Command, base: &Path, scripts: &[&str], wanted: &str) {
    let lower = prepare(base);
    let union = Union::new(program(), base, &lower);
    scripts.iter().for_each(|script| drop(sh(&union.0, script)));
    assert_eq!(union.tree(), wanted, "after the changes");
    drop(union);
    let union = Union::new(program(), base, &lower);
    assert_eq!(union.tree(), wanted, "at the next mount");
}

fn overlay(env: &TestEnv) -> Command {
    env.command(["overlay"])
}

fn fuse_overlayfs() -> Command {
    Command::new("fuse-overlayfs")
}

#[test]
fn a_union_on_kernel_overlayfs_behaves_like_a_plain_directory() {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, UpperFs::Overlayfs);
    let scripts = [CHANGES, REDIRECTS];
    check(|| overlay(&env), &nest.path("."), &scripts, &expected(&env, &scripts));
}

#[test]
fn plyfs_unions_nest_three_levels_deep() {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, UpperFs::Plyfs(""));
    let scripts = [CHANGES, REDIRECTS];
    let wanted = expected(&env, &scripts);
    let middle = dir(nest.path("middle"));
    let lower = prepare(&middle);
    let second = Union::new(overlay(&env), &middle, &lower);
    check(|| overlay(&env), &dir(second.0.join("third")), &scripts, &wanted);
}

/// Whiteouts are files named `.wh.NAME` then, and fuse-overlayfs can read the upper directory.
#[test]
fn an_upper_directory_without_xattrs_or_devices_gets_wh_files() {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, UpperFs::Plyfs(",noxattrs"));
    let wanted = expected(&env, &[CHANGES]);
    let base = nest.path(".");
    check(|| overlay(&env), &base, &[CHANGES], &wanted);
    let union = Union::new(overlay(&env), &base, &base.join("lower"));
    let refused = std::fs::write(union.0.join(".wh.x"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "such a name means a deletion there");
    drop(union);
    assert_eq!(Union::new(fuse_overlayfs(), &base, &base.join("lower")).tree(), wanted);
}

#[test]
fn fuse_overlayfs_keeps_its_upper_directory_on_a_mount_of_plyfs() {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, UpperFs::Plyfs(""));
    // fuse-overlayfs loses hard links at a copy-up, and writes to the renamed file's old name.
    let scripts =
        ["rm dir/two; rm -r gone; mkdir gone; mv big full/x; rm full/y; mkdir full/y; rmdir empty; rm linked"];
    check(fuse_overlayfs, &nest.path("."), &scripts, &expected(&env, &scripts));
}

/// As on kernel overlayfs: a union nested in this mount must not take this mount's whiteouts for its own.
#[test]
fn rename_whiteout_fails_with_einval_on_a_mount() {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, UpperFs::Plyfs(""));
    std::fs::write(nest.path("a"), "").unwrap();
    let renamed = renameat_with(CWD, nest.path("a"), CWD, nest.path("b"), RenameFlags::WHITEOUT);
    assert_eq!(renamed, Err(Errno::INVAL));
    assert!(nest.path("a").exists() && !nest.path("b").exists());
}

/// A recorded form stays in use, so that an upper directory on a full file system can still be mounted and cleared.
#[test]
fn the_whiteout_form_is_recorded_and_chosen_again_on_another_file_system() {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, UpperFs::Overlayfs);
    let base = nest.path(".");
    let lower = prepare(&base);
    let union = Union::new(overlay(&env), &base, &lower);
    sh(&union.0, "rm dir/two");
    drop(union);
    let form = |upper: &Path| sh(upper, "getfattr --only-values -n trusted.overlay.plyfs.whiteouts . 2>/dev/null");
    assert!(form(&base.join("upper")).starts_with("attribute "));
    let copy = dir(env.path("copy"));
    sh(&base, &format!("umask 0; cp -a --reflink=auto lower upper work {}; mkdir {0}/at", copy.display()));
    let union = Union::new(overlay(&env), &copy, &copy.join("lower"));
    sh(&union.0, "test ! -e dir/two; rm big");
    drop(union);
    assert!(form(&copy.join("upper")).starts_with("device "));
    assert_eq!(sh(&copy.join("upper"), "stat -c %F big dir/two"), "character special file\nregular empty file\n");
    assert_eq!(sh(&Union::new(overlay(&env), &copy, &copy.join("lower")).0, "ls dir"), "link\none\nsub\n");
}
