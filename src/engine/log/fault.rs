//! Segments of whose map a page faulted, where the program contains such faults.

use std::io;

use super::Log;
use crate::engine::log::segment::Segment;
use crate::error::{Error, Result};
use crate::sys::storage::Access;

impl Log {
    /// Retires a segment of whose map a page faulted: nothing is appended to it any more, it is
    /// emptied as one whose sync failed, and it is mapped again when it is read next.
    pub(super) fn retire_faulted(&self, segment: &Segment) {
        let path = segment.path.display();
        tracing::error!(%path, "a page of a mapped segment faulted; the segment is retired");
        if self.access == Access::ToWrite {
            self.index.set_segment_failed(segment.id);
        }
        drop(self.map.remove(segment.id));
    }
}

impl Segment {
    /// Fails if a page of its map faulted, while something may rely on what it did not hold.
    pub(crate) fn check_mapped(&self) -> Result<()> {
        if !self.has_faulted() {
            return Ok(());
        }
        let why = "a page of the mapped file could not be read (SIGBUS)";
        Err(Error::io("read", &self.path, io::Error::other(why)))
    }

    /// Removes a record whose bytes met a fault from the file, if they reached it. Returns the
    /// error of its write: what the system says of the file, or that it does not say anything.
    #[cold]
    pub(crate) fn withdraw(&self, offset: u32) -> Error {
        self.void(offset);
        let written = self.file().map_or(Ok(()), |file| {
            if file.len()? < self.len() {
                let why = "another program truncated the file";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            file.write_at(&[0; 4], u64::from(offset) + 4)
        });
        let cause = written.err().unwrap_or_else(|| {
            io::Error::other("a page of the mapped file could not be written (SIGBUS)")
        });
        Error::io("write", &self.path, cause)
    }
}
