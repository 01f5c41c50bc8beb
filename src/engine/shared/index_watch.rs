//! How an observer notices that the index which it maps was replaced.
//!
//! A process that rebuilds the index, after a crash or for another size, retires the old file if an
//! observer watches it: it increments a count in the file's header, then unlinks the file. The
//! observer compares the count at each call. Nothing is written to the new index before the old one
//! is retired, and no mapped file is truncated. A file without observers is overwritten, which
//! needs no space for a second file.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::engine::format::index_header::{HEADER_WORDS, RETIRED};
use crate::sys::map::Map;
use crate::sys::storage::{File, Storage};
use crate::sys::{lock, step};

/// The byte of the index file that observers lock, shared.
const WATCHED: i64 = 0;

/// Watches the file of an index.
#[derive(Debug)]
pub(crate) struct Watch {
    header: Map,
    seen: u64,
}

impl Watch {
    /// Watches `file`; the caller ensures that it is not retired during the call. The lock is held
    /// while this or any other mapping of the same open file exists, here or in a forked process.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        if !lock::try_share(file, WATCHED)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let header = Map::to_read(file, HEADER_WORDS * 8)?;
        let seen = header.words()[RETIRED].load(Ordering::Acquire);
        Ok(Self { header, seen })
    }

    /// Whether the file was retired since.
    #[inline]
    pub(crate) fn is_retired(&self) -> bool {
        self.header.words()[RETIRED].load(Ordering::Acquire) != self.seen
    }
}

/// Retires and removes the file at `path`, if an observer watches it.
/// Keeps invariant I29.
pub(crate) fn remove_if_watched(storage: &'static dyn Storage, path: &Path) -> io::Result<()> {
    let old = match storage.open(path) {
        Ok(old) => old,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // No observer begins to watch it meanwhile: the attach mutex is held.
    if !lock::is_held(&old, WATCHED)? {
        return Ok(());
    }
    retire(&old)?;
    step!("recovery::retired");
    storage.remove(path)?;
    step!("recovery::removed");
    Ok(())
}

/// Marks `file` as retired, for its observers.
fn retire(file: &File) -> io::Result<()> {
    let (mut count, place) = ([0; 8], RETIRED as u64 * 8);
    match file.read_exact_at(&mut count, place) {
        // A file that was never filled has no observers.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        read => {
            read?;
            file.write_at(&u64::from_le_bytes(count).wrapping_add(1).to_le_bytes(), place)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::storage::SYSTEM;

    #[test]
    fn each_retirement_is_seen() {
        let file = File::nameless().unwrap();
        assert!(Watch::new(&file).is_err(), "there is nothing to watch");
        file.set_len(4096).unwrap();
        for _ in 0..3 {
            let watch = Watch::new(&file).unwrap();
            assert!(!watch.is_retired());
            retire(&file).unwrap();
            assert!(watch.is_retired());
        }
    }

    #[test]
    fn a_file_without_observers_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        remove_if_watched(SYSTEM, &path).unwrap();
        SYSTEM.create(&path).unwrap().set_len(4096).unwrap();
        remove_if_watched(SYSTEM, &path).unwrap();
        // It is watched while any mapping of it exists, also after the descriptor is closed.
        let file = SYSTEM.open_to_read(&path).unwrap();
        let watch = Watch::new(&file).unwrap();
        let map = Map::to_read(&file, 4096).unwrap();
        drop((watch, file));
        remove_if_watched(SYSTEM, &path).unwrap();
        assert!(!path.exists());
        drop(map);
        SYSTEM.create(&path).unwrap().set_len(4096).unwrap();
        drop(Watch::new(&SYSTEM.open_to_read(&path).unwrap()).unwrap());
        remove_if_watched(SYSTEM, &path).unwrap();
        assert!(path.exists());
    }
}
