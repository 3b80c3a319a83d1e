//! Crash safety of the store: pulls interrupted by signals, killed, stopped and run concurrently with other commands.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image, digest};
use super::support::tar::{Tar, noise};

fn small(n: u8) -> Vec<u8> {
    Tar::new().dir("etc").file(format!("etc/file-{n}"), vec![n; 5000]).finish()
}

fn layout(env: &TestEnv, name: &str, image: &Image) -> String {
    image.write_layout(&env.path(name));
    format!("oci:{}", env.path(name).display())
}

/// Starts plyfs with the signal dispositions that a terminal gives, whatever the tests inherited.
fn start(env: &TestEnv, args: &[&str], signals: &str, stdin: Stdio) -> Child {
    let plyfs = env.command(args);
    let mut command = Command::new("env");
    command.env_remove("PLYFS_ROOT").arg(signals).arg(plyfs.get_program()).args(plyfs.get_args());
    command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn end(child: Child) -> Output {
    use std::os::unix::process::ExitStatusExt;
    let output = child.wait_with_output().unwrap();
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
    Output { code, stdout: String::new(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

fn list_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Asserts that an interrupted pull left only complete blobs and layers, which the next pull can use.
#[track_caller]
fn assert_complete_leftovers(env: &TestEnv) {
    assert_eq!(list_names(&env.root().join("tmp")), [""; 0]);
    for line in run(&mut env.command(["system", "fsck"])).stdout.lines() {
        let complete = ["leaked layer: ", "leaked blob: ", "leaked tree: "].iter().any(|what| line.starts_with(what));
        assert!(complete, "left behind: {line}");
    }
}

fn big(env: &TestEnv) -> String {
    let layers = [noise(1, 6 << 20), noise(2, 3 << 20), small(1)];
    layout(env, "big", &layers.into_iter().fold(Image::new(), Image::layer))
}

/// The shortest time that one pull takes on this machine, so that signals can be sent at any point of it. A
/// measurement slowed down by concurrent tests would make most signals come too late.
fn duration_of(env: &TestEnv, source: &str) -> Duration {
    let once = |_| {
        let begun = Instant::now();
        env.ok(["pull", "-q", source]);
        let taken = begun.elapsed();
        env.ok(["rmi", "-f", "big"]);
        taken
    };
    (0..3).map(once).min().unwrap()
}

#[test]
fn an_interrupted_pull_ends_at_once_and_cleans_up() {
    let env = TestEnv::new();
    let source = big(&env);
    let pull_time = duration_of(&env, &source);
    let (points, mut ended) = (24, 0);
    // More rounds only if concurrent tests made too many signals come too late.
    for point in 0..4 * points {
        if point >= points && ended > points / 3 {
            break;
        }
        let point = point % points;
        let (sent, code) = [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)][point % 3];
        let child = start(&env, &["pull", "-q", &source], "--default-signal", Stdio::null());
        std::thread::sleep(pull_time * u32::try_from(point).unwrap() / points as u32);
        let asked = Instant::now();
        signal(&child, sent);
        let output = end(child);
        assert!(asked.elapsed() < Duration::from_secs(5), "{sent:?} took {:?}", asked.elapsed());
        if point > 1 {
            // Before that, the program may not have installed its handlers and dies of the signal.
            assert!([0, code].contains(&output.code), "{output:?}");
        }
        assert_eq!(output.stderr, "", "{sent:?}");
        assert_complete_leftovers(&env);
        ended += usize::from(output.code == code);
        assert!(output.code != 0 || env.ok(["images", "-q"]).lines().count() == 1);
        run(&mut env.command(["rmi", "-f", "big"]));
    }
    assert!(ended > points / 3, "only {ended} pulls were met by their signal");
    env.ok(["pull", &source]);
    env.ok(["system", "gc"]);
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn a_load_that_waits_for_input_or_the_lock_can_be_interrupted() {
    let env = TestEnv::new();
    let source = layout(&env, "small", &Image::new().layer(small(1)));
    env.ok(["pull", "-q", &source]);
    let mut child = start(&env, &["load"], "--default-signal", Stdio::piped());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&small(2)[..1024]).unwrap();
    let begun = Instant::now();
    while list_names(&env.root().join("tmp")).is_empty() && begun.elapsed() < Duration::from_secs(10) {}
    signal(&child, Signal::INT);
    assert_eq!(end(child).code, 130);
    assert_complete_leftovers(&env);
    let lock = fs::File::options().write(true).open(env.root().join("lock")).unwrap();
    lock.lock().unwrap();
    let child = start(&env, &["pull", &source], "--default-signal", Stdio::null());
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, Signal::TERM);
    assert_eq!(end(child).code, 143);
    drop(lock);
    assert_complete_leftovers(&env);
}

#[test]
fn ignored_signals_stay_ignored() {
    let env = TestEnv::new();
    let mut child = start(&env, &["load"], "--ignore-signal=HUP", Stdio::piped());
    let mut stdin = child.stdin.take().unwrap();
    let begun = Instant::now();
    while !env.root().join("tmp").is_dir() || list_names(&env.root().join("tmp")).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    signal(&child, Signal::HUP);
    Image::new().layer(small(1)).write_docker_archive(&env.path("a.tar"), &["a:1"]);
    stdin.write_all(&fs::read(env.path("a.tar")).unwrap()).unwrap();
    drop(stdin);
    assert_eq!(end(child).code, 0);
    assert_eq!(env.ok(["images", "-q", "a:1"]).lines().count(), 1);
}

#[test]
fn a_pull_completes_after_earlier_ones_were_killed() {
    let env = TestEnv::new();
    let source = big(&env);
    let pull_time = duration_of(&env, &source);
    for point in 0..16 {
        let mut child = start(&env, &["pull", "-q", &source], "--default-signal", Stdio::null());
        std::thread::sleep(pull_time * point / 16);
        child.kill().unwrap();
        child.wait().unwrap();
        let shown = env.ok(["images", "-q"]).lines().count();
        if point % 4 == 0 || shown == 1 {
            env.ok(["pull", "-q", &source]);
            assert_eq!(list_names(&env.root().join("tmp")), [""; 0]);
            assert_eq!(env.ok(["system", "fsck"]), "");
            env.ok(["rmi", "-f", "big"]);
        }
    }
    env.ok(["pull", "-q", &source]);
    assert_eq!(env.ok(["system", "fsck"]), "");
}

/// Sends SIGSTOP to a process as soon as a condition holds.
#[track_caller]
fn stop_when(child: &Child, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the command did not reach the expected state");
    }
    signal(child, Signal::STOP);
}

#[test]
fn gc_and_rmi_keep_the_layers_of_a_running_pull() {
    let env = TestEnv::new();
    let shared = layout(&env, "shared", &Image::new().layer(small(1)));
    env.ok(["pull", "-q", &shared]);
    let slow = Image::new().layer(small(1)).layer(small(2)).layer(noise(3, 24 << 20));
    let source = layout(&env, "slow", &slow);
    let layer = |n| env.root().join("layers/sha256").join(digest(&small(n)).replace("sha256:", ""));
    let child = start(&env, &["pull", "-q", &source], "--default-signal", Stdio::null());
    stop_when(&child, || layer(2).exists());
    // The pull found the shared layer in the store; now the last image with that layer is removed.
    env.ok(["rmi", "shared"]);
    assert_eq!(env.ok(["system", "gc"]), "Total reclaimed space: 0B\n");
    assert_eq!(env.ok(["system", "fsck", "--repair"]), "");
    assert!(layer(1).exists() && layer(2).exists());
    signal(&child, Signal::CONT);
    assert_eq!(end(child).code, 0);
    assert_eq!(env.ok(["system", "fsck"]), "");
    // The same with a killed pull: nothing needs the layer any more.
    env.ok(["rmi", "slow"]);
    let mut child = start(&env, &["pull", "-q", &source], "--default-signal", Stdio::null());
    stop_when(&child, || layer(2).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(env.ok(["system", "gc"]).contains("Deleted layer: "));
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn fsck_blocks_no_command_and_tolerates_concurrent_removals() {
    let env = TestEnv::new();
    let zeros = Tar::new().file("zeros", vec![0u8; 128 << 20]).finish();
    env.ok(["pull", "-q", &layout(&env, "zeros", &Image::new().layer(zeros).layer(small(2)))]);
    env.ok(["pull", "-q", &layout(&env, "other", &Image::new().layer(small(3)))]);
    let child = start(&env, &["system", "fsck", "--repair"], "--default-signal", Stdio::null());
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten();
        fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("layer.tar")))
    };
    stop_when(&child, open);
    // While fsck is in the middle of the first image, other commands are not blocked.
    env.ok(["pull", "-q", &layout(&env, "third", &Image::new().layer(small(4)))]);
    env.ok(["rmi", "zeros"]);
    env.ok(["rmi", "other"]);
    signal(&child, Signal::CONT);
    let output = end(child);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert_eq!(env.ok(["images", "-q"]).lines().count(), 1);
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn concurrent_processes_leave_a_consistent_store() {
    const PROCESSES: usize = 16;
    const TIME: Duration = Duration::from_secs(6);
    let env = TestEnv::new();
    let of = |layers: &[u8]| layers.iter().fold(Image::new(), |image, n| image.layer(small(*n)));
    let sources: Vec<String> = [&[1, 2][..], &[1, 3], &[1, 2, 3, 4], &[5]]
        .iter()
        .zip(["a", "b", "c", "d"])
        .map(|(layers, name)| layout(&env, name, &of(layers)))
        .collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for process in 0..PROCESSES {
            let (env, sources) = (&env, &sources);
            scope.spawn(move || {
                let mut round = process;
                while begun.elapsed() < TIME {
                    run_random_command(env, sources, round);
                    round = round * 5 + 3;
                    round %= 1009;
                }
            });
        }
    });
    assert_eq!(env.ok(["system", "fsck"]), "");
    for id in env.ok(["images", "-q", "--no-trunc"]).lines() {
        run(&mut env.command(["rmi", "-f", id]));
    }
    assert_eq!(env.ok(["system", "gc"]), "Total reclaimed space: 0B\n");
    for folder in ["blobs/sha256", "layers/sha256", "trees", "tmp", "mounts"] {
        assert_eq!(list_names(&env.root().join(folder)), [""; 0], "{folder}");
    }
}

/// Runs one of the concurrent commands, and checks its failure if it may fail.
fn run_random_command(env: &TestEnv, sources: &[String], round: usize) {
    let at = (round / 8) % sources.len();
    let name = ["a", "b", "c", "d"][at];
    let new = format!("tag-{}", round % 3);
    let absent = "No such image";
    let (args, excuse): (Vec<&str>, _) = match round % 8 {
        0..=2 => (vec!["pull", "-q", &sources[at]], None),
        3 => (vec!["tag", name, &new], Some(absent)),
        4 => (vec!["rmi", "-f", &new], Some(absent)),
        5 => (vec!["rmi", name], Some(absent)),
        6 => (vec!["system", "gc"], None),
        _ => (vec!["system", "fsck"], None),
    };
    let output = run(&mut env.command(&args));
    let excused = excuse.is_some_and(|words| output.stderr.contains(words));
    assert!(output.code == 0 || excused, "{args:?}: {output:?}");
    if args[1] == "fsck" {
        assert_eq!(output.stdout, "", "fsck reported a problem in a consistent store");
    }
}

#[test]
fn a_truncated_layer_is_reported_and_pulled_again() {
    let env = TestEnv::new();
    let source = layout(&env, "image", &Image::new().layer(small(1)).compressed(small(2), Compression::Zstd));
    env.ok(["pull", "-q", &source]);
    let tar = env.root().join("layers/sha256").join(digest(&small(2)).replace("sha256:", "")).join("layer.tar");
    let cut = || fs::File::options().write(true).open(&tar).unwrap().set_len(2000).unwrap();
    cut();
    fs::create_dir(env.path("mnt")).unwrap();
    let error = env.fails(["mount".as_ref(), "image".as_ref(), env.path("mnt").as_os_str()]);
    assert!(error.contains("2000 bytes, wanted 7168") && error.ends_with("pull it again"), "{error}");
    assert_eq!(list_names(&env.root().join("mounts")), [""; 0], "a mount that failed left its registration");
    // The remedy in the message works, and so does the other one.
    let again = env.ok(["pull", &source]);
    assert_eq!((again.matches("Already exists").count(), again.matches("Pull complete").count()), (1, 1), "{again}");
    assert_eq!(fs::read(&tar).unwrap(), small(2));
    assert_eq!(env.ok(["system", "fsck"]), "");
    cut();
    let found = run(&mut env.command(["system", "fsck", "--repair"]));
    assert!(found.code == 1 && found.stdout.contains("layer.tar has 2000 bytes, wanted 7168"), "{found:?}");
    env.ok(["pull", &source]);
    assert_eq!(env.ok(["system", "fsck"]), "");
    // A directory with wrong permissions is reported.
    let layers = env.root().join("layers");
    let mode = |mode| fs::set_permissions(&layers, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o755);
    assert!(run(&mut env.command(["system", "fsck"])).stdout.contains("has mode 0755, wanted 0700"));
    env.ok(["system", "fsck", "--repair"]);
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn loading_a_pipe_without_an_image_prints_a_one_line_error() {
    let env = TestEnv::new();
    let nothing = fs::File::open("/dev/null").unwrap();
    let child = start(&env, &["load"], "--default-signal", Stdio::from(nothing.as_fd().try_clone_to_owned().unwrap()));
    let output = end(child);
    assert_eq!(output.code, 1);
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(output.stderr.contains("standard input: is empty"), "{output:?}");
}
