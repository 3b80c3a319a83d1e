//! Background load on the processors while something is measured.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The background load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// No background load.
    Quiet,
    /// A busy loop with niceness 10 on each processor, as on a build host.
    Busy,
}

/// Niceness of the loops.
const NICENESS: i32 = 10;

/// A running background load; dropping it ends the loops.
pub struct Running {
    ended: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
}

impl Load {
    /// The name in tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Load::Quiet => "quiet",
            Load::Busy => "busy",
        }
    }

    /// Starts the loops. They are threads, which never outlive the benchmark.
    pub fn start(self) -> Running {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let ended = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let ended = ended.clone();
            std::thread::spawn(move || spin(&ended))
        };
        let loops = (0..if self == Load::Busy { processors } else { 0 }).map(start).collect();
        Running { ended, loops }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.loops.drain(..).for_each(|running| drop(running.join()));
    }
}

fn spin(ended: &AtomicBool) {
    // Linux keeps the niceness for each thread.
    if let Err(e) = rustix::process::nice(NICENESS) {
        eprintln!("bench: a loop is as important as what is measured: {e}");
    }
    let mut turns = 0_u64;
    while !ended.load(Ordering::Relaxed) {
        turns = black_box(turns.wrapping_add(1));
    }
}
