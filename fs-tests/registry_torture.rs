//! Stress tests of pulls from Debian's `docker-registry`: pulls killed at random points, and many processes that pull,
//! tag, remove and prune the same images. A proxy in between counts the bytes fetched.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::model::random::Random;
use super::support::big_image;
use super::support::env::{TestEnv, run};
use super::support::oci::{Compression, Image};
use super::support::proxy::Proxy;
use super::support::registry::{DockerRegistry, command, pull};
use super::support::tar::{Tar, noise};

const MIB: usize = 1 << 20;
/// The proxy's pause after each piece: slow enough that a kill can hit any point of a pull.
const CHUNK_PAUSE: Duration = Duration::from_millis(1);

/// Reads a number from the environment.
fn env_number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

fn fill(env: &TestEnv, registry: &DockerRegistry, name: &str, image: &Image) {
    let dir = env.path(name.replace(':', "-"));
    image.write_layout(&dir);
    registry.fill(&format!("oci:{}:latest", dir.display()), name, &["--preserve-digests"]);
}

/// The most bytes that the proxy has sent and a process that got no processor has not read before it was killed: the
/// receive buffer of its socket (the last number of net.ipv4.tcp_rmem).
const RECEIVE_BUFFER: usize = 6 << 20;

/// An image that is pulled through a proxy by processes that are killed.
struct KilledPull {
    env: TestEnv,
    proxy: Proxy,
    /// The image's name, as given to plyfs.
    name: String,
    /// The digest that its name resolves to.
    digest: String,
    /// How much of each blob has been fetched since the store was empty.
    received: BTreeMap<String, usize>,
    /// How many fetches repeated more than [`MIB`], but no more than a socket holds.
    unread: u64,
    registry: DockerRegistry,
}

impl KilledPull {
    fn new(big: bool) -> Self {
        let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
        if big {
            let source = format!("oci:{}", big_image().join("oci").display());
            registry.fill(&source, "app:1", &["--preserve-digests"]);
        } else {
            let image = Image::new()
                .layer(noise(1, 3 * MIB))
                .layer(noise(2, MIB / 2))
                .compressed(noise(3, 2 * MIB), Compression::Zstd)
                .compressed(noise(4, 5 * MIB / 2), Compression::None)
                .layer(Tar::new().file("small", "x").finish());
            fill(&env, &registry, "app:1", &image);
        }
        let proxy = Proxy::start(&registry.host, if big { Duration::ZERO } else { CHUNK_PAUSE });
        let (name, digest) = (format!("{}/app:1", proxy.host), registry.digest("app:1", &[]));
        KilledPull { env, proxy, name, digest, received: BTreeMap::new(), unread: 0, registry }
    }

    /// Compares the fetches since the first `before` with the bytes received until then.
    #[track_caller]
    fn check_fetches(&mut self, before: usize) {
        for fetch in self.proxy.wait_for_fetches(before) {
            assert!(!fetch.overlaps, "fetched twice at once: {fetch:?}");
            let received = self.received.entry(fetch.blob.clone()).or_default();
            let again = received.saturating_sub(fetch.from);
            assert!(
                again <= MIB + RECEIVE_BUFFER,
                "{again} bytes fetched again, {received} already received: {fetch:?}"
            );
            self.unread += u64::from(again > MIB);
            *received = (fetch.from + fetch.sent).max(*received);
        }
    }

    /// Starts a pull and kills it after a time. Returns whether it was still running.
    fn kill_after(&mut self, time: Duration) -> bool {
        let before = self.proxy.count();
        let mut child = command(&self.env, &["pull", "-q", &self.name]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time);
        // The pull may have ended by itself.
        let _gone = kill_process(Pid::from_child(&child), Signal::KILL);
        let status = child.wait().unwrap();
        self.check_fetches(before);
        !status.success()
    }

    /// Pulls the rest, and compares the store with the registry. Empties the store afterwards.
    fn finish(&mut self) -> Duration {
        let (before, begun) = (self.proxy.count(), Instant::now());
        let out = pull(&self.env, &self.name, &[]);
        let taken = begun.elapsed();
        assert_eq!(out.code, 0, "{out:#?}");
        assert!(out.stdout.contains(&format!("Digest: {}\n", self.digest)), "{} is not in {out:#?}", self.digest);
        self.check_fetches(before);
        assert_eq!(self.env.ok(["system", "fsck"]), "");
        assert_eq!(fs::read_dir(self.env.root().join("tmp")).unwrap().count(), 0);
        self.env.ok(["rmi", "-f", &self.name]);
        self.received.clear();
        taken
    }
}

/// `PLYFS_KILL_SEED` and `PLYFS_KILL_POINTS` set which random points and how many; `PLYFS_KILL_BIG=1` uses the big
/// image.
#[test]
fn a_pull_killed_at_any_point_refetches_little() {
    let seed = env_number("PLYFS_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let points = env_number("PLYFS_KILL_POINTS").unwrap_or(100);
    println!("PLYFS_KILL_SEED={seed} PLYFS_KILL_POINTS={points}");
    let mut random = Random::new(seed);
    let mut pull_test = KilledPull::new(env_number("PLYFS_KILL_BIG").is_some_and(|n| n > 0));
    let pull_time = pull_test.finish();
    let mut met = 0;
    for _ in 0..points {
        let killed = pull_test.kill_after(pull_time.mul_f64(random.below(1000) as f64 / 1000.0));
        met += u64::from(killed);
        // The next pull continues from there, and may be killed again.
        if !killed || random.percent(50) {
            pull_test.finish();
        }
    }
    pull_test.finish();
    assert!(pull_test.unread <= points / 20, "{} of {points} pulls fetched too much again", pull_test.unread);
    assert!(met >= points / 2, "only {met} of {points} pulls were killed while they ran");
    assert_eq!(pull_test.registry.digest("app:1", &[]), pull_test.digest);
}

/// Runs one random command of those that run concurrently.
fn run_random_pull(env: &TestEnv, host: &str, random: &mut Random) {
    let image = format!("{host}/{}:1", random.pick(&["a", "b", "c", "d"]));
    let new = format!("tag-{}", random.below(3));
    let absent = "No such image";
    let (args, excuse): (Vec<&str>, _) = match random.below(16) {
        0..=6 => (vec!["pull", "-q", &image], None),
        7 => (vec!["tag", &image, &new], Some(absent)),
        8 => (vec!["rmi", &new], Some(absent)),
        9 | 10 => (vec!["rmi", "-f", &image], Some(absent)),
        11 => (vec!["image", "prune", "-f"], None),
        12 => (vec!["image", "prune", "-af"], None),
        13 => (vec!["system", "gc"], None),
        14 => (vec!["image", "ls", "--digests"], None),
        _ => (vec!["system", "fsck"], None),
    };
    let output = run(&mut command(env, &args));
    let excused = excuse.is_some_and(|words| output.stderr.contains(words));
    assert!(output.code == 0 || excused, "{args:?}: {output:#?}");
    if args[1] == "fsck" {
        assert_eq!(output.stdout, "", "fsck reported a problem in a consistent store");
    }
}

/// `PLYFS_SOAK_SECONDS` sets the duration, `PLYFS_SOAK_SEED` the commands.
#[test]
fn many_processes_pull_tag_remove_and_prune_the_same_images() {
    const PROCESSES: u64 = 16;
    let time = Duration::from_secs(env_number("PLYFS_SOAK_SECONDS").unwrap_or(20));
    let seed = env_number("PLYFS_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("PLYFS_SOAK_SEED={seed}");
    let (env, registry) = (TestEnv::new(), DockerRegistry::start(None, None));
    // Some layers are kept while they are fetched, some are too small for that.
    let layer = |n: u32| noise(n, [MIB / 2, 3 * MIB / 2, 20_000][n as usize % 3]);
    for (name, layers) in [("a:1", &[1, 2][..]), ("b:1", &[1, 3]), ("c:1", &[1, 2, 3, 4]), ("d:1", &[5])] {
        fill(&env, &registry, name, &layers.iter().fold(Image::new(), |image, n| image.layer(layer(*n))));
    }
    let proxy = Proxy::start(&registry.host, CHUNK_PAUSE);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for process in 0..PROCESSES {
            let (env, host) = (&env, proxy.host.as_str());
            scope.spawn(move || {
                let mut random = Random::new(seed * PROCESSES + process);
                while begun.elapsed() < time {
                    run_random_pull(env, host, &mut random);
                }
            });
        }
    });
    let fetched = proxy.wait_for_fetches(0);
    println!("{} fetches of blobs", fetched.len());
    assert_eq!(env.ok(["system", "fsck"]), "");
    // Configs are not shared: each pull fetches them itself.
    let configs: Vec<String> = ["a", "b", "c", "d"].map(|name| config(&env, &registry, name)).into();
    let mut overlaps = proxy.overlaps();
    overlaps.retain(|blob| !configs.contains(blob));
    assert!(overlaps.is_empty(), "fetched twice at once: {overlaps:?}");
    for id in env.ok(["image", "ls", "-q", "--no-trunc"]).lines() {
        run(&mut env.command(["image", "rm", "-f", id]));
    }
    env.ok(["image", "prune", "-af"]);
    for folder in ["blobs/sha256", "layers/sha256", "trees", "tmp", "mounts", "uppers", "containers"] {
        assert_eq!(fs::read_dir(env.root().join(folder)).unwrap().count(), 0, "{folder}");
    }
    let mut names: Vec<_> = fs::read_dir(env.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "blobs",
            "builds",
            "catalog.backup.json",
            "catalog.json",
            "containers",
            "layers",
            "lists",
            "lock",
            "mounts",
            "tmp",
            "trees",
            "uppers"
        ]
    );
}

/// The digest of the config of `NAME:1`.
fn config(env: &TestEnv, registry: &DockerRegistry, name: &str) -> String {
    let image = format!("{}/{name}:1", registry.host);
    assert_eq!(pull(env, &image, &["-q"]).code, 0);
    let id = env.ok(["inspect", "-f", "{{.Id}}", &image]);
    env.ok(["rmi", "-f", &image]);
    id.trim().to_owned()
}
