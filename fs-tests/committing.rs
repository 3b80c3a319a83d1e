//! `diff` and `commit` of an upper directory, compared with what other tools unpack and mount.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};
use serde_json::{Value, json};

use super::support::bed::{UnionFixture, at, content, disk};
use super::support::env::{Mount, TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::tar::{Entry, Tar};
use super::support::tree::{Contents, Difference, Tree, diff, scan};
use plyfs::fs::{Change, Fs, New, ROOT, Replace};
use plyfs::meta::Kind;

/// cap_net_raw+ep, as `security.capability` has it (capabilities(7), version 2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// user::rwx, user:5:r--, group::r-x, mask::r-x, other::r-- (acl(5), version 2).
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 5, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// An image `base:1` of two layers, with every path that [`change`] changes.
fn base() -> TestEnv {
    let lower = Tar::new()
        .add(Entry::dir("./").mode(0o755).mtime(1_600_000_000, 0))
        .dir("renamed")
        .dir("renamed/sub")
        .file("renamed/sub/file", "below")
        .hard_link("renamed/linked", "renamed/sub/file")
        .dir("to-file")
        .file("to-file/gone", "x")
        .file("to-dir", "x")
        .dir("again")
        .file("again/old", "x")
        .file("again/kept", "x")
        .dir("empty-again")
        .file("empty-again/old", "x")
        .file("file-again", "old")
        .file("gone", "x")
        .dir("gone-dir")
        .file("gone-dir/a", "x")
        .file("one", "linked")
        .hard_link("two", "one")
        .dir("apart")
        .hard_link("apart/three", "one")
        .file("grown", "a")
        .hard_link("grown-too", "grown")
        .add(Entry::dir("private").mode(0o755).owner(7, 8).mtime(1_500_000_000, 5))
        .file("private/untouched", "x")
        .add(Entry::file("capable", "#!").mode(0o4755).xattr("security.capability", CAPABILITY))
        .file("big", vec![7; 3 << 20]);
    let upper = Tar::new().dir("untouched").file("untouched/a", "x").symlink("link", "big");
    let env = TestEnv::new();
    let image = Image::new().layer(lower.finish()).layer(upper.finish()).tag("1");
    let image = image.edit_config(|config| {
        config["x-unknown"] = json!({ "kept": [1, 2.5] });
        config.as_object_mut().unwrap().remove("history");
    });
    image.write_layout(&env.path("base"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("base").display())]);
    env
}

fn upper(env: &TestEnv) -> String {
    env.path("upper").display().to_string()
}

fn mount(env: &TestEnv) -> Mount {
    env.mount("base:1", &["--upper", &upper(env)])
}

fn deep_path() -> PathBuf {
    (0..40).map(|n| format!("directory-{n}")).collect()
}

/// Makes every kind of change that a tar can store.
fn change(root: &Path) {
    let path = |name: &str| root.join(name);
    let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
    let xattr = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path(name), key, value, XattrFlags::empty()).unwrap();
    };
    fs::rename(path("renamed"), path("moved")).unwrap();
    write("moved/new", "x");
    fs::remove_dir_all(path("to-file")).unwrap();
    write("to-file", "now a file");
    fs::remove_file(path("to-dir")).unwrap();
    fs::create_dir_all(path("to-dir/sub")).unwrap();
    write("to-dir/sub/file", "x");
    for name in ["again", "empty-again"] {
        fs::remove_dir_all(path(name)).unwrap();
        fs::create_dir(path(name)).unwrap();
    }
    write("again/kept", "y");
    write("again/.-sorts-before-markers", "z");
    fs::remove_file(path("file-again")).unwrap();
    write("file-again", "new");
    fs::remove_file(path("gone")).unwrap();
    fs::remove_dir_all(path("gone-dir")).unwrap();
    fs::hard_link(path("two"), path("a-fourth")).unwrap();
    fs::remove_file(path("grown-too")).unwrap();
    write("grown", "grown by much");
    fs::set_permissions(path("private"), fs::Permissions::from_mode(0o2750)).unwrap();
    write("capable", "#!/bin/sh");
    xattr("capable", "security.capability", CAPABILITY);
    fs::set_permissions(path("capable"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::hard_link(path("capable"), path("capable-too")).unwrap();
    fs::write(path("acl"), "x").unwrap();
    xattr("acl", "system.posix_acl_access", ACL);
    xattr("acl", "user.binary", b"\0=\n\xff");
    // On an empty directory: podman creates the entries after it has set this default ACL.
    xattr("empty-again", "system.posix_acl_default", ACL);
    for (name, kind, rdev) in [
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
        ("pipe", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
    ] {
        rustix::fs::mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o640), rdev).unwrap();
    }
    std::os::unix::fs::lchown(path("disk"), Some(4_000_000_000), Some(6)).unwrap();
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(2 << 20).unwrap();
    write("odd \n name \u{e4}", "x");
    fs::write(root.join(OsStr::from_bytes(b"bytes \xff\xfe")), "x").unwrap();
    fs::create_dir_all(root.join(deep_path())).unwrap();
    fs::write(root.join(deep_path()).join("file"), "deep").unwrap();
    symlink("../big", path("apart/symlink")).unwrap();
}

/// A scanned tree, reduced to what a tar can store.
fn storable_in_tar(mut tree: Tree) -> Tree {
    tree.records.retain(|_, record| FileType::from_raw_mode(record.mode) != FileType::Socket);
    tree
}

fn unpacked_by_umoci(env: &TestEnv, image: &str) -> PathBuf {
    let (layout, bundle) = (env.path("layout"), env.path("bundle"));
    env.ok(["save", "--format", "oci-dir", "-o", layout.to_str().unwrap(), image]);
    let tag = image.rsplit(':').next().unwrap();
    let mut umoci = Command::new("umoci");
    let done = run(umoci.args(["unpack", "--image", &format!("{}:{tag}", layout.display())]).arg(&bundle));
    assert_eq!(done.code, 0, "{done:?}");
    bundle.join("rootfs")
}

fn podman(env: &TestEnv, driver: &str, args: &[&str]) -> String {
    let store = env.path(format!("podman-{driver}"));
    let mut command = Command::new("podman");
    command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
    let done = run(command.args(["--storage-driver", driver]).args(args));
    assert_eq!(done.code, 0, "{command:?}: {done:?}");
    done.stdout.trim().to_owned()
}

/// Scans an image as mounted by podman.
fn mounted_by_podman(env: &TestEnv, driver: &str, image: &str) -> Tree {
    let archive = env.path("archive.tar");
    env.ok(["save", "--format", "docker-archive", "-o", archive.to_str().unwrap(), image]);
    podman(env, driver, &["load", "-q", "-i", archive.to_str().unwrap()]);
    let id = env.ok(["inspect", "-f", "{{.Id}}", image]).trim().replace("sha256:", "");
    let at = podman(env, driver, &["image", "mount", &id]);
    let tree = std::panic::catch_unwind(|| scan(Path::new(&at), Contents::Hash));
    podman(env, driver, &["image", "umount", &id]);
    podman(env, driver, &["rmi", "-f", &id]);
    tree.unwrap()
}

#[track_caller]
fn assert_same(what: &str, wanted: &Tree, found: &Tree, allowed: impl Fn(&Difference) -> bool) {
    let wrong: Vec<String> =
        diff(wanted, found).iter().filter(|difference| !allowed(difference)).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

#[test]
fn every_tool_unpacks_a_committed_image_as_the_union() {
    let env = base();
    let live = mount(&env);
    change(live.path());
    // While it is mounted: the commit includes what the kernel has not written back yet.
    let id = env.ok(["commit", "-m", "all of it", "--upper", &upper(&env), "new:1"]);
    assert!(id.starts_with("sha256:") && id.trim() == env.ok(["inspect", "-f", "{{.Id}}", "new:1"]).trim());
    let wanted = storable_in_tar(scan(live.path(), Contents::Hash));
    assert!(wanted.records.len() > 70, "{}", wanted.records.len());
    live.unmount();
    let new = env.mount("new:1", &[]);
    assert_same("plyfs", &wanted, &scan(new.path(), Contents::Hash), |_| false);
    new.unmount();
    assert_same("umoci", &wanted, &scan(&unpacked_by_umoci(&env, "new:1"), Contents::Hash), |_| false);
    // podman makes the root directory itself.
    let roots = |d: &Difference| d.path == b"/" && matches!(&*d.field, "mode" | "mtime");
    assert_same("podman vfs", &wanted, &mounted_by_podman(&env, "vfs", "new:1"), roots);
    // In kernel overlayfs, a merged directory has a link count of 1.
    let overlays = |d: &Difference| roots(d) || matches!(&*d.field, "nlink" | "d_ino");
    assert_same("podman overlay", &wanted, &mounted_by_podman(&env, "overlay", "new:1"), overlays);
    // Again, unmounted, from the upper directory on disk.
    let again = env.ok(["commit", "-m", "all of it", "--upper", &upper(&env), "again:1"]);
    let layer = |name: &str| env.ok(["inspect", "-f", "{{index .RootFS.Layers 2}}", name]);
    assert_ne!(again, id, "they were made at different times");
    assert_eq!(layer("again:1"), layer("new:1"));
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn diff_lists_changes_as_docker_diff_does() {
    let env = base();
    let live = mount(&env);
    assert_eq!(env.ok(["diff", "--upper", &upper(&env)]), "");
    change(live.path());
    let listed = env.ok(["diff", "--upper", &upper(&env)]);
    let lines: Vec<&str> = listed.lines().filter(|line| !line.contains("/directory-0/")).collect();
    let wanted = [
        "A /a-fourth",
        "A /acl",
        "C /again",
        "A /again/.-sorts-before-markers",
        "C /again/kept",
        "D /again/old",
        "C /apart",
        "A /apart/symlink",
        "A /bytes \\xff\\xfe",
        "C /capable",
        "A /capable-too",
        "A /directory-0",
        "A /disk",
        "C /empty-again",
        "D /empty-again/old",
        "C /file-again",
        "D /gone",
        "D /gone-dir",
        "C /grown",
        "D /grown-too",
        "A /moved",
        "A /moved/linked",
        "A /moved/new",
        "A /moved/sub",
        "A /moved/sub/file",
        "A /null",
        "A /odd \\n name \u{e4}",
        "A /pipe",
        "C /private",
        "D /renamed",
        "A /socket",
        "A /sparse",
        "C /to-dir",
        "A /to-dir/sub",
        "A /to-dir/sub/file",
        "C /to-file",
    ];
    assert_eq!(lines, wanted);
    live.unmount();
    assert_eq!(env.ok(["diff", "--upper", &upper(&env)]), listed);
}

/// Files and directories observed with stat only, since reading them would change their access times.
struct StatWatch(Vec<PathBuf>);

impl StatWatch {
    /// Starts watching. Resets access times first, since reading again what was read already changes none (relatime).
    fn new(dirs: &[PathBuf]) -> StatWatch {
        let mut find = Command::new("find");
        let listed = find.args(dirs.iter().filter(|dir| dir.exists())).arg("-print0").output().unwrap().stdout;
        let paths = listed.split(|byte| *byte == 0).filter(|path| !path.is_empty());
        let paths: Vec<PathBuf> = paths.map(|path| OsStr::from_bytes(path).into()).collect();
        for path in paths.iter().filter(|path| !path.is_symlink()) {
            let old = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
            let times = rustix::fs::Timestamps { last_access: old, last_modification: omit };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
        }
        StatWatch(paths)
    }

    /// Everything that stat returns, except a symbolic link's access time, which every read changes.
    fn state(&self) -> String {
        let path_state = |path: &PathBuf| {
            let what = if path.is_symlink() { "%i %f %h %u %g %s %y %z" } else { "%i %f %h %u %g %s %x %y %z" };
            let stat = run(Command::new("stat").args(["-c", what]).arg(path)).stdout;
            let marks = run(Command::new("getfattr").args(["-dhm", "-", "--absolute-names"]).arg(path)).stdout;
            format!("{}: {stat}{marks}", path.display())
        };
        self.0.iter().map(path_state).collect()
    }
}

#[test]
fn diff_leaves_no_trace_in_the_upper_directory() {
    let env = base();
    let unchanged = |what: &str| {
        let watch = StatWatch::new(&[env.path("upper"), env.path("upper.work")]);
        let before = watch.state();
        env.ok(["diff", "--upper", &upper(&env), "--image", "base:1"]);
        env.ok(["commit", "--upper", &upper(&env), "--image", "base:1"]);
        assert_eq!(watch.state(), before, "{what}");
        assert_eq!(watch.0.len(), StatWatch::new(&[env.path("upper"), env.path("upper.work")]).0.len(), "{what}");
    };
    fs::create_dir(env.path("upper")).unwrap();
    unchanged("an empty upper directory");
    let live = mount(&env);
    change(live.path());
    // `diff` makes the kernel write back dirty data, which does not count as a trace.
    assert_eq!(run(Command::new("sync").arg("-f").arg(live.path())).code, 0);
    env.ok(["commit", "--upper", &upper(&env)]);
    unchanged("a mounted upper directory");
    live.unmount();
    unchanged("an unmounted upper directory");
    // Without a mount: several readers may share the upper directory, and no mount can take it meanwhile.
    let held = fs::File::open(env.path("upper")).unwrap();
    held.lock_shared().unwrap();
    env.ok(["diff", "--upper", &upper(&env)]);
    fs::create_dir(env.path("at")).unwrap();
    let refused = env.fails(["mount", "--upper", &upper(&env), "base:1", env.path("at").to_str().unwrap()]);
    assert!(refused.contains("in use by another mount"), "{refused}");
}

#[test]
fn a_read_only_view_of_an_upper_directory_refuses_every_change() {
    let fixture = UnionFixture::new(vec![Tar::new().dir("d").file("d/f", "f").file("g", "g").finish()]);
    let union = fixture.open(disk);
    let new = |kind| New { kind, mode: 0o644, umask: 0, rdev: 0, uid: 0, gid: 0, target: b"t" };
    let made = union.make(ROOT, b"made", &new(Kind::File)).unwrap().ino;
    union.write(made, 0, b"data").unwrap();
    // One view beside a live union, one of an upper directory that no mount has used.
    let fresh = UnionFixture::new(vec![Tar::new().dir("d").file("d/f", "f").file("g", "g").finish()]);
    fs::create_dir(fresh.upper()).unwrap();
    let watch = StatWatch::new(&[fixture.upper(), fixture.work(), fresh.upper()]);
    let before = watch.state();
    for view in [fixture.view(), fresh.view()] {
        let ino = |path: &str| at(&view, path).unwrap().ino;
        let (dir, file) = (ino("d"), ino("d/f"));
        let chmod = Change { mode: Some(0o600), ..Change::default() };
        let refused = [
            view.setattr(file, &chmod).map(drop),
            view.setattr(ROOT, &chmod).map(drop),
            view.make(ROOT, b"x", &new(Kind::Dir)).map(drop),
            view.link(file, ROOT, b"x").map(drop),
            view.unlink(dir, b"f"),
            view.rmdir(ROOT, b"d"),
            view.rename(ROOT, b"g", dir, b"g", Replace::Allow).map(drop),
            view.write(file, 0, b"x"),
            view.write_back(file, 0, b"x"),
            view.fallocate(file, 0, 0, 1),
            view.copy_range(ino("g"), 0, file, 0, 1).map(drop),
            view.setxattr(file, b"user.a", b"x", 0),
            view.removexattr(file, b"user.a"),
            view.set_flags(file, 0),
            view.set_attributes(file, &[0; 28]),
            view.fsync(file, false),
        ];
        for (at, answer) in refused.into_iter().enumerate() {
            assert_eq!(answer.map_err(|e| e.errno()), Err(libc::EROFS), "call {at}");
        }
        assert!(!view.is_writable());
        assert_eq!(content(&view, file), b"f");
        let listed: Vec<Vec<u8>> = view.changes(&Default::default()).unwrap().into_keys().collect();
        let wanted: &[&[u8]] = if at(&view, "made").is_ok() { &[b"/", b"/made"] } else { &[] };
        assert_eq!(listed, wanted);
    }
    assert_eq!(watch.state(), before);
    assert_eq!(fs::read_dir(fresh.upper()).unwrap().count(), 0);
    drop::<Fs>(union);
}

/// Every file in the store.
fn files(dir: &Path) -> Vec<String> {
    let listed = run(Command::new("find").arg(dir).args(["-type", "f", "-printf", "%p %s\n"])).stdout;
    let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn commit_refuses_what_a_layer_cannot_hold_and_leaves_no_files() {
    let env = base();
    let live = mount(&env);
    fs::create_dir(live.path().join("private/x")).unwrap();
    let before = files(&env.root());
    let refused = |name: &str| {
        fs::write(live.path().join("private/x").join(name), "x").unwrap();
        let output = env.fails(["commit", "--upper", &upper(&env), "new:1"]);
        let why = "names that begin with `.wh.` are whiteouts";
        assert_eq!(output, format!("Error: /private/x/{name} cannot be in a layer: {why}"));
        fs::remove_file(live.path().join("private/x").join(name)).unwrap();
    };
    [".wh.a", ".wh..wh..opq", ".wh."].into_iter().for_each(refused);
    assert_eq!(files(&env.root()), before);
    assert_eq!(
        env.fails(["commit", "--upper", &upper(&env), "-c", "RUN x"]),
        "Error: change `RUN x`: RUN is not a valid change command"
    );
    assert_eq!(files(&env.root()), before);
    // A path too long for any layer: the failed commit leaves no files.
    let long = live.path().join("long");
    fs::create_dir(&long).unwrap();
    let mut dir = rustix::fs::open(&long, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..17 {
        let name = "n".repeat(250);
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(dir);
    let output = env.fails(["commit", "--upper", &upper(&env)]);
    assert!(output.ends_with("the limit is 4095"), "{output}");
    assert_eq!(files(&env.root()), before);
    // An extended attribute of empty value is dropped, with a warning.
    fs::remove_dir_all(&long).unwrap();
    rustix::fs::lsetxattr(live.path().join("gone"), "user.empty", b"", XattrFlags::empty()).unwrap();
    let out = env.run(["commit", "--upper", &upper(&env)]);
    assert!(
        out.code == 0 && out.stderr.contains("/gone: the attribute user.empty is empty and is left out"),
        "{out:?}"
    );
    live.unmount();
}

fn config(env: &TestEnv, image: &str) -> Value {
    let id = env.ok(["inspect", "-f", "{{.Id}}", image]).trim().replace("sha256:", "");
    serde_json::from_slice(&fs::read(env.root().join("blobs/sha256").join(id)).unwrap()).unwrap()
}

#[test]
fn the_committed_config_is_the_images_with_the_requested_changes() {
    let env = base();
    let live = mount(&env);
    fs::write(live.path().join("new"), "x").unwrap();
    live.unmount();
    let on_a_day = |args: &[&str]| {
        let mut command = env.command(["commit", "--upper", &upper(&env)].iter().chain(args));
        let out = run(command.env("SOURCE_DATE_EPOCH", "1000000000"));
        assert_eq!((out.code, out.stderr.as_str()), (0, ""));
        out.stdout
    };
    let args = ["-a", "Jane", "-m", "why", "-c", "CMD [\"sh\", \"-c\"]", "-c", "ENV A=1", "new"];
    let id = on_a_day(&args);
    let (old, new) = (config(&env, "base:1"), config(&env, "new"));
    let day = "2001-09-09T01:46:40Z";
    let listed = ["author", "comment", "created"].map(|key| new[key].as_str().unwrap());
    assert_eq!(listed, ["Jane", "why", day]);
    for key in ["x-unknown", "os", "architecture"] {
        assert_eq!(new[key], old[key], "{key}");
    }
    assert_eq!((&new["config"]["Cmd"], &new["config"]["Env"]), (&json!(["sh", "-c"]), &json!(["A=1"])));
    let count = |key: &str, value: &Value| value[key].as_array().map_or(0, Vec::len);
    assert_eq!(count("diff_ids", &new["rootfs"]), 3);
    // The image has no history, yet the new config has a step for each layer.
    let steps = new["history"].as_array().unwrap();
    assert_eq!((count("history", &old), steps.len()), (0, 3));
    assert_eq!(steps[2], json!({ "created": day, "created_by": "/bin/sh", "author": "Jane", "comment": "why" }));
    assert_eq!(env.ok(["history", "--format", "{{.Comment}}", "new"]), "why\n\n\n");
    // The same commit gives the same image, and no timestamp in it is later than the given day.
    assert_eq!(on_a_day(&args), id);
    let mounted = env.mount("new", &[]);
    let tree = scan(mounted.path(), Contents::Skip);
    assert_eq!(
        (tree.records[&b"/new"[..]].mtime, tree.records[&b"/"[..]].mtime),
        ((1_000_000_000, 0), (1_000_000_000, 0))
    );
    mounted.unmount();
    // A commit on top: its step names the command of its config, and the lower image's message is not repeated.
    let next = env.mount("new", &["--upper", env.path("next").to_str().unwrap()]);
    next.unmount();
    let mut command = env.command(["commit", "--upper", env.path("next").to_str().unwrap(), "-c", "CMD x", "next"]);
    assert_eq!(run(command.env("SOURCE_DATE_EPOCH", "1000000001")).code, 0);
    let last = config(&env, "next");
    assert_eq!(last["history"][3], json!({ "created": "2001-09-09T01:46:41Z", "created_by": "sh -c" }));
    assert!(last.get("author").is_none() && last.get("comment").is_none());
    // Without changes: a layer without entries, whose digest is well known.
    let empty = digest(&[0; 1024]);
    assert_eq!((count("diff_ids", &last["rootfs"]), &last["rootfs"]["diff_ids"][3]), (4, &json!(empty)));
    // The store keeps the lower layers for the new image.
    env.ok(["rmi", "base:1", "new"]);
    let mounted = env.mount("next", &[]);
    assert_eq!(fs::read(mounted.path().join("new")).unwrap(), b"x");
    mounted.unmount();
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn an_upper_directory_is_matched_to_its_image_or_refused_in_one_line() {
    let env = base();
    let live = mount(&env);
    fs::write(live.path().join("new"), "x").unwrap();
    live.unmount();
    let (upper, nowhere) = (upper(&env), env.path("nowhere").display().to_string());
    fs::create_dir(env.path("plain")).unwrap();
    let plain = env.path("plain").display().to_string();
    Image::new().layer(Tar::new().file("f", "x").finish()).tag("2").write_layout(&env.path("other"));
    env.ok(["pull", "-q", &format!("oci:{}:2", env.path("other").display())]);
    for (args, says) in [
        (&["diff", "--upper", &nowhere][..], "No such file or directory"),
        (&["diff", "--upper", &plain], "was never mounted"),
        (&["commit", "--upper", &upper, "--image", "nope"], "No such image: nope:latest"),
        (&["commit", "--upper", &upper, "--image", "other:2"], "has the changes of another image"),
        (&["commit", "--upper", &upper, "X"], "must be lowercase"),
        (&["commit", "--upper", &upper, &format!("x@{}", digest(b""))], "cannot import digest reference"),
    ] {
        let output = env.fails(args);
        assert!(output.starts_with("Error: ") && output.contains(says), "{args:?}: {output}");
    }
    for (args, says) in [
        (&["diff"][..], "\"plyfs diff\" requires exactly 1 argument.\nSee 'plyfs diff --help'.\n"),
        (&["commit", "a"], "Error: No such container: a\n"),
        (&["commit"], "\"plyfs commit\" requires at least 1 and at most 2 arguments.\nSee 'plyfs commit --help'.\n"),
        (&["diff", "--upper", &upper, "a"], "\"plyfs diff\" accepts no arguments.\nSee 'plyfs diff --help'.\n"),
        (
            &["commit", "--upper", &upper, "a", "b"],
            "\"plyfs commit\" requires at most 1 argument.\nSee 'plyfs commit --help'.\n",
        ),
    ] {
        let out = env.run(args);
        assert!(out.code == 1 && out.stderr == says, "{args:?}: {out:?}");
    }
    assert!(!env.path("nowhere").exists());
    // The store's own upper directories record their image too.
    let kept = env.mount("base:1", &["--rw"]);
    fs::remove_file(kept.path().join("gone")).unwrap();
    kept.unmount();
    let of_store = fs::read_dir(env.root().join("uppers")).unwrap().next().unwrap().unwrap().path().join("upper");
    assert_eq!(env.ok(["diff", "--upper", of_store.to_str().unwrap()]), "D /gone\n");
    env.ok(["commit", "--upper", of_store.to_str().unwrap(), "without"]);
    let new = env.mount("without", &[]);
    assert!(!new.path().join("gone").exists() && new.path().join("grown").exists());
    new.unmount();
    env.ok(["rmi", "-f", "base:1"]);
    assert!(env.fails(["diff", "--upper", &upper]).contains("an image that is not in the store: ChainID sha256:"));
}
