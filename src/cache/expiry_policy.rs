//! The expiry policy: when an entry expires, when `get_or_set` refreshes it, and the jitter of
//! both. Pure: no I/O, and the clock is an argument.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::backend::{Expiry, Soft};
use crate::time::{Clock, Timestamp};
use crate::timeout::{Lifespan, Timeout};

/// The meaning of [`Timeout::Default`] unless the [`Builder`](super::Builder) sets another one.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// A time that has passed on every clock.
const PAST: Expiry = Some(Timestamp::from_millis(0));

/// `timeout`, with [`Timeout::Default`] replaced by `default`.
pub(super) fn resolve(timeout: Timeout, default: Timeout) -> Timeout {
    match (timeout, default) {
        (Timeout::Default, Timeout::Default) => Timeout::After(DEFAULT_TIMEOUT),
        (Timeout::Default, default) => default,
        (timeout, _) => timeout,
    }
}

/// When an entry that is stored now will expire.
pub(super) fn expiry(timeout: Timeout, default: Timeout, clock: &dyn Clock) -> Expiry {
    expires_at(resolve(timeout, default), || clock.now())
}

/// The end of a resolved timeout that starts now.
fn expires_at(timeout: Timeout, now: impl FnOnce() -> Timestamp) -> Expiry {
    match timeout {
        Timeout::After(Duration::ZERO) => PAST,
        Timeout::After(duration) => now().checked_add(duration),
        Timeout::Never | Timeout::Default => None,
    }
}

/// The expiry of a value that `get_or_set` computed from `started_at` until `now`, and what is
/// stored with it for a later refresh.
pub(super) fn computed(
    lifespan: &Lifespan,
    default: Timeout,
    jitter: &Jitter,
    started_at: Timestamp,
    now: Timestamp,
) -> (Expiry, Soft) {
    let fresh_until = expires_at(jitter.shorten(resolve(lifespan.fresh, default)), || now);
    if fresh_until == PAST {
        return (PAST, Soft::default());
    }
    let took = now.saturating_since(started_at).as_millis();
    let took = lifespan.early.map(|_| u32::try_from(took).unwrap_or(u32::MAX));
    match fresh_until.filter(|_| !lifespan.stale.is_zero()) {
        Some(end) => (end.checked_add(lifespan.stale), Soft { stale_at: fresh_until, took }),
        None => (fresh_until, Soft { stale_at: None, took }),
    }
}

/// Whether a stored value must be recomputed: it is stale now, or will be within `early` × the time
/// that its last computation took × a random number with mean 1 (exponentially distributed).
/// (XFetch: Vattani, Chierichetti and Lowenstein, 2015.)
pub(super) fn is_refresh_due(
    expires_at: Expiry,
    soft: Soft,
    early: Option<f64>,
    clock: &dyn Clock,
    random: &Jitter,
) -> bool {
    let ahead = match (early, soft.took) {
        // The logarithm of a number above 0 and at most 1.
        (Some(beta), Some(millis)) => beta * f64::from(millis) * -(1.0 - random.random()).ln(),
        _ => 0.0,
    };
    let end = soft.stale_at.or(expires_at.filter(|_| ahead > 0.0));
    end.is_some_and(|end| clock.now().as_millis() as f64 + ahead >= end.as_millis() as f64)
}

/// Shortens timeouts at random, so that entries stored together do not expire together.
#[derive(Debug)]
pub(super) struct Jitter {
    fraction: f64,
    state: AtomicU64,
}

impl Jitter {
    /// Shortens by at most `fraction`, which is at least 0 and below 1. The same seed gives the
    /// same sequence.
    pub(super) fn new(fraction: f64, seed: u64) -> Self {
        Self { fraction, state: AtomicU64::new(seed) }
    }

    pub(super) fn shorten(&self, timeout: Timeout) -> Timeout {
        match timeout {
            Timeout::After(duration) if self.fraction > 0.0 && !duration.is_zero() => {
                // At least 1 ms: a timeout of zero would store nothing.
                Timeout::After(
                    duration
                        .mul_f64(1.0 - self.fraction * self.random())
                        .max(Duration::from_millis(1)),
                )
            }
            timeout => timeout,
        }
    }

    /// A number of at least 0 and below 1, by SplitMix64. Costs one atomic addition.
    fn random(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ManualClock;

    #[test]
    fn timeouts_become_points_in_time() {
        let clock = ManualClock::new();
        let now = clock.now();
        let second = Timeout::After(Duration::from_secs(1));
        assert_eq!(expiry(second, Timeout::Never, &clock), now.checked_add(Duration::from_secs(1)));
        assert_eq!(
            expiry(Timeout::Default, second, &clock),
            now.checked_add(Duration::from_secs(1))
        );
        assert_eq!(
            expiry(Timeout::Default, Timeout::Default, &clock),
            now.checked_add(DEFAULT_TIMEOUT)
        );
        assert_eq!(expiry(Timeout::Never, second, &clock), None);
        assert_eq!(expiry(Timeout::After(Duration::MAX), second, &clock), None);
        assert_eq!(expiry(Timeout::After(Duration::ZERO), second, &clock), PAST);
        assert_eq!(
            expiry(Timeout::After(Duration::from_nanos(1)), second, &clock),
            now.checked_add(Duration::from_millis(1))
        );
    }

    #[test]
    fn jitter_shortens_within_its_fraction() {
        let jitter = Jitter::new(0.25, 7);
        let shortened: Vec<Duration> = (0..1000)
            .map(|_| match jitter.shorten(Timeout::After(Duration::from_secs(100))) {
                Timeout::After(duration) => duration,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(
            shortened
                .iter()
                .all(|d| (Duration::from_secs(75)..=Duration::from_secs(100)).contains(d))
        );
        assert!(shortened.iter().any(|d| *d < Duration::from_secs(76)));
        assert!(shortened.iter().any(|d| *d > Duration::from_secs(99)));
    }

    #[test]
    fn jitter_does_not_change_zero_and_never() {
        let jitter = Jitter::new(0.9, 7);
        assert_eq!(jitter.shorten(Timeout::After(Duration::ZERO)), Timeout::After(Duration::ZERO));
        assert_eq!(jitter.shorten(Timeout::Never), Timeout::Never);
        // The longest duration must not overflow.
        let longest = jitter.shorten(Timeout::After(Duration::MAX));
        assert!(matches!(longest, Timeout::After(d) if d > Duration::ZERO));
    }
}
