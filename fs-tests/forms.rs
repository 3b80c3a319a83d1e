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
use crate::support::nest::{Nest, On};
use driver::{Driver, Mounted, Space, Stack};
use language::{Shown, Words, build, differences, expected, shown};
use rows::{LIMITS, OVERRIDE_NAMES, Row, TABLES};

/// How a row's directories are mounted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// All of them as lower directories, read-only.
    Lower,
    /// All of them as lower directories, below an empty upper directory.
    Below,
    /// The topmost one as the upper directory.
    Upper,
}

/// The failures, a paragraph for each case, reported all at once.
#[derive(Default)]
struct Faults {
    cases: usize,
    found: Vec<String>,
}

impl Faults {
    fn case(&mut self, name: &str, result: Result<(), String>) {
        self.cases += 1;
        if let Err(said) = result {
            self.found.push(format!("{name}:\n{said}"));
        }
    }

    #[track_caller]
    fn none(self) {
        for said in &self.found {
            println!("{said}\n");
        }
        assert!(self.found.is_empty(), "{} of {} cases are wrong; they are above", self.found.len(), self.cases);
        assert!(self.cases > 0, "nothing was tried");
    }
}

/// The spaces in which a row can be read, with the names for `%`. Attributes of `trusted.` need root.
fn variants(row: &Row) -> Vec<(Space, Words)> {
    let has = |what: &str| row.layers.iter().any(|layer| layer.contains(what));
    let stats = if has(",%=") { &OVERRIDE_NAMES[..] } else { &OVERRIDE_NAMES[..1] };
    let spaces = if has(",trusted.") { &[Space::Root][..] } else { &Space::ALL[..] };
    let all = spaces.iter().copied().flat_map(|space| stats.iter().map(move |stat| (space, space.words(stat))));
    all.collect()
}

/// Lists the tree as the mounting user sees it: in a user namespace, a separate process must do it.
fn look(mounted: &Mounted, inodes: bool) -> Result<Shown, String> {
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

/// Not a test itself: the process that [`look`] starts.
#[test]
fn a_tree_is_looked_at_from_inside() {
    let Some(at) = std::env::var_os("PLYFS_FORMS_LOOK") else { return };
    let inodes = std::env::var_os("PLYFS_FORMS_INODES").is_some_and(|value| !value.is_empty());
    let seen = shown(at.as_ref(), inodes);
    std::fs::write(std::env::var_os("PLYFS_FORMS_OUT").unwrap(), serde_json::to_vec(&seen).unwrap()).unwrap();
}

/// Creates directories, mounts them, and compares the tree with the expected one.
fn check<T: AsRef<str>>(
    on: On,
    driver: Driver,
    space: Space,
    way: Way,
    layers: &[T],
    mut wanted: Shown,
    words: Words,
) -> Result<(), String> {
    let env = TestEnv::new();
    let nest = Nest::new(&env, on);
    let mut dirs: Vec<_> = (0..layers.len()).map(|number| nest.path(&number.to_string())).collect();
    layers.iter().zip(&dirs).for_each(|(text, dir)| build(dir, text.as_ref(), words));
    let upper = match way {
        Way::Lower => None,
        Way::Below => Some(nest.path("upper")),
        Way::Upper => dirs.pop(),
    };
    if dirs.is_empty() {
        dirs.push(nest.path("bottom"));
    }
    let made = upper.iter().chain(&dirs).chain([&nest.path("work")]).try_for_each(std::fs::create_dir_all);
    made.map_err(|e| e.to_string())?;
    let lower_before: Vec<Shown> = dirs.iter().map(|dir| shown(dir, true)).collect();
    let stack = Stack { lower: dirs, upper: upper.map(|upper| (upper, nest.path("work"))) };
    let mounted = driver.mount(space, &stack, &env.path(""))?;
    let mut seen = look(&mounted, driver == Driver::Plyfs)?;
    if way == Way::Below {
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
            differences(before, &shown(dir, true)).into_iter().map(|line| format!("{}: {line}", dir.display())),
        );
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Removes override attributes from a line, since fuse-overlayfs lists those that it obeys.
fn without_overrides(line: &str) -> String {
    line.split(' ').filter(|word| !word.contains("override_stat=")).collect::<Vec<_>>().join(" ")
}

/// Checks every row that the driver supports, mounted in every way.
fn read_all(on: On, driver: Driver, knows: impl Fn(&Row, Space) -> bool) {
    let mut faults = Faults::default();
    for (table, rows) in TABLES {
        for row in *rows {
            for (space, words) in variants(row).into_iter().filter(|(space, _)| knows(row, *space)) {
                let ways = if on == On::Disk { &[Way::Lower, Way::Below, Way::Upper][..] } else { &[Way::Upper] };
                for way in ways.iter().copied() {
                    if LIMITS.iter().any(|l| (l.row, l.driver, l.way) == (row.name, driver, way)) {
                        continue;
                    }
                    let name = format!("{table}: {}: {driver:?} {space:?} {way:?} {}", row.name, words.stat);
                    faults.case(&name, check(on, driver, space, way, row.layers, expected(row.shows, words), words));
                }
            }
        }
    }
    faults.none();
}

#[test]
fn kernel_overlayfs_reads_the_forms_that_it_knows() {
    read_all(On::Disk, Driver::Kernel, |row, space| row.peers.contains(&(Driver::Kernel, space)));
}

#[test]
fn fuse_overlayfs_reads_the_forms_that_it_knows() {
    read_all(On::Disk, Driver::FuseOverlayfs, |row, space| row.peers.contains(&(Driver::FuseOverlayfs, space)));
}

#[test]
fn plyfs_reads_every_form() {
    read_all(On::Disk, Driver::Plyfs, |_, _| true);
}

/// Every form that kernel overlayfs can store: it cannot hold whiteout devices.
#[test]
fn plyfs_reads_every_form_on_kernel_overlayfs() {
    read_all(On::Overlayfs, Driver::Plyfs, |row, _| !row.layers.iter().any(|layer| layer.contains(",wh")));
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
    let mut faults = Faults::default();
    for (space, way) in [(Space::Root, Way::Lower), (Space::Root, Way::Below), (Space::User, Way::Upper)] {
        let words = space.words(OVERRIDE_NAMES[0]);
        let result = check(On::Disk, driver, space, way, &layers, expected(&shows, words), words);
        faults.case(&format!("{count} layers, {driver:?} {space:?} {way:?}"), result);
    }
    faults.none();
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
