//! What a check says.

use super::bench::Bench;

/// What a check that found nothing wrong says.
pub(super) enum Verdict {
    Kept,
    /// It could not be checked, for this reason.
    Unchecked(&'static str),
}

/// A check: why the promise is broken is the error.
pub(super) type Check = fn(&Bench) -> Result<Verdict, String>;

/// Ends a check, with the reason, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}
pub(super) use ensure;
