//! The command line tool `keepwarm`: shows what is in a cache directory, and changes single
//! entries.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
