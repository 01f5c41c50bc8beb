//! Which entries the culler gives up: a pure function of how many entries there are of each kind and age.
//!
//! *LRU.* The oldest go, and of one age those that were written first.
//!
//! *Adaptive* (after S3-FIFO, Yang et al., SOSP 2023). Entries come on trial. While more are on trial than their
//! share, the oldest of them are looked at: one that was used twice or more is proven from now on, another goes.
//! Otherwise the oldest proven ones are: one that was used since it was last looked at gives one use for another
//! turn, another goes. What was given up on trial and is soon asked for again is proven at once, and it moves the
//! share (see [`balance`](crate::engine::eviction::ghosts)).
//!
//! It departs from S3-FIFO in two ways. Entries are ordered by their last use where that has queues, since the stamp of
//! the last use is there already: it keeps what is used in bursts. And the share of entries on trial is not a tenth
//! but what pays: with a tenth, no choice of the other numbers did for all of the traces in `benches/hit_ratio`.

use crate::engine::hints::{Hint, MOST_USES};
use crate::options::Eviction;

/// Ages are told apart up to this many ticks; the clock ticks 256 times while the cache turns over once.
const AGES: usize = 1024;
/// So many uses on trial prove an entry.
const PROVES: u8 = 2;

const KINDS: usize = 3 + MOST_USES as usize;

/// What the choice is made by, beside the age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Probation,
    /// On trial, and used often enough.
    Passed,
    /// Main, with so many uses to its credit.
    Main(u8),
}

impl Queue {
    fn of(policy: Eviction, hint: Hint) -> Self {
        match policy {
            Eviction::Adaptive if hint.is_main() => Self::Main(hint.uses()),
            Eviction::Adaptive if hint.uses() >= PROVES => Self::Passed,
            _ => Self::Probation,
        }
    }

    fn number(self) -> usize {
        match self {
            Self::Probation => 0,
            Self::Passed => 1,
            Self::Main(uses) => 2 + usize::from(uses),
        }
    }
}

/// How many entries there are of each kind and age.
pub(crate) struct Ages {
    policy: Eviction,
    counts: Vec<[u32; AGES]>,
}

/// Up to where a choice goes: everything older, and so many of that age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    age: usize,
    of_that_age: u64,
}

impl Edge {
    const NOTHING: Self = Self { age: AGES, of_that_age: 0 };
}

/// Which entries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    policy: Eviction,
    probation: Edge,
    proven: Edge,
    /// How often every proven entry was looked at before the edge was come to.
    rounds: u8,
}

/// What a choice means for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Stays,
    Goes,
    /// It is one of those that [`Choice::at_the_edge`] says how many go of, of the first or the second kind.
    AtTheEdge(usize),
    /// It stays, with another hint.
    Becomes(Hint),
}

fn bin(age: u32) -> usize {
    (age as usize).min(AGES - 1)
}

impl Ages {
    pub(crate) fn new(policy: Eviction) -> Self {
        let kinds = if policy == Eviction::Lru { 1 } else { KINDS };
        Self { policy, counts: vec![[0; AGES]; kinds] }
    }

    /// Counts an entry; `now` is the recency clock.
    pub(crate) fn add(&mut self, hint: Hint, now: u32) {
        let kind = Queue::of(self.policy, hint);
        self.counts[kind.number()][bin(hint.age(now))] += 1;
    }

    /// How many entries were counted.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().flatten().map(|count| u64::from(*count)).sum()
    }

    fn of(&self, kind: Queue, age: usize) -> u64 {
        self.counts.get(kind.number()).map_or(0, |ages| u64::from(ages[age]))
    }

    fn all(&self, kind: Queue) -> u64 {
        (0..AGES).map(|age| self.of(kind, age)).sum()
    }

    /// Looks at entries of `kind`, the oldest first, until `left` of them are found, or `enough` says so of an age.
    /// Takes what it found from `left`.
    fn edge(&self, kind: Queue, left: &mut u64, mut enough: impl FnMut(usize) -> bool) -> Edge {
        for age in (0..AGES).rev() {
            if enough(age) {
                return Edge { age, of_that_age: 0 };
            }
            let there = self.of(kind, age);
            if there >= *left {
                return Edge { age, of_that_age: std::mem::take(left) };
            }
            *left -= there;
        }
        Edge { age: 0, of_that_age: self.of(kind, 0) }
    }

    /// The choice that makes `count` entries go, or all. `share`: how many may be on trial.
    pub(crate) fn choose(&self, count: u64, share: u64) -> Choice {
        match self.policy {
            Eviction::Lru => self.choose_oldest(count),
            Eviction::Adaptive => self
                .choose_adaptively(count, share)
                .unwrap_or_else(|| self.flat().choose_oldest(count)),
        }
    }

    fn choose_oldest(&self, count: u64) -> Choice {
        let probation = self.edge(Queue::Probation, &mut { count }, |_| false);
        Choice { policy: Eviction::Lru, probation, proven: Edge::NOTHING, rounds: 0 }
    }

    /// The same entries, whatever their kind.
    fn flat(&self) -> Self {
        let mut flat = Self::new(Eviction::Lru);
        for ages in &self.counts {
            for (sum, count) in flat.counts[0].iter_mut().zip(ages) {
                *sum += count;
            }
        }
        flat
    }

    /// `None` if that would take more entries on trial than may go.
    fn choose_adaptively(&self, count: u64, share: u64) -> Option<Choice> {
        let mut left = count;
        // As many as go now are soon there again, on trial.
        let share = share.saturating_sub(count);
        let mut too_many =
            (self.all(Queue::Probation) + self.all(Queue::Passed)).saturating_sub(share);
        let probation = self.edge(Queue::Probation, &mut left, |age| {
            let is_enough = too_many == 0;
            too_many = too_many
                .saturating_sub(self.of(Queue::Probation, age) + self.of(Queue::Passed, age));
            is_enough
        });
        let mut choice =
            Choice { policy: Eviction::Adaptive, probation, proven: Edge::NOTHING, rounds: 0 };
        while left > 0 {
            if choice.rounds > MOST_USES {
                return None;
            }
            choice.proven = self.edge(Queue::Main(choice.rounds), &mut left, |_| false);
            choice.rounds += u8::from(left > 0);
        }
        Some(choice)
    }
}

impl Choice {
    /// What becomes of an entry; `now` is the recency clock.
    pub(crate) fn fate(&self, hint: Hint, now: u32) -> Fate {
        let age = bin(hint.age(now));
        match Queue::of(self.policy, hint) {
            Queue::Probation if age > self.probation.age => Fate::Goes,
            Queue::Probation if age == self.probation.age => Fate::AtTheEdge(0),
            Queue::Passed if age > self.probation.age => Fate::Becomes(hint.in_main(0)),
            Queue::Main(uses) => {
                let looks = self.rounds + u8::from(age > self.proven.age);
                match uses.checked_sub(looks) {
                    None => Fate::Goes,
                    Some(0) if age == self.proven.age && uses == self.rounds => Fate::AtTheEdge(1),
                    Some(left) if looks > 0 => Fate::Becomes(hint.in_main(left).stamped(now)),
                    Some(_) => Fate::Stays,
                }
            }
            Queue::Probation | Queue::Passed => Fate::Stays,
        }
    }

    /// How many go of the entries on trial at the edge, and how many of the proven ones.
    pub(crate) fn at_the_edge(&self) -> [u64; 2] {
        [self.probation.of_that_age, self.proven.of_that_age]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 5000;

    fn probation(age: u32, uses: u32) -> Hint {
        (0..uses).fold(Hint::new(None, 0, NOW - age), |hint, _| {
            Hint::new(None, 0, NOW - age).again(hint)
        })
    }

    fn ages(policy: Eviction, entries: &[(Hint, u64)]) -> Ages {
        let mut ages = Ages::new(policy);
        for (hint, count) in entries {
            (0..*count).for_each(|_| ages.add(*hint, NOW));
        }
        ages
    }

    fn oldest(of: &[(u32, u64)], count: u64) -> (usize, u64) {
        let entries: Vec<_> = of.iter().map(|(age, count)| (probation(*age, 0), *count)).collect();
        let Edge { age, of_that_age } = ages(Eviction::Lru, &entries).choose(count, 0).probation;
        (age, of_that_age)
    }

    #[test]
    fn the_oldest_go_first() {
        let of = [(0, 10), (3, 5), (7, 2)];
        assert_eq!(oldest(&of, 1), (7, 1));
        assert_eq!(oldest(&of, 2), (7, 2));
        assert_eq!(oldest(&of, 4), (3, 2));
        assert_eq!(oldest(&of, 8), (0, 1));
    }

    #[test]
    fn more_than_there_are_is_all_of_them() {
        assert_eq!(oldest(&[(0, 2), (5, 1)], 100), (0, 2));
        assert_eq!(oldest(&[], 1), (0, 0));
    }

    #[test]
    fn what_is_older_than_can_be_told_apart_is_one_age() {
        assert_eq!(oldest(&[(2000, 3), (5, 1)], 3), (AGES - 1, 3));
    }

    #[test]
    fn lru_heeds_nothing_but_ages() {
        let choice = ages(Eviction::Lru, &[(probation(9, 0).in_main(3), 1), (probation(5, 0), 1)])
            .choose(1, 0);
        assert_eq!(choice.fate(probation(9, 0).in_main(3), NOW), Fate::AtTheEdge(0));
        assert_eq!(choice.fate(probation(5, 0), NOW), Fate::Stays);
    }

    #[test]
    fn what_is_on_trial_beyond_its_share_goes_or_is_proven() {
        let proven = probation(90, 0).in_main(0);
        let there = [
            (probation(9, 0), 2),
            (probation(8, 2), 1),
            (probation(7, 1), 3),
            (probation(1, 0), 4),
            (proven, 90),
        ];
        let choice = ages(Eviction::Adaptive, &there).choose(3, 8);
        assert_eq!(choice.fate(probation(9, 0), NOW), Fate::Goes);
        assert_eq!(choice.fate(probation(8, 2), NOW), Fate::Becomes(probation(8, 2).in_main(0)));
        assert_eq!(choice.fate(probation(7, 1), NOW), Fate::AtTheEdge(0));
        assert_eq!(choice.at_the_edge(), [1, 0]);
        assert_eq!(choice.fate(probation(1, 0), NOW), Fate::Stays);
        assert_eq!(choice.fate(proven, NOW), Fate::Stays);
    }

    #[test]
    fn proven_entries_go_when_their_uses_are_used_up() {
        let proven = |age, uses| probation(age, 0).in_main(uses);
        let there = [
            (probation(1, 0), 2),
            (proven(9, 1), 2),
            (proven(8, 0), 1),
            (proven(7, 2), 1),
            (proven(2, 0), 4),
        ];
        let choice = ages(Eviction::Adaptive, &there).choose(2, 20);
        assert_eq!(choice.fate(probation(1, 0), NOW), Fate::Stays);
        assert_eq!(choice.fate(proven(9, 1), NOW), Fate::Becomes(proven(9, 0).stamped(NOW)));
        assert_eq!(choice.fate(proven(8, 0), NOW), Fate::Goes);
        assert_eq!(choice.fate(proven(7, 2), NOW), Fate::Becomes(proven(7, 1).stamped(NOW)));
        assert_eq!(choice.fate(proven(2, 0), NOW), Fate::AtTheEdge(1));
        assert_eq!(choice.at_the_edge(), [0, 1]);
        // One more than have no use to their credit: a second round begins.
        let choice = ages(Eviction::Adaptive, &there).choose(6, 20);
        assert_eq!(choice.fate(proven(2, 0), NOW), Fate::Goes);
        assert_eq!(choice.fate(proven(9, 1), NOW), Fate::AtTheEdge(1));
        assert_eq!(choice.at_the_edge(), [0, 1]);
        assert_eq!(choice.fate(proven(7, 2), NOW), Fate::Becomes(proven(7, 1).stamped(NOW)));
    }

    #[test]
    fn where_too_few_are_proven_the_oldest_go() {
        let there = [(probation(5, 0), 10), (probation(9, 0).in_main(3), 1)];
        let choice = ages(Eviction::Adaptive, &there).choose(3, 20);
        assert_eq!(choice.fate(probation(9, 0).in_main(3), NOW), Fate::Goes);
        assert_eq!(
            (choice.fate(probation(5, 0), NOW), choice.at_the_edge()),
            (Fate::AtTheEdge(0), [2, 0])
        );
    }
}
