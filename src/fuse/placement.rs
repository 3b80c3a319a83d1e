//! Worker placement: decides which processor the worker threads run on. A pure state machine, without clocks or system
//! calls; the governor feeds it observations and sets the affinity.
//!
//! A request takes 8 to 16 microseconds if caller and worker share a processor, and 45 to 90 if each wakes the other
//! on a different one. On a busy machine the scheduler does not bring them together. While a processor is idle,
//! following the caller gains nothing: the scheduler moves the caller to the idle processor again and again, and PM
//! QoS or polling ([`super::wake`]) make wake-ups cheap. So the workers follow their caller while no processor is
//! idle and requests come fast: a caller that mostly waits for a disk, or moves megabytes with each request, does not
//! get faster, and his worker must wait for that one processor when the disk has answered.

use rustix::thread::CpuSet;
use std::collections::VecDeque;

/// Placement policy (mount option `place=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placing {
    /// Follow the caller while no processor is idle.
    #[default]
    Auto,
    /// Always follow the caller.
    Follow,
    /// Leave placement to the scheduler.
    Off,
}

/// One observation.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The processors that this process may use.
    pub given: CpuSet,
    /// Idle time of the idlest of them, in percent; `None` between two measurements.
    pub idle: Option<u8>,
    /// Runnable threads of the whole machine; `None` if the process may not use all of it.
    pub runnable: Option<usize>,
    /// The processors that the last requests' callers ran on, with repetitions.
    pub callers: Vec<usize>,
    /// How many of the recent callers are alive.
    pub live: usize,
    /// Requests with little data per second since the last observation.
    pub rate: u64,
}

/// The machine is busy if the idlest processor is at most this idle, in percent.
const BUSY: u8 = 5;
/// It is calm if the idlest processor is at least this idle. In between, the placement stays as it is (hysteresis).
const CALM: u8 = 25;
/// The most callers to follow. Measured with writers on two busy processors: with one caller, following is 5 times as
/// fast; with two, 1.3 times; with three or four it gains nothing, and it costs time where the callers themselves use
/// all processors.
const MOST_CALLERS: usize = 2;
/// How many measurements of idle time in a row must agree.
const AGREE: u8 = 2;
/// The machine is also busy if this many observations in a row find more runnable threads than processors. This is
/// known within milliseconds, idle time only after two measurements.
const CROWD: u8 = 4;
/// How many observations in a row must find the callers on another processor before the workers move.
const ELSEWHERE: u8 = 2;
/// Callers are followed from this many requests per second. Below, what a request can save is little of what the
/// caller does between two of them.
const FAST: u64 = 3000;
/// They are followed no longer below this many, in `TOO_SLOW` observations in a row.
const SLOW: u64 = 1500;
const TOO_SLOW: u8 = 5;
/// How many observations in a row must find too many callers before the workers are released.
const TOO_MANY: u8 = 5;
/// More moves than this within `WINDOW` observations release the workers for `REST` observations.
const MOST_MOVES: usize = 20;
const WINDOW: u64 = 100;
const REST: u64 = 500;

/// The state machine.
#[derive(Debug)]
pub struct Placement {
    placing: Placing,
    /// The processor to run on; `None` leaves placement to the scheduler.
    processor: Option<usize>,
    /// How many measurements in a row found the machine busy, or calm.
    busy: u8,
    calm: u8,
    /// How many observations in a row found more runnable threads than processors.
    crowd: u8,
    /// How many observations in a row found the callers on another processor.
    elsewhere: u8,
    /// How many observations in a row found too many callers.
    too_many: u8,
    /// How many observations in a row found few requests.
    slow: u8,
    /// The number of observations so far.
    looks: u64,
    /// The observations at which the workers moved.
    moves: VecDeque<u64>,
    /// Nobody is followed before this observation.
    resting: u64,
}

impl Placement {
    pub fn new(placing: Placing) -> Placement {
        Placement {
            placing,
            processor: None,
            busy: 0,
            calm: 0,
            crowd: 0,
            elsewhere: 0,
            too_many: 0,
            slow: 0,
            looks: 0,
            moves: VecDeque::new(),
            resting: 0,
        }
    }

    /// Takes an observation and returns the processor to run on; `None` leaves placement to the scheduler.
    pub fn decide(&mut self, seen: &Seen) -> Option<usize> {
        self.looks += 1;
        self.measure(seen);
        self.too_many = if seen.live > MOST_CALLERS { self.too_many.saturating_add(1) } else { 0 };
        self.slow = if seen.rate < SLOW { self.slow.saturating_add(1) } else { 0 };
        let wanted = match self.placing {
            Placing::Off => false,
            Placing::Follow => true,
            Placing::Auto if self.processor.is_some() => self.pays_still(),
            Placing::Auto => self.looks >= self.resting && self.pays(seen.rate),
        };
        self.processor = self.processor.filter(|now| wanted && has(&seen.given, *now));
        if wanted && let Some(most) = self.most_callers(seen) {
            self.follow(most);
        }
        self.processor
    }

    /// The affinity could not be set: follows nobody for `REST` observations.
    pub fn refused(&mut self) {
        self.rest();
    }

    /// Requests have stopped: forgets where the callers were, but not how busy the machine was.
    pub fn pause(&mut self) {
        (self.processor, self.elsewhere, self.slow) = (None, 0, 0);
        self.moves.clear();
    }

    /// Whether following callers begins to pay.
    fn pays(&self, rate: u64) -> bool {
        (self.busy >= AGREE || self.crowd >= CROWD) && self.too_many == 0 && rate >= FAST
    }

    /// Whether following callers goes on to pay.
    fn pays_still(&self) -> bool {
        self.calm < AGREE && self.too_many < TOO_MANY && self.slow < TOO_SLOW
    }

    fn measure(&mut self, seen: &Seen) {
        let is_crowd = seen.runnable.is_some_and(|runnable| runnable > seen.given.count() as usize);
        self.crowd = if is_crowd { self.crowd.saturating_add(1) } else { 0 };
        let Some(idle) = seen.idle else { return };
        self.busy = if idle <= BUSY { self.busy.saturating_add(1) } else { 0 };
        self.calm = if idle >= CALM { self.calm.saturating_add(1) } else { 0 };
    }

    /// The processor with the most callers, the current one if several have as many.
    fn most_callers(&self, seen: &Seen) -> Option<usize> {
        let count = |processor: usize| seen.callers.iter().filter(|caller| **caller == processor).count();
        let usable = seen.callers.iter().copied().filter(|processor| has(&seen.given, *processor));
        usable.max_by_key(|processor| (count(*processor), self.processor == Some(*processor)))
    }

    fn follow(&mut self, most: usize) {
        self.elsewhere = if self.processor == Some(most) { 0 } else { self.elsewhere.saturating_add(1) };
        if self.processor.is_some() && self.elsewhere < ELSEWHERE || self.processor == Some(most) {
            return;
        }
        (self.processor, self.elsewhere) = (Some(most), 0);
        self.moves.push_back(self.looks);
        self.moves.retain(|look| self.looks - look < WINDOW);
        if self.placing == Placing::Auto && self.moves.len() > MOST_MOVES {
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.pause();
        (self.busy, self.crowd, self.resting) = (0, 0, self.looks + REST);
    }
}

fn has(given: &CpuSet, processor: usize) -> bool {
    processor < CpuSet::MAX_CPU && given.is_set(processor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(numbers: impl IntoIterator<Item = usize>) -> CpuSet {
        let mut set = CpuSet::new();
        numbers.into_iter().for_each(|number| set.set(number));
        set
    }

    /// Looks at a machine, for as many looks as are between two measurements.
    fn looks(placement: &mut Placement, given: &CpuSet, idle: u8, callers: &[usize]) -> Option<usize> {
        let mut seen =
            Seen { given: *given, idle: Some(idle), callers: callers.to_vec(), live: 1, runnable: None, rate: FAST };
        placement.decide(&seen);
        seen.idle = None;
        (0..9).map(|_| placement.decide(&seen)).last().flatten()
    }

    #[test]
    fn a_caller_is_followed_while_no_processor_is_idle() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        assert_eq!(looks(&mut auto, &two, 60, &[1]), None, "a quiet machine");
        assert_eq!(looks(&mut auto, &two, 0, &[1]), None, "one measurement is none");
        assert_eq!(looks(&mut auto, &two, 0, &[1]), Some(1));
        assert_eq!(looks(&mut auto, &two, 0, &[0]), Some(0), "the caller moves");
        assert_eq!(looks(&mut auto, &two, 15, &[0]), Some(0), "neither busy nor calm");
        assert_eq!(looks(&mut auto, &two, 60, &[0]), Some(0));
        assert_eq!(looks(&mut auto, &two, 0, &[0]), Some(0), "a moment of calm is none");
        assert_eq!(looks(&mut auto, &two, 60, &[0]), Some(0));
        assert_eq!(looks(&mut auto, &two, 60, &[0]), None);
        assert_eq!(looks(&mut auto, &two, 0, &[0]), None);
        assert_eq!(looks(&mut auto, &two, 15, &[0]), None, "it must be busy all the time");
    }

    #[test]
    fn more_threads_than_processors_tell_it_at_once() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        let seen =
            |runnable| Seen { given: two, idle: None, callers: vec![1], live: 1, runnable: Some(runnable), rate: FAST };
        assert_eq!([3, 3, 3, 2, 3, 3, 3].map(|runnable| auto.decide(&seen(runnable))), [None; 7]);
        assert_eq!(auto.decide(&seen(3)), Some(1));
        assert_eq!(auto.decide(&seen(1)), Some(1), "how idle the processors are decides when that ends");
        looks(&mut auto, &two, 50, &[1]);
        assert_eq!(looks(&mut auto, &two, 50, &[1]), None);
    }

    #[test]
    fn among_many_processors_one_that_is_idle_is_enough() {
        let (mut auto, all) = (Placement::new(Placing::Auto), processors(0..256));
        for _ in 0..9 {
            assert_eq!(looks(&mut auto, &all, 90, &[255]), None);
        }
        looks(&mut auto, &all, 1, &[255]);
        assert_eq!(looks(&mut auto, &all, 1, &[255]), Some(255));
    }

    #[test]
    fn who_has_the_most_requests_is_followed_and_a_tie_moves_nobody() {
        let (mut follow, four) = (Placement::new(Placing::Follow), processors(0..4));
        assert_eq!(looks(&mut follow, &four, 0, &[2, 1, 2, 3, 2]), Some(2));
        assert_eq!(looks(&mut follow, &four, 0, &[3, 3, 2, 2, 1]), Some(2));
        assert_eq!(looks(&mut follow, &four, 0, &[3, 3, 3, 2, 1]), Some(3));
        assert_eq!(
            looks(&mut follow, &four, 0, &[]),
            Some(3),
            "who asked is not known: a caller ended, or has no number here"
        );
    }

    #[test]
    fn many_callers_are_left_to_the_scheduler() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        let seen = |live| Seen { given: two, idle: Some(0), callers: vec![0, 1], live, runnable: None, rate: FAST };
        assert_eq!([4, 4, 4, 4].map(|live| auto.decide(&seen(live))), [None; 4]);
        assert!(auto.decide(&seen(2)).is_some());
        assert!([4, 4, 4, 2, 4, 4].iter().all(|live| auto.decide(&seen(*live)).is_some()), "a moment of more is none");
        assert_eq!([4, 4, 4].map(|live| auto.decide(&seen(live))).last(), Some(&None));
        let mut follow = Placement::new(Placing::Follow);
        assert!((0..9).all(|_| follow.decide(&seen(9)).is_some()), "unless it was asked for");
    }

    #[test]
    fn a_caller_who_waits_for_the_disk_is_left_to_the_scheduler() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        let seen = |rate| Seen { given: two, idle: Some(0), callers: vec![1], live: 1, runnable: None, rate };
        assert_eq!([600, 600, 600, FAST - 1].map(|rate| auto.decide(&seen(rate))), [None; 4]);
        assert_eq!(auto.decide(&seen(FAST)), Some(1));
        assert_eq!([SLOW; 9].map(|rate| auto.decide(&seen(rate))), [Some(1); 9], "hysteresis");
        assert_eq!([600, 600, 600, 600, SLOW, 600].map(|rate| auto.decide(&seen(rate))), [Some(1); 6], "a moment");
        assert_eq!([600; 4].map(|rate| auto.decide(&seen(rate))).last(), Some(&None));
        assert_eq!(Placement::new(Placing::Follow).decide(&seen(1)), Some(1), "unless it was asked for");
    }

    #[test]
    fn a_caller_that_was_elsewhere_once_is_not_followed_there() {
        let (mut follow, two) = (Placement::new(Placing::Follow), processors(0..2));
        let seen = |caller| Seen { given: two, idle: None, callers: vec![caller], live: 1, runnable: None, rate: FAST };
        assert_eq!(follow.decide(&seen(0)), Some(0));
        assert_eq!([1, 0, 1, 0].map(|caller| follow.decide(&seen(caller))), [Some(0); 4]);
        assert_eq!([1, 1].map(|caller| follow.decide(&seen(caller))), [Some(0), Some(1)]);
    }

    #[test]
    fn only_processors_that_were_given_are_used() {
        let mut follow = Placement::new(Placing::Follow);
        assert_eq!(
            looks(&mut follow, &processors([1, 2]), 0, &[3, 3, 3, 2]),
            Some(2),
            "3 is isolated, or not in the cpuset"
        );
        assert_eq!(looks(&mut follow, &processors([1]), 0, &[3, 2]), None, "the cpuset has changed, or 2 went offline");
        assert_eq!(looks(&mut follow, &processors([1, 3]), 0, &[3, 2]), Some(3));
        assert_eq!(looks(&mut follow, &processors([1]), 0, &[5000]), None);
    }

    #[test]
    fn callers_that_move_all_the_time_are_left_alone_for_a_while() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        let moving = |placement: &mut Placement, looks: usize| {
            let at = |look| Seen {
                given: two,
                idle: (look % 10 == 0).then_some(0),
                callers: vec![look / 2 % 2],
                live: 1,
                runnable: None,
                rate: FAST,
            };
            (0..looks).map(|look| placement.decide(&at(look))).filter(Option::is_some).count()
        };
        assert!(moving(&mut auto, 100) < 80);
        assert_eq!(moving(&mut auto, 400), 0);
        assert!(moving(&mut auto, 200) > 0, "it is tried again");
        assert!(moving(&mut Placement::new(Placing::Follow), 600) > 590, "unless it was asked for");
    }

    #[test]
    fn what_the_kernel_refuses_is_not_tried_again_at_once() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        looks(&mut auto, &two, 0, &[1]);
        assert_eq!(looks(&mut auto, &two, 0, &[1]), Some(1));
        auto.refused();
        assert_eq!((0..40).filter_map(|_| looks(&mut auto, &two, 0, &[1])).count(), 0);
        let later: Vec<_> = (0..20).filter_map(|_| looks(&mut auto, &two, 0, &[1])).collect();
        assert!(!later.is_empty());
    }

    #[test]
    fn after_a_pause_a_busy_machine_is_still_busy_but_nobody_is_followed_before_he_is_seen() {
        let (mut auto, two) = (Placement::new(Placing::Auto), processors(0..2));
        looks(&mut auto, &two, 0, &[1]);
        assert_eq!(looks(&mut auto, &two, 0, &[1]), Some(1));
        auto.pause();
        let seen = |callers: &[usize]| Seen {
            given: two,
            idle: None,
            callers: callers.to_vec(),
            live: 1,
            runnable: None,
            rate: FAST,
        };
        assert_eq!([auto.decide(&seen(&[])), auto.decide(&seen(&[0]))], [None, Some(0)]);
        assert_eq!(looks(&mut Placement::new(Placing::Off), &two, 0, &[1]), None);
    }
}
