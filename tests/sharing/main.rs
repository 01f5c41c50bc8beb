//! Tests with several processes that share one directory. Counters are exact, reads are never
//! stale, and a process that dies or is stopped (SIGSTOP) does not harm the others.
//!
//! Two environment variables make the tests longer: `KEEPWARM_HISTORY_OPERATIONS` (10,000,000 and
//! more) and `KEEPWARM_SHARED_KILLS` (100,000 and more).
#![cfg(test)]

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/rng.rs"]
mod rng;

mod checker;
mod child_processes;
mod counting;
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

/// The roles in which this program can be started as a child process.
const ROLES: &[child_processes::Role] = &[
    ("count", counting::count),
    ("add", counting::add),
    ("work", histories::work),
    ("read-only", histories::read),
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
    if child_processes::run_role(ROLES) {
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("the_checker_finds_each_anomaly", checker::tests::finds_each_anomaly),
        ("the_checker_accepts_possible_histories", checker::tests::accepts_possible_histories),
        ("increments_of_eight_processes_are_exact", counting::increments),
        ("one_of_eight_processes_wins_each_add", counting::additions),
        ("no_read_returns_a_superseded_value", histories::no_read_is_stale),
        ("no_read_is_stale_while_entries_are_evicted", histories::while_entries_are_evicted),
        ("no_read_of_a_read_only_process_is_stale", histories::read_only_process),
        ("the_checker_finds_reads_from_a_stale_copy", histories::a_stale_copy_is_found),
        ("large_values_are_whole_and_leave_no_files", large::are_whole_and_leave_no_files),
        ("one_wait_of_another_thread_is_excused", delays::one_wait_of_another_is_excused),
        ("a_killed_process_harms_no_other", kills::harm_no_other_process),
        #[cfg(feature = "failpoints")]
        ("a_stopped_process_blocks_only_its_own_bucket", stopped::blocks_only_its_own_bucket),
        #[cfg(feature = "failpoints")]
        ("another_process_reaps_after_a_reaper_dies", stopped::another_reaps_after_a_death),
        #[cfg(feature = "failpoints")]
        ("a_stopped_process_fails_writers_out_of_space", stopped::fails_writers_out_of_space),
        #[cfg(feature = "failpoints")]
        ("a_process_stopped_at_any_step_blocks_no_other", stopped::at_any_step_blocks_no_other),
        ("containers_that_share_a_volume_count_exactly", namespaces::containers_count_exactly),
        ("changed_limits_apply_to_all_processes", limits::apply_to_all),
        ("each_of_forty_writers_has_space", limits::serve_many_writers),
        ("statistics_of_all_processes_are_added_up", statistics::are_added_up),
        ("all_paths_lead_to_one_directory", paths::all_lead_to_one),
        ("a_bind_mount_leads_to_the_same_directory", paths::bind_mount_leads_to_the_same),
        ("a_read_only_process_sees_each_write", read_only::sees_each_write),
        ("a_read_only_process_reads_a_closed_directory", read_only::reads_a_closed_directory),
        ("a_read_only_process_reads_after_a_kill", read_only::reads_after_a_kill),
        ("a_read_only_process_unmaps_removed_files", read_only::unmaps_removed_files),
        ("a_read_only_file_system_can_be_read", read_only::file_system_can_be_read),
        ("another_format_in_use_is_refused", formats::another_is_refused),
        ("all_processes_unmap_removed_segments", reclaim::removed_segments_are_unmapped),
        ("space_about_to_be_freed_counts_as_free", reclaim::space_about_to_be_freed),
        ("another_process_leads_after_a_leader_dies", reclaim::another_leads_after_a_death),
        ("descriptors_and_mappings_do_not_grow_with_handles", descriptors::do_not_grow),
    ])
}
