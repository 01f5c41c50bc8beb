//! `add`: stores only if the key is absent; of concurrent calls exactly one stores.

use std::sync::Barrier;
use std::thread;

use keepwarm::Timeout;

use crate::{secs, with_cache};

#[test]
fn a_present_entry_is_kept() {
    with_cache(|cache, _| {
        assert!(cache.add("a", "first", secs(5)).unwrap());
        assert!(!cache.add("a", "second", Timeout::Never).unwrap());
        assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("first"));
        assert_eq!(cache.ttl("a").unwrap().and_then(|ttl| ttl.remaining()), Some(secs(5)));
    });
}

#[test]
fn an_expired_entry_counts_as_absent() {
    with_cache(|cache, clock| {
        cache.set("a", "first", secs(5)).unwrap();
        clock.advance(secs(5));
        assert!(cache.add("a", "second", secs(5)).unwrap());
        assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("second"));
    });
}

#[test]
fn of_concurrent_adds_exactly_one_stores() {
    with_cache(|cache, _| {
        for round in 0..50 {
            let (key, barrier) = (format!("round {round}"), Barrier::new(8));
            let winners: Vec<usize> = thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|me| {
                        let (cache, key, barrier) = (&cache, &key, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            cache.add(key, &me, Timeout::Default).unwrap().then_some(me)
                        })
                    })
                    .collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(winners.len(), 1);
            assert_eq!(cache.get::<usize>(&key).unwrap(), Some(winners[0]));
        }
    });
}
