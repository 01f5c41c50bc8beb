//! Files of a directory that are removed, replaced, or restored from an older copy while processes
//! use it, as cleaners of temporary directories, backups and people do.
//!
//! Each case: two processes write, a pattern is applied, a third process opens the directory at
//! once. The two must report a typed error soon and go on; no process may read an older value, a
//! value that was never written, or, without an error before, miss an entry. A checker that is run
//! with the detection turned off must find a fault.
//!
//! Shows invariants I40 and I41.
#![cfg(test)]

#[path = "../support/harness.rs"]
mod harness;

mod foreign_locks;
mod lost_files;
mod opening;
mod patterns;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--work", dir, id, how] => worker::work(dir.as_ref(), id, how),
        ["--fill", dir] => foreign_locks::fill(dir.as_ref()),
        _ => {
            return harness::main(&[
                ("a_removed_file_is_noticed", patterns::removed),
                ("a_replaced_file_is_noticed", patterns::replaced),
                ("a_file_restored_from_an_older_copy_is_noticed", patterns::restored),
                ("an_index_that_is_written_over_is_noticed", patterns::written_over),
                ("a_directory_that_is_moved_or_removed_is_noticed", patterns::directory),
                #[cfg(feature = "failpoints")]
                ("the_checker_finds_that_nothing_is_noticed", patterns::unnoticed),
                #[cfg(feature = "failpoints")]
                ("the_checker_finds_the_losses_of_a_careless_join", patterns::careless),
                ("lost_and_damaged_files_need_no_manual_work", lost_files::need_no_work),
                ("a_directory_without_its_identity_starts_cold", lost_files::identity),
                ("a_foreign_directory_with_a_file_meta_is_left_alone", lost_files::foreign),
                ("the_times_of_files_in_use_are_refreshed", lost_files::times),
                ("a_foreign_shared_lock_is_no_process", foreign_locks::shared),
                ("a_foreign_exclusive_lock_is_no_process", foreign_locks::exclusive),
                ("a_foreign_lock_on_the_directory_is_waited_for", foreign_locks::on_the_directory),
                ("a_directory_that_is_being_opened_delays_no_other", opening::delays_no_other),
            ]);
        }
    }
    ExitCode::SUCCESS
}
