//! `get_or_set`: returns the stored value, or computes and stores it. For concurrent callers see
//! `single_flight.rs`.

use keepwarm::{ComputeError, ErrorKind, Timeout, Ttl};
use serde::{Deserialize, Serialize};

use crate::{for_each_backend, ms, secs, with_cache};

#[test]
fn a_stored_value_is_not_computed() {
    with_cache(|cache, _| {
        cache.set("a", &1, Timeout::Default).unwrap();
        assert_eq!(
            cache.get_or_set("a", Timeout::Default, || -> u8 { panic!("it is there") }).unwrap(),
            1
        );
        // A stored null is a hit too.
        cache.set("null", &(), Timeout::Default).unwrap();
        let null =
            cache.get_or_set("null", Timeout::Default, || -> Option<u8> { panic!("it is there") });
        assert_eq!(null.unwrap(), None);
    });
}

#[test]
fn a_computed_value_is_kept_for_its_timeout() {
    with_cache(|cache, clock| {
        assert_eq!(cache.get_or_set("a", secs(5), || 1).unwrap(), 1);
        assert_eq!(cache.get_or_set("a", secs(50), || 2).unwrap(), 1);
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(5))));
        clock.advance(secs(5));
        assert_eq!(cache.get_or_set("a", Timeout::Default, || 2).unwrap(), 2);
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(300))));
    });
}

#[test]
fn a_value_of_another_type_is_replaced() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        name: String,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        name: String,
        age: u8,
    }
    with_cache(|cache, _| {
        cache.set("user", &Old { name: "Ada".into() }, Timeout::Never).unwrap();
        assert_eq!(cache.get::<New>("user").unwrap_err().kind(), ErrorKind::Decode);
        let user =
            cache.get_or_set("user", secs(5), || New { name: "Ada".into(), age: 36 }).unwrap();
        assert_eq!(user.age, 36);
        assert_eq!(cache.get::<New>("user").unwrap(), Some(user));
        assert_eq!(cache.ttl("user").unwrap(), Some(Ttl::Remaining(secs(5))));
        cache.set_bytes("raw", b"raw", Timeout::Never).unwrap();
        assert_eq!(cache.get_or_set("raw", secs(5), || 7).unwrap(), 7);
        assert_eq!(cache.get::<u8>("raw").unwrap(), Some(7));
    });
}

#[test]
fn a_value_stored_during_the_computation_wins() {
    with_cache(|cache, _| {
        let value = cache.get_or_set("a", Timeout::Default, || {
            cache.set("a", &1, Timeout::Default).unwrap();
            2
        });
        assert_eq!(value.unwrap(), 1);
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        // Not if it is of another type: then the computed value replaces it.
        let value = cache.get_or_set("b", Timeout::Default, || {
            cache.set("b", "text", Timeout::Default).unwrap();
            2
        });
        assert_eq!(value.unwrap(), 2);
        assert_eq!(cache.get::<u8>("b").unwrap(), Some(2));
    });
}

#[test]
fn an_error_is_returned_and_not_stored() {
    with_cache(|cache, _| {
        let failed = cache.try_get_or_set::<u8, _>("a", Timeout::Default, || Err("no luck"));
        assert!(matches!(failed, Err(ComputeError::Compute("no luck"))));
        assert!(cache.is_empty());
        let second = cache.try_get_or_set("a", Timeout::Default, || Ok::<u8, &str>(1));
        assert_eq!(second.unwrap(), 1);
    });
}

#[test]
fn the_value_is_returned_even_if_it_cannot_be_stored() {
    for_each_backend(|make| {
        let cache = make.builder().max_bytes(4 << 20).open().unwrap();
        let large = cache.get_or_set("a", Timeout::Default, || "x".repeat(5 << 20)).unwrap();
        assert_eq!(large.len(), 5 << 20);
        assert_eq!(cache.stats().store_failures, 1);
        assert!(!cache.contains_key("a").unwrap());
    });
}

#[test]
fn the_value_is_returned_even_if_it_cannot_be_encoded() {
    #[derive(Deserialize)]
    struct NotEncodable;
    impl Serialize for NotEncodable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    with_cache(|cache, _| {
        assert!(cache.get_or_set("a", Timeout::Default, || NotEncodable).is_ok());
        assert_eq!(cache.stats().store_failures, 1);
        assert_eq!(
            cache.set("a", &NotEncodable, Timeout::Default).unwrap_err().kind(),
            ErrorKind::Encode
        );
        assert!(cache.is_empty());
    });
}

#[test]
fn a_miss_is_one_read_and_one_write() {
    with_cache(|cache, _| {
        cache.get_or_set("warm up", Timeout::Default, || 0).unwrap();
        let before = cache.stats();
        cache.get_or_set("a", ms(5), || 1).unwrap();
        let after = cache.stats();
        assert_eq!(after.commits - before.commits, 1);
        // A flight that ends in another test meanwhile causes one more lookup.
        assert!((1..=2).contains(&(after.misses - before.misses)));
    });
}
