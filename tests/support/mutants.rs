//! The toy backend, made wrong in one way each: what the conformance suite has to catch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock, TryLockError};
use std::thread;

use keepwarm::backend::{
    Backend, Change, Claim, ClaimKey, Claimed, Codec, Condition, Expiry, HeldClaim, Item, Limits,
    NewLimits, Outcome, Soft, Spool, Stored,
};
use keepwarm::testing::backend_contract::{Contract, Promise};
use keepwarm::{Clock, Error, ErrorKind, ManualClock, Result, Timestamp};

use crate::toy_backend::Toy;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    None,
    Panics,
    AddInTwoSteps,
    SwapInTwoSteps,
    NeverExpires,
    ExpiresAMillisecondLate,
    ExpiresAMillisecondEarly,
    ExpiredCountsAsPresent,
    ClearLeavesAnEntry,
    ClearBeginsTokensAgain,
    DeleteBeginsTokensAgain,
    TouchKeepsTheToken,
    LosesTheFreshness,
    LosesTheCodec,
    TouchLosesTheValue,
    OutageIsAMiss,
    OutageIsNoError,
    CountsNothing,
    ScanLeavesOneOut,
    ScanRepeatsOne,
    ScanGivesExpired,
    LocksDuringVisits,
    IgnoresItsLimits,
    CutsLargeValues,
    TakesWhatIsTooLarge,
    RefusesAsIo,
    FoldsKeys,
    CutsKeys,
    TakesPresentForAlways,
    StoresThePast,
    ReadsAnOlderValue,
    WritesInTwoHalves,
    CloseForgets,
    CopiesWithoutExpiry,
    ClaimsTwice,
    DeletesNothingAsDone,
    SpoolsLosePieces,
    ExpiryOfIsNever,
    #[cfg(feature = "async")]
    AsyncSideIsAnotherStore,
}

use Mutant as M;
use Promise as P;

/// Each mutant, with the promise that has to catch it.
pub(crate) const MUTANTS: &[(Mutant, Promise)] = &[
    (M::AddInTwoSteps, P::AddHasOneWinner),
    (M::SwapInTwoSteps, P::SwapHasOneWinner),
    (M::SwapInTwoSteps, P::CountersAreExact),
    (M::NeverExpires, P::ExpiredIsAbsent),
    (M::ExpiresAMillisecondLate, P::ExpiredIsAbsent),
    (M::ExpiresAMillisecondEarly, P::LivesUntilItsExpiry),
    (M::ExpiredCountsAsPresent, P::ExpiredIsAbsent),
    (M::ClearLeavesAnEntry, P::ClearEmpties),
    (M::ClearBeginsTokensAgain, P::TokensAreUnique),
    (M::DeleteBeginsTokensAgain, P::TokensAreUnique),
    (M::TouchKeepsTheToken, P::TokensAreUnique),
    (M::TouchKeepsTheToken, P::TouchKeepsTheValue),
    (M::LosesTheFreshness, P::StoresWhatItIsGiven),
    (M::LosesTheCodec, P::StoresWhatItIsGiven),
    (M::TouchLosesTheValue, P::TouchKeepsTheValue),
    (M::OutageIsAMiss, P::OutagesLoseNothing),
    (M::OutageIsNoError, P::OutagesLoseNothing),
    (M::CountsNothing, P::LenCounts),
    (M::ScanLeavesOneOut, P::ScanFindsAll),
    (M::ScanRepeatsOne, P::ScanRepeatsNothing),
    (M::ScanGivesExpired, P::ExpiredIsAbsent),
    (M::LocksDuringVisits, P::VisitsHoldNoLock),
    (M::IgnoresItsLimits, P::LimitsHold),
    (M::CutsLargeValues, P::LargeValues),
    (M::TakesWhatIsTooLarge, P::RefusalsChangeNothing),
    (M::RefusesAsIo, P::RefusalsChangeNothing),
    (M::FoldsKeys, P::KeysAreApart),
    (M::CutsKeys, P::LongKeys),
    (M::TakesPresentForAlways, P::ConditionsDecide),
    (M::StoresThePast, P::PastExpiryStoresNothing),
    (M::ReadsAnOlderValue, P::ReadYourWrites),
    (M::WritesInTwoHalves, P::ReadersSeeWholeValues),
    (M::CloseForgets, P::CloseLosesNothing),
    (M::CopiesWithoutExpiry, P::CopiesAreComplete),
    (M::ClaimsTwice, P::ComputationsAreClaimed),
    (M::DeletesNothingAsDone, P::ConditionsDecide),
    (M::DeletesNothingAsDone, P::RecordedOperations),
    (M::SpoolsLosePieces, P::SpoolsCommitWhole),
    (M::ExpiryOfIsNever, P::ReadsAgree),
    #[cfg(feature = "async")]
    (M::AsyncSideIsAnotherStore, P::AsyncSideAgrees),
];

pub(crate) fn contract_of(mutant: Mutant) -> Contract {
    let outage = Arc::new(AtomicBool::new(false));
    let switch = outage.clone();
    Contract::new(move |clock| Ok(Box::new(Wrong::new(mutant, clock, outage.clone()))))
        .outage(move |on| switch.store(on, SeqCst))
}

/// The clock of the suite, `ahead` milliseconds ahead of it.
struct Shifted {
    clock: ManualClock,
    ahead: i64,
}

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.now().as_millis().saturating_add_signed(self.ahead))
    }
}

/// A value on its way into the toy.
struct Pieces {
    toy: Arc<Toy>,
    loses: bool,
    bytes: Vec<u8>,
}

impl Spool for Pieces {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.loses || self.bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn commit(self: Box<Self>, key: &str, expires_at: Expiry) -> Result<()> {
        let change = Change::store(&self.bytes, Codec::Raw, expires_at);
        self.toy.commit(key, Condition::Always, change).map(drop)
    }
}

struct Wrong {
    mutant: Mutant,
    clock: ManualClock,
    outage: Arc<AtomicBool>,
    toy: RwLock<Arc<Toy>>,
    /// What was read first of each key, and how often.
    read: Mutex<HashMap<String, (Stored, u64)>>,
    configured: AtomicU64,
    visits: Mutex<()>,
    #[cfg(feature = "async")]
    other: Toy,
}

impl Wrong {
    fn new(mutant: Mutant, clock: ManualClock, outage: Arc<AtomicBool>) -> Self {
        Self {
            mutant,
            toy: RwLock::new(Arc::new(Self::toy(mutant, &clock, &outage))),
            #[cfg(feature = "async")]
            other: Self::toy(mutant, &clock, &outage),
            clock,
            outage,
            read: Mutex::default(),
            configured: AtomicU64::new(u64::MAX),
            visits: Mutex::new(()),
        }
    }

    fn toy(mutant: Mutant, clock: &ManualClock, outage: &Arc<AtomicBool>) -> Toy {
        let shifted = |ahead| Toy::new(Shifted { clock: clock.clone(), ahead }, outage.clone());
        match mutant {
            Mutant::NeverExpires => Toy::new(ManualClock::new(), outage.clone()),
            Mutant::ExpiresAMillisecondLate => shifted(-1),
            Mutant::ExpiresAMillisecondEarly => shifted(1),
            _ => Toy::new(clock.clone(), outage.clone()),
        }
    }

    fn with<R>(&self, f: impl FnOnce(&Toy) -> R) -> R {
        let toy = self.toy.read().unwrap().clone();
        f(&toy)
    }

    /// All entries and tokens begin again.
    fn replace(&self) {
        *self.toy.write().unwrap() = Arc::new(Self::toy(self.mutant, &self.clock, &self.outage));
    }

    fn key<'a>(&self, key: &'a str) -> std::borrow::Cow<'a, str> {
        match self.mutant {
            Mutant::FoldsKeys => key.to_lowercase().into(),
            Mutant::CutsKeys => key.chars().take(250).collect::<String>().into(),
            _ => key.into(),
        }
    }

    fn has_passed(&self, end: Expiry) -> bool {
        end.is_some_and(|end| end <= self.clock.now())
    }
}

impl Backend for Wrong {
    fn get(&self, key: &str) -> Result<Option<Stored>> {
        let key = &*self.key(key);
        let found = self.with(|toy| toy.get(key));
        match self.mutant {
            Mutant::Panics => panic!("on purpose"),
            Mutant::OutageIsAMiss => Ok(found.unwrap_or(None)),
            Mutant::LosesTheCodec => Ok(found?.map(|stored| {
                Stored::new(stored.value, Codec::Raw, stored.expires_at, stored.token)
                    .with_soft(stored.soft)
            })),
            Mutant::ReadsAnOlderValue => {
                let Some(found) = found? else { return Ok(None) };
                let mut read = self.read.lock().unwrap();
                let (older, times) = read.entry(key.to_owned()).or_insert((found.clone(), 0));
                *times += 1;
                if times.is_multiple_of(50) {
                    *older = found;
                }
                Ok(Some(older.clone()))
            }
            _ => found,
        }
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        let key = &*self.key(key);
        let inner = |condition, change| self.with(|toy| toy.commit(key, condition, change));
        let token = || -> Result<Option<u64>> {
            Ok(self.with(|toy| toy.get(key))?.map(|stored| stored.token))
        };
        match (self.mutant, condition, change) {
            (Mutant::AddInTwoSteps, Condition::Absent, _) => {
                if let Some(current) = token()? {
                    return Ok(Outcome::Refused { current: Some(current) });
                }
                thread::yield_now();
                inner(Condition::Always, change)
            }
            (Mutant::SwapInTwoSteps, Condition::Token(expected), _) => {
                let current = token()?;
                if current != Some(expected) {
                    return Ok(Outcome::Refused { current });
                }
                thread::yield_now();
                inner(Condition::Always, change)
            }
            (Mutant::ExpiredCountsAsPresent, Condition::Absent, _)
                if self.with(Toy::len)? > 1 && token()?.is_none() =>
            {
                Ok(Outcome::Refused { current: None })
            }
            (Mutant::DeleteBeginsTokensAgain, _, Change::Delete) => {
                let outcome = inner(condition, change)?;
                self.replace();
                Ok(outcome)
            }
            (
                Mutant::TouchKeepsTheToken,
                Condition::Always | Condition::Present,
                Change::Touch { .. },
            ) => match token()? {
                Some(token) => Ok(Outcome::Done { token: Some(token), existed: true }),
                None => Ok(Outcome::Refused { current: None }),
            },
            (Mutant::LosesTheFreshness, _, Change::Store { .. }) => {
                inner(condition, change.with_soft(Soft::default()))
            }
            (Mutant::TouchLosesTheValue, _, Change::Touch { expires_at }) => match token()? {
                Some(_) => inner(condition, Change::store(b"", Codec::Raw, expires_at)),
                None => inner(condition, change),
            },
            (Mutant::OutageIsNoError, ..) => {
                inner(condition, change).or(Ok(Outcome::Done { token: None, existed: false }))
            }
            (Mutant::CutsLargeValues, _, Change::Store { value, codec, expires_at, soft, .. }) => {
                let value = &value[..value.len().min(100_000)];
                inner(condition, Change::store(value, codec, expires_at).with_soft(soft))
            }
            (Mutant::TakesWhatIsTooLarge | Mutant::RefusesAsIo, ..) => inner(condition, change)
                .or_else(|error| match error.kind() {
                    ErrorKind::ValueTooLarge if self.mutant == Mutant::RefusesAsIo => {
                        Err(Error::new(ErrorKind::Io, "store"))
                    }
                    ErrorKind::ValueTooLarge => Ok(Outcome::Done { token: Some(1), existed: true }),
                    _ => Err(error),
                }),
            (Mutant::TakesPresentForAlways, Condition::Present, _) => {
                inner(Condition::Always, change)
            }
            (Mutant::StoresThePast, _, Change::Store { value, codec, expires_at, .. })
                if self.has_passed(expires_at) =>
            {
                inner(condition, Change::store(value, codec, None))
            }
            (Mutant::WritesInTwoHalves, _, Change::Store { value, codec, expires_at, .. })
                if value.len() > 900 =>
            {
                let mut half = value.to_vec();
                half[..450].fill(0);
                inner(condition, Change::store(&half, codec, expires_at))?;
                thread::yield_now();
                inner(Condition::Always, change)
            }
            (Mutant::DeletesNothingAsDone, _, Change::Delete) => match inner(condition, change)? {
                Outcome::Refused { current: None } => {
                    Ok(Outcome::Done { token: None, existed: false })
                }
                outcome => Ok(outcome),
            },
            _ => inner(condition, change),
        }
    }

    fn clear(&self) -> Result<()> {
        match self.mutant {
            Mutant::ClearBeginsTokensAgain => self.replace(),
            Mutant::ClearLeavesAnEntry => {
                let mut keys = Vec::new();
                self.scan(0, &mut |key, _| keys.push(key.to_owned()))?;
                for key in keys.iter().skip(1) {
                    self.commit(key, Condition::Always, Change::Delete)?;
                }
            }
            _ => return self.with(Toy::clear),
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        match self.mutant {
            Mutant::CountsNothing => Ok(0),
            _ => self.with(Toy::len),
        }
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        if self.mutant == Mutant::ScanGivesExpired && cursor == 0 {
            visit("expired", Item::new(b"value", Codec::Raw, None, 1));
        }
        self.with(|toy| {
            toy.scan(cursor, &mut |key, item| match self.mutant {
                Mutant::ScanLeavesOneOut if key.ends_with("key 17") => {}
                Mutant::ScanRepeatsOne if key.ends_with("key 17") => {
                    visit(key, item);
                    visit(key, item);
                }
                _ => visit(key, item),
            })
        })
    }

    fn visit(&self, key: &str, visit: &mut dyn FnMut(Item<'_>)) -> Result<bool> {
        let locked = (self.mutant == Mutant::LocksDuringVisits).then(|| self.visits.try_lock());
        // A lock that would wait for itself for ever says so instead.
        if let Some(Err(TryLockError::WouldBlock)) = locked {
            return Err(Error::new(ErrorKind::Busy, "visit"));
        }
        let found = self.get(key)?;
        if let Some(stored) = &found {
            visit(stored.item());
        }
        Ok(found.is_some())
    }

    fn expiry_of(&self, key: &str) -> Result<Option<Expiry>> {
        let found = self.get(key)?;
        Ok(found.map(|stored| match self.mutant {
            Mutant::ExpiryOfIsNever => None,
            _ => stored.expires_at,
        }))
    }

    fn spool(&self) -> Result<Option<Box<dyn Spool>>> {
        let toy = self.toy.read().unwrap().clone();
        let pieces = Pieces { toy, loses: self.mutant == Mutant::SpoolsLosePieces, bytes: vec![] };
        Ok(Some(Box::new(pieces)))
    }

    fn copy(&self, from: &str, to: &str) -> Result<Option<u64>> {
        let Some(stored) = self.get(from)? else { return Ok(None) };
        let end = stored.expires_at.filter(|_| self.mutant != Mutant::CopiesWithoutExpiry);
        let change = Change::store(&stored.value, stored.codec, end).with_soft(stored.soft);
        self.commit(to, Condition::Always, change)?;
        Ok(Some(stored.token))
    }

    fn claim(&self, _: ClaimKey<'_>) -> Claimed {
        struct Free;
        impl HeldClaim for Free {}
        match self.mutant {
            Mutant::ClaimsTwice => Claimed::Mine(Claim::new(Free)),
            _ => Claimed::Mine(Claim::default()),
        }
    }

    fn close(&self) -> Result<()> {
        match self.mutant {
            Mutant::CloseForgets => self.with(Toy::clear),
            _ => Ok(()),
        }
    }

    fn limits(&self) -> Limits {
        let mut limits = self.with(Toy::limits);
        if self.mutant == Mutant::IgnoresItsLimits {
            limits.max_entries = self.configured.load(SeqCst);
        }
        limits
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        if self.mutant == Mutant::IgnoresItsLimits {
            self.configured.store(new.over(self.limits()).max_entries, SeqCst);
            return Ok(self.limits());
        }
        self.with(|toy| toy.configure(new))
    }

    #[cfg(feature = "async")]
    fn as_async(&self) -> Option<&dyn keepwarm::backend::AsyncBackend> {
        Some(self)
    }
}

#[cfg(feature = "async")]
impl Wrong {
    /// What the asynchronous side is of.
    fn side(&self) -> &dyn Backend {
        match self.mutant {
            Mutant::AsyncSideIsAnotherStore => &self.other,
            _ => self,
        }
    }
}

#[cfg(feature = "async")]
impl keepwarm::backend::AsyncBackend for Wrong {
    fn get<'a>(&'a self, key: &'a str) -> keepwarm::backend::BoxFuture<'a, Result<Option<Stored>>> {
        Box::pin(async move { self.side().get(key) })
    }

    fn commit<'a>(
        &'a self,
        key: &'a str,
        condition: Condition,
        change: Change<'a>,
    ) -> keepwarm::backend::BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move { self.side().commit(key, condition, change) })
    }

    fn clear(&self) -> keepwarm::backend::BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.side().clear() })
    }
}
