//! The public contract for backends: keepwarm's own stores and the toy of the examples keep it, and
//! the suite catches every way of breaking it that is tried here.

// Always so for a file in `tests`; said for clippy, which then takes the helpers for tests as well.
#![cfg(test)]

#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../examples/toy_backend.rs"]
mod toy_backend;

#[path = "support/mutants.rs"]
mod mutants;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use keepwarm::testing::backend_contract::{Contract, Promise};
use keepwarm::{Builder, SystemClock};
use mutants::{MUTANTS, Mutant, contract_of};
use toy_backend::Toy;

/// A contract of the backends that `options` describes, each in a directory of its own.
fn in_directories(
    options: impl Fn(&std::path::Path) -> Builder + Send + Sync + 'static,
) -> Contract {
    let dirs = Mutex::new(Vec::new());
    Contract::new(move |clock| {
        let dir = tempfile::tempdir().unwrap();
        let backend = options(dir.path()).clock(clock).open_backend()?;
        dirs.lock().unwrap().push(dir);
        Ok(backend)
    })
}

/// Checks the contract, and that nothing was skipped without being expected to be.
fn keeps(contract: Contract, unchecked: &[Promise]) {
    let report = contract.check();
    println!("{report}");
    report.assert_kept();
    let skipped: Vec<Promise> = report.unchecked.iter().map(|(promise, _)| *promise).collect();
    assert_eq!(skipped, unchecked);
}

#[test]
fn the_memory_backend_keeps_the_contract() {
    let contract = Contract::new(|clock| Builder::in_memory().clock(clock).open_backend());
    use Promise::{AsyncSideAgrees, ComputationsAreClaimed, OutagesLoseNothing, SpoolsCommitWhole};
    let unchecked =
        [SpoolsCommitWhole, ComputationsAreClaimed, OutagesLoseNothing, AsyncSideAgrees];
    keeps(contract, &unchecked);
}

#[test]
fn the_file_backend_keeps_the_contract() {
    let contract = in_directories(|dir| Builder::new(dir).max_bytes(16 << 20));
    keeps(contract, &[Promise::OutagesLoseNothing, Promise::AsyncSideAgrees]);
}

#[cfg(feature = "sled")]
#[test]
fn the_sled_backend_keeps_the_contract() {
    use Promise::{AsyncSideAgrees, ComputationsAreClaimed, OutagesLoseNothing, SpoolsCommitWhole};
    let unchecked =
        [SpoolsCommitWhole, ComputationsAreClaimed, OutagesLoseNothing, AsyncSideAgrees];
    keeps(in_directories(|dir| Builder::sled(dir)), &unchecked);
}

/// It stores nothing, and declares that.
#[test]
fn the_dummy_backend_keeps_what_it_promises() {
    let contract = Contract::new(|clock| Builder::dummy().clock(clock).open_backend());
    keeps(contract.stores_nothing(), &[Promise::ComputationsAreClaimed]);
}

#[test]
fn the_toy_backend_keeps_the_contract() {
    toy_backend::check().assert_kept();
}

/// Its clock is not the one that the suite moves.
#[test]
fn a_store_whose_server_keeps_the_time_can_be_checked() {
    let contract = Contract::new(|_| Ok(Box::new(Toy::new(SystemClock, Default::default()))));
    let report = contract.real_time(Duration::from_millis(20)).check();
    println!("{report}");
    report.assert_kept();
    assert!(report.kept.contains(&Promise::ExpiredIsAbsent));
}

#[test]
fn an_unmutated_wrapper_keeps_the_contract() {
    contract_of(Mutant::None).check().assert_kept();
}

#[test]
fn every_mutant_is_caught_by_the_promise_that_it_breaks() {
    let mut missed = Vec::new();
    for (mutant, promise) in MUTANTS {
        let report = contract_of(*mutant).only(&[*promise]).check();
        println!("{mutant:?}: {report}");
        if !report.to_string().contains(&format!("BROKEN     {promise}")) {
            missed.push((mutant, promise));
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn every_promise_has_a_mutant() {
    let tried: BTreeSet<Promise> = MUTANTS.iter().map(|(_, promise)| *promise).collect();
    let without: Vec<Promise> =
        Promise::ALL.iter().copied().filter(|promise| !tried.contains(promise)).collect();
    // `Bytes` cannot be changed by safe code once they are handed out.
    let mut expected = vec![Promise::ValuesOutliveEntries];
    if cfg!(not(feature = "async")) {
        expected.push(Promise::AsyncSideAgrees);
    }
    assert_eq!(without, expected);
}

#[test]
fn a_backend_that_panics_breaks_the_promise_that_was_checked() {
    let report = contract_of(Mutant::Panics).only(&[Promise::KeysAreApart]).check();
    let [broken] = &report.broken[..] else { panic!("{report}") };
    assert_eq!(broken.promise, Promise::KeysAreApart);
    assert!(broken.what.contains("panicked: on purpose"), "{}", broken.what);
}

#[test]
#[should_panic(expected = "AddHasOneWinner")]
fn an_assertion_names_the_broken_promise() {
    contract_of(Mutant::AddInTwoSteps).only(&[Promise::AddHasOneWinner]).check().assert_kept();
}
