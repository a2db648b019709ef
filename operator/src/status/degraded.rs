//! `Degraded`: something is wrong that waiting alone may not mend, and where.

use carillon_crds::{Release, describe_problems};

use super::pods::troubles;
use super::{Migration, Observation, Verdict, schema_migrated, stores};
use crate::build::MIGRATION_COMPONENT;
use crate::upgrade::describe;

pub(super) fn verdict(seen: &Observation) -> Verdict {
    let mut wrong: Vec<(String, String)> = Vec::new();
    if !seen.problems.is_empty() {
        wrong.push(("SpecInvalid".to_owned(), describe_problems(&seen.problems)));
    }
    for secret in &seen.missing_secrets {
        let fields = secret.needed_by.fields.join(", ");
        wrong.push((
            "SecretMissing".to_owned(),
            format!("{fields}: there is no Secret {}", secret.name),
        ));
    }
    if let Some(upgrade) = seen.failed_upgrade() {
        wrong.push((
            "UpgradeFailed".to_owned(),
            format!(
                "the upgrade {} failed: {}; to try again, order {} first and then {}",
                describe(upgrade),
                upgrade.message.as_deref().unwrap_or("it stood still"),
                release(&upgrade.from),
                release(&upgrade.to),
            ),
        ));
    }
    if let Some(failure) = &seen.failure {
        wrong.push(("ApplyFailed".to_owned(), failure.clone()));
    }
    let schema = schema_migrated::verdict(seen);
    if schema.reason == "MigrationFailed" {
        wrong.push((schema.reason, format!("migration: {}", schema.message)));
    }
    for trouble in troubles(&seen.pods) {
        // A failed Job's pods are told of above.
        if trouble.component == MIGRATION_COMPONENT
            && matches!(seen.migration, Migration::Failed(_) | Migration::Succeeded)
        {
            continue;
        }
        wrong.push((
            trouble.reason.clone(),
            format!(
                "{}: {}: {}",
                trouble.component, trouble.reason, trouble.message
            ),
        ));
    }
    for component in &seen.components {
        if let Some((reason, message)) = component.trouble() {
            wrong.push((
                reason.clone(),
                format!("{}: {reason}: {message}", component.role.name()),
            ));
        }
    }
    let starting = |verdict: &Verdict| verdict.reason == stores::STARTING;
    for unreachable in stores::unreachable(seen).filter(|verdict| !starting(verdict)) {
        wrong.push(("StoreUnreachable".to_owned(), unreachable.message));
    }
    match wrong.first() {
        None => Verdict::no("AsOrdered", "nothing is wrong"),
        Some((reason, _)) => {
            let messages: Vec<&str> = wrong.iter().map(|(_, message)| message.as_str()).collect();
            Verdict::yes(reason, messages.join("; "))
        }
    }
}

fn release(release: &Release) -> String {
    format!("{} (image {})", release.version, release.image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::{Dependency, PodReadiness};
    use crate::status::tests::{component, missing, pod, settled};
    use carillon_crds::Role;
    use serde_json::json;

    #[test]
    fn nothing_wrong() {
        assert_eq!(verdict(&settled()).status, "False");
    }

    #[test]
    fn a_pod_that_cannot_run_is_named_with_its_component_and_reason() {
        let mut seen = settled();
        seen.components[0] = component(Role::Auth, 2, 1, 2);
        seen.pods = vec![pod(
            "auth",
            "town-auth-7",
            json!({ "containerStatuses": [{
            "name": "auth", "image": "carillon:x", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImagePull" } },
        }] }),
        )];
        let verdict = verdict(&seen);
        assert_eq!(
            (verdict.status, verdict.reason.as_str()),
            ("True", "ImagePullBackOff")
        );
        assert_eq!(
            verdict.message,
            "auth: ImagePullBackOff: pod town-auth-7: image carillon:x"
        );
    }

    #[test]
    fn a_missing_secret_is_named_with_its_field() {
        let mut seen = settled();
        seen.missing_secrets = vec![missing("scylla", "spec.scylla.external.secretName", true)];
        assert_eq!(
            verdict(&seen).message,
            "spec.scylla.external.secretName: there is no Secret scylla"
        );
    }

    #[test]
    fn a_store_that_does_not_answer_is_named() {
        let mut seen = settled();
        seen.components[1] = component(Role::Message, 2, 2, 0);
        seen.readiness = vec![PodReadiness {
            in_use: Default::default(),
            pod: "town-message-1".to_owned(),
            dependencies: vec![Dependency {
                name: "scylla".to_owned(),
                ready: false,
            }],
        }];
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("True", "StoreUnreachable")
        );
    }
}
