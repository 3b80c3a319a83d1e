//! Resumed downloads: partial blobs that an interrupted pull leaves, and their use by the next pull.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::support::env::{Output, TestEnv};
use super::support::oci::{Compression, Image};
use super::support::registry::{Content, Reply, Request, Server, command, pull};
use super::support::tar::Tar;

const MIB: usize = 1 << 20;

/// A small layer and one of 4 MiB.
fn image() -> Image {
    let noise: Vec<u8> = (0..4 * MIB as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::new()
        .layer(Tar::new().file("small", "x").finish())
        .compressed(Tar::new().file("noise", noise).finish(), Compression::None)
}

/// A registry that stalls in the big blob after this many bytes; 0 means it does not stall.
struct SlowRegistry {
    server: Server,
    env: TestEnv,
    big: String,
    stall: Arc<AtomicUsize>,
}

impl SlowRegistry {
    fn new() -> Self {
        let (content, _) = Content::of(&image(), "app", "1");
        let (big, _) = content.biggest();
        let stall = Arc::new(AtomicUsize::new(0));
        let (path, at) = (big.clone(), stall.clone());
        let server = Server::start(move |request| match at.load(Ordering::SeqCst) {
            at if at > 0 && request.path == path => content.reply(request).stall(at),
            _ => content.reply(request),
        });
        SlowRegistry { server, env: TestEnv::new(), big, stall }
    }

    fn name(&self) -> String {
        format!("{}/app:1", self.server.host)
    }

    /// The offsets of the requests for the big blob since the last call.
    fn requested_ranges(&self, before: usize) -> Vec<Option<usize>> {
        self.server
            .requests()
            .split_off(before)
            .iter()
            .filter(|s| s.path == self.big)
            .map(Request::range_start)
            .collect()
    }

    /// The non-empty partial downloads: a small layer's is empty, and exists only while it is fetched.
    fn partials(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.env.root().join("tmp/partial"));
        let all = entries.map_or(vec![], |all| all.map(|e| e.unwrap().path()).collect::<Vec<_>>());
        all.into_iter().filter(|path| fs::metadata(path).is_ok_and(|m| m.len() > 0)).collect()
    }

    fn partial_bytes(&self) -> usize {
        self.partials().iter().map(|p| fs::metadata(p).map_or(0, |m| m.len() as usize)).max().unwrap_or(0)
    }

    /// Starts a pull that gets this many more bytes of the big blob, then kills it.
    fn kill_after(&self, more: usize) {
        self.stall.store(more, Ordering::SeqCst);
        let want = self.partial_bytes() + more;
        let mut child = command(&self.env, &["pull", &self.name()]).stdout(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while self.partial_bytes() < want {
            assert!(Instant::now() < until, "only {} of {want} bytes arrived", self.partial_bytes());
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        self.stall.store(0, Ordering::SeqCst);
    }

    #[track_caller]
    fn finish(&self) -> Output {
        let out = pull(&self.env, &self.name(), &[]);
        assert_eq!(out.code, 0, "{out:#?}");
        self.env.ok(["system", "fsck"]);
        assert_eq!(fs::read_dir(self.env.root().join("tmp")).unwrap().count(), 0);
        out
    }
}

#[test]
fn a_killed_pull_resumes_at_its_last_byte() {
    let registry = SlowRegistry::new();
    // Five times in a row, each a bit further, at odd offsets.
    let steps = [300_001, 700_000, 65_537, 1, 999_999];
    let mut at = 0;
    for step in steps {
        let before = registry.server.requests().len();
        registry.kill_after(step);
        assert_eq!(registry.requested_ranges(before), [Some(at).filter(|at| *at > 0)]);
        at += step;
        assert_eq!(registry.partial_bytes(), at, "received bytes were lost");
        assert_eq!(registry.env.ok(["images", "-q"]), "");
    }
    let before = registry.server.requests().len();
    let out = registry.finish();
    assert_eq!(registry.requested_ranges(before), [Some(at)]);
    assert!(out.stdout.contains(": Already exists") || out.stdout.matches("Pull complete").count() == 2, "{out:#?}");
}

#[test]
fn a_failed_pull_keeps_its_partial_downloads() {
    let registry = SlowRegistry::new();
    let (content, _) = Content::of(&image(), "app", "1");
    let path = registry.big.clone();
    let dead = Server::start(move |request| match request.before {
        0 if request.path == path => content.reply(request).cut(2 * MIB),
        _ if request.path == path => Reply::new(503),
        _ => content.reply(request),
    });
    let out = pull(&registry.env, &format!("{}/app:1", dead.host), &[]);
    assert_eq!(out.code, 1, "{out:#?}");
    assert!(out.stderr.contains("layer 2 of 2 (") && out.stderr.contains("503"), "{out:#?}");
    assert_eq!(registry.partial_bytes(), 2 * MIB);
    // The other layer is kept as well, and another registry serves the same blobs.
    let out = registry.finish();
    assert_eq!(registry.requested_ranges(0), [Some(2 * MIB)]);
    assert_eq!(out.stdout.matches(": Already exists").count(), 1, "{out:#?}");
}

#[test]
fn a_useless_partial_is_discarded() {
    let registry = SlowRegistry::new();
    registry.kill_after(2 * MIB);
    let path = registry.partials().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[MIB] ^= 1;
    fs::write(&path, bytes).unwrap();
    let before = registry.server.requests().len();
    registry.finish();
    assert_eq!(registry.requested_ranges(before), [Some(2 * MIB), None], "a wrong beginning is fetched again");
    // Longer than the blob itself.
    registry.env.ok(["rmi", &registry.name()]);
    registry.kill_after(MIB);
    fs::write(registry.partials().remove(0), vec![0; 9 * MIB]).unwrap();
    let before = registry.server.requests().len();
    registry.finish();
    assert_eq!(registry.requested_ranges(before), [None]);
    // A complete one, with nothing left to fetch.
    registry.env.ok(["rmi", &registry.name()]);
    registry.kill_after(3 * MIB);
    let path = registry.partials().remove(0);
    let (content, _) = Content::of(&image(), "app", "1");
    let full_request = Request {
        method: "GET".into(),
        path: registry.big.clone(),
        headers: Default::default(),
        body: String::new(),
        bytes: vec![],
        before: 0,
    };
    fs::write(&path, content.reply(&full_request).into_body()).unwrap();
    let before = registry.server.requests().len();
    registry.finish();
    assert_eq!(registry.requested_ranges(before), []);
}

#[test]
fn a_server_without_range_requests_sends_the_whole_blob() {
    let registry = SlowRegistry::new();
    registry.kill_after(2 * MIB);
    let (content, _) = Content::of(&image(), "app", "1");
    let plain =
        Server::start(move |request| content.reply(&Request { headers: Default::default(), ..request.clone() }));
    let out = pull(&registry.env, &format!("{}/app:1", plain.host), &[]);
    assert_eq!(out.code, 0, "{out:#?}");
    registry.env.ok(["system", "fsck"]);
    assert_eq!(registry.partial_bytes(), 0);
}

#[test]
fn gc_removes_partials_and_spares_those_being_fetched() {
    let registry = SlowRegistry::new();
    registry.kill_after(2 * MIB);
    let found = super::support::env::run(&mut registry.env.command(["system", "fsck", "--repair"]));
    assert!(!found.stdout.contains("tmp/partial"), "{found:#?}");
    assert_eq!(registry.partial_bytes(), 2 * MIB, "fsck --repair removed the partial download");
    let out = registry.env.ok(["system", "gc"]);
    assert!(out.contains("Deleted unfinished download: /") && out.contains("Total reclaimed space: 2."), "{out}");
    assert_eq!(registry.partial_bytes(), 0);
    // A partial that is being fetched is kept.
    registry.stall.store(2 * MIB, Ordering::SeqCst);
    let mut child = command(&registry.env, &["pull", &registry.name()]).stdout(Stdio::null()).spawn().unwrap();
    while registry.partial_bytes() < 2 * MIB {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!registry.env.ok(["system", "gc"]).contains("unfinished download"));
    assert_eq!(registry.partial_bytes(), 2 * MIB);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn image_prune_removes_partials_of_killed_pulls_and_spares_running_ones() {
    let registry = SlowRegistry::new();
    registry.kill_after(2 * MIB);
    registry.env.ok(["system", "gc"]);
    registry.kill_after(2 * MIB);
    // Only the beginning of the blob is left.
    super::support::env::run(&mut registry.env.command(["system", "fsck", "--repair"]));
    let out = registry.env.ok(["image", "prune", "-f"]);
    assert!(out.starts_with("Total reclaimed space: 2.") && out.ends_with("MB\n"), "{out}");
    assert_eq!(registry.partial_bytes(), 0);
    assert_eq!(fs::read_dir(registry.env.root().join("tmp")).unwrap().count(), 0);
    registry.stall.store(2 * MIB, Ordering::SeqCst);
    let mut child = command(&registry.env, &["pull", &registry.name()]).stdout(Stdio::null()).spawn().unwrap();
    while registry.partial_bytes() < 2 * MIB {
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = registry.env.ok(["image", "prune", "-af"]);
    assert_eq!(out, "Total reclaimed space: 0B\n");
    assert_eq!(registry.partial_bytes(), 2 * MIB);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_next_pull_removes_the_partial_of_a_present_layer() {
    let registry = SlowRegistry::new();
    registry.finish();
    // As if the pull had been killed between adding the layer and removing the partial.
    let digest = registry.big.rsplit_once(':').unwrap().1;
    let folder = registry.env.root().join("tmp/partial");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(format!("sha256-{digest}")), "all of it").unwrap();
    let before = registry.server.requests().len();
    registry.finish();
    assert_eq!(registry.requested_ranges(before), []);
}

#[test]
fn concurrent_pulls_fetch_a_blob_once() {
    let registry = SlowRegistry::new();
    let start = |_| command(&registry.env, &["pull", "-q", &registry.name()]).stdout(Stdio::null()).spawn().unwrap();
    let children: Vec<_> = (0..6).map(start).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(registry.requested_ranges(0), [None]);
    // Nor is a blob that is too small to be kept; only the config is fetched by each pull.
    let config = registry.env.ok(["inspect", "-f", "{{.Id}}", &registry.name()]);
    let requests = registry.server.requests();
    let layers = requests.iter().filter(|s| s.path.contains("/blobs/") && !s.path.ends_with(config.trim()));
    let twice: Vec<&str> = layers.filter(|s| s.before > 0).map(|s| s.path.as_str()).collect();
    assert!(twice.is_empty(), "fetched again: {twice:?}");
    registry.finish();
}
