//! The asynchronous side of a backend, for stores that do not block: clients of a server.

use std::pin::Pin;

use super::{
    Change, CheckReport, Claim, ClaimKey, Claimed, Condition, Expiry, Limits, NewLimits, Outcome,
    ProcessStats, Stats, Stored,
};
use crate::error::{Error, Result};

/// A future on the heap, as the methods of [`AsyncBackend`] return it:
/// `Box::pin(async move { … })`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Some entries of a scan, and where to continue.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ScanBatch {
    /// Stored keys and entries.
    pub entries: Vec<(String, Stored)>,
    /// The cursor of the next call; `None` at the end.
    pub next: Option<u64>,
}

impl ScanBatch {
    /// The batch `entries`, after which the scan continues at `next`.
    pub fn new(entries: Vec<(String, Stored)>, next: Option<u64>) -> Self {
        Self { entries, next }
    }
}

/// The asynchronous side of a [`Backend`](super::Backend), which offers it by
/// [`as_async`](super::Backend::as_async). `AsyncCache` awaits it in place of the blocking methods;
/// a `Cache` calls the blocking ones. Both sides have the same entries and keep the same promises.
///
/// Each method does what the method of `Backend` with its name does, and fails as that does. In
/// addition:
///
/// - **No method blocks** the thread that polls it, and none needs a particular runtime of the
///   caller unless the backend says so.
/// - **A future may be dropped at any time.** Then the outcome of a change is unknown, as after
///   `UnknownOutcome`; nothing else breaks: no lock stays held, no later answer goes to the wrong
///   caller.
/// - A future does nothing before it is polled for the first time.
///
/// Required are [`get`](AsyncBackend::get), [`commit`](AsyncBackend::commit) and
/// [`clear`](AsyncBackend::clear). What does no I/O (`limits`, `stats`) is asked of `Backend`.
///
/// ```
/// use keepwarm::backend::{
///     AsyncBackend, Backend, BoxFuture, Change, Condition, Outcome, Stored,
/// };
/// use keepwarm::{Cache, Result};
///
/// /// A store that has nothing, however it is asked.
/// struct Nothing;
///
/// impl Backend for Nothing {
///     fn get(&self, _: &str) -> Result<Option<Stored>> {
///         Ok(None)
///     }
///     fn commit(&self, _: &str, _: Condition, _: Change<'_>) -> Result<Outcome> {
///         Ok(Outcome::Done { token: None, existed: false })
///     }
///     fn clear(&self) -> Result<()> {
///         Ok(())
///     }
///     fn as_async(&self) -> Option<&dyn AsyncBackend> {
///         Some(self)
///     }
/// }
///
/// impl AsyncBackend for Nothing {
///     fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Stored>>> {
///         Box::pin(async { Ok(None) })
///     }
///     fn commit<'a>(
///         &'a self,
///         _: &'a str,
///         _: Condition,
///         _: Change<'a>,
///     ) -> BoxFuture<'a, Result<Outcome>> {
///         Box::pin(async { Ok(Outcome::Done { token: None, existed: false }) })
///     }
///     fn clear(&self) -> BoxFuture<'_, Result<()>> {
///         Box::pin(async { Ok(()) })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> keepwarm::Result<()> {
/// let cache = Cache::with_backend(Nothing).into_async();
/// assert_eq!(cache.get::<u8>("a").await?, None);
/// # Ok(())
/// # }
/// ```
#[expect(clippy::len_without_is_empty, reason = "a count that may be unknown; `Cache` has both")]
pub trait AsyncBackend: Send + Sync {
    /// As [`Backend::get`](super::Backend::get).
    ///
    /// # Errors
    /// As [`Backend::get`](super::Backend::get).
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Stored>>>;

    /// As [`Backend::commit`](super::Backend::commit).
    ///
    /// # Errors
    /// As [`Backend::commit`](super::Backend::commit).
    fn commit<'a>(
        &'a self,
        key: &'a str,
        condition: Condition,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Outcome>>;

    /// As [`Backend::clear`](super::Backend::clear).
    ///
    /// # Errors
    /// As [`Backend::clear`](super::Backend::clear).
    fn clear(&self) -> BoxFuture<'_, Result<()>>;

    /// As [`Backend::len`](super::Backend::len). By default `Unsupported`.
    ///
    /// # Errors
    /// As [`Backend::len`](super::Backend::len).
    fn len(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { Err(Error::unsupported("len")) })
    }

    /// As [`Backend::scan`](super::Backend::scan), with the entries in the result. By default
    /// `Unsupported`.
    ///
    /// # Errors
    /// As [`Backend::scan`](super::Backend::scan).
    fn scan(&self, cursor: u64) -> BoxFuture<'_, Result<ScanBatch>> {
        let _ = cursor;
        Box::pin(async { Err(Error::unsupported("scan")) })
    }

    /// As [`Backend::scan_keys`](super::Backend::scan_keys). By default it is
    /// [`scan`](AsyncBackend::scan).
    ///
    /// # Errors
    /// As [`Backend::scan`](super::Backend::scan).
    fn scan_keys(&self, cursor: u64) -> BoxFuture<'_, Result<ScanBatch>> {
        self.scan(cursor)
    }

    /// As [`Backend::expiry_of`](super::Backend::expiry_of). By default it is
    /// [`get`](AsyncBackend::get).
    ///
    /// # Errors
    /// As [`Backend::get`](super::Backend::get).
    fn expiry_of<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Expiry>>> {
        Box::pin(async move { Ok(self.get(key).await?.map(|entry| entry.expires_at)) })
    }

    /// As [`Backend::copy`](super::Backend::copy). By default it is [`get`](AsyncBackend::get) and
    /// [`commit`](AsyncBackend::commit).
    ///
    /// # Errors
    /// As [`Backend::copy`](super::Backend::copy).
    fn copy<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async move {
            let Some(Stored { value, codec, expires_at, soft, token }) = self.get(from).await?
            else {
                return Ok(None);
            };
            let change = Change::store(&value, codec, expires_at).with_soft(soft);
            self.commit(to, Condition::Always, change).await?;
            Ok(Some(token))
        })
    }

    /// As [`Backend::claim`](super::Backend::claim). By default a claim that no other process sees.
    fn claim<'a>(&'a self, key: ClaimKey<'a>) -> BoxFuture<'a, Claimed> {
        let _ = key;
        Box::pin(async { Claimed::Mine(Claim::default()) })
    }

    /// As [`Backend::maintain`](super::Backend::maintain). Default: nothing.
    ///
    /// # Errors
    /// As [`Backend::maintain`](super::Backend::maintain).
    fn maintain(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// As [`Backend::flush`](super::Backend::flush). Default: nothing.
    ///
    /// # Errors
    /// As [`Backend::flush`](super::Backend::flush).
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// As [`Backend::close`](super::Backend::close). Default: nothing.
    ///
    /// # Errors
    /// As [`Backend::close`](super::Backend::close).
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// As [`Backend::configure`](super::Backend::configure). By default `Unsupported`.
    ///
    /// # Errors
    /// As [`Backend::configure`](super::Backend::configure).
    fn configure<'a>(&'a self, new: &'a NewLimits) -> BoxFuture<'a, Result<Limits>> {
        let _ = new;
        Box::pin(async { Err(Error::unsupported("configure")) })
    }

    /// As [`Backend::total_stats`](super::Backend::total_stats). `None`, the default: ask
    /// [`Backend::stats`](super::Backend::stats), which does no I/O.
    ///
    /// # Errors
    /// As [`Backend::total_stats`](super::Backend::total_stats).
    fn total_stats(&self) -> BoxFuture<'_, Result<Option<Stats>>> {
        Box::pin(async { Ok(None) })
    }

    /// As [`Backend::process_stats`](super::Backend::process_stats). Default: `None`.
    ///
    /// # Errors
    /// As [`Backend::process_stats`](super::Backend::process_stats).
    fn process_stats(&self) -> BoxFuture<'_, Result<Option<Vec<ProcessStats>>>> {
        Box::pin(async { Ok(None) })
    }

    /// As [`Backend::check`](super::Backend::check). By default there is nothing to verify.
    ///
    /// # Errors
    /// As [`Backend::check`](super::Backend::check).
    fn check(&self) -> BoxFuture<'_, Result<CheckReport>> {
        Box::pin(async { Ok(CheckReport::default()) })
    }
}
