//! `backup`: a copy of a whole cache in a new directory, made while the cache is in use.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keepwarm::{Cache, ErrorKind, Lifespan, ManualClock, Timeout, Ttl};

use crate::{secs, with_cache};

fn opened(dir: &Path, clock: &ManualClock) -> Cache {
    Cache::builder(dir).clock(clock.clone()).keep_limits(true).open().unwrap()
}

#[test]
fn a_backup_has_every_entry_with_its_expiry_prefix_and_version() {
    with_cache(|cache, clock| {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("copy");
        let large = vec![7u8; 3 << 20];
        let windowed = Lifespan::new(secs(10)).stale_for(secs(20));
        cache.set("text", "v", secs(100)).unwrap();
        cache.get_or_set("stale", windowed, || 5).unwrap();
        cache.with_prefix("p").with_version(7).set("a", &1, Timeout::Never).unwrap();
        cache.set_bytes("large", &large, secs(200)).unwrap();
        cache.set("large list", &vec!["x".repeat(1000); 2000], Timeout::Never).unwrap();
        cache.set("expired", &1, secs(1)).unwrap();
        cache.set("deleted", &1, Timeout::Never).unwrap();
        cache.set("replaced", "old", Timeout::Never).unwrap();
        cache.set("replaced", "new", Timeout::Never).unwrap();
        assert!(cache.delete("deleted").unwrap());
        clock.advance(secs(2));
        assert_eq!(cache.backup(&to).unwrap(), 6);
        let copy = opened(&to, &clock);
        assert_eq!(copy.len(), 6);
        assert_eq!(copy.get::<String>("text").unwrap().as_deref(), Some("v"));
        assert_eq!(copy.ttl("text").unwrap(), Some(Ttl::Remaining(secs(98))));
        let (was, is) = (cache.get_entry::<u32>("stale"), copy.get_entry::<u32>("stale"));
        let (was, is) = (was.unwrap().unwrap(), is.unwrap().unwrap());
        assert_eq!(
            (was.value, was.stale_at, was.expires_at),
            (is.value, is.stale_at, is.expires_at)
        );
        assert_eq!(copy.with_prefix("p").with_version(7).get("a").unwrap(), Some(1));
        assert_eq!(copy.get_bytes("large").unwrap().as_deref(), Some(&large[..]));
        assert_eq!(copy.ttl("large").unwrap(), Some(Ttl::Remaining(secs(198))));
        assert_eq!(copy.get::<Vec<String>>("large list").unwrap().unwrap().len(), 2000);
        assert_eq!(copy.get::<String>("replaced").unwrap().as_deref(), Some("new"));
        assert!(!copy.contains_key("expired").unwrap() && !copy.contains_key("deleted").unwrap());
        assert!(copy.check().unwrap().is_sound());
        let names: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it: {names:?}");
    });
}

#[test]
fn a_full_cache_is_copied_as_a_whole() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, to) = (parent.path().join("cache"), parent.path().join("copy"));
    let builder = Cache::builder(&dir).max_bytes(2 << 20).max_entries(500);
    let cache = builder.default_timeout(Timeout::Never).open().unwrap();
    for i in 0..1000 {
        cache.set_bytes(&format!("{i}"), &vec![1; 3000], Timeout::Default).unwrap();
    }
    assert!(cache.len() > 300);
    let keys = |cache: &Cache| {
        let mut keys: Vec<_> = cache.keys().map(Result::unwrap).collect();
        keys.sort_unstable();
        keys
    };
    let before = keys(&cache);
    assert_eq!(cache.backup(&to).unwrap(), before.len() as u64);
    assert_eq!(keys(&opened(&to, &ManualClock::new())), before);
}

#[test]
fn a_backup_is_written_to_a_new_or_empty_directory_only() {
    let parent = tempfile::tempdir().unwrap();
    let to = parent.path().join("copy");
    let cache = Cache::in_memory();
    cache.set("a", &1, Timeout::Never).unwrap();
    std::fs::create_dir(&to).unwrap();
    assert_eq!(cache.backup(&to).unwrap(), 1);
    let files = || std::fs::read_dir(&to).unwrap().count();
    let before = files();
    let error = cache.backup(&to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!((files(), Cache::open(&to).unwrap().len()), (before, 1));
    let nowhere = cache.backup(parent.path().join("none").join("copy")).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::Io);
}

#[test]
fn a_backup_under_writers_holds_no_older_value_and_nothing_deleted() {
    const KEYS: u64 = 300;
    let parent = tempfile::tempdir().unwrap();
    let cache = Cache::builder(parent.path().join("cache"))
        .max_bytes(8 << 20)
        .max_entries(2_000)
        .default_timeout(Timeout::Never)
        .open()
        .unwrap();
    for key in 0..KEYS {
        cache.set(&format!("{key}"), &0u64, Timeout::Never).unwrap();
        cache.set(&format!("deleted {key}"), &0u64, Timeout::Never).unwrap();
    }
    for key in 0..KEYS {
        assert!(cache.delete(&format!("deleted {key}")).unwrap());
    }
    let (done, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let value = |round: u64| vec![round; 100];
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 1.. {
                for key in 0..KEYS {
                    cache.set(&format!("{key}"), &value(round), Timeout::Never).unwrap();
                }
                acknowledged.store(round, Ordering::SeqCst);
                if done.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        while acknowledged.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        for number in 0..3 {
            let to = parent.path().join(format!("copy {number}"));
            let before = acknowledged.load(Ordering::SeqCst);
            assert_eq!(cache.backup(&to).unwrap(), KEYS, "every entry was there all the time");
            let after = acknowledged.load(Ordering::SeqCst) + 1;
            let copy = Cache::open(&to).unwrap();
            for key in 0..KEYS {
                let found = copy.get::<Vec<u64>>(&format!("{key}")).unwrap().unwrap();
                let round = found[0];
                assert!(found == value(round) && (before..=after).contains(&round), "{key}");
                assert!(!copy.contains_key(&format!("deleted {key}")).unwrap());
            }
        }
        done.store(true, Ordering::SeqCst);
    });
}
