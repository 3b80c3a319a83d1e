//! `build`: the cache, secrets, interruptions, plain users, output, and images that are built and then run. What each
//! instruction does is compared with buildah in `dockerfiles`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use super::support::chroot::APT;
use super::support::env::{Output, TestEnv, run};
use super::support::small::{self, NEWS, NOBODY, SubordinateIds, for_user};
use super::support::terminal::Terminal;
use super::support::{big_image, debs, eventually};

/// A store with the busybox image `box:1`, and an empty context.
struct Bed {
    env: TestEnv,
}

impl Bed {
    fn new() -> Bed {
        let env = small::environment();
        fs::create_dir(env.path("ctx")).unwrap();
        env.ok(["tag", env.ok(["images", "-q"]).trim(), "box:1"]);
        Bed { env }
    }

    fn context(&self) -> PathBuf {
        self.env.path("ctx")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.context().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        self.env.command([&["build"], args, &[self.context().to_str().unwrap()]].concat())
    }

    #[track_caller]
    fn build(&self, args: &[&str]) -> Output {
        let output = run(&mut self.command(args));
        assert_eq!(output.code, 0, "{output:#?}");
        output
    }

    /// Builds, and returns the titles of the steps that were not in the cache.
    #[track_caller]
    fn made(&self, args: &[&str]) -> Vec<String> {
        let output = self.build(&[&["--progress", "plain"], args].concat());
        let mut made = Vec::new();
        for line in output.stderr.lines() {
            let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else { continue };
            if rest.starts_with('[') {
                made.push((number.to_owned(), rest.split_once("] ").unwrap().1.to_owned()));
            } else if rest == "CACHED" {
                made.retain(|(other, _)| other != number);
            }
        }
        made.into_iter().map(|(_, title)| title).collect()
    }

    /// Lists what is at and below a path, as tar does: mode, numeric owner, size and time in UTC.
    #[track_caller]
    fn listing(&self, image: &str, path: &str) -> String {
        let script = "\"$0\" --root \"$1\" export \"$2\" | TZ=UTC tar -tv --numeric-owner --full-time ${3:+\"$3\"}";
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).arg(env!("CARGO_BIN_EXE_plyfs")).arg(self.env.root());
        let output = run(command.args([image, path]));
        assert_eq!(output.code, 0, "{output:#?}");
        output.stdout
    }

    #[track_caller]
    fn cat(&self, image: &str, path: &str) -> String {
        self.env.ok(["cat", image, path])
    }
}

#[test]
fn a_step_is_made_again_only_if_its_input_changed() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM box:1\nARG V=1\nCOPY dir /dir/\nRUN echo $V > /v\nCOPY other /other\n");
    bed.write("dir/file", "one");
    bed.write("other", "other");
    let all = ["COPY dir /dir/", "RUN echo $V > /v", "COPY other /other"];
    assert_eq!(bed.made(&["-t", "a"]), all);
    let first = bed.env.ok(["images", "-q", "--no-trunc", "a"]);
    assert_eq!(bed.made(&["-t", "b"]), [""; 0]);
    assert_eq!(bed.env.ok(["images", "-q", "--no-trunc", "b"]), first, "the same image again");
    let file = bed.context().join("dir/file");
    let touched = SystemTime::now() - Duration::from_secs(1000);
    File::options().write(true).open(&file).unwrap().set_modified(touched).unwrap();
    assert_eq!(bed.made(&[]), [""; 0], "times are no input");
    chown(&file, Some(5), Some(6)).unwrap();
    assert_eq!(bed.made(&[]), [""; 0], "copied files belong to root");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(bed.made(&[]), all, "a mode");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(bed.made(&[]), [""; 0], "as it was first");
    fs::write(&file, "two").unwrap();
    assert_eq!(bed.made(&["-t", "c"]), all, "content of the same size");
    assert_eq!(bed.cat("c", "/dir/file"), "two");
    fs::rename(&file, bed.context().join("dir/name")).unwrap();
    assert_eq!(bed.made(&[]), all, "a name");
    bed.write("other", "changed");
    assert_eq!(bed.made(&[]), all[2..]);
    assert_eq!(bed.made(&["--build-arg", "V=2", "-t", "d"]), all[1..]);
    assert_eq!(bed.cat("d", "/v"), "2\n");
    assert_eq!(bed.made(&["--no-cache"]), all);
}

#[test]
fn a_stage_that_makes_the_same_file_again_invalidates_nothing() {
    let bed = Bed::new();
    bed.write(
        "Dockerfile",
        "FROM box:1 AS make\nCOPY in /in\nRUN echo same > /out\nFROM box:1\nCOPY --from=make /out /out\nRUN true\n",
    );
    bed.write("in", "1");
    bed.made(&[]);
    bed.write("in", "2");
    assert_eq!(bed.made(&[]), ["COPY in /in", "RUN echo same > /out"]);
}

#[test]
fn the_cache_is_counted_kept_and_pruned() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM box:1\nRUN echo made > /made\nRUN --mount=type=cache,target=/c touch /c/kept\n");
    bed.build(&["-t", "a"]);
    bed.env.ok(["rmi", "a"]);
    bed.env.ok(["system", "gc"]);
    assert_eq!(bed.made(&["-t", "a"]), [""; 0], "garbage collection keeps cached layers");
    fs::write(bed.env.root().join("builds/steps").join("junk"), "{").unwrap();
    bed.env.ok(["system", "gc"]);
    assert!(bed.env.ok(["builder", "prune", "-f"]).contains("Total reclaimed space"));
    assert_eq!(bed.cat("a", "/made"), "made\n", "an image keeps its layers");
    assert_eq!(bed.made(&["-t", "a"]).len(), 2);
    bed.env.ok(["rmi", "a"]);
    // The first image has lost its name to the second.
    bed.env.ok(["image", "prune", "-f"]);
    bed.env.ok(["builder", "prune", "-f"]);
    let left: Vec<_> = fs::read_dir(bed.env.root().join("layers/sha256")).unwrap().collect();
    assert_eq!(left.len(), 1, "only the base's layer");
    assert!(bed.env.ok(["system", "fsck"]).is_empty());
}

#[test]
fn the_same_input_makes_the_same_image_with_a_fixed_date() {
    let bed = Bed::new();
    bed.write(
        "Dockerfile",
        "FROM box:1\nWORKDIR /new/dir\nCOPY in ./\nRUN echo a > b; mkdir c; ln -s b l\nCMD [\"x\"]\n",
    );
    bed.write("in/file", "1");
    let id = |args: &[&str]| {
        let output = run(bed.command(&[&["-q"], args].concat()).env("SOURCE_DATE_EPOCH", "1600000000"));
        assert_eq!(output.code, 0, "{output:#?}");
        output.stdout
    };
    let first = id(&[]);
    thread::sleep(Duration::from_millis(1100));
    fs::write(bed.context().join("in/file"), "1").unwrap();
    assert_eq!(id(&["--no-cache"]), first);
    assert!(first.starts_with("sha256:") && first.lines().count() == 1, "{first}");
    let list = bed.listing(first.trim(), "new");
    assert!(list.lines().count() == 6 && list.lines().all(|line| line.contains("2020-09-13 12:26:40")), "{list}");
}

#[test]
fn builds_at_the_same_time_make_the_same_image() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM box:1\nCOPY in /in\nRUN sleep 0.3; cat /in > /out\nRUN echo end >> /out\n");
    bed.write("in", "1\n");
    let start = |name: &str| bed.command(&["-q", "-t", name]).stderr(Stdio::null()).spawn().unwrap();
    let all: Vec<Child> = (0..3).map(|n| start(&format!("n{n}"))).collect();
    assert!(all.into_iter().all(|mut child| child.wait().unwrap().success()));
    for n in 0..3 {
        assert_eq!(bed.cat(&format!("n{n}"), "/out"), "1\nend\n");
    }
    assert!(bed.env.ok(["system", "fsck"]).is_empty());
}

#[test]
fn independent_stages_run_side_by_side() {
    let bed = Bed::new();
    // Each waits for the other one's file.
    let stage = |own: &str, other: &str| {
        format!(
            "FROM box:1 AS {own}\nRUN --mount=type=cache,id=meet,target=/c \
             touch /c/{own}; while ! ls /c/{other} >/dev/null 2>&1; do sleep 0.05; done; echo {own} > /{own}\n"
        )
    };
    let last = "FROM box:1\nCOPY --from=one /one /\nCOPY --from=two /two /\n";
    bed.write(
        "Dockerfile",
        &format!("{}{}FROM box:1 AS unused\nRUN false\n{last}", stage("one", "two"), stage("two", "one")),
    );
    bed.build(&["-t", "a"]);
    assert_eq!((bed.cat("a", "/one"), bed.cat("a", "/two")), ("one\n".into(), "two\n".into()));
}

#[test]
fn cache_mounts_are_taken_in_one_order_and_only_to_run() {
    let bed = Bed::new();
    let stage = |name: &str, first: &str, second: &str| {
        let mount = |id: &str, at: &str| format!("--mount=type=cache,id={id},sharing=locked,target=/{at}");
        let mounts = [mount(first, "a"), mount(second, "b"), mount(first, "again")].join(" ");
        format!("FROM box:1 AS {name}\nRUN {mounts} sleep 0.2; ls /again > /{name}\n")
    };
    let last = "FROM box:1\nCOPY --from=x /x /\nCOPY --from=y /y /\n";
    bed.write("Dockerfile", &format!("{}{}{last}", stage("x", "one", "two"), stage("y", "two", "one")));
    bed.build(&[]);
    // A cached step needs none of them.
    let mounts = fs::read_dir(bed.env.root().join("builds/mounts")).unwrap();
    let held: Vec<File> = mounts.map(|entry| File::open(entry.unwrap().path()).unwrap()).collect();
    assert!(held.len() == 2 && held.iter().all(|dir| dir.try_lock().is_ok()));
    assert_eq!(bed.made(&[]), [""; 0]);
}

#[test]
fn secrets_are_in_no_layer_log_or_history() {
    let bed = Bed::new();
    let secret = "open-sesame-4711";
    fs::write(bed.env.path("secret"), secret).unwrap();
    bed.write(
        "Dockerfile",
        "FROM box:1\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,target=/e,mode=0444 \
         test \"$(cat /run/secrets/s)\" = \"$(cat /e)\" && stat -c '%a %u' /run/secrets/s /e > /modes\n",
    );
    let file = format!("id=s,src={}", bed.env.path("secret").display());
    for isolation in ["oci", "chroot"] {
        let args = ["--no-cache", "-t", "a", "--isolation", isolation, "--secret", &file, "--secret", "id=e,env=PASS"];
        let output = run(bed.command(&args).env("PASS", secret));
        assert_eq!(output.code, 0, "{output:#?}");
        assert!(!output.stderr.contains(secret));
        assert_eq!(bed.cat("a", "/modes"), "400 0\n444 0\n");
        let found = run(Command::new("grep").args(["-rl", secret]).arg(bed.env.root()));
        assert_eq!((found.code, found.stdout.as_str()), (1, ""), "the store has the secret");
        let paths = bed.env.ok(["find", "a", "/", "-path", "*run*"]);
        assert_eq!(paths, "", "the mount point is no change");
    }
    bed.write("Dockerfile", "FROM box:1\nRUN --mount=type=secret,id=s,required=true true\n");
    let output = run(&mut bed.command(&[]));
    assert!(output.code == 1 && output.stderr.contains("Error: Dockerfile:2: secret s: not found"), "{output:#?}");
}

#[test]
fn a_failed_build_shows_output_line_and_code_and_changes_nothing() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM box:1\nRUN echo fine > /x\nRUN echo out; echo err >&2; exit 7\n");
    let before = bed.env.ok(["images", "-a", "--no-trunc"]);
    let output = run(&mut bed.command(&["-t", "a", "--progress", "plain"]));
    assert_eq!(output.code, 1);
    for part in [
        "\n#3 ",
        " > [3/3] RUN echo out; echo err >&2; exit 7:\n",
        "   3 | >>> RUN echo out; echo err >&2; exit 7\n",
        "\nError: Dockerfile:3: process \"/bin/sh -c echo out; echo err >&2; exit 7\" did not complete successfully: exit code: 7\n",
    ] {
        assert!(output.stderr.contains(part), "{part:?} is not in:\n{}", output.stderr);
    }
    assert_eq!(bed.env.ok(["images", "-a", "--no-trunc"]), before);
    assert_eq!(bed.env.ok(["system", "gc"]), bed.env.ok(["system", "gc"]));
    assert_eq!(fs::read_dir(bed.env.root().join("tmp")).unwrap().count(), 0);
    bed.write("Dockerfile", "FROM box:1\nRUN echo fine > /x\nRUN true\n");
    assert_eq!(bed.made(&[]), ["RUN true"], "the good step is cached");
}

#[test]
fn killed_and_interrupted_builds_leave_nothing_and_go_on_from_the_cache() {
    let bed = Bed::new();
    let steps: String = (0..6).map(|n| format!("RUN echo {n} > /{n}; sleep 0.2\n")).collect();
    bed.write("Dockerfile", &format!("FROM box:1\n{steps}"));
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap().lines().filter(|l| l.contains("plyfs")).count();
    let before = mounts();
    for (number, signal) in [Signal::KILL, Signal::INT, Signal::KILL, Signal::TERM].into_iter().enumerate() {
        let mut child = bed.command(&["-q"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(150 + 170 * number as u64));
        let pid = Pid::from_child(&child);
        // It may have ended by itself.
        let _ended = kill_process(pid, signal);
        let _status = child.wait().unwrap();
        // In no mount namespace.
        eventually("no process has a mount of the step", || mounted_below(&bed.env.root()) == 0);
        assert_eq!(mounts(), before);
    }
    bed.build(&["-t", "a"]);
    for n in 0..6 {
        assert_eq!(bed.cat("a", &format!("/{n}")), format!("{n}\n"));
    }
    assert_eq!(fs::read_dir(bed.env.root().join("tmp")).unwrap().count(), 0);
    // Merged indexes of killed steps.
    bed.env.ok(["system", "gc"]);
    assert!(bed.env.ok(["system", "fsck"]).is_empty());
}

/// The number of processes in whose mount namespace something is mounted below a path.
fn mounted_below(path: &Path) -> usize {
    let path = format!(" {}/", path.display());
    let all = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("mountinfo")).ok());
    all.filter(|mounts| mounts.contains(&path)).count()
}

/// Builds as a plain user, and returns what the steps have seen.
fn built_by(user: u32) -> (TestEnv, Output) {
    let (env, _home) = for_user(user);
    let context = env.path("ctx");
    fs::create_dir(&context).unwrap();
    let name = env.ok(["images", "-q"]);
    assert_eq!(run(Command::new("chown").arg("-R").arg(format!("{user}:{user}")).arg(env.root())).code, 0);
    let text = format!(
        "FROM {}\nCOPY --chown=1000:1001 f /f\nRUN mkdir /d && echo x > /d/x && id -u > /id\nRUN chown 5:6 /d/x && stat -c '%u:%g' /d/x /f > /owners\n",
        name.trim()
    );
    fs::write(context.join("Dockerfile"), text).unwrap();
    fs::write(context.join("f"), "f").unwrap();
    let output = run(&mut env.as_user(user, &["build", "-t", "a", context.to_str().unwrap()]));
    (env, output)
}

#[test]
fn a_plain_user_with_subordinate_ids_builds_any_owner() {
    let _ids = SubordinateIds::add("news", 700_000);
    let (env, output) = built_by(NEWS);
    assert_eq!(output.code, 0, "{output:#?}");
    let cat = |path: &str| run(&mut env.as_user(NEWS, &["cat", "a", path])).stdout;
    assert_eq!((cat("/id"), cat("/owners")), ("0\n".into(), "5:6\n1000:1001\n".into()));
    let tmp = fs::read_dir(env.root().join("tmp")).unwrap().count();
    assert_eq!(tmp, 0);
}

#[test]
fn a_plain_user_without_subordinate_ids_builds_what_needs_none() {
    let (_env, output) = built_by(NOBODY);
    assert_eq!(output.code, 1);
    // The first two steps work; changing an owner does not.
    assert!(output.stderr.contains("Error: Dockerfile:4: process \"/bin/sh -c chown 5:6 /d/x"), "{output:#?}");
}

#[test]
fn a_killed_build_of_a_plain_user_is_cleaned_up_by_the_next() {
    let _ids = SubordinateIds::add("news", 700_000);
    let (env, _home) = for_user(NEWS);
    let context = env.path("ctx");
    fs::create_dir(&context).unwrap();
    let image = env.ok(["images", "-q"]);
    assert_eq!(run(Command::new("chown").arg("-R").arg(format!("{NEWS}:{NEWS}")).arg(env.root())).code, 0);
    let path = context.to_str().unwrap();
    fs::write(
        context.join("Dockerfile"),
        format!("FROM {}\nRUN mkdir -m 700 /d && touch /d/x && chown -R 5:6 /d && sleep 10\n", image.trim()),
    )
    .unwrap();
    let mut child = env.as_user(NEWS, &["build", path]).stderr(Stdio::null()).spawn().unwrap();
    let tmp = env.root().join("tmp");
    eventually("the step has changed owners", || {
        run(Command::new("find").arg(&tmp).args(["-name", "x", "-path", "*upper*"])).stdout.contains("/x")
            && small::is_sleep_running("10")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the step has ended", || !small::is_sleep_running("10"));
    assert!(fs::read_dir(&tmp).unwrap().count() > 0, "nothing was left to clean up");
    fs::write(context.join("Dockerfile"), format!("FROM {}\nRUN true\n", image.trim())).unwrap();
    let output = run(&mut env.as_user(NEWS, &["build", path]));
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "the next build has removed it");
}

#[test]
fn both_kinds_of_isolation_and_engines_make_the_same_tree() {
    let bed = Bed::new();
    bed.write(
        "Dockerfile",
        "FROM box:1\nENV A=b\nUSER ann:staff\nWORKDIR /home/ann\nRUN env | grep -v HOSTNAME | grep -v SHLVL > e; id > i\nUSER root\n\
         RUN --network=none --mount=type=tmpfs,target=/scratch ls /sys/class/net > /net; rm -r /mnt; echo x > /scratch/x\n",
    );
    let lists: Vec<(Vec<String>, String)> =
        [("oci", "fuse"), ("chroot", "fuse"), ("oci", "kernel"), ("chroot", "kernel")]
            .iter()
            .map(|(isolation, engine)| {
                bed.build(&["--no-cache", "-t", "a", "--isolation", isolation, "--engine", engine]);
                // Mode, owner, size and name, without the time.
                let fields = |line: &str| {
                    line.split_whitespace()
                        .enumerate()
                        .filter(|(at, _)| !matches!(at, 3 | 4))
                        .map(|(_, field)| field.to_owned() + " ")
                        .collect::<String>()
                };
                let list: Vec<String> = bed.listing("a", "").lines().map(fields).collect();
                (list, bed.cat("a", "/home/ann/e") + &bed.cat("a", "/home/ann/i") + &bed.cat("a", "/net"))
            })
            .collect();
    for other in &lists[1..] {
        assert_eq!(other.0, lists[0].0);
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&other.1), sorted(&lists[0].1));
    }
}

#[test]
fn dockerfile_and_context_come_from_standard_input() {
    let bed = Bed::new();
    let piped = |args: &[&str], input: &[u8]| {
        let mut command = bed.env.command([&["build", "-q"], args].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A program that refuses its input closes it.
        let _refused = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = piped(&["-t", "a", "-"], b"FROM box:1\nRUN echo a > /a\n");
    assert_eq!(code, 0, "{said}");
    assert_eq!(bed.cat("a", "/a"), "a\n");
    let (code, said) = piped(&["-"], b"FROM box:1\nCOPY a /a\n");
    assert!(code == 1 && said.contains("there is no build context to copy from"), "{said}");
    bed.write("f", "file");
    let context = bed.context();
    let (code, said) = piped(&["-t", "b", "-f", "-", context.to_str().unwrap()], b"FROM box:1\nCOPY f /f\n");
    assert_eq!(code, 0, "{said}");
    assert_eq!(bed.cat("b", "/f"), "file");
    bed.write("Dockerfile", "FROM box:1\nCOPY f /g\n");
    let tar = Command::new("tar").arg("-C").arg(&context).args(["-cz", "."]).output().unwrap().stdout;
    let (code, said) = piped(&["-t", "c", "-"], &tar);
    assert_eq!(code, 0, "{said}");
    assert_eq!(bed.cat("c", "/g"), "file");
    assert_eq!(piped(&["-f", "-", "-"], b"").0, 1);
}

#[test]
fn urls_are_added_and_their_digests_checked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            let path = String::from_utf8_lossy(&request[..n]).split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = match path.as_str() {
                "/moved" => {
                    "HTTP/1.1 302 Found\r\nLocation: /file.txt\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                }
                "/file.txt" => {
                    "HTTP/1.1 200 OK\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
                }
                _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            };
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    let bed = Bed::new();
    let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let url = format!("http://127.0.0.1:{port}");
    bed.write(
        "Dockerfile",
        &format!("FROM box:1\nADD --checksum={digest} {url}/file.txt /d/\nADD {url}/moved /named\n"),
    );
    bed.build(&["-t", "a"]);
    let list = bed.listing("a", "d/file.txt") + &bed.listing("a", "named");
    let is_right = |line: &str| {
        line.starts_with("-rw------- 0/0 5 1994-11-06 08:49:37")
            || line.starts_with("-rw------- 0/0               5 1994-11-06 08:49:37")
    };
    assert!(list.lines().count() == 2 && list.lines().all(is_right), "{list}");
    assert_eq!(bed.made(&[]), [""; 0]);
    for (line, why) in [
        (format!("ADD --checksum={} {url}/file.txt /", digest.replace('9', "8")), "its digest is sha256:2cf2"),
        (format!("ADD {url}/none /"), "the server answers 404"),
        (format!("ADD {url} /"), "cannot determine the name of the file"),
    ] {
        bed.write("Dockerfile", &format!("FROM box:1\n{line}\n"));
        let output = run(&mut bed.command(&[]));
        assert!(
            output.code == 1 && output.stderr.contains("Error: Dockerfile:2: ") && output.stderr.contains(why),
            "{output:#?}"
        );
    }
}

#[test]
fn the_progress_is_live_on_a_terminal() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM box:1\nRUN echo seen; sleep 1\nRUN true\n");
    let mut terminal = Terminal::run(&bed.command(&["-t", "a"]), 60, 12);
    terminal.wait_until("a running step with its output", |screen| {
        let text = screen.text();
        text.contains(" => [2/3] RUN echo seen; sleep 1") && text.contains(" => => seen")
    });
    assert_eq!(terminal.end().code(), Some(0));
    let text = terminal.screen.text();
    assert!(text.contains("[+] Building") && text.contains("(4/4)") && text.contains(" => [3/3] RUN true"), "{text}");
    assert_eq!(terminal.screen.wrapped, 0);
}

#[test]
fn wrong_flags_and_files_are_one_clear_line() {
    let bed = Bed::new();
    let fails = |args: &[&str]| bed.env.fails([&["build"], args].concat());
    let context = bed.context();
    let context = context.to_str().unwrap();
    assert!(fails(&[context]).contains("failed to read dockerfile: open"));
    assert!(fails(&["/no/such"]).contains("path \"/no/such\" not found"));
    assert!(fails(&["https://host/repo.git"]).contains("a remote build context is not supported"));
    bed.write("Dockerfile", "FROM box:1\n");
    assert!(fails(&["--target", "x", context]).contains("target stage \"x\" could not be found"));
    assert!(fails(&["--network", "x", context]).contains("use host or none"));
    assert!(fails(&["--secret", "id=x,src=/no", context]).contains("cannot read the secret /no"));
    assert!(fails(&["-t", "Bad:1", context]).contains("invalid reference format"));
    bed.write(".dockerignore", "a[\n");
    assert!(fails(&[context]).contains("`a[` is not a pattern"));
    let output = run(&mut bed.env.command(["build"]));
    assert!(output.code == 1 && output.stderr.contains("requires exactly 1 argument"), "{output:#?}");
}

#[test]
fn a_foreign_platform_is_built_without_running_anything() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY f /$TARGETARCH/\nWORKDIR /w\n");
    bed.write("f", "f");
    bed.build(&["--platform", "linux/s390x", "-t", "a"]);
    assert_eq!(bed.env.ok(["inspect", "-f", "{{.Os}}/{{.Architecture}}", "a"]), "linux/s390x\n");
    assert_eq!(bed.cat("a", "/s390x/f"), "f");
    bed.write("Dockerfile", "FROM scratch\nCOPY f /\nRUN [\"/f\"]\n");
    let output = run(&mut bed.command(&["--platform", "linux/s390x"]));
    let why = "Error: Dockerfile:3: RUN for linux/s390x needs a binfmt handler for s390x, which this kernel has not: install qemu-user-static\n";
    assert!(output.code == 1 && output.stderr.ends_with(why), "{output:#?}");
}

#[test]
fn buildx_and_its_kin_are_the_same_command() {
    let bed = Bed::new();
    bed.write("Dockerfile", "FROM box:1\nLABEL a=b\n");
    let context = bed.context();
    let id = bed.env.path("id");
    for words in [&["buildx", "build", "--load"][..], &["image", "build"], &["builder", "build", "--rm=true"]] {
        let args =
            [words, &["-q", "--iidfile", id.to_str().unwrap(), "--label", "c=d", context.to_str().unwrap()]].concat();
        let printed = bed.env.ok(args);
        assert_eq!(fs::read_to_string(&id).unwrap(), printed.trim());
        let labels = bed.env.ok(["inspect", "-f", "{{json .Config.Labels}}", printed.trim()]);
        assert_eq!(labels, "{\"a\":\"b\",\"c\":\"d\"}\n");
    }
}

/// A store with the Debian image, whose packages are in the context under `debs`.
fn debian() -> Bed {
    let env = TestEnv::new();
    fs::create_dir(env.path("ctx")).unwrap();
    env.ok(["pull", "-q", &format!("oci:{}", big_image().join("oci").display())]);
    env.ok(["tag", env.ok(["images", "-q"]).trim(), "debian:12"]);
    Bed { env }
}

#[test]
fn a_c_program_in_two_stages_runs() {
    let bed = debian();
    bed.write(
        "src/main.c",
        "#include <stdio.h>\nint main(int n, char **v) { printf(\"%s says %s\\n\", NAME, v[n - 1]); return 3; }\n",
    );
    bed.write(
        "Dockerfile",
        "# syntax=docker/dockerfile:1\nFROM debian:12 AS build\nARG NAME=nobody\nWORKDIR /src\nCOPY src/*.c ./\n\
         RUN gcc -static -O1 -DNAME=\"\\\"$NAME\\\"\" -o /app main.c\nFROM scratch\nCOPY --from=build --chmod=755 /app /app\n\
         ENTRYPOINT [\"/app\"]\nCMD [\"nothing\"]\n",
    );
    bed.build(&["-t", "app", "--build-arg", "NAME=Ann"]);
    let said = run(&mut bed.env.command(["run", "--rm", "app"]));
    assert_eq!((said.code, said.stdout.as_str()), (3, "Ann says nothing\n"));
    assert_eq!(run(&mut bed.env.command(["run", "--rm", "app", "hi"])).stdout, "Ann says hi\n");
    assert_eq!(bed.env.ok(["find", "app", "/", "-type", "f"]), "/app\n");
}

#[test]
fn a_python_application_with_pip_and_packages_with_apt_run() {
    let bed = debian();
    bed.write("app/setup.py", "from setuptools import setup\nsetup(name='hello', version='1', py_modules=['hello'], entry_points={'console_scripts': ['hello = hello:main']})\n");
    bed.write("app/hello.py", "def main():\n    print('hello from pip')\n");
    let list = "deb [trusted=yes] file:/mnt ./";
    assert!(fs::read_to_string(debs().join("sources.list")).unwrap().contains(list.split(' ').next().unwrap()));
    let copied = run(Command::new("cp").arg("-r").arg(debs()).arg(bed.context().join("debs")));
    assert_eq!(copied.code, 0);
    bed.write(
        "Dockerfile",
        &format!(
            "FROM debian:12\nENV DEBIAN_FRONTEND=noninteractive\n\
             RUN --mount=type=bind,source=debs,target=/mnt \\\n    {APT} update \\\n  && {APT} install -y git \\\n  # cleanup\n  \
             && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin\n\
             COPY app /src\nRUN pip install --no-index --no-build-isolation --break-system-packages /src && rm -r /src\n\
             USER nobody\nCMD [\"sh\", \"-c\", \"hello; git --version\"]\n"
        ),
    );
    bed.build(&["-t", "app"]);
    let said = bed.env.ok(["run", "--rm", "app"]);
    assert!(said.starts_with("hello from pip\ngit version"), "{said}");
    assert_eq!(bed.env.ok(["find", "app", "/mnt", "/var/lib/apt/lists", "-type", "f"]), "");
    assert_eq!(bed.env.run(["ls", "app", "/src"]).code, 1);
}

#[test]
fn a_server_with_volume_port_and_health_check_runs() {
    let bed = Bed::new();
    bed.write("site/index.html", "<p>built</p>\n");
    bed.write(
        "Dockerfile",
        "FROM box:1\nRUN ln -s busybox /bin/httpd && mkdir -p /srv/www /var/log/www\nCOPY site/ /srv/www/\nVOLUME /var/log/www\nEXPOSE 80\n\
         HEALTHCHECK --interval=5s --retries=2 CMD ls /srv/www/index.html\nSTOPSIGNAL SIGKILL\nENTRYPOINT [\"httpd\", \"-f\", \"-h\", \"/srv/www\", \"-p\"]\n",
    );
    bed.build(&["-t", "site"]);
    let config = bed.env.ok(["inspect", "-f", "{{json .Config}}", "site"]);
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["ExposedPorts"], serde_json::json!({ "80/tcp": {} }));
    assert_eq!(config["Volumes"], serde_json::json!({ "/var/log/www": {} }));
    assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD-SHELL", "ls /srv/www/index.html"]));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    bed.env.ok(["run", "-d", "--name", "web", "site", &format!("127.0.0.1:{port}")]);
    let mut page = String::new();
    eventually("the server answers", || {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
        let _sent = stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n");
        page.clear();
        stream.read_to_string(&mut page).is_ok() && page.contains("built")
    });
    bed.env.ok(["rm", "-f", "web"]);
}
