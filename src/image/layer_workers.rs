//! Layer workers: a few threads that process the layers of an image in parallel.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Maximum number of layers processed at once.
pub(super) const AT_ONCE: usize = 3;

/// Runs `job` on every item, in order and [`AT_ONCE`] at a time; returns the results in the order of the items. On the
/// first failure calls `failed` at once, starts no further item, waits for the running ones and returns that failure.
pub(super) fn run<I: Send, T: Send, E: Send>(
    items: impl IntoIterator<Item = I>,
    job: impl Fn(I) -> Result<T, E> + Sync,
    failed: impl Fn() + Sync,
) -> Result<Vec<T>, E> {
    let queue: VecDeque<(usize, I)> = items.into_iter().enumerate().collect();
    let workers = queue.len().min(AT_ONCE);
    let queue = Mutex::new(queue);
    let stop = AtomicBool::new(false);
    let outcome = Mutex::new((Vec::new(), None));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let next = queue.lock().pop_front();
            let Some((at, item)) = next else { break };
            let result = job(item);
            let mut outcome = outcome.lock();
            match result {
                Ok(value) => outcome.0.push((at, value)),
                Err(_) if outcome.1.is_some() => {}
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failed();
                    outcome.1 = Some(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    match outcome.into_inner() {
        (_, Some(error)) => Err(error),
        (mut values, None) => {
            values.sort_by_key(|(at, _)| *at);
            Ok(values.into_iter().map(|(_, value)| value).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_in_the_order_of_the_items_and_a_failure_ends_it() {
        let squares = run(0..50u64, |n| Ok::<_, ()>(n * n), || {}).unwrap();
        assert_eq!(squares, (0..50).map(|n| n * n).collect::<Vec<_>>());
        let (begun, told) = (Mutex::new(0), AtomicBool::new(false));
        let job = |n: u64| {
            *begun.lock() += 1;
            if n == 3 { Err(n) } else { Ok(n) }
        };
        assert_eq!(run(0..1000, job, || told.store(true, Ordering::Relaxed)), Err(3));
        assert!(told.load(Ordering::Relaxed) && *begun.lock() < 100);
    }
}
