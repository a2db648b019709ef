//! One reconcile: dereference → validate → build → apply → status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_crds::{ChatCluster, ChatClusterStatus, Role, condition};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::{DeserializeGuard, ObjectMeta, error_boundary::InvalidObject};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::apply::{
    Applier, ApplyError, Change, ChangeAction, is_as_ordered, workloads_as_ordered,
};
use crate::build::{self, COMPONENT_LABEL, Children, MIGRATION_COMPONENT, RESTORE_COMPONENT};
use crate::context::{Context, reference_to};
use crate::dereference::{self, KeyError, Live};
use crate::readiness::PodReadiness;
use crate::status::{Component, Migration, Observation, migration, status, unreadable};
use crate::validate::{Order, order};

/// Between two looks at a cluster on which nothing is to be done: changes are heard by watching, but a key that was made
/// anew, and a store that ready pods can do without, are not.
const SETTLED_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks at a cluster that isn't as ordered: the reasons why a pod doesn't start are not watched.
const UNSETTLED_INTERVAL: Duration = Duration::from_secs(5);
/// After a failed reconcile.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long a failed migration is left to be looked at before it is tried again.
const MIGRATION_RETRY_AFTER: Duration = Duration::from_secs(20);
/// Pods asked at the same time what they depend on.
const PODS_ASKED_AT_ONCE: usize = 8;
/// Pods asked in one pass: enough to name every store that is away.
const PODS_ASKED: usize = 24;

/// Changes of one sort in one pass that have an Event each. More are a new order, and are told together.
const CHANGES_TOLD_ONE_BY_ONE: usize = 3;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Something could not be read, or the status not be written.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// A child could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The cluster's own keys can't be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// What to do after an error.
pub fn error_policy(
    _: Arc<DeserializeGuard<ChatCluster>>,
    _: &ReconcileError,
    _: Arc<Context>,
) -> Action {
    Action::requeue(RETRY_INTERVAL)
}

/// Brings one ChatCluster closer to its order and reports on it.
pub async fn reconcile(
    cluster: Arc<DeserializeGuard<ChatCluster>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let namespace = cluster.meta().namespace.clone().unwrap_or_default();
    let name = cluster.meta().name.clone().unwrap_or_default();
    let result = match &cluster.0 {
        Ok(_) => reconcile_current(&context, &namespace, &name).await,
        Err(invalid) => report_unreadable(&context, invalid).await,
    };
    context
        .metrics
        .reconciled(started.elapsed(), result.is_ok());
    if let Err(error) = &result {
        tracing::error!(namespace, cluster = name, %error, "reconcile failed");
    }
    result
}

async fn reconcile_current(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<Action, ReconcileError> {
    let api: Api<ChatCluster> = Api::namespaced(context.client.clone(), namespace);
    // The watch may lag behind our own last status: decide on what is true now.
    let Some(cluster) = api.get_opt(name).await? else {
        return Ok(Action::await_change());
    };
    // Everything carries an owner reference: the garbage collector does the rest.
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let (seen, changes, failure) = pass(context, &cluster).await?;
    let status = status(&seen, cluster.status.as_ref(), Time(Timestamp::now()));
    publish_changes(context, &cluster.metadata, &changes).await;
    write_status(context, &cluster.metadata, cluster.status.as_ref(), status).await?;
    match failure {
        Some(error) => Err(error),
        None if seen.is_settled() || seen.paused => Ok(Action::requeue(SETTLED_INTERVAL)),
        None => Ok(Action::requeue(UNSETTLED_INTERVAL)),
    }
}

/// Everything but the report: what was seen, what was changed, and what went wrong on the way.
async fn pass(
    context: &Context,
    cluster: &ChatCluster,
) -> Result<(Observation, Vec<Change>, Option<ReconcileError>), ReconcileError> {
    let live = dereference::live_children(&context.client, cluster).await?;
    let mut seen = Observation {
        generation: cluster.metadata.generation,
        ..Observation::default()
    };
    let order = match order(cluster, &context.image) {
        Ok(order) => order,
        Err(problems) => {
            seen.problems = problems;
            seen.version = cluster
                .status
                .as_ref()
                .and_then(|status| status.version.clone());
            seen.endpoint = cluster
                .status
                .as_ref()
                .and_then(|status| status.endpoint.clone());
            seen.components = components_without_order(&live);
            return Ok((seen, Vec::new(), None));
        }
    };
    seen.version = Some(order.config.version.clone());
    seen.endpoint = Some(build::endpoint(&order));
    seen.missing_secrets =
        dereference::missing_secrets(&context.client, &order.namespace, &order.spec).await?;
    seen.hibernated = build::is_hibernated(&order);
    if order.spec.paused == Some(true) {
        look_only(context, cluster, &order, &live, &mut seen).await?;
        return Ok((seen, Vec::new(), None));
    }
    let mut applier = Applier::new(&context.client, &context.metrics, cluster);
    let result = bring_about(context, &order, &live, &mut applier, &mut seen).await;
    let failure = result.err();
    seen.failure = failure.as_ref().map(ReconcileError::to_string);
    let changes = applier.changes;
    let pods = dereference::pods(&context.client, cluster).await?;
    seen.readiness = ask_pods(context, &order, &pods).await;
    if !seen.is_settled() {
        seen.pods = pods;
    }
    Ok((seen, changes, failure))
}

/// A paused cluster: what there is, and how it fares. Not what differs from the order: that is for whoever paused it to know.
async fn look_only(
    context: &Context,
    cluster: &ChatCluster,
    order: &Order,
    live: &Live,
    seen: &mut Observation,
) -> Result<(), ReconcileError> {
    seen.paused = true;
    let job = build::migration_job_name(order);
    seen.migration = migration(live.jobs.iter().find(|live| live.name_any() == job));
    seen.components = components_without_order(live);
    let pods = dereference::pods(&context.client, cluster).await?;
    seen.readiness = ask_pods(context, order, &pods).await;
    seen.pods = pods;
    Ok(())
}

/// Build and apply, behind the gate of the migration.
async fn bring_about(
    context: &Context,
    order: &Order,
    live: &Live,
    applier: &mut Applier<'_>,
    seen: &mut Observation,
) -> Result<(), ReconcileError> {
    let keys = match dereference::keys(&context.client, &context.metrics, order).await {
        Ok(keys) => keys,
        Err(error) => {
            seen.components = components_without_order(live);
            return Err(error.into());
        }
    };
    let children = build::children(order, &keys);
    // Until the end of this pass: what there is, measured by what is ordered.
    seen.components = components(order, &children, live);
    seen.migration = migration(find_job(&children, live));
    applier.apply_foundations(&children, live).await?;
    // Without pods there is nothing to migrate for, and the stores may be away.
    let startable = !seen.lacks_mounted_secret() && !seen.hibernated;
    if startable {
        applier.start_migration(&children, live).await?;
        retry_failed_migration(&children, live, applier, &seen.migration).await?;
        if seen.migration == Migration::NotStarted {
            seen.migration = Migration::Running;
        }
    }
    if startable && seen.migration == Migration::Succeeded {
        restore(&children, live, applier, seen).await?;
    }
    // Asleep from its beginning, it begins when it wakes up: Deployments say that a backup was restored.
    let asleep = seen.hibernated && !awaits_restore(&children, live);
    if asleep || (seen.migration == Migration::Succeeded && startable && !seen.is_restoring()) {
        applier.apply_workloads(&children, live).await?;
    } else {
        applier.repair_workloads(&children, live).await?;
    }
    let current = if applier.changes.is_empty() {
        live.clone()
    } else {
        dereference::live_children(&context.client, applier.cluster).await?
    };
    seen.components = components(order, &children, &current);
    let rolled_out = workloads_as_ordered(&children, &current)
        && seen.components.iter().all(Component::is_complete);
    applier
        .delete_orphans(&children, &current, rolled_out)
        .await?;
    Ok(())
}

/// Restores the backup that the ChatCluster begins with. Roles are only ever started after it, so that where there are any, it is
/// done, whatever became of its Job.
async fn restore(
    children: &Children,
    live: &Live,
    applier: &mut Applier<'_>,
    seen: &mut Observation,
) -> Result<(), ApplyError> {
    let Some(job) = &children.restore_job else {
        return Ok(());
    };
    if !awaits_restore(children, live) {
        return Ok(());
    }
    let found = live
        .jobs
        .iter()
        .find(|live| live.metadata.name == job.metadata.name);
    applier.start_restore(children, live).await?;
    let restore = match migration(found) {
        Migration::NotStarted => Migration::Running,
        restore => restore,
    };
    retry_failed(found, applier, &restore).await?;
    seen.restore = Some(restore);
    Ok(())
}

fn awaits_restore(children: &Children, live: &Live) -> bool {
    children.restore_job.is_some() && live.deployments.is_empty()
}

async fn retry_failed_migration(
    children: &Children,
    live: &Live,
    applier: &mut Applier<'_>,
    migration: &Migration,
) -> Result<(), ApplyError> {
    retry_failed(find_job(children, live), applier, migration).await
}

/// A failed Job is left to be looked at for a while, then deleted; the next pass makes it anew.
async fn retry_failed(
    job: Option<&k8s_openapi::api::batch::v1::Job>,
    applier: &mut Applier<'_>,
    migration: &Migration,
) -> Result<(), ApplyError> {
    let Migration::Failed(since) = migration else {
        return Ok(());
    };
    let age = since.as_ref().map_or(MIGRATION_RETRY_AFTER, |since| {
        Duration::try_from(Timestamp::now().duration_since(since.0)).unwrap_or_default()
    });
    match job {
        Some(job) if age >= MIGRATION_RETRY_AFTER => applier.delete(job).await,
        _ => Ok(()),
    }
}

fn find_job<'a>(
    children: &Children,
    live: &'a Live,
) -> Option<&'a k8s_openapi::api::batch::v1::Job> {
    live.jobs
        .iter()
        .find(|job| job.metadata.name == children.migration_job.metadata.name)
}

fn components(order: &Order, children: &Children, live: &Live) -> Vec<Component> {
    Role::ALL
        .iter()
        .zip(&children.deployments)
        .map(|(role, desired)| {
            let deployment = live
                .deployments
                .iter()
                .find(|live| live.metadata.name == desired.metadata.name);
            Component {
                role: *role,
                needed: build::needed_replicas(order, *role),
                as_ordered: deployment.is_some_and(|live| is_as_ordered(desired, live)),
                deployment: deployment.cloned(),
            }
        })
        .collect()
}

/// The roles that run while there is no order to measure them by; none when nothing runs.
fn components_without_order(live: &Live) -> Vec<Component> {
    let found: Vec<Component> = Role::ALL
        .iter()
        .map(|role| {
            let deployment = live.deployments.iter().find(|live| {
                live.labels()
                    .get(COMPONENT_LABEL)
                    .is_some_and(|label| label == role.name())
            });
            let needed = deployment
                .and_then(|deployment| deployment.spec.replicas)
                .unwrap_or(1);
            Component {
                role: *role,
                needed,
                as_ordered: false,
                deployment: deployment.cloned(),
            }
        })
        .collect();
    if found.iter().all(|component| component.deployment.is_none()) {
        Vec::new()
    } else {
        found
    }
}

/// Asks some pods what they depend on.
async fn ask_pods(context: &Context, order: &Order, pods: &[Pod]) -> Vec<PodReadiness> {
    futures::stream::iter(pods_to_ask(pods))
        .map(|pod| async move {
            context
                .readiness
                .ask(&pod.name, &pod.address, order.config.admin_port)
                .await
        })
        .buffered(PODS_ASKED_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// A pod of a role that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RunningPod {
    ready: bool,
    /// How many of its role and readiness come before it.
    turn: usize,
    name: String,
    address: String,
}

/// Those that are not ready first: they know what they miss. Then ready ones, the roles in turn: they may miss what they
/// can do without.
fn pods_to_ask(pods: &[Pod]) -> Vec<RunningPod> {
    let mut running: Vec<(String, RunningPod)> = pods.iter().filter_map(running_pod).collect();
    running.sort();
    let mut turns: BTreeMap<(String, bool), usize> = BTreeMap::new();
    let mut asked: Vec<RunningPod> = running
        .into_iter()
        .map(|(role, pod)| {
            let turn = turns.entry((role, pod.ready)).or_default();
            *turn += 1;
            RunningPod { turn: *turn, ..pod }
        })
        .collect();
    asked.sort();
    asked.truncate(PODS_ASKED);
    asked
}

/// A running pod and its role.
fn running_pod(pod: &Pod) -> Option<(String, RunningPod)> {
    let role = pod.labels().get(COMPONENT_LABEL)?;
    let status = pod.status.as_ref()?;
    let running = status.container_statuses.iter().flatten().any(|container| {
        container
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    });
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    // A migration and a restore listen nowhere.
    if !running
        || role == MIGRATION_COMPONENT
        || role == RESTORE_COMPONENT
        || pod.metadata.deletion_timestamp.is_some()
    {
        return None;
    }
    let pod = RunningPod {
        ready,
        turn: 0,
        name: pod.metadata.name.clone()?,
        address: status.pod_ip.clone()?,
    };
    Some((role.clone(), pod))
}

/// The object exists, but is not a ChatCluster that this operator can read: say so where its author looks.
async fn report_unreadable(
    context: &Context,
    invalid: &InvalidObject,
) -> Result<Action, ReconcileError> {
    let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
    let name = invalid.metadata.name.clone().unwrap_or_default();
    let resource = ApiResource::erase::<ChatCluster>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let Some(object) = api
        .get_opt(&name)
        .await?
        .filter(|object| object.metadata.deletion_timestamp.is_none())
    else {
        return Ok(Action::await_change());
    };
    let previous: Option<ChatClusterStatus> = object
        .data
        .get("status")
        .and_then(|status| serde_json::from_value(status.clone()).ok());
    let status = unreadable(
        &invalid.error,
        object.metadata.generation,
        previous.as_ref(),
        Time(Timestamp::now()),
    );
    write_status(context, &object.metadata, previous.as_ref(), status).await?;
    Ok(Action::await_change())
}

async fn write_status(
    context: &Context,
    metadata: &ObjectMeta,
    previous: Option<&ChatClusterStatus>,
    status: ChatClusterStatus,
) -> Result<(), ReconcileError> {
    if previous == Some(&status) {
        return Ok(());
    }
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.clone().unwrap_or_default();
    // Untyped: the answer repeats the spec, which may be one that can't be read.
    let resource = ApiResource::erase::<ChatCluster>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let patch = json!({
        "apiVersion": ChatCluster::api_version(&()),
        "kind": ChatCluster::kind(&()),
        // A ChatCluster of the same name that was made meanwhile has another uid: then this is refused.
        "metadata": { "name": name, "uid": metadata.uid },
        "status": status,
    });
    context.metrics.wrote("ChatCluster", "status");
    match api
        .patch_status(
            &name,
            &PatchParams::apply(crate::FIELD_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .await
    {
        Ok(_) => {}
        // Deleted meanwhile: there is nothing to report on.
        Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    publish_turns(context, metadata, previous, &status).await;
    Ok(())
}

/// An Event for each condition that matters to a person and turned.
async fn publish_turns(
    context: &Context,
    metadata: &ObjectMeta,
    previous: Option<&ChatClusterStatus>,
    status: &ChatClusterStatus,
) {
    for (type_, good) in [
        (condition::SPEC_VALID, "True"),
        (condition::SCHEMA_MIGRATED, "True"),
        (condition::DEGRADED, "False"),
        (condition::AVAILABLE, "True"),
    ] {
        let Some(now) = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_)
        else {
            continue;
        };
        let before = previous.and_then(|previous| {
            previous
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_)
        });
        let turned = match before {
            Some(before) => {
                before.status != now.status || (now.status != good && before.reason != now.reason)
            }
            // The first report of what has not begun, or is well, is no news.
            None => type_ == condition::SPEC_VALID && now.status != good,
        };
        if turned {
            let event_type = if now.status == good
                || now.status == "Unknown"
                || type_ == condition::AVAILABLE
                || now.reason == "Migrating"
            {
                EventType::Normal
            } else {
                EventType::Warning
            };
            let reason = if now.status == good {
                format!(
                    "{type_}{}",
                    if type_ == condition::DEGRADED {
                        "Cleared"
                    } else {
                        ""
                    }
                )
            } else {
                now.reason.clone()
            };
            context
                .event(
                    &reference_to(metadata),
                    event_type,
                    &reason,
                    type_,
                    None,
                    now.message.clone(),
                )
                .await;
        }
    }
}

/// One Event for many that were made, else one for each. Events about one child are counted together.
async fn publish_changes(context: &Context, metadata: &ObjectMeta, changes: &[Change]) {
    let reference = reference_to(metadata);
    for (action, reason) in [
        (ChangeAction::Created, "Created"),
        (ChangeAction::Updated, "Updated"),
    ] {
        let changed: Vec<&Change> = changes
            .iter()
            .filter(|change| change.action == action)
            .collect();
        if let Some(first) = changed.first() {
            tracing::info!(
                namespace = metadata.namespace,
                cluster = metadata.name,
                reason,
                count = changed.len(),
                "applied"
            );
            // Together they are about the first, so that what came at another time has an Event of its own.
            let several = changed.len() > CHANGES_TOLD_ONE_BY_ONE;
            let about = if several {
                std::slice::from_ref(first)
            } else {
                &changed
            };
            for change in about {
                let note = if several {
                    let names: Vec<String> =
                        changed.iter().map(|change| describe(change)).collect();
                    names.join(", ")
                } else {
                    describe(change)
                };
                context
                    .event(
                        &reference,
                        EventType::Normal,
                        reason,
                        "Apply",
                        Some(change),
                        note,
                    )
                    .await;
            }
        }
    }
    for change in changes {
        let reason = match change.action {
            ChangeAction::Repaired => "Repaired",
            ChangeAction::Deleted => "Deleted",
            ChangeAction::Created | ChangeAction::Updated => continue,
        };
        tracing::info!(
            namespace = metadata.namespace,
            cluster = metadata.name,
            reason,
            kind = change.kind,
            name = change.name,
            "applied"
        );
        context
            .event(
                &reference,
                EventType::Normal,
                reason,
                "Apply",
                Some(change),
                describe(change),
            )
            .await;
    }
}

fn describe(change: &Change) -> String {
    format!("{} {}", change.kind, change.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(role: &str, name: &str, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        crate::status::tests::pod(
            role,
            name,
            json!({
                "podIP": "10.0.0.1",
                "conditions": [{ "type": "Ready", "status": ready }],
                "containerStatuses": [{
                    "name": role, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { "running": {} },
                }],
            }),
        )
    }

    #[test]
    fn pods_that_are_not_ready_are_asked_first_then_each_role_in_turn() {
        let mut pods = vec![
            pod("gateway", "gateway-1", true),
            pod("gateway", "gateway-2", true),
            pod("message", "message-1", true),
            pod("message", "message-2", false),
            pod("migrate", "migrate-1", true),
        ];
        let names = |pods: &[Pod]| -> Vec<String> {
            pods_to_ask(pods).into_iter().map(|pod| pod.name).collect()
        };
        assert_eq!(
            names(&pods),
            ["message-2", "gateway-1", "message-1", "gateway-2"]
        );
        pods[1].metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        assert_eq!(names(&pods), ["message-2", "gateway-1", "message-1"]);
        let many: Vec<Pod> = (0..100)
            .map(|n| pod("gateway", &format!("gateway-{n}"), true))
            .collect();
        assert_eq!(names(&many).len(), PODS_ASKED);
    }
}
