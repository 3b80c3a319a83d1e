//! Resource use of pulls: free disk space and memory.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image};
use super::support::registry::{Content, Reply, Server, command};
use super::support::tar::{Tar, noise};

const MIB: usize = 1 << 20;

/// A store on a file system of its own, unmounted on drop.
struct Disk {
    env: TestEnv,
}

impl Disk {
    fn new(mib: usize) -> Self {
        let env = TestEnv::new();
        fs::create_dir(env.root()).unwrap();
        let options = format!("size={mib}m,mode=700");
        let made = run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "plyfs-test"]).arg(env.root()));
        assert_eq!(made.code, 0, "{made:?}");
        Disk { env }
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.env.root()).unwrap();
        stat.f_bfree * stat.f_frsize
    }

    fn partials(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.env.root().join("tmp/partial"));
        entries.map_or(vec![], |all| all.map(|e| e.unwrap().path()).collect())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // No assertion: this may run during a panic.
        run(Command::new("umount").arg("-l").arg(self.env.root()));
    }
}

/// A registry with one image, `app:1`.
fn registry(image: &Image) -> Server {
    let (content, _) = Content::of(image, "app", "1");
    Server::start(move |request| content.reply(request))
}

fn pull(env: &TestEnv, name: &str) -> Output {
    run(&mut command(env, &["pull", name]))
}

#[test]
fn a_pull_that_cannot_fit_is_refused_before_any_layer_is_fetched() {
    let first = noise(1, 5 * MIB);
    let image = Image::new().layer(first.clone()).compressed(noise(2, 4 * MIB), Compression::None);
    let server = registry(&image);
    let name = format!("{}/app:1", server.host);
    let disk = Disk::new(9);
    let out = pull(&disk.env, &name);
    assert_eq!((out.code, out.stdout.as_str()), (1, ""), "{out:#?}");
    // Both tars, less what compression may have added, and the smaller blob, which is kept until its layer is complete.
    let expected = format!(
        "Error: {name}: not enough space: at least 14MB more are needed on the file system of {}, {}MB are free; make room \
         (`plyfs image prune`) or use another store (--root)\n",
        disk.env.root().display(),
        disk.free() / 1_000_000,
    );
    assert_eq!(out.stderr, expected);
    assert_eq!(server.count("/blobs/"), 1, "more than the config was asked for: {:#?}", server.requests());
    assert_eq!(disk.env.ok(["system", "fsck"]), "");
    // Layers in the store need no space again.
    let one = registry(&Image::new().layer(first));
    let disk = Disk::new(15);
    assert_eq!(pull(&disk.env, &format!("{}/app:1", one.host)).code, 0);
    assert!(disk.free() < 10 * MIB as u64 + MIB as u64 / 2, "{}", disk.free());
    let out = pull(&disk.env, &name);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
}

#[test]
fn an_image_that_barely_fits_is_pulled() {
    let server = registry(&Image::new().compressed(noise(3, 4 * MIB), Compression::None));
    let name = format!("{}/app:1", server.host);
    let disk = Disk::new(9);
    let out = pull(&disk.env, &name);
    assert_eq!(out.code, 0, "{out:#?}");
    // The blobs of an OCI layout are not copied beside their tars.
    let disk = Disk::new(5);
    Image::new().compressed(noise(3, 4 * MIB), Compression::None).write_layout(&disk.env.path("app"));
    disk.env.ok(["pull", &format!("oci:{}", disk.env.path("app").display())]);
    let disk = Disk::new(3);
    let out = pull(&disk.env, &name);
    assert!(out.code == 1 && out.stderr.contains("not enough space"), "{out:#?}");
    Image::new().layer(noise(3, 4 * MIB)).write_docker_archive(&disk.env.path("app.tar"), &["app:1"]);
    let error = disk.env.fails(["pull", &format!("docker-archive:{}", disk.env.path("app.tar").display())]);
    assert!(error.contains("not enough space"), "{error}");
}

#[test]
fn partial_downloads_count_as_present() {
    let server = registry(&Image::new().compressed(noise(4, 4 * MIB), Compression::None));
    let name = format!("{}/app:1", server.host);
    let disk = Disk::new(9);
    let (content, _) = Content::of(&Image::new().compressed(noise(4, 4 * MIB), Compression::None), "app", "1");
    let (big, _) = content.biggest();
    let dying = Server::start(move |request| match request.before {
        0 if request.path == big => content.reply(request).cut(3 * MIB),
        _ if request.path == big => Reply::new(404),
        _ => content.reply(request),
    });
    let out = run(&mut command(&disk.env, &["pull", "--retry-pause", "0.02", &format!("{}/app:1", dying.host)]));
    assert_eq!(out.code, 1, "{out:#?}");
    let kept: u64 = disk.partials().iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert_eq!(kept, 3 * MIB as u64);
    // Less space is free than tar and blob need together.
    assert!(disk.free() < 8 * MIB as u64);
    let out = pull(&disk.env, &name);
    assert_eq!((out.code, disk.partials().len()), (0, 0), "{out:#?}");
}

#[test]
fn a_disk_that_fills_up_during_a_pull_is_reported() {
    let small = Tar::new().file("small", "x").finish();
    // Content that compresses well, alone and after content that does not: then the download is kept, and needs space
    // too.
    for (noisy, free_after) in [(0, 7 * MIB), (3 * MIB, 4 * MIB)] {
        let big = Tar::new().file("noise", noise(7, noisy)).file("zeros", vec![0; 20 * MIB]).finish();
        let server = registry(&Image::new().layer(small.clone()).layer(big));
        let name = format!("{}/app:1", server.host);
        let disk = Disk::new(8);
        for _ in 0..2 {
            let out = pull(&disk.env, &name);
            assert_eq!((out.code, out.stderr.lines().count()), (1, 1), "{out:#?}");
            assert!(out.stderr.starts_with(&format!("Error: {name}: layer 2 of 2 (")), "{out:#?}");
            let cause = "/layer.tar: No space left on device\n";
            assert!(out.stderr.contains("): cannot write /") && out.stderr.ends_with(cause), "{out:#?}");
            assert_eq!(disk.env.ok(["system", "fsck"]), "");
            assert_eq!(disk.env.ok(["images", "-q"]), "");
            assert!(disk.free() > free_after as u64, "{} of 8 MiB are free after it", disk.free());
        }
        let server = registry(&Image::new().layer(small.clone()));
        let out = pull(&disk.env, &format!("{}/app:1", server.host));
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
        assert_eq!(disk.env.ok(["system", "fsck"]), "");
        assert!(disk.env.ok(["system", "gc"]).contains("unfinished download") == (noisy > 0));
    }
}

/// The peak resident memory, in kB, of a command that must succeed.
fn peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let status = format!("/proc/{}/status", child.id());
    let ended = loop {
        // The kernel keeps the peak itself; it is lost when the process ends.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = now.unwrap_or(0).max(peak);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    assert!(ended.success() && peak > 0, "{command:?}: {ended}");
    peak
}

#[test]
fn memory_does_not_grow_with_layer_size() {
    let env = TestEnv::new();
    let zeros = || Tar::new().file("zeros", vec![0; 300 * MIB]).finish();
    let image = Image::new().compressed(zeros(), Compression::Zstd).layer(noise(5, 40 * MIB)).layer(noise(6, 40 * MIB));
    image.write_layout(&env.path("app"));
    let peak = peak(&mut env.command(["pull", &format!("oci:{}", env.path("app").display())]));
    assert!(peak < 100_000, "{peak} kB");
}
