//! Commands from Docker's documentation, run with `plyfs` in place of `docker`: they print output of the same shape.
//! Image names begin with the test's registry where the documents mean Docker Hub.

use std::process::Command;

use serde_json::{Value, json};

use super::listing::{documents, tar};
use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::registry::{Content, DockerRegistry, Reply, Server, command};
use super::support::small::{Tmux, layer};
use super::support::tar::Entry;

/// A registry with the images of the documents, and a shell in which `docker` runs plyfs.
struct DocsFixture {
    env: TestEnv,
    server: Server,
}

/// Repository, tag, year, layers.
type Stored = (&'static str, &'static str, i32, &'static [u8]);

/// The number of the layer that contains programs.
const PROGRAMS: u8 = 100;

const IMAGES: &[Stored] = &[
    ("library/alpine", "latest", 2023, &[2]),
    ("library/redis", "latest", 2022, &[10, 11, 12, 13, 14, 15]),
    ("library/centos", "latest", 2020, &[1]),
    ("coreos/apache", "latest", 2019, &[20, 21, 22]),
    ("lovelearnlinux/webserver", "v1", 2021, &[1, 4, 5]),
    ("lovelearnlinux/webserver", "v2", 2021, &[1, 4, 6]),
    ("nigelpoulton/tu-demo", "latest", 2018, &[30, 31]),
    ("nigelpoulton/tu-demo", "v1", 2017, &[30, 32]),
    ("nigelpoulton/tu-demo", "v2", 2018, &[30, 31]),
    ("library/fedora", "latest", 2016, &[PROGRAMS]),
    ("library/deepone", "latest", 2024, &[PROGRAMS, 9]),
];

/// A shell with fedora's prompt, and a web server that serves nothing.
fn programs() -> Vec<u8> {
    let shell = "#!/bin/sh\n[ -t 0 ] || exec sh\nPS1=\"[root@$(cat /proc/sys/kernel/hostname) /]# \" exec sh\n";
    let server = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.02; done\n";
    layer()
        .add(Entry::file("bin/bash", shell).mode(0o755))
        .add(Entry::file("usr/sbin/httpd", server).mode(0o755))
        .finish()
}

impl DocsFixture {
    fn new() -> DocsFixture {
        let content = |&(repo, tag, year, layers): &'static Stored| {
            let image = Image::new().tag(tag).edit_config(move |c| {
                c["created"] = json!(format!("{year}-01-02T03:04:05Z"));
                c["config"] = json!({
                    "Labels": { "in": repo },
                    "Env": ["PATH=/usr/sbin:/bin"],
                    "Cmd": ["/usr/sbin/httpd", "-D", "FOREGROUND"],
                });
            });
            let made = |n: u8| if n == PROGRAMS { programs() } else { tar(n) };
            Content::of(&layers.iter().fold(image, |image, n| image.layer(made(*n))), repo, tag).0
        };
        let all: Vec<Content> = IMAGES.iter().map(content).collect();
        let server = Server::start(move |request| match request.path.strip_suffix("/tags/list") {
            Some(repo) => {
                let tags = IMAGES.iter().filter(|image| format!("/v2/{}", image.0) == repo).map(|image| image.1);
                Reply::new(200).body(json!({ "tags": tags.collect::<Vec<_>>() }).to_string())
            }
            None => {
                let found = all.iter().map(|content| content.reply(request)).find(Reply::is_found);
                found.unwrap_or_else(|| all[0].reply(request))
            }
        });
        DocsFixture { env: TestEnv::new(), server }
    }

    /// Runs a shell line; `$R` is the registry.
    fn run(&self, line: &str) -> Output {
        let plyfs = command(&self.env, &[]);
        let script = format!("docker() {{ \"$PLYFS\" --root \"$ROOT\" \"$@\"; }}\n{line}");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("PLYFS", plyfs.get_program()).env("ROOT", self.env.root());
        for (name, value) in plyfs.get_envs() {
            match value {
                Some(value) => bash.env(name, value),
                None => bash.env_remove(name),
            };
        }
        run(bash.env("R", &self.server.host))
    }

    /// Runs a shell line and returns its output in the form of the documents: see [`normalize_output`].
    #[track_caller]
    fn run_normalized(&self, line: &str) -> Vec<String> {
        let done = self.run(line);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{line}");
        normalize_output(&self.server.host, &done.stdout)
    }
}

/// Normalizes output: one space between words, placeholders for digests, IDs, sizes and ages. Removes the registry's
/// name and the progress lines of layers.
fn normalize_output(host: &str, text: &str) -> Vec<String> {
    let text = text.replace(&format!("{host}/library/"), "").replace(&format!("{host}/"), "");
    let shown = text.lines().map(|line| {
        let words: Vec<String> = line.split_whitespace().map(normalize_word).collect();
        let line = words.join(" ");
        let age = words.windows(3).find(|w| w[2] == "ago").map(|w| w.join(" "));
        let line = age.map_or(line.clone(), |age| line.replace(&age, "<age>"));
        line.replace("Less than <age>", "<age>")
    });
    let under_way = |line: &String| {
        line.strip_prefix("<id>: ").is_some_and(|what| !matches!(what, "Pull complete" | "Already exists"))
    };
    shown.filter(|line| !under_way(line)).collect()
}

fn normalize_word(word: &str) -> String {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some((before, rest)) = word.split_once("sha256:")
        && rest.len() >= 64
        && hex(&rest[..64], 64)
    {
        return format!("{before}<digest>{}", &rest[64..]);
    }
    let (bare, end) = word.strip_suffix(':').map_or((word, ""), |bare| (bare, ":"));
    let number = bare.trim_end_matches(['k', 'M', 'B']);
    let size = number != bare && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match () {
        () if hex(bare, 12) => format!("<id>{end}"),
        () if size => format!("<size>{end}"),
        () => word.to_owned(),
    }
}

#[test]
fn pull_and_images_print_what_the_documents_show() {
    let docs = DocsFixture::new();
    let want = [
        "latest: Pulling from library/centos",
        "<id>: Pull complete",
        "Digest: <digest>",
        "Status: Downloaded newer image for centos:latest",
        "centos:latest",
    ];
    assert_eq!(docs.run_normalized("docker pull $R/library/centos:latest"), want);
    let redis = docs.run_normalized("docker image pull $R/library/redis");
    assert_eq!(redis[..2], ["Using default tag: latest", "latest: Pulling from library/redis"]);
    assert_eq!(redis[2..8], ["<id>: Pull complete"; 6]);
    let rest = ["Digest: <digest>", "Status: Downloaded newer image for redis:latest", "redis:latest"];
    assert_eq!(redis[8..], rest);
    // Its lowest layer is centos.
    let want = [
        "v1: Pulling from lovelearnlinux/webserver",
        "<id>: Already exists",
        "<id>: Pull complete",
        "<id>: Pull complete",
        "Digest: <digest>",
        "Status: Downloaded newer image for lovelearnlinux/webserver:v1",
        "lovelearnlinux/webserver:v1",
    ];
    assert_eq!(docs.run_normalized("docker pull $R/lovelearnlinux/webserver:v1"), want);
    let want = [
        "REPOSITORY TAG IMAGE ID CREATED SIZE",
        "redis latest <id> <age> <size>",
        "lovelearnlinux/webserver v1 <id> <age> <size>",
        "centos latest <id> <age> <size>",
    ];
    assert_eq!(docs.run_normalized("docker images"), want);
    assert_eq!(docs.run_normalized("docker image ls"), want);
    let up_to_date = docs.run_normalized("docker image pull $R/library/redis:latest");
    assert_eq!(up_to_date[up_to_date.len() - 2..], ["Status: Image is up to date for redis:latest", "redis:latest"]);
    let inspected = docs.run("docker image inspect $R/lovelearnlinux/webserver:v1");
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    let layers = json!([digest(&tar(1)), digest(&tar(4)), digest(&tar(5))]);
    assert_eq!(inspected[0]["RootFS"], json!({ "Type": "layers", "Layers": layers }));
}

#[test]
fn pull_all_tags_pulls_every_tag_of_a_repository() {
    let docs = DocsFixture::new();
    docs.run_normalized("docker pull $R/lovelearnlinux/webserver:v1");
    let out = docs.run_normalized("docker image pull -a $R/lovelearnlinux/webserver");
    let end = ["Status: Downloaded newer image for lovelearnlinux/webserver", "lovelearnlinux/webserver"];
    assert_eq!(out[out.len() - 2..], end);
    let mut output: Vec<&String> = out[..out.len() - 2].iter().filter(|line| !line.starts_with("<id>")).collect();
    output.sort();
    let want = [
        "Digest: <digest>",
        "Digest: <digest>",
        "v1: Pulling from lovelearnlinux/webserver",
        "v2: Pulling from lovelearnlinux/webserver",
    ];
    assert_eq!(output, want);
    let second = out.iter().position(|line| line.starts_with("v2: ")).unwrap();
    assert_eq!(out[second + 1..second + 4], ["<id>: Already exists", "<id>: Already exists", "<id>: Pull complete"]);
    // Two tags of one image are two rows with the same ID.
    docs.run_normalized("docker image pull -a $R/nigelpoulton/tu-demo");
    let listed = docs.run("docker image ls --format '{{.Tag}} {{.ID}}' $R/nigelpoulton/tu-demo").stdout;
    let mut rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split(' ').collect()).collect();
    rows.sort();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), ["latest", "v1", "v2"]);
    assert!(rows[0][1] == rows[2][1] && rows[0][1] != rows[1][1], "{listed}");
    // `docker images ls`: `ls` is a pattern argument of `images`.
    assert_eq!(docs.run_normalized("docker images ls"), ["REPOSITORY TAG IMAGE ID CREATED SIZE"]);
}

#[test]
fn an_image_is_pulled_and_removed_by_digest() {
    let docs = DocsFixture::new();
    docs.run_normalized("docker pull $R/library/alpine");
    let listed = docs.run_normalized("docker image ls --digests $R/library/alpine");
    assert_eq!(listed, ["REPOSITORY TAG DIGEST IMAGE ID CREATED SIZE", "alpine latest <digest> <id> <age> <size>"]);
    let gone = ["Untagged: alpine:latest", "Untagged: alpine@<digest>", "Deleted: <digest>", "Deleted: <digest>"];
    let digest = docs.run("docker image ls --digests --format {{.Digest}} $R/library/alpine").stdout;
    assert_eq!(docs.run_normalized("docker image rm $R/library/alpine"), gone);
    let pulled = docs.run_normalized(&format!("docker image pull $R/library/alpine@{}", digest.trim()));
    assert!(pulled[0].ends_with("<digest>: Pulling from library/alpine"), "{pulled:?}");
    let want = [
        "<id>: Pull complete",
        "Digest: <digest>",
        "Status: Downloaded newer image for alpine@<digest>",
        "alpine@<digest>",
    ];
    assert_eq!(pulled[1..], want);
    assert_eq!(docs.run_normalized("docker images")[1..], ["alpine <none> <id> <age> <size>"]);
    let by_digest = docs.run_normalized(&format!("docker image rm $R/library/alpine@{}", digest.trim()));
    assert_eq!(by_digest, gone[1..]);
}

#[test]
fn image_removal_prints_what_the_documents_show() {
    let docs = DocsFixture::new();
    docs.run_normalized("docker pull $R/coreos/apache");
    let gone = docs.run_normalized("docker rmi $R/coreos/apache");
    let want = [
        "Untagged: coreos/apache:latest",
        "Untagged: coreos/apache@<digest>",
        "Deleted: <digest>",
        "Deleted: <digest>",
        "Deleted: <digest>",
        "Deleted: <digest>",
    ];
    assert_eq!(gone, want);
    docs.run_normalized("docker pull $R/library/redis");
    let gone = docs.run_normalized("docker image rm $R/library/redis:latest");
    assert_eq!(gone[..2], ["Untagged: redis:latest", "Untagged: redis@<digest>"]);
    assert_eq!(gone[2..], ["Deleted: <digest>"; 7]);
    // Removal by ID: one image, then two.
    docs.run_normalized("docker pull $R/library/redis; docker pull $R/library/alpine; docker pull $R/library/centos");
    assert_eq!(docs.run_normalized("docker image rm $(docker images -q $R/library/centos)").len(), 4);
    let ids = "$(docker images -q $R/library/redis) $(docker images -q $R/library/alpine)";
    assert_eq!(docs.run_normalized(&format!("docker image rm {ids}")).len(), 13);
    // Removal of every image, with the flag last.
    docs.run_normalized(
        "docker pull $R/library/alpine; docker pull $R/lovelearnlinux/webserver:v1; docker pull $R/library/centos",
    );
    std::fs::write(docs.env.path("tree.tar"), tar(7)).unwrap();
    docs.env.ok(["import", docs.env.path("tree.tar").to_str().unwrap(), "deepone"]);
    assert_eq!(docs.run_normalized("docker image ls -q"), ["<id>"; 4]);
    let gone = docs.run_normalized("docker image rm $(docker image ls -q) -f");
    // The newest image comes first; it was never pulled and therefore has no digest.
    assert_eq!(gone[..3], ["Untagged: deepone:latest", "Deleted: <digest>", "Deleted: <digest>"]);
    assert_eq!(
        gone[3..7],
        ["Untagged: alpine:latest", "Untagged: alpine@<digest>", "Deleted: <digest>", "Deleted: <digest>"]
    );
    // Its lowest layer is centos's too.
    assert_eq!(gone[9..12], ["Deleted: <digest>"; 3]);
    assert_eq!(gone.len(), 16);
    assert_eq!(docs.run_normalized("docker image ls -q"), [""; 0]);
}

/// A mount keeps its image from removal, as a container does.
#[test]
fn an_image_in_use_is_not_removed() {
    let env = documents();
    let mount = env.mount("deepone:latest", &[]);
    let id = env.ok(["images", "-q", "deepone"]);
    let user = env.ok(["mounts", "-q"]);
    let (id, user) = (id.trim(), user.trim());
    let want = format!(
        "Error: conflict: unable to remove repository reference \"deepone:latest\" (must force) - \
         container {user} is using its referenced image {id}"
    );
    assert_eq!(env.fails(["image", "rm", "deepone:latest"]), want);
    mount.unmount();
    env.ok(["image", "rm", "deepone:latest"]);
}

#[test]
fn the_documented_image_commands_work_as_written() {
    let env = documents();
    let shown = |args: &[&str]| env.ok(args);
    let table = shown(&["images"]);
    let names: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().take(2).collect()).collect();
    let want = [
        vec!["REPOSITORY", "TAG"],
        vec!["deepone", "latest"],
        vec!["alpine", "latest"],
        vec!["redis", "latest"],
        vec!["lovelearnlinux/webserver", "v1"],
        vec!["centos", "latest"],
    ];
    assert_eq!(names, want);
    // As written in the document, with `ls`, which is a pattern argument.
    let latest = shown(&["images", "ls", "--filter=reference=*:latest", "--format", "{{.Repository}}"]);
    assert_eq!(latest, "deepone\nalpine\nredis\ncentos\n");
    let latest = shown(&["image", "ls", "--filter=reference=*:latest", "--format", "{{.Repository}}"]);
    assert_eq!(latest, "deepone\nalpine\nredis\ncentos\n");
    assert_eq!(shown(&["image", "ls", "--format", "{{.Size}}"]), "13.3kB\n6.66kB\n6.66kB\n13.3kB\n6.66kB\n");
    let each = shown(&["image", "ls", "--format", "{{.Repository}}: {{.Tag}}: {{.Size}}"]);
    assert!(each.starts_with("deepone: latest: 13.3kB\nalpine: latest: 6.66kB\n"), "{each}");
    assert!(each.contains("lovelearnlinux/webserver: v1: 13.3kB\n"), "{each}");
    assert_eq!(shown(&["image", "ls", "--filter", "dangling=true"]).lines().count(), 1);
    let digests = shown(&["image", "ls", "--digests", "alpine"]);
    assert_eq!(digests.lines().next().unwrap().split_whitespace().nth(2), Some("DIGEST"));
    let inspected: Value = serde_json::from_str(&shown(&["image", "inspect", "lovelearnlinux/webserver:v1"])).unwrap();
    assert_eq!(inspected[0]["RootFS"]["Layers"], json!([digest(&tar(1)), digest(&tar(4))]));
    // Removal by name, by ID, then of every image at once.
    let gone = shown(&["image", "rm", "redis:latest"]);
    let shape: Vec<&str> = gone.lines().map(|l| l.split(':').next().unwrap()).collect();
    assert_eq!((gone.lines().next(), shape), (Some("Untagged: redis:latest"), vec!["Untagged", "Deleted", "Deleted"]));
    let ids = shown(&["images", "-q", "centos"]) + &shown(&["images", "-q", "alpine"]);
    let mut both = vec!["image", "rm"];
    both.extend(ids.lines());
    assert!(shown(&both).contains("Untagged: alpine:latest\n"));
    let ids = shown(&["image", "ls", "-q"]);
    let mut all = vec!["image", "rm"];
    all.extend(ids.lines());
    all.push("-f");
    assert_eq!(shown(&all).lines().filter(|l| l.starts_with("Untagged: ")).count(), 2);
    assert_eq!(shown(&["image", "ls", "-q"]), "");
}

#[test]
fn run_pulls_a_missing_image() {
    let docs = DocsFixture::new();
    let ran = docs.run("docker run -i $R/library/fedora /bin/bash </dev/null");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    let want = [
        "Unable to find image 'fedora:latest' locally",
        "latest: Pulling from library/fedora",
        "<id>: Pull complete",
        "Digest: <digest>",
        "Status: Downloaded newer image for fedora:latest",
    ];
    assert_eq!(normalize_output(&docs.server.host, &ran.stderr), want);
    docs.run_normalized("docker rm $(docker ps -aq); docker rmi $R/library/fedora");
    // The same at a terminal.
    let plyfs = command(&docs.env, &[]);
    let variable = |(name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
        value.map_or_else(String::new, |value| format!("{}={value:?} ", name.display()))
    };
    let variables: String = plyfs.get_envs().map(variable).collect();
    let (program, root, host) = (plyfs.get_program(), docs.env.root(), &docs.server.host);
    let tmux = Tmux::start(&docs.env);
    tmux.type_line(&format!("docker() {{ {variables}{program:?} --root {root:?} \"$@\"; }}; R={host}; clear"));
    tmux.type_line("docker run -it $R/library/fedora /bin/bash");
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    tmux.wait_for_line(&format!("[root@{} /]#", machine.trim()));
    tmux.wait_for_line(&format!("Unable to find image '{host}/library/fedora:latest' locally"));
    for line in want[1..].iter().map(|line| line.split('<').next().unwrap().trim_end_matches("fedora:latest")) {
        if !line.is_empty() {
            tmux.wait_for_line(line);
        }
    }
    tmux.type_line("exit");
    tmux.wait_for_prompt();
    tmux.type_line("echo back $?");
    tmux.wait_for_line("back 0");
}

#[test]
fn an_image_is_kept_until_its_last_container_is_removed() {
    let docs = DocsFixture::new();
    docs.run_normalized(
        "docker pull $R/library/deepone; docker tag $R/library/deepone deepone:latest; docker rmi $R/library/deepone",
    );
    let first = docs.run("docker container run -d deepone:latest").stdout;
    let second = docs.run("docker container create deepone:latest").stdout;
    assert!([&first, &second].iter().all(|id| id.trim().len() == 64), "{first}{second}");
    let table = docs.run_normalized("docker ps -a");
    assert_eq!(table[0], "CONTAINER ID IMAGE COMMAND CREATED STATUS PORTS NAMES");
    assert!(
        table.iter().skip(1).all(|row| row.starts_with("<id> deepone:latest \"/usr/sbin/httpd -D …\" ")),
        "{table:?}"
    );
    assert!(table[1].contains(" Created ") && table[2].contains(" Up ") && table.len() == 3, "{table:?}");
    let refused = |line: &str| {
        let done = docs.run(line);
        assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{line}");
        normalize_output(&docs.server.host, &done.stderr).join("\n")
    };
    let in_use = "Error: conflict: unable to remove repository reference \"deepone:latest\" (must force) - \
                  container <id> is using its referenced image <id>";
    assert_eq!(refused("docker image rm deepone:latest"), in_use);
    let running = "Error: conflict: unable to delete <id> (cannot be forced) - \
                   image is being used by running container <id>";
    assert_eq!(refused("docker image rm $(docker image ls -q) -f"), running);
    let (first, second) = (first.trim(), second.trim());
    assert_eq!(docs.run(&format!("docker stop {first}; docker rm {first}")).stdout, format!("{first}\n{first}\n"));
    assert_eq!(refused("docker image rm deepone:latest"), in_use);
    assert_eq!(docs.run(&format!("docker container rm {second}")).stdout, format!("{second}\n"));
    let gone = docs.run_normalized("docker image rm deepone:latest");
    assert_eq!(gone[..2], ["Untagged: deepone:latest", "Deleted: <digest>"]);
    assert_eq!(docs.run_normalized("docker ps -a").len() + docs.run_normalized("docker image ls -q").len(), 1);
}

#[test]
fn commit_makes_an_image_of_a_stopped_container() {
    let docs = DocsFixture::new();
    docs.run_normalized("docker pull $R/library/deepone");
    docs.run("docker run -d --name one $R/library/deepone");
    docs.run_normalized("docker exec one touch /new");
    assert_eq!(docs.run_normalized("docker stop one"), ["one"]);
    assert_eq!(docs.run_normalized("docker commit one two"), ["<digest>"]);
    assert_eq!(docs.run_normalized("docker run --rm two ls /new"), ["/new"]);
    let table = docs.run_normalized("docker images");
    assert_eq!(table[1..], ["two latest <id> <age> <size>", "deepone latest <id> <age> <size>"]);
    assert_eq!(docs.run_normalized("docker rm one; docker rmi two")[..2], ["one", "Untagged: two:latest"]);
}

/// "You can create your own builds for different platforms and architectures with docker `buildx` and then use `docker
/// manifest` create to create your own manifest lists."
#[test]
fn builds_for_several_platforms_become_a_manifest_list() {
    let (docs, registry) = (DocsFixture::new(), DockerRegistry::start(None, None));
    let context = docs.env.path("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n").unwrap();
    let run = |line: &str| docs.run(&format!("R={}; cd {}; {line}", registry.host, context.display()));
    let lines = |line: &str| {
        let done = run(line);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{line}");
        normalize_output(&registry.host, &done.stdout)
    };
    for architecture in ["amd64", "arm64"] {
        let build =
            format!("docker buildx build -q --platform linux/{architecture} -t $R/library/app:{architecture} .");
        assert_eq!(lines(&build), ["<digest>"]);
    }
    let create = "docker manifest create $R/library/app:1 $R/library/app:amd64 $R/library/app:arm64";
    assert_eq!(lines(create), ["Created manifest list app:1"]);
    assert_eq!(lines("docker manifest push $R/library/app:1"), ["<digest>"]);
    // "docker manifest inspect golang | grep 'architecture\|os'", of the list in the store, then in the registry.
    let want =
        ["\"architecture\": \"amd64\",", "\"os\": \"linux\"", "\"architecture\": \"arm64\",", "\"os\": \"linux\""];
    let inspect = "docker manifest inspect $R/library/app:1 | grep 'architecture\\|os'";
    assert_eq!(lines(inspect), want);
    assert_eq!(lines("docker manifest rm $R/library/app:1"), [""; 0]);
    assert_eq!(lines(inspect), want);
    // "`docker buildx` is a Docker CLI plugin that extends the Docker CLI to support multi-arch builds."
    let build = "docker buildx build -q --platform linux/amd64,linux/arm64 -t $R/library/both . && docker push -q $R/library/both";
    assert_eq!(lines(build), ["<digest>", "both:latest"]);
    assert_eq!(
        lines("docker manifest rm $R/library/both; docker manifest inspect $R/library/both | grep 'arch\\|os'"),
        want
    );
}

/// "Use `$ docker info` to check the current "Registry" option."
#[test]
fn info_shows_the_registry() {
    let docs = DocsFixture::new();
    let shown = docs.run("docker info 2>/dev/null | grep Registry:");
    assert_eq!((shown.code, shown.stdout.as_str()), (0, "Registry: https://index.docker.io/v1/\n"), "{shown:?}");
}

/// "You can download an image locally form a repo or build your own from a Dockerfile."
#[test]
fn an_image_is_built_from_a_dockerfile() {
    let docs = DocsFixture::new();
    let build = "d=$(mktemp -d) && cd $d && printf 'FROM %s/library/fedora\\nCOPY page /page\\nRUN cat /page > /served\\n\
        CMD [\"cat\", \"/served\"]\\n' $R > Dockerfile && echo built > page && docker build -t web:1 . && rm -r $d";
    let built = docs.run(build);
    assert_eq!(built.code, 0, "{built:#?}");
    for step in
        ["#2 [2/3] COPY page /page\n", "#3 [3/3] RUN cat /page > /served\n", "naming to docker.io/library/web:1\n"]
    {
        assert!(built.stderr.contains(step), "{step:?}: {}", built.stderr);
    }
    assert_eq!(docs.run("docker run --rm web:1").stdout, "built\n");
    assert_eq!(docs.run("docker images -q web:1").stdout.lines().count(), 1);
}
