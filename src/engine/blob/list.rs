//! The list of what names each blob, left by a clean end so that the next attach need not look for it.
//!
//! ```text
//! 0  magic u64   8  next sequence u64   16  owners: name u128, hash u64, word u64   ..  CRC-32 u32
//! ```

use std::io::{self, Read as _};

use super::{Blobs, Word};
use crate::error::{Error, Result};
use crate::sys::file;

const MAGIC: u64 = u64::from_le_bytes(*b"KWblobs1");
const HEADER: usize = 16;
const OWNER: usize = 32;
const NAME: &str = "list";
/// More blobs than this many bytes can name nobody has.
const LONGEST: u64 = 1 << 30;

impl Blobs {
    /// Writes down, durably, what names the blobs, at the clean end whose next sequence this is.
    pub(crate) fn save(&self, sequence: u64) -> Result<()> {
        let path = self.dir.join(NAME);
        let owners = self.owners();
        if owners.is_empty() && !path.exists() {
            return Ok(());
        }
        let mut bytes = [MAGIC.to_le_bytes(), sequence.to_le_bytes()].concat();
        for (name, (hash, word)) in owners {
            bytes.extend_from_slice(&name.to_le_bytes());
            bytes.extend_from_slice(&hash.to_le_bytes());
            bytes.extend_from_slice(&word.0.to_le_bytes());
        }
        let check = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        file::replace(&path, &bytes).map_err(|e| Error::io("write", &path, e))
    }

    /// Takes over the list of the clean end whose next sequence this is. `false` if there are blobs and no such
    /// list: what names them must be looked for.
    pub(crate) fn load(&self, sequence: u64) -> Result<bool> {
        if self.lock().is_empty() {
            return Ok(true);
        }
        let path = self.dir.join(NAME);
        let mut bytes = Vec::new();
        let read = file::open_to_read(&path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
        match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::InvalidInput => {
                return Ok(false);
            }
            read => read.map_err(|e| Error::io("open", &path, e))?,
        };
        let Some((checked, check)) = bytes.split_last_chunk::<4>() else { return Ok(false) };
        let (Some((header, owners)), true) =
            (checked.split_at_checked(HEADER), crc32fast::hash(checked).to_le_bytes() == *check)
        else {
            return Ok(false);
        };
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if (word(header, 0), word(header, 8)) != (MAGIC, sequence) {
            return Ok(false);
        }
        for owner in owners.chunks_exact(OWNER) {
            let name = u128::from(word(owner, 8)) << 64 | u128::from(word(owner, 0));
            self.adopt(name, (word(owner, 16), Word(word(owner, 24))));
        }
        Ok(true)
    }

    /// Removes the blobs that nothing names, at an attach.
    pub(crate) fn remove_orphans(&self) {
        let orphans = self.take_dead(|_| true);
        self.release(&orphans);
    }
}
