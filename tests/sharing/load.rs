//! The workload on a shared cache: random operations, each recorded in a journal.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use keepwarm::{Builder, Cache, Durability, Eviction, NewLimits, Swap, Timeout, Token};
use serde_bytes::ByteBuf;

use crate::child_processes::{arguments, number};
use crate::history::{Journal, Kind, RUBBISH};
use crate::rng::Rng;
use crate::value::{self, Name};

/// The kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) seed: u64,
    /// Whether the limits are so low that entries are evicted.
    pub(crate) tight: bool,
    /// Whether processes close the cache now and then; the next call reopens it.
    pub(crate) closes: bool,
    /// Whether reads use a copy that is not kept up to date, so that they are stale.
    pub(crate) stale: bool,
}

/// A cull removes one entry in this many, or in up to two more (see `configure`).
const CULL_FREQUENCY: u64 = 8;

/// Keys without expiry, keys with short lifetimes, and counters.
const STAYING: u32 = 200;
const SHORT_LIVED: u32 = 20;
const COUNTERS: u32 = 20;
pub(crate) const KEYS: u32 = STAYING + SHORT_LIVED + COUNTERS;

fn is_counter(key: u32) -> bool {
    key >= STAYING + SHORT_LIVED
}

fn is_short_lived(key: u32) -> bool {
    (STAYING..STAYING + SHORT_LIVED).contains(&key)
}

impl Load {
    /// The builder for process number `process`. Options that concern one process alone differ.
    pub(crate) fn builder(&self, dir: &Path, process: u32) -> Builder {
        let eviction = [Eviction::Lru, Eviction::Adaptive][self.seed as usize % 2];
        let durability = match process % 8 {
            1 => Durability::Buffered,
            2 => Durability::Interval(Duration::from_millis(1)),
            3 => Durability::Sync,
            _ => Durability::default(),
        };
        let builder = Cache::builder(dir)
            .default_timeout(Timeout::Never)
            .eviction(eviction)
            .durability(durability);
        if self.tight {
            builder
                .max_bytes(4 << 20)
                .max_entries(u64::from(KEYS) * 3 / 4)
                .cull_frequency(CULL_FREQUENCY)
                .hot_bytes(100_000)
        } else {
            builder.max_bytes(32 << 20).max_entries(20_000).hot_bytes(1 << 20)
        }
    }

    pub(crate) fn to_arguments(self) -> Vec<String> {
        arguments![self.seed, u8::from(self.tight), u8::from(self.closes), u8::from(self.stale)]
    }

    pub(crate) fn from_arguments(arguments: &[String]) -> Self {
        let flag = |at: usize| number(&arguments[at]) == 1;
        Self { seed: number(&arguments[0]), tight: flag(1), closes: flag(2), stale: flag(3) }
    }
}

/// A thread that does random operations.
pub(crate) struct Worker<'a> {
    pub(crate) cache: &'a Cache,
    load: Load,
    rng: Rng,
    journal: Journal,
    /// For each key, the result of the last read, and how many more reads it may answer.
    copies: HashMap<u32, (Option<u64>, u32)>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(cache: &'a Cache, load: Load, thread: u32, journal: Journal) -> Self {
        let rng = Rng::new(load.seed ^ u64::from(thread) << 32);
        Self { cache, load, rng, journal, copies: HashMap::new() }
    }

    /// A random key. Half of the operations are on a tenth of the keys.
    fn key(&mut self) -> u32 {
        let kind = self.rng.below(100);
        let (first, count) = match kind {
            0..70 => (0, STAYING),
            70..82 => (STAYING, SHORT_LIVED),
            _ => (STAYING + SHORT_LIVED, COUNTERS),
        };
        let count = if self.rng.below(2) == 0 { count / 10 } else { count };
        first + self.rng.below(u64::from(count)) as u32
    }

    /// Does one operation.
    pub(crate) fn step(&mut self) -> keepwarm::Result<()> {
        match self.rng.below(10_000) {
            0 => return self.clear(),
            // More clears, unless the limits are tight: compaction needs entries that live longer.
            1..4 if !self.load.tight => return self.clear(),
            8..16 => return self.cache.flush(),
            16..24 => return self.cache.maintain(),
            24..28 if self.load.closes => return self.cache.close(),
            28..32 => return self.list(),
            32..36 => return self.configure(),
            _ => {}
        }
        let key = self.key();
        let choice = self.rng.below(100);
        if is_counter(key) {
            return match choice {
                0..55 => self.incr(key),
                55..57 => self.delete(key),
                _ => self.get(key),
            };
        }
        match choice {
            0..45 => self.get(key),
            45..70 => self.set(key),
            70..78 => self.delete(key),
            78..85 => self.add(key),
            85..90 => self.swap(key),
            90..94 => self.compute(key),
            // A touch would remove the short lifetime.
            _ if is_short_lived(key) => self.get(key),
            _ => self.touch(key),
        }
    }

    /// Does one read.
    pub(crate) fn read_step(&mut self) -> keepwarm::Result<()> {
        let key = self.key();
        self.get(key)
    }

    fn name(key: u32) -> String {
        format!("key {key}")
    }

    fn bytes(&self, name: Name) -> Vec<u8> {
        value::bytes(name, !self.load.tight)
    }

    fn writer_of(&self, bytes: &[u8]) -> u64 {
        value::name(bytes, !self.load.tight).map_or(RUBBISH, |name| name.0)
    }

    /// Reads with one of the read functions, chosen at random.
    fn read(&mut self, key: u32) -> keepwarm::Result<Option<u64>> {
        let (name, cache) = (Self::name(key), self.cache);
        let way = self.rng.below(4);
        if is_counter(key) {
            let count = match way {
                0 => cache.get_shared::<i64>(&name)?.map(|count| *count),
                1 => cache.get_entry::<i64>(&name)?.map(|entry| entry.value),
                _ => cache.get::<i64>(&name)?,
            };
            return Ok(count.map(|count| count as u64));
        }
        Ok(match way {
            0 => cache.get_shared::<ByteBuf>(&name)?.map(|bytes| self.writer_of(&bytes)),
            1 => cache.get_bytes(&name)?.map(|bytes| self.writer_of(&bytes)),
            2 => cache.get_entry::<ByteBuf>(&name)?.map(|entry| self.writer_of(&entry.value)),
            _ => cache.get::<ByteBuf>(&name)?.map(|bytes| self.writer_of(&bytes)),
        })
    }

    pub(crate) fn get(&mut self, key: u32) -> keepwarm::Result<()> {
        self.journal.begin(Kind::Get, key, 0);
        let saw = match self.copies.get_mut(&key) {
            Some((copy, left)) if *left > 0 => {
                *left -= 1;
                *copy
            }
            _ => {
                let saw = self.read(key)?;
                if self.load.stale {
                    self.copies.insert(key, (saw, 5));
                }
                saw
            }
        };
        self.journal.end(saw.is_some(), saw.unwrap_or(0));
        Ok(())
    }

    fn set(&mut self, key: u32) -> keepwarm::Result<()> {
        let millis = if is_short_lived(key) { 20 + self.rng.below(60) } else { 0 };
        let name = self.journal.begin(Kind::Set, key, millis);
        let timeout =
            if millis > 0 { Duration::from_millis(millis).into() } else { Timeout::Never };
        self.cache.set_bytes(&Self::name(key), &self.bytes(name), timeout)?;
        self.journal.end(true, 0);
        Ok(())
    }

    fn add(&mut self, key: u32) -> keepwarm::Result<()> {
        let name = self.journal.begin(Kind::Add, key, 0);
        let added =
            self.cache.add(&Self::name(key), &ByteBuf::from(self.bytes(name)), Timeout::Never)?;
        self.journal.end(added, 0);
        Ok(())
    }

    /// Replaces the current value with `compare_and_swap`.
    fn swap(&mut self, key: u32) -> keepwarm::Result<()> {
        self.journal.begin(Kind::Get, key, 0);
        let entry = self.cache.get_entry::<ByteBuf>(&Self::name(key))?;
        let seen: Option<(u64, Token)> =
            entry.map(|entry| (self.writer_of(&entry.value), entry.token));
        let (saw, token) = (seen.map_or(0, |(saw, _)| saw), seen.map(|(_, token)| token));
        self.journal.end(seen.is_some(), saw);
        let name = self.journal.begin(Kind::Swap, key, saw);
        let new = ByteBuf::from(self.bytes(name));
        let swapped = self.cache.compare_and_swap(&Self::name(key), token, &new, Timeout::Never)?;
        self.journal.end(matches!(swapped, Swap::Stored(_)), 0);
        Ok(())
    }

    /// Calls `get_or_set`: reads, or stores the value that one of the concurrent callers computes.
    fn compute(&mut self, key: u32) -> keepwarm::Result<()> {
        let name = self.journal.begin(Kind::Compute, key, 0);
        let new = || ByteBuf::from(self.bytes(name));
        let found = self.cache.get_or_set(&Self::name(key), Timeout::Never, new)?;
        self.journal.end(true, self.writer_of(&found));
        Ok(())
    }

    /// Lists all keys and checks their names.
    fn list(&self) -> keepwarm::Result<()> {
        for key in self.cache.keys() {
            let key = key?;
            let number = key.strip_prefix("key ").map(|number| number.parse::<u32>());
            assert!(matches!(number, Some(Ok(number)) if number < KEYS), "unknown key {key:?}");
        }
        Ok(())
    }

    /// Changes how many entries a cull removes, which must not change what reads may see.
    fn configure(&mut self) -> keepwarm::Result<()> {
        let frequency = CULL_FREQUENCY + self.rng.below(3);
        self.cache.configure(&NewLimits::new().cull_frequency(frequency)).map(drop)
    }

    fn touch(&mut self, key: u32) -> keepwarm::Result<()> {
        self.journal.begin(Kind::Touch, key, 0);
        let touched = self.cache.touch(&Self::name(key), Timeout::Never)?;
        self.journal.end(touched, 0);
        Ok(())
    }

    fn delete(&mut self, key: u32) -> keepwarm::Result<()> {
        self.journal.begin(Kind::Delete, key, 0);
        let deleted = self.cache.delete(&Self::name(key))?;
        self.journal.end(deleted, 0);
        Ok(())
    }

    fn incr(&mut self, key: u32) -> keepwarm::Result<()> {
        let name = self.journal.begin(Kind::Incr, key, 0);
        let count =
            self.cache.incr_or_init(&Self::name(key), 1, name.counts_from(), Timeout::Never)?;
        self.journal.end(true, count as u64);
        Ok(())
    }

    pub(crate) fn clear(&mut self) -> keepwarm::Result<()> {
        self.journal.begin(Kind::Clear, 0, 0);
        self.cache.clear()?;
        self.journal.end(true, 0);
        Ok(())
    }
}
