//! The stores that are managed: a resource for the store's own operator, where [`Maker`] says so, else a StatefulSet of one pod with
//! its Service, configuration, NetworkPolicy and budget.
//!
//! Names of Services and Secrets are those that the store's own operator would choose, so that the roles' configuration is the same
//! in either case. Which of the two it is, and the Secrets, are [`crate::managed`]'s business. Redis is always a StatefulSet: of the
//! operators for it none is used so widely that its resource could be counted on.
//!
//! Pods of a store carry no label by which the roles' pods are found, and none that changes with the platform's version: an upgrade
//! doesn't restart a store.

mod cassandra;
mod foreign;
mod rabbitmq;
mod redis;

use std::collections::BTreeMap;

use carillon_crds::{DeletionPolicy, ManagedStore, parse_quantity};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, ResourceRequirements, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::labels::{COMPONENT_LABEL, INSTANCE_LABEL, instance, match_labels, metadata};
use super::pod::{container_security, image_pull_secrets};
use super::{object, short_hash};
use crate::validate::Order;

pub use foreign::{RabbitmqCluster, ScyllaCluster, rabbitmq_cluster, scylla_cluster};

/// Who brings a managed store up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maker {
    /// A StatefulSet of ours.
    #[default]
    StatefulSet,
    /// The store's own operator, by a resource that it reads.
    Operator,
}

impl Maker {
    /// As it is written down.
    pub fn name(self) -> &'static str {
        match self {
            Maker::StatefulSet => "StatefulSet",
            Maker::Operator => "Operator",
        }
    }

    /// What [`Maker::name`] wrote.
    pub fn from_name(name: &str) -> Option<Self> {
        [Maker::StatefulSet, Maker::Operator]
            .into_iter()
            .find(|maker| maker.name() == name)
    }
}

/// What is known of the managed stores, and not from the spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagedStores {
    /// Of ScyllaDB.
    pub scylla: Maker,
    /// Of RabbitMQ.
    pub rabbitmq: Maker,
    /// Whether nobody is left who needs them: the cluster hibernates and the roles have no pods.
    pub asleep: bool,
    /// Those that are ordered of a cluster that has run, and of which there is neither an object nor a Secret.
    pub unmade: Vec<ManagedStore>,
    /// The password of ScyllaDB's first user, as ScyllaDB keeps it.
    pub salted_password: Option<String>,
}

impl ManagedStores {
    /// Who brings `store` up.
    pub fn maker(&self, store: ManagedStore) -> Maker {
        match store {
            ManagedStore::Scylla => self.scylla,
            ManagedStore::Rabbitmq => self.rabbitmq,
            ManagedStore::Redis => Maker::StatefulSet,
        }
    }
}

/// The value of the name label of the pods of a store.
const STORE: &str = "carillon-store";
/// The user that the official images of the three have for their server.
const SERVER_USER: i64 = 999;
/// Where a store finds its configuration.
const CONFIG_DIR: &str = "/etc/carillon-store";

/// The stores that are to be StatefulSets.
pub(super) fn own(order: &Order) -> impl Iterator<Item = ManagedStore> {
    ManagedStore::ALL.into_iter().filter(|store| {
        order.spec.manages(*store) && order.managed.maker(*store) == Maker::StatefulSet
    })
}

pub(super) fn stateful_sets(order: &Order) -> Vec<StatefulSet> {
    own(order).map(|store| stateful_set(order, store)).collect()
}

pub(super) fn services(order: &Order) -> Vec<Service> {
    own(order).map(|store| service(order, store)).collect()
}

pub(super) fn config_maps(order: &Order) -> Vec<ConfigMap> {
    own(order)
        .map(|store| config_map(order, store))
        .chain(foreign::scylla_config(order))
        .collect()
}

pub(super) fn network_policies(order: &Order) -> Vec<NetworkPolicy> {
    own(order)
        .map(|store| network_policy(order, store))
        .collect()
}

pub(super) fn pod_disruption_budgets(order: &Order) -> Vec<PodDisruptionBudget> {
    own(order)
        .map(|store| {
            object(json!({
                "metadata": metadata(order, store.object_name(&order.name), Some(store.name())),
                "spec": {
                    "maxUnavailable": 1,
                    "selector": match_labels(selector(order, store)),
                    "unhealthyPodEvictionPolicy": "AlwaysAllow",
                },
            }))
        })
        .collect()
}

/// The labels of a store's pods.
fn selector(order: &Order, store: ManagedStore) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), STORE.to_owned()),
        (INSTANCE_LABEL.to_owned(), order.name.clone()),
        (COMPONENT_LABEL.to_owned(), store.name().to_owned()),
    ])
}

fn service(order: &Order, store: ManagedStore) -> Service {
    object(json!({
        "metadata": metadata(order, store.service_name(&order.name), Some(store.name())),
        "spec": {
            "type": "ClusterIP",
            // One pod, found by its own address: drivers of Cassandra ask for it.
            "clusterIP": "None",
            "selector": selector(order, store),
            "ports": [{ "name": store.name(), "port": store.port(), "protocol": "TCP", "targetPort": store.name() }],
        },
    }))
}

/// Only this ChatCluster's pods reach its stores; for ScyllaDB also the pods of its backups.
fn network_policy(order: &Order, store: ManagedStore) -> NetworkPolicy {
    let mut from = vec![json!({ "podSelector": match_labels(instance(order)) })];
    if store == ManagedStore::Scylla {
        from.push(json!({
            "podSelector": { "matchLabels": { "app.kubernetes.io/name": "carillon-backup" } },
        }));
    }
    object(json!({
        "metadata": metadata(order, store.object_name(&order.name), Some(store.name())),
        "spec": {
            "podSelector": match_labels(selector(order, store)),
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": from, "ports": [{ "port": store.port(), "protocol": "TCP" }] }],
        },
    }))
}

fn files(order: &Order, store: ManagedStore) -> BTreeMap<String, String> {
    match store {
        ManagedStore::Scylla => cassandra::files(order),
        ManagedStore::Redis => redis::files(order),
        ManagedStore::Rabbitmq => rabbitmq::files(),
    }
}

/// Named by its content, as the roles' is: what would change it starts the pod anew.
fn config_name(order: &Order, store: ManagedStore) -> String {
    let files = serde_json::to_string(&files(order, store))
        .expect("a map with string keys always serializes");
    format!("{}-{}", store.object_name(&order.name), short_hash(&files))
}

fn config_map(order: &Order, store: ManagedStore) -> ConfigMap {
    ConfigMap {
        metadata: metadata(order, config_name(order, store), Some(store.name())),
        data: Some(files(order, store)),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// What differs between the three: the container but for what all have, and volumes besides the configuration's.
struct Server {
    container: Value,
    volumes: Vec<Value>,
    mounts: Vec<Value>,
    grace_seconds: u32,
}

fn stateful_set(order: &Order, store: ManagedStore) -> StatefulSet {
    let mut server = match store {
        ManagedStore::Scylla => cassandra::server(order),
        ManagedStore::Redis => redis::server(order),
        ManagedStore::Rabbitmq => rabbitmq::server(order),
    };
    let mut volumes = vec![
        json!({ "name": "config", "configMap": { "name": config_name(order, store) } }),
        json!({ "name": "tmp", "emptyDir": { "sizeLimit": "1Gi" } }),
    ];
    volumes.append(&mut server.volumes);
    let mut mounts = vec![
        json!({ "name": "config", "mountPath": CONFIG_DIR, "readOnly": true }),
        json!({ "name": "tmp", "mountPath": "/tmp" }),
    ];
    mounts.append(&mut server.mounts);
    let mut container = server.container;
    container["name"] = json!(store.name());
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["ports"] =
        json!([{ "name": store.name(), "containerPort": store.port(), "protocol": "TCP" }]);
    container["resources"] = resources(order, store);
    container["securityContext"] = container_security();
    container["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    container["volumeMounts"] = Value::Array(mounts);
    let mut pod = json!({
        // It talks to nobody, least of all to the API server.
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": SERVER_USER,
            "runAsGroup": SERVER_USER,
            "fsGroup": SERVER_USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationGracePeriodSeconds": server.grace_seconds,
        "volumes": volumes,
        "containers": [container],
    });
    if !order.image.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = image_pull_secrets(order);
    }
    let when_deleted = match order.spec.managed_deletion(store) {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    object(json!({
        "metadata": metadata(order, store.object_name(&order.name), Some(store.name())),
        "spec": {
            "replicas": i32::from(!order.managed.asleep),
            "serviceName": store.service_name(&order.name),
            "selector": match_labels(selector(order, store)),
            "revisionHistoryLimit": 3,
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": when_deleted, "whenScaled": "Retain" },
            "template": { "metadata": { "labels": selector(order, store) }, "spec": pod },
            "volumeClaimTemplates": [claim(order, store)],
        },
    }))
}

fn claim(order: &Order, store: ManagedStore) -> Value {
    let storage = order.spec.managed_storage(store).unwrap_or_default();
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": storage.size() } },
    });
    if let Some(class) = &storage.storage_class_name {
        spec["storageClassName"] = json!(class);
    }
    json!({ "metadata": { "name": "data" }, "spec": spec })
}

/// What the user ordered, or the default named in the field's description.
fn resources(order: &Order, store: ManagedStore) -> Value {
    if let Some(ordered) = order.spec.managed_resources(store) {
        return json!(ordered);
    }
    let (cpu, memory, limit) = match store {
        ManagedStore::Scylla => ("500m", "2Gi", "2Gi"),
        ManagedStore::Redis => ("50m", "64Mi", "256Mi"),
        ManagedStore::Rabbitmq => ("100m", "256Mi", "1Gi"),
    };
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "memory": limit } })
}

/// A share, in per cent, of the memory that `store` may use, in MiB; `None` where nothing limits it.
fn share_of_memory(order: &Order, store: ManagedStore, percent: u64) -> Option<u64> {
    let resources: ResourceRequirements = object(resources(order, store));
    let limit = resources.limits.as_ref()?.get("memory")?.0.clone();
    let bytes = parse_quantity(&limit)?;
    let mebibyte = parse_quantity("1Mi")?;
    Some(((bytes / mebibyte) as u64) * percent / 100)
}

/// Mounts one key of the store's Secret.
fn secret_volume(order: &Order, store: ManagedStore, key: &str) -> Value {
    json!({
        "name": "credentials",
        "secret": {
            "secretName": store.secret_name(&order.name),
            "defaultMode": 0o440,
            "items": [{ "key": key, "path": key }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{SMALL, order_of, yaml_of};

    pub(super) const MANAGED: &str = "
media: {replicas: 1, store: {directory: {ephemeral: true}}}
image: {pullSecrets: [registry]}
scylla: {managed: {storage: {size: 20Gi, storageClassName: fast}, deletionPolicy: Delete, resources: {limits: {memory: 4Gi}}}}
rabbitmq: {managed: {image: 'mirror/rabbitmq:4.1'}}
";

    #[test]
    fn stateful_sets_of_stores() {
        insta::assert_snapshot!(yaml_of(&stateful_sets(&order_of(MANAGED))));
    }

    #[test]
    fn what_stores_have_besides() {
        let order = order_of(MANAGED);
        insta::assert_snapshot!(
            [
                yaml_of(&services(&order)),
                yaml_of(&config_maps(&order)),
                yaml_of(&network_policies(&order)),
                yaml_of(&pod_disruption_budgets(&order)),
            ]
            .join("---\n")
        );
    }

    #[test]
    fn external_stores_are_nobodys_children() {
        let order = order_of(SMALL);
        assert!(stateful_sets(&order).is_empty() && config_maps(&order).is_empty());
        assert!(scylla_cluster(&order).is_none() && rabbitmq_cluster(&order).is_none());
    }

    #[test]
    fn an_upgrade_restarts_no_store() {
        for maker in [Maker::StatefulSet, Maker::Operator] {
            let templates = |version: &str| {
                let mut order = order_of(&format!("{MANAGED}version: {version}\n"));
                order.managed.scylla = maker;
                order.managed.rabbitmq = maker;
                let sets = stateful_sets(&order).into_iter();
                let templates: Vec<_> = sets.map(|set| set.spec.template).collect();
                // Of what others make pods of, nothing may change at all.
                let others = (scylla_cluster(&order), rabbitmq_cluster(&order));
                assert_eq!(others.0.is_some(), maker == Maker::Operator);
                yaml_of(&(templates, others))
            };
            assert_eq!(templates("0.1.7"), templates("0.1.8"));
        }
    }

    #[test]
    fn who_sleeps_keeps_everything_but_pods() {
        let mut order = order_of(MANAGED);
        order.managed.asleep = true;
        let sets = stateful_sets(&order);
        assert_eq!(sets.len(), 3);
        assert!(sets.iter().all(|set| set.spec.replicas == Some(0)));
        assert_eq!(services(&order).len(), 3);
    }

    #[test]
    fn a_share_of_memory_is_of_the_limit() {
        let order = order_of(MANAGED);
        assert_eq!(share_of_memory(&order, ManagedStore::Redis, 75), Some(192));
        assert_eq!(
            share_of_memory(&order, ManagedStore::Scylla, 50),
            Some(2048)
        );
    }
}
