//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Parser;

use crate::analysis::ANALYSIS_VERSION;

/// Reports the most complex and the near-duplicate functions of Rust sources.
///
/// What was found out about a file is kept in a cache directory, so that the next run reads only files that
/// have changed since, whether this run ends well or is killed.
#[derive(Parser, Debug)]
#[command(name = "keepwarm-analyze")]
pub(crate) struct Args {
    /// Directory with Rust sources [default: keepwarm's own and those of its dependencies]
    pub(crate) dir: Option<PathBuf>,

    /// Where results are kept [default: keepwarm-analyze in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,

    /// Write the report to this file rather than to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// How many entries the lists of the report have at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) top: usize,

    /// How many threads work [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,

    /// Use results of this version of the analysis; those of other versions stay but do not count
    #[arg(long, value_name = "N", default_value_t = ANALYSIS_VERSION)]
    pub(crate) analysis_version: i64,

    /// No progress bar and no summary
    #[arg(long)]
    pub(crate) quiet: bool,

    /// Print the summary as one line of JSON, the last on standard error
    #[arg(long)]
    pub(crate) json_summary: bool,

    /// Print `stored DIGEST PATH` on standard error for each new result, once it is safely in the cache
    #[arg(long)]
    pub(crate) log_acknowledged: bool,
}
