//! Two `Blobs` over one directory stand for two processes: a lock belongs to an open file.
//!
//! Shows invariant I30.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::engine::format::blob_ref::space_for;
use crate::engine::format::geometry::Geometry;
use crate::engine::index::{Index, ProcessSlot};
use crate::sys::storage::SYSTEM;

/// An index without any entries but those that name blobs.
#[derive(Default)]
struct FakeIndex(Mutex<HashMap<u64, (Word, u128)>>);

impl FakeIndex {
    fn map(&self) -> MutexGuard<'_, HashMap<u64, (Word, u128)>> {
        self.0.lock().unwrap()
    }

    fn publish(&self, hash: u64, name: u128) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.map().insert(hash, (Word(NEXT.fetch_add(1, Ordering::Relaxed)), name));
    }

    fn remove(&self, hash: u64) {
        self.map().remove(&hash);
    }
}

impl Naming for FakeIndex {
    fn holds(&self, (hash, word): BlobOwner) -> bool {
        self.map().get(&hash).is_some_and(|(found, _)| *found == word)
    }

    fn find(&self, hash: u64, name: u128) -> Result<Option<Word>> {
        Ok(self.map().get(&hash).filter(|(_, found)| *found == name).map(|(word, _)| *word))
    }
}

struct Two {
    dir: TempDir,
    space: SpaceInUse,
    index: FakeIndex,
    mine: Blobs,
    theirs: Blobs,
}

const LEN: usize = 100_000;
/// The space that one blob takes.
const SPACE: u64 = 102_400;

impl Two {
    fn new() -> Self {
        let (dir, space) = (tempfile::tempdir().unwrap(), SpaceInUse::default());
        let counts = File::nameless().unwrap();
        let index =
            Index::create(&counts, Geometry::for_entries(100, 16), ProcessSlot::alone()).unwrap();
        space.attach(Arc::new(index));
        assert_eq!(space_for(LEN as u64), SPACE);
        let open = || Blobs::open(SYSTEM, dir.path(), &space).unwrap();
        let (mine, theirs) = (open(), open());
        Self { space, index: FakeIndex::default(), mine, theirs, dir }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The blobs that a sweep of `mine` finds dead.
    fn dead(&self) -> Vec<u128> {
        self.mine.recount(Haste::Now).unwrap();
        self.mine.take_dead(&self.index)
    }
}

fn write<'a>(blobs: &'a Blobs, hash: u64) -> BlobPin<'a> {
    let mut writer = blobs.create().unwrap();
    writer.add_space(blobs.space.reserve(SPACE));
    writer.write(&[7; LEN], &mut 0).unwrap();
    blobs.seal(writer, hash).unwrap()
}

/// A blob that is named under `hash`.
fn publish(blobs: &Blobs, hash: u64, index: &FakeIndex) -> BlobRef {
    let pin = write(blobs, hash);
    pin.keep();
    index.publish(hash, pin.reference.name);
    pin.reference
}

#[test]
fn a_blob_of_another_process_is_found_counted_read_and_removed() {
    let two = Two::new();
    let reference = publish(&two.theirs, 1, &two.index);
    assert_eq!(two.space.bytes(), SPACE);
    let bytes = two.mine.open_blob(reference).unwrap().unwrap().load().unwrap().unwrap();
    assert!(*bytes == [7; LEN], "without a refresh");
    drop(bytes);
    assert!(two.dead().is_empty());
    assert_eq!((two.mine.names(), two.mine.bytes()), (vec![reference.name], (SPACE, 0)));
    // A count that was lost with a process that died.
    two.space.blob_gone(SPACE);
    assert!(two.dead().is_empty());
    assert_eq!((two.space.bytes(), two.space.blob_bytes()), (SPACE, SPACE));
    // Evicted.
    for (hash, _) in two.mine.owners_of(reference.name, &two.index) {
        two.index.remove(hash);
    }
    assert_eq!(two.dead(), [reference.name]);
    assert_eq!(two.mine.bytes(), (0, SPACE));
    assert_eq!(two.mine.release(&[reference.name], &two.index), 1);
    assert_eq!((two.files().len(), two.space.bytes()), (0, 0));
    assert!(two.theirs.open_blob(reference).unwrap().is_none());
    assert!(two.theirs.pin(reference).unwrap().is_none());
    assert_eq!(two.theirs.release(&[reference.name], &two.index), 0);
    // Opened before it was unlinked, and locked after.
    let pin = write(&two.mine, 2);
    let opened = SYSTEM.open_to_read(&two.mine.path(pin.reference.name)).unwrap();
    two.theirs.refresh(Haste::Now).unwrap();
    assert_eq!(two.theirs.names(), [pin.reference.name]);
    drop(pin);
    assert_eq!(hold(&opened).unwrap(), Hold::Gone);
    two.theirs.recount(Haste::Now).unwrap();
    assert!(two.theirs.names().is_empty());
    assert_eq!(two.space.bytes(), 0, "taken off once");
}

#[test]
fn a_blob_found_dead_may_be_named_again_by_another_process() {
    let two = Two::new();
    let reference = publish(&two.mine, 1, &two.index);
    let pin = two.theirs.pin(reference).unwrap().unwrap();
    two.index.remove(1);
    assert!(two.dead().is_empty(), "another process may be about to name it");
    assert_eq!(two.mine.release(&[reference.name], &two.index), 0);
    drop(pin);
    assert_eq!(two.dead(), [reference.name]);
    // Under a key whose hash only the file has.
    let pin = two.theirs.pin(reference).unwrap().unwrap();
    assert_eq!(two.mine.release(&[reference.name], &two.index), 0);
    two.theirs.add_key(&pin, 2).unwrap();
    pin.keep();
    two.index.publish(2, reference.name);
    drop(pin);
    assert_eq!(two.mine.release(&[reference.name], &two.index), 0);
    assert!(two.dead().is_empty());
    assert_eq!(two.mine.owners().len(), 1);
    assert!(two.mine.open_blob(reference).unwrap().is_some());
    // And under a third key, while `mine` takes it for alive.
    let pin = two.theirs.pin(reference).unwrap().unwrap();
    two.theirs.add_key(&pin, 3).unwrap();
    two.index.publish(3, reference.name);
    two.index.remove(2);
    drop(pin);
    assert!(two.dead().is_empty());
    two.index.remove(3);
    assert_eq!(two.dead(), [reference.name]);
    assert_eq!(two.mine.release(&[reference.name], &two.index), 1);
    assert_eq!(two.space.bytes(), 0);
}

#[test]
fn a_blob_that_is_being_read_stays_and_counts() {
    let two = Two::new();
    for is_mapped in [false, true] {
        let reference = publish(&two.mine, 1, &two.index);
        let open = two.theirs.open_blob(reference).unwrap().unwrap();
        let (file, bytes) = if is_mapped {
            (None, Some(open.load().unwrap().unwrap()))
        } else {
            (Some(open), None)
        };
        two.index.remove(1);
        for _ in 0..2 {
            assert!(two.dead().is_empty());
            assert_eq!(two.mine.release(&[reference.name], &two.index), 0);
            assert_eq!((two.files().len(), two.space.bytes()), (1, SPACE));
            assert_eq!(two.mine.bytes(), (0, 0), "neither alive nor reclaimable");
        }
        assert!(file.is_none_or(|file| file.verify().unwrap()));
        assert!(bytes.is_none_or(|bytes| *bytes == [7; LEN]));
        assert_eq!(two.dead(), [reference.name]);
        // A read that begins after the blob was found dead.
        let open = two.theirs.open_blob(reference).unwrap();
        assert_eq!(two.mine.release(&[reference.name], &two.index), 0);
        drop(open);
        assert_eq!(two.dead(), [reference.name]);
        assert_eq!(two.mine.release(&[reference.name], &two.index), 1);
        assert_eq!((two.files().len(), two.space.bytes()), (0, 0));
    }
}

#[test]
fn a_process_stopped_in_an_unlink_blocks_no_reader() {
    let two = Two::new();
    let reference = publish(&two.mine, 1, &two.index);
    let alone = open_alone(SYSTEM, &two.mine.path(reference.name)).unwrap();
    assert!(matches!(alone, Alone::Yes(_)));
    assert!(two.theirs.open_blob(reference).unwrap().is_some_and(|open| open.verify().unwrap()));
    // But a writer that names it must be sure that it stays.
    assert_eq!(two.theirs.pin(reference).map(|_| ()).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(two.theirs.release(&[reference.name], &two.index), 0);
    drop(alone);
    assert!(two.theirs.pin(reference).unwrap().is_some());
}

#[test]
fn the_file_of_a_dead_writer_is_removed() {
    let two = Two::new();
    let mut writer = two.theirs.create().unwrap();
    writer.write(&[7; LEN], &mut 0).unwrap();
    two.mine.refresh(Haste::Now).unwrap();
    assert_eq!(two.files().len(), 1);
    let pin = two.theirs.seal(writer, 1).unwrap();
    assert!(two.dead().is_empty(), "its record will be published");
    drop(pin);
    assert!(two.files().is_empty(), "no record was published");

    let writer = two.theirs.create().unwrap();
    // So that it is not removed when it is dropped.
    let left = two.dir.path().join(format!("{:032x}.part", 5));
    fs::rename(writer.path(), &left).unwrap();
    let foreign = two.dir.path().join("photo.part");
    fs::write(&foreign, "foreign").unwrap();
    two.mine.refresh(Haste::Now).unwrap();
    assert!(left.exists());
    drop(writer);
    two.mine.refresh(Haste::Now).unwrap();
    assert!(!left.exists() && foreign.exists());
}

#[test]
fn a_new_blob_counts_once() {
    let two = Two::new();
    let pin = write(&two.mine, 1);
    two.mine.recount(Haste::Now).unwrap();
    assert_eq!((two.space.bytes(), two.space.blob_bytes()), (SPACE, 0));
    // Another process sees that it counts as the writer's.
    two.theirs.recount(Haste::Now).unwrap();
    assert_eq!((two.space.bytes(), two.space.blob_bytes()), (SPACE, 0));
    pin.keep();
    for blobs in [&two.mine, &two.theirs] {
        blobs.recount(Haste::Now).unwrap();
        assert_eq!((two.space.bytes(), two.space.blob_bytes()), (SPACE, SPACE));
    }
    // A blob that its writer dropped.
    let pin = write(&two.mine, 3);
    two.theirs.recount(Haste::Now).unwrap();
    drop(pin);
    assert_eq!((two.space.bytes(), two.space.blob_bytes()), (SPACE, SPACE));
    // Counted during a listing, which may be out of date.
    let was = two.space.blob_bytes();
    write(&two.theirs, 2).keep();
    assert!(!two.space.set_blob_bytes(was, SPACE));
    assert_eq!(two.space.blob_bytes(), 2 * SPACE);
}

#[test]
fn a_file_that_is_not_a_blob_is_skipped_and_stays() {
    let two = Two::new();
    let damaged = publish(&two.theirs, 1, &two.index);
    let paths = [two.mine.path(damaged.name), two.mine.path(5), two.mine.path(6)];
    fs::write(&paths[0], [0; 1000]).unwrap();
    fs::create_dir(&paths[1]).unwrap();
    std::os::unix::fs::symlink(&paths[0], &paths[2]).unwrap();
    for _ in 0..2 {
        assert!(two.dead().is_empty());
        assert_eq!(two.mine.release(&[damaged.name, 5, 6], &two.index), 0);
        assert_eq!((two.files().len(), two.space.bytes()), (3, 0));
    }
    // A process that knew it before the damage knows that it is a blob.
    two.index.remove(1);
    assert_eq!(two.theirs.take_dead(&two.index), [damaged.name]);
    assert_eq!(two.theirs.release(&[damaged.name], &two.index), 1);
    assert_eq!((two.files().len(), two.space.bytes()), (2, 0));
}

#[test]
fn hashes_behind_an_incomplete_one_are_found() {
    let two = Two::new();
    let reference = publish(&two.mine, 1, &two.index);
    let pin = two.mine.pin(reference).unwrap().unwrap();
    let path = two.mine.path(reference.name);
    for hash in 2..5 {
        two.mine.add_key(&pin, hash).unwrap();
        two.theirs.add_key(&pin, 10 + hash).unwrap();
        let len = path.metadata().unwrap().len();
        two.theirs.add_key(&pin, 100).unwrap();
        SYSTEM.open(&path).unwrap().set_len(len + hash).unwrap();
    }
    let found = contents(&SYSTEM.open_to_read(&path).unwrap()).unwrap().unwrap();
    assert_eq!(found.hashes, [1, 2, 12, 3, 13, 4, 14]);
    assert_eq!(found.bytes, SPACE);
}

/// One process moves blobs from key to key, the other tries to remove every blob at any moment.
#[test]
fn a_named_blob_stays_while_others_move_and_remove() {
    const BLOBS: u64 = 10;
    const MOVES: u64 = 20;
    let two = Two::new();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for blob in 0..BLOBS {
                let reference = publish(&two.theirs, blob << 8, &two.index);
                for key in (blob << 8)..(blob << 8) + MOVES {
                    let pin = two.theirs.pin(reference).unwrap().expect("it is named");
                    // Another process deletes the key that it is moved from.
                    two.index.remove(key);
                    two.theirs.add_key(&pin, key + 1).unwrap();
                    two.index.publish(key + 1, reference.name);
                    drop(pin);
                    assert!(two.theirs.open_blob(reference).unwrap().is_some());
                }
                if blob % 2 == 0 {
                    two.index.remove((blob << 8) + MOVES);
                }
            }
        });
        let remover = scope.spawn(|| {
            let mut removed = 0;
            while !is_done.load(Ordering::Acquire) {
                two.mine.recount(Haste::Now).unwrap();
                two.mine.take_dead(&two.index);
                // All of them, dead or not.
                let all: Vec<u128> = two.mine.lock().blobs.keys().copied().collect();
                removed += two.mine.release(&all, &two.index) as u64;
            }
            removed
        });
        let moved = mover.join();
        is_done.store(true, Ordering::Release);
        let removed = remover.join().unwrap();
        moved.unwrap();
        assert!(removed <= BLOBS / 2, "{removed} were removed");
    });
    let dead = two.dead();
    two.mine.release(&dead, &two.index);
    assert_eq!(two.files().len() as u64, BLOBS / 2);
    assert_eq!(two.dead(), []);
    assert_eq!(two.space.bytes(), BLOBS / 2 * SPACE);
}
