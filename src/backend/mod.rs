//! What the facade needs from a store, and the stores that give it.
//!
//! A backend is bytes in, bytes out. It knows nothing of types, prefixes, versions or default timeouts:
//! those are the facade's. All of a backend's writes go through [`Backend::commit`], one atomic conditional
//! change of one key, from which `set`, `add`, `touch`, `delete`, `incr` and `compare_and_swap` are made.
//!
//! What is *not* promised: that an entry is still there later (any backend may evict), that `len` is exact
//! while others write, any order of `scan`, or that a scan sees what changes while it runs.

mod dummy;
mod file;
mod memory;
#[cfg(feature = "sled")]
mod sled;

use std::any::TypeId;

pub(crate) use crate::engine::{CheckReport, Claim, Claimed, Matter};
pub(crate) use crate::entry::{
    Change, Codec, Condition, Decoded, Expiry, Item, Outcome, Pieces, ProcessStats, SharedValue,
    Soft, Spool, Stats, Stored, Streamed,
};
use crate::error::Result;
pub(crate) use crate::limits::{Limits, NewLimits};
pub(crate) use dummy::DummyBackend;
pub(crate) use file::FileBackend;
pub(crate) use memory::MemoryBackend;
#[cfg(feature = "sled")]
pub(crate) use sled::SledBackend;

/// A store of entries, shared by any number of threads.
pub(crate) trait Backend: Send + Sync {
    /// Hands the key's entry to `visit`, if there is one that has not expired, and says whether it did.
    /// The cheapest way to read: nothing is copied. `visit` may call the backend again.
    ///
    /// # Errors
    /// Only if the environment refuses; damaged data is a miss.
    fn visit(&self, key: &str, visit: &mut dyn FnMut(Item<'_>)) -> Result<bool>;

    /// The key's entry, to keep.
    ///
    /// # Errors
    /// As [`visit`](Backend::visit).
    fn get(&self, key: &str) -> Result<Option<Stored>>;

    /// The key's entry as a value of the type `wanted`: one that was kept for this very entry by an earlier call, or
    /// else what `decode` makes of the entry, which the store may keep for the next call. `None` if there is no
    /// entry, or `decode` gives none. No lock is held while `decode` runs, or a value is dropped.
    ///
    /// # Errors
    /// As [`visit`](Backend::visit).
    fn get_decoded(
        &self,
        key: &str,
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Result<Option<SharedValue>> {
        let _ = wanted;
        let mut decoded = None;
        self.visit(key, &mut |item| decoded = decode(item))?;
        Ok(decoded.map(|decoded| decoded.value))
    }

    /// When the key's entry expires, if there is one. The value is not looked at where that would cost much.
    ///
    /// # Errors
    /// As [`visit`](Backend::visit).
    fn expiry_of(&self, key: &str) -> Result<Option<Expiry>> {
        let mut expiry = None;
        self.visit(key, &mut |item| expiry = Some(item.expires_at))?;
        Ok(expiry)
    }

    /// The key's entry, to be read piece by piece where it is large.
    ///
    /// # Errors
    /// As [`visit`](Backend::visit).
    fn stream(&self, key: &str) -> Result<Option<Streamed>> {
        Ok(self.get(key)?.map(Streamed::Whole))
    }

    /// Where a value can be written piece by piece. `None` where values are kept in memory: collect the pieces and
    /// [`commit`](Backend::commit) them.
    ///
    /// # Errors
    /// If the environment refuses.
    fn spool(&self) -> Result<Option<Box<dyn Spool>>> {
        Ok(None)
    }

    /// Gives `to` the value and the expiry of `from`, whatever it had, and returns the token that `from` has. `None` if
    /// that has no entry.
    ///
    /// # Errors
    /// As [`commit`](Backend::commit).
    fn copy(&self, from: &str, to: &str) -> Result<Option<u64>> {
        let Some(Stored { value, codec, expires_at, soft, token }) = self.get(from)? else {
            return Ok(None);
        };
        self.commit(
            to,
            Condition::Always,
            Change::Store { value: &value, codec, expires_at, soft },
        )?;
        Ok(Some(token))
    }

    /// About how many bytes a call that needs the key's value has to go through; 0 if there is no entry. Looks at
    /// no value, and does not count as a read.
    fn weight(&self, key: &str) -> usize;

    /// Whether even the next read may take long whatever its value, as the store has to be opened again first. For
    /// callers that must not keep their thread busy, as is the next one.
    #[cfg_attr(not(feature = "async"), expect(dead_code, reason = "asked by AsyncCache"))]
    fn reads_take_long(&self) -> bool {
        false
    }

    /// Whether the next commit may take long whatever its value: it waits for the disk, or may have to remove
    /// many entries.
    #[cfg_attr(not(feature = "async"), expect(dead_code, reason = "asked by AsyncCache"))]
    fn commits_take_long(&self) -> bool;

    /// Changes one key atomically, if `condition` holds.
    ///
    /// # Errors
    /// When it returns an error, the key's entry is as before, or (where an eviction came in between) gone;
    /// never an older value.
    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome>;

    /// Claims `matter` from all other processes that share the store, until the claim is dropped or the process dies.
    /// Never waits, and never fails: where there are no others, or the environment refuses, it is a claim that nobody
    /// sees.
    fn claim(&self, matter: Matter<'_>) -> Claimed {
        let _ = matter;
        Claimed::Mine(Claim::default())
    }

    /// Removes every entry.
    ///
    /// # Errors
    /// When it returns an error, nothing was removed.
    fn clear(&self) -> Result<()>;

    /// The number of entries, expired ones that were not reaped yet included. O(1).
    fn len(&self) -> u64;

    /// Hands out some entries that have not expired, beginning at `cursor` (0 at first), and returns where
    /// to go on: `None` at the end. An entry that is there from the first call to the last is handed out
    /// exactly once.
    ///
    /// # Errors
    /// As [`visit`](Backend::visit).
    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>>;

    /// The same without the values of the items, where those would cost much.
    ///
    /// # Errors
    /// As [`visit`](Backend::visit).
    fn scan_keys(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.scan(cursor, visit)
    }

    /// Does what the background work would do by itself in time: reaps expired entries, makes room.
    ///
    /// # Errors
    /// If the environment refuses.
    fn maintain(&self) -> Result<()>;

    /// Makes every acknowledged write durable, where the store is.
    ///
    /// # Errors
    /// If the disk refuses; what was written since the last success may be lost in a power cut.
    fn flush(&self) -> Result<()>;

    /// Gives up what the store holds of the operating system. The next call takes it up again.
    ///
    /// # Errors
    /// As [`flush`](Backend::flush).
    fn close(&self) -> Result<()>;

    /// The limits that count now.
    fn limits(&self) -> Limits;

    /// Changes the limits, for all that share the store, and says what counts now. They are within theirs.
    ///
    /// # Errors
    /// If the environment refuses; then nothing has changed.
    fn configure(&self, new: &NewLimits) -> Result<Limits>;

    /// What the store counted since it was opened.
    fn stats(&self) -> Stats;

    /// What all processes that share the store counted.
    ///
    /// # Errors
    /// If the environment refuses.
    fn total_stats(&self) -> Result<Stats> {
        Ok(self.stats())
    }

    /// What each process counted that shares the store, this one first. `None` where no others can.
    ///
    /// # Errors
    /// If the environment refuses.
    fn process_stats(&self) -> Result<Option<Vec<ProcessStats>>> {
        Ok(None)
    }

    /// Looks whether everything that the store keeps is as it should be. Reads everything, changes nothing.
    ///
    /// # Errors
    /// If the environment refuses. What is wrong is in the report.
    fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }
}
