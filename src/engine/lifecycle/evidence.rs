//! The evidence of a recovery: whether the log has everything that was stored.
//!
//! A log in which a record is missing must not be replayed: an older value of its key would come
//! back. But what a power cut took must not cost what was synced before. So a recovery first
//! decides what happened:
//!
//! ```text
//! nothing stored was lost   the page cache of the last life is still there, or the directory was
//!                           closed: each record must be there, up to the tails in the index
//! the directory is a copy   the same, as of one moment: index, log and snapshot must agree
//! the power may be cut      each record must be there that a later one says was synced
//! ```
//!
//! If a record may be missing, the cache starts cold.

use std::collections::{HashMap, HashSet};

use crate::engine::format::index_header::{HeaderCopy, at};
use crate::engine::format::segment_header;
use crate::engine::format::snapshot::{self, Header};
use crate::engine::index::{Index, SegmentInfo, SegmentState};
use crate::engine::log::segment::Segment;
use crate::engine::log::survey::Survey;
use crate::engine::shared::state_file::StateFile;
use crate::sys::place::Place;

/// What happened to the directory since it was used last.
#[derive(Debug)]
pub(crate) enum Evidence {
    /// Nothing that was stored was lost, unless files were damaged, replaced, or copied.
    Stored(Witness),
    /// The power may have been cut: what was not synced may be missing or torn.
    PowerCut,
}

/// What the index of the last life says about the log.
#[derive(Debug)]
pub(crate) struct Witness {
    /// The next sequence.
    sequence: u64,
    /// The number of the last snapshot that counted.
    counted: u64,
    /// Whether the directory is a copy, so that its files may be of different moments.
    is_copy: bool,
    /// The segment table, if the index is complete.
    segments: Option<HashMap<u32, SegmentInfo>>,
}

impl Witness {
    /// Whether the log or its snapshot has sequences that this index has not given out.
    fn is_older(&self, base: &Header, starts: &HashMap<u32, u32>, segments: &[Segment]) -> bool {
        let from = |id: u32| starts.get(&id).copied().unwrap_or(0);
        let replayed = segments.iter().filter(|s| from(s.id) != snapshot::SEALED);
        let mut surveys = replayed.map(|s| s.survey(from(s.id), 0));
        base.sequence > self.sequence || surveys.any(|s| s.last_sequence >= self.sequence)
    }

    fn new(
        header: &HeaderCopy,
        state: &StateFile,
        segments: Option<HashMap<u32, SegmentInfo>>,
    ) -> Self {
        let (sequence, counted) = (header[at::SEQUENCE], header[at::COUNTED]);
        Self { sequence, counted, is_copy: state.is_moved(), segments }
    }
}

/// What the evidence says about a log.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// Why a record may be missing.
    pub(crate) missing: Option<String>,
    /// Whether there are gaps, which must not be in the log of the next life.
    pub(crate) has_gaps: bool,
    /// For each segment, the offset before which no record can be torn.
    pub(crate) untorn: HashMap<u32, u32>,
    /// For each segment, the end of what was begun.
    pub(crate) ends: HashMap<u32, u32>,
    /// Segments that are not replayed: the index of the last life does not list them.
    pub(crate) unlisted: HashSet<u32>,
    /// The highest sequence.
    pub(crate) last_sequence: u64,
}

impl Evidence {
    /// `index`: the index file as the last life left it, if it is one.
    pub(crate) fn gather(index: Option<&Index>, state: &StateFile, place: Place) -> Self {
        if let Some(closed) = state.clean() {
            return Self::Stored(Witness::new(closed, state, None));
        }
        let header = index.map(|index| (index, index.header_copy()));
        let complete = header.filter(|(_, header)| header[at::PAGE_CACHE] != 0);
        let is_same = |header: &HeaderCopy| Some(header[at::PAGE_CACHE]) == place.page_cache;
        match complete {
            Some((index, header)) if is_same(&header) || state.is_moved() => {
                let segments = index.segments().map(|segment| (segment.id, segment)).collect();
                Self::Stored(Witness::new(&header, state, Some(segments)))
            }
            // Without a complete index (a recovery was killed) a copy is not told from a power cut.
            _ => Self::PowerCut,
        }
    }

    /// Judges the log that a recovery would replay from the snapshot `base`, which says at which
    /// offset of each segment the replay `starts`.
    pub(crate) fn judge(
        &self,
        base: &Header,
        starts: &HashMap<u32, u32>,
        segments: &[Segment],
    ) -> Judgement {
        if let Self::Stored(witness) = self
            && !witness.is_copy
            && witness.is_older(base, starts, segments)
        {
            // The index alone was replaced by an older one, which says nothing about the log.
            return Self::PowerCut.judge(base, starts, segments);
        }
        let mut judgement = Judgement::default();
        let files: HashMap<u32, &Segment> = segments.iter().map(|s| (s.id, s)).collect();
        judgement.missing = match self {
            Self::Stored(witness) => witness.missing_beside(base, starts, &files),
            Self::PowerCut => missing_start(starts, &files),
        };
        for segment in segments {
            let id = segment.id;
            let from = starts.get(&id).copied().unwrap_or(0);
            if from == snapshot::SEALED || judgement.missing.is_some() {
                continue;
            }
            let tail = if let Self::Stored(witness) = self { witness.tail(id) } else { 0 };
            let survey = segment.survey(from, tail);
            judgement.has_gaps |= survey.gap.is_some();
            judgement.last_sequence = judgement.last_sequence.max(survey.last_sequence);
            judgement.ends.insert(id, survey.end);
            let (untorn, missing) = match self {
                Self::Stored(witness) => {
                    let missing = witness.missing_in(id, &survey);
                    if !witness.lists(id) {
                        judgement.unlisted.insert(id);
                    }
                    (u32::MAX, missing)
                }
                Self::PowerCut => {
                    let gap = survey.gap.filter(|gap| *gap < survey.synced);
                    (survey.synced, gap.map(|gap| missing_at(id, gap)))
                }
            };
            judgement.untorn.insert(id, untorn);
            judgement.missing = missing;
        }
        judgement
    }
}

impl Witness {
    /// How far segment `id` reaches at least.
    fn tail(&self, id: u32) -> u32 {
        let segment = self.segments.as_ref().and_then(|segments| segments.get(&id));
        segment.map_or(0, |segment| segment.tail)
    }

    /// What disagrees with the snapshot, or is missing from the files, if anything.
    fn missing_beside(
        &self,
        base: &Header,
        starts: &HashMap<u32, u32>,
        files: &HashMap<u32, &Segment>,
    ) -> Option<String> {
        if base.number < self.counted || base.sequence > self.sequence {
            return Some("index and snapshot are of different moments".to_owned());
        }
        let Some(segments) = &self.segments else { return missing_start(starts, files) };
        let is_needed = |segment: &&SegmentInfo| {
            use SegmentState::{Active, Creating, Dropped, Emptied, Sealed};
            let has_records = segment.tail > segment_header::LEN as u32;
            has_records
                && match segment.state {
                    Creating => false,
                    Active | Sealed => starts.get(&segment.id) != Some(&snapshot::SEALED),
                    // A checkpoint that began later may have removed it.
                    Emptied | Dropped => segment.emptied_at > base.sequence,
                }
        };
        let missing =
            segments.values().filter(is_needed).find(|segment| !files.contains_key(&segment.id));
        let missing = missing.map(|segment| missing_file(segment.id));
        missing.or_else(|| missing_start(starts, files))
    }

    /// What is missing in segment `id`.
    fn missing_in(&self, id: u32, survey: &Survey) -> Option<String> {
        if survey.last_sequence >= self.sequence {
            return Some(format!("segment {id} is newer than the index"));
        }
        survey.gap.filter(|_| self.lists(id)).map(|gap| missing_at(id, gap))
    }

    /// Whether segment `id` is one of the last life, as far as is known.
    fn lists(&self, id: u32) -> bool {
        self.segments.as_ref().is_none_or(|segments| segments.contains_key(&id))
    }
}

/// A segment that the replay would read and that has no file.
fn missing_start(starts: &HashMap<u32, u32>, files: &HashMap<u32, &Segment>) -> Option<String> {
    // A segment without records may have been removed.
    let is_read = |from: u32| from != snapshot::SEALED && from > segment_header::LEN as u32;
    let missing = starts.iter().find(|(id, from)| is_read(**from) && !files.contains_key(id));
    missing.map(|(id, _)| missing_file(*id))
}

fn missing_file(id: u32) -> String {
    format!("segment {id} is missing")
}

fn missing_at(id: u32, offset: u32) -> String {
    format!("a record is missing at {offset} of segment {id}")
}
