//! The file `meta`: written once, when a directory is new, and read by every process that opens it.
//! Without it nothing else can be read, so there is a second one, [`COPY`].

use std::io;
use std::path::Path;

use crate::engine::format::meta::{Meta, seal};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::random;
use crate::sys::storage::Storage;

/// The name of the second file with the content of `meta`.
pub(crate) const COPY: &str = "meta.copy";
/// The name that a damaged `meta` gets.
const DAMAGED: &str = "meta.damaged";

/// Far more bytes than any version writes.
const MOST: u64 = 64 << 10;

/// Creates the `meta` of a new directory, with a new secret.
pub(crate) fn create(storage: &'static dyn Storage, path: &Path) -> Result<Meta> {
    let make = || -> io::Result<Meta> {
        let mut hash_key = [0; 16];
        hash_key[..8].copy_from_slice(&random::bits()?.to_le_bytes());
        hash_key[8..].copy_from_slice(&random::bits()?.to_le_bytes());
        let meta = Meta::new(hash_key);
        write(storage, path, &meta)?;
        Ok(meta)
    };
    make().map_err(|e| Error::io("create", path, e))
}

/// What is known of the identity of a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// From `meta`.
    Known(Meta),
    /// From the copy: `meta` is lost or damaged.
    Copied(Meta),
    /// Both are damaged, or one is and the other is lost.
    Damaged,
    /// There is neither.
    Missing,
}

impl Identity {
    pub(crate) fn meta(self) -> Option<Meta> {
        match self {
            Self::Known(meta) | Self::Copied(meta) => Some(meta),
            Self::Damaged | Self::Missing => None,
        }
    }
}

/// Reads `meta` in the directory `dir`; if it is lost or damaged, its copy.
///
/// # Errors
/// If one of them is of another format, or cannot be read.
pub(crate) fn identify(storage: &'static dyn Storage, dir: &Path) -> Result<Identity> {
    let read = |name| match read(storage, &dir.join(name)) {
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(None),
        read => read.map(Some),
    };
    let found = read("meta")?;
    if let Some(Some(meta)) = found {
        return Ok(Identity::Known(meta));
    }
    Ok(match (found, read(COPY)?) {
        (_, Some(Some(copy))) => Identity::Copied(copy),
        (Some(_), Some(None)) => Identity::Missing,
        _ => Identity::Damaged,
    })
}

/// Keeps a damaged `meta` aside, in place of an earlier one.
pub(crate) fn set_aside(storage: &'static dyn Storage, dir: &Path) -> Result<()> {
    let path = dir.join("meta");
    match storage.rename(&path, &dir.join(DAMAGED)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("rename", &path, e)),
        _ => Ok(()),
    }
}

/// Writes `meta`, in place of what is there.
pub(crate) fn write(storage: &'static dyn Storage, path: &Path, meta: &Meta) -> io::Result<()> {
    storage.replace(path, &seal(meta)?)
}

/// Whether the file at `path` has the content of `meta`.
pub(crate) fn is(storage: &'static dyn Storage, path: &Path, meta: &Meta) -> io::Result<bool> {
    let bytes = storage.open_to_read(path)?.read_up_to(MOST)?;
    Ok(bytes == seal(meta)?)
}

/// Reads `meta`; `None` if there is none.
pub(crate) fn read(storage: &'static dyn Storage, path: &Path) -> Result<Option<Meta>> {
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
