//! Attaching: what one that fails, or one that died, leaves to others.

use super::*;
use crate::engine::format::index_header::MOST_PROCESSES;
use crate::engine::index::ProcessSlot;
use crate::engine::lifecycle::directory::Directory;
use crate::entry::Streamed;
use crate::sys::fork::OwnFile;
use crate::sys::lock;

#[test]
fn an_attach_that_fails_leaves_nothing_locked_whatever_the_program_holds() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", &[7; 8000]);
    // The count of its bytes, and what that holds, lives as long as the value.
    let held = engine.read(b"k", |source| source.into_stored()).unwrap().unwrap().value;
    assert!(engine.stats().pinned_bytes > 0);
    drop(engine);
    let stats = dir.path().join("stats");
    std::fs::remove_file(&stats).unwrap();
    std::fs::create_dir(&stats).unwrap();
    assert!(Attached::open(SYSTEM, dir.path(), &options()).is_err());
    let locks = SYSTEM.open(&dir.path().join("locks")).unwrap();
    assert_eq!(lock::first_held(&locks, 0, 4096).unwrap(), None);
    std::fs::remove_dir(&stats).unwrap();
    let engine = open(dir.path(), &options());
    assert_eq!((get(&engine, "k").unwrap(), &held[..]), (vec![7; 8000], &[7; 8000][..]));
}

#[test]
fn a_recovery_does_not_heed_the_clear_of_one_who_died_that_a_checkpoint_came_after() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", b"v");
    let draft = Draft { kind: Kind::Clear, codec: Codec::Raw, flags: 0, key_len: 0, body_len: 0 };
    // It is stamped, never finished, and its generation never begins.
    let reservation = engine.reserve(&draft).unwrap();
    let (segment, offset) = (&reservation.segment, reservation.offset);
    let prepared = segment.prepare(offset, reservation.len, draft, &[], [&[], &[]]);
    let stamp = Stamp { sequence: engine.index.next_sequence(), generation: 1, expires_at: None };
    segment.stamp(offset, &prepared, stamp);
    engine.checkpoint(&engine.space_role().unwrap()).unwrap();
    let from = engine.index.segment(segment.id).unwrap().finished;
    assert_eq!(from, offset, "the next recovery comes by it");
    set(&engine, "later", b"v");
    let killed = kill(dir.path());
    let after = open(killed.path(), &options());
    assert_eq!(
        (get(&after, "k"), get(&after, "later")),
        (Some(b"v".to_vec()), Some(b"v".to_vec()))
    );
    drop(after);
    drop(reservation);
}

#[test]
fn what_a_clear_left_in_files_is_gone_with_the_last_close_though_nobody_came_to_sweep_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "large", &[7; 300_000]);
    let blobs = || std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    assert_eq!(blobs(), 1);
    // A clear of which the background was not told.
    let lock = engine.index.lock_clear().unwrap();
    engine.index.begin_generation(engine.index.generation() + 1);
    drop(lock);
    drop(engine);
    assert_eq!(blobs(), 0);
}

#[test]
fn a_reader_that_finds_damage_while_the_directory_is_closed_leaves_the_index_alone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "large", &[7; 300_000]);
    let Some(Streamed::Pieces { mut source, .. }) = engine.stream(b"large").unwrap() else {
        panic!()
    };
    let blob = std::fs::read_dir(dir.path().join("blobs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[200_000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    // Closing waits for it.
    let locks = SYSTEM.open(&dir.path().join("locks")).unwrap();
    assert!(lock::try_lock(&locks, 0).unwrap());
    let attached = Arc::downgrade(&engine);
    let closing = std::thread::spawn(move || drop(engine));
    while attached.strong_count() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(source.read_at(200_000, &mut [0; 8]).unwrap_err().kind(), ErrorKind::Damaged);
    lock::unlock(&locks, 0).unwrap();
    closing.join().unwrap();
    let engine = open(dir.path(), &options());
    assert_eq!(engine.len(), 1);
    assert_eq!(get(&engine, "large"), None);
    assert_eq!(engine.len(), 0);
}

#[cfg(feature = "failpoints")]
#[test]
fn who_was_taken_for_dead_is_told_so_at_the_unlock() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "key", b"before");
    // One that has another file `locks`, as if somebody had replaced it, sees nobody alive.
    let (other, _locks) = another_process(dir.path(), "replaced", 77);
    let hash = engine.hasher.hash(b"key");
    // Other tests come by there as well.
    let this = std::thread::current().id();
    let steal = move || {
        if std::thread::current().id() == this {
            drop(other.lock(hash).unwrap());
        }
    };
    fail::cfg_callback("commit::stamped", steal).unwrap();
    let change = Change::Store {
        value: b"after",
        codec: Codec::Raw,
        expires_at: None,
        soft: Soft::default(),
    };
    let told = engine.commit(b"key", Condition::Always, change);
    fail::remove("commit::stamped");
    assert_eq!(told.unwrap_err().kind(), ErrorKind::LockLost);
    set(&engine, "key", b"again");
    assert_eq!(get(&engine, "key").unwrap(), b"again");
}

// Shows invariant I22.
#[test]
fn who_takes_the_number_of_one_who_died_is_not_mistaken_for_it_however_long_that_takes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let comes = || {
        let locks = OwnFile::new(file(dir.path(), "locks"));
        let directory = Directory::at(SYSTEM, dir.path(), &options()).unwrap();
        let (number, is_shared) = directory.number(&locks).unwrap();
        assert!(number == 2 && is_shared);
        locks
    };
    let hash = engine.hasher.hash(b"key");
    let dies = Index::join(&file(dir.path(), "index"), ProcessSlot::new(Arc::new(comes()), 2))
        .unwrap()
        .unwrap();
    std::mem::forget(dies.lock(hash).unwrap());
    assert!(engine.index.lock(hash).is_err(), "it lives");
    drop(dies);
    let _stands_still = comes();
    assert!(engine.index.lock(hash).is_ok());
    set(&engine, "key", b"v");
    assert!(engine.index.reap_dead());
}

/// A directory as processes have it open: this one's `engine` in `dir`, copied, with the bytes of `locks` held that stand for
/// `processes` and for who leads.
fn as_shared_by(
    engine: &Engine,
    processes: std::ops::RangeInclusive<i64>,
) -> (tempfile::TempDir, File) {
    let shared = kill(&engine.dir);
    let locks = SYSTEM.open(&shared.path().join("locks")).unwrap();
    let leads = i64::from(MOST_PROCESSES) + 1;
    processes.chain([leads]).for_each(|byte| assert!(lock::try_lock(&locks, byte).unwrap()));
    (shared, locks)
}

#[test]
fn whoever_comes_takes_the_lowest_number_that_nobody_has_in_whatever_order_others_came_and_went() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &options()));
    let directory = Directory::at(SYSTEM, dir.path(), &options()).unwrap();
    let open = || OwnFile::new(file(dir.path(), "locks"));
    let comes = |number: u32| {
        let locks = open();
        assert!(lock::try_lock(&locks, i64::from(number)).unwrap());
        locks
    };
    assert_eq!(directory.number(&open()).unwrap(), (1, false));
    let [four, one, two] = [4, 1, 2].map(comes);
    assert_eq!(directory.number(&open()).unwrap(), (3, true));
    let three = comes(3);
    assert_eq!(directory.number(&open()).unwrap(), (5, true));
    drop((two, four));
    assert_eq!(directory.number(&open()).unwrap(), (2, true));
    drop((one, three));
    assert_eq!(directory.number(&open()).unwrap(), (1, false));
}

#[test]
fn as_many_as_can_be_are_let_in_and_one_more_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", b"v");
    let last = i64::from(MOST_PROCESSES);
    assert_eq!(last, 1024);
    let (shared, locks) = as_shared_by(&engine, 1..=last - 1);
    let latest = open(shared.path(), &options());
    assert_eq!((i64::from(latest.number), get(&latest, "k")), (last, Some(b"v".to_vec())));
    set(&latest, "theirs", b"v");
    drop(latest);
    assert!(lock::try_lock(&locks, last).unwrap(), "it left");
    let refused = Attached::open(SYSTEM, shared.path(), &options()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("1024 processes"), "{why}");
    lock::unlock(&locks, last).unwrap();
    let latest = open(shared.path(), &options());
    assert_eq!(get(&latest, "theirs"), Some(b"v".to_vec()));
}

/// The bytes of `file` that this process has touched where it has it mapped, as the kernel tells.
fn touched(file: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut of_file = maps.lines().skip_while(|line| !line.ends_with(file.to_str().unwrap()));
    let resident = of_file.find_map(|line| line.strip_prefix("Rss:")).expect("it is mapped");
    resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

// Shows invariant I3.
#[test]
fn who_joins_others_does_not_go_through_the_entries() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_entries: 400_000, max_bytes: 128 << 20, ..options() };
    let engine = open(dir.path(), &options);
    (0..2000).for_each(|i| set(&engine, &format!("{i}"), &[7; 1000]));
    let (shared, _locks) = as_shared_by(&engine, 1..=1);
    let index = shared.path().canonicalize().unwrap().join("index");
    let joined = open(shared.path(), &options);
    let (whole, at_first) = (joined.index.geometry().index_bytes(), touched(&index));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let segments = shared.path().canonicalize().unwrap().join("segments");
    assert!(
        !maps.contains(segments.to_str().unwrap()),
        "each is opened when a word first leads there"
    );
    assert!(at_first <= whole / 3, "{at_first} bytes of {whole}");
    // Whoever goes through the entries would be seen.
    assert_eq!(joined.index.entries(0..joined.index.geometry().buckets).count(), 2000);
    assert!(touched(&index) > whole / 10 * 9, "{} bytes of {whole}", touched(&index));
}
