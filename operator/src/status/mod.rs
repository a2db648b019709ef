//! What was seen → what is reported. Pure; one file per condition.
//!
//! A condition keeps its transition time while its status stays the same, and two passes that see the same report the
//! same: an unchanged cluster is never written to.

mod available;
mod component;
mod degraded;
mod monitored;
mod pods;
mod progressing;
mod schema_migrated;
mod spec_valid;
mod stores;

use carillon_crds::{
    ChatClusterStatus, FieldProblem, ManagedStore, Release, SecretUse, UpgradeStatus, UpgradeStep,
    condition,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::probe::Probe;
use crate::readiness::PodReadiness;

pub use component::Component;
pub use schema_migrated::{Migration, migration};

/// A Secret that the spec names and that doesn't exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSecret {
    /// Its name.
    pub name: String,
    /// Who needs it.
    pub needed_by: SecretUse,
}

/// What is asked for of monitoring, as far as it can't be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Monitoring {
    /// Kinds that the API server doesn't know.
    pub unknown_kinds: Vec<String>,
    /// What the API server said to the first that it refused.
    pub refused: Option<String>,
}

/// Everything a pass has seen of one cluster.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Generation of the spec that was acted on.
    pub generation: Option<i64>,
    /// The ordered version.
    pub version: Option<String>,
    /// Where clients reach the platform.
    pub endpoint: Option<String>,
    /// Whether the order is to change nothing.
    pub paused: bool,
    /// Whether the order is to have no pods.
    pub hibernated: bool,
    /// What is wrong with the spec; then nothing was applied.
    pub problems: Vec<FieldProblem>,
    /// Secrets that the spec names and that don't exist.
    pub missing_secrets: Vec<MissingSecret>,
    /// Managed stores that aren't up, each with what is waited for.
    pub waiting_stores: Vec<(&'static str, String)>,
    /// Why the pass could not be finished.
    pub failure: Option<String>,
    /// Whether keys or certificates are being rotated and pods have still to follow.
    pub rotating: bool,
    /// How far the schema is.
    pub migration: Migration,
    /// When its Job was made.
    pub migration_began: Option<Time>,
    /// How far the backup is that the cluster begins with; `None` without one, and once roles were started after it.
    pub restore: Option<Migration>,
    /// The roles, in roll-out order.
    pub components: Vec<Component>,
    /// The pods, when something isn't ready.
    pub pods: Vec<Pod>,
    /// What some pods say of their dependencies, those that are not ready first.
    pub readiness: Vec<PodReadiness>,
    /// Whether messages get through.
    pub probe: Probe,
    /// What monitors it; `None` when nothing is asked for.
    pub monitoring: Option<Monitoring>,
    /// Whether a managed ScyllaDB was ordered.
    pub scylla_managed: bool,
    /// What was last whole and available.
    pub release: Option<Release>,
    /// The upgrade that is under way, or the last one.
    pub upgrade: Option<UpgradeStatus>,
}

impl Observation {
    /// Whether a Secret is missing without which a pod can't start.
    pub fn lacks_mounted_secret(&self) -> bool {
        self.missing_secrets
            .iter()
            .any(|secret| secret.needed_by.mounted)
    }

    /// Whether the store isn't up that has a schema.
    pub fn waits_for_schema_store(&self) -> bool {
        let scylla = ManagedStore::Scylla.name();
        self.waiting_stores
            .iter()
            .any(|(store, _)| *store == scylla)
    }

    /// Whether roles wait for a backup.
    pub fn is_restoring(&self) -> bool {
        self.restore
            .as_ref()
            .is_some_and(|restore| *restore != Migration::Succeeded)
    }

    /// Whether everything is as ordered and works, so that there is nothing to wait for.
    pub fn is_settled(&self) -> bool {
        self.problems.is_empty()
            && self.missing_secrets.is_empty()
            && self.failure.is_none()
            && (self.hibernated || self.migration == Migration::Succeeded)
            && self.components.iter().all(Component::is_complete)
            && stores::unreachable(self).next().is_none()
            && (self.hibernated || self.probe == Probe::Passed)
            && !self
                .upgrade_step()
                .is_some_and(|step| step.is_under_way() || step == UpgradeStep::RollingBack)
    }

    /// How far the last upgrade is.
    pub(crate) fn upgrade_step(&self) -> Option<UpgradeStep> {
        self.upgrade.as_ref().map(|upgrade| upgrade.step)
    }

    /// The upgrade, if it failed.
    pub(crate) fn failed_upgrade(&self) -> Option<&UpgradeStatus> {
        self.upgrade
            .as_ref()
            .filter(|upgrade| upgrade.step.is_failed())
    }

    /// Whether every role has the pods it needs.
    pub fn is_serving(&self) -> bool {
        !self.components.is_empty() && self.components.iter().all(Component::is_serving)
    }
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) status: &'static str,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Verdict {
    pub(crate) fn yes(reason: &str, message: impl Into<String>) -> Self {
        Verdict {
            status: "True",
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    pub(crate) fn no(reason: &str, message: impl Into<String>) -> Self {
        Verdict {
            status: "False",
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    pub(crate) fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Verdict {
            status: "Unknown",
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// What the schema's condition says in words.
pub(crate) fn verdict_of_schema(seen: &Observation) -> String {
    schema_migrated::verdict(seen).message
}

/// Why a pod of `component` doesn't run.
pub(crate) fn trouble_of(component: &str, pods: &[Pod]) -> Option<String> {
    pods::troubles(pods)
        .into_iter()
        .find(|trouble| trouble.component == component)
        .map(|trouble| format!("{}: {}", trouble.reason, trouble.message))
}

/// The status to report, given the one reported before.
pub fn status(
    seen: &Observation,
    previous: Option<&ChatClusterStatus>,
    now: Time,
) -> ChatClusterStatus {
    let verdicts = [
        (condition::AVAILABLE, available::verdict(seen)),
        (condition::PROGRESSING, progressing::verdict(seen)),
        (condition::DEGRADED, degraded::verdict(seen)),
        (condition::SPEC_VALID, spec_valid::verdict(seen)),
        (condition::SCHEMA_MIGRATED, schema_migrated::verdict(seen)),
        (condition::SCYLLA_READY, stores::verdict(seen, "scylla")),
        (condition::REDIS_READY, stores::verdict(seen, "redis")),
        (condition::RABBITMQ_READY, stores::verdict(seen, "rabbitmq")),
        (
            condition::OBJECT_STORE_READY,
            stores::verdict(seen, "object_store"),
        ),
    ];
    let monitored = monitored::verdict(seen);
    let ready = seen
        .components
        .iter()
        .filter(|component| component.is_serving())
        .count();
    ChatClusterStatus {
        observed_generation: seen.generation,
        version: seen.version.clone(),
        endpoint: seen.endpoint.clone(),
        ready_components: Some(format!("{ready}/{}", carillon_crds::Role::ALL.len())),
        components: seen.components.iter().map(Component::report).collect(),
        release: seen.release.clone(),
        scylla_managed: seen.scylla_managed.then_some(true),
        upgrade: seen.upgrade.clone(),
        conditions: verdicts
            .into_iter()
            .chain(monitored.map(|verdict| (condition::MONITORED, verdict)))
            .map(|(type_, verdict)| condition_of(type_, verdict, seen.generation, previous, &now))
            .collect(),
    }
}

/// The status of an object that can't even be read: what is known stays, and the condition names what is wrong.
pub fn unreadable(
    error: &str,
    generation: Option<i64>,
    previous: Option<&ChatClusterStatus>,
    now: Time,
) -> ChatClusterStatus {
    let mut status = previous.cloned().unwrap_or_default();
    status.observed_generation = generation;
    if status.conditions.is_empty() {
        let verdict = Verdict::no("SpecInvalid", "nothing runs: the spec can't be read");
        status.conditions.push(condition_of(
            condition::AVAILABLE,
            verdict,
            generation,
            previous,
            &now,
        ));
    }
    for (type_, verdict) in [
        (condition::SPEC_VALID, Verdict::no("Unreadable", error)),
        (condition::DEGRADED, Verdict::yes("SpecInvalid", error)),
        (
            condition::PROGRESSING,
            Verdict::no("SpecInvalid", "waiting for a spec that can be read"),
        ),
    ] {
        let condition = condition_of(type_, verdict, generation, previous, &now);
        status.conditions.retain(|existing| existing.type_ != type_);
        status.conditions.push(condition);
    }
    status
}

fn condition_of(
    type_: &str,
    verdict: Verdict,
    generation: Option<i64>,
    previous: Option<&ChatClusterStatus>,
    now: &Time,
) -> Condition {
    let unchanged_since = previous
        .and_then(|previous| {
            previous
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_)
        })
        .filter(|condition| condition.status == verdict.status)
        .map(|condition| condition.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason,
        // The API server takes at most 32 KiB; a person reads much less.
        message: verdict.message.chars().take(2000).collect(),
        observed_generation: generation,
        last_transition_time: unchanged_since.unwrap_or_else(|| now.clone()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::readiness::Dependency;
    use carillon_crds::Role;
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::{Value, json};

    /// A cluster of which everything is as ordered, two replicas each.
    pub(crate) fn settled() -> Observation {
        Observation {
            generation: Some(3),
            version: Some("0.1.0".to_owned()),
            endpoint: Some("http://town-gateway.chat.svc:8080".to_owned()),
            migration: Migration::Succeeded,
            components: Role::ALL
                .iter()
                .map(|role| component(*role, 2, 2, 2))
                .collect(),
            readiness: vec![PodReadiness {
                in_use: Default::default(),
                pod: "town-message-1".to_owned(),
                dependencies: vec![Dependency {
                    name: "rabbitmq".to_owned(),
                    ready: true,
                }],
            }],
            probe: Probe::Passed,
            ..Observation::default()
        }
    }

    /// A Secret that isn't there, named by `field`.
    pub(crate) fn missing(name: &str, field: &str, mounted: bool) -> MissingSecret {
        MissingSecret {
            name: name.to_owned(),
            needed_by: SecretUse {
                fields: vec![field.to_owned()],
                mounted,
            },
        }
    }

    pub(crate) fn component(role: Role, desired: i32, updated: i32, ready: i32) -> Component {
        Component {
            role,
            needed: desired,
            as_ordered: true,
            deployment: Some(deployment(
                json!({
                    "replicas": desired, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready, "observedGeneration": 1,
                }),
                desired,
            )),
        }
    }

    pub(crate) fn deployment(status: Value, desired: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "generation": 1 },
            "spec": {
                "replicas": desired,
                "selector": {},
                "template": { "metadata": { "labels": { "app.kubernetes.io/version": "0.1.0" } } },
            },
            "status": status,
        }))
        .unwrap()
    }

    pub(crate) fn pod(role: &str, name: &str, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "app.kubernetes.io/component": role } },
            "status": status,
        }))
        .unwrap()
    }

    fn time(text: &str) -> Time {
        Time(text.parse().unwrap())
    }

    #[test]
    fn a_settled_cluster() {
        let status = status(&settled(), None, time("2026-01-01T00:00:00Z"));
        insta::assert_snapshot!(crate::build::tests::yaml_of(&status));
    }

    #[test]
    fn a_cluster_before_its_first_pod() {
        let seen = Observation {
            components: Role::ALL
                .iter()
                .map(|role| Component {
                    role: *role,
                    needed: 2,
                    as_ordered: false,
                    deployment: None,
                })
                .collect(),
            migration: Migration::Running,
            readiness: Vec::new(),
            ..settled()
        };
        let status = status(&seen, None, time("2026-01-01T00:00:00Z"));
        insta::assert_snapshot!(crate::build::tests::yaml_of(&status));
    }

    #[test]
    fn the_same_sight_gives_the_same_status_later() {
        let first = status(&settled(), None, time("2026-01-01T00:00:00Z"));
        let second = status(&settled(), Some(&first), time("2026-01-02T00:00:00Z"));
        assert_eq!(first, second);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_turns() {
        let first = status(&settled(), None, time("2026-01-01T00:00:00Z"));
        let mut seen = settled();
        seen.components[0] = component(Role::Auth, 2, 2, 1);
        let second = status(&seen, Some(&first), time("2026-01-02T00:00:00Z"));
        let since = |status: &ChatClusterStatus, type_: &str| {
            status
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_)
                .unwrap()
                .last_transition_time
                .clone()
        };
        assert_eq!(
            since(&second, condition::AVAILABLE),
            time("2026-01-02T00:00:00Z")
        );
        assert_eq!(
            since(&second, condition::SPEC_VALID),
            time("2026-01-01T00:00:00Z")
        );
    }

    #[test]
    fn an_unreadable_spec_of_a_new_cluster_is_not_available() {
        let status = unreadable("x", Some(1), None, time("2026-01-01T00:00:00Z"));
        let available = &status.conditions[0];
        assert_eq!(
            (available.type_.as_str(), available.status.as_str()),
            (condition::AVAILABLE, "False")
        );
        assert_eq!(status.conditions.len(), 4);
    }

    #[test]
    fn an_unreadable_spec_keeps_what_is_known() {
        let first = status(&settled(), None, time("2026-01-01T00:00:00Z"));
        let second = unreadable(
            "unknown field `gatway`",
            Some(4),
            Some(&first),
            time("2026-01-02T00:00:00Z"),
        );
        let of = |type_: &str| {
            second
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_)
                .unwrap()
        };
        assert_eq!(of(condition::SPEC_VALID).status, "False");
        assert!(of(condition::SPEC_VALID).message.contains("gatway"));
        assert_eq!(of(condition::DEGRADED).status, "True");
        assert_eq!(of(condition::AVAILABLE).status, "True");
        assert_eq!(second.observed_generation, Some(4));
        assert_eq!(second.conditions.len(), first.conditions.len());
        assert_eq!(
            unreadable(
                "unknown field `gatway`",
                Some(4),
                Some(&second),
                time("2026-01-03T00:00:00Z")
            ),
            second
        );
    }
}
