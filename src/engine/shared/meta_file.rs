//! The file `meta`: written once, when a directory is new, and read by every process that opens it.

use std::io;
use std::path::Path;

use crate::engine::format::meta::{Meta, seal};
use crate::error::{Error, Result};
use crate::sys::random;
use crate::sys::storage::Storage;

/// Creates the `meta` of a new directory, with a new secret.
pub(crate) fn create(storage: &'static dyn Storage, path: &Path) -> Result<Meta> {
    let make = || {
        let mut hash_key = [0; 16];
        hash_key[..8].copy_from_slice(&random::bits()?.to_le_bytes());
        hash_key[8..].copy_from_slice(&random::bits()?.to_le_bytes());
        let meta = Meta::new(hash_key);
        storage.replace(path, &seal(&meta)?)?;
        Ok(meta)
    };
    make().map_err(|e| Error::io("create", path, e))
}

/// Reads `meta`; `None` if there is none.
pub(crate) fn read(storage: &'static dyn Storage, path: &Path) -> Result<Option<Meta>> {
    /// Far more bytes than any version writes.
    const MOST: u64 = 64 << 10;
    match storage.open_to_read(path).and_then(|file| file.read_up_to(MOST)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
        Ok(bytes) => Meta::decode(&bytes).map(Some).map_err(|e| e.with_path(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::meta::FORMAT;
    use crate::error::ErrorKind;
    use crate::sys::storage::{SYSTEM, TEMPORARY_PREFIX};

    #[test]
    fn damage_is_detected_and_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        assert_eq!(read(SYSTEM, &path).unwrap(), None);
        let meta = create(SYSTEM, &path).unwrap();
        assert_eq!(read(SYSTEM, &path).unwrap(), Some(meta.clone()));
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(read(SYSTEM, &path).unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(read(SYSTEM, &path).unwrap_err().kind(), ErrorKind::Corrupt, "cut at {at}");
        }
        for other in
            [Meta { format: FORMAT + 1, ..meta.clone() }, Meta { features: 1, ..meta.clone() }]
        {
            std::fs::write(&path, seal(&other).unwrap()).unwrap();
            assert_eq!(read(SYSTEM, &path).unwrap_err().kind(), ErrorKind::UnsupportedFormat);
        }
    }

    #[test]
    fn a_directory_of_another_format_is_not_touched() {
        use std::collections::BTreeMap;
        use std::os::unix::fs::MetadataExt;
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        let options = crate::options::Options { max_bytes: 1 << 20, ..Default::default() };
        drop(crate::engine::Attached::open(SYSTEM, &dir, &options).unwrap());
        let path = dir.join("meta");
        let meta = read(SYSTEM, &path).unwrap().unwrap();
        // As a killed process of a version with fewer files leaves it.
        std::fs::remove_file(dir.join("locks")).unwrap();
        std::fs::write(dir.join(format!("{}left", TEMPORARY_PREFIX)), "x").unwrap();
        for format in [1, FORMAT + 1] {
            std::fs::write(&path, seal(&Meta { format, ..meta.clone() }).unwrap()).unwrap();
            let state = || -> BTreeMap<_, _> {
                let files = walkdir::WalkDir::new(&dir).into_iter().map(Result::unwrap);
                files
                    .map(|f| (f.path().to_owned(), f.metadata().unwrap()))
                    .map(|(path, found)| {
                        let bytes = found.is_file().then(|| std::fs::read(&path).unwrap());
                        (path, (bytes, found.mtime(), found.mtime_nsec(), found.mode()))
                    })
                    .collect()
            };
            let before = state();
            let error = crate::engine::Attached::open(SYSTEM, &dir, &options).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error}");
            assert_eq!(error.path(), Some(&*path));
            assert!(state() == before, "format {format}");
        }
    }
}
