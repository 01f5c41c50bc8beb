//! `fork` without `exec`, as servers do it that open a cache and then fork their workers: whatever was inherited works
//! in the child, and neither parent nor child comes to harm, whenever it happens and whoever ends first.
#![cfg(test)]

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/home.rs"]
mod home;
#[path = "../support/locks.rs"]
mod locks;

mod family;
mod inherited;
mod midst;
mod orphans;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(&[
        ("parent_and_child_both_go_on", inherited::both_go_on),
        ("grandchildren_too_and_none_has_more_descriptors", inherited::grandchildren),
        ("descriptors_stay_as_few_over_a_hundred_forks", inherited::descriptors_stay_as_few),
        ("however_a_child_ends_its_parent_stays_attached", inherited::ends_do_no_harm),
        ("writers_and_leases_are_the_parents", inherited::writers_and_leases_are_the_parents),
        ("computations_are_the_parents", inherited::computations_are_the_parents),
        ("the_space_of_what_the_parent_removed_comes_back", inherited::space_comes_back),
        ("a_fork_in_the_midst_of_everything", midst::of_everything),
        (
            "a_killed_parent_holds_nothing_while_its_child_lives",
            orphans::a_killed_parent_holds_nothing,
        ),
        ("a_child_computes_what_its_killed_parent_was_computing", orphans::a_child_goes_on),
        #[cfg(feature = "failpoints")]
        (
            "a_killed_parents_bucket_is_taken_over_while_its_child_lives",
            orphans::buckets_are_taken_over,
        ),
    ])
}
