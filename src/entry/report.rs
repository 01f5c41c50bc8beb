//! What a check of a store found.

/// What a check found. Nothing is changed by checking.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Segments of the log.
    pub segments: u64,
    /// Records in them whose header and key are sound, superseded ones included.
    pub records: u64,
    /// Values in files of their own.
    pub blobs: u64,
    /// Entries that the index names and whose records are sound.
    pub entries: u64,
    /// Of these, expired ones that were not reaped yet.
    pub expired: u64,
    /// Of these, entries from before the last `clear` that were not swept yet; not counted
    /// otherwise.
    pub outdated: u64,
    /// Whether entries changed during the check. Then the number of entries was not compared with
    /// the count.
    pub changed: bool,
    /// What is wrong, a line each, at most 100 of them.
    pub problems: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    /// Adds a line to `problems`. Beyond 100 it is dropped.
    ///
    /// ```
    /// use keepwarm::CheckReport;
    ///
    /// let mut report = CheckReport::default();
    /// report.problem("the record of \"a\" is damaged".to_owned());
    /// assert!(!report.is_sound());
    /// ```
    pub fn problem(&mut self, text: String) {
        const MOST: usize = 100;
        if self.problems.len() < MOST {
            self.problems.push(text);
        }
    }
}
