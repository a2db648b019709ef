//! `SchemaMigrated`: the stores' schema is at the ordered version. Until it is, no pod of that version is started.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::pods::{last_words, troubles};
use super::{Observation, Verdict};
use crate::build::MIGRATION_COMPONENT;

/// How far the migration is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Migration {
    /// There is no Job yet.
    #[default]
    NotStarted,
    /// The Job runs, or waits for a pod.
    Running,
    /// Done.
    Succeeded,
    /// The Job gave up, at this time.
    Failed(Option<Time>),
}

/// What `job` says.
pub fn migration(job: Option<&Job>) -> Migration {
    let Some(job) = job.filter(|job| job.metadata.deletion_timestamp.is_none()) else {
        return Migration::NotStarted;
    };
    let conditions = job
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    for condition in conditions.filter(|condition| condition.status == "True") {
        match condition.type_.as_str() {
            "Complete" => return Migration::Succeeded,
            "Failed" => return Migration::Failed(condition.last_transition_time.clone()),
            _ => {}
        }
    }
    Migration::Running
}

pub(super) fn verdict(seen: &Observation) -> Verdict {
    let trouble = || {
        troubles(&seen.pods)
            .into_iter()
            .find(|trouble| trouble.component == MIGRATION_COMPONENT)
    };
    match &seen.migration {
        Migration::Succeeded => {
            Verdict::yes("Migrated", "the stores' schema is at the ordered version")
        }
        Migration::Failed(_) => Verdict::no(
            "MigrationFailed",
            last_words(&seen.pods, MIGRATION_COMPONENT)
                .unwrap_or_else(|| "the migration gave up".to_owned()),
        ),
        Migration::Running => match trouble() {
            Some(trouble) => Verdict::no(&trouble.reason, trouble.message),
            None => match last_words(&seen.pods, MIGRATION_COMPONENT) {
                Some(words) => Verdict::no("MigrationFailed", words),
                None => Verdict::no("Migrating", "the migration runs"),
            },
        },
        Migration::NotStarted if !seen.problems.is_empty() => {
            Verdict::unknown("SpecInvalid", "waiting for a valid spec")
        }
        Migration::NotStarted if seen.lacks_mounted_secret() => {
            Verdict::unknown("SecretMissing", "waiting for Secrets")
        }
        Migration::NotStarted if seen.waits_for_schema_store() => {
            Verdict::no("StoreStarting", "the migration waits for scylla")
        }
        Migration::NotStarted => Verdict::no("NotStarted", "the migration has not started"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{pod, settled};
    use serde_json::json;

    fn job(status: serde_json::Value) -> Job {
        serde_json::from_value(json!({ "metadata": {}, "status": status })).unwrap()
    }

    #[test]
    fn a_job_is_read_by_its_conditions() {
        assert_eq!(migration(None), Migration::NotStarted);
        assert_eq!(
            migration(Some(&job(json!({ "active": 1 })))),
            Migration::Running
        );
        assert_eq!(
            migration(Some(&job(
                json!({ "conditions": [{ "type": "Complete", "status": "True" }] })
            ))),
            Migration::Succeeded
        );
        assert_eq!(
            migration(Some(&job(
                json!({ "conditions": [{ "type": "Failed", "status": "True" }] })
            ))),
            Migration::Failed(None)
        );
        assert_eq!(
            migration(Some(&job(
                json!({ "conditions": [{ "type": "Failed", "status": "False" }] })
            ))),
            Migration::Running
        );
        let mut going = job(json!({ "conditions": [{ "type": "Complete", "status": "True" }] }));
        going.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(migration(Some(&going)), Migration::NotStarted);
    }

    #[test]
    fn a_failed_migration_says_why() {
        let mut seen = settled();
        assert_eq!(verdict(&seen).status, "True");
        seen.migration = Migration::Failed(None);
        assert_eq!(verdict(&seen).reason, "MigrationFailed");
        seen.pods = vec![pod(
            "migrate",
            "x",
            json!({ "containerStatuses": [{
            "name": "migrate", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 1, "message": "scylla:9042: connection refused" } },
        }] }),
        )];
        assert_eq!(verdict(&seen).message, "scylla:9042: connection refused");
    }

    /// The reason of the last attempt is told while the next one runs.
    #[test]
    fn an_attempt_that_failed_says_why_before_the_job_gives_up() {
        let mut seen = settled();
        seen.migration = Migration::Running;
        seen.pods = vec![pod(
            "migrate",
            "x",
            json!({ "containerStatuses": [{
            "name": "migrate", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 69, "message": "carillon: scylla is not available" } },
        }] }),
        )];
        let verdict = verdict(&seen);
        assert_eq!(
            (
                verdict.status,
                verdict.reason.as_str(),
                verdict.message.as_str()
            ),
            (
                "False",
                "MigrationFailed",
                "carillon: scylla is not available"
            )
        );
    }

    #[test]
    fn a_migration_whose_image_is_missing_says_so() {
        let mut seen = settled();
        seen.migration = Migration::Running;
        assert_eq!(verdict(&seen).reason, "Migrating");
        seen.pods = vec![pod(
            "migrate",
            "x",
            json!({ "containerStatuses": [{
            "name": "migrate", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImageNeverPull" } },
        }] }),
        )];
        assert_eq!(
            (verdict(&seen).status, verdict(&seen).reason.as_str()),
            ("False", "ErrImageNeverPull")
        );
    }
}
