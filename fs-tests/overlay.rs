//! The mount program for container engines: `plyfs overlay`, also called as `fuse-overlayfs`.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use crate::support::env::{Mount, Output, TestEnv, run, unmount, wait_until_unused};

/// Two lower directories, an upper and a work directory.
struct DirsFixture {
    env: TestEnv,
}

impl DirsFixture {
    fn new() -> DirsFixture {
        let env = TestEnv::new();
        for dir in ["a", "b", "u", "w", "m", "bin"] {
            fs::create_dir(env.path(dir)).unwrap();
        }
        for (file, content) in [("a/x", "from a"), ("b/x", "from b"), ("b/y", "only b")] {
            fs::write(env.path(file), content).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_plyfs"), env.path("bin/fuse-overlayfs")).unwrap();
        DirsFixture { env }
    }

    fn path(&self, name: &str) -> String {
        self.env.path(name).display().to_string()
    }

    /// The program under the name `fuse-overlayfs`, run in the directory that holds all layers.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.env.path("bin/fuse-overlayfs"));
        command.args(args).current_dir(self.env.path(""));
        command
    }

    #[track_caller]
    fn mount(&self, options: &str) -> Mount {
        wait_until_unused(&self.env.path("u"));
        Mount::start(&self.env, &mut self.command(&["-o", options]))
    }

    /// Requires one line on standard error, exit code 1, and no mount.
    #[track_caller]
    fn assert_refused(&self, options: &str, says: &[&str]) {
        let output = run(&mut self.command(&["-o", options, "m"]));
        let lines: Vec<_> = output.stderr.lines().collect();
        assert!(output.code == 1 && lines.len() == 1 && output.stdout.is_empty(), "{options}: {output:#?}");
        assert!(says.iter().all(|word| lines[0].contains(word)), "{options}: {output:#?}");
        assert!(fs::read_dir(self.env.path("m")).unwrap().next().is_none(), "{options}: something is mounted");
    }
}

const ALL: &str = "lowerdir=a:b,upperdir=u,workdir=w";

fn mounted_as(at: &Path) -> String {
    let output = run(Command::new("findmnt").args(["-n", "-o", "SOURCE,FSTYPE,OPTIONS"]).arg(at));
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout
}

#[test]
fn the_topmost_directory_wins_and_the_upper_one_takes_changes() {
    let dirs = DirsFixture::new();
    let mount = dirs.mount(ALL);
    let at = mount.path();
    let read = |name: &str| fs::read_to_string(at.join(name)).unwrap();
    assert_eq!((read("x"), read("y")), ("from a".into(), "only b".into()));
    fs::write(at.join("y"), "changed").unwrap();
    fs::remove_file(at.join("x")).unwrap();
    mount.unmount();
    assert_eq!(fs::read_to_string(dirs.env.path("b/y")).unwrap(), "only b");
    let again = dirs.mount(ALL);
    assert_eq!(fs::read_to_string(again.path().join("y")).unwrap(), "changed");
    assert!(!again.path().join("x").exists());
}

#[test]
fn command_lines_of_fuse_overlayfs_are_accepted() {
    let dirs = DirsFixture::new();
    for args in [
        &["-o", ALL, "m"][..],
        &["overlay", "m", "-o", ALL],
        &["-olowerdir=a:b", "-o", "upperdir=u,,workdir=w,", "m"],
        &["-o", "lowerdir=nowhere", "-o", ALL, "fuse-overlayfs", "m"],
        &["-o", "lowerdir=a::b:,upperdir=u,workdir=w,timeout=1,xino=off,noatime,rw,fsname=named", "m"],
    ] {
        wait_until_unused(&dirs.env.path("u"));
        let output = run(&mut dirs.command(args));
        assert_eq!((output.code, &*output.stdout, &*output.stderr), (0, "", ""), "{args:?}: {output:?}");
        let shown = mounted_as(&dirs.env.path("m"));
        assert!(shown.contains("fuse.plyfs") && shown.contains("default_permissions"), "{shown}");
        assert_eq!(shown.starts_with("named "), args[1].contains("fsname"), "{shown}");
        let magic = run(Command::new("stat").args(["-f", "-c", "%t"]).arg(dirs.env.path("m")));
        assert_eq!(magic.stdout.trim(), "65735546");
        let ended = run(Command::new("fusermount3").arg("-u").arg(dirs.env.path("m")));
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let mount = dirs.command(&["--bogus", "-o", "lowerdir=a,strange=1", "m"]).output().unwrap();
    let stderr = String::from_utf8(mount.stderr).unwrap();
    assert_eq!(stderr, "unknown argument ignored: --bogus\nunknown argument ignored: strange=1\n");
    unmount(&dirs.env.path("m"));
    for (flag, says) in [("--version", "plyfs"), ("-V", "plyfs"), ("--help", "lowerdir="), ("-h", "lowerdir=")] {
        let output = run(&mut dirs.command(&[flag]));
        assert!(output.code == 0 && output.stdout.contains(says) && output.stderr.is_empty(), "{flag}: {output:?}");
    }
}

/// Callers read standard error until it is closed.
#[test]
fn the_daemon_closes_its_callers_stdout_and_stderr() {
    let dirs = DirsFixture::new();
    // `output` waits until every copy of both pipes is closed.
    let output = dirs.command(&["-o", ALL, "m"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(dirs.env.path("m/x").exists());
    assert_eq!(run(Command::new("umount").arg("-l").arg(dirs.env.path("m"))).code, 0);
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_line() {
    let dirs = DirsFixture::new();
    fs::write(dirs.env.path("file"), "").unwrap();
    fs::create_dir_all(dirs.env.path("a/inner/work")).unwrap();
    fs::create_dir("/dev/shm/plyfs-test-overlay-work").unwrap();
    let lowers = |count: usize| format!("lowerdir={}", vec!["a"; count].join(":"));
    for (options, says) in [
        ("upperdir=u,workdir=w", &["lowerdir="][..]),
        ("lowerdir=", &["lowerdir="]),
        ("lowerdir=a:nowhere,upperdir=u,workdir=w", &["nowhere", "No such file"]),
        ("lowerdir=a:file,upperdir=u,workdir=w", &["file", "not a directory"]),
        ("lowerdir=a,upperdir=u", &["workdir="]),
        ("lowerdir=a,upperdir=nowhere,workdir=w", &["nowhere"]),
        ("lowerdir=a,upperdir=u,workdir=nowhere", &["nowhere"]),
        ("lowerdir=a:b,upperdir=a/inner,workdir=w", &["upper", "a/inner"]),
        ("lowerdir=a/inner,upperdir=a,workdir=w", &["upper", "/a"]),
        ("lowerdir=a,upperdir=a,workdir=w", &["upper", "/a"]),
        ("lowerdir=a,upperdir=u,workdir=a/inner/work", &["work", "a/inner"]),
        ("lowerdir=a,upperdir=u,workdir=u", &["must not contain each other"]),
        ("lowerdir=a,upperdir=u,workdir=/dev/shm/plyfs-test-overlay-work", &["one file system"]),
        ("lowerdir=a,uidmapping=0:1", &["uidmapping"]),
        ("lowerdir=a,xattr_permissions=7", &["xattr_permissions"]),
        (&lowers(501), &["501", "500"]),
        (&format!("lowerdir=a,fsname={}", "x".repeat(5000)), &["fsname", "4095"]),
    ] {
        dirs.assert_refused(options, says);
    }
    fs::remove_dir("/dev/shm/plyfs-test-overlay-work").unwrap();
    assert!(fs::read_dir(dirs.env.path("u")).unwrap().next().is_none(), "the upper directory was changed");
    assert!(fs::read_dir(dirs.env.path("w")).unwrap().next().is_none(), "the work directory was changed");
    let names = run(Command::new("getfattr").args(["-d", "-m", "-"]).arg(dirs.env.path("u")));
    assert_eq!(names.stdout, "", "the upper directory was changed");
    let mount = dirs.mount(ALL);
    fs::create_dir(dirs.env.path("w2")).unwrap();
    fs::create_dir(dirs.env.path("u2")).unwrap();
    dirs.assert_refused(ALL, &["in use"]);
    dirs.assert_refused("lowerdir=a,upperdir=u2,workdir=w", &["in use"]);
    mount.unmount();
    let nobody = run(&mut dirs.command(&["-o", ALL, "no-mountpoint"]));
    assert!(nobody.code == 1 && nobody.stderr.contains("no-mountpoint"), "{nobody:?}");
    let none = run(&mut dirs.command(&["-o", ALL]));
    assert!(none.code == 1 && none.stderr.lines().count() == 1 && none.stderr.contains("mountpoint"), "{none:?}");
}

#[test]
fn five_hundred_directories_are_merged() {
    let dirs = DirsFixture::new();
    let lowers: Vec<String> = (0..500).map(|number| format!("layers/{number}")).collect();
    for dir in &lowers {
        fs::create_dir_all(dirs.env.path(dir)).unwrap();
        fs::write(dirs.env.path(dir).join(dir.rsplit('/').next().unwrap()), "").unwrap();
        fs::write(dirs.env.path(dir).join("shared"), dir).unwrap();
    }
    let mount = dirs.mount(&format!("lowerdir={}", lowers.join(":")));
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 501);
    assert_eq!(fs::read_to_string(mount.path().join("shared")).unwrap(), "layers/0");
}

#[test]
fn lowerdir_accepts_escaped_separators_and_paths_through_symlinks() {
    let dirs = DirsFixture::new();
    for dir in ["odd:one", "odd,two", "deep/diff1", "deep/link-target"] {
        fs::create_dir_all(dirs.env.path(dir)).unwrap();
    }
    fs::write(dirs.env.path("odd:one/one"), "").unwrap();
    fs::write(dirs.env.path("odd,two/two"), "").unwrap();
    fs::write(dirs.env.path("deep/diff1/three"), "").unwrap();
    symlink("deep/link-target", dirs.env.path("l")).unwrap();
    let mount = dirs.mount(r"lowerdir=odd\:one:odd\,two:l/../diff1");
    assert!(["one", "two", "three"].iter().all(|name| mount.path().join(name).exists()));
}

#[test]
fn without_an_upper_directory_the_mount_is_read_only() {
    let dirs = DirsFixture::new();
    for options in ["lowerdir=a:b", "lowerdir=a:b,upperdir=u,workdir=w,ro"] {
        let mount = dirs.mount(options);
        let error = fs::write(mount.path().join("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{options}: {error}");
        assert_eq!(fs::read_to_string(mount.path().join("x")).unwrap(), "from a");
        mount.unmount();
    }
}

#[test]
fn mapping_and_squash_options_set_the_shown_owners() {
    let dirs = DirsFixture::new();
    std::os::unix::fs::chown(dirs.env.path("a/x"), Some(100_003), Some(200_004)).unwrap();
    let owner = |path: PathBuf| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    let mapping = "uidmapping=:100000:0:65536,gidmapping=200000:0:10:200100:50:5";
    for (more, shown) in [
        (mapping, (3, 4)),
        ("uidmapping=100000:0:3", (65534, 200_004)),
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=7", (7, 200_004)),
        ("squash_to_gid=8,squash_to_root", (0, 8)),
    ] {
        let mount = dirs.mount(&format!("lowerdir=a:b,{more}"));
        assert_eq!(owner(mount.path().join("x")), shown, "{more}");
        mount.unmount();
    }
    let mount = dirs.mount(&format!("{ALL},{mapping}"));
    let new = mount.path().join("new");
    fs::write(&new, "").unwrap();
    assert_eq!((owner(new.clone()), owner(dirs.env.path("u/new"))), ((0, 0), (100_000, 200_000)));
    std::os::unix::fs::chown(&new, Some(5), Some(52)).unwrap();
    assert_eq!((owner(new.clone()), owner(dirs.env.path("u/new"))), ((5, 52), (100_005, 200_102)));
    std::os::unix::fs::chown(&new, Some(70_000), None).unwrap();
    assert_eq!(owner(new).0, 65534);
    mount.unmount();
}

#[test]
fn owner_and_mode_are_stored_in_the_requested_attribute() {
    let attribute = |path: PathBuf, name: &str| {
        let output = run(Command::new("getfattr").args(["--only-values", "-n", name]).arg(path));
        output.stdout
    };
    for (value, name) in [("1", "security.fuseoverlayfs.override_stat"), ("2", "user.containers.override_stat")] {
        let dirs = DirsFixture::new();
        let mount = dirs.mount(&format!("{ALL},xattr_permissions={value}"));
        let at = |name: &str| mount.path().join(name);
        fs::write(at("new"), "").unwrap();
        fs::set_permissions(at("new"), fs::Permissions::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(at("new"), Some(11), Some(12)).unwrap();
        fs::set_permissions(at("new"), fs::Permissions::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(at("y"), Some(5), Some(6)).unwrap();
        let check = |at: &dyn Fn(&str) -> PathBuf| {
            let found = fs::metadata(at("new")).unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (11, 12, 0o4751));
            let found = fs::metadata(at("y")).unwrap();
            assert_eq!((found.uid(), found.gid()), (5, 6));
        };
        check(&at);
        assert_eq!(attribute(dirs.env.path("u/new"), name), "11:12:4751:file");
        let native = fs::metadata(dirs.env.path("u/new")).unwrap();
        assert_eq!((native.uid(), native.gid(), native.mode() & 0o7000), (0, 0, 0));
        let hidden = run(Command::new("getfattr").args(["-d", "-m", "-"]).arg(at("new")));
        assert_eq!(hidden.stdout, "", "users of the mount see it");
        mount.unmount();
        // The root directory's attribute selects the form, whatever the options are.
        let mount = dirs.mount(ALL);
        check(&|name: &str| mount.path().join(name));
        mount.unmount();
        // The same when it is a lower directory.
        fs::create_dir(dirs.env.path("u2")).unwrap();
        let mount = dirs.mount("lowerdir=u:a:b,upperdir=u2,workdir=w");
        check(&|name: &str| mount.path().join(name));
    }
}

#[test]
fn options_disable_xattrs_link_counts_and_acls() {
    let dirs = DirsFixture::new();
    let set = run(Command::new("setfattr").args(["-n", "user.a", "-v", "1"]).arg(dirs.env.path("a/x")));
    assert_eq!(set.code, 0, "{set:?}");
    fs::create_dir_all(dirs.env.path("b/dir/sub")).unwrap();
    fs::create_dir_all(dirs.env.path("a/dir/other")).unwrap();
    let names = |output: Output| output.stdout.lines().filter(|line| line.starts_with("user.")).count();
    let list = |mount: &Mount| run(Command::new("getfattr").args(["-d", "-m", "-"]).arg(mount.path().join("x")));
    for (more, attributes, links) in [("", 1, 4), (",noxattrs=1", 0, 4), (",noacl", 1, 4), (",static_nlink", 1, 1)] {
        let mount = dirs.mount(&format!("{ALL}{more}"));
        assert_eq!(names(list(&mount)), attributes, "{more}");
        assert_eq!(fs::metadata(mount.path().join("dir")).unwrap().nlink(), links, "{more}");
        mount.unmount();
    }
    let user = run(Command::new("setfacl").args(["-m", "u:1:r"]).arg(dirs.env.path("a/x")));
    assert_eq!(user.code, 0, "{user:?}");
    fs::set_permissions(dirs.env.path("a/x"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(dirs.env.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for (more, may) in [("", true), (",noacl", false)] {
        let mount = dirs.mount(&format!("{ALL}{more}"));
        let mut cat = Command::new("setpriv");
        let read = run(cat.args(["--reuid=1", "--regid=1", "--clear-groups", "cat"]).arg(mount.path().join("x")));
        assert_eq!(read.code == 0, may, "{more}: {read:?}");
        mount.unmount();
    }
}

/// Symbolic links in a layer are not followed: neither one in place of a directory that another layer has, nor one in
/// the path to it.
#[test]
fn symlinks_in_layers_are_not_followed() {
    let dirs = DirsFixture::new();
    fs::create_dir_all(dirs.env.path("secret")).unwrap();
    fs::write(dirs.env.path("secret/key"), "outside").unwrap();
    symlink(dirs.path("secret"), dirs.env.path("a/etc")).unwrap();
    fs::create_dir(dirs.env.path("b/etc")).unwrap();
    fs::write(dirs.env.path("b/etc/key"), "inside").unwrap();
    fs::create_dir(dirs.env.path("a/dir")).unwrap();
    symlink(dirs.path("secret"), dirs.env.path("b/dir")).unwrap();
    let redirect = run(Command::new("setfattr")
        .args(["-n", "trusted.overlay.redirect", "-v", "/dir"])
        .arg(dirs.env.path("a/dir")));
    assert_eq!(redirect.code, 0, "{redirect:?}");
    fs::create_dir(dirs.env.path("a/up")).unwrap();
    let redirect = run(Command::new("setfattr")
        .args(["-n", "trusted.overlay.redirect", "-v", "/../secret"])
        .arg(dirs.env.path("a/up")));
    assert_eq!(redirect.code, 0, "{redirect:?}");
    let mount = dirs.mount(ALL);
    assert!(mount.path().join("etc").is_symlink());
    for dir in ["dir", "up"] {
        assert_eq!(fs::read_dir(mount.path().join(dir)).unwrap().count(), 0, "{dir} shows what is outside");
    }
}

/// Where the path to a file is longer than an attribute can be, its data cannot be found by a recorded path.
#[test]
fn files_at_paths_longer_than_an_attribute_can_be_changed_and_moved() {
    let dirs = DirsFixture::new();
    let go_down = |from: &Path, make: bool| {
        let mut at = rustix::fs::open(from, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for level in 0..30 {
            let name = format!("{level:0200}");
            if make {
                rustix::fs::mkdirat(&at, &*name, Mode::from_raw_mode(0o755)).unwrap();
            }
            at = rustix::fs::openat(&at, &*name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd()));
        (at, path)
    };
    let (_below, below) = go_down(&dirs.env.path("b"), true);
    for (name, content) in [("changed", "old"), ("moved", "moved"), ("linked", "linked"), ("chmodded", "kept")] {
        fs::write(below.join(name), content).unwrap();
    }
    // A file that the one at the new name could be taken for.
    fs::write(below.join("dir-x"), "another").unwrap();
    fs::create_dir(below.join("dir")).unwrap();
    let mount = dirs.mount(ALL);
    let (held, at) = go_down(mount.path(), false);
    fs::write(at.join("changed"), "new").unwrap();
    fs::set_permissions(at.join("chmodded"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(at.join("dir-x")).unwrap();
    fs::rename(at.join("moved"), at.join("dir-x")).unwrap();
    fs::hard_link(at.join("linked"), at.join("dir/link")).unwrap();
    assert_eq!(fs::rename(at.join("dir"), at.join("other")).unwrap_err().raw_os_error(), Some(libc::EXDEV));
    drop(held);
    mount.unmount();
    let mount = dirs.mount(ALL);
    let (_held, at) = go_down(mount.path(), false);
    let read = |name: &str| fs::read_to_string(at.join(name)).unwrap();
    let found = ["changed", "dir-x", "linked", "dir/link", "chmodded"].map(read);
    assert_eq!(found, ["new", "moved", "linked", "linked", "kept"]);
}

/// Opens more files than the process may have descriptors.
#[test]
fn thousands_of_open_files_do_not_exhaust_descriptors() {
    let dirs = DirsFixture::new();
    fs::create_dir(dirs.env.path("b/many")).unwrap();
    for number in 0..3000 {
        fs::write(dirs.env.path(format!("b/many/{number}")), number.to_string()).unwrap();
    }
    let mut command = Command::new("prlimit");
    command.arg("--nofile=300:300").arg(dirs.env.path("bin/fuse-overlayfs")).args(["-o", ALL]);
    let mount = Mount::start(&dirs.env, command.current_dir(dirs.env.path("")));
    let open = |number: i32| fs::File::open(mount.path().join(format!("many/{number}"))).unwrap();
    let files: Vec<fs::File> = (0..3000).map(open).collect();
    for (number, file) in files.iter().enumerate() {
        assert_eq!(std::io::read_to_string(file).unwrap(), number.to_string());
    }
    for number in (0..3000).step_by(7) {
        fs::write(mount.path().join(format!("many/{number}")), "written").unwrap();
    }
    assert_eq!(fs::read_to_string(mount.path().join("many/2996")).unwrap(), "written");
}

/// An inode number recorded in the upper directory may belong to another file after the lower directories have been
/// changed: neither file is taken for the other.
#[test]
fn changed_lower_directories_do_not_mix_up_inode_numbers() {
    let dirs = DirsFixture::new();
    let mount = dirs.mount(ALL);
    let number = fs::metadata(mount.path().join("y")).unwrap().ino();
    fs::write(mount.path().join("y"), "mine").unwrap();
    fs::rename(mount.path().join("y"), mount.path().join("moved")).unwrap();
    mount.unmount();
    // The same inode under another name: the file whose number the upper directory recorded is visible again.
    fs::rename(dirs.env.path("b/y"), dirs.env.path("b/z")).unwrap();
    for first in ["moved", "z"] {
        let mount = dirs.mount(ALL);
        fs::metadata(mount.path().join(first)).unwrap();
        let read = |name: &str| fs::read_to_string(mount.path().join(name)).unwrap();
        assert_eq!((read("moved"), read("z")), ("mine".into(), "only b".into()));
        let inode = |name: &str| fs::metadata(mount.path().join(name)).unwrap().ino();
        assert_ne!(inode("moved"), inode("z"), "both have the number {number}");
        mount.unmount();
    }
}

#[test]
fn an_upper_directory_of_an_image_is_refused() {
    let dirs = DirsFixture::new();
    let set = ["-n", "trusted.overlay.plyfs.image", "-v", "sha256:0123"];
    assert_eq!(run(Command::new("setfattr").args(set).arg(dirs.env.path("u"))).code, 0);
    dirs.assert_refused(ALL, &["sha256:0123"]);
}
