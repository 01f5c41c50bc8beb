//! The worker threads, which look up, read and analyse files.

use std::io::Write as _;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{io, thread};

use indicatif::ProgressBar;

use crate::analysis::{self, Analysis};
use crate::sources::Source;
use crate::store::{self, Digest, Origin, Stat, Store};
use crate::{Failure, Result};

/// The outcome for a file.
pub(crate) enum Finding {
    Analysis(Analysis),
    /// Not stored: the next run tries again.
    Unreadable(String),
}

/// Counts of what a run did.
#[derive(Default, Clone, Copy)]
pub(crate) struct Counts {
    /// Files that were read.
    pub(crate) read: usize,
    /// Files that were analysed.
    pub(crate) computed: usize,
    /// Files with the same content as one that was analysed in this run.
    pub(crate) copies: usize,
    /// Files whose result was in the cache before.
    pub(crate) from_cache: usize,
    /// Files that were analysed but whose result is not in the cache.
    pub(crate) not_kept: usize,
    /// Files that could not be read.
    pub(crate) unreadable: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.computed += other.computed;
        self.copies += other.copies;
        self.from_cache += other.from_cache;
        self.not_kept += other.not_kept;
        self.unreadable += other.unreadable;
    }
}

/// The input and the options of a run.
pub(crate) struct Work<'a> {
    pub(crate) store: &'a Store,
    pub(crate) sources: &'a [Source],
    pub(crate) progress: &'a ProgressBar,
    /// Whether to print a line for each result that was stored.
    pub(crate) log_acknowledged: bool,
}

/// The number of files looked up together.
const BATCH: usize = 16;
/// The parser is recursive, so its threads get a larger stack than the default. Only the used part
/// takes memory.
const STACK: usize = 256 << 20;

impl Work<'_> {
    /// A finding for each source, in their order. An error of the cache ends the run; results
    /// stored before it are kept.
    pub(crate) fn run(&self, jobs: usize) -> Result<(Vec<Finding>, Counts)> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let worker = || {
            let mut done = Vec::new();
            let mut counts = Counts::default();
            while !stop.load(Ordering::Relaxed) {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                let Some(rest) = self.sources.get(start..).filter(|rest| !rest.is_empty()) else {
                    break;
                };
                let batch = &rest[..rest.len().min(BATCH)];
                match self.batch(batch, &mut counts) {
                    Ok(findings) => done.push((start, findings)),
                    Err(e) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(e);
                    }
                }
            }
            Ok((done, counts))
        };

        let mut done = Vec::new();
        let mut counts = Counts::default();
        thread::scope(|scope| {
            let spawn = |_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, worker);
            let threads = (0..jobs).map(spawn).collect::<io::Result<Vec<_>>>();
            let threads = threads.map_err(|e| Failure::caused("cannot start a thread", e))?;
            for thread in threads {
                let (part, counted) =
                    thread.join().map_err(|_| Failure::new("a thread panicked"))??;
                done.extend(part);
                counts += counted;
            }
            Ok::<_, Failure>(())
        })?;
        done.sort_by_key(|(start, _)| *start);
        Ok((done.into_iter().flat_map(|(_, findings)| findings).collect(), counts))
    }

    fn batch(&self, sources: &[Source], counts: &mut Counts) -> Result<Vec<Finding>> {
        let stats: Vec<Option<Stat>> =
            sources.iter().map(|source| Stat::of(&source.path)).collect();
        let known = self.store.known(&stats)?;
        let mut findings = Vec::with_capacity(sources.len());
        for (source, known) in sources.iter().zip(known) {
            findings.push(match known {
                Some(analysis) => {
                    counts.from_cache += 1;
                    Finding::Analysis(analysis)
                }
                None => self.one(&source.path, counts)?,
            });
            self.progress.inc(1);
        }
        Ok(findings)
    }

    /// Reads a file that is new, changed, or modified too recently to trust its stat.
    fn one(&self, path: &Path, counts: &mut Counts) -> Result<Finding> {
        let (content, stat) = match store::read(path) {
            Ok(read) => read,
            Err(e) => {
                counts.unreadable += 1;
                return Ok(Finding::Unreadable(e.to_string()));
            }
        };
        counts.read += 1;
        let digest = Digest::of(&content);
        let (analysis, origin) = self.store.result(digest, || analysis::analyze(&content))?;
        if let Some(stat) = stat {
            self.store.note(&stat, digest);
        }
        match origin {
            Origin::Cache => counts.from_cache += 1,
            Origin::Copy => counts.copies += 1,
            Origin::ComputedNotKept => {
                counts.computed += 1;
                counts.not_kept += 1;
            }
            Origin::Computed => {
                counts.computed += 1;
                if self.log_acknowledged {
                    acknowledge(digest, path);
                }
            }
        }
        Ok(Finding::Analysis(analysis))
    }
}

/// Prints that a result is stored. One unbuffered write, so a reader sees the whole line or none.
fn acknowledge(digest: Digest, path: &Path) {
    let line = format!("stored {digest} {}\n", path.display());
    // The reader may have closed the pipe. The result is stored all the same.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
