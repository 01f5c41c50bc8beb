//! Shows invariants I13 and I16.

use super::lock::Stolen;
use super::slot::Probe;
use super::*;
use crate::engine::format::index_header::SEGMENTS_AT;
use crate::engine::format::word::{MAX_OFFSET, OFFSET_UNIT};

fn index(entries: u64) -> Index {
    Index::in_memory(Geometry::for_entries(entries, 16)).unwrap()
}

/// A hash in the primary bucket of number `bucket`, with tag `tag`.
fn hash(index: &Index, bucket: u64, tag: u64) -> u64 {
    let width = u64::MAX / u64::from(index.geometry().primaries);
    let hash = ((bucket * width + width / 2) & !1023) | tag;
    assert_eq!(index.primary_of(hash), bucket as u32);
    hash
}

/// Fewer entries under Miri, which is slow.
const MANY: u64 = if cfg!(miri) { 200 } else { 4_000 };

fn put(index: &Index, hash: u64, word: Word) {
    let locked = index.lock(hash).unwrap();
    let slot = locked.vacant().unwrap().slot;
    locked.set(slot, word);
}

fn is(word: Word) -> impl FnMut(Word) -> Probe {
    move |w| if w == word { Probe::Match } else { Probe::Other }
}

#[test]
fn a_word_keeps_tag_segment_and_offset() {
    let word = Word::new(0x3ff, u32::MAX, (MAX_OFFSET - OFFSET_UNIT) as u32);
    assert_eq!((word.segment(), word.offset()), (u32::MAX, (MAX_OFFSET - OFFSET_UNIT) as u32));
    assert!(word.has_tag_of(0xffff_ffff_ffff_ffff) && !word.has_tag_of(0));
}

#[test]
fn chains_grow_and_every_entry_is_found() {
    let index = index(MANY);
    let words: Vec<_> =
        (1..=40u32).map(|i| Word::new(hash(&index, 3, u64::from(i)), i, 64)).collect();
    for (i, word) in words.iter().enumerate() {
        put(&index, hash(&index, 3, i as u64 + 1), *word);
    }
    for (i, word) in words.iter().enumerate() {
        let found = index.find(hash(&index, 3, i as u64 + 1), is(*word));
        assert_eq!(found.entry.map(|(_, w)| w), Some(*word));
        assert!(!index.is_damaged(hash(&index, 3, 1), &found));
    }
    assert_eq!(index.chain_words(3).len(), 40);
    assert!(index.damaged_buckets().is_empty());
    assert!(index.entries(0..index.geometry().buckets).count() == 40);
}

#[test]
fn a_chain_does_not_grow_beyond_its_limit() {
    let index = index(MANY);
    let hash = hash(&index, 0, 1);
    let mut placed = 0u32;
    loop {
        let locked = index.lock(hash).unwrap();
        match locked.vacant() {
            Ok(vacancy) => locked.set(vacancy.slot, Word::new(hash, placed + 1, 64)),
            Err(_) => break,
        }
        placed += 1;
    }
    assert!(placed >= 90, "{placed}");
}

#[test]
fn readers_detect_a_stray_write_and_writers_wipe_it() {
    let index = index(100);
    let hash = hash(&index, 5, 9);
    let word = Word::new(hash, 1, 64);
    put(&index, hash, word);
    let (slot, _) = index.find(hash, is(word)).entry.unwrap();
    let stray = Word(word.0 ^ 0x10);
    index.bucket(slot.bucket()).unwrap().set_word(slot.within(), stray);
    let found = index.find(hash, is(stray));
    assert!(index.is_damaged(hash, &found));
    assert_eq!(index.damaged_buckets(), [5]);
    assert_eq!(index.lock(hash).unwrap().wiped(), 1);
    assert!(index.find(hash, is(stray)).entry.is_none());
    assert!(index.damaged_buckets().is_empty());
}

#[test]
fn the_count_is_exact_at_the_bound_and_per_generation() {
    let index = index(100);
    assert_eq!(index.count_up(0, 2), CountUp::Counted);
    assert_eq!(index.count_up(0, 2), CountUp::Counted);
    assert_eq!(index.count_up(0, 2), CountUp::Full);
    index.count_down(0);
    assert_eq!(index.count(), 1);
    index.begin_generation(1);
    assert_eq!((index.count(), index.generation()), (0, 1));
    index.count_down(0);
    assert_eq!(index.count_up(0, 2), CountUp::OtherGeneration);
    assert_eq!(index.count_up(1, 2), CountUp::Counted);
}

#[test]
fn an_index_opens_only_with_the_header_of_its_close() {
    let file = File::nameless().unwrap();
    let index = Index::create(&file, Geometry::for_entries(100, 16), ProcessSlot::alone()).unwrap();
    index.next_sequence();
    let copy = index.header_copy();
    assert!(Index::open(&file, &copy, ProcessSlot::alone()).unwrap().is_some());
    index.next_sequence();
    assert!(Index::open(&file, &copy, ProcessSlot::alone()).unwrap().is_none());
}

#[test]
fn empty_overflow_buckets_are_reused_by_other_chains() {
    let index = index(MANY);
    let free = index.geometry().buckets - index.geometry().primaries;
    // Each round takes four overflow buckets.
    for round in 0..if cfg!(miri) { free / 3 } else { free } {
        let bucket = u64::from(round % index.geometry().primaries);
        let words: Vec<_> =
            (1..=30u32).map(|i| Word::new(hash(&index, bucket, u64::from(i)), i, 64)).collect();
        let hashes: Vec<_> = (1..=30).map(|i| hash(&index, bucket, i)).collect();
        for (hash, word) in hashes.iter().zip(&words) {
            put(&index, *hash, *word);
        }
        for (hash, word) in hashes.iter().zip(&words) {
            let (slot, _) =
                index.find(*hash, is(*word)).entry.expect("an entry stays until it is removed");
            index.lock(*hash).unwrap().clear(slot);
        }
        assert!(index.chain_words(bucket as u32).is_empty());
    }
    assert!(index.damaged_buckets().is_empty());
}

#[test]
fn a_lock_without_a_living_owner_is_taken_over() {
    let index = index(100);
    let hash = hash(&index, 5, 9);
    let word = Word::new(hash, 1, 64);
    put(&index, hash, word);
    let bucket = index.bucket(5).unwrap();
    // One flipped bit sets the lock bit. The check is still right.
    bucket.set_control(bucket::Control(bucket.control().0 | 1));
    assert!(!index.is_damaged(hash, &index.find(hash, is(word))));
    assert_eq!(index.lock(hash).unwrap().wiped(), 0);
    assert!(index.find(hash, is(word)).entry.is_some());
    // The lock of a dead process: the words that it stored are valid.
    bucket.set_control(bucket.control().locked_by(Owner::from_bits(8)));
    assert!(!index.is_damaged(hash, &index.find(hash, is(word))));
    assert_eq!(index.lock(hash).unwrap().wiped(), 0);
    assert!(index.find(hash, is(word)).entry.is_some());
    assert!(index.damaged_buckets().is_empty() && index.wants_recount());
}

#[test]
fn a_living_owner_is_waited_for_and_a_stolen_lock_is_detected() {
    let index = index(100);
    let hash = hash(&index, 5, 9);
    let locked = index.lock(hash).unwrap();
    assert!(matches!(index.lock(hash), Err(Busy)));
    let bucket = index.bucket(5).unwrap();
    bucket.set_control(bucket.control().locked_by(Owner::from_bits(8)));
    assert_eq!(locked.unlock(), Err(Stolen));
}

#[test]
fn a_lookup_under_a_lock_is_repeated_after_a_takeover() {
    let index = index(100);
    let hash = hash(&index, 5, 9);
    let bucket = index.bucket(5).unwrap();
    bucket.set_control(bucket.control().locked_by(Owner::from_bits(8)));
    let found = index.find(hash, is(Word::EMPTY));
    assert!(found.has_lost(), "a recovery may bring back a record that the owner has stamped");
    // The owner publishes, and dies.
    bucket.set_word(1, Word::new(hash, 1, 64));
    let locked = index.lock(hash).unwrap();
    assert!(!locked.unchanged_since(&found) && locked.has_lost());
}

#[test]
fn a_takeover_of_the_clear_lock_tells_if_the_clear_was_done() {
    let index = index(100);
    for begun in [false, true] {
        let lock = index.lock_clear().unwrap();
        assert!(!lock.unfinished);
        if begun {
            index.begin_generation(index.generation() + 1);
        }
        // As if the owner were another process, which died.
        let word = &index.words()[at::CLEAR_LOCK];
        word.store(word.load(Ordering::Relaxed) ^ 2 << 20, Ordering::Relaxed);
        drop(lock);
        assert_eq!(index.lock_clear().unwrap().unfinished, !begun);
        if !begun {
            // The clear is still not done.
            let lock = index.lock_clear().unwrap();
            assert!(lock.unfinished);
            index.begin_generation(index.generation() + 1);
        }
    }
}

#[test]
fn a_half_begun_generation_is_begun_by_the_next_writer() {
    let index = index(100);
    assert_eq!(index.count_up(0, 2), CountUp::Counted);
    // A clear is stopped between its two stores.
    index.count_from_zero(1);
    assert_eq!((index.generation(), index.count()), (0, 0));
    assert_eq!(index.count_up(0, 2), CountUp::OtherGeneration);
    assert_eq!(index.generation(), 1);
    assert_eq!(index.count_up(1, 2), CountUp::Counted);
    // It continues, the second time after a later clear.
    index.begin_generation(1);
    assert_eq!((index.generation(), index.count()), (1, 1));
    index.begin_generation(2);
    index.begin_generation(1);
    assert_eq!((index.generation(), index.count()), (2, 0));
    index.count_from_zero(3);
    assert_eq!((index.settled_count(), index.generation()), (0, 3));
}

#[test]
fn a_stolen_clear_lock_is_reported_and_not_released() {
    let index = index(100);
    let word = &index.words()[at::CLEAR_LOCK];
    let lock = index.lock_clear().unwrap();
    assert_eq!(lock.check(), Ok(()));
    let thief = word.load(Ordering::Relaxed) ^ 2 << 20;
    word.store(thief, Ordering::Relaxed);
    assert_eq!(lock.check(), Err(Stolen));
    drop(lock);
    assert_eq!(word.load(Ordering::Relaxed), thief);
    word.store(0, Ordering::Relaxed);
    let lock = index.lock_clear().unwrap();
    word.store(thief, Ordering::Relaxed);
    assert_eq!(lock.unlock(), Err(Stolen));
    assert_eq!(word.load(Ordering::Relaxed), thief);
}

#[test]
fn wrong_links_and_free_lists_are_not_followed() {
    let index = index(100);
    let stray = |from: u32, to: u32| {
        let bucket = index.bucket(from).unwrap();
        bucket.set_word(bucket::LAST_SLOT, Word(u64::from(to)));
        bucket.set_control(bucket::Control::of_overflow(bucket.computed_check(), 0));
    };
    let (mine, others) = (hash(&index, 3, 1), hash(&index, 4, 1));
    put(&index, others, Word::new(others, 2, 64));
    // Links to another primary, and to the bucket itself.
    for to in [4, 3] {
        stray(3, to);
        for i in 1..=20 {
            put(&index, mine, Word::new(mine, i, 64));
        }
        assert_eq!(index.lock(others).unwrap().wiped(), 0);
        assert!(index.find(others, is(Word::new(others, 2, 64))).entry.is_some());
        let first = index.geometry().primaries;
        for slot in index.entries(3..4).chain(index.entries(first..index.geometry().buckets)) {
            index.lock_slot(slot.0).unwrap().clear(slot.0);
        }
    }
    // Free lists that begin at a primary, beyond the end, and at a bucket in use.
    put(&index, mine, Word::new(mine, 7, 64));
    for head in [5, u64::from(u32::MAX), u64::from(index.geometry().primaries) + 1] {
        index.words()[at::FREE_OVERFLOW].store(head, Ordering::Release);
        for i in 1..=20 {
            let locked = index.lock(mine).unwrap();
            let Ok(vacancy) = locked.vacant() else { break };
            assert!(
                vacancy.slot.bucket() == 3 || vacancy.slot.bucket() >= index.geometry().primaries
            );
            locked.set(vacancy.slot, Word::new(mine, i, 64));
        }
        assert!(index.find(others, is(Word::new(others, 2, 64))).entry.is_some());
    }
}

/// The row of segment `id` in the segment table.
fn segment_line(index: &Index, id: u32) -> &[AtomicU64] {
    let at = SEGMENTS_AT + (id % index.geometry().segments) as usize * LINE;
    &index.words()[at..at + LINE]
}

#[test]
fn an_uncounted_drop_is_counted_by_the_next_process() {
    let index = index(100);
    let id = index.create_segment(16 << 10).unwrap();
    assert!(index.activate_segment(id));
    index.seal_segment(id);
    assert!(index.empty_segment(id));
    // As `drop_segment` leaves it if the process dies before the count.
    let line = segment_line(&index, id);
    line[4].store(u64::MAX, Ordering::Release);
    line[0].store(u64::from(id) | (SegmentState::Dropped as u64) << 32, Ordering::Release);
    let before = index.drops();
    index.free_dropped(before);
    assert_eq!(index.segment_state(id), Some(SegmentState::Dropped), "not acknowledged yet");
    assert_eq!(index.drops(), before + 1);
    index.free_dropped(index.drops());
    assert_eq!((index.segment_state(id), index.segment_bytes()), (None, 0));
}

#[test]
fn the_row_of_a_freed_segment_has_no_owner() {
    let index = index(100);
    let id = index.create_segment(16 << 10).unwrap();
    assert!(index.is_own(index.segment(id).unwrap().owner));
    index.free_segment(id);
    // The next segment in this row stores its state before its owner.
    assert_eq!(segment_line(&index, id)[1].load(Ordering::Acquire), 0);
}

#[test]
fn buckets_lost_by_a_dead_process_are_found_and_reused() {
    let index = index(4_000);
    let put_all = |bucket: u64| {
        for i in 1..=19u32 {
            put(
                &index,
                hash(&index, bucket, u64::from(i)),
                Word::new(hash(&index, bucket, u64::from(i)), i, 64),
            );
        }
    };
    put_all(3);
    // One process died after it copied the word that moves, another right after it allocated.
    let copied = Word::new(hash(&index, 3, 7), 7, 64);
    let copy = index.words()[at::NEXT_OVERFLOW].fetch_add(2, Ordering::AcqRel) as u32;
    let bucket = index.bucket(copy).unwrap();
    bucket.set_word(1, copied);
    bucket.set_control(bucket::Control::of_overflow(bucket.computed_check(), 3));
    // Freed buckets are on the list: they are not lost.
    put_all(4);
    (1..=19).for_each(|i| {
        let hash = hash(&index, 4, i);
        let (slot, _) = index.find(hash, |_| Probe::Match).entry.unwrap();
        index.lock(hash).unwrap().clear(slot);
    });
    let used = index.buckets_in_use();
    let all = || index.reached_entries().count();
    assert_eq!(all(), 19, "a bucket in no chain does not count");
    let locked = index.lock(hash(&index, 9, 1)).unwrap();
    assert!(!index.free_lost_overflow(), "the owner of a lock may be about to link a bucket");
    drop(locked);
    assert!(index.free_lost_overflow() && index.free_lost_overflow());
    assert_eq!((all(), index.chain_words(3).len()), (19, 19));
    assert!(index.find(hash(&index, 3, 7), is(copied)).entry.is_some());
    // They reuse two buckets of chain 4 and two lost ones.
    put_all(5);
    put_all(6);
    assert_eq!((index.buckets_in_use(), all()), (used, 57));
    put_all(7);
    assert!(index.buckets_in_use() > used);
    assert!(index.damaged_buckets().is_empty());
}

#[test]
fn a_bucket_that_was_never_linked_does_not_count() {
    let index = index(100);
    let words: Vec<_> = (1..=7).map(|i| Word::new(hash(&index, 3, i), i as u32, 64)).collect();
    words.iter().for_each(|word| put(&index, hash(&index, 3, word.tag()), *word));
    // A chain grows up to the store of the link; the check of the new bucket is not stored yet.
    let new = index.geometry().primaries;
    let bucket = index.bucket(new).unwrap();
    bucket.set_control(bucket::Control::of_overflow(0, 3));
    bucket.set_word(1, index.bucket(3).unwrap().word(bucket::LAST_SLOT));
    assert_eq!(index.reached_entries().count(), 7);
    assert!(index.damaged_buckets().is_empty());
}

#[test]
fn a_refused_segment_consumes_no_id() {
    let index = index(10);
    let rows = index.geometry().segments;
    let ids: Vec<_> = (0..rows).map(|_| index.create_segment(4096).unwrap()).collect();
    assert_eq!(ids, (1..=rows).collect::<Vec<_>>());
    let before = index.unused_segment_id();
    (0..1000).for_each(|_| assert_eq!(index.create_segment(4096), None));
    assert_eq!(index.unused_segment_id(), before, "a refused segment consumes no id");
    index.free_segment(7);
    assert_eq!(index.create_segment(4096), Some(rows + 7));
    assert_eq!(index.create_segment(4096), None);
    assert!(!index.are_ids_used_up());
}

#[test]
fn no_segment_gets_an_id_above_the_highest() {
    let index = index(10);
    index.raise_next_segment_id(u64::from(HIGHEST_SEGMENT));
    assert!(!index.are_ids_used_up());
    assert_eq!(index.create_segment(4096), Some(HIGHEST_SEGMENT));
    assert_eq!(index.create_segment(4096), None);
    assert!(index.are_ids_used_up());
}

#[test]
fn a_late_adoption_of_a_segment_is_undone() {
    let index = index(10);
    let id = index.create_segment(16 << 10).unwrap();
    assert!(index.activate_segment(id));
    index.orphan_segment(id);
    let len = index.segment(id).unwrap().len;
    // As if the row became that of another segment after it was found.
    index.seal_segment(id);
    assert!(!index.adopt_segment(id, Owner::NONE));
    let left = index.segment(id).unwrap();
    assert_eq!((left.owner, left.len), (Owner::NONE, len));
    index.resume_segment(id, 64);
    index.orphan_segment(id);
    assert!(index.adopt_segment(id, Owner::NONE) && index.is_own(index.segment(id).unwrap().owner));
}
