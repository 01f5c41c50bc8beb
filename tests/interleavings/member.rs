//! The operations of a process on the index, in the order in which the engine performs them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::format::geometry::Geometry;
use crate::engine::format::word::Word;
use crate::engine::index::{CountUp, Index, Probe, ProcessSlot, Role, SegmentState};
use crate::sys::fork::OwnFile;
use crate::sys::machine::{Died, Machine, Process};
use crate::sys::storage::File;

/// One chain, and two overflow buckets for it.
pub(crate) const TINY: Geometry = Geometry { primaries: 1, buckets: 3, segments: 2 };
/// The segment that exists when a scenario begins.
pub(crate) const SEGMENT: u32 = 1;
/// Replaces the stamp of a record whose segment was freed.
const FREED: u64 = u64::MAX;

/// An attached process.
pub(crate) struct Member {
    pub(crate) index: Index,
    pub(crate) process: Arc<Process>,
}

/// Attaches processes 1 to `count` on `machine` to an index that the first one creates.
pub(crate) fn members(machine: &Arc<Machine>, count: u32) -> Vec<Arc<Member>> {
    let attach = |number| {
        let process = Process::new(machine, number);
        let file = File(process.clone());
        let process_slot = ProcessSlot::new(Arc::new(OwnFile(process.clone())), number);
        let index = match number {
            1 => Index::create(&file, TINY, process_slot).unwrap(),
            _ => Index::join(&file, process_slot).unwrap().expect("the index exists"),
        };
        Arc::new(Member { index, process })
    };
    let members: Vec<_> = (1..=count).map(attach).collect();
    let first = &members[0];
    assert_eq!(first.index.create_segment(4096), Some(SEGMENT));
    assert!(first.index.activate_segment(SEGMENT));
    // Loom requires that all words are created before other threads start.
    assert!(first.set(9, 0) && first.delete(9));
    assert!(!first.index.wants_recount() && first.index.drops() == 0);
    members
}

impl Member {
    /// Publishes a record of a key. Returns `false` if the lock was stolen meanwhile.
    pub(crate) fn set(&self, key: u64, record: u32) -> bool {
        self.set_in(SEGMENT, key, record)
    }

    /// The same with a record in another segment.
    pub(crate) fn set_in(&self, segment: u32, key: u64, record: u32) -> bool {
        let index = &self.index;
        let locked = index.lock(key).expect("no process is stopped");
        let old = index.find(key, |_| Probe::Match).entry;
        let generation = loop {
            let generation = index.generation();
            if old.is_some_and(|(_, word)| self.generation_of(word) == generation) {
                break generation;
            }
            match index.count_up(generation, 100) {
                CountUp::Counted => break generation,
                // The process that began the generation may be dead. This process must see it.
                CountUp::OtherGeneration => assert!(index.generation() > generation),
                CountUp::Full => panic!("the bound is not reached"),
            }
        };
        let slot = old.map_or_else(|| locked.vacant().unwrap().slot, |(slot, _)| slot);
        let stamp = u64::from(generation) << 32 | index.next_sequence();
        self.process.record(record).store(stamp, Relaxed);
        locked.set(slot, Word::new(key, segment, record * 8));
        locked.unlock().is_ok()
    }

    /// Removes a key if it is present. Returns `false` if the lock was stolen meanwhile.
    pub(crate) fn delete(&self, key: u64) -> bool {
        let locked = self.index.lock(key).expect("no process is stopped");
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
        self.get_with(key, || {})
    }

    /// The same, with a call of `between` after the word is found and before the record is read.
    pub(crate) fn get_with(&self, key: u64, between: impl FnOnce()) -> Option<(u32, u64)> {
        let found = self.index.find(key, |_| Probe::Match);
        between();
        let read = found.entry.map(|(_, word)| (word.offset() / 8, self.stamp(word.offset() / 8)));
        assert!(!self.index.is_damaged(key, &found), "an intact key was taken for damaged");
        if let Some((record, stamp)) = read {
            assert_ne!(stamp, 0, "a word names record {record}, which is not stamped");
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

    /// Overwrites the record, as the reuse of its place does.
    pub(crate) fn free(&self, record: u32) {
        self.process.record(record).store(FREED, Relaxed);
    }

    pub(crate) fn is_freed(&self, record: u32) -> bool {
        self.stamp(record) == FREED
    }

    /// Acknowledges the drops so far. Returns whether segment `id` was dropped, so that the process
    /// must have unmapped it.
    pub(crate) fn acknowledge_drop(&self, id: u32) -> bool {
        let seen = self.index.drops();
        let dropped = self.index.segment_state(id) == Some(SegmentState::Dropped);
        self.index.acknowledge_drops(seen);
        dropped
    }

    /// Calls `what`. Returns whether the process survived it.
    pub(crate) fn survives(&self, what: impl FnOnce()) -> bool {
        match catch_unwind(AssertUnwindSafe(what)) {
            Ok(()) => true,
            Err(why) if why.is::<Died>() => false,
            Err(why) => resume_unwind(why),
        }
    }

    /// Recounts the entries as the engine does: one process at a time. The count is valid only if
    /// no lock was held or taken meanwhile, so that it is of one moment.
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

    /// Asserts what holds while no process changes anything: the words fit their checks, no key is
    /// there twice, and the count is right. If a recount is wanted, the count may be too high.
    pub(crate) fn check_at_rest(&self) {
        self.index.release_locks_of_dead();
        assert_eq!(self.index.damaged_buckets(), [0u32; 0]);
        let mut words = self.index.chain_words(0);
        let (generation, count) = self.index.generation_and_count();
        let live = words.iter().filter(|word| self.generation_of(**word) == generation).count();
        let right = count as usize == live || (self.index.wants_recount() && count as usize > live);
        assert!(right, "{count} counted, {live} live");
        let all = words.len();
        words.sort_unstable_by_key(|word| word.0 >> 54);
        words.dedup_by_key(|word| word.0 >> 54);
        assert_eq!(words.len(), all, "a key is there twice");
    }
}
