//! `meta`: what the directory is, written once. MessagePack, followed by its CRC-32.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::random;
use crate::sys::storage::Storage;

/// The format that this version reads and writes. Another number for each change after which an older or a newer version
/// would not understand what it finds, or what another process does that has the directory open. 1 was for one process at a time.
const FORMAT: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    format: u32,
    /// Features that a reader must know, a bit each. None so far.
    features: u64,
    /// The secret of the key hash.
    pub(crate) hash_key: [u8; 16],
}

impl Meta {
    pub(crate) fn create(storage: &'static dyn Storage, path: &Path) -> Result<Self> {
        let make = || {
            let mut hash_key = [0; 16];
            hash_key[..8].copy_from_slice(&random::bits()?.to_le_bytes());
            hash_key[8..].copy_from_slice(&random::bits()?.to_le_bytes());
            let meta = Self { format: FORMAT, features: 0, hash_key };
            storage.replace(path, &seal(&meta)?)?;
            Ok(meta)
        };
        make().map_err(|e| Error::io("create", path, e))
    }

    /// Reads `meta`; `None` if there is none.
    pub(crate) fn read(storage: &'static dyn Storage, path: &Path) -> Result<Option<Self>> {
        /// Far more than any version writes.
        const MOST: u64 = 64 << 10;
        match storage.open_to_read(path).and_then(|file| file.read_up_to(MOST)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path, e)),
            Ok(bytes) => Self::decode(&bytes).map(Some).map_err(|e| e.with_path(path)),
        }
    }

    // Keeps invariant I9: another format is refused.
    fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Corrupt, "read");
        let body = unseal(bytes).ok_or_else(damaged)?;
        // The format first: another one may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
            features: u64,
        }
        let Format { format, features } =
            rmp_serde::from_slice(body).map_err(|e| damaged().with_source(e))?;
        if format != FORMAT || features != 0 {
            let why = format!(
                "format {format}, features {features:#x}; this version knows format {FORMAT}"
            );
            return Err(Error::new(ErrorKind::UnsupportedFormat, "open").with_source(why));
        }
        rmp_serde::from_slice(body).map_err(|e| damaged().with_source(e))
    }
}

/// Takes any bytes for `meta`, as they are and with a check that fits. What is read is what would be written.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let sealed = [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
    for bytes in [bytes, &sealed] {
        match Meta::decode(bytes) {
            Ok(meta) => {
                assert!(meta.format == FORMAT && meta.features == 0);
                let again = seal(&meta).map(|bytes| Meta::decode(&bytes).ok());
                assert_eq!(again.ok().flatten(), Some(meta));
            }
            Err(e) => {
                assert!(
                    matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::UnsupportedFormat),
                    "{e}"
                );
            }
        }
    }
}

/// A `meta` whose secret is `hash_key`.
#[cfg(feature = "fuzzing")]
pub(crate) fn with_secret(hash_key: [u8; 16]) -> std::io::Result<Vec<u8>> {
    seal(&Meta { format: FORMAT, features: 0, hash_key })
}

/// MessagePack, and the CRC-32 of it.
pub(crate) fn seal(what: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut bytes = rmp_serde::to_vec_named(what).map_err(std::io::Error::other)?;
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    Ok(bytes)
}

/// The MessagePack in what [`seal`] made, if it is whole.
pub(crate) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let (body, check) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(body) == u32::from_le_bytes(*check)).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::storage::{SYSTEM, TEMPORARY_PREFIX};

    #[test]
    fn any_damage_is_noticed_and_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        assert_eq!(Meta::read(SYSTEM, &path).unwrap(), None);
        let meta = Meta::create(SYSTEM, &path).unwrap();
        assert_eq!(Meta::read(SYSTEM, &path).unwrap(), Some(meta.clone()));
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(
                Meta::read(SYSTEM, &path).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "byte {at}"
            );
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(
                Meta::read(SYSTEM, &path).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "cut at {at}"
            );
        }
        for other in
            [Meta { format: FORMAT + 1, ..meta.clone() }, Meta { features: 1, ..meta.clone() }]
        {
            std::fs::write(&path, seal(&other).unwrap()).unwrap();
            assert_eq!(Meta::read(SYSTEM, &path).unwrap_err().kind(), ErrorKind::UnsupportedFormat);
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
        let meta = Meta::read(SYSTEM, &path).unwrap().unwrap();
        // As a version leaves it that knows fewer files, and did not come to its end.
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
