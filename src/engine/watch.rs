//! How an onlooker notices that the index which it sees is not the one that counts any more.
//!
//! Whoever makes the index anew, since nobody closed it or it has to have another size, gives up the file that was there:
//! counts that in its header, then unlinks it. An onlooker may have it mapped, and goes by the count: nothing is written in
//! the new index before the old one is given up, and no mapped file gets shorter.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use super::index::{GIVEN_UP, HEADER_WORDS};
use crate::sys::file;
use crate::sys::map::Map;

/// An eye on the file of an index.
#[derive(Debug)]
pub(crate) struct Watch {
    header: Map,
    seen: u64,
}

impl Watch {
    /// Watches `file`, which nobody gives up while this is called.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let header = Map::to_read(file, HEADER_WORDS * 8)?;
        let seen = header.words()[GIVEN_UP].load(Ordering::Acquire);
        Ok(Self { header, seen })
    }

    /// Whether the file was given up since.
    #[inline]
    pub(crate) fn is_given_up(&self) -> bool {
        self.header.words()[GIVEN_UP].load(Ordering::Acquire) != self.seen
    }
}

/// Tells all who watch `file` that it is about to be removed.
pub(crate) fn give_up(file: &File) -> io::Result<()> {
    let (mut count, place) = ([0; 8], GIVEN_UP as u64 * 8);
    match file::read_at(file, &mut count, place) {
        // Nobody watches a file that was never filled.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        read => {
            read?;
            file::write_at(file, &u64::from_le_bytes(count).wrapping_add(1).to_le_bytes(), place)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_giving_up_is_seen() {
        let file = tempfile::tempfile().unwrap();
        assert!(Watch::new(&file).is_err(), "there is nothing to watch");
        file.set_len(4096).unwrap();
        for _ in 0..3 {
            let watch = Watch::new(&file).unwrap();
            assert!(!watch.is_given_up());
            give_up(&file).unwrap();
            assert!(watch.is_given_up());
        }
    }
}
