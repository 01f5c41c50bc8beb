//! The file `meta`: format number, feature bits, and the secret of the key hash. It is written
//! once, when the directory is created: MessagePack, followed by its CRC-32.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The format that this version reads and writes. It changes when versions before and after a
/// change cannot read the files of each other, or cannot share an open directory. Format 1 was for
/// one process at a time.
pub(crate) const FORMAT: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) format: u32,
    /// A bit for each feature that a reader must know. There are none yet.
    pub(crate) features: u64,
    /// The secret of the key hash.
    pub(crate) hash_key: [u8; 16],
}

impl Meta {
    /// The `meta` of a new directory, with this secret.
    pub(crate) fn new(hash_key: [u8; 16]) -> Self {
        Self { format: FORMAT, features: 0, hash_key }
    }

    /// Decodes `bytes`.
    ///
    /// # Errors
    /// If they are damaged, or of another format.
    // Keeps invariant I9: another format is refused.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Corrupt, "read");
        let body = unseal(bytes).ok_or_else(damaged)?;
        // The format first: another format may have other fields.
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

/// Decodes any bytes as `meta`, as they are and with a right check. What is decoded encodes to the
/// same value.
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
    seal(&Meta::new(hash_key))
}

/// MessagePack, and the CRC-32 of it.
pub(crate) fn seal(what: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut bytes = rmp_serde::to_vec_named(what).map_err(std::io::Error::other)?;
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    Ok(bytes)
}

/// The MessagePack in the result of [`seal`], if its check is right.
pub(crate) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let (body, check) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(body) == u32::from_le_bytes(*check)).then_some(body)
}
