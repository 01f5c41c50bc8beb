//! Stored keys: how the key that a program uses becomes the key that is stored.
//!
//! The stored key is `prefix:version:key`, as in Django, or the result of a key function.

use std::cell::Cell;
use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// The longest stored key, in bytes: prefix, version and colons included.
pub(crate) const MAX_KEY_BYTES: usize = 65_536;

/// The longest portable key, in characters: the limit of memcached, which Django warns about.
pub(crate) const PORTABLE_KEY_CHARS: usize = 250;

/// Makes the stored key from prefix, version and key.
pub(crate) type KeyFunction = Arc<dyn Fn(&str, i64, &str) -> String + Send + Sync>;

/// How all views of a cache make and check their stored keys.
#[derive(Clone, Default)]
pub(crate) struct KeyRule {
    /// Replaces `prefix:version:key`.
    pub(crate) function: Option<KeyFunction>,
    /// Whether to refuse keys that memcached does not accept.
    pub(crate) portable: bool,
}

impl KeyRule {
    /// The stored key of `key` in the view with `prefix` and `version`, whose [`head`] is `head`.
    pub(crate) fn compose(
        &self,
        prefix: &str,
        version: i64,
        head: &str,
        key: &str,
    ) -> Result<FullKey> {
        let full = match &self.function {
            Some(function) => FullKey(function(prefix, version, key)),
            None => {
                let mut full = FullKey::take();
                full.0.push_str(head);
                full.0.push_str(key);
                full
            }
        };
        if full.0.len() > MAX_KEY_BYTES {
            return Err(invalid(key, format!("{} bytes; at most {MAX_KEY_BYTES}", full.0.len())));
        }
        if self.portable {
            check_portable(&full.0).map_err(|why| invalid(key, why))?;
        }
        Ok(full)
    }
}

/// The text that the default rule puts before every key of a view. Made once for each view, since
/// formatting the number costs more than the rest of composing a key.
pub(crate) fn head(prefix: &str, version: i64) -> String {
    format!("{prefix}:{version}:")
}

fn check_portable(full: &str) -> Result<(), String> {
    let chars = full.chars().count();
    if chars > PORTABLE_KEY_CHARS {
        return Err(format!("{chars} characters; at most {PORTABLE_KEY_CHARS} are portable"));
    }
    match full.chars().find(|c| *c == ' ' || c.is_control()) {
        Some(c) => Err(format!("{c:?} is not allowed in a portable key")),
        None => Ok(()),
    }
}

fn invalid(key: &str, why: String) -> Error {
    Error::new(ErrorKind::InvalidKey, "key").with_key(key).with_source(why)
}

thread_local! {
    /// One buffer for each thread, taken by the key in use. A nested call finds none and allocates.
    static SPARE: Cell<String> = const { Cell::new(String::new()) };
}

/// A buffer with more capacity than this is freed instead of kept.
const SPARE_BYTES: usize = 4096;

/// A stored key, in the reused buffer of the thread.
#[derive(Clone)]
pub(crate) struct FullKey(String);

impl FullKey {
    fn take() -> Self {
        Self(SPARE.try_with(Cell::take).unwrap_or_default())
    }
}

impl Deref for FullKey {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for FullKey {
    fn drop(&mut self) {
        if self.0.capacity() <= SPARE_BYTES {
            self.0.clear();
            // Fails only while the thread exits; then the buffer is freed.
            let _ = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.0)));
        }
    }
}

/// A key function that keeps keys short: `prefix:version:key` as usual if that has at most 250
/// bytes, otherwise `sha256:` and 64 hexadecimal digits.
///
/// Pass it to [`Builder::key_function`](crate::Builder::key_function) if keys may be longer than
/// keepwarm (65,536 bytes) or another store accepts. Its results are the same in all versions and
/// on all platforms. Different keys have different results, unless SHA-256 collides: a short key
/// that looks like a hashed one is hashed too.
///
/// ```
/// use keepwarm::hash_long_keys;
///
/// assert_eq!(hash_long_keys("app", 1, "page"), "app:1:page");
/// assert_eq!(hash_long_keys("app", 1, &"page".repeat(100)).len(), 71);
/// ```
pub fn hash_long_keys(prefix: &str, version: i64, key: &str) -> String {
    let mut full = head(prefix, version);
    full.push_str(key);
    if full.len() <= PORTABLE_KEY_CHARS && !full.starts_with(HASHED) {
        return full;
    }
    let digest = Sha256::digest(full.as_bytes());
    full.clear();
    full.push_str(HASHED);
    for byte in digest {
        let _ = write!(full, "{byte:02x}");
    }
    full
}

const HASHED: &str = "sha256:";

#[cfg(test)]
mod tests {
    use super::*;

    fn compose(rule: &KeyRule, prefix: &str, version: i64, key: &str) -> Result<String> {
        rule.compose(prefix, version, &head(prefix, version), key).map(|full| full.to_string())
    }

    #[test]
    fn a_stored_key_is_prefix_version_key() {
        let rule = KeyRule::default();
        assert_eq!(compose(&rule, "", 1, "a").unwrap(), ":1:a");
        assert_eq!(compose(&rule, "app", -2, "").unwrap(), "app:-2:");
    }

    #[test]
    fn the_longest_key_has_64_kibibytes() {
        let rule = KeyRule::default();
        let longest = "k".repeat(MAX_KEY_BYTES - ":1:".len());
        assert_eq!(compose(&rule, "", 1, &longest).unwrap().len(), MAX_KEY_BYTES);
        let error = compose(&rule, "", 1, &(longest + "k")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
    }

    #[test]
    fn nested_keys_do_not_share_the_buffer() {
        let rule = KeyRule::default();
        let outer = rule.compose("", 1, ":1:", "outer").unwrap();
        let inner = rule.compose("", 1, ":1:", "inner").unwrap();
        assert_eq!((&*outer, &*inner), (":1:outer", ":1:inner"));
    }

    #[test]
    fn portable_keys_have_250_characters_and_no_blanks() {
        let rule = KeyRule { portable: true, ..KeyRule::default() };
        assert!(compose(&rule, "", 1, &"é".repeat(247)).is_ok());
        for bad in ["é".repeat(248), "a b".into(), "a\nb".into(), "a\u{7f}".into()] {
            assert_eq!(
                compose(&rule, "", 1, &bad).unwrap_err().kind(),
                ErrorKind::InvalidKey,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_key_that_looks_hashed_is_hashed() {
        let hashed = hash_long_keys("", 1, &"k".repeat(300));
        // Prefix "sha256" makes an ordinary key begin like a hashed one.
        let disguised = hash_long_keys("sha256", 1, "x");
        assert!(hashed.starts_with(HASHED) && disguised.starts_with(HASHED));
        assert_eq!(disguised.len(), HASHED.len() + 64);
    }
}
