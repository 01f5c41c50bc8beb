//! How segments are expected to be read: what the system is told of their maps.
//!
//! If all segments fit into memory, the system reads ahead: a cold cache becomes warm with few
//! large reads. If they do not, most of what it reads ahead is evicted before it is used, and a get
//! of a kilobyte reads megabytes: then the maps are read at random, a page for a fault. What is
//! larger than a few pages is announced, and so is a pass over a whole segment.
//!
//! Index and hints are always read in the usual way: they are dense, and small beside the log.

use std::sync::atomic::Ordering;

use super::Log;
use crate::engine::log::segment::Segment;
use crate::sys::memory;

/// The log is read at random from this share of the memory on, in tenths, and no longer
const TIGHT: u64 = 8;
/// below this one.
const AMPLE: u64 = 7;

/// A value of this length is announced before it is read.
const SEVERAL_PAGES: usize = 16 << 10;

/// Whether a log of so many bytes is read at random, if it is now or not.
fn is_tight(bytes: u64, memory: u64, is_random: bool) -> bool {
    bytes / 10 >= memory / 100 * if is_random { AMPLE } else { TIGHT }
}

impl Log {
    /// Tells the system how the segments will be read, if that has changed.
    pub(crate) fn adapt_access(&self) {
        let Some(memory) = memory::limit() else { return };
        let (bytes, is_random) = (self.bytes(), self.map.is_random());
        if is_tight(bytes, memory, is_random) != is_random {
            let dir = self.dir.display();
            tracing::debug!(%dir, bytes, memory, is_random = !is_random, "access has changed");
            self.map.expect_random(!is_random);
        }
    }
}

impl Segment {
    /// Tells the system how the map will be read.
    pub(super) fn expect_random(&self, is_random: bool) {
        if self.is_random.swap(is_random, Ordering::Relaxed) != is_random
            && let Err(error) = self.map.expect_random(is_random)
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot advise");
        }
    }

    /// Announces that a part of the file will be read, if that is more than the faults would read.
    #[inline]
    pub(crate) fn will_need(&self, offset: u32, len: usize) {
        if len >= SEVERAL_PAGES {
            self.announce(offset as usize, len);
        }
    }

    #[cold]
    fn announce(&self, offset: usize, len: usize) {
        if self.is_random.load(Ordering::Relaxed)
            && let Err(error) = self.map.will_need(offset, len)
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot advise");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_changes_with_hysteresis() {
        let at = |tenths: u64, is_random| is_tight(tenths << 20, 10 << 20, is_random);
        assert_eq!([6, 7, 8, 9].map(|tenths| at(tenths, false)), [false, false, true, true]);
        assert_eq!([6, 7, 8, 9].map(|tenths| at(tenths, true)), [false, true, true, true]);
    }
}
