//! Concurrency: many threads on one union neither deadlock nor corrupt it, and memory and disk agree afterwards.

use crate::model::random::Random;
use crate::support::bed::{UnionFixture, at, disk, take_snapshot};
use crate::support::tar::Tar;
use plyfs::fs::{Change, Fs, FsError, Ino, New, ROOT, Replace};
use plyfs::meta::Kind;
use std::sync::mpsc;
use std::sync::{Arc, RwLock};
use std::time::Duration;

const THREADS: u64 = 6;
const STEPS: usize = 20_000;
/// Timeout: a run that takes longer has deadlocked.
const TIMEOUT: Duration = Duration::from_secs(120);

fn image() -> UnionFixture {
    let content = vec![b'x'; 200_000];
    let layer = Tar::new()
        .dir("a")
        .file("a/a", &content)
        .file("a/b", "small")
        .dir("a/c")
        .file("a/c/a", "deep")
        .hard_link("b", "a/a")
        .hard_link("a/c/b", "a/a")
        .dir("c")
        .file("c/a", "1")
        .file("c/b", "2")
        .finish();
    UnionFixture::new(vec![layer])
}

const DIRS: &[&str] = &["", "a", "c", "a/c", "c/c", "a/a", "d"];
const NAMES: &[&[u8]] = &[b"a", b"b", b"c", b"d"];

/// A random directory, or the root if none has the chosen name.
fn dir(fs: &Fs, random: &mut Random) -> Ino {
    let found = at(fs, random.pick(DIRS)).ok().filter(|attr| attr.kind == Kind::Dir);
    found.map_or(ROOT, |attr| attr.ino)
}

fn step(fs: &Fs, random: &mut Random) -> Result<(), FsError> {
    let dir = dir(fs, random);
    let (name, other): (&[u8], &[u8]) = (random.pick(NAMES), random.pick(NAMES));
    let found = |name: &[u8]| -> Result<Ino, FsError> { Ok(fs.lookup(dir, name)?.ino) };
    let new = |kind| New { kind, mode: 0o755, umask: 0, rdev: 0, uid: 0, gid: 0, target: b"t" };
    match random.below(14) {
        0 => fs.make(dir, name, &new(Kind::File)).map(drop),
        1 => fs.make(dir, name, &new(Kind::Dir)).map(drop),
        2 => fs.make(dir, name, &new(Kind::Symlink)).map(drop),
        3 => fs.unlink(dir, name),
        4 => fs.rmdir(dir, name),
        5 | 6 => {
            let to = self::dir(fs, random);
            let how = random.pick(&[Replace::Allow, Replace::Allow, Replace::Forbid, Replace::Exchange]);
            fs.rename(dir, name, to, other, how).map(drop)
        }
        7 => fs.link(found(name)?, dir, other).map(drop),
        8 => fs.write(found(name)?, random.below(300_000), &[7; 100]),
        9 => fs.setattr(found(name)?, &Change { mode: Some(0o600), ..Change::default() }).map(drop),
        10 => fs.setattr(found(name)?, &Change { size: Some(random.below(1000)), ..Change::default() }).map(drop),
        11 => fs.readdirplus(dir, 0, |_, _| false),
        12 => fs.read(found(name)?, 0, 4096).map(drop),
        _ => fs.setxattr(found(name)?, b"user.a", b"1", 0),
    }
}

/// Whether an error is one that a lost race with another thread explains.
fn is_tolerable(error: &FsError) -> bool {
    !error.is_damage()
}

/// Looks an inode up, and keeps a reference to it for a while, as the kernel does: it must answer, with a name or not.
fn hold(fs: &Fs, names: &RwLock<()>, random: &mut Random, held: &mut Vec<Ino>) -> Result<(), FsError> {
    let running = fs.begin();
    // The kernel removes no name that is being looked up.
    let alone = names.write().unwrap();
    if let Ok(attr) = fs.lookup(dir(fs, random), random.pick(NAMES)) {
        fs.remember(attr.ino);
        held.push(attr.ino);
    }
    drop((alone, running));
    if held.len() > 3 {
        let ino = held.remove(random.below(3) as usize);
        let _running = fs.begin();
        let answer = fs.getattr(ino);
        fs.forget(ino, 1);
        answer?;
    }
    Ok(())
}

#[test]
fn concurrent_threads_neither_deadlock_nor_corrupt_a_union() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let fixture = image();
    let fs = Arc::new(fixture.open(disk));
    let (names, (done, all)) = (Arc::new(RwLock::new(())), mpsc::channel());
    let start = |thread| {
        let (fs, names, done) = (fs.clone(), names.clone(), done.clone());
        std::thread::spawn(move || {
            let mut random = Random::new(seed + thread);
            let mut held = Vec::new();
            let wrong = (0..STEPS).find_map(|_| {
                let (running, changing) = (fs.begin(), names.read().unwrap());
                let done = step(&fs, &mut random);
                drop((changing, running));
                done.err().filter(|e| !is_tolerable(e)).or(hold(&fs, &names, &mut random, &mut held).err())
            });
            done.send(wrong.map(|e| e.to_string())).unwrap();
        })
    };
    let threads: Vec<_> = (0..THREADS).map(start).collect();
    for _ in 0..THREADS {
        assert_eq!(all.recv_timeout(TIMEOUT).expect("a thread hangs or has panicked"), None);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let live = take_snapshot(&fs);
    assert!(live.len() > 1 && fs.getattr(ROOT).is_ok());
    drop(fs);
    assert_eq!(take_snapshot(&fixture.open(disk)), live);
}
