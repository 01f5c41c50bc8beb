//! Async iteration: returns each entry once, also if its futures are dropped.

use std::collections::BTreeSet;

use keepwarm::Timeout;

use crate::{CountingClock, at_once, secs, with_cache, with_options};

#[test]
fn each_entry_is_returned_once() {
    with_options(
        |builder| builder,
        async |cache, clock: CountingClock| {
            cache.warm((0..1000u32).map(|n| (n.to_string(), n)), secs(9)).await.unwrap();
            let mut seen = BTreeSet::new();
            let mut entries = cache.iter::<u32>();
            let (left, ()) = clock
                .left_the_thread(async {
                    while let Some(entry) = entries.next().await {
                        let (key, value) = entry.unwrap();
                        assert_eq!(key, value.to_string());
                        assert!(seen.insert(value));
                    }
                })
                .await;
            assert_eq!((seen.len(), left), (1000, true));
            assert!(entries.next().await.is_none());
        },
    );
}

#[test]
fn a_dropped_future_skips_no_entry() {
    with_cache(async |cache, _| {
        cache.warm((0..1000u32).map(|n| (n.to_string(), n)), Timeout::Never).await.unwrap();
        let mut seen = BTreeSet::new();
        let mut keys = cache.keys();
        loop {
            // The first future is dropped as soon as it must wait.
            let next = match at_once(keys.next()) {
                Some(next) => next,
                None => keys.next().await,
            };
            let Some(key) = next else { break };
            assert!(seen.insert(key.unwrap()));
        }
        assert_eq!(seen.len(), 1000);
    });
}
