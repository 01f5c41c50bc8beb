//! Looking whether everything in the directory is as it should be.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use super::Engine;
use super::blob::BlobRef;
use super::index::{SegmentInfo, SegmentState};
use super::record::Kind;

/// What a check found. Nothing is changed by checking.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Segments of the log.
    pub segments: u64,
    /// Records in them whose header and key are sound, superseded ones included.
    pub records: u64,
    /// Values in files of their own.
    pub blobs: u64,
    /// Entries that the index names and whose records are sound.
    pub entries: u64,
    /// Of these, expired ones that were not reaped yet.
    pub expired: u64,
    /// Of these, entries from before the last `clear` that were not swept yet; not counted otherwise.
    pub outdated: u64,
    /// What is wrong, a line each, at most 100 of them.
    pub problems: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn problem(&mut self, text: String) {
        const MOST: usize = 100;
        if self.problems.len() < MOST {
            self.problems.push(text);
        }
    }
}

impl Engine {
    fn is_blob_sound(&self, reference: Option<BlobRef>) -> bool {
        let blob = reference.and_then(|reference| self.blobs.open_blob(reference).ok().flatten());
        blob.is_some_and(|blob| blob.verify().unwrap_or(false))
    }

    /// Reads everything. Exact when nobody writes meanwhile; otherwise an entry that moves may be reported.
    pub(crate) fn check(&self) -> CheckReport {
        let mut report = CheckReport::default();
        let _quiet = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        for SegmentInfo { id, .. } in self.index.segments().filter(|s| s.state != SegmentState::Dropped) {
            let Ok(guard) = self.log.fetch(id) else { continue };
            let Some(segment) = guard.get() else { continue };
            report.segments += 1;
            report.records += segment.records().count() as u64;
        }
        for bucket in self.index.damaged_buckets() {
            report.problem(format!("bucket {bucket} of the index is damaged"));
        }
        let generation = self.index.generation();
        let mut blobs = HashSet::new();
        let mut slots_of_key: HashMap<Box<[u8]>, u64> = HashMap::new();
        for (slot, word) in self.index.reached_entries() {
            let Ok(guard) = self.log.fetch(word.segment()) else { continue };
            let segment = guard.get();
            let Some(record) = segment.and_then(|s| s.record(word.offset())) else {
                report.problem(format!(
                    "slot {}: no record at {} of segment {}",
                    slot.number(),
                    word.offset(),
                    word.segment()
                ));
                continue;
            };
            blobs.extend(record.blob().map(|blob| blob.name));
            let key = String::from_utf8_lossy(record.key);
            if record.generation < generation {
                report.outdated += 1;
                continue;
            }
            report.entries += 1;
            report.expired += u64::from(self.has_passed(record.expires_at));
            let is_sound = match record.kind {
                Kind::Blob => self.is_blob_sound(record.blob()),
                kind => kind == Kind::Value && record.value().is_some(),
            };
            if !is_sound {
                report.problem(format!("the value of {key:?} is damaged"));
            }
            let mut here = false;
            self.index.find(self.hasher.hash(record.key), |w| {
                here |= w == word;
                super::index::Probe::Other
            });
            if !here {
                report.problem(format!("{key:?} is in a bucket where nobody looks for it"));
            }
            if slots_of_key.insert(record.key.into(), word.0).is_some() {
                report.problem(format!("{key:?} has two entries"));
            }
        }
        report.blobs = blobs.len() as u64;
        if report.entries != self.len() {
            report.problem(format!("{} entries are counted, {} are there", self.len(), report.entries));
        }
        report
    }
}
