//! What a test run found, as a table for people and a closing line for scripts.

use std::time::Duration;

use crate::libtest::{Tested, Verdict};

/// What was found so far: a row for each kind of check.
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Default)]
struct Row {
    name: String,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
    elapsed: Duration,
}

/// The sums over all rows.
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Totals {
    /// Tests and checks that held.
    pub passed: usize,
    /// Those that didn't.
    pub failed: usize,
    /// Those that didn't run.
    pub skipped: usize,
}

impl Report {
    /// A report with these rows first, in this order. A row without anything in it isn't printed.
    pub fn new(rows: &[&str]) -> Self {
        let row = |name: &&str| Row {
            name: (*name).to_owned(),
            ..Row::default()
        };
        Self {
            rows: rows.iter().map(row).collect(),
        }
    }

    fn row(&mut self, name: &str) -> &mut Row {
        let index = self
            .rows
            .iter()
            .position(|row| row.name == name)
            .unwrap_or_else(|| {
                self.rows.push(Row {
                    name: name.to_owned(),
                    ..Row::default()
                });
                self.rows.len() - 1
            });
        &mut self.rows[index]
    }

    /// Adds a check that either holds or doesn't, such as the formatting.
    pub fn add_check(&mut self, row: &str, check: &str, holds: bool, elapsed: Duration) {
        let row = self.row(row);
        row.elapsed += elapsed;
        if holds {
            row.passed += 1
        } else {
            row.failed.push(check.to_owned())
        }
    }

    /// Adds a test of a program.
    pub fn add_test(&mut self, row: &str, program: &str, tested: &Tested) {
        let row = self.row(row);
        let name = format!("{program} {}", tested.name);
        match &tested.verdict {
            Verdict::Passed => row.passed += 1,
            Verdict::Failed => row.failed.push(name),
            Verdict::Skipped(reason) => row.skipped.push((name, reason.clone())),
        }
    }

    /// Whether a row has anything in it.
    pub fn has_tests(&self, row: &str) -> bool {
        self.rows
            .iter()
            .any(|one| one.name == row && one.has_something())
    }

    /// Adds the time that a row's tests took.
    pub fn add_time(&mut self, row: &str, elapsed: Duration) {
        self.row(row).elapsed += elapsed;
    }

    /// The sums.
    pub fn totals(&self) -> Totals {
        Totals {
            passed: self.rows.iter().map(|row| row.passed).sum(),
            failed: self.rows.iter().map(|row| row.failed.len()).sum(),
            skipped: self.rows.iter().map(|row| row.skipped.len()).sum(),
        }
    }

    /// The table, then what failed and what was skipped, by name. The closing line is not part of it.
    pub fn table(&self, elapsed: Duration) -> String {
        let rows = || self.rows.iter().filter(|row| row.has_something());
        let longest = rows().map(|row| row.name.len()).max().unwrap_or(0);
        let width = longest.max("total".len());
        let line = |name: &str, passed: &str, failed: &str, skipped: &str, elapsed: &str| {
            format!("{name:<width$}  {passed:>7}  {failed:>7}  {skipped:>7}  {elapsed:>9}\n")
        };
        let mut text = line("", "passed", "failed", "skipped", "elapsed");
        let seconds = |elapsed: Duration| format!("{:.1} s", elapsed.as_secs_f64());
        for row in rows() {
            let (failed, skipped) = (row.failed.len().to_string(), row.skipped.len().to_string());
            text += &line(
                &row.name,
                &row.passed.to_string(),
                &failed,
                &skipped,
                &seconds(row.elapsed),
            );
        }
        let totals = self.totals();
        let (passed, failed, skipped) = (
            totals.passed.to_string(),
            totals.failed.to_string(),
            totals.skipped.to_string(),
        );
        text += &line("total", &passed, &failed, &skipped, &seconds(elapsed));
        for row in &self.rows {
            for name in &row.failed {
                text += &format!("failed: {name}\n");
            }
        }
        for row in &self.rows {
            for (name, reason) in &row.skipped {
                text += &format!("skipped: {name}: {reason}\n");
            }
        }
        text
    }
}

impl Row {
    fn has_something(&self) -> bool {
        self.passed > 0 || !self.failed.is_empty() || !self.skipped.is_empty()
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up_and_name_what_failed_and_what_was_skipped() {
        let mut report = Report::new(&["checks", "never used", "unit"]);
        let test = |name: &str, verdict| Tested {
            name: name.into(),
            verdict,
        };
        report.add_test("unit", "domain", &test("a", Verdict::Passed));
        report.add_check("checks", "formatting", true, Duration::from_secs(1));
        report.add_check("checks", "lints", false, Duration::from_secs(2));
        report.add_test(
            "unit",
            "domain",
            &test("b", Verdict::Skipped("no Redis".into())),
        );
        report.add_time("unit", Duration::from_millis(1500));
        assert_eq!(
            report.totals(),
            Totals {
                passed: 2,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(report.totals().to_string(), "2 passed, 1 failed, 1 skipped");
        let expected = "         passed   failed  skipped    elapsed
checks        1        1        0      3.0 s
unit          1        0        1      1.5 s
total         2        1        1      9.0 s
failed: lints
skipped: domain b: no Redis
";
        assert_eq!(report.table(Duration::from_secs(9)), expected);
    }
}
