//! Attaching: what a failed attach, or a process that died, leaves to other processes.

use super::*;
use crate::engine::format::index_header::MOST_PROCESSES;
use crate::engine::index::ProcessSlot;
use crate::engine::lifecycle::directory::Directory;
use crate::entry::Streamed;
use crate::sys::fork::OwnFile;
use crate::sys::lock;

#[test]
fn a_failed_attach_releases_its_locks() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", &[7; 8000]);
    // A held value keeps the byte counts, and with them the index and the file `locks`.
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
fn a_recovery_ignores_an_unfinished_clear_before_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", b"v");
    let draft = Draft { kind: Kind::Clear, codec: Codec::Raw, flags: 0, key_len: 0, body_len: 0 };
    // The process died: the clear is stamped, never finished, and its generation never begins.
    let reservation = engine.reserve(&draft).unwrap();
    let (segment, offset) = (&reservation.segment, reservation.offset);
    let prepared = segment.prepare(offset, reservation.len, draft, &[], [&[], &[]]);
    let stamp = Stamp { sequence: engine.index.next_sequence(), generation: 1, expires_at: None };
    segment.stamp(offset, &prepared, stamp);
    engine.checkpoint(&engine.space_role().unwrap()).unwrap();
    let from = engine.index.segment(segment.id).unwrap().finished;
    assert_eq!(from, offset, "the next recovery reads it");
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
fn the_last_close_removes_the_blobs_of_cleared_entries() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "large", &[7; 300_000]);
    let blobs = || std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    assert_eq!(blobs(), 1);
    // A clear that did not ring the bell: the background thread does not sweep.
    let lock = engine.index.lock_clear().unwrap();
    engine.index.begin_generation(engine.index.generation() + 1);
    drop(lock);
    drop(engine);
    assert_eq!(blobs(), 0);
}

#[test]
fn damage_found_during_a_close_does_not_change_the_index() {
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
    // The close waits for this lock.
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
fn a_stolen_lock_fails_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "key", b"before");
    // For a process with another file `locks`, as if it had been replaced, no process is alive.
    let (other, _locks) = another_process(dir.path(), "replaced", 77);
    let hash = engine.hasher.hash(b"key");
    // Other tests of this process pass the fail point too.
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
    let outcome = engine.commit(b"key", Condition::Always, change);
    fail::remove("commit::stamped");
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::LockLost);
    set(&engine, "key", b"again");
    assert_eq!(get(&engine, "key").unwrap(), b"again");
}

// Shows invariant I22.
#[test]
fn a_new_process_with_the_number_of_a_dead_one_is_another_owner() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let attach = || {
        let locks = OwnFile::new(file(dir.path(), "locks"));
        let directory = Directory::at(SYSTEM, dir.path(), &options()).unwrap();
        let (number, is_shared) = directory.number(&locks).unwrap();
        assert!(number == 2 && is_shared);
        locks
    };
    let hash = engine.hasher.hash(b"key");
    let dying = Index::join(&file(dir.path(), "index"), ProcessSlot::new(Arc::new(attach()), 2))
        .unwrap()
        .unwrap();
    std::mem::forget(dying.lock(hash).unwrap());
    assert!(engine.index.lock(hash).is_err(), "its owner is alive");
    drop(dying);
    // The next process with this number is stopped before it enters the attach table.
    let _stopped = attach();
    assert!(engine.index.lock(hash).is_ok());
    set(&engine, "key", b"v");
    assert!(engine.index.reap_dead());
}

/// A copy of the directory of `engine` that looks shared: the bytes of `locks` for `processes` and
/// for the role *leader* are held.
fn as_shared_by(
    engine: &Engine,
    processes: std::ops::RangeInclusive<i64>,
) -> (tempfile::TempDir, File) {
    let shared = kill(&engine.dir);
    let locks = SYSTEM.open(&shared.path().join("locks")).unwrap();
    let leader = i64::from(MOST_PROCESSES) + 1;
    processes.chain([leader]).for_each(|byte| assert!(lock::try_lock(&locks, byte).unwrap()));
    (shared, locks)
}

#[test]
fn an_attach_takes_the_lowest_free_number() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &options()));
    let directory = Directory::at(SYSTEM, dir.path(), &options()).unwrap();
    let open = || OwnFile::new(file(dir.path(), "locks"));
    let attach = |number: u32| {
        let locks = open();
        assert!(lock::try_lock(&locks, i64::from(number)).unwrap());
        locks
    };
    assert_eq!(directory.number(&open()).unwrap(), (1, false));
    let [four, one, two] = [4, 1, 2].map(attach);
    assert_eq!(directory.number(&open()).unwrap(), (3, true));
    let three = attach(3);
    assert_eq!(directory.number(&open()).unwrap(), (5, true));
    drop((two, four));
    assert_eq!(directory.number(&open()).unwrap(), (2, true));
    drop((one, three));
    assert_eq!(directory.number(&open()).unwrap(), (1, false));
}

#[test]
fn the_maximum_of_processes_attaches_and_one_more_is_refused() {
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
    assert!(lock::try_lock(&locks, last).unwrap(), "it has detached");
    let refused = Attached::open(SYSTEM, shared.path(), &options()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("1024 processes"), "{why}");
    lock::unlock(&locks, last).unwrap();
    let latest = open(shared.path(), &options());
    assert_eq!(get(&latest, "theirs"), Some(b"v".to_vec()));
}

/// The resident bytes of the mapped `file` in this process, according to the kernel.
fn touched(file: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut of_file = maps.lines().skip_while(|line| !line.ends_with(file.to_str().unwrap()));
    let resident = of_file.find_map(|line| line.strip_prefix("Rss:")).expect("it is mapped");
    resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

// Shows invariant I3.
#[test]
fn a_process_that_joins_others_does_not_read_all_entries() {
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
        "a segment is opened at the first read of a word that names it"
    );
    assert!(at_first <= whole / 3, "{at_first} bytes of {whole}");
    // Reading all entries would be visible here.
    assert_eq!(joined.index.entries(0..joined.index.geometry().buckets).count(), 2000);
    assert!(touched(&index) > whole / 10 * 9, "{} bytes of {whole}", touched(&index));
}
