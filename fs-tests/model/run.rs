//! The runner: carries out lists of steps, shrinks a failing list, and reports it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::by_path::ByPath;
use super::check::{self, Checker, first_difference};
use super::generate::{Menu, generate};
use super::harness::Harness;
use super::image::image;
use super::names::Expected;
use super::op::{Op, Outcome};
use super::place::Place;
use super::state::{Model, Step, Stop};

/// Makes a harness on a fresh place.
pub type Fresh<'a> = &'a dyn Fn() -> Box<dyn Harness>;
/// The result of a step; `None` for a skipped one.
pub type Answer = Option<Result<Outcome, i32>>;

/// The failure of a run: the step and the reason.
#[derive(Debug)]
pub struct Failure {
    /// The step's number; the number of steps if it was the comparison at the end.
    pub at: usize,
    pub what: String,
}

impl Failure {
    /// What kind of step failed. While a run is made shorter, another fault must not take the place of the first.
    fn class(&self) -> &str {
        self.what.split([' ', ':', '"']).next().unwrap_or_default()
    }
}

/// The time limit for shrinking a failing run.
const SHRINK_FOR: Duration = Duration::from_secs(240);

/// A harness by system calls on a place.
pub fn by_path(place: impl Place + 'static) -> Box<dyn Harness> {
    Box::new(ByPath::new(Box::new(place)))
}

/// Carries out every step on the model and on a fresh harness. Returns the results.
pub fn execute(ops: &[Op], fresh: Fresh) -> Result<Vec<Answer>, Failure> {
    let mut at = 0;
    // A panic is a failure like others: of a mount, say.
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(fresh());
        let mut answers = Vec::with_capacity(ops.len());
        for op in ops {
            answers.push(world.step(op)?);
            at += 1;
        }
        world.finish().map(|()| answers)
    }));
    let what = match run {
        Ok(Ok(answers)) => return Ok(answers),
        Ok(Err(what)) => what,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
    };
    Err(Failure { at, what })
}

struct World {
    model: Model,
    harness: Box<dyn Harness>,
    checker: Checker,
}

impl World {
    fn new(harness: Box<dyn Harness>) -> Self {
        let checker = Checker::new(harness.checks());
        Self { model: Model::new(&image()), harness, checker }
    }

    fn step(&mut self, op: &Op) -> Result<Answer, String> {
        if *op == Op::Check {
            return self.compare().map(|()| None);
        }
        let refusal = self.harness.may_refuse(op);
        let before = refusal.map(|_| self.model.clone());
        let expected = self.model.apply(op);
        if matches!(expected, Err(Stop::Skip)) {
            return Ok(None);
        }
        let answer = self.harness.apply(op);
        match (before, &answer) {
            (Some(before), Err(errno)) if refusal == Some(*errno) => self.model = before,
            _ => self.judge(expected, &answer).map_err(|wrong| format!("{op:?}: {wrong}"))?,
        }
        Ok(Some(answer))
    }

    fn judge(&mut self, expected: Step<Expected>, answer: &Result<Outcome, i32>) -> Result<(), String> {
        match (expected, answer) {
            (Err(Stop::Errno(want)), Err(have)) if want == *have => Ok(()),
            (Err(stop), answer) => Err(format!("expected {stop:?}, gave {}", brief(answer))),
            (Ok(Expected::Seek { bytes, offset, hole }), answer) => {
                let answer = match answer {
                    Ok(Outcome::Count(at)) => Ok(*at),
                    Ok(other) => return Err(format!("{other:?} is no offset")),
                    Err(errno) => Err(*errno),
                };
                check::seek(&bytes, offset, hole, answer)
            }
            (Ok(Expected::Stat(id)), Ok(Outcome::Stat(actual))) => match self.checker.stat(&self.model, id, actual) {
                wrong if wrong.is_empty() => Ok(()),
                wrong => Err(wrong.join("; ")),
            },
            (Ok(Expected::Listing { sure, maybe }), Ok(Outcome::Entries(actual))) => {
                check::listing(&sure, &maybe, actual)
            }
            (Ok(Expected::Outcome(Outcome::Bytes(want))), Ok(Outcome::Bytes(have))) if want != *have => {
                Err(first_difference(&want, have))
            }
            (Ok(Expected::Outcome(want)), Ok(have)) if want == *have => Ok(()),
            (Ok(Expected::Outcome(want)), answer) => Err(format!("expected {want:?}, gave {}", brief(answer))),
            (Ok(want), answer) => Err(format!("expected {want:?}, gave {}", brief(answer))),
        }
    }

    fn compare(&mut self) -> Result<(), String> {
        let tree = self.harness.tree();
        told(self.checker.tree(&self.model, &tree, &mut |path| self.harness.content(path)), "the tree")
    }

    fn finish(&mut self) -> Result<(), String> {
        self.compare()?;
        for view in self.harness.finish()? {
            let mut checker = Checker::like(&self.checker, view.checks);
            told(checker.tree(&self.model, &view.tree, &mut |_| Vec::new()), view.name)?;
        }
        Ok(())
    }
}

fn told(wrong: Vec<String>, what: &str) -> Result<(), String> {
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(12);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(format!("{what}:\n  {}{more}", wrong[..wrong.len().min(12)].join("\n  ")))
}

fn brief(answer: &Result<Outcome, i32>) -> String {
    match answer {
        Err(errno) => format!("errno {errno} ({})", std::io::Error::from_raw_os_error(*errno)),
        Ok(Outcome::Bytes(bytes)) => format!("{} bytes", bytes.len()),
        Ok(outcome) => format!("{outcome:?}"),
    }
}

/// How many runs of how many steps; `PLYFS_MODEL_RUNS` and `PLYFS_MODEL_OPS` say otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub runs: u64,
    pub ops: usize,
}

/// Runs from several seeds, each on a fresh harness. `PLYFS_MODEL_SEED` is the first seed, and the only one unless
/// `PLYFS_MODEL_RUNS` is set too.
pub fn soak(name: &str, effort: Effort, menu: Menu, fresh: Fresh) {
    for_seeds(effort, |seed, count| {
        let ops = generate(seed, count, &image(), menu);
        if let Err(failure) = execute(&ops, fresh) {
            report(name, seed, ops, failure, &mut |ops| execute(ops, fresh).err());
        }
    });
}

/// Judges lists of steps from several seeds in another way; a failing one is made short like others.
pub fn search(
    name: &str,
    effort: Effort,
    steps: &dyn Fn(u64, usize) -> Vec<Op>,
    fails: &mut dyn FnMut(&[Op]) -> Option<Failure>,
) {
    for_seeds(effort, |seed, count| {
        let ops = steps(seed, count);
        if let Some(failure) = fails(&ops) {
            report(name, seed, ops, failure, fails);
        }
    });
}

/// Carries out the same lists of steps on two harnesses, which must also return the same results.
pub fn compare(name: &str, effort: Effort, menu: Menu, left: Fresh, right: Fresh) {
    let mut both = |ops: &[Op]| -> Option<Failure> {
        let answers = execute(ops, left).and_then(|left| execute(ops, right).map(|right| (left, right)));
        let (left, right) = match answers {
            Ok(answers) => answers,
            Err(failure) => return Some(failure),
        };
        // What one may refuse and the other does makes the trees differ from there on.
        let refused = |answer: &Answer| matches!(answer, Some(Err(libc::EXDEV | libc::EOPNOTSUPP)));
        let end = (0..ops.len()).find(|at| refused(&left[*at]) != refused(&right[*at])).unwrap_or(ops.len());
        let at = (0..end).find(|at| !agree(&ops[*at], &left[*at], &right[*at]))?;
        Some(Failure { at, what: format!("{:?}: one gave {:?}, the other {:?}", ops[at], left[at], right[at]) })
    };
    for_seeds(effort, |seed, count| {
        let ops = generate(seed, count, &image(), menu);
        if let Some(failure) = both(&ops) {
            report(name, seed, ops, failure, &mut both);
        }
    });
}

/// Whether two answers say the same. Numbers, times and extents are each file system's own, and the model saw to them.
fn agree(op: &Op, left: &Answer, right: &Answer) -> bool {
    match (left, right) {
        _ if matches!(op, Op::Seek { .. } | Op::HeldListEnd { .. }) => true,
        (Some(Ok(Outcome::Stat(left))), Some(Ok(Outcome::Stat(right)))) => {
            let told = |record: &crate::support::tree::Record| (record.mode, record.uid, record.gid, record.size);
            told(left) == told(right)
        }
        _ => left == right,
    }
}

/// Carries out a literal list of steps, to which a failing run was once shrunk.
pub fn replay(ops: &[Op], fresh: Fresh) {
    if let Err(failure) = execute(ops, fresh) {
        panic!("step {} of {}: {}", failure.at, ops.len(), failure.what);
    }
}

fn for_seeds(effort: Effort, mut run: impl FnMut(u64, usize)) {
    let given = |name: &str| -> Option<u64> {
        let value = std::env::var(name).ok()?;
        Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
    };
    let (seed, runs) = (given("PLYFS_MODEL_SEED"), given("PLYFS_MODEL_RUNS"));
    let count = given("PLYFS_MODEL_OPS").map_or(effort.ops, |ops| ops as usize);
    let runs = runs.unwrap_or(if seed.is_some() { 1 } else { effort.runs });
    let first = seed.unwrap_or(1);
    (first..first + runs).for_each(|seed| run(seed, count));
}

fn report(name: &str, seed: u64, ops: Vec<Op>, failure: Failure, fails: &mut dyn FnMut(&[Op]) -> Option<Failure>) -> ! {
    let again = format!("PLYFS_MODEL_SEED={seed} PLYFS_MODEL_OPS={}", ops.len());
    eprintln!("{name}: {again}: step {}: {}", failure.at, failure.what);
    let (ops, failure) = shrink(ops, failure, fails);
    let steps: String = ops.iter().map(|op| format!("            {op:?},\n")).collect();
    panic!(
        "{name} ({again}), shrunk to {} steps, fails at step {}: {}\n\n#[test]\nfn regression_() {{\n    replay(\n        \
         &[\n{steps}        ],\n        &...,\n    );\n}}\n",
        ops.len(),
        failure.at,
        failure.what
    );
}

/// Leaves out steps, by halves first and one by one at last, as long as the run fails at a like step.
pub fn shrink(
    mut ops: Vec<Op>,
    mut failure: Failure,
    fails: &mut dyn FnMut(&[Op]) -> Option<Failure>,
) -> (Vec<Op>, Failure) {
    let deadline = Instant::now() + SHRINK_FOR;
    ops.truncate(failure.at + 1);
    let mut size = ops.len().div_ceil(2);
    while size > 0 {
        let (mut at, mut shorter) = (0, false);
        while at < ops.len() && Instant::now() < deadline {
            let fewer: Vec<Op> = [&ops[..at], &ops[ops.len().min(at + size)..]].concat();
            match fails(&fewer) {
                Some(found) if found.class() == failure.class() => {
                    (ops, failure, shorter) = (fewer, found, true);
                    ops.truncate(failure.at + 1);
                }
                _ => at += size,
            }
        }
        // One by one until nothing can go any more.
        if size > 1 || !shorter || Instant::now() >= deadline {
            size /= 2;
        }
    }
    (ops, failure)
}
