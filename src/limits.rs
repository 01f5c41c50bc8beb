//! The limits of a cache: what counts now, and what is to change while it is open.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// As many entries as an index of 32-bit slots can hold, less the two patterns with a meaning of their own.
pub(crate) const MAX_ENTRIES_LIMIT: u64 = u32::MAX as u64 - 1;
/// Below a mebibyte there is no room for segments.
pub(crate) const MAX_BYTES_LEAST: u64 = 1 << 20;
/// What an x86-64 process can map: 128 TiB.
pub(crate) const MAX_BYTES_LIMIT: u64 = 1 << 47;

/// The limits that a cache keeps to; see [`Cache::limits`](crate::Cache::limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Most entries at any time.
    pub max_entries: u64,
    /// An insert at the bound removes one in so many entries; 0 removes all.
    pub cull_frequency: u64,
    /// Most bytes at any time.
    pub max_bytes: u64,
}

/// What is to change of a cache's limits while it is open; see [`Cache::configure`](crate::Cache::configure). What is
/// not named here stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "nothing changes until it is given to `configure`"]
pub struct NewLimits {
    max_entries: Option<u64>,
    cull_frequency: Option<u64>,
    max_bytes: Option<u64>,
}

impl NewLimits {
    /// Changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Builder::max_entries`](crate::Builder::max_entries).
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries);
        self
    }

    /// As [`Builder::cull_frequency`](crate::Builder::cull_frequency).
    pub fn cull_frequency(mut self, frequency: u64) -> Self {
        self.cull_frequency = Some(frequency);
        self
    }

    /// As [`Builder::max_bytes`](crate::Builder::max_bytes).
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// The limits `before`, changed.
    pub(crate) fn over(&self, before: Limits) -> Limits {
        Limits {
            max_entries: self.max_entries.unwrap_or(before.max_entries),
            cull_frequency: self.cull_frequency.unwrap_or(before.cull_frequency),
            max_bytes: self.max_bytes.unwrap_or(before.max_bytes),
        }
    }

    /// # Errors
    /// [`InvalidOption`](crate::ErrorKind::InvalidOption), naming the first that is out of its limits.
    pub(crate) fn validate(&self) -> Result<()> {
        self.max_entries.map_or(Ok(()), check_max_entries)?;
        self.max_bytes.map_or(Ok(()), check_max_bytes)
    }
}

/// The limits of a cache that only this process has, to be read without a lock.
#[derive(Debug)]
pub(crate) struct OwnLimits {
    max_entries: AtomicU64,
    cull_frequency: AtomicU64,
    max_bytes: AtomicU64,
}

impl OwnLimits {
    pub(crate) fn new(Limits { max_entries, cull_frequency, max_bytes }: Limits) -> Self {
        Self {
            max_entries: max_entries.into(),
            cull_frequency: cull_frequency.into(),
            max_bytes: max_bytes.into(),
        }
    }

    pub(crate) fn get(&self) -> Limits {
        Limits {
            max_entries: self.max_entries.load(Ordering::Relaxed),
            cull_frequency: self.cull_frequency.load(Ordering::Relaxed),
            max_bytes: self.max_bytes.load(Ordering::Relaxed),
        }
    }

    /// Changes what `new` names, and says what counts then.
    pub(crate) fn change(&self, new: &NewLimits) -> Limits {
        let words = [
            (&self.max_entries, new.max_entries),
            (&self.cull_frequency, new.cull_frequency),
            (&self.max_bytes, new.max_bytes),
        ];
        for (word, value) in words {
            if let Some(value) = value {
                word.store(value, Ordering::Relaxed);
            }
        }
        self.get()
    }
}

pub(crate) fn check_max_entries(entries: u64) -> Result<()> {
    within("max_entries", entries, 1, MAX_ENTRIES_LIMIT)
}

pub(crate) fn check_max_bytes(bytes: u64) -> Result<()> {
    within("max_bytes", bytes, MAX_BYTES_LEAST, MAX_BYTES_LIMIT)
}

pub(crate) fn within(name: &'static str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(invalid(name, format!("{value}; from {least} to {most} is possible")))
    }
}

/// The error for an option called `name` that is out of its limits, as `why` tells.
pub(crate) fn invalid(name: &'static str, why: String) -> Error {
    Error::new(ErrorKind::InvalidOption, "open").with_option(name).with_source(why)
}
