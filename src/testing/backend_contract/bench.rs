//! Fresh backends for the checks, with a clock, and short forms of the calls that the checks make.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::backend::{Backend, Change, Codec, Condition, Expiry, Outcome, Stored};
use crate::cache::{Builder, Cache};
use crate::error::{ErrorKind, Result};
use crate::time::{Clock, ManualClock, SystemClock, Timestamp};

/// Makes a fresh backend.
type Make = Arc<dyn Fn(ManualClock) -> Result<Box<dyn Backend>> + Send + Sync>;

/// Where a check gets its backends from.
#[derive(Clone)]
pub(super) struct Bench {
    make: Make,
    /// How late the server ends entries, if it keeps the time.
    pub(super) real_time: Option<Duration>,
    pub(super) outage: Option<Arc<dyn Fn(bool) + Send + Sync>>,
}

impl Bench {
    pub(super) fn new(make: Make) -> Self {
        Self { make, real_time: None, outage: None }
    }

    pub(super) fn fresh(&self) -> Result<UnderTest, String> {
        let clock = ManualClock::new();
        let backend = (self.make)(clock.clone()).map_err(|e| format!("no fresh backend: {e}"))?;
        Ok(UnderTest { backend, clock, real_time: self.real_time })
    }

    /// A cache on a fresh backend, with a clock that is the backend's.
    pub(super) fn cache(
        &self,
        options: impl FnOnce(Builder) -> Builder,
    ) -> Result<(Cache, ManualClock), String> {
        let UnderTest { backend, clock, real_time } = self.fresh()?;
        let builder = Builder::backend(backend);
        let builder = match real_time {
            Some(_) => builder.clock(SystemClock),
            None => builder.clock(clock.clone()),
        };
        let cache = options(builder).open().map_err(|e| format!("no cache: {e}"))?;
        Ok((cache, clock))
    }
}

/// A backend that is being checked.
pub(super) struct UnderTest {
    pub(super) backend: Box<dyn Backend>,
    clock: ManualClock,
    real_time: Option<Duration>,
}

impl UnderTest {
    pub(super) fn now(&self) -> Timestamp {
        match self.real_time {
            Some(_) => SystemClock.now(),
            None => self.clock.now(),
        }
    }

    /// How long the entries live whose expiry a check waits for.
    fn life(&self) -> Duration {
        match self.real_time {
            Some(resolution) => (resolution * 2).max(Duration::from_millis(300)),
            None => Duration::from_secs(1),
        }
    }

    /// An expiry that a check can wait for.
    pub(super) fn soon(&self) -> Expiry {
        self.now().checked_add(self.life())
    }

    /// An expiry that does not come during a check.
    pub(super) fn late(&self) -> Expiry {
        self.now().checked_add(Duration::from_secs(1_000_000))
    }

    /// Lets the time pass until what was to end `soon` has ended, and no longer where the clock is
    /// ours: an entry ends at its expiry, not after it.
    pub(super) fn pass(&self) {
        match self.real_time {
            Some(resolution) => {
                thread::sleep(self.life() + resolution + Duration::from_millis(50));
            }
            None => self.clock.advance(self.life()),
        }
    }

    /// Lets the time pass until a millisecond before what is to end `soon`, if the clock is ours.
    pub(super) fn pass_all_but_a_millisecond(&self) -> bool {
        if self.real_time.is_none() {
            self.clock.advance(self.life() - Duration::from_millis(1));
        }
        self.real_time.is_none()
    }

    /// Whether the expiry that was read is the one that was stored, as far as the clocks allow.
    pub(super) fn same_expiry(&self, read: Expiry, stored: Expiry) -> bool {
        match (self.real_time, read, stored) {
            (Some(resolution), Some(read), Some(stored)) => {
                let slack = resolution + Duration::from_millis(100);
                read.saturating_since(stored) <= slack && stored.saturating_since(read) <= slack
            }
            _ => read == stored,
        }
    }

    pub(super) fn commit(
        &self,
        key: &str,
        condition: Condition,
        change: Change<'_>,
    ) -> Result<Outcome, String> {
        let outcome = self.backend.commit(key, condition, change);
        outcome.map_err(|error| format!("commit of {key:?} failed: {error}"))
    }

    /// Stores raw bytes whatever is there, and returns the token.
    pub(super) fn put(&self, key: &str, value: &[u8], expires_at: Expiry) -> Result<u64, String> {
        let change = Change::store(value, Codec::Raw, expires_at);
        match self.commit(key, Condition::Always, change)? {
            Outcome::Done { token: Some(token), .. } => Ok(token),
            other => Err(format!("a store of {key:?} on no condition gave {other:?}")),
        }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Stored>, String> {
        self.backend.get(key).map_err(|error| format!("get of {key:?} failed: {error}"))
    }

    /// The bytes of `key`.
    pub(super) fn value(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.get(key)?.map(|stored| stored.value.to_vec()))
    }

    /// The stored keys that a scan hands out, in its order; `None` if the store cannot scan.
    pub(super) fn scan(&self) -> Result<Option<Vec<String>>, String> {
        let (mut keys, mut cursor) = (Vec::new(), 0);
        for _ in 0..1_000_000 {
            match self.backend.scan(cursor, &mut |key, _| keys.push(key.to_owned())) {
                Ok(Some(next)) => cursor = next,
                Ok(None) => return Ok(Some(keys)),
                Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(None),
                Err(error) => return Err(format!("scan from {cursor} failed: {error}")),
            }
        }
        Err("a scan has no end".to_owned())
    }
}
