//! What the fuzz targets in `fuzz/` call, and the test that replays their corpora. Not part of the API.
#![expect(clippy::panic, reason = "this is how a fuzz target says what it found")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::cache::{Builder, Cache};
use crate::engine;
use crate::limits::Limits;
use crate::timeout::Timeout;

/// Decodes a record from any bytes: 8 of salt, then the record.
///
/// # Panics
/// If what is decoded is not what is there.
pub fn record_decode(bytes: &[u8]) {
    engine::format::record::fuzz(bytes);
}

/// Reads `meta` from any bytes.
///
/// # Panics
/// If what is read is not what would be written.
pub fn meta(bytes: &[u8]) {
    engine::format::meta::fuzz(bytes);
}

/// Scans any bytes as a segment: 8 of salt, then what is behind the header.
///
/// # Panics
/// If the scan leaves the file or yields what is no record.
pub fn segment_scan(bytes: &[u8]) {
    let dir = scratch();
    engine::fuzz::segment_scan(&dir.path().join("segment"), bytes);
}

/// A new directory, in memory where that is possible.
fn scratch() -> TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    made.unwrap_or_else(|e| panic!("a temporary directory: {e}"))
}

/// A directory that was closed, and every value that was ever stored in it.
struct Closed {
    files: Vec<(PathBuf, Vec<u8>)>,
    ever: BTreeMap<String, Vec<Vec<u8>>>,
}

const LIMITS: Limits = Limits { max_entries: 40, cull_frequency: 4, max_bytes: 1 << 20 };

fn open(dir: &Path) -> crate::error::Result<Cache> {
    let builder = Builder::new(dir).default_timeout(Timeout::Never).hot_bytes(50_000);
    let Limits { max_entries, cull_frequency, max_bytes } = LIMITS;
    builder.max_entries(max_entries).cull_frequency(cull_frequency).max_bytes(max_bytes).open()
}

impl Closed {
    fn make() -> crate::error::Result<Self> {
        let dir = scratch();
        // The same secret each time, so that an input means the same each time.
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

impl Closed {
    /// Puts the directory there again, each file as `change` makes it from what it was, and works with it. `forged`:
    /// somebody made the checks fit.
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
        // Damage that a program is told of is no failure.
        if let Ok(cache) = open(dir.path()) {
            work(&cache, &self.ever, forged);
            drop(cache);
            if let Ok(cache) = open(dir.path()) {
                assert_stored(&cache, &self.ever);
            }
        }
    }
}

/// The same directory each time.
fn closed() -> &'static Closed {
    static CLOSED: OnceLock<Closed> = OnceLock::new();
    CLOSED.get_or_init(|| Closed::make().unwrap_or_else(|e| panic!("{e}")))
}

/// Opens a directory whose index and state were changed, and works with it.
///
/// The first byte: 1 the buckets' checks are made to fit; 2 the state says that the directory was closed with this
/// very index; 4 the rest is `state` as it is; 8 the rest is `index` as it is; 16 the rest is `hints`. Without 4, 8
/// and 16 the rest is changes of the index, 11 bytes each.
///
/// # Panics
/// If a value is read that was never stored under its key, a bound is exceeded, or what is written anew is not there.
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

/// Opens a directory that was not closed and whose snapshots were changed, and works with it.
///
/// The first byte: 1 the checks are made to fit; 2 the rest is a whole snapshot. Without 2 the rest is changes of the
/// snapshot that is there, 4 bytes each.
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

/// Whatever is read was stored under its key.
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
    assert!(listed < 1000, "a walk through the keys ends");
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
                        "what was just written is there or evicted"
                    );
                }
            }
        }
        assert!(cache.stats().bytes <= LIMITS.max_bytes);
    }
    drop(cache.maintain());
    assert_stored(cache, ever);
    // A forged word that names nothing is counted until it is found, and a forged generation may be one to come.
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
