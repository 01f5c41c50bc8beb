//! Random operations on a cache are compared with a model, a plain map: all operations of the
//! public API, a clock that moves forwards and backwards, close, reopening with other bounds, and
//! kills.
//!
//! Shows invariant I6.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/model.rs"]
mod model;
#[path = "support/rng.rs"]
mod rng;

use keepwarm::{Builder, Eviction};
use model::{Bounds, Key, Life, New, Op, WIDE, run};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

fn tight() -> impl Strategy<Value = Bounds> {
    let eviction = prop_oneof![Just(Eviction::Lru), Just(Eviction::Adaptive)];
    (1..50u64, 0..5u64, eviction, prop_oneof![Just(0), Just(200_000)]).prop_map(
        |(max_entries, cull_frequency, eviction, hot_bytes)| Bounds {
            max_entries,
            max_bytes: 1 << 20,
            cull_frequency,
            eviction,
            hot_bytes,
        },
    )
}

fn key() -> impl Strategy<Value = Key> {
    (0..24u8, prop_oneof![9 => Just(1i64), 1 => 2..4i64])
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![3 => Just(None), 4 => (1..60_000u64).prop_map(Some), 1 => Just(Some(0))]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..300usize, 2 => 300..9000usize, 1 => 9000..120_000usize]
}

fn op(bounds: BoxedStrategy<Bounds>) -> impl Strategy<Value = Op> {
    let names = || vec(0..24u8, 0..6);
    prop_oneof![
        20 => key().prop_map(Op::Get),
        2 => names().prop_map(Op::GetMany),
        20 => (key(), len(), life()).prop_map(|(k, n, l)| Op::Set(k, n, l)),
        2 => (names(), life()).prop_map(|(k, l)| Op::SetMany(k, l)),
        4 => (key(), any::<i64>(), life()).prop_map(|(k, n, l)| Op::SetCount(k, n >> (n & 63), l)),
        6 => (key(), len(), life()).prop_map(|(k, n, l)| Op::Add(k, n, l)),
        5 => (key(), life()).prop_map(|(k, l)| Op::Touch(k, l)),
        1 => key().prop_map(Op::Persist),
        2 => (key(), -5000..30_000i64).prop_map(|(k, at)| Op::ExpireAt(k, at)),
        6 => (key(), any::<i64>()).prop_map(|(k, n)| Op::Incr(k, n >> (n & 63))),
        6 => (key(), -9..9i64, -9..9i64, life())
            .prop_map(|(k, n, i, l)| Op::IncrOrInit(k, n, i, l)),
        8 => key().prop_map(Op::Delete),
        1 => names().prop_map(Op::DeleteMany),
        5 => (key(), len(), life()).prop_map(|(k, n, l)| Op::GetOrSet(k, n, l)),
        3 => (key(), -2..3i64).prop_map(|(k, d)| Op::IncrVersion(k, d)),
        3 => (key(), len(), life()).prop_map(|(k, n, l)| Op::SwapCurrent(k, n, l)),
        3 => (key(), len(), life()).prop_map(|(k, n, l)| Op::SwapRemembered(k, n, l)),
        2 => (key(), len(), life()).prop_map(|(k, n, l)| Op::SwapAbsent(k, n, l)),
        2 => key().prop_map(Op::Hold),
        1 => Just(Op::Scan),
        1 => Just(Op::Clear),
        1 => Just(Op::Maintain),
        1 => Just(Op::Flush),
        6 => (-20_000..40_000i64).prop_map(Op::Clock),
        4 => (key(), -1..2i64).prop_map(|(k, after)| Op::ClockToEnd(k, after)),
        1 => Just(Op::Close),
        2 => bounds.clone().prop_map(Op::Reopen),
        2 => bounds.prop_map(Op::Kill),
    ]
}

/// Runs `cases` random cases, or `KEEPWARM_MODEL_CASES` of them.
fn test(new: New, cases: u32, first: BoxedStrategy<Bounds>, later: BoxedStrategy<Bounds>) {
    let given = std::env::var("KEEPWARM_MODEL_CASES").ok();
    let config = Config {
        cases: given.map_or(cases, |n| n.parse().unwrap()),
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(rng::seed()),
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&(vec(op(later), 1..250), first), |(ops, bounds)| {
        run(new, &ops, bounds).map_err(TestCaseError::fail)
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn with_space_for_all_every_answer_is_exact() {
    test(|dir| Builder::new(dir), 60, Just(WIDE).boxed(), Just(WIDE).boxed());
}

#[test]
fn at_the_bounds_an_answer_is_exact_or_a_miss() {
    test(
        |dir| Builder::new(dir),
        60,
        tight().boxed(),
        prop_oneof![4 => tight(), 1 => Just(WIDE)].boxed(),
    );
}

/// With `Durability::Sync`, because on sled only flushed writes survive a kill.
#[cfg(feature = "sled")]
mod on_sled {
    use super::*;
    use keepwarm::Durability;

    #[test]
    fn with_space_for_all_every_answer_is_exact() {
        test(
            |dir| Builder::sled(dir).durability(Durability::Sync),
            12,
            Just(WIDE).boxed(),
            Just(WIDE).boxed(),
        );
    }

    #[test]
    fn at_the_bounds_an_answer_is_exact_or_a_miss() {
        test(
            |dir| Builder::sled(dir).durability(Durability::Sync),
            12,
            tight().boxed(),
            prop_oneof![4 => tight(), 1 => Just(WIDE)].boxed(),
        );
    }
}
