//! The segments that this process has mapped, by their ids. A lookup takes no lock, and holding a
//! segment writes to no shared memory.

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
    /// The segment that was asked for, if it is mapped. Another one may be in its position.
    pub(crate) fn get(&self) -> Option<&Arc<Segment>> {
        self.held.as_ref().filter(|segment| segment.id == self.id)
    }
}

/// A position for each segment, by the low bits of its id.
pub(crate) struct SegmentMap {
    segments: Box<[ArcSwapOption<Segment>]>,
    /// The address at which each of them begins, or began.
    addresses: Box<[AtomicUsize]>,
}

impl SegmentMap {
    /// `len` is the length of the segment table, a power of two.
    pub(crate) fn new(len: u32) -> Self {
        Self {
            segments: (0..len).map(|_| ArcSwapOption::empty()).collect(),
            addresses: (0..len).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    fn position(&self, id: u32) -> usize {
        id as usize & (self.segments.len() - 1)
    }

    pub(crate) fn insert(&self, segment: &Arc<Segment>) {
        let at = self.position(segment.id);
        self.addresses[at].store(segment.address(), Ordering::Relaxed);
        self.segments[at].store(Some(segment.clone()));
    }

    pub(crate) fn hold(&self, id: u32) -> SegmentGuard {
        SegmentGuard { held: self.segments[self.position(id)].load(), id }
    }

    /// The ids of all segments in the map.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.segments.iter().filter_map(|slot| slot.load().as_ref().map(|segment| segment.id))
    }

    /// Takes segment `id` out, if it is in the map.
    pub(crate) fn remove(&self, id: u32) -> Option<Arc<Segment>> {
        let slot = &self.segments[self.position(id)];
        let here = slot.load_full().filter(|segment| segment.id == id)?;
        let replaced = slot.compare_and_swap(&Some(here.clone()), None);
        replaced.as_ref().is_some_and(|segment| segment.id == id).then_some(here)
    }

    /// Takes all segments out, one by one.
    pub(crate) fn drain(&self) -> impl Iterator<Item = Arc<Segment>> {
        self.segments.iter().filter_map(|slot| slot.swap(None))
    }

    /// Prefetches the record that `word` names, without holding its segment, so that the memory
    /// accesses of holding it and those of the record overlap. Only the record's header tells its
    /// length, so the cache lines of a small record are fetched; the processor's own prefetcher
    /// follows a longer sequential read.
    pub(crate) fn prefetch(&self, word: Word) {
        const SMALL: usize = 256;
        let base = self.addresses[self.position(word.segment())].load(Ordering::Relaxed);
        map::prefetch(base.wrapping_add(word.offset() as usize), SMALL);
    }
}
