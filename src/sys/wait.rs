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
    /// So long nobody is put off the processor, even where many want it.
    const LONG: Duration = Duration::from_millis(500);

    /// Whether it has waited for about half a second.
    pub(crate) fn is_long(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > Self::LONG)
    }

    /// Whether it is time to ask if the holder is alive: not before it has had time enough to let go, and seldom then.
    pub(crate) fn asks(&self) -> bool {
        self.pauses == 64 || (self.pauses > 64 && self.pauses.is_multiple_of(32))
    }

    pub(crate) fn pause(&mut self) {
        self.pauses = self.pauses.saturating_add(1);
        match self.pauses {
            0..=64 => std::hint::spin_loop(),
            65..=256 => std::thread::yield_now(),
            _ => {
                self.since.get_or_insert_with(Instant::now);
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}
