//! The results: samples by group, metric and contender, and their medians.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contender::Which;

/// All figures of a run. Rates are in operations per second, times in seconds, sizes in bytes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// A description of the machine.
    pub(crate) machine: String,
    pub(crate) rounds: usize,
    /// The fraction of the full number of entries.
    pub(crate) scale: f64,
    /// The duration of the run.
    pub(crate) seconds: u64,
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Figure {
    group: String,
    metric: String,
    which: Which,
    samples: Vec<f64>,
}

impl Results {
    pub(crate) fn new(rounds: usize, scale: f64) -> Self {
        Self { machine: machine(), rounds, scale, seconds: 0, figures: Vec::new() }
    }

    pub(crate) fn add(&mut self, group: &str, metric: &str, which: Which, sample: f64) {
        let same = |f: &&mut Figure| (&*f.group, &*f.metric, f.which) == (group, metric, which);
        match self.figures.iter_mut().find(same) {
            Some(figure) => figure.samples.push(sample),
            None => self.figures.push(Figure {
                group: group.to_owned(),
                metric: metric.to_owned(),
                which,
                samples: vec![sample],
            }),
        }
    }

    pub(crate) fn samples(&self, group: &str, metric: &str, which: Which) -> &[f64] {
        let same = |f: &&Figure| (&*f.group, &*f.metric, f.which) == (group, metric, which);
        self.figures.iter().find(same).map_or(&[], |figure| &figure.samples)
    }

    pub(crate) fn median(&self, group: &str, metric: &str, which: Which) -> Option<f64> {
        median(self.samples(group, metric, which))
    }

    /// The contenders with a figure in `group`, in their usual order.
    pub(crate) fn contenders(&self, group: &str) -> Vec<Which> {
        let measured =
            |which: &Which| self.figures.iter().any(|f| f.group == group && f.which == *which);
        Which::ALL.into_iter().filter(measured).collect()
    }

    pub(crate) fn read(path: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, serde_json::to_vec_pretty(self).unwrap()).unwrap();
    }
}

/// The median: the middle sample, or the mean of the two in the middle.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (lower, upper) =
        (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((lower + upper) / 2.0)
}

/// Processor, memory and kernel, in one line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value_of = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor =
        value_of(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = value_of(&read("/proc/meminfo"), "MemTotal")
        .and_then(|total| total.strip_suffix(" kB")?.parse::<f64>().ok())
        .map_or(0.0, |kilobytes| kilobytes / f64::from(1 << 20));
    let release = read("/proc/sys/kernel/osrelease");
    let kernel: Vec<&str> = release.trim().split('.').take(2).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{processor}, {cores} cores, {memory:.0} GiB of memory, Linux {}", kernel.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn samples_are_grouped_and_survive_a_file() {
        let mut results = Results::new(3, 1.0);
        for sample in [5.0, 1.0, 2.0] {
            results.add("100 B", "get", Which::Lmdb, sample);
        }
        results.add("100 B", "get", Which::Keepwarm, 7.0);
        let file = tempfile::NamedTempFile::new().unwrap();
        results.write(file.path());
        let read = Results::read(file.path());
        assert_eq!(read.median("100 B", "get", Which::Lmdb), Some(2.0));
        assert_eq!(read.contenders("100 B"), [Which::Keepwarm, Which::Lmdb]);
        assert_eq!(read.median("100 B", "set", Which::Lmdb), None);
    }
}
