//! Reads and writes of one value.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::call::{Call, pack};
use super::io::{Io, now};
use crate::backend::{Change, Codec, Condition, Expiry, Soft};
use crate::codec;
use crate::error::Result;
use crate::timeout::Timeout;

impl Cache {
    /// The value of `key`, or `None` if there is no entry. A stored `None` or unit is an entry like
    /// any other: `get::<Option<T>>` then returns `Some(None)`. A stale value (see
    /// [`Lifespan`](crate::Lifespan)) is returned until it expires.
    ///
    /// The value is decoded from the memory of the cache, without a copy of its bytes.
    ///
    /// ```
    /// # use keepwarm::{Cache, ErrorKind, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("answer", &42, Timeout::Default)?;
    /// assert_eq!(cache.get::<u8>("answer")?, Some(42));
    /// assert_eq!(cache.get::<u8>("question")?, None);
    /// assert_eq!(cache.get::<String>("answer").unwrap_err().kind(), ErrorKind::Decode);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Decode` if the value is not a `T`. `InvalidKey`. `Io` if the disk fails. A damaged entry is
    /// a miss.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let call = self.call("get", key)?;
        now(call.decoded(call.blocking()))
    }

    /// The bytes of `key`: what [`set_bytes`](Cache::set_bytes) stored, or a byte array that `set`
    /// stored (`Vec<u8>`, `[u8; N]`, `serde_bytes`, `bytes::Bytes`). The result may share memory
    /// with the cache instead of being a copy. In a directory, the space that it shares counts
    /// against `max_bytes` until it is dropped.
    ///
    /// In MessagePack a short array of small integers of any width looks like an array of bytes,
    /// and is returned as bytes.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set_bytes("page", b"<html>", Timeout::Default)?;
    /// assert_eq!(cache.get_bytes("page")?.as_deref(), Some(&b"<html>"[..]));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Cache::get). `Decode` if the value is not a byte array.
    pub fn get_bytes(&self, key: &str) -> Result<Option<Bytes>> {
        let call = self.call("get_bytes", key)?;
        now(call.bytes(call.blocking()))
    }

    /// Stores `value` under `key` until `timeout` has passed, and replaces the entry that is there.
    /// A timeout of zero removes the entry.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// cache.set("list", &[1, 2, 3], Duration::from_secs(5))?;
    /// cache.set("text", "no need to own it", Timeout::Never)?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Encode` if the value cannot be written as MessagePack. `ValueTooLarge`. `InvalidKey`.
    /// `NoSpace` or `Io` if the disk is full or fails. Then the old entry stays.
    ///
    /// # Panics
    /// Only if the `Serialize` of `T` panics. Then nothing is stored.
    pub fn set<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        timeout: impl Into<Timeout>,
    ) -> Result<()> {
        let call = self.call("set", key)?;
        let encoded = call.encode(value)?;
        call.commit_now(Condition::Always, pack(&encoded, self.expiry(timeout)))?;
        Ok(())
    }

    /// Stores `value` as raw bytes, until `timeout` has passed, and replaces the entry that is
    /// there. [`get_bytes`](Cache::get_bytes) reads it, and so does `get` for byte types.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set_bytes("page", b"<html>", Timeout::Default)?;
    /// assert_eq!(cache.get_bytes("page")?.as_deref(), Some(&b"<html>"[..]));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Cache::set), except `Encode`.
    pub fn set_bytes(&self, key: &str, value: &[u8], timeout: impl Into<Timeout>) -> Result<()> {
        let call = self.call("set_bytes", key)?;
        let change = Change::store(value, Codec::Raw, self.expiry(timeout));
        call.commit_now(Condition::Always, change)?;
        Ok(())
    }

    /// Stores `value` under `key` only if there is no entry, and returns whether it did. Atomic: of
    /// any number of concurrent callers, in any processes, one gets `true`.
    ///
    /// With a timeout of zero nothing is stored, and `true` means that there was no entry.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// assert!(cache.add("first", "me", Timeout::Default)?);
    /// assert!(!cache.add("first", "you", Timeout::Default)?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Cache::set).
    ///
    /// # Panics
    /// As [`set`](Cache::set).
    pub fn add<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        timeout: impl Into<Timeout>,
    ) -> Result<bool> {
        let call = self.call("add", key)?;
        let encoded = call.encode(value)?;
        now(call.add(call.blocking(), &encoded, self.expiry(timeout)))
    }

    /// Removes the entry of `key`, and returns whether there was one.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Default)?;
    /// assert!(cache.delete("a")?);
    /// assert!(!cache.delete("a")?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidKey`. `NoSpace` or `Io` if the disk is full or fails. Then the entry stays.
    pub fn delete(&self, key: &str) -> Result<bool> {
        let call = self.call("delete", key)?;
        now(call.delete(call.blocking()))
    }

    /// Whether `key` has an entry. Cheaper than `get`, because nothing is decoded. Counts as a use
    /// of the entry all the same.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &None::<u8>, Timeout::Default)?;
    /// assert!(cache.contains_key("a")?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidKey`. `Io` if the disk fails.
    #[doc(alias = "has_key")]
    pub fn contains_key(&self, key: &str) -> Result<bool> {
        let call = self.call("contains_key", key)?;
        now(call.exists(call.blocking()))
    }

    /// When an entry that is stored now with `timeout` will expire.
    pub(super) fn expiry(&self, timeout: impl Into<Timeout>) -> Expiry {
        super::expiry_policy::expiry(
            timeout.into(),
            self.shared.default_timeout,
            &*self.shared.clock,
        )
    }
}

impl Call<'_> {
    pub(super) async fn bytes(&self, io: Io<'_>) -> Result<Option<Bytes>> {
        let stored = self.stored(io).await?;
        stored.map(codec::into_bytes).transpose().map_err(|error| self.about(error))
    }

    pub(super) async fn set(
        &self,
        io: Io<'_>,
        codec: Codec,
        value: &[u8],
        expires_at: Expiry,
    ) -> Result<()> {
        let change = Change::Store { value, codec, expires_at, soft: Soft::default() };
        self.commit(io, Condition::Always, change).await?;
        Ok(())
    }

    pub(super) async fn add(&self, io: Io<'_>, encoded: &[u8], expires_at: Expiry) -> Result<bool> {
        self.took_effect(io, Condition::Absent, pack(encoded, expires_at)).await
    }

    pub(super) async fn delete(&self, io: Io<'_>) -> Result<bool> {
        self.took_effect(io, Condition::Always, Change::Delete).await
    }

    pub(super) async fn exists(&self, io: Io<'_>) -> Result<bool> {
        Ok(self.expiry(io).await?.is_some())
    }
}
