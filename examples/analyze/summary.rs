//! The summary of a run: times and counts. Unlike the report, it differs from run to run.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::work::Counts;

pub(crate) struct Summary<'a> {
    pub(crate) files: usize,
    pub(crate) counts: Counts,
    pub(crate) jobs: usize,
    /// The time to list the files.
    pub(crate) listing: Duration,
    /// The time to get the results of all files.
    pub(crate) results: Duration,
    /// The time to write the report.
    pub(crate) report: Duration,
    pub(crate) cache: &'a Path,
}

impl Summary<'_> {
    fn temperature(&self) -> &'static str {
        match self.counts {
            Counts { computed: 0, .. } => "warm",
            Counts { from_cache: 0, .. } => "cold",
            _ => "partly warm",
        }
    }

    /// The summary as one line of JSON.
    pub(crate) fn json(&self) -> String {
        let Counts { read, computed, copies, from_cache, not_kept, unreadable } = self.counts;
        json!({
            "run": self.temperature(),
            "files": self.files,
            "read": read,
            "computed": computed,
            "copies": copies,
            "from_cache": from_cache,
            "not_kept": not_kept,
            "unreadable": unreadable,
            "jobs": self.jobs,
            "seconds": {
                "listing": self.listing.as_secs_f64(),
                "results": self.results.as_secs_f64(),
                "report": self.report.as_secs_f64(),
            },
            "cache": self.cache.to_string_lossy(),
        })
        .to_string()
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { read, computed, copies, from_cache, not_kept, unreadable } = self.counts;
        let threads = if self.jobs == 1 { "thread" } else { "threads" };
        writeln!(
            f,
            "{} run: {} files in {:.3} s with {} {threads}",
            self.temperature(),
            self.files,
            self.results.as_secs_f64(),
            self.jobs,
        )?;
        writeln!(
            f,
            "  {read} read, {computed} analysed, {copies} copies of these, \
             {from_cache} from the cache"
        )?;
        if unreadable > 0 {
            writeln!(f, "  {unreadable} could not be read; the report says why")?;
        }
        if not_kept > 0 {
            writeln!(
                f,
                "  {not_kept} results could not be kept, so the next run computes them again"
            )?;
        }
        writeln!(
            f,
            "  in addition, {:.3} s to list the files and {:.3} s for the report",
            self.listing.as_secs_f64(),
            self.report.as_secs_f64(),
        )?;
        writeln!(f, "  cache: {}", self.cache.display())
    }
}
