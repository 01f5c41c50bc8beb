//! What a check of the contract found.

use std::fmt;

use super::promise::Promise;

/// Which promises are kept and which are broken. `Display` shows it, a line for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "a report that is not read hides broken promises"]
pub struct Report {
    /// The broken promises, with the reason.
    pub broken: Vec<Broken>,
    /// The promises that were checked and held.
    pub kept: Vec<Promise>,
    /// The promises that were declared not to be made.
    pub exempt: Vec<Promise>,
    /// The promises that could not be checked, with the reason.
    pub unchecked: Vec<(Promise, &'static str)>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broken {
    /// Which one.
    pub promise: Promise,
    /// What was seen in place of what was promised.
    pub what: String,
}

impl Report {
    /// Whether no promise is broken.
    pub fn is_kept(&self) -> bool {
        self.broken.is_empty()
    }

    /// Whether this promise is broken.
    pub fn breaks(&self, promise: Promise) -> bool {
        self.broken.iter().any(|broken| broken.promise == promise)
    }

    /// For tests: does nothing if no promise is broken.
    ///
    /// # Panics
    /// With the report as text if a promise is broken.
    #[track_caller]
    #[expect(clippy::panic, reason = "an assertion for tests")]
    pub fn assert_kept(&self) {
        if !self.is_kept() {
            panic!("the contract is broken:\n{self}");
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for promise in &self.kept {
            writeln!(f, "kept       {promise}")?;
        }
        for promise in &self.exempt {
            writeln!(f, "exempt     {promise}")?;
        }
        for (promise, why) in &self.unchecked {
            writeln!(f, "unchecked  {promise} ({why})")?;
        }
        for Broken { promise, what } in &self.broken {
            writeln!(f, "BROKEN     {promise}\n           {promise:?}: {what}")?;
        }
        write!(f, "{} kept, {} broken", self.kept.len(), self.broken.len())
    }
}
