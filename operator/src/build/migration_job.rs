//! The Job that brings the stores' schema to the ordered version before any pod of that version starts.
//!
//! Its name carries a hash of what decides the schema: version, image and stores. A Job can't be changed once made; what
//! would change it makes another one.

use carillon_crds::config::CONFIG_FILE;
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;

use super::labels::{MIGRATION_COMPONENT, labels, metadata};
use super::pod::{
    MIGRATED_STORES, Volumes, container_security, environment, image_pull_secrets, pod_security,
};
use super::{object, short_hash};
use crate::validate::Order;

/// How long one attempt waits for a store before it ends and says why.
const PATIENCE_SECONDS: &str = "20";

pub(super) fn build(order: &Order) -> Job {
    let mut volumes = Volumes::with_configuration(order);
    volumes.add_store_credentials(order, MIGRATED_STORES);
    let mut pod = json!({
        "serviceAccountName": service_account_name(order),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod_security(),
        "restartPolicy": "Never",
        "volumes": volumes.volumes,
        "containers": [{
            "name": MIGRATION_COMPONENT,
            "image": order.image.reference,
            "imagePullPolicy": order.image.pull_policy,
            "args": ["migrate", "--config", CONFIG_FILE, "--patience", PATIENCE_SECONDS],
            "env": environment(),
            "resources": { "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": "512Mi" } },
            "securityContext": container_security(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": volumes.mounts,
        }],
    });
    if !order.image.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = image_pull_secrets(order);
    }
    object(json!({
        "metadata": metadata(order, name(order), Some(MIGRATION_COMPONENT)),
        "spec": {
            // The pause between attempts doubles; before it gets long the Job gives up and the operator makes it anew.
            "backoffLimit": 3,
            "template": {
                "metadata": { "labels": labels(order, MIGRATION_COMPONENT) },
                "spec": pod,
            },
        },
    }))
}

/// Name of the migration's ServiceAccount.
pub(super) fn service_account_name(order: &Order) -> String {
    format!("{}-migrate", order.name)
}

/// Name of the Job of `order`.
pub fn name(order: &Order) -> String {
    let decides = serde_json::to_string(&(
        &order.config.version,
        &order.image.reference,
        &order.config.stores,
    ))
    .expect("plain structs with string keys always serialize");
    format!("{}-migrate-{}", order.name, short_hash(&decides))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{FULL, SMALL, order_of, yaml_of};

    #[test]
    fn migration_job() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(FULL))));
    }

    #[test]
    fn only_what_decides_the_schema_makes_another_job() {
        assert_eq!(
            name(&order_of(SMALL)),
            name(&order_of(&format!("{SMALL}auth: {{accessTokenTtl: 5m}}\n")))
        );
        assert_ne!(
            name(&order_of(SMALL)),
            name(&order_of(&format!("{SMALL}image: {{tag: other}}\n")))
        );
        assert_ne!(
            name(&order_of(SMALL)),
            name(&order_of(&SMALL.replace("dc1", "dc2")))
        );
    }
}
