//! `state`: whether the directory was closed, and what the index's header said then. Two sectors, written in
//! turn, so that a torn write leaves the other one; preallocated, so that a full disk does not matter.
//!
//! ```text
//!   0  magic u64   8  turn u64   16  clean u64   24  the header's words   504  CRC-32 u32
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::index::{HEADER_WORDS, HeaderCopy};
use crate::sys::{file, step};

const SECTOR: usize = 1024;
const FILE_LEN: u64 = 2 * SECTOR as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"KWstate1");
const CHECKED: usize = 24 + HEADER_WORDS * 8;
const _: () = assert!(CHECKED + 4 <= SECTOR);

pub(crate) struct State {
    file: File,
    turn: u64,
    /// The index's header when the directory was closed; `None` if it was not.
    clean: Option<HeaderCopy>,
}

impl State {
    /// Reads the newer of the two sectors that are whole. None at all means: not closed.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        if file.metadata()?.len() != FILE_LEN {
            file::reset(&file, FILE_LEN)?;
        }
        let mut state = Self { file, turn: 0, clean: None };
        for number in 0..2 {
            let mut sector = [0; SECTOR];
            state.file.read_exact_at(&mut sector, number * SECTOR as u64)?;
            if let Some((turn, clean)) = decode(&sector)
                && turn >= state.turn
            {
                (state.turn, state.clean) = (turn, clean);
            }
        }
        Ok(state)
    }

    pub(crate) fn clean(&self) -> Option<&HeaderCopy> {
        self.clean.as_ref()
    }

    /// Says durably that the directory is in use, before anything in it is changed.
    pub(crate) fn mark_open(&mut self) -> io::Result<()> {
        self.write(None)
    }

    /// Says durably that the directory was closed with an index whose header is `header`. Everything else is on
    /// the disk already.
    pub(crate) fn mark_clean(&mut self, header: HeaderCopy) -> io::Result<()> {
        self.write(Some(header))
    }

    fn write(&mut self, clean: Option<HeaderCopy>) -> io::Result<()> {
        let turn = self.turn + 1;
        step!("state::writing");
        file::write_at(&self.file, &encode(turn, clean.as_ref()), turn % 2 * SECTOR as u64)?;
        file::sync(&self.file)?;
        (self.turn, self.clean) = (turn, clean);
        Ok(())
    }
}

fn encode(turn: u64, clean: Option<&HeaderCopy>) -> [u8; SECTOR] {
    let mut words = vec![MAGIC, turn, u64::from(clean.is_some())];
    words.extend(clean.unwrap_or(&[0; HEADER_WORDS]));
    let mut sector = [0; SECTOR];
    for (chunk, word) in sector.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let check = crc32fast::hash(&sector[..CHECKED]);
    sector[CHECKED..CHECKED + 4].copy_from_slice(&check.to_le_bytes());
    sector
}

fn decode(sector: &[u8; SECTOR]) -> Option<(u64, Option<HeaderCopy>)> {
    let check = u32::from_le_bytes(sector[CHECKED..CHECKED + 4].try_into().ok()?);
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at * 8 + i]));
    if word(0) != MAGIC || crc32fast::hash(&sector[..CHECKED]) != check {
        return None;
    }
    let clean = (word(2) == 1).then(|| std::array::from_fn(|i| word(3 + i)));
    Some((word(1), clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopen(file: &File) -> State {
        State::open(file.try_clone().unwrap()).unwrap()
    }

    #[test]
    fn the_last_whole_sector_counts() {
        let file = tempfile::tempfile().unwrap();
        let mut state = reopen(&file);
        assert!(state.clean().is_none());
        let header: HeaderCopy = std::array::from_fn(|i| i as u64);
        state.mark_clean(header).unwrap();
        assert_eq!(reopen(&file).clean(), Some(&header));
        state.mark_open().unwrap();
        assert!(reopen(&file).clean().is_none());
    }

    #[test]
    fn a_torn_write_leaves_the_state_before_it() {
        let file = tempfile::tempfile().unwrap();
        let mut state = reopen(&file);
        state.mark_open().unwrap();
        state.mark_clean([3; HEADER_WORDS]).unwrap();
        for at in 0..SECTOR {
            let (offset, mut byte) = ((state.turn % 2) * SECTOR as u64 + at as u64, [0]);
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 0xff], offset).unwrap();
            let clean = reopen(&file).clean().is_some();
            assert_eq!(clean, at >= CHECKED + 4, "byte {at}");
            file.write_all_at(&byte, offset).unwrap();
        }
    }
}
