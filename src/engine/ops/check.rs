//! The check: reads everything in the directory and reports what is damaged or inconsistent.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use crate::engine::Engine;
use crate::engine::format::record::{Kind, Record};
use crate::engine::format::word::Word;
use crate::engine::index::{Probe, SegmentInfo, SegmentState, Slot};
use crate::entry::CheckReport;

/// The slots and words of the keys that a check has read.
type Met = HashMap<Box<[u8]>, (Slot, Word)>;

impl Engine {
    /// Reads everything. Entries that are moved or removed meanwhile are not reported.
    pub(crate) fn check(&self) -> CheckReport {
        let _quiet = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = self.read_everything();
        if report.is_sound() && self.is_miscounted(&report) {
            // A write may have been under way: it is counted a moment before its entry is
            // published.
            report = self.read_everything();
        }
        if self.is_miscounted(&report) {
            report.problem(format!(
                "{} entries are counted, {} are there",
                self.len(),
                report.entries
            ));
        }
        report
    }

    fn is_miscounted(&self, report: &CheckReport) -> bool {
        !report.changed && report.entries != self.len()
    }

    fn read_everything(&self) -> CheckReport {
        // A writer that is descheduled between its count and its publication holds a chain lock, or
        // unlocks one later: the versions of the chains tell.
        let changes = || {
            let unlocks = self.index.unlocks();
            (unlocks, self.index.last_sequence(), self.index.generation(), self.len())
        };
        let before = changes();
        let mut report = CheckReport::default();
        for SegmentInfo { id, .. } in
            self.index.segments().filter(|s| s.state != SegmentState::Dropped)
        {
            let Ok(guard) = self.log.fetch(id) else { continue };
            let Some(segment) = guard.get() else { continue };
            report.segments += 1;
            report.records += segment.records().count() as u64;
        }
        for bucket in self.index.damaged_buckets() {
            report.problem(format!("bucket {bucket} of the index is damaged"));
        }
        let (mut met, mut blobs) = (Met::new(), HashSet::new());
        for (slot, word) in self.index.reached_entries() {
            self.check_entry(slot, word, &mut met, &mut blobs, &mut report);
        }
        report.blobs = blobs.len() as u64;
        report.changed = before.0.is_none() || changes() != before;
        report
    }

    fn check_entry(
        &self,
        slot: Slot,
        word: Word,
        met: &mut Met,
        blobs: &mut HashSet<u128>,
        report: &mut CheckReport,
    ) {
        let is_still = |slot, word| self.index.word(slot) == word;
        let Ok(guard) = self.log.fetch(word.segment()) else { return };
        let Some(record) = guard.get().and_then(|segment| segment.record(word.offset())) else {
            if is_still(slot, word) {
                let (slot, at, segment) = (slot.number(), word.offset(), word.segment());
                report.problem(format!("slot {slot}: no record at {at} of segment {segment}"));
            }
            return;
        };
        blobs.extend(record.blob().map(|blob| blob.name));
        if record.generation < self.index.generation() {
            report.outdated += 1;
            return;
        }
        report.entries += 1;
        report.expired += u64::from(self.has_passed(record.expires_at));
        let key = String::from_utf8_lossy(record.key);
        if !self.is_sound(&record) && is_still(slot, word) {
            report.problem(format!("the value of {key:?} is damaged"));
        }
        let mut here = false;
        self.index.find(self.hasher.hash(record.key), |found| {
            here |= found == word;
            Probe::Other
        });
        if !here && is_still(slot, word) {
            report.problem(format!("{key:?} is in a bucket that no lookup of it reads"));
        }
        if let Some((other_slot, other)) = met.insert(record.key.into(), (slot, word))
            && is_still(other_slot, other)
            && is_still(slot, word)
        {
            report.problem(format!("{key:?} has two entries"));
        }
    }

    fn is_sound(&self, record: &Record<'_>) -> bool {
        match record.kind {
            Kind::Blob => record.blob().is_some_and(|reference| {
                let blob = self.blobs.open_blob(reference).ok().flatten();
                blob.is_some_and(|blob| blob.verify().unwrap_or(false))
            }),
            kind => kind == Kind::Value && record.value().is_some(),
        }
    }
}
