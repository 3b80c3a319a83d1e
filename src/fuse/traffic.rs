//! Request statistics of a connection, for the governor: how many requests there were, which threads made the last ones
//! and which worker threads answered them.

use fuser::Request;
use parking_lot::Mutex;
use rustix::thread::{Pid, gettid};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::Thread;

/// Copying this many bytes takes as long as a message between processors.
const BULKY: u32 = 64 << 10;
/// The number of last callers to remember.
const RECENT: usize = 8;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The connection whose list of workers has this thread.
    static WORKS_FOR: Cell<u64> = const { Cell::new(0) };
}

/// The statistics of one connection. All methods may be called from any thread.
pub struct Traffic {
    id: u64,
    requests: AtomicU64,
    /// How many of them carried much data.
    bulky: AtomicU64,
    /// Thread IDs of the last requests' callers, in the connection's PID namespace; 0 if the kernel names none.
    callers: [AtomicU32; RECENT],
    workers: Mutex<Vec<Pid>>,
    flowing: AtomicBool,
    ended: AtomicBool,
    governor: OnceLock<Thread>,
}

impl Traffic {
    pub fn new() -> Traffic {
        Traffic {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            requests: AtomicU64::new(0),
            bulky: AtomicU64::new(0),
            callers: Default::default(),
            workers: Mutex::default(),
            flowing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            governor: OnceLock::new(),
        }
    }

    /// Counts a request. The worker that answers it calls this first; it costs an atomic addition and a store.
    pub fn note(&self, request: &Request) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.callers[number as usize % RECENT].store(request.pid(), Ordering::Relaxed);
        if WORKS_FOR.get() != self.id {
            WORKS_FOR.set(self.id);
            self.workers.lock().push(gettid());
        }
        if !self.flowing.load(Ordering::Relaxed)
            && let Some(governor) = self.governor.get()
        {
            self.flowing.store(true, Ordering::Relaxed);
            governor.unpark();
        }
    }

    /// Counts a read or write of `bytes`, which [`Traffic::note`] has counted as a request.
    pub fn note_data(&self, bytes: u32) {
        if bytes >= BULKY {
            self.bulky.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of requests so far whose time is mostly that of the message: those that carried little data.
    pub fn short_requests(&self) -> u64 {
        self.requests().saturating_sub(self.bulky.load(Ordering::Relaxed))
    }

    /// The number of requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Thread IDs of the last requests' callers, with repetitions. Requests without one (writeback, forgets) are left
    /// out.
    pub fn callers(&self) -> impl Iterator<Item = u32> {
        self.callers.iter().map(|caller| caller.load(Ordering::Relaxed)).filter(|caller| *caller != 0)
    }

    /// The worker threads that have answered requests.
    pub fn workers(&self) -> Vec<Pid> {
        self.workers.lock().clone()
    }

    /// Whether requests have arrived since [`Traffic::stand_still`].
    pub fn is_flowing(&self) -> bool {
        self.flowing.load(Ordering::Relaxed)
    }

    /// Makes the next request wake the governor.
    pub fn stand_still(&self) {
        self.flowing.store(false, Ordering::Relaxed);
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Sets the thread that the first request after [`Traffic::stand_still`] unparks.
    pub fn set_governor(&self, governor: Thread) {
        // A connection has one governor.
        self.governor.set(governor).ok();
    }

    /// Ends the governor: the connection has ended.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        if let Some(governor) = self.governor.get() {
            governor.unpark();
        }
    }
}
