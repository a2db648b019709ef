//! `SpecValid`: the spec makes sense and can be run.

use carillon_crds::describe_problems;

use super::{Observation, Verdict};

pub(super) fn verdict(seen: &Observation) -> Verdict {
    if seen.problems.is_empty() {
        return Verdict::yes("Valid", "the spec can be run");
    }
    let reason = if seen
        .problems
        .iter()
        .any(|problem| problem.field == "spec.version")
    {
        "UnsupportedVersion"
    } else {
        "Invalid"
    };
    Verdict::no(reason, describe_problems(&seen.problems))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::settled;
    use carillon_crds::FieldProblem;

    #[test]
    fn a_problem_is_named_with_its_field() {
        assert_eq!(verdict(&settled()).status, "True");
        let mut seen = settled();
        seen.problems = vec![FieldProblem::new(
            "spec.version",
            "\"9\" is not a version that can be run here",
            "0.1.0",
        )];
        let verdict = verdict(&seen);
        assert_eq!(
            (verdict.status, verdict.reason.as_str()),
            ("False", "UnsupportedVersion")
        );
        assert_eq!(
            verdict.message,
            "spec.version: \"9\" is not a version that can be run here (allowed: 0.1.0)"
        );
    }
}
