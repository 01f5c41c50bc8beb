//! Many processes share one directory: what they count is exact, what they read is never stale, and neither the
//! death of any of them nor its standing still harms the others.
//!
//! Longer, by the environment: `KEEPWARM_HISTORY_OPERATIONS` (10,000,000 and more), `KEEPWARM_SHARED_KILLS`
//! (100,000 and more).
#![cfg(test)]

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/rng.rs"]
mod rng;

mod checker;
mod counting;
mod crew;
mod delays;
mod descriptors;
mod formats;
mod histories;
mod history;
#[path = "../support/home.rs"]
mod home;
mod kills;
mod large;
mod limits;
mod load;
#[path = "../support/locks.rs"]
mod locks;
#[path = "../support/mount.rs"]
mod mount;
mod namespaces;
mod paths;
#[cfg(feature = "failpoints")]
#[path = "../support/points.rs"]
mod points;
mod read_only;
mod reclaim;
mod statistics;
#[cfg(feature = "failpoints")]
mod stopped;
mod value;

use std::process::ExitCode;

/// What a process can be that this program starts.
const ROLES: &[crew::Role] = &[
    ("count", counting::count),
    ("add", counting::add),
    ("work", histories::work),
    ("look-on", histories::look_on),
    ("live", kills::live),
    ("churn", large::churn),
    ("contain", namespaces::contain),
    ("count-contained", namespaces::count),
    ("hold-many", descriptors::hold_many),
    ("keep-within", limits::keep_within),
    ("write-twice", limits::write_twice),
    ("miss", statistics::miss),
    ("count-at", paths::count_at),
    ("bound", paths::bound),
    ("serve", read_only::serve),
    ("see-all", read_only::see_all),
    ("be-refused", formats::be_refused),
    ("keep", reclaim::keep),
    ("lead", reclaim::lead),
    #[cfg(feature = "failpoints")]
    ("stop-at", stopped::stop_at),
];

fn main() -> ExitCode {
    if crew::play(ROLES) {
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("the_checker_finds_each_wrong", checker::tests::each_wrong_is_found),
        (
            "the_checker_takes_what_can_be",
            checker::tests::what_can_be_is_taken_and_a_planted_stale_read_is_found,
        ),
        ("increments_of_eight_processes_are_exact", counting::increments),
        ("of_eight_processes_that_add_a_key_one_wins", counting::additions),
        ("nobody_reads_what_was_superseded", histories::nobody_reads_what_was_superseded),
        (
            "nobody_reads_what_was_superseded_while_entries_are_evicted",
            histories::while_entries_are_evicted,
        ),
        (
            "who_may_not_write_reads_nothing_that_was_superseded",
            histories::who_looks_on_reads_nothing_that_was_superseded,
        ),
        ("reads_through_a_stale_copy_are_found", histories::a_stale_copy_is_found),
        (
            "large_values_are_whole_whoever_removes_them_and_nothing_is_left",
            large::values_are_whole_and_nothing_is_left,
        ),
        (
            "the_machine_is_blamed_for_one_wait_of_another",
            delays::the_machine_is_blamed_for_one_wait_of_another,
        ),
        ("the_death_of_any_process_harms_nobody", kills::the_death_of_any_harms_nobody),
        #[cfg(feature = "failpoints")]
        (
            "a_process_that_stands_still_holds_up_its_own_bucket_alone",
            stopped::holds_up_its_own_bucket_alone,
        ),
        #[cfg(feature = "failpoints")]
        ("who_dies_in_a_pass_is_followed_by_another", stopped::who_dies_reaping_is_followed),
        #[cfg(feature = "failpoints")]
        (
            "who_needs_room_beside_a_process_that_stands_still_is_told",
            stopped::is_told_to_who_needs_room,
        ),
        #[cfg(feature = "failpoints")]
        (
            "a_process_that_stands_still_anywhere_holds_up_nobody",
            stopped::holds_up_nobody_wherever_it_stops,
        ),
        ("containers_that_share_a_volume_count_exactly", namespaces::containers_count_exactly),
        ("limits_that_are_changed_count_for_all", limits::count_for_all),
        ("many_processes_that_write_have_room_for_each", limits::serve_many_writers),
        ("what_processes_count_is_added_up", statistics::are_added_up),
        ("by_any_path_it_is_one_directory", paths::by_any_path_it_is_one),
        ("by_a_bind_mount_it_is_one_directory", paths::by_a_bind_mount_it_is_one),
        ("who_may_not_write_reads_what_others_write", read_only::reads_what_others_write),
        ("who_may_not_write_reads_what_was_closed", read_only::reads_what_was_closed),
        ("who_may_not_write_reads_what_was_left", read_only::reads_what_was_left),
        ("who_may_not_write_lets_go_of_what_was_removed", read_only::lets_go_of_what_was_removed),
        ("a_read_only_file_system_is_read", read_only::file_system_is_read),
        ("another_format_at_once_is_refused", formats::another_is_refused),
        ("what_one_process_removes_all_let_go_of", reclaim::what_is_removed_is_let_go_of),
        ("what_is_about_to_go_counts_as_room", reclaim::what_goes_counts_as_room),
        ("who_leads_is_followed_by_another", reclaim::who_leads_is_followed),
        ("descriptors_and_mappings_do_not_grow_with_handles_and_threads", descriptors::do_not_grow),
    ])
}
