//! No code of the program runs under a lock: a clock, a key function, a closure, and a `Serialize`
//! or `Deserialize` that use the same cache, in all calls and at the bounds.

use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use keepwarm::{Builder, Cache, Clock, ManualClock, NewLimits, Timeout, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::common::Maker;
use crate::for_each_backend;

/// A cache that code of the program uses from inside a call of the same cache.
struct Inside {
    cache: Mutex<Option<Cache>>,
    uses: AtomicU64,
}

thread_local! {
    /// Whether this thread is in `Inside::work` already.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

impl Inside {
    const fn new() -> Self {
        Self { cache: Mutex::new(None), uses: AtomicU64::new(0) }
    }

    fn set(&self, cache: Option<Cache>) {
        let before = std::mem::replace(&mut *self.cache.lock().unwrap(), cache);
        drop(before);
    }

    /// Uses the cache in many ways. A lock that is held would make one of these wait for ever, or
    /// fail as `Busy`.
    fn work(&self) {
        if WORKING.replace(true) {
            return;
        }
        let cache = self.cache.lock().unwrap().clone();
        if let Some(cache) = cache {
            let n = self.uses.fetch_add(1, Relaxed);
            let key = (n % 8).to_string();
            cache.set(&key, &n, Duration::from_secs(1)).unwrap();
            cache.set(&format!("new {n}"), &n, Timeout::Never).unwrap();
            cache.get::<u64>(&key).unwrap();
            cache.incr("count", 1).ok();
            cache.touch(&key, Timeout::Never).unwrap();
            cache.delete(&format!("new {}", n / 2)).unwrap();
            if n.is_multiple_of(16) {
                cache.set_bytes(&format!("large {n}"), &[7; 50_000], Timeout::Never).unwrap();
                cache.keys().for_each(|key| drop(key.unwrap()));
            }
            if n % 256 == 255 {
                cache.clear().unwrap();
            }
        }
        WORKING.set(false);
    }
}

struct WorkingClock(&'static Inside, ManualClock);

impl Clock for WorkingClock {
    fn now(&self) -> Timestamp {
        self.0.work();
        self.1.now()
    }
}

/// A value whose encoding and decoding use the cache.
struct Working(&'static Inside, u64);

impl Serialize for Working {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.work();
        self.1.serialize(serializer)
    }
}

static IN_SERDE: Inside = Inside::new();

impl<'de> Deserialize<'de> for Working {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        IN_SERDE.work();
        Ok(Self(&IN_SERDE, value))
    }
}

/// Every call, with entries that expire, and at the bounds of entries and bytes.
fn every_call(cache: &Cache, clock: &ManualClock, value: impl Fn(u64) -> Working) {
    let second = Duration::from_secs(1);
    for n in 0..120 {
        let key = (n % 10).to_string();
        let timeout = if n % 3 == 0 { Timeout::Never } else { Timeout::After(second) };
        cache.set(&key, &value(n), timeout).unwrap();
        cache.get::<Working>(&key).unwrap();
        cache.get_shared::<Working>(&key).unwrap();
        cache.add(&key, &value(n), timeout).unwrap();
        let entry = cache.get_entry::<Working>(&key).unwrap();
        cache.compare_and_swap(&key, entry.map(|e| e.token), &value(n), timeout).unwrap();
        cache.touch(&key, timeout).unwrap();
        cache.get_or_set(&format!("computed {n}"), timeout, || value(n)).unwrap();
        cache.set(&format!("inserted {n}"), &value(n), timeout).unwrap();
        drop(cache.get_many::<Working, _>(&["1", "2", "3"]));
        cache.set_bytes(&format!("large {n}"), &vec![1; 60_000], timeout).unwrap();
        cache.incr_version("1", 1).ok();
        cache.delete(&format!("inserted {}", n / 2)).unwrap();
        if n % 20 == 5 {
            let mut writer = cache.writer("stream", timeout).unwrap();
            writer.write_all(&[3; 100_000]).unwrap();
            writer.commit().unwrap();
            if let Some(mut reader) = cache.reader("stream").unwrap() {
                reader.read_to_end(&mut Vec::new()).unwrap();
            }
            drop(cache.lease("lease", second).unwrap());
            cache.iter::<Working>().for_each(drop);
            cache.maintain().unwrap();
            cache.flush().unwrap();
            cache.check().unwrap();
            cache.stats();
        }
        if n % 40 == 25 {
            cache.clear().unwrap();
            cache.close().unwrap();
        }
        if n % 40 == 35 {
            let limits = NewLimits::new().max_entries(if n < 60 { 20 } else { 30 });
            cache.configure(&limits).unwrap();
        }
        clock.advance(Duration::from_millis(150));
    }
}

/// Fails after a minute instead of waiting for ever.
fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (tell, told) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        tell.send(()).unwrap();
    });
    match told.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a call waits for itself"),
        _ => worker.join().unwrap(),
    }
}

fn small(make: &mut Maker) -> Builder {
    make.builder().max_entries(30).max_bytes(4 << 20).cull_frequency(4)
}

#[test]
fn a_clock_may_use_the_cache() {
    static INSIDE: Inside = Inside::new();
    for_each_backend(|make| {
        let clock = ManualClock::new();
        let cache = small(make).clock(WorkingClock(&INSIDE, clock.clone())).open().unwrap();
        INSIDE.set(Some(cache.clone()));
        let before = INSIDE.uses.load(Relaxed);
        within_a_minute(move || every_call(&cache, &clock, |n| Working(&IN_SERDE, n)));
        assert!(INSIDE.uses.load(Relaxed) > before + 500);
        INSIDE.set(None);
    });
}

#[test]
fn a_key_function_may_use_the_cache() {
    static INSIDE: Inside = Inside::new();
    for_each_backend(|make| {
        let clock = ManualClock::new();
        let builder = small(make).clock(clock.clone()).key_function(|prefix, version, key| {
            INSIDE.work();
            format!("{prefix}:{version}:{key}")
        });
        let cache = builder.open().unwrap();
        INSIDE.set(Some(cache.clone()));
        within_a_minute(move || every_call(&cache, &clock, |n| Working(&IN_SERDE, n)));
        INSIDE.set(None);
    });
}

#[test]
fn closures_and_values_may_use_the_cache() {
    for_each_backend(|make| {
        let clock = ManualClock::new();
        let cache = small(make).clock(clock.clone()).open().unwrap();
        IN_SERDE.set(Some(cache.clone()));
        let before = IN_SERDE.uses.load(Relaxed);
        within_a_minute(move || {
            every_call(&cache, &clock, |n| {
                IN_SERDE.work();
                Working(&IN_SERDE, n)
            });
        });
        assert!(IN_SERDE.uses.load(Relaxed) > before + 500);
        IN_SERDE.set(None);
    });
}
