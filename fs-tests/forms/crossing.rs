//! Interoperability of upper directories: one implementation runs a script on a mount, then the others mount its upper
//! directory.

use std::path::Path;

use super::driver::{Driver, MountUser, Mounted, Stack};
use super::language::{Placeholders, build, differences, expected};
use super::writes::{GAPS, WRITES, WriteCase};
use super::{Failures, list_mounted_tree};
use crate::support::env::{TestEnv, run};

/// The place of the upper directory in a reader's mount.
#[derive(Debug, Clone, Copy, PartialEq)]
enum UpperRole {
    Lower,
    Upper,
}

/// One script, run by one writer and then checked by its readers.
struct WriteTest<'a> {
    row: &'a WriteCase,
    writer: Driver,
    user: MountUser,
    placeholders: Placeholders,
    env: TestEnv,
}

impl WriteTest<'_> {
    fn new(row: &WriteCase, writer: Driver, user: MountUser) -> WriteTest<'_> {
        let (placeholders, env) = (user.placeholders("user.containers.override_stat"), TestEnv::new());
        for (number, text) in row.lower.iter().enumerate() {
            build(&env.path(number.to_string()), text, placeholders);
        }
        std::fs::create_dir(env.path("upper")).unwrap();
        WriteTest { row, writer, user, placeholders, env }
    }

    fn stack(&self, driver: Driver, role: UpperRole) -> Stack {
        let mut lower: Vec<_> = (0..self.row.lower.len()).map(|number| self.env.path(number.to_string())).collect();
        let (upper, work) = (self.env.path("upper"), self.env.path(format!("work-{driver:?}")));
        if role == UpperRole::Lower {
            lower.push(upper);
            return Stack { lower, upper: None };
        }
        std::fs::create_dir_all(&work).unwrap();
        Stack { lower, upper: Some((upper, work)) }
    }

    fn write(&self) -> Result<(), String> {
        let mounted = self.writer.mount(self.user, &self.stack(self.writer, UpperRole::Upper), &self.env.path(""))?;
        let script = self.row.script.replace('@', self.placeholders.marks);
        let done = shell(&mounted, &script).and_then(|()| self.compare(&mounted, self.writer));
        mounted.unmount()?;
        done
    }

    fn read(&self, reader: Driver, role: UpperRole) -> Result<(), String> {
        let mounted = reader.mount(self.user, &self.stack(reader, role), &self.env.path(""))?;
        let same = self.compare(&mounted, reader);
        mounted.unmount()?;
        same.map_err(|output| format!("{output}\nthe upper directory:\n{}", listing(&self.env.path("upper"))))
    }

    fn compare(&self, mounted: &Mounted, driver: Driver) -> Result<(), String> {
        let seen = list_mounted_tree(mounted, driver == Driver::Plyfs)?;
        let wrong = differences(&expected(self.row.shows, self.placeholders), &seen);
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    fn is_gap(&self, reader: Driver) -> bool {
        GAPS.iter().any(|gap| {
            (gap.writer, gap.reader) == (self.writer, reader)
                && gap.user.is_none_or(|user| user == self.user)
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
fn check_interop(writers: &[Driver], readers: &[Driver]) {
    let mut failures = Failures::default();
    for row in WRITES {
        for (writer, user) in row.writers.iter().flat_map(|writer| row.users.iter().map(|user| (*writer, *user))) {
            if !writers.contains(&writer) {
                continue;
            }
            let test = WriteTest::new(row, writer, user);
            let name = format!("{}: written by {writer:?}, {user:?}", row.name);
            let written = test.write();
            let failed = written.is_err();
            failures.add(&name, written);
            let able = readers.iter().filter(|reader| row.writers.contains(*reader) && !test.is_gap(**reader));
            for reader in able.filter(|_| !failed) {
                for role in [UpperRole::Lower, UpperRole::Upper] {
                    let name = format!("{name}, read by {reader:?} as {role:?}");
                    failures.add(&name, test.read(*reader, role));
                }
            }
        }
    }
    failures.assert_none();
}

const PEERS: [Driver; 2] = [Driver::Kernel, Driver::FuseOverlayfs];

#[test]
fn overlayfs_implementations_read_each_others_upper_directories() {
    check_interop(&PEERS, &PEERS);
}

#[test]
fn plyfs_reads_upper_directories_of_other_overlayfs_implementations() {
    check_interop(&PEERS, &[Driver::Plyfs]);
}

#[test]
fn plyfs_reads_its_own_upper_directories() {
    check_interop(&[Driver::Plyfs], &[Driver::Plyfs]);
}

#[test]
fn other_overlayfs_implementations_read_upper_directories_of_plyfs() {
    check_interop(&[Driver::Plyfs], &PEERS);
}
