//! Backoff: waits for a lock that another thread or process holds for a moment.

use std::time::{Duration, Instant};

/// Spins, then yields, then sleeps 50 µs at a time. For a lock that is held for well under a
/// microsecond, unless its holder is descheduled.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pauses: u32,
    /// When the first sleep began.
    since: Option<Instant>,
}

impl Backoff {
    const SPINS: u32 = 64;
    const YIELDS: u32 = 192;
    /// On a machine that is not overloaded, no runnable holder stays descheduled for this long.
    const LONG: Duration = Duration::from_millis(500);
    /// On an overloaded machine the waiter itself is descheduled, too. Each of its sleeps lets
    /// others run, so the wait counts as long only after this many sleeps. An undisturbed waiter
    /// sleeps thousands of times in half a second.
    const SLEEPS: u32 = 200;
    const LONGEST: Duration = Duration::from_secs(5);

    /// Whether the wait has taken about half a second: longer on an overloaded machine, 5 seconds
    /// at most.
    /// Keeps invariant I25.
    pub(crate) fn is_long(&self) -> bool {
        self.has_slept(Self::LONG) && self.owner_had_time()
    }

    /// Whether the holder has had a chance to run, however many threads compete for a processor.
    pub(crate) fn owner_had_time(&self) -> bool {
        self.pauses > Self::SPINS + Self::YIELDS + Self::SLEEPS || self.has_slept(Self::LONGEST)
    }

    fn has_slept(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() > time)
    }

    /// Whether to check now that the owner of the lock is alive. False until the owner has had time
    /// to release it, and seldom true after that, because the check is a system call.
    pub(crate) fn should_check_owner(&self) -> bool {
        self.pauses == Self::SPINS || (self.pauses > Self::SPINS && self.pauses.is_multiple_of(32))
    }

    /// Waits a moment: longer with each call.
    pub(crate) fn pause(&mut self) {
        self.pauses = self.pauses.saturating_add(1);
        match self.pauses {
            0..=Self::SPINS => std::hint::spin_loop(),
            n if n <= Self::SPINS + Self::YIELDS => std::thread::yield_now(),
            _ => {
                self.since.get_or_insert_with(Instant::now);
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descheduled_waiter_has_not_waited_long() {
        let pauses = Backoff::SPINS + Backoff::YIELDS + 1;
        let slept = |pauses, time| Backoff { pauses, since: Instant::now().checked_sub(time) };
        let (short, long) = (Backoff::LONG / 2, 2 * Backoff::LONG);
        assert!(!slept(pauses + Backoff::SLEEPS, short).is_long());
        assert!(slept(pauses + Backoff::SLEEPS, long).is_long());
        // The whole machine was suspended, or ran other work.
        assert!(!slept(pauses, long).is_long());
        assert!(slept(pauses, 2 * Backoff::LONGEST).is_long(), "a wait has an upper bound");
        assert!(!Backoff::default().is_long());
    }
}
