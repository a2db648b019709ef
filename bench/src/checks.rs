//! What makes a figure trustworthy: nothing lost, nothing twice, no holes. Pure counting.

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use serde::Serialize;

/// The outcome of a sanity check.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// The counts behind it.
    pub detail: String,
}

impl Check {
    /// That a count is what it should be.
    pub fn equal(name: &str, found: u64, expected: u64) -> Self {
        Self {
            name: name.to_owned(),
            passed: found == expected,
            detail: format!("{found} of {expected}"),
        }
    }
}

/// Errors of a run: all are counted, the first ones kept.
#[derive(Default)]
pub struct Failures(Mutex<(u64, Vec<String>)>);

impl Failures {
    const KEPT: usize = 10;

    /// Notes an error.
    pub fn note(&self, text: impl Into<String>) {
        let mut inner = self.0.lock();
        inner.0 += 1;
        if inner.1.len() < Self::KEPT {
            inner.1.push(text.into());
        }
    }

    /// The first error.
    pub fn first(&self) -> Option<String> {
        self.0.lock().1.first().cloned()
    }

    /// That there were none.
    pub fn check(&self) -> Check {
        let inner = self.0.lock();
        Check {
            name: "no errors".to_owned(),
            passed: inner.0 == 0,
            detail: if inner.0 == 0 {
                "0".to_owned()
            } else {
                format!("{}; first: {}", inner.0, inner.1.join(" | "))
            },
        }
    }
}

/// What one reader saw of one room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracker {
    first: Option<u64>,
    last: u64,
    count: u64,
    missing: u64,
    repeated: u64,
}

impl Tracker {
    /// The last place seen; 0 for none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Notes a message by its place in the room.
    pub fn observe(&mut self, sequence: u64) {
        self.count += 1;
        match self.first {
            None => self.first = Some(sequence),
            Some(_) if sequence <= self.last => {
                self.repeated += 1;
                return;
            }
            Some(_) => self.missing += sequence - self.last - 1,
        }
        self.last = sequence;
    }
}

/// What many readers saw, put together.
#[derive(Debug, Default)]
pub struct Audit {
    deliveries: u64,
    expected: u64,
    missing: u64,
    repeated: u64,
    other_ends: u64,
    readers: u64,
}

impl Audit {
    /// Adds a reader that should have seen exactly the places of `acknowledged`.
    pub fn add(&mut self, tracker: &Tracker, acknowledged: &Span) {
        self.readers += 1;
        self.deliveries += tracker.count;
        self.expected += acknowledged.count;
        self.missing += tracker.missing;
        self.repeated += tracker.repeated;
        let ends = (acknowledged.count > 0).then_some((acknowledged.lowest, acknowledged.highest));
        if tracker.first.map(|first| (first, tracker.last)) != ends {
            self.other_ends += 1;
        }
    }

    /// The verdict.
    pub fn checks(&self) -> Vec<Check> {
        vec![
            Check::equal(
                "every message delivered to every reader",
                self.deliveries,
                self.expected,
            ),
            Check::equal("none delivered twice or out of order", self.repeated, 0),
            Check::equal("no gaps in sequences", self.missing, 0),
            Check::equal(
                "first and last delivered are first and last acknowledged",
                self.readers - self.other_ends,
                self.readers,
            ),
        ]
    }
}

/// The places that acks named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Acks.
    pub count: u64,
    /// Smallest place.
    pub lowest: u64,
    /// Largest place.
    pub highest: u64,
}

impl Default for Span {
    fn default() -> Self {
        Self {
            count: 0,
            lowest: u64::MAX,
            highest: 0,
        }
    }
}

impl Span {
    /// Fails when a place between the ends is missing.
    pub fn ensure_dense(&self) -> Result<()> {
        ensure!(
            self.count > 0 && self.highest - self.lowest + 1 == self.count,
            "{} acknowledged messages have the sequences {} to {}: not dense",
            self.count,
            self.lowest,
            self.highest
        );
        Ok(())
    }

    /// Takes over the acks of another one.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.lowest = self.lowest.min(other.lowest);
        self.highest = self.highest.max(other.highest);
    }

    /// Notes an ack.
    pub fn observe(&mut self, sequence: u64) {
        self.count += 1;
        self.lowest = self.lowest.min(sequence);
        self.highest = self.highest.max(sequence);
    }
}

/// Which numbers (small and dense) have been seen.
#[derive(Default)]
pub struct Seen(Vec<u64>);

impl Seen {
    /// Notes a number; whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(seen: &[u64], acknowledged: &[u64]) -> Vec<bool> {
        let mut tracker = Tracker::default();
        seen.iter().for_each(|sequence| tracker.observe(*sequence));
        let mut span = Span::default();
        acknowledged
            .iter()
            .for_each(|sequence| span.observe(*sequence));
        let mut audit = Audit::default();
        audit.add(&tracker, &span);
        audit.checks().iter().map(|check| check.passed).collect()
    }

    /// Columns: all delivered, none twice, no gaps, right ends.
    #[test]
    fn each_kind_of_wrong_delivery_is_told() {
        for (seen, passed) in [
            (vec![5, 6, 7], [true, true, true, true]),
            (vec![5, 7], [false, true, false, true]),
            (vec![5, 6, 6, 7], [false, false, true, true]),
            (vec![5, 7, 6], [true, false, false, true]),
            (vec![5, 6], [false, true, true, false]),
            (vec![4, 5, 6, 7], [false, true, true, false]),
            (vec![], [false, true, true, false]),
        ] {
            // Acks may come in any order.
            assert_eq!(audit(&seen, &[6, 5, 7]), passed, "{seen:?}");
        }
        assert_eq!(audit(&[], &[]), [true; 4]);
        assert_eq!(audit(&[1], &[]), [false, true, true, false]);
    }

    #[test]
    fn a_number_is_new_once() {
        let mut seen = Seen::default();
        assert!(seen.insert(0) && seen.insert(64) && seen.insert(1_000));
        assert!(!seen.insert(64) && !seen.insert(0));
    }

    #[test]
    fn failures_are_counted_and_the_first_is_told() {
        let failures = Failures::default();
        assert!(failures.check().passed && failures.first().is_none());
        (0..20).for_each(|number| failures.note(format!("error {number}")));
        let check = failures.check();
        assert!(!check.passed && check.detail.starts_with("20; first: error 0"));
    }
}
