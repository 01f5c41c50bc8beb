//! Waiting for what another thread or process holds for a moment.

use std::time::{Duration, Instant};

/// Waits longer and longer for a lock that is held for well under a microsecond, unless its holder was put
/// off the processor.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pauses: u32,
    /// When it began to sleep.
    since: Option<Instant>,
}

impl Backoff {
    const SPINS: u32 = 64;
    const YIELDS: u32 = 192;
    /// So long nobody is put off the processor, even where many want it,
    const LONG: Duration = Duration::from_millis(500);
    /// unless it is so many that whoever waits is put off as well: each time that it sleeps, others have a turn. It sleeps
    /// thousands of times in half a second of its own.
    const SLEEPS: u32 = 200;
    const LONGEST: Duration = Duration::from_secs(5);

    /// Whether it has waited for about half a second; longer on a machine that has no time, and for five at most.
    pub(crate) fn is_long(&self) -> bool {
        self.has_slept(Self::LONG) && self.gave_time()
    }

    /// Whether whoever is waited for has had time on a processor, however many want one.
    pub(crate) fn gave_time(&self) -> bool {
        self.pauses > Self::SPINS + Self::YIELDS + Self::SLEEPS || self.has_slept(Self::LONGEST)
    }

    fn has_slept(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() > time)
    }

    /// Whether it is time to ask if the holder is alive: not before it has had time enough to let go, and seldom then.
    pub(crate) fn asks(&self) -> bool {
        self.pauses == Self::SPINS || (self.pauses > Self::SPINS && self.pauses.is_multiple_of(32))
    }

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
    fn who_was_put_off_himself_has_not_waited_for_long() {
        let pauses = Backoff::SPINS + Backoff::YIELDS + 1;
        let slept = |pauses, time| Backoff { pauses, since: Instant::now().checked_sub(time) };
        let (short, long) = (Backoff::LONG / 2, 2 * Backoff::LONG);
        assert!(!slept(pauses + Backoff::SLEEPS, short).is_long());
        assert!(slept(pauses + Backoff::SLEEPS, long).is_long());
        // The machine stood still, or did something else.
        assert!(!slept(pauses, long).is_long());
        assert!(slept(pauses, 2 * Backoff::LONGEST).is_long(), "nobody waits for ever");
        assert!(!Backoff::default().is_long());
    }
}
