//! Governor thread: while requests arrive, keeps wake-ups cheap ([`super::wake`]) and sets the CPU affinity of the
//! worker threads ([`super::placement`]). It sleeps while no requests arrive.

use super::placement::{Placement, Placing, Seen};
use super::processors::{Idleness, given, processor_of, runnable};
use super::traffic::Traffic;
use super::wake::{Method, Waking};
use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long wake-ups are kept cheap after the last request, at least.
const LINGER: Duration = Duration::from_millis(1);
/// How long after the last request the workers are released.
const STAY: Duration = Duration::from_millis(200);
/// How often callers are looked up while the workers follow them. Before that it is every `LINGER`, within the budget.
const LOOK: Duration = Duration::from_millis(10);
/// How many observations a caller is remembered without a new request.
const REMEMBERED: u8 = 10;
/// How often idle time is measured.
const MEASURE: Duration = Duration::from_millis(50);
/// A longer interval says nothing about the present. With many processors the budget allows a measurement every second.
const STALE: Duration = Duration::from_secs(3);
/// Observing may take a 200th of the time: half a percent of a processor.
const FRUGAL: i64 = 200;
/// The most that may be saved up for a burst of observations, in nanoseconds.
const SAVED: i64 = 300_000;

/// The governor thread. Dropping this ends it.
pub struct Governor {
    traffic: Arc<Traffic>,
    thread: Option<JoinHandle<()>>,
}

impl Governor {
    /// Starts the thread, if a policy requires it. `device` is a descriptor of the FUSE connection.
    pub fn start(traffic: &Arc<Traffic>, waking: Waking, placing: Placing, device: OwnedFd) -> io::Result<Governor> {
        let mut governor = Governor { traffic: traffic.clone(), thread: None };
        let method = Method::open(waking, device)?;
        let workers = (placing != Placing::Off).then(|| Workers::new(placing));
        if method.is_some() || workers.is_some() {
            let watch = Watch { traffic: traffic.clone(), method, workers };
            let thread = std::thread::Builder::new().name("plyfs-governor".into()).spawn(move || watch.run())?;
            traffic.set_governor(thread.thread().clone());
            governor.thread = Some(thread);
        }
        Ok(governor)
    }
}

impl Drop for Governor {
    fn drop(&mut self) {
        self.traffic.end();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The thread's state.
struct Watch {
    traffic: Arc<Traffic>,
    method: Option<Method>,
    workers: Option<Workers>,
}

impl Watch {
    fn run(mut self) {
        while !self.traffic.has_ended() {
            if self.traffic.is_flowing() {
                self.while_requests_flow();
                // A request between the last check and this store does not wake the governor: it costs one wake-up.
                self.traffic.stand_still();
            } else {
                std::thread::park();
            }
        }
    }

    fn while_requests_flow(&mut self) {
        let mut seen = self.traffic.requests();
        let mut last = Instant::now();
        loop {
            let placed = self.workers.as_ref().is_some_and(Workers::are_placed);
            self.switch(!placed || self.method.as_ref().is_some_and(Method::suits_one_processor));
            std::thread::sleep(if placed { LOOK } else { LINGER });
            let (now, requests) = (Instant::now(), self.traffic.requests());
            let flows = requests != std::mem::replace(&mut seen, requests);
            if flows {
                last = now;
            } else if !placed || now - last >= STAY || self.traffic.has_ended() {
                break;
            }
            if let Some(workers) = &mut self.workers {
                workers.look(&self.traffic, now);
            }
        }
        self.switch(false);
        // The workers of a connection that has ended are gone, and their thread IDs may be others'.
        if let Some(workers) = self.workers.as_mut().filter(|_| !self.traffic.has_ended()) {
            workers.release();
        }
    }

    /// Switches cheap wake-ups on or off.
    fn switch(&mut self, on: bool) {
        if let Some(method) = &mut self.method
            && let Err(e) = method.switch(on)
        {
            tracing::warn!("wake-ups are no longer kept cheap: {e}");
            self.method = None;
        }
    }
}

/// The workers' affinity.
struct Workers {
    placement: Placement,
    idleness: Idleness,
    measured: Option<Instant>,
    /// The time and the number of requests with little data at the last observation.
    counted: (Instant, u64),
    budget: Budget,
    /// Recent callers, with the number of observations since their last request.
    callers: Vec<(u32, u8)>,
    /// The processor and the workers bound to it.
    placed: Option<(usize, Vec<Pid>)>,
}

impl Workers {
    fn new(placing: Placing) -> Workers {
        let placement = Placement::new(placing);
        let (idleness, callers) = (Idleness::default(), Vec::new());
        let (now, measured) = (Instant::now(), None);
        Workers { placement, idleness, measured, counted: (now, 0), budget: Budget::new(now), callers, placed: None }
    }

    fn are_placed(&self) -> bool {
        self.placed.is_some()
    }

    /// Observes, decides and sets the affinity, if the budget allows.
    fn look(&mut self, traffic: &Traffic, now: Instant) {
        if !self.budget.allows(now) {
            return;
        }
        let begun = processor_time();
        let Ok(given) = given() else { return };
        let idle = self.measure(&given, now);
        let (callers, live) = self.find(traffic);
        let whole = given.count() as usize == self.idleness.processors();
        let runnable = if whole && self.placed.is_none() { runnable() } else { None };
        let rate = self.rate(traffic, now);
        let seen = Seen { given, idle, callers, live, runnable, rate };
        let decided = self.placement.decide(&seen);
        self.place(decided, traffic, &given);
        self.budget.spend(processor_time().saturating_sub(begun));
    }

    /// Returns the processors of the last requests' callers, and how many of the recent callers are alive.
    fn find(&mut self, traffic: &Traffic) -> (Vec<usize>, usize) {
        let recent: Vec<u32> = traffic.callers().collect();
        self.callers.iter_mut().for_each(|(_, looks)| *looks += 1);
        for caller in &recent {
            match self.callers.iter_mut().find(|(known, _)| known == caller) {
                Some((_, looks)) => *looks = 0,
                None => self.callers.push((*caller, 0)),
            }
        }
        self.callers.retain(|(_, looks)| *looks < REMEMBERED);
        let (mut found, mut live) = (Vec::new(), 0);
        self.callers.retain(|(caller, _)| {
            let processor = processor_of(*caller);
            let requests = recent.iter().filter(|recent| *recent == caller).count();
            live += usize::from(processor.is_some());
            found.extend(processor.iter().cycle().take(requests));
            processor.is_some()
        });
        (found, live)
    }

    /// Requests with little data per second since the last observation.
    fn rate(&mut self, traffic: &Traffic, now: Instant) -> u64 {
        let (then, before) = std::mem::replace(&mut self.counted, (now, traffic.short_requests()));
        let microseconds = (now - then).as_micros().max(1) as u64;
        self.counted.1.saturating_sub(before) * 1_000_000 / microseconds
    }

    fn measure(&mut self, given: &CpuSet, now: Instant) -> Option<u8> {
        match self.measured.map(|measured| now - measured) {
            Some(since) if since < MEASURE => return None,
            Some(since) if since > STALE => self.idleness.forget(),
            _ => {}
        }
        self.measured = Some(now);
        self.idleness.measure(given)
    }

    fn place(&mut self, decided: Option<usize>, traffic: &Traffic, given: &CpuSet) {
        let workers = traffic.workers();
        match decided {
            None => self.release(),
            Some(processor) if self.placed.as_ref().is_some_and(|placed| *placed == (processor, workers.clone())) => {}
            Some(processor) => {
                let mut only = CpuSet::new();
                only.set(processor);
                let refused = workers.iter().find_map(|worker| sched_setaffinity(Some(*worker), &only).err());
                self.placed = Some((processor, workers));
                match refused {
                    None => tracing::debug!("the workers run on processor {processor}, where their callers do"),
                    Some(e) => {
                        tracing::debug!("the workers cannot run on processor {processor}: {e}");
                        self.placement.refused();
                        self.spread(given);
                    }
                }
            }
        }
    }

    /// Leaves placement to the scheduler.
    fn release(&mut self) {
        if self.placed.is_some()
            && let Ok(given) = given()
        {
            self.spread(&given);
            tracing::debug!("the workers run where the scheduler puts them");
        }
        self.placement.pause();
    }

    fn spread(&mut self, given: &CpuSet) {
        let Some((_, workers)) = self.placed.take() else { return };
        // Where the process may use all processors, the workers may use those too that come later.
        let whole = given.count() as usize == self.idleness.processors();
        let given = if whole { &all() } else { given };
        for worker in workers {
            match sched_setaffinity(Some(worker), given) {
                // The connection has ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => tracing::warn!("a worker thread stays bound to its processor: {e}"),
            }
        }
    }
}

fn all() -> CpuSet {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    all
}

/// Budget of processor time for observations: a token bucket.
struct Budget {
    /// Nanoseconds; negative after an observation that took more.
    saved: i64,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Budget {
        Budget { saved: SAVED, since: now }
    }

    /// Whether the budget is positive.
    fn allows(&mut self, now: Instant) -> bool {
        let earned = nanoseconds(now.saturating_duration_since(self.since)) / FRUGAL;
        self.saved = SAVED.min(self.saved.saturating_add(earned));
        self.since = now;
        self.saved > 0
    }

    fn spend(&mut self, cost: Duration) {
        self.saved = self.saved.saturating_sub(nanoseconds(cost));
    }
}

fn nanoseconds(time: Duration) -> i64 {
    time.as_nanos().try_into().unwrap_or(i64::MAX)
}

/// The processor time of this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_half_a_percent_of_the_time_and_what_was_saved() {
        for (cost, most) in [(20, 320), (400, 14), (5_000, 3)] {
            let begun = Instant::now();
            let mut budget = Budget::new(begun);
            let looks = (0..1000).filter(|turn| {
                let allowed = budget.allows(begun + Duration::from_millis(*turn));
                if allowed {
                    budget.spend(Duration::from_micros(cost));
                }
                allowed
            });
            let looks = looks.count() as u64;
            assert!(looks <= most && (looks + 1) * cost >= 5_000, "{looks} looks of {cost} microseconds");
        }
    }
}
