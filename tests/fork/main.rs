//! `fork` without `exec`, as in servers that open a cache and then fork their workers: an inherited
//! cache works in the child, and neither process harms the other, at whatever moment the fork
//! happens and whichever of them ends first.
#![cfg(test)]

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/home.rs"]
mod home;
#[path = "../support/locks.rs"]
mod locks;

mod busy_threads;
mod child;
mod inherited;
mod killed_parent;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(&[
        ("parent_and_child_both_use_the_cache", inherited::both_use_the_cache),
        ("twenty_generations_open_no_more_descriptors", inherited::generations),
        ("a_hundred_forks_leak_no_descriptor", inherited::no_descriptor_leaks),
        ("however_a_child_ends_its_parent_stays_attached", inherited::parent_stays_attached),
        ("writers_and_leases_stay_with_the_parent", inherited::writers_and_leases),
        ("running_computations_stay_with_the_parent", inherited::computations),
        ("a_child_unmaps_segments_that_the_parent_removed", inherited::removed_segments),
        ("a_fork_beside_busy_threads_leaves_no_lock_behind", busy_threads::fork_beside_them),
        ("a_killed_parent_holds_nothing_while_its_child_lives", killed_parent::holds_nothing),
        ("a_child_takes_over_its_killed_parents_computation", killed_parent::computation),
        #[cfg(feature = "failpoints")]
        ("a_killed_parents_bucket_lock_is_taken_over", killed_parent::bucket_lock),
    ])
}
