//! What a process does with the index, in the order in which the engine does it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::format::geometry::Geometry;
use crate::engine::format::word::Word;
use crate::engine::index::{CountUp, Index, Probe, ProcessSlot, Role, SegmentState};
use crate::sys::file::File;
use crate::sys::fork::OwnFile;
use crate::sys::machine::{Died, Machine, Process};

/// One chain, and two buckets for it to grow by.
pub(crate) const TINY: Geometry = Geometry { primaries: 1, buckets: 3, segments: 2 };
/// The segment that a scenario begins with.
pub(crate) const SEGMENT: u32 = 1;
/// What is in place of a record whose segment was freed.
const FREED: u64 = u64::MAX;

/// A process that is attached.
pub(crate) struct Member {
    pub(crate) index: Index,
    pub(crate) process: Arc<Process>,
}

/// Processes 1 to `count` on `machine`, all attached to an index that the first has made.
pub(crate) fn members(machine: &Arc<Machine>, count: u32) -> Vec<Arc<Member>> {
    let attach = |number| {
        let process = Process::new(machine, number);
        let file = File(process.clone());
        let process_slot = ProcessSlot::new(Arc::new(OwnFile(process.clone())), number);
        let index = match number {
            1 => Index::create(&file, TINY, process_slot).unwrap(),
            _ => Index::join(&file, process_slot).unwrap().expect("an index is there"),
        };
        Arc::new(Member { index, process })
    };
    let members: Vec<_> = (1..=count).map(attach).collect();
    let first = &members[0];
    assert_eq!(first.index.begin_segment(4096), Some(SEGMENT));
    assert!(first.index.move_segment(SEGMENT, SegmentState::Unborn, SegmentState::Active));
    // Loom wants every word that is used to be made before others begin.
    assert!(first.set(9, 0) && first.delete(9));
    assert!(!first.index.wants_recount() && first.index.drops() == 0);
    members
}

impl Member {
    /// Publishes a record of a key. `false` if the lock was stolen meanwhile.
    pub(crate) fn set(&self, key: u64, record: u32) -> bool {
        self.set_in(SEGMENT, key, record)
    }

    /// The same, where the record is in another segment.
    pub(crate) fn set_in(&self, segment: u32, key: u64, record: u32) -> bool {
        let index = &self.index;
        let locked = index.lock(key).expect("nobody is stopped");
        let old = index.find(key, |_| Probe::Match).entry;
        let generation = loop {
            let generation = index.generation();
            if old.is_some_and(|(_, word)| self.generation_of(word) == generation) {
                break generation;
            }
            match index.count_up(generation, 100) {
                CountUp::Counted => break generation,
                // Whoever began it may be dead: this process has to see it all the same.
                CountUp::OtherGeneration => assert!(index.generation() > generation),
                CountUp::Full => panic!("there is room"),
            }
        };
        let slot = old.map_or_else(|| locked.vacant().unwrap().slot, |(slot, _)| slot);
        let stamp = u64::from(generation) << 32 | index.next_sequence();
        self.process.record(record).store(stamp, Relaxed);
        locked.set(slot, Word::new(key, segment, record * 8));
        locked.unlock().is_ok()
    }

    /// Removes a key, if it is there; likewise.
    pub(crate) fn delete(&self, key: u64) -> bool {
        let locked = self.index.lock(key).expect("nobody is stopped");
        let generation = self.index.generation();
        match self.index.find(key, |_| Probe::Match).entry {
            Some((slot, word)) if self.generation_of(word) == generation => {
                locked.clear(slot);
                self.index.count_down(generation);
            }
            _ => {}
        }
        locked.unlock().is_ok()
    }

    /// The record of a key and its stamp.
    pub(crate) fn get(&self, key: u64) -> Option<(u32, u64)> {
        self.get_and(key, || {})
    }

    /// The same, with something done when the word is found and the record not read yet.
    pub(crate) fn get_and(&self, key: u64, between: impl FnOnce()) -> Option<(u32, u64)> {
        let found = self.index.find(key, |_| Probe::Match);
        between();
        let read = found.entry.map(|(_, word)| (word.offset() / 8, self.stamp(word.offset() / 8)));
        assert!(!self.index.is_damaged(key, &found), "what nobody damaged was taken for damaged");
        if let Some((record, stamp)) = read {
            assert_ne!(stamp, 0, "a word names record {record}, which nobody has stamped");
            assert_ne!(stamp, FREED, "a word names record {record}, which was freed");
        }
        read
    }

    fn generation_of(&self, word: Word) -> u32 {
        (self.stamp(word.offset() / 8) >> 32) as u32
    }

    pub(crate) fn stamp(&self, record: u32) -> u64 {
        self.process.record(record).load(Relaxed)
    }

    /// Puts something else where the record was.
    pub(crate) fn free(&self, record: u32) {
        self.process.record(record).store(FREED, Relaxed);
    }

    pub(crate) fn is_freed(&self, record: u32) -> bool {
        self.stamp(record) == FREED
    }

    /// Lets go of segment `id` if it was dropped, and says so. Says whether it has.
    pub(crate) fn keep_up(&self, id: u32) -> bool {
        let seen = self.index.drops();
        let dropped = self.index.segment_state(id) == Some(SegmentState::Dropped);
        self.index.acknowledge_drops(seen);
        dropped
    }

    /// Does `what`, unless the process dies of it. Says whether it lives.
    pub(crate) fn survives(&self, what: impl FnOnce()) -> bool {
        match catch_unwind(AssertUnwindSafe(what)) {
            Ok(()) => true,
            Err(why) if why.is::<Died>() => false,
            Err(why) => resume_unwind(why),
        }
    }

    /// As the engine counts: one at a time, and if no lock was held or taken meanwhile, the count is of the same moment.
    pub(crate) fn count_again(&self) {
        let Some(_turn) = self.index.try_acquire(Role::Count).unwrap() else { return };
        self.index.set_wants_recount(false);
        let (generation, seen, counted) = match self.index.unlocks() {
            Some(before) => {
                let (generation, seen) = self.index.generation_and_count();
                let entries = self.index.reached_entries();
                let counted =
                    entries.filter(|(_, word)| self.generation_of(*word) == generation).count();
                if self.index.unlocks() != Some(before) {
                    return self.index.set_wants_recount(true);
                }
                (generation, seen, counted)
            }
            None => return self.index.set_wants_recount(true),
        };
        self.index.correct_count(generation, counted as i64 - i64::from(seen));
    }

    /// What holds when nobody changes anything: the words fit their checks, no key is there twice, and the count is
    /// right, or is known to be wrong, and then it is too high.
    pub(crate) fn check_at_rest(&self) {
        self.index.release_locks_of_dead();
        assert_eq!(self.index.damaged_buckets(), [0u32; 0]);
        let mut words = self.index.chain_words(0);
        let (generation, count) = self.index.generation_and_count();
        let there = words.iter().filter(|word| self.generation_of(**word) == generation).count();
        let right =
            count as usize == there || (self.index.wants_recount() && count as usize > there);
        assert!(right, "{count} counted, {there} there");
        let all = words.len();
        words.sort_unstable_by_key(|word| word.0 >> 54);
        words.dedup_by_key(|word| word.0 >> 54);
        assert_eq!(words.len(), all, "a key is there twice");
    }
}
