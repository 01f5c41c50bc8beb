//! Claims: exclusive rights among the processes that share a store, such as the right to compute a
//! key.

use std::fmt;

/// What can be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClaimKey<'a> {
    /// The right to compute the value of a key.
    Computation(&'a str),
    /// The right that proves that the holder of the lease with this number is alive.
    Lease(u64),
}

/// The answer to a request for a claim.
#[derive(Debug)]
pub enum Claimed {
    /// The caller holds it until the [`Claim`] is dropped.
    Mine(Claim),
    /// Another thread of this process holds it.
    Here,
    /// Another process holds it.
    Elsewhere,
}

/// A claim that the caller holds until it is dropped.
///
/// The one by default is a claim that no other process can see: there are no others, or the store
/// cannot tell them.
#[derive(Default)]
pub struct Claim(Option<Box<dyn HeldClaim>>);

/// The store's side of a [`Claim`]. Dropping it releases the claim. The drop must not block: it may
/// happen on a thread of an asynchronous runtime. The store must also release the claim when the
/// process dies.
pub trait HeldClaim: Send + Sync {
    /// Whether this process inherited the claim by `fork`, so that it is the parent's and not ours.
    fn is_inherited(&self) -> bool {
        false
    }
}

impl Claim {
    /// A claim that other processes can see.
    ///
    /// ```
    /// use keepwarm::backend::{Claim, HeldClaim};
    ///
    /// struct Lock;
    /// impl HeldClaim for Lock {}
    ///
    /// assert!(Claim::new(Lock).is_seen());
    /// assert!(!Claim::default().is_seen());
    /// ```
    pub fn new(held: impl HeldClaim + 'static) -> Self {
        Self(Some(Box::new(held)))
    }

    /// Whether other processes can see the claim.
    pub fn is_seen(&self) -> bool {
        self.0.is_some()
    }

    /// Whether another process holds the claim: the one that this process was forked from.
    pub fn is_inherited(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.is_inherited())
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("is_seen", &self.is_seen()).finish_non_exhaustive()
    }
}
