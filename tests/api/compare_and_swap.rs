//! `compare_and_swap`: replaces the entry only if it is still the write that was read.

use std::thread;

use keepwarm::{Swap, Timeout, Token};

use crate::{secs, with_cache};

fn stored(swap: Swap) -> Token {
    match swap {
        Swap::Stored(token) => token,
        Swap::Conflict(current) => panic!("a conflict with {current:?}"),
    }
}

#[test]
fn the_expected_entry_is_replaced() {
    with_cache(|cache, clock| {
        cache.set("a", &1, secs(5)).unwrap();
        let entry = cache.get_entry::<u8>("a").unwrap().unwrap();
        assert_eq!(entry.value, 1);
        assert_eq!(
            entry.expires_at.map(|at| at.saturating_since(keepwarm::Clock::now(&clock))),
            Some(secs(5))
        );
        let token =
            stored(cache.compare_and_swap("a", Some(entry.token), &2, Timeout::Never).unwrap());
        let entry = cache.get_entry::<u8>("a").unwrap().unwrap();
        assert_eq!((entry.value, entry.token, entry.expires_at), (2, token, None));
    });
}

#[test]
fn every_change_in_between_is_a_conflict() {
    with_cache(|cache, _| {
        type Meanwhile<'a> = (&'static str, Box<dyn Fn() + 'a>);
        let changes: [Meanwhile<'_>; 5] = [
            ("set to the same value", Box::new(|| cache.set("a", &1, Timeout::Default).unwrap())),
            ("touch", Box::new(|| assert!(cache.touch("a", Timeout::Default).unwrap()))),
            ("persist", Box::new(|| assert!(cache.persist("a").unwrap()))),
            ("incr by nothing", Box::new(|| assert_eq!(cache.incr("a", 0).unwrap(), 1))),
            (
                "delete and set",
                Box::new(|| {
                    cache.delete("a").unwrap();
                    cache.set("a", &1, Timeout::Default).unwrap();
                }),
            ),
        ];
        for (what, change) in &changes {
            cache.set("a", &1, Timeout::Default).unwrap();
            let before = cache.get_entry::<u8>("a").unwrap().unwrap();
            change();
            let now = cache.get_entry::<u8>("a").unwrap().unwrap();
            let swap =
                cache.compare_and_swap("a", Some(before.token), &9, Timeout::Default).unwrap();
            assert_eq!(swap, Swap::Conflict(Some(now.token)), "{what}");
            assert_eq!(cache.get::<u8>("a").unwrap(), Some(1), "{what}");
        }
    });
}

#[test]
fn expecting_no_entry_stores_only_if_absent() {
    with_cache(|cache, _| {
        let token = stored(cache.compare_and_swap("a", None, &1, Timeout::Default).unwrap());
        assert_eq!(
            cache.compare_and_swap("a", None, &2, Timeout::Default).unwrap(),
            Swap::Conflict(Some(token))
        );
        cache.delete("a").unwrap();
        assert_eq!(
            cache.compare_and_swap("a", Some(token), &2, Timeout::Default).unwrap(),
            Swap::Conflict(None)
        );
        assert_eq!(cache.get::<u8>("a").unwrap(), None);
    });
}

#[test]
fn an_expired_entry_is_a_conflict() {
    with_cache(|cache, clock| {
        cache.set("a", &1, secs(5)).unwrap();
        let token = cache.get_entry::<u8>("a").unwrap().unwrap().token;
        clock.advance(secs(5));
        let swap = cache.compare_and_swap("a", Some(token), &2, Timeout::Default).unwrap();
        assert_eq!(swap, Swap::Conflict(None));
    });
}

#[test]
fn concurrent_swaps_lose_no_update() {
    with_cache(|cache, _| {
        cache.set("list", &Vec::<u32>::new(), Timeout::Never).unwrap();
        thread::scope(|scope| {
            for me in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for n in 0..50 {
                        loop {
                            let mut entry = cache.get_entry::<Vec<u32>>("list").unwrap().unwrap();
                            entry.value.push(me * 100 + n);
                            let swap = cache.compare_and_swap(
                                "list",
                                Some(entry.token),
                                &entry.value,
                                Timeout::Never,
                            );
                            if let Swap::Stored(_) = swap.unwrap() {
                                break;
                            }
                        }
                    }
                });
            }
        });
        let mut list = cache.get::<Vec<u32>>("list").unwrap().unwrap();
        list.sort();
        let all: Vec<u32> = (0..4).flat_map(|me| (0..50).map(move |n| me * 100 + n)).collect();
        assert_eq!(list, all);
    });
}
