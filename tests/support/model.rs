//! A model of a cache: a plain map that receives the same operations and predicts the answers.
//!
//! If the bounds are never reached, every answer is predicted exactly. If entries may be evicted, a
//! miss is also allowed; a wrong value, or one older than the last, never is.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use keepwarm::{
    Builder, Cache, Clock, ErrorKind, Eviction, ManualClock, Swap, Timeout, Timestamp, Token, Ttl,
};
use tempfile::TempDir;

use crate::dir::copy_as_killed;
use crate::rng::Rng;

/// Returns an error from the function unless the condition holds: the cache differs from the model.
macro_rules! ensure {
    ($holds:expr) => {
        ensure!($holds, "{} does not hold", stringify!($holds))
    };
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}

macro_rules! ensure_eq {
    ($left:expr, $right:expr) => {
        ensure_eq!($left, $right, "{}", stringify!($left))
    };
    ($left:expr, $right:expr, $($why:tt)*) => {{
        let (left, right) = (&$left, &$right);
        ensure!(left == right, "{}: {left:?}, not {right:?}", format!($($why)*));
    }};
}

/// A key: its name and its version.
pub(crate) type Key = (u8, i64);

/// The lifetime of an entry in milliseconds; `None` if it never expires.
pub(crate) type Life = Option<u64>;

#[derive(Debug, Clone)]
pub(crate) enum Op {
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
    /// Sets the clock to this many milliseconds after the expiry of the key's entry, and reads the
    /// key.
    ClockToEnd(Key, i64),
    Close,
    Reopen(Bounds),
    Kill(Bounds),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) max_entries: u64,
    pub(crate) max_bytes: u64,
    pub(crate) cull_frequency: u64,
    pub(crate) eviction: Eviction,
    pub(crate) hot_bytes: u64,
}

/// Bounds that nothing here reaches.
pub(crate) const WIDE: Bounds = Bounds {
    max_entries: 5000,
    max_bytes: 32 << 20,
    cull_frequency: 32,
    eviction: Eviction::Lru,
    hot_bytes: 1 << 20,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// The number that generates the bytes, and their length.
    Bytes(u64, usize),
    Count(i64),
}

fn bytes(number: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(number);
    number.to_le_bytes().into_iter().chain((0..len).map(|_| rng.below(256) as u8)).collect()
}

/// The last value that was acknowledged for a key.
#[derive(Debug, Clone, Copy)]
struct Last {
    value: Value,
    expires_at: Option<Timestamp>,
    /// Whether it must be present until it expires. Otherwise it may have been evicted, or reaped
    /// before the clock was set back; and it may return after a kill.
    sure: bool,
    /// Whether its expiry has passed once; the clock may have been set back since.
    passed: bool,
    /// Whether a delete found it expired, so that it was not removed. It can only return if the
    /// clock is set back.
    zombie: bool,
}

struct World {
    builder: New,
    clock: ManualClock,
    homes: Vec<TempDir>,
    cache: Cache,
    bounds: Bounds,
    /// Whether the bounds have ever been so low that entries may have been evicted.
    evicts: bool,
    entries: BTreeMap<Key, Last>,
    next_number: u64,
    remembered: BTreeMap<Key, Token>,
    current: BTreeMap<Key, Token>,
    writes: HashMap<(Key, Token), (Value, Option<Timestamp>)>,
    held: Vec<(bytes::Bytes, Vec<u8>)>,
}

/// The result of a comparison: how the cache differs from the model.
pub(crate) type Check = Result<(), String>;

fn name(key: Key) -> String {
    format!("key {}", key.0)
}

fn timeout(life: Life) -> Timeout {
    life.map_or(Timeout::Never, |millis| Duration::from_millis(millis).into())
}

/// Returns the options of a cache in a directory, on the backend under test.
pub(crate) type New = fn(&Path) -> Builder;

fn open(builder: New, home: &TempDir, bounds: Bounds, clock: &ManualClock) -> Cache {
    builder(home.path())
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
    fn new(builder: New, bounds: Bounds) -> Self {
        let (clock, home) = (ManualClock::new(), tempfile::tempdir().unwrap());
        let cache = open(builder, &home, bounds, &clock);
        Self {
            builder,
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

    /// Records that `value` was acknowledged for `key`. It takes effect only if `expires_at` is in
    /// the future.
    fn stored(&mut self, key: Key, value: Value, expires_at: Option<Timestamp>) {
        if self.has_passed(expires_at) {
            self.removed(key, false);
        } else {
            let last = Last { value, expires_at, sure: !self.evicts, passed: false, zombie: false };
            self.entries.insert(key, last);
        }
    }

    /// Records that the key has no entry now, and whether an entry was `found` and removed.
    fn removed(&mut self, key: Key, found: bool) {
        match self.entries.get_mut(&key) {
            Some(last) if last.passed && !found => last.zombie = true,
            _ => drop(self.entries.remove(&key)),
        }
    }

    /// Compares the value that a read of `key` found with what must or may be present.
    fn compare(&self, key: Key, found: Option<Value>) -> Check {
        match (self.live(key), found) {
            (None, None) => {}
            (Some(last), Some(value)) => ensure_eq!(value, last.value, "{:?}", key),
            (Some(last), None) => ensure!(!last.sure || last.zombie, "{key:?} is lost: {last:?}"),
            (None, Some(value)) => {
                ensure!(
                    false,
                    "{key:?} holds {value:?}, and must be absent: {:?}",
                    self.entries.get(&key)
                );
            }
        }
        Ok(())
    }

    /// Whether a second read found nothing, and may differ from the first one: the background may
    /// evict an entry in between.
    fn may_be_evicted<T>(&self, found: &Option<T>) -> bool {
        self.evicts && found.is_none()
    }

    /// Whether the key must be present, must be absent, or may be either.
    fn presence(&self, key: Key) -> Option<bool> {
        match self.live(key) {
            None => Some(false),
            Some(last) => (last.sure && !last.zombie).then_some(true),
        }
    }

    fn expect_presence(&self, key: Key, answer: bool, what: &Op) -> Check {
        if let Some(present) = self.presence(key) {
            ensure_eq!(answer, present, "{:?} with {:?}", what, self.entries.get(&key));
        }
        Ok(())
    }

    /// Reads the value of the key through several functions, which must agree.
    fn read(&mut self, key: Key) -> Result<Option<Value>, String> {
        let (cache, name) = (self.at(key), name(key));
        let entry = match cache.get_entry::<i64>(&name) {
            Ok(entry) => {
                let shared = cache.get_shared::<i64>(&name).unwrap();
                if !self.may_be_evicted(&shared) {
                    ensure_eq!(
                        shared.as_deref(),
                        entry.as_ref().map(|e| &e.value),
                        "shared {:?}",
                        key
                    );
                }
                entry.map(|e| (Value::Count(e.value), e.token, e.expires_at))
            }
            Err(e) => {
                ensure_eq!(e.kind(), ErrorKind::Decode, "{}", e);
                let entry = cache.get_entry::<serde_bytes::ByteBuf>(&name).unwrap();
                if self.may_be_evicted(&entry) {
                    return Ok(None);
                }
                let entry = entry.unwrap();
                let number = u64::from_le_bytes(*entry.value.first_chunk().unwrap());
                let len = entry.value.len() - 8;
                ensure!(*entry.value == bytes(number, len), "{key:?} holds bytes never stored");
                let shared = cache.get_shared::<serde_bytes::ByteBuf>(&name).unwrap();
                if !self.may_be_evicted(&shared) {
                    ensure!(*shared.unwrap() == entry.value, "{key:?}: get_shared differs");
                }
                Some((Value::Bytes(number, len), entry.token, entry.expires_at))
            }
        };
        let Some((value, token, expires_at)) = entry else { return Ok(None) };
        if let Some(last) = self.live(key) {
            ensure_eq!(expires_at, last.expires_at, "the expiry of {:?}", key);
        }
        let ttl = cache.ttl(&name).unwrap();
        let left = expires_at
            .map_or(Ttl::Never, |end| Ttl::Remaining(end.saturating_since(self.clock.now())));
        if !self.may_be_evicted(&ttl) {
            ensure_eq!(ttl, Some(left), "{:?}", key);
        }
        // A token identifies one write of the key for ever.
        let write = (value, expires_at);
        ensure_eq!(
            *self.writes.entry((key, token)).or_insert(write),
            write,
            "{:?} {:?}",
            key,
            token
        );
        self.remembered.entry(key).or_insert(token);
        self.current.insert(key, token);
        Ok(Some(value))
    }

    fn get(&mut self, key: Key) -> Check {
        let found = self.read(key)?;
        self.compare(key, found)
    }

    fn all_keys(&self) -> Vec<Key> {
        (0..24).flat_map(|name| (-1..6).map(move |version| (name, version))).collect()
    }

    /// Checks all keys, the bounds, and that the directory is sound.
    fn check_all(&mut self) -> Check {
        let report = self.cache.check().unwrap();
        ensure!(report.is_sound(), "{:?}", report.problems);
        ensure!(self.cache.len() <= self.bounds.max_entries);
        ensure!(self.cache.stats().bytes <= self.bounds.max_bytes);
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
                ensure_eq!(found.len(), keys.len());
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
                ensure!(self.cache.set_many(items, timeout(*life)).is_empty());
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
                let at =
                    Timestamp::from_millis(self.clock.now().as_millis().saturating_add_signed(*at));
                let touched = self.at(*key).expire_at(&name(*key), at).unwrap();
                self.touched(*key, touched, Some(at), op)?;
            }
            Op::Incr(key, delta) => {
                let result = self.at(*key).incr(&name(*key), *delta);
                self.counted(*key, *delta, result, op)?;
            }
            Op::IncrOrInit(key, delta, initial, life) => {
                let end = self.end(*life);
                let result =
                    self.at(*key).incr_or_init(&name(*key), *delta, *initial, timeout(*life));
                let live = self.live(*key);
                let begins = result.as_ref().is_ok_and(|sum| *sum == initial + delta);
                if begins && self.presence(*key) != Some(true) {
                    // The counter was created, or it continued from the same number and kept its
                    // expiry.
                    let entry = self.at(*key).get_entry::<i64>(&name(*key)).unwrap();
                    match (entry, live) {
                        (
                            Some(entry),
                            Some(Last { value: Value::Count(before), expires_at, .. }),
                        ) if before == *initial && entry.expires_at == expires_at => {
                            self.stored(*key, Value::Count(initial + delta), expires_at);
                        }
                        // The key was absent, and nothing is stored.
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
                        ensure!(*got == self::bytes(number, len), "{op:?}");
                    }
                    live => {
                        ensure!(called, "{op:?}: a value that was never stored");
                        ensure!(got == bytes);
                        // A value that is not a byte array counts as missing.
                        let there = matches!(
                            live,
                            Some(Last { value: Value::Bytes(..), sure: true, zombie: false, .. })
                        );
                        ensure!(!there, "{op:?}: a present value was recomputed");
                        // With a lifetime of zero, an absent key stays absent, and a value of
                        // another type is replaced.
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
                        ensure_eq!(version, there.1);
                        if *delta != 0
                            && let Some(last) = live
                        {
                            self.stored(there, last.value, last.expires_at);
                            self.removed(*key, true);
                        }
                    }
                    Err(e) => {
                        ensure_eq!(e.kind(), ErrorKind::NotFound);
                        self.expect_presence(*key, false, op)?;
                    }
                }
            }
            Op::SwapCurrent(key, len, life) => {
                let token = self.read(*key)?.map(|_| self.current[key]);
                let swap = self.swap(*key, token, *len, *life)?;
                let evicted = self.evicts && token.is_some() && swap == Swap::Conflict(None);
                ensure!(
                    matches!(swap, Swap::Stored(_)) || evicted,
                    "{op:?} with the current token: {swap:?}"
                );
            }
            Op::SwapRemembered(key, len, life) => {
                let Some(token) = self.remembered.remove(key) else { return Ok(()) };
                let current = self.read(*key)?.map(|_| self.current[key]);
                self.remembered.remove(key);
                match self.swap(*key, Some(token), *len, *life)? {
                    Swap::Stored(_) => ensure_eq!(Some(token), current, "{:?}", op),
                    Swap::Conflict(found) if self.may_be_evicted(&found) => {}
                    Swap::Conflict(found) => {
                        ensure!(
                            found == current && found != Some(token),
                            "{op:?}: {found:?}, not {current:?}"
                        );
                    }
                }
            }
            Op::SwapAbsent(key, len, life) => {
                let present = self.read(*key)?.is_some();
                match self.swap(*key, None, *len, *life)? {
                    Swap::Stored(_) => ensure!(!present || self.evicts, "{op:?}"),
                    Swap::Conflict(_) => ensure!(present, "{op:?}"),
                }
            }
            Op::Hold(key) => {
                if let Ok(Some(held)) = self.at(*key).get_bytes(&name(*key)) {
                    // The bytes are not decoded, so the type of the value does not matter.
                    self.held.truncate(3);
                    self.held.push((held.clone(), held.to_vec()));
                }
            }
            Op::Scan => {
                let mut seen = BTreeMap::new();
                for item in self.cache.keys() {
                    let key = item.unwrap();
                    let number: u8 = key.strip_prefix("key ").unwrap().parse().unwrap();
                    ensure!(seen.insert(number, ()).is_none(), "{key} is listed twice");
                }
                for number in 0..24 {
                    self.expect_presence((number, 1), seen.contains_key(&number), op)?;
                }
            }
            Op::Clear => {
                self.cache.clear().unwrap();
                self.entries.clear();
                ensure_eq!(self.cache.len(), 0);
            }
            Op::Maintain => {
                self.cache.maintain().unwrap();
                if !self.evicts && self.entries.values().all(|last| last.sure && !last.zombie) {
                    let live = self.entries.keys().filter(|key| self.live(**key).is_some()).count();
                    ensure_eq!(self.cache.len(), live as u64);
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
                // The cache is dropped first: a directory has one engine in a process, which keeps
                // the bounds with which it was opened.
                self.cache = Cache::dummy();
                self.open(*bounds)?;
            }
            Op::Kill(bounds) => {
                let copy = tempfile::tempdir().unwrap();
                copy_as_killed(self.homes.last().unwrap().path(), copy.path());
                self.cache = Cache::dummy();
                self.homes.push(copy);
                // Tokens are not valid in another process.
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
        self.cache = open(self.builder, self.homes.last().unwrap(), bounds, &self.clock);
        self.check_all()
    }

    fn within_bounds(&self) -> Check {
        let (stats, len) = (self.cache.stats(), self.cache.len());
        ensure!(len <= self.bounds.max_entries, "{len} entries");
        ensure!(stats.bytes <= self.bounds.max_bytes, "{} bytes", stats.bytes);
        ensure!(stats.hot_bytes <= self.bounds.hot_bytes);
        ensure_eq!(stats.corrupt, 0);
        Ok(())
    }

    fn touched(&mut self, key: Key, touched: bool, end: Option<Timestamp>, op: &Op) -> Check {
        self.expect_presence(key, touched, op)?;
        if touched {
            let Some(last) = self.live(key) else { return Err(format!("{op:?}")) };
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
        ensure!(result == expected || missed, "{op:?}: {result:?}, not {expected:?}; {live:?}");
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
    ) -> Result<Swap, String> {
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

/// Applies all operations to a new cache, and returns how it differs from the model.
pub(crate) fn run(builder: New, ops: &[Op], bounds: Bounds) -> Check {
    let mut world = World::new(builder, bounds);
    for (number, op) in ops.iter().enumerate() {
        world.apply(op).map_err(|why| format!("operation {number}, {op:?}: {why}"))?;
    }
    world.check_all()?;
    let World { cache, held, homes, .. } = world;
    drop(cache);
    for (held, copy) in &held {
        ensure!(held == copy, "held bytes have changed");
    }
    drop(homes);
    Ok(())
}
