//! Whether the names in a directory have to be read again.

use std::time::{Duration, Instant};

/// The clock by which a file system tells when a directory changed may be as coarse as this.
const COARSE: Duration = Duration::from_secs(3);

/// What is known of the listing that was made last.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// When the directory had changed by then, and since when that is known.
    seen: Option<((i64, i64), Instant)>,
    /// Whether whatever changes after the listing gets another time.
    is_settled: bool,
}

impl Listing {
    /// Whether to list the directory, which changed at `changed_at` by its file system's clock. If so, the caller does, or
    /// forgets this.
    pub(super) fn is_needed(&mut self, changed_at: (i64, i64), now: Instant) -> bool {
        match self.seen {
            Some((at, _)) if at == changed_at && self.is_settled => return false,
            Some((at, since)) if at == changed_at => self.is_settled = now - since > COARSE,
            _ => (self.seen, self.is_settled) = (Some((changed_at, now)), false),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_the_same_tick_as_the_listing_is_not_missed() {
        let (mut listing, start) = (Listing::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(listing.is_needed((1, 5), at(0)));
        assert!(listing.is_needed((1, 5), at(2_900)), "the clock may not have ticked since");
        assert!(
            listing.is_needed((1, 5), at(3_100)),
            "and there may have been a change after the last listing"
        );
        assert!(!listing.is_needed((1, 5), at(3_200)));
        assert!(listing.is_needed((1, 6), at(3_300)));
        assert!(listing.is_needed((1, 5), at(9_000)), "a clock that was set back");
    }
}
