//! Thread pool for slow FUSE requests, which keeps the workers free. Threads start on demand and end when idle.

use super::processors::given;
use parking_lot::{Condvar, Mutex};
use rustix::thread::sched_setaffinity;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The maximum of threads; further jobs are queued.
const MAX_THREADS: usize = 64;
/// How long an idle thread waits for a job before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Dropping it does not cancel queued jobs.
#[derive(Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Pool {
    /// Runs a job on a thread of the pool. If there are no threads and none can be started, runs a job in the calling
    /// thread.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.shared.more.notify_one();
            return;
        }
        if state.threads == MAX_THREADS {
            return;
        }
        let shared = self.shared.clone();
        state.threads += 1;
        let started = std::thread::Builder::new().name("plyfs-slow".into()).spawn(move || shared.work());
        if let Err(e) = started {
            tracing::warn!("cannot start a thread: {e}");
            state.threads -= 1;
            let own = if state.threads == 0 { state.jobs.pop_front() } else { None };
            drop(state);
            if let Some(job) = own {
                job();
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        // This thread inherited the CPU affinity of the worker that started it.
        if let Ok(given) = given()
            && let Err(e) = sched_setaffinity(None, &given)
        {
            tracing::debug!("a thread of the pool stays bound to a processor: {e}");
        }
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.more.wait_for(&mut state, IDLE_TIMEOUT).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn interdependent_jobs_run_concurrently() {
        let pool = Pool::default();
        let barrier = Arc::new(std::sync::Barrier::new(8));
        let (done, all) = mpsc::channel();
        for round in 0..3 {
            for _ in 0..8 {
                let (barrier, done) = (barrier.clone(), done.clone());
                pool.run(move || {
                    barrier.wait();
                    done.send(round).unwrap();
                });
            }
            for _ in 0..8 {
                assert_eq!(all.recv_timeout(Duration::from_secs(10)), Ok(round));
            }
        }
    }
}
