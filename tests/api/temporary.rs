//! `TempCache`, for the tests of applications: its directory is deleted with it.

use keepwarm::testing::TempCache;
use keepwarm::{Cache, ManualClock, Timeout};

use crate::secs;

#[test]
fn dropping_the_cache_deletes_its_directory() {
    let cache = TempCache::new().unwrap();
    let dir = cache.path().to_owned();
    cache.set("a", &1, Timeout::Never).unwrap();
    cache.flush().unwrap();
    assert!(dir.join("CACHEDIR.TAG").exists());
    drop(cache);
    assert!(!dir.exists());
}

#[test]
fn it_takes_options_and_derefs_to_a_cache() {
    fn remember(cache: &Cache) {
        cache.set("a", &1, secs(5)).unwrap();
    }
    let clock = ManualClock::new();
    let cache = TempCache::with(|builder| builder.clock(clock.clone()).key_prefix("test")).unwrap();
    remember(&cache);
    assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
    assert_eq!(cache.prefix(), "test");
    clock.advance(secs(5));
    assert_eq!(cache.get::<u8>("a").unwrap(), None);
}
