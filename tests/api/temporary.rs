//! Temporary caches, for the tests of programs, are in a directory that goes with them.

use keepwarm::testing::TempCache;
use keepwarm::{Cache, ManualClock, Timeout};

use crate::secs;

#[test]
fn the_directory_goes_with_the_cache() {
    let cache = TempCache::new().unwrap();
    let dir = cache.path().to_owned();
    cache.set("a", &1, Timeout::Never).unwrap();
    cache.flush().unwrap();
    assert!(dir.join("CACHEDIR.TAG").exists());
    drop(cache);
    assert!(!dir.exists());
}

#[test]
fn it_takes_options_and_serves_where_a_cache_is_wanted() {
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
