//! Counters: integers that change by compare-and-swap.

use super::Cache;
use super::call::Call;
use super::io::{Io, now};
use crate::backend::{Change, Codec, Condition, Expiry, Outcome, Soft};
use crate::codec;
use crate::error::{ErrorKind, Result};
use crate::timeout::Timeout;

impl Cache {
    /// Adds `delta` to the integer under `key`, and returns the sum. Atomic among all threads and
    /// processes that use the cache. The expiry stays. Accepts any integer that `set` stored, of
    /// any width except `i128` and `u128`.
    ///
    /// Costs a read and a write, and both again for each concurrent change of the same key.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("visits", &1u8, Timeout::Never)?;
    /// assert_eq!(cache.incr("visits", 1000)?, 1001);
    /// assert_eq!(cache.get::<u64>("visits")?, Some(1001));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `NotFound` if there is no entry. `NotAnInteger` if the value is of another type, also a
    /// float or a bool. `Overflow` if the sum does not fit into an `i64`. `InvalidKey`. `NoSpace`
    /// or `Io` if the disk is full or fails. Then the entry is unchanged.
    pub fn incr(&self, key: &str, delta: i64) -> Result<i64> {
        let call = self.call("incr", key)?;
        now(call.count(call.blocking(), i128::from(delta), None))
    }

    /// Subtracts `delta` from the integer under `key`, and returns the difference. Otherwise as
    /// [`incr`](Cache::incr).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("stock", &5, Timeout::Never)?;
    /// assert_eq!(cache.decr("stock", 1)?, 4);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`incr`](Cache::incr).
    pub fn decr(&self, key: &str, delta: i64) -> Result<i64> {
        // As an i128, in which `i64::MIN` has an opposite.
        let call = self.call("decr", key)?;
        now(call.count(call.blocking(), -i128::from(delta), None))
    }

    /// Adds `delta` to the integer under `key`, or to `initial` if there is no entry, and returns
    /// the sum. `timeout` applies to a new entry only; an existing one keeps its expiry. So the
    /// first of many calls starts a time window:
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// let window = Duration::from_secs(60);
    /// assert_eq!(cache.incr_or_init("requests from 10.0.0.7", 1, 0, window)?, 1);
    /// assert_eq!(cache.incr_or_init("requests from 10.0.0.7", 1, 0, window)?, 2);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`incr`](Cache::incr), except `NotFound`.
    pub fn incr_or_init(
        &self,
        key: &str,
        delta: i64,
        initial: i64,
        timeout: impl Into<Timeout>,
    ) -> Result<i64> {
        let call = self.call("incr_or_init", key)?;
        now(call.count(call.blocking(), i128::from(delta), Some((initial, timeout.into()))))
    }
}

impl Call<'_> {
    /// Adds `delta` to the integer, or creates the entry from `init` first.
    pub(super) async fn count(
        &self,
        io: Io<'_>,
        delta: i128,
        init: Option<(i64, Timeout)>,
    ) -> Result<i64> {
        loop {
            let seen = self.read(io, |item| {
                (codec::decode_integer(item), item.expires_at, item.soft, item.token)
            });
            let (from, expires_at, soft, condition): (i128, Expiry, Soft, Condition) =
                match (seen.await?, init) {
                    (Some((integer, expires_at, soft, token)), _) => (
                        integer.map_err(|error| self.about(error))?,
                        expires_at,
                        soft,
                        Condition::Token(token),
                    ),
                    (None, Some((initial, timeout))) => (
                        i128::from(initial),
                        self.cache.expiry(timeout),
                        Soft::default(),
                        Condition::Absent,
                    ),
                    (None, None) => return Err(self.fail(ErrorKind::NotFound)),
                };
            let to = i64::try_from(from + delta).map_err(|_| self.fail(ErrorKind::Overflow))?;
            // Refused: another caller changed the entry, so the system as a whole made progress.
            let value = &codec::encode_integer(to);
            let change = Change::Store { value, codec: Codec::MessagePack, expires_at, soft };
            if let Outcome::Done { .. } = self.commit(io, condition, change).await? {
                return Ok(to);
            }
        }
    }
}
