//! The context of an error: which call, on which key.

use crate::error::Error;

/// Rewrites `error` for the caller: with the name of the call and the key that the caller gave. An
/// error about a file keeps its path and operation.
pub(super) fn about(error: Error, name: &'static str, key: Option<&str>) -> Error {
    match key {
        _ if error.path().is_some() => error,
        Some(key) => error.during(name).with_key(key),
        None => error.during(name),
    }
}
