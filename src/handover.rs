//! What a FUSE server leaves to the next one when it dies: shared memory that its supervisor keeps.
//!
//! A server's state is a cache of what is on disk, but for this: which requests had begun, which open descriptors
//! belong to inodes without a name, which inodes of the image have lost their last name, and the order in which names
//! were created. The supervisor makes the
//! memory, and every server of the mount, one after the other, is forked with it. All accesses are atomic and none
//! waits, so a server that is killed at any moment leaves it usable.
//!
//! # Requests
//!
//! The kernel sends a request again that the dead server had read and not answered (FUSE_NOTIFY_RESEND). It may have
//! taken effect. So before a request that must not be executed twice a server records how things are ([`Before`]), and
//! removes the record after its answer. If the request comes again and things are no longer so, it has taken effect:
//! nothing else can have changed them, as the kernel holds the locks of the inodes concerned until the answer.

use crate::sys::{self, SharedWords};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How things are before a request is executed: what the words mean depends on the request.
pub type Before = [u64; 3];

/// How many requests can be recorded: many more than a server executes at a time.
const RECORDS: usize = 1024;
/// The words of a record: the request's number, and [`Before`].
const RECORD: usize = 4;
/// The number of a record that is being written.
const UNFINISHED: u64 = u64::MAX;
/// Descriptors from this number on are not handed over.
const MOST_DESCRIPTORS: usize = 1 << 20;

/// How many serial numbers of new names are kept. With more, a listing that goes on in the next server shows some names
/// twice.
const SERIALS: usize = 1 << 16;
/// The words of a serial number: directory, hash of the name, number.
const SERIAL: usize = 3;
/// In place of a serial number: those before of the directory do not count. No new name has it.
const DROPPED: u64 = 0;

const FLAGS: usize = 0;
const STARTS: usize = 1;
/// The ID of a thread of the server.
const THREAD: usize = 3;
/// How many serial numbers have been left.
const SERIALS_LEFT: usize = 2;
const FIRST_RECORD: usize = 8;
const FIRST_DESCRIPTOR: usize = FIRST_RECORD + RECORDS * RECORD;
const FIRST_SERIAL: usize = FIRST_DESCRIPTOR + MOST_DESCRIPTORS;
const FIRST_INODE: usize = FIRST_SERIAL + SERIALS * SERIAL;

/// Bits of the flags.
const LIVE: u64 = 1;
const LOST_WRITE: u64 = 2;

/// The number of words for a mount of an image with that number of inodes.
fn size(inodes: u64) -> io::Result<usize> {
    Ok(FIRST_INODE + usize::try_from(inodes / 64 + 1).map_err(io::Error::other)?)
}

/// The memory of one mount.
pub struct Handover {
    words: SharedWords,
    /// The number of inodes that the image has.
    inodes: u64,
}

/// The record of a request that is being executed. Dropped after the answer.
pub struct Record {
    handover: Arc<Handover>,
    slot: usize,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.handover.words[self.slot].store(0, Ordering::Release);
    }
}

impl Handover {
    /// Allocates the memory for a mount of an image with that number of inodes; 0 for lower directories, whose removed
    /// inodes are not recorded.
    pub fn new(inodes: u64) -> io::Result<Handover> {
        Ok(Handover { words: SharedWords::new(size(inodes)?)?, inodes })
    }

    /// Takes the memory over from the process that had this one's place before an exec. An error if it is not that of
    /// such a mount.
    pub fn of_file(memory: File, inodes: u64) -> io::Result<Handover> {
        Ok(Handover { words: SharedWords::of_file(memory, size(inodes)?)?, inodes })
    }

    /// Returns the descriptor of the memory, for [`Handover::of_file`].
    pub fn file(&self) -> &File {
        self.words.file()
    }

    /// Begins a server. Not while another one runs.
    pub fn begin_server(&self) {
        self.words[STARTS].fetch_add(1, Ordering::Relaxed);
        // A record that the last server did not finish is of a request that it had not begun to execute.
        for slot in (0..RECORDS).map(|number| &self.words[FIRST_RECORD + number * RECORD]) {
            let _other = slot.compare_exchange(UNFINISHED, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether another server has run before this one.
    pub fn is_resumed(&self) -> bool {
        self.words[STARTS].load(Ordering::Relaxed) > 1
    }

    /// Whether a server has answered the kernel's first request: the mount is live.
    pub fn is_live(&self) -> bool {
        self.words[FLAGS].load(Ordering::Acquire) & LIVE != 0
    }

    /// Records that the mount is live.
    pub fn set_live(&self) {
        self.words[FLAGS].fetch_or(LIVE, Ordering::Release);
    }

    /// Returns the ID of a thread that the server has as long as it lives.
    pub fn thread(&self) -> i32 {
        self.words[THREAD].load(Ordering::Relaxed) as i32
    }

    /// Records such a thread.
    pub fn set_thread(&self, id: i32) {
        self.words[THREAD].store(id as u64, Ordering::Relaxed);
    }

    /// Whether a write to the disk has failed in this mount.
    pub fn has_lost_write(&self) -> bool {
        self.words[FLAGS].load(Ordering::Relaxed) & LOST_WRITE != 0
    }

    /// Records that a write to the disk has failed.
    pub fn set_lost_write(&self) {
        self.words[FLAGS].fetch_or(LOST_WRITE, Ordering::Relaxed);
    }

    /// Records how things are before a request is executed.
    pub fn record(self: &Arc<Self>, request: u64, before: Before) -> Record {
        let first = usize::try_from(request).unwrap_or_default() / 2;
        let slots = (0..RECORDS).map(|number| FIRST_RECORD + (first + number) % RECORDS * RECORD);
        let free = |slot: &usize| {
            let claimed = self.words[*slot].compare_exchange(0, UNFINISHED, Ordering::Acquire, Ordering::Relaxed);
            claimed.is_ok()
        };
        let slot = slots.clone().find(free).unwrap_or_else(|| self.take_oldest(slots));
        for (number, word) in before.into_iter().enumerate() {
            self.words[slot + 1 + number].store(word, Ordering::Relaxed);
        }
        self.words[slot].store(request, Ordering::Release);
        Record { handover: self.clone(), slot }
    }

    /// Takes the record of the oldest request. A server that dies between an answer and the removal of its record
    /// leaves one; requests are numbered in ascending order, so the oldest is such a one.
    fn take_oldest(&self, slots: impl Iterator<Item = usize>) -> usize {
        let oldest = slots.min_by_key(|slot| self.words[*slot].load(Ordering::Relaxed)).unwrap_or(FIRST_RECORD);
        self.words[oldest].store(UNFINISHED, Ordering::Relaxed);
        oldest
    }

    /// Returns how things were before the request was executed for the first time; `None` if that had not begun.
    pub fn before(self: &Arc<Self>, request: u64) -> Option<(Before, Record)> {
        let slot = (0..RECORDS)
            .map(|number| FIRST_RECORD + number * RECORD)
            .find(|slot| self.words[*slot].load(Ordering::Acquire) == request)?;
        let word = |number: usize| self.words[slot + number].load(Ordering::Relaxed);
        Some(([word(1), word(2), word(3)], Record { handover: self.clone(), slot }))
    }

    /// Hands over a descriptor of an inode that is about to lose its last name. Returns whether that was possible.
    pub fn hold(&self, descriptor: &impl AsFd, ino: u64) -> bool {
        self.descriptor(descriptor.as_fd().as_raw_fd()).is_some_and(|word| {
            word.store(ino, Ordering::Release);
            true
        })
    }

    /// Takes that back, before the descriptor is closed.
    pub fn release(&self, descriptor: &impl AsFd) {
        if let Some(word) = self.descriptor(descriptor.as_fd().as_raw_fd()) {
            word.store(0, Ordering::Release);
        }
    }

    /// Returns the inode that an open descriptor was handed over for.
    pub fn held(&self, descriptor: i32) -> Option<u64> {
        let ino = self.descriptor(descriptor)?.load(Ordering::Acquire);
        (ino != 0).then_some(ino)
    }

    fn descriptor(&self, number: i32) -> Option<&AtomicU64> {
        let number = usize::try_from(number).ok().filter(|number| *number < MOST_DESCRIPTORS)?;
        Some(&self.words[FIRST_DESCRIPTOR + number])
    }

    /// Returns the descriptors that were handed over, with their inodes.
    pub fn all_held(&self) -> io::Result<Vec<(i32, u64)>> {
        let open = sys::descriptors()?.into_iter();
        Ok(open.filter_map(|number| Some((number, self.held(number)?))).collect())
    }

    /// Leaves the serial number that a new name of a directory has in listings. The caller serializes the calls.
    pub fn leave_serial(&self, dir: u64, name: u64, serial: u64) {
        let count = self.words[SERIALS_LEFT].load(Ordering::Relaxed);
        let slot = FIRST_SERIAL + count as usize % SERIALS * SERIAL;
        for (number, word) in [dir, name, serial].into_iter().enumerate() {
            self.words[slot + number].store(word, Ordering::Relaxed);
        }
        self.words[SERIALS_LEFT].store(count + 1, Ordering::Release);
    }

    /// Takes back the serial numbers that were left of names in a directory. The caller serializes the calls.
    pub fn drop_serials(&self, dir: u64) {
        self.leave_serial(dir, 0, DROPPED);
    }

    /// Returns the last serial numbers, by directory and hash of the name.
    pub fn serials(&self) -> HashMap<u64, HashMap<u64, u64>> {
        let count = self.words[SERIALS_LEFT].load(Ordering::Acquire) as usize;
        let mut all: HashMap<u64, HashMap<u64, u64>> = HashMap::new();
        for number in count.saturating_sub(SERIALS)..count {
            let slot = FIRST_SERIAL + number % SERIALS * SERIAL;
            let [dir, name, serial] = [0, 1, 2].map(|word| self.words[slot + word].load(Ordering::Relaxed));
            match serial {
                DROPPED => drop(all.remove(&dir)),
                _ => drop(all.entry(dir).or_default().insert(name, serial)),
            }
        }
        all
    }

    /// Records whether an inode of the image has no name left.
    pub fn set_removed(&self, ino: u64, removed: bool) {
        if ino > self.inodes {
            return;
        }
        let (word, bit) = (&self.words[FIRST_INODE + ino as usize / 64], 1 << (ino % 64));
        match removed {
            true => word.fetch_or(bit, Ordering::Relaxed),
            false => word.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Returns the inodes of the image that have no name left.
    pub fn removed(&self) -> impl Iterator<Item = u64> {
        let words = self.words[FIRST_INODE..].iter().enumerate();
        words.flat_map(|(at, word)| {
            let bits = word.load(Ordering::Relaxed);
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| at as u64 * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_until_they_are_dropped() {
        let handover = Arc::new(Handover::new(0).unwrap());
        let first = handover.record(2, [1, 2, 3]);
        let second = handover.record(2 + 2 * RECORDS as u64, [4, 5, 6]);
        assert_eq!(handover.before(2).unwrap().0, [1, 2, 3]);
        // `before` has dropped the record that it returned, as an answer does.
        assert!(handover.before(2).is_none());
        drop((first, second));
        assert!(handover.before(2 + 2 * RECORDS as u64).is_none());
    }

    #[test]
    fn records_that_dead_servers_left_are_reused_from_the_oldest() {
        let handover = Arc::new(Handover::new(0).unwrap());
        for request in 1..=RECORDS as u64 {
            std::mem::forget(handover.record(request * 2, [request, 0, 0]));
        }
        let newest = RECORDS as u64 * 2 + 2;
        let _held = handover.record(newest, [7, 7, 7]);
        assert!(handover.before(2).is_none());
        assert_eq!(handover.before(4).unwrap().0, [2, 0, 0]);
        assert_eq!(handover.before(newest).unwrap().0, [7, 7, 7]);
    }

    #[test]
    fn an_unfinished_record_is_of_a_request_that_had_not_begun() {
        let handover = Arc::new(Handover::new(0).unwrap());
        handover.words[FIRST_RECORD].store(UNFINISHED, Ordering::Relaxed);
        handover.begin_server();
        assert_eq!(handover.words[FIRST_RECORD].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_last_serial_numbers_are_kept() {
        let handover = Handover::new(0).unwrap();
        for number in 0..SERIALS as u64 + 2 {
            handover.leave_serial(number % 2, number, number + 5);
        }
        let left = handover.serials();
        assert_eq!(left.values().map(HashMap::len).sum::<usize>(), SERIALS);
        assert_eq!((left[&0].get(&0), left[&1].get(&1)), (None, None));
        assert_eq!((left[&0][&2], left[&1][&3]), (7, 8));
        handover.leave_serial(0, 2, 99);
        assert_eq!(handover.serials()[&0][&2], 99);
        handover.drop_serials(0);
        handover.leave_serial(0, 3, 100);
        assert_eq!(handover.serials()[&0], HashMap::from([(3, 100)]));
    }

    #[test]
    fn removed_inodes_and_held_descriptors() {
        let handover = Handover::new(130).unwrap();
        for ino in [1, 64, 129, 131, u64::MAX] {
            handover.set_removed(ino, true);
        }
        handover.set_removed(64, false);
        assert_eq!(handover.removed().collect::<Vec<_>>(), [1, 129]);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(handover.hold(&file, 5));
        assert_eq!(handover.all_held().unwrap(), [(file.as_raw_fd(), 5)]);
        handover.release(&file);
        assert!(handover.all_held().unwrap().is_empty());
    }
}
