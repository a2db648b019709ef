//! One reconcile: dereference → validate → build → apply → status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_crds::{
    ChatCluster, ChatClusterStatus, FieldProblem, ManagedStore, Role, UpgradeStatus, UpgradeStep,
    condition, progress_deadline_seconds,
};
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
use crate::credentials::{self, KeyError};
use crate::dereference::{self, Live};
use crate::foreign::Served;
use crate::lookout;
use crate::managed;
use crate::probe::{self, Probe};
use crate::readiness::PodReadiness;
use crate::status::{Component, Migration, Monitoring, Observation, migration, status, unreadable};
use crate::upgrade::{self, Course};
use crate::validate::{Order, order, order_of_release};

/// Between two looks at a cluster on which nothing is to be done: changes are heard by watching, but a key that was
/// deleted is not.
const SETTLED_INTERVAL: Duration = Duration::from_secs(60);
/// The share of [`SETTLED_INTERVAL`] that each cluster has at least: of many, each is looked at less often, so that they ask the
/// API server no more than a few hundred do.
const SETTLED_SHARE: Duration = Duration::from_millis(250);
/// Between two looks at a cluster that isn't as ordered: the reasons why a pod doesn't start are not watched.
const UNSETTLED_INTERVAL: Duration = Duration::from_secs(5);
/// After the pass with which an upgrade ended: the next one takes away what it might have gone back to, and nothing else may come
/// that makes it begin.
const UPGRADED_INTERVAL: Duration = Duration::from_millis(200);
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
/// Children in one Event: their kinds and names, however long, fit into a note.
const CHANGES_TOLD_TOGETHER: usize = 10;

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
        context.lookout.forget(&named(namespace, name));
        return Ok(Action::await_change());
    };
    // Everything carries an owner reference: the garbage collector does the rest.
    if cluster.metadata.deletion_timestamp.is_some() {
        context.prober.forget(&cluster.uid().unwrap_or_default());
        context.lookout.forget(&named(namespace, name));
        return Ok(Action::await_change());
    }
    let (seen, changes, failure) = pass(context, &cluster).await?;
    let was_upgrading = cluster
        .status
        .iter()
        .flat_map(|status| &status.upgrade)
        .any(|upgrade| upgrade.step.is_under_way());
    let status = status(&seen, cluster.status.as_ref(), Time(Timestamp::now()));
    publish_changes(context, &cluster.metadata, &changes).await;
    write_status(context, &cluster.metadata, cluster.status.as_ref(), status).await?;
    match failure {
        Some(error) => Err(error),
        None if was_upgrading && seen.is_settled() => Ok(Action::requeue(UPGRADED_INTERVAL)),
        None if (seen.is_settled() && !seen.rotating) || seen.paused => {
            Ok(Action::requeue(settled_interval(context.prober.clusters())))
        }
        None => Ok(Action::requeue(UNSETTLED_INTERVAL)),
    }
}

fn settled_interval(clusters: usize) -> Duration {
    let share = SETTLED_SHARE.saturating_mul(u32::try_from(clusters).unwrap_or(u32::MAX));
    share.max(SETTLED_INTERVAL)
}

/// Everything but the report: what was seen, what was changed, and what went wrong on the way.
async fn pass(
    context: &Context,
    cluster: &ChatCluster,
) -> Result<(Observation, Vec<Change>, Option<ReconcileError>), ReconcileError> {
    let served = context.definitions.served(&context.client).await;
    let live = dereference::live_children(&context.client, cluster, served).await?;
    let previous = cluster.status.clone().unwrap_or_default();
    let mut seen = Observation {
        generation: cluster.metadata.generation,
        release: previous.release,
        upgrade: previous.upgrade,
        scylla_managed: previous.scylla_managed == Some(true),
        ..Observation::default()
    };
    let managed = managed::look(&context.client, cluster, &live).await?;
    let order = order(cluster, &context.image).and_then(|mut order| {
        order.managed = managed.clone();
        let problems = managed::problems(&order, &live);
        match problems.is_empty() {
            true => Ok::<Order, Vec<FieldProblem>>(order),
            false => Err(problems),
        }
    });
    let order = match order {
        Ok(order) => order,
        Err(problems) => {
            if let Some(name) = &cluster.metadata.name {
                let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
                context.lookout.forget(&named(namespace, name));
            }
            seen.problems = problems;
            seen.version = previous.version;
            seen.endpoint = previous.endpoint;
            seen.components = components_without_order(&live);
            seen.probe = context.prober.known(&cluster.uid().unwrap_or_default());
            return Ok((seen, Vec::new(), None));
        }
    };
    seen.version = Some(order.config.version.clone());
    seen.scylla_managed = order.spec.manages(ManagedStore::Scylla);
    seen.endpoint = Some(build::endpoint(&order));
    seen.monitoring = monitoring(&order, served);
    seen.missing_secrets =
        dereference::missing_secrets(&context.client, &order.namespace, &order.spec).await?;
    let missing = managed::missing_secret(&context.client, &order).await?;
    seen.missing_secrets.extend(missing);
    seen.hibernated = build::is_hibernated(&order);
    if !seen.hibernated {
        seen.waiting_stores = managed::waiting(&order, &live);
    }
    if order.spec.paused == Some(true) {
        look_only(context, cluster, &order, &live, &mut seen).await?;
        return Ok((seen, Vec::new(), None));
    }
    let now = Time(Timestamp::now());
    let course = match upgrade::course(&order.release(), cluster.status.as_ref(), &now) {
        // Who has no pods is not upgraded: it wakes up with the release that is then ordered; what was given up stays given up.
        Course::Forward(_) if seen.hibernated => Course::Straight,
        course => course,
    };
    let mut orders = match orders(context, cluster, order, &course) {
        Ok(orders) => orders,
        Err(problems) => {
            seen.problems = problems;
            seen.components = components_without_order(&live);
            return Ok((seen, Vec::new(), None));
        }
    };
    let mut applier = Applier::new(&context.client, &context.metrics, cluster);
    let result = bring_about(context, &mut orders, &live, served, &mut applier, &mut seen).await;
    let order = orders.run;
    let failure = result.err();
    seen.failure = failure.as_ref().map(ReconcileError::to_string);
    let changes = applier.changes;
    let pods = dereference::pods(&context.client, cluster).await?;
    seen.readiness = ask_pods(context, &order, &pods).await;
    probe(context, cluster, &order, &pods, &mut seen).await;
    seen.pods = pods;
    note_release(&order, course, &mut seen, &now);
    if seen.is_settled() {
        seen.pods.clear();
    }
    Ok((seen, changes, failure))
}

/// The same order, of one release or two.
struct Orders {
    /// What to run.
    run: Order,
    /// What roles run that an upgrade hasn't reached.
    before: Option<Order>,
    /// Whether an upgrade is taken back.
    goes_back: bool,
}

fn orders(
    context: &Context,
    cluster: &ChatCluster,
    order: Order,
    course: &Course,
) -> Result<Orders, Vec<FieldProblem>> {
    let managed = order.managed.clone();
    let of = |release| {
        let mut order = order_of_release(cluster, &context.image, release)?;
        order.managed = managed.clone();
        Ok::<Order, Vec<FieldProblem>>(order)
    };
    let (run, before) = match course {
        Course::Straight => (order, None),
        Course::Forward(upgrade) => (order, Some(of(&upgrade.from)?)),
        Course::Back(upgrade) => (of(&upgrade.from)?, None),
    };
    Ok(Orders {
        run,
        before,
        goes_back: matches!(course, Course::Back(_)),
    })
}

/// How far the upgrade is, and whether what runs is whole and available.
fn note_release(order: &Order, course: Course, seen: &mut Observation, now: &Time) {
    let deadline = Duration::from_secs(progress_deadline_seconds(&order.spec));
    let goes_back = matches!(course, Course::Back(_));
    let upgrade = upgrade::advance(course, seen, deadline, now);
    let is_whole = seen.migration == Migration::Succeeded
        && seen.components.iter().all(Component::is_complete)
        && !seen.hibernated
        && seen.probe == Probe::Passed
        && seen.failure.is_none();
    if is_whole && !goes_back {
        seen.release = Some(order.release());
    }
    seen.upgrade = match upgrade {
        Some(upgrade) => Some(upgrade),
        // The one that brought this release is worth knowing of; one that was given up is not.
        None => seen
            .upgrade
            .take()
            .filter(|upgrade| upgrade.step == UpgradeStep::Done && upgrade.to == order.release()),
    };
}

/// A message through the cluster, if it is time, and if there is somebody to take it.
async fn probe(
    context: &Context,
    cluster: &ChatCluster,
    order: &Order,
    pods: &[Pod],
    seen: &mut Observation,
) {
    if !seen.is_serving() {
        context.prober.forget(&order.owner.uid);
        return;
    }
    let was_available = cluster
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .any(|found| found.type_ == condition::AVAILABLE && found.status == "True");
    let sight = probe::Seen {
        pods,
        readiness: &seen.readiness,
        complete: seen.components.iter().all(Component::is_complete),
        was_available,
    };
    seen.probe = context.prober.look(context, order, sight).await;
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
    probe(context, cluster, order, &pods, seen).await;
    seen.pods = pods;
    Ok(())
}

/// Build and apply, behind the gate of the migration.
async fn bring_about(
    context: &Context,
    orders: &mut Orders,
    live: &Live,
    served: Served,
    applier: &mut Applier<'_>,
    seen: &mut Observation,
) -> Result<(), ReconcileError> {
    let secrets = managed::ensure_secrets(context, applier.cluster, &mut orders.run, live).await;
    if let Err(error) = secrets {
        seen.components = components_without_order(live);
        return Err(error.into());
    }
    if let Some(before) = &mut orders.before {
        before.managed = orders.run.managed.clone();
    }
    let orders = &*orders;
    let order = &orders.run;
    let credentials = match credentials::credentials(context, applier.cluster, order).await {
        Ok(credentials) => credentials,
        Err(error) => {
            seen.components = components_without_order(live);
            return Err(error.into());
        }
    };
    seen.rotating = credentials.is_waiting;
    for (reason, note) in credentials.steps {
        let reference = reference_to(&applier.cluster.metadata);
        tracing::info!(
            namespace = order.namespace,
            cluster = order.name,
            reason,
            "{note}"
        );
        context
            .event(&reference, EventType::Normal, reason, "Rotate", None, note)
            .await;
    }
    let mut children = build::children(order, &credentials.keys);
    let before = orders
        .before
        .as_ref()
        .map(|before| build::children(before, &credentials.keys));
    if let Some(before) = &before {
        children.keep_configuration_of(before);
    }
    // Until the end of this pass: what there is, measured by what is ordered.
    seen.components = components(order, &children, live);
    seen.migration = migration(find_job(&children, live));
    seen.migration_began =
        find_job(&children, live).and_then(|job| job.metadata.creation_timestamp.clone());
    applier.apply_foundations(&children, live).await?;
    // Without pods there is nothing to migrate for, and the stores may be away.
    let startable = !seen.lacks_mounted_secret() && !seen.hibernated && !is_too_early(live, seen);
    if startable {
        applier.start_migration(&children, live).await?;
        // One of an upgrade is not tried again: the upgrade is taken back.
        if before.is_none() {
            retry_failed_migration(&children, live, applier, &seen.migration).await?;
        }
        if seen.migration == Migration::NotStarted {
            seen.migration = Migration::Running;
        }
    }
    if startable && seen.migration == Migration::Succeeded {
        restore(&children, live, applier, seen).await?;
    }
    // What is gone back to needs no migration: it ran on this schema.
    let may_start = startable
        && !seen.is_restoring()
        && (orders.goes_back || seen.migration == Migration::Succeeded);
    // Asleep from its beginning, it begins when it wakes up: Deployments say that a backup was restored.
    let asleep = seen.hibernated && !awaits_restore(&children, live);
    let open = match &before {
        _ if asleep => children.deployments.len(),
        _ if !may_start => 0,
        None => children.deployments.len(),
        Some(_) => upgrade::reached(&seen.components),
    };
    if asleep || may_start {
        applier.apply_workloads(&children, live, open).await?;
    }
    let after = before.as_ref().unwrap_or(&children);
    applier.repair_workloads(after, live, open).await?;
    let current = if applier.changes.is_empty() {
        live.clone()
    } else {
        dereference::live_children(&context.client, applier.cluster, served).await?
    };
    seen.components = components(order, &children, &current);
    let rolled_out = workloads_as_ordered(&children, &current)
        && seen.components.iter().all(Component::is_complete);
    applier
        .delete_orphans(&children, &current, rolled_out, before.as_ref())
        .await?;
    // Who chats, and an upgrade, wait for none of it.
    let monitored = applier.apply_monitors(&children, live, served).await;
    if let (Err(error), Some(monitoring)) = (monitored, &mut seen.monitoring) {
        monitoring.refused = Some(error.to_string());
    }
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

/// A managed store that comes up, for the first time or after a sleep, takes longer than a migration waits.
fn is_too_early(live: &Live, seen: &Observation) -> bool {
    seen.migration == Migration::NotStarted
        && !managed::has_pods(live)
        && seen.waits_for_schema_store()
}

/// What the order asks for of monitoring, and can't be had.
fn monitoring(order: &Order, served: Served) -> Option<Monitoring> {
    let mut kinds = build::monitoring_kinds(order)?;
    kinds.retain(|kind| !served.has(kind));
    Some(Monitoring {
        unknown_kinds: kinds,
        refused: None,
    })
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

fn named(namespace: &str, name: &str) -> lookout::Cluster {
    lookout::Cluster::new(name).within(namespace)
}

fn address_of(pods: &[Pod], name: &str) -> Option<String> {
    let pod = pods.iter().find(|pod| pod.name_any() == name)?;
    pod.status.as_ref()?.pod_ip.clone()
}

/// Asks some pods what they depend on, and remembers whom to ask before the next pass.
async fn ask_pods(context: &Context, order: &Order, pods: &[Pod]) -> Vec<PodReadiness> {
    let seen: Vec<PodReadiness> = futures::stream::iter(pods_to_ask(pods))
        .map(|pod| async move {
            context
                .readiness
                .ask(&pod.name, &pod.address, order.config.admin_port)
                .await
        })
        .buffered(PODS_ASKED_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    context.lookout.note(
        named(&order.namespace, &order.name),
        &seen,
        order.config.admin_port,
        |name| address_of(pods, name),
    );
    seen
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
    let before = previous.and_then(|previous| previous.upgrade.as_ref());
    publish_upgrade(context, metadata, before, status.upgrade.as_ref()).await;
    publish_turns(context, metadata, previous, &status).await;
    Ok(())
}

/// An Event for the beginning and the end of an upgrade. That it failed is told by `Degraded`.
async fn publish_upgrade(
    context: &Context,
    metadata: &ObjectMeta,
    before: Option<&UpgradeStatus>,
    now: Option<&UpgradeStatus>,
) {
    let Some(now) = now else { return };
    let began = before.is_none_or(|before| before.started_at != now.started_at);
    let turned = before.is_none_or(|before| before.step != now.step);
    let reason = match now.step {
        _ if began => "UpgradeStarted",
        UpgradeStep::Done if turned => "Upgraded",
        UpgradeStep::RolledBack if turned => "RolledBack",
        _ => return,
    };
    let reference = reference_to(metadata);
    let note = upgrade::describe(now);
    context
        .event(&reference, EventType::Normal, reason, "Upgrade", None, note)
        .await;
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

/// One Event for some of many that were made, else one for each. Events about one child are counted together.
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
        if changed.is_empty() {
            continue;
        }
        tracing::info!(
            namespace = metadata.namespace,
            cluster = metadata.name,
            reason,
            count = changed.len(),
            "applied"
        );
        if changed.len() > CHANGES_TOLD_ONE_BY_ONE {
            for some in changed.chunks(CHANGES_TOLD_TOGETHER) {
                let names: Vec<String> = some.iter().map(|change| describe(change)).collect();
                context
                    .list_event(&reference, reason, "Apply", names.join(", "))
                    .await;
            }
            continue;
        }
        for change in changed {
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
    fn a_migration_waits_for_a_store_that_comes_up_first_or_after_a_sleep() {
        let order = crate::build::tests::order_of(crate::build::tests::SMALL);
        let children = build::children(&order, &crate::build::tests::keys());
        let mut live = Live {
            deployments: children.deployments,
            ..Live::default()
        };
        let mut seen = Observation {
            waiting_stores: vec![("scylla", "it isn't up".to_owned())],
            ..Observation::default()
        };
        assert!(is_too_early(&Live::default(), &seen), "the first time");
        assert!(!is_too_early(&live, &seen), "roles run");
        for deployment in &mut live.deployments {
            deployment.spec.replicas = Some(0);
        }
        assert!(is_too_early(&live, &seen), "after a sleep");
        seen.waiting_stores.clear();
        assert!(!is_too_early(&live, &seen), "it is up");
    }

    #[test]
    fn many_clusters_are_looked_at_less_often_each() {
        assert_eq!(settled_interval(1), SETTLED_INTERVAL);
        assert_eq!(settled_interval(200), SETTLED_INTERVAL);
        assert_eq!(settled_interval(1000), Duration::from_secs(250));
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
