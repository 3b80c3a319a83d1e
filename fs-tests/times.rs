//! Timestamps of files on writable mounts: `stat` shows the same times before and after a remount.

use crate::support::env::{Mount, TestEnv, run, unmount, wait_until_unused};
use crate::support::oci::Image;
use crate::support::tar::Tar;
use std::fs::{self, File, Metadata, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

const USER: u32 = 65_534;

fn env() -> TestEnv {
    let env = TestEnv::new();
    let layer = Tar::new().dir("d").file("d/file", "below").finish();
    Image::new().layer(layer).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    env
}

fn mount(env: &TestEnv, options: &[&str]) -> Mount {
    let upper = env.path("upper").display().to_string();
    env.mount("one:1", &[&["--upper", &upper], options].concat())
}

fn mtime(found: &Metadata) -> (i64, i64) {
    (found.mtime(), found.mtime_nsec())
}

fn ctime(found: &Metadata) -> (i64, i64) {
    (found.ctime(), found.ctime_nsec())
}

/// The time of every file in a directory, sorted by name.
fn times<T>(at: &Path, time: impl Fn(&Metadata) -> T) -> Vec<(String, T)> {
    let entries = fs::read_dir(at).unwrap().map(Result::unwrap);
    let mut all: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), time(&fs::metadata(entry.path()).unwrap())))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Creates and fills files in several ways, each within one clock tick.
fn make(dir: &Path, number: usize) {
    let path = |way: &str| dir.join(format!("{way}{number}"));
    fs::write(path("written"), "a\n").unwrap();
    fs::write(path("changed"), "a\n").unwrap();
    fs::set_permissions(path("changed"), Permissions::from_mode(0o600)).unwrap();
    let allocated = File::create(path("allocated")).unwrap();
    rustix::fs::fallocate(&allocated, rustix::fs::FallocateFlags::empty(), 0, 4096).unwrap();
    let copied = File::create(path("copied")).unwrap();
    let source = File::open(path("written")).unwrap();
    rustix::fs::copy_file_range(source.as_fd(), None, copied.as_fd(), None, 2).unwrap();
    let mut direct = File::options();
    let direct = direct.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path("direct"));
    // The kernel accepts any buffer.
    std::io::Write::write_all(&mut direct.unwrap(), &[0; 4096]).unwrap();
}

/// Mounts directories with `plyfs overlay`, with an upper directory.
fn mount_directories(env: &TestEnv) -> Mount {
    for name in ["lower", "over", "work"] {
        fs::create_dir_all(env.path(name)).unwrap();
    }
    let path = |name: &str| env.path(name).display().to_string();
    let dirs = format!("lowerdir={},upperdir={},workdir={},relatime", path("lower"), path("over"), path("work"));
    Mount::start(env, &mut env.command(["overlay", "-o", &dirs]))
}

/// The times of the files that `fill` creates in a directory, before and after a remount: over an image, and over
/// directories.
fn remounted<T>(fill: impl Fn(&Path), time: impl Fn(&Metadata) -> T) -> [[Vec<(String, T)>; 2]; 2] {
    let env = env();
    let ways: [&dyn Fn() -> Mount; 2] = [&|| mount(&env, &[]), &|| mount_directories(&env)];
    ways.map(|way| {
        let first = way();
        fs::create_dir(first.path().join("new")).unwrap();
        fill(&first.path().join("new"));
        let before = times(&first.path().join("new"), &time);
        unmount(first.path());
        for upper in ["upper", "over"].map(|name| env.path(name)).iter().filter(|upper| upper.exists()) {
            wait_until_unused(upper);
        }
        let second = way();
        let after = times(&second.path().join("new"), &time);
        unmount(second.path());
        [before, after]
    })
}

/// Guards against a first write after a file's creation that leaves the time the kernel got for the new file, and
/// another on disk.
#[test]
fn modification_times_are_the_same_after_a_remount() {
    for [before, after] in remounted(|dir| (0..40).for_each(|number| make(dir, number)), mtime) {
        assert_eq!(after, before);
    }
}

/// A change time cannot be set, so it is the same only where the change reaches the disk within the same clock tick, as
/// it mostly does when a small file is written and closed.
#[test]
fn most_change_times_are_the_same_after_a_remount() {
    let fill = |dir: &Path| {
        for number in 0..100 {
            fs::write(dir.join(format!("written{number}")), "a\n").unwrap();
            let changed = dir.join(format!("changed{number}"));
            fs::write(&changed, "a\n").unwrap();
            fs::set_permissions(&changed, Permissions::from_mode(0o600)).unwrap();
        }
    };
    for [before, after] in remounted(fill, ctime) {
        let same = before.iter().zip(&after).filter(|(before, after)| before == after).count();
        assert!(same * 2 > before.len(), "{same} of {} are the same", before.len());
    }
}

/// Guards against a flag change after which the kernel keeps its cached change time.
#[test]
fn changing_flags_updates_the_change_time_of_a_directory() {
    let env = env();
    let mount = mount(&env, &[]);
    let dir = mount.path().join("d");
    let old = Duration::from_secs(1_000_000_000);
    File::open(&dir).unwrap().set_modified(SystemTime::UNIX_EPOCH + old).unwrap();
    for flags in ["+d", "-d"] {
        let before = fs::metadata(&dir).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(run(Command::new("chattr").arg(flags).arg(&dir)).code, 0);
        let after = fs::metadata(&dir).unwrap();
        assert!(ctime(&after) > ctime(&before), "{flags}: {:?}, {:?}", ctime(&before), ctime(&after));
        assert_eq!(mtime(&after), mtime(&before), "{flags}");
    }
}

/// Guards against reads through the mount that change access times in the upper directory, visible at the next mount.
#[test]
fn access_times_stay_what_they_were_set_to() {
    let env = env();
    let first = mount(&env, &[]);
    let (file, dir) = (first.path().join("new"), first.path().join("d"));
    fs::write(&file, "new").unwrap();
    fs::write(dir.join("more"), "").unwrap();
    let set = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5));
    for path in [&file, &dir] {
        File::open(path).unwrap().set_times(set).unwrap();
    }
    first.unmount();
    let second = mount(&env, &[]);
    assert_eq!(fs::read(second.path().join("new")).unwrap(), b"new");
    assert_eq!(fs::read_dir(second.path().join("d")).unwrap().count(), 2);
    second.unmount();
    let third = mount(&env, &[]);
    for name in ["new", "d"] {
        let found = fs::metadata(third.path().join(name)).unwrap();
        assert_eq!((found.atime(), found.atime_nsec()), (1_000_000_000, 5), "{name}");
    }
    third.unmount();
}

/// The options of the topmost mount at a path (proc_pid_mountinfo(5)).
fn options_at(at: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let found = table.lines().map(fields).rfind(|fields| Path::new(&fields[4]) == at).unwrap();
    found[5].split(',').map(str::to_owned).collect()
}

#[test]
fn every_way_to_mount_shows_noatime() {
    let env = env();
    let shows = |at: &Path, what: &str| {
        let options = options_at(at);
        assert!(options.iter().any(|option| option == "noatime"), "{what}: {options:?}");
        assert!(!options.iter().any(|option| option == "relatime"), "{what}: {options:?}");
    };
    for asked in [&[][..], &["-o", "relatime"], &["-o", "strictatime"]] {
        let mount = mount(&env, asked);
        shows(mount.path(), "mount");
        mount.unmount();
    }
    let path = |name: &str| env.path(name).display().to_string();
    let overlay = mount_directories(&env);
    shows(overlay.path(), "overlay");
    drop(overlay);
    fs::set_permissions(env.path(""), Permissions::from_mode(0o755)).unwrap();
    for name in ["root", "at", "mine"] {
        fs::create_dir_all(env.path(name)).unwrap();
        let owner = format!("{USER}:{USER}");
        assert_eq!(run(Command::new("chown").arg("-R").arg(owner).arg(env.path(name))).code, 0);
    }
    let at = path("at");
    let mounted = run(&mut env.as_user(USER, &["mount", "--upper", &path("mine/upper"), "one:1", &at]));
    assert_eq!(mounted.code, 0, "{mounted:?}");
    let shown = std::panic::catch_unwind(|| shows(&env.path("at"), "a plain user's mount"));
    assert_eq!(run(&mut env.as_user(USER, &["umount", &at])).code, 0);
    shown.unwrap();
}
