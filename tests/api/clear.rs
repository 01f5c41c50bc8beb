//! `clear`: removes every entry, of all prefixes and versions.

use keepwarm::Timeout;

use crate::with_cache;

#[test]
fn clear_empties_every_view() {
    with_cache(|cache, _| {
        let views = [cache.clone(), cache.with_version(2), cache.with_prefix("other")];
        for view in &views {
            view.set("a", &1, Timeout::Never).unwrap();
        }
        assert_eq!(cache.len(), 3);
        views[1].clear().unwrap();
        assert!(cache.is_empty());
        for view in &views {
            assert_eq!(view.get::<u8>("a").unwrap(), None);
        }
    });
}

#[test]
fn entries_stored_after_a_clear_stay() {
    with_cache(|cache, _| {
        for round in 0..10 {
            cache.set("a", &round, Timeout::Never).unwrap();
            assert_eq!(cache.get::<u8>("a").unwrap(), Some(round));
            cache.clear().unwrap();
            assert_eq!(cache.get::<u8>("a").unwrap(), None);
            assert!(!cache.touch("a", Timeout::Never).unwrap());
            assert!(!cache.delete("a").unwrap());
        }
    });
}
