//! The plan of a run: what to measure, and for how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use crate::contender::Which;
use crate::workload::Size;

pub(crate) struct Plan {
    /// The engines measured within one process.
    pub(crate) contenders: Vec<Which>,
    /// The engines measured with processes that share a directory.
    pub(crate) sharing: Vec<Which>,
    pub(crate) sizes: Vec<Size>,
    pub(crate) workloads: Vec<Workload>,
    /// The number of rounds; the report shows medians.
    pub(crate) rounds: usize,
    /// The duration of one measurement of reads, mixes and counters.
    pub(crate) slice: Duration,
    /// Whether to sync the disk between measurements.
    pub(crate) settles: bool,
    /// The fraction of the full number of entries.
    pub(crate) scale: f64,
    /// The directory for the stores.
    pub(crate) dir: PathBuf,
}

impl Plan {
    pub(crate) fn wants(&self, workload: Workload) -> bool {
        self.workloads.contains(&workload)
    }

    /// `count`, multiplied by the scale of the plan; at least 100.
    pub(crate) fn scaled(&self, count: u32) -> u32 {
        ((f64::from(count) * self.scale) as u32).max(100)
    }

    /// The smallest size, for everything that is measured at one size only.
    pub(crate) fn smallest(&self) -> Option<Size> {
        self.sizes.iter().copied().min_by_key(|size| size.len)
    }

    /// The contenders in the order of a round. Each is the first in one round.
    pub(crate) fn order(&self, round: usize) -> Vec<Which> {
        rotated(&self.contenders, round).copied().collect()
    }

    /// A new directory for a store.
    pub(crate) fn fresh_dir(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("keepwarm-comparison").tempdir_in(&self.dir).unwrap()
    }
}

/// `all` in the order of a round. Each is the first in one round.
pub(crate) fn rotated<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    all.iter().cycle().skip(round % all.len().max(1)).take(all.len())
}

/// The workloads. [`name`](Self::name) is the name in the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Workload {
    LoadOrdered,
    LoadShuffled,
    GetUniform,
    GetUniformTwo,
    GetZipf,
    GetZipfTwo,
    Mix,
    IncrOne,
    IncrMany,
    Disk,
    Reopen,
    Latency,
    Kill,
    Memory,
    Churn,
    Idle,
    Shared,
    Processes,
}

impl Workload {
    /// The workloads whose result is a rate.
    pub(crate) const RATES: [Self; 9] = [
        Self::LoadOrdered,
        Self::LoadShuffled,
        Self::GetUniform,
        Self::GetUniformTwo,
        Self::GetZipf,
        Self::GetZipfTwo,
        Self::Mix,
        Self::IncrOne,
        Self::IncrMany,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LoadOrdered => "set, new keys in order",
            Self::LoadShuffled => "set, new keys shuffled",
            Self::GetUniform => "get, uniform",
            Self::GetUniformTwo => "get, uniform, two threads",
            Self::GetZipf => "get, zipf 0.99",
            Self::GetZipfTwo => "get, zipf 0.99, two threads",
            Self::Mix => "90 % get, 10 % set, zipf",
            Self::IncrOne => "incr, one counter",
            Self::IncrMany => "incr, 1,000 counters",
            Self::Disk => "disk",
            Self::Reopen => "reopen",
            Self::Latency => "latency",
            Self::Kill => "kill",
            Self::Memory => "memory",
            Self::Churn => "churn",
            Self::Idle => "idle",
            Self::Shared => "shared",
            Self::Processes => "processes",
        }
    }
}

/// The disk space of everything below `dir`, in bytes. A file that an engine deletes meanwhile
/// counts 0.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => metadata.blocks() * 512 + disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => panic!("{}: {e}", entry.path().display()),
    };
    entries.map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_sparse_files_count_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        let file = std::fs::File::create(dir.path().join("below/sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        std::fs::write(dir.path().join("full"), vec![7; 100_000]).unwrap();
        let bytes = disk_bytes(dir.path());
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn each_contender_is_first_in_one_round() {
        let plan = Plan {
            contenders: Which::ALL.to_vec(),
            sharing: Vec::new(),
            sizes: Size::ALL.to_vec(),
            workloads: Vec::new(),
            rounds: 9,
            slice: Duration::ZERO,
            settles: false,
            scale: 1.0,
            dir: PathBuf::new(),
        };
        let mut first: Vec<Which> = (0..9).map(|round| plan.order(round)[0]).collect();
        first.sort_unstable();
        assert_eq!(first, Which::ALL);
    }
}
