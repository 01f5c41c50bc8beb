//! A snapshot file: how a snapshot ([`format::snapshot`](crate::engine::format::snapshot)) is
//! written and read. The header comes last.

use std::io;

use crate::engine::format::snapshot::{BATCH, BLOCK, HEADER_LEN, Header, Packer};
use crate::engine::format::snapshot::{SnapshotPart, read_block};
use crate::engine::format::word::Word;
use crate::sys::step;
use crate::sys::storage::File;

/// Writes one snapshot. It is valid when [`commit`](SnapshotWriter::commit) has returned.
pub(crate) struct SnapshotWriter<'a> {
    file: &'a File,
    len: u64,
    packer: Packer,
}

impl<'a> SnapshotWriter<'a> {
    /// `number` must be greater than that of every other snapshot of the directory.
    pub(crate) fn new(file: &'a File, number: u64) -> io::Result<Self> {
        Ok(Self { file, len: file.len()?, packer: Packer::new(number) })
    }

    /// See [`Packer::chain`].
    pub(crate) fn chain(
        &mut self,
        number: u32,
        primary: &[Word; 7],
        overflow: &[Word],
    ) -> io::Result<()> {
        self.packer.chain(number, primary, overflow);
        self.write_batch()
    }

    /// See [`Packer::segment`].
    pub(crate) fn segment(&mut self, id: u32, from: u32, live_bytes: u64) -> io::Result<()> {
        self.packer.segment(id, from, live_bytes);
        self.write_batch()
    }

    fn write_batch(&mut self) -> io::Result<()> {
        if self.packer.has_batch() { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        let (blocks, at) = self.packer.whole_blocks();
        if at + blocks.len() as u64 > self.len {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "more words than the snapshot has room for",
            ));
        }
        self.file.write_at(blocks, at)?;
        self.packer.take_blocks();
        Ok(())
    }

    /// Writes the rest of the blocks and syncs the file. The snapshot is not valid yet.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.packer.close_block();
        self.write()?;
        step!("snapshot::written");
        self.file.sync()
    }

    /// Writes the header durably, which makes the snapshot valid. Before it must come
    /// [`finish`](SnapshotWriter::finish) and the syncs of the segments that the words name.
    pub(crate) fn commit(self, header: Header) -> io::Result<Header> {
        let header = self.packer.complete(header);
        step!("snapshot::synced");
        self.file.write_at(&header.encode()?, 0)?;
        step!("snapshot::headed");
        self.file.sync()?;
        Ok(header)
    }
}

/// Whether no snapshot was ever written to `file`: all bytes of the header are zero.
pub(crate) fn is_untouched(file: &File) -> io::Result<bool> {
    let mut bytes = [0; HEADER_LEN as usize];
    let there = file.read_at(&mut bytes, 0)?;
    Ok(there == bytes.len() && bytes.iter().all(|byte| *byte == 0))
}

/// The header of the snapshot in `file`, if it is valid.
pub(crate) fn header(file: &File) -> io::Result<Option<Header>> {
    let mut bytes = [0; 256];
    let there = file.read_at(&mut bytes, 0)?;
    Ok(Header::decode(&bytes[..there]))
}

/// Voids the snapshot in `file`, durably.
pub(crate) fn void(file: &File) -> io::Result<()> {
    // Not zeros, which would mean that no snapshot was ever written.
    file.write_at(&[0xff; 16], 0)?;
    file.sync()
}

/// Calls `visit` with the parts of the snapshot in `file`, whose header is `header`. A damaged
/// block is reported as [`SnapshotPart::Damaged`].
pub(crate) fn read(
    file: &File,
    header: &Header,
    mut visit: impl FnMut(SnapshotPart<'_>),
) -> io::Result<()> {
    let there = file.len()?.saturating_sub(HEADER_LEN) / BLOCK as u64;
    if header.blocks > there {
        visit(SnapshotPart::Damaged);
    }
    let blocks = header.blocks.min(there);
    let mut buffer = vec![0; BATCH * BLOCK];
    for batch in (0..blocks).step_by(BATCH) {
        let count = (blocks - batch).min(BATCH as u64) as usize;
        let buffer = &mut buffer[..count * BLOCK];
        file.read_exact_at(buffer, HEADER_LEN + batch * BLOCK as u64)?;
        for (at, block) in buffer.chunks_exact(BLOCK).enumerate() {
            if read_block(header, batch + at as u64, block, &mut visit).is_none() {
                visit(SnapshotPart::Damaged);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::geometry::Geometry;
    use crate::engine::format::snapshot::{check_of, file_len};

    fn words(chain: u32) -> ([Word; 7], Vec<Word>) {
        let word = |slot: u32| {
            if (chain + slot).is_multiple_of(3) {
                Word::EMPTY
            } else {
                Word(u64::from(chain) << 8 | u64::from(slot))
            }
        };
        let overflow = if chain.is_multiple_of(17) {
            (10..40).map(|n| Word(u64::from(chain) << 8 | n)).collect()
        } else {
            vec![]
        };
        (std::array::from_fn(|slot| word(slot as u32)), overflow)
    }

    /// Several blocks full.
    const CHAINS: u32 = if cfg!(miri) { 50 } else { 3000 };

    fn written(chains: u32) -> (File, Header) {
        let file = File::nameless().unwrap();
        file.set_len(file_len(Geometry::for_entries(u64::from(chains) * 6, 16))).unwrap();
        let mut writer = SnapshotWriter::new(&file, 7).unwrap();
        for number in 0..chains {
            let (primary, overflow) = words(number);
            writer.chain(number, &primary, &overflow).unwrap();
        }
        (1..=5).for_each(|id| writer.segment(id, id + 7, u64::from(id) * 1000).unwrap());
        writer.finish().unwrap();
        let header =
            writer.commit(Header { sequence: 99, primaries: chains, ..Header::default() }).unwrap();
        (file, header)
    }

    fn chains_of(file: &File, header: &Header) -> (u32, u32, bool) {
        let (mut good, mut segments, mut damaged) = (0, 0, false);
        read(file, header, |part| match part {
            SnapshotPart::Chain { number, primary, overflow } => {
                let (all, more) = words(number);
                let there: Vec<_> =
                    all.into_iter().enumerate().filter(|(_, w)| *w != Word::EMPTY).collect();
                assert_eq!((primary, overflow), (&there[..], &more[..]), "chain {number}");
                good += 1;
            }
            SnapshotPart::Segment(id, from, live) => {
                assert_eq!((from, live), (id + 7, u64::from(id) * 1000));
                segments += 1;
            }
            SnapshotPart::Damaged => damaged = true,
        })
        .unwrap();
        (good, segments, damaged)
    }

    #[test]
    fn what_was_written_is_read() {
        let (file, written) = written(CHAINS);
        let header = header(&file).unwrap().unwrap();
        assert_eq!(header, written);
        assert_eq!((header.number, header.sequence, header.primaries), (7, 99, CHAINS));
        assert_eq!(chains_of(&file, &header), (CHAINS, 5, false));
    }

    #[test]
    fn a_damaged_block_costs_its_chains_only() {
        let (file, header) = written(3000);
        file.write_at(&[0xa5; 3], HEADER_LEN + BLOCK as u64 * 2 + 5000).unwrap();
        let (good, segments, damaged) = chains_of(&file, &header);
        assert!(damaged && segments == 5 && (2700..3000).contains(&good), "{good}");
    }

    #[test]
    fn a_damaged_header_is_none() {
        let (file, file_header) = written(10);
        for at in 0..file_header.encode().unwrap().len() as u64 {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_at(&[byte[0] ^ 1], at).unwrap();
            assert_eq!(header(&file).unwrap(), None, "byte {at}");
            file.write_at(&byte, at).unwrap();
        }
    }

    #[test]
    fn a_block_that_says_it_has_less_than_a_header_is_damaged() {
        let (file, header) = written(100);
        for used in [0u32, 4, 8, 15, BLOCK as u32 + 1] {
            let mut block = vec![0; BLOCK];
            block[4..8].copy_from_slice(&used.to_le_bytes());
            let content = block.get(4..used as usize).unwrap_or_default();
            let check = check_of(header.number, 0, content);
            block[..4].copy_from_slice(&check.to_le_bytes());
            file.write_at(&block, HEADER_LEN).unwrap();
            assert!(chains_of(&file, &header).2, "{used}");
        }
    }

    #[test]
    fn blocks_of_an_older_snapshot_do_not_count() {
        let (file, header) = written(100);
        let later = Header { number: 8, ..header };
        assert_eq!(chains_of(&file, &later), (0, 0, true));
    }
}
