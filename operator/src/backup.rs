//! A reconcile of a ChatBackup: its Job or CronJob, and what became of them. It makes no backup itself, and never reads the Secret
//! with the bucket's credentials.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use carillon_crds::{BackupReport, ChatBackup, ChatBackupStatus, ChatCluster, FieldProblem};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::FIELD_MANAGER;
use crate::apply::difference::{Difference, difference, with_hash};
use crate::build::{BACKUP_LABEL, backup_cron_job, backup_job, backup_job_name};
use crate::context::Context;
use crate::status::{Migration, migration};
use crate::validate::{Order, order, order_of_release};

/// Between two looks at one by the clock: a ChatCluster's new configuration isn't heard of otherwise.
const SCHEDULED_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks at one that runs or can't begin: why a pod doesn't start isn't watched.
const UNSETTLED_INTERVAL: Duration = Duration::from_secs(10);

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
#[error("the API server: {0}")]
pub struct BackupError(#[from] kube::Error);

/// What to do after an error.
pub fn error_policy(
    _: Arc<DeserializeGuard<ChatBackup>>,
    error: &BackupError,
    _: Arc<Context>,
) -> Action {
    tracing::error!(%error, "reconcile of a ChatBackup failed");
    Action::requeue(UNSETTLED_INTERVAL)
}

/// What was found of a ChatBackup.
#[derive(Default)]
struct Seen {
    /// Why there can be no Job: reason and message.
    hindrance: Option<(&'static str, String)>,
    /// Its Jobs, newest last.
    jobs: Vec<Job>,
    /// Their pods.
    pods: Vec<Pod>,
}

/// Brings one ChatBackup closer to its order and reports on it.
pub async fn reconcile(
    backup: Arc<DeserializeGuard<ChatBackup>>,
    context: Arc<Context>,
) -> Result<Action, BackupError> {
    let (name, namespace) = match &backup.0 {
        Ok(backup) => (backup.name_any(), backup.namespace().unwrap_or_default()),
        Err(invalid) => {
            // The API server took it by a definition that isn't ours.
            tracing::warn!(error = %invalid.error, "a ChatBackup can't be read");
            return Ok(Action::await_change());
        }
    };
    let api: Api<ChatBackup> = Api::namespaced(context.client.clone(), &namespace);
    let Some(backup) = api.get_opt(&name).await? else {
        return Ok(Action::await_change());
    };
    // Owner references do the rest; what is in the bucket stays.
    if backup.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let seen = look(&context, &backup, &namespace).await?;
    let status = status(&seen, &backup, Time(Timestamp::now()));
    if backup.status.as_ref() != Some(&status) {
        let patch = json!({
            "apiVersion": ChatBackup::api_version(&()),
            "kind": ChatBackup::kind(&()),
            "metadata": { "name": name, "uid": backup.metadata.uid },
            "status": status,
        });
        context.metrics.wrote("ChatBackup", "status");
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api
            .patch_status(&name, &parameters, &Patch::Apply(patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(match status.phase.as_deref() {
        Some("Completed" | "Scheduled") if backup.spec.schedule.is_some() => {
            Action::requeue(SCHEDULED_INTERVAL)
        }
        // What its pod reported may be heard of a moment later.
        Some("Completed") if status.backup.is_some() => Action::await_change(),
        Some("Failed") if backup.spec.schedule.is_none() => Action::await_change(),
        _ => Action::requeue(UNSETTLED_INTERVAL),
    })
}

/// The order of the release that was last whole and available; until there was one, of the one that is ordered. A release that is being tried,
/// or was given up, makes no backups.
fn order_that_runs(cluster: &ChatCluster, image: &str) -> Result<Order, Vec<FieldProblem>> {
    let ordered = order(cluster, image)?;
    let runs = cluster
        .status
        .as_ref()
        .and_then(|status| status.release.as_ref());
    match runs.filter(|runs| **runs != ordered.release()) {
        Some(runs) => order_of_release(cluster, image, runs),
        None => Ok(ordered),
    }
}

/// Makes what is to be there, and reads what became of it.
async fn look(
    context: &Context,
    backup: &ChatBackup,
    namespace: &str,
) -> Result<Seen, BackupError> {
    let mut seen = Seen::default();
    let clusters: Api<ChatCluster> = Api::namespaced(context.client.clone(), namespace);
    let name = &backup.spec.cluster;
    let Some(owner) = backup.controller_owner_ref(&()) else {
        return Ok(seen);
    };
    match clusters.get_opt(name).await? {
        None => {
            let message = format!("spec.cluster: there is no ChatCluster {name} in this namespace");
            seen.hindrance = Some(("ClusterMissing", message));
        }
        Some(cluster) => match order_that_runs(&cluster, &context.image) {
            Err(_) => {
                let message = format!("the spec of ChatCluster {name} is invalid; see its status");
                seen.hindrance = Some(("ClusterInvalid", message));
            }
            Ok(order) if backup.spec.schedule.is_some() => {
                let desired = backup_cron_job(&order, backup, &owner);
                seen.hindrance = apply(context, namespace, &desired, true).await?;
            }
            Ok(order) => {
                // Made once: its Job may be gone when it has ended long ago.
                let done = backup
                    .status
                    .as_ref()
                    .is_some_and(|status| status.backup.is_some());
                if !done {
                    let desired = backup_job(&order, backup, &owner);
                    seen.hindrance = apply(context, namespace, &desired, false).await?;
                }
            }
        },
    }
    let ours = ListParams::default().labels(&format!("{BACKUP_LABEL}={}", backup.name_any()));
    let jobs: Api<Job> = Api::namespaced(context.client.clone(), namespace);
    seen.jobs = jobs.list(&ours).await?.items;
    // Not those that an earlier ChatBackup of the same name left: its backup isn't this one's.
    seen.jobs.retain(|job| is_of(job, backup));
    seen.jobs
        .sort_by_key(|job| job.metadata.creation_timestamp.clone().map(|time| time.0));
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    seen.pods = pods.list(&ours).await?.items;
    let made: Vec<&String> = seen
        .jobs
        .iter()
        .filter_map(|job| job.metadata.uid.as_ref())
        .collect();
    seen.pods.retain(|pod| {
        let mut owners = pod.owner_references().iter();
        owners.any(|owner| made.contains(&&owner.uid))
    });
    Ok(seen)
}

/// Whether the Job was made for `backup`, or by its CronJob.
fn is_of(job: &Job, backup: &ChatBackup) -> bool {
    job.owner_references().iter().any(|owner| {
        owner.kind == "CronJob" && backup.spec.schedule.is_some()
            || Some(&owner.uid) == backup.metadata.uid.as_ref()
    })
}

/// Makes a child; one that is there is only changed if that may be.
async fn apply<K>(
    context: &Context,
    namespace: &str,
    desired: &K,
    may_change: bool,
) -> Result<Option<(&'static str, String)>, BackupError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let name = desired.name_any();
    let ordered = with_hash(desired);
    if let Some(live) = api.get_opt(&name).await? {
        let uid = |owners: &[_]| -> Option<String> {
            owners.first().map(
                |owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
                    owner.uid.clone()
                },
            )
        };
        if uid(live.owner_references()) != uid(desired.owner_references()) {
            let message = format!(
                "{} {name} exists already and doesn't belong to this ChatBackup; rename or delete one of the two",
                K::kind(&())
            );
            return Ok(Some(("NameTaken", message)));
        }
        let live = serde_json::to_value(&live)
            .expect("API objects have string keys only and always serialize");
        let same = difference(&ordered, &live) == Difference::None;
        if same || !may_change || live["metadata"].get("deletionTimestamp").is_some() {
            return Ok(None);
        }
    }
    context.metrics.wrote(&K::kind(&()), "apply");
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(&name, &parameters, &Patch::Apply(ordered)).await {
        Ok(_) => Ok(None),
        // A schedule that the API server can't read, a quota that is used up: said where its author looks.
        Err(kube::Error::Api(error)) if matches!(error.code, 403 | 422) => {
            Ok(Some(("Refused", error.message)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The status to report.
fn status(seen: &Seen, backup: &ChatBackup, now: Time) -> ChatBackupStatus {
    let previous = backup.status.clone().unwrap_or_default();
    let mut status = ChatBackupStatus {
        observed_generation: backup.metadata.generation,
        conditions: Vec::new(),
        ..previous.clone()
    };
    // The newest complete one: the last of several may have failed.
    for job in &seen.jobs {
        if migration(Some(job)) != Migration::Succeeded {
            continue;
        }
        if let Some(report) = report(job, &seen.pods) {
            let number = |number: u64| Some(i64::try_from(number).unwrap_or(i64::MAX));
            status.messages = number(report.messages);
            status.rooms = number(report.rooms);
            status.bytes = number(report.bytes);
            status.location = Some(report.location);
            status.backup = Some(report.backup);
            status.finished = job
                .status
                .as_ref()
                .and_then(|status| status.completion_time.clone());
        }
    }
    let newest = seen.jobs.last();
    if let Some(job) = newest {
        status.started = job
            .status
            .as_ref()
            .and_then(|status| status.start_time.clone())
            .or(status.started);
    }
    let complete = || match (&status.backup, status.messages) {
        (Some(backup), Some(messages)) => format!("{backup} has {messages} messages"),
        _ => "the backup is complete".to_owned(),
    };
    let (phase, (ready, reason, message)) = match (&seen.hindrance, migration(newest)) {
        (Some((reason, message)), _) => ("Pending", ("False", *reason, message.clone())),
        (None, Migration::Running) => {
            let words = words(newest, &seen.pods).unwrap_or_else(|| "the backup runs".to_owned());
            ("Running", ("Unknown", "Running", words))
        }
        (None, Migration::Succeeded) => ("Completed", ("True", "Completed", complete())),
        (None, Migration::Failed(_)) => {
            let words = words(newest, &seen.pods)
                .unwrap_or_else(|| format!("Job {} failed", backup_job_name(backup)));
            ("Failed", ("False", "BackupFailed", words))
        }
        // Its Job is gone.
        (None, Migration::NotStarted) if status.backup.is_some() => {
            ("Completed", ("True", "Completed", complete()))
        }
        (None, Migration::NotStarted) if backup.spec.schedule.is_some() => (
            "Scheduled",
            ("Unknown", "Scheduled", "waits for its time".to_owned()),
        ),
        (None, Migration::NotStarted) => (
            "Pending",
            ("Unknown", "Pending", "waits for its Job".to_owned()),
        ),
    };
    status.phase = Some(phase.to_owned());
    let unchanged_since = previous
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready" && condition.status == ready)
        .map(|condition| condition.last_transition_time.clone());
    status.conditions.push(Condition {
        type_: "Ready".to_owned(),
        status: ready.to_owned(),
        reason: reason.to_owned(),
        // The API server takes at most 32 KiB, and people less.
        message: message.chars().take(1000).collect(),
        last_transition_time: unchanged_since.unwrap_or(now),
        observed_generation: backup.metadata.generation,
    });
    status
}

/// The pods of a Job, oldest first.
fn pods_of<'a>(job: &Job, pods: &'a [Pod]) -> Vec<&'a Pod> {
    let mut pods: Vec<&Pod> = pods
        .iter()
        .filter(|pod| {
            pod.owner_references()
                .iter()
                .any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
        })
        .collect();
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0));
    pods
}

/// What a container said at its end: exit code and message.
fn end(pod: &Pod) -> Option<(i32, &str)> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ended = containers.first()?.state.as_ref()?.terminated.as_ref()?;
    Some((ended.exit_code, ended.message.as_deref()?))
}

/// What a Job's pod reported of the backup that it made.
fn report(job: &Job, pods: &[Pod]) -> Option<BackupReport> {
    pods_of(job, pods)
        .into_iter()
        .filter_map(end)
        .find_map(|(code, message)| (code == 0).then(|| BackupReport::from_line(message))?)
}

/// Why a Job's newest pod failed or doesn't start.
fn words(job: Option<&Job>, pods: &[Pod]) -> Option<String> {
    let pods = pods_of(job?, pods);
    let waiting = pods.last().and_then(|pod| {
        let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
        let waiting = containers.first()?.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .clone()
            .filter(|reason| reason != "ContainerCreating")?;
        Some(match &waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason,
        })
    });
    waiting.or_else(|| {
        let (code, message) = pods.into_iter().rev().find_map(end)?;
        let line = message.lines().rev().find(|line| !line.trim().is_empty())?;
        (code != 0).then(|| line.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn backup(schedule: Option<&str>) -> ChatBackup {
        serde_json::from_value(json!({
            "apiVersion": "carillon.chat/v1alpha1", "kind": "ChatBackup",
            "metadata": { "name": "nightly", "generation": 2 },
            "spec": {
                "cluster": "town", "schedule": schedule,
                "to": { "s3": { "bucket": "backups", "endpoint": "https://s3.example.com", "secretName": "s" } },
            },
        }))
        .unwrap()
    }

    fn job(uid: &str, at: &str, status: Value) -> Job {
        serde_json::from_value(json!({
            "metadata": { "name": uid, "uid": uid, "creationTimestamp": at },
            "status": status,
        }))
        .unwrap()
    }

    fn pod(job: &str, code: i32, message: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": job }] },
            "status": { "containerStatuses": [{
                "name": "backup", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "terminated": { "exitCode": code, "message": message } },
            }] },
        }))
        .unwrap()
    }

    fn complete() -> Value {
        json!({
            "startTime": "2026-01-01T03:00:00Z", "completionTime": "2026-01-01T03:05:00Z",
            "conditions": [{ "type": "Complete", "status": "True" }],
        })
    }

    fn failed() -> Value {
        json!({ "conditions": [{ "type": "Failed", "status": "True" }] })
    }

    fn now() -> Time {
        Time("2026-01-02T00:00:00Z".parse().unwrap())
    }

    const REPORT: &str = r#"{"backup":"b-1","location":"s3://backups/b-1","messages":7,"rooms":2,"accounts":3,"bytes":99}"#;

    #[test]
    fn a_complete_backup_says_what_and_where() {
        let seen = Seen {
            jobs: vec![job("a", "2026-01-01T03:00:00Z", complete())],
            pods: vec![
                pod("a", 69, "carillon: scylla is not available"),
                pod("a", 0, REPORT),
            ],
            ..Seen::default()
        };
        let status = status(&seen, &backup(None), now());
        assert_eq!(status.phase.as_deref(), Some("Completed"));
        assert_eq!(status.location.as_deref(), Some("s3://backups/b-1"));
        assert_eq!((status.messages, status.bytes), (Some(7), Some(99)));
        assert!(status.finished.is_some() && status.started.is_some());
        assert_eq!(status.conditions[0].status, "True");
        assert_eq!(status.observed_generation, Some(2));
    }

    /// A night that failed doesn't hide the last backup that there is.
    #[test]
    fn a_failure_says_why_and_keeps_what_there_is() {
        let mut of = backup(Some("0 3 * * *"));
        let mut seen = Seen {
            jobs: vec![job("a", "2026-01-01T03:00:00Z", complete())],
            pods: vec![pod("a", 0, REPORT)],
            ..Seen::default()
        };
        of.status = Some(status(&seen, &of, now()));
        seen.jobs.push(job("b", "2026-01-02T03:00:00Z", failed()));
        seen.pods
            .push(pod("b", 69, "trying\ncarillon: no bucket\n"));
        let failed = status(&seen, &of, now());
        assert_eq!(failed.phase.as_deref(), Some("Failed"));
        assert_eq!(failed.backup.as_deref(), Some("b-1"));
        let condition = &failed.conditions[0];
        assert_eq!(condition.reason, "BackupFailed");
        assert_eq!(condition.message, "carillon: no bucket");
        // Seen again, it is reported alike: nothing is written.
        of.status = Some(failed.clone());
        let later = Time("2026-01-03T00:00:00Z".parse().unwrap());
        assert_eq!(status(&seen, &of, later), failed);
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let seen = Seen {
            hindrance: Some(("ClusterMissing", "there is no ChatCluster town".into())),
            ..Seen::default()
        };
        let pending = status(&seen, &backup(None), now());
        assert_eq!(pending.phase.as_deref(), Some("Pending"));
        assert_eq!(pending.conditions[0].reason, "ClusterMissing");
        let waits = status(&Seen::default(), &backup(Some("0 3 * * *")), now());
        assert_eq!(waits.phase.as_deref(), Some("Scheduled"));
    }
}
