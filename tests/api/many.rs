//! Calls for many keys: a failure of one key does not affect the others.

use keepwarm::{ErrorKind, Timeout, Ttl};

use crate::{secs, with_cache};

#[test]
fn values_are_in_the_order_of_the_keys() {
    with_cache(|cache, _| {
        assert!(cache.set_many((0..10).map(|n| (n.to_string(), n)), secs(5)).is_empty());
        assert_eq!(cache.ttl("3").unwrap(), Some(Ttl::Remaining(secs(5))));
        let keys = ["7", "missing", "0", "7"];
        let values: Vec<Option<u8>> =
            cache.get_many(&keys).into_iter().map(Result::unwrap).collect();
        assert_eq!(values, [Some(7), None, Some(0), Some(7)]);
        let deleted: Vec<bool> = cache.delete_many(&keys).into_iter().map(Result::unwrap).collect();
        assert_eq!(deleted, [true, false, true, false]);
        assert_eq!(cache.len(), 8);
        assert!(cache.get_many::<u8, &str>(&[]).is_empty());
    });
}

#[test]
fn one_failure_does_not_stop_the_others() {
    with_cache(|cache, _| {
        let long = "k".repeat(70_000);
        let failed = cache.set_many([("a", 1), (&long, 2), ("b", 3)], Timeout::Default);
        assert_eq!(failed.len(), 1);
        assert_eq!((failed[0].0, failed[0].1.kind()), (&*long, ErrorKind::InvalidKey));
        cache.set("text", "text", Timeout::Default).unwrap();
        let got = cache.get_many::<u8, _>(&["a", "text", &long, "b"]);
        assert_eq!(got[0].as_ref().unwrap(), &Some(1));
        assert_eq!(got[1].as_ref().unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(got[2].as_ref().unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(got[3].as_ref().unwrap(), &Some(3));
    });
}

#[test]
fn warm_stops_at_the_first_failure() {
    with_cache(|cache, _| {
        assert_eq!(
            cache.warm((0..1000).map(|n| (n.to_string(), n)), Timeout::Never).unwrap(),
            1000
        );
        assert_eq!(cache.len(), 1000);
        let long = "k".repeat(70_000);
        let error = cache.warm([("new", 1), (&long, 2), ("never", 3)], Timeout::Never).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidKey, "warm"));
        assert!(cache.contains_key("new").unwrap() && !cache.contains_key("never").unwrap());
    });
}
