//! The checks of the fuzz targets inside the engine. Not part of the library.

#![expect(clippy::panic, reason = "a fuzz target reports a failure by a panic")]
use std::path::Path;

use crate::engine::format::record::{self, Record, RecordPlace};
use crate::engine::format::segment_header;
use crate::engine::format::word::ALIGN;
use crate::engine::format::{index_header, snapshot, state};
use crate::engine::index;
use crate::engine::lifecycle::attach::Attached;
use crate::engine::log::segment::{Segment, SegmentFile};
use crate::engine::shared::accounting::SpaceInUse;
use crate::error::Result;
use crate::limits::Limits;
use crate::options::Options;
use crate::sys::storage::{Access, SYSTEM};

/// A record whose check is this gets the right checks.
const TO_BE_FITTED: [u8; 4] = *b"fit!";

/// Scans any bytes as the file of a segment: as they are, and behind a valid header, with right
/// checks where the bytes ask for them. The scan ends, stays within the file, and yields only valid
/// records, each once.
///
/// `path` is a file to write to.
///
/// # Panics
/// If the scan does not.
pub(crate) fn segment_scan(path: &Path, bytes: &[u8]) {
    const ID: u32 = 1;
    let Some((salt, records)) = bytes.split_first_chunk::<8>() else { return };
    let salt = u64::from_le_bytes(*salt);
    let mut fitted = segment_header::file_of(ID, salt, records);
    let last = fitted.len().saturating_sub(record::HEADER_LEN - 1);
    // From the end, because a check covers the bytes behind it.
    for offset in (segment_header::LEN..last).step_by(ALIGN).rev() {
        let header = &fitted[offset..];
        let len = u32::from_le_bytes(std::array::from_fn(|i| header[i])) as usize;
        if header[4..8] == TO_BE_FITTED && (record::HEADER_LEN..=header.len()).contains(&len) {
            record::fit_checks(
                &mut fitted[offset..offset + len],
                RecordPlace { salt, offset: offset as u32 },
            );
        }
    }
    scan(path, ID, bytes);
    let sound = scan(path, ID, &fitted);
    // A valid record at the first offset must be found.
    let first = RecordPlace { salt, offset: segment_header::LEN as u32 };
    let first_len = fitted.get(segment_header::LEN..segment_header::LEN + 4);
    let first_len =
        first_len.map_or(0, |len| u32::from_le_bytes(std::array::from_fn(|i| len[i])) as usize);
    let first_bytes = fitted.get(segment_header::LEN..).and_then(|rest| rest.get(..first_len));
    if let Some(record) = first_bytes.and_then(|bytes| Record::decode(bytes, first)) {
        let aligned = (record.len as usize).is_multiple_of(ALIGN);
        assert!(!aligned || sound > 0, "the first record was not found");
    }
}

/// Scans the file and returns the number of records.
fn scan(path: &Path, id: u32, bytes: &[u8]) -> usize {
    let written = SYSTEM.open_or_create(path).and_then(|(file, _)| {
        file.set_len(0)?;
        file.write_at(bytes, 0)
    });
    let opened = written.ok().map(|()| {
        let opened = Segment::open(SYSTEM, path, id, Access::ToWrite, &SpaceInUse::default());
        opened.unwrap_or_else(|e| panic!("{e}"))
    });
    let Some(SegmentFile::Segment(segment)) = opened else { return 0 };
    let (mut end, mut found) = (segment_header::LEN as u32, 0);
    for (offset, record) in segment.records() {
        assert!(offset >= end && offset.is_multiple_of(ALIGN as u32), "{offset} after {end}");
        end = offset + record.len;
        assert!(u64::from(end) <= segment.len());
        let place = RecordPlace {
            salt: u64::from_le_bytes(std::array::from_fn(|i| bytes[16 + i])),
            offset,
        };
        let there = Record::decode(&bytes[offset as usize..end as usize], place);
        let Some(there) = there else { panic!("what is at {offset} is no record") };
        assert_eq!((there.key, there.sequence), (record.key, record.sequence));
        if let Some(value) = record.value() {
            assert!(there.value() == Some(value));
        }
        found += 1;
    }
    assert!(segment.end(0) >= end, "nothing is written over a record");
    assert!(found <= bytes.len() / record::HEADER_LEN);
    found
}

/// Changes words of an index file as `bytes` say. With `fit`, recomputes the checks of its buckets.
///
/// A change has 11 bytes: the operation, the position, and the word or another position.
pub(crate) fn change_index(file: &mut [u8], bytes: &[u8], fit: bool) {
    let mut words: Vec<u64> = file
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(std::array::from_fn(|i| word[i])))
        .collect();
    let places: Vec<usize> = index_header::words_in_use(file.len()).collect();
    for change in bytes.chunks_exact(11) {
        let place = |at: usize| {
            places[usize::from(u16::from_le_bytes([change[at], change[at + 1]])) % places.len()]
        };
        let value = u64::from_le_bytes(std::array::from_fn(|i| change[3 + i]));
        words[place(1)] = match change[0] % 4 {
            0 => value,
            1 => words[place(1)] ^ value,
            2 => words[place(1)].wrapping_add(value as i8 as u64),
            _ => words[place(3)],
        };
    }
    if fit {
        index::fit_checks(&mut words);
    }
    for (word, chunk) in words.iter().zip(file.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// Changes bytes of a snapshot as `bytes` say. With `fit`, recomputes its checks.
///
/// A change has 4 bytes: the operation, the position (2), and the byte or, in units of eight bytes,
/// the distance to another position.
pub(crate) fn change_snapshot(file: &mut [u8], bytes: &[u8], fit: bool) {
    let places: Vec<usize> = (0..256.min(file.len())).chain(4096..file.len()).collect();
    for change in bytes.chunks_exact(4).filter(|_| !places.is_empty()) {
        let place = usize::from(u16::from_le_bytes([change[1], change[2]]));
        let at = places[place % places.len()];
        match change[0] % 4 {
            0 => file[at] = change[3],
            1 => file[at] ^= change[3],
            2 => file[at] = file[at].wrapping_add(change[3]),
            // Eight bytes of another position, perhaps a word.
            _ => {
                let from = at.saturating_sub(usize::from(change[3]) * 8);
                let len = 8.min(file.len() - at);
                file.copy_within(from..from + len, at);
            }
        }
    }
    if fit {
        snapshot::fit_checks(file);
    }
}

/// Takes a snapshot of the directory at `path`, which this process has open.
pub(crate) fn take_snapshot(path: &Path) -> Result<()> {
    let engine = Attached::open(SYSTEM, path, &Options::default())?;
    engine.checkpoint(&engine.space_role()?)
}

/// A `state` that says that the directory was not closed.
pub(crate) fn state_not_closed(limits: Limits) -> Vec<u8> {
    state::not_closed(limits)
}

/// A `state` that says that the directory was closed with this index.
pub(crate) fn state_for(index: &[u8], limits: Limits) -> Vec<u8> {
    let word = |at: usize| std::array::from_fn(|i| index.get(at * 8 + i).copied().unwrap_or(0));
    state::closed_with(std::array::from_fn(|at| u64::from_le_bytes(word(at))), limits)
}
