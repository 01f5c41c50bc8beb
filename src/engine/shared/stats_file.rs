//! `stats`: what each process has counted, for the others to see. 128 bytes for each number of a process, written each second and
//! when the process leaves; those of number 0 are what processes counted that have left. Nothing depends on it.
//!
//! ```text
//! 0 what names the process  1 its id  2 when it came, in milliseconds since 1970  3 hot bytes  4 pinned bytes
//! 5 to 15  the counters, in the order of `counters`
//! ```
//!
//! What a process that was killed counted stays where it is, and goes to number 0 when its number is given out again.
//! Whoever attaches or leaves holds the attach mutex, so one at a time changes number 0.

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

/// The file, and the line in it that is this process's.
pub(crate) struct StatsFile {
    pub(crate) path: PathBuf,
    /// An onlooker may find none.
    file: Option<OwnFile>,
    /// The line of this process; `None` of an onlooker, who shows nothing.
    pub(crate) number: Option<u32>,
    owner: u32,
    pub(crate) started: Timestamp,
}

impl StatsFile {
    /// Opens the file for the process of this `number`, called `owner`. `is_first`: nobody else is attached, and counting
    /// begins anew.
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
        let published =
            Self { path, file: Some(OwnFile::new(file)), number: Some(number), owner, started };
        if !is_first {
            published.bury();
        }
        Ok(published)
    }

    /// Opens the file for an onlooker.
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

    /// Shows others what this process has counted so far.
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

    /// The process leaves; what it counted stays. The attach mutex is held.
    pub(crate) fn leave(&self, stats: &Stats) {
        self.publish(stats);
        self.bury();
    }

    /// Adds what is in the line of this number to what processes counted that have left.
    fn bury(&self) {
        let (Some(number), Ok(lines)) = (self.number, self.lines()) else { return };
        let Some(line) = lines.get(number as usize).filter(|line| line[0] != 0) else { return };
        let mut left = lines[0];
        left[5..].iter_mut().zip(&line[5..]).for_each(|(sum, n)| *sum = sum.saturating_add(*n));
        // In this order: who is killed in between is not counted twice.
        self.write(number, &[0; WORDS]);
        self.write(0, &left);
    }

    fn write(&self, number: u32, line: &StatsLine) {
        let Some(file) = &self.file else { return };
        let bytes: Vec<u8> = line.iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Err(error) = file.write_at(&bytes, u64::from(number) * LEN as u64) {
            tracing::debug!(path = %self.path.display(), %error, "the statistics cannot be written");
        }
    }

    /// All lines, by number.
    pub(crate) fn lines(&self) -> io::Result<Vec<StatsLine>> {
        /// As many as there can be.
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
