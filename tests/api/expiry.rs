//! Expiry: exact to the millisecond.

use std::time::{Duration, SystemTime};

use keepwarm::{Clock as _, Timeout, Timestamp, Ttl};

use crate::{for_each_backend, ms, secs, with_cache};

#[test]
fn an_entry_expires_exactly_at_its_timeout() {
    with_cache(|cache, clock| {
        cache.set("a", &1, ms(1500)).unwrap();
        clock.advance(ms(1499));
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        assert!(cache.contains_key("a").unwrap());
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(ms(1))));
        clock.advance(ms(1));
        assert_eq!(cache.get::<u8>("a").unwrap(), None);
        assert!(!cache.contains_key("a").unwrap());
        assert_eq!(cache.ttl("a").unwrap(), None);
        assert!(cache.get_entry::<u8>("a").unwrap().is_none());
        assert!(!cache.touch("a", Timeout::Never).unwrap());
        assert!(!cache.persist("a").unwrap());
    });
}

#[test]
fn a_timeout_below_a_millisecond_counts_as_one() {
    with_cache(|cache, clock| {
        cache.set("a", &1, Duration::from_nanos(1)).unwrap();
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        clock.advance(ms(1));
        assert_eq!(cache.get::<u8>("a").unwrap(), None);
    });
}

#[test]
fn a_timeout_beyond_the_last_timestamp_is_never() {
    with_cache(|cache, clock| {
        cache.set("a", &1, Duration::MAX).unwrap();
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Never));
        // The longest timeout that is not: it ends at the last timestamp.
        let longest = Timestamp::MAX.saturating_since(clock.now());
        cache.set("b", &1, longest).unwrap();
        assert_eq!(cache.ttl("b").unwrap(), Some(Ttl::Remaining(longest)));
        cache.set("c", &1, longest + ms(1)).unwrap();
        assert_eq!(cache.ttl("c").unwrap(), Some(Ttl::Never));
        clock.set(Timestamp::MAX);
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        assert_eq!(cache.get::<u8>("b").unwrap(), None);
        assert_eq!(cache.get::<u8>("c").unwrap(), Some(1));
    });
}

#[test]
fn the_default_timeout_is_300_seconds_or_the_builders() {
    with_cache(|cache, _| {
        cache.set("a", &1, Timeout::Default).unwrap();
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(300))));
    });
    for_each_backend(|make| {
        let cache = make.builder().default_timeout(Timeout::Never).open().unwrap();
        cache.set("a", &1, Timeout::Default).unwrap();
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Never));
    });
}

#[test]
fn an_overwrite_sets_its_own_expiry() {
    with_cache(|cache, clock| {
        cache.set("a", &1, secs(5)).unwrap();
        cache.set("a", &2, Timeout::Never).unwrap();
        clock.advance(secs(5));
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(2));
    });
}

#[test]
fn touch_persist_and_expire_at_change_only_the_expiry() {
    with_cache(|cache, clock| {
        cache.set("a", "x", secs(5)).unwrap();
        assert!(cache.touch("a", secs(50)).unwrap());
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(50))));
        assert!(cache.persist("a").unwrap());
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Never));
        assert!(cache.touch("a", Timeout::Default).unwrap());
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(300))));
        let at = SystemTime::from(clock.now()) + secs(7);
        assert!(cache.expire_at("a", at).unwrap());
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(7))));
        assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("x"));
        clock.advance(secs(7));
        assert_eq!(cache.get::<String>("a").unwrap(), None);
    });
}

#[test]
fn expire_at_a_time_in_the_past_removes_the_entry() {
    with_cache(|cache, clock| {
        for at in [SystemTime::UNIX_EPOCH, clock.now().into()] {
            cache.set("a", &1, Timeout::Never).unwrap();
            assert!(cache.expire_at("a", at).unwrap());
            assert!(!cache.contains_key("a").unwrap());
            assert!(!cache.expire_at("a", at).unwrap());
        }
    });
}

#[test]
fn entries_live_longer_if_the_clock_steps_back() {
    with_cache(|cache, clock| {
        cache.set("a", &1, secs(5)).unwrap();
        clock.set(Timestamp::from_millis(1_000));
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        assert!(cache.touch("a", secs(1)).unwrap());
        clock.advance(secs(1));
        assert_eq!(cache.get::<u8>("a").unwrap(), None);
    });
}

#[test]
fn maintain_removes_expired_entries() {
    with_cache(|cache, clock| {
        for n in 0..100 {
            cache.set(&format!("short {n}"), &n, secs(1)).unwrap();
            cache.set(&format!("long {n}"), &n, secs(10)).unwrap();
        }
        clock.advance(secs(1));
        cache.maintain().unwrap();
        assert_eq!(cache.len(), 100);
        assert_eq!(cache.get::<u8>("long 7").unwrap(), Some(7));
    });
}
