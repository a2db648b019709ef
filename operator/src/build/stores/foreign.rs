//! What is ordered of the operators of ScyllaDB and RabbitMQ: a `ScyllaCluster` and a `RabbitmqCluster`. Of their many fields only those
//! that a ChatCluster's author may want; the rest is their operators' to default. A test applies both under their published
//! definitions, with every unknown field refused.
//!
//! They hold data: with the policy `Retain` they carry no owner reference, and stay when the ChatCluster goes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use carillon_crds::{DATACENTER, DeletionPolicy, ManagedStore};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Resource;
use kube::core::{ObjectMeta, TypeMeta};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::labels::{COMPONENT_LABEL, INSTANCE_LABEL, VERSION_LABEL, metadata};
use super::{Maker, resources};
use crate::managed::USER;
use crate::validate::Order;

const DEFAULT_VERSION: &str = "6.2.3";
/// Short, for it is part of the names of pods.
const RACK: &str = "r1";

/// A `ScyllaCluster` (`scylla.scylladb.com/v1`).
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct ScyllaCluster {
    /// Its API version and kind.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name and marks.
    pub metadata: ObjectMeta,
    /// What is ordered, as its operator reads it.
    pub spec: Value,
    /// What its operator says.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

/// A `RabbitmqCluster` (`rabbitmq.com/v1beta1`).
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct RabbitmqCluster {
    /// Its API version and kind.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Its name and marks.
    pub metadata: ObjectMeta,
    /// What is ordered, as its operator reads it.
    pub spec: Value,
    /// What its operator says.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

impl Resource for ScyllaCluster {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ScyllaCluster".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "scylla.scylladb.com".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "scyllaclusters".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Resource for RabbitmqCluster {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "RabbitmqCluster".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "rabbitmq.com".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1beta1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "rabbitmqclusters".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn is_wanted(order: &Order, store: ManagedStore) -> bool {
    order.spec.manages(store) && order.managed.maker(store) == Maker::Operator
}

fn kept_metadata(order: &Order, store: ManagedStore) -> ObjectMeta {
    let mut metadata = metadata(order, store.object_name(&order.name), Some(store.name()));
    // Other operators hand labels on to pods: an upgrade would restart them.
    metadata.labels.iter_mut().for_each(|labels| {
        labels.remove(VERSION_LABEL);
    });
    if order.spec.managed_deletion(store) == DeletionPolicy::Retain {
        metadata.owner_references = None;
    }
    metadata
}

fn scylla_config_name(order: &Order) -> String {
    format!("{}-config", ManagedStore::Scylla.object_name(&order.name))
}

/// What nodes of ScyllaDB read besides what their operator writes: who the first user is.
pub(super) fn scylla_config(order: &Order) -> Option<ConfigMap> {
    let salted = order.managed.salted_password.as_ref()?;
    if !is_wanted(order, ManagedStore::Scylla) {
        return None;
    }
    let settings = json!({
        "authenticator": "PasswordAuthenticator",
        "auth_superuser_name": USER,
        "auth_superuser_salted_password": salted,
    });
    let settings =
        serde_saphyr::to_string(&settings).expect("plain values with string keys always serialize");
    let mut metadata = metadata(
        order,
        scylla_config_name(order),
        Some(ManagedStore::Scylla.name()),
    );
    // Nodes can't start without it, and may stay.
    metadata.owner_references = kept_metadata(order, ManagedStore::Scylla).owner_references;
    Some(ConfigMap {
        metadata,
        data: Some(BTreeMap::from([("scylla.yaml".to_owned(), settings)])),
        ..ConfigMap::default()
    })
}

/// The `ScyllaCluster` of an order that has one.
pub fn scylla_cluster(order: &Order) -> Option<ScyllaCluster> {
    let store = ManagedStore::Scylla;
    let scylla = order
        .spec
        .managed_scylla()
        .filter(|_| is_wanted(order, store))?;
    let storage = scylla.storage.clone().unwrap_or_default();
    let mut rack = json!({
        "name": RACK,
        "members": scylla.members(),
        "storage": { "capacity": storage.size() },
        "resources": resources(order, store),
        "scyllaConfig": scylla_config_name(order),
    });
    if let Some(class) = &storage.storage_class_name {
        rack["storage"]["storageClassName"] = json!(class);
    }
    let mut spec = json!({
        "version": scylla.version.as_deref().unwrap_or(DEFAULT_VERSION),
        // One node is for development, on a machine that wasn't tuned for ScyllaDB.
        "developerMode": scylla.members() == 1,
        "datacenter": { "name": DATACENTER, "racks": [rack] },
        // Else pods get the labels and annotations of this object, among them the mark of what was ordered: any change would restart them.
        "podMetadata": {
            "labels": { INSTANCE_LABEL: order.name, COMPONENT_LABEL: store.name() },
            "annotations": {},
        },
    });
    if !order.image.pull_secrets.is_empty() {
        spec["imagePullSecrets"] = super::image_pull_secrets(order);
    }
    Some(ScyllaCluster {
        types: TypeMeta::resource::<ScyllaCluster>(),
        metadata: kept_metadata(order, store),
        spec,
        status: Value::Null,
    })
}

/// The `RabbitmqCluster` of an order that has one.
pub fn rabbitmq_cluster(order: &Order) -> Option<RabbitmqCluster> {
    let store = ManagedStore::Rabbitmq;
    let rabbitmq = order
        .spec
        .managed_rabbitmq()
        .filter(|_| is_wanted(order, store))?;
    let storage = rabbitmq.storage.clone().unwrap_or_default();
    let mut spec = json!({
        "replicas": rabbitmq.replicas(),
        "persistence": { "storage": storage.size() },
        "resources": resources(order, store),
    });
    if let Some(class) = &storage.storage_class_name {
        spec["persistence"]["storageClassName"] = json!(class);
    }
    if let Some(image) = &rabbitmq.image {
        spec["image"] = json!(image);
    }
    if !order.image.pull_secrets.is_empty() {
        spec["imagePullSecrets"] = super::image_pull_secrets(order);
    }
    Some(RabbitmqCluster {
        types: TypeMeta::resource::<RabbitmqCluster>(),
        metadata: kept_metadata(order, store),
        spec,
        status: Value::Null,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::MANAGED;
    use super::*;
    use crate::build::tests::{order_of, yaml_of};

    fn ordered(spec: &str) -> Order {
        let mut order = order_of(spec);
        order.managed.scylla = Maker::Operator;
        order.managed.rabbitmq = Maker::Operator;
        order.managed.salted_password = Some("$6$salt$hash".to_owned());
        order
    }

    #[test]
    fn what_other_operators_are_asked_for() {
        let order = ordered(MANAGED);
        insta::assert_snapshot!(
            [
                yaml_of(&scylla_config(&order)),
                yaml_of(&scylla_cluster(&order)),
                yaml_of(&rabbitmq_cluster(&order)),
            ]
            .join("---\n")
        );
        let sets = super::super::stateful_sets(&order);
        assert_eq!(sets.len(), 1, "Redis");
    }

    /// What holds data stays by default.
    #[test]
    fn only_who_asks_for_it_loses_data_with_the_chat_cluster() {
        let owned = |spec: &str| {
            let order = ordered(spec);
            (
                scylla_cluster(&order)
                    .unwrap()
                    .metadata
                    .owner_references
                    .is_some(),
                rabbitmq_cluster(&order)
                    .unwrap()
                    .metadata
                    .owner_references
                    .is_some(),
            )
        };
        assert_eq!(owned(MANAGED), (true, false));
    }
}
