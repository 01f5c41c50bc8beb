//! Async calls that the recordings of the conformance suite do not cover: each answers as its
//! blocking counterpart does.

use keepwarm::{AsyncCache, Cache, ComputeError, ErrorKind, Swap, Timeout, Ttl};

use crate::{secs, with_cache};

#[test]
fn every_call_answers_as_its_blocking_counterpart() {
    with_cache(async |cache, clock| {
        cache.set_bytes("page", b"<html>", Timeout::Never).await.unwrap();
        assert_eq!(cache.get_bytes("page").await.unwrap().as_deref(), Some(&b"<html>"[..]));
        assert_eq!(cache.blocking().get_bytes("page").unwrap().as_deref(), Some(&b"<html>"[..]));

        cache.set("a", &1, secs(10)).await.unwrap();
        assert!(cache.contains_key("a").await.unwrap());
        assert_eq!(cache.ttl("a").await.unwrap(), Some(Ttl::Remaining(secs(10))));
        assert!(cache.persist("a").await.unwrap());
        assert_eq!(cache.ttl("a").await.unwrap(), Some(Ttl::Never));
        let at = keepwarm::Clock::now(&clock).checked_add(secs(5)).unwrap();
        assert!(cache.expire_at("a", at).await.unwrap());
        assert_eq!(cache.get_entry::<u8>("a").await.unwrap().unwrap().expires_at, Some(at));
        assert_eq!(cache.incr_or_init("n", 1, 41, Timeout::Never).await.unwrap(), 42);
        assert_eq!(cache.decr("n", 2).await.unwrap(), 40);
        assert_eq!(cache.incr("missing", 1).await.unwrap_err().kind(), ErrorKind::NotFound);

        let shared = cache.get_shared::<u8>("a").await.unwrap().unwrap();
        assert_eq!((*shared, cache.get_shared::<u8>("missing").await.unwrap()), (1, None));

        let token = cache.get_entry::<u8>("a").await.unwrap().unwrap().token;
        let swapped = cache.compare_and_swap("a", Some(token), &2, Timeout::Never).await.unwrap();
        assert!(matches!(swapped, Swap::Stored(_)));
        let refused = cache.compare_and_swap("a", Some(token), &3, Timeout::Never).await.unwrap();
        assert!(matches!(refused, Swap::Conflict(Some(_))));

        let there = cache.with_version(2).with_prefix("p");
        assert_eq!((there.version(), there.prefix()), (2, "p"));
        there.set("a", &9, Timeout::Never).await.unwrap();
        assert_eq!(there.decr_version("a", 1).await.unwrap(), 1);
        assert_eq!(cache.with_prefix("p").get::<u8>("a").await.unwrap(), Some(9));

        assert_eq!(
            cache.warm((0..300).map(|n| (n.to_string(), n)), Timeout::Never).await.unwrap(),
            300
        );
        assert_eq!(cache.len().await, 304);
        assert!(cache.check().await.unwrap().is_sound());
        cache.maintain().await.unwrap();
        cache.flush().await.unwrap();
        cache.close().await.unwrap();
        assert_eq!(cache.get::<u32>("299").await.unwrap(), Some(299));
        assert_eq!(cache.stats().await.hits, cache.blocking().stats().hits);
        cache.clear().await.unwrap();
        assert!(cache.is_empty().await);
    });
}

#[test]
fn an_error_names_call_and_key_on_whatever_thread_it_occurs() {
    with_cache(async |cache, _| {
        cache.set("text", "x", Timeout::Never).await.unwrap();
        cache.set("long text", &"x".repeat(100_000), Timeout::Never).await.unwrap();
        for key in ["text", "long text"] {
            let error = cache.get::<u8>(key).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.key(), error.operation()),
                (ErrorKind::Decode, Some(key), "get")
            );
        }
        let key = "k".repeat(70_000);
        assert_eq!(
            cache.set(&key, &1, Timeout::Never).await.unwrap_err().kind(),
            ErrorKind::InvalidKey
        );
    });
}

#[test]
fn a_failure_and_an_absent_result_are_distinct() {
    with_cache(async |cache, _| {
        let failed = cache.try_get_or_set("a", Timeout::Default, async || "x".parse::<u16>()).await;
        assert!(matches!(failed, Err(ComputeError::Compute(_))));
        assert!(cache.is_empty().await);
        let none = cache.get_or_set_option("a", secs(9), secs(5), async || None::<u8>).await;
        assert_eq!(none.unwrap(), None);
        assert_eq!(cache.ttl("a").await.unwrap(), Some(Ttl::Remaining(secs(5))));
        let kept =
            cache.try_get_or_set_option("a", secs(9), secs(5), async || Ok::<_, ()>(Some(1))).await;
        assert_eq!(kept.unwrap(), None);
    });
}

#[test]
fn a_directory_can_be_reopened() {
    let dir = tempfile::tempdir().unwrap();
    for runtime in crate::runtimes() {
        runtime.block_on(async {
            let cache = AsyncCache::open(dir.path()).await.unwrap();
            cache.incr_or_init("runs", 1, 0, Timeout::Never).await.unwrap();
        });
    }
    assert_eq!(Cache::open(dir.path()).unwrap().get::<u8>("runs").unwrap(), Some(2));
    let taken = tempfile::NamedTempFile::new().unwrap();
    let opened = crate::runtimes()[0].block_on(AsyncCache::open(taken.path()));
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::NotACache);
}
