//! The segments by their ids, for readers: looked up without a lock, held without a shared write.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use crate::engine::format::word::Word;
use crate::engine::log::segment::Segment;
use crate::sys::map;

/// A hold on a segment for the length of a call.
/// Keeps invariant I27.
pub(crate) struct SegmentGuard {
    held: Guard<Option<Arc<Segment>>>,
    id: u32,
}

impl SegmentGuard {
    /// The segment that was asked for, if it is there: its place may be another one's by now.
    pub(crate) fn get(&self) -> Option<&Arc<Segment>> {
        self.held.as_ref().filter(|segment| segment.id == self.id)
    }
}

/// A place for each segment, by the low bits of its id.
pub(crate) struct SegmentMap {
    segments: Box<[ArcSwapOption<Segment>]>,
    /// Where in memory each of them begins, or began.
    addresses: Box<[AtomicUsize]>,
}

impl SegmentMap {
    /// `places` is a power of two.
    pub(crate) fn new(places: u32) -> Self {
        Self {
            segments: (0..places).map(|_| ArcSwapOption::empty()).collect(),
            addresses: (0..places).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    fn place(&self, id: u32) -> usize {
        id as usize & (self.segments.len() - 1)
    }

    pub(crate) fn enter(&self, segment: &Arc<Segment>) {
        let place = self.place(segment.id);
        self.addresses[place].store(segment.address(), Ordering::Relaxed);
        self.segments[place].store(Some(segment.clone()));
    }

    pub(crate) fn hold(&self, id: u32) -> SegmentGuard {
        SegmentGuard { held: self.segments[self.place(id)].load(), id }
    }

    /// The segments that are here.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.segments.iter().filter_map(|place| place.load().as_ref().map(|segment| segment.id))
    }

    /// Lets go of segment `id`, and returns it if it was here.
    pub(crate) fn forget(&self, id: u32) -> Option<Arc<Segment>> {
        let place = &self.segments[self.place(id)];
        let here = place.load_full().filter(|segment| segment.id == id)?;
        let replaced = place.compare_and_swap(&Some(here.clone()), None);
        replaced.as_ref().is_some_and(|segment| segment.id == id).then_some(here)
    }

    /// Lets go of all segments, and returns them one by one.
    pub(crate) fn drain(&self) -> impl Iterator<Item = Arc<Segment>> {
        self.segments.iter().filter_map(|place| place.swap(None))
    }

    /// Fetches the record that `word` names ahead of its use, without holding its segment: what holding it waits
    /// for, the record need not wait for too. Where it ends says its header alone, so a small record's worth of
    /// lines is fetched; the processor notices by itself when more is read one after the other.
    pub(crate) fn prefetch(&self, word: Word) {
        const SMALL: usize = 256;
        let base = self.addresses[self.place(word.segment())].load(Ordering::Relaxed);
        map::prefetch(base.wrapping_add(word.offset() as usize), SMALL);
    }
}
