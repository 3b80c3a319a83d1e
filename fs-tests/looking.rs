//! `ls`, `cat`, `du`, `find`, `layers` and `diff` on images: what they print must be what coreutils print on a mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::big_image;
use crate::support::env::{TestEnv, run};
use crate::support::oci::{Image, digest};
use crate::support::tar::{Entry, Sparse, Tar};
use crate::support::tree::{Contents, diff, scan};

/// Output of a command that must succeed, as bytes.
#[track_caller]
fn output(command: &mut Command) -> Vec<u8> {
    let output = command.env("LC_ALL", "C").env("TZ", "UTC").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Requires that two outputs are the same, line by line.
#[track_caller]
fn assert_same(what: &str, expected: &[u8], actual: &[u8]) {
    let (left, right): (Vec<_>, Vec<_>) =
        (expected.split(|b| *b == b'\n').collect(), actual.split(|b| *b == b'\n').collect());
    let wrong = left.iter().zip(&right).filter(|(a, b)| a != b).take(5);
    let wrong: Vec<String> = wrong.map(|(a, b)| format!("- {}\n+ {}", a.escape_ascii(), b.escape_ascii())).collect();
    assert!(
        wrong.is_empty() && left.len() == right.len(),
        "{what}: {} and {} lines\n{}",
        left.len(),
        right.len(),
        wrong.join("\n")
    );
}

fn sorted(text: &[u8], end: u8) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == end).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines.join(&end)
}

/// The Debian image, which has every trap of tars and whiteouts in /opt.
fn debian(env: &TestEnv) -> &'static str {
    env.ok(["pull", &format!("oci:{}:latest", big_image().join("oci").display())]);
    "oci:latest"
}

/// Compares commands run in a directory with those of plyfs on `words`, which name the same tree.
fn compare_with_coreutils(env: &TestEnv, at: &Path, words: &[&str]) {
    let theirs = |program: &str, args: &[&str]| output(Command::new(program).args(args).current_dir(at));
    let ours =
        |verb: &str, options: &[&str], rest: &[&str]| output(env.command([verb]).args(options).args(words).args(rest));
    for options in ["-lnR", "-lnAR", "-lnhR", "-lnRS", "-lnRtr", "-1R", "-AR", "-lnd", "-n", "-1"] {
        assert_same(options, &theirs("ls", &[options, "."]), &ours("ls", &[options], &["."]));
    }
    let all = ours("find", &[], &[".", "-print0"]);
    assert_same("find", &sorted(&theirs("find", &[".", "-print0"]), 0), &sorted(&all, 0));
    for expression in [
        "-name *.conf",
        "-iname *README*",
        "-type f -size +100k",
        "-type l,d -name [a-e]*",
        "-size -2",
        "-size 3k",
        "-perm -4000",
        "-perm /111 -type f -name *.sh",
        "-perm 644 -links +1",
        "-newer ./etc/passwd -type f",
        "-newermt 2020-01-01",
        "! -user 0",
        "-type d -empty",
        "-type f -empty",
        "-maxdepth 2 -mindepth 2",
        "-path ./usr/share/doc -prune -o -name *copyright* -print",
        "( -name a* -o -name b* ) -type f",
        "-lname *../*",
    ] {
        let words: Vec<&str> = std::iter::once(".").chain(expression.split(' ')).collect();
        assert_same(expression, &sorted(&theirs("find", &words), b'\n'), &sorted(&ours("find", &[], &words), b'\n'));
    }
    for options in ["-al", "-abl", "-s", "-hs"] {
        assert_same(
            options,
            &sorted(&theirs("du", &[options, "."]), b'\n'),
            &sorted(&ours("du", &[options], &["."]), b'\n'),
        );
    }
    assert_same(
        "du -d 2",
        &sorted(&theirs("du", &["-lkd2", "."]), b'\n'),
        &sorted(&ours("du", &["-ld2"], &["."]), b'\n'),
    );
    let files = ours("find", &[], &[".", "-type", "f", "-print0"]);
    let files: Vec<&[u8]> = files.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    for some in files.chunks(4000) {
        let paths = || some.iter().map(|path| std::ffi::OsStr::from_bytes(path));
        let (expected, actual) = (
            output(Command::new("cat").arg("--").args(paths()).current_dir(at)),
            output(env.command(["cat"]).args(words).args(paths())),
        );
        assert!(expected == actual, "cat of {} files: {} and {} bytes", some.len(), expected.len(), actual.len());
    }
}

#[test]
fn an_image_is_listed_searched_and_read_as_its_mount_is() {
    let env = TestEnv::new();
    let image = debian(&env);
    let mount = env.mount(image, &[]);
    compare_with_coreutils(&env, mount.path(), &[image]);
    mount.unmount();
}

#[test]
fn an_upper_directory_is_listed_searched_and_read_as_its_mount_is() {
    let env = TestEnv::new();
    let (layout, upper) = (env.path("small"), env.path("upper"));
    let layer = Tar::new()
        .dir("etc")
        .file("etc/passwd", "root:x:0:0::/:\nweb:x:33:33::/:\n")
        .file("etc/a.conf", "below")
        .dir("gone")
        .file("gone/x", "x")
        .add(Entry::sparse("sparse", 1 << 20, &[(8192, b"data".to_vec())].map(Into::into), Sparse::Pax10))
        .add(Entry::char_device("null", 1, 3))
        .add(Entry::fifo("fifo"))
        .finish();
    Image::new().layer(layer).tag("1").write_layout(&layout);
    env.ok(["pull", "-q", &format!("oci:{}:1", layout.display())]);
    let mount = env.mount("small:1", &["--upper", upper.to_str().unwrap()]);
    let at = mount.path();
    fs::remove_dir_all(at.join("gone")).unwrap();
    fs::write(at.join("etc/new.conf"), "new and not written back yet").unwrap();
    fs::hard_link(at.join("etc/a.conf"), at.join("linked")).unwrap();
    symlink("../etc/../etc/new.conf", at.join("etc/link")).unwrap();
    fs::rename(at.join("null"), at.join("etc/null")).unwrap();
    compare_with_coreutils(&env, at, &["--upper", upper.to_str().unwrap()]);
    // Without the mount as well.
    let listed = output(env.command(["ls", "-lnR", "--upper"]).arg(&upper));
    mount.unmount();
    assert_same("unmounted", &listed, &output(env.command(["ls", "-lnR", "--upper"]).arg(&upper)));
}

#[test]
fn a_container_is_listed_also_while_it_runs() {
    let env = TestEnv::new();
    let tar = Tar::new().dir("bin").add(Entry::file("bin/busybox", fs::read("/bin/busybox").unwrap()).mode(0o755));
    Image::new().layer(tar.finish()).tag("1").write_layout(&env.path("box"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("box").display())]);
    env.ok(["create", "--name", "idle", "--network", "none", "box:1", "/bin/busybox", "true"]);
    assert_eq!(env.ok(["ls", "idle"]), "bin\n");
    let script = "/bin/busybox mkdir /made; echo text > /made/file; /bin/busybox sleep 60";
    env.ok(["run", "-d", "--name", "busy", "--network", "none", "box:1", "/bin/busybox", "sh", "-c", script]);
    crate::support::eventually("the file is there", || env.run(["cat", "busy", "/made/file"]).stdout == "text\n");
    assert_eq!(env.ok(["find", "busy", "/made", "-type", "f"]), "/made/file\n");
    env.ok(["rm", "-f", "busy", "idle"]);
}

#[test]
fn owners_have_the_images_names_and_links_stay_inside() {
    let env = TestEnv::new();
    let layer = Tar::new()
        .dir("etc")
        .file("etc/passwd", "root:x:0:0::/:\nweb:x:33:33::/:\nbroken\n\x1b[31mred:x:7:7::/:\n")
        .file("etc/group", "root:x:0:\nstaff:x:50:web\n")
        .add(Entry::file("page", "hello").owner(33, 50).mode(0o4755).mtime(1_000_000_000, 0))
        .add(Entry::file("red", "").owner(7, 7))
        .symlink("absolute", "/page")
        .symlink("escape", "../../../../../../page")
        .symlink("loop", "loop")
        .symlink("dangling", "/nothing")
        .finish();
    Image::new().layer(layer).tag("1").write_layout(&env.path("one"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("one").display())]);
    let listed = env.run(["ls", "-l", "one:1", "page"]);
    assert_eq!(listed.stdout, "-rwsr-xr-x 1 web staff 5 Sep  9  2001 page\n");
    for path in ["page", "/page", "absolute", "escape", "etc/../../page"] {
        assert_eq!(env.ok(["cat", "one:1", path]), "hello", "{path}");
    }
    for (args, error) in [
        (&["cat", "one:1", "loop"][..], "Error: loop: Too many levels of symbolic links"),
        (&["cat", "one:1", "dangling"], "Error: dangling: No such file or directory"),
        (&["cat", "one:1", "etc"], "Error: etc: Is a directory"),
        (&["ls", "one:1", "page/x"], "Error: page/x: Not a directory"),
        (&["ls", "one:1", "page/"], "Error: page/: Not a directory"),
        (&["du", "one:1", "no"], "Error: no: No such file or directory"),
        (&["find", "one:1", "-bogus"], "Error: find: unknown predicate `-bogus`"),
        (&["find", "one:1", "(", "-name", "x"], "Error: find: `)` is missing"),
        (&["find", "one:1", "-size", "big"], "Error: find: invalid argument `big` to -size"),
        (&["layers", "one:1", "/no"], "Error: /no: no layer of the image has it"),
    ] {
        assert_eq!(env.fails(args.iter().copied()).trim_end(), error, "{args:?}");
    }
    let json = env.ok(["ls", "--format", "json", "one:1", "page", "red"]);
    let rows: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows[0]["User"].as_str(), rows[0]["Mode"].as_str()), (Some("web"), Some("4755")));
    assert_eq!(rows[1]["User"].as_str(), Some("\\u{1b}[31mred"));
}

/// What each layer does is told for all files and for one path.
#[test]
fn layers_say_what_they_add_change_and_remove() {
    let env = TestEnv::new();
    let one =
        Tar::new().dir("d").file("d/a", "1").file("d/b", "1").file("d/c", "1").dir("e").file("e/x", "1").file("f", "1");
    let two =
        Tar::new().dir("d").file("d/a", "22").whiteout("d/b").file("d/new", "2").whiteout("f").hard_link("g", "d/c");
    let three = Tar::new().dir("d").opaque("d").file("d/a", "333").file("e", "a file now").file("f", "again");
    let image = [one, two, three].into_iter().fold(Image::new(), |image, tar| image.layer(tar.finish())).tag("1");
    image.write_layout(&env.path("three"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("three").display())]);
    let shown = |args: &[&str]| -> Vec<Value> {
        let text = env.ok([&["layers", "--no-trunc", "--format", "json", "three:1"], args].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let count = |row: &Value| ["Added", "Changed", "Removed"].map(|name| row[name].as_str().unwrap().parse().unwrap());
    let counts: Vec<[u32; 3]> = shown(&[]).iter().map(count).collect();
    // d/c and d/new are hidden by the opaque directory, and what was in e by the file.
    assert_eq!(counts, [[7, 0, 0], [2, 1, 2], [1, 2, 3]]);
    let history = |path: &str| -> Vec<(String, String, String)> {
        let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        shown(&[path]).iter().map(|row| (text(row, "Number"), text(row, "Change"), text(row, "Digest"))).collect()
    };
    let row = |layer: &str, change: &str, content: Option<&str>| {
        (layer.to_owned(), change.to_owned(), content.map_or(String::new(), |text| digest(text.as_bytes())))
    };
    assert_eq!(
        history("/d/a"),
        [row("1", "added", Some("1")), row("2", "changed", Some("22")), row("3", "changed", Some("333"))]
    );
    assert_eq!(history("d/b"), [row("1", "added", Some("1")), row("2", "removed", None)]);
    assert_eq!(history("/d/new"), [row("2", "added", Some("2")), row("3", "removed", None)]);
    assert_eq!(history("/e/x"), [row("1", "added", Some("1")), row("3", "removed", None)]);
    assert_eq!(
        history("/f"),
        [row("1", "added", Some("1")), row("2", "removed", None), row("3", "added", Some("again"))]
    );
    assert_eq!(history("/g"), [row("2", "added", Some("1"))]);
}

/// The layers of two images that begin with the same one.
fn three_images() -> [Image; 3] {
    let base = || {
        let mut tar = Tar::new().dir("same").dir("d").dir("swap").file("swap/inside", "x").file("keep", "k");
        for number in 0..50 {
            tar = tar.file(format!("same/{number}"), "same").file(format!("d/{number}"), "old");
        }
        let status = |version: &str| format!("Package: tool\nStatus: install ok installed\nVersion: {version}\n");
        (
            tar.dir("var").dir("var/lib").dir("var/lib/dpkg").file("var/lib/dpkg/status", status("1")).finish(),
            status("2"),
        )
    };
    let (base, status) = base();
    let one =
        Tar::new().dir("d").file("d/1", "one").whiteout("d/2").file("only-one", "1").symlink("link", "a").finish();
    let two = Tar::new()
        .dir("d")
        .add(Entry::file("d/1", "two").mode(0o600).owner(5, 6))
        .add(Entry::file("d/3", "old").xattr("user.note", "x"))
        .whiteout("d/4")
        .file("swap", "a file")
        .dir("new")
        .file("new/inside", "x")
        .symlink("link", "b")
        .dir("var")
        .dir("var/lib")
        .dir("var/lib/dpkg")
        .file("var/lib/dpkg/status", status)
        .finish();
    let above = Tar::new().dir("same").opaque("same").file("same/7", "same").file("same/8", "SAME").finish();
    [
        Image::new().layer(base.clone()).layer(one).tag("1"),
        Image::new().layer(base.clone()).layer(two).layer(above).tag("2"),
        // An opaque root hides all of the layer that both have.
        Image::new().layer(base).layer(Tar::new().opaque("").file("keep", "k").finish()).tag("3"),
    ]
}

#[test]
fn two_images_differ_as_their_mounts_do() {
    let env = TestEnv::new();
    for (image, tag) in three_images().into_iter().zip(["1", "2", "3"]) {
        let layout = env.path(format!("pair{tag}")).join("pair");
        fs::create_dir_all(&layout).unwrap();
        image.write_layout(&layout);
        env.ok(["pull", "-q", &format!("oci:{}:{tag}", layout.display())]);
    }
    for (old, new) in [("pair:1", "pair:2"), ("pair:2", "pair:1"), ("pair:1", "pair:1"), ("pair:1", "pair:3")] {
        let mounts = [env.mount(old, &[]), env.mount(new, &[])];
        let [before, after] = [0, 1].map(|at: usize| scan(mounts[at].path(), Contents::Hash));
        let mut expected: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for found in diff(&before, &after) {
            let field = match found.field.as_str() {
                "path" if found.actual == "there" => "A",
                "path" => "D",
                "type" => "Kind",
                "mode" => "Mode",
                "uid" | "gid" => "Owner",
                "size" => "Size",
                "content" | "target" | "rdev" => "Content",
                "mtime" => "Time",
                "nlink" | "links" => continue,
                other => {
                    if other.starts_with("xattr") {
                        "Xattr"
                    } else {
                        panic!("{other}")
                    }
                }
            };
            expected.entry(crate::support::show(&found.path)).or_default().insert(field);
        }
        let text = env.run(["diff", "--format", "json", "--exit-code", old, new]);
        assert_eq!(text.code, i32::from(old != new), "{text:#?}");
        let mut actual: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let mut packages = Vec::new();
        let rows: Vec<Value> = text.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for row in &rows {
            let Some(path) = row["Path"].as_str() else {
                packages.push((row["Old"].as_str(), row["New"].as_str()));
                continue;
            };
            let fields =
                row.as_object().unwrap().keys().map(String::as_str).filter(|key| !["Path", "Change"].contains(key));
            let mut fields: BTreeSet<&str> = fields.collect();
            match row["Change"].as_str().unwrap() {
                "C" => {}
                other => drop(fields.insert(if other == "A" { "A" } else { "D" })),
            }
            // The scan tells nothing more of an object of another kind.
            if fields.contains("Kind") {
                fields = BTreeSet::from(["Kind"]);
            }
            actual.insert(path.to_owned(), fields);
        }
        assert_eq!(actual, expected, "{old} {new}");
        assert_eq!(packages.len(), usize::from(old != new), "{packages:?}");
        mounts.into_iter().for_each(|mount| mount.unmount());
    }
    assert!(env.ok(["diff", "pair:1", "pair:2"]).contains("C /d/1  mode 0644 -> 0600, owner 0:0 -> 5:6, content\n"));
    assert!(env.ok(["diff", "pair:1", "pair:2"]).ends_with("package tool  1 -> 2\n"));
    assert_eq!(
        env.ok(["diff", "pair:1", "pair:2", "/new"]),
        "A /new\nA /new/inside\n".to_owned() + "package tool  1 -> 2\n"
    );
}

/// An image of a source is pulled first, and what is printed is the file alone.
#[test]
fn an_image_that_is_not_in_the_store_is_pulled_first() {
    let env = TestEnv::new();
    Image::new().layer(Tar::new().file("a", "content").finish()).tag("1").write_layout(&env.path("far"));
    let source = format!("oci:{}:1", env.path("far").display());
    assert_eq!(env.run(["cat", &source, "a"]).stdout, "content");
    assert_eq!(env.run(["ls", "--pull=never", "far:1"]).stdout, "a\n");
    let missing = env.run(["ls", "--pull=never", "absent:1"]);
    assert_eq!((missing.code, missing.stderr.contains("No such image: absent:1")), (1, true), "{missing:#?}");
}

/// Control characters of names reach a pipe as they are, for scripts, and a terminal never.
#[test]
fn names_do_not_control_the_terminal() {
    let env = TestEnv::new();
    let names: [&[u8]; 4] = [b"esc\x1b[2Jape", b"new\nline", b"not utf8 \xff", "right\u{202e}left".as_bytes()];
    let tar = names.iter().fold(Tar::new(), |tar, name| tar.file(name, "x"));
    let tar = tar.symlink("link", names[0]).finish();
    Image::new().layer(tar).tag("1").write_layout(&env.path("evil"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("evil").display())]);
    let raw = output(&mut env.command(["ls", "evil:1"]));
    assert!(names.iter().all(|name| raw.windows(name.len()).any(|part| part == *name)));
    for args in [&["ls", "evil:1"][..], &["ls", "-l", "evil:1"], &["find", "evil:1"], &["du", "-a", "evil:1"]] {
        let plyfs = env!("CARGO_BIN_EXE_plyfs");
        let words = args.join(" ");
        let script = format!("{plyfs} --root {} {words}", env.root().display());
        let shown = run(Command::new("script").args(["-qec", &script, "/dev/null"]).env("NO_COLOR", "1")).stdout;
        assert!(shown.contains("esc\\u{1b}[2Jape") || shown.contains("esc\\x1b[2Jape"), "{shown}");
        assert!(!shown.contains('\x1b') && !shown.contains('\u{202e}'), "{args:?}: {shown:?}");
    }
}
