//! The limits of a cache: those in effect, and changes to them while it is open.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// The most entries that an index of 32-bit slots can hold, less two patterns with a special
/// meaning.
pub(crate) const MAX_ENTRIES_LIMIT: u64 = u32::MAX as u64 - 1;
/// With less than a mebibyte there is no room for segments.
pub(crate) const MAX_BYTES_LEAST: u64 = 1 << 20;
/// The most that an x86-64 process can map: 128 TiB.
pub(crate) const MAX_BYTES_LIMIT: u64 = 1 << 47;

/// The limits of a cache that are in effect; see [`Cache::limits`](crate::Cache::limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most entries at any time.
    pub max_entries: u64,
    /// An insert at the bound removes 1 / `cull_frequency` of the entries; 0 removes all.
    pub cull_frequency: u64,
    /// The most bytes at any time.
    pub max_bytes: u64,
}

impl Limits {
    /// No limits, for a backend that has none of its own: all three are [`u64::MAX`].
    ///
    /// ```
    /// use keepwarm::Limits;
    ///
    /// let mut limits = Limits::unlimited();
    /// limits.max_entries = 1000;
    /// ```
    pub const fn unlimited() -> Self {
        Self { max_entries: u64::MAX, cull_frequency: u64::MAX, max_bytes: u64::MAX }
    }
}

/// Changes to the limits of an open cache; see [`Cache::configure`](crate::Cache::configure). A
/// limit that is not set here stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "nothing changes until it is passed to `configure`"]
pub struct NewLimits {
    max_entries: Option<u64>,
    cull_frequency: Option<u64>,
    max_bytes: Option<u64>,
}

impl NewLimits {
    /// No changes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the limit of [`Builder::max_entries`](crate::Builder::max_entries).
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries);
        self
    }

    /// Sets the limit of [`Builder::cull_frequency`](crate::Builder::cull_frequency).
    pub fn cull_frequency(mut self, frequency: u64) -> Self {
        self.cull_frequency = Some(frequency);
        self
    }

    /// Sets the limit of [`Builder::max_bytes`](crate::Builder::max_bytes).
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// The limits `before` with these changes.
    ///
    /// ```
    /// use keepwarm::{Limits, NewLimits};
    ///
    /// let limits = NewLimits::new().max_entries(10).over(Limits::unlimited());
    /// assert_eq!((limits.max_entries, limits.max_bytes), (10, u64::MAX));
    /// ```
    #[must_use]
    pub fn over(&self, before: Limits) -> Limits {
        Limits {
            max_entries: self.max_entries.unwrap_or(before.max_entries),
            cull_frequency: self.cull_frequency.unwrap_or(before.cull_frequency),
            max_bytes: self.max_bytes.unwrap_or(before.max_bytes),
        }
    }

    /// # Errors
    /// [`InvalidOption`](crate::ErrorKind::InvalidOption), naming the first that is out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        self.max_entries.map_or(Ok(()), check_max_entries)?;
        self.max_bytes.map_or(Ok(()), check_max_bytes)
    }
}

/// The limits of a cache that only this process uses, readable without a lock.
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

    /// Applies `new`, and returns the limits that are then in effect.
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
        Err(invalid(name, format!("{value}; allowed: {least} to {most}")))
    }
}

/// The error for the option `name`, whose value is not allowed for the reason `why`.
pub(crate) fn invalid(name: &'static str, why: String) -> Error {
    Error::new(ErrorKind::InvalidOption, "open").with_option(name).with_source(why)
}
