//! `Progressing`: something ordered is still being brought about. A paused cluster isn't: the reason says so.

use carillon_crds::UpgradeStep;

use super::{Component, Migration, Observation, Verdict};
use crate::upgrade::describe;

pub(super) fn verdict(seen: &Observation) -> Verdict {
    if !seen.problems.is_empty() {
        return Verdict::no("SpecInvalid", "waiting for a valid spec");
    }
    if seen.paused {
        return Verdict::no(
            "Paused",
            "spec.paused: nothing is changed until it is false",
        );
    }
    if let Some(upgrade) = seen.failed_upgrade() {
        let what = describe(upgrade);
        return match upgrade.step {
            UpgradeStep::RolledBack => Verdict::no(
                "RolledBack",
                format!("{what} failed: {} runs; see Degraded", upgrade.from.version),
            ),
            _ => Verdict::yes("RollingBack", format!("{what} failed; see Degraded")),
        };
    }
    if seen.failure.is_some() {
        return Verdict::yes("Retrying", "the last attempt failed; see Degraded");
    }
    if !seen.hibernated && seen.lacks_mounted_secret() {
        return Verdict::yes("WaitingForSecrets", "Secrets are missing; see Degraded");
    }
    let upgrading = match &seen.upgrade {
        Some(upgrade) if upgrade.step.is_under_way() => format!("{}: ", describe(upgrade)),
        _ => String::new(),
    };
    if !seen.hibernated && seen.migration != Migration::Succeeded {
        return Verdict::yes(
            "Migrating",
            format!("{upgrading}the schema migration comes before the pods"),
        );
    }
    let unfinished: Vec<String> = seen
        .components
        .iter()
        .filter(|component| !component.is_complete())
        .map(Component::describe_progress)
        .collect();
    if unfinished.is_empty() && seen.hibernated {
        Verdict::no("Hibernated", "spec.hibernated: every role has no pods")
    } else if unfinished.is_empty() && !upgrading.is_empty() {
        Verdict::yes(
            "Probing",
            format!("{upgrading}a message has to get through"),
        )
    } else if unfinished.is_empty() {
        Verdict::no("Complete", "everything is as ordered")
    } else {
        Verdict::yes(
            "RollingOut",
            format!("{upgrading}not complete: {}", unfinished.join("; ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{component, missing, settled};
    use carillon_crds::{FieldProblem, Role};

    /// The ingress controller serves without it, or makes it; nothing here can.
    #[test]
    fn nothing_waits_for_the_certificate() {
        let mut seen = settled();
        seen.missing_secrets = vec![missing("tls", "spec.gateway.tls.secretName", false)];
        assert!(!seen.lacks_mounted_secret());
        assert_eq!(verdict(&seen).reason, "Complete");
        assert_eq!(
            crate::status::degraded::verdict(&seen).message,
            "spec.gateway.tls.secretName: there is no Secret tls"
        );
        assert!(!seen.is_settled());
    }

    #[test]
    fn it_says_which_step_is_under_way() {
        assert_eq!(verdict(&settled()).status, "False");
        let mut seen = settled();
        seen.components[0] = component(Role::Auth, 2, 1, 2);
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("True", "RollingOut")
        );
        seen.migration = Migration::Running;
        assert_eq!(verdict(&seen).reason, "Migrating");
        seen.missing_secrets = vec![missing("scylla", "f", true)];
        assert_eq!(verdict(&seen).reason, "WaitingForSecrets");
        seen.hibernated = true;
        assert_eq!(verdict(&seen).reason, "RollingOut");
        seen.components.clear();
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("False", "Hibernated")
        );
        seen.failure = Some("x".to_owned());
        assert_eq!(verdict(&seen).reason, "Retrying");
        seen.paused = true;
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("False", "Paused")
        );
        seen.problems = vec![FieldProblem::new("f", "p", "a")];
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("False", "SpecInvalid")
        );
    }
}
