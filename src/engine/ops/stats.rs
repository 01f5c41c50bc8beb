//! Statistics over all processes that share the directory.

use crate::engine::Engine;
use crate::engine::index::Owner;
use crate::engine::shared::stats_file::{StatsLine, WORDS, add};
use crate::entry::{ProcessStats, Stats};
use crate::error::{Error, Result};
use crate::time::Timestamp;

impl Engine {
    /// Publishes the counters of this process to the other processes.
    pub(crate) fn publish_stats(&self) {
        self.stats_file.publish(&self.stats());
    }

    /// The lines of the other processes.
    fn lines_of_others(&self) -> Result<Vec<StatsLine>> {
        let lines = self.stats_file.lines();
        let mut lines = lines.map_err(|e| Error::io("read", &self.stats_file.path, e))?;
        if let Some(own) = self.stats_file.number.and_then(|number| lines.get_mut(number as usize))
        {
            *own = [0; WORDS];
        }
        Ok(lines)
    }

    /// Whether the process of this line is attached.
    fn is_of_attached(&self, line: &StatsLine) -> bool {
        u32::try_from(line[0])
            .is_ok_and(|owner| owner != 0 && self.index.is_alive(Owner::from_bits(owner)))
    }

    /// The counters of all processes, since a process opened the directory while no other had it
    /// open.
    pub(crate) fn total_stats(&self) -> Result<Stats> {
        let mut all = self.stats();
        for line in self.lines_of_others()? {
            add(&line, &mut all);
            if self.is_of_attached(&line) {
                all.hot_bytes = all.hot_bytes.saturating_add(line[3]);
                all.pinned_bytes = all.pinned_bytes.saturating_add(line[4]);
            }
        }
        Ok(all)
    }

    /// The counters of each attached process; this process is first.
    pub(crate) fn process_stats(&self) -> Result<Vec<ProcessStats>> {
        let stats = self.stats();
        let own = ProcessStats { pid: std::process::id(), since: self.stats_file.started, stats };
        let lines = self.lines_of_others()?;
        let others = lines.iter().filter(|line| self.is_of_attached(line)).map(|line| {
            let (entries, bytes) = (stats.entries, stats.bytes);
            let [hot_bytes, pinned_bytes] = [line[3], line[4]];
            let mut stats = Stats { entries, bytes, hot_bytes, pinned_bytes, ..Stats::default() };
            add(line, &mut stats);
            let pid = u32::try_from(line[1]).unwrap_or(0);
            ProcessStats { pid, since: Timestamp::from_millis(line[2]), stats }
        });
        Ok(std::iter::once(own).chain(others).collect())
    }
}
