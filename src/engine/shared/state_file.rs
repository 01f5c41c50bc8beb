//! The file `state`, opened: reads and writes its two sectors
//! ([`format::state`](crate::engine::format::state)) alternately, so a torn write leaves the other
//! one.

use std::io;

use crate::engine::format::index_header::HeaderCopy;
use crate::engine::format::state::{FILE_LEN, SECTOR, Sector, decode, encode};
use crate::limits::Limits;
use crate::sys::fork::OwnFile;
use crate::sys::step;
use crate::sys::storage::{File, SMALL_PIECES};

pub(crate) struct StateFile {
    file: OwnFile,
    version: u64,
    /// The header of the index when the directory was closed; `None` if it was not closed.
    clean: Option<HeaderCopy>,
    limits: Option<Limits>,
    snapshot: u64,
}

impl StateFile {
    /// Reads the newer valid sector. If there is none, the directory was not closed.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        if file.len()? != FILE_LEN {
            file.reset(FILE_LEN, SMALL_PIECES)?;
        }
        Self::read(file)
    }

    /// The same for a file that may only be read. A file that is too short has no valid sector.
    pub(crate) fn read(file: File) -> io::Result<Self> {
        let mut state =
            Self { file: OwnFile::new(file), version: 0, clean: None, limits: None, snapshot: 0 };
        match state.refresh() {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(e),
            _ => Ok(state),
        }
    }

    /// Reads again, because other processes may have written. One process at a time writes.
    pub(crate) fn refresh(&mut self) -> io::Result<()> {
        let state = self;
        for number in 0..2 {
            let mut sector = [0; SECTOR];
            state.file.read_exact_at(&mut sector, number * SECTOR as u64)?;
            if let Some(Sector { version, clean, limits, snapshot }) = decode(&sector)
                && version >= state.version
            {
                (state.version, state.clean, state.limits) = (version, clean, Some(limits));
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

    /// Notes durably that the directory is open, with these limits. Must come before any change.
    pub(crate) fn mark_open(&mut self, limits: Limits) -> io::Result<()> {
        self.write(None, limits, self.snapshot)
    }

    /// The lowest number that the current snapshot can have; 0 if there is none yet. `None` if no
    /// sector was valid.
    pub(crate) fn snapshot(&self) -> Option<u64> {
        self.limits.is_some().then_some(self.snapshot)
    }

    /// Notes durably that snapshot `number` is the current one. Only then may segments be
    /// removed that an older snapshot needs.
    pub(crate) fn set_snapshot(&mut self, number: u64, limits: Limits) -> io::Result<()> {
        self.write(None, limits, number)
    }

    /// Notes durably that the directory was closed with an index whose header is `header`.
    /// Everything else must be durable already.
    pub(crate) fn mark_clean(&mut self, header: HeaderCopy, limits: Limits) -> io::Result<()> {
        self.write(Some(header), limits, self.snapshot)
    }

    fn write(
        &mut self,
        clean: Option<HeaderCopy>,
        limits: Limits,
        snapshot: u64,
    ) -> io::Result<()> {
        let sector = Sector { version: self.version.wrapping_add(1), clean, limits, snapshot };
        step!("state::writing");
        self.file.write_at(&encode(&sector), sector.version % 2 * SECTOR as u64)?;
        step!("state::written");
        self.file.sync()?;
        (self.version, self.clean, self.limits) = (sector.version, clean, Some(limits));
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
            let (offset, mut byte) = ((state.version % 2) * SECTOR as u64 + at as u64, [0]);
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_at(&[byte[0] ^ 0xff], offset).unwrap();
            let clean = reopen(&file).clean().is_some();
            assert_eq!(clean, at >= CHECKED + 4, "byte {at}");
            file.write_at(&byte, offset).unwrap();
        }
    }
}
