//! Progress of a build, as it is reported.

/// Number of a step, in the order in which steps begin.
pub type StepId = u64;

/// How a step ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It was done.
    Done,
    /// Its result was in the cache.
    Cached,
    /// It failed.
    Failed(String),
}

/// Receiver of a build's progress, called by several threads.
pub trait Watch: Sync {
    /// A step begins. Returns its number.
    fn begin(&self, title: &str) -> StepId;
    /// A step's command has written to its output.
    fn output(&self, step: StepId, bytes: &[u8]);
    /// A step has ended.
    fn end(&self, step: StepId, ended: Ended);
    /// Something that the user should know.
    fn warn(&self, text: &str);
}
