//! Writable mounts through the program: refused options, persistence, whiteouts, volatile mounts, full disks, plain
//! users.

use crate::support::env::{Mount, TestEnv, run};
use crate::support::oci::Image;
use crate::support::tar::{Entry, Tar};
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user and group ID of `nobody`, as in `mounting`.
const USER: u32 = 65534;
const BIG: usize = 3 << 20;

fn env() -> TestEnv {
    let env = TestEnv::new();
    let layer = Tar::new()
        .dir("d")
        .file("d/file", "below")
        .file("big", vec![b'b'; BIG])
        .add(Entry::file("theirs", "x").owner(1000, 1000).mode(0o400))
        .symlink("link", "d/file")
        .finish();
    pull(&env, "one", layer);
    env
}

fn pull(env: &TestEnv, name: &str, layer: Vec<u8>) {
    Image::new().layer(layer).tag("1").write_layout(&env.path(name));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path(name).display())]);
}

fn mount(env: &TestEnv, options: &[&str]) -> Mount {
    let upper = env.path("upper").display().to_string();
    env.mount("one:1", &[&["--upper", &upper], options].concat())
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn changes_survive_a_remount_and_layers_stay_unchanged() {
    let env = env();
    let mount = mount(&env, &[]);
    let at = |name: &str| mount.path().join(name);
    let number = fs::metadata(at("d/file")).unwrap().ino();
    fs::write(at("d/file"), "above").unwrap();
    fs::rename(at("d"), at("moved")).unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::remove_file(at("link")).unwrap();
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(mount.path().to_str().unwrap())).unwrap().to_owned();
    assert!(line.contains(" fuse.plyfs rw,"), "{line}");
    mount.unmount();
    let again = self::mount(&env, &[]);
    let at = |name: &str| again.path().join(name);
    assert_eq!(text(at("moved/file")), "above");
    assert_eq!(fs::metadata(at("moved/file")).unwrap().ino(), number);
    assert_eq!(fs::read_dir(at("d")).unwrap().count(), 0);
    assert!(fs::symlink_metadata(at("link")).is_err());
    again.unmount();
    let plain = env.mount("one:1", &[]);
    assert_eq!(text(plain.path().join("d/file")), "below");
    assert!(env.path("upper.work").is_dir(), "the work directory lies beside the upper one");
    env.ok(["system", "fsck"]);
}

/// A whiteout is a hard link to another one, if there is one; each name can still be removed alone.
#[test]
fn whiteouts_share_an_inode_and_are_removed_one_by_one() {
    let env = env();
    let mount = mount(&env, &[]);
    let at = |name: &str| mount.path().join(name);
    let whiteout = |name: &str| {
        let found = fs::symlink_metadata(env.path("upper").join(name)).unwrap();
        assert!(found.file_type().is_char_device() && found.rdev() == 0, "{name}: {found:?}");
        (found.ino(), found.nlink())
    };
    fs::remove_file(at("big")).unwrap();
    fs::write(at("theirs"), "copied up").unwrap();
    for name in ["link", "theirs", "d/file"] {
        fs::remove_file(at(name)).unwrap();
    }
    let shared = whiteout("big");
    assert_eq!(shared.1, 4);
    assert_eq!(["link", "theirs", "d/file"].map(whiteout), [shared; 3]);
    for name in ["big", "link", "theirs", "d/file"] {
        fs::write(at(name), name).unwrap();
    }
    // The last whiteout's inode has no name left.
    fs::remove_file(at("link")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    assert_eq!(whiteout("link"), whiteout("d"));
    mount.unmount();
    let again = self::mount(&env, &[]);
    let at = |name: &str| again.path().join(name);
    assert_eq!(["big", "theirs"].map(|name| text(at(name))), ["big", "theirs"]);
    assert_eq!(["link", "d"].map(|name| fs::symlink_metadata(at(name)).is_ok()), [false; 2]);
    assert_eq!(fs::read_dir(env.path("upper.work/plyfs/tmp")).unwrap().count(), 0);
}

#[test]
fn invalid_writable_mounts_are_refused_in_one_line() {
    let env = env();
    pull(&env, "two", Tar::new().file("f", "2").finish());
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let upper = env.path("upper").display().to_string();
    let refused = |arguments: &[&str], says: &[&str]| {
        let all: Vec<&str> = ["mount"].iter().chain(arguments).chain(&[at.to_str().unwrap()]).copied().collect();
        let output = env.fails(all);
        for word in says {
            assert!(output.contains(word), "`{word}` is not in: {output}");
        }
    };
    refused(&["-o", "ro", "--upper", &upper, "one:1"], &["ro", "exclude"]);
    refused(&["-o", "volatile", "one:1"], &["volatile"]);
    let inside = format!("{upper}/work");
    refused(&["--upper", &upper, "--work", &inside, "one:1"], &["must not contain each other"]);
    refused(&["--upper", &upper, "--work", "/dev/shm/plyfs-test-work", "one:1"], &["one file system"]);
    let _leftover = fs::remove_dir_all("/dev/shm/plyfs-test-work");
    let file = env.path("file");
    fs::write(&file, "").unwrap();
    refused(&["--upper", file.to_str().unwrap(), "one:1"], &["file"]);

    let live = mount(&env, &[]);
    refused(&["--upper", &upper, "one:1"], &["in use by another mount", &upper]);
    let (other, work) = (env.path("other").display().to_string(), env.path("upper.work").display().to_string());
    refused(&["--upper", &other, "--work", &work, "one:1"], &["in use by another mount", &work]);
    live.unmount();
    refused(&["--upper", &upper, "two:1"], &["another image", "sha256:"]);
    mount(&env, &[]).unmount();
    assert_eq!(env.ok(["mounts", "-q"]), "");
}

/// A volatile upper directory can be mounted again until the machine is rebooted; after a crash its content is unknown.
#[test]
fn a_volatile_upper_directory_is_refused_after_a_reboot() {
    let env = env();
    let mount = mount(&env, &["-o", "volatile"]);
    let file = File::create(mount.path().join("new")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    let mark = env.path("upper.work/work/incompat/volatile");
    assert!(mark.is_dir(), "the kernel's mark is not there");
    let again = self::mount(&env, &["-o", "volatile"]);
    assert!(again.path().join("new").exists());
    again.unmount();
    let upper = env.path("upper").display().to_string();
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let noted = env.path("upper.work/plyfs/volatile");
    let boot = fs::read(&noted).unwrap();
    for other in [Some("another-run-of-the-machine"), None] {
        match other {
            Some(other) => fs::write(&noted, other).unwrap(),
            None => fs::remove_file(&noted).unwrap(),
        }
        let output = env.fails(["mount", "--upper", &upper, "one:1", at.to_str().unwrap()]);
        assert!(output.contains("volatile") && output.contains(mark.to_str().unwrap()), "{output}");
    }
    fs::write(&noted, boot).unwrap();
    let synced = self::mount(&env, &[]);
    assert!(synced.path().join("new").exists() && !mark.exists(), "a mount that syncs leaves the mark");
    synced.unmount();
    fs::remove_file(&noted).unwrap();
    assert!(self::mount(&env, &[]).path().join("new").exists());
}

#[test]
fn the_store_keeps_changes_per_image_and_mountpoint() {
    let env = env();
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let mounted = || env.ok(["mount", "--rw", "one:1", at.to_str().unwrap()]);
    let unmounted = || env.ok(["umount", at.to_str().unwrap()]);
    mounted();
    fs::write(at.join("kept"), "1").unwrap();
    unmounted();
    let elsewhere = env.mount("one:1", &["--rw"]);
    assert!(!elsewhere.path().join("kept").exists());
    mounted();
    let kept = fs::read_to_string(at.join("kept"));
    unmounted();
    assert_eq!(kept.unwrap(), "1");
    env.ok(["system", "fsck"]);
    env.ok(["system", "gc"]);
}

/// Unlike kernel overlayfs: a descriptor opened before a copy-up sees data written after it.
#[test]
fn files_opened_before_a_copy_up_see_later_writes() {
    let env = env();
    let mount = mount(&env, &[]);
    let path = mount.path().join("d/file");
    let mut before = File::open(&path).unwrap();
    let mut content = String::new();
    before.read_to_string(&mut content).unwrap();
    fs::write(&path, "above!").unwrap();
    before.seek(SeekFrom::Start(0)).unwrap();
    content.clear();
    before.read_to_string(&mut content).unwrap();
    assert_eq!(content, "above!");
    fs::remove_file(&path).unwrap();
    assert_eq!(before.metadata().unwrap().nlink(), 0);
    let mut four = [0; 4];
    before.read_exact_at(&mut four, 0).unwrap();
    assert_eq!(&four, b"abov");
}

/// A file system of one megabyte for the upper directory, which is soon full.
struct Small(PathBuf);

impl Small {
    fn new(env: &TestEnv) -> Small {
        let at = env.path("small");
        fs::create_dir(&at).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        assert_eq!(run(Command::new("mount").args(options).arg(&at)).code, 0);
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn a_full_disk_is_reported_and_loses_nothing() {
    let env = env();
    let small = Small::new(&env);
    let upper = small.0.join("upper").display().to_string();
    let mount = env.mount("one:1", &["--upper", &upper]);
    let big = mount.path().join("big");
    let number = fs::metadata(&big).unwrap().ino();
    // The attributes of the copy-up fit, its data does not.
    fs::set_permissions(&big, Permissions::from_mode(0o600)).unwrap();
    let mut file = File::options().append(true).open(&big).unwrap();
    let failed = file.write_all(b"x").and_then(|()| file.sync_all()).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(28), "{failed}");
    drop(file);
    mount.unmount();
    let mount = env.mount("one:1", &["--upper", &upper]);
    let big = mount.path().join("big");
    let data = fs::read(&big).unwrap();
    assert!(data.len() >= BIG && data[..BIG].iter().all(|byte| *byte == b'b'), "{} bytes", data.len());
    assert_eq!((fs::metadata(&big).unwrap().ino(), fs::metadata(&big).unwrap().mode() & 0o777), (number, 0o600));
    // Space can be freed.
    fs::write(&big, "").unwrap();
    fs::write(mount.path().join("new"), vec![1; 100_000]).unwrap();
    fs::remove_file(&big).unwrap();
    mount.unmount();
}

fn shell(script: &str, at: &Path) -> String {
    let output = run(Command::new("sh").args(["-ec", script]).current_dir("/").env("AT", at).uid(USER).gid(USER));
    assert_eq!(output.code, 0, "{script}: {output:?}");
    output.stdout
}

#[test]
fn a_plain_user_changes_files_of_root_and_owners_stay() {
    let env = env();
    fs::set_permissions(env.path(""), Permissions::from_mode(0o755)).unwrap();
    let own = |name: &str| {
        let path = env.path(name);
        fs::create_dir_all(&path).unwrap();
        assert_eq!(run(Command::new("chown").arg("-R").arg(format!("{USER}:{USER}")).arg(&path)).code, 0);
        path
    };
    let (_root, at, mine) = (own("root"), own("at"), own("mine"));
    let upper = mine.join("upper").display().to_string();
    let mount = |env: &TestEnv| {
        let mounted = run(env.as_user(USER, &["mount", "--upper", &upper, "one:1"]).arg(&at));
        assert_eq!(mounted.code, 0, "{mounted:?}");
    };
    let unmount = |env: &TestEnv| assert_eq!(run(env.as_user(USER, &["umount"]).arg(&at)).code, 0);
    mount(&env);
    let done = std::panic::catch_unwind(|| {
        shell("echo more >>$AT/theirs; chmod 0555 $AT/d/file; echo two >>$AT/d/file; chmod 0 $AT/big", &at);
        shell("mv $AT/d $AT/e; rm $AT/link; mkfifo $AT/e/pipe; ln -s e $AT/new; mkdir $AT/d; chown 5:6 $AT/d", &at)
    });
    unmount(&env);
    done.unwrap();
    mount(&env);
    let seen = std::panic::catch_unwind(|| {
        let stat = "cd $AT; stat -c '%n %u:%g %a %F' theirs e/file e/pipe new d big; cat theirs e/file; wc -c <big";
        shell(stat, &at)
    });
    unmount(&env);
    let expected = format!(
        "theirs 1000:1000 400 regular file\ne/file 0:0 555 regular file\ne/pipe {USER}:{USER} 644 fifo\n\
         new {USER}:{USER} 777 symbolic link\nd 5:6 755 directory\nbig 0:0 0 regular file\nxmore\nbelowtwo\n{BIG}\n"
    );
    assert_eq!(seen.unwrap(), expected);
}

#[track_caller]
fn done(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(output.code, 0, "{command:?}: {output:?}");
    output.stdout
}

/// Guards against lost writes: a descriptor that could only read stayed in use when the file became writable again.
#[test]
fn regression_a_file_that_was_immutable_is_written_again() {
    let env = env();
    let first = mount(&env, &[]);
    fs::write(first.path().join("new"), "a").unwrap();
    done(Command::new("chattr").arg("+i").args([first.path().join("new"), first.path().join("d/file")]));
    first.unmount();
    let second = mount(&env, &[]);
    let paths = [second.path().join("new"), second.path().join("d/file")];
    assert_eq!(text(paths[0].clone()) + &text(paths[1].clone()), "abelow");
    done(Command::new("chattr").arg("-i").args(&paths));
    for path in &paths {
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(b"b").and_then(|()| file.sync_all()).unwrap();
    }
    assert_ne!(run(Command::new("chattr").arg("+a").arg(&paths[0])).code, 0, "what is appended would be lost");
    second.unmount();
    let third = mount(&env, &[]);
    assert_eq!(text(third.path().join("new")) + &text(third.path().join("d/file")), "abbelowb");
}

/// Guards against inheriting the default ACL of the directory in which the upper and the work directory are created.
#[test]
fn regression_the_hosts_default_acl_is_not_inherited() {
    let env = env();
    done(Command::new("setfacl").args(["-d", "-m", "u:nobody:rwx,g::rwx"]).arg(env.path("")));
    let mount = mount(&env, &[]);
    fs::create_dir(mount.path().join("q")).unwrap();
    fs::set_permissions(mount.path().join("d/file"), Permissions::from_mode(0o640)).unwrap();
    fs::rename(mount.path().join("d"), mount.path().join("e")).unwrap();
    for name in ["", "q", "e", "e/file"] {
        let acl = done(Command::new("getfacl").args(["-c", "-p"]).arg(mount.path().join(name)));
        assert!(!acl.contains("nobody") && !acl.contains("default"), "{name}: {acl}");
    }
    assert_eq!(fs::metadata(mount.path().join("e/file")).unwrap().mode() & 0o777, 0o640);
}

/// Guards against a late write-back that changes the time: after a rename the kernel sends the time before the data.
#[test]
fn regression_late_write_back_keeps_the_modification_time() {
    let env = env();
    let mount = mount(&env, &[]);
    let mut file = File::create(mount.path().join("new")).unwrap();
    file.write_all(&[b'a'; 30_000]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    fs::rename(mount.path().join("new"), mount.path().join("moved")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(file);
    let time = |mount: &Mount| fs::metadata(mount.path().join("moved")).unwrap().modified().unwrap();
    let before = time(&mount);
    mount.unmount();
    assert_eq!(time(&self::mount(&env, &[])), before);
}
