//! Which platform versions can be ordered, and which may follow which. Pure.
//!
//! A *line* is a version without its patch number: `0.1`. A patch changes neither configuration nor schema, so an operator runs
//! every patch of the lines that it knows, also those made after it. A release knows its own line and the one before. Migrations
//! only add, so the line before runs on the schema of the next one; no line runs on a schema two lines ahead.

use semver::Version;

use crate::problem::FieldProblem;

/// Major and minor number.
type Line = (u64, u64);

/// The lines that this release can order, oldest first. A new line is added at the end, and the oldest of three is removed.
const LINES: &[Line] = &[(0, 1)];

/// The lines that can be ordered, for people: `0.1.x`.
pub fn supported_lines() -> String {
    describe(LINES)
}

/// Where the line of `version` stands among those that can be ordered.
pub(crate) fn line_of(version: &str) -> Result<usize, FieldProblem> {
    place(LINES, version)
}

/// Whether a cluster that runs `from` may be changed to `to`; the problem names the field and what is allowed.
pub fn may_follow(from: &str, to: &str) -> Result<(), FieldProblem> {
    may_follow_in(LINES, from, to)
}

fn may_follow_in(lines: &[Line], from: &str, to: &str) -> Result<(), FieldProblem> {
    let to_place = place(lines, to)?;
    if from == to {
        return Ok(());
    }
    let Ok(from_place) = place(lines, from) else {
        return Err(refuse(
            format!(
                "{from} runs, which this operator knows nothing of: {to} may be a step too far"
            ),
            format!(
                "an operator that knows both; this one runs {}",
                describe(lines)
            ),
        ));
    };
    match (from_place, to_place) {
        (from_place, to_place) if to_place > from_place + 1 => Err(refuse(
            format!("{from} runs: {to} would skip a release line"),
            format!(
                "first {}",
                describe(&lines[from_place + 1..=from_place + 1])
            ),
        )),
        (from_place, to_place) if from_place > to_place + 1 => Err(refuse(
            format!("{from} runs: {to} can't read its schema"),
            format!(
                "{} or {}",
                describe(&lines[from_place - 1..from_place]),
                describe(&lines[from_place..=from_place])
            ),
        )),
        _ => Ok(()),
    }
}

fn place(lines: &[Line], version: &str) -> Result<usize, FieldProblem> {
    let Ok(parsed) = Version::parse(version) else {
        return Err(refuse(
            format!("{version:?} is not a version"),
            describe(lines),
        ));
    };
    let line = (parsed.major, parsed.minor);
    if let Some(place) = lines.iter().position(|known| *known == line) {
        return Ok(place);
    }
    let is_newer = lines.last().is_some_and(|newest| line > *newest);
    Err(refuse(
        match is_newer {
            true => format!(
                "{version:?} is newer than this operator can run: upgrade the operator first"
            ),
            false => format!("{version:?} is older than this operator can run"),
        },
        describe(lines),
    ))
}

fn refuse(problem: String, allowed: String) -> FieldProblem {
    FieldProblem::new("spec.version", problem, allowed)
}

fn describe(lines: &[Line]) -> String {
    let lines: Vec<String> = lines
        .iter()
        .map(|(major, minor)| format!("{major}.{minor}.x"))
        .collect();
    lines.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &[Line] = &[(0, 9), (1, 0), (1, 1)];

    fn refusal(from: &str, to: &str) -> Option<String> {
        may_follow_in(THREE, from, to)
            .err()
            .map(|problem| format!("{}; {}", problem.problem, problem.allowed))
    }

    #[test]
    fn the_version_of_this_release_can_be_ordered() {
        assert!(line_of(crate::PLATFORM_VERSION).is_ok());
        assert_eq!(supported_lines(), "0.1.x");
    }

    #[test]
    fn patches_and_neighbours_may_follow_each_other() {
        for (from, to) in [
            ("1.0.0", "1.0.0"),
            ("1.0.0", "1.0.7"),
            ("1.0.7", "1.0.0"),
            ("1.0.7", "1.1.0"),
            ("1.1.3", "1.0.0"),
            ("0.9.0", "1.0.0-rc.1"),
        ] {
            assert_eq!(refusal(from, to), None, "{from} to {to}");
        }
    }

    #[test]
    fn a_line_can_be_skipped_neither_forth_nor_back() {
        assert_eq!(
            refusal("0.9.4", "1.1.0").unwrap(),
            "0.9.4 runs: 1.1.0 would skip a release line; first 1.0.x"
        );
        assert_eq!(
            refusal("1.1.0", "0.9.4").unwrap(),
            "1.1.0 runs: 0.9.4 can't read its schema; 1.0.x or 1.1.x"
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (from, to, words) in [
            ("1.1.0", "1.2.0", "upgrade the operator first"),
            ("1.1.0", "0.8.0", "is older than this operator can run"),
            ("1.1.0", "one", "is not a version"),
            ("0.8.0", "0.9.0", "knows nothing of"),
            ("2.0.0", "1.1.0", "knows nothing of"),
        ] {
            let refusal = refusal(from, to).unwrap();
            assert!(refusal.contains(words), "{from} to {to}: {refusal}");
        }
        // Whatever runs may go on running.
        assert_eq!(refusal("1.0.3", "1.0.3"), None);
    }
}
