//! Whether the names in a directory have to be read again.

use std::time::{Duration, Instant};

/// The clock by which a file system tells when a directory changed may be as coarse as this.
const COARSE: Duration = Duration::from_secs(3);

/// How soon a directory in which others go on changing names is listed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// At once.
    Now,
    /// Listing takes no more than half of the time.
    Soon,
    /// Listing takes no more than a twentieth of the time.
    Later,
}

/// What is known of the listing that was made last.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// When the directory had changed by then, and since when that is known.
    seen: Option<((i64, i64), Instant)>,
    /// Whether whatever changes after the listing gets another time.
    is_settled: bool,
    /// When it ended, and how long it took.
    last: Option<(Instant, Duration)>,
}

/// Whether what is known of the names is what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Known,
    /// They may have changed, and it is too soon to look.
    Old,
    /// The caller is to list them and to say so.
    Wanted,
}

impl Listing {
    /// How it stands with the names in a directory that changed at `changed_at` by its file system's clock.
    pub(super) fn state(&mut self, changed_at: (i64, i64), haste: Haste, now: Instant) -> Names {
        let is_same = self.seen.is_some_and(|(at, _)| at == changed_at);
        if is_same && self.is_settled {
            return Names::Known;
        }
        let pause = match haste {
            Haste::Now => 0,
            Haste::Soon => 1,
            Haste::Later => 19,
        };
        if self.last.is_some_and(|(ended, took)| now < ended + took * pause) {
            return Names::Old;
        }
        if !is_same {
            self.seen = Some((changed_at, now));
        }
        self.is_settled = self.seen.is_some_and(|(_, since)| now - since > COARSE);
        Names::Wanted
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
        assert_eq!(state(5, 0), Names::Wanted);
        assert_eq!(state(5, 2_900), Names::Wanted, "the clock may not have ticked since");
        assert_eq!(
            state(5, 3_100),
            Names::Wanted,
            "there may have been a change after the last listing"
        );
        assert_eq!(state(5, 3_200), Names::Known);
        assert_eq!(state(6, 3_300), Names::Wanted);
        assert_eq!(state(5, 9_000), Names::Wanted, "a clock that was set back");
    }

    #[test]
    fn listing_takes_a_share_of_the_time() {
        let (mut listing, start) = (Listing::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        listing.listed(at(0), at(10));
        assert_eq!(listing.state((1, 1), Haste::Later, at(199)), Names::Old);
        assert_eq!(listing.state((1, 1), Haste::Soon, at(19)), Names::Old);
        assert_eq!(listing.state((1, 1), Haste::Soon, at(20)), Names::Wanted);
        assert_eq!(listing.state((1, 1), Haste::Later, at(200)), Names::Wanted);
        assert_eq!(listing.state((1, 1), Haste::Now, at(11)), Names::Wanted);
        assert_eq!(listing.state((1, 1), Haste::Later, at(4000)), Names::Wanted);
        assert_eq!(listing.state((1, 1), Haste::Later, at(4000)), Names::Known);
    }
}
