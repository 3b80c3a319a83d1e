//! Runs lists of steps, shrinks a failing list, and reports it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::by_path::SyscallHarness;
use super::check::{self, Checker, first_difference};
use super::generate::{Menu, generate};
use super::harness::Harness;
use super::image::image;
use super::names::Expected;
use super::op::{Op, Outcome};
use super::place::TestFs;
use super::state::{Model, Step, StepError};

/// Creates a harness on a new file system.
pub type NewHarness<'a> = &'a dyn Fn() -> Box<dyn Harness>;
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

/// A harness that makes system calls on a file system.
pub fn by_path(test_fs: impl TestFs + 'static) -> Box<dyn Harness> {
    Box::new(SyscallHarness::new(Box::new(test_fs)))
}

/// Carries out every step on the model and on a fresh harness. Returns the results.
pub fn execute(ops: &[Op], new_harness: NewHarness) -> Result<Vec<Answer>, Failure> {
    let mut at = 0;
    // A panic is a failure like others: of a mount, say.
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut model_run = ModelRun::new(new_harness());
        let mut answers = Vec::with_capacity(ops.len());
        for op in ops {
            answers.push(model_run.step(op)?);
            at += 1;
        }
        model_run.finish().map(|()| answers)
    }));
    let what = match run {
        Ok(Ok(answers)) => return Ok(answers),
        Ok(Err(what)) => what,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
    };
    Err(Failure { at, what })
}

struct ModelRun {
    model: Model,
    harness: Box<dyn Harness>,
    checker: Checker,
}

impl ModelRun {
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
        if matches!(expected, Err(StepError::Skip)) {
            return Ok(None);
        }
        let answer = self.harness.apply(op);
        match (before, &answer) {
            (Some(before), Err(errno)) if refusal == Some(*errno) => self.model = before,
            _ => self.check_answer(expected, &answer).map_err(|wrong| format!("{op:?}: {wrong}"))?,
        }
        Ok(Some(answer))
    }

    fn check_answer(&mut self, expected: Step<Expected>, answer: &Result<Outcome, i32>) -> Result<(), String> {
        match (expected, answer) {
            (Err(StepError::Errno(want)), Err(have)) if want == *have => Ok(()),
            (Err(stop), answer) => Err(format!("expected {stop:?}, gave {}", describe(answer))),
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
            (Ok(Expected::Outcome(want)), answer) => Err(format!("expected {want:?}, gave {}", describe(answer))),
            (Ok(want), answer) => Err(format!("expected {want:?}, gave {}", describe(answer))),
        }
    }

    fn compare(&mut self) -> Result<(), String> {
        let tree = self.harness.tree();
        fail_if_any(self.checker.tree(&self.model, &tree, &mut |path| self.harness.content(path)), "the tree")
    }

    fn finish(&mut self) -> Result<(), String> {
        self.compare()?;
        for view in self.harness.finish()? {
            let mut checker = Checker::like(&self.checker, view.checks);
            fail_if_any(checker.tree(&self.model, &view.tree, &mut |_| Vec::new()), view.name)?;
        }
        Ok(())
    }
}

fn fail_if_any(wrong: Vec<String>, what: &str) -> Result<(), String> {
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(12);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(format!("{what}:\n  {}{more}", wrong[..wrong.len().min(12)].join("\n  ")))
}

fn describe(answer: &Result<Outcome, i32>) -> String {
    match answer {
        Err(errno) => format!("errno {errno} ({})", std::io::Error::from_raw_os_error(*errno)),
        Ok(Outcome::Bytes(bytes)) => format!("{} bytes", bytes.len()),
        Ok(outcome) => format!("{outcome:?}"),
    }
}

/// How many runs of how many steps; `PLYFS_MODEL_RUNS` and `PLYFS_MODEL_OPS` override them.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub runs: u64,
    pub ops: usize,
}

/// Runs from several seeds, each on a fresh harness. `PLYFS_MODEL_SEED` is the first seed, and the only one unless
/// `PLYFS_MODEL_RUNS` is set too.
pub fn soak(name: &str, effort: Effort, menu: Menu, new_harness: NewHarness) {
    for_seeds(effort, |seed, count| {
        let ops = generate(seed, count, &image(), menu);
        if let Err(failure) = execute(&ops, new_harness) {
            report(name, seed, ops, failure, &mut |ops| execute(ops, new_harness).err());
        }
    });
}

/// Runs a custom check on lists of steps from several seeds, and shrinks a failing list.
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
pub fn compare(name: &str, effort: Effort, menu: Menu, left: NewHarness, right: NewHarness) {
    let mut both = |ops: &[Op]| -> Option<Failure> {
        let answers = execute(ops, left).and_then(|left| execute(ops, right).map(|right| (left, right)));
        let (left, right) = match answers {
            Ok(answers) => answers,
            Err(failure) => return Some(failure),
        };
        // What one may refuse and the other does makes the trees differ from there on.
        let refused = |answer: &Answer| matches!(answer, Some(Err(libc::EXDEV | libc::EOPNOTSUPP)));
        let end = (0..ops.len()).find(|at| refused(&left[*at]) != refused(&right[*at])).unwrap_or(ops.len());
        let at = (0..end).find(|at| !is_same_answer(&ops[*at], &left[*at], &right[*at]))?;
        Some(Failure { at, what: format!("{:?}: one gave {:?}, the other {:?}", ops[at], left[at], right[at]) })
    };
    for_seeds(effort, |seed, count| {
        let ops = generate(seed, count, &image(), menu);
        if let Some(failure) = both(&ops) {
            report(name, seed, ops, failure, &mut both);
        }
    });
}

/// Whether two answers are equal. Inode numbers, times and extents may differ: the model has checked them.
fn is_same_answer(op: &Op, left: &Answer, right: &Answer) -> bool {
    match (left, right) {
        _ if matches!(op, Op::Seek { .. } | Op::HeldListEnd { .. }) => true,
        (Some(Ok(Outcome::Stat(left))), Some(Ok(Outcome::Stat(right)))) => {
            let comparable = |record: &crate::support::tree::Record| (record.mode, record.uid, record.gid, record.size);
            comparable(left) == comparable(right)
        }
        _ => left == right,
    }
}

/// Carries out a literal list of steps, to which a failing run was once shrunk.
pub fn replay(ops: &[Op], new_harness: NewHarness) {
    if let Err(failure) = execute(ops, new_harness) {
        panic!("step {} of {}: {}", failure.at, ops.len(), failure.what);
    }
}

fn for_seeds(effort: Effort, mut run: impl FnMut(u64, usize)) {
    let env_number = |name: &str| -> Option<u64> {
        let value = std::env::var(name).ok()?;
        Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
    };
    let (seed, runs) = (env_number("PLYFS_MODEL_SEED"), env_number("PLYFS_MODEL_RUNS"));
    let count = env_number("PLYFS_MODEL_OPS").map_or(effort.ops, |ops| ops as usize);
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

/// Removes steps, halves first and single steps last, as long as the run fails in the same way.
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
