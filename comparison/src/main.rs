//! A comparison of keepwarm with other engines, in one run on the same workload: first all within
//! one process, then in processes that share a directory.
//!
//! ```text
//! cargo run --release -p keepwarm-comparison -- OPTIONS
//!
//! --write-docs    everything; writes docs/benchmarks.md and its plots
//! --quick         a tenth of the entries, three rounds
//! --only keepwarm,lmdb --only-workload get_uniform
//! ```

mod child;
mod churn;
mod contender;
mod goals;
mod latency;
mod plan;
mod plot;
mod processes;
mod race;
mod report;
mod results;
mod shared;
mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::contender::Which;
use crate::plan::{Plan, Workload};
use crate::results::Results;
use crate::workload::Size;

/// Measures keepwarm beside other engines and prints tables.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    /// A tenth of the entries, three rounds.
    #[arg(long)]
    quick: bool,
    /// A hundredth of the entries, one round, to see whether everything works.
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// The number of rounds; the tables show medians.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Which>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    only_workload: Vec<Workload>,
    /// Only values of these lengths, in bytes.
    #[arg(long, value_delimiter = ',')]
    only_len: Vec<usize>,
    /// The directory for the stores, on the file system to measure.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Write the tables into docs/benchmarks.md and the plots beside it.
    #[arg(long)]
    write_docs: bool,
    /// Write all samples to this file.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Show the samples of such a file instead of measuring.
    #[arg(long)]
    show: Option<PathBuf>,
    #[command(subcommand)]
    child: Option<child::Task>,
}

impl Args {
    fn plan(&self) -> Plan {
        let (scale, rounds, slice) = match self {
            Self { smoke: true, .. } => (0.01, 1, 5),
            Self { quick: true, .. } => (0.1, 3, 100),
            _ => (1.0, 5, 250),
        };
        let chosen = |len: usize| self.only_len.is_empty() || self.only_len.contains(&len);
        let contenders = or_all(&self.only, Which::ALL.to_vec()).into_iter();
        let sizes = Size::ALL.into_iter().filter(|size| chosen(size.len));
        Plan {
            contenders: contenders.clone().filter(|which| which.races()).collect(),
            sharing: contenders.filter(|which| which.is_shared()).collect(),
            sizes: sizes
                .map(|size| Size { entries: (f64::from(size.entries) * scale) as u32, ..size })
                .collect(),
            workloads: or_all(&self.only_workload, Workload::value_variants().to_vec()),
            rounds: self.rounds.unwrap_or(rounds).max(1),
            slice: Duration::from_millis(slice),
            settles: !self.smoke,
            scale,
            dir: self.dir.clone(),
        }
    }
}

impl Args {
    fn keep(&self, results: &Results) {
        if let Some(file) = &self.save {
            results.write(file);
        }
    }
}

fn or_all<T: Clone>(chosen: &[T], all: Vec<T>) -> Vec<T> {
    if chosen.is_empty() { all } else { chosen.to_vec() }
}

fn main() {
    let args = Args::parse();
    if let Some(task) = &args.child {
        return task.run();
    }
    let results = args
        .show
        .as_deref()
        .map_or_else(|| measure(&args.plan(), |so_far| args.keep(so_far)), Results::read);
    args.keep(&results);
    println!("{}", report::tables(&results));
    if args.write_docs {
        write_docs(&results);
    }
}

/// Measures everything in `plan`. Calls `keep` with the results so far after each size.
fn measure(plan: &Plan, keep: impl Fn(&Results)) -> Results {
    let started = Instant::now();
    let mut results = Results::new(plan.rounds, plan.scale);
    let of_stores = |w: &Workload| {
        Workload::RATES.contains(w)
            || matches!(w, Workload::Disk | Workload::Reopen | Workload::Latency)
    };
    if plan.workloads.iter().any(of_stores) {
        for size in &plan.sizes {
            race::run(plan, *size, &mut results);
            // A later failure must not lose these results.
            keep(&results);
        }
    }
    child::run(plan, &mut results);
    if plan.wants(Workload::Churn) {
        churn::run(plan, &mut results);
    }
    if plan.wants(Workload::Shared) {
        shared::run(plan, &mut results);
    }
    if plan.wants(Workload::Processes) {
        processes::run(plan, &mut results);
    }
    results.seconds = started.elapsed().as_secs();
    eprintln!("{} s in total", results.seconds);
    results
}

fn write_docs(results: &Results) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = docs.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, report::replace_section(&text, &report::tables(results))).unwrap();
    let plots = docs.join("plots");
    std::fs::create_dir_all(&plots).unwrap();
    for (name, svg) in plot::all(results) {
        std::fs::write(plots.join(name), svg).unwrap();
    }
}
