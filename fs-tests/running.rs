//! Containers: environment of the command, start and end, exec, logs, signals, file copies, and complete removal, as
//! root and as a plain user.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run, run_with_input};
use super::support::eventually;
use super::support::small::{
    NEWS, NOBODY, Running, SubordinateIds, Tmux, environment, for_user, is_sleep_running, layer, processes, pull,
};

fn plyfs_run(env: &TestEnv, options: &[&str], command: &[&str]) -> Output {
    run(&mut env.command([&["run"], options, &["box:1"], command].concat()))
}

/// Runs a script in a container that is removed afterwards; returns its output.
#[track_caller]
fn script(env: &TestEnv, options: &[&str], script: &str) -> String {
    let output = plyfs_run(env, &[&["--rm"], options].concat(), &["sh", "-c", script]);
    assert_eq!(output.code, 0, "{script}: {output:#?}");
    output.stdout
}

/// Starts a container in the background; returns its ID.
#[track_caller]
fn background(env: &TestEnv, options: &[&str], script: &str) -> String {
    env.ok([&["run", "-d"], options, &["box:1", "sh", "-c", script]].concat()).trim().to_owned()
}

fn state(env: &TestEnv, name: &str) -> Value {
    let all: Value = serde_json::from_str(&env.ok(["inspect", name])).unwrap();
    all[0]["State"].clone()
}

/// Requires that no container runs, that those which ran left nothing, and that no mount was ever visible to others.
#[track_caller]
fn assert_nothing_left(env: &TestEnv) {
    assert_eq!(env.ok(["ps", "-q"]), "");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(env.path("").to_str().unwrap()), "{table}");
    for container in fs::read_dir(env.root().join("containers")).unwrap() {
        let dir = container.unwrap().path();
        assert!(!dir.join("state").exists(), "the runtime still has {}", dir.display());
        let id = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let cgroups = run(Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "3", "-name", &id]));
        assert_eq!(cgroups.stdout, "");
    }
}

#[test]
fn a_container_has_the_images_files_and_dockers_environment() {
    let env = environment();
    let seen = script(
        &env,
        &["--hostname", "inn"],
        "echo $$; ls /proc | grep -c '^[0-9]'; cat /etc/hostname; pwd; echo $FROM",
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines[0], &lines[2..]), ("1", &["inn", "/tmp", "image"][..]));
    assert!(lines[1].parse::<u32>().unwrap() <= 4, "other processes are seen: {seen}");
    let rights = script(&env, &[], "cat /proc/self/status");
    let has = |line: &str| rights.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
    assert!(has("CapBnd: 00000000a80425fb") && has("Seccomp: 2"), "{rights}");
    let more = script(&env, &["--cap-drop", "ALL", "--cap-add", "net_admin"], "cat /proc/self/status");
    assert!(more.contains("CapEff:\t0000000000001000"), "{more}");
    let alone = script(&env, &["--network", "none"], "cat /proc/net/dev; cat /etc/hosts");
    assert!(alone.contains("lo:") && alone.lines().filter(|l| l.contains(": ")).count() == 1, "{alone}");
    let kept = plyfs_run(&env, &["--rm", "--read-only", "--tmpfs", "/tmp"], &["sh", "-c", "touch /x; touch /tmp/x"]);
    assert_eq!(kept.code, 0, "{kept:?}");
    assert!(kept.stderr.contains("Read-only file system"), "{kept:?}");
    let modes = script(&env, &["--tmpfs", "/t", "--tmpfs", "/u:mode=0700"], "stat -c %a /t /u");
    assert_eq!(modes, "1777\n700\n");
    assert_nothing_left(&env);
}

#[test]
fn options_override_the_images_command_environment_and_user() {
    let env = environment();
    assert_eq!(plyfs_run(&env, &["--rm"], &[]).stdout, "usual\n");
    assert_eq!(plyfs_run(&env, &["--rm", "--entrypoint", "id"], &["-u"]).stdout, "0\n");
    let file = env.path("vars");
    fs::write(&file, "# these\nONE=1\nTWO=2\n").unwrap();
    let given =
        ["--env-file", file.to_str().unwrap(), "-e", "TWO=3", "-e", "FROM=user", "-w", "/mnt/new", "-u", "ann:staff"];
    let seen = script(&env, &given, "echo $ONE$TWO$FROM$HOME; pwd; id -u; id -g");
    assert_eq!(seen, "13user/home/ann\n/mnt/new\n1000\n50\n");
    let unknown = plyfs_run(&env, &["--rm", "-u", "bob"], &["true"]);
    assert_eq!(
        (unknown.code, unknown.stderr.as_str()),
        (125, "Error: unable to find user bob: no matching entries in passwd file\n")
    );
    assert_nothing_left(&env);
}

#[test]
fn run_exits_with_the_commands_exit_code() {
    let env = environment();
    let ends = |command: &[&str]| {
        let output = plyfs_run(&env, &["--rm"], command);
        (output.code, output.stderr)
    };
    assert_eq!(ends(&["sh", "-c", "exit 7"]), (7, String::new()));
    assert_eq!(ends(&["sh", "-c", "kill -9 $$; sleep 1; exit 3"]).0, 3, "process 1 cannot kill itself");
    let not_there = "Error: exec: \"nosuch\": executable file not found in $PATH\n";
    assert_eq!(ends(&["nosuch"]), (127, not_there.into()));
    assert_eq!(ends(&["/etc/passwd"]), (126, "Error: exec: \"/etc/passwd\": permission denied\n".into()));
    assert_eq!(ends(&["/no/such"]).0, 127);
    // A container whose command could not be started is kept, except with `--rm`.
    assert_eq!(env.ok(["ps", "-aq"]), "");
    assert_eq!(plyfs_run(&env, &["--name", "bad"], &["nosuch"]).code, 127);
    assert!(env.ok(["ps", "-a"]).contains("Created"));
    assert_eq!(state(&env, "bad")["ExitCode"], 127);
    let nothing = run(&mut env.command(["run"]));
    assert!(nothing.stderr.contains("\"plyfs run\" requires at least 1 argument"), "{nothing:?}");
    assert_nothing_left(&env);
}

#[test]
fn stdin_stdout_and_stderr_are_passed_through() {
    let env = environment();
    let mut command = env.command(["run", "--rm", "-i", "box:1", "sh", "-c", "cat; echo bad >&2"]);
    let big = "0123456789abcdef".repeat(1 << 16);
    let output = run_with_input(&mut command, &big);
    assert_eq!((output.code, output.stdout == big, output.stderr.as_str()), (0, true, "bad\n"));
    let deaf = run_with_input(&mut env.command(["run", "--rm", "box:1", "cat"]), "unheard");
    assert_eq!((deaf.code, deaf.stdout.as_str()), (0, ""));
    let no_terminal = run_with_input(&mut env.command(["run", "--rm", "-it", "box:1", "sh"]), "");
    assert_eq!((no_terminal.code, no_terminal.stderr.as_str()), (125, "Error: the input device is not a TTY\n"));
    // `-t` works without a terminal on standard input.
    let terminal_output = plyfs_run(&env, &["--rm", "-t"], &["sh", "-c", "tty; echo two >&2"]);
    assert_eq!(terminal_output.stdout, "/dev/pts/0\r\ntwo\r\n");
    // A file of the host that a container writes to keeps its owner.
    let out = env.path("out");
    let file = fs::File::create(&out).unwrap();
    assert!(env.command(["run", "--rm", "-u", "ann", "box:1", "id", "-u"]).stdout(file).status().unwrap().success());
    assert_eq!(fs::read_to_string(&out).unwrap(), "1000\n");
    assert_eq!(fs::metadata(&out).unwrap().uid(), 0);
    // Closing the pipe ends the container that writes to it.
    let mut child = env
        .command(["run", "--rm", "box:1", "sh", "-c", "while echo y; do :; done"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.wait().unwrap();
    assert_nothing_left(&env);
}

#[test]
fn background_containers_can_be_entered_stopped_and_removed() {
    let env = environment();
    let id = background(
        &env,
        &["--name", "back"],
        "trap 'echo told; exit 9' TERM; echo up; echo bad >&2; while :; do sleep 0.01; done",
    );
    assert_eq!(id.len(), 64);
    eventually("it is up", || env.ok(["logs", "back"]) == "up\n");
    assert_eq!(run(&mut env.command(["logs", "back"])).stderr, "bad\n");
    assert_eq!(env.ok(["ps", "--format", "{{.Names}} {{.State}}"]), "back running\n");
    let running = state(&env, "back");
    let pid = running["Pid"].as_u64().unwrap();
    assert!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("sh\0-c\0trap"));
    let kept = background(&env, &["-i"], "read x; echo never");
    assert_eq!(env.ok(["ps", "-q", "--no-trunc"]).lines().next(), Some(&*kept), "its input is open");
    env.ok(["rm", "-f", &kept]);
    // Runs one more program in it (`exec`).
    let more = |words: &[&str]| run(&mut env.command([&["exec"], words].concat()));
    let seen = more(&[
        "-e",
        "X=1",
        "-w",
        "/mnt",
        "-u",
        "ann",
        "back",
        "sh",
        "-c",
        "echo $X $FROM; pwd; id -u; ls /proc | grep -c '^1$'; exit 5",
    ]);
    assert_eq!((seen.code, seen.stdout.as_str()), (5, "1 image\n/mnt\n1000\n1\n"));
    assert_eq!(run_with_input(&mut env.command(["exec", "-i", "back", "cat"]), "typed").stdout, "typed");
    assert_eq!((more(&["back", "nosuch"]).code, more(&["back", "/etc/passwd"]).code), (127, 126));
    assert_eq!(more(&["-d", "back", "touch", "/made"]).code, 0);
    eventually("it is made", || more(&["back", "ls", "/made"]).code == 0);
    // A running container cannot be removed, nor its image.
    let refused = env.fails(["rm", "back"]);
    assert!(refused.contains("cannot remove container \"/back\": container is running"), "{refused}");
    assert!(env.fails(["rmi", "-f", "box:1"]).contains("image is being used by running container"));
    assert_eq!(env.ok(["stop", "back"]), "back\n");
    let ended = state(&env, "back");
    assert_eq!((&ended["Status"], &ended["ExitCode"]), (&json!("exited"), &json!(9)));
    assert_eq!(env.ok(["logs", "-n", "1", "back"]), "told\n");
    assert_eq!(env.ok(["wait", "back"]), "9\n");
    assert_eq!(more(&["back", "true"]).stderr, format!("Error: container {id} is not running\n"));
    assert!(env.fails(["kill", "back"]).contains("is not running"));
    assert!(env.fails(["rmi", "box:1"]).contains("is using its referenced image"));
    assert_nothing_left(&env);
    // It starts again with its changes.
    assert_eq!(env.ok(["start", "back"]), "back\n");
    eventually("it is up again", || env.ok(["logs", "back"]).ends_with("told\nup\n"));
    assert_eq!(more(&["back", "ls", "/made"]).code, 0);
    assert_eq!(env.ok(["kill", "-s", "KILL", "back"]), "back\n");
    assert_eq!(state(&env, "back")["ExitCode"], 137);
    assert_eq!(env.ok(["rm", "back"]), "back\n");
    assert_eq!(env.fails(["rm", "back"]), "Error: No such container: back");
    assert_eq!(env.ok(["rm", "-f", "back"]), "");
    env.ok(["rmi", "box:1"]);
}

#[test]
fn logs_follow_until_the_container_ends() {
    let env = environment();
    background(&env, &["--name", "talks"], "for n in 1 2 3; do echo $n; sleep 0.1; done; printf end");
    assert_eq!(env.ok(["logs", "-f", "talks"]), "1\n2\n3\nend");
    let timed = env.ok(["logs", "-t", "-n", "2", "talks"]);
    let first = timed.lines().next().unwrap().split(' ').next().unwrap();
    assert!(first.len() == 30 && first.ends_with('Z'), "{timed}");
    assert_eq!(env.ok(["logs", "--since", first, "talks"]), "3\nend");
    assert_eq!(env.ok(["logs", "--until", first, "talks"]), "1\n2\n");
    background(&env, &["--name", "tty", "-t"], "tty; echo bad >&2");
    env.ok(["wait", "tty"]);
    assert_eq!(env.ok(["logs", "tty"]), "/dev/pts/0\r\nbad\r\n");
    assert_nothing_left(&env);
}

#[test]
fn container_names_are_unique() {
    let env = environment();
    let id = env.ok(["create", "--name", "mine", "box:1"]);
    let taken = plyfs_run(&env, &["--name", "mine"], &["true"]);
    assert_eq!(taken.code, 125);
    let conflict = format!("Conflict. The container name \"/mine\" is already in use by container \"{}\"", id.trim());
    assert!(taken.stderr.contains(&conflict), "{taken:?}");
    assert_eq!(env.ok(["start", "-a", "mine"]), "usual\n");
    let bad = plyfs_run(&env, &["--name", "-x"], &["true"]);
    assert_eq!(bad.code, 125, "{bad:?}");
    assert_eq!(env.ok(["rm", &id[..6]]), format!("{}\n", &id[..6]));
}

#[test]
fn signals_are_forwarded_to_the_command() {
    let env = environment();
    let caught = "trap 'exit 9' TERM INT HUP QUIT USR1 USR2; echo up; while :; do sleep 0.01; done";
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        let mut one = Running::of(&mut env.command(["run", "--rm", "box:1", "sh", "-c", caught]));
        assert_eq!(one.end(signal), 9, "{signal:?}");
    }
    // A command that ignores SIGINT: the third signal ends the client, and the container ends all the same.
    let mut deaf =
        Running::of(&mut env.command(["run", "--rm", "box:1", "sh", "-c", "trap '' INT; echo up; sleep 4731"]));
    deaf.send(Signal::INT);
    std::thread::sleep(Duration::from_millis(50));
    deaf.send(Signal::INT);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(deaf.end(Signal::INT), 130);
    eventually("it is gone", || processes("4731").is_empty() && env.ok(["ps", "-aq"]).is_empty());
    assert_nothing_left(&env);
}

#[test]
fn a_container_killed_at_any_moment_leaves_only_its_changes() {
    let env = environment();
    for moment in (0..30).map(|n| Duration::from_millis(n * 4)) {
        let mut child =
            env.command(["run", "box:1", "sh", "-c", "echo kept > /kept; sync /kept; sleep 4732"]).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("all processes are gone", || processes("4732").is_empty() && env.ok(["ps", "-q"]).is_empty());
        eventually("nobody has it", || locked_containers(&env).is_empty());
        assert_nothing_left(&env);
    }
    // Also with the monitor (keeper) or the init (runner) killed: the kernel ends the rest.
    let killed = |which: &str| {
        let name = format!("dies-{which}");
        background(&env, &["--name", &name], "echo kept > /kept; sync /kept; sleep 4733 & sleep 4733");
        eventually("sleep runs", || is_sleep_running("4733"));
        let container: Value = serde_json::from_slice(&fs::read(state_file(&env, &name)).unwrap()).unwrap();
        let pid = container[which].as_u64().unwrap().to_string();
        assert_eq!(run(Command::new("kill").args(["-9", &pid])).code, 0);
        eventually("all processes are gone", || processes("4733").is_empty() && locked_containers(&env).is_empty());
        let ended = state(&env, &name);
        assert_eq!((&ended["Status"], &ended["ExitCode"]), (&json!("exited"), &json!(137)), "{which}");
        assert_eq!(env.ok(["start", &name]), format!("{name}\n"));
        eventually("it has what it changed", || {
            run(&mut env.command(["exec", &name, "cat", "/kept"])).stdout == "kept\n"
        });
        env.ok(["rm", "-f", &name]);
    };
    killed("keeper");
    killed("runner");
    // `stop` succeeds for a container that is just ending by itself.
    env.ok(["create", "--name", "short", "box:1", "true"]);
    for _ in 0..30 {
        env.ok(["start", "short"]);
        env.ok(["stop", "short"]);
    }
    // A state file that wrongly says `running` is corrected.
    background(&env, &["--name", "stale"], "sleep 4734");
    let path = state_file(&env, "stale");
    let before = fs::read(&path).unwrap();
    env.ok(["kill", "stale"]);
    fs::write(&path, before).unwrap();
    assert_eq!(state(&env, "stale")["ExitCode"], 137);
    let checked = run(&mut env.command(["system", "fsck"]));
    assert!(checked.code == 1 && checked.stdout.contains("(stale) and its monitor were killed"), "{checked:?}");
    assert!(env.ok(["system", "fsck", "--repair"]).contains("(repaired)"));
    assert_eq!(env.ok(["system", "fsck"]), "");
    let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(written["status"], "exited");
    let names = env.ok(["ps", "-aq"]);
    env.ok([&["rm"], &names.split_whitespace().collect::<Vec<_>>()[..]].concat());
    env.ok(["rmi", "box:1"]);
    assert_nothing_left(&env);
}

fn state_file(env: &TestEnv, name: &str) -> std::path::PathBuf {
    let id = env.ok(["ps", "-aq", "--no-trunc", "--filter", &format!("name={name}")]);
    env.root().join("containers").join(id.trim()).join("state.json")
}

/// The IDs of containers whose directory is locked by a process.
fn locked_containers(env: &TestEnv) -> Vec<String> {
    let all = fs::read_dir(env.root().join("containers")).unwrap().map(|entry| entry.unwrap().path());
    let is_held = |dir: &std::path::PathBuf| {
        fs::File::open(dir.join("lock"))
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    };
    all.filter(is_held).map(|dir| dir.display().to_string()).collect()
}

#[test]
fn many_containers_of_one_image_run_at_once() {
    let env = environment();
    let mut all: Vec<_> = (0..20)
        .map(|n| {
            let script = format!("echo {n} > /own; sleep 0.2; cat /own");
            env.command(["run", "--rm", "box:1", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (n, child) in all.drain(..).enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{n}\n"));
    }
    assert_eq!(env.ok(["ps", "-aq"]), "");
    assert_nothing_left(&env);
}

#[test]
fn symlinks_in_the_image_do_not_lead_outside() {
    let env = TestEnv::new();
    let outside = env.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("passwd"), "root:x:0:0::/root:/bin/sh\nmallory:x:0:0::/:/bin/sh\n").unwrap();
    let there = outside.display().to_string();
    let tar = layer()
        .symlink("data", format!("/../../..{there}"))
        .symlink("out", "../../../../../../..")
        .file("seen/own", "the image's\n");
    pull(&env, tar, json!({ "Env": ["PATH=/bin"], "Volumes": { "/seen": {}, "/fresh": {}, "/data/deep": {} } }));
    let shared = env.path("shared");
    fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/data", shared.display());
    let seen = script(
        &env,
        &["-v", &volume, "--tmpfs", "/out/tmp/in"],
        "echo x > /data/made; cat /seen/own; ls -d /fresh; echo y > /fresh/new",
    );
    assert_eq!(seen, "the image's\n/fresh\n");
    assert_eq!(fs::read_to_string(shared.join("made")).unwrap(), "x\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "something was made outside of the image");

    let env = TestEnv::new();
    let tar = layer().file("etc/passwd", "");
    let tar = tar.symlink("etc/passwd", outside.join("passwd").to_str().unwrap());
    pull(&env, tar, json!({ "Env": ["PATH=/bin"] }));
    let fooled = plyfs_run(&env, &["--rm", "-u", "mallory"], &["true"]);
    assert_eq!(
        (fooled.code, fooled.stderr.as_str()),
        (125, "Error: unable to find user mallory: no matching entries in passwd file\n")
    );
    assert_nothing_left(&env);
}

#[test]
fn volumes_of_the_image_keep_their_content_and_are_not_in_the_diff() {
    let env = TestEnv::new();
    let tar = layer().file("data/one", "from the image\n");
    pull(&env, tar, json!({ "Env": ["PATH=/bin"], "Volumes": { "/data": {} } }));
    let more = |name: &str, text: &str| {
        let output = plyfs_run(&env, &["--name", name], &["sh", "-c", text]);
        assert_eq!(output.code, 0, "{output:?}");
        output.stdout
    };
    assert_eq!(more("vol", "cat /data/one; echo more >> /data/one; touch /data/two"), "from the image\n");
    assert_eq!(env.ok(["diff", "vol"]), "", "what is in a volume is no change");
    assert_eq!(more("other", "cat /data/one"), "from the image\n");
    env.ok(["commit", "vol", "box:2"]);
    assert_eq!(env.ok(["run", "--rm", "box:2", "ls", "/data"]), "one\n");
    env.ok(["rm", "vol", "other"]);
    assert_nothing_left(&env);
}

#[test]
fn mountpoints_made_for_volumes_are_not_in_the_diff() {
    let env = environment();
    let shared = env.path("shared");
    fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/deep/er/place", shared.display());
    assert_eq!(plyfs_run(&env, &["--name", "made", "-v", &volume], &["true"]).code, 0);
    assert_eq!(env.ok(["diff", "made"]), "");
    env.ok(["start", "-a", "made"]);
    assert_eq!(env.ok(["diff", "made"]), "", "the second time it was there already");
    let failed = ["--name", "failed", "-v", &volume, "--tmpfs", "/new"];
    assert_eq!(plyfs_run(&env, &failed, &["nosuch"]).code, 127);
    assert_eq!(env.ok(["diff", "failed"]), "", "a start that fails makes no change either");
    assert_eq!(plyfs_run(&env, &["--name", "used", "-v", &volume], &["touch", "/deep/er/mine"]).code, 0);
    assert_eq!(env.ok(["diff", "used"]), "A /deep\nA /deep/er\nA /deep/er/mine\n");
}

#[test]
fn without_a_runtime_the_error_names_the_package_to_install() {
    let env = environment();
    let without = run(env.command(["run", "--rm", "box:1", "true"]).env("PATH", env.path("")));
    assert_eq!(without.code, 125);
    assert_eq!(
        without.stderr,
        "Error: no container runtime is installed: install runc, crun or youki, or use 'plyfs chroot', which needs none\n"
    );
    let named = plyfs_run(&env, &["--rm", "--runtime", "nosuch"], &["true"]);
    assert_eq!(
        (named.code, named.stderr.as_str()),
        (125, "Error: the runtime nosuch is not installed: it is not in PATH\n")
    );
    assert_eq!(env.ok(["ps", "-aq"]), "");
}

#[test]
fn a_plain_users_containers_work_like_roots() {
    let (env, home) = for_user(NEWS);
    let _subordinate_ids = SubordinateIds::add("news", 1_700_100_000);
    let user = |words: &[&str]| run(&mut env.as_user(NEWS, words));
    let volume = format!("{}:/mnt", home.join("shared").display());
    let seen = user(&[
        "run",
        "--name",
        "mine",
        "-v",
        &volume,
        "box:1",
        "sh",
        "-c",
        "id -u; touch /new /mnt/x; chown ann /new; chmod 600 /new; stat -c %u /new; exit 4",
    ]);
    assert_eq!((seen.code, seen.stdout.as_str(), seen.stderr.as_str()), (4, "0\n1000\n", ""));
    assert_eq!(user(&["diff", "mine"]).stdout, "A /new\n");
    assert_eq!(user(&["commit", "mine", "box:2"]).code, 0);
    assert_eq!(user(&["run", "--rm", "-u", "ann", "box:2", "stat", "-c", "%u %a", "/new"]).stdout, "1000 600\n");
    let id = user(&[
        "run",
        "-d",
        "--name",
        "back",
        "box:1",
        "sh",
        "-c",
        "trap 'exit 3' TERM; echo up; mkdir /d; chown ann /d; chmod 700 /d; touch /d/f; while :; do sleep 0.01; done",
    ]);
    assert_eq!(id.code, 0, "{id:?}");
    eventually("it is up", || user(&["exec", "back", "ls", "/d/f"]).code == 0);
    let more = user(&["exec", "-u", "ann", "back", "sh", "-c", "id -u; exit 6"]);
    assert_eq!((more.code, more.stdout.as_str()), (6, "1000\n"));
    assert_eq!(user(&["diff", "back"]).stdout, "A /d\nA /d/f\n");
    assert_eq!(user(&["stop", "back"]).code, 0);
    assert!(user(&["ps", "-a"]).stdout.contains("Exited (3)"));
    assert_eq!(user(&["rm", "back", "mine"]).code, 0);
    eventually("nothing is left", || fs::read_dir(env.root().join("tmp")).unwrap().count() == 0);
    // Packages chown their links to root, and some to other users.
    let links = "ln -s a /l; chown -h 0:0 /l && chown -h ann /l && stat -c %u /l";
    assert_eq!(user(&["run", "--rm", "box:1", "sh", "-c", links]).stdout, "1000\n");
    let far = user(&["run", "--rm", "-u", "2000000", "box:1", "true"]);
    assert_eq!(far.stderr, "Error: cannot run as user 2000000:0: the ID exceeds your range in /etc/subuid\n");
}

#[test]
fn without_subordinate_ids_a_container_has_only_root() {
    let (env, _home) = for_user(NOBODY);
    let user = |words: &[&str]| run(&mut env.as_user(NOBODY, words));
    let seen = user(&["run", "--rm", "box:1", "sh", "-c", "id -u; touch /new; stat -c %u /new; chown 1000 /new"]);
    assert_eq!((seen.code, seen.stdout.as_str()), (1, "0\n0\n"), "{seen:?}");
    let link = user(&["run", "--rm", "box:1", "sh", "-c", "ln -s a /l; chown -h 0:0 /l"]);
    assert_eq!((link.code, link.stderr.as_str()), (0, ""));
    let ann = user(&["run", "--rm", "-u", "ann", "box:1", "true"]);
    assert_eq!(ann.code, 125);
    assert!(ann.stderr.contains("only root is mapped: /etc/subuid has no IDs for user 65534"), "{ann:?}");
}

#[test]
fn an_interactive_shell_runs_on_a_terminal() {
    let env = environment();
    let plyfs = format!("{:?}", env.command(["run"])).replace("env -u PLYFS_ROOT ", "");
    let tmux = Tmux::start(&env);
    tmux.type_line(&format!("clear; {plyfs} -it --name shell -e 'PS1=inside> ' box:1 sh"));
    tmux.wait_for_line("inside>");
    tmux.type_line("stty size; tty");
    tmux.wait_for_line("50 100");
    tmux.wait_for_line("/dev/pts/0");
    tmux.type_line("sleep 4735");
    eventually("sleep runs", || is_sleep_running("4735"));
    tmux.run(&["send-keys", "C-c"]);
    tmux.type_line("echo code $?");
    tmux.wait_for_line("code 130");
    tmux.run(&["resize-window", "-x", "90", "-y", "40"]);
    eventually("the size is passed on", || {
        tmux.type_line("stty size");
        tmux.run(&["capture-pane", "-p"]).contains("40 90")
    });
    tmux.type_line("touch /made; exit 6");
    tmux.wait_for_prompt();
    tmux.type_line("echo back $?; stty -a | grep -o ' echo '");
    tmux.wait_for_line("back 6");
    tmux.wait_for_line(" echo");
    tmux.type_line(&format!("clear; {} -ai shell", plyfs.replace("\"run\"", "\"start\"")));
    tmux.wait_for_line("inside>");
    tmux.type_line("ls /made && exit 8");
    tmux.wait_for_line("/made");
    tmux.wait_for_prompt();
    tmux.type_line("echo again $?");
    tmux.wait_for_line("again 8");
    assert_nothing_left(&env);
}

/// A container that is stopped with much unwritten data loses none of it.
#[test]
fn stopping_a_container_loses_no_unwritten_data() {
    let env = environment();
    background(
        &env,
        &["--name", "writes"],
        "cat /bin/busybox /bin/busybox /bin/busybox > /big; cp /big /big2; rm /big; sleep 4736",
    );
    eventually("sleep runs", || is_sleep_running("4736"));
    env.ok(["stop", "-t", "0", "writes"]);
    let three = fs::read("/bin/busybox").unwrap().repeat(3);
    let container = env.root().join("containers").join(env.ok(["ps", "-aq", "--no-trunc"]).trim()).join("upper");
    assert!(fs::read(container.join("big2")).unwrap() == three);
    assert!(!container.join("big").exists());
}

#[test]
fn a_bundle_runs_with_a_runtime_alone() {
    let env = environment();
    let dir = env.path("bundle").display().to_string();
    let runc = |command: &mut Command, id: &str| {
        let state = env.path(format!("state-{id}"));
        command.arg("--root").arg(state).args(["run", "--bundle", &dir, id]);
        run(command)
    };
    env.ok(["bundle", "-e", "ONE=1", "--network", "none", "box:1", &dir, "sh", "-c", "echo $ONE; touch /made; exit 4"]);
    let ran = runc(&mut Command::new("runc"), &format!("plyfs-test-{}", std::process::id()));
    assert_eq!((ran.code, ran.stdout.as_str()), (4, "1\n"), "{ran:?}");
    env.ok(["umount", &format!("{dir}/rootfs")]);
    assert!(fs::exists(format!("{dir}/upper/made")).unwrap());
    assert!(env.fails(["bundle", "box:1", &dir]).ends_with("is not empty"));
    // A bundle that fails leaves nothing.
    let none = env.path("none").display().to_string();
    assert!(env.fails(["bundle", "-u", "bob", "box:1", &none]).contains("unable to find user bob"));
    assert!(!fs::exists(&none).unwrap());
    assert_eq!(env.ok(["mounts", "-q"]), "");
    // The bundle of a plain user.
    let (env, home) = for_user(NOBODY);
    let dir = home.join("bundle").display().to_string();
    let made = run(&mut env.as_user(NOBODY, &["bundle", "box:1", &dir, "id", "-u"]));
    assert_eq!(made.code, 0, "{made:?}");
    let mut plain = Command::new("setpriv");
    plain.args(["--reuid=65534", "--regid=65534", "--clear-groups", "runc", "--root"]).arg(home.join("state"));
    let ran = run(plain.args(["run", "--bundle", &dir, "mine"]));
    let ended = run(&mut env.as_user(NOBODY, &["umount", &format!("{dir}/rootfs")]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "0\n"), "{ran:?}");
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// Through /proc/PID/root while the container runs, through a temporary mount while it does not.
#[test]
fn cp_works_on_running_and_stopped_containers() {
    let env = environment();
    let shared = env.path("shared");
    fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/vol", shared.display());
    background(&env, &["--name", "web", "-v", &volume], "trap 'exit' TERM; while :; do sleep 0.01; done");
    let local = env.path("local").display().to_string();
    fs::write(&local, "text").unwrap();
    let copied = |round: &str| {
        let there = format!("web:/tmp/{round}");
        assert_eq!(env.ok(["cp", &local, &there]), "");
        let back = format!("{local}.{round}");
        env.ok(["cp", &there, &back]);
        assert_eq!(fs::read(&back).unwrap(), b"text");
        let tar = run(&mut env.command(["cp", &there, "-"]));
        assert!(tar.code == 0 && tar.stdout.contains(round) && tar.stdout.contains("text"), "{tar:?}");
        for (args, want) in [
            (["web:/a", "web:/b"], "copying between containers is not supported"),
            (["/a", "/b"], "must specify at least one container source"),
            (["", "/b"], "source can not be empty"),
            (["web:/a", ""], "destination can not be empty"),
            (["no:/a", "/b"], "No such container: no"),
            (["web:/a", "/b"], "Could not find the file /a in container web"),
        ] {
            assert_eq!(env.fails(["cp", args[0], args[1]]), format!("Error: {want}"), "{args:?}");
        }
        let mut unpack = env.command(["cp", "-", "web:/mnt"]);
        let tar = fs::File::open(env.path("tar")).unwrap();
        assert!(unpack.stdin(tar).status().unwrap().success());
    };
    assert!(
        Command::new("tar")
            .arg("-C")
            .arg(env.path(""))
            .args(["-cf"])
            .arg(env.path("tar"))
            .arg("local")
            .status()
            .unwrap()
            .success()
    );
    copied("running");
    env.ok(["cp", &local, "web:/vol/in"]);
    assert_eq!(fs::read(shared.join("in")).unwrap(), b"text", "what is mounted in a running container is seen");
    assert_eq!(run(&mut env.command(["exec", "web", "cat", "/tmp/running", "/mnt/local"])).stdout, "texttext");
    env.ok(["stop", "web"]);
    copied("stopped");
    env.ok(["cp", &local, "web:/vol/later"]);
    assert_eq!(
        fs::read(shared.join("later")).unwrap(),
        b"text",
        "what is mounted when it runs is seen while it does not"
    );
    assert!(!env.ok(["diff", "web"]).contains("/vol"));
    assert_nothing_left(&env);
    env.ok(["start", "web"]);
    eventually("it is up", || run(&mut env.command(["exec", "web", "true"])).code == 0);
    assert_eq!(run(&mut env.command(["exec", "web", "cat", "/tmp/stopped", "/mnt/local"])).stdout, "texttext");
    // The reader closes the pipe.
    let mut out = env.command(["cp", "web:/bin/busybox", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(out.stdout.take());
    assert_eq!(out.wait().unwrap().code(), Some(141));
    env.ok(["rm", "-f", "web"]);
}

#[test]
fn cp_works_for_a_plain_user() {
    let (env, home) = for_user(NEWS);
    let _subordinate_ids = SubordinateIds::add("news", 1_700_200_000);
    let user = |words: &[&str]| run(&mut env.as_user(NEWS, words));
    let made = "mkdir /d; echo text > /d/f; chown -R ann /d; chmod 700 /d; chmod 600 /d/f; echo up; sleep 4737";
    assert_eq!(user(&["run", "-d", "--name", "web", "box:1", "sh", "-c", made]).code, 0);
    eventually("sleep runs", || is_sleep_running("4737"));
    let out = home.join("out").display().to_string();
    for round in ["running", "stopped"] {
        let copied = user(&["cp", "web:/d/f", &format!("{out}.{round}")]);
        assert_eq!(copied.code, 0, "{round}: {copied:?}");
        assert_eq!(fs::read_to_string(format!("{out}.{round}")).unwrap(), "text\n");
        let copied = user(&["cp", &format!("{out}.{round}"), "web:/d/back"]);
        assert_eq!(copied.code, 0, "{round}: {copied:?}");
        user(&["stop", "-t", "0", "web"]);
    }
    assert_eq!(user(&["diff", "web"]).stdout, "A /d\nA /d/back\nA /d/f\n");
    assert_eq!(user(&["rm", "web"]).code, 0);
}
