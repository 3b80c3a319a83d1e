//! On-disk forms of overlay directories: whiteouts, opaque directories, redirects, metacopy and overrides. plyfs reads
//! every form, whichever program wrote it, and other programs read what plyfs writes in the forms they know.
//!
//! Kernel overlayfs and fuse-overlayfs check the expectations first, for the forms they know.

mod crossing;
mod driver;
mod hostile;
mod language;
mod random;
mod rows;
mod writes;

use crate::support::env::{TestEnv, run};
use crate::support::nest::{NestedFs, UpperFs};
use driver::{Driver, MountUser, Mounted, Stack};
use language::{Listing, Placeholders, build, differences, expected, list_tree};
use rows::{LIMITS, OVERRIDE_NAMES, Row, TABLES};

/// How a row's directories are mounted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MountKind {
    /// All of them as lower directories, read-only.
    Lower,
    /// All of them as lower directories, below an empty upper directory.
    Below,
    /// The topmost one as the upper directory.
    Upper,
}

/// The failures, a paragraph for each case, reported all at once.
#[derive(Default)]
struct Failures {
    cases: usize,
    found: Vec<String>,
}

impl Failures {
    fn add(&mut self, name: &str, result: Result<(), String>) {
        self.cases += 1;
        if let Err(output) = result {
            self.found.push(format!("{name}:\n{output}"));
        }
    }

    #[track_caller]
    fn assert_none(self) {
        for output in &self.found {
            println!("{output}\n");
        }
        assert!(self.found.is_empty(), "{} of {} cases failed; see above", self.found.len(), self.cases);
        assert!(self.cases > 0, "no case ran");
    }
}

/// The users that can read a row, with the names for `%`. Attributes of `trusted.` need root.
fn variants(row: &Row) -> Vec<(MountUser, Placeholders)> {
    let has = |what: &str| row.layers.iter().any(|layer| layer.contains(what));
    let stats = if has(",%=") { &OVERRIDE_NAMES[..] } else { &OVERRIDE_NAMES[..1] };
    let users = if has(",trusted.") { &[MountUser::Root][..] } else { &MountUser::ALL[..] };
    let all = users.iter().copied().flat_map(|user| stats.iter().map(move |stat| (user, user.placeholders(stat))));
    all.collect()
}

/// Lists the tree as the mounting user sees it: in a user namespace, a separate process must do it.
fn list_mounted_tree(mounted: &Mounted, inodes: bool) -> Result<Listing, String> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut command = mounted.program(std::env::current_exe().unwrap());
    command.args(["--exact", "forms::a_tree_is_looked_at_from_inside", "--quiet"]);
    let inodes = if inodes { "1" } else { "" };
    command
        .env("PLYFS_FORMS_LOOK", mounted.path())
        .env("PLYFS_FORMS_INODES", inodes)
        .env("PLYFS_FORMS_OUT", out.path());
    let output = run(&mut command);
    match output.code {
        0 => Ok(serde_json::from_slice(&std::fs::read(out.path()).unwrap()).unwrap()),
        _ => Err(output.stdout.lines().filter(|line| line.starts_with('/')).collect::<Vec<_>>().join("; ")),
    }
}

/// Not a test itself: the process that [`list_mounted_tree`] starts.
#[test]
fn a_tree_is_looked_at_from_inside() {
    let Some(at) = std::env::var_os("PLYFS_FORMS_LOOK") else { return };
    let inodes = std::env::var_os("PLYFS_FORMS_INODES").is_some_and(|value| !value.is_empty());
    let seen = list_tree(at.as_ref(), inodes);
    std::fs::write(std::env::var_os("PLYFS_FORMS_OUT").unwrap(), serde_json::to_vec(&seen).unwrap()).unwrap();
}

/// Creates directories, mounts them, and compares the tree with the expected one.
fn check<T: AsRef<str>>(
    upper_fs: UpperFs,
    driver: Driver,
    user: MountUser,
    kind: MountKind,
    layers: &[T],
    mut wanted: Listing,
    placeholders: Placeholders,
) -> Result<(), String> {
    let env = TestEnv::new();
    let nest = NestedFs::new(&env, upper_fs);
    let mut dirs: Vec<_> = (0..layers.len()).map(|number| nest.path(&number.to_string())).collect();
    layers.iter().zip(&dirs).for_each(|(text, dir)| build(dir, text.as_ref(), placeholders));
    let upper = match kind {
        MountKind::Lower => None,
        MountKind::Below => Some(nest.path("upper")),
        MountKind::Upper => dirs.pop(),
    };
    if dirs.is_empty() {
        dirs.push(nest.path("bottom"));
    }
    let made = upper.iter().chain(&dirs).chain([&nest.path("work")]).try_for_each(std::fs::create_dir_all);
    made.map_err(|e| e.to_string())?;
    let lower_before: Vec<Listing> = dirs.iter().map(|dir| list_tree(dir, true)).collect();
    let stack = Stack { lower: dirs, upper: upper.map(|upper| (upper, nest.path("work"))) };
    let mounted = driver.mount(user, &stack, &env.path(""))?;
    let mut seen = list_mounted_tree(&mounted, driver == Driver::Plyfs)?;
    if kind == MountKind::Below {
        // The root's attributes are those of the new upper directory.
        seen.remove("");
        wanted.remove("");
    }
    mounted.unmount()?;
    if driver != Driver::Plyfs {
        seen.values_mut().for_each(|line| *line = without_overrides(line));
    }
    let mut wrong = differences(&wanted, &seen);
    for (before, dir) in lower_before.iter().zip(&stack.lower) {
        wrong.extend(
            differences(before, &list_tree(dir, true)).into_iter().map(|line| format!("{}: {line}", dir.display())),
        );
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Removes override attributes from a line, since fuse-overlayfs lists those that it obeys.
fn without_overrides(line: &str) -> String {
    line.split(' ').filter(|word| !word.contains("override_stat=")).collect::<Vec<_>>().join(" ")
}

/// Checks every row that the driver supports, mounted in every way.
fn read_all(upper_fs: UpperFs, driver: Driver, is_supported: impl Fn(&Row, MountUser) -> bool) {
    let mut failures = Failures::default();
    for (table, rows) in TABLES {
        for row in *rows {
            for (user, placeholders) in variants(row).into_iter().filter(|(user, _)| is_supported(row, *user)) {
                let kinds = if upper_fs == UpperFs::Disk {
                    &[MountKind::Lower, MountKind::Below, MountKind::Upper][..]
                } else {
                    &[MountKind::Upper]
                };
                for kind in kinds.iter().copied() {
                    if LIMITS.iter().any(|l| (l.row, l.driver, l.kind) == (row.name, driver, kind)) {
                        continue;
                    }
                    let name = format!("{table}: {}: {driver:?} {user:?} {kind:?} {}", row.name, placeholders.stat);
                    let wanted = expected(row.shows, placeholders);
                    failures.add(&name, check(upper_fs, driver, user, kind, row.layers, wanted, placeholders));
                }
            }
        }
    }
    failures.assert_none();
}

#[test]
fn kernel_overlayfs_reads_the_forms_that_it_knows() {
    read_all(UpperFs::Disk, Driver::Kernel, |row, user| row.peers.contains(&(Driver::Kernel, user)));
}

#[test]
fn fuse_overlayfs_reads_the_forms_that_it_knows() {
    read_all(UpperFs::Disk, Driver::FuseOverlayfs, |row, user| row.peers.contains(&(Driver::FuseOverlayfs, user)));
}

#[test]
fn plyfs_reads_every_form() {
    read_all(UpperFs::Disk, Driver::Plyfs, |_, _| true);
}

/// Every form that kernel overlayfs can store: it cannot hold whiteout devices.
#[test]
fn plyfs_reads_every_form_on_kernel_overlayfs() {
    read_all(UpperFs::Overlayfs, Driver::Plyfs, |row, _| !row.layers.iter().any(|layer| layer.contains(",wh")));
}

/// Kernel overlayfs takes about forty layers in one call of mount(2), and few images have more; the others take
/// hundreds.
fn read_many(driver: Driver, count: usize) {
    let layer = |number: usize| match number {
        n if n % 50 == 29 => format!("d/,@.opaque=y d/f{n}={n} e/f{n}={n}"),
        n if n % 3 == 2 => format!("d/f{},wh e/f{n}={n}", n - 1),
        n => format!("d/f{n}={n} e/f{n}={n}"),
    };
    let layers: Vec<String> = (0..count).map(layer).collect();
    let last_opaque = (0..count).rev().find(|n| n % 50 == 29).unwrap();
    let kept = |n: &usize| {
        *n >= last_opaque && (n % 50 == 29 || n % 3 != 2) && (n % 3 != 1 || n + 1 == count || (n + 1) % 50 == 29)
    };
    let mut shows: String = (0..count).map(|n| format!("e/f{n}={n} ")).collect();
    (0..count).filter(kept).for_each(|n| shows += &format!("d/f{n}={n} "));
    let mut failures = Failures::default();
    for (user, kind) in
        [(MountUser::Root, MountKind::Lower), (MountUser::Root, MountKind::Below), (MountUser::User, MountKind::Upper)]
    {
        let placeholders = user.placeholders(OVERRIDE_NAMES[0]);
        let result = check(UpperFs::Disk, driver, user, kind, &layers, expected(&shows, placeholders), placeholders);
        failures.add(&format!("{count} layers, {driver:?} {user:?} {kind:?}"), result);
    }
    failures.assert_none();
}

#[test]
fn kernel_overlayfs_and_fuse_overlayfs_read_many_layers() {
    read_many(Driver::Kernel, 40);
    read_many(Driver::FuseOverlayfs, 200);
}

#[test]
fn plyfs_reads_many_layers() {
    read_many(Driver::Plyfs, 200);
}
