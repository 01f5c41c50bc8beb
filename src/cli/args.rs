//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Group, Parser, Subcommand};
use keepwarm::Timeout;

/// Looks into a keepwarm cache directory, and changes single entries.
///
/// It works beside programs that have the directory open. The limits stay those that it has, or was last opened with.
#[derive(Parser)]
#[command(
    name = "keepwarm",
    version,
    after_help = "Exit codes: 0 done; 1 there is no such entry (get), something is wrong (check); \
                  2 wrong usage, or the directory cannot be used."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Prints the number of entries and of bytes on disk, and what each process counted that has the directory open
    Stats {
        #[command(flatten)]
        place: Place,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints the value of an entry as JSON; {"$bytes": "…"} holds a byte array in hexadecimal digits
    Get {
        #[command(flatten)]
        place: Place,
        /// The entry's key
        key: String,
        #[command(flatten)]
        keys: Keys,
        /// Print text and byte arrays as they are, without quotes or a line end
        #[arg(long)]
        raw: bool,
    },
    /// Stores a value; makes the directory if there is none
    Set {
        #[command(flatten)]
        place: Place,
        /// The entry's key
        key: String,
        /// The value: text, unless an option says otherwise; `-` reads it from standard input
        value: String,
        #[command(flatten)]
        keys: Keys,
        #[command(flatten)]
        format: Formats,
        /// How long the entry lives: a number with ms, s, m, h or d, or `never`
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = timeout)]
        timeout: Timeout,
    },
    /// Lists keys, in no particular order
    Ls {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        keys: Keys,
        /// Print the values too, as JSON, after a tab
        #[arg(long)]
        values: bool,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
        /// Stop after this many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Makes the index anew from everything that the log still holds; what was deleted lately may come back. Not
    /// while another process has the directory open
    Salvage {
        #[command(flatten)]
        place: Place,
    },
    /// Reads everything and says whether it is sound
    Check {
        #[command(flatten)]
        place: Place,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Group)]
pub(super) struct Place {
    /// The cache directory
    pub(super) dir: PathBuf,
}

/// Which keys are meant.
#[derive(Group)]
pub(super) struct Keys {
    /// The prefix that keys are under
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) prefix: String,
    /// The version that keys are under
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(super) key_version: i64,
    /// Keys are meant as they are stored, prefix:version:key; `ls` lists those of the whole directory
    #[arg(long, conflicts_with_all = ["prefix", "key_version"])]
    pub(super) stored: bool,
}

/// How a value is given.
#[derive(Group)]
#[group(multiple = false)]
pub(super) struct Formats {
    /// The value is JSON, and stored as what it says: a number, a list, …
    #[arg(long)]
    json: bool,
    /// The value is stored as bytes, without a type
    #[arg(long)]
    bytes: bool,
}

pub(super) enum Format {
    Text,
    Json,
    Bytes,
}

impl Formats {
    pub(super) fn of(&self) -> Format {
        match self {
            Self { json: true, .. } => Format::Json,
            Self { bytes: true, .. } => Format::Bytes,
            _ => Format::Text,
        }
    }
}

/// Reads a number and its unit. A number alone is refused: of what?
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
        "" => return Err("a unit is missing: ms, s, m, h or d".to_owned()),
        _ => return Err("a number with ms, s, m, h or d is needed, or `never`".to_owned()),
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
