//! Labels and metadata that every child has.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use serde_json::{Value, json};

use crate::validate::Order;

/// Whose child it is: the ChatCluster's name.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Which role it belongs to.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The platform version it is of.
pub const VERSION_LABEL: &str = "app.kubernetes.io/version";
/// Who made it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`] of everything the operator makes.
pub const MANAGED_BY: &str = "carillon-operator";
/// The value of [`COMPONENT_LABEL`] of the migration.
pub const MIGRATION_COMPONENT: &str = "migrate";
/// The value of [`COMPONENT_LABEL`] of a restore.
pub const RESTORE_COMPONENT: &str = "restore";

const NAME_LABEL: &str = "app.kubernetes.io/name";
const NAME: &str = "carillon";
const PLATFORM: &str = "platform";

/// Selects every child of the ChatCluster `name`.
pub fn instance_selector(name: &str) -> String {
    format!("{INSTANCE_LABEL}={name},{MANAGED_BY_LABEL}={MANAGED_BY}")
}

/// Metadata of a child that belongs to `component`, or to the whole platform.
pub(super) fn metadata(order: &Order, name: String, component: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(order.namespace.clone()),
        labels: Some(labels(order, component.unwrap_or(PLATFORM))),
        owner_references: Some(vec![order.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// Labels of a child or pod of `component`.
pub(super) fn labels(order: &Order, component: &str) -> BTreeMap<String, String> {
    let mut labels = selector(order, component);
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels.insert(VERSION_LABEL.to_owned(), order.config.version.clone());
    labels
}

/// The labels that select the pods of `component`; they never change in the life of a Deployment.
pub(super) fn selector(order: &Order, component: &str) -> BTreeMap<String, String> {
    let mut labels = instance(order);
    labels.insert(COMPONENT_LABEL.to_owned(), component.to_owned());
    labels
}

/// The labels that select every pod of the ChatCluster.
pub(super) fn instance(order: &Order) -> BTreeMap<String, String> {
    BTreeMap::from([
        (NAME_LABEL.to_owned(), NAME.to_owned()),
        (INSTANCE_LABEL.to_owned(), order.name.clone()),
    ])
}

/// The same selector as a `LabelSelector` literal.
pub(super) fn match_labels(labels: BTreeMap<String, String>) -> Value {
    json!({ "matchLabels": labels })
}
