//! A snapshot: a packed copy of the words of the index, and the end of each segment when it was
//! taken. A recovery starts from it and replays only what was written since.
//!
//! There are two files. Checkpoints write them alternately, so one is complete while the other is
//! being written. They are preallocated, so a full disk cannot prevent the checkpoint that frees
//! space. The header is written last.
//!
//! ```text
//!    0  header   magic u64, length u32 and CRC-32 u32 of the rest:
//!                [`Header`] as a MessagePack array
//! 4096  blocks of 4 KiB:
//!       0  CRC-32 u32, seeded with the numbers of snapshot and block   4  bytes used u32
//!       8  kind u32: chains or segments                               12  first chain u32
//!      16  chains:   for each primary, in order: mask u8 of its slots that hold a word (the
//!                    highest bit: overflow follows), its words u64;
//!                    overflow: number of words u8, words u64
//!          segments: for each: id u32, offset u32 at which a replay begins, live bytes u64
//! ```

use std::io;

use serde::{Deserialize, Serialize};

use crate::engine::format::geometry::Geometry;
use crate::engine::format::index_header::LONGEST_CHAIN;
use crate::engine::format::word::Word;

const MAGIC: u64 = u64::from_le_bytes(*b"KWsnaps2");
pub(crate) const HEADER_LEN: u64 = 4096;
/// The least length of a snapshot file.
pub(crate) const LEAST_LEN: u64 = HEADER_LEN;
pub(crate) const BLOCK: usize = 4 << 10;
const BLOCK_HEADER: usize = 16;
/// How many blocks are read or written at a time.
pub(crate) const BATCH: usize = 64;
const CHAINS: u32 = 1;
const SEGMENTS: u32 = 2;
/// The offset at which the replay of a segment begins that was sealed when the snapshot was begun:
/// nothing of it is replayed.
pub(crate) const SEALED: u32 = u32::MAX;
const OVERFLOW: u8 = 0x80;
const _: () =
    assert!(BLOCK_HEADER + 2 + 8 * LONGEST_CHAIN <= BLOCK && LONGEST_CHAIN <= u8::MAX as usize);

/// The header of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Counts the snapshots of a directory.
    pub(crate) number: u64,
    /// Each record with a lower sequence is named by a word of the snapshot, or superseded.
    pub(crate) sequence: u64,
    pub(crate) generation: u32,
    pub(crate) recency: u32,
    /// The lowest id above those of all segments that ever existed.
    pub(crate) next_segment: u64,
    /// The number of chains.
    pub(crate) primaries: u32,
    pub(crate) blocks: u64,
    pub(crate) words: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let fields = rmp_serde::to_vec(self).map_err(io::Error::other)?;
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend((fields.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&fields).to_le_bytes());
        bytes.extend(fields);
        Ok(bytes)
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let magic = u64::from_le_bytes(take(&mut bytes)?);
        let len = u32::from_le_bytes(take(&mut bytes)?) as usize;
        let check = u32::from_le_bytes(take(&mut bytes)?);
        let fields = bytes.get(..len)?;
        let whole = magic == MAGIC && crc32fast::hash(fields) == check;
        whole.then(|| rmp_serde::from_slice(fields).ok())?
    }
}

/// The length of a snapshot file: room for the most entries, and some more.
pub(crate) fn file_len(geometry: Geometry) -> u64 {
    let words = u64::from(geometry.primaries) * 4;
    let packed = words * 8 + u64::from(geometry.primaries) * 2 + u64::from(geometry.segments) * 16;
    // A chain never crosses the end of a block.
    let blocks = (packed + packed / 16).div_ceil((BLOCK - BLOCK_HEADER) as u64) + 2;
    HEADER_LEN + blocks * BLOCK as u64
}

/// The check of a block.
pub(crate) fn check_of(number: u64, block: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&block.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// Packs the parts of a snapshot into blocks.
pub(crate) struct Packer {
    number: u64,
    /// Complete blocks that were not taken yet, then the block that is being filled.
    buffer: Vec<u8>,
    /// Where the block that is being filled begins in `buffer`. At the end of `buffer`, there is no
    /// such block.
    block: usize,
    kind: u32,
    /// How many blocks were taken.
    blocks: u64,
    words: u64,
}

impl Packer {
    /// A packer for the snapshot with this number.
    pub(crate) fn new(number: u64) -> Self {
        let buffer = Vec::with_capacity((BATCH + 1) * BLOCK);
        Self { number, buffer, block: 0, kind: 0, blocks: 0, words: 0 }
    }

    /// Adds the next chain, `number`: the words of its primary by slot, and the overflow words.
    pub(crate) fn chain(&mut self, number: u32, primary: &[Word; 7], overflow: &[Word]) {
        let overflow = &overflow[..overflow.len().min(LONGEST_CHAIN - 7)];
        self.make_room(CHAINS, number, 2 + 8 * (7 + overflow.len()));
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
    }

    /// Adds a segment, and the offset from which on it may have records that no word of the
    /// snapshot names; [`SEALED`] if it has none.
    pub(crate) fn segment(&mut self, id: u32, from: u32, live_bytes: u64) {
        self.make_room(SEGMENTS, 0, 16);
        self.buffer.extend(id.to_le_bytes());
        self.buffer.extend(from.to_le_bytes());
        self.buffer.extend(live_bytes.to_le_bytes());
    }

    /// Ensures that the block that is being filled is of `kind` and has room for `needed` bytes.
    fn make_room(&mut self, kind: u32, first: u32, needed: usize) {
        let used = self.buffer.len() - self.block;
        if used > 0 && (self.kind != kind || used + needed > BLOCK) {
            self.close_block();
        }
        if self.buffer.len() == self.block {
            self.kind = kind;
            self.buffer.extend([0; 8]);
            self.buffer.extend(kind.to_le_bytes());
            self.buffer.extend(first.to_le_bytes());
        }
    }

    /// Ends the block that is being filled.
    pub(crate) fn close_block(&mut self) {
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

    /// Whether a batch of complete blocks is ready to be written.
    pub(crate) fn has_batch(&self) -> bool {
        self.block >= BATCH * BLOCK
    }

    /// The complete blocks that were not taken yet, and their offset in the file.
    pub(crate) fn whole_blocks(&self) -> (&[u8], u64) {
        (&self.buffer[..self.block], HEADER_LEN + self.blocks * BLOCK as u64)
    }

    /// Takes out the complete blocks after they were written.
    pub(crate) fn take_blocks(&mut self) {
        self.blocks += (self.block / BLOCK) as u64;
        self.buffer.drain(..self.block);
        self.block = 0;
    }

    /// `header` with the numbers of packed words and taken blocks.
    pub(crate) fn complete(&self, header: Header) -> Header {
        Header { number: self.number, blocks: self.blocks, words: self.words, ..header }
    }
}

/// A part of a snapshot, for the reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SnapshotPart<'a> {
    /// The words of a chain: those of the primary with their slots, and the overflow words.
    Chain { number: u32, primary: &'a [(usize, Word)], overflow: &'a [Word] },
    /// A segment: its id, the offset from which on it may have records that no word names, and its
    /// live bytes.
    Segment(u32, u32, u64),
    /// A block is damaged: its chains are unknown.
    Damaged,
}

/// Calls `visit` with the parts in block `number`. `None` if it is damaged; then some of its parts
/// may have been visited.
pub(crate) fn read_block(
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

/// Recomputes the checks of the header and of all blocks.
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
