//! The file `stats`: the counters of each process, for the others to read. It has a line of 128
//! bytes for each process number, written each second and at detach. Line 0 has the sums of the
//! processes that have detached. Nothing depends on the file.
//!
//! ```text
//! 0 owner  1 process id  2 time of the attach, in ms since 1970  3 hot bytes  4 pinned bytes
//! 5 to 15  the counters, in the order of `counters`
//! ```
//!
//! The line of a killed process stays, and is added to line 0 when its number is used again. A
//! process that attaches or detaches holds the attach mutex, so one process at a time changes line
//! 0.

use std::io;
use std::path::PathBuf;

use crate::entry::Stats;
use crate::error::{Error, Result};
use crate::sys::fork::OwnFile;
use crate::sys::storage::Storage;
use crate::time::Timestamp;

pub(crate) const WORDS: usize = 16;
const LEN: usize = WORDS * 8;
const COUNTERS: usize = 11;
const _: () = assert!(5 + COUNTERS == WORDS);

pub(crate) type StatsLine = [u64; WORDS];

/// The file, and this process's line in it.
pub(crate) struct StatsFile {
    pub(crate) path: PathBuf,
    /// `None` for an observer that found no file.
    file: Option<OwnFile>,
    /// The line of this process; `None` for an observer, which has none.
    pub(crate) number: Option<u32>,
    owner: u32,
    pub(crate) started: Timestamp,
}

impl StatsFile {
    /// Opens the file for the process with this `number` and `owner`. `is_first`: no other process
    /// is attached, and all counters start at 0.
    pub(crate) fn open(
        storage: &'static dyn Storage,
        path: PathBuf,
        number: u32,
        owner: u32,
        started: Timestamp,
        is_first: bool,
    ) -> Result<Self> {
        let io_error = |e| Error::io("open", &path, e);
        let (file, _) = storage.open_or_create(&path).map_err(io_error)?;
        if is_first {
            file.set_len(0).map_err(io_error)?;
        }
        let stats_file =
            Self { path, file: Some(OwnFile::new(file)), number: Some(number), owner, started };
        if !is_first {
            stats_file.add_to_departed();
        }
        Ok(stats_file)
    }

    /// Opens the file for an observer.
    pub(crate) fn look(
        storage: &'static dyn Storage,
        path: PathBuf,
        started: Timestamp,
    ) -> Result<Self> {
        let file = match storage.open_to_read(&path) {
            Ok(file) => Some(OwnFile::new(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        Ok(Self { path, file, number: None, owner: 0, started })
    }

    /// Writes the counters of this process.
    pub(crate) fn publish(&self, stats: &Stats) {
        let Some(number) = self.number else { return };
        let mut line = [0; WORDS];
        line[..5].copy_from_slice(&[
            u64::from(self.owner),
            u64::from(std::process::id()),
            self.started.as_millis(),
            stats.hot_bytes,
            stats.pinned_bytes,
        ]);
        line[5..].copy_from_slice(&counters(&mut stats.clone()).map(|counter| *counter));
        self.write(number, &line);
    }

    /// Writes the counters of this process, which detaches, and adds them to line 0. The attach
    /// mutex is held.
    pub(crate) fn leave(&self, stats: &Stats) {
        self.publish(stats);
        self.add_to_departed();
    }

    /// Adds the line of this number to line 0, and clears it.
    fn add_to_departed(&self) {
        let (Some(number), Ok(lines)) = (self.number, self.lines()) else { return };
        let Some(line) = lines.get(number as usize).filter(|line| line[0] != 0) else { return };
        let mut left = lines[0];
        left[5..].iter_mut().zip(&line[5..]).for_each(|(sum, n)| *sum = sum.saturating_add(*n));
        // In this order: a kill in between loses the counters; it does not count them twice.
        self.write(number, &[0; WORDS]);
        self.write(0, &left);
    }

    fn write(&self, number: u32, line: &StatsLine) {
        let Some(file) = &self.file else { return };
        let bytes: Vec<u8> = line.iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Err(error) = file.write_at(&bytes, u64::from(number) * LEN as u64) {
            tracing::debug!(path = %self.path.display(), %error, "cannot write the statistics");
        }
    }

    /// All lines, by number.
    pub(crate) fn lines(&self) -> io::Result<Vec<StatsLine>> {
        /// The length of the file with all lines.
        const MOST: u64 =
            (crate::engine::format::index_header::MOST_PROCESSES as u64 + 1) * LEN as u64;
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        // The first process to attach truncates it, perhaps meanwhile.
        let bytes = file.read_up_to(MOST)?;
        let word = |word: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| word[i]));
        let line = |line: &[u8]| std::array::from_fn(|i| word(&line[i * 8..i * 8 + 8]));
        Ok(bytes.chunks_exact(LEN).map(line).collect())
    }
}

/// The counters of `stats`.
fn counters(stats: &mut Stats) -> [&mut u64; COUNTERS] {
    [
        &mut stats.hits,
        &mut stats.misses,
        &mut stats.hot_hits,
        &mut stats.commits,
        &mut stats.evicted,
        &mut stats.expired,
        &mut stats.corrupt,
        &mut stats.written_bytes,
        &mut stats.copied_bytes,
        &mut stats.store_failures,
        &mut stats.refresh_failures,
    ]
}

pub(crate) fn add(line: &StatsLine, to: &mut Stats) {
    counters(to).into_iter().zip(&line[5..]).for_each(|(sum, n)| *sum = sum.saturating_add(*n));
}
