//! Reads everything that a reconcile decides on. I/O only.
//!
//! Children are listed by label when they are needed and not cached: the operator's memory doesn't grow with what it
//! looks after, and no decision is made on stale data. Secrets are never listed, and those of users are asked for by
//! name and only as metadata: their contents don't reach the operator.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use carillon_crds::{ChatCluster, ChatClusterSpec, ManagedStore};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::apply::difference::ORDER_HASH;
use crate::build::{
    INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL, RabbitmqCluster, SIGNING_KEY, ScyllaCluster,
    instance_selector, jwt_secret_name,
};
use crate::foreign::{PodMonitor, PrometheusRule, Served, is_unknown};
use crate::managed::is_absent;
use crate::status::MissingSecret;
use crate::validate::Order;

/// The children that exist, by kind: those that carry the ChatCluster's labels and are owned by it or by nobody.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// ServiceAccounts.
    pub service_accounts: Vec<ServiceAccount>,
    /// ConfigMaps.
    pub config_maps: Vec<ConfigMap>,
    /// Services.
    pub services: Vec<Service>,
    /// NetworkPolicies.
    pub network_policies: Vec<NetworkPolicy>,
    /// PodDisruptionBudgets.
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    /// Jobs.
    pub jobs: Vec<Job>,
    /// Deployments.
    pub deployments: Vec<Deployment>,
    /// StatefulSets.
    pub stateful_sets: Vec<StatefulSet>,
    /// The ScyllaDB that ScyllaDB's own operator brings up, if it is asked for.
    pub scylla_cluster: Option<ScyllaCluster>,
    /// The RabbitMQ that RabbitMQ's own operator brings up, if it is asked for.
    pub rabbitmq_cluster: Option<RabbitmqCluster>,
    /// HorizontalPodAutoscalers.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// Ingresses.
    pub ingresses: Vec<Ingress>,
    /// PodMonitors, where the API server knows them.
    pub pod_monitors: Vec<PodMonitor>,
    /// PrometheusRules, where the API server knows them.
    pub prometheus_rules: Vec<PrometheusRule>,
}

/// Reads the children of `cluster`; of kinds that the API server may not know, those that are `served`.
pub async fn live_children(
    client: &Client,
    cluster: &ChatCluster,
    served: Served,
) -> Result<Live, kube::Error> {
    let (service_accounts, config_maps, services, network_policies, pod_disruption_budgets) = tokio::try_join!(
        owned(client, cluster),
        owned(client, cluster),
        owned(client, cluster),
        owned(client, cluster),
        owned(client, cluster),
    )?;
    let (jobs, deployments, stateful_sets, autoscalers, ingresses) = tokio::try_join!(
        owned(client, cluster),
        owned(client, cluster),
        owned(client, cluster),
        owned(client, cluster),
        owned(client, cluster),
    )?;
    let (scylla_cluster, rabbitmq_cluster) = tokio::try_join!(
        managed(client, cluster, ManagedStore::Scylla),
        managed(client, cluster, ManagedStore::Rabbitmq),
    )?;
    let (pod_monitors, prometheus_rules) = tokio::try_join!(
        owned_if(served.pod_monitors, client, cluster),
        owned_if(served.prometheus_rules, client, cluster),
    )?;
    Ok(Live {
        service_accounts,
        config_maps,
        services,
        network_policies,
        pod_disruption_budgets,
        jobs,
        deployments,
        stateful_sets,
        scylla_cluster,
        rabbitmq_cluster,
        autoscalers,
        ingresses,
        pod_monitors,
        prometheus_rules,
    })
}

/// The pods of `cluster`. Needed only to say why something isn't ready.
pub async fn pods(client: &Client, cluster: &ChatCluster) -> Result<Vec<Pod>, kube::Error> {
    list(client, cluster).await
}

/// The Secrets that the spec names and that don't exist.
pub async fn missing_secrets(
    client: &Client,
    namespace: &str,
    spec: &ChatClusterSpec,
) -> Result<Vec<MissingSecret>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut missing = Vec::new();
    for (name, needed_by) in spec.referenced_secrets() {
        let found: Option<PartialObjectMeta<Secret>> = api.get_metadata_opt(&name).await?;
        if found.is_none() {
            missing.push(MissingSecret { name, needed_by });
        }
    }
    Ok(missing)
}

/// The key that signs the cluster's access tokens, PKCS#8 PEM; `None` when it isn't there. For the probe's token, when one is due.
pub async fn signing_key(client: &Client, order: &Order) -> Result<Option<String>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &order.namespace);
    let secret = api.get_opt(&jwt_secret_name(&order.name)).await?;
    Ok(secret
        .and_then(|secret| secret.data)
        .and_then(|mut data| data.remove(SIGNING_KEY))
        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()))
}

async fn list<K>(client: &Client, cluster: &ChatCluster) -> Result<Vec<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    Ok(api
        .list(&ListParams::default().labels(&instance_selector(name)))
        .await?
        .items)
}

/// The resource of a managed store's own operator, where the store is managed and that operator installed.
async fn managed<K>(
    client: &Client,
    cluster: &ChatCluster,
    store: ManagedStore,
) -> Result<Option<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    if !cluster.spec.manages(store) {
        return Ok(None);
    }
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.get(&store.object_name(name)).await {
        Ok(found) => Ok(Some(found).filter(|found| is_owned_by(found, cluster))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn owned<K>(client: &Client, cluster: &ChatCluster) -> Result<Vec<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let mut children: Vec<K> = list(client, cluster).await?;
    children.retain(|child| is_owned_by(child, cluster));
    Ok(children)
}

async fn owned_if<K>(
    is_served: bool,
    client: &Client,
    cluster: &ChatCluster,
) -> Result<Vec<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    if !is_served {
        return Ok(Vec::new());
    }
    match owned(client, cluster).await {
        // Somebody took the definition away since.
        Err(error) if is_unknown(&error) => Ok(Vec::new()),
        found => found,
    }
}

/// Whether `child` carries the controller reference of `cluster`, and not of an earlier one of the same name; or nobody's,
/// and our own marks: somebody took the reference away.
pub fn is_owned_by<K: Resource>(child: &K, cluster: &ChatCluster) -> bool {
    let metadata = child.meta();
    let mut owners = metadata.owner_references.iter().flatten();
    if let Some(owner) = owners.find(|owner| owner.controller == Some(true)) {
        return Some(&owner.uid) == cluster.metadata.uid.as_ref();
    }
    let marked = |map: &Option<BTreeMap<String, String>>, key: &str, value: Option<&str>| {
        map.as_ref()
            .and_then(|map| map.get(key))
            .is_some_and(|found| value.is_none_or(|value| found == value))
    };
    marked(&metadata.labels, MANAGED_BY_LABEL, Some(MANAGED_BY))
        && marked(
            &metadata.labels,
            INSTANCE_LABEL,
            cluster.metadata.name.as_deref(),
        )
        && marked(&metadata.annotations, ORDER_HASH, None)
}

/// Names of some objects.
pub fn names<K: Resource>(objects: &[K]) -> BTreeSet<String> {
    objects
        .iter()
        .filter_map(|object| object.meta().name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_child_without_owner_is_taken_back_and_nobody_elses() {
        let mut cluster = ChatCluster::new("town", ChatClusterSpec::default());
        cluster.metadata.uid = Some("1".to_owned());
        let labels = json!({ "app.kubernetes.io/instance": "town", "app.kubernetes.io/managed-by": "carillon-operator" });
        let annotations = json!({ "carillon.chat/order-hash": "x" });
        let owner = |uid: &str| json!([{ "apiVersion": "carillon.chat/v1alpha1", "kind": "ChatCluster", "name": "town", "uid": uid, "controller": true }]);
        let is_ours = |metadata: Value| {
            let child: Service = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            is_owned_by(&child, &cluster)
        };
        assert!(is_ours(json!({ "ownerReferences": owner("1") })));
        assert!(is_ours(
            json!({ "labels": labels, "annotations": annotations })
        ));
        for metadata in [
            json!({ "ownerReferences": owner("2"), "labels": labels, "annotations": annotations }),
            json!({ "labels": labels }),
            json!({ "labels": { "app.kubernetes.io/instance": "town" }, "annotations": annotations }),
            json!({ "labels": { "app.kubernetes.io/instance": "other", "app.kubernetes.io/managed-by": "carillon-operator" }, "annotations": annotations }),
        ] {
            assert!(!is_ours(metadata.clone()), "{metadata}");
        }
    }
}
