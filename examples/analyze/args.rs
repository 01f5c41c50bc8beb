//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Parser;

use crate::analysis::ANALYSIS_VERSION;

/// Reports the most complex and the near-duplicate functions of Rust sources.
///
/// Results are kept in a cache directory, so that the next run reads only files that have changed
/// since, whether this run completes or is killed.
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

    /// The maximum number of entries in each list of the report
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) top: usize,

    /// The number of threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,

    /// Use results of this version of the analysis; results of other versions are kept but not used
    #[arg(long, value_name = "N", default_value_t = ANALYSIS_VERSION)]
    pub(crate) analysis_version: i64,

    /// No progress bar and no summary
    #[arg(long)]
    pub(crate) quiet: bool,

    /// Print the summary as one line of JSON, the last on standard error
    #[arg(long)]
    pub(crate) json_summary: bool,

    /// Print `stored DIGEST PATH` on standard error for each new result, once it is in the cache
    #[arg(long)]
    pub(crate) log_acknowledged: bool,
}
