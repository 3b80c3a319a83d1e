//! The kernel engine: images mounted as EROFS, with kernel overlayfs above, without a daemon.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::model::random::Random;
use super::support::env::{Mount, TestEnv, run, unmount};
use super::support::eventually;
use super::support::oci::{Compression, Image};
use super::support::small;
use super::support::tar::{Entry, Sparse, Tar};
use super::support::tree::{Contents, diff, scan};

/// Users that every Debian has, and no other test gives subordinate IDs: files on disk belong to these here, so that
/// the ranges must not change during the test.
const UUCP: u32 = 10;
const PROXY: u32 = 13;

fn pulled(env: &TestEnv, name: &str, layers: Vec<Vec<u8>>) {
    let image = layers.into_iter().fold(Image::new(), |image, tar| image.compressed(tar, Compression::None));
    image.tag("1").write_layout(&env.path(name));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path(name).display())]);
}

/// Asserts that both engines show the same tree.
#[track_caller]
fn same_by_both(env: &TestEnv, image: &str) {
    let [fuse, kernel] = ["fuse", "kernel"].map(|engine| env.mount(image, &["--engine", engine]));
    let (expected, actual) = (scan(fuse.path(), Contents::Hash), scan(kernel.path(), Contents::Hash));
    assert!(expected.faults.is_empty() && expected.records.len() > 1, "{:?}", expected.faults);
    let wrong: Vec<String> = diff(&expected, &actual).iter().map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    kernel.unmount();
    fuse.unmount();
}

/// The EROFS files of a store.
fn erofs_files(env: &TestEnv) -> Vec<PathBuf> {
    let all = fs::read_dir(env.root().join("trees")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|end| end.as_bytes().starts_with(b"erofs"))).collect()
}

fn small(env: &TestEnv) {
    let lower = Tar::new().dir("d").file("d/a", "one").file("b", "two").file("gone", "x").finish();
    pulled(env, "box", vec![lower, Tar::new().file(".wh.gone", "").file("c", "three").finish()]);
}

#[test]
fn every_kind_of_entry_is_what_the_fuse_engine_shows() {
    let env = TestEnv::new();
    let long = "n".repeat(255);
    let mut tar = Tar::new()
        .add(Entry::dir("dir").mode(0o1777).owner(70_000, 4_000_000_000).mtime(-5, 7))
        .add(Entry::file("dir/late", "later than 2106").mtime(5_000_000_000, 0))
        .add(Entry::file("early", "").mtime(-2_000_000_000, 999_999_999))
        .add(Entry::file(&long, "a long name").mode(0o4755))
        .add(Entry::char_device("null", 1, 3))
        .add(Entry::char_device("far", 4000, 1_000_000))
        .add(Entry::file("attributes", "x").xattr("user.a", "1").xattr("trusted.b", "2").xattr("security.c", "3"))
        .add(Entry::file("large", "x").xattr("user.large", "v".repeat(60_000)))
        .add(Entry::file("shared1", "x").xattr("user.same", "value"))
        .add(Entry::file("shared2", "x").xattr("user.same", "value").xattr("user.own", "y"))
        .file("whole", "w".repeat(512))
        .file("longer", "w".repeat(513))
        .symlink("link", "t".repeat(400))
        .symlink("long-link", "t/".repeat(2000))
        .hard_link("hard", "whole")
        .add(Entry::sparse("sparse", 1 << 20, &[(4096, vec![b'x'; 4096]), (512_000, vec![b'y'; 700])], Sparse::Pax10));
    for n in 0..3000 {
        tar = tar.file(format!("many/{n:04}-{}", "x".repeat(n % 60)), n.to_string());
    }
    pulled(&env, "kinds", vec![tar.finish()]);
    same_by_both(&env, "kinds:1");
}

#[test]
fn a_tar_without_padding_at_its_end_is_read_to_its_last_byte() {
    let env = TestEnv::new();
    let mut tar = Tar::new().file("first", "1").file("last", "w".repeat(70_001)).finish();
    // Cuts the end marker and the padding of the last file.
    let data = tar.windows(2).rposition(|pair| pair == b"ww").unwrap() + 2;
    tar.truncate(data);
    pulled(&env, "cut", vec![tar]);
    same_by_both(&env, "cut:1");
}

#[test]
fn five_hundred_layers_are_mounted() {
    let env = TestEnv::new();
    let layer = |n: usize| Tar::new().file(format!("file-{n}"), format!("of layer {n}")).file("same", n.to_string());
    pulled(&env, "deep", (0..500).map(|n| layer(n).finish()).collect());
    same_by_both(&env, "deep:1");
}

#[test]
fn no_process_serves_the_mount_and_either_umount_ends_it() {
    let env = TestEnv::new();
    small(&env);
    for (options, by_plyfs) in [(&[][..], true), (&["--rw"], true), (&[], false), (&["--rw"], false)] {
        let mount = env.mount("box:1", &[&["--engine=kernel"], options].concat());
        assert_eq!(fs::read_to_string(mount.path().join("d/a")).unwrap(), "one");
        let row = env.ok(["mounts", "--format", "{{.Engine}} {{.PID}} {{.State}} {{.Mountpoint}}"]);
        assert_eq!(row.trim_end(), format!("kernel - live {}", mount.path().display()));
        assert!(env.fails(["rmi", "box:1"]).contains("conflict"));
        if by_plyfs {
            mount.unmount();
        } else {
            unmount(mount.path());
        }
        assert_eq!(env.ok(["mounts", "-q"]), "");
        assert_eq!(env.ok(["system", "fsck", "--fast"]).lines().filter(|line| !line.contains("mount")).count(), 0);
    }
    env.ok(["rmi", "box:1"]);
    assert!(erofs_files(&env).is_empty(), "an image's EROFS file goes with the image");
}

#[test]
fn a_mount_that_is_in_use_is_not_unmounted_and_its_image_not_removed() {
    let env = TestEnv::new();
    small(&env);
    let mount = env.mount("box:1", &["--engine=kernel"]);
    let mut file = fs::File::open(mount.path().join("b")).unwrap();
    assert!(env.fails(["umount".as_ref(), mount.path().as_os_str()]).contains("is in use"));
    assert!(env.fails(["rmi", "box:1"]).contains("conflict"));
    env.ok(["umount".as_ref(), "--lazy".as_ref(), mount.path().as_os_str()]);
    env.ok(["rmi", "box:1"]);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "two", "an open file outlives its mount and its image");
}

#[test]
fn changes_of_one_engine_are_the_others() {
    let env = TestEnv::new();
    small(&env);
    let upper = env.path("upper");
    let mount = |engine: &str| {
        let mut command = env.command(["mount", "--engine", engine, "--upper"]);
        Mount::start(&env, command.arg(&upper).arg("box:1"))
    };
    let kernel = mount("kernel");
    let at = kernel.path().to_owned();
    fs::write(at.join("d/new"), "by the kernel").unwrap();
    fs::remove_file(at.join("b")).unwrap();
    fs::rename(at.join("d"), at.join("moved")).unwrap();
    kernel.unmount();
    let fuse = mount("fuse");
    let at = fuse.path().to_owned();
    assert_eq!(fs::read_to_string(at.join("moved/new")).unwrap(), "by the kernel");
    assert_eq!(fs::read_to_string(at.join("moved/a")).unwrap(), "one");
    assert!(!at.join("b").exists() && !at.join("d").exists());
    fs::rename(at.join("moved"), at.join("again")).unwrap();
    fs::set_permissions(at.join("c"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(at.join("b"), "by FUSE").unwrap();
    let changes = env.ok(["diff".as_ref(), "--upper".as_ref(), upper.as_os_str()]);
    assert!(["A /again/new", "C /b", "C /c", "D /d"].iter().all(|line| changes.contains(line)), "{changes}");
    fuse.unmount();
    let kernel = mount("kernel");
    let at = kernel.path().to_owned();
    assert_eq!(fs::read_to_string(at.join("again/a")).unwrap(), "one");
    assert_eq!(fs::read_to_string(at.join("b")).unwrap(), "by FUSE");
    assert_eq!(fs::read_to_string(at.join("c")).unwrap(), "three");
    assert_eq!(fs::metadata(at.join("c")).unwrap().mode() & 0o777, 0o600);
    assert!(!at.join("moved").exists() && !at.join("gone").exists());
    kernel.unmount();
}

#[test]
fn an_upper_directory_has_one_mount_whichever_the_engines() {
    let env = TestEnv::new();
    small(&env);
    let upper = env.path("upper");
    let attempt = |engine: &str| {
        let at = env.path(format!("at-{engine}"));
        fs::create_dir_all(&at).unwrap();
        let mut command = env.command(["mount", "--engine", engine, "--upper"]);
        run(command.arg(&upper).arg("box:1").arg(&at))
    };
    for first in ["kernel", "fuse"] {
        let mut command = env.command(["mount", "--engine", first, "--upper"]);
        let mount = Mount::start(&env, command.arg(&upper).arg("box:1"));
        for second in ["kernel", "fuse"] {
            let refused = attempt(second);
            assert_eq!(refused.code, 1, "{second} over {first}: {refused:?}");
            assert!(refused.stderr.contains("is in use by another mount"), "{refused:?}");
        }
        mount.unmount();
    }
}

#[test]
fn a_damaged_erofs_file_is_made_again_and_never_mounted() {
    let env = TestEnv::new();
    small(&env);
    let [path] = &erofs_files(&env)[..] else { panic!("one image has one EROFS file") };
    let whole = fs::read(path).unwrap();
    for at in (0..whole.len() as u64).step_by(97) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[whole[at as usize] ^ 0x10], at).unwrap();
        if at % 970 == 0 {
            assert!(env.run(["system", "fsck", "--fast"]).stdout.contains("EROFS"), "byte {at}");
        }
        let mount = env.mount("box:1", &["--engine=kernel"]);
        assert_eq!(fs::read_to_string(mount.path().join("c")).unwrap(), "three", "byte {at}");
        mount.unmount();
        assert!(fs::read(path).unwrap() == whole, "the same bytes were written again");
        if at > 97 * 40 {
            break;
        }
    }
    // A shorter one, none, and one of another image.
    fs::File::options().write(true).open(path).unwrap().set_len(2000).unwrap();
    same_by_both(&env, "box:1");
    fs::remove_file(path).unwrap();
    same_by_both(&env, "box:1");
    assert!(fs::read(path).unwrap() == whole);
}

#[test]
fn a_layer_that_lost_its_end_is_refused() {
    let env = TestEnv::new();
    small(&env);
    let layers = fs::read_dir(env.root().join("layers/sha256")).unwrap();
    for layer in layers {
        let tar = layer.unwrap().path().join("layer.tar");
        let length = fs::metadata(&tar).unwrap().len();
        fs::File::options().write(true).open(&tar).unwrap().set_len(length - 512).unwrap();
        fs::create_dir_all(env.path("at")).unwrap();
        let at = env.path("at").display().to_string();
        assert!(env.fails(["mount", "--engine=kernel", "box:1", &at]).contains("bytes, wanted"));
        fs::File::options().write(true).open(&tar).unwrap().set_len(length).unwrap();
    }
}

/// Kernel overlayfs would take them for its own marks, and hide or replace files.
#[test]
fn what_overlayfs_would_obey_is_left_to_the_fuse_engine() {
    let env = TestEnv::new();
    let marked = [
        Entry::char_device("mark", 0, 0),
        Entry::dir("mark").xattr("trusted.overlay.opaque", "y"),
        Entry::file("mark", "").xattr("user.overlay.redirect", "/a"),
    ];
    for (number, mark) in marked.into_iter().enumerate() {
        let (name, image) = (format!("marks{number}"), format!("marks{number}:1"));
        pulled(&env, &name, vec![Tar::new().add(mark).file("a", "1").finish()]);
        same_by_both(&env, &image);
        let (upper, at) = (env.path(format!("upper{number}")), env.path(format!("at{number}")));
        fs::create_dir(&at).unwrap();
        let mut kernel = env.command(["mount", "--engine=kernel", "--upper"]);
        let refused = run(kernel.arg(&upper).arg(&image).arg(&at));
        assert!(refused.code == 1 && refused.stderr.contains("use --engine=fuse"), "{refused:?}");
        let mut auto = env.command(["mount", "--engine=auto", "--upper"]);
        let mount = Mount::start(&env, auto.arg(&upper).arg(&image));
        assert!(mount.path().join("mark").symlink_metadata().is_ok());
        assert_eq!(env.ok(["mounts", "--format", "{{.Engine}}"]).trim_end(), "fuse");
        mount.unmount();
    }
}

#[test]
fn the_engine_is_chosen_by_option_variable_and_file() {
    let env = TestEnv::new();
    small(&env);
    fs::create_dir_all(env.path("config/plyfs")).unwrap();
    let engine = |arguments: &[&str], variable: Option<&str>, file: Option<&str>| {
        let config = env.path("config/plyfs/plyfs.toml");
        match file {
            Some(word) => fs::write(&config, format!("engine = \"{word}\"\n")).unwrap(),
            None => drop(fs::remove_file(&config)),
        }
        let mut command = env.command(["mount"]);
        command.args(arguments).arg("box:1").env("XDG_CONFIG_HOME", env.path("config"));
        match variable {
            Some(word) => command.env("PLYFS_ENGINE", word),
            None => command.env_remove("PLYFS_ENGINE"),
        };
        let mount = Mount::start(&env, &mut command);
        let shown = env.ok(["mounts", "--format", "{{.Engine}}"]);
        mount.unmount();
        shown.trim_end().to_owned()
    };
    assert_eq!(engine(&[], None, None), "fuse");
    assert_eq!(engine(&[], None, Some("kernel")), "kernel");
    assert_eq!(engine(&[], Some("fuse"), Some("kernel")), "fuse");
    assert_eq!(engine(&["-o", "engine=kernel"], Some("fuse"), None), "kernel");
    assert_eq!(engine(&["-o", "engine=kernel", "--engine=fuse"], None, Some("auto")), "fuse");
    assert_eq!(engine(&["--engine=auto"], None, None), "kernel");
    let wrong = run(env.command(["mounts"]).env("XDG_CONFIG_HOME", env.path("none")).env("PLYFS_ENGINE", "x"));
    assert_eq!(wrong.code, 0, "a wrong engine matters to those who mount");
    let wrong = run(env.command(["mount", "box:1", "/"]).env("PLYFS_ENGINE", "x"));
    assert!(wrong.stderr.contains("PLYFS_ENGINE=x: wanted fuse, kernel or auto"), "{wrong:?}");
}

#[test]
fn a_plain_user_is_told_what_the_kernel_engine_needs() {
    let env = TestEnv::new();
    small(&env);
    let user = 65_534;
    let root = env.root();
    run(Command::new("chown").arg("-R").arg(user.to_string()).arg(root.parent().unwrap()));
    fs::create_dir(env.path("at")).unwrap();
    run(Command::new("chown").arg(user.to_string()).arg(env.path("at")));
    let at = env.path("at").display().to_string();
    let refused = run(&mut env.as_user(user, &["mount", "--engine=kernel", "box:1", &at]));
    assert!(refused.code == 1 && refused.stderr.contains("needs CAP_SYS_ADMIN"), "{refused:?}");
}

/// Reads at every offset where one block ends and another begins.
#[test]
fn sparse_files_are_read_and_sought_like_local_ones() {
    let env = TestEnv::new();
    let pieces = [(512, vec![b'a'; 100]), (5000, vec![b'b'; 3000]), (1 << 20, vec![b'c'])];
    let tar = Tar::new().add(Entry::sparse("s", (1 << 20) + 1, &pieces, Sparse::Pax10)).finish();
    pulled(&env, "holes", vec![tar]);
    let mount = env.mount("holes:1", &["--engine=kernel"]);
    let mut expected = vec![0; (1 << 20) + 1];
    pieces.iter().for_each(|(at, data)| expected[*at as usize..][..data.len()].copy_from_slice(data));
    let mut file = fs::File::open(mount.path().join("s")).unwrap();
    for at in [0, 511, 512, 611, 612, 4999, 5000, 8000, 1 << 19, (1 << 20) - 1, 1 << 20] {
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(at)).unwrap();
        (&mut file).take(9000).read_to_end(&mut found).unwrap();
        let end = expected.len().min(at as usize + 9000);
        assert!(found == expected[at as usize..end], "at {at}");
    }
    drop(file);
    mount.unmount();
}

#[test]
fn a_container_runs_on_the_kernel_engine() {
    let env = small::environment();
    let script = "cat /proc/mounts && echo changed > /etc/made && busybox rm /etc/group";
    let output = env.ok(["run", "--engine=kernel", "--name", "kc", "--network", "none", "box:1", "sh", "-c", script]);
    assert!(output.lines().any(|line| line.starts_with("box:1 / overlay ")), "{output}");
    let changes = env.ok(["diff", "kc"]);
    assert!(changes.contains("A /etc/made") && changes.contains("D /etc/group"), "{changes}");
    assert_eq!(env.ok(["inspect", "--format", "{{.GraphDriver.Data.Engine}}", "kc"]).trim_end(), "kernel");
    // On a stopped container `cp` mounts its file system for a moment, by the same engine.
    fs::write(env.path("in"), "copied in").unwrap();
    env.ok(["cp", &env.path("in").display().to_string(), "kc:/etc/in"]);
    env.ok(["cp", "kc:/etc/in", &env.path("out").display().to_string()]);
    assert_eq!(fs::read_to_string(env.path("out")).unwrap(), "copied in");
    env.ok(["commit", "kc", "committed:1"]);
    let mount = env.mount("committed:1", &["--engine=kernel"]);
    assert_eq!(fs::read_to_string(mount.path().join("etc/made")).unwrap(), "changed\n");
    assert!(!mount.path().join("etc/group").exists());
    mount.unmount();
    env.ok(["rm", "kc"]);
}

#[test]
fn many_mounts_of_one_image_are_independent() {
    let env = TestEnv::new();
    small(&env);
    let mounts: Vec<Mount> = (0..8).map(|_| env.mount("box:1", &["--engine=kernel", "--rw"])).collect();
    for (number, mount) in mounts.iter().enumerate() {
        let mut file = fs::File::create(mount.path().join("own")).unwrap();
        file.write_all(number.to_string().as_bytes()).unwrap();
    }
    for (number, mount) in mounts.iter().enumerate() {
        assert_eq!(fs::read_to_string(mount.path().join("own")).unwrap(), number.to_string());
    }
    mounts.into_iter().for_each(Mount::unmount);
    assert!(Path::new(&env.root()).exists());
}

/// Without root the FUSE engine serves the image, and kernel overlayfs takes the changes, in the container's own user
/// namespace.
#[test]
fn a_plain_users_container_changes_files_through_kernel_overlayfs() {
    let (env, _home) = small::for_user(UUCP);
    let _ids = small::SubordinateIds::add("uucp", 1_800_100_000);
    let user = |words: &[&str]| run(&mut env.as_user(UUCP, words));
    let script = "cat /proc/mounts; touch /new; chown 1000 /new; chmod 640 /new; chmod 600 /etc/group; \
                  busybox mv /mnt /moved; busybox rm /etc/passwd; stat -c '%u %a' /new";
    let seen = user(&["run", "--engine=kernel", "--name", "mine", "box:1", "sh", "-c", script]);
    assert_eq!((seen.code, seen.stderr.as_str()), (0, ""), "{seen:?}");
    assert!(seen.stdout.lines().any(|line| line.starts_with("box:1 / overlay ")), "{seen:?}");
    assert!(seen.stdout.ends_with("1000 640\n"), "{seen:?}");
    let changes = user(&["diff", "mine"]).stdout;
    assert_eq!(changes, "C /etc\nC /etc/group\nD /etc/passwd\nD /mnt\nA /moved\nA /new\n", "{changes}");
    assert_eq!(user(&["commit", "mine", "box:2"]).code, 0);
    let look = ["run", "--rm", "-u", "1000", "box:2", "stat", "-c", "%u %a", "/new", "/moved", "/etc/group"];
    assert_eq!(user(&look).stdout, "1000 640\n0 755\n0 600\n");
    let again = user(&["start", "-a", "mine"]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(user(&["rm", "mine"]).code, 0);
    let chroot = ["chroot", "--engine=kernel", "--rw", "box:1", "sh", "-c", "echo kept >> /tmp/kept; cat /tmp/kept"];
    assert_eq!(user(&chroot).stdout, "kept\n");
    assert_eq!(user(&chroot).stdout, "kept\nkept\n");
    // Such a directory has native owners, with the FUSE engine too.
    let script = "chown ann /tmp/kept; stat -c %u /tmp/kept";
    assert_eq!(user(&["chroot", "--engine=fuse", "--rw", "box:1", "sh", "-c", script]).stdout, "1000\n");
    let kernel = ["chroot", "--engine=kernel", "--rw", "box:1", "stat", "-c", "%u", "/tmp/kept"];
    assert_eq!(user(&kernel).stdout, "1000\n");
}

/// The FUSE engine keeps a plain user's owners in attributes, which the kernel does not read.
#[test]
fn a_plain_users_upper_directory_of_the_fuse_engine_stays_with_it() {
    let (env, home) = small::for_user(PROXY);
    let _ids = small::SubordinateIds::add("proxy", 1_800_200_000);
    let upper = home.join("upper").display().to_string();
    let chroot = |engine: &str| {
        run(&mut env.as_user(PROXY, &["chroot", engine, "--upper", &upper, "box:1", "sh", "-c", "echo x > /tmp/x"]))
    };
    assert_eq!(chroot("--engine=fuse").code, 0);
    let refused = chroot("--engine=kernel");
    assert!(refused.code == 125 && refused.stderr.contains("owners and modes in attributes"), "{refused:?}");
    assert_eq!(chroot("--engine=auto").code, 0);
}

#[test]
fn mount_flags_hold_for_both_file_systems() {
    let env = TestEnv::new();
    small(&env);
    for more in [&[][..], &["--rw"]] {
        let mount = env.mount("box:1", &[&["--engine=kernel", "-o", "nosuid,nodev,noexec"], more].concat());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(&mount.path().display().to_string())).unwrap();
        let flags = line.split(' ').nth(5).unwrap();
        for flag in ["nosuid", "nodev", "noexec", "noatime", if more.is_empty() { "ro" } else { "rw" }] {
            assert!(flags.split(',').any(|found| found == flag), "{flag}: {line}");
        }
        mount.unmount();
    }
}

/// A directory of 100,000 entries, most of them in blocks of their own, found by binary search.
#[test]
fn a_large_directory_is_listed_and_searched() {
    let env = TestEnv::new();
    let mut tar = Tar::new();
    for n in 0..100_000 {
        tar = tar.file(format!("d/{n}"), "");
    }
    pulled(&env, "large", vec![tar.finish()]);
    let mount = env.mount("large:1", &["--engine=kernel"]);
    assert_eq!(fs::read_dir(mount.path().join("d")).unwrap().count(), 100_000);
    for n in (0..100_000).step_by(777) {
        assert!(mount.path().join("d").join(n.to_string()).symlink_metadata().is_ok(), "{n}");
    }
    assert!(mount.path().join("d/100000").symlink_metadata().is_err());
    mount.unmount();
}

#[test]
fn a_mount_of_the_kernel_engine_is_remounted() {
    let env = TestEnv::new();
    small(&env);
    let remount = |mount: &Mount, options: &str| {
        run(env.command(["mount", "-o", &format!("remount,{options}"), "box:1"]).arg(mount.path()))
    };
    let writable = env.mount("box:1", &["--engine=kernel", "--rw"]);
    assert_eq!(remount(&writable, "ro").code, 0);
    assert!(fs::write(writable.path().join("x"), "").is_err());
    assert_eq!(remount(&writable, "rw,noexec").code, 0);
    fs::write(writable.path().join("x"), "").unwrap();
    writable.unmount();
    let image = env.mount("box:1", &["--engine=kernel"]);
    let refused = remount(&image, "rw");
    assert!(refused.code == 1 && refused.stderr.contains("cannot remount"), "{refused:?}");
    image.unmount();
}

/// A layer of random entries: every kind, odd names, attributes that some entries share, sparse files.
fn random_layer(random: &mut Random) -> Vec<u8> {
    let (mut tar, mut dirs, mut files) = (Tar::new(), vec![String::new()], Vec::new());
    for number in 0..50 + random.below(250) {
        let name = match random.below(8) {
            0 => format!("{number}-{}", "long".repeat(random.below(60) as usize)),
            1 => format!("!{number}"),
            2 => format!(".{number}\u{e4} x"),
            _ => number.to_string(),
        };
        let parent = &dirs[random.below(dirs.len() as u64) as usize];
        let path = format!("{parent}{name}");
        let size = random.pick(&[0, 1, 511, 512, 513, 4096, 5000, 70_000]);
        let content = vec![b'a' + (number % 26) as u8; size];
        let mut entry = match random.below(12) {
            0..=2 => {
                dirs.push(format!("{path}/"));
                Entry::dir(&path)
            }
            3 => Entry::symlink(&path, "t".repeat(1 + random.below(900) as usize)),
            4 => Entry::fifo(&path),
            5 => Entry::char_device(&path, 1 + random.below(4000), random.below(1 << 20)),
            6 if !files.is_empty() => Entry::hard_link(&path, &files[random.below(files.len() as u64) as usize]),
            7 => {
                let (at, hole) = (random.below(9000), random.below(9000));
                let segments = [(at, content.clone()), (at + size as u64 + hole + 1, vec![b'z'; 700])];
                Entry::sparse(&path, at + size as u64 + hole + 20_000, &segments, Sparse::Pax10)
            }
            _ => {
                files.push(path.clone());
                Entry::file(&path, content)
            }
        };
        entry =
            entry.mode(random.below(0o10000) as u32).mtime(random.next() as i64 >> 29, random.below(1 << 29) as u32);
        entry = entry.owner(random.below(1 << 32), random.pick(&[0, 5, 70_000]));
        for attribute in 0..random.pick(&[0, 0, 0, 1, 3]) {
            let value = "v".repeat(random.pick(&[1, 2, 300, 5000]));
            // The kernel reads `user.` attributes of files and directories only.
            entry = entry.xattr(format!("trusted.{attribute}"), value);
        }
        tar = tar.add(entry);
    }
    tar.finish()
}

#[test]
fn random_trees_are_what_the_fuse_engine_shows() {
    let env = TestEnv::new();
    for seed in 1..=8 {
        let mut random = Random::new(seed);
        let layers = (0..1 + random.below(3)).map(|_| random_layer(&mut random)).collect();
        pulled(&env, &format!("random{seed}"), layers);
        same_by_both(&env, &format!("random{seed}:1"));
    }
}

/// The kernel's block numbers have 32 bits of 512 bytes, and a chunk's length 40 bits.
#[test]
fn a_file_beyond_four_gib_is_read_at_both_ends() {
    let env = TestEnv::new();
    let size = (5 << 30) + 700;
    let segments = [(0, vec![b'a'; 4096]), ((4 << 30) + 512, vec![b'b'; 8192]), (5 << 30, vec![b'c'; 700])];
    let tar = Tar::new().add(Entry::sparse("big", size, &segments, Sparse::Pax10)).finish();
    pulled(&env, "huge", vec![tar]);
    let mount = env.mount("huge:1", &["--engine=kernel"]);
    let file = fs::File::open(mount.path().join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    for (at, expected) in [(0, b'a'), (4095, b'a'), (4096, 0), (4 << 30, 0), ((4 << 30) + 512, b'b'), (size - 1, b'c')]
    {
        let mut byte = [9];
        file.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(byte[0], expected, "at {at}");
    }
    drop(file);
    mount.unmount();
}

#[test]
fn a_mount_in_another_mount_namespace_is_listed_until_that_ends() {
    let env = TestEnv::new();
    small(&env);
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let mount = env.command(["mount", "--engine=kernel", "box:1"]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "\"$@\" && echo mounted && read end", "sh"]).arg(mount.get_program());
    command.args(mount.get_args()).arg(&at).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut other = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mounted\n");
    assert!(!at.join("b").exists(), "it is not mounted here");
    assert_eq!(env.ok(["mounts", "--format", "{{.Engine}} {{.State}}"]), "kernel live\n");
    assert!(env.fails(["rmi", "box:1"]).contains("conflict"));
    drop(other.stdin.take());
    other.wait().unwrap();
    eventually("the namespace ends", || env.ok(["mounts", "-q"]).is_empty());
    env.ok(["rmi", "box:1"]);
}

/// As mount(8) calls the helper, and a bundle for a runtime.
#[test]
fn the_mount_helper_and_bundles_take_the_engine() {
    let env = small::environment();
    let (helper, at) = (env.path("mount.plyfs"), env.path("at"));
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_plyfs"), &helper).unwrap();
    fs::create_dir(&at).unwrap();
    let options = format!("rw,engine=kernel,upper={},root={}", env.path("u").display(), env.root().display());
    let mount = Mount::adopt(&env, &at);
    let output = run(Command::new(&helper).arg("box:1").arg(&at).args(["-o", &options]));
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(env.ok(["mounts", "--format", "{{.Engine}} {{.Mode}}"]), "kernel rw\n");
    mount.unmount();
    let dir = env.path("bundle");
    env.ok(["bundle", "--engine=kernel", "box:1", dir.to_str().unwrap()]);
    let mount = Mount::adopt(&env, &dir.join("rootfs"));
    assert_eq!(env.ok(["mounts", "--format", "{{.Engine}}"]), "kernel\n");
    assert!(mount.path().join("bin/busybox").exists());
    mount.unmount();
}
