//! Negative caching: an absent result can be kept, with a timeout of its own.

use keepwarm::{ComputeError, Timeout, Ttl};

use crate::{secs, with_cache};

#[test]
fn an_absent_result_is_kept_for_its_own_timeout() {
    with_cache(|cache, clock| {
        let find =
            |value: Option<u8>| cache.get_or_set_option("a", secs(100), secs(5), || value).unwrap();
        assert_eq!(find(None), None);
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(5))));
        assert_eq!(cache.get::<Option<u8>>("a").unwrap(), Some(None));
        clock.advance(secs(4));
        assert_eq!(find(Some(1)), None);
        clock.advance(secs(1));
        assert_eq!(find(Some(1)), Some(1));
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(100))));
        assert_eq!(find(None), Some(1));
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
    });
}

#[test]
fn with_a_timeout_of_zero_an_absent_result_is_not_kept() {
    with_cache(|cache, _| {
        let find = |value: Option<u8>| {
            cache.get_or_set_option("a", Timeout::Never, secs(0), || value).unwrap()
        };
        assert_eq!(find(None), None);
        assert!(cache.is_empty());
        assert_eq!(find(Some(1)), Some(1));
    });
}

#[test]
fn an_error_is_not_an_absent_result() {
    with_cache(|cache, _| {
        let failed =
            cache.try_get_or_set_option::<u8, _>("a", secs(100), secs(5), || Err("no luck"));
        assert!(matches!(failed, Err(ComputeError::Compute("no luck"))));
        assert!(cache.is_empty());
        let found =
            cache.try_get_or_set_option("a", secs(100), secs(5), || Ok::<Option<u8>, &str>(None));
        assert_eq!(found.unwrap(), None);
        assert_eq!(cache.len(), 1);
    });
}
