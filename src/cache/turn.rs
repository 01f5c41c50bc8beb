//! What `get_or_set` decides, however its callers wait: who computes, who waits, who is given what is there,
//! and what becomes of what was computed.
//!
//! ```text
//! look.  fresh:          that is it
//!        stale or due:   if nobody computes the key: compute; else that is it
//!        nothing:        if nobody in this process computes the key: go on; else wait, then begin again
//!                        if no other process does: look again, compute; else pause, look, and again
//! computed:              store it, unless somebody stored another meanwhile; hand it to those who wait
//! failed:                what was there, if anything was; else the error, and one of those who wait computes
//! ```
//!
//! Nobody tells a process that another one has computed, or died over it. So one that waits looks again after ever
//! longer pauses. It waits for so long at most; whoever computes may have been stopped.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::Call;
use super::flight::{Caller, Flights, Joined, Leader, Ticket};
use super::plan;
use crate::backend::{Change, Claimed, Codec, Condition, Expiry, Item, Matter, Outcome, Soft};
use crate::codec::{self, Encoded};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Timestamp;
use crate::timeout::Lifespan;

/// The lifespans that a call names: one, or another for finding nothing.
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

/// How a `get_or_set` goes on.
pub(super) enum Step<T> {
    Done(T),
    /// Somebody computes the key. Wait, see whether that [has landed](Call::landed), begin again.
    Wait(Ticket),
    /// Another process computes it. Let the [pause](Queued::pause) pass, [go on](Call::resume).
    Pause(Queued),
    Compute(Turn<T>),
}

/// A place among the processes that want to compute a key.
pub(super) struct Queued {
    leader: Leader,
    patience: Patience,
    pub(super) pause: Duration,
}

/// For how long a process waits for others that compute.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What is left of it, by the system's monotonic clock.
struct Patience {
    since: Instant,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    const FIRST_PAUSE: Duration = Duration::from_micros(50);
    const LONGEST_PAUSE: Duration = Duration::from_millis(2);

    fn new(limit: Duration) -> Self {
        Self { since: Instant::now(), limit, pause: Self::FIRST_PAUSE }
    }

    /// How long to pause before the next look, if there is to be one.
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        let left = self.limit.saturating_sub(now.saturating_duration_since(self.since));
        let pause = self.pause.min(left);
        self.pause = (self.pause * 3 / 2).min(Self::LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

/// The right to compute, and what was there when it was given.
pub(super) struct Turn<T> {
    pub(super) leader: Leader,
    found: Found<T>,
    began: Timestamp,
}

/// What a read that wants a `T` came upon.
enum Found<T> {
    Fresh(T),
    Due(Due<T>),
    /// An entry with this token, not readable as a `T`.
    Other(u64),
    Nothing,
}

/// A value that is there, and should be computed anew.
struct Due<T> {
    value: T,
    token: u64,
    expires_at: Expiry,
}

/// What was computed, ready to be stored.
pub(super) struct Computed {
    encoded: Encoded,
    expires_at: Expiry,
    soft: Soft,
    condition: Condition,
}

impl Computed {
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
    /// Checks what the caller wants before anything is done.
    pub(super) fn check<T>(&self, lifespans: &Lifespans<T>) -> Result<()> {
        let wrong = |beta: &f64| !(0.0..f64::INFINITY).contains(beta);
        match lifespans.present.early.filter(wrong).or(lifespans.absent.early.filter(wrong)) {
            Some(beta) => {
                let error =
                    Error::new(ErrorKind::InvalidOption, self.name).with_option("early_refresh");
                Err(error.with_source(format!("{beta}; any finite number from 0 on is possible")))
            }
            None => Ok(()),
        }
    }

    /// Decides how to go on.
    pub(super) fn step<T: DeserializeOwned>(
        &self,
        lifespans: &Lifespans<T>,
        caller: Caller,
    ) -> Result<Step<T>> {
        let shared = &self.cache.shared;
        let before = Flights::moment();
        let (lead, mut found) = match self.look(lifespans)? {
            Found::Fresh(value) => return Ok(Step::Done(value)),
            Found::Due(due) => match shared.flights.lead(&self.full, &before, caller) {
                Some(lead) => (lead, Found::Due(due)),
                None => return Ok(Step::Done(due.value)),
            },
            missed => match shared.flights.join(&self.full, &before, caller) {
                Joined::Lead(lead) => (lead, missed),
                Joined::Wait(ticket) => return Ok(Step::Wait(ticket)),
                Joined::Recursion => return Err(self.fail(ErrorKind::Recursion)),
            },
        };
        if lead.stale {
            found = self.look_again(lifespans, found)?;
            if let Found::Fresh(value) = found {
                return Ok(Step::Done(value));
            }
        }
        self.take_turn(lifespans, lead.leader, found, Patience::new(shared.patience))
    }

    /// Goes on after a pause.
    pub(super) fn resume<T: DeserializeOwned>(
        &self,
        lifespans: &Lifespans<T>,
        queued: Queued,
    ) -> Result<Step<T>> {
        match self.look_again(lifespans, Found::Nothing)? {
            Found::Fresh(value) => Ok(Step::Done(value)),
            found => self.take_turn(lifespans, queued.leader, found, queued.patience),
        }
    }

    /// Computes, unless another process does. Then the caller is given what is there, or waits.
    fn take_turn<T: DeserializeOwned>(
        &self,
        lifespans: &Lifespans<T>,
        mut leader: Leader,
        mut found: Found<T>,
        mut patience: Patience,
    ) -> Result<Step<T>> {
        let shared = &self.cache.shared;
        match shared.backend.claim(Matter::Computing(&self.full)) {
            Claimed::Mine(claim) => {
                // Whoever had it before may have stored the value since we looked.
                if claim.is_seen() {
                    found = self.look_again(lifespans, found)?;
                }
                leader.claim = claim;
            }
            taken => {
                if let Found::Due(due) = found {
                    return Ok(Step::Done(due.value));
                }
                let may_wait =
                    matches!(taken, Claimed::Elsewhere) || leader.may_wait_for_others_here();
                if may_wait && let Some(pause) = patience.pause(Instant::now()) {
                    return Ok(Step::Pause(Queued { leader, patience, pause }));
                }
            }
        }
        Ok(match found {
            Found::Fresh(value) => Step::Done(value),
            found => Step::Compute(Turn { leader, found, began: shared.clock.now() }),
        })
    }

    /// What is there by now. A second miss does not count.
    fn look_again<T: DeserializeOwned>(
        &self,
        lifespans: &Lifespans<T>,
        before: Found<T>,
    ) -> Result<Found<T>> {
        if self.cache.shared.backend.weight(&self.full) == 0 {
            return Ok(Found::Nothing);
        }
        // Whether it is due is up to chance as well, and that was tried.
        if let Found::Due(due) = &before
            && self.read(|item| item.token)? == Some(due.token)
        {
            return Ok(before);
        }
        self.look(lifespans)
    }

    /// The entry as a `T`, where one of another type is no error.
    fn look<T: DeserializeOwned>(&self, lifespans: &Lifespans<T>) -> Result<Found<T>> {
        let shared = &self.cache.shared;
        let found = self.read(|item| match codec::decode(item) {
            Ok(value) => {
                let Item { expires_at, soft, token, .. } = item;
                let early = lifespans.of(&value).early;
                if plan::is_due(expires_at, soft, early, &*shared.clock, &shared.jitter) {
                    Found::Due(Due { value, token, expires_at })
                } else {
                    Found::Fresh(value)
                }
            }
            Err(_) => Found::Other(item.token),
        })?;
        Ok(found.unwrap_or(Found::Nothing))
    }

    /// The value that another caller's computation brought, if it is a `T`; else one has to look for oneself.
    pub(super) fn landed<T: DeserializeOwned>(&self, value: Option<Bytes>) -> Option<T> {
        let codec = Codec::MessagePack;
        let item =
            Item { value: &value?, codec, expires_at: None, soft: Soft::default(), token: 0 };
        codec::decode(item).ok()
    }

    /// What is there all the same, after a computation has failed: the value that it was to replace, unless
    /// that has expired meanwhile.
    pub(super) fn failed<T>(&self, turn: Turn<T>) -> Option<T> {
        let shared = &self.cache.shared;
        let Found::Due(due) = turn.found else { return None };
        shared.refresh_failures.fetch_add(1, Relaxed);
        tracing::warn!(
            key = self.key,
            "a value could not be computed anew, and stays until it expires"
        );
        due.expires_at.is_none_or(|end| end > shared.clock.now()).then_some(due.value)
    }

    /// Makes `value` ready to be stored; `None`, having told so, if it cannot be.
    pub(super) fn computed<T: Serialize>(
        &self,
        value: &T,
        turn: &Turn<T>,
        lifespans: &Lifespans<T>,
    ) -> Option<Computed> {
        let shared = &self.cache.shared;
        let encoded =
            codec::encode(value).map_err(|error| self.store_failed(&self.about(error))).ok()?;
        let condition = match &turn.found {
            Found::Due(Due { token, .. }) | Found::Other(token) => Condition::Token(*token),
            Found::Fresh(_) | Found::Nothing => Condition::Absent,
        };
        let (default, jitter) = (shared.default_timeout, &shared.jitter);
        let (expires_at, soft) =
            plan::terms(lifespans.of(value), default, jitter, turn.began, shared.clock.now());
        Some(Computed { encoded, expires_at, soft, condition })
    }

    /// Stores what was computed, and hands it to those who wait. But where somebody stored another value
    /// meanwhile, that one stays and is returned, as in Django, if it can be.
    pub(super) fn keep<T: DeserializeOwned>(
        &self,
        computed: &Computed,
        leader: Leader,
        lifespans: &Lifespans<T>,
    ) -> Option<T> {
        match self.commit(computed.condition, computed.change()) {
            Ok(Outcome::Done { .. }) => {}
            Ok(Outcome::Refused { .. }) => match self.look(lifespans) {
                Ok(Found::Fresh(theirs)) => return Some(theirs),
                _ => {
                    if let Err(error) = self.commit(Condition::Always, computed.change()) {
                        self.store_failed(&error);
                    }
                }
            },
            Err(error) => self.store_failed(&error),
        }
        leader.land(&computed.encoded);
        None
    }

    pub(super) fn store_failed(&self, error: &Error) {
        self.cache.shared.store_failures.fetch_add(1, Relaxed);
        tracing::warn!(%error, "a computed value could not be stored and is returned all the same");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_the_patience() {
        // Each pause is a step that Miri takes its time for.
        let whole = if cfg!(miri) { PATIENCE / 100 } else { PATIENCE };
        let mut patience = Patience::new(whole);
        let mut now = patience.since;
        let mut pauses = Vec::new();
        while let Some(pause) = patience.pause(now) {
            now += pause;
            pauses.push(pause);
        }
        assert_eq!(now - patience.since, whole);
        assert_eq!(pauses[0], Duration::from_micros(50));
        assert!(pauses[..pauses.len() - 1].is_sorted());
        assert_eq!(pauses.iter().max(), Some(&Duration::from_millis(2)));
        assert_eq!(patience.pause(now + PATIENCE), None);
    }
}
