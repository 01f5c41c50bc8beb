//! Who uses a directory, and whether a process may join them.
//!
//! A process that is attached with number n holds three locks:
//!
//! ```text
//! byte n of `locks`, exclusively      it is alive
//! byte n of `index`, exclusively      it uses this very file
//! a byte of the directory, shared     it is there, whatever becomes of the files
//! ```
//!
//! The files may be removed or replaced while it is attached. Then a process that opens the
//! directory finds other files than those in use, and must neither join nor begin alone:
//!
//! ```text
//! no other process holds the directory                       begin; other locks prove nothing
//! some process holds its byte in `locks` and in `index`,
//! its row says that it is attached, and `index` is not
//! abandoned                                                  join
//! otherwise                                                  wait: those that use the directory
//!                                                            notice the change within a second
//! ```
//!
//! Of `locks` and `index` only exclusive locks count: a shared lock may be that of any program that
//! may read the file.

use std::io;
use std::time::{Duration, Instant};

use crate::engine::format::index_header::{ATTACH_AT, ATTACH_ROW_WORDS, MOST_PROCESSES, at};
use crate::engine::index::{ATTACHED, Index};
use crate::engine::lifecycle::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fork::OwnFile;
use crate::sys::lock;
use crate::sys::storage::{Access, File, HeldDirectory, is_unusable};

/// Longer than a process needs to notice that files were removed or replaced.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// Who else uses a directory.
enum Occupancy {
    /// No other process.
    Free,
    /// Processes that can be joined.
    Shared,
    /// Processes that cannot be joined, for this reason.
    Other(&'static str),
}

const OTHER_LOCKS: &str = "processes use the directory, but not through its file `locks`, which \
                           was removed or replaced; they notice that within a second, unless they \
                           are stopped (fuser -v DIR)";
const OTHER_INDEX: &str = "processes use the directory, but not its file `index`, or they are \
                           about to leave because a file was removed or replaced; that takes a \
                           second, unless they are stopped (fuser -v DIR)";

/// Takes the attach mutex of `directory`. Returns the lock file, and whether this process joins
/// others.
///
/// # Errors
/// `Busy` if another process holds the mutex for a minute, or if processes that cannot be joined
/// stay for ten seconds.
pub(crate) fn enter(directory: &Directory, held: &HeldDirectory) -> Result<(OwnFile, bool)> {
    let at_directory = |e| Error::io("lock", &directory.path, e);
    wait(directory, || {
        let locks = directory.enter(Access::ToWrite)?;
        let is_marked = held.mark_in_use().map_err(at_directory)?;
        let occupancy = look(directory, held, &locks, is_marked)?;
        if let Occupancy::Other(_) = occupancy {
            // Or two processes that came by different files `locks` would wait for each other.
            held.unmark().map_err(at_directory)?;
        }
        Ok((locks, occupancy))
    })
}

/// The same for an observer, which shares the mutex and marks nothing.
pub(crate) fn enter_to_read(
    directory: &Directory,
    held: &HeldDirectory,
) -> Result<(OwnFile, bool)> {
    wait(directory, || {
        let locks = directory.enter(Access::ToRead)?;
        let occupancy = look(directory, held, &locks, true)?;
        Ok((locks, occupancy))
    })
}

fn wait(
    directory: &Directory,
    mut enter: impl FnMut() -> Result<(OwnFile, Occupancy)>,
) -> Result<(OwnFile, bool)> {
    let started = Instant::now();
    loop {
        let (locks, occupancy) = enter()?;
        match occupancy {
            Occupancy::Free => return Ok((locks, false)),
            Occupancy::Shared => return Ok((locks, true)),
            Occupancy::Other(why) if started.elapsed() > PATIENCE => {
                let error = Error::new(ErrorKind::Busy, "open").with_path(&directory.path);
                return Err(error.with_source(why));
            }
            // Closes `locks`, and with it releases the mutex.
            Occupancy::Other(_) => drop(locks),
        }
        std::thread::sleep(PAUSE);
    }
}

/// Keeps invariant I40.
fn look(
    directory: &Directory,
    held: &HeldDirectory,
    locks: &File,
    is_marked: bool,
) -> Result<Occupancy> {
    let at_locks = |e| Error::io("lock", &directory.file("locks"), e);
    let numbers = lock::owned(locks, 1, i64::from(MOST_PROCESSES)).map_err(at_locks)?;
    let numbers: Vec<i64> = numbers.collect();
    // A test goes by `locks` alone, and must find that this loses entries.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("presence::careless", |_| {
        Ok(if numbers.is_empty() { Occupancy::Free } else { Occupancy::Shared })
    });
    let is_used = if is_marked {
        held.is_in_use().map_err(|e| Error::io("lock", &directory.path, e))?
    } else {
        // The file system has no locks on directories.
        !numbers.is_empty()
    };
    if !is_used {
        if !numbers.is_empty() {
            let dir = directory.path.display();
            tracing::warn!(%dir, ?numbers, "ignored locks of another program in `locks`");
        }
        return Ok(Occupancy::Free);
    }
    if numbers.is_empty() {
        return Ok(Occupancy::Other(OTHER_LOCKS));
    }
    let path = directory.file("index");
    let can_join = match directory.storage.open_to_read(&path) {
        Ok(index) => is_used_by(&index, numbers),
        Err(e) if is_unusable(&e) => Ok(false),
        Err(e) => Err(e),
    };
    let can_join = can_join.map_err(|e| Error::io("open", &path, e))?;
    Ok(if can_join { Occupancy::Shared } else { Occupancy::Other(OTHER_INDEX) })
}

/// Whether one of the processes with these `numbers`, which hold their bytes of `locks`, uses the
/// index in `file`: it holds the same byte there, and its row says that it is attached.
fn is_used_by(file: &File, numbers: impl IntoIterator<Item = i64>) -> io::Result<bool> {
    if word_in(file, at::ABANDONED)? != 0 {
        return Ok(false);
    }
    for number in numbers {
        let Ok(row) = u32::try_from(number) else { continue };
        if lock::is_owned(file, number)? && row_in(file, row)? & ATTACHED != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first word of the row of process `number` in the index in `file`.
fn row_in(file: &File, number: u32) -> io::Result<u64> {
    word_in(file, ATTACH_AT + (number.max(1) - 1) as usize * ATTACH_ROW_WORDS)
}

/// A word of the index in `file`; 0 if the file ends before.
fn word_in(file: &File, at: usize) -> io::Result<u64> {
    let mut word = [0; 8];
    file.read_at(&mut word, at as u64 * 8)?;
    Ok(u64::from_le_bytes(word))
}

/// Locks the byte of this process in the file of the index that it has mapped.
///
/// # Errors
/// `Busy` if the file was replaced since; or if the system refuses.
pub(crate) fn hold_index(directory: &Directory, index: &Index, number: u32) -> Result<OwnFile> {
    let path = directory.file("index");
    let hold = || -> io::Result<Option<OwnFile>> {
        let file = OwnFile::to_lock(|| directory.storage.open(&path))?;
        // It is the file that is mapped if it has the row of this process.
        let is_mapped = row_in(&file, number)? == index.own_word();
        let held = is_mapped && lock::try_lock(&file, i64::from(number))?;
        Ok(held.then_some(file))
    };
    hold().map_err(|e| Error::io("open", &path, e))?.ok_or_else(|| {
        let why = "the file was replaced while it was being opened";
        Error::new(ErrorKind::Busy, "open").with_path(&path).with_source(why)
    })
}
