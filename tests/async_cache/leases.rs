//! Async leases: a lease ends when it is released, dropped, or expires.

use keepwarm::{Builder, Durability, ErrorKind};

use crate::{at_once, runtimes, secs, with_cache};

#[test]
fn a_lease_is_held_until_it_is_released_or_dropped() {
    with_cache(async |cache, clock| {
        let lease = cache.lease("a", secs(10)).await.unwrap().unwrap();
        assert_eq!(lease.key(), "a");
        assert!(cache.lease("a", secs(10)).await.unwrap().is_none());
        assert!(cache.blocking().lease("a", secs(10)).unwrap().is_none());
        clock.advance(secs(9));
        assert!(lease.renew(secs(10)).await.unwrap());
        clock.advance(secs(9));
        assert!(lease.is_held().await.unwrap());
        assert!(lease.release().await.unwrap());

        drop(cache.lease("a", secs(10)).await.unwrap().unwrap());
        let again = cache.lease("a", secs(10)).await.unwrap().expect("it was dropped");
        clock.advance(secs(10));
        assert!(!again.is_held().await.unwrap());
        assert!(!again.release().await.unwrap());
        let none = cache.lease("a", secs(0)).await.unwrap_err();
        assert_eq!(none.kind(), ErrorKind::InvalidOption);
    });
}

#[test]
fn dropping_a_lease_releases_it_without_waiting_for_disk() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let cache =
                Builder::new(dir.path()).durability(Durability::Sync).open_async().await.unwrap();
            drop(cache.lease("a", secs(60)).await.unwrap().unwrap());
            // It is released as soon as another thread has run the release.
            let again = loop {
                match cache.lease("a", secs(60)).await.unwrap() {
                    Some(lease) => break lease,
                    None => tokio::task::yield_now().await,
                }
            };
            // The same if the future that releases it is dropped.
            drop(at_once(again.release()));
            while cache.lease("a", secs(60)).await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        });
    }
}
