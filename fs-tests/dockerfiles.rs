//! `build`, compared with buildah and with stated facts on a corpus of Dockerfiles: `fs-tests/dockerfiles/*.txt`, whose
//! form is described in [`build_case`](super::support::build_case).
//!
//! `PLYFS_CASE=NAME` runs one case, and `PLYFS_CASE_ONLY=buildah` or `=plyfs` runs one builder and checks the stated
//! facts alone. With `PLYFS_CASE_TIMES` set, the tests print how long each build took.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use super::support::build_case::{Built, Case, CaseFiles, all_cases, normalize_config};
use super::support::buildah::Buildah;
use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image};
use super::support::small;
use super::support::tar::{Entry, Tar};
use super::support::tree::{Difference, Tree, diff};

/// The number of tests that the cases are divided among, so that each stays short.
const SHARES: usize = 16;

/// The programs of the base images, besides those of [`small::APPLETS`].
const APPLETS: &str = "[ ash basename bunzip2 chgrp chmod cp cut date dd df dirname du echo expr false find grep gunzip \
     head hostname ip link ls mkfifo mknod mount mv nproc od printf pwd readlink realpath rm rmdir sed seq sha256sum \
     sort tail tar tee test tr uname unlink wc wget which whoami xargs yes";

/// Files that buildah creates in the image to mount its own over, and leaves there empty. BuildKit removes them.
const MOUNTPOINTS: &[&str] =
    &["/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run", "/run/.containerenv", "/dev", "/proc", "/sys"];

/// Both builders, with the base images in their stores.
struct Builders {
    buildah: Option<Buildah>,
    env: TestEnv,
    is_plyfs_on: bool,
    has_tools: OnceCell<()>,
}

/// The result of one builder: what is wrong about it, and the image unless the build failed.
#[derive(Default)]
struct Outcome {
    problems: Vec<String>,
    image: Option<(Value, Tree)>,
}

impl Builders {
    fn new() -> Builders {
        let only = std::env::var("PLYFS_CASE_ONLY").unwrap_or_default();
        assert!(["", "buildah", "plyfs"].contains(&only.as_str()), "PLYFS_CASE_ONLY={only}: wanted buildah or plyfs");
        let env = TestEnv::new();
        let buildah = (only != "plyfs").then(|| Buildah::new(&env));
        let builders = Builders { buildah, env, is_plyfs_on: only != "buildah", has_tools: OnceCell::new() };
        for (name, image) in [("base", base()), ("rich", rich()), ("onbuild", onbuild())] {
            builders.add(name, &image);
        }
        builders
    }

    /// Adds an image to both stores as `localhost/NAME:1`.
    fn add(&self, name: &str, image: &Image) {
        let archive = self.env.path(format!("{name}.tar"));
        image.write_docker_archive(&archive, &[&format!("localhost/{name}:1")]);
        if let Some(buildah) = &self.buildah {
            buildah.load(&archive);
        }
        if self.is_plyfs_on {
            self.env.ok(["load", "-q", "-i", archive.to_str().unwrap()]);
        }
    }

    /// Builds a case with both builders and returns what is wrong, a line each.
    fn compare(&self, case: &Case) -> Vec<String> {
        if case.mentions("localhost/tools:1") {
            self.has_tools.get_or_init(|| self.add("tools", &tools()));
        }
        let files = case.write(&self.env.path(&case.name));
        if let Some(error) = case.error() {
            let fails = |output: &Output| error.check(output).err();
            return if self.is_plyfs_on { fails(&self.run_plyfs(case, &files)).into_iter().collect() } else { vec![] };
        }
        let (peer, own) = std::thread::scope(|scope| {
            let buildah = self.buildah.as_ref().filter(|_| case.is_for_buildah());
            let files = &files;
            let peer =
                scope.spawn(move || buildah.map_or(Outcome::default(), |buildah| by_buildah(buildah, case, files)));
            let own = if self.is_plyfs_on { self.by_plyfs(case, files) } else { Outcome::default() };
            (peer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), own)
        });
        let mut problems = [peer.problems, own.problems].concat();
        if let (Some((config, tree)), Some((own_config, own_tree))) = (&peer.image, &own.image) {
            problems.extend(config_differences(case, config, own_config));
            problems.extend(tree_differences(case, tree, own_tree));
        }
        problems
    }

    fn run_plyfs(&self, case: &Case, files: &CaseFiles) -> Output {
        let mut command = self.env.command(["build", "-q", "-t", &format!("localhost/{}:1", case.name)]);
        run(command.args(case.args(files)).arg(files.dir.join("context")))
    }

    fn by_plyfs(&self, case: &Case, files: &CaseFiles) -> Outcome {
        let start = Instant::now();
        let output = self.run_plyfs(case, files);
        if output.code != 0 {
            return Outcome::failed("plyfs", &output);
        }
        show_time(case, "plyfs", start);
        let name = format!("localhost/{}:1", case.name);
        let document: Value = serde_json::from_str(&self.env.ok(["inspect", "--type", "image", &name])).unwrap();
        let mount = self.env.mount(&name, &[]);
        let built = Built::scan(normalize_config(&document[0]), mount.path());
        let problems = case.failed_facts(&built, |_| false);
        mount.unmount();
        Outcome::of("plyfs", problems, built)
    }
}

fn by_buildah(buildah: &Buildah, case: &Case, files: &CaseFiles) -> Outcome {
    let (name, start) = (format!("localhost/{}:1", case.name), Instant::now());
    let output = buildah.build(&name, &case.args(files), &files.dir.join("context"));
    if output.code != 0 {
        return Outcome::failed("buildah", &output);
    }
    show_time(case, "buildah", start);
    let config = normalize_config(&buildah.config(&name));
    buildah.with_tree(&name, |root| {
        let built = Built::scan(config, root);
        let problems = case.failed_facts(&built, |what| case.is_known(what));
        Outcome::of("buildah", problems, built)
    })
}

impl Outcome {
    fn failed(builder: &str, output: &Output) -> Outcome {
        let text = format!("{}\n{}", output.stdout, output.stderr);
        Outcome { problems: vec![format!("{builder} fails with {}: {}", output.code, text.trim())], image: None }
    }

    fn of(builder: &str, problems: Vec<String>, built: Built) -> Outcome {
        let problems = problems.into_iter().map(|problem| format!("{builder}: {problem}")).collect();
        Outcome { problems, image: Some((built.config, built.tree)) }
    }
}

fn show_time(case: &Case, builder: &str, start: Instant) {
    if std::env::var_os("PLYFS_CASE_TIMES").is_some() {
        println!("{:6} ms {builder} {}", start.elapsed().as_millis(), case.name);
    }
}

fn config_differences(case: &Case, expected: &Value, actual: &Value) -> Vec<String> {
    let fields = expected.as_object().unwrap().iter();
    let differ =
        fields.filter(|(field, value)| **value != actual[*field] && !case.is_known(&format!("config.{field}")));
    differ.map(|(field, value)| format!("config.{field}: buildah has {value}, plyfs {}", actual[field])).collect()
}

fn tree_differences(case: &Case, expected: &Tree, actual: &Tree) -> Vec<String> {
    let is_fault = |found: &Difference| {
        let path = String::from_utf8_lossy(&found.path);
        let is_mountpoint = found.field == "path" && found.actual == "missing" && MOUNTPOINTS.contains(&path.as_ref());
        // buildah's storage gives the root directory of every layer the mode 555.
        let is_root_mode = path == "/" && found.field == "mode";
        // Two builds take place at two times, and link groups are compared by name.
        let is_irrelevant = ["mtime", "nlink"].contains(&found.field.as_str());
        !is_irrelevant && !is_mountpoint && !is_root_mode && !case.is_known(&path)
    };
    diff(expected, actual)
        .iter()
        .filter(|found| is_fault(found))
        .map(|found| format!("buildah and plyfs: {found}"))
        .collect()
}

/// The tree that all base images share: busybox, users, and the files that builders mount their own over.
fn layer() -> Tar {
    let mut tar = Tar::new().add(Entry::dir("./")).dir("run").dir("etc").dir("root").dir("home");
    tar = tar.raw(&small::layer().unfinished());
    for applet in APPLETS.split_whitespace().filter(|name| !small::APPLETS.contains(name)) {
        tar = tar.symlink(format!("bin/{applet}"), "busybox");
    }
    tar.file("etc/hosts", "").file("etc/hostname", "").dir("opt").dir("opt/data").file("opt/data/old", "old\n")
}

fn image(layer: Tar, config: Value) -> Image {
    let image = Image::new().compressed(layer.finish(), Compression::None);
    image.edit_config(move |document| document["config"] = config.clone())
}

/// `localhost/base:1`: programs, and nothing in the configuration but a PATH.
fn base() -> Image {
    image(layer(), json!({ "Env": ["PATH=/bin"] }))
}

/// `localhost/rich:1`: every field of the configuration, symlinked directories, and awkward files.
fn rich() -> Image {
    let tar = layer()
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/libc.so", "library\n")
        .symlink("lib", "usr/lib")
        .symlink("absolute", "/usr/lib")
        .symlink("dangling", "/nowhere")
        .symlink("loop", "loop")
        .symlink("escape", "../../../../usr/lib")
        .symlink("file-link", "opt/data/old")
        .dir("srv")
        .add(Entry::dir("srv/vol").owner(1000, 1001).mode(0o750))
        .add(Entry::file("srv/vol/kept", "kept\n").owner(1000, 1001))
        .add(Entry::file("opt/setuid", "x").mode(0o4755))
        .add(Entry::dir("opt/sticky").mode(0o1777))
        .file("opt/one", "linked\n")
        .hard_link("opt/two", "opt/one");
    let config = json!({
        "Env": ["PATH=/bin", "FROM_BASE=base", "EMPTY=", "SPACED=a b"],
        "Cmd": ["base-cmd", "arg"],
        "Entrypoint": ["/bin/base-entry"],
        "WorkingDir": "/opt/data",
        "Labels": { "base": "yes", "shared": "base" },
        "ExposedPorts": { "80/tcp": {} },
        "Volumes": { "/srv/vol": {} },
        "StopSignal": "SIGQUIT",
    });
    image(tar, config)
}

/// `localhost/onbuild:1`: triggers, a user and a health check.
fn onbuild() -> Image {
    let config = json!({
        "Env": ["PATH=/bin"],
        "User": "ann",
        "WorkingDir": "/work",
        "OnBuild": ["RUN echo triggered by $(id -un) > /work/run", "COPY trigger /work/copied", "ENV TRIGGERED=yes"],
        "Healthcheck": { "Test": ["CMD", "true"], "Interval": 30_000_000_000u64, "Retries": 3 },
    });
    let tar = layer().add(Entry::dir("work").mode(0o1777));
    image(tar, config)
}

/// `localhost/tools:1`: the base with the host's setcap and setfattr.
fn tools() -> Image {
    let mut tar = layer();
    let mut done = BTreeSet::new();
    for program in ["setcap", "setfattr"] {
        let script = "p=$(PATH=$PATH:/usr/sbin:/sbin command -v $0); echo $p; ldd $p | grep -o '/[^ ]*'";
        let output = run(Command::new("sh").args(["-euc", script, program]));
        assert_eq!(output.code, 0, "no {program}: run scripts/setup --test: {output:#?}");
        for (number, file) in output.stdout.lines().enumerate().filter(|(_, file)| done.insert(file.to_string())) {
            let name = if number == 0 { format!("bin/{program}") } else { file[1..].to_owned() };
            tar = tar.add(Entry::file(name, std::fs::read(Path::new(file)).unwrap()).mode(0o755));
        }
    }
    image(tar, json!({ "Env": ["PATH=/bin"] }))
}

/// The cases of one test: every [`SHARES`]th.
fn share(number: usize) -> Vec<Case> {
    all_cases().into_iter().enumerate().filter(|(index, _)| index % SHARES == number).map(|(_, case)| case).collect()
}

#[track_caller]
fn run_share(number: usize) {
    let mut cases = share(number);
    if let Ok(name) = std::env::var("PLYFS_CASE") {
        cases.retain(|case| case.name == name);
    }
    if cases.is_empty() {
        return;
    }
    let builders = Builders::new();
    let failed = cases.iter().map(|case| (&case.name, builders.compare(case))).filter(|(_, found)| !found.is_empty());
    let report: Vec<String> =
        failed.map(|(name, found)| format!("{name}.txt:\n    {}", found.join("\n    "))).collect();
    assert!(report.is_empty(), "{} of {} cases failed:\n{}", report.len(), cases.len(), report.join("\n"));
}

macro_rules! shares {
    ($($name:ident = $number:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            run_share($number);
        })+

        #[test]
        fn every_case_is_run_by_one_test() {
            let numbers = [$($number),+];
            let run: Vec<String> = numbers.into_iter().flat_map(share).map(|case| case.name).collect();
            let all: BTreeSet<String> = all_cases().into_iter().map(|case| case.name).collect();
            assert_eq!(run.iter().cloned().collect::<BTreeSet<_>>(), all);
            assert_eq!(run.len(), all.len());
        }
    };
}

shares! {
    cases_1_of_16_build_as_buildah_and_the_reference_say = 0,
    cases_2_of_16_build_as_buildah_and_the_reference_say = 1,
    cases_3_of_16_build_as_buildah_and_the_reference_say = 2,
    cases_4_of_16_build_as_buildah_and_the_reference_say = 3,
    cases_5_of_16_build_as_buildah_and_the_reference_say = 4,
    cases_6_of_16_build_as_buildah_and_the_reference_say = 5,
    cases_7_of_16_build_as_buildah_and_the_reference_say = 6,
    cases_8_of_16_build_as_buildah_and_the_reference_say = 7,
    cases_9_of_16_build_as_buildah_and_the_reference_say = 8,
    cases_10_of_16_build_as_buildah_and_the_reference_say = 9,
    cases_11_of_16_build_as_buildah_and_the_reference_say = 10,
    cases_12_of_16_build_as_buildah_and_the_reference_say = 11,
    cases_13_of_16_build_as_buildah_and_the_reference_say = 12,
    cases_14_of_16_build_as_buildah_and_the_reference_say = 13,
    cases_15_of_16_build_as_buildah_and_the_reference_say = 14,
    cases_16_of_16_build_as_buildah_and_the_reference_say = 15,
}

#[test]
fn the_corpus_has_all_its_cases_and_their_facts_can_be_parsed() {
    let cases = all_cases();
    let (bad, good): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.error().is_some());
    assert!(good.len() >= 120 && bad.len() >= 25, "{} cases, and {} of bad input", good.len(), bad.len());
    for case in good {
        let known = case.differs();
        let count = case.fact_count();
        assert!(case.is_for_buildah() || count > 0, "{}: neither buildah nor a fact says what is right", case.name);
        // What buildah gets wrong must be stated.
        let fields = known.iter().filter(|(what, _)| what.starts_with("config."));
        for (what, _) in fields {
            assert!(case.has_fact(what), "{}: no `expect:` says what {what} is", case.name);
        }
    }
}
