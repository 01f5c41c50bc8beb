//! Whether a directory must be listed again.

use std::time::{Duration, Instant};

/// The most by which a file system's clock for changes of a directory may lag.
const COARSE: Duration = Duration::from_secs(3);

/// How soon a directory is listed again while other processes keep changing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// At once.
    Now,
    /// Listing takes no more than half of the time.
    Soon,
    /// Listing takes no more than a twentieth of the time.
    Later,
}

/// The last listing.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The directory's time of change at the listing, and when this process first saw that time.
    seen: Option<((i64, i64), Instant)>,
    /// Whether each change after the listing gets a different time of change.
    is_settled: bool,
    /// When the listing ended, and how long it took.
    last: Option<(Instant, Duration)>,
}

/// Whether the known names are up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Current,
    /// They may have changed, and it is too soon for another listing.
    Stale,
    /// The caller must list the directory, and then call [`listed`](Listing::listed).
    MustList,
}

impl Listing {
    /// Whether the names are up to date, in a directory that changed at `changed_at` by the clock
    /// of its file system.
    pub(super) fn state(
        &mut self,
        changed_at: (i64, i64),
        haste: Haste,
        now: Instant,
    ) -> Freshness {
        let is_same = self.seen.is_some_and(|(at, _)| at == changed_at);
        if is_same && self.is_settled {
            return Freshness::Current;
        }
        let pause = match haste {
            Haste::Now => 0,
            Haste::Soon => 1,
            Haste::Later => 19,
        };
        if self.last.is_some_and(|(ended, took)| now < ended + took * pause) {
            return Freshness::Stale;
        }
        if !is_same {
            self.seen = Some((changed_at, now));
        }
        self.is_settled = self.seen.is_some_and(|(_, since)| now - since > COARSE);
        Freshness::MustList
    }

    pub(super) fn listed(&mut self, begun: Instant, ended: Instant) {
        self.last = Some((ended, ended - begun));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_the_same_tick_as_the_listing_is_not_missed() {
        let (mut listing, start) = (Listing::default(), Instant::now());
        let mut state = |changed_at, ms| {
            listing.state((1, changed_at), Haste::Now, start + Duration::from_millis(ms))
        };
        assert_eq!(state(5, 0), Freshness::MustList);
        assert_eq!(state(5, 2_900), Freshness::MustList, "the clock may not have ticked since");
        assert_eq!(
            state(5, 3_100),
            Freshness::MustList,
            "there may have been a change after the last listing"
        );
        assert_eq!(state(5, 3_200), Freshness::Current);
        assert_eq!(state(6, 3_300), Freshness::MustList);
        assert_eq!(state(5, 9_000), Freshness::MustList, "a clock that was set back");
    }

    #[test]
    fn listing_takes_a_share_of_the_time() {
        let (mut listing, start) = (Listing::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        listing.listed(at(0), at(10));
        assert_eq!(listing.state((1, 1), Haste::Later, at(199)), Freshness::Stale);
        assert_eq!(listing.state((1, 1), Haste::Soon, at(19)), Freshness::Stale);
        assert_eq!(listing.state((1, 1), Haste::Soon, at(20)), Freshness::MustList);
        assert_eq!(listing.state((1, 1), Haste::Later, at(200)), Freshness::MustList);
        assert_eq!(listing.state((1, 1), Haste::Now, at(11)), Freshness::MustList);
        assert_eq!(listing.state((1, 1), Haste::Later, at(4000)), Freshness::MustList);
        assert_eq!(listing.state((1, 1), Haste::Later, at(4000)), Freshness::Current);
    }
}
