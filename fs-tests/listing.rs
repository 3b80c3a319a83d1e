//! Image listings: filters, formats, history, disk usage and prunes. Image names and output shapes are those of
//! Docker's documentation.

use std::process::Command;

use serde_json::{Value, json};

use super::support::env::{TestEnv, run};
use super::support::oci::{Image, digest};
use super::support::tar::Tar;

/// A layer with one file `file-N` of 5,000 bytes, each `n`.
pub fn tar(n: u8) -> Vec<u8> {
    Tar::new().file(format!("file-{n}"), vec![n; 5000]).finish()
}

/// Adds an image of these layers as `name:tag`, created in that year.
fn add(env: &TestEnv, name: &str, tag: &str, year: i32, layers: &[u8]) -> String {
    let place = env.path(format!("layout-{}-{tag}", name.replace('/', "-")));
    let base = name.to_owned();
    let mut image = Image::new().tag(tag).edit_config(move |c| {
        c["created"] = json!(format!("{year}-01-02T03:04:05.6Z"));
        c["config"] = json!({ "Cmd": ["sh", "-c"], "Labels": { "name": base, "b.c": "<x>&" }, "Volumes": null });
    });
    for n in layers {
        image = image.layer(tar(*n));
    }
    image.write_layout(&place);
    let pulled = env.ok(["pull", "-q", &format!("oci:{}:{tag}", place.display())]);
    let pulled = pulled.trim();
    let id = env.ok(["inspect", "-f", "{{.Id}}", pulled]);
    let target = format!("{name}:{tag}");
    env.ok(["tag", pulled, &target]);
    env.ok(["rmi", pulled]);
    id.trim().to_owned()
}

/// The images of the documents: deepone, alpine, redis, centos, and one of a user.
pub fn documents() -> TestEnv {
    let env = TestEnv::new();
    add(&env, "deepone", "latest", 2024, &[1, 9]);
    add(&env, "alpine", "latest", 2023, &[2]);
    add(&env, "redis", "latest", 2022, &[3]);
    add(&env, "lovelearnlinux/webserver", "v1", 2021, &[1, 4]);
    add(&env, "centos", "latest", 2020, &[1]);
    env
}

#[test]
fn image_filters_work_alone_and_combined() {
    let env = documents();
    let names = |filters: &[&str]| {
        let mut args = vec!["images", "--format", "{{.Repository}}"];
        args.extend(filters.iter().flat_map(|f| ["-f", f]));
        env.ok(args).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&["before=redis"]), "lovelearnlinux/webserver centos");
    assert_eq!(names(&["since=redis"]), "deepone alpine");
    assert_eq!(names(&["before=deepone", "since=centos"]), "alpine redis lovelearnlinux/webserver");
    assert_eq!(names(&["before=deepone", "before=redis"]), "lovelearnlinux/webserver centos");
    assert_eq!(names(&["until=2021-06-01"]), "lovelearnlinux/webserver centos");
    assert_eq!(names(&["until=24h"]).split(' ').count(), 5);
    assert_eq!(names(&["label=name=redis"]), "redis");
    assert_eq!(names(&["label=name", "label=name=redis"]), "redis");
    assert_eq!(names(&["label=nope"]), "");
    assert_eq!(names(&["label!=name=redis", "reference=*:latest"]), "deepone alpine centos");
    assert_eq!(names(&["reference=*/*"]), "lovelearnlinux/webserver");
    assert_eq!(names(&["reference=docker.io/library/*"]), "deepone alpine redis centos");
    assert_eq!(names(&["reference=redis", "reference=alp*"]), "alpine redis");
    assert_eq!(names(&["dangling=false", "reference=redis"]), "redis");
    assert_eq!(env.ok(["images", "--format", "{{.Tag}}", "*/web*:v?"]), "v1\n");
    let end = |args: &[&str]| {
        let output = run(&mut env.command(args));
        (output.code, output.stderr)
    };
    let bad = "invalid argument \"dangling\" for \"-f, --filter\" flag: bad format of filter (expected name=value)\n";
    assert_eq!(end(&["images", "-f", "dangling"]), (125, bad.to_owned()));
    assert_eq!(end(&["images", "-f", "foo=bar"]), (1, "Error: invalid filter 'foo'\n".to_owned()));
    assert_eq!(end(&["images", "-f", "dangling=maybe"]), (1, "Error: invalid filter 'dangling=[maybe]'\n".to_owned()));
    assert_eq!(end(&["images", "-f", "before=nope"]), (1, "Error: No such image: nope:latest\n".to_owned()));
    assert_eq!(end(&["images", "-f", "reference=["]), (1, "Error: syntax error in pattern\n".to_owned()));
}

#[test]
fn images_accepts_formats_and_templates() {
    let env = TestEnv::new();
    let id = add(&env, "app", "1", 2020, &[1]);
    let short = &id[7..19];
    let json = env.ok(["images", "--format", "json"]);
    let value: Value = serde_json::from_str(&json).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let want = "Containers CreatedAt CreatedSince Digest ID Repository SharedSize Size Tag UniqueSize VirtualSize";
    assert_eq!(keys.join(" "), want);
    assert_eq!((value["ID"].as_str(), value["Digest"].as_str()), (Some(short), Some("<none>")));
    assert_eq!(value["CreatedAt"], json!("2020-01-02 03:04:05 +0000 UTC"));
    assert!(json.contains("\"Digest\":\"\\u003cnone\\u003e\""), "{json}");
    assert_eq!(env.ok(["images", "--format", "{{json .}}"]), json);
    let table = env.ok(["images", "--format", r"table {{.ID}}\t{{upper .Repository}}:{{.Tag}}"]);
    assert_eq!(table, format!("IMAGE ID       REPOSITORY:TAG\n{short}   APP:1\n"));
    assert_eq!(env.ok(["images", "-q", "--format", "{{.Size}}"]), "6.66kB\n");
    assert_eq!(env.ok(["images", "--no-trunc", "--format", "{{.ID}}"]), format!("{id}\n"));
    let tree = env.ok(["images", "--tree"]);
    assert_eq!(tree.lines().next(), Some("IMAGE     ID             DISK USAGE   CONTENT SIZE   EXTRA"));
    assert!(tree.contains(&format!("app:1     {short}   6.66kB       ")), "{tree}");
    let end = |format: &str| {
        let output = run(&mut env.command(["images", "--format", format]));
        (output.code, output.stderr)
    };
    let unclosed = "template parsing error: template: :1: unclosed action\n";
    assert_eq!(end("{{.ID"), (64, unclosed.to_owned()));
    let nope = "template parsing error: template: :1:2: executing \"\" at <.Nope>: \
                can't evaluate field Nope in type *formatter.imageContext\n";
    assert_eq!(end("{{.Nope}}"), (1, nope.to_owned()));
}

#[test]
fn inspect_evaluates_templates_over_the_whole_image() {
    let env = TestEnv::new();
    let id = add(&env, "app", "1", 2020, &[1, 2]);
    env.ok(["tag", "app:1", "b:2"]);
    let shown = |format: &str| env.ok(["image", "inspect", "-f", format, "app:1"]);
    assert_eq!(shown("{{.Id}}"), format!("{id}\n"));
    assert_eq!(shown("{{.RepoTags}} {{json .RepoTags}}"), "[app:1 b:2] [\"app:1\",\"b:2\"]\n");
    assert_eq!(
        shown("{{range .RootFS.Layers}}{{println .}}{{end}}"),
        format!("{}\n{}\n\n", digest(&tar(1)), digest(&tar(2)))
    );
    assert_eq!(shown("{{.Config.Labels.name}} {{index .Config.Labels \"b.c\"}}"), "app <x>&\n");
    assert_eq!(shown("{{.Config.Labels}}"), "map[b.c:<x>& name:app]\n");
    assert_eq!(shown("{{.Config.Labels.nope}}|{{index .Config.Labels \"nope\"}}"), "<no value>|\n");
    assert_eq!(shown("{{.Config.Volumes}} {{json .Config.Volumes}} {{.Config.Entrypoint}}"), "map[] null []\n");
    assert_eq!(shown("{{join .Config.Cmd \" \"}} {{len .RootFS.Layers}}"), "sh -c 2\n");
    assert_eq!(shown("{{if eq .Os \"linux\"}}yes{{end}} {{.Variant}}"), "yes \n");
    assert!(shown("json").starts_with("{\"Id\":\"sha256:"));
    let some = run(&mut env.command(["inspect", "-f", "{{.Id}}", "nope", "app:1", "--type", "image"]));
    assert_eq!((some.code, some.stdout.as_str()), (1, format!("{id}\n").as_str()));
    assert_eq!(some.stderr, "Error: No such image: nope:latest\n");
    let wrong = run(&mut env.command(["inspect", "-f", "{{.Config.Nope}}", "app:1"]));
    let why =
        "template parsing error: template: :1:9: executing \"\" at <.Config.Nope>: map has no entry for key \"Nope\"\n";
    assert_eq!((wrong.code, wrong.stderr.as_str()), (1, why));
    assert_eq!(run(&mut env.command(["inspect", "-f", "{{.Id", "app:1"])).code, 64);
}

#[test]
fn history_prints_steps_and_sizes() {
    let env = TestEnv::new();
    let step =
        |by: &str, empty: bool| json!({"created": "2020-02-02T02:02:02Z", "created_by": by, "empty_layer": empty});
    let steps = json!([
        step("/bin/sh -c #(nop) ADD file:0123456789abcdef0123456789abcdef in / and\tmore", false),
        step("CMD [\"sh\"]", true),
        {"created": "2020-02-02T02:02:03Z", "created_by": "RUN true", "comment": "buildkit.dockerfile.v0"},
    ]);
    let image = Image::new().layer(tar(1)).layer(tar(2)).tag("1").edit_config(move |c| c["history"] = steps.clone());
    image.write_layout(&env.path("app"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("app").display())]);
    let id = env.ok(["images", "-q"]);
    let out = env.ok(["history", "app:1"]);
    let age = env.ok(["history", "--format", "{{.CreatedSince}}", "app:1"]).lines().next().unwrap().to_owned();
    let want = format!(
        "IMAGE          CREATED       CREATED BY                                      SIZE      COMMENT\n\
         {}   {age}   RUN true                                        6.66kB    buildkit.dockerfile.v0\n\
         <missing>      {age}   CMD [\"sh\"]                                      0B        \n\
         <missing>      {age}   /bin/sh -c #(nop) ADD file:0123456789abcdef0…   6.66kB    \n",
        id.trim()
    );
    assert_eq!(out, want);
    assert_eq!(env.ok(["image", "history", "-q", "app:1"]), format!("{id}<missing>\n<missing>\n"));
    let machines = env.ok(["history", "-H=false", "--no-trunc", "app:1"]);
    assert!(machines.lines().nth(1).unwrap().contains("   2020-02-02T02:02:03Z   RUN true"), "{machines}");
    assert!(machines.lines().nth(3).unwrap().contains("abcdef in / and more   6656"), "{machines}");
    let json = env.ok(["history", "--format", "json", "app:1"]);
    assert!(
        json.starts_with("{\"Comment\":\"buildkit.dockerfile.v0\",\"CreatedAt\":\"2020-02-02T02:02:03Z\""),
        "{json}"
    );
    assert_eq!(env.fails(["history", "nope"]), "Error: No such image: nope:latest");
    assert_eq!(run(&mut env.command(["history"])).code, 1);
}

#[test]
fn prune_asks_for_confirmation_and_prints_what_it_removed() {
    let env = TestEnv::new();
    let old = add(&env, "app", "1", 2020, &[1, 2]);
    add(&env, "app", "2", 2021, &[1, 3]);
    let asked = env.ok(["image", "prune"]);
    let question = "Are you sure you want to continue? [y/N] ";
    assert_eq!(asked, format!("WARNING! This will remove all dangling images.\n{question}"));
    let all = "WARNING! This will remove all images without at least one container associated to them.\n";
    assert_eq!(env.ok(["image", "prune", "-a"]), format!("{all}{question}"));
    assert_eq!(env.ok(["image", "prune", "-f"]), "Total reclaimed space: 0B\n");
    // A new image takes the name, which leaves the old one dangling.
    env.ok(["tag", "app:2", "app:1"]);
    assert_eq!(env.ok(["images", "-f", "dangling=true", "-q", "--no-trunc"]), format!("{old}\n"));
    assert_eq!(env.ok(["image", "prune", "-f", "--filter", "label=nope"]), "Total reclaimed space: 0B\n");
    let chain = digest(format!("{} {}", digest(&tar(1)), digest(&tar(2))).as_bytes());
    let want = format!("Deleted Images:\ndeleted: {old}\ndeleted: {chain}\n\nTotal reclaimed space: 6.66kB\n");
    assert_eq!(env.ok(["image", "prune", "-f"]), want);
    assert_eq!(env.ok(["image", "prune", "-af", "--filter", "until=2000-01-01"]), "Total reclaimed space: 0B\n");
    let out = env.ok(["image", "prune", "-a", "-f"]);
    assert!(out.starts_with("Deleted Images:\nuntagged: app:2\nuntagged: app:1\ndeleted: sha256:"), "{out}");
    assert!(out.ends_with("\n\nTotal reclaimed space: 13.3kB\n"), "{out}");
    assert_eq!(env.ok(["images", "-q"]), "");
    let bad = env.fails(["image", "prune", "-f", "--filter", "reference=x"]);
    assert_eq!(bad, "Error: invalid filter 'reference'");
    assert_eq!(run(&mut env.command(["image", "prune", "x"])).code, 1);
}

#[test]
fn version_completion_and_man_pages_are_generated() {
    let env = TestEnv::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(env.ok(["version", "--format", "{{.Client.Version}}"]), format!("{version}\n"));
    assert!(env.ok(["version", "-f", "json"]).starts_with("{\"Client\":{\"Version\":\""));
    assert_eq!(run(&mut env.command(["version", "-f", "{{"])).code, 64);
    for shell in ["bash", "zsh", "fish"] {
        let script = env.ok(["completion", shell]);
        assert!(script.contains("no-trunc") && script.contains("prune"), "{shell}: {script}");
    }
    let bash = env.path("completion");
    std::fs::write(&bash, env.ok(["completion", "bash"])).unwrap();
    assert_eq!(run(std::process::Command::new("bash").arg("-n").arg(&bash)).code, 0);
    for (shell, script) in [("zsh", env.path("zsh")), ("fish", env.path("fish"))] {
        std::fs::write(&script, env.ok(["completion", shell])).unwrap();
        assert_eq!(run(std::process::Command::new(shell).arg("-n").arg(&script)).code, 0, "{shell}");
    }
    assert_eq!(run(&mut env.command(["completion", "tcsh"])).code, 125);
    assert_eq!(run(&mut env.command(["completion"])).code, 1);
    let pages = env.path("man");
    std::fs::create_dir(&pages).unwrap();
    env.ok(["man", pages.to_str().unwrap()]);
    let page = std::fs::read_to_string(pages.join("plyfs-images.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("no\\-trunc"), "{page}");
}

#[test]
fn names_and_paths_of_images_are_completed() {
    let env = TestEnv::new();
    let tar =
        Tar::new().dir("etc").file("etc/passwd", "").file("etc/paths", "").dir("etc/pam.d").file("etc/new\nline", "");
    Image::new().layer(tar.finish()).tag("1").write_layout(&env.path("app"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("app").display())]);
    for (words, expected) in [
        (&["ls", ""][..], "app:1\n"),
        (&["ls", "-l", "app:"], "app:1\n"),
        (&["cat", "app:1", "/etc/pa"], "/etc/pam.d/\n/etc/passwd\n/etc/paths\n"),
        (&["du", "-h", "app:1", "e"], "etc/\n"),
        (&["find", "app:1", ""], "etc/\n"),
        (&["layers", "app:1", "/etc/n"], ""),
        (&["diff", "app:1", "a"], "app:1\n"),
        (&["diff", "app:1", "app:1", "/"], "/etc/\n"),
        (&["ls", "absent:1", "/"], ""),
        (&["images", ""], ""),
        (&["ls", "--bogus", ""], ""),
    ] {
        assert_eq!(env.ok([&["complete"], words].concat()), expected, "{words:?}");
    }
    // As bash calls the function: it has split the line at the colon.
    let script = "source \"$1\"; PATH=$2:$PATH PLYFS_ROOT=$3; export PLYFS_ROOT; COMP_LINE=$4; COMP_POINT=${#4}; \
                  COMP_WORDS=(plyfs); COMP_CWORD=0; _plyfs_in_images plyfs '' ''; echo \"${COMPREPLY[*]}\"";
    let file = env.path("completion");
    std::fs::write(&file, env.ok(["completion", "bash"])).unwrap();
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_plyfs")).parent().unwrap();
    for (line, expected) in
        [("plyfs ls app:", "1\n"), ("plyfs cat app:1 /etc/pas", "/etc/passwd\n"), ("plyfs du ", "app:1\n")]
    {
        let mut bash = std::process::Command::new("bash");
        let bash = bash.args(["-c", script, "-"]).args([&file, programs, &env.root()]).arg(line);
        let output = run(bash);
        assert_eq!(output.stdout, expected, "{line}: {}", output.stderr);
    }
}

#[test]
fn system_df_prints_disk_usage() {
    let env = TestEnv::new();
    add(&env, "a", "1", 2020, &[1, 2]);
    add(&env, "b", "1", 2021, &[1, 3]);
    let want = "TYPE          TOTAL     ACTIVE    SIZE      RECLAIMABLE\n\
                Images        2         0         19.97kB   19.97kB (100%)\n\
                Containers    0         0         0B        0B\n";
    let table = env.ok(["system", "df"]);
    assert!(table.starts_with(want), "{table}");
    // The index of each of three layers, and two files for each of two trees.
    let last: Vec<&str> = table.lines().nth(3).unwrap().split_whitespace().collect();
    assert_eq!((last[0], last[1], last[2], last[5]), ("Indexes", "7", "0", "(100%)"));
    let files = |dir: &str, name: &str| {
        let output = run(Command::new("find").arg(env.root().join(dir)).args(["-name", name, "-printf", "%s\n"]));
        output.stdout.lines().map(|size| size.parse::<u64>().unwrap()).sum::<u64>()
    };
    let total = files("layers", "index") + files("trees", "*.*");
    let size = env.ok(["system", "df", "--format", "{{.Size}}"]).lines().nth(2).unwrap().to_owned();
    assert!(
        (size.trim_end_matches("kB").parse::<f64>().unwrap() - total as f64 / 1000.0).abs() < 0.1,
        "{size} {total}"
    );
    let mount = env.mount("a:1", &[]);
    let used = env.ok(["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"]);
    assert!(used.starts_with("Images 2 1 19.97kB 6.656kB (33%)\nContainers 1 1 0B 0B\nIndexes 7 4 "), "{used}");
    let table = env.ok(["system", "df", "-v"]);
    let heads = "REPOSITORY   TAG       IMAGE ID       CREATED       SIZE      SHARED SIZE   UNIQUE SIZE   CONTAINERS";
    assert_eq!(table.lines().take(3).collect::<Vec<_>>(), ["Images space usage:", "", heads]);
    assert!(table.lines().last().unwrap().ends_with("13.3kB    6.656kB       6.656kB       1"), "{table}");
    // A mounted image is kept.
    let pruned = env.ok(["image", "prune", "-af"]);
    assert!(pruned.ends_with("Total reclaimed space: 6.66kB\n"), "{pruned}");
    mount.unmount();
    assert_eq!(env.ok(["images", "--format", "{{.Repository}}"]), "a\n");
}
