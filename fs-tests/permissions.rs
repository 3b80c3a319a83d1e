//! Permission corner cases, compared with a plain directory: set-ID bits, ACLs, immutable files.

use crate::support::env::{Mount, TestEnv, run};
use crate::support::oci::Image;
use crate::support::tar::Tar;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const USER: u32 = 65_534;

fn env() -> TestEnv {
    let env = TestEnv::new();
    Image::new().layer(Tar::new().file("below", "below").finish()).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    fs::set_permissions(env.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(env.path("plain")).unwrap();
    env
}

fn mount(env: &TestEnv) -> Mount {
    let upper = env.path("upper").display().to_string();
    env.mount("one:1", &["--upper", &upper])
}

/// The callers that change a file of user 1000 and group 2000, as setpriv(1) arguments: root, root without CAP_FSETID,
/// the owner, the owner as a member of the group, a stranger, a stranger with CAP_FSETID.
const CALLERS: [&str; 6] = [
    "--reuid 0 --regid 0 --groups 0",
    "--reuid 0 --regid 0 --groups 0 --bounding-set -fsetid",
    "--reuid 1000 --regid 1000 --groups 1000",
    "--reuid 1000 --regid 1000 --groups 1000,2000",
    "--reuid 1002 --regid 1002 --groups 1002",
    "--reuid 1002 --regid 1002 --groups 1002 --inh-caps +fsetid --ambient-caps +fsetid",
];

const CHANGES: [&str; 11] = [
    "echo y >>f",
    "echo y >f",
    "truncate -s 5 f",
    "fallocate -l 50 f",
    "dd if=/dev/zero of=f bs=4096 count=1 oflag=direct conv=notrunc",
    "python3 -c \"import os; os.copy_file_range(os.open('source', 0), os.open('f', 1), 4)\"",
    "setfacl -m u:1234:rwx f",
    "setfacl -m u::rwx,g::rwx,o::rwx f",
    "chmod 6775 f",
    "chgrp $(id -g) f",
    "python3 -c \"import os; os.chown('f', -1, -1)\"",
];

/// The mode and capabilities of a file after each change, in a shell for each caller; all in one script, which is
/// faster. The script asks for the file's mode first, so that the kernel has it in its cache.
fn modes(dir: &Path) -> String {
    let reset = "rm -f f; echo some data >f; chown 1000:2000 f; chmod $mode f";
    let mut script = format!("cd {}; echo source >source\n", dir.display());
    for (mode, capable) in [("6777", ""), ("2767", ""), ("2666", ""), ("777", "setcap cap_net_raw+ep f;")] {
        for caller in CALLERS {
            for change in CHANGES {
                script += &format!(
                    "mode={mode}; {reset}; {capable} stat f >/dev/null\n\
                     setpriv {caller} sh -c {quoted} >/dev/null 2>&1 && ended=done || ended=refused\n\
                     echo \"$mode {caller}:\" {quoted} \"$ended $(stat -c '%a %u:%g' f) $(getcap f)\"\n",
                    quoted = format_args!("'{}'", change.replace('\'', "'\\''")),
                );
            }
        }
    }
    for caller in CALLERS {
        script += &format!(
            "rm -rf d; mkdir d; chown 1000:2000 d; chmod 2777 d\n\
             setpriv {caller} setfacl -m u:1234:rwx d 2>/dev/null\n\
             echo \"directory, {caller}: $(stat -c %a d)\"\n"
        );
    }
    let output = run(Command::new("sh").arg("-c").arg(script));
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout
}

#[track_caller]
fn assert_same_lines(found: &str, expected: &str) {
    let differ = expected.lines().zip(found.lines()).filter(|(expected, found)| expected != found);
    let differ: Vec<String> = differ.map(|(expected, found)| format!("{found}, locally {expected}")).collect();
    assert!(differ.is_empty() && found.lines().count() == expected.lines().count(), "{}", differ.join("\n"));
}

/// Guards against a file that keeps its set-group-ID bit when a caller outside of its group gives it an ACL, or changes
/// a file that its group may not execute.
#[test]
fn changes_clear_set_id_bits_as_on_a_local_file_system() {
    let env = env();
    let mount = mount(&env);
    fs::set_permissions(mount.path(), Permissions::from_mode(0o755)).unwrap();
    let expected = modes(&env.path("plain"));
    for known in [
        "6777 --reuid 0 --regid 0 --groups 0: echo y >>f done 6777",
        "6777 --reuid 0 --regid 0 --groups 0 --bounding-set -fsetid: echo y >>f done 777",
        "6777 --reuid 1002 --regid 1002 --groups 1002 --inh-caps +fsetid --ambient-caps +fsetid: echo y >>f done 6777",
        "6777 --reuid 1000 --regid 1000 --groups 1000: setfacl -m u:1234:rwx f done 4777",
        "777 --reuid 1002 --regid 1002 --groups 1002: setfacl -m u:1234:rwx f refused 777 1000:2000 f cap_net_raw=ep",
    ] {
        assert!(expected.contains(known), "not `{known}`:\n{expected}");
    }
    assert_same_lines(&modes(mount.path()), &expected);
    mount.unmount();
}

fn errno(done: io::Result<()>) -> Option<i32> {
    done.err().and_then(|e| e.raw_os_error())
}

/// The error of each change to an immutable file. The kernel opens files without asking the daemon, so a write is
/// cached first and fails at fsync.
fn refusals(file: &Path) -> Vec<(&'static str, Option<i32>)> {
    let open = || File::options().write(true).open(file);
    let copy = || {
        let (from, to) = (File::open(file.with_file_name("source"))?, open()?);
        rustix::fs::copy_file_range(&from, None, &to, None, 3).map(|_| ()).map_err(io::Error::from)
    };
    let direct = || {
        let mut to = File::options().write(true).custom_flags(libc::O_DIRECT).open(file)?;
        to.write_all(&[0; 4096])
    };
    let allocate = |mode: FallocateFlags| Ok(fallocate(open()?, mode, 0, 50)?);
    vec![
        ("copy_file_range", errno(copy())),
        ("truncate", errno(open().and_then(|to| to.set_len(3)))),
        ("extend", errno(open().and_then(|to| to.set_len(3000)))),
        ("O_TRUNC", errno(File::create(file).map(drop))),
        ("fallocate", errno(allocate(FallocateFlags::empty()))),
        ("punch a hole", errno(allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE))),
        ("direct write", errno(direct())),
        ("chmod", errno(fs::set_permissions(file, Permissions::from_mode(0o600)))),
        ("chown", errno(std::os::unix::fs::chown(file, Some(7), None))),
        ("link", errno(fs::hard_link(file, file.with_extension("link")))),
        ("rename", errno(fs::rename(file, file.with_extension("moved")))),
        ("unlink", errno(fs::remove_file(file))),
        ("write", errno(open().and_then(|mut to| to.write_all(b"x").and_then(|()| to.sync_all())))),
    ]
}

/// Guards against EBADF and EINVAL, which a descriptor opened read-only answered.
#[test]
fn an_immutable_file_refuses_changes_with_eperm() {
    let env = env();
    let mount = mount(&env);
    let mut seen = Vec::new();
    for dir in [env.path("plain").as_path(), mount.path()] {
        fs::write(dir.join("source"), "source").unwrap();
        fs::write(dir.join("file"), "some data").unwrap();
        let chattr = |flag: &str| run(Command::new("chattr").arg(flag).arg(dir.join("file"))).code;
        assert_eq!(chattr("+i"), 0);
        let refused = std::panic::catch_unwind(|| refusals(&dir.join("file")));
        assert_eq!(chattr("-i"), 0);
        seen.push(refused.unwrap());
    }
    assert_eq!(seen[1], seen[0]);
    assert!(seen[0].iter().all(|(_, errno)| *errno == Some(libc::EPERM)), "{seen:?}");
    mount.unmount();
    let again = self::mount(&env);
    assert_eq!(fs::read_to_string(again.path().join("file")).unwrap(), "some data");
}

/// The mode of a plain user's file may be kept in an attribute; guards against an ACL that does not follow that mode,
/// and the reverse.
#[test]
fn a_plain_users_mode_and_acl_follow_each_other() {
    let env = env();
    for name in ["root", "at", "mine", "plain"] {
        fs::create_dir_all(env.path(name)).unwrap();
        let owner = format!("{USER}:{USER}");
        assert_eq!(run(Command::new("chown").arg("-R").arg(owner).arg(env.path(name))).code, 0);
    }
    let path = |name: &str| env.path(name).display().to_string();
    let changes = [
        "chmod 0400 f",
        "setfacl -m u:1234:rw f",
        "chmod 0640 f",
        "chmod 4711 f",
        "setfacl -m u::r,g::-,o::r f",
        "chmod u+w f",
        "echo more >>f; cat f",
        "setfacl -x u:1234 f",
        "setfacl -b f",
        "chmod 0555 d",
        "setfacl -m u::rx,u:1234:rwx d; touch d/x 2>/dev/null || :",
        "chmod 0700 d",
        "setfacl -d -m u::rx,u:1234:rwx d; mkdir d/in; getfacl -cp d/in; chmod u+w d/in; touch d/in/x; getfacl -cp d/in/x",
    ];
    let script = |change: &str| format!("{change}; getfacl -cp f d; stat -c '%a %n' f d; ");
    let begin = "umask 022; echo some >f; mkdir d; ";
    let all = format!("{begin}{}", changes.map(script).concat());
    let seen = |at: String| {
        let mut shell = Command::new("sh");
        run(shell.arg("-c").arg(format!("cd {at}; {all}")).uid(USER).gid(USER).current_dir("/"))
    };
    let expected = seen(path("plain"));
    let (at, upper) = (path("at"), path("mine/upper"));
    let mounted = run(&mut env.as_user(USER, &["mount", "--upper", &upper, "one:1", &at]));
    assert_eq!(mounted.code, 0, "{mounted:?}");
    let made = run(Command::new("sh").arg("-c").arg(format!("mkdir {at}/own")).uid(USER).gid(USER).current_dir("/"));
    let found = seen(format!("{at}/own"));
    assert_eq!(run(&mut env.as_user(USER, &["umount", &at])).code, 0);
    assert_eq!(made.code, 0, "{made:?}");
    assert!(expected.stdout.contains("user:1234:rw-"), "{expected:?}");
    assert_same_lines(&found.stdout, &expected.stdout);
}
