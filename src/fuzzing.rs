//! The entry points of the fuzz targets in `fuzz/`, which the test that replays their corpora calls
//! too. Not part of the API.
#![expect(clippy::panic, reason = "a fuzz target reports a finding by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::cache::{Builder, Cache};
use crate::engine;
use crate::limits::Limits;
use crate::timeout::Timeout;

/// Decodes a record from any bytes: 8 bytes of salt, then the record.
///
/// # Panics
/// If the decoded record differs from the bytes.
pub fn record_decode(bytes: &[u8]) {
    engine::format::record::fuzz(bytes);
}

/// Reads `meta` from any bytes.
///
/// # Panics
/// If writing the result gives other bytes.
pub fn meta(bytes: &[u8]) {
    engine::format::meta::fuzz(bytes);
}

/// Scans any bytes as a segment: 8 bytes of salt, then the part after the header.
///
/// # Panics
/// If the scan leaves the file or yields something that is not a record.
pub fn segment_scan(bytes: &[u8]) {
    let dir = scratch();
    engine::fuzz::segment_scan(&dir.path().join("segment"), bytes);
}

/// A new temporary directory, in memory if possible.
fn scratch() -> TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    made.unwrap_or_else(|e| panic!("cannot create a temporary directory: {e}"))
}

/// The files of a closed directory, and every value that was ever stored in it.
struct ClosedDirectory {
    files: Vec<(PathBuf, Vec<u8>)>,
    ever: BTreeMap<String, Vec<Vec<u8>>>,
}

const LIMITS: Limits = Limits { max_entries: 40, cull_frequency: 4, max_bytes: 1 << 20 };

fn open(dir: &Path) -> crate::error::Result<Cache> {
    let builder = Builder::new(dir).default_timeout(Timeout::Never).hot_bytes(50_000);
    let Limits { max_entries, cull_frequency, max_bytes } = LIMITS;
    builder.max_entries(max_entries).cull_frequency(cull_frequency).max_bytes(max_bytes).open()
}

impl ClosedDirectory {
    fn make() -> crate::error::Result<Self> {
        let dir = scratch();
        // A fixed secret, so that an input has the same meaning in every run.
        let meta = engine::format::meta::with_secret([7; 16]).unwrap_or_default();
        fs::write(dir.path().join("meta"), meta).unwrap_or_else(|e| panic!("{e}"));
        let mut ever: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let cache = open(dir.path())?;
        for turn in 0..3u8 {
            for key in 0..45u8 {
                let name = format!("key {key}");
                let value = [&[key, turn][..], &vec![turn; usize::from(key) * 9]].concat();
                match (key + turn) % 5 {
                    0 => drop(cache.delete(&name)?),
                    _ => cache.set_bytes(&name, &value, Timeout::Never)?,
                }
                ever.entry(name).or_default().push(value);
            }
            match turn {
                0 => cache.clear()?,
                1 => engine::fuzz::take_snapshot(dir.path())?,
                _ => {}
            }
        }
        drop(cache);
        let mut files = Vec::new();
        for folder in ["", "segments"] {
            let entries = fs::read_dir(dir.path().join(folder)).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()).filter(|path| path.is_file()) {
                let name = path.strip_prefix(dir.path()).unwrap_or(&path).to_owned();
                files.push((name, fs::read(&path).unwrap_or_default()));
            }
        }
        Ok(Self { files, ever })
    }

    fn file(&self, wanted: &str) -> Vec<u8> {
        let found = self.files.iter().find(|(name, _)| name == Path::new(wanted));
        found.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }
}

impl ClosedDirectory {
    /// Restores the directory with each file changed by `change`, and works with it. `forged`: the
    /// change also recomputed the checks.
    fn open_changed(&self, forged: bool, change: impl Fn(&str, &mut Vec<u8>)) {
        let dir = scratch();
        for folder in ["segments", "blobs"] {
            fs::create_dir(dir.path().join(folder)).unwrap_or_else(|e| panic!("{e}"));
        }
        for (name, bytes) in &self.files {
            let mut file = bytes.clone();
            change(&name.to_string_lossy(), &mut file);
            fs::write(dir.path().join(name), file)
                .unwrap_or_else(|e| panic!("{}: {e}", name.display()));
        }
        // Damage that is reported as an error is no failure.
        if let Ok(cache) = open(dir.path()) {
            work(&cache, &self.ever, forged);
            drop(cache);
            if let Ok(cache) = open(dir.path()) {
                assert_stored(&cache, &self.ever);
            }
        }
    }
}

/// The directory that all inputs start from.
fn closed() -> &'static ClosedDirectory {
    static CLOSED: OnceLock<ClosedDirectory> = OnceLock::new();
    CLOSED.get_or_init(|| ClosedDirectory::make().unwrap_or_else(|e| panic!("{e}")))
}

/// Opens a directory with a changed index and state, and works with it.
///
/// Bits of the first byte: 1 recomputes the checks of the buckets; 2 makes `state` say that the
/// directory was closed with this index; with 4 the other bytes replace `state`, with 8 `index`,
/// with 16 `hints`. Without 4, 8 and 16 the other bytes are changes to the index, 11 bytes each.
///
/// # Panics
/// If a value is read that was never stored under its key, a bound is exceeded, or a new write is
/// missing.
pub fn index_open(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let change_index = |index: &mut Vec<u8>| match mode & 28 {
        0 => engine::fuzz::change_index(index, rest, mode & 1 != 0),
        8 => *index = rest.to_vec(),
        _ => {}
    };
    closed().open_changed(mode & 3 != 0, |name, file| match name {
        "index" => change_index(file),
        "state" if mode & 4 != 0 => *file = rest.to_vec(),
        "state" if mode & 2 != 0 => {
            let mut index = closed().file("index");
            change_index(&mut index);
            *file = engine::fuzz::state_for(&index, LIMITS);
        }
        "hints" if mode & 16 != 0 => {
            let there = rest.len().min(file.len());
            file[..there].copy_from_slice(&rest[..there]);
        }
        _ => {}
    });
}

/// Opens a directory that was not closed, with changed snapshots, and works with it.
///
/// Bits of the first byte: 1 recomputes the checks; with 2 the other bytes replace the snapshot.
/// Without 2 they are changes to the existing snapshot, 4 bytes each.
///
/// # Panics
/// As [`index_open`].
pub fn snapshot_open(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    closed().open_changed(mode & 1 != 0, |name, file| match name {
        "state" => *file = engine::fuzz::state_not_closed(LIMITS),
        "snapshot.a" | "snapshot.b" if file.iter().any(|byte| *byte != 0) => {
            let mut changes = rest;
            if mode & 2 != 0 {
                *file = rest.to_vec();
                changes = &[];
            }
            engine::fuzz::change_snapshot(file, changes, mode & 1 != 0);
        }
        _ => {}
    });
}

/// Asserts that every value that can be read was stored under its key.
fn assert_stored(cache: &Cache, ever: &BTreeMap<String, Vec<Vec<u8>>>) {
    for (key, values) in ever {
        if let Ok(Some(bytes)) = cache.get_bytes(key) {
            let new = bytes.starts_with(b"new ") && bytes.ends_with(key.as_bytes());
            assert!(new || values.iter().any(|v| bytes == *v), "{key:?} holds {bytes:?}");
        }
    }
}

fn work(cache: &Cache, ever: &BTreeMap<String, Vec<Vec<u8>>>, forged: bool) {
    assert_stored(cache, ever);
    assert!(cache.check().is_ok());
    let listed = cache.keys().take(1000).filter_map(Result::ok).count();
    assert!(listed < 1000, "iterating the keys ends");
    for (turn, key) in ever.keys().enumerate() {
        let value = format!("new {turn} {key}");
        match turn % 4 {
            0 => drop(cache.delete(key)),
            1 => drop(cache.touch(key, Timeout::Never)),
            _ => {
                if cache.set_bytes(key, value.as_bytes(), Timeout::Never).is_ok()
                    && let Ok(Some(bytes)) = cache.get_bytes(key)
                {
                    assert_eq!(
                        bytes,
                        value.as_bytes(),
                        "a value that was just written is found or evicted"
                    );
                }
            }
        }
        assert!(cache.stats().bytes <= LIMITS.max_bytes);
    }
    drop(cache.maintain());
    assert_stored(cache, ever);
    // A forged word that names no record is counted until it is found, and a forged generation may
    // be a future one.
    if cache.clear().is_ok() && !forged {
        assert_eq!(cache.len(), 0);
        for key in ever.keys() {
            assert_eq!(cache.get_bytes(key).unwrap_or_default(), None, "{key:?} after a clear");
        }
    }
    for key in ever.keys().take(20) {
        drop(cache.set_bytes(key, format!("new {key}").as_bytes(), Timeout::Never));
    }
    assert_stored(cache, ever);
}
