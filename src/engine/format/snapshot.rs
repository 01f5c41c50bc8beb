//! A snapshot: a packed copy of the index words, and where the log went on when it was taken. A recovery begins with
//! one and replays only what was written since.
//!
//! Two files, written in turn, so that there is a whole one while the other is being written; preallocated, so that
//! a full disk cannot prevent the checkpoint that gives space back. The header comes last.
//!
//! ```text
//!    0  header   magic u64, length u32 and CRC-32 u32 of what follows: [`Header`] as a MessagePack array
//! 4096  blocks of 4 KiB:
//!       0  CRC-32 u32, seeded with the snapshot's number and the block's     4  bytes used u32
//!       8  kind u32: chains or segments                                      12  first chain u32
//!      16  chains:   for each primary, one after the other: mask of its slots that hold a word u8 (the highest bit:
//!                    overflow follows), its words u64; overflow: number of words u8, words u64
//!          segments: id u32, place u32 from which on a recovery looks, live bytes u64 of each
//! ```

use std::io;

use serde::{Deserialize, Serialize};

use crate::engine::format::geometry::Geometry;
use crate::engine::format::index_header::LONGEST_CHAIN;
use crate::engine::format::word::Word;
use crate::sys::step;
use crate::sys::storage::File;

const MAGIC: u64 = u64::from_le_bytes(*b"KWsnaps2");
const HEADER_LEN: u64 = 4096;
/// No snapshot file is shorter.
pub(crate) const LEAST_LEN: u64 = HEADER_LEN;
const BLOCK: usize = 4 << 10;
const BLOCK_HEADER: usize = 16;
/// Blocks that are written at a time.
const BATCH: usize = 64;
const CHAINS: u32 = 1;
const SEGMENTS: u32 = 2;
/// In a segment that took no more records when the snapshot was begun, a recovery looks from here on.
pub(crate) const SEALED: u32 = u32::MAX;
const OVERFLOW: u8 = 0x80;
const _: () =
    assert!(BLOCK_HEADER + 2 + 8 * LONGEST_CHAIN <= BLOCK && LONGEST_CHAIN <= u8::MAX as usize);

/// What a snapshot says besides the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Counts the snapshots of a directory.
    pub(crate) number: u64,
    /// Every record with a lower sequence is in the words, or superseded.
    pub(crate) sequence: u64,
    pub(crate) generation: u32,
    pub(crate) recency: u32,
    /// No segment had this id yet, nor a higher one.
    pub(crate) next_segment: u64,
    /// The number of chains.
    pub(crate) primaries: u32,
    pub(crate) blocks: u64,
    pub(crate) words: u64,
}

impl Header {
    fn encode(&self) -> io::Result<Vec<u8>> {
        let fields = rmp_serde::to_vec(self).map_err(io::Error::other)?;
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend((fields.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&fields).to_le_bytes());
        bytes.extend(fields);
        Ok(bytes)
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let magic = u64::from_le_bytes(take(&mut bytes)?);
        let len = u32::from_le_bytes(take(&mut bytes)?) as usize;
        let check = u32::from_le_bytes(take(&mut bytes)?);
        let fields = bytes.get(..len)?;
        let whole = magic == MAGIC && crc32fast::hash(fields) == check;
        whole.then(|| rmp_serde::from_slice(fields).ok())?
    }
}

/// The bytes that one snapshot file takes: room for every entry there can be, and some more.
pub(crate) fn file_len(geometry: Geometry) -> u64 {
    let words = u64::from(geometry.primaries) * 4;
    let packed = words * 8 + u64::from(geometry.primaries) * 2 + u64::from(geometry.segments) * 16;
    // A chain does not go over the end of a block.
    let blocks = (packed + packed / 16).div_ceil((BLOCK - BLOCK_HEADER) as u64) + 2;
    HEADER_LEN + blocks * BLOCK as u64
}

fn check_of(number: u64, block: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&block.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// Writes one snapshot. It counts from when [`commit`](SnapshotWriter::commit) has returned.
pub(crate) struct SnapshotWriter<'a> {
    file: &'a File,
    len: u64,
    number: u64,
    /// Whole blocks that are not written yet, and behind them the one that is being filled.
    buffer: Vec<u8>,
    /// Where in `buffer` the block that is being filled begins; none is if it is the end.
    block: usize,
    kind: u32,
    blocks: u64,
    words: u64,
}

impl<'a> SnapshotWriter<'a> {
    /// `number` is greater than that of any other snapshot of the directory.
    pub(crate) fn new(file: &'a File, number: u64) -> io::Result<Self> {
        let len = file.len()?;
        let buffer = Vec::with_capacity(BATCH * BLOCK);
        Ok(Self { file, len, number, buffer, block: 0, kind: 0, blocks: 0, words: 0 })
    }

    /// The next chain, `number`: the words in the slots of its primary, and the others.
    pub(crate) fn chain(
        &mut self,
        number: u32,
        primary: &[Word; 7],
        overflow: &[Word],
    ) -> io::Result<()> {
        let overflow = &overflow[..overflow.len().min(LONGEST_CHAIN - 7)];
        self.make_room(CHAINS, number, 2 + 8 * (7 + overflow.len()))?;
        let mask = primary.iter().enumerate().filter(|(_, w)| **w != Word::EMPTY);
        let mask = mask.fold(0, |mask, (slot, _)| mask | 1u8 << slot);
        self.buffer.push(if overflow.is_empty() { mask } else { mask | OVERFLOW });
        for word in primary.iter().filter(|w| **w != Word::EMPTY) {
            self.buffer.extend(word.0.to_le_bytes());
            self.words += 1;
        }
        if !overflow.is_empty() {
            self.buffer.push(overflow.len() as u8);
            self.buffer.extend(overflow.iter().flat_map(|word| word.0.to_le_bytes()));
            self.words += overflow.len() as u64;
        }
        Ok(())
    }

    /// A segment, and from where on records may be that are not in the words: from [`SEALED`] on, nowhere.
    pub(crate) fn segment(&mut self, id: u32, from: u32, live_bytes: u64) -> io::Result<()> {
        self.make_room(SEGMENTS, 0, 16)?;
        self.buffer.extend(id.to_le_bytes());
        self.buffer.extend(from.to_le_bytes());
        self.buffer.extend(live_bytes.to_le_bytes());
        Ok(())
    }

    /// Makes sure that the block which is being filled is of `kind` and has room for `needed` bytes.
    fn make_room(&mut self, kind: u32, first: u32, needed: usize) -> io::Result<()> {
        let used = self.buffer.len() - self.block;
        if used > 0 && (self.kind != kind || used + needed > BLOCK) {
            self.close_block();
            if self.buffer.len() >= BATCH * BLOCK {
                self.write()?;
            }
        }
        if self.buffer.len() == self.block {
            self.kind = kind;
            self.buffer.extend([0; 8]);
            self.buffer.extend(kind.to_le_bytes());
            self.buffer.extend(first.to_le_bytes());
        }
        Ok(())
    }

    fn close_block(&mut self) {
        let used = (self.buffer.len() - self.block) as u32;
        if used > 0 {
            self.buffer[self.block + 4..self.block + 8].copy_from_slice(&used.to_le_bytes());
            let number = self.blocks + (self.block / BLOCK) as u64;
            let check = check_of(self.number, number, &self.buffer[self.block + 4..]);
            self.buffer[self.block..self.block + 4].copy_from_slice(&check.to_le_bytes());
            self.buffer.resize(self.block + BLOCK, 0);
            self.block = self.buffer.len();
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let at = HEADER_LEN + self.blocks * BLOCK as u64;
        if at + self.buffer.len() as u64 > self.len {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "more words than the snapshot has room for",
            ));
        }
        self.file.write_at(&self.buffer, at)?;
        self.blocks += (self.buffer.len() / BLOCK) as u64;
        self.buffer.clear();
        self.block = 0;
        Ok(())
    }

    /// Writes what is left and waits until all of it is on the disk. Nothing counts yet.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.close_block();
        self.write()?;
        step!("snapshot::written");
        self.file.sync()
    }

    /// Says durably that the snapshot is whole. [`finish`](SnapshotWriter::finish) comes before, and the syncs of whatever
    /// the words name.
    pub(crate) fn commit(self, header: Header) -> io::Result<Header> {
        let header =
            Header { number: self.number, blocks: self.blocks, words: self.words, ..header };
        step!("snapshot::synced");
        self.file.write_at(&header.encode()?, 0)?;
        step!("snapshot::headed");
        self.file.sync()?;
        Ok(header)
    }
}

/// A part of a snapshot, as it is read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SnapshotPart<'a> {
    /// The words of a chain: those of the primary with their slots, then the others.
    Chain { number: u32, primary: &'a [(usize, Word)], overflow: &'a [Word] },
    /// The id of a segment, from where on there may be records that are not in the words, and the bytes in it that were
    /// alive.
    Segment(u32, u32, u64),
    /// Something is missing here: some chains are unknown.
    Damaged,
}

/// Whether nothing was ever written to `file` but zeros, as far as a header would reach.
pub(crate) fn is_untouched(file: &File) -> io::Result<bool> {
    let mut bytes = [0; HEADER_LEN as usize];
    let there = file.read_at(&mut bytes, 0)?;
    Ok(there == bytes.len() && bytes.iter().all(|byte| *byte == 0))
}

/// The header of the snapshot in `file`, if it has a whole one.
pub(crate) fn header(file: &File) -> io::Result<Option<Header>> {
    let mut bytes = [0; 256];
    let there = file.read_at(&mut bytes, 0)?;
    Ok(Header::decode(&bytes[..there]))
}

/// Makes an end, durably, of the snapshot in `file`.
pub(crate) fn void(file: &File) -> io::Result<()> {
    // Not zeros, which would say that none was ever written.
    file.write_at(&[0xff; 16], 0)?;
    file.sync()
}

/// Hands out the parts of the snapshot in `file`, whose header is `header`. What is damaged is left out and told.
pub(crate) fn read(
    file: &File,
    header: &Header,
    mut visit: impl FnMut(SnapshotPart<'_>),
) -> io::Result<()> {
    let len = file.len()?;
    let there = len.saturating_sub(HEADER_LEN) / BLOCK as u64;
    if header.blocks > there {
        visit(SnapshotPart::Damaged);
    }
    let blocks = header.blocks.min(there);
    let mut buffer = vec![0; BATCH * BLOCK];
    for batch in (0..blocks).step_by(BATCH) {
        let count = (blocks - batch).min(BATCH as u64) as usize;
        let buffer = &mut buffer[..count * BLOCK];
        file.read_exact_at(buffer, HEADER_LEN + batch * BLOCK as u64)?;
        for (at, block) in buffer.chunks_exact(BLOCK).enumerate() {
            if read_block(header, batch + at as u64, block, &mut visit).is_none() {
                visit(SnapshotPart::Damaged);
            }
        }
    }
    Ok(())
}

fn read_block(
    header: &Header,
    number: u64,
    block: &[u8],
    visit: &mut impl FnMut(SnapshotPart<'_>),
) -> Option<()> {
    let word32 = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
    let used = word32(4)? as usize;
    if check_of(header.number, number, block.get(4..used)?) != word32(0)? {
        return None;
    }
    let (kind, mut chain) = (word32(8)?, word32(12)?);
    let mut rest = block.get(BLOCK_HEADER..used)?;
    match kind {
        CHAINS => {
            let (mut primary, mut overflow) = (Vec::with_capacity(7), Vec::new());
            while !rest.is_empty() {
                primary.clear();
                overflow.clear();
                let mask = take::<1>(&mut rest)?[0];
                for slot in (0..7).filter(|slot| mask & 1 << slot != 0) {
                    primary.push((slot, Word(u64::from_le_bytes(take(&mut rest)?))));
                }
                if mask & OVERFLOW != 0 {
                    for _ in 0..take::<1>(&mut rest)?[0] {
                        overflow.push(Word(u64::from_le_bytes(take(&mut rest)?)));
                    }
                }
                visit(SnapshotPart::Chain {
                    number: chain,
                    primary: &primary,
                    overflow: &overflow,
                });
                chain = chain.checked_add(1)?;
            }
        }
        SEGMENTS => {
            while !rest.is_empty() {
                let id = u32::from_le_bytes(take(&mut rest)?);
                let from = u32::from_le_bytes(take(&mut rest)?);
                visit(SnapshotPart::Segment(id, from, u64::from_le_bytes(take(&mut rest)?)));
            }
        }
        _ => return None,
    }
    Some(())
}

/// Gives the header and every block the check that fits.
#[cfg(feature = "fuzzing")]
pub(crate) fn fit_checks(bytes: &mut [u8]) {
    let word32 =
        |bytes: &[u8], at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    if bytes.len() < HEADER_LEN as usize {
        return;
    }
    let len = word32(bytes, 8) as usize;
    if let Some(fields) = bytes.get(16..16 + len) {
        let check = crc32fast::hash(fields).to_le_bytes();
        bytes[12..16].copy_from_slice(&check);
    }
    let number = Header::decode(bytes).map_or(0, |header| header.number);
    for (at, block) in bytes[HEADER_LEN as usize..].chunks_exact_mut(BLOCK).enumerate() {
        if let Some(content) = block.get(4..word32(block, 4) as usize) {
            let check = check_of(number, at as u64, content).to_le_bytes();
            block[..4].copy_from_slice(&check);
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(chain: u32) -> ([Word; 7], Vec<Word>) {
        let word = |slot: u32| {
            if (chain + slot).is_multiple_of(3) {
                Word::EMPTY
            } else {
                Word(u64::from(chain) << 8 | u64::from(slot))
            }
        };
        let overflow = if chain.is_multiple_of(17) {
            (10..40).map(|n| Word(u64::from(chain) << 8 | n)).collect()
        } else {
            vec![]
        };
        (std::array::from_fn(|slot| word(slot as u32)), overflow)
    }

    /// Several blocks full.
    const CHAINS: u32 = if cfg!(miri) { 50 } else { 3000 };

    fn written(chains: u32) -> (File, Header) {
        let file = File::nameless().unwrap();
        file.set_len(file_len(Geometry::for_entries(u64::from(chains) * 6, 16))).unwrap();
        let mut writer = SnapshotWriter::new(&file, 7).unwrap();
        for number in 0..chains {
            let (primary, overflow) = words(number);
            writer.chain(number, &primary, &overflow).unwrap();
        }
        (1..=5).for_each(|id| writer.segment(id, id + 7, u64::from(id) * 1000).unwrap());
        writer.finish().unwrap();
        let header =
            writer.commit(Header { sequence: 99, primaries: chains, ..Header::default() }).unwrap();
        (file, header)
    }

    fn chains_of(file: &File, header: &Header) -> (u32, u32, bool) {
        let (mut good, mut segments, mut damaged) = (0, 0, false);
        read(file, header, |part| match part {
            SnapshotPart::Chain { number, primary, overflow } => {
                let (all, more) = words(number);
                let there: Vec<_> =
                    all.into_iter().enumerate().filter(|(_, w)| *w != Word::EMPTY).collect();
                assert_eq!((primary, overflow), (&there[..], &more[..]), "chain {number}");
                good += 1;
            }
            SnapshotPart::Segment(id, from, live) => {
                assert_eq!((from, live), (id + 7, u64::from(id) * 1000));
                segments += 1;
            }
            SnapshotPart::Damaged => damaged = true,
        })
        .unwrap();
        (good, segments, damaged)
    }

    #[test]
    fn what_was_written_is_read() {
        let (file, written) = written(CHAINS);
        let header = header(&file).unwrap().unwrap();
        assert_eq!(header, written);
        assert_eq!((header.number, header.sequence, header.primaries), (7, 99, CHAINS));
        assert_eq!(chains_of(&file, &header), (CHAINS, 5, false));
    }

    #[test]
    fn a_damaged_block_costs_its_chains_only() {
        let (file, header) = written(3000);
        file.write_at(&[0xa5; 3], HEADER_LEN + BLOCK as u64 * 2 + 5000).unwrap();
        let (good, segments, damaged) = chains_of(&file, &header);
        assert!(damaged && segments == 5 && (2700..3000).contains(&good), "{good}");
    }

    #[test]
    fn a_damaged_header_is_none() {
        let (file, file_header) = written(10);
        for at in 0..file_header.encode().unwrap().len() as u64 {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_at(&[byte[0] ^ 1], at).unwrap();
            assert_eq!(header(&file).unwrap(), None, "byte {at}");
            file.write_at(&byte, at).unwrap();
        }
    }

    #[test]
    fn a_block_that_says_it_has_less_than_a_header_is_damaged() {
        let (file, header) = written(100);
        for used in [0u32, 4, 8, 15, BLOCK as u32 + 1] {
            let mut block = vec![0; BLOCK];
            block[4..8].copy_from_slice(&used.to_le_bytes());
            let content = block.get(4..used as usize).unwrap_or_default();
            let check = check_of(header.number, 0, content);
            block[..4].copy_from_slice(&check.to_le_bytes());
            file.write_at(&block, HEADER_LEN).unwrap();
            assert!(chains_of(&file, &header).2, "{used}");
        }
    }

    #[test]
    fn blocks_of_an_older_snapshot_do_not_count() {
        let (file, header) = written(100);
        let later = Header { number: 8, ..header };
        assert_eq!(chains_of(&file, &later), (0, 0, true));
    }
}
