//! Processor statistics from /proc: the processor a thread runs on (proc_pid_stat(5)), idle time (proc_stat(5)),
//! runnable threads (proc_loadavg(5)).

use crate::sys;
use rustix::thread::{CpuSet, Pid, sched_getaffinity};
use std::fs;

/// The index of field 39, `processor`, of `/proc/PID/stat` among the fields after the name.
const PROCESSOR: usize = 36;
/// Indexes of `idle` and `iowait` in a processor's line of `/proc/stat`, and the number of fields to add up: `guest`
/// and `guest_nice` are contained in others.
const IDLE: usize = 3;
const IOWAIT: usize = 4;
const FIELDS: usize = 8;
/// The shortest interval to measure, in ticks.
const LEAST: u64 = 4;

/// The processors that this process may use, by taskset(1) or a cpuset: those of its main thread, which is never
/// bound to one.
pub fn given() -> rustix::io::Result<CpuSet> {
    sched_getaffinity(Pid::from_raw(std::process::id().cast_signed()))
}

/// The processor that a thread runs on, or ran on last. `None` if the thread has ended or /proc does not show it.
pub fn processor_of(thread: u32) -> Option<usize> {
    after_name(&fs::read_to_string(sys::proc_dir(thread)?.join("stat")).ok()?)?.nth(PROCESSOR)?.parse().ok()
}

/// Returns the fields after the process name, which is in parentheses and may contain anything.
fn after_name(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

/// The number of runnable threads of the whole machine, without the calling one.
pub fn runnable() -> Option<usize> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let running: usize = text.split_ascii_whitespace().nth(3)?.split_once('/')?.0.parse().ok()?;
    Some(running.saturating_sub(1))
}

/// Measures idle time, from one call to the next.
#[derive(Default)]
pub struct Idleness {
    /// Per processor: its number, idle ticks, all ticks.
    before: Vec<(usize, u64, u64)>,
}

impl Idleness {
    /// Returns the idle time of the idlest of these processors since the last call, in percent. `None` at the first
    /// call and after too short a time.
    pub fn measure(&mut self, given: &CpuSet) -> Option<u8> {
        self.since(&fs::read_to_string("/proc/stat").ok()?, given)
    }

    fn since(&mut self, stat: &str, given: &CpuSet) -> Option<u8> {
        let now: Vec<_> = stat.lines().filter_map(times).collect();
        let before = |processor: usize| self.before.iter().find(|(number, ..)| *number == processor);
        let share = |&(processor, idle, all): &(usize, u64, u64)| {
            let (_, idle_before, all_before) = *before(processor)?;
            let all = all.saturating_sub(all_before);
            // The counter of idle time may decrease a little.
            let idle = idle.saturating_sub(idle_before).min(all);
            (all >= LEAST).then(|| (idle * 100 / all) as u8)
        };
        let usable = |processor: usize| processor < CpuSet::MAX_CPU && given.is_set(processor);
        let idlest = now.iter().filter(|(processor, ..)| usable(*processor)).filter_map(share).max();
        if idlest.is_some() || self.before.is_empty() {
            self.before = now;
        }
        idlest
    }

    /// The number of online processors at the last call.
    pub fn processors(&self) -> usize {
        self.before.len()
    }

    /// Starts anew: the last call is too long ago.
    pub fn forget(&mut self) {
        self.before.clear();
    }
}

/// A processor's number, idle ticks and all ticks, from its line of `/proc/stat`.
fn times(line: &str) -> Option<(usize, u64, u64)> {
    let mut words = line.split_ascii_whitespace();
    let processor = words.next()?.strip_prefix("cpu")?.parse().ok()?;
    let ticks: Vec<u64> = words.take(FIELDS).map_while(|word| word.parse().ok()).collect();
    Some((processor, ticks.get(IDLE)? + ticks.get(IOWAIT)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_on_its_processor_whatever_its_name() {
        let numbers: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) S 1 2) R {}", numbers.join(" "));
        assert_eq!(after_name(&stat).unwrap().nth(PROCESSOR), Some("39"));
        assert!(after_name("7 (a").is_none());
        assert!(processor_of(std::process::id()).is_some());
        assert_eq!(processor_of(u32::MAX), None);
    }

    #[test]
    fn the_idlest_of_the_given_processors_counts() {
        let mut given = CpuSet::new();
        [0, 2].into_iter().for_each(|processor| given.set(processor));
        let stat = |idle: [u64; 3]| {
            let line =
                |(processor, idle): (usize, &u64)| format!("cpu{processor} {} 0 0 {idle} 0 0 0 0 5 5\n", 1000 - idle);
            format!("cpu  9 9 9 9\n{}intr 5\n", idle.iter().enumerate().map(line).collect::<String>())
        };
        let mut idleness = Idleness::default();
        assert_eq!(idleness.since(&stat([0; 3]), &given), None, "there is nothing before");
        assert_eq!(idleness.since(&stat([0; 3]), &given), None, "no time has passed");
        let later = "cpu0 1080 0 0 10 10 0 0 0\ncpu1 1000 0 0 100 0 0 0 0\ncpu2 1070 0 0 30 0 0 0 0\n";
        assert_eq!(idleness.since(later, &given), Some(30), "1 is not given");
        // One went offline, one came.
        let offline = "cpu0 1170 0 0 20 10 0 0 0\ncpu3 0 0 0 500 0 0 0 0\n";
        given.set(3);
        assert_eq!(idleness.since(offline, &given), Some(10));
        idleness.forget();
        assert_eq!(idleness.since(later, &given), None);
        assert_eq!(idleness.since("nonsense\ncpu0\ncpux 1 2 3\n", &given), None);
    }
}
