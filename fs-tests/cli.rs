//! The command line as scripts use it: output lines, tables and exit codes.

use std::process::Stdio;

use serde_json::{Value, json};

use super::support::env::{TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::tar::Tar;

fn tar(n: u8) -> Vec<u8> {
    Tar::new().file(format!("file-{n}"), vec![n; 5000]).finish()
}

/// An environment with the image `app:1` of layers 1 and 2. Returns its ID without the algorithm.
fn with_app() -> (TestEnv, String) {
    let env = TestEnv::new();
    let image = Image::new().layer(tar(1)).layer(tar(2)).tag("1").edit_config(|c| {
        c["created"] = json!("2020-02-02T02:02:02Z");
        c["config"] = json!({ "Cmd": ["sh"], "Env": ["A=b"] });
    });
    image.write_layout(&env.path("app"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("app").display())]);
    let id = env.ok(["images", "-q", "--no-trunc"]).trim().replace("sha256:", "");
    (env, id)
}

#[test]
fn a_pull_prints_dockers_lines() {
    let env = TestEnv::new();
    let manifest = Image::new().layer(tar(1)).tag("1").write_layout(&env.path("app"));
    let source = format!("oci:{}:1", env.path("app").display());
    let out = env.ok(["pull", &source]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], format!("1: Pulling from {source}"));
    assert!(lines[1].len() == 12 + ": Pull complete".len() && lines[1].ends_with(": Pull complete"), "{out}");
    let rest = [
        format!("Digest: {manifest}"),
        "Status: Downloaded newer image for app:1".into(),
        "docker.io/library/app:1".into(),
    ];
    assert_eq!(lines[2..], rest);
    assert_eq!(env.ok(["pull", "-q", &source]), "docker.io/library/app:1\n");
    let by_digest = format!("oci:{}@{manifest}", env.path("app").display());
    assert_eq!(env.ok(["pull", "-q", &by_digest]), format!("docker.io/library/app@{manifest}\n"));
    let error = env.fails(["pull", &source.replace(":1", ":2")]);
    assert!(error.contains("has no image `2`; it has: 1"), "{error}");
}

#[test]
fn images_prints_dockers_table() {
    let (env, id) = with_app();
    let short = &id[..12];
    env.ok(["tag", "app:1", "localhost:5000/a/b:x"]);
    let out = env.ok(["images"]);
    let age = out.lines().nth(1).unwrap().split("   ").filter(|c| !c.is_empty()).nth(3).unwrap().trim().to_owned();
    assert!(age.ends_with(" years ago"), "{out}");
    let want = format!(
        "REPOSITORY           TAG       IMAGE ID       CREATED       SIZE\n\
         app                  1         {short}   {age}   13.3kB\n\
         localhost:5000/a/b   x         {short}   {age}   13.3kB\n"
    );
    assert_eq!(out, want);
    assert_eq!(env.ok(["image", "ls", "-q", "app"]), format!("{short}\n"));
    assert_eq!(
        env.ok(["images", "--digests", "app:1"]).lines().next().unwrap().split_whitespace().nth(2),
        Some("DIGEST")
    );
    assert_eq!(env.ok(["images", "-q", "app:2"]), "");
}

#[test]
fn inspect_prints_json_in_dockers_shape() {
    let (env, id) = with_app();
    let out = env.ok(["inspect", "app:1"]);
    assert!(out.starts_with("[\n    {\n        \"Id\": \"sha256:"), "{out}");
    let value: Value = serde_json::from_str(&out).unwrap();
    let keys: Vec<&str> = value[0].as_object().unwrap().keys().map(String::as_str).collect();
    let want = "Id RepoTags RepoDigests Comment Created Author Config Architecture Os Size GraphDriver RootFS Metadata";
    assert_eq!(keys.join(" "), want);
    assert_eq!(value[0]["RepoTags"], json!(["app:1"]));
    assert_eq!(value[0]["RootFS"], json!({"Type": "layers", "Layers": [digest(&tar(1)), digest(&tar(2))]}));
    assert_eq!(value[0]["Config"]["Cmd"], json!(["sh"]));
    // The objects that exist are printed all the same.
    let some = run(&mut env.command(["inspect", "nope", &id[..6]]));
    assert_eq!((some.code, some.stderr.as_str()), (1, "Error: No such object: nope\n"));
    assert_eq!(some.stdout, out);
    assert_eq!(run(&mut env.command(["inspect", "-f", "{{.Id", "app:1"])).code, 64);
}

#[test]
fn rmi_prints_what_it_untagged_and_deleted() {
    let (env, id) = with_app();
    env.ok(["tag", "app:1", "other"]);
    let error = env.fails(["rmi", &id[..12]]);
    let want = format!(
        "Error: conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
        &id[..12]
    );
    assert_eq!(error, want);
    assert_eq!(env.ok(["rmi", "other"]), "Untagged: other:latest\n");
    // An error does not stop the removal of the next image.
    let out = run(&mut env.command(["rmi", "nope", "app:1"]));
    assert_eq!((out.code, out.stderr.as_str()), (1, "Error: No such image: nope:latest\n"));
    let chain = digest(format!("{} {}", digest(&tar(1)), digest(&tar(2))).as_bytes());
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[0], "Untagged: app:1");
    assert!(lines[1].starts_with("Untagged: app@sha256:"), "{lines:?}");
    let rest = [format!("Deleted: sha256:{id}"), format!("Deleted: {chain}"), format!("Deleted: {}", digest(&tar(1)))];
    assert_eq!(lines[2..], rest);
    let forced = run(&mut env.command(["rmi", "-f", "nope"]));
    assert_eq!((forced.code, forced.stderr.as_str()), (0, "Error: No such image: nope:latest\n"));
    assert_eq!(env.ok(["images"]), "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n");
}

/// Each rule by which `rmi` refuses a removal, and the result for several arguments.
#[test]
fn rmi_refuses_an_image_in_use() {
    let (env, id) = with_app();
    let short = &id[..12];
    let end = |args: &[&str]| {
        let output = run(&mut env.command(args));
        (output.code, output.stdout, output.stderr)
    };
    let mount = env.mount("app:1", &[]);
    let user = env.ok(["mounts", "-q"]);
    let user = user.trim();
    let named = format!(
        "Error: conflict: unable to remove repository reference \"app:1\" (must force) - \
         container {user} is using its referenced image {short}\n"
    );
    let running = format!(
        "Error: conflict: unable to delete {short} (cannot be forced) - image is being used by running container {user}\n"
    );
    assert_eq!(end(&["rmi", "app:1"]), (1, String::new(), named.clone()));
    assert_eq!(end(&["rmi", "-f", "app:1"]), (1, String::new(), running.clone()));
    assert_eq!(end(&["image", "rm", "--force", short]), (1, String::new(), running.clone()));
    // An extra tag may be removed, and a repository's last tag takes its digests along; an error does not stop the
    // arguments after it.
    env.ok(["tag", "app:1", "other:2"]);
    let (code, stdout, stderr) = end(&["rmi", "app:1", "nope", short, "other:2", "nope:3@x"]);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((code, lines.len(), lines[0]), (1, 2, "Untagged: app:1"));
    assert!(lines[1].starts_with("Untagged: app@sha256:"), "{stdout}");
    let last = named.replace("app:1", "other:2");
    let want = format!("Error: No such image: nope:latest\n{running}{last}Error: No such image: nope:3@x\n");
    assert_eq!(stderr, want);
    mount.unmount();
}

/// `image ls -q | xargs plyfs image rm -f`: an image with two tags is listed twice.
#[test]
fn image_rm_force_accepts_an_id_that_is_listed_twice() {
    let (env, id) = with_app();
    env.ok(["tag", "app:1", "app:2"]);
    Image::new().layer(tar(3)).write_layout(&env.path("b"));
    env.ok(["pull", "-q", &format!("oci:{}", env.path("b").display())]);
    let listed = env.ok(["image", "ls", "-q"]);
    assert_eq!(listed.lines().filter(|line| *line == &id[..12]).count(), 2, "{listed}");
    let out = env.run(["image", "rm", "-f"].into_iter().chain(listed.lines()));
    // The second time the image is gone, which with --force is no failure.
    let gone = format!("Error: No such image: {}:latest\n", &id[..12]);
    assert_eq!((out.code, out.stderr), (0, gone));
    assert_eq!(out.stdout.lines().filter(|line| line.starts_with("Untagged: ") && !line.contains('@')).count(), 3);
    assert_eq!(env.ok(["image", "ls", "-aq"]), "");
    for folder in ["blobs/sha256", "layers/sha256", "trees", "tmp"] {
        assert_eq!(std::fs::read_dir(env.root().join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[test]
fn every_listing_prints_one_json_object_per_line() {
    let (env, id) = with_app();
    let mount = env.mount("app:1", &[]);
    let keys = |args: &[&str]| {
        let text = env.ok([args, &["--format", "json"]].concat());
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        first.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    let images = "Containers CreatedAt CreatedSince Digest ID Repository SharedSize Size Tag UniqueSize VirtualSize";
    assert_eq!(keys(&["images"]), images);
    assert_eq!(keys(&["system", "df", "-v"]), images);
    assert_eq!(keys(&["history", "app:1"]), "Comment CreatedAt CreatedBy CreatedSince ID Size");
    assert_eq!(keys(&["system", "df"]), "Active Reclaimable Size TotalCount Type");
    assert_eq!(keys(&["mounts"]), "CreatedSince Engine ID Image ImageID Mode Mountpoint PID Restarts State");
    let shown = env.ok(["mounts", "--format", "{{.Image}} {{.ImageID}} {{.Mode}} {{.Mountpoint}}"]);
    assert_eq!(shown, format!("app:1 {} ro {}\n", &id[..12], mount.path().display()));
    mount.unmount();
    let upper = env.path("upper");
    let mount = env.mount("app:1", &["--upper", upper.to_str().unwrap()]);
    assert_eq!(env.ok(["mounts", "--format", "{{.Mode}}"]), "rw\n");
    let table = env.ok(["mounts"]);
    let heads = table.lines().next().unwrap().split("   ").map(str::trim).filter(|head| !head.is_empty());
    let want = ["MOUNT ID", "IMAGE", "IMAGE ID", "PID", "RESTARTS", "ENGINE", "MODE", "STATE", "MOUNTPOINT"];
    assert_eq!(heads.collect::<Vec<_>>(), want);
    assert_eq!(run(&mut env.command(["mounts", "--format", "{{"])).code, 64);
    mount.unmount();
    assert_eq!(env.ok(["mounts", "--format", "json"]), "");
}

/// Messages that Docker's client prints itself.
#[test]
fn messages_match_dockers_word_for_word() {
    let (env, _) = with_app();
    let by_digest = format!("b@{}", digest(b""));
    for (args, code, text) in [
        (
            &["tag", "app:1", "A"][..],
            1,
            "Error parsing reference: \"A\" is not a valid repository/tag: invalid reference format: \
             repository name (library/A) must be lowercase\n",
        ),
        (&["tag", "app:1", &by_digest], 1, "Error: refusing to create a tag with a digest reference\n"),
        (&["history", "nope"], 1, "Error: No such image: nope:latest\n"),
        (
            &["images", "-f", "x"],
            125,
            "invalid argument \"x\" for \"-f, --filter\" flag: bad format of filter (expected name=value)\n",
        ),
        (
            &["image", "prune", "--filter", "x"],
            125,
            "invalid argument \"x\" for \"--filter\" flag: bad format of filter (expected name=value)\n",
        ),
        (
            &["save", "-o", "/nonexistent/x", "app:1"],
            1,
            "Error: failed to save image: invalid output path: /nonexistent: No such file or directory\n",
        ),
    ] {
        let output = run(&mut env.command(args));
        assert_eq!((output.code, output.stderr.as_str(), output.stdout.as_str()), (code, text, ""), "{args:?}");
    }
    for (args, why) in [
        (&["inspect", "nope"][..], "No such object: nope"),
        (&["inspect", "--type", "image", "nope"], "No such image: nope:latest"),
        (&["inspect", "--type", "container", "nope"], "No such container: nope"),
        (&["image", "inspect", "nope"], "No such image: nope:latest"),
    ] {
        let none = run(&mut env.command(args));
        assert_eq!((none.code, none.stdout, none.stderr), (1, "[]\n".into(), format!("Error: {why}\n")), "{args:?}");
    }
    assert_eq!(run(&mut env.command(["load", "-i", "/nonexistent"])).code, 1);
}

#[test]
fn load_prints_the_images_it_loaded() {
    let env = TestEnv::new();
    let file = env.path("save.tar");
    Image::new().layer(tar(1)).write_docker_archive(&file, &["one:1", "two:2"]);
    assert_eq!(env.ok(["load", "-i", file.to_str().unwrap()]), "Loaded image: one:1\nLoaded image: two:2\n");
    Image::new().layer(tar(1)).write_docker_archive(&file, &[]);
    let id = env.ok(["images", "-q", "--no-trunc", "one"]);
    assert_eq!(env.ok(["load", "-i", file.to_str().unwrap()]), format!("Loaded image ID: {id}"));
    Image::new().layer(tar(2)).write_docker_archive(&file, &["one:1"]);
    let out = env.ok(["load", "-i", file.to_str().unwrap()]);
    let taken = format!("The image one:1 already exists, renaming the old one with ID {} to empty string\n", id.trim());
    assert_eq!(out, taken + "Loaded image: one:1\n");
    // From standard input, compressed.
    Image::new().layer(tar(3)).tag("t").write_oci_archive(&file);
    let gz = env.path("save.tar.gz");
    let zip =
        std::process::Command::new("gzip").arg("-c").arg(&file).stdout(std::fs::File::create(&gz).unwrap()).status();
    assert!(zip.unwrap().success());
    let mut command = env.command(["load"]);
    let output = command.stdin(std::fs::File::open(&gz).unwrap()).stdout(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Loaded image ID: sha256:"), "{output:?}");
    std::fs::write(&file, "no tar at all").unwrap();
    assert!(env.fails(["load", "-i", file.to_str().unwrap()]).contains("save.tar: is no"));
}

#[test]
fn exit_codes_and_usage_errors_match_docker() {
    let env = TestEnv::new();
    let end = |args: &[&str]| {
        let output = run(&mut env.command(args));
        (output.code, output.stderr)
    };
    let two = "\"plyfs tag\" requires exactly 2 arguments.\nSee 'plyfs tag --help'.\n";
    assert_eq!(end(&["tag", "a"]), (1, two.to_owned()));
    assert_eq!(end(&["rmi"]).1, "\"plyfs rmi\" requires at least 1 argument.\nSee 'plyfs rmi --help'.\n");
    assert_eq!(end(&["images", "a", "b"]).0, 1);
    assert_eq!(end(&["images", "--nope"]), (125, "unknown flag: --nope\nSee 'plyfs images --help'.\n".to_owned()));
    let short = "unknown shorthand flag: 'z' in -z\nSee 'plyfs images --help'.\n";
    assert_eq!(end(&["images", "-z"]), (125, short.to_owned()));
    let word = "plyfs: 'frobnicate' is not a plyfs command.\nSee 'plyfs --help'\n";
    assert_eq!(end(&["frobnicate"]), (1, word.to_owned()));
    assert_eq!(end(&["tag", "nope", "x"]), (1, "Error: No such image: nope:latest\n".to_owned()));
    assert_eq!(end(&["tag", "nope", "X"]).0, 1);
    assert_eq!(env.ok(["version"]), format!("plyfs version {}\n", env!("CARGO_PKG_VERSION")));
    assert!(env.ok(["--help"]).contains("Usage: plyfs"));
}

#[test]
fn a_closed_stdout_pipe_does_not_panic() {
    let (env, _) = with_app();
    let mut child = env.command(["inspect", "app:1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_failed_write_to_stdout_is_reported() {
    let (env, _) = with_app();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = env.command(["images"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr, "Error: cannot write to standard output: No space left on device\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn help_fits_a_terminal_and_shows_the_usage_of_each_verb() {
    let env = TestEnv::new();
    let containers = "run create start bundle exec logs cp stop kill wait rm diff commit ps chroot";
    let images = "pull push load save import export images inspect history ls cat du find layers explore tag rmi login logout search \
         mount umount mounts";
    let groups = ["", "container", "image", "manifest", "system"];
    for verb in [containers, images].into_iter().flat_map(str::split_whitespace).chain(groups) {
        let mut command = env.command(verb.split_whitespace().chain(["--help"]));
        let output = run(command.env("COLUMNS", "80"));
        assert_eq!(output.code, 0);
        assert!(output.stdout.contains(format!("Usage: plyfs {verb}").trim_end()), "{}", output.stdout);
        for line in output.stdout.lines() {
            assert!(line.chars().count() <= 80, "{verb}: {line}");
        }
    }
    // Every command shows its usage.
    let groups = [
        "version",
        "completion",
        "container ls",
        "info",
        "manifest add",
        "manifest annotate",
        "manifest create",
        "manifest inspect",
        "manifest push",
        "manifest remove",
        "manifest rm",
        "image inspect",
        "image prune",
        "image ls",
        "image rm",
        "system df",
        "system fsck",
        "system gc",
    ];
    for verb in [containers, images].into_iter().flat_map(str::split_whitespace).chain(groups) {
        let help = env.ok(verb.split_whitespace().chain(["--help"]));
        assert!(help.contains("\nExample:\n") || help.contains("\nExamples:\n"), "{verb}: {help}");
    }
    // A group without a command prints the same help.
    for verb in ["container", "image", "manifest", "system"] {
        assert_eq!(env.ok([verb]), env.ok([verb, "--help"]));
    }
    let wrong = run(&mut env.command(["pull", "--platform", "nonsense", "oci:x"]));
    assert_eq!(wrong.code, 125);
    assert!(wrong.stderr.ends_with("\nSee 'plyfs pull --help'.\n") && wrong.stderr.lines().count() == 2, "{wrong:?}");
}

#[test]
fn an_unusable_catalog_is_reported_before_any_work() {
    let (env, _) = with_app();
    let source = format!("oci:{}:1", env.path("app").display());
    let catalog = env.root().join("catalog.json");
    let original = std::fs::read(&catalog).unwrap();
    let repair = "restore it with `plyfs system fsck --repair`";
    for (bytes, words) in
        [(&b"{\"version\":9}"[..], "use the plyfs that wrote it"), (&original[..99], repair), (b"", repair)]
    {
        std::fs::write(&catalog, bytes).unwrap();
        for args in [&["images"][..], &["pull", &source], &["rmi", "app:1"], &["system", "gc"]] {
            let output = run(&mut env.command(args));
            assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{args:?}");
            assert!(output.stderr.contains(words) && output.stderr.lines().count() == 1, "{args:?}: {output:?}");
        }
        // The remedy in the message works; a catalog of another plyfs version is kept.
        let repaired = run(&mut env.command(["system", "fsck", "--repair"])).code == 0;
        assert_eq!(repaired, words == repair);
        assert_eq!(std::fs::read(&catalog).unwrap(), if repaired { &original } else { bytes });
    }
    assert_eq!(env.ok(["pull", &source]).matches("Already exists").count(), 2);
    assert_eq!(env.ok(["system", "fsck"]), "");
}
