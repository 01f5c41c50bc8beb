//! Near-duplicates: groups of similar functions among all functions of all files.
//!
//! Comparing all pairs would take too long, so candidates are found first, by prefix filtering as
//! in similarity joins. Sort the hashes of every set in one common order. Two sets can then only be
//! as similar as required if they share one of the first few hashes of each. With the rarest hashes
//! first, few pairs share one by chance.
//!
//! Groups are stars: the first function leads, the others are similar to it. Unlike in chains of
//! pairs, the similarity reported for each member is to a function that the reader sees.
//!
//! The outcome depends only on the order of the functions, which is fixed, so it is deterministic.

use std::collections::HashMap;

use crate::analysis::{Fingerprint, Function, narrow};
use crate::fingerprint::similarity;

/// The least similarity of near-duplicates.
pub(crate) const THRESHOLD: f64 = 0.8;
/// Candidates are searched with a lower threshold, because samples are not whole sets.
const PREFIX_THRESHOLD: f64 = 0.7;
/// A hash in the prefixes of more functions than this is ignored as too common.
const MOST_IN_BUCKET: usize = 200;

/// A function and its file.
#[derive(Clone, Copy)]
pub(crate) struct Located<'a> {
    pub(crate) file: &'a str,
    pub(crate) function: &'a Function,
}

impl Located<'_> {
    fn within_or_around(&self, other: &Self) -> bool {
        let (a, b) = (self.function, other.function);
        self.file == other.file && a.first_line <= b.last_line && b.first_line <= a.last_line
    }
}

/// A group of near-duplicate functions.
pub(crate) struct Group<'a> {
    /// Each function with its similarity to the first.
    pub(crate) members: Vec<(Located<'a>, f64)>,
}

impl Group<'_> {
    /// The number of lines saved if only the longest function remained.
    pub(crate) fn redundant_lines(&self) -> u32 {
        let lines = || self.members.iter().map(|(located, _)| located.function.lines());
        lines().sum::<u32>() - lines().max().unwrap_or(0)
    }
}

/// Functions that are equal except for the names of variables. They are compared as one.
struct Class<'a> {
    fingerprint: &'a Fingerprint,
    members: Vec<Located<'a>>,
}

/// The groups among these functions, in descending order of redundant lines.
pub(crate) fn groups<'a>(functions: impl Iterator<Item = Located<'a>>) -> Vec<Group<'a>> {
    let classes = classes(functions);
    let alike = alike(&classes);
    let mut taken = vec![false; classes.len()];
    let mut groups = Vec::new();
    for leader in 0..classes.len() {
        if taken[leader] {
            continue;
        }
        let mut members: Vec<_> =
            classes[leader].members.iter().map(|&located| (located, 1.0)).collect();
        for &(other, similarity) in &alike[leader] {
            if !taken[other] {
                taken[other] = true;
                members.extend(classes[other].members.iter().map(|&located| (located, similarity)));
            }
        }
        if members.len() > 1 {
            groups.push(Group { members });
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.redundant_lines()));
    groups
}

fn classes<'a>(functions: impl Iterator<Item = Located<'a>>) -> Vec<Class<'a>> {
    let mut classes: Vec<Class<'a>> = Vec::new();
    let mut by_identity = HashMap::new();
    for located in functions {
        if let Some(fingerprint) = &located.function.fingerprint {
            let next = classes.len();
            match *by_identity.entry(fingerprint.identity).or_insert(next) {
                new if new == next => classes.push(Class { fingerprint, members: vec![located] }),
                known => classes[known].members.push(located),
            }
        }
    }
    classes
}

/// For each class, the later classes that are similar to it, in order.
fn alike(classes: &[Class<'_>]) -> Vec<Vec<(usize, f64)>> {
    let mut frequency: HashMap<u32, u32> = HashMap::new();
    for hash in classes.iter().flat_map(|class| &class.fingerprint.sample) {
        *frequency.entry(*hash).or_default() += 1;
    }
    let mut buckets: HashMap<u32, Vec<usize>> = HashMap::new();
    for (i, class) in classes.iter().enumerate() {
        let mut hashes: Vec<(u32, u32)> =
            class.fingerprint.sample.iter().map(|hash| (frequency[hash], *hash)).collect();
        hashes.sort_unstable();
        let beyond = (PREFIX_THRESHOLD * hashes.len() as f64).ceil() as usize;
        // A hash of only one function is shared with no other.
        for (_, hash) in hashes[..hashes.len() - beyond + 1].iter().filter(|(count, _)| *count > 1)
        {
            buckets.entry(*hash).or_default().push(i);
        }
    }

    let mut candidates: Vec<Vec<usize>> = classes.iter().map(|_| Vec::new()).collect();
    for bucket in buckets.values().filter(|bucket| bucket.len() <= MOST_IN_BUCKET) {
        for (at, &first) in bucket.iter().enumerate() {
            candidates[first].extend(&bucket[at + 1..]);
        }
    }
    let similar = |(first, mut others): (usize, Vec<usize>)| {
        others.sort_unstable();
        others.dedup();
        let a = &classes[first];
        let compare = |other: usize| {
            let b = &classes[other];
            let (fewer, more) = in_order(a.fingerprint.shingles, b.fingerprint.shingles);
            if f64::from(fewer) < THRESHOLD * f64::from(more)
                || a.members[0].within_or_around(&b.members[0])
            {
                return None;
            }
            Some((other, similarity(a.fingerprint, b.fingerprint))).filter(|(_, s)| *s >= THRESHOLD)
        };
        others.into_iter().filter_map(compare).collect()
    };
    candidates.into_iter().enumerate().map(similar).collect()
}

fn in_order(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

/// The number of functions in all groups.
pub(crate) fn members(groups: &[Group<'_>]) -> u32 {
    narrow(groups.iter().map(|group| group.members.len()).sum())
}
