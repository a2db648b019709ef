//! `Available`: every role has the pods it needs, ready, and a message gets through. Never while there are to be none.

use super::pods::{last_words, troubles};
use super::{Migration, Observation, Verdict};
use crate::build::RESTORE_COMPONENT;
use crate::probe::Probe;

pub(super) fn verdict(seen: &Observation) -> Verdict {
    if seen.hibernated && !seen.paused {
        return Verdict::no(
            "Hibernated",
            "spec.hibernated: no pods are wanted; keys and data stay",
        );
    }
    if seen.is_restoring() {
        return match restore_words(seen) {
            Some(words) => Verdict::no("RestoreFailed", words),
            None => Verdict::no(
                "Restoring",
                "spec.restoreFrom: the backup is being restored; roles start after it",
            ),
        };
    }
    if seen.components.is_empty() {
        return match seen.problems.is_empty() {
            true => Verdict::no("NotStarted", "nothing runs yet"),
            false => Verdict::no("SpecInvalid", "nothing runs: the spec is invalid"),
        };
    }
    let lacking: Vec<String> = seen
        .components
        .iter()
        .filter(|component| !component.is_serving())
        .map(|component| component.describe())
        .collect();
    if !lacking.is_empty() {
        return Verdict::no("NotReady", format!("pods ready: {}", lacking.join(", ")));
    }
    if let Probe::Failed(failure) = &seen.probe {
        return Verdict::no(
            "ProbeFailed",
            format!(
                "every component is ready, but a probe message does not get through: {failure}"
            ),
        );
    }
    if seen.problems.is_empty() && seen.probe == Probe::NotAsked {
        return Verdict::no("NotProbed", "no message was tried yet");
    }
    if seen.problems.is_empty() {
        Verdict::yes(
            "AllReady",
            "every component is ready, and messages get through",
        )
    } else {
        Verdict::yes(
            "LastValidSpec",
            "every component is ready, as of the last valid spec",
        )
    }
}

/// What keeps a restore from going on, if anything does.
fn restore_words(seen: &Observation) -> Option<String> {
    let trouble = troubles(&seen.pods)
        .into_iter()
        .find(|trouble| trouble.component == RESTORE_COMPONENT)
        .map(|trouble| trouble.message);
    trouble
        .or_else(|| last_words(&seen.pods, RESTORE_COMPONENT))
        .or_else(|| match seen.restore {
            Some(Migration::Failed(_)) => {
                Some("the restore gave up; it is tried again shortly".to_owned())
            }
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{component, settled};
    use carillon_crds::{FieldProblem, Role};

    #[test]
    fn one_component_that_lacks_a_pod_is_named() {
        assert_eq!(verdict(&settled()).status, "True");
        let mut seen = settled();
        seen.components[0] = component(Role::Auth, 2, 2, 1);
        seen.components[3].deployment = None;
        let verdict = verdict(&seen);
        assert_eq!(
            (verdict.status, verdict.message.as_str()),
            ("False", "pods ready: auth 1/2, media 0/2")
        );
    }

    #[test]
    fn pods_that_are_ready_are_not_enough() {
        let mut seen = settled();
        seen.probe = Probe::Failed(crate::probe::ProbeFailure {
            step: "receive",
            detail: "gateway town-gateway-1: no answer within 10 s".to_owned(),
        });
        let failed = verdict(&seen);
        assert_eq!(
            (failed.status, failed.reason.as_str()),
            ("False", "ProbeFailed")
        );
        assert!(
            failed
                .message
                .ends_with("receive: gateway town-gateway-1: no answer within 10 s"),
            "{}",
            failed.message
        );
        assert!(!seen.is_settled());
        seen.probe = Probe::NotAsked;
        assert_eq!(verdict(&seen).status, "False");
        seen.probe = Probe::Doubted;
        assert_eq!(verdict(&seen).status, "True");
        assert!(!seen.is_settled());
    }

    /// Whatever is still running: it is on its way down.
    #[test]
    fn a_hibernated_cluster_is_not_available() {
        let mut seen = settled();
        seen.hibernated = true;
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("False", "Hibernated")
        );
        // It was paused before it was put to sleep: what runs, runs.
        seen.paused = true;
        assert_eq!(verdict(&seen).status, "True");
    }

    /// The cluster is empty until then, or half full.
    #[test]
    fn a_cluster_that_is_being_restored_is_not_available() {
        let mut seen = settled();
        seen.restore = Some(Migration::Running);
        let reason = |seen: &Observation| (verdict(seen).status, verdict(seen).reason);
        assert_eq!(reason(&seen), ("False", "Restoring".to_owned()));
        seen.restore = Some(Migration::Failed(None));
        assert_eq!(reason(&seen), ("False", "RestoreFailed".to_owned()));
        seen.restore = Some(Migration::Succeeded);
        assert_eq!(verdict(&seen).status, "True");
    }

    #[test]
    fn an_autoscaler_on_its_way_up_takes_nothing_away() {
        let mut seen = settled();
        seen.components[1] = component(Role::Message, 6, 6, 3);
        seen.components[1].needed = 3;
        assert_eq!(verdict(&seen).status, "True");
    }

    #[test]
    fn an_invalid_spec_does_not_unmake_what_runs() {
        let problem = FieldProblem::new("spec.version", "x", "y");
        let mut seen = settled();
        seen.problems = vec![problem];
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("True", "LastValidSpec")
        );
        seen.components.clear();
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("False", "SpecInvalid")
        );
    }
}
