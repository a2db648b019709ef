//! Puts the operator together: client, HTTP server, leadership, and one controller per watched namespace.
//!
//! Children are watched as metadata only, and only those with the operator's label: what a watch says is *that*
//! something changed; what it is now is read when it is needed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use carillon_crds::{ChatBackup, ChatCluster, ChatClusterSpec};
use futures::{Stream, StreamExt, future, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{
    Config as ControllerConfig, Controller, Predicate, PredicateConfig, WatchStreamExt, predicates,
    watcher,
};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::build::{
    BACKUP_LABEL, INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL, RabbitmqCluster, ScyllaCluster,
};
use crate::context::Context;
use crate::foreign::{
    ASKED_AGAIN_AFTER, Kind, Monitoring, OfPodMonitor, OfPrometheusRule, is_unknown,
};
use crate::leader::Leadership;
use crate::managed;
use crate::metrics::Metrics;
use crate::reconcile::{error_policy, reconcile};
use crate::settings::Settings;
use crate::{http, leader};

/// Changes that come within this time are looked at together: a roll-out makes many.
const DEBOUNCE: Duration = Duration::from_millis(300);

/// Objects on a page of a watch's first list. Each is held whole until its page is read, with the fields that others manage, and
/// all watches begin together: with a thousand ChatClusters the usual 500 were 140 MiB at a start.
const PAGE: u32 = 50;
/// Between two looks whether the API server knows a kind that somebody else defines.
const SERVED_INTERVAL: Duration = Duration::from_secs(30);

/// Runs until `shutdown`, or until the Lease is lost.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let ready = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind(("0.0.0.0", settings.http_port))
        .await
        .with_context(|| {
            format!(
                "can't listen at port {}; choose another with --http-port",
                settings.http_port
            )
        })?;
    tracing::info!(address = %listener.local_addr()?, "serving /health, /ready and /metrics");
    let server = tokio::spawn(http::serve(
        listener,
        Arc::clone(&ready),
        metrics.clone(),
        shutdown.clone(),
    ));
    let config = Config::infer().await.context(
        "no access to Kubernetes: neither a kubeconfig nor a pod's ServiceAccount was found",
    )?;
    let client =
        Client::try_from(config.clone()).context("the access to Kubernetes is unusable")?;
    let version = client
        .apiserver_version()
        .await
        .context("the API server doesn't answer")?;
    ready.store(true, Ordering::Relaxed);
    tracing::info!(
        kubernetes = version.git_version,
        operator = carillon_crds::PLATFORM_VERSION,
        namespaces = settings.watch_namespaces.join(","),
        image = settings.image,
        "started"
    );
    let result = lead(&settings, client, config, &metrics, &shutdown).await;
    shutdown.cancel();
    server.await.context("the HTTP server panicked")??;
    result
}

/// Waits for the Lease, reconciles while holding it.
async fn lead(
    settings: &Settings,
    client: Client,
    config: Config,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let leadership: leader::Leadership = Leadership::new(
        client,
        &settings.lease_namespace,
        &settings.lease_name,
        &settings.identity,
    );
    if !leadership.acquire(shutdown).await {
        return Ok(());
    }
    metrics.leader.set(1);
    tracing::info!(identity = settings.identity, "leading");
    let context = Arc::new(Context::new(
        leadership.term().client(config)?,
        settings.image.clone(),
        settings.identity.clone(),
        metrics.clone(),
    ));
    let acting = shutdown.child_token();
    tokio::spawn(Arc::clone(&context.lookout).run(Arc::clone(&context.readiness), acting.clone()));
    let mut controllers = tokio::task::JoinSet::new();
    for namespace in &settings.watch_namespaces {
        controllers.spawn(control(
            Arc::clone(&context),
            namespace.clone(),
            settings.concurrency,
            acting.clone(),
        ));
        controllers.spawn(control_backups(
            Arc::clone(&context),
            namespace.clone(),
            acting.clone(),
        ));
    }
    // The Lease is given up only when the last reconcile has ended: two never act at once.
    let ended = CancellationToken::new();
    let holding = leadership.hold(&ended);
    let controlling = async {
        while controllers.join_next().await.is_some() {}
        ended.cancel();
    };
    tokio::pin!(holding, controlling);
    let kept = tokio::select! {
        kept = &mut holding => kept,
        () = &mut controlling => holding.await,
    };
    metrics.leader.set(0);
    // When it was lost, dropping the controllers stops them where they are: another leader may start any moment.
    anyhow::ensure!(kept, "the Lease was lost");
    anyhow::ensure!(
        shutdown.is_cancelled(),
        "the controllers ended by themselves"
    );
    Ok(())
}

/// Reconciles the ChatClusters of one namespace (`*`: of all) until `shutdown`, then lets running reconciles end.
async fn control(
    context: Arc<Context>,
    namespace: String,
    concurrency: u16,
    shutdown: CancellationToken,
) {
    let client = context.client.clone();
    let metrics = context.metrics.clone();
    let (clusters, store) = clusters(&client, &namespace);
    Controller::for_stream(clusters, store)
        .with_config(
            ControllerConfig::default()
                .concurrency(concurrency)
                .debounce(DEBOUNCE),
        )
        .watches_stream(children::<ServiceAccount>(&client, &namespace), clusters_of)
        .watches_stream(children::<ConfigMap>(&client, &namespace), clusters_of)
        .watches_stream(children::<Service>(&client, &namespace), clusters_of)
        .watches_stream(children::<NetworkPolicy>(&client, &namespace), clusters_of)
        .watches_stream(
            children::<PodDisruptionBudget>(&client, &namespace),
            clusters_of,
        )
        .watches_stream(children::<Job>(&client, &namespace), clusters_of)
        .watches_stream(children::<Deployment>(&client, &namespace), clusters_of)
        .watches_stream(children::<StatefulSet>(&client, &namespace), clusters_of)
        .watches_stream(
            once_served::<ScyllaCluster>(&client, &namespace),
            clusters_of,
        )
        .watches_stream(
            once_served::<RabbitmqCluster>(&client, &namespace),
            clusters_of,
        )
        .watches_stream(
            children::<HorizontalPodAutoscaler>(&client, &namespace),
            clusters_of,
        )
        .watches_stream(children::<Ingress>(&client, &namespace), clusters_of)
        .watches_stream(monitors::<OfPodMonitor>(&context, &namespace), clusters_of)
        .watches_stream(
            monitors::<OfPrometheusRule>(&context, &namespace),
            clusters_of,
        )
        .reconcile_on(context.lookout.changes())
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(reconcile, error_policy, context)
        .for_each(|result| {
            if let Err(error) = result {
                // A reconcile's own error is logged where it happens, and a vanished object is no error.
                match error {
                    kube::runtime::controller::Error::ReconcilerFailed(..)
                    | kube::runtime::controller::Error::ObjectNotFound(_) => {}
                    error => {
                        metrics.watch_errors.inc();
                        tracing::warn!(%error, "watching");
                    }
                }
            }
            future::ready(())
        })
        .await;
}

/// Reconciles the ChatBackups of one namespace (`*`: of all) until `shutdown`, then lets running reconciles end.
async fn control_backups(context: Arc<Context>, namespace: String, shutdown: CancellationToken) {
    let client = context.client.clone();
    let metrics = context.metrics.clone();
    let (store, writer) = reflector::store();
    let backups = watcher(
        api::<DeserializeGuard<ChatBackup>>(&client, &namespace),
        watcher::Config::default().page_size(PAGE),
    )
    .default_backoff()
    .modify(|backup| backup.managed_fields_mut().clear())
    .reflect(writer)
    .applied_objects()
    .predicate_filter(predicates::generation, PredicateConfig::default());
    Controller::for_stream(backups, store)
        .with_config(
            ControllerConfig::default()
                .concurrency(1)
                .debounce(DEBOUNCE),
        )
        .watches_stream(children::<Job>(&client, &namespace), backups_of)
        .watches_stream(children::<CronJob>(&client, &namespace), backups_of)
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(backup::reconcile, backup::error_policy, context)
        .for_each(|result| {
            match result {
                Ok(_)
                | Err(
                    kube::runtime::controller::Error::ReconcilerFailed(..)
                    | kube::runtime::controller::Error::ObjectNotFound(_),
                ) => {}
                Err(error) => {
                    metrics.watch_errors.inc();
                    tracing::warn!(%error, "watching ChatBackups");
                }
            }
            future::ready(())
        })
        .await;
}

/// The ChatBackup that a Job or CronJob is of.
fn backups_of<K: Resource>(
    child: PartialObjectMeta<K>,
) -> Option<ObjectRef<DeserializeGuard<ChatBackup>>> {
    let name = child.labels().get(BACKUP_LABEL)?.clone();
    Some(ObjectRef::new(&name).within(&child.namespace()?))
}

type ClusterGuard = DeserializeGuard<ChatCluster>;

/// ChatClusters whose spec changed, or of which a rotation is asked for. Our own status writes are filtered out; one that can't be read is let through as
/// such, so that it doesn't hide the others.
fn clusters(
    client: &Client,
    namespace: &str,
) -> (
    impl Stream<Item = Result<ClusterGuard, watcher::Error>> + Send + 'static,
    Store<ClusterGuard>,
) {
    let (store, writer) = reflector::store();
    let stream = watcher(
        api::<ClusterGuard>(client, namespace),
        watcher::Config::default().page_size(PAGE),
    )
    .default_backoff()
    .modify(|cluster| {
        cluster.managed_fields_mut().clear();
        // What is asked for by annotations; anything else may be large.
        cluster
            .annotations_mut()
            .retain(|key, _| key.starts_with(crate::credentials::ROTATE));
        // A pass reads the object as it is then: here only its name, its generation and whether it can be read count.
        if let Ok(cluster) = &mut cluster.0 {
            cluster.spec = ChatClusterSpec::default();
            cluster.status = None;
        }
    })
    .reflect(writer)
    .applied_objects()
    .predicate_filter(
        predicates::generation.combine(predicates::annotations),
        PredicateConfig::default(),
    );
    (stream, store)
}

/// Our own children of one kind, as metadata.
fn children<K>(
    client: &Client,
    namespace: &str,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + use<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let config = watcher::Config::default()
        .labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"))
        .page_size(PAGE);
    watcher(api::<PartialObjectMeta<K>>(client, namespace), config)
        .default_backoff()
        .touched_objects()
}

/// Our own children of a kind that the API server may not know, from when it does until it doesn't any more.
fn monitors<K: Kind>(
    context: &Arc<Context>,
    namespace: &str,
) -> impl Stream<Item = Result<PartialObjectMeta<Monitoring<K>>, watcher::Error>> + Send + 'static {
    let context = Arc::clone(context);
    let namespace = namespace.to_owned();
    stream::iter(0_u64..).flat_map(move |round| {
        let (context, namespace) = (Arc::clone(&context), namespace.clone());
        let known = Arc::clone(&context);
        stream::once(async move { until_served::<K>(&known, round).await }).flat_map(move |()| {
            children::<Monitoring<K>>(&context.client, &namespace)
                .take_while(|event| future::ready(!event.as_ref().is_err_and(is_gone)))
        })
    })
}

async fn until_served<K: Kind>(context: &Context, round: u64) {
    // A watch has just been refused: what was remembered is not true any more.
    if round > 0 {
        tokio::time::sleep(ASKED_AGAIN_AFTER).await;
    }
    while !context
        .definitions
        .served(&context.client)
        .await
        .has(K::KIND)
    {
        tokio::time::sleep(ASKED_AGAIN_AFTER).await;
    }
}

/// Whether a watch says that there is no such kind.
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => is_unknown(error),
        watcher::Error::WatchError(status) => status.is_not_found(),
        watcher::Error::NoResourceVersion => false,
    }
}

/// The same of a kind that somebody else defines: from when the API server knows it.
fn once_served<K>(
    client: &Client,
    namespace: &str,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + 'static
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let watched = children::<K>(client, namespace);
    let client = client.clone();
    futures::stream::once(async move {
        while !managed::is_served::<K>(&client).await.unwrap_or(false) {
            tokio::time::sleep(SERVED_INTERVAL).await;
        }
        watched
    })
    .flatten()
}

/// The ChatClusters that a child is of, by its owner reference and by its label: somebody may have taken away either.
fn clusters_of<K: Resource>(child: PartialObjectMeta<K>) -> Vec<ObjectRef<ClusterGuard>> {
    let namespace = child.namespace().unwrap_or_default();
    let owners = child
        .owner_references()
        .iter()
        .filter(|owner| owner.kind == ChatCluster::kind(&()))
        .map(|owner| owner.name.clone());
    let names: BTreeSet<String> = owners
        .chain(child.labels().get(INSTANCE_LABEL).cloned())
        .collect();
    names
        .into_iter()
        .map(|name| ObjectRef::new(&name).within(&namespace))
        .collect()
}

fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    if namespace == "*" {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_child_is_found_by_whichever_mark_is_left() {
        let clusters = |metadata: Value| -> Vec<String> {
            let child: PartialObjectMeta<Service> =
                serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            clusters_of(child)
                .into_iter()
                .map(|cluster| {
                    format!("{}/{}", cluster.namespace.unwrap_or_default(), cluster.name)
                })
                .collect()
        };
        let owner = json!([{ "apiVersion": "carillon.chat/v1alpha1", "kind": "ChatCluster", "name": "town", "uid": "1" }]);
        let labels = json!({ "app.kubernetes.io/instance": "town" });
        for metadata in [
            json!({ "namespace": "chat", "ownerReferences": owner, "labels": labels }),
            json!({ "namespace": "chat", "ownerReferences": owner }),
            json!({ "namespace": "chat", "labels": labels }),
        ] {
            assert_eq!(clusters(metadata), ["chat/town"]);
        }
        assert!(clusters(json!({ "namespace": "chat" })).is_empty());
    }
}
