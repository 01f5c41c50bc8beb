//! The tables, in Markdown.

use std::fmt;

use crate::child;
use crate::churn;
use crate::contender::Which;
use crate::goals;
use crate::latency::{PERCENTILES, metric};
use crate::plan::Workload;
use crate::plot;
use crate::processes;
use crate::results::Results;
use crate::shared;
use crate::workload::Size;

const BEGIN: &str = "<!-- What follows is written by the comparison. -->";
const END: &str = "<!-- Here it ends. -->";

/// A table in Markdown. What has no rows shows nothing.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<T: Into<String>>(head: impl IntoIterator<Item = T>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let row: Vec<String> = cells.into_iter().map(Into::into).collect();
        debug_assert_eq!(row.len(), self.head.len(), "each row has a cell for each column");
        self.rows.push(row);
    }

    /// Adds a row with what `show` makes of `metric` for each of `contenders`, unless nothing was measured.
    fn figures(
        &mut self,
        title: &str,
        contenders: &[Which],
        mut show: impl FnMut(Which) -> Option<String>,
    ) {
        let cells: Vec<_> = contenders.iter().map(|which| show(*which)).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned()));
            self.row(std::iter::once(title.to_owned()).chain(cells));
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        writeln!(f, "| {} |", self.head.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.head.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// Everything that was measured.
pub(crate) fn tables(results: &Results) -> String {
    let mut text = about(results);
    let mut section = |title: &str, note: &str, table: Table| {
        if !table.rows.is_empty() {
            let note = if note.is_empty() { String::new() } else { format!("{note}\n\n") };
            text += &format!("### {title}\n\n{note}{table}\n");
        }
    };
    if results.scale == 1.0 {
        section("Goals", "", goals::table(results));
    }
    for Size { name, .. } in Size::ALL {
        let note = format!(
            "Operations a second; in parentheses how many times as fast keepwarm is.\n\n![the same as bars](plots/{})",
            plot::rates_file(name)
        );
        section(
            &format!("Rates, {name}"),
            &note,
            rates(results, name, Workload::RATES.map(Workload::name)),
        );
    }
    let note = format!(
        "{PROCESSES_NOTE}\n\n![the same as bars](plots/{})",
        plot::rates_file(processes::GROUP)
    );
    section(
        "Processes that share a directory",
        &note,
        rates(results, processes::GROUP, processes::metrics()),
    );
    section("After the end of the process", KILL_NOTE, ends(results));
    section("Disk, as a multiple of the bytes of keys and values", "", disk(results));
    section("Memory of a process that loaded everything", MEMORY_NOTE, memory(results));
    for Size { name, .. } in Size::ALL {
        let note = format!("{LATENCY_NOTE}\n\n![percentiles](plots/{})", plot::latency_file(name));
        section(&format!("Single calls, {name}"), &note, latencies(results, name, &["get", "set"]));
    }
    section(
        "New keys at max_entries (100,000)",
        CHURN_NOTE,
        latencies(results, churn::AT_ENTRIES, &["set"]),
    );
    let at_bytes = latencies(results, churn::AT_BYTES, &["set", "set after a miss"]);
    section("At max_bytes", BYTES_NOTE, at_bytes);
    section("Keys by zipf at max_bytes", ZIPF_NOTE, amplification(results));
    section("Counting up one counter", "", counting(results));
    section("A struct of twenty fields", "", typed(results));
    section("When nothing happens", IDLE_NOTE, idle(results));
    section("How each is set up", "", setups(results));
    text
}

const PROCESSES_NOTE: &str = "Operations a second of all processes together, on a million entries of 100 bytes that were \
loaded before; in parentheses how many times as fast keepwarm is. Each process has its own handle, its own draws of any \
key, and has read before what it will ask for; all begin at the same moment with their shares of two million operations \
(SQLite: 200,000), and the time is that of the last. Where there are more processes than cores they take turns.";
const KILL_NOTE: &str = "A child process loads a million entries, goes on writing, half new keys, half overwriting, and \
is killed with SIGKILL; the next ones open what it left and do the same. Of *lost* writes the call had returned. Reopening \
is until the first entry was read; in parentheses the slowest.";
const MEMORY_NOTE: &str = "Anonymous memory, and in parentheses the pages of mapped files, which the kernel takes back when \
it needs them.";
const LATENCY_NOTE: &str = "Each call timed alone, reading the clock included (see harness): get of any key, set that \
overwrites.";
const CHURN_NOTE: &str =
    "Half a million new keys of 100 bytes, one after the other, into a full cache.";
const BYTES_NOTE: &str = "`set`: a million new keys of 100 bytes into 64 MiB. `set after a miss`: keys by zipf 0.99 of five \
times as many as there is room for, 1 KiB each, set where `get_bytes` finds nothing.";
const ZIPF_NOTE: &str = "The same keys and values as `set` after a miss. Write amplification: bytes that the log took, \
over those of new records alone.";
const IDLE_NOTE: &str = "A process with a tenth of the entries, from three seconds after its last call on: what its \
threads do, all but the one that waits for the end.";

/// What was measured on what.
fn about(results: &Results) -> String {
    let scale = if results.scale == 1.0 {
        "1,000,000 × 100 B, 300,000 × 1 KiB, 30,000 × 16 KiB".to_owned()
    } else {
        format!("{} of 1,000,000 × 100 B, 300,000 × 1 KiB, 30,000 × 16 KiB", results.scale)
    };
    format!(
        "{}. {scale}; medians of {} rounds; {} minutes in all.\n\n",
        results.machine,
        results.rounds,
        results.seconds.div_ceil(60)
    )
}

fn head(first: &str, contenders: &[Which]) -> Table {
    Table::new(std::iter::once(first).chain(contenders.iter().map(|which| which.name())))
}

fn rates<T: AsRef<str>>(
    results: &Results,
    group: &str,
    names: impl IntoIterator<Item = T>,
) -> Table {
    let contenders = results.contenders(group);
    let mut table = head("", &contenders);
    for name in names {
        let name = name.as_ref();
        let own = results.median(group, name, Which::Keepwarm);
        table.figures(name, &contenders, |which| {
            let theirs = results.median(group, name, which)?;
            let compared = own.filter(|_| !matches!(which, Which::Keepwarm | Which::Nothing));
            Some(
                rate(theirs)
                    + &compared.map_or(String::new(), |own| format!(" ({})", ratio(own / theirs))),
            )
        });
    }
    table
}

fn racers() -> Vec<Which> {
    Which::ALL.into_iter().filter(|which| which.races()).collect()
}

fn persistent() -> Vec<Which> {
    racers().into_iter().filter(|which| which.is_persistent()).collect()
}

fn ends(results: &Results) -> Table {
    let contenders = persistent();
    let mut table = head("", &contenders);
    for Size { name, .. } in Size::ALL {
        let title = format!("reopen after close, {name}");
        table.figures(&title, &contenders, |which| {
            with_slowest(results, name, "reopen after close", which)
        });
    }
    let killed = |which| with_slowest(results, child::GROUP, "reopen after a kill", which);
    table.figures("reopen after a kill, 100 B", &contenders, killed);
    table.figures("acknowledged writes lost", &contenders, |which| {
        let sum = |metric| results.samples(child::GROUP, metric, which).iter().sum::<f64>();
        let acknowledged = sum("acknowledged");
        (acknowledged > 0.0).then(|| format!("{} of {}", sum("lost"), acknowledged))
    });
    table
}

fn with_slowest(results: &Results, group: &str, metric: &str, which: Which) -> Option<String> {
    let median = results.median(group, metric, which)?;
    let slowest = results.samples(group, metric, which).iter().copied().fold(0.0, f64::max);
    Some(format!("{} ({})", span(median), span(slowest)))
}

fn disk(results: &Results) -> Table {
    let contenders = persistent();
    let mut table = head("", &contenders);
    for Size { name, .. } in Size::ALL {
        for metric in ["disk after load", "disk after overwriting three times"] {
            let title = format!("{name}, {}", metric.trim_start_matches("disk "));
            table.figures(&title, &contenders, |which| {
                results.median(name, metric, which).map(ratio)
            });
        }
    }
    table
}

fn memory(results: &Results) -> Table {
    let contenders = racers();
    let mut table = head("", &contenders);
    for Size { name, .. } in Size::ALL {
        table.figures(name, &contenders, |which| {
            let own = results.median(name, "memory of its own", which)?;
            let files = results.median(name, "mapped files in memory", which)?;
            let mebibytes = |bytes: f64| format!("{:.0}", bytes / f64::from(1 << 20));
            Some(format!("{} ({}) MiB", mebibytes(own), mebibytes(files)))
        });
    }
    table
}

fn latencies(results: &Results, group: &str, calls: &[&str]) -> Table {
    let names = PERCENTILES.iter().map(|(_, name)| *name).chain(["max"]);
    let mut table = Table::new(["", ""].into_iter().chain(names.clone()));
    for call in calls {
        for which in results.contenders(group) {
            let figures =
                names.clone().map(|name| results.median(group, &metric(call, name), which));
            let cells: Vec<String> = figures.flatten().map(span).collect();
            if !cells.is_empty() {
                let title = [
                    format!("`{call}`").replace("set after a miss`", "set` after a miss"),
                    which.name().to_owned(),
                ];
                table.row(title.into_iter().chain(cells));
            }
        }
    }
    table
}

fn amplification(results: &Results) -> Table {
    let mut table = Table::new(["", ""]);
    let own = |metric| results.median(churn::AT_BYTES, metric, Which::Keepwarm);
    if let Some((hits, written)) = own("hit ratio").zip(own("write amplification")) {
        table.row(["hit ratio".to_owned(), format!("{:.1} %", hits * 100.0)]);
        table.row(["write amplification".to_owned(), format!("{written:.3}")]);
    }
    table
}

fn counting(results: &Results) -> Table {
    let mut table = Table::new(["", ""]);
    let own = |metric| results.median(churn::COUNTING, metric, Which::Keepwarm);
    for (title, metric) in
        [("bytes written to the log", "bytes written"), ("most disk at any time", "most bytes")]
    {
        if let Some(bytes) = own(metric) {
            table.row([title.to_owned(), format!("{:.0} MiB", bytes / f64::from(1 << 20))]);
        }
    }
    table
}

fn typed(results: &Results) -> Table {
    let mut table = Table::new(["", ""]);
    for metric in ["set of a struct", "get of a struct", "get_shared of a struct"] {
        if let Some(each) = results.median(shared::GROUP, metric, Which::Keepwarm) {
            let call = metric.trim_end_matches(" of a struct");
            table.row([format!("`{call}`"), span(each)]);
        }
    }
    table
}

fn idle(results: &Results) -> Table {
    let contenders: Vec<Which> = results
        .contenders(child::GROUP)
        .into_iter()
        .filter(|which| *which != Which::Nothing)
        .collect();
    let mut table = head("", &contenders);
    let of = |metric, which| results.median(child::GROUP, metric, which);
    table.figures("wake-ups a second", &contenders, |which| {
        Some(format!("{:.1}", of("wake-ups a second", which)?))
    });
    table.figures("processor time", &contenders, |which| {
        Some(format!("{:.3} %", of("idle processor time", which)? * 100.0))
    });
    table
}

fn setups(results: &Results) -> Table {
    let mut table = Table::new(["", "version and settings"]);
    let (racing, sharing) =
        (results.contenders(Size::ALL[0].name), results.contenders(processes::GROUP));
    let measured = |which: &Which| racing.contains(which) || sharing.contains(which);
    for which in Which::ALL.into_iter().filter(measured) {
        table.row([which.name(), which.setup()]);
    }
    table
}

/// A rate as `1.23 M` or `45.6 k`.
pub(crate) fn rate(rate: f64) -> String {
    match rate {
        r if r >= 999_500.0 => format!("{} M", digits(r / 1e6)),
        r if r >= 1e3 => format!("{} k", digits(r / 1e3)),
        r => digits(r),
    }
}

/// A ratio as `1.5 ×`.
pub(crate) fn ratio(ratio: f64) -> String {
    match ratio {
        r if r < 0.0995 => format!("{r:.3} ×"),
        r if r < 9.95 => format!("{r:.2} ×").replace("0 ×", " ×"),
        r => format!("{r:.0} ×"),
    }
}

/// A time in the unit that fits.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 999.5e-9 => format!("{:.0} ns", s * 1e9),
        s if s < 999.5e-6 => format!("{} µs", digits(s * 1e6)),
        s if s < 0.9995 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

/// Three digits that count, if there are as many before the point or fewer.
fn digits(number: f64) -> String {
    match number {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// `page` with `section` between the two marks.
pub(crate) fn replace_section(page: &str, section: &str) -> String {
    let (before, rest) =
        page.split_once(BEGIN).expect("the page has the mark where the section begins");
    let (_, after) = rest.split_once(END).expect("the page has the mark where the section ends");
    format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", section.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_that_fits() {
        assert_eq!(
            [rate(1_234_567.0), rate(12_345_678.0), rate(999_700.0)],
            ["1.23 M", "12.3 M", "1.00 M"]
        );
        assert_eq!([rate(45_600.0), rate(12.0)], ["45.6 k", "12.0"]);
        assert_eq!(
            [span(420e-9), span(1.5e-6), span(12.34e-3), span(2.0)],
            ["420 ns", "1.50 µs", "12.3 ms", "2.00 s"]
        );
        assert_eq!(
            [ratio(1.5), ratio(1.23), ratio(12.3), ratio(0.055)],
            ["1.5 ×", "1.23 ×", "12 ×", "0.055 ×"]
        );
    }

    #[test]
    fn a_table_shows_ratios_to_keepwarm_and_nothing_for_what_was_not_measured() {
        let mut results = Results::new(1, 1.0);
        let name = Workload::GetUniform.name();
        results.add("100 B", name, Which::Keepwarm, 3e6);
        results.add("100 B", name, Which::Lmdb, 2e6);
        results.add("100 B", Workload::Mix.name(), Which::Lmdb, 1e6);
        let text = rates(&results, "100 B", Workload::RATES.map(Workload::name)).to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("| get, uniform | 3.00 M | 2.00 M (1.5 ×) |"), "{text}");
        assert!(text.contains("| – | 1.00 M |"), "{text}");
    }

    #[test]
    fn the_section_is_replaced_and_nothing_else() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = replace_section(&page, "new");
        assert_eq!(new, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replace_section(&new, "new"), new);
    }
}
