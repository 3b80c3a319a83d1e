//! Mount lifecycle of images: mount, remount, unmount, dead mounts and the daemon, as root, as a plain user, by
//! mount(8).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::support::env::{Mount, TestEnv, run, unmount};
use super::support::eventually;
use super::support::oci::Image;
use super::support::tar::{Entry, Tar};
use super::support::tree::{Contents, diff, scan, scan_both};

/// The user ID of `nobody`: fusermount3 serves only users listed in the password database.
const USER: u32 = 65_534;

fn image(env: &TestEnv) {
    let tar = Tar::new()
        .add(Entry::dir("secret").mode(0o700))
        .add(Entry::file("secret/key", "for root").mode(0o600))
        .add(Entry::file("open", "for all").owner(1000, 1000))
        .add(Entry::file("suid", "#!").mode(0o4755))
        .add(Entry::char_device("null", 1, 3).mode(0o666))
        .add(Entry::file("acl", "shared").mode(0o640).xattr("system.posix_acl_access", acl_for(USER)))
        .add(Entry::file("trusted", "x").xattr("trusted.t", "1").xattr("user.u", "2"))
        .hard_link("again", "open")
        .finish();
    Image::new().layer(tar).tag("1").write_layout(&env.path("box"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("box").display())]);
}

/// `u::rw-,u:USER:r--,g::---,m::r--,o::---` as the kernel stores it (acl(5), linux/posix_acl_xattr.h).
fn acl_for(user: u32) -> Vec<u8> {
    let entry = |tag: u16, permission: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permission.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let entries = [entry(1, 6, none), entry(2, 4, user), entry(4, 0, none), entry(16, 4, none), entry(32, 0, none)];
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

fn daemon(env: &TestEnv) -> Pid {
    let table = env.ok(["mounts"]);
    let pid = table.lines().nth(1).unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    Pid::from_raw(pid).unwrap()
}

fn is_gone(pid: Pid) -> bool {
    // A zombie that init has not yet reaped has ended as well.
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    status.map_or(true, |stat| stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[test]
fn sigterm_sigint_and_umount_2_unmount_and_end_the_daemon() {
    let env = TestEnv::new();
    image(&env);
    for end in [Some(Signal::TERM), Some(Signal::INT), None] {
        let mount = env.mount("box:1", &[]);
        assert_eq!(fs::read_to_string(mount.path().join("open")).unwrap(), "for all");
        let pid = daemon(&env);
        match end {
            Some(signal) => kill_process(pid, signal).unwrap(),
            None => unmount(mount.path()),
        }
        eventually("the daemon ends", || is_gone(pid));
        assert!(!mount.is_live(), "{end:?} left a dead mount");
        assert_eq!(env.ok(["mounts", "-q"]), "", "{end:?} left its registration");
        assert_eq!(env.ok(["system", "fsck"]).lines().count(), 0, "{end:?} left something behind");
    }
}

#[test]
fn the_daemons_log_has_timestamps_and_events() {
    let env = TestEnv::new();
    image(&env);
    let log = |id: &str| fs::read_to_string(env.root().join("mounts").join(id.trim()).join("log")).unwrap();
    let mount = env.mount("box:1", &[]);
    let at = mount.path().display().to_string();
    let id = env.ok(["mounts", "-q"]);
    kill_process(daemon(&env), Signal::TERM).unwrap();
    eventually("the mount ends", || env.ok(["mounts", "-q"]).is_empty());
    let text = log(&id);
    for words in [format!("serving box:1 at {at}"), "signal 15: unmounting".into(), format!("{at} is unmounted")] {
        assert!(text.contains(&words), "`{words}` is not in: {text}");
    }
    for line in text.lines() {
        let (when, rest) = line.split_once(' ').unwrap();
        assert!(when.starts_with("20") && when.len() == "2026-01-01T00:00:00.000Z".len(), "{line}");
        assert!(when.ends_with('Z') && rest.trim_start().starts_with("INFO plyfs::"), "{line}");
    }
    // The user's log level applies, and with `-f` nothing is logged while all is well.
    let mount = Mount::start(&env, &mut env.command(["--log-level", "error", "mount", "box:1"]));
    let id = env.ok(["mounts", "-q"]);
    mount.unmount();
    assert_eq!(log(&id), "");
}

#[test]
fn open_files_stay_readable_after_a_signal_until_a_second_one() {
    let env = TestEnv::new();
    image(&env);
    let mount = env.mount("box:1", &[]);
    let mut open = File::open(mount.path().join("open")).unwrap();
    assert!(env.fails(["umount".as_ref(), mount.path().as_os_str()]).contains("in use"));
    let pid = daemon(&env);
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the mount goes", || !mount.is_live());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "for all");
    drop(open);
    eventually("the daemon ends with the last file", || is_gone(pid));

    let mount = env.mount("box:1", &[]);
    let _held = File::open(mount.path().join("open")).unwrap();
    let pid = daemon(&env);
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the mount goes", || !mount.is_live());
    kill_process(pid, Signal::TERM).unwrap();
    eventually("a second signal does not wait", || is_gone(pid));
}

/// Kills the daemon of the only mount with SIGKILL, so that it cannot unmount.
fn kill_daemon(env: &TestEnv) {
    let pid = daemon(env);
    kill_process(pid, Signal::KILL).unwrap();
    eventually("the daemon dies", || is_gone(pid));
}

const STATES: [&str; 3] = ["mounts", "--format", "{{.State}} {{.Mountpoint}}"];

#[test]
fn a_dead_mount_is_listed_and_umount_removes_it() {
    let env = TestEnv::new();
    image(&env);
    for args in [&["--lazy"][..], &[]] {
        let mount = env.mount("box:1", &[]);
        let (at, id) = (mount.path().display().to_string(), env.ok(["mounts", "-q"]));
        assert_eq!(env.ok(STATES), format!("live {at}\n"));
        kill_daemon(&env);
        assert!(fs::read(mount.path().join("open")).is_err(), "who serves it?");
        // A killed process has its locks until it is gone.
        eventually("the mount is dead", || env.ok(STATES) == format!("dead {at}\n"));
        assert_eq!(env.ok(["mounts", "-q"]), id);
        let json: serde_json::Value = serde_json::from_str(&env.ok(["mounts", "--format", "json"])).unwrap();
        assert_eq!((json["State"].as_str(), json["Mountpoint"].as_str()), (Some("dead"), Some(&*at)));
        // The collection frees its data, but only the user may remove the mount: unmounting uncovers another directory.
        env.ok(["system", "gc"]);
        assert_eq!(env.ok(STATES), format!("dead {at}\n"));
        assert_eq!(env.ok(["system", "fsck"]), "");
        assert!(mount.is_live(), "the collection unmounted it");
        env.ok([&["umount"], args, &[&at]].concat());
        assert!(!mount.is_live());
        assert_eq!((env.ok(STATES), env.ok(["system", "fsck"])), (String::new(), String::new()));
    }
    let mount = env.mount("box:1", &[]);
    kill_daemon(&env);
    env.ok(["rmi", "box:1"]);
    unmount(mount.path());
    assert_eq!(env.ok(STATES), "");
    env.ok(["system", "gc"]);
    env.ok(["system", "fsck"]);
}

#[test]
fn mounting_over_a_dead_mount_needs_the_replace_option() {
    let env = TestEnv::new();
    image(&env);
    let mount = env.mount("box:1", &["--rw"]);
    let at = mount.path().to_str().unwrap().to_owned();
    fs::write(mount.path().join("kept"), "kept").unwrap();
    File::open(mount.path().join("kept")).unwrap().sync_all().unwrap();
    kill_daemon(&env);
    let lower = format!("lowerdir={}", env.path("lower").display());
    fs::create_dir(env.path("lower")).unwrap();
    let named = |name: &str| {
        let _known = symlink(env!("CARGO_BIN_EXE_plyfs"), env.path(name));
        Command::new(env.path(name))
    };
    let root = format!("root={}", env.root().display());
    let refused = [
        run(&mut env.command(["mount", "box:1", &at])),
        run(&mut env.command(["overlay", "-o", &lower, &at])),
        run(named("fuse-overlayfs").args(["-o", &lower, &at])),
        run(named("mount.plyfs").args(["box:1", &at, "-o", &format!("rw,{root}")])),
        run(named("mount.plyfs").args(["box:1", &at, "-o", "rw,remount"])),
    ];
    for output in refused {
        assert_eq!((output.code, output.stderr.lines().count()), (1, 1), "{output:?}");
        for words in [&*at, "a dead plyfs mount is there", &format!("plyfs umount {at}"), "--replace"] {
            assert!(output.stderr.contains(words), "`{words}` is not in: {output:?}");
        }
    }
    let count = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches(&*at).count();
    env.ok(["mount", "--replace", "--rw", "box:1", &at]);
    assert_eq!((fs::read_to_string(mount.path().join("kept")).unwrap().as_str(), count()), ("kept", 1));
    assert_eq!(env.ok(STATES), format!("live {at}\n"));
    kill_daemon(&env);
    let output = run(named("mount.plyfs").args(["box:1", &at, "-o", &format!("ro,replace,{root}")]));
    assert_eq!((output.code, count(), env.ok(STATES)), (0, 1, format!("live {at}\n")), "{output:?}");
    kill_daemon(&env);
    let output = run(named("fuse-overlayfs").args(["-o", &format!("{lower},replace"), &at]));
    assert_eq!((output.code, count()), (0, 1), "{output:?}");
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    mount.unmount();
    // Without a dead mount there is nothing to replace.
    let mount = Mount::start(&env, &mut env.command(["mount", "--replace", "box:1"]));
    assert_eq!(env.ok(STATES), format!("live {}\n", mount.path().display()));
    mount.unmount();
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn a_dead_mount_at_a_mountpoint_inside_the_store_is_listed_and_removed_with_it() {
    let env = TestEnv::new();
    image(&env);
    for end in ["umount", "rm", "gc"] {
        let at = env.ok(["mount", "--print", "--rw", "box:1"]).trim().to_owned();
        let id = env.ok(["mounts", "-q"]).trim().to_owned();
        kill_daemon(&env);
        let listed = env.ok(STATES);
        match end {
            "umount" => env.ok(["umount", &at]),
            "rm" => env.ok(["rm", &id]),
            _ => env.ok(["system", "gc"]),
        };
        assert_eq!(listed, format!("dead {at}\n"), "{end}");
        assert!(!Path::new(&at).exists() && env.ok(STATES).is_empty(), "{end}");
        assert_eq!(env.ok(["system", "fsck"]), "", "{end}");
    }
}

#[test]
fn a_signal_unmounts_bind_mounts_of_the_mount_too() {
    let env = TestEnv::new();
    image(&env);
    let (mount, other) = (env.mount("box:1", &[]), env.path("other"));
    fs::create_dir(&other).unwrap();
    assert_eq!(run(Command::new("mount").arg("--bind").arg(mount.path()).arg(&other)).code, 0);
    let pid = daemon(&env);
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the daemon ends", || is_gone(pid));
    let empty = fs::read_dir(&other).map(|entries| entries.count()).ok();
    run(Command::new("umount").arg("-l").arg(&other));
    assert!(!mount.is_live());
    assert_eq!(empty, Some(0), "a dead mount stayed");
}

#[test]
fn a_covered_mount_survives_a_signal_and_both_can_be_unmounted() {
    let env = TestEnv::new();
    image(&env);
    let lower = env.mount("box:1", &[]);
    let pid = daemon(&env);
    env.ok(["mount".as_ref(), "box:1".as_ref(), lower.path().as_os_str()]);
    kill_process(pid, Signal::TERM).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    env.ok(["umount".as_ref(), lower.path().as_os_str()]);
    let below = fs::read_to_string(lower.path().join("open")).map_err(|e| e.to_string());
    env.ok(["umount".as_ref(), lower.path().as_os_str()]);
    assert_eq!(below, Ok("for all".into()), "the covered mount is dead");
    assert_eq!(env.ok(["mounts", "-q"]), "");
}

/// The kernel stops writers of a read-only mount, but root can remount it read-write.
#[test]
fn an_image_stays_read_only_when_it_is_remounted() {
    let env = TestEnv::new();
    image(&env);
    let mount = env.mount("box:1", &[]);
    assert_eq!(run(Command::new("mount").args(["-i", "-o", "remount,rw"]).arg(mount.path())).code, 0);
    let at = |name: &str| mount.path().join(name);
    let refused = [
        ("write", fs::OpenOptions::new().append(true).open(at("open")).and_then(|mut f| f.write_all(b"x"))),
        ("truncate", fs::OpenOptions::new().write(true).open(at("open")).and_then(|f| f.set_len(0))),
        ("create", File::create(at("new")).map(drop)),
        ("mkdir", fs::create_dir(at("new"))),
        ("unlink", fs::remove_file(at("open"))),
        ("rmdir", fs::remove_dir(at("secret"))),
        ("rename", fs::rename(at("open"), at("new"))),
        ("link", fs::hard_link(at("open"), at("new"))),
        ("symlink", symlink("open", at("new"))),
        ("chmod", fs::set_permissions(at("open"), PermissionsExt::from_mode(0o0))),
        (
            "setxattr",
            rustix::fs::setxattr(at("open"), "user.a", b"1", rustix::fs::XattrFlags::empty()).map_err(Into::into),
        ),
    ];
    for (what, result) in refused {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(30), "{what}");
    }
    assert_eq!(fs::read_to_string(at("open")).unwrap(), "for all");
}

#[test]
fn a_foreground_mount_lasts_until_sigint() {
    let env = TestEnv::new();
    image(&env);
    let at = env.path("front");
    fs::create_dir(&at).unwrap();
    let mut command = env.command(["mount", "-f", "box:1"]);
    let mut child: Child = command.arg(&at).stdin(Stdio::null()).spawn().unwrap();
    eventually("the mount is live", || at.join("open").exists());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "the mount stayed");
}

#[test]
fn the_daemon_closes_inherited_descriptors() {
    let env = TestEnv::new();
    image(&env);
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    // `cat` ends when every copy of descriptor 3 is closed.
    let plyfs = format!("{:?}", env.command(["mount", "box:1"])).replace("env -u PLYFS_ROOT ", "");
    let script = format!("{{ {plyfs} {at:?} 3>&1 >/dev/null 2>&1; }} | timeout 10 cat");
    let ended = run(Command::new("bash").args(["-c", &script]));
    let unmounted = run(env.command(["umount"]).arg(&at));
    assert_eq!((ended.code, unmounted.code), (0, 0), "{ended:?} {unmounted:?}");
}

#[test]
fn inode_numbers_and_metadata_are_the_same_at_every_mount() {
    let env = TestEnv::new();
    image(&env);
    let inodes = |at: &Path| {
        let mut all: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name(), e.metadata().unwrap().ino()))
            .collect();
        all.sort();
        all
    };
    let (first, second) = (env.mount("box:1", &[]), env.mount("box:1", &["-o", "wake=off"]));
    assert_eq!(inodes(first.path()), inodes(second.path()));
    let (a, b) = scan_both(first.path(), second.path(), Contents::Hash);
    assert!(a.faults.is_empty() && diff(&a, &b).is_empty());
    let before = inodes(first.path());
    first.unmount();
    let third = env.mount("box:1", &["-o", "wake=poll"]);
    assert_eq!(inodes(third.path()), before);
    assert_eq!(fs::metadata(third.path()).unwrap().ino(), 1);
}

#[test]
fn mount_options_take_effect() {
    let env = TestEnv::new();
    image(&env);
    let line = |at: &Path| {
        let table = fs::read_to_string("/proc/mounts").unwrap();
        table.lines().find(|l| l.split(' ').nth(1) == Some(at.to_str().unwrap())).unwrap().to_string()
    };
    let mount = env.mount("box:1", &[]);
    let plain = line(mount.path());
    assert!(plain.starts_with("box:1 ") && plain.contains(" fuse.plyfs ro,"), "{plain}");
    for word in ["nosuid", "nodev", "noexec"] {
        assert!(!plain.contains(word), "{plain}");
    }
    assert!(plain.contains("allow_other") && plain.contains("default_permissions"), "{plain}");
    // The device works, and the kernel refuses the write without asking the daemon.
    fs::write(mount.path().join("null"), "x").unwrap();
    assert_eq!(fs::write(mount.path().join("open"), "x").unwrap_err().raw_os_error(), Some(30));
    mount.unmount();
    let mount = env.mount("box:1", &["-o", "nosuid,nodev", "-o", "noexec,fsname=mine"]);
    let strict = line(mount.path());
    assert!(strict.starts_with("mine ") && strict.contains("nosuid,nodev,noexec"), "{strict}");
    assert_eq!(File::open(mount.path().join("null")).unwrap_err().raw_os_error(), Some(13));
    let stat = rustix::fs::statvfs(mount.path()).unwrap();
    assert_eq!((stat.f_bsize, stat.f_blocks, stat.f_bfree, stat.f_files, stat.f_namemax), (4096, 5, 0, 8, 255));
}

#[test]
fn permissions_and_acls_apply_to_other_users_of_roots_mount() {
    let env = TestEnv::new();
    image(&env);
    fs::set_permissions(env.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let mount = env.mount("box:1", &[]);
    fs::set_permissions(mount.path().parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    let reads =
        |uid: u32, name: &str| run(Command::new("cat").arg(mount.path().join(name)).uid(uid).gid(uid)).code == 0;
    assert!(reads(USER, "open") && reads(USER, "acl") && !reads(USER, "secret/key"));
    assert!(!reads(USER + 1, "acl"), "the ACL names one user");
    assert!(reads(0, "secret/key"));
    let listed = |uid: u32| {
        run(Command::new("getfattr").args(["-d", "-m", "-"]).arg(mount.path().join("trusted")).uid(uid).gid(uid)).stdout
    };
    assert!(listed(0).contains("trusted.t=\"1\"") && listed(0).contains("user.u=\"2\""));
    assert!(!listed(USER).contains("trusted.t") && listed(USER).contains("user.u"), "{}", listed(USER));
    let acl = run(Command::new("getfacl").args(["-n", "-p"]).arg(mount.path().join("acl"))).stdout;
    assert!(acl.contains(&format!("user:{USER}:r--")), "{acl}");
}

#[test]
fn a_plain_user_mounts_without_root_and_sees_the_true_owners() {
    let env = TestEnv::new();
    let own = |path: PathBuf| {
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(USER), Some(USER)).unwrap();
        path
    };
    fs::set_permissions(env.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let (_root, at) = (own(env.root()), own(env.path("mine")));
    image(&env);
    assert_eq!(run(Command::new("chown").arg("-R").arg(format!("{USER}:{USER}")).arg(env.root())).code, 0);
    let mounted = run(env.as_user(USER, &["mount", "box:1"]).arg(&at));
    assert_eq!(mounted.code, 0, "{mounted:?} (is /dev/fuse open to all, as fuse3's rules make it?)");
    let stat = run(Command::new("stat").args(["-c", "%u %g %a"]).arg(at.join("open")).uid(USER).gid(USER));
    let secret = run(Command::new("cat").arg(at.join("secret/key")).uid(USER).gid(USER));
    let others = run(Command::new("cat").arg(at.join("open")).uid(USER + 1).gid(USER + 1));
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let unmounted = run(env.as_user(USER, &["umount"]).arg(&at));
    let rootly = run(env.as_user(USER, &["mount", "-o", "wake=latency", "box:1"]).arg(&at));
    assert!(rootly.stderr.contains("wake=latency needs /dev/cpu_dma_latency: Permission denied"), "{rootly:?}");
    assert_eq!(stat.stdout, "1000 1000 644\n");
    assert_eq!(secret.stdout, "for root", "he may read the layer, so he may read its files");
    assert_ne!(others.code, 0, "another user came in");
    let line = table.lines().find(|l| l.contains(at.to_str().unwrap())).unwrap();
    assert!(line.contains("fuse.plyfs ro,nosuid,nodev"), "{line}");
    assert_eq!(unmounted.code, 0, "{unmounted:?}");
    let table = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!table.contains(at.to_str().unwrap()), "still mounted");
}

#[test]
fn mount_8_and_an_fstab_line_work() {
    let env = TestEnv::new();
    image(&env);
    let helper = Path::new("/sbin/mount.plyfs");
    let _helper = Helper::install(helper);
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let _ends = Mount::adopt(&env, &at);
    let options = format!("ro,root={}", env.root().display());
    let mounted = run(Command::new("mount").args(["-t", "plyfs", "box:1"]).arg(&at).args(["-o", &options]));
    assert_eq!(mounted.code, 0, "{mounted:?}");
    assert_eq!(fs::read_to_string(at.join("open")).unwrap(), "for all");
    unmount(&at);

    let fstab = env.path("fstab");
    fs::write(
        &fstab,
        format!("box:1 {} plyfs defaults,nofail,nosuid,root={} 0 0\n", at.display(), env.root().display()),
    )
    .unwrap();
    let mounted = run(Command::new("mount").arg("-T").arg(&fstab).arg(&at));
    assert_eq!(mounted.code, 0, "{mounted:?}");
    assert!(at.join("open").exists());
    // Once with the options of the fstab line, once with those that the kernel shows and the type fuse.plyfs.
    let _second = Helper::install(Path::new("/sbin/mount.fuse.plyfs"));
    let set = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().rfind(|l| l.contains(at.to_str().unwrap())).unwrap().split(' ').nth(5).unwrap().to_owned()
    };
    let by_line = run(Command::new("mount").arg("-T").arg(&fstab).args(["-o", "remount,ro,noexec"]).arg(&at));
    assert_eq!((by_line.code, set().as_str()), (0, "ro,nosuid,noexec,noatime"), "{by_line:?}");
    let by_kernel = run(Command::new("mount").args(["-o", "remount,nodev"]).arg(&at));
    assert_eq!((by_kernel.code, set().as_str()), (0, "ro,nosuid,nodev,noexec,noatime"), "{by_kernel:?}");
    let refused = run(Command::new("mount").args(["-o", "remount,rw"]).arg(&at));
    assert!(refused.code != 0 && refused.stderr.contains("without an upper directory"), "{refused:?}");
    assert_eq!(set(), "ro,nosuid,nodev,noexec,noatime");
    assert_eq!(run(env.command(["umount"]).arg(&at)).code, 0);
    let wrong = run(Command::new("mount").args(["-t", "plyfs", "nope"]).arg(&at).args(["-o", &options]));
    assert!(wrong.code != 0 && wrong.stderr.contains("No such image: nope:latest"), "{wrong:?}");
}

/// `mount -o remount` changes the same options as on local file systems.
#[test]
fn remount_changes_what_a_mount_allows() {
    let env = TestEnv::new();
    image(&env);
    symlink(env!("CARGO_BIN_EXE_plyfs"), env.path("mount.plyfs")).unwrap();
    let remount = |at: &Path, options: &str| {
        let output = run(Command::new(env.path("mount.plyfs")).arg("box:1").arg(at).args(["-o", options]));
        assert_eq!(output.stderr.lines().count(), usize::from(output.code != 0), "{output:?}");
        assert_eq!(output.stdout, "", "{output:?}");
        output
    };
    let options = |at: &Path| {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lines: Vec<&str> = table.lines().filter(|l| l.split(' ').nth(4) == Some(at.to_str().unwrap())).collect();
        assert_eq!(lines.len(), 1, "another mount was made: {lines:?}");
        lines[0].split(' ').nth(5).unwrap().to_owned()
    };
    let code = |done: std::io::Result<()>| done.err().and_then(|e| e.raw_os_error());

    let upper = env.path("upper");
    let mount = env.mount("box:1", &["--upper", upper.to_str().unwrap()]);
    let (at, new) = (mount.path(), mount.path().join("new"));
    assert_eq!(code(fs::write(&new, "1")), None);
    assert_eq!(remount(at, "ro,remount").code, 0);
    assert_eq!((code(fs::write(&new, "2")), options(at).as_str()), (Some(30), "ro,noatime"));
    assert_eq!(code(fs::remove_file(&new)), Some(30));
    assert_eq!(remount(at, "rw,nosuid,nodev,noexec,noatime,nodiratime,remount").code, 0);
    assert_eq!((code(fs::write(&new, "3")), options(at).as_str()), (None, "rw,nosuid,nodev,noexec,noatime,nodiratime"));
    assert_eq!(code(File::open(at.join("null")).map(drop)), Some(13));
    assert_eq!(remount(at, "rw,remount,strictatime").code, 0);
    assert_eq!(options(at), "rw");
    assert!(File::open(at.join("null")).is_ok());
    let held = fs::OpenOptions::new().append(true).open(&new).unwrap();
    let busy = remount(at, "ro,remount");
    assert!(busy.code == 1 && busy.stderr.contains("files are open for writing"), "{busy:?}");
    drop(held);
    assert_eq!((fs::read_to_string(&new).unwrap().as_str(), env.ok(STATES)), ("3", format!("live {}\n", at.display())));
    // `plyfs mount` does the same, without the mount helper's conventions.
    env.ok(["mount", "-o", "remount,ro", "box:1", at.to_str().unwrap()]);
    assert_eq!(options(at), "ro");
    mount.unmount();

    let mount = env.mount("box:1", &["-o", "nosuid"]);
    let refused = remount(mount.path(), "rw,remount,noexec");
    let says = format!(
        "Error: cannot remount {} read-write: it was mounted without an upper directory",
        mount.path().display()
    );
    assert!(refused.code == 1 && refused.stderr.starts_with(&says), "{refused:?}");
    assert_eq!(options(mount.path()), "ro,nosuid,noatime");
    assert_eq!(remount(mount.path(), "ro,remount,noexec").code, 0);
    assert_eq!(options(mount.path()), "ro,noexec,noatime");
    mount.unmount();

    let plain = env.path("plain");
    fs::create_dir(&plain).unwrap();
    let none = remount(&plain, "ro,remount");
    assert!(none.code == 1 && none.stderr.contains("it is not a plyfs mount"), "{none:?}");
}

#[test]
fn the_mount_helper_accepts_the_flags_of_mount_8() {
    let env = TestEnv::new();
    image(&env);
    symlink(env!("CARGO_BIN_EXE_plyfs"), env.path("mount.plyfs")).unwrap();
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let call = |args: &[&str]| run(Command::new(env.path("mount.plyfs")).arg("box:1").arg(&at).args(args));
    let root = format!("ro,root={}", env.root().display());
    let odd = format!("{root},bogus");
    // -f does all but mount; -s ignores unknown options; -n and -t have no effect here.
    let output = call(&["-f", "-n", "-v", "-t", "plyfs", "-o", &root]);
    assert_eq!((output.code, output.stdout), (0, format!("mount.plyfs: box:1 mounted on {}.\n", at.display())));
    assert_eq!(env.ok(["mounts", "-q"]), "");
    assert!(call(&["-fn", "-o", &odd]).stderr.contains("unknown mount option: bogus"));
    assert_eq!(call(&["-sfn", "-o", &odd]).code, 0);
    assert_eq!(call(&["-x"]).code, 1);
    assert_eq!(call(&["-o"]).code, 1);
    // With -N the mount is in that namespace and in no other.
    let mut other = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", "echo; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    other.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let namespace = format!("/proc/{}/ns/mnt", other.id());
    let output = call(&["-N", &namespace, "-o", &root]);
    let there = fs::read_to_string(format!("/proc/{}/root{}", other.id(), at.join("open").display()));
    let here = fs::read_dir(&at).unwrap().count();
    let ended = run(Command::new("nsenter").arg(format!("--mount={namespace}")).args(["umount"]).arg(&at));
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(
        (output.code, there.unwrap_or_default().as_str(), here, ended.code),
        (0, "for all", 0, 0),
        "{output:?} {ended:?}"
    );
    let output = call(&["-N", "/proc/self/no-such", "-o", &root]);
    assert!(output.code == 1 && output.stderr.contains("/proc/self/no-such"), "{output:?}");
}

/// `plyfs IMAGE /MOUNTPOINT -o OPTIONS`, not called as mount.plyfs: set-ID bits work only with the option `suid`.
#[test]
fn a_mount_by_mount_fuse_works_and_is_remounted() {
    let env = TestEnv::new();
    image(&env);
    let mount = Mount::start(&env, &mut env.command(["mount", "box:1"]));
    let at = mount.path().to_str().unwrap();
    let call = |options: &str| run(Command::new(env!("CARGO_BIN_EXE_plyfs")).args(["box:1", at, "-o", options]));
    let options = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().rfind(|l| l.split(' ').nth(4) == Some(at)).unwrap().split(' ').nth(5).unwrap().to_owned()
    };
    let output = call("ro,noatime,remount,user_id=0,group_id=0,default_permissions,allow_other,dev");
    assert_eq!((output.code, options().as_str()), (0, "ro,nosuid,noatime"), "{output:?}");
    mount.unmount();
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let list = format!("ro,root={},dev,suid", env.root().display());
    let output = run(Command::new(env!("CARGO_BIN_EXE_plyfs")).arg("box:1").arg(&at).args(["-o", &list]));
    let read = fs::read_to_string(at.join("open")).unwrap_or_default();
    let ended = run(env.command(["umount"]).arg(&at));
    assert_eq!((output.code, read.as_str(), ended.code), (0, "for all", 0), "{output:?}");
}

/// The mount helper where mount(8) looks for it, for the duration of a test; a previously installed one is put back.
struct Helper(PathBuf, Option<PathBuf>);

impl Helper {
    fn install(at: &Path) -> Helper {
        let kept = at.with_extension("plyfs.kept");
        let was = fs::rename(at, &kept).is_ok().then_some(kept);
        symlink(env!("CARGO_BIN_EXE_plyfs"), at).unwrap();
        Helper(at.into(), was)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        if let Some(kept) = &self.1 {
            let _ = fs::rename(kept, &self.0);
        }
    }
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_line() {
    let env = TestEnv::new();
    image(&env);
    let file = env.path("file");
    fs::write(&file, "").unwrap();
    let refused = |args: &[&str], says: &str| {
        let output = env.fails(args);
        assert!(output.contains(says), "`{says}` is not in: {output}");
        assert_eq!(env.ok(["mounts", "-q"]), "");
    };
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    refused(&["mount", "nope", at], "No such image: nope:latest");
    refused(&["mount", "box:1", "/no/such/place"], "/no/such/place: No such file or directory");
    refused(&["mount", "box:1", file.to_str().unwrap()], "not a directory");
    refused(&["mount", "-o", "nosiud", "box:1", at], "unknown mount option: nosiud");
    refused(&["mount", "-o", "rw", "box:1", at], "read-only");
    refused(&["umount", at], "not a plyfs mount");
    let few = run(&mut env.command(["mount", "box:1"]));
    assert_eq!((few.code, few.stderr.lines().next()), (1, Some("\"plyfs mount\" requires exactly 2 arguments.")));
    assert_eq!(run(&mut env.command(["mount", "--wrong"])).code, 125);
}

#[test]
fn running_out_of_descriptors_is_not_reported_as_a_damaged_store() {
    let env = TestEnv::new();
    image(&env);
    let at = env.path("at");
    fs::create_dir(&at).unwrap();
    let plyfs =
        format!("{:?}", env.command(["mount", "box:1", at.to_str().unwrap()])).replace("env -u PLYFS_ROOT ", "");
    for descriptors in 4..9 {
        let output = run(Command::new("bash").args(["-c", &format!("ulimit -n {descriptors}; {plyfs}")]));
        assert!(output.code != 0 || run(env.command(["umount"]).arg(&at)).code == 0, "{output:?}");
        assert!(!output.stderr.contains("damaged"), "{output:?}");
    }
}

#[test]
fn rmi_refuses_to_remove_a_mounted_image() {
    let env = TestEnv::new();
    image(&env);
    let id = env.ok(["images", "-q"]).trim().to_string();
    let mount = env.mount(&id[..6], &[]);
    let by_name = env.fails(["rmi", "box:1"]);
    assert!(
        by_name.contains("conflict: unable to remove repository reference \"box:1\" (must force) - container "),
        "{by_name}"
    );
    let by_id = env.fails(["rmi", "-f", &id]);
    assert!(by_id.contains(&format!("conflict: unable to delete {id} (cannot be forced)")), "{by_id}");
    assert!(scan(mount.path(), Contents::Hash).faults.is_empty());
    mount.unmount();
    assert!(env.ok(["rmi", "box:1"]).contains("Deleted: sha256:"));
}

#[test]
fn reads_at_any_offset_and_length_return_the_layers_bytes() {
    let env = TestEnv::new();
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(|i| i.to_le_bytes()).collect();
    let sparse = Entry::sparse(
        "holes",
        5_000_000,
        &[(100, vec![7; 1000]), (4_000_000, vec![8; 600_000])],
        super::support::tar::Sparse::Pax10,
    );
    let tar = Tar::new().file("big", &bytes).add(sparse).finish();
    Image::new().layer(tar).write_layout(&env.path("data"));
    env.ok(["pull", "-q", &format!("oci:{}", env.path("data").display())]);
    let mount = env.mount("data", &[]);
    use std::os::unix::fs::FileExt;
    let open = |name: &str, flags: i32| {
        fs::OpenOptions::new().read(true).custom_flags(flags).open(mount.path().join(name)).unwrap()
    };
    assert_eq!(fs::read(mount.path().join("big")).unwrap(), bytes);
    let direct = open("big", rustix::fs::OFlags::DIRECT.bits() as i32);
    for (at, length) in [(0, 4096), (11_999_000, 1000), (11_999_990, 100), (12_000_000, 10), (4096 * 7, 1 << 21)] {
        let mut buffer = vec![0; length];
        let n = direct.read_at(&mut buffer, at).unwrap();
        let end = (at as usize + length).min(bytes.len());
        assert_eq!(&buffer[..n], &bytes[(at as usize).min(end)..end], "{length} bytes at {at}");
    }
    let holes = fs::read(mount.path().join("holes")).unwrap();
    let mut want = vec![0; 5_000_000];
    want[100..1100].fill(7);
    want[4_000_000..4_600_000].fill(8);
    assert!(holes == want);
    let file = open("holes", 0);
    let seek = |from| rustix::fs::seek(&file, from).unwrap();
    use rustix::fs::SeekFrom::{Data, Hole};
    assert_eq!(
        (seek(Data(0)), seek(Hole(100)), seek(Data(2000)), seek(Hole(4_000_001))),
        (100, 1100, 4_000_000, 4_600_000)
    );
    assert_eq!(rustix::fs::seek(&file, Data(4_700_000)), Err(rustix::io::Errno::NXIO));
    assert!(file.metadata().unwrap().blocks() * 512 < 1_000_000);
}
