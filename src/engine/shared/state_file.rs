//! The file `state`: two sectors ([`format::state`](crate::engine::format::state)), written in
//! turn, so that a torn write leaves the other one.

use std::io;

use crate::engine::format::index_header::HeaderCopy;
use crate::engine::format::state::{FILE_LEN, SECTOR, Sector, decode, encode};
use crate::limits::Limits;
use crate::sys::fork::OwnFile;
use crate::sys::step;
use crate::sys::storage::{File, SMALL_PIECES};

pub(crate) struct StateFile {
    file: OwnFile,
    turn: u64,
    /// The index's header when the directory was closed; `None` if it was not.
    clean: Option<HeaderCopy>,
    limits: Option<Limits>,
    snapshot: u64,
}

impl StateFile {
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

    /// Says durably that the directory is in use with these limits, before anything in it is
    /// changed.
    pub(crate) fn mark_open(&mut self, limits: Limits) -> io::Result<()> {
        self.write(None, limits, self.snapshot)
    }

    /// The lowest number that the current snapshot can have; 0 if there was none yet. `None` if
    /// nothing is known.
    pub(crate) fn snapshot(&self) -> Option<u64> {
        self.limits.is_some().then_some(self.snapshot)
    }

    /// Says durably that snapshot `number` counts and no older one. Only then may segments be
    /// removed that an older snapshot needs.
    pub(crate) fn set_snapshot(&mut self, number: u64, limits: Limits) -> io::Result<()> {
        self.write(None, limits, number)
    }

    /// Says durably that the directory was closed with an index whose header is `header`.
    /// Everything else is on the disk already.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::index_header::HEADER_WORDS;
    use crate::engine::format::state::CHECKED;

    const LIMITS: Limits = Limits { max_entries: 5, cull_frequency: 3, max_bytes: 1 << 20 };

    fn reopen(file: &File) -> StateFile {
        StateFile::open(file.try_clone().unwrap()).unwrap()
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
