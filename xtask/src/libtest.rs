//! Reading what a test program prints: which test passed, failed or was skipped.
//!
//! Rust's test harness has no way to say "skipped" at run time. A test that can't run prints a line
//! `CARILLON-SKIPPED <test name>: <reason>` and returns; `--show-output` makes the harness repeat it under the test's
//! name, and here it is taken out of the passed ones. What this does not do is decide whether skipping is acceptable.

/// What a test prints in front of its name and reason when it can't run.
pub const SKIP_MARK: &str = "CARILLON-SKIPPED ";

/// How a test ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It ran, and its promises hold.
    Passed,
    /// It ran, and they don't.
    Failed,
    /// It did not run, for this reason.
    Skipped(String),
}

/// A test and how it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Tested {
    /// Its name as the harness prints it.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
}

#[derive(Default, PartialEq)]
enum Section {
    #[default]
    Verdicts,
    Successes,
    Failures,
}

/// Reads a test program's standard output, line by line.
#[derive(Default)]
pub struct Reader {
    tested: Vec<Tested>,
    section: Section,
    speaking: Option<String>,
    announced: usize,
    concluded: usize,
}

impl Reader {
    /// Takes one line; whether a person would want to see it.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some(count) = line
            .strip_prefix("running ")
            .and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")))
        {
            self.announced += count.parse::<usize>().unwrap_or(0);
            self.section = Section::Verdicts;
            return false;
        }
        match line {
            "successes:" => {
                self.section = Section::Successes;
                return false;
            }
            "failures:" => {
                self.section = Section::Failures;
                return true;
            }
            _ => {}
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.concluded += conclusion(counts);
            self.section = Section::Verdicts;
            return false;
        }
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.speaking = Some(plain_name(name).to_owned());
            return self.section == Section::Failures;
        }
        match self.section {
            Section::Successes => {
                self.note_skip(line);
                false
            }
            Section::Failures => true,
            Section::Verdicts => self.read_verdict(line),
        }
    }

    fn read_verdict(&mut self, line: &str) -> bool {
        let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return !line.is_empty();
        };
        let verdict = match verdict {
            "ok" => Verdict::Passed,
            "FAILED" => Verdict::Failed,
            ignored if ignored.starts_with("ignored") => {
                let reason = ignored
                    .trim_start_matches("ignored")
                    .trim_start_matches([',', ' ']);
                Verdict::Skipped(if reason.is_empty() {
                    "marked #[ignore] without a reason".into()
                } else {
                    reason.into()
                })
            }
            _ => return true,
        };
        let failed = verdict == Verdict::Failed;
        self.tested.push(Tested {
            name: plain_name(name).to_owned(),
            verdict,
        });
        failed
    }

    fn note_skip(&mut self, line: &str) {
        let Some(text) = line.trim_start().strip_prefix(SKIP_MARK) else {
            return;
        };
        let reason = text.split_once(": ").map_or(text, |(_name, reason)| reason);
        let speaking = self.speaking.as_deref().unwrap_or_default();
        if let Some(tested) = self
            .tested
            .iter_mut()
            .find(|tested| tested.name == speaking)
        {
            tested.verdict = Verdict::Skipped(reason.to_owned());
        }
    }

    /// Every test, given whether the program said that all was well. A program that ended before it was through, or
    /// that failed without naming a test, is a failed test of its own, called `program`.
    pub fn finish(mut self, program: &str, succeeded: bool) -> Vec<Tested> {
        let named_a_failure = self
            .tested
            .iter()
            .any(|tested| tested.verdict == Verdict::Failed);
        let complete = self.announced == self.concluded && self.concluded == self.tested.len();
        if !complete || (!succeeded && !named_a_failure) {
            self.tested.push(Tested {
                name: format!("{program} (the program itself)"),
                verdict: Verdict::Failed,
            });
        }
        self.tested
    }
}

/// How many tests `ok. 1 passed; 2 failed; 3 ignored; 0 measured; 4 filtered out; …` says were run or ignored.
fn conclusion(counts: &str) -> usize {
    counts
        .split([';', '.'])
        .filter_map(|part| part.trim().rsplit_once(' ').or(Some((part, ""))))
        .filter(|(_, what)| ["passed", "failed", "ignored"].contains(what))
        .filter_map(|(count, _)| count.trim().parse::<usize>().ok())
        .sum()
}

/// The harness adds to the name of a test that should panic.
fn plain_name(name: &str) -> &str {
    name.strip_suffix(" - should panic").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, succeeded: bool) -> (Vec<Tested>, String) {
        let mut reader = Reader::default();
        let shown: Vec<&str> = text.lines().filter(|line| reader.read(line)).collect();
        (reader.finish("prog", succeeded), shown.join("\n"))
    }

    fn verdicts(tested: &[Tested]) -> Vec<(&str, Verdict)> {
        tested
            .iter()
            .map(|tested| (tested.name.as_str(), tested.verdict.clone()))
            .collect()
    }

    const MIXED: &str = "
running 5 tests
test a::passes ... ok
test b::needs_redis ... ok
test c::panics - should panic ... ok
test d::later ... ignored, waits for the sun
test e::breaks ... FAILED

successes:

---- a::passes stdout ----
some words
---- b::needs_redis stdout ----
CARILLON-SKIPPED b::needs_redis: CARILLON_TEST_REDIS is not set

successes:
    a::passes
    b::needs_redis

failures:

---- e::breaks stdout ----
thread panicked: CARILLON-SKIPPED is not a way out

failures:
    e::breaks

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s
";

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let (tested, shown) = read(MIXED, false);
        assert_eq!(
            verdicts(&tested),
            [
                ("a::passes", Verdict::Passed),
                (
                    "b::needs_redis",
                    Verdict::Skipped("CARILLON_TEST_REDIS is not set".into())
                ),
                ("c::panics", Verdict::Passed),
                ("d::later", Verdict::Skipped("waits for the sun".into())),
                ("e::breaks", Verdict::Failed),
            ]
        );
        assert!(
            shown.contains("thread panicked") && shown.contains("test e::breaks ... FAILED"),
            "{shown}"
        );
        assert!(
            !shown.contains("some words") && !shown.contains("a::passes"),
            "{shown}"
        );
    }

    #[test]
    fn a_program_that_dies_half_way_is_a_failure() {
        let (tested, _) = read("running 2 tests\ntest a ... ok\n", false);
        assert_eq!(
            verdicts(&tested),
            [
                ("a", Verdict::Passed),
                ("prog (the program itself)", Verdict::Failed)
            ]
        );
    }

    #[test]
    fn a_program_that_fails_without_a_failed_test_is_a_failure() {
        let all_well = "running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(verdicts(&read(all_well, true).0), [("a", Verdict::Passed)]);
        assert_eq!(read(all_well, false).0.len(), 2);
    }

    #[test]
    fn several_runs_in_one_output_add_up() {
        let once = "running 1 test\ntest src/lib.rs - x (line 3) ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(read(&once.repeat(2), true).0.len(), 2);
    }

    #[test]
    fn a_slow_test_is_announced() {
        let (_, shown) = read(
            "running 1 test\ntest a has been running for over 60 seconds\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 61.00s\n",
            true,
        );
        assert_eq!(shown, "test a has been running for over 60 seconds");
    }
}
