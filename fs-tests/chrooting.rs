//! `chroot`: the environment of a command run in an image, its exit status, and the removal of its mounts and
//! processes, as root and as a plain user.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::support::env::{Output, TestEnv, run};
use super::support::eventually;
use super::support::small::{
    NEWS, NOBODY, Running, SubordinateIds, TABLE_FILES, Tmux, environment, for_user, is_sleep_running, layer,
    processes, pull,
};
use super::support::tar::{Entry, Tar};

fn chroot(env: &TestEnv, options: &[&str], command: &[&str]) -> Output {
    run(&mut env.command(["chroot"].iter().chain(options).chain(&["box:1"]).chain(command)))
}

/// Runs a script in the image and returns its output.
#[track_caller]
fn script(env: &TestEnv, options: &[&str], script: &str) -> String {
    let output = chroot(env, options, &["sh", "-c", script]);
    assert_eq!(output.code, 0, "{script}: {output:#?}");
    output.stdout
}

/// Asserts that no chroot of this store has left anything, and that no mount is visible to other processes.
#[track_caller]
fn assert_nothing_left(env: &TestEnv) {
    assert_eq!(env.ok(["mounts", "-q"]), "");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(env.path("").to_str().unwrap()), "{table}");
}

#[test]
fn a_command_sees_the_image_and_its_own_proc_and_dev() {
    let env = environment();
    let seen =
        script(&env, &[], "ls -d /bin /home /usr 2>/dev/null; ls /proc | grep -c '^[0-9]'; echo $$; echo x >/dev/null");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "/bin");
    assert!(lines[1].parse::<u32>().unwrap() <= 4, "other processes are seen: {seen}");
    assert_eq!(lines[2], "2");
    let devices =
        script(&env, &[], "ls /dev; cat /dev/null; ls -d /dev/pts/ptmx /dev/shm /dev/fd/0; ls /sys | grep -c kernel");
    for name in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "stdin", "stdout", "stderr", "/dev/fd/0"] {
        assert!(devices.lines().any(|line| line == name), "no {name}: {devices}");
    }
    // The host's resolv.conf, which programs in the image cannot change.
    let servers =
        script(&env, &[], "cat /etc/resolv.conf; echo x 2>/dev/null >>/etc/resolv.conf && echo changed; true");
    assert_eq!(servers, fs::read_to_string("/etc/resolv.conf").unwrap());
    let refused = chroot(&env, &[], &["touch", "/new"]);
    assert!(refused.code == 1 && refused.stderr.contains("Read-only file system"), "{refused:?}");
    let outside = script(
        &env,
        &[],
        "cd /; cd ../../../..; ls -d tmp/plyfs-test-* 2>/dev/null; cat /proc/1/root/bin/sh | head -c 4",
    );
    assert_eq!(outside, "\u{7f}ELF");
    assert_nothing_left(&env);
}

#[test]
fn chroot_runs_the_given_command_or_the_images() {
    let env = environment();
    assert_eq!(chroot(&env, &[], &[]).stdout, "usual\n");
    assert_eq!(chroot(&env, &[], &["ls", "-d", "/tmp"]).stdout, "/tmp\n", "flags behind the image are the command's");
    let plain = TestEnv::new();
    pull(&plain, layer(), json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $0 $HOME $PATH; pwd"] }));
    let default = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(chroot(&plain, &[], &[]).stdout, format!("/bin/sh /root {default}\n/\n"));
    let bare = TestEnv::new();
    pull(&bare, layer(), json!({}));
    let output = super::support::env::run_with_input(&mut bare.command(["chroot", "box:1"]), "echo from a shell");
    assert_eq!((output.code, output.stdout.as_str()), (0, "from a shell\n"));
}

#[test]
fn user_working_directory_and_environment_come_from_options_or_the_image() {
    let env = environment();
    let ids = |user: &str| script(&env, &["-u", user], "id -u; id -g; id -G; echo $HOME").replace('\n', " ");
    assert_eq!(ids("ann"), "1000 1001 1001 50 /home/ann ");
    assert_eq!(ids("1000:staff"), "1000 50 50 /home/ann ");
    assert_eq!(ids("77"), "77 0 0 / ");
    let unknown = chroot(&env, &["-u", "bob"], &["true"]);
    assert_eq!(unknown.code, 125);
    assert_eq!(unknown.stderr, "Error: unable to find user bob: no matching entries in passwd file\n");
    assert_eq!(script(&env, &["-w", "/etc"], "pwd"), "/etc\n");
    let nowhere = chroot(&env, &["-w", "/no/where"], &["true"]);
    assert_eq!(nowhere.code, 125);
    assert_eq!(nowhere.stderr, "Error: cannot use the working directory /no/where: No such file or directory\n");
    assert_eq!(script(&env, &["--rw", "-w", "/no/where"], "pwd"), "/no/where\n");
    let mut command =
        env.command(["chroot", "-e", "A=1=2", "-e", "HANDED", "-e", "MISSING", "-e", "FROM=user", "box:1", "env"]);
    let output = run(command.env("HANDED", "down").env("OTHER", "not this").env_remove("MISSING"));
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1=2", "FROM=user", "HANDED=down", "HOME=/root", "PATH=/bin"]);
}

#[test]
fn chroot_exits_with_the_status_of_its_command() {
    let env = environment();
    let ends = |command: &[&str]| chroot(&env, &[], command).code;
    assert_eq!((ends(&["true"]), ends(&["sh", "-c", "exit 7"]), ends(&["sh", "-c", "kill -9 $$"])), (0, 7, 137));
    // Background processes end with the command.
    assert_eq!(ends(&["sh", "-c", "sleep 4711.5 & exit 3"]), 3);
    assert!(processes("4711.5").is_empty());
    let missing = chroot(&env, &[], &["nosuch"]);
    assert_eq!(
        (missing.code, &*missing.stderr),
        (127, "Error: exec: \"nosuch\": executable file not found in $PATH\n")
    );
    let missing = chroot(&env, &[], &["/bin/nosuch"]);
    assert_eq!((missing.code, &*missing.stderr), (127, "Error: exec: \"/bin/nosuch\": no such file or directory\n"));
    let file = chroot(&env, &[], &["/etc/passwd"]);
    assert_eq!((file.code, &*file.stderr), (126, "Error: exec: \"/etc/passwd\": permission denied\n"));
    let image = run(&mut env.command(["chroot", "nope", "true"]));
    assert_eq!((image.code, &*image.stderr), (125, "Error: No such image: nope:latest\n"));
    let volume = chroot(&env, &["-v", "name:/data"], &["true"]);
    assert!(volume.code == 125 && volume.stderr.contains("invalid volume specification: 'name:/data'"), "{volume:?}");
    assert_nothing_left(&env);
}

#[test]
fn volumes_are_mounted_inside_the_image_despite_its_symlinks() {
    let env = TestEnv::new();
    let out = env.path("out");
    fs::create_dir(&out).unwrap();
    // Each symlink would lead to a host directory if it were resolved on the host.
    let tar = layer().symlink("trap", out.to_str().unwrap()).symlink("up", "../../../../../../tmp").dir("data");
    pull(&env, tar, json!({ "Env": ["PATH=/bin"] }));
    let source = env.path("source/deep");
    let spec = |target: &str| format!("{}:{target}", source.display());
    assert_eq!(script(&env, &["-v", &spec("/data")], "echo 1 >/data/a; ls /data"), "a\n");
    assert_eq!(fs::read_to_string(source.join("a")).unwrap(), "1\n");
    let refused = chroot(&env, &["-v", &spec("/data:ro")], &["touch", "/data/b"]);
    assert!(refused.stderr.contains("Read-only file system"), "{refused:?}");
    let nowhere = chroot(&env, &["-v", &spec("/made")], &["true"]);
    let why = format!(
        "Error: cannot mount {} at /made: the image has no such mount point: create it with --rw\n",
        source.display()
    );
    assert_eq!((nowhere.code, nowhere.stderr), (125, why));
    assert_eq!(script(&env, &["--rw", "-v", &spec("/made/here")], "ls /made/here"), "a\n");
    assert_eq!(script(&env, &["-v", &spec("/up")], "ls /tmp"), "a\n");
    assert_eq!(script(&env, &["--rw", "-v", &spec("/trap")], "ls /trap"), "a\n");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    // A single file, too.
    let file = format!("{}:/etc/passwd:ro", source.join("a").display());
    assert_eq!(script(&env, &["-v", &file], "cat /etc/passwd"), "1\n");
    assert_nothing_left(&env);
}

#[test]
fn hostile_symlinks_in_an_image_do_not_reach_the_host() {
    let env = TestEnv::new();
    let busybox = fs::read("/bin/busybox").unwrap();
    let tar = Tar::new()
        .add(Entry::file("bin/busybox", busybox).mode(0o755))
        .symlink("bin/sh", "busybox")
        .add(Entry::fifo("etc/passwd"))
        .symlink("etc/group", "/etc/group")
        .symlink("etc/resolv.conf", "/etc/resolv.conf")
        .symlink("proc", "/etc")
        .symlink("sys", "sys")
        .symlink("dev", "../../../../../../../../dev");
    pull(&env, tar, json!({ "Env": ["PATH=/bin"], "WorkingDir": "/../../etc" }));
    let before = fs::read_dir("/dev").unwrap().count();
    // /proc is a symlink to the image's own /etc, so procfs is mounted there.
    let output = chroot(&env, &[], &["sh", "-c", "echo $$; /bin/busybox cat /etc/self/comm"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "2\nbusybox\n"), "{output:?}");
    assert_eq!(fs::read_dir("/dev").unwrap().count(), before);
    let user = chroot(&env, &["-u", "root"], &["sh"]);
    assert_eq!(user.stderr, "Error: unable to find user root: no matching entries in passwd file\n");
    assert_nothing_left(&env);
}

#[test]
fn changes_are_kept_in_the_store_or_in_the_upper_directory() {
    let env = environment();
    script(&env, &["--rw"], "echo 1 >/kept; chown ann /kept");
    assert_eq!(script(&env, &["--rw"], "cat /kept; stat -c %u /kept"), "1\n1000\n");
    assert_eq!(chroot(&env, &[], &["ls", "/kept"]).code, 1);
    let upper = env.path("changes");
    assert_eq!(script(&env, &["--upper", upper.to_str().unwrap()], "ls /kept 2>/dev/null; echo 2 >/other"), "");
    assert_eq!(fs::read_to_string(upper.join("other")).unwrap(), "2\n");
    let mut first = running(&env, &["--rw"], "echo up; sleep 4712");
    let second = chroot(&env, &["--rw"], &["true"]);
    assert!(second.code == 125 && second.stderr.contains("is in use by another mount"), "{second:?}");
    assert_eq!(script(&env, &[], "echo beside"), "beside\n");
    let output = env.fails(["rmi", "-f", "box:1"]);
    assert!(output.contains("conflict"), "{output}");
    assert!(env.ok(["mounts"]).contains("chroot"), "it is not listed");
    first.end(Signal::TERM);
    assert_nothing_left(&env);
}

fn running(env: &TestEnv, options: &[&str], script: &str) -> Running {
    let args = [&["chroot"], options, &["box:1", "sh", "-c", script]].concat();
    Running::of(&mut env.command(args))
}

#[test]
fn signals_reach_the_command() {
    let env = environment();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        let number = signal.as_raw();
        // Without a shell in between: a shell that is about to exec another program may lose a signal.
        let mut plain = Running(env.command(["chroot", "box:1", "sleep", "4713"]).spawn().unwrap());
        eventually("sleep runs", || is_sleep_running("4713"));
        assert_eq!(plain.end(signal), 128 + number, "{signal:?}");
        let script = format!("trap 'exit 9' {number}; echo up; while :; do sleep 0.01; done");
        let mut caught = running(&env, &[], &script);
        assert_eq!(caught.end(signal), 9, "{signal:?}");
    }
    assert!(processes("4713").is_empty());
    assert_nothing_left(&env);
}

/// The mount is in a private namespace, and the kernel has not yet written back what the command wrote.
#[test]
fn diff_and_commit_see_the_changes_of_a_running_chroot() {
    let env = environment();
    let upper = env.path("changes").display().to_string();
    let script = "echo more >> /etc/passwd; echo new > /new; echo up; while :; do sleep 0.01; done";
    let mut lived = running(&env, &["--upper", &upper], script);
    assert_eq!(env.ok(["diff", "--upper", &upper]), "C /etc\nA /etc/hosts\nC /etc/passwd\nA /new\n");
    env.ok(["commit", "--upper", &upper, "box:2"]);
    let shown = env.ok(["chroot", "box:2", "cat", "/etc/passwd", "/new"]);
    assert!(shown.ends_with("more\nnew\n"), "{shown}");
    assert_eq!(lived.end(Signal::KILL), 137);
    eventually("it is gone", || env.ok(["mounts", "-q"]).is_empty());
    assert_nothing_left(&env);
}

#[test]
fn a_chroot_killed_at_any_moment_leaves_nothing_behind() {
    let env = environment();
    for moment in (0..24).map(|n| Duration::from_millis(n * 2)) {
        let mut child =
            env.command(["chroot", "--rw", "box:1", "sh", "-c", "sleep 4714 & sleep 4714"]).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("all processes are gone", || processes("4714").is_empty() && env.ok(["mounts", "-q"]).is_empty());
        assert_nothing_left(&env);
    }
    // Killed at its end too, when the kernel has yet to write back what the command wrote.
    let writes = "cat /bin/busybox /bin/busybox > /mnt/written";
    for moment in (0..24).map(|n| Duration::from_millis(4 + n * 2)) {
        let mut child = env.command(["chroot", "--rw", "box:1", "sh", "-c", writes]).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("nothing is mounted", || env.ok(["mounts", "-q"]).is_empty());
        assert_nothing_left(&env);
    }
    let mut lived = running(&env, &["--rw"], "sleep 4714 & echo up; sleep 4714");
    assert_eq!(lived.end(Signal::KILL), 137);
    eventually("all processes are gone", || processes("4714").is_empty() && env.ok(["mounts", "-q"]).is_empty());
    assert_nothing_left(&env);
    assert_eq!(script(&env, &["--rw"], "echo good"), "good\n", "what was killed left the changes in use");
    env.ok(["rmi", "box:1"]);
}

#[test]
fn a_plain_user_is_root_in_the_image_with_subordinate_ids_for_other_users() {
    let (env, home) = for_user(NEWS);
    let _subordinate_ids = SubordinateIds::add("news", 1_700_000_000);
    let volume = format!("{}:/mnt", home.join("shared").display());
    let chroot = |options: &[&str], script: &str| {
        let args = [&["chroot"], options, &["box:1", "sh", "-c", script]].concat();
        run(&mut env.as_user(NEWS, &args))
    };
    let output = chroot(
        &["--rw", "-v", &volume],
        "id -u; touch /new /mnt/root; chown ann /new /mnt/root; stat -c %u /new; echo x >/dev/null; ls /proc | grep -c '^[0-9]'",
    );
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    assert!(output.stdout.starts_with("0\n1000\n"), "{output:?}");
    assert_eq!(fs::metadata(home.join("shared/root")).unwrap().uid(), 1_700_000_000 + 999);
    let ann = chroot(&["--rw", "-u", "ann"], "id -u; id -G; echo 1 >>/new; cat /new; echo 2 >/bin/sh");
    assert_eq!(ann.stdout, "1000\n1001 50\n1\n");
    assert!(ann.stderr.contains("Permission denied"), "{ann:?}");
    let far = chroot(&["-u", "2000000"], "true");
    assert_eq!(far.stderr, "Error: cannot run as user 2000000:0: the ID exceeds your range in /etc/subuid\n");
    assert_eq!((chroot(&[], "exit 5").code, chroot(&[], "touch /new").code), (5, 1));
    let listed = run(&mut env.as_user(NEWS, &["mounts", "-q"]));
    assert_eq!(listed.stdout, "");
    let mut lived =
        Running::of(&mut env.as_user(NEWS, &["chroot", "box:1", "sh", "-c", "sleep 4715 & echo up; sleep 4715"]));
    assert_eq!(lived.end(Signal::KILL), 137);
    eventually("all processes are gone", || processes("4715").is_empty());
}

#[test]
fn without_subordinate_ids_the_image_has_only_root() {
    let (env, _home) = for_user(NOBODY);
    let chroot = |args: &[&str]| run(&mut env.as_user(NOBODY, args));
    let output =
        chroot(&["chroot", "--rw", "box:1", "sh", "-c", "id -u; touch /new; stat -c %u /new; chown 1000 /new"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, "0\n0\n"), "{output:?}");
    let lost = "only root's user and group ID are available: /etc/subuid has no IDs for user 65534";
    assert!(output.stderr.contains(lost), "{output:?}");
    let ann = chroot(&["--log-level", "error", "chroot", "-u", "ann", "box:1", "true"]);
    let why = "Error: cannot run as user 1000:1001: only root is mapped: /etc/subuid has no IDs for user 65534\n";
    assert_eq!((ann.code, ann.stderr.as_str()), (125, why));
}

#[test]
fn a_shell_at_a_terminal_has_job_control() {
    let env = environment();
    let plyfs = format!("{:?}", env.command(["chroot"])).replace("env -u PLYFS_ROOT ", "");
    let tmux = Tmux::start(&env);
    tmux.type_line(&format!("clear; {plyfs} -e 'PS1=inside> ' box:1 sh"));
    tmux.wait_for_line("inside>");
    tmux.type_line("ls -l /dev/console >/dev/null && echo a $TERM");
    tmux.wait_for_line("a tmux");
    tmux.type_line("sleep 4716");
    eventually("sleep runs", || is_sleep_running("4716"));
    tmux.run(&["send-keys", "C-z"]);
    tmux.wait_for_line("[1]+  Stopped");
    tmux.type_line("kill -9 %1; echo killed $?");
    tmux.wait_for_line("killed 0");
    tmux.type_line("sleep 4717");
    eventually("sleep runs", || is_sleep_running("4717"));
    tmux.run(&["send-keys", "C-c"]);
    tmux.type_line("echo code $?");
    tmux.wait_for_line("code 130");
    tmux.type_line("exit 6");
    tmux.type_line("echo back $?");
    tmux.wait_for_line("back 6");
    // The outer shell sees one job.
    tmux.type_line(&format!("{plyfs} box:1 sleep 4718"));
    eventually("sleep runs", || is_sleep_running("4718"));
    tmux.run(&["send-keys", "C-z"]);
    tmux.type_line("fg >/dev/null");
    std::thread::sleep(Duration::from_millis(200));
    tmux.run(&["send-keys", "C-c"]);
    tmux.type_line("echo then $?");
    tmux.wait_for_line("then 130");
    // A caller without job control gets the terminal back afterwards.
    tmux.type_line(&format!("sh -c \"{}; read x; echo read \\$x\"", format!("{plyfs} box:1 sh").replace('"', "\\\"")));
    tmux.wait_for_line("/tmp #");
    tmux.type_line("exit");
    tmux.type_line("something");
    tmux.wait_for_line("read something");
    assert_nothing_left(&env);
}

#[test]
fn the_tables_of_numbers_are_left_as_they_were() {
    let before = TABLE_FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    drop(SubordinateIds::add("daemon", 1_800_000_000));
    let after = TABLE_FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.contains("daemon:"), after.contains("daemon:"));
    }
}
