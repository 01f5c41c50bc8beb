//! How an onlooker notices that the index which it sees is not the one that counts any more.
//!
//! Whoever makes the index anew, since nobody closed it or it has to have another size, gives up the file that was there:
//! counts that in its header, then unlinks it. An onlooker may have it mapped, and goes by the count: nothing is written in
//! the new index before the old one is given up, and no mapped file gets shorter. A file that nobody watches is written over:
//! that takes no space beside it.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::engine::format::index_header::{HEADER_WORDS, RETIRED};
use crate::sys::map::Map;
use crate::sys::storage::{File, Storage};
use crate::sys::{lock, step};

/// The byte of an index that its onlookers share.
const WATCHED: i64 = 0;

/// An eye on the file of an index.
#[derive(Debug)]
pub(crate) struct Watch {
    header: Map,
    seen: u64,
}

impl Watch {
    /// Watches `file`, which nobody gives up while this is called. Its lock is had for as long as this or any other map of
    /// the same open file lives, here or in a process that was forked.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        if !lock::try_share(file, WATCHED)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let header = Map::to_read(file, HEADER_WORDS * 8)?;
        let seen = header.words()[RETIRED].load(Ordering::Acquire);
        Ok(Self { header, seen })
    }

    /// Whether the file was given up since.
    #[inline]
    pub(crate) fn is_retired(&self) -> bool {
        self.header.words()[RETIRED].load(Ordering::Acquire) != self.seen
    }
}

/// Removes the file at `path`, if anybody watches it: after they have been told.
/// Keeps invariant I29.
pub(crate) fn remove_if_watched(storage: &'static dyn Storage, path: &Path) -> io::Result<()> {
    let old = match storage.open(path) {
        Ok(old) => old,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // Nobody begins to meanwhile: the attach mutex is held.
    if !lock::is_held(&old, WATCHED)? {
        return Ok(());
    }
    give_up(&old)?;
    step!("recovery::given_up");
    storage.remove(path)?;
    step!("recovery::removed");
    Ok(())
}

/// Tells all who watch `file` that it is about to be removed.
fn give_up(file: &File) -> io::Result<()> {
    let (mut count, place) = ([0; 8], RETIRED as u64 * 8);
    match file.read_exact_at(&mut count, place) {
        // Nobody watches a file that was never filled.
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
    fn each_giving_up_is_seen() {
        let file = File::nameless().unwrap();
        assert!(Watch::new(&file).is_err(), "there is nothing to watch");
        file.set_len(4096).unwrap();
        for _ in 0..3 {
            let watch = Watch::new(&file).unwrap();
            assert!(!watch.is_retired());
            give_up(&file).unwrap();
            assert!(watch.is_retired());
        }
    }

    #[test]
    fn what_nobody_watches_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        remove_if_watched(SYSTEM, &path).unwrap();
        SYSTEM.create(&path).unwrap().set_len(4096).unwrap();
        remove_if_watched(SYSTEM, &path).unwrap();
        // As long as any map of the file is there that was watched, and whatever becomes of the descriptor.
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
