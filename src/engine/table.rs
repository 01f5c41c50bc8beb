//! The segments that are open, by their ids: held for the length of a call, and prefetched without being held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use super::index::Word;
use super::segment::Segment;
use crate::sys::map;

/// A hold on a segment for the length of a call.
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

/// A place for each segment of the index's table, whose length is a power of two.
pub(crate) struct SegmentTable(Box<[Place]>);

#[derive(Default)]
struct Place {
    segment: ArcSwapOption<Segment>,
    /// Where in memory the segment begins, or the one before it began.
    address: AtomicUsize,
}

impl SegmentTable {
    pub(crate) fn new(places: u32) -> Self {
        Self((0..places).map(|_| Place::default()).collect())
    }

    fn place(&self, id: u32) -> &Place {
        &self.0[id as usize & (self.0.len() - 1)]
    }

    pub(crate) fn enter(&self, segment: &Arc<Segment>) {
        let place = self.place(segment.id);
        place.address.store(segment.address(), Ordering::Relaxed);
        place.segment.store(Some(segment.clone()));
    }

    pub(crate) fn remove(&self, id: u32) {
        self.place(id).segment.store(None);
    }

    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|place| place.segment.store(None));
    }

    /// Holds segment `id`, if it is there.
    pub(crate) fn get(&self, id: u32) -> SegmentGuard {
        SegmentGuard { held: self.place(id).segment.load(), id }
    }

    /// Fetches the record that `word` names ahead of its use, without holding its segment: that takes an atomic
    /// operation, which would wait for what was loaded before and make the record wait for it. Only its header says
    /// where a record ends, so a small one's worth of lines is fetched; the processor notices by itself that more is
    /// read one after the other.
    pub(crate) fn prefetch(&self, word: Word) {
        const SMALL: usize = 256;
        let base = self.place(word.segment()).address.load(Ordering::Relaxed);
        map::prefetch(base.wrapping_add(word.offset() as usize), SMALL);
    }
}
