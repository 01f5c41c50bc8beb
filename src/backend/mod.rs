//! The contract between a cache and the store that keeps its entries: implement [`Backend`] to put
//! a cache on a store of your own.
//!
//! A backend is bytes in, bytes out. It knows no types, prefixes, versions or default timeouts:
//! those belong to [`Cache`](crate::Cache). A key is the stored key, `prefix:version:key`, of at
//! most 65,536 bytes of UTF-8; the empty key is possible. All changes of an entry go through
//! [`Backend::commit`], one atomic conditional write of one key: `set`, `add`, `touch`, `delete`,
//! `incr`, `compare_and_swap` and leases are made of it.
//!
//! Three methods are required: [`get`](Backend::get), [`commit`](Backend::commit) and
//! [`clear`](Backend::clear). The others have defaults. A default either does the same by way of
//! these three, at a higher cost, or says that the store cannot do it (`Unsupported`).
//! [`Cache::with_backend`](crate::Cache::with_backend) and
//! [`Builder::backend`](crate::Builder::backend) make a cache of it, and
//! `keepwarm::testing::backend_contract` (feature `test-util`) checks that it keeps the promises.
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::Mutex;
//!
//! use keepwarm::backend::{Backend, Change, Condition, Decided, Expiry, Outcome, Stored};
//! use keepwarm::{Cache, Clock, Result, SystemClock, Timeout};
//!
//! #[derive(Default)]
//! struct MapBackend(Mutex<(HashMap<String, Stored>, u64)>);
//!
//! fn has_passed(expires_at: Expiry) -> bool {
//!     expires_at.is_some_and(|end| end <= SystemClock.now())
//! }
//!
//! impl Backend for MapBackend {
//!     fn get(&self, key: &str) -> Result<Option<Stored>> {
//!         let found = self.0.lock().unwrap().0.get(key).cloned();
//!         Ok(found.filter(|entry| !has_passed(entry.expires_at)))
//!     }
//!
//!     fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
//!         let (entries, last_token) = &mut *self.0.lock().unwrap();
//!         let before = entries.get(key).filter(|entry| !has_passed(entry.expires_at)).cloned();
//!         let current = before.as_ref().map(|entry| entry.token);
//!         let token = match change.decide(condition, current, has_passed) {
//!             Decided::Return(outcome) => return Ok(outcome),
//!             Decided::Remove => {
//!                 entries.remove(key);
//!                 None
//!             }
//!             Decided::Put { expires_at } => {
//!                 *last_token += 1;
//!                 let entry = match (change, before) {
//!                     (Change::Store { value, codec, soft, .. }, _) => {
//!                         Stored::new(value.to_vec(), codec, expires_at, *last_token)
//!                             .with_soft(soft)
//!                     }
//!                     (_, Some(entry)) => {
//!                         Stored::new(entry.value, entry.codec, expires_at, *last_token)
//!                             .with_soft(entry.soft.touched())
//!                     }
//!                     (_, None) => return Ok(Outcome::Refused { current: None }),
//!                 };
//!                 entries.insert(key.to_owned(), entry);
//!                 Some(*last_token)
//!             }
//!         };
//!         Ok(Outcome::Done { token, existed: current.is_some() })
//!     }
//!
//!     fn clear(&self) -> Result<()> {
//!         self.0.lock().unwrap().0.clear();
//!         Ok(())
//!     }
//! }
//!
//! let cache = Cache::with_backend(MapBackend::default());
//! cache.set("a", &1, Timeout::Never)?;
//! assert_eq!(cache.incr("a", 41)?, 42);
//! # Ok::<(), keepwarm::Error>(())
//! ```
//!
//! `examples/toy_backend.rs` is a whole one, with its tests.
//!
//! # What a backend promises
//!
//! - **Atomic: one commit.** Among all callers of the store, in whatever thread, process or
//!   machine, the check of the condition and the change are one step. Of any number of `add`s one
//!   succeeds, and a counter counts exactly.
//! - **Read your writes.** A read that begins after a commit has returned sees that commit or a
//!   later one: never an older value, and never bytes of two values.
//! - **Unchanged.** Value, codec, expiry and freshness ([`Soft`]) come back as they were stored,
//!   save that a store may round an expiry *up* to its own resolution.
//! - **Expired is absent.** From `expires_at` on, no read, condition or scan sees the entry,
//!   whether or not the store has removed it. A commit with a time that has passed leaves the key
//!   without an entry.
//! - **Tokens are unique.** Every change of an entry gives it a token that the key never had
//!   before, even if it was deleted, cleared or evicted between. 0 is no token. They have no order.
//! - **Clear empties the whole store**, all prefixes and versions, for all that share it. A read
//!   that begins after it has returned sees none of the entries from before it began. A store
//!   that holds data of others as well (a server) gives a backend a namespace, and clears that.
//! - **Lifetimes.** A `visit` closure runs while no lock of the store is held: it may take its
//!   time and call the backend again. What [`Stored`] and [`Pieces`] hold stays readable after
//!   the entry is gone, and after `close`.
//! - **No panics**, and no method waits for ever: a store that waits (for a lock, for a server)
//!   does so up to a time-out of its own and returns an error.
//!
//! # What it does not promise
//!
//! - **Presence.** Any entry may be gone at any time: evicted, or lost with its server. A store
//!   chooses what it evicts, but never the entry that a commit has just stored, before that
//!   commit has returned.
//! - **Order** of entries in a scan, of tokens, or between commits of different keys.
//! - **More than one key at a time.** `clear`, `copy` and a scan are not atomic with respect to
//!   commits that run meanwhile.
//! - **Durability** beyond what the store says of itself. `flush` and `close` may do nothing.
//! - **Exact numbers.** [`len`](Backend::len) counts expired entries that were not removed yet,
//!   and lags behind concurrent writers. A store may not know it at all.
//!
//! # Time
//!
//! `expires_at` is made by the facade, from the clock of the [`Builder`](crate::Builder). Which
//! clock ends the entry is for the backend to say. A local store takes a [`Clock`](crate::Clock)
//! when it is made, and it must be the clock that the `Builder` is given. A remote store leaves
//! it to its server: it sends the time that is left, `expires_at` less the time of its own clock,
//! so that the clocks of the two machines may differ. It computes `expires_at` of an entry that it
//! reads in the same way.
//!
//! # Failures
//!
//! A read that cannot be answered is an error, never a miss; damaged data is a miss. The
//! [kind](crate::ErrorKind) of an error tells what happened to the store:
//!
//! | kind | of | what holds afterwards |
//! |---|---|---|
//! | `Unreachable` | any method | the server did not get the request: nothing changed |
//! | `UnknownOutcome` | `commit`, `copy`, `clear`, `configure`, a spool's `commit` | the request was sent and no answer came: the change has taken effect, or will, or will not |
//! | `LockLost` | the same | as `UnknownOutcome` |
//! | `ValueTooLarge`, `NoSpace`, `InvalidKey` | `commit`, `copy`, spools | nothing changed |
//! | `Busy` | any method | nothing changed; a later try may succeed |
//! | `Unsupported` | optional methods | the store can never do it |
//! | others | any method | nothing changed |
//!
//! "Nothing changed" allows one thing: the entry of the key may be gone, as an eviction may come
//! at any time. It is never an older value. The facade repeats no commit after an error; a commit
//! that was [refused](Outcome::Refused) it may repeat on what is there now. So a backend must not
//! repeat a commit whose outcome it does not know: the second could refuse what the first did.
//!
//! # Asynchronous callers
//!
//! The methods of [`Backend`] block. `AsyncCache` (feature `async`) calls them where it is awaited
//! if [`weight`](Backend::weight), [`reads_take_long`](Backend::reads_take_long) and
//! [`commits_take_long`](Backend::commits_take_long) say that they are quick, else on a thread
//! that may block. A backend that is itself asynchronous, such as a client of a server, offers
//! `AsyncBackend` by `as_async` in addition, and `AsyncCache` awaits that, with no other thread.

#[cfg(feature = "async")]
mod async_backend;
mod dummy;
#[cfg(target_os = "linux")]
mod file;
mod memory;
#[cfg(all(feature = "sled", target_os = "linux"))]
mod sled;

use std::any::TypeId;

pub use crate::entry::{
    Change, CheckReport, Claim, ClaimKey, Claimed, Codec, Condition, Decided, Decoded, Expiry,
    HeldClaim, Item, Outcome, Pieces, ProcessStats, SharedValue, Soft, Spool, Stats, Stored,
    Streamed,
};
use crate::error::{Error, Result};
pub use crate::limits::{Limits, NewLimits};
#[cfg(feature = "async")]
pub use async_backend::{AsyncBackend, BoxFuture, ScanBatch};
pub(crate) use dummy::DummyBackend;
#[cfg(target_os = "linux")]
pub(crate) use file::FileBackend;
pub(crate) use memory::MemoryBackend;
#[cfg(all(feature = "sled", target_os = "linux"))]
pub(crate) use sled::SledBackend;

/// A store of entries, shared by any number of threads. The [module](self) has an example, and
/// what the methods promise together.
// Invariant I35: every backend gives the same answers.
#[expect(clippy::len_without_is_empty, reason = "a count that may be unknown; `Cache` has both")]
pub trait Backend: Send + Sync + 'static {
    /// The key's entry, if there is one that has not expired. Counts as a use of the entry.
    ///
    /// # Errors
    /// If the store cannot be read. Damaged data is a miss.
    fn get(&self, key: &str) -> Result<Option<Stored>>;

    /// Makes `change` to the key's entry if `condition` holds, in one atomic step.
    ///
    /// [`Change::decide`] says what to do, given the token of the entry that is there.
    ///
    /// # Errors
    /// See [Failures](self#failures). Unless the kind is `UnknownOutcome` or `LockLost`, the entry
    /// is as before, or gone; never an older value.
    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome>;

    /// Removes every entry, whatever its prefix and version.
    ///
    /// # Errors
    /// See [Failures](self#failures): nothing was removed, unless the kind is `UnknownOutcome` or
    /// `LockLost`.
    fn clear(&self) -> Result<()>;

    /// The number of entries, expired ones that were not removed yet included. O(1), or one
    /// request to a server.
    ///
    /// By default `Unsupported`; [`Cache::len`](crate::Cache::len) is then 0.
    ///
    /// # Errors
    /// `Unsupported` if the store does not know it; as [`get`](Backend::get).
    fn len(&self) -> Result<u64> {
        Err(Error::unsupported("len"))
    }

    /// Hands some entries that have not expired to `visit`, and returns where to continue: `None`
    /// at the end. It begins with the cursor 0; what other cursors mean is defined by the
    /// store. It does not count as a use of the entries.
    ///
    /// An entry that is there from the first call to the last is handed out at least once; exactly
    /// once, unless the store says that it may repeat some. One that comes or goes meanwhile may
    /// be missing. A call hands out some hundred entries at most, possibly none.
    ///
    /// By default `Unsupported`.
    ///
    /// # Errors
    /// `Unsupported` if the store cannot list its entries; as [`get`](Backend::get).
    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        let _ = (cursor, visit);
        Err(Error::unsupported("scan"))
    }

    /// As [`scan`](Backend::scan), for callers that read no values: the items may have empty ones.
    ///
    /// By default it is `scan`.
    ///
    /// # Errors
    /// As [`scan`](Backend::scan).
    fn scan_keys(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.scan(cursor, visit)
    }

    /// Hands the key's entry to `visit`, if there is one that has not expired, and says whether it
    /// did. The cheapest read: a store that can lend its bytes copies nothing. `visit` may be
    /// called more than once if the store finds that what it lent has changed meanwhile; the last
    /// call counts. `visit` may call the backend again.
    ///
    /// By default it is [`get`](Backend::get).
    ///
    /// # Errors
    /// As [`get`](Backend::get).
    fn visit(&self, key: &str, visit: &mut dyn FnMut(Item<'_>)) -> Result<bool> {
        let found = self.get(key)?;
        if let Some(stored) = &found {
            visit(stored.item());
        }
        Ok(found.is_some())
    }

    /// The key's entry as a value of the type `wanted`: the one that the store kept for this very
    /// entry, or else what `decode` makes of the entry, which the store may keep for the next
    /// call. `None` if there is no entry, or `decode` gives none. No lock is held while `decode`
    /// runs or a kept value is dropped.
    ///
    /// By default nothing is kept: it is [`visit`](Backend::visit) and `decode`.
    ///
    /// # Errors
    /// As [`get`](Backend::get).
    fn get_decoded(
        &self,
        key: &str,
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Result<Option<SharedValue>> {
        let _ = wanted;
        let mut decoded = None;
        let is_there = self.visit(key, &mut |item| decoded = decode(item))?;
        Ok(decoded.filter(|_| is_there).map(|decoded| decoded.value))
    }

    /// When the key's entry expires, if there is one. A store that can avoid it does not read the
    /// value. Counts as a use.
    ///
    /// By default it is [`visit`](Backend::visit).
    ///
    /// # Errors
    /// As [`get`](Backend::get).
    fn expiry_of(&self, key: &str) -> Result<Option<Expiry>> {
        let mut expiry = None;
        let is_there = self.visit(key, &mut |item| expiry = Some(item.expires_at))?;
        Ok(expiry.filter(|_| is_there))
    }

    /// The key's entry, to be read in pieces if it is large.
    ///
    /// By default it is [`get`](Backend::get), whole.
    ///
    /// # Errors
    /// As [`get`](Backend::get).
    fn stream(&self, key: &str) -> Result<Option<Streamed>> {
        Ok(self.get(key)?.map(Streamed::Whole))
    }

    /// A place to write a value in pieces. `None`, the default, if the store has none: the caller
    /// then collects the value in memory and [commits](Backend::commit) it.
    ///
    /// # Errors
    /// If the store cannot make one.
    fn spool(&self) -> Result<Option<Box<dyn Spool>>> {
        Ok(None)
    }

    /// Gives `to` the value, expiry and freshness of `from`, whatever it had, and returns the token
    /// that `from` has. `None` if `from` has no entry. Not atomic: `from` may change meanwhile.
    ///
    /// By default it is [`get`](Backend::get) and [`commit`](Backend::commit).
    ///
    /// # Errors
    /// As [`commit`](Backend::commit), about `to`.
    fn copy(&self, from: &str, to: &str) -> Result<Option<u64>> {
        let Some(Stored { value, codec, expires_at, soft, token }) = self.get(from)? else {
            return Ok(None);
        };
        let change = Change::store(&value, codec, expires_at).with_soft(soft);
        self.commit(to, Condition::Always, change)?;
        Ok(Some(token))
    }

    /// About how many bytes a call that needs the key's value has to go through, and 0 if there is
    /// no entry. Does no I/O, fails never, and is no use of the entry. `usize::MAX`, the default:
    /// unknown.
    ///
    /// `AsyncCache` makes a call where it is awaited if this is below 64 KiB.
    fn weight(&self, key: &str) -> usize {
        let _ = key;
        usize::MAX
    }

    /// Whether even the next read may block for long, whatever its value, for instance because the
    /// store must first be opened again. For asynchronous callers; does no I/O. Default: no.
    fn reads_take_long(&self) -> bool {
        false
    }

    /// Whether the next commit may block for long, whatever its value: it waits for a disk or a
    /// server, or may have to remove many entries. For asynchronous callers; does no I/O. Default:
    /// yes.
    fn commits_take_long(&self) -> bool {
        true
    }

    /// Claims `key` from all other threads and processes that share the store, until the claim is
    /// dropped or the process dies. Does not wait for the holder, and never fails.
    ///
    /// A store whose processes do not know each other, or that cannot ask them now, gives a claim
    /// that none of them sees ([`Claim::default`]), which is the default. Then every process
    /// computes for itself what it misses, and a lease ends by its time alone.
    fn claim(&self, key: ClaimKey<'_>) -> Claimed {
        let _ = key;
        Claimed::Mine(Claim::default())
    }

    /// Does what the store would do by itself in time: removes expired entries, makes room.
    /// Default: nothing.
    ///
    /// # Errors
    /// If the store cannot be changed.
    fn maintain(&self) -> Result<()> {
        Ok(())
    }

    /// Makes every acknowledged write as durable as the store can. Default: nothing.
    ///
    /// # Errors
    /// If the store cannot: what was written since the last success may be lost in a power cut.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Flushes, and releases what the store holds of the operating system: files, connections. The
    /// next call takes it again, so that no method fails because the store was closed. Entries
    /// stay. Dropping the backend does the same. Default: nothing.
    ///
    /// # Errors
    /// As [`flush`](Backend::flush); it is closed all the same.
    fn close(&self) -> Result<()> {
        Ok(())
    }

    /// The limits in force. Does no I/O if the store is open. By default
    /// [`Limits::unlimited`]: the store has none, or its server keeps them.
    fn limits(&self) -> Limits {
        Limits::unlimited()
    }

    /// Changes the limits for all that share the store, and returns those in force, which are the
    /// nearest possible. `new` is within the bounds of [`Builder`](crate::Builder). By default
    /// `Unsupported`.
    ///
    /// # Errors
    /// `Unsupported` if the store's limits cannot be changed here; others if it cannot be changed.
    /// Then they are as before, unless the kind is `UnknownOutcome` or `LockLost`.
    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        let _ = new;
        Err(Error::unsupported("configure"))
    }

    /// What this process counted since the store was opened. Does no I/O if the store is open: a
    /// gauge that would need a request to a server is 0. Default: all 0.
    fn stats(&self) -> Stats {
        Stats::default()
    }

    /// What all processes that share the store counted. By default [`stats`](Backend::stats).
    ///
    /// # Errors
    /// If the store cannot be read.
    fn total_stats(&self) -> Result<Stats> {
        Ok(self.stats())
    }

    /// What each process that shares the store counted, this one first. `None`, the default, if no
    /// others can share it, or they are not known.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn process_stats(&self) -> Result<Option<Vec<ProcessStats>>> {
        Ok(None)
    }

    /// Verifies everything that the store keeps. Reads everything, changes nothing. By default
    /// there is nothing to verify.
    ///
    /// # Errors
    /// If the store cannot be read. What is wrong is in the report.
    fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }

    /// The asynchronous side of the store, if it has one: the same entries, without blocking.
    /// Asked for once, when an `AsyncCache` is made. Default: none.
    #[cfg(feature = "async")]
    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        None
    }
}
