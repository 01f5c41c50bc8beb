//! The promises by name, and the check of each.

use std::fmt;

use super::verdict::Check;
use super::{asynchronous, expiry, failure, recorded, store, threads, values};

/// Makes the enum, the list of all, and the table of checks from one list.
macro_rules! promises {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $check:path, $needs_entries:literal, $text:literal;
    )+) => {
        /// A promise of [`backend`](crate::backend). Its `Display` text says it in words.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Promise {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Promise {
            /// All of them, in the order in which they are checked.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Whether only a store that keeps what it is given can keep the promise.
            pub fn needs_entries(self) -> bool {
                match self {
                    $(Self::$name => $needs_entries,)+
                }
            }

            pub(super) fn check(self) -> Check {
                match self {
                    $(Self::$name => $check,)+
                }
            }
        }

        impl fmt::Display for Promise {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)+
                })
            }
        }
    };
}

promises! {
    /// Value, codec, expiry and freshness come back as they were stored.
    StoresWhatItIsGiven: values::stores_what_it_is_given, true,
        "value, codec, expiry and freshness come back as stored";
    /// Keys that differ in any byte have entries of their own; the empty key works.
    KeysAreApart: values::keys_are_apart, true,
        "keys that differ have entries of their own";
    /// A key has up to 65,536 bytes.
    LongKeys: values::long_keys, true,
        "keys of 65,536 bytes work";
    /// A value of 1 MiB comes back, if the limits leave room for it.
    LargeValues: values::large_values, true,
        "a value of 1 MiB comes back";
    /// All methods that read agree with each other.
    ReadsAgree: values::reads_agree, true,
        "get, visit, get_decoded, expiry_of, stream and weight agree";
    /// A `visit` closure may call the backend again.
    VisitsHoldNoLock: values::visits_hold_no_lock, true,
        "a visit may call the backend again";
    /// What a read returned stays as it is after the entry is replaced, cleared, and the store
    /// closed.
    ValuesOutliveEntries: values::values_outlive_entries, true,
        "what was read stays valid after its entry is gone";
    /// A value that is written in pieces is an entry when it is committed, and not before.
    SpoolsCommitWhole: values::spools_commit_whole, true,
        "a value written in pieces is there after its commit, and not before";
    /// A commit takes effect if its condition holds, and changes nothing otherwise.
    ConditionsDecide: store::conditions_decide, true,
        "a commit takes effect exactly if its condition holds";
    /// A touch changes the expiry and the token, ends the stale time, and keeps the value.
    TouchKeepsTheValue: store::touch_keeps_the_value, true,
        "a touch changes expiry and token and keeps the value";
    /// Every change of an entry gives it a token that its key never had, and never 0.
    TokensAreUnique: store::tokens_are_unique, true,
        "no token is used twice for a key";
    /// A copy has value, expiry and freshness of its original.
    CopiesAreComplete: store::copies_are_complete, true,
        "a copy has value, expiry and freshness of its original";
    /// After a clear no entry is left, whatever its prefix.
    ClearEmpties: store::clear_empties, false,
        "clear leaves no entry";
    /// The number of entries is right while nothing changes.
    LenCounts: store::len_counts, true,
        "len is the number of entries";
    /// A scan hands out every entry that stays.
    ScanFindsAll: store::scan_finds_all, true,
        "a scan hands out every entry that stays";
    /// A scan hands out no entry twice.
    ScanRepeatsNothing: store::scan_repeats_nothing, true,
        "a scan hands out no entry twice";
    /// After a close the store works on by itself, with its entries.
    CloseLosesNothing: store::close_loses_nothing, true,
        "after a close the entries are there";
    /// There are never more entries than `max_entries` in force, and the newest stays.
    LimitsHold: store::limits_hold, true,
        "no more than max_entries entries, and the newest stays";
    /// From its expiry on, an entry is seen by no read, condition or scan.
    ExpiredIsAbsent: expiry::expired_is_absent, true,
        "an expired entry is seen by no read, condition or scan";
    /// An entry is there until its expiry.
    LivesUntilItsExpiry: expiry::lives_until_its_expiry, true,
        "an entry is there until its expiry";
    /// A commit with an expiry that has passed leaves the key without an entry.
    PastExpiryStoresNothing: expiry::past_expiry_stores_nothing, false,
        "a commit with an expiry that has passed leaves no entry";
    /// Of any number of `add`s of a key at the same time one succeeds.
    AddHasOneWinner: threads::add_has_one_winner, true,
        "of concurrent adds of a key one succeeds";
    /// Of any number of commits on condition of the same token one succeeds.
    SwapHasOneWinner: threads::swap_has_one_winner, true,
        "of concurrent swaps of a token one succeeds";
    /// No increment is lost and none counts twice.
    CountersAreExact: threads::counters_are_exact, true,
        "concurrent increments are all counted, once";
    /// A read gives the bytes of one write.
    ReadersSeeWholeValues: threads::readers_see_whole_values, true,
        "a read gives the bytes of one write";
    /// A read after a commit has returned sees it, or a later one, in every thread.
    ReadYourWrites: threads::read_your_writes, true,
        "a read after a commit sees it or a later one";
    /// Where claims are seen by others, one caller at a time holds the claim on a key.
    ComputationsAreClaimed: store::computations_are_claimed, false,
        "a claim that others see has one holder";
    /// A value that does not fit is refused as `ValueTooLarge`, and the entry stays.
    RefusalsChangeNothing: failure::refusals_change_nothing, true,
        "a value that is too large is refused and changes nothing";
    /// While the server is unreachable every call is an error of a fitting kind; afterwards every
    /// entry is there.
    OutagesLoseNothing: failure::outages_lose_nothing, true,
        "an outage is an error, no miss, and loses nothing";
    /// A cache on the store answers recorded operations as Django's caches do.
    RecordedOperations: recorded::recorded_operations, true,
        "recorded operations are answered as recorded";
    /// The asynchronous side, if there is one, has the same entries and answers.
    AsyncSideAgrees: asynchronous::async_side_agrees, true,
        "the asynchronous side has the same entries and answers";
}
