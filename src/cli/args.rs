//! The command line: subcommands, arguments and their help texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Group, Parser, Subcommand};
use keepwarm::Timeout;

/// Shows what is in a keepwarm cache directory, and changes single entries.
///
/// It works while programs have the directory open. It keeps the limits that the directory has, or
/// was last opened with.
#[derive(Parser)]
#[command(
    name = "keepwarm",
    version,
    after_help = "Exit codes: 0 success; 1 there is no such entry (get), or the directory is not \
                  sound (check); 2 wrong usage, or the directory cannot be used."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Prints the number of entries, the bytes on disk, and the counters of each process that has
    /// the directory open
    Stats {
        #[command(flatten)]
        directory: DirectoryArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints the value of an entry as JSON; a byte array is {"$bytes": "…"} with hexadecimal
    /// digits
    Get {
        #[command(flatten)]
        directory: DirectoryArg,
        /// The entry's key
        key: String,
        #[command(flatten)]
        keys: KeyArgs,
        /// Print text and byte arrays as they are, without quotes and without a final newline
        #[arg(long)]
        raw: bool,
    },
    /// Stores a value; creates the directory if it is missing
    Set {
        #[command(flatten)]
        directory: DirectoryArg,
        /// The entry's key
        key: String,
        /// The value: text, unless --json or --bytes is given; `-` reads it from standard input
        value: String,
        #[command(flatten)]
        keys: KeyArgs,
        #[command(flatten)]
        format: FormatArgs,
        /// How long the entry lives: a number with a unit (ms, s, m, h or d), or `never`
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = timeout)]
        timeout: Timeout,
    },
    /// Lists keys, in no particular order
    Ls {
        #[command(flatten)]
        directory: DirectoryArg,
        #[command(flatten)]
        keys: KeyArgs,
        /// Print the values too, as JSON, after a tab
        #[arg(long)]
        values: bool,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
        /// Stop after N entries
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Rebuilds the index of a directory with damaged snapshots from its log
    ///
    /// Recently deleted or replaced values may come back. Refused while another process has the
    /// directory open.
    Salvage {
        #[command(flatten)]
        directory: DirectoryArg,
    },
    /// Reads and verifies everything in the directory, and prints the problems
    Check {
        #[command(flatten)]
        directory: DirectoryArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Group)]
pub(super) struct DirectoryArg {
    /// The cache directory
    pub(super) dir: PathBuf,
}

/// Which keys a command works on.
#[derive(Group)]
pub(super) struct KeyArgs {
    /// The prefix of the keys
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) prefix: String,
    /// The version of the keys
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(super) key_version: i64,
    /// Keys are given and printed as stored (prefix:version:key); `ls` lists all prefixes and
    /// versions
    #[arg(long, conflicts_with_all = ["prefix", "key_version"])]
    pub(super) stored: bool,
}

/// How the value of `set` is given.
#[derive(Group)]
#[group(multiple = false)]
pub(super) struct FormatArgs {
    /// Parse the value as JSON, and store what it holds: a number, a list, …
    #[arg(long)]
    json: bool,
    /// Store the value as bytes, without a type
    #[arg(long)]
    bytes: bool,
}

pub(super) enum ValueFormat {
    Text,
    Json,
    Bytes,
}

impl FormatArgs {
    pub(super) fn of(&self) -> ValueFormat {
        match self {
            Self { json: true, .. } => ValueFormat::Json,
            Self { bytes: true, .. } => ValueFormat::Bytes,
            _ => ValueFormat::Text,
        }
    }
}

/// Parses a number and its unit. A number without a unit is refused, since it is ambiguous.
fn timeout(text: &str) -> Result<Timeout, String> {
    if text == "never" {
        return Ok(Timeout::Never);
    }
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        "" => return Err("a unit is missing: add ms, s, m, h or d".to_owned()),
        _ => return Err("expected a number with a unit (ms, s, m, h or d), or `never`".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "the number is missing or too large".to_owned())?;
    Ok(Timeout::After(Duration::from_millis(number.saturating_mul(millis))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_timeout_needs_a_unit() {
        assert_eq!(timeout("never"), Ok(Timeout::Never));
        assert_eq!(timeout("250ms"), Ok(Timeout::After(Duration::from_millis(250))));
        assert_eq!(timeout("2h"), Ok(Timeout::After(Duration::from_secs(7200))));
        assert_eq!(
            timeout("99999999999999999d"),
            Ok(Timeout::After(Duration::from_millis(u64::MAX)))
        );
        for bad in ["5", "", "m", "-5m", "5 m", "5w", "1.5h", "99999999999999999999s"] {
            assert!(timeout(bad).is_err(), "{bad:?}");
        }
    }
}
