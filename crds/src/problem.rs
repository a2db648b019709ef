//! What is wrong with a field of a spec, said so that a person can mend it.

use std::fmt;

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// The field as its author writes it, e.g. `spec.auth.accessTokenTtl`.
    pub field: String,
    /// What is wrong, e.g. `"15 minutes" is not a duration`.
    pub problem: String,
    /// What would be right, e.g. `a number with a unit: 45s, 15m, 12h, 7d`.
    pub allowed: String,
}

impl FieldProblem {
    /// A problem of `field`.
    pub fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        FieldProblem {
            field: field.into(),
            problem: problem.into(),
            allowed: allowed.into(),
        }
    }
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)?;
        if !self.allowed.is_empty() {
            write!(f, " (allowed: {})", self.allowed)?;
        }
        Ok(())
    }
}

/// All problems in one line, in the order found, for a status condition or a terminal.
pub fn describe_problems(problems: &[FieldProblem]) -> String {
    problems
        .iter()
        .map(FieldProblem::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
