//! The eviction policy: which entries a cull evicts. A pure function of the number of entries of
//! each queue and age.
//!
//! *LRU.* Evicts the oldest entries, and of one age those that were written first.
//!
//! *Adaptive* (an S3-FIFO variant; Yang et al., SOSP 2023). New entries start on probation. While
//! more entries are on probation than the probation share, the policy examines the oldest of them:
//! an entry that was used twice or more moves to the main queue, another is evicted. Otherwise it
//! examines the oldest entries of the main queue: an entry that was used since its last examination
//! stays and loses one use, another is evicted. An evicted entry that is soon inserted again enters
//! the main queue at once, and changes the share (see [`ghosts`](crate::engine::eviction::ghosts)).
//!
//! There are two differences to S3-FIFO. Entries are ordered by their last use and not in FIFO
//! queues, because the stamp of the last use exists already; that keeps entries that are used in
//! bursts. And the probation share is not a tenth but adapts: with a tenth, no choice of the other
//! numbers was good for all traces in `benches/hit_ratio`.

use crate::engine::hints::{Hint, MOST_USES};
use crate::options::Eviction;

/// Ages above this many ticks count as one age. The clock ticks 256 times while as many entries are
/// inserted as the cache has.
const AGES: usize = 1024;
/// This many uses on probation move an entry to the main queue.
const USES_TO_PASS: u8 = 2;

const QUEUES: usize = 3 + MOST_USES as usize;

/// What the policy decides on beside the age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Probation,
    /// On probation, and used often enough for the main queue.
    Passed,
    /// Main, with this many uses.
    Main(u8),
}

impl Queue {
    fn of(policy: Eviction, hint: Hint) -> Self {
        match policy {
            Eviction::Adaptive if hint.is_main() => Self::Main(hint.uses()),
            Eviction::Adaptive if hint.uses() >= USES_TO_PASS => Self::Passed,
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

/// How many entries there are of each queue and age.
pub(crate) struct Ages {
    policy: Eviction,
    counts: Vec<[u32; AGES]>,
}

/// How far a choice reaches: all older entries, and this many of that age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AgeCut {
    age: usize,
    of_that_age: u64,
}

impl AgeCut {
    const NOTHING: Self = Self { age: AGES, of_that_age: 0 };
}

/// Which entries a cull evicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    policy: Eviction,
    probation: AgeCut,
    main: AgeCut,
    /// How often each entry of the main queue was examined before the last round, which ends at the
    /// edge.
    rounds: u8,
}

/// What a choice means for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    Evicted,
    /// The entry has the age of an edge, of probation (0) or main (1).
    /// [`Choice::at_the_edge`] says how many such entries are evicted.
    AtTheEdge(usize),
    /// The entry stays, with another hint.
    Changed(Hint),
}

fn bin(age: u32) -> usize {
    (age as usize).min(AGES - 1)
}

impl Ages {
    pub(crate) fn new(policy: Eviction) -> Self {
        let queues = if policy == Eviction::Lru { 1 } else { QUEUES };
        Self { policy, counts: vec![[0; AGES]; queues] }
    }

    /// Counts an entry; `now` is the recency clock.
    pub(crate) fn add(&mut self, hint: Hint, now: u32) {
        let queue = Queue::of(self.policy, hint);
        self.counts[queue.number()][bin(hint.age(now))] += 1;
    }

    /// How many entries were counted.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().flatten().map(|count| u64::from(*count)).sum()
    }

    fn of(&self, queue: Queue, age: usize) -> u64 {
        self.counts.get(queue.number()).map_or(0, |ages| u64::from(ages[age]))
    }

    fn all(&self, queue: Queue) -> u64 {
        (0..AGES).map(|age| self.of(queue, age)).sum()
    }

    /// Goes through the entries of `queue`, the oldest first, until it has found `left` of them, or
    /// `enough` returns `true` for an age. Subtracts the number of found entries from `left`.
    fn edge(&self, queue: Queue, left: &mut u64, mut enough: impl FnMut(usize) -> bool) -> AgeCut {
        for age in (0..AGES).rev() {
            if enough(age) {
                return AgeCut { age, of_that_age: 0 };
            }
            let there = self.of(queue, age);
            if there >= *left {
                return AgeCut { age, of_that_age: std::mem::take(left) };
            }
            *left -= there;
        }
        AgeCut { age: 0, of_that_age: self.of(queue, 0) }
    }

    /// The choice that evicts `count` entries, or all if there are fewer. `share` is how many may
    /// be on probation.
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
        Choice { policy: Eviction::Lru, probation, main: AgeCut::NOTHING, rounds: 0 }
    }

    /// The same entries in one queue.
    fn flat(&self) -> Self {
        let mut flat = Self::new(Eviction::Lru);
        for ages in &self.counts {
            for (sum, count) in flat.counts[0].iter_mut().zip(ages) {
                *sum += count;
            }
        }
        flat
    }

    /// `None` if too few entries are in the main queue to evict so many.
    fn choose_adaptively(&self, count: u64, share: u64) -> Option<Choice> {
        let mut left = count;
        // The evicted entries will soon be replaced by as many new ones, on probation.
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
            Choice { policy: Eviction::Adaptive, probation, main: AgeCut::NOTHING, rounds: 0 };
        while left > 0 {
            if choice.rounds > MOST_USES {
                return None;
            }
            choice.main = self.edge(Queue::Main(choice.rounds), &mut left, |_| false);
            choice.rounds += u8::from(left > 0);
        }
        Some(choice)
    }
}

impl Choice {
    /// The fate of an entry; `now` is the recency clock.
    pub(crate) fn fate(&self, hint: Hint, now: u32) -> Fate {
        let age = bin(hint.age(now));
        match Queue::of(self.policy, hint) {
            Queue::Probation if age > self.probation.age => Fate::Evicted,
            Queue::Probation if age == self.probation.age => Fate::AtTheEdge(0),
            Queue::Passed if age > self.probation.age => Fate::Changed(hint.in_main(0)),
            Queue::Main(uses) => {
                let examined = self.rounds + u8::from(age > self.main.age);
                match uses.checked_sub(examined) {
                    None => Fate::Evicted,
                    Some(0) if age == self.main.age && uses == self.rounds => Fate::AtTheEdge(1),
                    Some(left) if examined > 0 => Fate::Changed(hint.in_main(left).stamped(now)),
                    Some(_) => Fate::Kept,
                }
            }
            Queue::Probation | Queue::Passed => Fate::Kept,
        }
    }

    /// How many entries at the edge are evicted: from probation, and from the main queue.
    pub(crate) fn at_the_edge(&self) -> [u64; 2] {
        [self.probation.of_that_age, self.main.of_that_age]
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
        let AgeCut { age, of_that_age } = ages(Eviction::Lru, &entries).choose(count, 0).probation;
        (age, of_that_age)
    }

    #[test]
    fn the_oldest_entries_are_evicted_first() {
        let of = [(0, 10), (3, 5), (7, 2)];
        assert_eq!(oldest(&of, 1), (7, 1));
        assert_eq!(oldest(&of, 2), (7, 2));
        assert_eq!(oldest(&of, 4), (3, 2));
        assert_eq!(oldest(&of, 8), (0, 1));
    }

    #[test]
    fn a_choice_of_more_than_all_evicts_all() {
        assert_eq!(oldest(&[(0, 2), (5, 1)], 100), (0, 2));
        assert_eq!(oldest(&[], 1), (0, 0));
    }

    #[test]
    fn all_ages_above_the_highest_count_as_one() {
        assert_eq!(oldest(&[(2000, 3), (5, 1)], 3), (AGES - 1, 3));
    }

    #[test]
    fn lru_decides_by_age_only() {
        let choice = ages(Eviction::Lru, &[(probation(9, 0).in_main(3), 1), (probation(5, 0), 1)])
            .choose(1, 0);
        assert_eq!(choice.fate(probation(9, 0).in_main(3), NOW), Fate::AtTheEdge(0));
        assert_eq!(choice.fate(probation(5, 0), NOW), Fate::Kept);
    }

    #[test]
    fn entries_beyond_the_probation_share_pass_or_are_evicted() {
        let main = probation(90, 0).in_main(0);
        let there = [
            (probation(9, 0), 2),
            (probation(8, 2), 1),
            (probation(7, 1), 3),
            (probation(1, 0), 4),
            (main, 90),
        ];
        let choice = ages(Eviction::Adaptive, &there).choose(3, 8);
        assert_eq!(choice.fate(probation(9, 0), NOW), Fate::Evicted);
        assert_eq!(choice.fate(probation(8, 2), NOW), Fate::Changed(probation(8, 2).in_main(0)));
        assert_eq!(choice.fate(probation(7, 1), NOW), Fate::AtTheEdge(0));
        assert_eq!(choice.at_the_edge(), [1, 0]);
        assert_eq!(choice.fate(probation(1, 0), NOW), Fate::Kept);
        assert_eq!(choice.fate(main, NOW), Fate::Kept);
    }

    #[test]
    fn main_entries_are_evicted_when_they_have_no_uses_left() {
        let main = |age, uses| probation(age, 0).in_main(uses);
        let there = [
            (probation(1, 0), 2),
            (main(9, 1), 2),
            (main(8, 0), 1),
            (main(7, 2), 1),
            (main(2, 0), 4),
        ];
        let choice = ages(Eviction::Adaptive, &there).choose(2, 20);
        assert_eq!(choice.fate(probation(1, 0), NOW), Fate::Kept);
        assert_eq!(choice.fate(main(9, 1), NOW), Fate::Changed(main(9, 0).stamped(NOW)));
        assert_eq!(choice.fate(main(8, 0), NOW), Fate::Evicted);
        assert_eq!(choice.fate(main(7, 2), NOW), Fate::Changed(main(7, 1).stamped(NOW)));
        assert_eq!(choice.fate(main(2, 0), NOW), Fate::AtTheEdge(1));
        assert_eq!(choice.at_the_edge(), [0, 1]);
        // One more than there are without uses: a second round begins.
        let choice = ages(Eviction::Adaptive, &there).choose(6, 20);
        assert_eq!(choice.fate(main(2, 0), NOW), Fate::Evicted);
        assert_eq!(choice.fate(main(9, 1), NOW), Fate::AtTheEdge(1));
        assert_eq!(choice.at_the_edge(), [0, 1]);
        assert_eq!(choice.fate(main(7, 2), NOW), Fate::Changed(main(7, 1).stamped(NOW)));
    }

    #[test]
    fn with_too_few_main_entries_the_oldest_are_evicted() {
        let there = [(probation(5, 0), 10), (probation(9, 0).in_main(3), 1)];
        let choice = ages(Eviction::Adaptive, &there).choose(3, 20);
        assert_eq!(choice.fate(probation(9, 0).in_main(3), NOW), Fate::Evicted);
        assert_eq!(
            (choice.fate(probation(5, 0), NOW), choice.at_the_edge()),
            (Fate::AtTheEdge(0), [2, 0])
        );
    }
}
