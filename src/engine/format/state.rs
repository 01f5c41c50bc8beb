//! `state`: whether the directory was closed, what the index's header said then, and the limits that the
//! directory was last opened with, and the number of the current snapshot. Two sectors, written in turn, so that a torn write leaves the other one;
//! preallocated, so that a full disk does not matter.
//!
//! ```text
//!   0  magic u64       8  turn u64             16  clean u64       24  the header's 64 words
//! 536  max_entries   544  cull_frequency u64  552  max_bytes u64
//! 560  snapshot u64  568  CRC-32 u32
//! ```

use std::io;

use crate::engine::format::index_header::{HEADER_WORDS, HeaderCopy};
use crate::limits::Limits;
use crate::sys::fork::OwnFile;
use crate::sys::step;
use crate::sys::storage::{File, SMALL_PIECES};

const SECTOR: usize = 1024;
const FILE_LEN: u64 = 2 * SECTOR as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"KWstate2");
/// Where the limits are, in words.
const LIMITS_AT: usize = 3 + HEADER_WORDS;
const CHECKED: usize = (LIMITS_AT + 4) * 8;
const _: () = assert!(CHECKED + 4 <= SECTOR);

pub(crate) struct State {
    file: OwnFile,
    turn: u64,
    /// The index's header when the directory was closed; `None` if it was not.
    clean: Option<HeaderCopy>,
    limits: Option<Limits>,
    snapshot: u64,
}

/// What a sector says.
struct Sector {
    turn: u64,
    clean: Option<HeaderCopy>,
    limits: Limits,
    snapshot: u64,
}

impl State {
    /// Reads the newer of the two sectors that are whole. None at all means: not closed.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        if file.len()? != FILE_LEN {
            file.reset(FILE_LEN, SMALL_PIECES)?;
        }
        Self::read(file)
    }

    /// The same of a file that may only be read. One that ends too early says nothing.
    pub(crate) fn read(file: File) -> io::Result<Self> {
        let mut state =
            Self { file: OwnFile::new(file), turn: 0, clean: None, limits: None, snapshot: 0 };
        match state.refresh() {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(e),
            _ => Ok(state),
        }
    }

    /// Reads what other processes may have written since. Only one at a time writes.
    pub(crate) fn refresh(&mut self) -> io::Result<()> {
        let state = self;
        for number in 0..2 {
            let mut sector = [0; SECTOR];
            state.file.read_exact_at(&mut sector, number * SECTOR as u64)?;
            if let Some(Sector { turn, clean, limits, snapshot }) = decode(&sector)
                && turn >= state.turn
            {
                (state.turn, state.clean, state.limits) = (turn, clean, Some(limits));
                state.snapshot = snapshot;
            }
        }
        Ok(())
    }

    pub(crate) fn clean(&self) -> Option<&HeaderCopy> {
        self.clean.as_ref()
    }

    /// The limits that the directory was last opened with.
    pub(crate) fn limits(&self) -> Option<Limits> {
        self.limits
    }

    /// Says durably that the directory is in use with these limits, before anything in it is changed.
    pub(crate) fn mark_open(&mut self, limits: Limits) -> io::Result<()> {
        self.write(None, limits, self.snapshot)
    }

    /// The lowest number that the current snapshot can have; 0 if there was none yet. `None` if nothing is known.
    pub(crate) fn snapshot(&self) -> Option<u64> {
        self.limits.is_some().then_some(self.snapshot)
    }

    /// Says durably that snapshot `number` counts and no older one, before what only older ones need is given up.
    pub(crate) fn set_snapshot(&mut self, number: u64, limits: Limits) -> io::Result<()> {
        self.write(None, limits, number)
    }

    /// Says durably that the directory was closed with an index whose header is `header`. Everything else is on
    /// the disk already.
    pub(crate) fn mark_clean(&mut self, header: HeaderCopy, limits: Limits) -> io::Result<()> {
        self.write(Some(header), limits, self.snapshot)
    }

    fn write(
        &mut self,
        clean: Option<HeaderCopy>,
        limits: Limits,
        snapshot: u64,
    ) -> io::Result<()> {
        let sector = Sector { turn: self.turn.wrapping_add(1), clean, limits, snapshot };
        step!("state::writing");
        self.file.write_at(&encode(&sector), sector.turn % 2 * SECTOR as u64)?;
        step!("state::written");
        self.file.sync()?;
        (self.turn, self.clean, self.limits) = (sector.turn, clean, Some(limits));
        self.snapshot = snapshot;
        Ok(())
    }
}

/// A `state` of a directory that was not closed, in which any snapshot may count.
#[cfg(feature = "fuzzing")]
pub(crate) fn not_closed(limits: Limits) -> Vec<u8> {
    [[0; SECTOR], encode(&Sector { turn: 1, clean: None, limits, snapshot: 0 })].concat()
}

/// A `state` of a directory that was closed with an index whose header is `header`.
#[cfg(feature = "fuzzing")]
pub(crate) fn closed_with(header: HeaderCopy, limits: Limits) -> Vec<u8> {
    [[0; SECTOR], encode(&Sector { turn: 1, clean: Some(header), limits, snapshot: 0 })].concat()
}

fn encode(Sector { turn, clean, limits, snapshot }: &Sector) -> [u8; SECTOR] {
    let mut words = vec![MAGIC, *turn, u64::from(clean.is_some())];
    words.extend(clean.unwrap_or([0; HEADER_WORDS]));
    words.extend([limits.max_entries, limits.cull_frequency, limits.max_bytes, *snapshot]);
    let mut sector = [0; SECTOR];
    for (chunk, word) in sector.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let check = crc32fast::hash(&sector[..CHECKED]);
    sector[CHECKED..CHECKED + 4].copy_from_slice(&check.to_le_bytes());
    sector
}

fn decode(sector: &[u8; SECTOR]) -> Option<Sector> {
    let check = u32::from_le_bytes(sector[CHECKED..CHECKED + 4].try_into().ok()?);
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at * 8 + i]));
    if word(0) != MAGIC || crc32fast::hash(&sector[..CHECKED]) != check {
        return None;
    }
    let clean = (word(2) == 1).then(|| std::array::from_fn(|i| word(3 + i)));
    let limits = Limits {
        max_entries: word(LIMITS_AT),
        cull_frequency: word(LIMITS_AT + 1),
        max_bytes: word(LIMITS_AT + 2),
    };
    Some(Sector { turn: word(1), clean, limits, snapshot: word(LIMITS_AT + 3) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_entries: 5, cull_frequency: 3, max_bytes: 1 << 20 };

    fn reopen(file: &File) -> State {
        State::open(file.try_clone().unwrap()).unwrap()
    }

    #[test]
    fn the_last_whole_sector_counts() {
        let file = File::nameless().unwrap();
        let mut state = reopen(&file);
        assert!(state.clean().is_none());
        let header: HeaderCopy = std::array::from_fn(|i| i as u64);
        state.mark_clean(header, LIMITS).unwrap();
        assert_eq!(reopen(&file).clean(), Some(&header));
        let others = Limits { max_entries: 6, ..LIMITS };
        state.mark_open(others).unwrap();
        assert!(reopen(&file).clean().is_none());
        assert_eq!(reopen(&file).limits(), Some(others));
        assert_eq!(reopen(&file).snapshot(), Some(0));
        state.set_snapshot(3, others).unwrap();
        state.mark_clean(header, others).unwrap();
        assert_eq!(reopen(&file).snapshot(), Some(3));
    }

    #[test]
    fn a_torn_write_leaves_the_state_before_it() {
        let file = File::nameless().unwrap();
        let mut state = reopen(&file);
        state.mark_open(LIMITS).unwrap();
        state.mark_clean([3; HEADER_WORDS], LIMITS).unwrap();
        for at in 0..SECTOR {
            let (offset, mut byte) = ((state.turn % 2) * SECTOR as u64 + at as u64, [0]);
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_at(&[byte[0] ^ 0xff], offset).unwrap();
            let clean = reopen(&file).clean().is_some();
            assert_eq!(clean, at >= CHECKED + 4, "byte {at}");
            file.write_at(&byte, offset).unwrap();
        }
    }
}
