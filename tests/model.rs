//! Whatever a program does, in whatever order, the cache answers as a plain map would: random operations through
//! the public API, the clock going forwards and backwards, closing, reopening with other bounds, and kills.
//!
//! Where nothing has to be evicted, every answer is exact. Where something may be, a miss is right for what was
//! evicted; a wrong value, or one older than the last, never is.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/rng.rs"]
mod rng;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dir::copy_as_killed;
use keepwarm::{Cache, Clock, ErrorKind, Eviction, ManualClock, Swap, Timeout, Timestamp, Token, Ttl};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};
use tempfile::TempDir;

/// A key: its name and its version.
type Key = (u8, i64);

/// How long an entry is to live: `None` for ever.
type Life = Option<u64>;

#[derive(Debug, Clone)]
enum Op {
    Get(Key),
    GetMany(Vec<u8>),
    Set(Key, usize, Life),
    SetMany(Vec<u8>, Life),
    SetCount(Key, i64, Life),
    Add(Key, usize, Life),
    Touch(Key, Life),
    Persist(Key),
    ExpireAt(Key, i64),
    Incr(Key, i64),
    IncrOrInit(Key, i64, i64, Life),
    Delete(Key),
    DeleteMany(Vec<u8>),
    GetOrSet(Key, usize, Life),
    IncrVersion(Key, i64),
    SwapCurrent(Key, usize, Life),
    SwapRemembered(Key, usize, Life),
    SwapAbsent(Key, usize, Life),
    Hold(Key),
    Scan,
    Clear,
    Maintain,
    Flush,
    Clock(i64),
    /// To so many milliseconds after the end of the key's entry, and a look at it.
    ClockToEnd(Key, i64),
    Close,
    Reopen(Bounds),
    Kill(Bounds),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    max_entries: u64,
    max_bytes: u64,
    cull_frequency: u64,
    eviction: Eviction,
    hot_bytes: u64,
}

/// Bounds that nothing here reaches.
const WIDE: Bounds = Bounds {
    max_entries: 5000,
    max_bytes: 32 << 20,
    cull_frequency: 32,
    eviction: Eviction::Lru,
    hot_bytes: 1 << 20,
};

fn tight() -> impl Strategy<Value = Bounds> {
    let eviction = prop_oneof![Just(Eviction::Lru), Just(Eviction::Adaptive)];
    (1..50u64, 0..5u64, eviction, prop_oneof![Just(0), Just(200_000)]).prop_map(
        |(max_entries, cull_frequency, eviction, hot_bytes)| Bounds {
            max_entries,
            max_bytes: 1 << 20,
            cull_frequency,
            eviction,
            hot_bytes,
        },
    )
}

fn key() -> impl Strategy<Value = Key> {
    (0..24u8, prop_oneof![9 => Just(1i64), 1 => 2..4i64])
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![3 => Just(None), 4 => (1..60_000u64).prop_map(Some), 1 => Just(Some(0))]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..300usize, 2 => 300..9000usize, 1 => 9000..120_000usize]
}

fn op(bounds: BoxedStrategy<Bounds>) -> impl Strategy<Value = Op> {
    let names = || vec(0..24u8, 0..6);
    prop_oneof![
        20 => key().prop_map(Op::Get),
        2 => names().prop_map(Op::GetMany),
        20 => (key(), len(), life()).prop_map(|(k, n, l)| Op::Set(k, n, l)),
        2 => (names(), life()).prop_map(|(k, l)| Op::SetMany(k, l)),
        4 => (key(), any::<i64>(), life()).prop_map(|(k, n, l)| Op::SetCount(k, n >> (n & 63), l)),
        6 => (key(), len(), life()).prop_map(|(k, n, l)| Op::Add(k, n, l)),
        5 => (key(), life()).prop_map(|(k, l)| Op::Touch(k, l)),
        1 => key().prop_map(Op::Persist),
        2 => (key(), -5000..30_000i64).prop_map(|(k, at)| Op::ExpireAt(k, at)),
        6 => (key(), any::<i64>()).prop_map(|(k, n)| Op::Incr(k, n >> (n & 63))),
        6 => (key(), -9..9i64, -9..9i64, life()).prop_map(|(k, n, i, l)| Op::IncrOrInit(k, n, i, l)),
        8 => key().prop_map(Op::Delete),
        1 => names().prop_map(Op::DeleteMany),
        5 => (key(), len(), life()).prop_map(|(k, n, l)| Op::GetOrSet(k, n, l)),
        3 => (key(), -2..3i64).prop_map(|(k, d)| Op::IncrVersion(k, d)),
        3 => (key(), len(), life()).prop_map(|(k, n, l)| Op::SwapCurrent(k, n, l)),
        3 => (key(), len(), life()).prop_map(|(k, n, l)| Op::SwapRemembered(k, n, l)),
        2 => (key(), len(), life()).prop_map(|(k, n, l)| Op::SwapAbsent(k, n, l)),
        2 => key().prop_map(Op::Hold),
        1 => Just(Op::Scan),
        1 => Just(Op::Clear),
        1 => Just(Op::Maintain),
        1 => Just(Op::Flush),
        6 => (-20_000..40_000i64).prop_map(Op::Clock),
        4 => (key(), -1..2i64).prop_map(|(k, after)| Op::ClockToEnd(k, after)),
        1 => Just(Op::Close),
        2 => bounds.clone().prop_map(Op::Reopen),
        2 => bounds.prop_map(Op::Kill),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// The bytes that follow from this number, so many of them.
    Bytes(u64, usize),
    Count(i64),
}

fn bytes(number: u64, len: usize) -> Vec<u8> {
    let mut rng = rng::Rng::new(number);
    number.to_le_bytes().into_iter().chain((0..len).map(|_| rng.below(256) as u8)).collect()
}

/// The last that was acknowledged for a key.
#[derive(Debug, Clone, Copy)]
struct Last {
    value: Value,
    expires_at: Option<Timestamp>,
    /// Whether it must be there until it expires. Otherwise it may have been evicted, or reaped while the clock
    /// had gone further than it shows now; and it may be back after a kill.
    sure: bool,
    /// Whether its end has passed before, and the clock may have gone back since.
    passed: bool,
    /// Whether it was deleted, or rather was not, because its end had passed. Only a clock that goes back can
    /// bring it to light.
    zombie: bool,
}

struct World {
    clock: ManualClock,
    homes: Vec<TempDir>,
    cache: Cache,
    bounds: Bounds,
    /// Whether anything was ever evicted for its bounds.
    evicts: bool,
    entries: BTreeMap<Key, Last>,
    next_number: u64,
    remembered: BTreeMap<Key, Token>,
    current: BTreeMap<Key, Token>,
    writes: HashMap<(Key, Token), (Value, Option<Timestamp>)>,
    held: Vec<(bytes::Bytes, Vec<u8>)>,
}

/// What an operation says that differs from the model.
type Check = Result<(), TestCaseError>;

fn name(key: Key) -> String {
    format!("key {}", key.0)
}

fn timeout(life: Life) -> Timeout {
    life.map_or(Timeout::Never, |millis| Duration::from_millis(millis).into())
}

fn open(home: &TempDir, bounds: Bounds, clock: &ManualClock) -> Cache {
    Cache::builder(home.path())
        .max_entries(bounds.max_entries)
        .max_bytes(bounds.max_bytes)
        .cull_frequency(bounds.cull_frequency)
        .eviction(bounds.eviction)
        .hot_bytes(bounds.hot_bytes)
        .clock(clock.clone())
        .open()
        .unwrap()
}

impl World {
    fn new(bounds: Bounds) -> Self {
        let (clock, home) = (ManualClock::new(), tempfile::tempdir().unwrap());
        let cache = open(&home, bounds, &clock);
        Self {
            clock,
            homes: vec![home],
            cache,
            bounds,
            evicts: bounds != WIDE,
            entries: BTreeMap::new(),
            next_number: 0,
            remembered: BTreeMap::new(),
            current: BTreeMap::new(),
            writes: HashMap::new(),
            held: Vec::new(),
        }
    }

    fn at(&self, key: Key) -> Cache {
        self.cache.with_version(key.1)
    }

    fn has_passed(&self, end: Option<Timestamp>) -> bool {
        end.is_some_and(|end| end <= self.clock.now())
    }

    /// The last value of the key, if it has not expired.
    fn live(&self, key: Key) -> Option<Last> {
        self.entries.get(&key).copied().filter(|last| !self.has_passed(last.expires_at))
    }

    fn end(&self, life: Life) -> Option<Timestamp> {
        let life = Duration::from_millis(life?);
        if life.is_zero() { Some(Timestamp::default()) } else { self.clock.now().checked_add(life) }
    }

    fn new_bytes(&mut self, len: usize) -> (Value, serde_bytes::ByteBuf) {
        self.next_number += 1;
        (Value::Bytes(self.next_number, len), bytes(self.next_number, len).into())
    }

    /// Notes that `value` was acknowledged for `key`. It took effect only if `expires_at` is still to come.
    fn stored(&mut self, key: Key, value: Value, expires_at: Option<Timestamp>) {
        if self.has_passed(expires_at) {
            self.removed(key, false);
        } else {
            let last = Last { value, expires_at, sure: !self.evicts, passed: false, zombie: false };
            self.entries.insert(key, last);
        }
    }

    /// Notes that the key was left without an entry, and whether one was `found` there to remove.
    fn removed(&mut self, key: Key, found: bool) {
        match self.entries.get_mut(&key) {
            Some(last) if last.passed && !found => last.zombie = true,
            _ => drop(self.entries.remove(&key)),
        }
    }

    /// Compares what a look at `key` found with what must and may be there.
    fn compare(&self, key: Key, found: Option<Value>) -> Check {
        match (self.live(key), found) {
            (None, None) => {}
            (Some(last), Some(value)) => prop_assert_eq!(value, last.value, "{:?}", key),
            (Some(last), None) => prop_assert!(!last.sure || last.zombie, "{key:?} is lost: {last:?}"),
            (None, Some(value)) => {
                prop_assert!(
                    false,
                    "{key:?} holds {value:?}, where nothing is left: {:?}",
                    self.entries.get(&key)
                );
            }
        }
        Ok(())
    }

    /// Whether the key must be present, must be absent, or may be either.
    fn presence(&self, key: Key) -> Option<bool> {
        match self.live(key) {
            None => Some(false),
            Some(last) => (last.sure && !last.zombie).then_some(true),
        }
    }

    fn expect_presence(&self, key: Key, said: bool, what: &Op) -> Check {
        if let Some(present) = self.presence(key) {
            prop_assert_eq!(said, present, "{:?} with {:?}", what, self.entries.get(&key));
        }
        Ok(())
    }

    /// What is under the key now, read in more than one way.
    fn look(&mut self, key: Key) -> Result<Option<Value>, TestCaseError> {
        let (cache, name) = (self.at(key), name(key));
        let entry = match cache.get_entry::<i64>(&name) {
            Ok(entry) => entry.map(|e| (Value::Count(e.value), e.token, e.expires_at)),
            Err(e) => {
                prop_assert_eq!(e.kind(), ErrorKind::Decode, "{}", e);
                let entry = cache.get_entry::<serde_bytes::ByteBuf>(&name).unwrap().unwrap();
                let number = u64::from_le_bytes(*entry.value.first_chunk().unwrap());
                let len = entry.value.len() - 8;
                prop_assert!(*entry.value == bytes(number, len), "{key:?} holds what nobody stored");
                Some((Value::Bytes(number, len), entry.token, entry.expires_at))
            }
        };
        let Some((value, token, expires_at)) = entry else { return Ok(None) };
        if let Some(last) = self.live(key) {
            prop_assert_eq!(expires_at, last.expires_at, "the expiry of {:?}", key);
        }
        let ttl = cache.ttl(&name).unwrap();
        let left =
            expires_at.map_or(Ttl::Never, |end| Ttl::Remaining(end.saturating_since(self.clock.now())));
        prop_assert_eq!(ttl, Some(left), "{:?}", key);
        // A token means one write of the key, whatever happens in between.
        let write = (value, expires_at);
        prop_assert_eq!(*self.writes.entry((key, token)).or_insert(write), write, "{:?} {:?}", key, token);
        self.remembered.entry(key).or_insert(token);
        self.current.insert(key, token);
        Ok(Some(value))
    }

    fn get(&mut self, key: Key) -> Check {
        let found = self.look(key)?;
        self.compare(key, found)
    }

    fn all_keys(&self) -> Vec<Key> {
        (0..24).flat_map(|name| (-1..6).map(move |version| (name, version))).collect()
    }

    /// Everything, and whether the directory is sound.
    fn check_all(&mut self) -> Check {
        let report = self.cache.check().unwrap();
        prop_assert!(report.is_sound(), "{:?}", report.problems);
        prop_assert!(self.cache.len() <= self.bounds.max_entries);
        prop_assert!(self.cache.stats().bytes <= self.bounds.max_bytes);
        for key in self.all_keys() {
            self.get(key)?;
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Check {
        match op {
            Op::Get(key) => self.get(*key)?,
            Op::GetMany(names) => {
                let keys: Vec<String> = names.iter().map(|n| name((*n, 1))).collect();
                let found = self.cache.get_many::<serde_bytes::ByteBuf, _>(&keys);
                prop_assert_eq!(found.len(), keys.len());
                for (number, found) in names.iter().zip(found) {
                    let key = (*number, 1);
                    match found {
                        Ok(None) => self.compare(key, None)?,
                        Ok(Some(value)) => {
                            let number = u64::from_le_bytes(*value.first_chunk().unwrap());
                            self.compare(key, Some(Value::Bytes(number, value.len() - 8)))?;
                        }
                        Err(_) => self.get(key)?,
                    }
                }
            }
            Op::Set(key, len, life) => {
                let (value, bytes) = self.new_bytes(*len);
                self.at(*key).set(&name(*key), &bytes, timeout(*life)).unwrap();
                self.stored(*key, value, self.end(*life));
            }
            Op::SetMany(names, life) => {
                let mut values = Vec::new();
                for number in names {
                    values.push((name((*number, 1)), self.new_bytes(20)));
                }
                let items = values.iter().map(|(name, (_, bytes))| (name.clone(), bytes));
                prop_assert!(self.cache.set_many(items, timeout(*life)).is_empty());
                for (number, (_, (value, _))) in names.iter().zip(&values) {
                    self.stored((*number, 1), *value, self.end(*life));
                }
            }
            Op::SetCount(key, count, life) => {
                self.at(*key).set(&name(*key), count, timeout(*life)).unwrap();
                self.stored(*key, Value::Count(*count), self.end(*life));
            }
            Op::Add(key, len, life) => {
                let (value, bytes) = self.new_bytes(*len);
                let added = self.at(*key).add(&name(*key), &bytes, timeout(*life)).unwrap();
                self.expect_presence(*key, !added, op)?;
                if added && *life != Some(0) {
                    self.stored(*key, value, self.end(*life));
                }
            }
            Op::Touch(key, life) => {
                let touched = self.at(*key).touch(&name(*key), timeout(*life)).unwrap();
                self.touched(*key, touched, self.end(*life), op)?;
            }
            Op::Persist(key) => {
                let touched = self.at(*key).persist(&name(*key)).unwrap();
                self.touched(*key, touched, None, op)?;
            }
            Op::ExpireAt(key, at) => {
                let at = Timestamp::from_millis(self.clock.now().as_millis().saturating_add_signed(*at));
                let touched = self.at(*key).expire_at(&name(*key), at).unwrap();
                self.touched(*key, touched, Some(at), op)?;
            }
            Op::Incr(key, delta) => {
                let result = self.at(*key).incr(&name(*key), *delta);
                self.counted(*key, *delta, result, op)?;
            }
            Op::IncrOrInit(key, delta, initial, life) => {
                let end = self.end(*life);
                let result = self.at(*key).incr_or_init(&name(*key), *delta, *initial, timeout(*life));
                let live = self.live(*key);
                let begins = result.as_ref().is_ok_and(|sum| *sum == initial + delta);
                if begins && self.presence(*key) != Some(true) {
                    // It began anew, or went on from the same number; then it kept its expiry.
                    let entry = self.at(*key).get_entry::<i64>(&name(*key)).unwrap();
                    match (entry, live) {
                        (Some(entry), Some(Last { value: Value::Count(before), expires_at, .. }))
                            if before == *initial && entry.expires_at == expires_at =>
                        {
                            self.stored(*key, Value::Count(initial + delta), expires_at);
                        }
                        // Nothing was there and nothing is stored.
                        _ if *life == Some(0) => {}
                        _ => self.stored(*key, Value::Count(initial + delta), end),
                    }
                } else {
                    self.counted(*key, *delta, result, op)?;
                }
            }
            Op::Delete(key) => {
                let deleted = self.at(*key).delete(&name(*key)).unwrap();
                self.expect_presence(*key, deleted, op)?;
                self.removed(*key, deleted);
            }
            Op::DeleteMany(names) => {
                let keys: Vec<String> = names.iter().map(|n| name((*n, 1))).collect();
                for (number, deleted) in names.iter().zip(self.cache.delete_many(&keys)) {
                    let deleted = deleted.unwrap();
                    self.expect_presence((*number, 1), deleted, op)?;
                    self.removed((*number, 1), deleted);
                }
            }
            Op::GetOrSet(key, len, life) => {
                let (value, bytes) = self.new_bytes(*len);
                let mut called = false;
                let got: serde_bytes::ByteBuf = self
                    .at(*key)
                    .get_or_set(&name(*key), timeout(*life), || {
                        called = true;
                        bytes.clone()
                    })
                    .unwrap();
                match self.live(*key) {
                    Some(Last { value: Value::Bytes(number, len), .. }) if !called => {
                        prop_assert!(*got == self::bytes(number, len), "{op:?}");
                    }
                    live => {
                        prop_assert!(called, "{op:?}: a value out of nowhere");
                        prop_assert!(got == bytes);
                        // What is there and is no byte array counts as missing.
                        let there = matches!(
                            live,
                            Some(Last { value: Value::Bytes(..), sure: true, zombie: false, .. })
                        );
                        prop_assert!(!there, "{op:?}: a value was computed again");
                        // Where nothing was there, nothing is stored; a value of another type is replaced.
                        if *life != Some(0) || live.is_some_and(|last| last.sure) {
                            self.stored(*key, value, self.end(*life));
                        }
                    }
                }
            }
            Op::IncrVersion(key, delta) => {
                let there = (key.0, key.1 + delta);
                let live = self.live(*key);
                match self.at(*key).incr_version(&name(*key), *delta) {
                    Ok(version) => {
                        self.expect_presence(*key, true, op)?;
                        prop_assert_eq!(version, there.1);
                        if *delta != 0
                            && let Some(last) = live
                        {
                            self.stored(there, last.value, last.expires_at);
                            self.removed(*key, true);
                        }
                    }
                    Err(e) => {
                        prop_assert_eq!(e.kind(), ErrorKind::NotFound);
                        self.expect_presence(*key, false, op)?;
                    }
                }
            }
            Op::SwapCurrent(key, len, life) => {
                let token = self.look(*key)?.map(|_| self.current[key]);
                let swap = self.swap(*key, token, *len, *life)?;
                prop_assert!(matches!(swap, Swap::Stored(_)), "{op:?} with the current token: {swap:?}");
            }
            Op::SwapRemembered(key, len, life) => {
                let Some(token) = self.remembered.remove(key) else { return Ok(()) };
                let current = self.look(*key)?.map(|_| self.current[key]);
                self.remembered.remove(key);
                let swap = self.swap(*key, Some(token), *len, *life)?;
                prop_assert_eq!(
                    matches!(swap, Swap::Stored(_)),
                    current == Some(token),
                    "{:?}: {:?}",
                    op,
                    swap
                );
                if let Swap::Conflict(found) = swap {
                    prop_assert_eq!(found, current);
                }
            }
            Op::SwapAbsent(key, len, life) => {
                let present = self.look(*key)?.is_some();
                let swap = self.swap(*key, None, *len, *life)?;
                prop_assert_eq!(matches!(swap, Swap::Stored(_)), !present, "{:?}", op);
            }
            Op::Hold(key) => {
                if let Ok(Some(held)) = self.at(*key).get_bytes(&name(*key)) {
                    // A few short byte arrays of small integers are all that could be mistaken; there are none.
                    self.held.truncate(3);
                    self.held.push((held.clone(), held.to_vec()));
                }
            }
            Op::Scan => {
                let mut seen = BTreeMap::new();
                for item in self.cache.keys() {
                    let key = item.unwrap();
                    let number: u8 = key.strip_prefix("key ").unwrap().parse().unwrap();
                    prop_assert!(seen.insert(number, ()).is_none(), "{key} is listed twice");
                }
                for number in 0..24 {
                    self.expect_presence((number, 1), seen.contains_key(&number), op)?;
                }
            }
            Op::Clear => {
                self.cache.clear().unwrap();
                self.entries.clear();
                prop_assert_eq!(self.cache.len(), 0);
            }
            Op::Maintain => {
                self.cache.maintain().unwrap();
                if !self.evicts && self.entries.values().all(|last| last.sure && !last.zombie) {
                    let live = self.entries.keys().filter(|key| self.live(**key).is_some()).count();
                    prop_assert_eq!(self.cache.len(), live as u64);
                }
            }
            Op::Flush => self.cache.flush().unwrap(),
            Op::Clock(millis) => {
                self.set_clock(self.clock.now().as_millis().saturating_add_signed(*millis));
            }
            Op::ClockToEnd(key, after) => {
                if let Some(end) = self.entries.get(key).and_then(|last| last.expires_at) {
                    self.set_clock(end.as_millis().saturating_add_signed(*after));
                    self.get(*key)?;
                }
            }
            Op::Close => self.cache.close().unwrap(),
            Op::Reopen(bounds) => {
                // Dropped first: there is one engine for a directory, with the bounds it was opened with.
                self.cache = Cache::dummy();
                self.open(*bounds)?;
            }
            Op::Kill(bounds) => {
                let copy = tempfile::tempdir().unwrap();
                copy_as_killed(self.homes.last().unwrap().path(), copy.path());
                self.cache = Cache::dummy();
                self.homes.push(copy);
                // No token outlives its process.
                self.remembered.clear();
                self.writes.clear();
                self.open(*bounds)?;
            }
        }
        self.within_bounds()
    }

    fn set_clock(&mut self, millis: u64) {
        self.clock.set(Timestamp::from_millis(millis));
        for last in self.entries.values_mut() {
            last.passed |= last.expires_at.is_some_and(|end| end <= self.clock.now());
            last.sure &= !last.passed;
        }
    }

    fn open(&mut self, bounds: Bounds) -> Check {
        self.evicts |= bounds != WIDE;
        if self.evicts {
            self.entries.values_mut().for_each(|last| last.sure = false);
        }
        self.bounds = bounds;
        self.cache = open(self.homes.last().unwrap(), bounds, &self.clock);
        self.check_all()
    }

    fn within_bounds(&self) -> Check {
        let (stats, len) = (self.cache.stats(), self.cache.len());
        prop_assert!(len <= self.bounds.max_entries, "{len} entries");
        prop_assert!(stats.bytes <= self.bounds.max_bytes, "{} bytes", stats.bytes);
        prop_assert!(stats.hot_bytes <= self.bounds.hot_bytes);
        prop_assert_eq!(stats.corrupt, 0);
        Ok(())
    }

    fn touched(&mut self, key: Key, touched: bool, end: Option<Timestamp>, op: &Op) -> Check {
        self.expect_presence(key, touched, op)?;
        if touched {
            let Some(last) = self.live(key) else { return Err(TestCaseError::fail(format!("{op:?}"))) };
            self.stored(key, last.value, end);
        }
        Ok(())
    }

    fn counted(&mut self, key: Key, delta: i64, result: keepwarm::Result<i64>, op: &Op) -> Check {
        let live = self.live(key);
        let expected = match live.map(|last| last.value) {
            None => Err(ErrorKind::NotFound),
            Some(Value::Bytes(..)) => Err(ErrorKind::NotAnInteger),
            Some(Value::Count(count)) => count.checked_add(delta).ok_or(ErrorKind::Overflow),
        };
        let result = result.map_err(|e| e.kind());
        let missed = result == Err(ErrorKind::NotFound) && self.presence(key) != Some(true);
        prop_assert!(result == expected || missed, "{op:?}: {result:?}, not {expected:?}; {live:?}");
        if let (Ok(sum), Some(last)) = (result, live) {
            self.stored(key, Value::Count(sum), last.expires_at);
        }
        Ok(())
    }

    fn swap(
        &mut self,
        key: Key,
        token: Option<Token>,
        len: usize,
        life: Life,
    ) -> Result<Swap, TestCaseError> {
        let (value, bytes) = self.new_bytes(len);
        let swap = self.at(key).compare_and_swap(&name(key), token, &bytes, timeout(life)).unwrap();
        if let Swap::Stored(_) = swap
            && (token.is_some() || life != Some(0))
        {
            self.stored(key, value, self.end(life));
        }
        Ok(swap)
    }
}

fn run(ops: &[Op], bounds: Bounds) -> Check {
    let mut world = World::new(bounds);
    for (number, op) in ops.iter().enumerate() {
        world.apply(op).map_err(|e| match e {
            TestCaseError::Fail(why) => TestCaseError::fail(format!("operation {number}, {op:?}: {why}")),
            other => other,
        })?;
    }
    world.check_all()?;
    let World { cache, held, homes, .. } = world;
    drop(cache);
    for (held, copy) in &held {
        prop_assert!(held == copy, "bytes that are held changed");
    }
    drop(homes);
    Ok(())
}

/// `KEEPWARM_MODEL_CASES` makes it last longer.
fn test(cases: u32, first: BoxedStrategy<Bounds>, later: BoxedStrategy<Bounds>) {
    let given = std::env::var("KEEPWARM_MODEL_CASES").ok();
    let config = Config {
        cases: given.map_or(cases, |n| n.parse().unwrap()),
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(rng::seed()),
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let outcome =
        TestRunner::new(config).run(&(vec(op(later), 1..250), first), |(ops, bounds)| run(&ops, bounds));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn with_room_for_all_every_answer_is_that_of_a_map() {
    test(60, Just(WIDE).boxed(), Just(WIDE).boxed());
}

#[test]
fn at_the_bounds_an_answer_is_that_of_a_map_or_a_miss() {
    test(60, tight().boxed(), prop_oneof![4 => tight(), 1 => Just(WIDE)].boxed());
}
