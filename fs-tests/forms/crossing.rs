//! Interoperability of upper directories: one implementation runs a script on a mount, then the others mount its upper
//! directory.

use std::path::Path;

use super::driver::{Driver, Mounted, Space, Stack};
use super::language::{Words, build, differences, expected};
use super::writes::{GAPS, WRITES, Write};
use super::{Faults, look};
use crate::support::env::{TestEnv, run};

/// The place of the upper directory in a reader's mount.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Lower,
    Upper,
}

/// One script, run by one writer and then checked by its readers.
struct Crossing<'a> {
    row: &'a Write,
    writer: Driver,
    space: Space,
    words: Words,
    env: TestEnv,
}

impl Crossing<'_> {
    fn new(row: &Write, writer: Driver, space: Space) -> Crossing<'_> {
        let (words, env) = (space.words("user.containers.override_stat"), TestEnv::new());
        for (number, text) in row.below.iter().enumerate() {
            build(&env.path(number.to_string()), text, words);
        }
        std::fs::create_dir(env.path("upper")).unwrap();
        Crossing { row, writer, space, words, env }
    }

    fn stack(&self, driver: Driver, place: Place) -> Stack {
        let mut lower: Vec<_> = (0..self.row.below.len()).map(|number| self.env.path(number.to_string())).collect();
        let (upper, work) = (self.env.path("upper"), self.env.path(format!("work-{driver:?}")));
        if place == Place::Lower {
            lower.push(upper);
            return Stack { lower, upper: None };
        }
        std::fs::create_dir_all(&work).unwrap();
        Stack { lower, upper: Some((upper, work)) }
    }

    fn write(&self) -> Result<(), String> {
        let mounted = self.writer.mount(self.space, &self.stack(self.writer, Place::Upper), &self.env.path(""))?;
        let script = self.row.script.replace('@', self.words.marks);
        let done = shell(&mounted, &script).and_then(|()| self.compare(&mounted, self.writer));
        mounted.unmount()?;
        done
    }

    fn read(&self, reader: Driver, place: Place) -> Result<(), String> {
        let mounted = reader.mount(self.space, &self.stack(reader, place), &self.env.path(""))?;
        let same = self.compare(&mounted, reader);
        mounted.unmount()?;
        same.map_err(|said| format!("{said}\nthe upper directory:\n{}", listing(&self.env.path("upper"))))
    }

    fn compare(&self, mounted: &Mounted, driver: Driver) -> Result<(), String> {
        let seen = look(mounted, driver == Driver::Plyfs)?;
        let wrong = differences(&expected(self.row.shows, self.words), &seen);
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    fn is_gap(&self, reader: Driver) -> bool {
        GAPS.iter().any(|gap| {
            (gap.writer, gap.reader) == (self.writer, reader)
                && gap.space.is_none_or(|space| space == self.space)
                && (gap.rows.is_empty() || gap.rows.contains(&self.row.name))
        })
    }
}

fn shell(mounted: &Mounted, script: &str) -> Result<(), String> {
    const PRELUDE: &str =
        r#"put() { printf %s "$2" >"$1"; }; long() { printf %255s | tr ' ' "$1"; }; umask 022; cd "$1"; "#;
    let mut command = mounted.program("sh");
    command.args(["-euc", &format!("{PRELUDE}{script}"), "sh"]).arg(mounted.path()).env("LC_ALL", "C");
    let output = run(&mut command);
    if output.code == 0 && output.stderr.is_empty() { Ok(()) } else { Err(format!("{script}: {output:?}")) }
}

/// Lists a directory's contents for a failure message.
fn listing(dir: &Path) -> String {
    let script = "find . -printf '%P %y %m %U:%G %s\\n'; find . -print0 | xargs -0 getfattr -h -d -m -";
    run(std::process::Command::new("sh").args(["-c", script]).current_dir(dir)).stdout
}

/// Runs all scripts with these writers, and checks the results with these readers.
fn cross(writers: &[Driver], readers: &[Driver]) {
    let mut faults = Faults::default();
    for row in WRITES {
        for (writer, space) in row.writers.iter().flat_map(|writer| row.spaces.iter().map(|space| (*writer, *space))) {
            if !writers.contains(&writer) {
                continue;
            }
            let crossing = Crossing::new(row, writer, space);
            let name = format!("{}: written by {writer:?}, {space:?}", row.name);
            let written = crossing.write();
            let failed = written.is_err();
            faults.case(&name, written);
            let able = readers.iter().filter(|reader| row.writers.contains(*reader) && !crossing.is_gap(**reader));
            for reader in able.filter(|_| !failed) {
                for place in [Place::Lower, Place::Upper] {
                    let name = format!("{name}, read by {reader:?} as {place:?}");
                    faults.case(&name, crossing.read(*reader, place));
                }
            }
        }
    }
    faults.none();
}

const PEERS: [Driver; 2] = [Driver::Kernel, Driver::FuseOverlayfs];

#[test]
fn overlayfs_implementations_read_each_others_upper_directories() {
    cross(&PEERS, &PEERS);
}

#[test]
fn plyfs_reads_upper_directories_of_other_overlayfs_implementations() {
    cross(&PEERS, &[Driver::Plyfs]);
}

#[test]
fn plyfs_reads_its_own_upper_directories() {
    cross(&[Driver::Plyfs], &[Driver::Plyfs]);
}

#[test]
fn other_overlayfs_implementations_read_upper_directories_of_plyfs() {
    cross(&[Driver::Plyfs], &PEERS);
}
