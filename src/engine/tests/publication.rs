//! Records that one thread publishes and another reads, in memory that Miri can check.
//!
//! Shows invariants I7 and I11.

use super::index::{Index, Probe};
use crate::engine::format::geometry::Geometry;
use crate::engine::format::word::Word;
use crate::sys::map::Map;

/// A thread fills a range of a map and then publishes its offset: no other thread reads the range
/// too early. Otherwise Miri reports a data race.
#[test]
fn threads_read_only_published_records() {
    const RECORD: usize = 16;
    let (times, keys) = (if cfg!(miri) { 12 } else { 3_000 }, 9u64);
    let index = Index::in_memory(Geometry::for_entries(100, 16)).unwrap();
    // All keys are in one chain.
    let hash_of = |key: u64| 5 << 60 | key;
    let records = Map::anonymous(4096 * (1 + RECORD * 2 * times / 4096)).unwrap();
    let content =
        |key: u64, number: usize| [key * 1000, number as u64].map(u64::to_le_bytes).concat();
    let key_of = |number: usize| number as u64 % keys + 1;
    let locked = |hash| {
        // On a busy machine, a thread may wait longer than a lock does.
        loop {
            if let Ok(locked) = index.lock(hash) {
                break locked;
            }
        }
    };
    let write = |writer: usize| {
        for number in (writer * times..).take(times) {
            let (key, offset) = (key_of(number), (number + 1) * RECORD);
            assert!(records.fill(offset, &content(key, number)));
            let hash = hash_of(key);
            let locked = locked(hash);
            let has_tag = |_: Word| Probe::Match;
            let slot = match index.find(hash, has_tag).entry {
                // Each third write removes the key first, so that the chain shrinks and grows.
                Some((slot, _)) if number % 3 == 0 => {
                    locked.clear(slot);
                    locked.vacant().unwrap().slot
                }
                Some((slot, _)) => slot,
                None => locked.vacant().unwrap().slot,
            };
            locked.set(slot, Word::new(hash, 1, offset as u32));
            assert_eq!(locked.unlock(), Ok(()));
        }
    };
    let read = || {
        let mut found = 0;
        for number in 0..2 * times {
            let hash = hash_of(key_of(number));
            let walk = index.find(hash, |_| Probe::Match);
            assert!(!index.is_damaged(hash, &walk));
            let Some((_, word)) = walk.entry else { continue };
            let number = word.offset() as usize / RECORD - 1;
            assert_eq!(
                records.bytes(word.offset() as usize, RECORD),
                Some(&*content(key_of(number), number))
            );
            found += 1;
        }
        found
    };
    std::thread::scope(|scope| {
        let write = &write;
        let writers = [0, 1].map(|writer| scope.spawn(move || write(writer)));
        scope.spawn(read);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert!(read() > 0);
    });
    assert!(index.damaged_buckets().is_empty());
    assert_eq!(index.chain_words(index.primary_of(hash_of(1))).len(), keys as usize);
}
