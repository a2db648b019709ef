//! Results: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::checks::Check;

/// Which way a figure is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// It describes the run.
    Neither,
}

/// A measured value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Which way it is good.
    pub better: Better,
}

/// What one scenario gave on one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Scenario with the parameters that make it comparable, e.g. `fanout, 100 members`.
    pub scenario: String,
    /// Which server.
    pub subject: String,
    /// The other parameters.
    pub parameters: BTreeMap<String, String>,
    /// Values, in the order of the table.
    pub figures: Vec<Figure>,
    /// Whether the values can be trusted.
    pub checks: Vec<Check>,
}

/// Everything of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this program.
    pub version: String,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// The circumstances.
    pub notes: Vec<String>,
    /// What was measured.
    pub measurements: Vec<Measurement>,
}

// === impl Measurement ===

impl Measurement {
    /// Nothing measured yet.
    pub fn new(scenario: String, subject: &str) -> Self {
        Self {
            scenario,
            subject: subject.to_owned(),
            parameters: BTreeMap::new(),
            figures: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Notes a parameter.
    pub fn parameter(&mut self, name: &str, value: impl ToString) {
        self.parameters.insert(name.to_owned(), value.to_string());
    }

    /// Notes a value.
    pub fn figure(&mut self, name: &str, value: f64, better: Better) {
        self.figures.push(Figure {
            name: name.to_owned(),
            value,
            better,
        });
    }

    /// Notes median, 99th percentile and maximum of a histogram in microseconds.
    pub fn latencies(&mut self, histogram: &Histogram<u64>) {
        for (name, micros, better) in [
            ("p50 ms", histogram.value_at_quantile(0.5), Better::Lower),
            ("p99 ms", histogram.value_at_quantile(0.99), Better::Lower),
            ("max ms", histogram.max(), Better::Neither),
        ] {
            self.figure(name, micros as f64 / 1_000.0, better);
        }
        self.figure("latency samples", histogram.len() as f64, Better::Neither);
    }

    /// p50 and p99 of microseconds at a load that is the same for every subject.
    pub fn latencies_at(&mut self, load: &str, histogram: &Histogram<u64>) {
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let micros = histogram.value_at_quantile(quantile);
            self.figure(
                &format!("{name} ms at {load}"),
                micros as f64 / 1_000.0,
                Better::Lower,
            );
        }
    }
}

// === impl Report ===

impl Report {
    /// Empty.
    pub fn new(notes: Vec<String>) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_time: since_1970.map_or(0, |duration| duration.as_secs()),
            notes,
            measurements: Vec::new(),
        }
    }

    /// Checks that did not hold, with where.
    pub fn failed_checks(&self) -> Vec<String> {
        self.measurements
            .iter()
            .flat_map(|measurement| {
                measurement
                    .checks
                    .iter()
                    .filter(|check| !check.passed)
                    .map(move |check| {
                        format!(
                            "{} on {}: {}: {}",
                            measurement.scenario, measurement.subject, check.name, check.detail
                        )
                    })
            })
            .collect()
    }

    /// The table: a block per scenario, a column per server; from the second column on, with the ratio of the first to it.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut scenarios: Vec<&str> = Vec::new();
        for measurement in &self.measurements {
            if !scenarios.contains(&measurement.scenario.as_str()) {
                scenarios.push(&measurement.scenario);
            }
        }
        for scenario in scenarios {
            let columns: Vec<&Measurement> = self
                .measurements
                .iter()
                .filter(|measurement| measurement.scenario == scenario)
                .collect();
            block(&mut out, scenario, &columns);
        }
        for note in &self.notes {
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(out, "note: {note}");
        }
        let failed = self.failed_checks();
        let count: usize = self.measurements.iter().map(|m| m.checks.len()).sum();
        let _ = writeln!(out, "checks: {} of {count} held", count - failed.len());
        for failure in failed {
            let _ = writeln!(out, "FAILED {failure}");
        }
        out
    }
}

const NAME_WIDTH: usize = 36;
const COLUMN_WIDTH: usize = 18;
const RATIO_WIDTH: usize = 8;

fn block(out: &mut String, scenario: &str, columns: &[&Measurement]) {
    let _ = write!(out, "{scenario:<NAME_WIDTH$}");
    for (index, column) in columns.iter().enumerate() {
        let _ = write!(out, " {:>COLUMN_WIDTH$}", column.subject);
        if index > 0 {
            let _ = write!(out, " {:>RATIO_WIDTH$}", "ratio");
        }
    }
    out.push('\n');
    let width = NAME_WIDTH
        + columns.len() * (COLUMN_WIDTH + 1)
        + columns.len().saturating_sub(1) * (RATIO_WIDTH + 1);
    let _ = writeln!(out, "{}", "-".repeat(width));
    let mut names: Vec<&str> = Vec::new();
    for figure in columns.iter().flat_map(|column| &column.figures) {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    for name in names {
        let mut line = format!("{name:<NAME_WIDTH$}");
        let find = |column: &Measurement| {
            column
                .figures
                .iter()
                .find(|figure| figure.name == name)
                .cloned()
        };
        let first = columns.first().and_then(|column| find(column));
        for (index, column) in columns.iter().enumerate() {
            let figure = find(column);
            let text = figure
                .as_ref()
                .map_or("-".to_owned(), |figure| readable(figure.value));
            let _ = write!(line, " {text:>COLUMN_WIDTH$}");
            if index > 0 {
                let text = ratio(first.as_ref(), figure.as_ref()).unwrap_or_default();
                let _ = write!(line, " {text:>RATIO_WIDTH$}");
            }
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.push('\n');
}

/// The first column's figure divided by another's, where one can be better than the other.
fn ratio(first: Option<&Figure>, other: Option<&Figure>) -> Option<String> {
    let (first, other) = (first?, other?);
    (first.better != Better::Neither && other.value > 0.0)
        .then(|| format!("{:.2}x", first.value / other.value))
}

/// 1234567.8 as `1,234,568`, 12.345 as `12.3`, 0.01234 as `0.012`.
fn readable(value: f64) -> String {
    if value.abs() < 10.0 && value.fract() != 0.0 {
        return format!("{value:.3}");
    }
    if value.abs() < 100.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 {
        grouped.insert(0, '-');
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.012"),
            (12.345, "12.3"),
            (999.4, "999"),
            (1_234_567.8, "1,234,568"),
            (-5_000.0, "-5,000"),
        ] {
            assert_eq!(readable(value), text);
        }
    }

    #[test]
    fn the_table_sets_servers_side_by_side_and_names_failed_checks() {
        let mut report = Report::new(vec!["two cores".to_owned()]);
        for (subject, rate, passed) in [("carillon", 300.0, true), ("bare", 200.0, false)] {
            let mut measurement = Measurement::new("fanout, 5 members".to_owned(), subject);
            measurement.figure("deliveries/s", rate, Better::Higher);
            measurement.figure("window", 8.0, Better::Neither);
            measurement.checks.push(Check {
                name: "no gaps".to_owned(),
                passed,
                detail: "1 of 0".to_owned(),
            });
            report.measurements.push(measurement);
        }
        let table = report.table();
        let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(line("deliveries/s").ends_with("200    1.50x"), "{table}");
        assert!(line("window").trim_end().ends_with('8'), "{table}");
        assert!(table.contains("checks: 1 of 2 held"));
        assert!(table.contains("FAILED fanout, 5 members on bare: no gaps: 1 of 0"));
        let json = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(back.table(), table);
    }
}
