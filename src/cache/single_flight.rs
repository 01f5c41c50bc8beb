//! Single flight: the decisions of `get_or_set`, for blocking and asynchronous callers alike. Of
//! all callers that miss a key at the same time, in any thread of any process, one computes it.
//!
//! ```text
//! look the key up
//!   fresh:             return the value
//!   stale or due:      no other caller computes the key: compute; else return the value
//!   missing:           this process computes the key: wait for that flight, then start over
//!                      another process does: pause, look up again, until it is there or a time-out
//!                      no process does: look up again, then compute
//! computed:            store the value, unless another caller stored one; wake the waiters
//! failed:              return the stale value, if any; else the error, and a waiter computes
//! ```
//!
//! Within a process the [flight table](super::flight_table) tells waiters when a computation ends.
//! Between processes there is no such signal, neither for a result nor for a death. So a process
//! polls with growing pauses. It polls for [`MAX_CLAIM_WAIT`] at most, because the computing
//! process may be stopped, and then computes the value itself.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::Call;
use super::expiry_policy;
use super::flight_table::{Caller, Flights, Joined, Leader, Waiter};
use super::io::Io;
use crate::backend::{Change, ClaimKey, Claimed, Codec, Condition, Expiry, Item, Outcome, Soft};
use crate::codec::{self, Encoded};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Timestamp;
use crate::timeout::Lifespan;

/// The lifespans that a caller gives: one for a value, and maybe another one for its absence.
pub(super) struct Lifespans<T> {
    present: Lifespan,
    absent: Lifespan,
    is_absent: fn(&T) -> bool,
}

impl<T> Clone for Lifespans<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Lifespans<T> {}

impl<T> Lifespans<T> {
    pub(super) fn one(lifespan: impl Into<Lifespan>) -> Self {
        let lifespan = lifespan.into();
        Self { present: lifespan, absent: lifespan, is_absent: |_| false }
    }

    fn of(&self, value: &T) -> &Lifespan {
        if (self.is_absent)(value) { &self.absent } else { &self.present }
    }
}

impl<T> Lifespans<Option<T>> {
    pub(super) fn two(present: impl Into<Lifespan>, absent: impl Into<Lifespan>) -> Self {
        Self { present: present.into(), absent: absent.into(), is_absent: Option::is_none }
    }
}

/// What the caller of a `get_or_set` must do next.
pub(super) enum NextStep<T> {
    /// Return the value.
    Return(T),
    /// Another caller in this process computes the key. Wait, take [its
    /// result](Call::flight_result), or start over.
    Wait(Waiter),
    /// Another process computes the key. Sleep for the [pause](ClaimWait::pause), then
    /// [retry](Call::retry_claim).
    Pause(ClaimWait),
    /// Compute the value.
    Compute(ComputePermit<T>),
}

/// A leader that polls for the claim of another process.
pub(super) struct ClaimWait {
    leader: Leader,
    schedule: PollSchedule,
    pub(super) pause: Duration,
}

/// How long a process waits for a computation of another process.
/// Keeps invariant I34.
pub(super) const MAX_CLAIM_WAIT: Duration = Duration::from_secs(30);

/// When to poll: pauses grow from 50 µs to 2 ms, and end after `limit`. By the system's monotonic
/// clock.
struct PollSchedule {
    since: Instant,
    limit: Duration,
    pause: Duration,
}

impl PollSchedule {
    const FIRST_PAUSE: Duration = Duration::from_micros(50);
    const LONGEST_PAUSE: Duration = Duration::from_millis(2);

    fn new(limit: Duration) -> Self {
        Self { since: Instant::now(), limit, pause: Self::FIRST_PAUSE }
    }

    /// How long to pause before the next poll; `None` when the limit has passed.
    fn next_pause(&mut self, now: Instant) -> Option<Duration> {
        let left = self.limit.saturating_sub(now.saturating_duration_since(self.since));
        let pause = self.pause.min(left);
        self.pause = (self.pause * 3 / 2).min(Self::LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

/// The right to compute a key, and the entry that was there when it was granted.
pub(super) struct ComputePermit<T> {
    pub(super) leader: Leader,
    previous: CachedValue<T>,
    started_at: Timestamp,
}

/// The result of a lookup for a `T`.
enum CachedValue<T> {
    Fresh(T),
    /// Stale or due: to be recomputed, and returned until then.
    Due(DueValue<T>),
    /// An entry with this token, which does not decode as a `T`.
    WrongType(u64),
    Missing,
}

/// A value that is stale, or due for an early refresh.
struct DueValue<T> {
    value: T,
    token: u64,
    expires_at: Expiry,
}

/// A computed value, encoded, with the condition under which it may be stored.
pub(super) struct ComputedValue {
    encoded: Encoded,
    expires_at: Expiry,
    soft: Soft,
    condition: Condition,
}

impl ComputedValue {
    /// The length of the encoded value, in bytes.
    #[cfg(feature = "async")]
    pub(super) fn len(&self) -> usize {
        self.encoded.len()
    }

    fn change(&self) -> Change<'_> {
        let &Self { ref encoded, expires_at, soft, .. } = self;
        Change::Store { value: encoded, codec: Codec::MessagePack, expires_at, soft }
    }
}

impl Call<'_> {
    /// Checks the lifespans, before anything else is done.
    pub(super) fn validate<T>(&self, lifespans: &Lifespans<T>) -> Result<()> {
        let wrong = |beta: &f64| !(0.0..f64::INFINITY).contains(beta);
        match lifespans.present.early.filter(wrong).or(lifespans.absent.early.filter(wrong)) {
            Some(beta) => {
                let error =
                    Error::new(ErrorKind::InvalidOption, self.name).with_option("early_refresh");
                Err(error.with_source(format!("{beta}; it must be finite and at least 0")))
            }
            None => Ok(()),
        }
    }

    /// Looks the key up, and decides what the caller must do.
    pub(super) async fn first_step<T: DeserializeOwned>(
        &self,
        io: Io<'_>,
        lifespans: &Lifespans<T>,
        caller: Caller,
    ) -> Result<NextStep<T>> {
        let shared = &self.cache.shared;
        let before_lookup = Flights::completions();
        let (started, mut found) = match self.look_up(io, lifespans).await? {
            CachedValue::Fresh(value) => return Ok(NextStep::Return(value)),
            CachedValue::Due(due) => {
                match shared.flights.lead(&self.full, &before_lookup, caller) {
                    Some(started) => (started, CachedValue::Due(due)),
                    None => return Ok(NextStep::Return(due.value)),
                }
            }
            missed => match shared.flights.join(&self.full, &before_lookup, caller) {
                Joined::Lead(started) => (started, missed),
                Joined::Wait(waiter) => return Ok(NextStep::Wait(waiter)),
                Joined::Recursion => return Err(self.fail(ErrorKind::Recursion)),
            },
        };
        if started.lookup_is_outdated {
            found = self.look_up_again(io, lifespans, found).await?;
            if let CachedValue::Fresh(value) = found {
                return Ok(NextStep::Return(value));
            }
        }
        let schedule = PollSchedule::new(shared.max_claim_wait);
        self.claim_or_wait(io, lifespans, started.leader, found, schedule).await
    }

    /// Looks the key up and tries to claim it again, after a pause.
    pub(super) async fn retry_claim<T: DeserializeOwned>(
        &self,
        io: Io<'_>,
        lifespans: &Lifespans<T>,
        wait: ClaimWait,
    ) -> Result<NextStep<T>> {
        match self.look_up_again(io, lifespans, CachedValue::Missing).await? {
            CachedValue::Fresh(value) => Ok(NextStep::Return(value)),
            found => self.claim_or_wait(io, lifespans, wait.leader, found, wait.schedule).await,
        }
    }

    /// Grants the permit to compute, unless another process holds the claim. Then the caller
    /// returns the value that is due, or waits.
    async fn claim_or_wait<T: DeserializeOwned>(
        &self,
        io: Io<'_>,
        lifespans: &Lifespans<T>,
        mut leader: Leader,
        mut found: CachedValue<T>,
        mut schedule: PollSchedule,
    ) -> Result<NextStep<T>> {
        let shared = &self.cache.shared;
        match io.claim(ClaimKey::Computation(&self.full)).await {
            Claimed::Mine(claim) => {
                // The previous holder may have stored the value after the lookup.
                if claim.is_seen() {
                    found = self.look_up_again(io, lifespans, found).await?;
                }
                leader.claim = claim;
            }
            taken => {
                if let CachedValue::Due(due) = found {
                    return Ok(NextStep::Return(due.value));
                }
                let may_wait = matches!(taken, Claimed::Elsewhere) || leader.may_wait_unchecked();
                if may_wait && let Some(pause) = schedule.next_pause(Instant::now()) {
                    return Ok(NextStep::Pause(ClaimWait { leader, schedule, pause }));
                }
            }
        }
        Ok(match found {
            CachedValue::Fresh(value) => NextStep::Return(value),
            previous => {
                let started_at = shared.clock.now();
                NextStep::Compute(ComputePermit { leader, previous, started_at })
            }
        })
    }

    /// Looks the key up a second time. A second miss is not counted.
    async fn look_up_again<T: DeserializeOwned>(
        &self,
        io: Io<'_>,
        lifespans: &Lifespans<T>,
        before: CachedValue<T>,
    ) -> Result<CachedValue<T>> {
        if io.is_known_to_lack(&self.full) {
            return Ok(CachedValue::Missing);
        }
        // An early refresh is due at random. The same entry must not draw a second time.
        if let CachedValue::Due(due) = &before
            && self.read(io, |item| item.token).await? == Some(due.token)
        {
            return Ok(before);
        }
        self.look_up(io, lifespans).await
    }

    /// The entry as a `T`. An entry of another type is no error.
    async fn look_up<T: DeserializeOwned>(
        &self,
        io: Io<'_>,
        lifespans: &Lifespans<T>,
    ) -> Result<CachedValue<T>> {
        let shared = &self.cache.shared;
        let found = self.read(io, |item| match codec::decode(item) {
            Ok(value) => {
                let Item { expires_at, soft, token, .. } = item;
                let early = lifespans.of(&value).early;
                let (clock, random) = (&*shared.clock, &shared.jitter);
                if expiry_policy::is_refresh_due(expires_at, soft, early, clock, random) {
                    CachedValue::Due(DueValue { value, token, expires_at })
                } else {
                    CachedValue::Fresh(value)
                }
            }
            Err(_) => CachedValue::WrongType(item.token),
        });
        Ok(found.await?.unwrap_or(CachedValue::Missing))
    }

    /// The result of another caller's flight, if it is a `T`. Otherwise the caller must start over.
    pub(super) fn flight_result<T: DeserializeOwned>(&self, value: Option<Bytes>) -> Option<T> {
        let codec = Codec::MessagePack;
        let item =
            Item { value: &value?, codec, expires_at: None, soft: Soft::default(), token: 0 };
        codec::decode(item).ok()
    }

    /// The value to return after a failed computation: the one that was to be replaced, unless it
    /// has expired meanwhile.
    pub(super) fn stale_value<T>(&self, permit: ComputePermit<T>) -> Option<T> {
        let shared = &self.cache.shared;
        let CachedValue::Due(due) = permit.previous else { return None };
        shared.refresh_failures.fetch_add(1, Relaxed);
        tracing::warn!(key = self.key, "a refresh failed; the old value is kept until it expires");
        due.expires_at.is_none_or(|end| end > shared.clock.now()).then_some(due.value)
    }

    /// Encodes `value` for the store. `None` if it cannot be encoded, which is logged and counted.
    pub(super) fn prepare<T: Serialize>(
        &self,
        value: &T,
        permit: &ComputePermit<T>,
        lifespans: &Lifespans<T>,
    ) -> Option<ComputedValue> {
        let shared = &self.cache.shared;
        let encoded =
            codec::encode(value).map_err(|error| self.store_failed(&self.about(error))).ok()?;
        let condition = match &permit.previous {
            CachedValue::Due(DueValue { token, .. }) | CachedValue::WrongType(token) => {
                Condition::Token(*token)
            }
            CachedValue::Fresh(_) | CachedValue::Missing => Condition::Absent,
        };
        let (expires_at, soft) = expiry_policy::computed(
            lifespans.of(value),
            shared.default_timeout,
            &shared.jitter,
            permit.started_at,
            shared.clock.now(),
        );
        Some(ComputedValue { encoded, expires_at, soft, condition })
    }

    /// Stores the computed value, completes the flight with it, and returns `None`. If another
    /// caller stored a value meanwhile that is fresh and decodes as a `T`, that one stays and is
    /// returned, as in Django.
    pub(super) async fn store_computed<T: DeserializeOwned>(
        &self,
        io: Io<'_>,
        computed: &ComputedValue,
        leader: Leader,
        lifespans: &Lifespans<T>,
    ) -> Option<T> {
        match self.commit(io, computed.condition, computed.change()).await {
            Ok(Outcome::Done { .. }) => {}
            Ok(Outcome::Refused { .. }) => match self.look_up(io, lifespans).await {
                Ok(CachedValue::Fresh(theirs)) => return Some(theirs),
                _ => {
                    let stored = self.commit(io, Condition::Always, computed.change()).await;
                    if let Err(error) = stored {
                        self.store_failed(&error);
                    }
                }
            },
            Err(error) => self.store_failed(&error),
        }
        leader.complete(&computed.encoded);
        None
    }

    /// Counts and logs that a computed value could not be stored.
    pub(super) fn store_failed(&self, error: &Error) {
        self.cache.shared.store_failures.fetch_add(1, Relaxed);
        tracing::warn!(%error, "a computed value could not be stored; it is returned anyway");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_at_the_limit() {
        // Each pause is one step, and Miri is slow.
        let limit = if cfg!(miri) { MAX_CLAIM_WAIT / 100 } else { MAX_CLAIM_WAIT };
        let mut schedule = PollSchedule::new(limit);
        let mut now = schedule.since;
        let mut pauses = Vec::new();
        while let Some(pause) = schedule.next_pause(now) {
            now += pause;
            pauses.push(pause);
        }
        assert_eq!(now - schedule.since, limit);
        assert_eq!(pauses[0], Duration::from_micros(50));
        assert!(pauses[..pauses.len() - 1].is_sorted());
        assert_eq!(pauses.iter().max(), Some(&Duration::from_millis(2)));
        assert_eq!(schedule.next_pause(now + MAX_CLAIM_WAIT), None);
    }
}
