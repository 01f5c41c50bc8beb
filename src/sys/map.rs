//! Files mapped into memory, shared with every other process that maps them.
#![expect(unsafe_code, reason = "shared memory is accessed through raw pointers")]

use std::io;
use std::sync::atomic::AtomicU32;

use memmap2::MmapOptions;

use super::atomic::AtomicU64;
use super::storage::{Access, File, Mapping, SYSTEM, Storage};

#[cfg(target_endian = "big")]
compile_error!(
    "keepwarm maps little-endian words and supports little-endian machines only for now"
);

/// A file mapped into memory, for reading and writing or for reading only.
///
/// Other threads and processes share the bytes of a map. Two kinds of access keep that sound:
/// atomic words ([`words`](Map::words), [`word32`](Map::word32)) for data that changes, and plain
/// bytes ([`bytes`](Map::bytes), [`fill`](Map::fill)) for data that is written once, before an
/// atomic word publishes it.
#[derive(Debug)]
pub(crate) struct Map {
    mapping: Mapping,
    /// What its file was opened on.
    storage: &'static dyn Storage,
}

impl Map {
    /// Maps the first `len` bytes of `file` for reading and writing. Fails if the file is shorter.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
        Self::open(file, len, Access::ToWrite)
    }

    /// Maps the first `len` bytes of `file` for reading only. The caller must store nothing in the
    /// map, neither by [`fill`](Map::fill) nor through an atomic word: that would be a page fault.
    pub(crate) fn to_read(file: &File, len: usize) -> io::Result<Self> {
        Self::open(file, len, Access::ToRead)
    }

    /// Maps the first `len` bytes of `file` with `access`.
    pub(crate) fn open(file: &File, len: usize, access: Access) -> io::Result<Self> {
        let storage = file.storage();
        Ok(Self { mapping: storage.map(file.os(), len, access)?, storage })
    }

    /// Maps `len` bytes of zeros that belong to no file.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let mapping = Mapping {
            raw: MmapOptions::new().len(len).map_anon()?.into(),
            #[cfg(feature = "failpoints")]
            inode: 0,
        };
        Ok(Self { mapping, storage: SYSTEM })
    }

    /// The length of the map, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.mapping.raw.len()
    }

    /// The whole map as atomic words of 8 bytes.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, lives as long as `self`, is readable, and `len / 8`
        // words lie within it. It is writable, or its creator only loads from it, which is a plain
        // load of the processor. Any code that uses atomics may share these words. Code with plain
        // access (`bytes`, `fill`) touches only ranges that no code reads or writes as words at
        // that time.
        unsafe {
            std::slice::from_raw_parts(self.mapping.raw.as_ptr().cast(), self.mapping.raw.len() / 8)
        }
    }

    /// The 32-bit word at `offset`, which must be a multiple of 4; `None` beyond the end.
    pub(crate) fn word32(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset.checked_add(4)? > self.len() {
            return None;
        }
        // SAFETY: in bounds and aligned as just checked (the map itself is page-aligned); see
        // `words`.
        Some(unsafe { &*self.mapping.raw.as_ptr().add(offset).cast::<AtomicU32>() })
    }

    /// `len` bytes from `offset`; `None` beyond the end of the map.
    ///
    /// For ranges that were written before a word with their offset was published, and that are
    /// never written again. A damaged word can point to other bytes, even to bytes that are being
    /// written. Then this returns garbage, and the checksum that every reader verifies detects it.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len)? > self.len() {
            return None;
        }
        // SAFETY: in bounds as just checked, and mapped for as long as `self` lives. Records are
        // written once, before they are published, and files are never truncated while they are
        // mapped.
        Some(unsafe { std::slice::from_raw_parts(self.mapping.raw.as_ptr().add(offset), len) })
    }

    /// Copies `bytes` to `offset`, and returns whether they fit; if not, nothing is written. The
    /// caller must own the range: it has reserved it, and has not published it yet.
    #[must_use]
    pub(crate) fn fill(&self, offset: usize, bytes: &[u8]) -> bool {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len());
        if fits {
            // SAFETY: in bounds as just checked. No other code writes the range, because the caller
            // reserved it, or reads it before it is published. `bytes` cannot overlap it, because a
            // `&[u8]` into this map covers a published range.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    self.mapping.raw.as_mut_ptr().add(offset),
                    bytes.len(),
                );
            }
        }
        fits
    }

    /// The address of the mapping, for [`prefetch`].
    pub(crate) fn address(&self) -> usize {
        self.mapping.raw.as_ptr().addr()
    }

    /// Prefetches the cache line at `offset`. Costs next to nothing, also if it is not used.
    pub(crate) fn prefetch(&self, offset: usize) {
        if offset < self.len() {
            prefetch(self.address() + offset, 1);
        }
    }

    /// Writes all changed pages to the disk, and returns when they are there.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.storage.sync_map(&self.mapping)
    }
}

/// Prefetches the cache lines of the `len` bytes at `address`. Lines that are requested together
/// arrive together. Safe for any address: nothing happens if it is not mapped.
pub(crate) fn prefetch(address: usize, len: usize) {
    /// The bytes of a cache line.
    const LINE: usize = 64;
    for at in (0..len).step_by(LINE) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line = std::ptr::without_provenance(address.wrapping_add(at));
            // SAFETY: a prefetch is a hint. It reads nothing that a program can see, and does not
            // fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (address, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_is_bounded() {
        let map = Map::anonymous(4096).unwrap();
        assert!(map.fill(4090, b"abcdef"));
        assert!(!map.fill(4091, b"abcdef"));
        assert!(!map.fill(usize::MAX, b"a"));
        assert_eq!(map.bytes(4090, 6), Some(&b"abcdef"[..]));
        assert_eq!(map.bytes(4091, 6), None);
        assert_eq!(map.bytes(usize::MAX, 2), None);
        assert!(
            map.word32(4092).is_some() && map.word32(4096).is_none() && map.word32(2).is_none()
        );
        assert_eq!(map.words().len(), 512);
        map.prefetch(0);
        map.prefetch(4096);
    }

    #[test]
    fn a_map_shows_its_file_and_is_not_longer() {
        let file = File::nameless().unwrap();
        file.set_len(4096).unwrap();
        let map = Map::new(&file, 4096).unwrap();
        assert!(map.fill(0, b"seen in the file"));
        let mut seen = [0; 4];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"seen");
        assert!(Map::new(&file, 8192).is_err());
    }

    /// One thread fills plain bytes, and another reads them once a word publishes them.
    #[test]
    fn bytes_are_published_by_a_word() {
        use crate::sys::atomic::Ordering;
        let map = Map::anonymous(4096).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for at in 1..64usize {
                    assert!(map.fill(at * 64, &[at as u8; 64]));
                    map.words()[0].store(at as u64, Ordering::Release);
                }
            });
            let mut last = 0;
            while last < 63 {
                let at = map.words()[0].load(Ordering::Acquire) as usize;
                assert!(at >= last);
                if at > 0 {
                    assert_eq!(map.bytes(at * 64, 64), Some(&[at as u8; 64][..]));
                }
                last = at;
            }
        });
    }
}
