//! The command line tool `keepwarm`: looks into a cache directory, and changes single entries.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
