//! Threads for what takes long, so that those that take the kernel's requests stay free. They come as they are needed
//! and go when they are not.

use super::processors::given;
use rustix::thread::sched_setaffinity;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most threads; what comes beyond waits for one.
const MOST: usize = 64;
/// How long a thread waits for more to do.
const PATIENCE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Jobs that are waiting when it is dropped are still done.
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
    /// Does a job on a thread of the pool. Where no thread can be had, it is done here.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.shared.more.notify_one();
            return;
        }
        if state.threads == MOST {
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
        // A worker that is bound to its caller's processor started this thread, which inherited that.
        if let Ok(given) = given()
            && let Err(e) = sched_setaffinity(None, &given)
        {
            tracing::debug!("a thread of the pool stays bound to a processor: {e}");
        }
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.more.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            state.idle -= 1;
            if waited.1.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_that_wait_for_each_other_all_get_a_thread() {
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
